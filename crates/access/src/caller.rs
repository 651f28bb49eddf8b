//! Callers: the authenticated senders of requests.

use serde_json::Value;

use crate::Permission;

/// A user or service account of the cluster, as returned by a TokenReview.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Person {
    /// The user name; `system:serviceaccount:NAMESPACE:NAME` for a service account.
    pub name: String,
    /// The user's unique id in the cluster; may be empty.
    pub uid: String,
    /// The groups of the user, such as `system:authenticated`.
    pub groups: Vec<String>,
    /// Additional attributes from the authenticator, as a JSON object. RBAC decisions may depend on them.
    pub extra: Value,
}

/// The run that a run token belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunIdentity {
    /// The namespace of the run.
    pub namespace: String,
    /// The name of the run in its namespace.
    pub name: String,
    /// The id of the tracked run. The token may change only objects in the experiment of this run.
    pub run_id: String,
    /// The number of the attempt that the token was issued for, from 1.
    pub attempt: u32,
    /// Whether namespaces are separate tenants, as in a cluster. On a single machine, all namespaces have the same owner.
    pub isolated: bool,
}

/// The sender of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Any client of a server that was started with `--no-auth`.
    Anonymous,
    /// The owner of the state folder: a client with its token, or a command that uses the state folder in-process.
    Owner,
    /// A client with a token from the token file.
    Administrator,
    /// A run that slipway executes, authenticated by its run token.
    Run(RunIdentity),
    /// A user or service account of the cluster.
    Person(Person),
}

impl Caller {
    /// The user name, for users and service accounts of the cluster.
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

    /// The error message for a caller that lacks a permission, in the format of the Kubernetes API server.
    pub fn lacks(&self, permission: &Permission) -> String {
        let subject = match self {
            Self::Run(run) => format!("run \"{}\" of namespace \"{}\"", run.name, run.namespace),
            Self::Anonymous => "an anonymous caller (this server was started with --no-auth)".into(),
            other => format!("User \"{}\"", other.name().unwrap_or("unknown")),
        };
        let scope = match &permission.namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".into(),
        };
        format!(
            "{subject} cannot {} resource \"{}\" in API group \"{}\" {scope}",
            permission.verb.name(),
            permission.resource.name(),
            permission.resource.group()
        )
    }
}
