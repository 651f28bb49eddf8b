//! What differs between distributions of Kubernetes: paths, programs and ports. How a machine gets and joins one is in
//! [`crate::layers`] and [`crate::nodes`].
//!
//! Source: MicroK8s, "Services and ports", "Command reference"; K3s, "Cluster Access", "Requirements"; RKE2, "Cluster Access",
//! "Requirements"; Kubernetes, "Creating a cluster with kubeadm", "Ports and Protocols".

use crate::spec::{Distribution, Machine, Role};

impl Distribution {
    pub(crate) const ALL: [Self; 4] = [Self::Microk8s, Self::K3s, Self::Rke2, Self::Kubeadm];

    /// `kubectl` with access to the cluster, as a shell command on a control plane.
    pub(crate) fn kubectl(self) -> &'static str {
        match self {
            Self::Microk8s => "microk8s kubectl",
            Self::K3s => "/usr/local/bin/k3s kubectl",
            Self::Rke2 => "/var/lib/rancher/rke2/bin/kubectl --kubeconfig /etc/rancher/rke2/rke2.yaml",
            Self::Kubeadm => "kubectl --kubeconfig /etc/kubernetes/admin.conf",
        }
    }

    /// `helm` with access to the cluster, as a shell command on a control plane.
    pub(crate) fn helm(self) -> &'static str {
        match self {
            Self::Microk8s => "microk8s helm3",
            Self::K3s => "/usr/local/bin/helm --kubeconfig /etc/rancher/k3s/k3s.yaml",
            Self::Rke2 => "/usr/local/bin/helm --kubeconfig /etc/rancher/rke2/rke2.yaml",
            Self::Kubeadm => "/usr/local/bin/helm --kubeconfig /etc/kubernetes/admin.conf",
        }
    }

    /// Path of the administrator's kubeconfig on a control plane.
    pub(crate) fn kubeconfig(self) -> &'static str {
        match self {
            Self::Microk8s => "/var/snap/microk8s/current/credentials/client.config",
            Self::K3s => "/etc/rancher/k3s/k3s.yaml",
            Self::Rke2 => "/etc/rancher/rke2/rke2.yaml",
            Self::Kubeadm => "/etc/kubernetes/admin.conf",
        }
    }

    /// Shell command that prints the administrator's kubeconfig.
    pub fn print_kubeconfig(self) -> String {
        match self {
            Self::Microk8s => "microk8s config </dev/null".into(),
            Self::K3s | Self::Rke2 | Self::Kubeadm => format!("cat {}", self.kubeconfig()),
        }
    }

    /// Port of the API server.
    pub fn api_port(self) -> u16 {
        match self {
            Self::Microk8s => 16443,
            Self::K3s | Self::Rke2 | Self::Kubeadm => 6443,
        }
    }

    /// The kubelet's folder. A storage driver or a device plugin that looks for it elsewhere finds nothing.
    pub(crate) fn kubelet_folder(self) -> &'static str {
        match self {
            Self::Microk8s => "/var/snap/microk8s/common/var/lib/kubelet",
            Self::K3s | Self::Rke2 | Self::Kubeadm => "/var/lib/kubelet",
        }
    }

    /// What helps to find out why a node is not ready.
    pub(crate) fn diagnosis(self) -> &'static str {
        match self {
            Self::Microk8s => "run `microk8s inspect` there",
            Self::K3s => "`journalctl -u k3s -u k3s-agent` there shows its log",
            Self::Rke2 => "`journalctl -u rke2-server -u rke2-agent` there shows its log",
            Self::Kubeadm => "`journalctl -u kubelet` there shows its log",
        }
    }

    /// How the distribution is installed, joined and upgraded.
    pub(crate) fn family(self) -> Family {
        match self {
            Self::Microk8s => Family::Microk8s,
            Self::K3s => Family::Rancher(Rancher {
                name: "k3s",
                port: 6443,
                server: "k3s",
                agent: "k3s-agent",
                releases: "https://github.com/k3s-io/k3s/releases/download",
            }),
            Self::Rke2 => Family::Rancher(Rancher {
                name: "rke2",
                port: 9345,
                server: "rke2-server",
                agent: "rke2-agent",
                releases: "https://github.com/rancher/rke2/releases/download",
            }),
            Self::Kubeadm => Family::Kubeadm,
        }
    }
}

/// Distributions that are installed, joined and upgraded in the same way.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Family {
    /// MicroK8s, a snap with commands of its own.
    Microk8s,
    /// K3s and RKE2, which have the same configuration files.
    Rancher(Rancher),
    /// Kubernetes' own packages, with `kubeadm`.
    Kubeadm,
}

/// K3s or RKE2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rancher {
    /// Name of the program, and of the folders below `/etc/rancher` and `/var/lib/rancher`.
    pub(crate) name: &'static str,
    /// Port at which other machines join.
    pub(crate) port: u16,
    /// Name of the unit of control planes.
    server: &'static str,
    /// Name of the unit of workers.
    agent: &'static str,
    /// URL of the releases; a folder for each version.
    pub(crate) releases: &'static str,
}

impl Rancher {
    /// Name of the systemd unit on a machine.
    pub(crate) fn unit(self, machine: &Machine) -> &'static str {
        if machine.is(Role::ControlPlane) { self.server } else { self.agent }
    }

    /// File with the address and the token with which a machine has joined the cluster. It exists on all machines but the first.
    pub(crate) fn join_file(self) -> String {
        format!("/etc/rancher/{}/config.yaml.d/50-slipway-join.yaml", self.name)
    }

    /// File on control planes with the token that lets other machines join.
    pub(crate) fn token_file(self) -> String {
        format!("/var/lib/rancher/{}/server/token", self.name)
    }
}
