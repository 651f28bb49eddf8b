//! Machines that providers make for the groups of a cluster.
//!
//! What is ours is written down before it is ordered, so that an order is never given twice and nothing is deleted that is not ours. A
//! machine is ours by its identifier; one that only has the right name is somebody else's until it is adopted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use crate::ClusterError;
use crate::providers::{self, Instance, Power, Provider};
use crate::resource::Change;
use crate::spec::cloud::Group;
use crate::spec::{Cluster, Machine, Made, Role};
use crate::state::State;

/// A machine has so long to be made, turned on or off.
const PATIENCE: Duration = Duration::from_secs(900);
/// Between two questions.
const PAUSE: Duration = Duration::from_secs(2);
/// Lists lag behind orders; an order that may have been given shows within this.
const LAG_MS: i64 = 60_000;
/// What has an identifier is found sooner.
const SHORT_LAG_MS: i64 = 15_000;
const DOCUMENT: &str = "machines";

/// A machine of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owned {
    /// Who makes it.
    pub provider: String,
    /// Which group it is of.
    pub group: String,
    /// What it is for; a group that is gone tells no more.
    pub roles: BTreeSet<Role>,
    /// The provider's name for it; none while it is not known whether the order was taken.
    pub id: Option<String>,
    /// It was there before us, and stays after us.
    pub adopted: bool,
    /// When it was ordered, in milliseconds since 1970.
    pub since_ms: i64,
    /// Where it was reached last.
    pub address: Option<String>,
    /// In the private network.
    pub internal: Option<String>,
}

type Ledger = BTreeMap<String, Owned>;

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

/// The cluster with the machines of its groups that are there, as they were last seen. Asks nobody.
pub fn resolved(cluster: &Cluster, state: &State) -> Cluster {
    let ledger: Ledger = state.kept(DOCUMENT).unwrap_or_default();
    let mut out = cluster.clone();
    for group in &cluster.spec.groups {
        for name in group.names() {
            out.spec.machines.extend(ledger.get(&name).and_then(|owned| machine(&name, owned, group.ssh.clone())));
        }
    }
    out
}

/// Whether there are machines of ours, whatever the file says of them.
pub fn any(state: &State) -> bool {
    state.kept::<Ledger>(DOCUMENT).is_some_and(|ledger| !ledger.is_empty())
}

fn machine(name: &str, owned: &Owned, ssh: Option<crate::spec::Ssh>) -> Option<Machine> {
    Some(Machine {
        name: name.to_owned(),
        address: owned.address.clone()?,
        internal_address: owned.internal.clone(),
        roles: owned.roles.clone(),
        ssh,
        made: Some(Made { id: owned.id.clone()?, adopted: owned.adopted }),
    })
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
    /// [`ClusterError::Secret`], or when a provider's endpoint cannot be used.
    pub fn connect(cluster: &Cluster, state: &State) -> Result<Self, ClusterError> {
        let ledger: Ledger = state.kept(DOCUMENT).unwrap_or_default();
        let used: BTreeSet<&String> =
            cluster.spec.groups.iter().map(|g| &g.provider).chain(ledger.values().map(|o| &o.provider)).collect();
        let mut providers = BTreeMap::new();
        for name in used {
            let account = cluster.spec.providers.get(name).ok_or_else(|| ClusterError::Spec {
                file: "spec.providers".into(),
                reason: format!("there are machines of '{name}', which the file does not have"),
            })?;
            providers.insert(name.clone(), providers::connect(name, account)?);
        }
        let asked = providers.keys().map(|name| (name.clone(), Asked::default())).collect();
        Ok(Self { cluster: cluster.clone(), state: state.clone(), providers, asked, ledger: Mutex::new(ledger) })
    }

    /// The provider's name of a machine.
    fn full_name(&self, name: &str) -> String {
        format!("{}-{name}", self.cluster.metadata.name)
    }

    /// Reads again what is written down: who has the cluster's lock sees what others wrote before.
    pub fn renew(&self) {
        *self.ledger.lock() = self.state.kept(DOCUMENT).unwrap_or_default();
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
        self.state.keep(DOCUMENT, &*ledger)
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
        ledger.iter().filter(|(n, _)| !wanted.contains(n)).filter_map(|(n, o)| machine(n, o, None)).collect()
    }

    /// Machines of ours that never came so far that they could be reached; the file wants some of them, or none.
    pub fn unborn(&self, wanted: bool) -> Vec<String> {
        let names = self.wanted();
        let ledger = self.ledger.lock();
        let unborn = ledger.iter().filter(|(_, o)| o.address.is_none());
        unborn.map(|(name, _)| name.clone()).filter(|name| wanted || !names.contains(name)).collect()
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

    /// Takes a machine that is there as one of a group.
    ///
    /// # Errors
    /// When the name is of no group, is taken, or the provider has no such machine.
    pub async fn adopt(&self, name: &str, id: &str) -> Result<Instance, ClusterError> {
        let wrong = |reason: String| ClusterError::Spec { file: format!("machine '{name}'"), reason };
        let group = self.group(name).ok_or_else(|| wrong("no group has it; raise its count first".into()))?;
        if let Some(owned) = self.owned(name) {
            return Err(wrong(format!("it is {} of {}", owned.id.unwrap_or_default(), owned.provider)));
        }
        if let Some((other, _)) = self.ledger.lock().iter().find(|(_, o)| o.id.as_deref() == Some(id)) {
            return Err(wrong(format!("{id} is '{other}'")));
        }
        let found = self.provider(&group.provider)?.get(id).await?;
        let instance = found.ok_or_else(|| wrong(format!("{} has no machine {id}", group.provider)))?;
        self.keep(|ledger| {
            drop(ledger.insert(name.to_owned(), Owned { id: Some(id.to_owned()), adopted: true, ..order(group) }));
        })?;
        Ok(instance)
    }

    /// Makes sure that a machine is there, is on and has an address. How many things were changed for it.
    ///
    /// # Errors
    /// When the provider refuses, or it takes too long.
    pub(crate) async fn ensure(&self, name: &str) -> Result<(Machine, usize), ClusterError> {
        let group = self.group(name).ok_or_else(|| ClusterError::Spec {
            file: format!("machine '{name}'"),
            reason: "no group has it".into(),
        })?;
        let provider = self.provider(&group.provider)?;
        let (mut instance, mut changes) = self.found_or_ordered(name, group, provider).await?;
        let until = Instant::now() + PATIENCE;
        let mut asked = false;
        loop {
            if let (Power::On, Some(address)) = (instance.power, &instance.address) {
                let (address, internal) = (address.clone(), instance.internal.clone());
                self.keep(|ledger| {
                    if let Some(owned) = ledger.get_mut(name) {
                        (owned.address, owned.internal) = (Some(address), internal);
                    }
                })?;
                break;
            }
            if instance.power == Power::Off && !asked {
                provider.power(&instance.id, true).await?;
                asked = true;
                changes += 1;
            }
            instance = self.later(provider, &instance, until, "to be on and have an address").await?;
        }
        let machine = self.owned(name).and_then(|owned| machine(name, &owned, group.ssh.clone()));
        let gone = || ClusterError::Spec { file: format!("machine '{name}'"), reason: "it is not written down".into() };
        Ok((machine.ok_or_else(gone)?, changes))
    }

    async fn found_or_ordered(
        &self,
        name: &str,
        group: &Group,
        provider: &dyn Provider,
    ) -> Result<(Instance, usize), ClusterError> {
        let full = self.full_name(name);
        if let Some(owned) = self.owned(name) {
            match &owned.id {
                Some(id) => loop {
                    if let Some(instance) = provider.get(id).await? {
                        return Ok((instance, 0));
                    }
                    // One that was not just ordered was deleted by somebody: another is ordered.
                    if settled(&owned, SHORT_LAG_MS) {
                        break;
                    }
                    tokio::time::sleep(PAUSE).await;
                },
                // Cut off between the order and its answer.
                None => {
                    if let Some(found) = self.ordered(name, &owned, provider).await? {
                        return Ok((found, 1));
                    }
                }
            }
        } else if let Some(other) = self.listed(&group.provider).await?.iter().find(|i| i.name == full) {
            return Err(ClusterError::Foreign(foreign(name, other)));
        }
        self.keep(|ledger| drop(ledger.insert(name.to_owned(), order(group))))?;
        let made = match provider.create(&full, &self.cluster.metadata.name, group).await {
            Ok(made) => made,
            Err(error) => {
                // What was refused was not taken; of anything else nobody knows.
                if matches!(error, ClusterError::Provider { status: 400..500, .. }) {
                    self.keep(|ledger| drop(ledger.remove(name)))?;
                }
                return Err(error);
            }
        };
        self.keep(|ledger| {
            if let Some(owned) = ledger.get_mut(name) {
                owned.id = Some(made.id.clone());
            }
        })?;
        Ok((made, 1))
    }

    /// What became of an order whose answer was lost; it is waited for as long as lists lag behind.
    async fn ordered(
        &self,
        name: &str,
        owned: &Owned,
        provider: &dyn Provider,
    ) -> Result<Option<Instance>, ClusterError> {
        let full = self.full_name(name);
        loop {
            if let Some(found) = provider.list().await?.into_iter().find(|i| i.name == full) {
                self.keep(|ledger| {
                    if let Some(owned) = ledger.get_mut(name) {
                        owned.id = Some(found.id.clone());
                    }
                })?;
                return Ok(Some(found));
            }
            if settled(owned, LAG_MS) {
                return Ok(None);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks again after a pause.
    async fn later(
        &self,
        provider: &dyn Provider,
        instance: &Instance,
        until: Instant,
        what: &str,
    ) -> Result<Instance, ClusterError> {
        if Instant::now() > until {
            let reason = format!("it took more than {} s {what}", PATIENCE.as_secs());
            return Err(ClusterError::Host { host: instance.name.clone(), reason });
        }
        tokio::time::sleep(PAUSE).await;
        // An order that was taken may not be seen at once.
        Ok(provider.get(&instance.id).await?.unwrap_or_else(|| Instance { power: Power::Between, ..instance.clone() }))
    }

    /// Turns a machine off.
    ///
    /// # Errors
    /// When the provider refuses, or it takes too long.
    pub(crate) async fn power_off(&self, name: &str) -> Result<usize, ClusterError> {
        let Some(Owned { provider, id: Some(id), .. }) = self.owned(name) else { return Ok(0) };
        let provider = self.provider(&provider)?;
        let Some(mut instance) = provider.get(&id).await? else { return Ok(0) };
        if instance.power == Power::Off {
            return Ok(0);
        }
        provider.power(&id, false).await?;
        let until = Instant::now() + PATIENCE;
        while instance.power != Power::Off {
            instance = self.later(provider, &instance, until, "to be off").await?;
        }
        Ok(1)
    }

    /// Deletes a machine that was made for us. One that was adopted is only forgotten.
    ///
    /// # Errors
    /// When the provider refuses.
    pub(crate) async fn delete(&self, name: &str) -> Result<usize, ClusterError> {
        let Some(owned) = self.owned(name) else { return Ok(0) };
        if !owned.adopted {
            let provider = self.provider(&owned.provider)?;
            let id = match &owned.id {
                Some(id) => Some(id.clone()),
                None => self.ordered(name, &owned, provider).await?.map(|i| i.id),
            };
            let until = Instant::now() + PATIENCE;
            while let Some(id) = &id {
                match provider.delete(id).await {
                    // Something else is being done to it.
                    Err(ClusterError::Provider { status: 409 | 422 | 423, .. }) if Instant::now() < until => {
                        tokio::time::sleep(PAUSE).await;
                    }
                    done => {
                        done?;
                        break;
                    }
                }
            }
        }
        self.keep(|ledger| drop(ledger.remove(name)))?;
        Ok(1)
    }
}

fn unknown(provider: &str) -> ClusterError {
    ClusterError::Provider { provider: provider.into(), status: 0, message: "the file does not have it".into() }
}

/// Whether lists and questions have had the time to show an order.
fn settled(owned: &Owned, lag_ms: i64) -> bool {
    slipway_core::clock::now_ms() - owned.since_ms > lag_ms
}

fn order(group: &Group) -> Owned {
    Owned {
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

fn foreign(name: &str, instance: &Instance) -> String {
    format!(
        "machine {} is there as {} and was not made from here; `slipway cluster adopt {name} {}` takes it as it is",
        instance.name, instance.id, instance.id
    )
}
