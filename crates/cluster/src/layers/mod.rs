//! Derives the desired resources of a machine from `cluster.yaml`.
//!
//! Each submodule builds the resources of one or more layers. A resource always comes after the resources that it needs.

mod containerd;
pub(crate) mod fabric;
#[cfg(test)]
mod field_tests;
mod firewall;
mod gpu;
mod gpu_settings;
pub(crate) mod kubeadm;
mod kubernetes;
mod nodes;
mod own;
mod packages;
mod proxy;
mod rancher;
mod registries;
mod system;
mod workloads;

use crate::ClusterError;
use crate::resource::{DesiredState, Edit, Layer, Resource, ResourceKind, Text};
use crate::shell::quote;
use crate::spec::{Cluster, Machine, Role};

/// The desired state of a machine. The first control plane also has the resources of the cluster as a whole.
///
/// # Errors
/// [`ClusterError::Secret`] when a secret that a resource contains cannot be read.
pub fn desired_state(cluster: &Cluster, machine: &Machine) -> Result<DesiredState, ClusterError> {
    let mut resources = system::resources(cluster, machine)?;
    resources.extend(kubernetes::resources(cluster, machine)?);
    if machine.is(Role::Gpu) {
        resources.extend(gpu::resources(cluster, machine));
        resources.extend(gpu_settings::resources(cluster));
    }
    if cluster.first() == Some(machine) {
        resources.extend(nodes::resources(cluster));
        resources.extend(workloads::resources(cluster)?);
    }
    Ok(DesiredState { resources })
}

/// Layers of each machine, which are applied before the machine joins the cluster.
pub const MACHINE_LAYERS: [Layer; 4] = [Layer::System, Layer::HostTools, Layer::Kubernetes, Layer::Gpu];
/// Layers of the cluster as a whole, which are applied on the first control plane.
pub const CLUSTER_LAYERS: [Layer; 5] =
    [Layer::Nodes, Layer::Addons, Layer::Storage, Layer::DevicePlugin, Layer::Platform];

/// A package. `name=version` pins the version and holds the package.
fn package(layer: Layer, package: &str) -> Resource {
    let (name, version) = package.split_once('=').map_or((package, None), |(n, v)| (n, Some(v.to_owned())));
    let what = ResourceKind::Package { name: name.into(), hold: version.is_some(), version };
    Resource::new(layer, &id_part(&format!("package-{name}")), what)
}

/// Converts a name or a path to a part of a resource id: lower-case letters, digits, dots and dashes.
fn id_part(text: &str) -> String {
    let convert = |c: char| match c {
        '/' => '.',
        c if c.is_ascii_alphanumeric() || c == '.' => c.to_ascii_lowercase(),
        _ => '-',
    };
    text.chars().map(convert).collect()
}

fn file(layer: Layer, name: &str, path: &str, text: impl Into<String>) -> Resource {
    let content = Text { text: text.into(), secret: false };
    Resource::new(layer, name, ResourceKind::File { path: path.into(), content, mode: "0644".into() })
}

/// A file that must not exist, because what would be in it is not in `cluster.yaml`.
fn absent(layer: Layer, name: &str, path: &str) -> Resource {
    let path = quote(path);
    command(layer, name, &format!("[ ! -e {path} ]"), &format!("rm -f {path}"), &format!("file {path} is removed"))
}

fn edit(layer: Layer, name: &str, path: &str, edit: Edit) -> Resource {
    Resource::new(layer, name, ResourceKind::Edit { path: path.into(), edits: vec![edit] })
}

fn command(layer: Layer, name: &str, check: &str, run: &str, missing: &str) -> Resource {
    let (check, run, missing) = (check.to_owned(), run.to_owned(), missing.to_owned());
    Resource::new(layer, name, ResourceKind::Command { check, run, undo: None, missing })
}

/// The path of a kernel setting below `/proc/sys`. In a key with dots, a slash stands for a dot of the name:
/// `net.ipv4.conf.eth0/1.forwarding` belongs to the interface `eth0.1` (sysctl.d(5)).
fn proc_path(key: &str) -> String {
    let slash_separated = key.find(['.', '/']).is_some_and(|at| key[at..].starts_with('/'));
    let swap = |c: char| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    if slash_separated { key.to_owned() } else { key.chars().map(swap).collect() }
}

/// Shell commands that remove what network plugins and kube-proxy leave behind: virtual links and rules of the packet filter, which are
/// recognized by the names of their chains.
const CLEAN_NETWORK: &str = "for l in cni0 flannel.1 flannel-v6.1 flannel-wg flannel-wg-v6 vxlan.calico vxlan-v6.calico kube-ipvs0; do ip link delete $l 2>/dev/null; done; \
     for t in iptables ip6tables; do ! command -v $t-save >/dev/null || $t-save | grep -v -e KUBE- -e CNI- -e cali- -e cali: -e FLANNEL -e flannel | $t-restore; done; ";

/// Waits until the API server on the first control plane is ready. `unit` is the systemd unit whose state explains a failure.
fn ready(cluster: &Cluster, unit: &str) -> Resource {
    let ready = format!("{} get --raw /readyz", cluster.spec.kubernetes.distribution.kubectl());
    let wait = format!(
        "for i in $(seq 150); do ! {ready} >/dev/null 2>&1 || exit 0; sleep 2; done; systemctl status --no-pager {unit}; exit 1"
    );
    command(Layer::Kubernetes, "ready", &ready, &wait, "the API server is not ready")
}

/// Kernel settings: a file that is read at boot, and a command that applies the settings now.
fn sysctl<'a>(layer: Layer, path: &str, settings: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> [Resource; 2] {
    let text = settings.clone().map(|(k, v)| format!("{k} = {v}\n")).collect::<String>();
    // The kernel separates several numbers with tabs, so the check replaces tabs with spaces.
    let files =
        settings.clone().map(|(k, _)| quote(&format!("/proc/sys/{}", proc_path(k)))).collect::<Vec<_>>().join(" ");
    let values = settings.map(|(_, v)| v).collect::<Vec<_>>().join("\n");
    let check = if files.is_empty() {
        "true".into()
    } else {
        format!("[ \"$(cat {files} | tr '\\t' ' ')\" = {} ]", quote(&values))
    };
    [
        file(layer, "sysctl", path, text),
        command(layer, "sysctl-now", &check, &format!("sysctl -q -p {path}"), "kernel settings are not applied"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    #[test]
    fn sysctl_key_is_converted_to_its_proc_path() {
        assert_eq!(proc_path("vm.swappiness"), "vm/swappiness");
        assert_eq!(proc_path("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(proc_path("net/ipv4/conf/eth0.1/forwarding"), "net/ipv4/conf/eth0.1/forwarding");
    }

    #[test]
    fn sysctl_check_compares_with_the_running_kernel() {
        // The port range is two numbers separated by a tab.
        let current = |key: &str| {
            let text = std::fs::read_to_string(format!("/proc/sys/{}", proc_path(key))).unwrap();
            text.trim().replace('\t', " ")
        };
        let keys = ["net.ipv4.ip_local_port_range", "vm.overcommit_memory"];
        let mut values = keys.map(|k| (k, current(k)));
        let succeeds = |values: &[(&str, String)]| {
            let [_, command] = sysctl(Layer::System, "/x", values.iter().map(|(k, v)| (*k, v.as_str())));
            crate::converge::probe_local(&[command]).unwrap().succeeded("system/sysctl-now")
        };
        assert!(succeeds(&values) && succeeds(&[]));
        values[1].1 += "9";
        assert!(!succeeds(&values) && !succeeds(&[("vm.no_such_setting", "1".into())]));
    }

    #[test]
    fn machines_have_valid_resources_for_their_roles() {
        let cluster = Cluster::parse(FILE).unwrap();
        let ids = |n: usize| -> Vec<String> {
            let desired = desired_state(&cluster, &cluster.spec.machines[n]).unwrap();
            desired.validate().unwrap();
            desired.resources.into_iter().map(|r| r.id).collect()
        };
        let [first, second, gpu] = [ids(0), ids(1), ids(2)];
        assert!(first.iter().any(|i| i == "addons/dns") && !second.iter().any(|i| i.starts_with("addons/")));
        assert!(gpu.iter().any(|i| i.starts_with("gpu/")) && !first.iter().any(|i| i.starts_with("gpu/")));
        for ids in [&first, &second, &gpu] {
            assert!(ids.iter().any(|i| i == "kubernetes/microk8s"));
        }
    }
}
