//! Operations that cost money or destroy data: ordering machines, powering them on and off, deleting them.
//!
//! The providers have no idempotency keys, so the ledger ensures that each machine is ordered exactly once: the intention is on disk
//! before the order is sent, and the identifier as soon as the response arrives. After a crash or a lost response, the machine is searched
//! by its name for as long as the provider's lists may lag behind orders. That time is measured with the monotonic clock from the beginning
//! of the search, so neither a slow order nor a change of the wall clock shortens it.

use std::time::Duration;

use tokio::time::Instant;

use super::ledger::Owned;
use super::{Fleet, foreign_message};
use crate::ClusterError;
use crate::providers::{Instance, Power, Provider};
use crate::spec::Machine;
use crate::spec::cloud::Group;

/// How long a provider may take to create, power on, power off or delete a machine.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(900);
/// Interval between two requests for the state of a machine.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum time until a new machine appears in the provider's list.
const LIST_LAG: Duration = Duration::from_secs(60);
/// Maximum time until a request by identifier finds a new machine.
const GET_LAG: Duration = Duration::from_secs(15);

impl Fleet {
    /// Ensures that a machine exists, is powered on and has an address. Returns the machine and the number of changes.
    ///
    /// # Errors
    /// When a request to the provider fails, or after [`MACHINE_TIMEOUT`].
    pub(crate) async fn ensure(&self, name: &str) -> Result<(Machine, usize), ClusterError> {
        let invalid = |reason: &str| ClusterError::Spec { file: format!("machine '{name}'"), reason: reason.into() };
        let group = self.group(name).ok_or_else(|| invalid("no group has it"))?;
        if let Some(reason) = self.owned(name).and_then(|owned| provider_changed(&owned, group)) {
            return Err(invalid(&reason));
        }
        let provider = self.provider(&group.provider)?;
        let (mut instance, mut changes) = self.find_or_order(name, group, provider).await?;
        let deadline = Instant::now() + MACHINE_TIMEOUT;
        let mut turned_on = false;
        loop {
            if let (Power::On, Some(address)) = (instance.power, &instance.address) {
                if let Some(owned) = self.owned(name) {
                    self.check_not_listed(name, group, &owned, &instance)?;
                }
                let (address, internal) = (address.clone(), instance.internal.clone());
                self.update_ledger(|ledger| {
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
            instance = self.poll(provider, &instance, deadline, "to power on and get an address").await?;
        }
        let machine = self.owned(name).and_then(|owned| owned.machine(name, group.ssh.clone()));
        Ok((machine.ok_or_else(|| invalid("it is not in the ledger"))?, changes))
    }

    /// Returns the machine if it exists, and orders it otherwise. Also returns the number of changes.
    async fn find_or_order(
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
                // The machine was deleted outside of slipway, so a new one is ordered.
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
        self.update_ledger(|ledger| {
            ledger.insert(name.to_owned(), intention.clone());
        })?;
        let error = match provider.create(&self.full_name(name), &self.cluster.metadata.name, group).await {
            Ok(instance) => {
                self.identify(name, &instance.id)?;
                return Ok((instance, 1));
            }
            Err(error) => error,
        };
        if !was_rejected(&error) {
            match self.find_order(name, &intention, provider).await {
                Ok(Some(instance)) => return Ok((instance, 1)),
                Ok(None) => {}
                // The intention stays on disk, so the next apply searches for the machine again.
                Err(_) => return Err(error),
            }
        }
        self.update_ledger(|ledger| {
            ledger.remove(name);
        })?;
        Err(error)
    }

    /// Records the identifier of an ordered machine.
    fn identify(&self, name: &str, id: &str) -> Result<(), ClusterError> {
        self.update_ledger(|ledger| {
            if let Some(owned) = ledger.get_mut(name) {
                owned.id = Some(id.to_owned());
            }
        })
    }

    /// Fails if a machine of this name exists that is not in the ledger: it is foreign, and slipway orders no second machine of that name.
    /// The cached list of the plan is not used, because it may be an hour old.
    async fn refuse_foreign(&self, name: &str, provider: &dyn Provider) -> Result<(), ClusterError> {
        let full = self.full_name(name);
        for other in provider.list().await?.into_iter().filter(|i| i.name == full) {
            // The list may still contain a deleted machine, so the machine itself is requested.
            if provider.get(&other.id).await?.is_some() {
                return Err(ClusterError::Foreign(foreign_message(name, &other)));
            }
        }
        Ok(())
    }

    /// Searches for the machine of an order whose outcome is unknown. Returns `None` if the provider did not accept the order.
    async fn find_order(
        &self,
        name: &str,
        intention: &Owned,
        provider: &dyn Provider,
    ) -> Result<Option<Instance>, ClusterError> {
        let full = self.full_name(name);
        let deadline = Instant::now() + LIST_LAG;
        loop {
            let mut found: Vec<Instance> =
                provider.list().await?.into_iter().filter(|i| i.name == full && intention.matches_order(i)).collect();
            if found.len() > 1 {
                let ids = found.iter().map(|i| i.id.as_str()).collect::<Vec<_>>().join(", ");
                return Err(ClusterError::Foreign(format!(
                    "several machines are named {full} ({ids}), and slipway does not know which one it ordered; \
                     choose one with `slipway cluster adopt {name} ID`"
                )));
            }
            if let Some(instance) = found.pop() {
                self.identify(name, &instance.id)?;
                return Ok(Some(instance));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits for [`POLL_INTERVAL`] and requests the machine again. `goal` completes the error message after `deadline`.
    async fn poll(
        &self,
        provider: &dyn Provider,
        instance: &Instance,
        deadline: Instant,
        goal: &str,
    ) -> Result<Instance, ClusterError> {
        if Instant::now() > deadline {
            let reason = format!("it took more than {} s {goal}", MACHINE_TIMEOUT.as_secs());
            return Err(ClusterError::Host { host: instance.name.clone(), reason });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        // The provider may not find a new machine at first.
        let current = provider.get(&instance.id).await?;
        Ok(current.unwrap_or_else(|| Instance { power: Power::Transitioning, ..instance.clone() }))
    }

    /// Powers a machine off and waits until it is off. Returns the number of changes.
    ///
    /// # Errors
    /// When a request to the provider fails, or after [`MACHINE_TIMEOUT`].
    pub(crate) async fn power_off(&self, name: &str) -> Result<usize, ClusterError> {
        let Some(Owned { provider, id: Some(id), .. }) = self.owned(name) else { return Ok(0) };
        let provider = self.provider(&provider)?;
        let Some(mut instance) = provider.get(&id).await? else { return Ok(0) };
        if instance.power == Power::Off {
            return Ok(0);
        }
        provider.power(&id, false).await?;
        let deadline = Instant::now() + MACHINE_TIMEOUT;
        while instance.power != Power::Off {
            instance = self.poll(provider, &instance, deadline, "to power off").await?;
        }
        Ok(1)
    }

    /// Deletes a machine and removes it from the ledger. An adopted machine is only removed from the ledger.
    ///
    /// # Errors
    /// When a request to the provider fails.
    pub(crate) async fn delete(&self, name: &str) -> Result<usize, ClusterError> {
        let Some(owned) = self.owned(name) else { return Ok(0) };
        if !owned.adopted {
            let provider = self.provider(&owned.provider)?;
            // A provider responds "not found" to the deletion of a machine that was ordered just now, and keeps the machine. So the machine
            // must be visible before it is deleted.
            let instance = match &owned.id {
                Some(id) => visible(provider, id).await?,
                None => self.find_order(name, &owned, provider).await?,
            };
            if let Some(instance) = instance {
                delete_at(provider, &instance.id).await?;
            }
        }
        self.update_ledger(|ledger| {
            ledger.remove(name);
        })?;
        Ok(1)
    }
}

/// Deletes a machine, and retries while another operation on it is in progress at the provider.
async fn delete_at(provider: &dyn Provider, id: &str) -> Result<(), ClusterError> {
    let deadline = Instant::now() + MACHINE_TIMEOUT;
    loop {
        match provider.delete(id).await {
            Err(ClusterError::Provider { status: 409 | 422 | 423, .. }) if Instant::now() < deadline => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            done => return done,
        }
    }
}

/// Requests a machine by its identifier. Returns `None` only after [`GET_LAG`], because a new machine is not visible at first.
async fn visible(provider: &dyn Provider, id: &str) -> Result<Option<Instance>, ClusterError> {
    let deadline = Instant::now() + GET_LAG;
    loop {
        if let Some(instance) = provider.get(id).await? {
            return Ok(Some(instance));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Whether the provider definitely rejected an order. After any other error the outcome is unknown, because the provider may have accepted
/// the order while its response was lost. That includes 408 (the request arrived too slowly) and 499 (a proxy gave up).
fn was_rejected(error: &ClusterError) -> bool {
    matches!(error, ClusterError::Provider { status: 400..=407 | 409..=498, .. })
}

/// The reason why a machine cannot be ordered if its group now names another provider: the machine still exists at the old provider, and
/// a second order would replace its ledger entry.
pub(super) fn provider_changed(owned: &Owned, group: &Group) -> Option<String> {
    (owned.provider != group.provider).then(|| {
        format!(
            "it was created by '{}', and its group now names '{}'; rename the group, or scale it to 0 with the old provider first",
            owned.provider, group.provider
        )
    })
}
