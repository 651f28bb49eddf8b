//! Who makes machines.

mod digitalocean;
mod http;
mod paperspace;

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::future::BoxFuture;

use crate::ClusterError;
use crate::spec::cloud::{Group, Provider as Account};
use crate::spec::secret::TrustedCommands;

/// Whether a machine is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It is on, or is said to be.
    On,
    /// It is off.
    Off,
    /// It is on its way from one to the other.
    Between,
}

/// A machine, as its provider tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// The provider's name for it.
    pub id: String,
    /// Ours.
    pub name: String,
    /// The provider's size.
    pub size: String,
    /// Whether it is on.
    pub power: Power,
    /// The IP address at which it is reached, once that is known; some providers give another one after each start.
    pub address: Option<String>,
    /// The IP address in the private network.
    pub internal: Option<String>,
    /// When it was created, in milliseconds since 1970, where the provider says so.
    pub created_ms: Option<i64>,
    /// What an hour of it costs in US dollars, where the provider says so.
    pub hourly: Option<f64>,
}

/// A promise of an answer.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ClusterError>>;

/// What is asked of who makes machines.
pub trait Provider: Send + Sync + std::fmt::Debug {
    /// All machines of the account.
    fn list(&self) -> Answer<'_, Vec<Instance>>;
    /// One of them; `None` when it is gone.
    fn get<'a>(&'a self, id: &'a str) -> Answer<'a, Option<Instance>>;
    /// Orders a machine. It is not there yet.
    fn create<'a>(&'a self, name: &'a str, cluster: &'a str, group: &'a Group) -> Answer<'a, Instance>;
    /// Asks for it to be turned on or off. It takes a while.
    fn power<'a>(&'a self, id: &'a str, on: bool) -> Answer<'a, ()>;
    /// Deletes it. One that is gone is deleted.
    fn delete<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// What sizes cost an hour in US dollars; those that the provider tells prices of.
    fn prices(&self) -> Answer<'_, BTreeMap<String, f64>>;
    /// Whether a machine costs the same when it is off.
    fn charges_when_off(&self) -> bool;
}

/// Whether a text may be a provider's identifier of a machine. It becomes part of URLs and of arguments of `ssh`.
pub(crate) fn is_identifier(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=128).contains(&text.len()) && text.chars().all(fits) && !text.starts_with('-')
}

/// An IP address of an answer; none while the machine has none. It becomes an argument of `ssh`, so nothing else is let through.
fn ip_address(text: Option<&str>) -> Result<Option<String>, String> {
    let Some(text) = text.filter(|t| !t.is_empty()) else { return Ok(None) };
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is no IP address of a machine"))?;
    Ok(Some(address.to_string()))
}

/// An identifier of an answer.
fn identifier(text: String) -> Result<String, String> {
    if is_identifier(&text) { Ok(text) } else { Err(format!("{text:?} is no identifier of a machine")) }
}

/// The provider of an account. Reads its token.
///
/// # Errors
/// [`ClusterError::Secret`], [`ClusterError::Untrusted`], or [`ClusterError::Provider`] when the endpoint cannot be used.
pub fn connect(name: &str, account: &Account, trusted: &TrustedCommands) -> Result<Box<dyn Provider>, ClusterError> {
    let token = account.token().read(trusted)?;
    Ok(match account {
        Account::DigitalOcean(own) => Box::new(digitalocean::DigitalOcean::new(name, own, &token)?),
        Account::Paperspace(own) => Box::new(paperspace::Paperspace::new(name, own, &token)?),
    })
}
