//! Smoke tests of the cluster: DNS, metrics, storage and GPUs.
//!
//! The tests create pods and claims with unique names, and always delete them.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ClusterError;
use crate::control::{Control, QUERY_TIMEOUT};
use crate::shell::quote;
use crate::spec::{Cluster, Machine, Role};
use crate::state::Log;
use crate::work::Work;

/// Label of the objects that smoke tests create. Its value is the name of the change, so that leftovers of earlier changes are found.
const LABEL: &str = "slipway.dev/smoke";

/// A smoke test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Test {
    /// A pod computes on a GPU of this node.
    Gpu(String),
    /// A file on a volume of this storage class is written on one node and read on another.
    Storage(String),
    /// A pod resolves the name of a service.
    Dns,
    /// The metrics API has metrics of every node.
    Metrics,
}

/// The smoke tests of a cluster, which follow from its file.
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
    if cluster.advertises_gpus() {
        out.extend(spec.machines.iter().filter(|m| m.is(Role::Gpu)).map(|m| Test::Gpu(m.name.clone())));
    }
    out
}

impl Test {
    /// The name of the test's step, such as `smoke-dns`.
    pub fn name(&self) -> String {
        match self {
            Self::Gpu(_) => "smoke-gpu".into(),
            Self::Storage(class) => format!("smoke-storage-{class}"),
            Self::Dns => "smoke-dns".into(),
            Self::Metrics => "smoke-metrics".into(),
        }
    }

    /// The machine that the test's step belongs to. Tests of the whole cluster belong to the first control plane.
    pub fn host<'a>(&'a self, cluster: &'a Cluster) -> &'a str {
        match self {
            Self::Gpu(node) => node,
            _ => cluster.first().map_or("?", |m| m.name.as_str()),
        }
    }
}

/// The result of a finished pod.
struct PodResult {
    succeeded: bool,
    log: String,
}

/// Context of the smoke tests of one change.
struct SmokeRun<'a> {
    control: Control<'a>,
    change: &'a str,
    /// Timeout of one pod.
    timeout: Duration,
    log: &'a Log,
}

/// Runs a test, and returns what it observed.
pub(crate) async fn run(work: &Work, test: &Test, log: &Log) -> Result<String, ClusterError> {
    let smoke = &work.cluster.spec.smoke;
    let control = Control::connect(work, "").await?;
    let run = SmokeRun { control, change: &work.change, timeout: Duration::from_secs(smoke.timeout_seconds), log };
    // A command that was killed may have left objects behind.
    let delete_leftovers = format!(
        "delete pod,pvc -l {} --ignore-not-found --wait=false",
        quote(&format!("{LABEL},{LABEL}!={}", work.change))
    );
    control.kubectl(&delete_leftovers, b"", QUERY_TIMEOUT).await?;
    match test {
        Test::Gpu(node) => {
            let limits = json!({"limits": {"nvidia.com/gpu": 1}});
            let result = run.pod("gpu", node, &smoke.cuda_image, &smoke.cuda_command, limits, None).await?;
            let device =
                result.log.lines().find(|l| l.starts_with("GPU ")).or(result.log.lines().next()).unwrap_or_default();
            run.verdict(result.succeeded, &result.log, format!("{node}: {}", without_uuid(device)))
        }
        Test::Dns => {
            let command = ["nslookup", "kubernetes.default.svc.cluster.local"].map(String::from);
            let result = run.pod("dns", "", &smoke.image, &command, json!({}), None).await?;
            run.verdict(result.succeeded, &result.log, "kubernetes.default resolves".into())
        }
        Test::Metrics => run.metrics().await,
        Test::Storage(class) => {
            let claim = run.claim(class).await?;
            let result = run.storage(&work.cluster.spec.machines, &smoke.image, &claim).await;
            let delete = format!("delete pvc {} --ignore-not-found --wait=false", quote(&claim));
            let deleted = control.kubectl(&delete, b"", QUERY_TIMEOUT).await;
            let observed = result?;
            deleted.map(|_| observed)
        }
    }
}

/// Removes the UUID from a line of `nvidia-smi -L`: `GPU 0: NVIDIA H100 (UUID: …)` becomes `GPU 0: NVIDIA H100`.
fn without_uuid(line: &str) -> &str {
    line.split(" (UUID").next().unwrap_or(line)
}

impl SmokeRun<'_> {
    /// Logs the output of a pod. Returns `observed` if the pod succeeded, and otherwise an error with the last line of the output.
    fn verdict(&self, succeeded: bool, log: &str, observed: String) -> Result<String, ClusterError> {
        log.lines().for_each(|l| self.log.line(l));
        if succeeded {
            return Ok(observed);
        }
        let last = log.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it printed nothing");
        Err(self.error(format!("the pod failed: {last}")))
    }

    fn error(&self, reason: String) -> ClusterError {
        ClusterError::Host { host: self.control.host.name.clone(), reason }
    }

    /// Runs a pod until it has finished, on the node `node` unless that is empty, and deletes it.
    async fn pod(
        &self,
        test: &str,
        node: &str,
        image: &str,
        command: &[String],
        resources: Value,
        claim: Option<&str>,
    ) -> Result<PodResult, ClusterError> {
        let name = format!("slipway-smoke-{test}-{}", &slipway_core::ids::hex32()[..10]);
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {LABEL: self.change, "app.kubernetes.io/managed-by": "slipway"}},
            "spec": {
                "restartPolicy": "Never",
                "activeDeadlineSeconds": self.timeout.as_secs(),
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
            let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]});
            spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
                json!({"nodeSelectorTerms": [term]});
        }
        if let Some(claim) = claim {
            spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
            spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        }
        self.control.kubectl("create -f -", pod.to_string().as_bytes(), QUERY_TIMEOUT).await?;
        let result = self.wait_finished(&name).await;
        let delete = format!("delete pod {} --ignore-not-found --wait=false", quote(&name));
        let deleted = self.control.kubectl(&delete, b"", QUERY_TIMEOUT).await;
        let result = result?;
        deleted.map(|_| result)
    }

    /// Waits until a pod has finished, and reads its log.
    async fn wait_finished(&self, name: &str) -> Result<PodResult, ClusterError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let text = self.control.kubectl(&format!("get pod {} -o json", quote(name)), b"", QUERY_TIMEOUT).await?;
            let pod: Value = serde_json::from_str(&text).map_err(|e| self.error(format!("kubectl get pod: {e}")))?;
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            if matches!(phase, "Succeeded" | "Failed") {
                let log = self.control.kubectl(&format!("logs {} --tail=100", quote(name)), b"", QUERY_TIMEOUT).await;
                // A pod whose container never started has no log, so its status is used instead.
                let log = log.unwrap_or_else(|_| waiting_reason(&pod));
                return Ok(PodResult { succeeded: phase == "Succeeded", log });
            }
            if Instant::now() > deadline {
                return Err(self.error(format!(
                    "the pod did not finish within {} s: {}",
                    self.timeout.as_secs(),
                    waiting_reason(&pod)
                )));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Waits until the metrics API has metrics of every node.
    async fn metrics(&self) -> Result<String, ClusterError> {
        let nodes = self.control.nodes().await?.len();
        let deadline = Instant::now() + self.timeout;
        loop {
            let output = self.control.kubectl("get --raw /apis/metrics.k8s.io/v1beta1/nodes", b"", QUERY_TIMEOUT).await;
            let reporting = output.as_ref().ok().and_then(|text| {
                let list: Value = serde_json::from_str(text).ok()?;
                Some(list["items"].as_array()?.len())
            });
            if reporting == Some(nodes) {
                return Ok(format!("{nodes} nodes report metrics"));
            }
            if Instant::now() > deadline {
                let why = output.map_or_else(
                    |e| e.to_string(),
                    |_| format!("{} of {nodes} nodes report metrics", reporting.unwrap_or(0)),
                );
                return Err(self.error(format!("metrics: {why}")));
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    /// Creates a volume claim of this storage class, and returns its name.
    async fn claim(&self, class: &str) -> Result<String, ClusterError> {
        let name = format!("slipway-smoke-{}", &slipway_core::ids::hex32()[..10]);
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "labels": {LABEL: self.change, "app.kubernetes.io/managed-by": "slipway"}},
            "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": class, "resources": {"requests": {"storage": "1Mi"}}},
        });
        self.control.kubectl("create -f -", claim.to_string().as_bytes(), QUERY_TIMEOUT).await?;
        Ok(name)
    }

    /// Writes a random word to the claim's volume on the first machine, and reads it on the last.
    async fn storage(&self, machines: &[Machine], image: &str, claim: &str) -> Result<String, ClusterError> {
        let word = slipway_core::ids::hex32();
        let (writer, reader) = (machines.first(), machines.last());
        let (writer, reader) = (writer.map_or("", |m| m.name.as_str()), reader.map_or("", |m| m.name.as_str()));
        let shell = |text: String| ["sh".to_owned(), "-c".to_owned(), text];
        let write = shell(format!("echo {word} >/data/{claim} && sync"));
        let result = self.pod("write", writer, image, &write, json!({}), Some(claim)).await?;
        self.verdict(result.succeeded, &result.log, String::new())?;
        let read = shell(format!("cat /data/{claim} && rm /data/{claim}"));
        let result = self.pod("read", reader, image, &read, json!({}), Some(claim)).await?;
        let same = result.log.trim() == word;
        self.verdict(result.succeeded && same, &result.log, format!("written on {writer}, read on {reader}"))
    }
}

/// Why a pod has not finished: the reasons and messages of its status, or its phase.
fn waiting_reason(pod: &Value) -> String {
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
    fn tests_follow_from_the_file() {
        let tests_of = |text: &str| tests(&Cluster::parse(text).unwrap());
        assert_eq!(tests_of(FILE), [Test::Dns, Test::Metrics]);
        let more = FILE.replace(
            "  kubernetes:",
            "  gpu: {devicePlugin: nvidia}\n  storage: {classes: [{name: shared, share: {nfs: {server: a, path: /b}}}]}\n  kubernetes:",
        );
        assert_eq!(tests_of(&more)[2..], [Test::Storage("shared".into()), Test::Gpu("gpu1".into())]);
        assert_eq!(tests_of(&more.replace("spec:", "spec:\n  smoke: {enabled: false}")), []);
    }

    #[test]
    fn waiting_reason_comes_from_the_pod_status() {
        let pod = json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "message": "Insufficient nvidia.com/gpu"}]}});
        assert_eq!(waiting_reason(&pod), "Insufficient nvidia.com/gpu");
        assert_eq!(waiting_reason(&json!({"status": {"phase": "Running"}})), "phase Running");
        assert_eq!(without_uuid("GPU 0: NVIDIA H100 (UUID: GPU-1)"), "GPU 0: NVIDIA H100");
    }
}
