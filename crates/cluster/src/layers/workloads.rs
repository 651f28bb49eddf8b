//! Resources of the cluster as a whole: add-ons, storage, the device plugin and slipway itself. They belong to the first control plane.
//!
//! Source: MicroK8s, "Use NFS for persistent volumes" (the kubelet's folder), csi-driver-nfs and csi-driver-smb, "Driver parameters",
//! NVIDIA's device plugin, "Configuring the device plugin", mig-parted, "Configuration".

use serde_json::{Value, json};

use super::{command, file, proxy};
use crate::ClusterError;
use crate::digest;
use crate::resource::{Layer, Resource, ResourceKind, Text};
use crate::shell::quote;
use crate::spec::secret::TrustedCommands;
use crate::spec::workloads::{DevicePlugin, Share, Sharing, StorageClass};
use crate::spec::{Cidr, Cluster, Role};

/// Helm for distributions that have none.
const HELM_VERSION: &str = "v3.19.0";
/// Folder on the machine for the manifests and chart values that are applied to the cluster.
const MANIFEST_FOLDER: &str = "/var/lib/slipway/wanted";

/// A Helm chart at a fixed version.
struct Chart {
    name: &'static str,
    repository: &'static str,
    version: &'static str,
    namespace: &'static str,
}

const NFS: Chart = Chart {
    name: "csi-driver-nfs",
    repository: "https://raw.githubusercontent.com/kubernetes-csi/csi-driver-nfs/master/charts",
    version: "4.11.0",
    namespace: "kube-system",
};
const SMB: Chart = Chart {
    name: "csi-driver-smb",
    repository: "https://raw.githubusercontent.com/kubernetes-csi/csi-driver-smb/master/charts",
    version: "1.18.0",
    namespace: "kube-system",
};
const NVIDIA: Chart = Chart {
    name: "nvidia-device-plugin",
    repository: "https://nvidia.github.io/k8s-device-plugin",
    version: "0.20.0",
    namespace: "nvidia-device-plugin",
};

/// Flannel with Kubernetes' own subnets of nodes. Source: flannel, "Deploying Flannel with helm", the values of its chart.
const FLANNEL: Chart = Chart {
    name: "flannel",
    repository: "https://flannel-io.github.io/flannel/",
    version: "v0.28.5",
    namespace: "kube-flannel",
};

impl Chart {
    /// The file of its values, and its release. The release's description has the digest of the values, so that a change of the values
    /// is detected.
    fn resources(&self, cluster: &Cluster, layer: Layer, values: &Value) -> [Resource; 2] {
        let helm = cluster.spec.kubernetes.distribution.helm();
        let Self { name, repository, version, namespace } = self;
        let text = serde_json::to_string_pretty(values).unwrap_or_default() + "\n";
        let path = format!("{MANIFEST_FOLDER}/{name}.json");
        let description = format!("slipway {version} {}", digest(text.as_bytes()));
        let check = format!(
            "{helm} status {name} -n {namespace} -o json | tr -d '\\n' | grep -q '\"description\": *\"{description}\".*\"status\": *\"deployed\"'"
        );
        let run = format!(
            "{helm} upgrade --install {name} {name} --repo {repository} --version {version} --namespace {namespace} \
             --create-namespace --values {path} --description '{description}' --wait --timeout 8m"
        );
        let values = file(layer, &format!("{name}-values"), &path, text);
        let id = values.id.clone();
        let mut release = command(layer, name, &check, &run, &format!("chart {name} {version}"));
        if let ResourceKind::Command { undo, .. } = &mut release.what {
            *undo = Some(format!("{helm} uninstall {name} -n {namespace}"));
        }
        [values, release.needs(&[&id]).effect("downloads a chart and its images")]
    }
}

/// Kubernetes objects: a manifest on the machine, which `kubectl diff` compares with the cluster and `kubectl apply` applies.
fn manifest(cluster: &Cluster, name: &str, objects: &[Value], secret: bool) -> [Resource; 2] {
    let (layer, kubectl) = (Layer::Storage, cluster.spec.kubernetes.distribution.kubectl());
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let text = serde_json::to_string_pretty(&list).unwrap_or_default() + "\n";
    let path = format!("{MANIFEST_FOLDER}/{name}.json");
    let mode = if secret { "0600" } else { "0644" };
    let content = Text { text, secret };
    let document = Resource::new(
        layer,
        &format!("{name}-manifest"),
        ResourceKind::File { path: path.clone(), content, mode: mode.into() },
    );
    let id = document.id.clone();
    let mut applied = command(
        layer,
        name,
        &format!("{kubectl} diff -f {path}"),
        &format!("{kubectl} apply -f {path}"),
        &format!("objects of {name}"),
    );
    if let ResourceKind::Command { undo, .. } = &mut applied.what {
        *undo = Some(format!("{kubectl} delete --ignore-not-found -f {path}"));
    }
    [document, applied.needs(&[&id])]
}

/// The network plugin of kubeadm, with Helm to install it. It belongs to the layer of Kubernetes, because no node is ready without it.
pub(super) fn flannel(cluster: &Cluster) -> Vec<Resource> {
    let (pods, _) = cluster.networks();
    let network = |is_ipv4: bool| {
        pods.iter().find(|n| Cidr::parse(n).is_ok_and(|n| n.is_ipv4() == is_ipv4)).cloned().unwrap_or_default()
    };
    let values = json!({"podCidr": network(true), "podCidrv6": network(false)});
    let [document, release] = FLANNEL.resources(cluster, Layer::Kubernetes, &values);
    let needs: Vec<&str> = vec![&document.id, "kubernetes/helm", "kubernetes/ready"];
    let release = release.needs(&needs);
    vec![helm(cluster, Layer::Kubernetes), document, release]
}

/// Helm, which only MicroK8s has itself. The version is fixed, and its checksum is the one that Helm publishes beside it.
fn helm(cluster: &Cluster, layer: Layer) -> Resource {
    let check =
        format!("[ \"$(/usr/local/bin/helm version --template '{{{{.Version}}}}' 2>/dev/null)\" = {HELM_VERSION} ]");
    let run = format!(
        "{}case $(uname -m) in x86_64) arch=amd64;; aarch64) arch=arm64;; *) echo \"there is no Helm for $(uname -m)\"; exit 1;; esac; \
         d=$(mktemp -d) && trap 'rm -rf \"$d\"' EXIT && cd \"$d\" && f=helm-{HELM_VERSION}-linux-$arch.tar.gz && \
         curl -sSfL --retry 3 -O https://get.helm.sh/$f.sha256sum -O https://get.helm.sh/$f && sha256sum -c --quiet $f.sha256sum && \
         tar -xzf $f && install -m 755 linux-$arch/helm /usr/local/bin/helm",
        proxy::exports(cluster)
    );
    let mut out = command(layer, "helm", &check, &run, &format!("Helm {HELM_VERSION}"));
    if let ResourceKind::Command { undo, .. } = &mut out.what {
        *undo = Some("rm -f /usr/local/bin/helm".into());
    }
    out
}

/// MicroK8s' add-ons, one resource each.
fn addons(cluster: &Cluster) -> Vec<Resource> {
    let resource = |addon: &crate::spec::workloads::Addon| {
        let name = addon.name().split(':').next().unwrap_or_default();
        // With `-a`, `microk8s status` prints only `enabled` or `disabled`.
        let check = format!("[ \"$(microk8s status -a {})\" = enabled ]", quote(name));
        let options: String = addon.options().iter().map(|o| format!(" {}", quote(o))).collect();
        let run = format!("microk8s enable {}{options}", quote(addon.name()));
        let mut out = command(Layer::Addons, name, &check, &run, &format!("add-on {}", addon.name()));
        if let ResourceKind::Command { undo, .. } = &mut out.what {
            *undo = Some(format!("microk8s disable {}", quote(name)));
        }
        out.needs(&["kubernetes/ready"])
    };
    cluster.spec.kubernetes.addons.iter().map(resource).collect()
}

/// The objects of a storage class: the class, and before it the secret of an SMB share.
fn storage_class(class: &StorageClass, trusted: &TrustedCommands) -> Result<Vec<Value>, ClusterError> {
    let annotations = json!({"storageclass.kubernetes.io/is-default-class": class.default.to_string()});
    let mut object = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": class.name, "annotations": annotations},
        "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate", "allowVolumeExpansion": true,
    });
    Ok(match &class.share {
        Share::Nfs(nfs) => {
            object["provisioner"] = json!("nfs.csi.k8s.io");
            object["parameters"] = json!({"server": nfs.server, "share": nfs.path});
            object["mountOptions"] = json!(["nfsvers=4.1", "hard"]);
            vec![object]
        }
        Share::Smb(smb) => {
            let name = format!("smb-{}", class.name);
            object["provisioner"] = json!("smb.csi.k8s.io");
            object["parameters"] = json!({
                "source": smb.source,
                "csi.storage.k8s.io/provisioner-secret-name": name,
                "csi.storage.k8s.io/provisioner-secret-namespace": "kube-system",
                "csi.storage.k8s.io/node-stage-secret-name": name,
                "csi.storage.k8s.io/node-stage-secret-namespace": "kube-system",
            });
            object["mountOptions"] = json!(["dir_mode=0777", "file_mode=0777", "mfsymlinks", "nobrl", "cache=strict"]);
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "kube-system"},
                "stringData": {"username": smb.user, "password": smb.password.read(trusted)?},
            });
            vec![secret, object]
        }
    })
}

fn storage(cluster: &Cluster) -> Result<Vec<Resource>, ClusterError> {
    let classes = &cluster.spec.storage.classes;
    let kubelet = cluster.spec.kubernetes.distribution.kubelet_folder();
    let mut out = Vec::new();
    if classes.iter().any(|c| matches!(c.share, Share::Nfs(_))) {
        out.extend(NFS.resources(cluster, Layer::Storage, &json!({"kubeletDir": kubelet})));
    }
    if classes.iter().any(|c| matches!(c.share, Share::Smb(_))) {
        out.extend(SMB.resources(cluster, Layer::Storage, &json!({"linux": {"kubelet": kubelet}})));
    }
    for class in classes {
        let driver = match class.share {
            Share::Nfs(_) => NFS.name,
            Share::Smb(_) => SMB.name,
        };
        let name = format!("class-{}", class.name);
        let [document, applied] =
            manifest(cluster, &name, &storage_class(class, &cluster.trusted)?, matches!(class.share, Share::Smb(_)));
        out.extend([document, applied.needs(&[&format!("storage/{name}-manifest"), &format!("storage/{driver}")])]);
    }
    Ok(out)
}

/// The configuration of NVIDIA's device plugin, which slipway's device plugin reads too.
fn plugin_config(sharing: Option<&Sharing>) -> Value {
    let shared = |n: &u32| json!({"resources": [{"name": "nvidia.com/gpu", "replicas": n}]});
    let mut out = json!({"version": "v1"});
    match sharing {
        None => {}
        Some(Sharing::TimeSlices(n)) => out["sharing"] = json!({"timeSlicing": shared(n)}),
        Some(Sharing::Mps(n)) => out["sharing"] = json!({"mps": shared(n)}),
        Some(Sharing::Mig(_)) => out["flags"] = json!({"migStrategy": "mixed"}),
    }
    out
}

fn device_plugin(cluster: &Cluster) -> Vec<Resource> {
    let (gpu, layer) = (&cluster.spec.gpu, Layer::DevicePlugin);
    let nodes: Vec<&str> = cluster.spec.machines.iter().filter(|m| m.is(Role::Gpu)).map(|m| m.name.as_str()).collect();
    if nodes.is_empty() {
        return Vec::new();
    }
    let kubectl = cluster.spec.kubernetes.distribution.kubectl();
    let mut out = Vec::new();
    if gpu.device_plugin == DevicePlugin::Nvidia {
        let config = serde_json::to_string(&plugin_config(gpu.sharing.as_ref())).unwrap_or_default();
        let values = json!({
            "config": {"map": {"default": config}, "default": "default"},
            "gfd": {"enabled": true},
            "nfd": {"enabled": true},
        });
        out.extend(NVIDIA.resources(cluster, layer, &values));
    }
    if let (Some(Sharing::Mig(_)), DevicePlugin::Slipway) = (&gpu.sharing, gpu.device_plugin) {
        for node in nodes {
            let label = "nvidia.com/mig.config";
            let escaped = label.replace('.', "\\.");
            let check =
                format!("[ \"$({kubectl} get node {node} -o jsonpath='{{.metadata.labels.{escaped}}}')\" = slipway ]");
            let run = format!("{kubectl} label node {node} {label}=slipway --overwrite");
            let new = command(layer, &format!("mig-{node}"), &check, &run, &format!("MIG layout of {node}"));
            out.push(new.effect("partitions the node's GPUs; pods that use them are evicted"));
        }
    }
    out
}

/// Values of slipway's chart that follow from the file. `spec.platform.values` overrides them.
fn values(cluster: &Cluster) -> Value {
    let spec = &cluster.spec;
    let Some(platform) = &spec.platform else { return Value::Null };
    let own_plugin = spec.gpu.device_plugin == DevicePlugin::Slipway;
    let mut out = json!({
        "server": {"enabled": platform.server},
        "node": {"enabled": own_plugin, "kubeletDir": spec.kubernetes.distribution.kubelet_folder()},
    });
    if own_plugin && let Some(sharing) = &spec.gpu.sharing {
        out["node"]["config"] = json!({"default": plugin_config(Some(sharing)).to_string()});
        if let Sharing::Mig(devices) = sharing {
            let layout = json!([{"devices": "all", "mig-enabled": true, "mig-devices": devices}]);
            let config = json!({"version": "v1", "mig-configs": {"slipway": layout}});
            out["node"]["migConfig"] = json!(config.to_string());
        }
    }
    merge(&mut out, &Value::Object(platform.values.clone()));
    out
}

/// Merges `from` into `into` recursively. Values of `from` win.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// slipway in the cluster. An annotation of the namespace has the digest of image and values, so that a change is detected.
fn platform(cluster: &Cluster) -> Vec<Resource> {
    let Some(platform) = &cluster.spec.platform else { return Vec::new() };
    let distribution = cluster.spec.kubernetes.distribution;
    let (kubectl, kubeconfig) = (distribution.kubectl(), distribution.kubeconfig());
    let (layer, path) = (Layer::Platform, format!("{MANIFEST_FOLDER}/platform.json"));
    let text = serde_json::to_string_pretty(&values(cluster)).unwrap_or_default() + "\n";
    let (namespace, image) = (quote(&platform.namespace), quote(&platform.image));
    let digest = digest(format!("{}{text}", platform.image).as_bytes());
    let kind = if platform.server { "deployment/slipway" } else { "daemonset/slipway-node" };
    let check = format!(
        "[ \"$({kubectl} get namespace {namespace} -o jsonpath='{{.metadata.annotations.slipway\\.dev/wanted}}')\" = {digest} ] && \
         [ \"$({kubectl} get -n {namespace} {kind} -o jsonpath='{{.spec.template.spec.containers[0].image}}')\" = {image} ]"
    );
    let kube = format!("--yes --kube --kubeconfig {kubeconfig} --namespace {namespace}");
    let run = format!(
        "\"$SLIPWAY\" up {kube} --image {image} --values {path} --wait 600 && \
         {kubectl} annotate namespace {namespace} slipway.dev/wanted={digest} --overwrite"
    );
    let mut up = command(layer, "slipway", &check, &run, &format!("slipway {}", platform.image));
    if let ResourceKind::Command { undo, .. } = &mut up.what {
        *undo = Some(format!("\"$SLIPWAY\" down {kube}"));
    }
    let document = file(layer, "values", &path, text);
    vec![document, up.needs(&["platform/values"]).with_timeout(900).effect("downloads slipway's image")]
}

/// All resources of the cluster as a whole, in the order in which they are applied.
pub(super) fn resources(cluster: &Cluster) -> Result<Vec<Resource>, ClusterError> {
    let mut out = addons(cluster);
    let mut rest = storage(cluster)?;
    rest.extend(device_plugin(cluster));
    rest.extend(platform(cluster));
    let uses_helm =
        |r: &Resource| matches!(&r.what, ResourceKind::Command { run, .. } if run.starts_with("/usr/local/bin/helm"));
    if rest.iter().any(uses_helm) {
        out.push(helm(cluster, Layer::Addons));
    }
    out.extend(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    fn ids(more: &str) -> Vec<String> {
        let cluster = Cluster::parse(&FILE.replace("spec:", &format!("spec:\n{more}"))).unwrap();
        resources(&cluster).unwrap().into_iter().map(|r| r.id).filter(|id| !id.starts_with("addons/")).collect()
    }

    #[test]
    fn storage_driver_comes_before_its_classes() {
        let nfs = "  storage: {classes: [{name: a, share: {nfs: {server: s, path: /p}}}, {name: b, share: {nfs: {server: s, path: /q}}}]}";
        let driver = ["storage/csi-driver-nfs-values", "storage/csi-driver-nfs"];
        let classes = ["storage/class-a-manifest", "storage/class-a", "storage/class-b-manifest", "storage/class-b"];
        assert_eq!(ids(nfs), [&driver[..], &classes[..]].concat());
    }

    #[test]
    fn smb_password_is_not_in_any_change_text() {
        let smb = "  storage: {classes: [{name: a, share: {smb: {source: //s/d, user: u, password: {command: 'printf hunter2'}}}}]}";
        let mut cluster = Cluster::parse(&FILE.replace("spec:", &format!("spec:\n{smb}"))).unwrap();
        cluster.trust_commands();
        let resources = resources(&cluster).unwrap();
        let shown: Vec<String> =
            resources.iter().flat_map(|r| r.check(&crate::probe::Facts::default())).map(|c| c.text).collect();
        assert!(!shown.join("\n").contains("hunter2"), "{shown:?}");
        let ResourceKind::File { content, mode, .. } =
            &resources.iter().find(|r| r.id == "storage/class-a-manifest").unwrap().what
        else {
            panic!("the manifest is not a file");
        };
        assert!(content.secret && content.text.contains("hunter2") && mode == "0600");
    }

    #[test]
    fn device_plugin_and_sharing_follow_the_file() {
        assert!(ids("").is_empty());
        let nvidia = "  gpu: {devicePlugin: nvidia, sharing: {timeSlices: 4}}";
        assert_eq!(ids(nvidia)[1], "device-plugin/nvidia-device-plugin");
        let cluster = Cluster::parse(&FILE.replace(
            "spec:",
            "spec:\n  gpu: {sharing: {mig: {1g.10gb: 7}}}\n  platform: {image: 'slipway:1', values: {node: {recoverAfter: 5}}}",
        ))
        .unwrap();
        let values = values(&cluster);
        assert_eq!(
            (&values["node"]["recoverAfter"], &values["node"]["kubeletDir"]),
            (&json!(5), &json!("/var/snap/microk8s/common/var/lib/kubelet"))
        );
        assert!(values["node"]["migConfig"].as_str().unwrap().contains(r#""mig-devices":{"1g.10gb":7}"#));
        let ids: Vec<String> = resources(&cluster).unwrap().into_iter().map(|r| r.id).collect();
        assert!(ids.contains(&"device-plugin/mig-gpu1".into()) && ids.ends_with(&["platform/slipway".into()]));
    }
}
