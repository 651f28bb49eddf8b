//! The ledger: which machines of which provider are ours. It is written to disk before anything is ordered.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ClusterError;
use crate::providers::Instance;
use crate::spec::cloud::Group;
use crate::spec::{Cluster, Machine, Made, Role, Ssh};
use crate::state::State;

pub(super) const DOCUMENT: &str = "machines";
/// The longest that one order may be under way: six attempts of a minute each, with the pauses that a provider may ask for.
const ORDER_MS: i64 = 20 * 60 * 1000;
/// The provider's clock and ours may differ by this much.
const CLOCK_SKEW_MS: i64 = 10 * 60 * 1000;

/// A machine of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owned {
    /// Who makes it.
    pub provider: String,
    /// Which group it is of.
    pub group: String,
    /// What it is for; kept here because the file no longer says so once the group is gone.
    pub roles: BTreeSet<Role>,
    /// The provider's identifier; none while it is not known whether the order was taken.
    pub id: Option<String>,
    /// It existed before us and is never deleted.
    pub adopted: bool,
    /// When it was ordered, in milliseconds since 1970.
    pub since_ms: i64,
    /// Where it was reached last.
    pub address: Option<String>,
    /// Its address in the private network.
    pub internal: Option<String>,
}

/// The machines by their names in the cluster.
pub(super) type Ledger = BTreeMap<String, Owned>;

/// The ledger on disk. One that is there and cannot be read is an error: taken for an empty one, every machine would be ordered again.
pub(super) fn load(state: &State) -> Result<Ledger, ClusterError> {
    Ok(state.load(DOCUMENT)?.unwrap_or_default())
}

impl Owned {
    /// The intention to order a machine of this group.
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

    /// Whether this machine was created at the time of our order. A machine of the same name that somebody else created at another time
    /// is not ours; a provider that does not tell the time is believed by the name alone.
    pub(super) fn fits(&self, instance: &Instance) -> bool {
        let (first, last) = (self.since_ms - CLOCK_SKEW_MS, self.since_ms + ORDER_MS + CLOCK_SKEW_MS);
        instance.created_ms.is_none_or(|at| (first..=last).contains(&at))
    }

    /// The machine as the rest of the cluster knows it, once it can be reached.
    pub(super) fn machine(&self, name: &str, ssh: Option<Ssh>) -> Option<Machine> {
        Some(Machine {
            name: name.to_owned(),
            address: self.address.clone()?,
            internal_address: self.internal.clone(),
            roles: self.roles.clone(),
            ssh,
            made: Some(Made { id: self.id.clone()?, adopted: self.adopted }),
        })
    }
}

/// The cluster with the machines of its groups that exist, as they were last seen. Asks no provider.
///
/// # Errors
/// [`ClusterError::Io`] when the ledger cannot be read.
pub fn resolved(cluster: &Cluster, state: &State) -> Result<Cluster, ClusterError> {
    let ledger = load(state)?;
    let mut out = cluster.clone();
    for group in &cluster.spec.groups {
        for name in group.names() {
            out.spec.machines.extend(ledger.get(&name).and_then(|owned| owned.machine(&name, group.ssh.clone())));
        }
    }
    Ok(out)
}

/// Whether there are machines of ours, whatever the file says of them.
///
/// # Errors
/// [`ClusterError::Io`] when the ledger cannot be read.
pub fn any(state: &State) -> Result<bool, ClusterError> {
    Ok(!load(state)?.is_empty())
}
