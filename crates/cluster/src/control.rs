//! The cluster, seen through one of its control planes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ClusterError;
use crate::shell::quote;
use crate::spec::Role;
use crate::state::Log;
use crate::transport::Host;
use crate::work::Work;

/// A short question.
pub(crate) const ASK: Duration = Duration::from_secs(60);
/// A node has so long to be ready, with everything that starts on it.
const READY: Duration = Duration::from_secs(300);
/// Pods have so long to go; those of a disruption budget until it allows it.
const DRAIN_SECONDS: u64 = 300;
/// Says that a node was closed by us, so that we open it again and nobody else's is touched.
const CLOSED: &str = "slipway.dev/closed";

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) ready: bool,
    /// Takes no new pods, because we said so.
    pub(crate) closed: bool,
    /// Takes no new pods.
    pub(crate) unschedulable: bool,
    /// `v1.32.1`.
    pub(crate) version: String,
}

/// Through whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Control<'a> {
    pub(crate) host: &'a Host,
    /// How the machine is called by others of the cluster.
    pub(crate) address: &'a str,
}

impl<'a> Control<'a> {
    /// The first that answers; another than this machine where there is one.
    ///
    /// # Errors
    /// Why the last did not answer.
    pub(crate) async fn of(work: &'a Work, not: &str) -> Result<Self, ClusterError> {
        let first = work.cluster.first().map(|m| m.name.clone()).unwrap_or_default();
        let mut all: Vec<_> = work.hosts.values().filter(|(m, _)| m.is(Role::ControlPlane)).collect();
        all.sort_by_key(|(m, _)| (m.name == not, m.name != first));
        let mut last = None;
        for (machine, host) in all {
            let control = Self { host, address: machine.internal() };
            match control.nodes().await {
                // A fresh installation is a cluster of its own, which is not the one that is meant.
                Ok(nodes) if machine.name == first || nodes.contains_key(&first) => return Ok(control),
                Ok(_) => {}
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| ClusterError::Host { host: first, reason: "no control plane answers".into() }))
    }

    /// Of the first control plane, whatever it says.
    pub(crate) fn first(work: &'a Work) -> Result<Self, ClusterError> {
        let found = work.cluster.first().and_then(|m| work.hosts.get(&m.name));
        let missing = || ClusterError::Host {
            host: "?".into(),
            reason: "the first control plane is not among the machines".into(),
        };
        found.map(|(m, host)| Self { host, address: m.internal() }).ok_or_else(missing)
    }

    /// `microk8s` with these words, for the shell.
    pub(crate) async fn microk8s(&self, words: &str, limit: Duration) -> Result<String, ClusterError> {
        self.host.script(&format!("microk8s {words} </dev/null"), limit).await
    }

    /// `kubectl` with an input.
    pub(crate) async fn kubectl(&self, words: &str, input: &[u8], limit: Duration) -> Result<String, ClusterError> {
        let mut output = String::new();
        let command = format!("exec microk8s kubectl {words}");
        self.host
            .run(&command, input, limit, |line| {
                output += line;
                output.push('\n');
            })
            .await?;
        Ok(output)
    }

    /// All nodes.
    pub(crate) async fn nodes(&self) -> Result<BTreeMap<String, Node>, ClusterError> {
        let text = self.kubectl("get nodes -o json", b"", ASK).await?;
        let list: Value = serde_json::from_str(&text).map_err(|e| ClusterError::Host {
            host: self.host.name.clone(),
            reason: format!("kubectl get nodes answered in another form: {e}"),
        })?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        Ok(items.iter().filter_map(|n| Some((n["metadata"]["name"].as_str()?.to_owned(), node(n)))).collect())
    }

    /// Waits until a node is ready, with this minor version where one is asked for.
    pub(crate) async fn ready(&self, name: &str, minor: Option<(u32, u32)>, log: &Log) -> Result<(), ClusterError> {
        let until = Instant::now() + READY;
        loop {
            // An API server that starts anew does not answer for a while.
            let seen = self.nodes().await;
            if let Ok(nodes) = &seen
                && let Some(node) = nodes.get(name)
                && node.ready
                && minor.is_none_or(|m| crate::spec::minor(&node.version) == Some(m))
            {
                log.line(&format!("the node is ready, {}", node.version));
                return Ok(());
            }
            if Instant::now() > until {
                let why = match seen {
                    Err(error) => error.to_string(),
                    Ok(nodes) => match nodes.get(name) {
                        None => "it is no node".into(),
                        Some(node) if !node.ready => "it is not ready".into(),
                        Some(node) => format!("its kubelet is still {}", node.version),
                    },
                };
                let reason = format!("after {} s: {why}; see `microk8s inspect` there", READY.as_secs());
                return Err(ClusterError::Host { host: name.into(), reason });
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Has a node take no new pods and give those that it has away.
    pub(crate) async fn drain(&self, name: &str, log: &Log) -> Result<(), ClusterError> {
        let node = quote(name);
        self.kubectl(&format!("annotate node {node} {CLOSED}=true --overwrite"), b"", ASK).await?;
        let words = format!("drain {node} --ignore-daemonsets --delete-emptydir-data --timeout={DRAIN_SECONDS}s");
        let limit = Duration::from_secs(DRAIN_SECONDS) + ASK;
        let drained = self.kubectl(&words, b"", limit).await;
        match &drained {
            Ok(said) => said.lines().for_each(|l| log.line(l)),
            // Left as it was found: who is in the way may be a budget that somebody set on purpose. The error of the drain is the one told.
            Err(_) => {
                let _ = self.open(name).await;
            }
        }
        drained.map(drop)
    }

    /// Has a node take pods again.
    pub(crate) async fn open(&self, name: &str) -> Result<(), ClusterError> {
        let node = quote(name);
        self.kubectl(&format!("uncordon {node}"), b"", ASK).await?;
        self.kubectl(&format!("annotate node {node} {CLOSED}-"), b"", ASK).await.map(drop)
    }

    /// Nothing goes on while a node that takes pods is not ready, or the API server is not well.
    pub(crate) async fn healthy(&self) -> Result<(), ClusterError> {
        self.kubectl("get --raw /readyz", b"", ASK).await?;
        let sick: Vec<String> =
            self.nodes().await?.into_iter().filter(|(_, n)| !n.ready && !n.unschedulable).map(|(n, _)| n).collect();
        if sick.is_empty() {
            return Ok(());
        }
        let reason = format!("not ready: {}; nothing goes on before they are", sick.join(", "));
        Err(ClusterError::Host { host: self.host.name.clone(), reason })
    }
}

fn node(node: &Value) -> Node {
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    Node {
        ready: conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"),
        closed: node["metadata"]["annotations"][CLOSED] == "true",
        unschedulable: node["spec"]["unschedulable"] == true,
        version: node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default().to_owned(),
    }
}
