//! firewalld on machines that run it: a zone of slipway's own accepts everything from the machines, the pods and the services of the cluster,
//! and the API server's port is open to all.
//!
//! Source: K3s, "Requirements" ("Red Hat Enterprise Linux / CentOS / Fedora"); firewalld.zone(5), firewall-cmd(1).

use std::net::IpAddr;

use super::command;
use crate::resource::{Layer, Resource, ResourceKind};
use crate::shell::quote;
use crate::spec::Cluster;

const ZONE: &str = "/etc/firewalld/zones/slipway.xml";

/// The zone. Machines that the file gives by name are not in it, because a source of a zone is an address.
fn zone(cluster: &Cluster) -> String {
    let (pods, services) = cluster.networks();
    let machines =
        cluster.spec.machines.iter().map(|m| m.internal().to_owned()).filter(|a| a.parse::<IpAddr>().is_ok());
    let sources: String =
        machines.chain(pods).chain(services).map(|source| format!("  <source address=\"{source}\"/>\n")).collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<zone target=\"ACCEPT\">\n  <short>slipway</short>\n{sources}</zone>"
    )
}

pub(super) fn resource(cluster: &Cluster) -> Resource {
    let (zone, port) = (quote(&zone(cluster)), cluster.spec.kubernetes.distribution.api_port());
    let check = format!(
        "! systemctl is-active --quiet firewalld || {{ [ \"$(cat {ZONE})\" = {zone} ] && firewall-cmd -q --permanent --query-port={port}/tcp; }}"
    );
    let run = format!(
        "f={ZONE}; mkdir -p \"${{f%/*}}\" && printf '%s\\n' {zone} >$f && firewall-cmd -q --permanent --add-port={port}/tcp && firewall-cmd -q --reload"
    );
    let mut out = command(Layer::Kubernetes, "firewall", &check, &run, "firewalld accepts the cluster's traffic");
    if let ResourceKind::Command { undo, .. } = &mut out.what {
        *undo = Some(format!(
            "rm -f {ZONE}; ! systemctl is-active --quiet firewalld || {{ firewall-cmd -q --permanent --remove-port={port}/tcp; firewall-cmd -q --reload; }}"
        ));
    }
    out.effect("reloads firewalld")
}
