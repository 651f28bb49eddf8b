//! Known troubles of machines and clusters, and what helps.

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ClusterError;
use crate::ask::ask;
use crate::control::{ASK, Control};
use crate::probe::{self, Facts};
use crate::resource::Wanted;
use crate::spec::{Cluster, Machine, Role};
use crate::transport::Host;
use crate::work::AT_ONCE;

/// Clocks that differ by more make certificates and tokens fail.
const MOST_CLOCK_SECONDS: u64 = 30;
/// MicroK8s asks for 20 GB; below this nothing is pulled any more.
const LEAST_DISK_MIB: u64 = 10 << 10;
/// A pod that waits longer waits for ever.
const MOST_WAIT_SECONDS: i64 = 600;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// It will fail, or has failed.
    Error,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The machine, or the cluster's name for what is of all.
    pub machine: String,
    /// How bad it is.
    pub severity: Severity,
    /// What.
    pub what: String,
    /// What helps.
    pub remedy: String,
}

/// What is asked beside what a plan asks. Changes nothing.
pub(crate) const QUESTIONS: &str = r#"
S=/var/snap/microk8s
[ -d $S ] && v microk8s yes
if [ -L /var/lib/kubelet ]; then v kubelet "link $(readlink /var/lib/kubelet)"; elif [ -d /var/lib/kubelet ]; then
  v kubelet "folder $(ls -A /var/lib/kubelet | wc -l)"; else v kubelet none; fi
T=$S/current/args/containerd-template.toml; [ -e $T ] && grep -q 'default_runtime_name *= *"nvidia"' $T && v nvidia-runtime yes
command -v nvidia-container-runtime >/dev/null && v nvidia-toolkit yes
x=$(ldconfig -p 2>/dev/null | sed -n 's/.*libnvidia-ml\.so\.1 .*=> //p' | head -1); [ -n "$x" ] && x=$(readlink -f "$x") && v library "${x##*.so.}"
v inodes "$(df -Pi / | { read -r head; read -r a b c d n rest; echo "${n%\%}"; })"
command -v ss >/dev/null && ss -ltnH 2>/dev/null | sed -n 's/^[^ ]* *[^ ]* *[^ ]* *[^ ]*:\([0-9]*\) .*/\1/p' | sort -un | p @ listening
getent hosts registry.k8s.io >/dev/null 2>&1 && v dns yes || v dns no
"#;

/// Ports of MicroK8s that others must not have (MicroK8s, "Services and ports").
const PORTS: [(u16, &str); 5] =
    [(16443, "API server"), (25000, "cluster agent"), (10250, "kubelet"), (10259, "scheduler"), (19001, "dqlite")];

/// What was found on a machine. Of questions that were not asked nothing is said. A pure function of the answers.
pub(crate) fn examine(facts: &Facts, machine: &Machine, asked_ms: i64) -> Vec<Finding> {
    let about = facts.about();
    let mut out = Vec::new();
    let mut say = |severity, what: String, remedy: &str| {
        out.push(Finding { machine: machine.name.clone(), severity, what, remedy: remedy.to_owned() });
    };
    if about.hostname != machine.name && machine.made.is_none() {
        let what = format!("its own name is {}, not {}", about.hostname, machine.name);
        say(
            Severity::Error,
            what,
            "nodes are named by their hosts: `hostnamectl set-hostname`, or another name in the file",
        );
    }
    let away = about.clock.abs_diff(u64::try_from(asked_ms / 1000).unwrap_or(0));
    if away > MOST_CLOCK_SECONDS {
        let what = format!("its clock is {away} s away from this one");
        say(Severity::Error, what, "certificates and tokens fail: `timedatectl set-ntp true`");
    }
    if about.disk_free_mib < LEAST_DISK_MIB {
        let what = format!("{} MiB are free on /", about.disk_free_mib);
        say(Severity::Error, what, "MicroK8s wants 20 GB; images fill the rest");
    }
    let gpus = !about.gpus.is_empty();
    if gpus && about.driver.starts_with("nouveau") {
        let remedy = "NVIDIA's driver cannot be loaded beside it: `slipway cluster apply --only gpu`, which starts the machine anew";
        say(Severity::Error, "nouveau holds the GPUs".into(), remedy);
    }
    if gpus && about.secure_boot {
        let remedy = "a driver that is not signed is not loaded: install the distribution's signed one, or `mokutil --import` its key";
        say(Severity::Error, "Secure Boot is on".into(), remedy);
    }
    if machine.is(Role::Gpu) && !gpus {
        say(Severity::Error, "no NVIDIA GPU is on its PCI bus".into(), "the role gpu is for machines that have one");
    }
    if !matches!(about.distribution.as_str(), "ubuntu" | "debian") {
        let what = format!("'{}' is its distribution", about.distribution);
        say(Severity::Error, what, "packages are installed with apt, which it does not have");
    }
    let library = facts.machine("library");
    if !library.is_empty() && !about.driver.is_empty() && about.driver != "nouveau" && library != about.driver {
        let what = format!("the loaded driver is {}, the library {library}", about.driver);
        say(Severity::Error, what, "the driver was upgraded below running programs: start the machine anew");
    }
    if facts.machine("nvidia-runtime") == "yes" && facts.machine("nvidia-toolkit") != "yes" {
        let remedy = "no container starts: take default_runtime_name out of containerd-template.toml; CDI needs no runtime of its own";
        say(Severity::Error, "containerd's template names NVIDIA's runtime, which is not installed".into(), remedy);
    }
    let installed = facts.machine("microk8s") == "yes";
    let kubelet = facts.machine("kubelet");
    if installed && kubelet.starts_with("folder") {
        let remedy = "charts that look for the kubelet there mount nothing: move it away and link /var/snap/microk8s/common/var/lib/kubelet there";
        say(Severity::Error, "/var/lib/kubelet is a folder of its own".into(), remedy);
    } else if installed && kubelet == "none" {
        let remedy = "what slipway installs is told where the kubelet is; other charts may need a link to /var/snap/microk8s/common/var/lib/kubelet";
        say(Severity::Note, "there is no /var/lib/kubelet".into(), remedy);
    }
    let inodes = facts.machine("inodes").parse::<u32>().unwrap_or(0);
    if inodes > 90 {
        say(
            Severity::Error,
            format!("{inodes} % of the file system's inodes are used"),
            "delete what there are many of",
        );
    }
    let listening = facts.machine("listening");
    for (port, what) in PORTS {
        if !installed && listening.lines().any(|l| l.parse() == Ok(port)) {
            let what = format!("port {port} ({what}) is taken");
            say(Severity::Error, what, "another Kubernetes runs there: `ss -ltnp` names it");
        }
    }
    if facts.machine("dns") == "no" {
        let remedy = "images cannot be pulled by name: look at /etc/resolv.conf, or pull from a registry of your own";
        say(Severity::Note, "registry.k8s.io is not found".into(), remedy);
    }
    out
}

/// Asks all machines, and the cluster.
pub async fn doctor(cluster: &Cluster, hosts: &[(Machine, Host)]) -> Vec<Finding> {
    use slipway_core::Explain;
    let asked_ms = slipway_core::clock::now_ms();
    let answers = hosts.iter().map(|(machine, host)| async move {
        match ask(host, &Wanted::default(), probe::ABOUT | probe::DOCTOR).await {
            Ok(facts) => examine(&facts, machine, asked_ms),
            Err(error) => vec![Finding {
                machine: machine.name.clone(),
                severity: Severity::Error,
                what: error.to_string(),
                remedy: error.hint().unwrap_or_default(),
            }],
        }
    });
    let mut out: Vec<Finding> = stream::iter(answers).buffered(AT_ONCE).collect::<Vec<_>>().await.concat();
    let first = cluster.first().and_then(|f| hosts.iter().find(|(m, _)| m == f));
    if let Some((machine, host)) = first
        && !out.iter().any(|f| f.machine == machine.name && f.what.contains("cannot be reached"))
    {
        let control = Control { host, address: machine.internal() };
        out.extend(of_the_cluster(cluster, control, asked_ms).await.unwrap_or_else(|error| {
            vec![Finding {
                machine: cluster.metadata.name.clone(),
                severity: Severity::Note,
                what: format!("the cluster does not answer: {error}"),
                remedy: "`slipway cluster apply` founds it; `microk8s inspect` on the first machine tells more".into(),
            }]
        }));
    }
    out
}

async fn of_the_cluster(cluster: &Cluster, control: Control<'_>, asked_ms: i64) -> Result<Vec<Finding>, ClusterError> {
    let nodes = control.nodes().await?;
    let mut out = Vec::new();
    let mut say = |machine: &str, severity, what: String, remedy: &str| {
        out.push(Finding { machine: machine.to_owned(), severity, what, remedy: remedy.to_owned() });
    };
    for (name, node) in &nodes {
        if !node.ready {
            say(name, Severity::Error, "the node is not ready".into(), "`microk8s inspect` on it tells why");
        }
        if node.closed {
            let remedy = "an upgrade or a stop was cut off: run it again, or `slipway cluster start`";
            say(name, Severity::Note, "it was drained from here and takes no pods".into(), remedy);
        }
        if !cluster.spec.machines.iter().any(|m| m.name == *name) {
            let remedy = "add it to the file, or `microk8s remove-node` it";
            say(name, Severity::Note, "the node is in the cluster and not in the file".into(), remedy);
        }
    }
    let text = control.kubectl("get pods -A -o json", b"", ASK).await?;
    let pods: Value = serde_json::from_str(&text).unwrap_or_default();
    for pod in pods["items"].as_array().into_iter().flatten() {
        if let Some(why) = stuck(pod, asked_ms) {
            let place = |field: &str| pod["metadata"][field].as_str().unwrap_or("?").to_owned();
            let what = format!("pod {}/{} waits: {why}", place("namespace"), place("name"));
            let remedy = "`microk8s kubectl describe pod` shows its events; `microk8s disable` and `enable` starts an add-on anew";
            say(&cluster.metadata.name, Severity::Error, what, remedy);
        }
    }
    Ok(out)
}

/// Why a pod that has had enough time still waits.
fn stuck(pod: &Value, now_ms: i64) -> Option<String> {
    let status = &pod["status"];
    if matches!(status["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let since = slipway_core::clock::parse_rfc3339(pod["metadata"]["creationTimestamp"].as_str()?)?;
    if now_ms - since < MOST_WAIT_SECONDS * 1000 {
        return None;
    }
    let states = |field: &str| status[field].as_array().cloned().unwrap_or_default();
    let waits = |state: &Value| state["state"]["waiting"]["reason"].as_str().map(str::to_owned);
    let init = states("initContainerStatuses");
    if let Some(open) = init.iter().find(|s| s["state"]["terminated"]["exitCode"] != 0) {
        return Some(format!("Init: {}", waits(open).unwrap_or_else(|| "not done".into())));
    }
    if let Some(reason) = states("containerStatuses").iter().find_map(waits) {
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
    fn each_known_trouble_is_named() {
        let cluster = Cluster::parse(FILE).unwrap();
        let gpu = &cluster.spec.machines[2];
        let well = [
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
        assert_eq!(examine(&facts(&well), gpu, 1_000_000), []);
        let with = |field: &str, value: &str| {
            let mut all: Vec<_> = well.iter().copied().filter(|(_, f, _)| *f != field).collect();
            all.push(("@", field, value));
            let found = examine(&facts(&all), gpu, 1_000_000);
            assert_eq!(found.len(), 1, "{field}={value}: {found:?}");
            found[0].what.clone()
        };
        assert!(with("clock", "1500").contains("500 s away"));
        assert!(with("disk", "1024").contains("1 MiB"));
        assert!(with("gpus", "").contains("PCI bus"));
        assert!(with("driver", "nouveau").contains("nouveau"));
        assert!(with("secureboot", "1").contains("Secure Boot"));
        assert!(with("library", "570.124").contains("570.124"));
        assert!(with("nvidia-runtime", "yes").contains("not installed"));
        assert!(with("kubelet", "folder 3").contains("folder of its own"));
        assert!(with("inodes", "95").contains("inodes"));
        assert!(with("microk8s", "").contains("16443"));
        assert!(with("dns", "no").contains("not found"));
        assert!(with("hostname", "x").contains("its own name is x"));
    }

    #[test]
    fn a_pod_in_init_is_stuck_after_a_while() {
        let pod = json!({
            "metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"},
            "status": {"phase": "Pending", "initContainerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]},
        });
        assert_eq!(stuck(&pod, 1_000), None);
        assert_eq!(stuck(&pod, 1_000_000).as_deref(), Some("Init: PodInitializing"));
        let running = json!({
            "metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"},
            "status": {"phase": "Running", "initContainerStatuses": [{"state": {"terminated": {"exitCode": 0}}}], "containerStatuses": [{"state": {"running": {}}}]},
        });
        assert_eq!(stuck(&running, 1_000_000), None);
    }
}
