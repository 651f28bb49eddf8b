//! From the file to the resources of one machine, in order.

mod gpu;
mod kubernetes;
mod own;
mod system;
mod workloads;

use crate::ClusterError;
use crate::resource::{Edit, Layer, Resource, Text, Wanted, What};
use crate::shell::quote;
use crate::spec::workloads::DevicePlugin;
use crate::spec::{Cluster, Machine, Role};

/// What is wanted of a machine. What belongs to the cluster as a whole is wanted of the first.
///
/// # Errors
/// [`ClusterError::Secret`] when a secret that belongs to it cannot be read.
pub fn wanted(cluster: &Cluster, machine: &Machine) -> Result<Wanted, ClusterError> {
    let mut resources = system::resources(cluster, machine)?;
    resources.extend(kubernetes::resources(cluster));
    if machine.is(Role::Gpu) {
        resources.extend(gpu::resources(cluster));
    }
    if cluster.first() == Some(machine) {
        resources.extend(workloads::resources(cluster)?);
    }
    Ok(Wanted { resources })
}

/// Whether somebody tells the kubelet of GPUs, as far as this file knows.
pub fn offers_gpus(cluster: &Cluster) -> bool {
    match cluster.spec.gpu.device_plugin {
        DevicePlugin::Nvidia => true,
        DevicePlugin::Slipway => cluster.spec.platform.is_some(),
        DevicePlugin::None => false,
    }
}

/// Layers that a machine can have before it is part of the cluster.
pub const BEFORE_JOINING: [Layer; 4] = [Layer::System, Layer::HostTools, Layer::Kubernetes, Layer::Gpu];
/// Layers of the cluster as a whole.
pub const OF_THE_CLUSTER: [Layer; 4] = [Layer::Addons, Layer::Storage, Layer::DevicePlugin, Layer::Platform];

/// A package; `name=version` is this version, held.
fn package(layer: Layer, package: &str) -> Resource {
    let (name, version) = package.split_once('=').map_or((package, None), |(n, v)| (n, Some(v.to_owned())));
    let what = What::Package { name: name.into(), hold: version.is_some(), version };
    Resource::new(layer, &named(&format!("package-{name}")), what)
}

/// A name or a path as part of an id: lower-case letters, digits, dots and dashes.
fn named(text: &str) -> String {
    let fits = |c: char| match c {
        '/' => '.',
        c if c.is_ascii_alphanumeric() || c == '.' => c.to_ascii_lowercase(),
        _ => '-',
    };
    text.chars().map(fits).collect()
}

fn file(layer: Layer, name: &str, path: &str, text: impl Into<String>) -> Resource {
    let content = Text { text: text.into(), secret: false };
    Resource::new(layer, name, What::File { path: path.into(), content, mode: "0644".into() })
}

fn edit(layer: Layer, name: &str, path: &str, edit: Edit) -> Resource {
    Resource::new(layer, name, What::Edit { path: path.into(), edits: vec![edit] })
}

fn command(layer: Layer, name: &str, check: &str, run: &str, missing: &str) -> Resource {
    let (check, run, missing) = (check.to_owned(), run.to_owned(), missing.to_owned());
    Resource::new(layer, name, What::Command { check, run, undo: None, missing })
}

/// Where a setting is below `/proc/sys`; `net.ipv4.conf.eth0/1.forwarding` is of the interface `eth0.1` (sysctl.d(5)).
fn in_proc(key: &str) -> String {
    let slashes = key.find(['.', '/']).is_some_and(|at| key[at..].starts_with('/'));
    let turned = |c: char| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    if slashes { key.to_owned() } else { key.chars().map(turned).collect() }
}

/// Settings of the kernel: a file for the next start, and now.
fn sysctl<'a>(layer: Layer, settings: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> [Resource; 2] {
    const PATH: &str = "/etc/sysctl.d/90-slipway.conf";
    let text = settings.clone().map(|(k, v)| format!("{k} = {v}\n")).collect::<String>();
    // The kernel writes several numbers with tabs between them.
    let files =
        settings.clone().map(|(k, _)| quote(&format!("/proc/sys/{}", in_proc(k)))).collect::<Vec<_>>().join(" ");
    let values = settings.map(|(_, v)| v).collect::<Vec<_>>().join("\n");
    let check = if files.is_empty() {
        "true".into()
    } else {
        format!("[ \"$(cat {files} | tr '\\t' ' ')\" = {} ]", quote(&values))
    };
    [
        file(layer, "sysctl", PATH, text),
        command(layer, "sysctl-now", &check, &format!("sysctl -q -p {PATH}"), "the kernel's settings are others"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    #[test]
    fn settings_are_found_where_the_kernel_has_them() {
        assert_eq!(in_proc("vm.swappiness"), "vm/swappiness");
        assert_eq!(in_proc("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(in_proc("net/ipv4/conf/eth0.1/forwarding"), "net/ipv4/conf/eth0.1/forwarding");
    }

    #[test]
    fn the_kernels_settings_are_compared() {
        // What this machine has, and what it has not. Its range of ports is two numbers with a tab between them.
        let now = |key: &str| {
            let text = std::fs::read_to_string(format!("/proc/sys/{}", in_proc(key))).unwrap();
            text.trim().replace('\t', " ")
        };
        let keys = ["net.ipv4.ip_local_port_range", "vm.overcommit_memory"];
        let mut values = keys.map(|k| (k, now(k)));
        let succeeds = |values: &[(&str, String)]| {
            let [_, command] = sysctl(Layer::System, values.iter().map(|(k, v)| (*k, v.as_str())));
            crate::converge::ask(&[command]).unwrap().succeeded("system/sysctl-now")
        };
        assert!(succeeds(&values) && succeeds(&[]));
        values[1].1 += "9";
        assert!(!succeeds(&values) && !succeeds(&[("vm.no_such_setting", "1".into())]));
    }

    #[test]
    fn every_machine_has_valid_resources_of_its_roles() {
        let cluster = Cluster::parse(FILE).unwrap();
        let ids = |n: usize| -> Vec<String> {
            let wanted = wanted(&cluster, &cluster.spec.machines[n]).unwrap();
            wanted.validate().unwrap();
            wanted.resources.into_iter().map(|r| r.id).collect()
        };
        let [first, second, gpu] = [ids(0), ids(1), ids(2)];
        assert!(first.iter().any(|i| i == "addons/dns") && !second.iter().any(|i| i.starts_with("addons/")));
        assert!(gpu.iter().any(|i| i.starts_with("gpu/")) && !first.iter().any(|i| i.starts_with("gpu/")));
        for ids in [&first, &second, &gpu] {
            assert!(ids.iter().any(|i| i == "kubernetes/microk8s"));
        }
    }
}
