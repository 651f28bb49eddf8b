//! Checks machines and the cluster for known problems, and suggests a remedy for each.
//!
//! `slipway cluster doctor` runs all checks; a plan runs those that need no extra probe. The checks change nothing.

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_core::gpu_driver::{self, Choice, Generation};

use crate::ClusterError;
use crate::control::{Control, QUERY_TIMEOUT};
use crate::probe::{self, Facts};
use crate::remote_probe::probe_host;
use crate::resource::DesiredState;
use crate::spec::gpu::DriverSource;
use crate::spec::{Cluster, Gpu, Machine, Role};
use crate::transport::Host;
use crate::work::MAX_CONCURRENCY;

/// With a larger clock difference, certificates and tokens are rejected.
const MAX_CLOCK_SKEW_SECONDS: u64 = 30;
/// MicroK8s recommends 20 GB; with less than this, image pulls fail.
const MIN_FREE_DISK_MIB: u64 = 10 << 10;
/// Distributions with apt or dnf, as `ID` of os-release(5).
const DISTRIBUTIONS: [&str; 8] = ["ubuntu", "debian", "rhel", "rocky", "almalinux", "centos", "ol", "fedora"];
/// A pod that is still waiting at this age is reported as stuck.
const MAX_WAITING_SECONDS: i64 = 600;

/// A certificate with less time left is reported.
const MIN_CERTIFICATE_DAYS: i64 = 30;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// For information only; the cluster works.
    Note,
    /// Something has failed, or will fail.
    Error,
}

/// A problem that a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the machine, or of the cluster for a problem of the whole cluster.
    pub machine: String,
    /// How serious the problem is.
    pub severity: Severity,
    /// The problem, such as `port 16443 (API server) is in use`.
    pub what: String,
    /// How to fix it, usually with a command to run.
    pub remedy: String,
}

/// Ports that MicroK8s needs, so no other program may listen on them (MicroK8s, "Services and ports").
const PORTS: [(u16, &str); 5] =
    [(16443, "API server"), (25000, "cluster agent"), (10250, "kubelet"), (10259, "scheduler"), (19001, "dqlite")];

/// Returns the problems of a machine, a pure function of the facts. A check whose facts were not probed reports nothing. `probed_ms` is
/// the controller's time of the probe in milliseconds since 1970; `gpu` is the file's part about GPUs.
pub(crate) fn examine(facts: &Facts, machine: &Machine, gpu: &Gpu, probed_ms: i64) -> Vec<Finding> {
    let about = facts.about();
    let mut out = Vec::new();
    let mut report = |severity, what: String, remedy: &str| {
        out.push(Finding { machine: machine.name.clone(), severity, what, remedy: remedy.to_owned() });
    };
    if about.hostname != machine.name && machine.provisioned.is_none() {
        let what = format!("its hostname is {}, not {}", about.hostname, machine.name);
        report(
            Severity::Error,
            what,
            "a node is named after its hostname: run `hostnamectl set-hostname`, or change the name in the file",
        );
    }
    let skew = about.clock.abs_diff(u64::try_from(probed_ms / 1000).unwrap_or(0));
    if skew > MAX_CLOCK_SKEW_SECONDS {
        let what = format!("its clock differs by {skew} s from the controller's");
        report(Severity::Error, what, "certificates and tokens are rejected: run `timedatectl set-ntp true`");
    }
    if about.disk_free_mib < MIN_FREE_DISK_MIB {
        let what = format!("only {} MiB are free on /", about.disk_free_mib);
        report(Severity::Error, what, "free disk space: MicroK8s needs 20 GB, and images need more");
    }
    let gpus = !about.gpus.is_empty();
    if gpus && about.driver.starts_with("nouveau") {
        let remedy =
            "nouveau blocks NVIDIA's driver: run `slipway cluster apply --only gpu`, which reboots the machine";
        report(Severity::Error, "the nouveau driver holds the GPUs".into(), remedy);
    }
    if gpus && about.secure_boot {
        let remedy = "an unsigned driver is not loaded: install the distribution's signed driver, or enroll its key with mokutil";
        report(Severity::Error, "Secure Boot is on".into(), remedy);
    }
    if machine.is(Role::Gpu) && !gpus {
        report(
            Severity::Error,
            "no NVIDIA GPU is on its PCI bus".into(),
            "remove the role gpu from this machine, or check that the GPU is seated and passed through",
        );
    }
    if !DISTRIBUTIONS.contains(&about.distribution.as_str()) {
        let what = format!("the distribution '{}' is not supported", about.distribution);
        report(
            Severity::Error,
            what,
            "use Ubuntu, Debian, RHEL, Rocky Linux, AlmaLinux, CentOS Stream, Oracle Linux or Fedora",
        );
    }
    for (what, remedy) in examine_driver(facts, machine, gpu).into_iter().chain(examine_fabric(facts, gpu)) {
        report(Severity::Error, what, remedy);
    }
    let library = facts.machine("library");
    if !library.is_empty() && !about.driver.is_empty() && about.driver != "nouveau" && library != about.driver {
        let what = format!("the loaded driver is {}, the library {library}", about.driver);
        report(Severity::Error, what, "the driver was upgraded while it was loaded: reboot the machine");
    }
    if facts.machine("nvidia-runtime") == "yes" && facts.machine("nvidia-toolkit") != "yes" {
        let remedy = "no container starts: remove default_runtime_name from containerd-template.toml; CDI needs no separate runtime";
        report(Severity::Error, "containerd's template names NVIDIA's runtime, which is not installed".into(), remedy);
    }
    let installed = facts.machine("microk8s") == "yes";
    let kubelet = facts.machine("kubelet");
    if installed && kubelet.starts_with("folder") {
        let remedy = "charts that expect the kubelet there mount nothing: move the folder away and replace it with a link to \
                      /var/snap/microk8s/common/var/lib/kubelet";
        report(Severity::Error, "/var/lib/kubelet is a folder instead of a link to MicroK8s' kubelet".into(), remedy);
    } else if installed && kubelet == "none" {
        let remedy = "what slipway installs does not need it; other charts may need a link to /var/snap/microk8s/common/var/lib/kubelet";
        report(Severity::Note, "there is no /var/lib/kubelet".into(), remedy);
    }
    for (what, remedy) in examine_certificates(facts, probed_ms) {
        report(Severity::Error, what, remedy);
    }
    let inodes = facts.machine("inodes").parse::<u32>().unwrap_or(0);
    if inodes > 90 {
        report(
            Severity::Error,
            format!("{inodes} % of the inodes of / are used"),
            "delete files: many small files use up the inodes before the space",
        );
    }
    let listening = facts.machine("listening");
    for (port, service) in PORTS {
        if !installed && facts.machine("other").is_empty() && listening.lines().any(|l| l.parse() == Ok(port)) {
            let what = format!("port {port} ({service}) is in use");
            report(Severity::Error, what, "another Kubernetes may be running there: `ss -ltnp` shows the process");
        }
    }
    if facts.machine("dns") == "no" {
        let remedy = "images cannot be pulled by name: check /etc/resolv.conf, or use a registry in your own network";
        report(Severity::Note, "the name registry.k8s.io does not resolve".into(), remedy);
    }
    out
}

/// Certificates of the API server and of etcd that have expired or expire soon, each with its remedy.
///
/// Source: Kubernetes, "Certificate Management with kubeadm"; K3s, "k3s certificate" (renewal at a start); MicroK8s, "Command reference"
/// (`refresh-certs`).
fn examine_certificates(facts: &Facts, probed_ms: i64) -> Vec<(String, &'static str)> {
    let expiring = |line: &str| {
        let (end, path) = line.split_once(' ')?;
        let days = (end.parse::<i64>().ok()? - probed_ms / 1000).div_euclid(86_400);
        let what = match days {
            ..0 => format!("its certificate {path} has expired"),
            0..MIN_CERTIFICATE_DAYS => format!("its certificate {path} expires in {days} days"),
            _ => return None,
        };
        let remedy = if path.starts_with("/etc/kubernetes/") {
            "run `kubeadm certs renew all` there and restart the pods of the control plane; an upgrade renews certificates too"
        } else if path.starts_with("/var/lib/rancher/") {
            "restart its service, which renews certificates that expire within 120 days"
        } else {
            "run `microk8s refresh-certs --cert server.crt` there"
        };
        Some((what, remedy))
    };
    facts.machine("certificates").lines().filter_map(expiring).collect()
}

/// The GPU models of a machine: PCI device id and a name for messages.
fn gpu_models(facts: &Facts) -> Vec<(u16, String)> {
    let names = facts.machine("gpunames");
    let model = |entry: &str| {
        let (id, name) = entry.split_once(' ').unwrap_or((entry, ""));
        let device = u16::from_str_radix(id.trim().strip_prefix("0x")?, 16).ok()?;
        let name = if name.is_empty() { Generation::of(device).name() } else { name };
        Some((device, format!("{name} (10de:{device:04x})")))
    };
    names.split_terminator(';').filter_map(model).collect()
}

/// Problems of the driver: the file's choice or the loaded modules do not run the GPUs. Each with its remedy.
fn examine_driver(facts: &Facts, machine: &Machine, gpu: &Gpu) -> Vec<(String, &'static str)> {
    let mut out = Vec::new();
    let models = gpu_models(facts);
    let choice = gpu.driver_choice().ok().filter(|_| machine.is(Role::Gpu)).unwrap_or(Choice::None);
    for (device, name) in &models {
        if let Some(reason) = choice.refusal(*device) {
            let what = format!("driver {} does not run its GPU {name}: {reason}", gpu.driver);
            out.push((what, "change spec.gpu.driver: `recommended` chooses what the GPUs of each machine need"));
        }
    }
    let of = |test: fn(Generation) -> bool| models.iter().find(|(device, _)| test(Generation::of(*device)));
    let old = of(|g| matches!(g, Generation::Unsupported | Generation::Legacy));
    let new = of(|g| matches!(g, Generation::GraceHopper | Generation::Blackwell));
    if let (Some((_, old)), Some((_, new))) = (old, new) {
        let what = format!("its GPU {old} needs the proprietary kernel modules, and {new} the open ones");
        out.push((what, "no driver runs both: put them into different machines"));
    }
    let loaded = gpu_driver::loaded_modules(&facts.machine("driverversion"));
    for (device, name) in &models {
        if let Some((modules, reason)) = loaded.and_then(|m| Some((m, Generation::of(*device).refuses(m)?))) {
            let what = format!("the {modules} kernel modules are loaded, which do not run its GPU {name}: {reason}");
            out.push((what, "run `slipway cluster apply --only gpu`, which installs the driver that the GPU needs"));
        }
    }
    out
}

/// Problems of the NVLink fabric, each with its remedy.
fn examine_fabric(facts: &Facts, gpu: &Gpu) -> Vec<(String, &'static str)> {
    let (fabric, driver) = (facts.machine("fabric"), facts.about().driver);
    let mut out = Vec::new();
    if fabric.is_empty() || driver.is_empty() || driver == "nouveau" {
        return out;
    }
    let service = facts.machine("fabricmanager");
    let (state, version) = service.split_once(' ').unwrap_or((&service, ""));
    // An epoch precedes the version, and the distribution's revision follows it.
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    let version = version.split_once('-').map_or(version, |(version, _)| version);
    if !version.is_empty() && version != driver {
        let what = format!("fabric manager {version} is installed, and driver {driver} is loaded");
        out.push((what, "both must have exactly the same version: run `slipway cluster apply --only gpu`"));
    } else if state != "active" {
        let what = "it has NVSwitches, and fabric manager is not running: CUDA programs end with error 802 (system not yet initialized)".to_owned();
        out.push((what, "run `slipway cluster apply --only gpu`, or `systemctl enable --now nvidia-fabricmanager`"));
    }
    if fabric == "nvlink5" && version.is_empty() && gpu.driver_source != Some(DriverSource::Nvidia) {
        let what = "its NVLink 5 switches need the subnet manager nvlsm, which only NVIDIA's repository has".to_owned();
        out.push((what, "set spec.gpu.driverSource to nvidia, and run `slipway cluster apply --only gpu`"));
    }
    out
}

/// Checks all machines, and then the cluster through its first control plane.
pub async fn doctor(cluster: &Cluster, hosts: &[(Machine, Host)]) -> Vec<Finding> {
    use slipway_core::Explain;
    let probed_ms = slipway_core::clock::now_ms();
    let probes = hosts.iter().map(|(machine, host)| async move {
        match probe_host(host, &DesiredState::default(), probe::ABOUT | probe::DOCTOR).await {
            Ok(facts) => examine(&facts, machine, &cluster.spec.gpu, probed_ms),
            Err(error) => vec![Finding {
                machine: machine.name.clone(),
                severity: Severity::Error,
                what: error.to_string(),
                remedy: error.hint().unwrap_or_default(),
            }],
        }
    });
    let mut out: Vec<Finding> = stream::iter(probes).buffered(MAX_CONCURRENCY).collect::<Vec<_>>().await.concat();
    let first = cluster.first().and_then(|f| hosts.iter().find(|(m, _)| m == f));
    if let Some((machine, host)) = first
        && !out.iter().any(|f| f.machine == machine.name && f.what.contains("cannot be reached"))
    {
        let control = Control { host, address: machine.internal(), distribution: cluster.spec.kubernetes.distribution };
        out.extend(examine_cluster(cluster, control, probed_ms).await.unwrap_or_else(|error| {
            vec![Finding {
                machine: cluster.metadata.name.clone(),
                severity: Severity::Note,
                what: format!("the cluster does not respond: {error}"),
                remedy: format!(
                    "create it with `slipway cluster apply`; on the first machine, {}",
                    control.distribution.diagnosis()
                ),
            }]
        }));
    }
    out
}

/// Returns the problems of the nodes and pods of the cluster.
async fn examine_cluster(
    cluster: &Cluster,
    control: Control<'_>,
    probed_ms: i64,
) -> Result<Vec<Finding>, ClusterError> {
    let nodes = control.nodes().await?;
    let mut out = Vec::new();
    let mut report = |machine: &str, severity, what: String, remedy: &str| {
        out.push(Finding { machine: machine.to_owned(), severity, what, remedy: remedy.to_owned() });
    };
    for (name, node) in &nodes {
        if !node.ready {
            report(name, Severity::Error, "the node is not ready".into(), control.distribution.diagnosis());
        }
        if node.cordoned_by_slipway {
            let remedy = "an upgrade or a stop was interrupted: run it again, or run `slipway cluster start`";
            report(name, Severity::Note, "slipway drained the node, and it is still unschedulable".into(), remedy);
        }
        if !cluster.spec.machines.iter().any(|m| m.name == *name) {
            let remedy =
                "add it to the file, or remove it with `kubectl delete node`, with MicroK8s `microk8s remove-node`";
            report(name, Severity::Note, "the node is in the cluster but not in the file".into(), remedy);
        }
    }
    let text = control.kubectl("get pods -A -o json", b"", QUERY_TIMEOUT).await?;
    let pods: Value = serde_json::from_str(&text).unwrap_or_default();
    for pod in pods["items"].as_array().into_iter().flatten() {
        if let Some(why) = stuck_reason(pod, probed_ms) {
            let metadata = |field: &str| pod["metadata"][field].as_str().unwrap_or("?").to_owned();
            let what = format!("pod {}/{} is waiting: {why}", metadata("namespace"), metadata("name"));
            let remedy = "`kubectl describe pod` shows its events; restart an add-on of MicroK8s with `microk8s disable` and `enable`";
            report(&cluster.metadata.name, Severity::Error, what, remedy);
        }
    }
    Ok(out)
}

/// Why a pod that is older than [`MAX_WAITING_SECONDS`] is still waiting; `None` when it is younger, runs or has finished.
fn stuck_reason(pod: &Value, now_ms: i64) -> Option<String> {
    let status = &pod["status"];
    if matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let since = slipway_core::clock::parse_rfc3339(pod["metadata"]["creationTimestamp"].as_str()?)?;
    if now_ms - since < MAX_WAITING_SECONDS * 1000 {
        return None;
    }
    let statuses = |field: &str| status[field].as_array().cloned().unwrap_or_default();
    let waiting_reason = |status: &Value| status["state"]["waiting"]["reason"].as_str().map(str::to_owned);
    let init = statuses("initContainerStatuses");
    if let Some(unfinished) = init.iter().find(|s| s["state"]["terminated"]["exitCode"] != 0) {
        return Some(format!("Init: {}", waiting_reason(unfinished).unwrap_or_else(|| "not finished".into())));
    }
    if let Some(reason) = statuses("containerStatuses").iter().find_map(waiting_reason) {
        return Some(reason);
    }
    (status["phase"] == "Pending").then(|| "Pending".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::facts;
    use crate::spec::tests::FILE;
    use serde_json::json;

    #[test]
    fn each_known_problem_is_reported() {
        let cluster = Cluster::parse(FILE).unwrap();
        let gpu = &cluster.spec.machines[2];
        let healthy = [
            ("@", "hostname", "gpu1"),
            ("@", "os", "ubuntu 24.04"),
            ("@", "clock", "1000"),
            ("@", "disk", "99999999"),
            ("@", "gpus", "0000:01:00.0 0x2330;"),
            ("@", "driver", "570.86"),
            ("@", "library", "570.86"),
            ("@", "microk8s", "yes"),
            ("@", "kubelet", "link /var/snap/microk8s/common/var/lib/kubelet"),
            ("@", "dns", "yes"),
            ("@", "listening", "16443\n22"),
        ];
        let settings = &cluster.spec.gpu;
        assert_eq!(examine(&facts(&healthy), gpu, settings, 1_000_000), []);
        let with = |field: &str, value: &str| {
            let mut all: Vec<_> = healthy.iter().copied().filter(|(_, f, _)| *f != field).collect();
            all.push(("@", field, value));
            let found = examine(&facts(&all), gpu, settings, 1_000_000);
            assert_eq!(found.len(), 1, "{field}={value}: {found:?}");
            found[0].what.clone()
        };
        assert!(with("clock", "1500").contains("by 500 s"));
        assert!(with("disk", "1024").contains("1 MiB"));
        assert!(with("gpus", "").contains("PCI bus"));
        assert!(with("driver", "nouveau").contains("nouveau"));
        assert!(with("secureboot", "1").contains("Secure Boot"));
        assert!(with("library", "570.124").contains("570.124"));
        assert!(with("nvidia-runtime", "yes").contains("not installed"));
        assert!(with("kubelet", "folder 3").contains("instead of a link"));
        assert!(with("inodes", "95").contains("inodes"));
        assert!(with("microk8s", "").contains("16443"));
        assert!(with("os", "arch 1").contains("'arch' is not supported"));
        let day = 86_400;
        let certificate =
            |end: i64, path: &str| with("certificates", &format!("{end} {path}\n{} /other", 1000 + 31 * day));
        assert!(certificate(999, "/etc/kubernetes/pki/apiserver.crt").contains("has expired"));
        assert!(certificate(1000 + 29 * day, "/var/lib/rancher/k3s/server/tls/x.crt").contains("expires in 29 days"));
        assert!(with("dns", "no").contains("does not resolve"));
        assert!(with("hostname", "x").contains("its hostname is x"));
    }

    /// The findings about the GPUs of a machine with these facts, for this part of the file.
    fn gpu_findings(gpu: &str, list: &[(&str, &str)]) -> Vec<String> {
        let file = FILE.replace("kubernetes:", &format!("gpu: {{{gpu}}}\n  kubernetes:"));
        let cluster = Cluster::parse(&file).unwrap();
        let common = [
            ("hostname", "gpu1"),
            ("os", "ubuntu 24.04"),
            ("clock", "1000"),
            ("disk", "99999999"),
            ("gpus", "0000:01:00.0 0x2901;"),
        ];
        let all: Vec<_> = common.iter().chain(list).map(|(field, value)| ("@", *field, *value)).collect();
        let found = examine(&facts(&all), &cluster.spec.machines[2], &cluster.spec.gpu, 1_000_000);
        found.into_iter().map(|f| f.what).collect()
    }

    #[test]
    fn driver_that_does_not_run_the_gpu_is_an_error() {
        let b200 = ("gpunames", "0x2901 GB100 [B200];");
        let found = gpu_findings("driver: 580-proprietary", &[b200]);
        assert_eq!(
            found,
            ["driver 580-proprietary does not run its GPU GB100 [B200] (10de:2901): it needs the open kernel modules"]
        );
        assert!(
            gpu_findings("driver: 590", &[("gpunames", "0x1db1 GV100GL [Tesla V100 SXM2 16GB];")])[0]
                .contains("580 is the last")
        );
        assert!(
            gpu_findings("driver: '550'", &[("gpunames", "0x2901 ;")])[0].contains("Blackwell or later (10de:2901)")
        );
        assert_eq!(gpu_findings("driver: '580'", &[b200]), [""; 0]);
        let mixed = [("gpunames", "0x2901 GB100 [B200];0x1db1 GV100GL;")];
        assert!(gpu_findings("driver: recommended", &mixed)[0].contains("GV100GL (10de:1db1) needs the proprietary"));
        let closed = ("driverversion", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23");
        assert!(
            gpu_findings("driver: '580'", &[b200, closed])[0].contains("the proprietary kernel modules are loaded")
        );
        assert_eq!(gpu_findings("driver: '580'", &[("gpunames", "0x2330 GH100 [H100 SXM5 80GB];"), closed]), [""; 0]);
    }

    #[test]
    fn fabric_without_its_manager_is_an_error() {
        let loaded = ("driver", "580.95.05");
        let with =
            |fabric, manager| gpu_findings("driver: '580'", &[loaded, ("fabric", fabric), ("fabricmanager", manager)]);
        assert_eq!(with("", ""), [""; 0]);
        assert_eq!(with("nvswitch", "active 580.95.05-0ubuntu0.24.04.1"), [""; 0]);
        assert_eq!(with("nvswitch", "active 1:580.95.05-1"), [""; 0]);
        assert!(with("nvswitch", "inactive ")[0].contains("error 802"));
        assert!(with("nvswitch", "active 580.105.08-0ubuntu1")[0].contains("fabric manager 580.105.08"));
        assert!(with("nvlink5", "inactive ")[1].contains("nvlsm"));
        assert_eq!(
            gpu_findings("driver: '580'", &[("fabric", "nvswitch"), ("fabricmanager", "inactive ")]),
            [""; 0],
            "the driver comes first"
        );
    }

    #[test]
    fn pod_in_init_is_stuck_only_after_max_waiting_time() {
        let pod = json!({
            "metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"},
            "status": {"phase": "Pending", "initContainerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]},
        });
        assert_eq!(stuck_reason(&pod, 1_000), None);
        assert_eq!(stuck_reason(&pod, 1_000_000).as_deref(), Some("Init: PodInitializing"));
        let running = json!({
            "metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"},
            "status": {"phase": "Running", "initContainerStatuses": [{"state": {"terminated": {"exitCode": 0}}}], "containerStatuses": [{"state": {"running": {}}}]},
        });
        assert_eq!(stuck_reason(&running, 1_000_000), None);
    }
}
