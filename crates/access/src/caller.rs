//! Who sent a request.

use serde_json::Value;

use crate::Permission;

/// A user or a service account of the cluster, as a TokenReview describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Person {
    /// `system:serviceaccount:NAMESPACE:NAME`, or a user's name.
    pub name: String,
    /// The unique id.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// Whatever else the authenticator said.
    pub extra: Value,
}

/// The run that a run token belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunIdentity {
    /// The namespace of the run.
    pub namespace: String,
    /// The name of the run in its namespace.
    pub name: String,
    /// The id of the tracked run. What the token may change is in the experiment of this run.
    pub run_id: String,
    /// The attempt that the token was made for.
    pub attempt: u32,
    /// Whether namespaces are tenants that are to be kept apart, as they are in a cluster. On one machine everything has one owner.
    pub isolated: bool,
}

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Anybody, on a server that was started with `--no-auth`.
    Anonymous,
    /// The owner of the state folder: holds its token, or uses it in its own process.
    Owner,
    /// Holds a token of the token file.
    Administrator,
    /// A run that slipway carries out.
    Run(RunIdentity),
    /// A user or a service account of the cluster.
    Person(Person),
}

impl Caller {
    /// The name, where there is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Person(person) => Some(&person.name),
            _ => None,
        }
    }

    /// The run, if the caller is one.
    pub fn run(&self) -> Option<&RunIdentity> {
        match self {
            Self::Run(run) => Some(run),
            _ => None,
        }
    }

    /// The message for a caller who lacks a permission, in the words of a Kubernetes API server.
    pub fn lacks(&self, permission: &Permission) -> String {
        let who = match self {
            Self::Run(run) => format!("run \"{}\" of namespace \"{}\"", run.name, run.namespace),
            Self::Anonymous => "an anonymous caller (this server was started with --no-auth)".into(),
            other => format!("User \"{}\"", other.name().unwrap_or("unknown")),
        };
        let place = match &permission.namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".into(),
        };
        format!(
            "{who} cannot {} resource \"{}\" in API group \"slipway.dev\" {place}",
            permission.verb.name(),
            permission.resource.name()
        )
    }
}
