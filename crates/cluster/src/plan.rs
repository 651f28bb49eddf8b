//! Computes the changes that an apply would make, by probing all machines in parallel. Nothing is changed.

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use slipway_core::Explain;

use crate::ClusterError;
use crate::doctor::{self, Finding, Severity};
use crate::layers;
use crate::probe::{self, Facts, MachineInfo};
use crate::remote_probe::probe_host;
use crate::resource::{Change, DesiredState, Layer};
use crate::spec::{Cluster, Machine};
use crate::transport::Host;
use crate::work::MAX_CONCURRENCY;

/// The changes that an apply would make to a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Name of the cluster.
    pub cluster: String,
    /// Time of the probe, in milliseconds since 1970.
    pub asked_ms: i64,
    /// Warnings about the file as a whole.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub warnings: Vec<String>,
    /// One plan per machine, in the file's order.
    pub machines: Vec<MachinePlan>,
    /// US dollars per hour of all machines of the groups after the apply; `None` without groups, or if a price is unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hourly: Option<f64>,
}

/// The changes that an apply would make to one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachinePlan {
    /// Name of the machine in the file.
    pub name: String,
    /// The error, if the machine could not be probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<Trouble>,
    /// Hardware and operating system, if the machine could be probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineInfo>,
    /// Resources that differ from the desired state, in the order in which they would be applied.
    pub changes: Vec<Planned>,
    /// Problems of the machine that need attention.
    pub findings: Vec<Finding>,
}

/// A serializable error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Error code for `slipway explain`, such as `cluster.unreachable`.
    pub code: String,
    /// The error message.
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
    /// Id of the resource, such as `kubernetes/microk8s`; `join` or `machine` for steps that are not resources.
    pub resource: String,
    /// Layer of the resource; `None` for `join` and `machine`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<Layer>,
    /// Differences from the desired state.
    pub changes: Vec<Change>,
    /// Side effects of the change, such as `restarts containerd`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub effects: Vec<String>,
}

impl MachinePlan {
    /// The plan of a machine that its provider would create, power on or delete, so that it cannot be probed.
    pub fn of_provider(name: &str, change: Change) -> Self {
        let changes =
            vec![Planned { resource: "machine".into(), layer: None, changes: vec![change], effects: Vec::new() }];
        Self { name: name.to_owned(), unreachable: None, machine: None, changes, findings: Vec::new() }
    }
}

impl Plan {
    /// Whether every machine was probed and is in the desired state.
    pub fn is_empty(&self) -> bool {
        self.machines.iter().all(|m| m.unreachable.is_none() && m.changes.is_empty())
    }
}

/// Probes all machines in parallel and returns their plans. Only these layers are compared, or all layers if `only` is empty.
pub async fn plan(cluster: &Cluster, hosts: &[(Machine, Host)], only: &[Layer]) -> Plan {
    let asked_ms = slipway_core::clock::now_ms();
    let with_join = only.is_empty() || only.contains(&Layer::Join);
    let probes = hosts.iter().map(|(machine, host)| async move {
        let nodes = if cluster.first() == Some(machine) && with_join { probe::NODES } else { 0 };
        let desired = match layers::desired_state(cluster, machine) {
            Ok(desired) => desired.only(only),
            Err(error) => return (machine, DesiredState::default(), Err(error)),
        };
        let facts = probe_host(host, &desired, probe::ABOUT | nodes).await;
        (machine, desired, facts)
    });
    let results: Vec<_> = stream::iter(probes).buffered(MAX_CONCURRENCY).collect().await;
    let members: Vec<String> = results
        .iter()
        .filter(|(m, ..)| cluster.first() == Some(m))
        .filter_map(|(.., facts)| facts.as_ref().ok())
        .flat_map(|facts| {
            facts.machine("nodes").lines().map(|l| l.trim_start_matches("node/").to_owned()).collect::<Vec<_>>()
        })
        .collect();
    let machines = results
        .iter()
        .map(|(machine, desired, facts)| {
            let mut out = MachinePlan {
                name: machine.name.clone(),
                unreachable: None,
                machine: None,
                changes: Vec::new(),
                findings: Vec::new(),
            };
            match facts {
                Err(error) => out.unreachable = Some(error.into()),
                Ok(facts) => {
                    out.changes = differences(desired, facts);
                    if with_join && cluster.first() != Some(machine) && !members.contains(&machine.name) {
                        out.changes.push(Planned {
                            resource: "join".into(),
                            layer: None,
                            changes: vec![Change::add("a node of the cluster")],
                            effects: Vec::new(),
                        });
                    }
                    out.findings = doctor::examine(facts, machine, &cluster.spec.gpu, asked_ms)
                        .into_iter()
                        .filter(|f| f.severity > Severity::Note)
                        .collect();
                    out.machine = Some(facts.about());
                }
            }
            out
        })
        .collect();
    let warnings = cluster.warnings(asked_ms);
    Plan { cluster: cluster.metadata.name.clone(), asked_ms, warnings, machines, hourly: None }
}

fn differences(desired: &DesiredState, facts: &Facts) -> Vec<Planned> {
    let planned = |(resource, changes): (&crate::resource::Resource, Vec<Change>)| Planned {
        resource: resource.id.clone(),
        layer: Some(resource.layer),
        changes,
        effects: resource.effects.clone(),
    };
    desired.check(facts).into_iter().map(planned).collect()
}
