//! Clients of the cloud providers' APIs, behind the trait [`Provider`].
//!
//! Identifiers and addresses in responses are validated here, because they become part of URLs and of `ssh` arguments.

mod digitalocean;
mod http;
mod paperspace;

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::future::BoxFuture;

use crate::ClusterError;
use crate::spec::cloud::{Group, Provider as Account};
use crate::spec::secret::TrustedCommands;

/// Power state of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// The machine is on, as far as its provider reports.
    On,
    /// The machine is off.
    Off,
    /// The machine is being created, powered on or powered off.
    Transitioning,
}

/// A machine, as its provider reports it.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// The provider's identifier.
    pub id: String,
    /// The name that slipway gave it: the cluster's name and the machine's, such as `lab-gpu-1`.
    pub name: String,
    /// The provider's name of the size, such as `s-4vcpu-8gb`.
    pub size: String,
    /// Power state.
    pub power: Power,
    /// The public IP address, once it is known. With some providers it changes with every power-on.
    pub address: Option<String>,
    /// The IP address in the private network.
    pub internal: Option<String>,
    /// Creation time in milliseconds since 1970, if the provider reports it.
    pub created_ms: Option<i64>,
    /// US dollars per hour, if the provider reports it.
    pub hourly: Option<f64>,
}

/// A size of machines in a provider's price list.
#[derive(Debug, Clone, PartialEq)]
pub struct Size {
    /// US dollars per hour.
    pub hourly: f64,
    /// Its GPUs; `None` if it has none.
    pub gpus: Option<SizeGpus>,
}

/// The GPUs of a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeGpus {
    /// The model in the words of the provider: `nvidia h100`.
    pub model: String,
    /// Number of GPUs, 1 or more.
    pub count: u32,
}

/// The future of a provider request.
pub type ProviderFuture<'a, T> = BoxFuture<'a, Result<T, ClusterError>>;

/// The API of a cloud provider.
pub trait Provider: Send + Sync + std::fmt::Debug {
    /// All machines of the account.
    fn list(&self) -> ProviderFuture<'_, Vec<Instance>>;
    /// The machine with this identifier; `None` if it does not exist.
    fn get<'a>(&'a self, id: &'a str) -> ProviderFuture<'a, Option<Instance>>;
    /// Orders a machine. The provider creates it in the background.
    fn create<'a>(&'a self, name: &'a str, cluster: &'a str, group: &'a Group) -> ProviderFuture<'a, Instance>;
    /// Requests that a machine is powered on or off. The provider does it in the background.
    fn power<'a>(&'a self, id: &'a str, on: bool) -> ProviderFuture<'a, ()>;
    /// Deletes a machine. Succeeds if it does not exist.
    fn delete<'a>(&'a self, id: &'a str) -> ProviderFuture<'a, ()>;
    /// The sizes that the provider offers, by name; empty if it has no price list.
    fn sizes(&self) -> ProviderFuture<'_, BTreeMap<String, Size>>;
    /// The GPUs of a size that the provider's list does not have, from its name; `None` if the name does not say them.
    fn gpus_by_name(&self, size: &str) -> Option<SizeGpus>;
    /// Whether a machine that is off costs the same as one that is on.
    fn charges_when_off(&self) -> bool;
}

/// Whether a text is a valid machine identifier. It becomes part of URLs and of `ssh` arguments.
pub(crate) fn is_identifier(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=128).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with('-')
}

/// Validates an IP address in a response; an absent or empty one is `None`. It becomes an `ssh` argument, so other text is rejected.
fn ip_address(text: Option<&str>) -> Result<Option<String>, String> {
    let Some(text) = text.filter(|t| !t.is_empty()) else { return Ok(None) };
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    Ok(Some(address.to_string()))
}

/// Validates a machine identifier in a response.
fn identifier(text: String) -> Result<String, String> {
    if is_identifier(&text) { Ok(text) } else { Err(format!("{text:?} is not a valid machine identifier")) }
}

/// Creates the client of a provider account. Reads the account's API token.
///
/// # Errors
/// [`ClusterError::Secret`], [`ClusterError::Untrusted`], or [`ClusterError::Provider`] when the endpoint is invalid.
pub fn connect(name: &str, account: &Account, trusted: &TrustedCommands) -> Result<Box<dyn Provider>, ClusterError> {
    let token = account.token().read(trusted)?;
    Ok(match account {
        Account::DigitalOcean(own) => Box::new(digitalocean::DigitalOcean::new(name, own, &token)?),
        Account::Paperspace(own) => Box::new(paperspace::Paperspace::new(name, own, &token)?),
    })
}
