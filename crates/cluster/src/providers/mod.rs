//! Who makes machines.

mod digitalocean;
mod http;
mod paperspace;

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;

use crate::ClusterError;
use crate::spec::cloud::{Group, Provider as Account};

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
    /// Where it is reached, once that is known; another after a new start with some.
    pub address: Option<String>,
    /// In the private network.
    pub internal: Option<String>,
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

/// The provider of an account. Reads its token.
///
/// # Errors
/// [`ClusterError::Secret`], or [`ClusterError::Provider`] when the endpoint cannot be used.
pub fn connect(name: &str, account: &Account) -> Result<Box<dyn Provider>, ClusterError> {
    let token = account.token().read()?;
    Ok(match account {
        Account::DigitalOcean(own) => Box::new(digitalocean::DigitalOcean::new(name, own, &token)?),
        Account::Paperspace(own) => Box::new(paperspace::Paperspace::new(name, own, &token)?),
    })
}
