//! Tries of the cluster: pods with names of their own, which are always deleted.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ClusterError;
use crate::control::{ASK, Control};
use crate::shell::quote;
use crate::spec::{Cluster, Machine, Role};
use crate::state::Log;
use crate::work::Work;

/// Marks what is ours, with the change that it is of.
const LABEL: &str = "slipway.dev/smoke";

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Test {
    /// A pod gets a GPU of this node and computes on it.
    Gpu(String),
    /// A file that is written on one node is read on another.
    Storage(String),
    /// A name of the cluster is found.
    Dns,
    /// Every node tells what it uses.
    Metrics,
}

/// What is tried of a cluster, after what its file says of it.
pub fn tests(cluster: &Cluster) -> Vec<Test> {
    let spec = &cluster.spec;
    if !spec.smoke.enabled {
        return Vec::new();
    }
    let addon = |name: &str| spec.kubernetes.addons.iter().any(|a| a.name().split(':').next() == Some(name));
    let mut out = Vec::new();
    out.extend(addon("dns").then_some(Test::Dns));
    out.extend(addon("metrics-server").then_some(Test::Metrics));
    out.extend(spec.storage.classes.iter().map(|c| Test::Storage(c.name.clone())));
    if crate::layers::offers_gpus(cluster) {
        out.extend(spec.machines.iter().filter(|m| m.is(Role::Gpu)).map(|m| Test::Gpu(m.name.clone())));
    }
    out
}

impl Test {
    /// The step's name.
    pub fn name(&self) -> String {
        match self {
            Self::Gpu(_) => "smoke-gpu".into(),
            Self::Storage(class) => format!("smoke-storage-{class}"),
            Self::Dns => "smoke-dns".into(),
            Self::Metrics => "smoke-metrics".into(),
        }
    }

    /// The machine that it belongs to: what is of the whole cluster belongs to the first.
    pub fn host<'a>(&'a self, cluster: &'a Cluster) -> &'a str {
        match self {
            Self::Gpu(node) => node,
            _ => cluster.first().map_or("?", |m| m.name.as_str()),
        }
    }
}

/// A pod that ended.
struct EndedPod {
    succeeded: bool,
    log: String,
}

/// Tries of one change.
struct Lab<'a> {
    control: Control<'a>,
    change: &'a str,
    limit: Duration,
    log: &'a Log,
}

/// Tries it; what it saw.
pub(crate) async fn run(work: &Work, test: &Test, log: &Log) -> Result<String, ClusterError> {
    let smoke = &work.cluster.spec.smoke;
    let control = Control::of(work, "").await?;
    let lab = Lab { control, change: &work.change, limit: Duration::from_secs(smoke.timeout_seconds), log };
    // Who was killed in between could not clean up.
    let old = format!(
        "delete pod,pvc -l {} --ignore-not-found --wait=false",
        quote(&format!("{LABEL},{LABEL}!={}", work.change))
    );
    control.kubectl(&old, b"", ASK).await?;
    match test {
        Test::Gpu(node) => {
            let limits = json!({"limits": {"nvidia.com/gpu": 1}});
            let done = lab.pod("gpu", node, &smoke.cuda_image, &smoke.cuda_command, limits, None).await?;
            let device =
                done.log.lines().find(|l| l.starts_with("GPU ")).or(done.log.lines().next()).unwrap_or_default();
            lab.judged(done.succeeded, &done.log, format!("{node}: {}", without_id(device)))
        }
        Test::Dns => {
            let command = ["nslookup", "kubernetes.default.svc.cluster.local"].map(String::from);
            let done = lab.pod("dns", "", &smoke.image, &command, json!({}), None).await?;
            lab.judged(done.succeeded, &done.log, "kubernetes.default is found".into())
        }
        Test::Metrics => lab.metrics().await,
        Test::Storage(class) => {
            let claim = lab.claim(class).await?;
            let done = lab.storage(&work.cluster.spec.machines, &smoke.image, &claim).await;
            let gone = format!("delete pvc {} --ignore-not-found --wait=false", quote(&claim));
            let gone = control.kubectl(&gone, b"", ASK).await;
            let saw = done?;
            gone.map(|_| saw)
        }
    }
}

/// `GPU 0: NVIDIA H100 (UUID: …)` without what is in brackets.
fn without_id(line: &str) -> &str {
    line.split(" (UUID").next().unwrap_or(line)
}

impl Lab<'_> {
    fn judged(&self, succeeded: bool, log: &str, saw: String) -> Result<String, ClusterError> {
        log.lines().for_each(|l| self.log.line(l));
        if succeeded {
            return Ok(saw);
        }
        let last = log.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing");
        Err(self.wrong(format!("the pod failed: {last}")))
    }

    fn wrong(&self, reason: String) -> ClusterError {
        ClusterError::Host { host: self.control.host.name.clone(), reason }
    }

    /// Runs a pod to its end, on this node where one is named, and deletes it.
    async fn pod(
        &self,
        what: &str,
        node: &str,
        image: &str,
        command: &[String],
        resources: Value,
        claim: Option<&str>,
    ) -> Result<EndedPod, ClusterError> {
        let name = format!("slipway-smoke-{what}-{}", &slipway_core::ids::hex32()[..10]);
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {LABEL: self.change, "app.kubernetes.io/managed-by": "slipway"}},
            "spec": {
                "restartPolicy": "Never",
                "activeDeadlineSeconds": self.limit.as_secs(),
                "terminationGracePeriodSeconds": 1,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "smoke", "image": image, "resources": resources}],
            },
        });
        let spec = &mut pod["spec"];
        if !command.is_empty() {
            spec["containers"][0]["command"] = json!(command);
        }
        if !node.is_empty() {
            let field = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]});
            spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
                json!({"nodeSelectorTerms": [field]});
        }
        if let Some(claim) = claim {
            spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
            spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        }
        self.control.kubectl("create -f -", pod.to_string().as_bytes(), ASK).await?;
        let ended = self.ended(&name).await;
        let gone = format!("delete pod {} --ignore-not-found --wait=false", quote(&name));
        let gone = self.control.kubectl(&gone, b"", ASK).await;
        let ended = ended?;
        gone.map(|_| ended)
    }

    async fn ended(&self, name: &str) -> Result<EndedPod, ClusterError> {
        let until = Instant::now() + self.limit;
        loop {
            let text = self.control.kubectl(&format!("get pod {} -o json", quote(name)), b"", ASK).await?;
            let pod: Value = serde_json::from_str(&text).map_err(|e| self.wrong(format!("kubectl get pod: {e}")))?;
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            if matches!(phase, "Succeeded" | "Failed") {
                let log = self.control.kubectl(&format!("logs {} --tail=100", quote(name)), b"", ASK).await;
                // A pod that ended before its container began has no log.
                return Ok(EndedPod { succeeded: phase == "Succeeded", log: log.unwrap_or_else(|_| waits(&pod)) });
            }
            if Instant::now() > until {
                return Err(self.wrong(format!(
                    "the pod did not end within {} s: {}",
                    self.limit.as_secs(),
                    waits(&pod)
                )));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn metrics(&self) -> Result<String, ClusterError> {
        let nodes = self.control.nodes().await?.len();
        let until = Instant::now() + self.limit;
        loop {
            let answer = self.control.kubectl("get --raw /apis/metrics.k8s.io/v1beta1/nodes", b"", ASK).await;
            let told = answer.as_ref().ok().and_then(|text| {
                let list: Value = serde_json::from_str(text).ok()?;
                Some(list["items"].as_array()?.len())
            });
            if told == Some(nodes) {
                return Ok(format!("{nodes} nodes tell what they use"));
            }
            if Instant::now() > until {
                let why =
                    answer.map_or_else(|e| e.to_string(), |_| format!("{} of {nodes} nodes tell", told.unwrap_or(0)));
                return Err(self.wrong(format!("metrics: {why}")));
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    async fn claim(&self, class: &str) -> Result<String, ClusterError> {
        let name = format!("slipway-smoke-{}", &slipway_core::ids::hex32()[..10]);
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "labels": {LABEL: self.change, "app.kubernetes.io/managed-by": "slipway"}},
            "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": class, "resources": {"requests": {"storage": "1Mi"}}},
        });
        self.control.kubectl("create -f -", claim.to_string().as_bytes(), ASK).await?;
        Ok(name)
    }

    async fn storage(&self, machines: &[Machine], image: &str, claim: &str) -> Result<String, ClusterError> {
        let word = slipway_core::ids::hex32();
        let (from, to) = (machines.first(), machines.last());
        let (from, to) = (from.map_or("", |m| m.name.as_str()), to.map_or("", |m| m.name.as_str()));
        let shell = |text: String| ["sh".to_owned(), "-c".to_owned(), text];
        let write = shell(format!("echo {word} >/data/{claim} && sync"));
        let done = self.pod("write", from, image, &write, json!({}), Some(claim)).await?;
        self.judged(done.succeeded, &done.log, String::new())?;
        let read = shell(format!("cat /data/{claim} && rm /data/{claim}"));
        let done = self.pod("read", to, image, &read, json!({}), Some(claim)).await?;
        let same = done.log.trim() == word;
        self.judged(done.succeeded && same, &done.log, format!("written on {from}, read on {to}"))
    }
}

/// What a pod waits for, in Kubernetes' own words.
fn waits(pod: &Value) -> String {
    let status = &pod["status"];
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    let scheduled = status["conditions"].as_array().and_then(|c| c.iter().find(|c| c["type"] == "PodScheduled"));
    let parts = [
        waiting["reason"].as_str(),
        waiting["message"].as_str(),
        status["reason"].as_str(),
        status["message"].as_str(),
        scheduled.and_then(|c| c["message"].as_str()),
    ];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join(": ");
    if text.is_empty() { format!("phase {}", status["phase"].as_str().unwrap_or("unknown")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    #[test]
    fn what_is_tried_follows_from_the_file() {
        let all = |text: &str| tests(&Cluster::parse(text).unwrap());
        assert_eq!(all(FILE), [Test::Dns, Test::Metrics]);
        let more = FILE.replace(
            "  kubernetes:",
            "  gpu: {devicePlugin: nvidia}\n  storage: {classes: [{name: shared, share: {nfs: {server: a, path: /b}}}]}\n  kubernetes:",
        );
        assert_eq!(all(&more)[2..], [Test::Storage("shared".into()), Test::Gpu("gpu1".into())]);
        assert_eq!(all(&more.replace("spec:", "spec:\n  smoke: {enabled: false}")), []);
    }

    #[test]
    fn a_pod_that_waits_says_for_what() {
        let pod = json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "message": "Insufficient nvidia.com/gpu"}]}});
        assert_eq!(waits(&pod), "Insufficient nvidia.com/gpu");
        assert_eq!(waits(&json!({"status": {"phase": "Running"}})), "phase Running");
        assert_eq!(without_id("GPU 0: NVIDIA H100 (UUID: GPU-1)"), "GPU 0: NVIDIA H100");
    }
}
