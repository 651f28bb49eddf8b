//! The GPU layer of a machine: NVIDIA's driver, and CDI support in containerd.

use super::{command, edit, file};
use crate::resource::{Edit, Layer, Resource, ResourceKind};
use crate::spec::{Cluster, Distribution};

/// MicroK8s generates containerd's configuration from this template at every start.
const CONTAINERD_TEMPLATE: &str = "/var/snap/microk8s/current/args/containerd-template.toml";

pub(super) fn resources(cluster: &Cluster) -> Vec<Resource> {
    let (gpu, layer) = (&cluster.spec.gpu, Layer::Gpu);
    let mut out = Vec::new();
    if gpu.driver != "none" {
        // Ubuntu names the packages by driver branch, and `ubuntu-drivers --gpgpu` lists those recommended for compute.
        let package = match gpu.driver.as_str() {
            "recommended" => "$(ubuntu-drivers list --gpgpu 2>/dev/null | sed -n 's/,.*//; s/^\\(nvidia-driver-[0-9]*-server\\)$/\\1/p' | sort -V | tail -1)".to_owned(),
            branch => format!("nvidia-driver-{branch}-server"),
        };
        let branch = if gpu.driver == "recommended" { "[0-9]+" } else { &gpu.driver };
        let install = format!(
            "p={package}; [ -n \"$p\" ] || {{ echo 'no driver is recommended for this machine; name a branch in spec.gpu.driver'; exit 1; }}; \
             DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 install \"$p\" && apt-mark hold \"$p\" >/dev/null"
        );
        out.push(
            file(
                layer,
                "nouveau",
                "/etc/modprobe.d/slipway-nouveau.conf",
                "blacklist nouveau\noptions nouveau modeset=0\n",
            )
            // A machine without an initramfs cannot load nouveau from one, so nothing needs an update.
            .then("! command -v update-initramfs >/dev/null || update-initramfs -u"),
        );
        out.push(
            command(
                layer,
                "driver",
                &format!("dpkg-query -W -f '${{Package}} ${{db:Status-Status}}\\n' 'nvidia-driver-*' 2>/dev/null | grep -qE '^nvidia-driver-{branch}-server installed$'"),
                &install,
                &format!("driver {}", gpu.driver),
            )
            .with_timeout(1800)
            .effect("installs a kernel module: takes minutes, then the machine reboots"),
        );
        out.push(Resource::new(
            layer,
            "driver-loaded",
            ResourceKind::Reboot {
                // The loaded module has another version than the installed one, or NVIDIA's module is not loaded.
                when: "[ \"$(cat /sys/module/nvidia/version 2>/dev/null)\" != \"$(modinfo -F version nvidia 2>/dev/null)\" ]".into(),
                reason: "the installed driver is not the loaded one".into(),
            },
        ));
    }
    // The containerd of K3s and RKE2 has CDI enabled by default, as all of containerd 2.
    if gpu.cdi && cluster.spec.kubernetes.distribution == Distribution::Microk8s {
        let cri = ["plugins", "io.containerd.grpc.v1.cri", "enable_cdi"].map(String::from).to_vec();
        out.push(
            edit(layer, "containerd-cdi", CONTAINERD_TEMPLATE, Edit::Toml { path: cri, value: "true".into() })
                .then("snap restart microk8s.daemon-containerd")
                .needs(&["kubernetes/microk8s"])
                .effect("restarts containerd; pods keep running"),
        );
    }
    out
}
