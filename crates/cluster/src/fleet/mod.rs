//! Machines that providers make for the groups of a cluster.
//!
//! What is ours is written down ([`ledger`]) before it is ordered ([`orders`]), so that an order is never given twice and nothing is
//! deleted that is not ours. A machine is ours by its identifier; one that only has the right name is somebody else's until it is adopted.

mod ledger;
mod orders;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::OnceCell;

use self::ledger::Ledger;
pub use self::ledger::{Owned, any, resolved};
use crate::ClusterError;
use crate::providers::{self, Instance, Power, Provider};
use crate::resource::Change;
use crate::spec::cloud::Group;
use crate::spec::{Cluster, Machine};
use crate::state::State;

/// A machine of a cluster that a provider makes, as far as it is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its name in the cluster.
    pub name: String,
    /// What is written down of it.
    pub owned: Option<Owned>,
    /// What its provider says.
    pub instance: Option<Instance>,
    /// The file wants it.
    pub wanted: bool,
}

/// What a machine costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// The machine.
    pub machine: String,
    /// Who makes it.
    pub provider: String,
    /// The provider's size.
    pub size: String,
    /// Whether it is there, and whether it is on.
    pub state: &'static str,
    /// US dollars an hour as it is now; none where the provider does not say.
    pub hourly: Option<f64>,
}

/// What a provider was asked once and need not be asked again.
#[derive(Debug, Default)]
struct Asked {
    machines: OnceCell<Vec<Instance>>,
    prices: OnceCell<BTreeMap<String, f64>>,
}

/// The machines of a cluster's groups, and who makes them.
#[derive(Debug)]
pub struct Fleet {
    cluster: Cluster,
    state: State,
    providers: BTreeMap<String, Box<dyn Provider>>,
    asked: BTreeMap<String, Asked>,
    ledger: Mutex<Ledger>,
}

impl Fleet {
    /// Of this cluster. Reads the tokens of the providers that its groups and machines are of.
    ///
    /// # Errors
    /// [`ClusterError::Secret`], [`ClusterError::Io`] when the ledger cannot be read, or when a provider's endpoint cannot be used.
    pub fn connect(cluster: &Cluster, state: &State) -> Result<Self, ClusterError> {
        let ledger = ledger::load(state)?;
        let used: BTreeSet<&String> =
            cluster.spec.groups.iter().map(|g| &g.provider).chain(ledger.values().map(|o| &o.provider)).collect();
        let mut providers = BTreeMap::new();
        for name in used {
            let account = cluster.spec.providers.get(name).ok_or_else(|| ClusterError::Spec {
                file: "spec.providers".into(),
                reason: format!("there are machines of '{name}', which the file does not have"),
            })?;
            providers.insert(name.clone(), providers::connect(name, account, &cluster.trusted)?);
        }
        Ok(Self::new(cluster, state, providers, ledger))
    }

    fn new(cluster: &Cluster, state: &State, providers: BTreeMap<String, Box<dyn Provider>>, ledger: Ledger) -> Self {
        let asked = providers.keys().map(|name| (name.clone(), Asked::default())).collect();
        Self { cluster: cluster.clone(), state: state.clone(), providers, asked, ledger: Mutex::new(ledger) }
    }

    /// The provider's name of a machine.
    fn full_name(&self, name: &str) -> String {
        format!("{}-{name}", self.cluster.metadata.name)
    }

    /// Reads the ledger again: who has the cluster's lock sees what others wrote before.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when it cannot be read.
    pub fn renew(&self) -> Result<(), ClusterError> {
        *self.ledger.lock() = ledger::load(&self.state)?;
        Ok(())
    }

    fn provider(&self, name: &str) -> Result<&dyn Provider, ClusterError> {
        self.providers.get(name).map(AsRef::as_ref).ok_or_else(|| unknown(name))
    }

    /// What a provider has, asked once.
    async fn listed(&self, provider: &str) -> Result<&[Instance], ClusterError> {
        let asked = self.asked.get(provider).ok_or_else(|| unknown(provider))?;
        Ok(asked.machines.get_or_try_init(|| async { self.provider(provider)?.list().await }).await?)
    }

    fn keep(&self, change: impl FnOnce(&mut Ledger)) -> Result<(), ClusterError> {
        let mut ledger = self.ledger.lock();
        change(&mut ledger);
        self.state.keep(ledger::DOCUMENT, &*ledger)
    }

    fn owned(&self, name: &str) -> Option<Owned> {
        self.ledger.lock().get(name).cloned()
    }

    /// The group that has this machine.
    fn group(&self, name: &str) -> Option<&Group> {
        self.cluster.spec.groups.iter().find(|g| g.names().any(|n| n == name))
    }

    /// Names of the machines that the file wants.
    pub fn wanted(&self) -> Vec<String> {
        self.cluster.spec.groups.iter().flat_map(|g| g.names().collect::<Vec<_>>()).collect()
    }

    /// Machines of ours that the file no longer wants, and that can be reached.
    pub fn leaving(&self) -> Vec<Machine> {
        let wanted = self.wanted();
        let ledger = self.ledger.lock();
        ledger.iter().filter(|(n, _)| !wanted.contains(n)).filter_map(|(n, o)| o.machine(n, None)).collect()
    }

    /// Machines of ours that never got an address: all of them, or only those that the file does not want.
    pub fn unprovisioned(&self, wanted: bool) -> Vec<String> {
        let names = self.wanted();
        let ledger = self.ledger.lock();
        let without_address = ledger.iter().filter(|(_, o)| o.address.is_none());
        without_address.map(|(name, _)| name.clone()).filter(|name| wanted || !names.contains(name)).collect()
    }

    /// Every machine that is wanted or ours.
    ///
    /// # Errors
    /// When a provider does not answer.
    pub async fn members(&self) -> Result<Vec<Member>, ClusterError> {
        let mut names = self.wanted();
        names.extend(self.ledger.lock().keys().filter(|n| !names.contains(n)).cloned().collect::<Vec<_>>());
        let mut out = Vec::new();
        for name in names {
            let (owned, group) = (self.owned(&name), self.group(&name));
            let Some(provider) = owned.as_ref().map(|o| &o.provider).or(group.map(|g| &g.provider)) else { continue };
            let (all, full) = (self.listed(provider).await?, self.full_name(&name));
            let instance = match owned.as_ref().and_then(|o| o.id.as_ref()) {
                Some(id) => all.iter().find(|i| i.id == *id),
                None => all.iter().find(|i| i.name == full),
            };
            out.push(Member { wanted: group.is_some(), instance: instance.cloned(), owned, name });
        }
        Ok(out)
    }

    /// What would be done to machines, with what it costs.
    ///
    /// # Errors
    /// When a provider does not answer.
    pub async fn plan(&self) -> Result<Vec<(String, Change)>, ClusterError> {
        let mut out = Vec::new();
        for member in self.members().await? {
            let name = member.name.clone();
            let moved =
                member.owned.as_ref().zip(self.group(&name)).and_then(|(owned, group)| orders::moved(owned, group));
            if let Some(reason) = moved {
                out.push((name, Change::alter(reason)));
                continue;
            }
            let change = match (&member.owned, &member.instance) {
                (Some(owned), _) if !member.wanted && owned.adopted => {
                    Change::remove("leaves the cluster; it was adopted, so it stays")
                }
                (Some(_), _) if !member.wanted => Change::remove("leaves the cluster and is deleted"),
                (None, Some(instance)) => Change::alter(foreign(&name, instance)),
                (Some(_) | None, None) => {
                    let Some(group) = self.group(&name) else { continue };
                    let price = self.price(&group.provider, &group.size).await?;
                    let price = price.map_or_else(|| "price not told".into(), |p| format!("{p:.3} $/h"));
                    Change::add(format!("machine {} of {}, {price}", group.size, group.provider))
                }
                (Some(_), Some(instance)) if instance.power != Power::On => Change::alter("turned on"),
                (Some(_), Some(_)) => continue,
            };
            out.push((name, change));
        }
        Ok(out)
    }

    async fn price(&self, provider: &str, size: &str) -> Result<Option<f64>, ClusterError> {
        let asked = self.asked.get(provider).ok_or_else(|| unknown(provider))?;
        let prices = asked.prices.get_or_try_init(|| async { self.provider(provider)?.prices().await }).await?;
        // Who has no list of prices tells them with machines.
        let of_others = self.listed(provider).await?.iter().find(|i| i.size == size).and_then(|i| i.hourly);
        Ok(prices.get(size).copied().or(of_others))
    }

    /// What all machines of the groups cost an hour, as the file wants them.
    ///
    /// # Errors
    /// When a provider does not answer.
    pub async fn hourly(&self) -> Result<Option<f64>, ClusterError> {
        let mut all = 0.0;
        for group in &self.cluster.spec.groups {
            let Some(price) = self.price(&group.provider, &group.size).await? else { return Ok(None) };
            all += price * f64::from(group.count);
        }
        Ok(Some(all))
    }

    /// What every machine costs.
    ///
    /// # Errors
    /// When a provider does not answer.
    pub async fn prices(&self) -> Result<Vec<Price>, ClusterError> {
        let mut out = Vec::new();
        for member in self.members().await? {
            let provider = match (&member.owned, self.group(&member.name)) {
                (Some(owned), _) => owned.provider.clone(),
                (None, Some(group)) => group.provider.clone(),
                (None, None) => continue,
            };
            let charges = self.provider(&provider)?.charges_when_off();
            let (size, state, hourly) = match (&member.owned, member.instance) {
                (Some(_), Some(i)) => {
                    let full = match i.hourly {
                        Some(price) => Some(price),
                        None => self.price(&provider, &i.size).await?,
                    };
                    let on = i.power != Power::Off;
                    (i.size, if on { "on" } else { "off" }, if on || charges { full } else { Some(0.0) })
                }
                _ => {
                    let size = self.group(&member.name).map(|g| g.size.clone()).unwrap_or_default();
                    (size.clone(), "not there", Some(0.0))
                }
            };
            out.push(Price { machine: member.name, provider, size, state, hourly });
        }
        Ok(out)
    }

    /// Takes a machine that exists as one of a group. It is never deleted.
    ///
    /// # Errors
    /// When the name is of no group, is taken, or the provider has no such machine.
    pub async fn adopt(&self, name: &str, id: &str) -> Result<Instance, ClusterError> {
        let wrong = |reason: String| ClusterError::Spec { file: format!("machine '{name}'"), reason };
        let group = self.group(name).ok_or_else(|| wrong("no group has it; raise its count first".into()))?;
        // An order of unknown outcome may be settled by a person who says which machine it is.
        if let Some(Owned { provider, id: Some(own), .. }) = self.owned(name) {
            return Err(wrong(format!("it is {own} of {provider}")));
        }
        if !providers::is_identifier(id) {
            return Err(wrong(format!("'{id}' is no identifier of a machine")));
        }
        let found = self.provider(&group.provider)?.get(id).await?;
        let instance = found.ok_or_else(|| wrong(format!("{} has no machine {id}", group.provider)))?;
        let same = |owned: &Owned| owned.provider == group.provider && owned.id.as_ref() == Some(&instance.id);
        if let Some((other, _)) = self.ledger.lock().iter().find(|(_, owned)| same(owned)) {
            return Err(wrong(format!("{id} is '{other}'")));
        }
        let owned = Owned { id: Some(instance.id.clone()), adopted: true, ..Owned::intention(group) };
        self.keep(|ledger| {
            ledger.insert(name.to_owned(), owned);
        })?;
        Ok(instance)
    }
}

fn unknown(provider: &str) -> ClusterError {
    ClusterError::Provider { provider: provider.into(), status: 0, message: "the file does not have it".into() }
}

fn foreign(name: &str, instance: &Instance) -> String {
    format!(
        "machine {} is there as {} and was not made from here; `slipway cluster adopt {name} {}` takes it as it is",
        instance.name, instance.id, instance.id
    )
}
