//! The machines of a cluster's groups, which cloud providers create.
//!
//! Each machine is recorded in the [`ledger`] before it is ordered ([`orders`]), so that no machine is ordered twice and no foreign machine
//! is deleted. Slipway owns a machine only if the ledger has its identifier. A machine that merely has the right name is foreign until the
//! user adopts it.

mod ledger;
mod orders;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::OnceCell;

use self::ledger::Ledger;
pub use self::ledger::{Owned, owns_machines, resolved};
use crate::ClusterError;
use crate::providers::{self, Instance, Power, Provider, Size, SizeGpus};
use crate::resource::Change;
use crate::spec::addresses::Index;
use crate::spec::cloud::Group;
use crate::spec::{Cluster, Machine};
use crate::state::State;

/// A machine of a group, whether or not it exists yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Name in the cluster, such as `gpu-1`.
    pub name: String,
    /// The entry in the ledger.
    pub owned: Option<Owned>,
    /// The machine as its provider reports it.
    pub instance: Option<Instance>,
    /// The file still has this machine; otherwise it is going to be removed.
    pub desired: bool,
}

/// The price of a machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// Name of the machine in the cluster.
    pub machine: String,
    /// Name of its provider in `spec.providers`.
    pub provider: String,
    /// The provider's name of the size, such as `s-4vcpu-8gb`.
    pub size: String,
    /// `on`, `off` or `not there`.
    pub state: &'static str,
    /// US dollars per hour in its current state; `None` if the provider does not report it.
    pub hourly: Option<f64>,
}

/// The price of a size with GPUs.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuPrice {
    /// The model in the words of the provider.
    pub model: String,
    /// Number of GPUs.
    pub count: u32,
    /// US dollars per hour of the machine.
    pub hourly: f64,
}

impl GpuPrice {
    fn new(gpus: &SizeGpus, hourly: f64) -> Self {
        Self { model: gpus.model.clone(), count: gpus.count, hourly }
    }

    /// US dollars per hour of one GPU, with its share of the machine.
    pub fn hourly_per_gpu(&self) -> f64 {
        self.hourly / f64::from(self.count.max(1))
    }
}

/// Lists of a provider, each requested at most once per command.
#[derive(Debug, Default)]
struct ProviderCache {
    machines: OnceCell<Vec<Instance>>,
    sizes: OnceCell<BTreeMap<String, Size>>,
}

/// The machines of a cluster's groups, and their providers.
#[derive(Debug)]
pub struct Fleet {
    cluster: Cluster,
    state: State,
    providers: BTreeMap<String, Box<dyn Provider>>,
    caches: BTreeMap<String, ProviderCache>,
    ledger: Mutex<Ledger>,
}

impl Fleet {
    /// Opens the fleet of a cluster. Reads the API tokens of all providers that its groups or the ledger name.
    ///
    /// # Errors
    /// [`ClusterError::Secret`], [`ClusterError::Io`] when the ledger cannot be read, or [`ClusterError::Provider`] when an endpoint is
    /// invalid.
    pub fn connect(cluster: &Cluster, state: &State) -> Result<Self, ClusterError> {
        let ledger = ledger::load(state)?;
        let used: BTreeSet<&String> =
            cluster.spec.groups.iter().map(|g| &g.provider).chain(ledger.values().map(|o| &o.provider)).collect();
        let mut providers = BTreeMap::new();
        for name in used {
            let account = cluster.spec.providers.get(name).ok_or_else(|| ClusterError::Spec {
                file: "spec.providers".into(),
                reason: format!("'{name}' is missing, but machines of this provider exist"),
            })?;
            providers.insert(name.clone(), providers::connect(name, account, &cluster.trusted)?);
        }
        Ok(Self::new(cluster, state, providers, ledger))
    }

    fn new(cluster: &Cluster, state: &State, providers: BTreeMap<String, Box<dyn Provider>>, ledger: Ledger) -> Self {
        let caches = providers.keys().map(|name| (name.clone(), ProviderCache::default())).collect();
        Self { cluster: cluster.clone(), state: state.clone(), providers, caches, ledger: Mutex::new(ledger) }
    }

    /// The name of a machine at its provider: the cluster's name and the machine's, such as `lab-gpu-1`.
    fn full_name(&self, name: &str) -> String {
        format!("{}-{name}", self.cluster.metadata.name)
    }

    /// Reads the ledger again. Call it after taking the cluster's lock, because another command may have changed the ledger before.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when it cannot be read.
    pub fn reload(&self) -> Result<(), ClusterError> {
        *self.ledger.lock() = ledger::load(&self.state)?;
        Ok(())
    }

    fn provider(&self, name: &str) -> Result<&dyn Provider, ClusterError> {
        self.providers.get(name).map(AsRef::as_ref).ok_or_else(|| unknown_provider(name))
    }

    /// All machines at a provider, from the cache after the first call.
    async fn cached_instances(&self, provider: &str) -> Result<&[Instance], ClusterError> {
        let cache = self.caches.get(provider).ok_or_else(|| unknown_provider(provider))?;
        Ok(cache.machines.get_or_try_init(|| async { self.provider(provider)?.list().await }).await?)
    }

    /// Changes the ledger and writes it to disk.
    fn update_ledger(&self, change: impl FnOnce(&mut Ledger)) -> Result<(), ClusterError> {
        let mut ledger = self.ledger.lock();
        change(&mut ledger);
        self.state.save(ledger::DOCUMENT, &*ledger)
    }

    /// Checks that an instance is not also an entry of `spec.machines`, by its current addresses.
    fn check_not_listed(
        &self,
        name: &str,
        group: &Group,
        owned: &Owned,
        instance: &Instance,
    ) -> Result<(), ClusterError> {
        let (address, internal) = (instance.address.clone(), instance.internal.clone());
        let current = Owned { address, internal, ..owned.clone() }.machine(name, group.ssh.clone());
        let (listed, _) = Index::new(&self.cluster);
        current.map_or(Ok(()), |machine| ledger::check_not_listed(&self.cluster, &listed, &machine))
    }

    fn owned(&self, name: &str) -> Option<Owned> {
        self.ledger.lock().get(name).cloned()
    }

    /// The group in the file that has this machine.
    fn group(&self, name: &str) -> Option<&Group> {
        self.cluster.spec.groups.iter().find(|g| g.names().any(|n| n == name))
    }

    /// Names of all machines of the file's groups.
    pub fn desired_names(&self) -> Vec<String> {
        self.cluster.spec.groups.iter().flat_map(|g| g.names().collect::<Vec<_>>()).collect()
    }

    /// Machines in the ledger that are no longer in the file, without those that never got an address.
    pub fn leaving(&self) -> Vec<Machine> {
        let desired = self.desired_names();
        let ledger = self.ledger.lock();
        ledger.iter().filter(|(n, _)| !desired.contains(n)).filter_map(|(n, o)| o.machine(n, None)).collect()
    }

    /// Machines in the ledger that never got an address. With `include_desired`, also those that are still in the file.
    pub fn unprovisioned(&self, include_desired: bool) -> Vec<String> {
        let desired = self.desired_names();
        let ledger = self.ledger.lock();
        let without_address = ledger.iter().filter(|(_, o)| o.address.is_none());
        without_address
            .map(|(name, _)| name.clone())
            .filter(|name| include_desired || !desired.contains(name))
            .collect()
    }

    /// Every machine that is in the file or in the ledger.
    ///
    /// # Errors
    /// When a request to a provider fails.
    pub async fn members(&self) -> Result<Vec<Member>, ClusterError> {
        let mut names = self.desired_names();
        names.extend(self.ledger.lock().keys().filter(|n| !names.contains(n)).cloned().collect::<Vec<_>>());
        let mut out = Vec::new();
        for name in names {
            let (owned, group) = (self.owned(&name), self.group(&name));
            let Some(provider) = owned.as_ref().map(|o| &o.provider).or(group.map(|g| &g.provider)) else { continue };
            let (all, full) = (self.cached_instances(provider).await?, self.full_name(&name));
            let instance = match owned.as_ref().and_then(|o| o.id.as_ref()) {
                Some(id) => all.iter().find(|i| i.id == *id),
                None => all.iter().find(|i| i.name == full),
            };
            out.push(Member { desired: group.is_some(), instance: instance.cloned(), owned, name });
        }
        Ok(out)
    }

    /// The changes that an apply would make to machines at their providers, with prices of new machines. Changes nothing.
    ///
    /// # Errors
    /// When a request to a provider fails.
    pub async fn plan(&self) -> Result<Vec<(String, Change)>, ClusterError> {
        let mut out = Vec::new();
        for member in self.members().await? {
            let name = member.name.clone();
            let provider_changed = member
                .owned
                .as_ref()
                .zip(self.group(&name))
                .and_then(|(owned, group)| orders::provider_changed(owned, group));
            if let Some(reason) = provider_changed {
                out.push((name, Change::alter(reason)));
                continue;
            }
            let change = match (&member.owned, &member.instance) {
                (Some(owned), _) if !member.desired && owned.adopted => {
                    Change::remove("leaves the cluster; not deleted, because it was adopted")
                }
                (Some(_), _) if !member.desired => Change::remove("leaves the cluster and is deleted"),
                (None, Some(instance)) => Change::alter(foreign_message(&name, instance)),
                (Some(_) | None, None) => {
                    let Some(group) = self.group(&name) else { continue };
                    let price = self.price(&group.provider, &group.size).await?;
                    let price = price.map_or_else(|| "price unknown".into(), |p| format!("{p:.3} $/h"));
                    Change::add(format!("machine {} of {}, {price}", group.size, group.provider))
                }
                (Some(_), Some(instance)) if instance.power != Power::On => Change::alter("turned on"),
                (Some(_), Some(_)) => continue,
            };
            out.push((name, change));
        }
        Ok(out)
    }

    /// The sizes of a provider, from the cache after the first call.
    async fn sizes(&self, provider: &str) -> Result<&BTreeMap<String, Size>, ClusterError> {
        let cache = self.caches.get(provider).ok_or_else(|| unknown_provider(provider))?;
        cache.sizes.get_or_try_init(|| async { self.provider(provider)?.sizes().await }).await
    }

    /// The prices of sizes with GPUs: those in the lists of the cluster's providers, and those of existing machines of providers without
    /// a list.
    ///
    /// # Errors
    /// When a request to a provider fails.
    pub async fn gpu_prices(&self) -> Result<Vec<GpuPrice>, ClusterError> {
        let mut found = Vec::new();
        for (name, provider) in &self.providers {
            let sizes = self.sizes(name).await?;
            found.extend(sizes.values().filter_map(|s| Some(GpuPrice::new(s.gpus.as_ref()?, s.hourly))));
            let existing = self.cached_instances(name).await?.iter().filter(|i| !sizes.contains_key(&i.size));
            found.extend(existing.filter_map(|i| Some(GpuPrice::new(&provider.gpus_by_name(&i.size)?, i.hourly?))));
        }
        Ok(found)
    }

    /// US dollars per hour of a size; `None` if it is unknown.
    async fn price(&self, provider: &str, size: &str) -> Result<Option<f64>, ClusterError> {
        let sizes = self.sizes(provider).await?;
        // A provider without a price list reports the price with each existing machine.
        let of_existing = self.cached_instances(provider).await?.iter().find(|i| i.size == size).and_then(|i| i.hourly);
        Ok(sizes.get(size).map(|s| s.hourly).or(of_existing))
    }

    /// US dollars per hour of all machines that the file's groups have; `None` if one of the prices is unknown.
    ///
    /// # Errors
    /// When a request to a provider fails.
    pub async fn hourly(&self) -> Result<Option<f64>, ClusterError> {
        let mut all = 0.0;
        for group in &self.cluster.spec.groups {
            let Some(price) = self.price(&group.provider, &group.size).await? else { return Ok(None) };
            all += price * f64::from(group.count);
        }
        Ok(Some(all))
    }

    /// The current price of every machine that is in the file or in the ledger.
    ///
    /// # Errors
    /// When a request to a provider fails.
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

    /// Uses an existing machine of the provider as this machine of a group. An adopted machine is never deleted.
    ///
    /// # Errors
    /// When no group has this name, the name or the machine is in the ledger already, the machine is listed in `spec.machines`, or the
    /// provider has no such machine.
    pub async fn adopt(&self, name: &str, id: &str) -> Result<Instance, ClusterError> {
        let invalid = |reason: String| ClusterError::Spec { file: format!("machine '{name}'"), reason };
        let group = self.group(name).ok_or_else(|| invalid("no group has it; raise the group's count first".into()))?;
        // An entry without an identifier is an order of unknown outcome. It may be replaced, because the user names the machine now.
        if let Some(Owned { provider, id: Some(own), .. }) = self.owned(name) {
            return Err(invalid(format!("it is machine {own} of {provider} already")));
        }
        if !providers::is_identifier(id) {
            return Err(invalid(format!("'{id}' is not a valid machine identifier")));
        }
        let found = self.provider(&group.provider)?.get(id).await?;
        let instance = found.ok_or_else(|| invalid(format!("{} has no machine {id}", group.provider)))?;
        if let Some(other) = ledger::find(&self.cluster, &self.ledger.lock(), &group.provider, &instance.id) {
            return Err(invalid(format!("{id} is used as '{other}' already")));
        }
        let owned = Owned { id: Some(instance.id.clone()), adopted: true, ..Owned::intention(group) };
        self.check_not_listed(name, group, &owned, &instance)?;
        self.update_ledger(|ledger| {
            ledger.insert(name.to_owned(), owned);
        })?;
        Ok(instance)
    }
}

fn unknown_provider(provider: &str) -> ClusterError {
    ClusterError::Provider { provider: provider.into(), status: 0, message: "it is not in spec.providers".into() }
}

fn foreign_message(name: &str, instance: &Instance) -> String {
    format!(
        "a machine named {} exists (id {}) that slipway did not create; `slipway cluster adopt {name} {}` uses it as it is",
        instance.name, instance.id, instance.id
    )
}
