//! What costs money or destroys something: ordering machines, turning them on and off, deleting them.
//!
//! Providers have no idempotency keys, so exactly one order is a matter of the ledger: the intention stands on disk before the order is
//! given, and the identifier as soon as the answer is there. After a crash, or when the answer is lost, the machine is looked for by its
//! name as long as lists may lag behind orders. Waiting is measured from when the looking begins, by the monotonic clock: neither a slow
//! order nor a wall clock that was set makes it shorter.

use std::time::Duration;

use tokio::time::Instant;

use super::ledger::Owned;
use super::{Fleet, foreign};
use crate::ClusterError;
use crate::providers::{Instance, Power, Provider};
use crate::spec::Machine;
use crate::spec::cloud::Group;

/// The longest that a machine may take to be created, turned on, turned off or deleted.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(900);
/// Between two questions to a provider.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// A list shows a new machine within this.
const LIST_LAG: Duration = Duration::from_secs(60);
/// A question by identifier finds a new machine within this.
const GET_LAG: Duration = Duration::from_secs(15);

impl Fleet {
    /// Makes sure that a machine exists, is on and has an address. Returns how many things were changed for it.
    ///
    /// # Errors
    /// When the provider refuses, or it takes too long.
    pub(crate) async fn ensure(&self, name: &str) -> Result<(Machine, usize), ClusterError> {
        let wrong = |reason: &str| ClusterError::Spec { file: format!("machine '{name}'"), reason: reason.into() };
        let group = self.group(name).ok_or_else(|| wrong("no group has it"))?;
        if let Some(reason) = self.owned(name).and_then(|owned| moved(&owned, group)) {
            return Err(wrong(&reason));
        }
        let provider = self.provider(&group.provider)?;
        let (mut instance, mut changes) = self.found_or_ordered(name, group, provider).await?;
        let until = Instant::now() + MACHINE_TIMEOUT;
        let mut turned_on = false;
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
            if instance.power == Power::Off && !turned_on {
                provider.power(&instance.id, true).await?;
                turned_on = true;
                changes += 1;
            }
            instance = self.asked_later(provider, &instance, until, "to be on and have an address").await?;
        }
        let machine = self.owned(name).and_then(|owned| owned.machine(name, group.ssh.clone()));
        Ok((machine.ok_or_else(|| wrong("it is not in the ledger"))?, changes))
    }

    async fn found_or_ordered(
        &self,
        name: &str,
        group: &Group,
        provider: &dyn Provider,
    ) -> Result<(Instance, usize), ClusterError> {
        match self.owned(name) {
            Some(Owned { id: Some(id), .. }) => {
                if let Some(instance) = visible(provider, &id).await? {
                    return Ok((instance, 0));
                }
                // Somebody deleted it: another is ordered.
            }
            Some(intention) => {
                if let Some(instance) = self.find_order(name, &intention, provider).await? {
                    return Ok((instance, 1));
                }
            }
            None => {}
        }
        self.refuse_foreign(name, provider).await?;
        let intention = Owned::intention(group);
        self.keep(|ledger| {
            ledger.insert(name.to_owned(), intention.clone());
        })?;
        let error = match provider.create(&self.full_name(name), &self.cluster.metadata.name, group).await {
            Ok(instance) => {
                self.identify(name, &instance.id)?;
                return Ok((instance, 1));
            }
            Err(error) => error,
        };
        if !refused(&error) {
            match self.find_order(name, &intention, provider).await {
                Ok(Some(instance)) => return Ok((instance, 1)),
                Ok(None) => {}
                // The intention stays on disk, and the next apply looks again.
                Err(_) => return Err(error),
            }
        }
        self.keep(|ledger| {
            ledger.remove(name);
        })?;
        Err(error)
    }

    /// Writes down which machine an order became.
    fn identify(&self, name: &str, id: &str) -> Result<(), ClusterError> {
        self.keep(|ledger| {
            if let Some(owned) = ledger.get_mut(name) {
                owned.id = Some(id.to_owned());
            }
        })
    }

    /// A machine that has our name and is not in the ledger is somebody else's, and no second one is ordered beside it. The provider is
    /// asked anew: what was listed for a plan may be an hour old.
    async fn refuse_foreign(&self, name: &str, provider: &dyn Provider) -> Result<(), ClusterError> {
        let full = self.full_name(name);
        for other in provider.list().await?.into_iter().filter(|i| i.name == full) {
            // A list may still show one that is deleted.
            if provider.get(&other.id).await?.is_some() {
                return Err(ClusterError::Foreign(foreign(name, &other)));
            }
        }
        Ok(())
    }

    /// The machine that an order of unknown outcome became; none when the order was not taken.
    async fn find_order(
        &self,
        name: &str,
        intention: &Owned,
        provider: &dyn Provider,
    ) -> Result<Option<Instance>, ClusterError> {
        let full = self.full_name(name);
        let until = Instant::now() + LIST_LAG;
        loop {
            let mut found: Vec<Instance> =
                provider.list().await?.into_iter().filter(|i| i.name == full && intention.fits(i)).collect();
            if found.len() > 1 {
                let ids = found.iter().map(|i| i.id.as_str()).collect::<Vec<_>>().join(", ");
                return Err(ClusterError::Foreign(format!(
                    "several machines are called {full} ({ids}), and it is not known which was ordered from here; \
                     `slipway cluster adopt {name} ID` takes one of them"
                )));
            }
            if let Some(instance) = found.pop() {
                self.identify(name, &instance.id)?;
                return Ok(Some(instance));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Asks for a machine again after a pause.
    async fn asked_later(
        &self,
        provider: &dyn Provider,
        instance: &Instance,
        until: Instant,
        what: &str,
    ) -> Result<Instance, ClusterError> {
        if Instant::now() > until {
            let reason = format!("it took more than {} s {what}", MACHINE_TIMEOUT.as_secs());
            return Err(ClusterError::Host { host: instance.name.clone(), reason });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        // A new machine may not be found at once.
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
        let until = Instant::now() + MACHINE_TIMEOUT;
        while instance.power != Power::Off {
            instance = self.asked_later(provider, &instance, until, "to be off").await?;
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
            // A provider answers "not there" for a machine that was ordered just now, and deletes nothing: so it must be visible first.
            let instance = match &owned.id {
                Some(id) => visible(provider, id).await?,
                None => self.find_order(name, &owned, provider).await?,
            };
            if let Some(instance) = instance {
                delete_at(provider, &instance.id).await?;
            }
        }
        self.keep(|ledger| {
            ledger.remove(name);
        })?;
        Ok(1)
    }
}

/// Deletes a machine; waits while the provider is busy with something else on it.
async fn delete_at(provider: &dyn Provider, id: &str) -> Result<(), ClusterError> {
    let until = Instant::now() + MACHINE_TIMEOUT;
    loop {
        match provider.delete(id).await {
            Err(ClusterError::Provider { status: 409 | 422 | 423, .. }) if Instant::now() < until => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            done => return done,
        }
    }
}

/// A machine by its identifier; none when it does not exist, which is known only after a new machine would have become visible.
async fn visible(provider: &dyn Provider, id: &str) -> Result<Option<Instance>, ClusterError> {
    let until = Instant::now() + GET_LAG;
    loop {
        if let Some(instance) = provider.get(id).await? {
            return Ok(Some(instance));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Whether the provider said that it did not take an order. Of every other error nobody knows: the order may have been taken and only its
/// answer lost. That includes 408 (the request came in too slowly) and 499 (a proxy gave up), which say nothing of what was done.
fn refused(error: &ClusterError) -> bool {
    matches!(error, ClusterError::Provider { status: 400..=407 | 409..=498, .. })
}

/// Why a machine cannot be had from its group's provider: it exists at another one, and ordering a second would lose sight of the first.
pub(super) fn moved(owned: &Owned, group: &Group) -> Option<String> {
    (owned.provider != group.provider).then(|| {
        format!(
            "it was made by '{}', and its group now names '{}'; give the group another name, or scale it to 0 with the old provider first",
            owned.provider, group.provider
        )
    })
}
