//! The ledger: the file that lists the machines that slipway owns at each provider.
//!
//! An entry is written to disk before its machine is ordered, so that no machine is ordered twice after a crash.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ClusterError;
use crate::providers::Instance;
use crate::spec::addresses::{Conflict, Index};
use crate::spec::cloud::{Group, Provider};
use crate::spec::{Cluster, Machine, Provisioned, Role, Ssh};
use crate::state::State;

/// Name of the ledger's file in the cluster's folder, without `.json`.
pub(super) const DOCUMENT: &str = "machines";
/// Maximum duration of one order: six attempts of a minute each, and the delays that the provider may request in between.
const ORDER_TIMEOUT_MS: i64 = 20 * 60 * 1000;
/// Maximum difference between the provider's clock and the controller's.
const CLOCK_SKEW_MS: i64 = 10 * 60 * 1000;

/// A machine in the ledger: ordered by slipway, or adopted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owned {
    /// Name of its provider in `spec.providers`.
    pub provider: String,
    /// Name of its group in `spec.groups`.
    pub group: String,
    /// Its roles. They are stored here because the machine still exists when its group was removed from the file.
    pub roles: BTreeSet<Role>,
    /// The provider's identifier; `None` while it is unknown whether the provider accepted the order.
    pub id: Option<String>,
    /// The machine was created outside of slipway, so slipway never deletes it.
    pub adopted: bool,
    /// When it was ordered, in milliseconds since 1970.
    pub since_ms: i64,
    /// The last known IP address; `None` until it was first reachable.
    pub address: Option<String>,
    /// The last known IP address in the private network.
    pub internal: Option<String>,
}

/// The machines by their names in the cluster.
pub(super) type Ledger = BTreeMap<String, Owned>;

/// Reads the ledger. An unreadable ledger is an error: if it were treated as empty, every machine would be ordered again.
pub(super) fn load(state: &State) -> Result<Ledger, ClusterError> {
    Ok(state.load(DOCUMENT)?.unwrap_or_default())
}

impl Owned {
    /// The entry for a machine of this group that is about to be ordered. It has no identifier yet.
    pub(super) fn intention(group: &Group) -> Self {
        Self {
            provider: group.provider.clone(),
            group: group.name.clone(),
            roles: group.roles.clone(),
            id: None,
            adopted: false,
            since_ms: slipway_core::clock::now_ms(),
            address: None,
            internal: None,
        }
    }

    /// Whether this instance was created at the time of the order. An instance with the right name but another creation time was created
    /// by someone else. If the provider does not report the creation time, the name alone decides.
    pub(super) fn matches_order(&self, instance: &Instance) -> bool {
        let (first, last) = (self.since_ms - CLOCK_SKEW_MS, self.since_ms + ORDER_TIMEOUT_MS + CLOCK_SKEW_MS);
        instance.created_ms.is_none_or(|at| (first..=last).contains(&at))
    }

    /// The machine as an entry of `spec.machines`; `None` until it has an identifier and an address.
    pub(super) fn machine(&self, name: &str, ssh: Option<Ssh>) -> Option<Machine> {
        Some(Machine {
            name: name.to_owned(),
            address: self.address.clone()?,
            internal_address: self.internal.clone(),
            roles: self.roles.clone(),
            ssh,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            provisioned: Some(Provisioned { id: self.id.clone()?, adopted: self.adopted }),
        })
    }
}

/// The API that an identifier belongs to: two names in `spec.providers` may stand for the same one. A provider that is no longer in the
/// file is identified by its name.
fn api<'a>(cluster: &'a Cluster, provider: &'a str) -> (&'static str, &'a str) {
    cluster.spec.providers.get(provider).map_or(("", provider), Provider::api)
}

/// The name under which the ledger has the machine `id` of a provider.
pub(super) fn find<'l>(cluster: &Cluster, ledger: &'l Ledger, provider: &str, id: &str) -> Option<&'l str> {
    let same = |o: &Owned| o.id.as_deref() == Some(id) && api(cluster, &o.provider) == api(cluster, provider);
    ledger.iter().find(|(_, owned)| same(owned)).map(|(name, _)| name.as_str())
}

/// Checks that a provisioned machine is not also an entry of `spec.machines`. `listed` has the machines of the file, without machines of
/// groups.
///
/// Machines of groups are not compared with each other by address: an address in the ledger may be outdated, because some providers give
/// the address of a machine that is off to another one.
///
/// # Errors
/// [`ClusterError::Spec`] with the names of both entries.
pub(super) fn check_not_listed(cluster: &Cluster, listed: &Index, machine: &Machine) -> Result<(), ClusterError> {
    match listed.find(cluster, machine) {
        Some(Conflict { first, second, reason }) => Err(ClusterError::Spec {
            file: "spec.machines".into(),
            reason: format!(
                "'{}' and '{}', a machine of a group, have {reason}, so they would overwrite each other's state; remove '{}' from \
                 spec.machines, or correct its address",
                first.name, second.name, first.name
            ),
        }),
        None => Ok(()),
    }
}

/// The cluster with the provisioned machines of its groups added to `spec.machines`. Reads only the ledger and calls no provider.
///
/// # Errors
/// [`ClusterError::Io`] when the ledger cannot be read, [`ClusterError::Spec`] when two names stand for the same machine.
pub fn resolved(cluster: &Cluster, state: &State) -> Result<Cluster, ClusterError> {
    let ledger = load(state)?;
    let mut ids = BTreeMap::new();
    for (name, owned) in &ledger {
        let Some(id) = &owned.id else { continue };
        if let Some(other) = ids.insert((api(cluster, &owned.provider), id), name) {
            let reason = format!("'{other}' and '{name}' are the same machine {id} of {}", owned.provider);
            return Err(ClusterError::Spec { file: format!("{DOCUMENT}.json"), reason });
        }
    }
    let (listed, _) = Index::new(cluster);
    let mut out = cluster.clone();
    for group in &cluster.spec.groups {
        for name in group.names() {
            let Some(machine) = ledger.get(&name).and_then(|o| o.machine(&name, group.ssh.clone())) else { continue };
            check_not_listed(cluster, &listed, &machine)?;
            out.spec.machines.push(machine);
        }
    }
    Ok(out)
}

/// Whether the ledger has any machine, even one that is no longer in the file.
///
/// # Errors
/// [`ClusterError::Io`] when the ledger cannot be read.
pub fn owns_machines(state: &State) -> Result<bool, ClusterError> {
    Ok(!load(state)?.is_empty())
}
