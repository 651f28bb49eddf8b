//! Runs `kubectl` and the distribution's own programs on one of the cluster's control planes.
//!
//! Steps use it to read the nodes, to drain and uncordon them, and to wait until they are ready.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ClusterError;
use crate::shell::quote;
use crate::spec::{Distribution, Role};
use crate::state::Log;
use crate::transport::Host;
use crate::work::Work;

/// Timeout of a short command on a machine, such as `kubectl get`.
pub(crate) const QUERY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a node may take to become ready after it started or joined.
const READY_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a drain may take, including the time during which a disruption budget blocks evictions.
const DRAIN_TIMEOUT_SECONDS: u64 = 300;
/// Annotation of nodes that slipway cordoned, so that slipway uncordons only these and never a node that an administrator cordoned.
const CORDONED_ANNOTATION: &str = "slipway.dev/closed";

/// The state of a Kubernetes node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) ready: bool,
    /// Slipway cordoned the node.
    pub(crate) cordoned_by_slipway: bool,
    /// The node is cordoned, by slipway or an administrator.
    pub(crate) unschedulable: bool,
    /// Version of the kubelet, such as `v1.32.1`.
    pub(crate) version: String,
}

/// A control plane on which commands are run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Control<'a> {
    pub(crate) host: &'a Host,
    /// The address at which other machines of the cluster reach it.
    pub(crate) address: &'a str,
    pub(crate) distribution: Distribution,
}

impl<'a> Control<'a> {
    /// Returns the first control plane that responds. The machine `avoid` is used only when no other responds.
    ///
    /// # Errors
    /// The error of the last control plane that did not respond.
    pub(crate) async fn connect(work: &'a Work, avoid: &str) -> Result<Self, ClusterError> {
        let first = work.cluster.first().map(|m| m.name.clone()).unwrap_or_default();
        let mut candidates: Vec<_> = work.hosts.values().filter(|(m, _)| m.is(Role::ControlPlane)).collect();
        candidates.sort_by_key(|(m, _)| (m.name == avoid, m.name != first));
        let mut last_error = None;
        for (machine, host) in candidates {
            let control =
                Self { host, address: machine.internal(), distribution: work.cluster.spec.kubernetes.distribution };
            match control.nodes().await {
                // A fresh MicroK8s installation is a one-node cluster of its own, so its response does not describe this cluster.
                Ok(nodes) if machine.name == first || nodes.contains_key(&first) => return Ok(control),
                Ok(_) => {}
                Err(error) => last_error = Some(error),
            }
        }
        Err(last_error
            .unwrap_or_else(|| ClusterError::Host { host: first, reason: "no control plane responds".into() }))
    }

    /// Like [`Self::connect`], but waits until a control plane responds: after a start its API server takes a while.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub(crate) async fn wait(work: &'a Work) -> Result<Self, ClusterError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            match Self::connect(work, "").await {
                Err(ClusterError::Host { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                other => return other,
            }
        }
    }

    /// Returns the first control plane, without checking that it responds.
    pub(crate) fn first(work: &'a Work) -> Result<Self, ClusterError> {
        let found = work.cluster.first().and_then(|m| work.hosts.get(&m.name));
        let missing = || ClusterError::Host { host: "?".into(), reason: "the cluster has no control plane".into() };
        let distribution = work.cluster.spec.kubernetes.distribution;
        found.map(|(m, host)| Self { host, address: m.internal(), distribution }).ok_or_else(missing)
    }

    /// Runs `microk8s` and returns its output. The arguments are shell text, so values in them must be quoted.
    pub(crate) async fn microk8s(&self, arguments: &str, timeout: Duration) -> Result<String, ClusterError> {
        self.host.script(&format!("microk8s {arguments} </dev/null"), timeout).await
    }

    /// Runs `kubectl` with this standard input and returns its output. The arguments are shell text.
    pub(crate) async fn kubectl(
        &self,
        arguments: &str,
        input: &[u8],
        timeout: Duration,
    ) -> Result<String, ClusterError> {
        let mut output = String::new();
        let command = format!("exec {} {arguments}", self.distribution.kubectl());
        self.host
            .run(&command, input, timeout, |line| {
                output += line;
                output.push('\n');
            })
            .await?;
        Ok(output)
    }

    /// All nodes of the cluster, by name.
    pub(crate) async fn nodes(&self) -> Result<BTreeMap<String, Node>, ClusterError> {
        let text = self.kubectl("get nodes -o json", b"", QUERY_TIMEOUT).await?;
        let list: Value = serde_json::from_str(&text).map_err(|e| ClusterError::Host {
            host: self.host.name.clone(),
            reason: format!("kubectl get nodes returned invalid JSON: {e}"),
        })?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        Ok(items.iter().filter_map(|n| Some((n["metadata"]["name"].as_str()?.to_owned(), parse_node(n)))).collect())
    }

    /// Waits until a node is ready and, if `minor` is given, its kubelet has that minor version. Returns the node.
    pub(crate) async fn wait_ready(
        &self,
        name: &str,
        minor: Option<(u32, u32)>,
        log: &Log,
    ) -> Result<Node, ClusterError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            // Errors are retried, because a restarting API server does not respond for a while.
            let observed = self.nodes().await;
            if let Ok(nodes) = &observed
                && let Some(node) = nodes.get(name)
                && node.ready
                && minor.is_none_or(|m| crate::spec::minor(&node.version) == Some(m))
            {
                log.line(&format!("the node is ready, {}", node.version));
                return Ok(node.clone());
            }
            if Instant::now() > deadline {
                let why = match observed {
                    Err(error) => error.to_string(),
                    Ok(nodes) => match nodes.get(name) {
                        None => "the machine is not a node of the cluster".into(),
                        Some(node) if !node.ready => "the node is not ready".into(),
                        Some(node) => format!("the kubelet is still {}", node.version),
                    },
                };
                let reason = format!("after {} s: {why}; {}", READY_TIMEOUT.as_secs(), self.distribution.diagnosis());
                return Err(ClusterError::Host { host: name.into(), reason });
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Cordons a node and evicts its pods.
    pub(crate) async fn drain(&self, name: &str, log: &Log) -> Result<(), ClusterError> {
        let node = quote(name);
        let annotate = format!("annotate node {node} {CORDONED_ANNOTATION}=true --overwrite");
        self.kubectl(&annotate, b"", QUERY_TIMEOUT).await?;
        let arguments =
            format!("drain {node} --ignore-daemonsets --delete-emptydir-data --timeout={DRAIN_TIMEOUT_SECONDS}s");
        let timeout = Duration::from_secs(DRAIN_TIMEOUT_SECONDS) + QUERY_TIMEOUT;
        let drained = self.kubectl(&arguments, b"", timeout).await;
        match &drained {
            Ok(output) => output.lines().for_each(|l| log.line(l)),
            // Uncordon the node again: the drain may be blocked by an intentional disruption budget. The error of the drain is returned,
            // so an error of the uncordon is ignored.
            Err(_) => {
                let _ = self.uncordon(name).await;
            }
        }
        drained.map(drop)
    }

    /// Makes a node schedulable again.
    pub(crate) async fn uncordon(&self, name: &str) -> Result<(), ClusterError> {
        let node = quote(name);
        self.kubectl(&format!("uncordon {node}"), b"", QUERY_TIMEOUT).await?;
        self.kubectl(&format!("annotate node {node} {CORDONED_ANNOTATION}-"), b"", QUERY_TIMEOUT).await.map(drop)
    }

    /// As [`Self::uncordon`], repeated while the API server does not accept it: control planes that start one after the other form a quorum
    /// anew, and refuse changes meanwhile.
    pub(crate) async fn uncordon_after_start(&self, name: &str) -> Result<(), ClusterError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            match self.uncordon(name).await {
                Err(ClusterError::Host { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                other => return other,
            }
        }
    }

    /// Checks that the API server is healthy and that every schedulable node is ready. An upgrade continues only then.
    pub(crate) async fn check_healthy(&self) -> Result<(), ClusterError> {
        self.kubectl("get --raw /readyz", b"", QUERY_TIMEOUT).await?;
        let unready: Vec<String> =
            self.nodes().await?.into_iter().filter(|(_, n)| !n.ready && !n.unschedulable).map(|(n, _)| n).collect();
        if unready.is_empty() {
            return Ok(());
        }
        let reason = format!("nodes are not ready: {}; the upgrade stops here", unready.join(", "));
        Err(ClusterError::Host { host: self.host.name.clone(), reason })
    }
}

fn parse_node(node: &Value) -> Node {
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    Node {
        ready: conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"),
        cordoned_by_slipway: node["metadata"]["annotations"][CORDONED_ANNOTATION] == "true",
        unschedulable: node["spec"]["unschedulable"] == true,
        version: node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default().to_owned(),
    }
}
