//! What would change, on all machines at once.

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use slipway_core::Explain;

use crate::ClusterError;
use crate::ask::ask;
use crate::doctor::{self, Finding, Severity};
use crate::layers;
use crate::probe::{self, Facts};
use crate::resource::{Change, Layer, Wanted};
use crate::spec::{Cluster, Machine};
use crate::transport::Host;
use crate::work::AT_ONCE;

/// What would change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The cluster's name.
    pub cluster: String,
    /// When the machines were asked, in milliseconds since 1970.
    pub asked_ms: i64,
    /// In the file's order.
    pub machines: Vec<MachinePlan>,
    /// What the machines of its groups cost an hour in US dollars once they are as wanted; none where no provider is asked, or one does
    /// not say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hourly: Option<f64>,
}

/// What would change on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachinePlan {
    /// Its name.
    pub name: String,
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<Trouble>,
    /// What it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<probe::Machine>,
    /// What differs, in order.
    pub changes: Vec<Planned>,
    /// What a person should look at.
    pub findings: Vec<Finding>,
}

/// An error, as a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// `slipway explain` tells more.
    pub code: String,
    /// In words.
    pub message: String,
}

impl From<&ClusterError> for Trouble {
    fn from(error: &ClusterError) -> Self {
        Self { code: error.code().into(), message: error.to_string() }
    }
}

/// A resource that would change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// The resource.
    pub resource: String,
    /// Its layer, or none for what is between machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<Layer>,
    /// What differs.
    pub changes: Vec<Change>,
    /// What comes with it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub effects: Vec<String>,
}

impl MachinePlan {
    /// What a provider would do to a machine, before anybody can ask it.
    pub fn of_provider(name: &str, change: Change) -> Self {
        let changes =
            vec![Planned { resource: "machine".into(), layer: None, changes: vec![change], effects: Vec::new() }];
        Self { name: name.to_owned(), unreachable: None, machine: None, changes, findings: Vec::new() }
    }
}

impl Plan {
    /// Whether every machine was asked and is as wanted.
    pub fn is_empty(&self) -> bool {
        self.machines.iter().all(|m| m.unreachable.is_none() && m.changes.is_empty())
    }
}

/// Asks all machines at once.
pub async fn plan(cluster: &Cluster, hosts: &[(Machine, Host)], only: &[Layer]) -> Plan {
    let asked_ms = slipway_core::clock::now_ms();
    let joined = only.is_empty() || only.contains(&Layer::Join);
    let asked = hosts.iter().map(|(machine, host)| async move {
        let nodes = if cluster.first() == Some(machine) && joined { probe::NODES } else { 0 };
        let wanted = match layers::wanted(cluster, machine) {
            Ok(wanted) => wanted.only(only),
            Err(error) => return (machine, Wanted::default(), Err(error)),
        };
        let answer = ask(host, &wanted, probe::ABOUT | nodes).await;
        (machine, wanted, answer)
    });
    let answers: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    let members: Vec<String> = answers
        .iter()
        .filter(|(m, ..)| cluster.first() == Some(m))
        .filter_map(|(.., a)| a.as_ref().ok())
        .flat_map(|facts| {
            facts.machine("nodes").lines().map(|l| l.trim_start_matches("node/").to_owned()).collect::<Vec<_>>()
        })
        .collect();
    let machines = answers
        .iter()
        .map(|(machine, wanted, answer)| {
            let mut out = MachinePlan {
                name: machine.name.clone(),
                unreachable: None,
                machine: None,
                changes: Vec::new(),
                findings: Vec::new(),
            };
            match answer {
                Err(error) => out.unreachable = Some(error.into()),
                Ok(facts) => {
                    out.changes = differences(wanted, facts);
                    if joined && cluster.first() != Some(machine) && !members.contains(&machine.name) {
                        out.changes.push(Planned {
                            resource: "join".into(),
                            layer: None,
                            changes: vec![Change::add("a node of the cluster")],
                            effects: Vec::new(),
                        });
                    }
                    out.findings = doctor::examine(facts, machine, asked_ms)
                        .into_iter()
                        .filter(|f| f.severity > Severity::Note)
                        .collect();
                    out.machine = Some(facts.about());
                }
            }
            out
        })
        .collect();
    Plan { cluster: cluster.metadata.name.clone(), asked_ms, machines, hourly: None }
}

fn differences(wanted: &Wanted, facts: &Facts) -> Vec<Planned> {
    let planned = |(resource, changes): (&crate::resource::Resource, Vec<Change>)| Planned {
        resource: resource.id.clone(),
        layer: Some(resource.layer),
        changes,
        effects: resource.effects.clone(),
    };
    wanted.check(facts).into_iter().map(planned).collect()
}
