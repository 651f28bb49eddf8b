//! The system layer of a machine, below Kubernetes: hostname, host names of the other machines, held updates, kernel settings, packages.

use super::{command, edit, file, own, package, proxy, sysctl};
use crate::ClusterError;
use crate::resource::{Edit, Layer, PackageManager, Resource, ResourceKind};
use crate::spec::{Cluster, Machine};

pub(super) fn resources(cluster: &Cluster, machine: &Machine) -> Result<Vec<Resource>, ClusterError> {
    let system = &cluster.spec.system;
    let mut out = Vec::new();
    if machine.provisioned.is_some() {
        // A provider chooses the hostname, but Kubernetes names a node after its hostname.
        let name = &machine.name;
        let check = format!("[ \"$(hostname)\" = {name} ]");
        let run = format!("hostnamectl set-hostname {name}");
        out.push(command(Layer::System, "hostname", &check, &run, &format!("the hostname is not {name}")));
        let own_name = Edit::Line { line: format!("127.0.1.1 {name}"), begins: Some("127.0.1.1".into()) };
        out.push(edit(Layer::System, "own-name", "/etc/hosts", own_name));
    }
    if system.hosts {
        let line = |m: &Machine| format!("{} {}", m.internal(), m.name);
        let others = cluster.spec.machines.iter().filter(|m| m.name != machine.name);
        // Only IP addresses can be written to /etc/hosts. A machine that is given by name resolves without an entry.
        let lines: Vec<String> =
            others.filter(|m| m.internal().parse::<std::net::IpAddr>().is_ok()).map(line).collect();
        if !lines.is_empty() {
            let block = Edit::Block { name: format!("slipway {}", cluster.metadata.name), text: lines.join("\n") };
            out.push(edit(Layer::System, "hosts", "/etc/hosts", block));
        }
    }
    if system.hold_updates {
        let text = "APT::Periodic::Update-Package-Lists \"0\";\nAPT::Periodic::Unattended-Upgrade \"0\";\n";
        out.push(
            file(Layer::System, "held-updates", "/etc/apt/apt.conf.d/99-slipway", text).only_with(PackageManager::Apt),
        );
        out.push(held_dnf_updates());
    }
    if !system.sysctl.is_empty() {
        out.extend(sysctl(
            Layer::System,
            "/etc/sysctl.d/90-slipway.conf",
            system.sysctl.iter().map(|(k, v)| (k.as_str(), v.as_str())),
        ));
    }
    out.extend(proxy::system(cluster));
    out.extend(own::repositories(cluster)?);
    out.extend(system.packages.iter().map(|name| package(Layer::HostTools, name)));
    out.extend(own::resources(cluster, machine)?);
    Ok(out)
}

/// Disables the timers of dnf-automatic (DNF Automatic, "Run dnf-automatic"; DNF 5, "Automatic plugin").
fn held_dnf_updates() -> Resource {
    let state = "/var/lib/slipway/update-timers";
    let enabled = "systemctl list-unit-files --state=enabled --no-legend 'dnf-automatic*.timer' 'dnf5-automatic.timer' | cut -d' ' -f1";
    let run = format!(
        "mkdir -p /var/lib/slipway && {enabled} >>{state} && {enabled} | xargs -r systemctl disable --now --quiet"
    );
    let mut out = command(
        Layer::System,
        "held-dnf-updates",
        &format!("[ -z \"$({enabled})\" ]"),
        &run,
        "automatic updates are off",
    );
    if let ResourceKind::Command { undo, .. } = &mut out.what {
        *undo = Some(format!("xargs -r systemctl enable --now --quiet <{state}; rm -f {state}"));
    }
    out.only_with(PackageManager::Dnf)
}
