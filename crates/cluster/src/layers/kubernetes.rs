//! The Kubernetes layer of a machine. With MicroK8s: snapd, MicroK8s and its launch configuration; other distributions have their own
//! modules.
//!
//! Source: MicroK8s, "How to use launch configurations" (read when the snap is installed), "Configuring MicroK8s services", "Command
//! reference".

use super::{command, edit, file, firewall, kubeadm, proxy, rancher, registries};
use crate::ClusterError;
use crate::distribution::Family;
use crate::resource::{Edit, Layer, Resource, ResourceKind};
use crate::shell::quote;
use crate::spec::{Cidr, Cluster, Machine};

const LAUNCH_CONFIG_PATH: &str = "/var/snap/microk8s/common/.microk8s.yaml";
/// Folder of the services' arguments and environments.
const ARGS: &str = "/var/snap/microk8s/current/args";

const INSTALL_SNAPD: &str = "if [ -d /var/lib/snapd/snap ] && command -v snap >/dev/null; then ln -sfn /var/lib/snapd/snap /snap; exit; fi; \
     command -v apt-get >/dev/null || { . /etc/os-release; echo \"MicroK8s is a snap, and $NAME has no snapd: install it (on RHEL and its relatives from EPEL), or use \
     distribution k3s, rke2 or kubeadm\"; exit 1; }; \
     DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 install snapd";

/// The launch configuration: version 0.1.0, extra names in the certificate, the networks, and no add-ons, which are separate resources.
fn launch_config(cluster: &Cluster) -> String {
    let network = &cluster.spec.network;
    let mut text = String::from("version: 0.1.0\n");
    let mut names = cluster.spec.kubernetes.extra_sans.clone();
    // MicroK8s' certificate has the address of the service `kubernetes` in the default network only.
    names.extend(network.services.iter().filter_map(|n| Some(Cidr::parse(n).ok()?.first_host().to_string())));
    if !names.is_empty() {
        text += "extraSANs:\n";
        for name in &names {
            text += &format!("  - {}\n", serde_json::Value::from(name.as_str()));
        }
    }
    if !network.pods.is_empty() || !network.services.is_empty() {
        let (pods, services) = cluster.networks();
        text += "extraCNIEnv:\n";
        for (family, is_ipv4) in [("IPv4", true), ("IPv6", false)] {
            let of =
                |list: &[String]| list.iter().find(|n| Cidr::parse(n).is_ok_and(|n| n.is_ipv4() == is_ipv4)).cloned();
            let (Some(pods), Some(services)) = (of(&pods), of(&services)) else {
                text += &format!("  {family}_SUPPORT: \"false\"\n");
                continue;
            };
            text += &format!(
                "  {family}_SUPPORT: \"true\"\n  {family}_CLUSTER_CIDR: {pods}\n  {family}_SERVICE_CIDR: {services}\n"
            );
        }
    }
    text
}

/// Reports a change of the networks of an existing MicroK8s, which cannot be made.
fn networks(cluster: &Cluster) -> Option<Resource> {
    let network = &cluster.spec.network;
    if network.pods.is_empty() && network.services.is_empty() {
        return None;
    }
    let (pods, services) = cluster.networks();
    let file = format!("{ARGS}/cni-env");
    let has = |n: &String| format!("grep -qF {} {file}", quote(n));
    let check = pods.iter().chain(&services).map(has).collect::<Vec<_>>().join(" && ");
    let missing = "the networks of pods and services differ from those of the existing cluster";
    let run =
        format!("echo '{missing}, which cannot be changed; restore spec.network, or create the cluster anew'; exit 1");
    Some(
        command(Layer::Kubernetes, "networks", &format!("[ ! -e {file} ] || {{ {check}; }}"), &run, missing)
            .needs(&["kubernetes/microk8s"]),
    )
}

fn microk8s(cluster: &Cluster) -> Result<Vec<Resource>, ClusterError> {
    let kubernetes = &cluster.spec.kubernetes;
    let layer = Layer::Kubernetes;
    let snap = ResourceKind::Snap {
        name: "microk8s".into(),
        channel: kubernetes.channel.clone(),
        classic: true,
        hold: kubernetes.hold,
    };
    let needs_snap = |resource: Resource| resource.needs(&["kubernetes/microk8s"]);
    let args: String = kubernetes.kubelet_args.iter().map(|(name, value)| format!("--{name}={value}\n")).collect();
    let args = Edit::Block { name: "slipway kubeletArgs".into(), text: args };
    let mut out = vec![
        command(
            layer,
            "snapd",
            // Classic snaps, such as MicroK8s, need /snap, which RHEL's package of snapd does not have (snapcraft, "Installing snap on RHEL").
            "command -v snap && { [ -e /snap ] || [ ! -d /var/lib/snapd/snap ]; }",
            INSTALL_SNAPD,
            "snapd",
        ),
        proxy::snapd(cluster),
        file(layer, "launch", LAUNCH_CONFIG_PATH, launch_config(cluster)),
        Resource::new(layer, "microk8s", snap)
            .needs(&["kubernetes/snapd"])
            .with_timeout(1200)
            .effect("installs or refreshes MicroK8s: takes minutes"),
    ];
    out.extend(networks(cluster));
    out.push(
        needs_snap(proxy::runtime(cluster, &format!("{ARGS}/containerd-env")))
            .then("snap restart microk8s.daemon-containerd")
            .effect("restarts containerd; pods keep running"),
    );
    out.extend(registries::hosts(cluster, &format!("{ARGS}/certs.d"))?.into_iter().map(needs_snap));
    out.push(
        needs_snap(edit(layer, "kubelet-args", &format!("{ARGS}/kubelet"), args))
            .then("snap restart microk8s.daemon-kubelite")
            .effect("restarts Kubernetes' services; pods keep running"),
    );
    out.push(needs_snap(command(
        layer,
        "ready",
        "microk8s status --wait-ready --timeout 10",
        "microk8s start && microk8s status --wait-ready --timeout 300 >/dev/null",
        "MicroK8s is not ready",
    )));
    Ok(out)
}

pub(super) fn resources(cluster: &Cluster, machine: &Machine) -> Result<Vec<Resource>, ClusterError> {
    let mut out = vec![firewall::resource(cluster)];
    out.extend(match cluster.spec.kubernetes.distribution.family() {
        Family::Microk8s => microk8s(cluster)?,
        Family::Rancher(properties) => rancher::resources(cluster, machine, properties)?,
        Family::Kubeadm => kubeadm::resources(cluster, machine)?,
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    #[test]
    fn launch_configuration_has_the_networks_and_the_address_of_the_api_service() {
        assert_eq!(launch_config(&Cluster::parse(FILE).unwrap()), "version: 0.1.0\n");
        let network = "spec:\n  network: {pods: [10.3.0.0/16, 'fd01::/64'], services: [10.4.0.0/24, 'fd02::/108']}\n";
        let cluster = Cluster::parse(&FILE.replace("spec:\n", network)).unwrap();
        let expected = "version: 0.1.0\nextraSANs:\n  - \"10.4.0.1\"\n  - \"fd02::1\"\nextraCNIEnv:\n  IPv4_SUPPORT: \"true\"\n  IPv4_CLUSTER_CIDR: 10.3.0.0/16\n  IPv4_SERVICE_CIDR: 10.4.0.0/24\n  IPv6_SUPPORT: \"true\"\n  IPv6_CLUSTER_CIDR: fd01::/64\n  IPv6_SERVICE_CIDR: fd02::/108\n";
        assert_eq!(launch_config(&cluster), expected);
        let only = Cluster::parse(&FILE.replace("spec:\n", "spec:\n  network: {pods: [10.3.0.0/16]}\n")).unwrap();
        assert!(launch_config(&only).ends_with("IPv4_SERVICE_CIDR: 10.152.183.0/24\n  IPv6_SUPPORT: \"false\"\n"));
        assert!(networks(&cluster).is_some() && networks(&Cluster::parse(FILE).unwrap()).is_none());
    }
}
