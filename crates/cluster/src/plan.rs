//! What would change, on all machines at once.

use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use slipway_core::Explain;

use crate::ClusterError;
use crate::layers;
use crate::probe::{self, Facts};
use crate::resource::{Change, Layer, Wanted};
use crate::spec::{Cluster, Machine};
use crate::transport::Host;

/// Clocks that differ by more make certificates and tokens fail.
const MOST_CLOCK_SECONDS: u64 = 30;
/// MicroK8s asks for 20 GB.
const LEAST_DISK_MIB: u64 = 10 << 10;
/// A probe may wait for a service that starts.
const PROBE: Duration = Duration::from_secs(180);

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
    pub findings: Vec<String>,
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

impl Plan {
    /// Whether every machine was asked and is as wanted.
    pub fn is_empty(&self) -> bool {
        self.machines.iter().all(|m| m.unreachable.is_none() && m.changes.is_empty())
    }
}

/// Asks one machine.
///
/// # Errors
/// Those of [`Host::script`].
pub(crate) async fn ask(host: &Host, wanted: &Wanted, more: u8) -> Result<Facts, ClusterError> {
    let text = host.script(&probe::script(&wanted.resources, more), PROBE).await?;
    Facts::parse(&text).map_err(|reason| ClusterError::Host { host: host.name.clone(), reason })
}

/// Asks all machines at once.
pub async fn plan(cluster: &Cluster, hosts: &[(Machine, Host)], only: &[Layer]) -> Plan {
    let asked_ms = slipway_core::clock::now_ms();
    let answers = join_all(hosts.iter().map(|(machine, host)| async move {
        let wanted = layers::wanted(cluster, machine).only(only);
        let nodes = if cluster.first() == Some(machine) && only.is_empty() { probe::NODES } else { 0 };
        let answer = ask(host, &wanted, probe::ABOUT | nodes).await;
        (machine, wanted, answer)
    }))
    .await;
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
                    if only.is_empty() && cluster.first() != Some(machine) && !members.contains(&machine.name) {
                        out.changes.push(Planned {
                            resource: "join".into(),
                            layer: None,
                            changes: vec![Change::add("a node of the cluster")],
                            effects: Vec::new(),
                        });
                    }
                    out.findings = findings(facts, machine, asked_ms);
                    out.machine = Some(facts.about());
                }
            }
            out
        })
        .collect();
    Plan { cluster: cluster.metadata.name.clone(), asked_ms, machines }
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

/// What makes set-ups fail later, seen before.
fn findings(facts: &Facts, machine: &Machine, asked_ms: i64) -> Vec<String> {
    let about = facts.about();
    let mut out = Vec::new();
    if about.hostname != machine.name {
        out.push(format!("its own name is {}, not {}: nodes are named by their hosts", about.hostname, machine.name));
    }
    let away = about.clock.abs_diff(u64::try_from(asked_ms / 1000).unwrap_or(0));
    if away > MOST_CLOCK_SECONDS {
        out.push(format!("its clock is {away} s away from this one: certificates and tokens fail"));
    }
    if about.disk_free_mib < LEAST_DISK_MIB {
        out.push(format!("{} MiB are free on /; MicroK8s wants 20 GB", about.disk_free_mib));
    }
    if !about.gpus.is_empty() && about.driver.starts_with("nouveau") {
        out.push("nouveau holds the GPUs: NVIDIA's driver cannot be loaded before a new start".into());
    }
    if !about.gpus.is_empty() && about.secure_boot {
        out.push("Secure Boot is on: a driver that is not signed will not be loaded (mokutil --import)".into());
    }
    if !matches!(about.distribution.as_str(), "ubuntu" | "debian") {
        out.push(format!("'{}' has no apt that is known here", about.distribution));
    }
    out
}
