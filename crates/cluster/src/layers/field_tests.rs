//! Every field of `cluster.yaml` that concerns Kubernetes acts on every distribution, or is rejected: none is silently ignored.

use super::desired_state;
use crate::spec::tests::FILE;
use crate::spec::{Cluster, Distribution};

/// What a field does with a distribution.
enum Acts {
    /// The resources of a machine have this text.
    Resource(&'static str),
    /// The resources of a machine have no such text, which they have without the field.
    Without(&'static str),
    /// The step that joins a machine uses it.
    Join,
    /// The file is rejected, with this text in the message.
    Rejected(&'static str),
}

use Acts::{Join, Rejected, Resource, Without};

/// A field as YAML below `spec.kubernetes` (with a trailing comma), below `spec`, or of a machine (with a leading comma).
enum Place {
    Kubernetes(&'static str),
    Spec(&'static str),
    Machine(&'static str),
}

use Place::{Kubernetes, Machine, Spec};

const RELEASES: [&str; 4] =
    ["channel: 1.36/stable", "version: v1.36.2+k3s1", "version: v1.36.2+rke2r1", "version: v1.36.2"];

fn cluster(distribution: usize, place: Option<&Place>) -> Result<Cluster, String> {
    let name = ["microk8s", "k3s", "rke2", "kubeadm"][distribution];
    let (mut kubernetes, mut spec, mut machine) = ("", "", "");
    match place {
        Some(Kubernetes(text)) => kubernetes = text,
        Some(Spec(text)) => spec = text,
        Some(Machine(text)) => machine = text,
        None => {}
    }
    let text = FILE
        .replace(
            "distribution: microk8s, channel: 1.32/stable, addons: [dns, metrics-server]",
            &format!("{kubernetes} distribution: {name}, {}", RELEASES[distribution]),
        )
        .replace("spec:\n", &format!("spec:\n{spec}"))
        .replace("roles: [worker, gpu]", &format!("roles: [worker, gpu]{machine}"));
    let mut cluster = Cluster::parse(&text)?;
    cluster.trust_commands();
    Ok(cluster)
}

/// The resources of all machines as text.
fn resources(cluster: &Cluster) -> String {
    let of = |machine| {
        let desired = desired_state(cluster, machine).unwrap();
        desired.validate().unwrap();
        serde_json::to_string(&desired).unwrap()
    };
    cluster.spec.machines.iter().map(of).collect()
}

#[test]
fn every_field_acts_on_every_distribution_or_is_rejected() {
    let built_in = "MicroK8s' add-ons";
    let table: [(Place, [Acts; 4]); 19] = [
        (
            Spec("  network: {proxy: {https: 'http://proxy.example:3128', noProxy: [mirror.example]}}\n"),
            [
                Resource("args/containerd-env"),
                Resource(
                    "kubernetes/proxy-containerd\",\"layer\":\"kubernetes\",\"what\":{\"file\":{\"path\":\"/etc/default/k3s\"",
                ),
                Resource(
                    "kubernetes/proxy-containerd\",\"layer\":\"kubernetes\",\"what\":{\"file\":{\"path\":\"/etc/default/rke2-server\"",
                ),
                Resource("Environment=\\\"HTTPS_PROXY=http://proxy.example:3128\\\""),
            ],
        ),
        (
            Spec("  registries: [{host: docker.io, endpoints: ['https://mirror.example']}]\n"),
            [
                Resource("args/certs.d/docker.io/hosts.toml"),
                Resource("/etc/rancher/k3s/registries.yaml"),
                Resource("/etc/rancher/rke2/registries.yaml"),
                Resource("/etc/containerd/certs.d/docker.io/hosts.toml"),
            ],
        ),
        (
            Spec(
                "  registries: [{host: r.example, ca: {command: printf PEM}, username: ada, password: {command: printf hush}}]\n",
            ),
            [
                Resource("slipway-ca.pem"),
                Resource("ca_file"),
                Resource("ca_file"),
                Resource("/etc/containerd/certs.d/r.example/slipway-ca.pem"),
            ],
        ),
        (
            Spec("  network: {pods: [10.3.0.0/16], services: [10.4.0.0/24]}\n"),
            [
                Resource("IPv4_CLUSTER_CIDR: 10.3.0.0/16"),
                Resource("\\\"cluster-cidr\\\": \\\"10.3.0.0/16\\\""),
                Resource("\\\"service-cidr\\\": \\\"10.4.0.0/24\\\""),
                Resource("\\\"podSubnet\\\": \\\"10.3.0.0/16\\\""),
            ],
        ),
        (
            Spec("  network: {pods: [10.3.0.0/16, 'fd01::/64'], services: [10.4.0.0/24, 'fd02::/112']}\n"),
            [
                Resource("IPv6_SUPPORT: \\\"true\\\""),
                Resource("10.3.0.0/16,fd01::/64"),
                Resource("10.3.0.0/16,fd01::/64"),
                Resource("\\\"podCidrv6\\\": \\\"fd01::/64\\\""),
            ],
        ),
        (
            Spec("  network: {plugin: none}\n"),
            [
                Rejected("spec.network.plugin is for kubeadm"),
                Rejected("spec.network.plugin is for kubeadm"),
                Rejected("spec.network.plugin is for kubeadm"),
                Without("kubernetes/flannel"),
            ],
        ),
        (
            Kubernetes("kubeletArgs: {max-pods: '200'},"),
            [
                Resource("--max-pods=200"),
                Resource("\\\"max-pods=200\\\""),
                Resource("\\\"max-pods=200\\\""),
                Resource("--max-pods=200"),
            ],
        ),
        (
            Kubernetes("extraSans: [lab.example],"),
            [
                Resource("- \\\"lab.example\\\""),
                Resource("\\\"lab.example\\\""),
                Resource("\\\"lab.example\\\""),
                Resource("certSANs"),
            ],
        ),
        (
            Kubernetes("hold: false,"),
            [
                Resource("\"hold\":false"),
                Rejected("K3s never upgrades itself"),
                Rejected("RKE2 never upgrades itself"),
                Without("apt-mark hold kubeadm"),
            ],
        ),
        (
            Kubernetes("tokenSeconds: 60,"),
            [Join, Rejected("spec.kubernetes.tokenSeconds"), Rejected("spec.kubernetes.tokenSeconds"), Join],
        ),
        (
            Kubernetes("source: 'https://m.example/x',"),
            [
                Rejected("MicroK8s has a channel"),
                Resource("https://m.example/x/v1.36.2%2Bk3s1"),
                Resource("https://m.example/x/v1.36.2%2Brke2r1"),
                Resource("https://m.example/x/v1.36/deb/"),
            ],
        ),
        (
            Kubernetes("endpoint: 'api.example:8443',"),
            [
                Rejected("spec.kubernetes.endpoint is for kubeadm"),
                Rejected("spec.kubernetes.endpoint is for kubeadm"),
                Rejected("spec.kubernetes.endpoint is for kubeadm"),
                Resource("\\\"controlPlaneEndpoint\\\": \\\"api.example:8443\\\""),
            ],
        ),
        (
            Kubernetes("addons: [dns],"),
            [Resource("microk8s enable"), Rejected(built_in), Rejected(built_in), Rejected(built_in)],
        ),
        (
            Machine(", labels: {zone: a}"),
            [
                Resource("microk8s kubectl label node"),
                Resource("k3s kubectl label node"),
                Resource("rke2.yaml label node"),
                Resource("admin.conf label node"),
            ],
        ),
        (
            Machine(", taints: ['a=b:NoSchedule']"),
            [
                Resource("microk8s kubectl taint node"),
                Resource("k3s kubectl taint node"),
                Resource("rke2.yaml taint node"),
                Resource("admin.conf taint node"),
            ],
        ),
        (
            Machine(", internalAddress: 192.168.7.3"),
            [
                Resource("192.168.7.3 gpu1"),
                Resource("\\\"node-ip\\\": \\\"192.168.7.3\\\""),
                Resource("\\\"node-ip\\\": \\\"192.168.7.3\\\""),
                Resource("--node-ip=192.168.7.3"),
            ],
        ),
        (
            Spec("  storage: {classes: [{name: s, share: {nfs: {server: f, path: /e}}}]}\n"),
            [
                Resource("/var/snap/microk8s/common/var/lib/kubelet"),
                Resource("\\\"kubeletDir\\\": \\\"/var/lib/kubelet\\\""),
                Resource("\\\"kubeletDir\\\": \\\"/var/lib/kubelet\\\""),
                Resource("\\\"kubeletDir\\\": \\\"/var/lib/kubelet\\\""),
            ],
        ),
        (
            Spec("  platform: {image: 'slipway:1'}\n"),
            [
                Resource("--kubeconfig /var/snap/microk8s"),
                Resource("--kubeconfig /etc/rancher/k3s"),
                Resource("--kubeconfig /etc/rancher/rke2"),
                Resource("--kubeconfig /etc/kubernetes/admin.conf --namespace"),
            ],
        ),
        (
            Spec("  gpu: {devicePlugin: nvidia}\n"),
            [
                Resource("microk8s helm3 upgrade"),
                Resource("k3s.yaml upgrade"),
                Resource("rke2.yaml upgrade"),
                Resource("admin.conf upgrade --install nvidia-device-plugin"),
            ],
        ),
    ];
    for (place, columns) in &table {
        let field = match place {
            Kubernetes(text) | Spec(text) | Machine(text) => text,
        };
        assert_eq!(columns.len(), Distribution::ALL.len());
        for (distribution, acts) in columns.iter().enumerate() {
            let name = Distribution::ALL[distribution];
            let parsed = cluster(distribution, Some(place));
            let base = resources(&cluster(distribution, None).unwrap());
            match (acts, parsed) {
                (Rejected(text), Err(error)) => assert!(error.contains(text), "{field} with {name:?}: {error}"),
                (Join, Ok(_)) => {}
                (Resource(text), Ok(cluster)) => {
                    let found = resources(&cluster);
                    assert!(found.contains(text), "{field} with {name:?} has no {text}: {found}");
                    assert_ne!(found, base, "{field} with {name:?} changes nothing");
                }
                (Without(text), Ok(cluster)) => {
                    assert!(
                        base.contains(text) && !resources(&cluster).contains(text),
                        "{field} with {name:?}: {text}"
                    );
                }
                (_, parsed) => panic!("{field} with {name:?}: {:?}", parsed.err()),
            }
        }
    }
}
