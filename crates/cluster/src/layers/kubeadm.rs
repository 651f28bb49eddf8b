//! The Kubernetes layer of a machine with kubeadm: the machine's preparation, containerd, Kubernetes' packages, and on the first control plane
//! the cluster itself with its network plugin. Other machines get the cluster in the join step ([`crate::join`]).
//!
//! [`MARK`] records what slipway has done: `started` while `kubeadm` is changing the machine, and `done` afterwards. An interrupted change is
//! reset and repeated; a machine of a cluster that slipway did not create is never reset.
//!
//! Source: Kubernetes, "Installing kubeadm", "Creating a cluster with kubeadm", "kubeadm Configuration (v1beta4)", "Configuring each kubelet in
//! your cluster using kubeadm", "Upgrading kubeadm clusters", "Container Runtimes" (kernel modules and settings); "kubeadm reset".

use std::net::IpAddr;

use serde_json::{Value, json};

use super::packages::FUNCTIONS;
use super::{CLEAN_NETWORK, command, containerd, file, proxy, ready, sysctl, workloads};
use crate::ClusterError;
use crate::resource::{Layer, Resource, ResourceKind};
use crate::shell::quote;
use crate::spec::ssh::url_host;
use crate::spec::{Cluster, Machine, NetworkPlugin, Role, minor};

const LAYER: Layer = Layer::Kubernetes;
/// File that records slipway's changes with `kubeadm`; see the module's description.
const MARK: &str = "/var/lib/slipway/kubeadm";
/// File with a line for each upgrade of the packages.
const UPGRADES: &str = "/var/lib/slipway/kubeadm-upgrades";
/// The configuration of `kubeadm` on control planes.
const CONFIG: &str = "/etc/kubernetes/slipway-kubeadm.yaml";
/// Environment of the kubelet's unit. It is read after `/etc/default/kubelet`, so it wins.
const KUBELET_ENVIRONMENT: &str = "/etc/kubernetes/slipway-kubelet.env";
/// Where Kubernetes publishes its packages; a folder for each minor version.
const REPOSITORY: &str = "https://pkgs.k8s.io/core:/stable:";

/// Shell commands that remove a cluster from the machine. The member of etcd is not removed from the cluster: a node that leaves a cluster
/// that stays has done that before.
const RESET: &str = "! command -v kubeadm >/dev/null || kubeadm reset -f --skip-phases=remove-etcd-member; \
     systemctl stop kubelet 2>/dev/null; ";

/// Shell commands that prepare the machine for `kubeadm init` or `kubeadm join`: resets what an interrupted attempt has left, and fails if the
/// machine belongs to a cluster that slipway did not create.
pub(crate) fn begin() -> String {
    format!(
        "if [ -e /etc/kubernetes/kubelet.conf ] || [ -e /etc/kubernetes/manifests/kube-apiserver.yaml ] || [ -e /etc/kubernetes/pki/ca.crt ]; then \
         [ -e {MARK} ] || {{ echo 'the machine belongs to a cluster of kubeadm that slipway did not create: to give it up, run `kubeadm reset` there'; exit 1; }}; \
         kubeadm reset -f || exit; fi; mkdir -p /var/lib/slipway && echo started >{MARK} || exit; "
    )
}

/// Shell command that records that `kubeadm` has completed its change.
pub(crate) fn end() -> String {
    format!("echo done >{MARK}")
}

/// Shell commands that stop the kubelet, and then the pods, which run on without it.
pub(crate) const STOP: &str = "systemctl stop kubelet || exit; \
     export CONTAINER_RUNTIME_ENDPOINT=unix:///run/containerd/containerd.sock; crictl pods -q | xargs -r crictl stopp";

/// Shell commands with which a node leaves a cluster that stays.
pub(crate) fn leave() -> String {
    format!("kubeadm reset -f && rm -f {MARK}; s=$?; systemctl stop kubelet; exit $s")
}

/// `HOST:PORT` of the API server for all nodes.
pub(crate) fn endpoint(cluster: &Cluster) -> String {
    let first = cluster.first().map_or("", Machine::internal);
    match &cluster.spec.kubernetes.endpoint {
        Some(endpoint) if endpoint.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => {
            endpoint.clone()
        }
        Some(endpoint) => format!("{endpoint}:6443"),
        None => format!("{}:6443", url_host(first)),
    }
}

/// The part of a configuration about the node itself. A control plane runs pods too, so it gets no taint.
pub(crate) fn node_registration(machine: &Machine) -> Value {
    let mut out = json!({"name": machine.name, "criSocket": containerd::SOCKET});
    if machine.is(Role::ControlPlane) {
        out["taints"] = json!([]);
    }
    out
}

/// The address at which the API server of a control plane is advertised; empty if the file has a name instead of an address, so that kubeadm
/// takes the address of the default route.
pub(crate) fn local_endpoint(machine: &Machine) -> Value {
    match machine.internal().parse::<IpAddr>() {
        Ok(address) => json!({"advertiseAddress": address, "bindPort": 6443}),
        Err(_) => json!({}),
    }
}

/// Names and addresses in the certificate of every API server.
fn certificate_names(cluster: &Cluster) -> Vec<String> {
    let spec = &cluster.spec;
    let planes = spec.machines.iter().filter(|m| m.is(Role::ControlPlane));
    let mut names: Vec<String> =
        planes.flat_map(|m| [m.name.clone(), m.address.clone(), m.internal().to_owned()]).collect();
    names.extend(spec.kubernetes.extra_sans.iter().cloned());
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// The configuration of `kubeadm init`. JSON is valid YAML.
fn config(cluster: &Cluster, machine: &Machine) -> String {
    let (pods, services) = cluster.networks();
    let documents = [
        json!({
            "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "InitConfiguration",
            // kubeadm always creates a token. It is not used, so it expires at once.
            "bootstrapTokens": [{"ttl": "1m0s"}],
            "nodeRegistration": node_registration(machine),
            "localAPIEndpoint": local_endpoint(machine),
        }),
        json!({
            "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration",
            "clusterName": cluster.metadata.name,
            "kubernetesVersion": cluster.spec.kubernetes.version,
            "controlPlaneEndpoint": endpoint(cluster),
            "networking": {"podSubnet": pods.join(","), "serviceSubnet": services.join(","), "dnsDomain": "cluster.local"},
            "apiServer": {"certSANs": certificate_names(cluster)},
        }),
        json!({"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "cgroupDriver": "systemd"}),
    ];
    documents
        .iter()
        .map(|d| serde_json::to_string_pretty(d).unwrap_or_default() + "\n")
        .collect::<Vec<_>>()
        .join("---\n")
}

/// Swap, kernel modules and kernel settings.
fn preparation(cluster: &Cluster) -> Vec<Resource> {
    // A masked unit stays off after a reboot, wherever it comes from: /etc/fstab, a partition table or a generator.
    let units = "/var/lib/slipway/swap-units";
    let mut swap = command(
        LAYER,
        "swap",
        "[ \"$(wc -l </proc/swaps)\" -le 1 ]",
        &format!(
            "mkdir -p /var/lib/slipway && systemctl list-units --type=swap --plain --no-legend | cut -d' ' -f1 >>{units} && \
             xargs -r systemctl mask --now --quiet -- <{units} && swapoff -a"
        ),
        "swap is off",
    )
    .effect("turns swap off: the kubelet does not start with it");
    if let ResourceKind::Command { undo, .. } = &mut swap.what {
        *undo = Some(format!(
            "[ ! -e {units} ] || {{ xargs -r systemctl unmask --quiet -- <{units}; xargs -r systemctl start -- <{units}; rm -f {units}; }}"
        ));
    }
    let (pods, _) = cluster.networks();
    let mut settings = vec![
        ("net.bridge.bridge-nf-call-iptables", "1"),
        ("net.bridge.bridge-nf-call-ip6tables", "1"),
        ("net.ipv4.ip_forward", "1"),
    ];
    if pods.iter().any(|network| network.contains(':')) {
        settings.push(("net.ipv6.conf.all.forwarding", "1"));
    }
    let mut out = vec![swap];
    out.push(file(LAYER, "modules", "/etc/modules-load.d/slipway-kubernetes.conf", "overlay\nbr_netfilter\n"));
    // What the modules provide is checked, because some kernels have them built in.
    out.push(command(
        LAYER,
        "modules-now",
        "grep -qw overlay /proc/filesystems && [ -d /proc/sys/net/bridge ]",
        "modprobe -a overlay br_netfilter",
        "kernel modules overlay and br_netfilter",
    ));
    out.extend(sysctl(LAYER, "/etc/sysctl.d/91-slipway-kubernetes.conf", settings.into_iter()));
    out
}

/// Kubernetes' package repository of the file's minor version. On RHEL it is disabled, so that nothing but slipway upgrades from it.
fn repository(cluster: &Cluster) -> Resource {
    let kubernetes = &cluster.spec.kubernetes;
    let (major, number) = minor(&kubernetes.version).unwrap_or_default();
    let source = kubernetes.source.as_deref().unwrap_or(REPOSITORY).trim_end_matches('/');
    let [deb, rpm] = ["deb", "rpm"].map(|kind| format!("{source}/v{major}.{number}/{kind}/"));
    let key = "/etc/apt/keyrings/slipway-kubernetes.asc";
    let sources = "/etc/apt/sources.list.d/slipway-kubernetes.sources";
    let repo = "/etc/yum.repos.d/slipway-kubernetes.repo";
    let check = format!(
        "if command -v apt-get >/dev/null; then [ -s {key} ] && grep -qxF {} {sources}; else grep -qxF {} {repo}; fi",
        quote(&format!("URIs: {deb}")),
        quote(&format!("baseurl={rpm}"))
    );
    let run = format!(
        "{exports}{FUNCTIONS}if [ -n \"$apt\" ]; then mkdir -p /etc/apt/keyrings && curl -fsSL --retry 3 -o {key}.new {deb_key} && mv -f {key}.new {key} && \
         printf 'Types: deb\\nURIs: %s\\nSuites: /\\nSigned-By: {key}\\n' {deb} >{sources} && update; \
         else printf '[slipway-kubernetes]\\nname=Kubernetes\\nbaseurl=%s\\nenabled=0\\ngpgcheck=1\\nrepo_gpgcheck=1\\ngpgkey=%s\\n' {rpm} {rpm_key} >{repo}; fi",
        exports = proxy::exports(cluster),
        deb_key = quote(&format!("{deb}Release.key")),
        rpm_key = quote(&format!("{rpm}repodata/repomd.xml.key")),
        deb = quote(&deb),
        rpm = quote(&rpm),
    );
    let mut out = command(LAYER, "repository", &check, &run, &format!("Kubernetes' packages of v{major}.{number}"));
    if let ResourceKind::Command { undo, .. } = &mut out.what {
        *undo = Some(format!("rm -f {key} {sources} {repo}"));
    }
    out
}

/// The packages in the file's version. On a node of the cluster it is an upgrade: `kubeadm` first, then the control plane or the node's
/// configuration, then the kubelet.
fn packages(cluster: &Cluster, machine: &Machine) -> Resource {
    let kubernetes = &cluster.spec.kubernetes;
    let version = kubernetes.version.trim_start_matches('v');
    let manifest = "/etc/kubernetes/manifests/kube-apiserver.yaml";
    let plane = format!(
        "[ ! -e {manifest} ] || grep -qE 'image: .*/kube-apiserver:v{}$' {manifest}",
        version.replace('.', "\\.")
    );
    let held = if kubernetes.hold {
        "[ -z \"$apt\" ] || [ \"$(apt-mark showhold kubeadm kubelet kubectl | wc -l)\" = 3 ]"
    } else {
        "true"
    };
    let check = format!(
        "{FUNCTIONS}for p in kubeadm kubelet kubectl; do case $(version_of $p) in {version}-*) ;; *) exit 1;; esac; done; {plane} && {{ {held}; }}"
    );
    let verb = if cluster.first() == Some(machine) { format!("apply -y v{version}") } else { "node".into() };
    let hold =
        if kubernetes.hold { "[ -z \"$apt\" ] || apt-mark hold kubeadm kubelet kubectl >/dev/null" } else { "true" };
    let run = format!(
        "{exports}{FUNCTIONS}repositories=--enablerepo=slipway-kubernetes\nset -e\n\
         mkdir -p /var/lib/slipway; ! version_of kubelet | grep -q . || echo upgrade >>{UPGRADES}\n\
         get 'kubeadm={version}-*'\n\
         if [ -e /etc/kubernetes/kubelet.conf ] && {{ [ \"$(kubelet --version)\" != 'Kubernetes v{version}' ] || ! {{ {plane}; }}; }}; then kubeadm upgrade {verb}; fi\n\
         get 'kubelet={version}-*' 'kubectl={version}-*'\n\
         {hold}\n\
         systemctl daemon-reload\n\
         [ ! -e /etc/kubernetes/kubelet.conf ] || systemctl restart kubelet",
        exports = proxy::exports(cluster),
    );
    let mut out = command(LAYER, "kubeadm", &check, &run, &format!("kubeadm, kubelet and kubectl {version}"))
        .with_timeout(1800)
        .needs(&["kubernetes/repository", "kubernetes/containerd"])
        .effect("on a node, upgrades Kubernetes and restarts the kubelet; pods keep running");
    if let ResourceKind::Command { undo, .. } = &mut out.what {
        // Kubernetes cannot be downgraded, so only the installation is undone.
        *undo = Some(format!(
            "if [ -s {UPGRADES} ]; then sed -i 1d {UPGRADES}; echo 'an upgrade of Kubernetes is not undone'; exit 0; fi; \
             {FUNCTIONS}{RESET}{CLEAN_NETWORK}\
             remove kubeadm kubelet kubectl; ! version_of cri-tools | grep -q . || remove cri-tools; ! version_of kubernetes-cni | grep -q . || remove kubernetes-cni; \
             rm -rf --one-file-system /etc/kubernetes /var/lib/kubelet /var/lib/etcd /var/lib/cni /run/flannel /etc/cni/net.d/10-flannel.conflist; \
             for d in /etc/cni/net.d /etc/cni; do [ ! -d $d ] || rmdir --ignore-fail-on-non-empty $d; done; rm -f {MARK} {UPGRADES}; systemctl daemon-reload"
        ));
    }
    out
}

/// The kubelet's arguments, in the environment file of a drop-in of its unit.
fn kubelet(cluster: &Cluster, machine: &Machine) -> [Resource; 3] {
    let kubernetes = &cluster.spec.kubernetes;
    let mut args: Vec<String> = Vec::new();
    // With dual stack the kubelet finds the addresses itself, because the file has one address of each machine.
    if machine.internal().parse::<IpAddr>().is_ok()
        && cluster.spec.network.pods.len() < 2
        && !kubernetes.kubelet_args.contains_key("node-ip")
    {
        args.push(format!("--node-ip={}", machine.internal()));
    }
    args.extend(kubernetes.kubelet_args.iter().map(|(name, value)| format!("--{name}={value}")));
    let restart = "systemctl daemon-reload; systemctl try-restart kubelet";
    let drop_in = format!("[Service]\nEnvironmentFile=-{KUBELET_ENVIRONMENT}\n");
    let (active, enabled) = ("systemctl is-active --quiet kubelet", "systemctl is-enabled --quiet kubelet");
    // Without its configuration, which `kubeadm` writes, the kubelet does not start.
    let check = format!("{enabled} && {{ [ ! -e /etc/kubernetes/kubelet.conf ] || {active}; }}");
    let run =
        "systemctl enable --quiet kubelet && { [ ! -e /etc/kubernetes/kubelet.conf ] || systemctl start kubelet; }";
    let mut service = command(LAYER, "service", &check, run, "service kubelet").needs(&["kubernetes/kubeadm"]);
    if let ResourceKind::Command { undo, .. } = &mut service.what {
        *undo = Some("systemctl disable --now --quiet kubelet || ! systemctl cat kubelet >/dev/null 2>&1".into());
    }
    [
        file(LAYER, "kubelet-args", KUBELET_ENVIRONMENT, format!("KUBELET_EXTRA_ARGS=\"{}\"\n", args.join(" ")))
            .then(restart)
            .effect("restarts the kubelet; pods keep running"),
        file(LAYER, "kubelet-unit", "/etc/systemd/system/kubelet.service.d/20-slipway.conf", drop_in).then(restart),
        service,
    ]
}

/// Reports a change of what is fixed when a cluster is created.
fn fixed(cluster: &Cluster) -> Resource {
    let folder = "/etc/kubernetes/manifests";
    let (pods, services) = cluster.networks();
    let flag = |name: &str, value: &[String], file: &str| {
        format!("grep -qF -- {} {folder}/{file}.yaml", quote(&format!("--{name}={}", value.join(","))))
    };
    let check = format!(
        "[ ! -e {folder}/kube-controller-manager.yaml ] || {{ {} && {} && grep -qF {} /etc/kubernetes/admin.conf; }}",
        flag("cluster-cidr", &pods, "kube-controller-manager"),
        flag("service-cluster-ip-range", &services, "kube-apiserver"),
        quote(&format!("server: https://{}", endpoint(cluster))),
    );
    let missing = "the networks or the endpoint differ from those of the existing cluster";
    let run = format!(
        "echo '{missing}, which cannot be changed; restore spec.network and spec.kubernetes.endpoint, or create the cluster anew'; exit 1"
    );
    command(LAYER, "fixed", &check, &run, missing)
}

/// The certificate of a control plane's API server, which gets a new one when a name is missing in it.
fn certificate(cluster: &Cluster) -> Resource {
    let folder = "/etc/kubernetes/pki";
    let has = |name: &String| {
        let kind = if name.parse::<IpAddr>().is_ok() { "checkip" } else { "checkhost" };
        // A wildcard is compared as the name of a host below it.
        let name = name.replacen('*', "any", 1);
        format!("openssl x509 -noout -in {folder}/apiserver.crt -{kind} {} | grep -q 'does match'", quote(&name))
    };
    let names: Vec<String> = certificate_names(cluster).iter().map(has).collect();
    let check = format!("[ ! -e {folder}/apiserver.crt ] || {{ {}; }}", names.join(" && "));
    // The kubelet starts the API server again when its sandbox is gone.
    let run = format!(
        "set -e; cd {folder}; mkdir -p /var/lib/slipway/pki; mv -f apiserver.crt apiserver.key /var/lib/slipway/pki/; \
         kubeadm init phase certs apiserver --config {CONFIG} || {{ mv -f /var/lib/slipway/pki/apiserver.* .; exit 1; }}; rm -rf /var/lib/slipway/pki; \
         ! kubectl --kubeconfig /etc/kubernetes/admin.conf get --raw /readyz >/dev/null || kubeadm init phase upload-config kubeadm --config {CONFIG}; \
         crictl --runtime-endpoint {socket} pods --name kube-apiserver -q | xargs -r crictl --runtime-endpoint {socket} stopp",
        socket = containerd::SOCKET,
    );
    command(LAYER, "certificate", &check, &run, "names in the certificate of the API server")
        .needs(&["kubernetes/kubeadm", "kubernetes/config"])
        .effect("restarts this machine's API server")
}

pub(super) fn resources(cluster: &Cluster, machine: &Machine) -> Result<Vec<Resource>, ClusterError> {
    let mut out = preparation(cluster);
    out.extend(containerd::resources(cluster)?);
    out.push(repository(cluster));
    let [args, unit, service] = kubelet(cluster, machine);
    // The unit comes with the packages.
    out.push(packages(cluster, machine));
    out.extend([args, unit].map(|r| r.needs(&["kubernetes/kubeadm"])));
    out.push(service);
    if machine.is(Role::ControlPlane) {
        out.push(file(LAYER, "config", CONFIG, config(cluster, machine)));
        out.extend([fixed(cluster), certificate(cluster)]);
    }
    if cluster.first() == Some(machine) {
        let check = format!("[ \"$(cat {MARK})\" = done ] && [ -e /etc/kubernetes/admin.conf ]");
        let run = format!(
            "if [ \"$(cat {MARK} 2>/dev/null)\" = done ] && [ -e /etc/kubernetes/manifests/kube-apiserver.yaml ]; then \
             echo '/etc/kubernetes/admin.conf is missing: `kubeadm init phase kubeconfig admin` creates it again'; exit 1; fi; \
             {}kubeadm init --config {CONFIG} --skip-token-print && {}",
            begin(),
            end()
        );
        let mut init = command(LAYER, "init", &check, &run, "the cluster")
            .with_timeout(900)
            .needs(&["kubernetes/service", "kubernetes/config", "kubernetes/containerd-service"])
            .effect("creates the cluster: takes minutes");
        if let ResourceKind::Command { undo, .. } = &mut init.what {
            *undo = Some(format!("{RESET}rm -f {MARK}"));
        }
        out.push(init);
        out.push(ready(cluster, "kubelet").needs(&["kubernetes/init"]));
        if cluster.spec.network.plugin.unwrap_or_default() == NetworkPlugin::Flannel {
            out.extend(workloads::flannel(cluster));
        }
    }
    Ok(out)
}
