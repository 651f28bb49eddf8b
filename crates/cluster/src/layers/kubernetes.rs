//! The Kubernetes layer of a machine: snapd, MicroK8s and its launch configuration.
//!
//! Source: MicroK8s, "How to use launch configurations" (read when the snap is installed), "Command reference".

use super::{command, file};
use crate::resource::{Layer, Resource, ResourceKind};
use crate::spec::{Cluster, Kubernetes};

const LAUNCH_CONFIG_PATH: &str = "/var/snap/microk8s/common/.microk8s.yaml";

/// The launch configuration: version 0.1.0, extra names in the certificate, and no add-ons, which are separate resources.
fn launch_config(kubernetes: &Kubernetes) -> String {
    let mut text = String::from("version: 0.1.0\n");
    if !kubernetes.extra_sans.is_empty() {
        text += "extraSANs:\n";
        for name in &kubernetes.extra_sans {
            text += &format!("  - {name}\n");
        }
    }
    text
}

pub(super) fn resources(cluster: &Cluster) -> Vec<Resource> {
    let kubernetes = &cluster.spec.kubernetes;
    let layer = Layer::Kubernetes;
    let snap = ResourceKind::Snap {
        name: "microk8s".into(),
        channel: kubernetes.channel.clone(),
        classic: true,
        hold: kubernetes.hold,
    };
    vec![
        command(
            layer,
            "snapd",
            "command -v snap",
            "DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 install snapd",
            "snapd",
        ),
        file(layer, "launch", LAUNCH_CONFIG_PATH, launch_config(kubernetes)),
        Resource::new(layer, "microk8s", snap)
            .needs(&["kubernetes/snapd"])
            .with_timeout(1200)
            .effect("installs or refreshes MicroK8s: takes minutes"),
        command(
            layer,
            "ready",
            "microk8s status --wait-ready --timeout 10",
            "microk8s start && microk8s status --wait-ready --timeout 300 >/dev/null",
            "MicroK8s is not ready",
        )
        .needs(&["kubernetes/microk8s"]),
    ]
}
