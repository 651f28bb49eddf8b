//! Objects of the node agent: the DaemonSet, its RBAC rules, and admission policies that restrict each agent to its own node.

use serde_json::{Value, json};
use slipway_core::compute_domain::LABEL;
use slipway_core::node_access::ACCOUNT;

use super::Values;
use super::objects::{
    PolicyScope, admission_policy, allow_ingress, labels, object, restricted_security_context, selector,
};
use crate::domains::CHANNEL_DRIVER;

/// Annotation of the DaemonSet with the names of its DRA drivers, separated by commas, by which its ResourceSlices are found when it is removed.
pub(super) const DRIVER_ANNOTATION: &str = "slipway.dev/dra-driver";
const NAME: &str = "slipway-node";
const PORT: u16 = 9400;
/// Port at which an IMEX daemon accepts its peers (`SERVER_PORT` of its configuration).
const IMEX_PORT: u16 = 50000;

pub(super) fn objects(values: &Values) -> Vec<Value> {
    let node_object = |kind, name: &str, namespaced, body| object(values, "node", kind, name, namespaced, body);
    let rbac = "rbac.authorization.k8s.io";
    let cluster_name = format!("{NAME}-{}", values.namespace);
    let mut all = vec![
        node_object(("v1", "ServiceAccount"), NAME, true, json!({})),
        // This account has no RBAC rules. Agents accept its tokens as proof that a client may read their data about pods.
        node_object(("v1", "ServiceAccount"), ACCOUNT, true, json!({"automountServiceAccountToken": false})),
        node_object(
            ("rbac.authorization.k8s.io/v1", "ClusterRole"),
            &cluster_name,
            false,
            json!({"rules": rules(values)}),
        ),
        node_object(
            ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
            &cluster_name,
            false,
            json!({
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": cluster_name},
                "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": values.namespace}],
            }),
        ),
    ];
    all.extend(restrict_to_own_node(values));
    if values.device_classes.enabled {
        all.extend(device_classes(values));
    }
    if !values.node.config.is_empty() {
        all.push(node_object(("v1", "ConfigMap"), "slipway-node-config", true, json!({"data": values.node.config})));
    }
    if !values.node.mig_config.is_empty() {
        let data = json!({"data": {"config.yaml": values.node.mig_config}});
        all.push(node_object(("v1", "ConfigMap"), "slipway-mig-config", true, data));
    }
    if !values.node.accept.limits.is_empty() {
        let data = json!({"data": {"limits.yaml": values.node.accept.limits}});
        all.push(node_object(("v1", "ConfigMap"), "slipway-accept-limits", true, data));
    }
    if !values.node.gpu_settings.is_empty() {
        let data = json!({"data": values.node.gpu_settings});
        all.push(node_object(("v1", "ConfigMap"), "slipway-gpu-settings", true, data));
    }
    all.push(daemon_set(values));
    let ports = json!([{"name": "metrics", "port": PORT, "targetPort": "metrics", "protocol": "TCP"}]);
    all.push(node_object(
        ("v1", "Service"),
        NAME,
        true,
        json!({"spec": {
            "clusterIP": "None", "selector": selector(values, "node"), "ports": ports,
        }}),
    ));
    if values.service_monitor.enabled {
        all.push(node_object(
            ("monitoring.coreos.com/v1", "ServiceMonitor"),
            NAME,
            true,
            json!({"spec": {
                "selector": {"matchLabels": selector(values, "node")},
                "endpoints": [{"port": "metrics", "interval": values.service_monitor.interval}],
            }}),
        ));
    }
    if values.network_policy {
        all.push(allow_ingress(values, "node", &[PORT]));
        if runs_imex(values) {
            let pods = json!({"matchLabels": selector(values, "node")});
            // Only other agents run daemons, and IMEX does not authenticate its peers.
            let ingress = json!([{"from": [{"podSelector": pods}], "ports": [{"port": IMEX_PORT, "protocol": "TCP"}]}]);
            let body = json!({"spec": {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": ingress}});
            all.push(node_object(("networking.k8s.io/v1", "NetworkPolicy"), "slipway-node-imex", true, body));
        }
    }
    all
}

/// Whether the agents run IMEX.
fn runs_imex(values: &Values) -> bool {
    values.compute_domains.enabled && values.compute_domains.imex == "agent"
}

/// The RBAC rules of an agent.
fn rules(values: &Values) -> Vec<Value> {
    let mut rules = vec![
        json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch", "patch"]}),
        json!({"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}),
        json!({"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]}),
        json!({"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]}),
        json!({"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims"], "verbs": ["get"]}),
        json!({"apiGroups": ["resource.k8s.io"], "resources": ["resourceslices"], "verbs": ["get", "list", "create", "patch", "delete"]}),
        json!({"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}),
    ];
    if values.compute_domains.enabled {
        rules.push(json!({"apiGroups": ["resource.nvidia.com"], "resources": ["computedomains"], "verbs": ["get", "list", "watch"]}));
    }
    rules
}

fn daemon_set(values: &Values) -> Value {
    let node = &values.node;
    // Kubelet and MPS folders have the same paths in the container as on the host. The driver root may be `/` on the host, so it has
    // another path.
    let mut args = vec![
        "node".to_owned(),
        "run".into(),
        format!("--offer={}", node.offer),
        format!("--kubelet-dir={}", node.kubelet_dir),
        "--cdi-dir=/host/cdi".into(),
        format!("--driver-root={}", node.driver_root),
        "--driver-root-here=/host/driver".into(),
        format!("--mps-root={}", node.mps_root),
        format!("--dra-driver={}", node.dra_driver),
        format!("--recover-after={}", node.recover_after),
        format!("--listen=0.0.0.0:{PORT}"),
        "--home=/var/lib/slipway".into(),
    ];
    let host = |name: &str, path: &str, kind: &str| json!({"name": name, "hostPath": {"path": path, "type": kind}});
    let kubelet = |folder: &str| format!("{}/{folder}", node.kubelet_dir);
    let plugin = kubelet(&format!("plugins/{}", node.dra_driver));
    let mut volumes = vec![
        // Mount only subfolders of the kubelet's folder, because it contains the secrets of every pod.
        host("device-plugins", &kubelet("device-plugins"), "Directory"),
        host("plugins-registry", &kubelet("plugins_registry"), "Directory"),
        host("plugin", &plugin, "DirectoryOrCreate"),
        host("pod-resources", &kubelet("pod-resources"), "Directory"),
        host("cdi", &node.cdi_dir, "DirectoryOrCreate"),
        host("state", &node.state_dir, "DirectoryOrCreate"),
        host("driver", &node.driver_root, "DirectoryOrCreate"),
        host("mps", &node.mps_root, "DirectoryOrCreate"),
    ];
    let mut mounts = vec![
        json!({"name": "device-plugins", "mountPath": kubelet("device-plugins")}),
        json!({"name": "plugins-registry", "mountPath": kubelet("plugins_registry")}),
        json!({"name": "plugin", "mountPath": plugin}),
        json!({"name": "pod-resources", "mountPath": kubelet("pod-resources"), "readOnly": true}),
        json!({"name": "cdi", "mountPath": "/host/cdi"}),
        json!({"name": "state", "mountPath": "/var/lib/slipway"}),
        json!({"name": "driver", "mountPath": "/host/driver", "readOnly": true, "mountPropagation": "HostToContainer"}),
        json!({"name": "mps", "mountPath": node.mps_root}),
        // MPS daemons and their clients communicate through shared memory.
        json!({"name": "mps", "mountPath": "/dev/shm", "subPath": "shm"}),
    ];
    if !node.config.is_empty() {
        args.push("--config-dir=/etc/slipway/config".into());
        volumes.push(json!({"name": "config", "configMap": {"name": "slipway-node-config"}}));
        mounts.push(json!({"name": "config", "mountPath": "/etc/slipway/config", "readOnly": true}));
    }
    if !node.mig_config.is_empty() {
        args.push("--mig-config=/etc/slipway/mig/config.yaml".into());
        volumes.push(json!({"name": "mig-config", "configMap": {"name": "slipway-mig-config"}}));
        mounts.push(json!({"name": "mig-config", "mountPath": "/etc/slipway/mig", "readOnly": true}));
    }
    let domains = &values.compute_domains;
    if domains.enabled {
        args.extend(["--imex-channels".into(), format!("--imex={}", domains.imex)]);
        let plugin = kubelet(&format!("plugins/{CHANNEL_DRIVER}"));
        volumes.push(host("channel-plugin", &plugin, "DirectoryOrCreate"));
        mounts.push(json!({"name": "channel-plugin", "mountPath": plugin}));
    }
    if runs_imex(values) {
        // IMEX finds its peers by names in the hosts file, and keeps what its peers have imported across restarts.
        volumes.push(host("imex-hosts", "/run/slipway-imex-hosts", "FileOrCreate"));
        volumes.push(host("imex", "/run/nvidia-imex", "DirectoryOrCreate"));
        mounts.push(json!({"name": "imex-hosts", "mountPath": "/etc/hosts"}));
        mounts.push(json!({"name": "imex", "mountPath": "/var/run/nvidia-imex"}));
    }
    if node.accept.level > 0 {
        args.push(format!("--accept={}", node.accept.level));
        if !node.accept.every.is_empty() {
            args.push(format!("--accept-every={}", node.accept.every));
        }
        if !node.accept.limits.is_empty() {
            args.push("--accept-limits=/etc/slipway/accept/limits.yaml".into());
        }
    }
    if !node.accept.limits.is_empty() {
        volumes.push(json!({"name": "accept-limits", "configMap": {"name": "slipway-accept-limits"}}));
        mounts.push(json!({"name": "accept-limits", "mountPath": "/etc/slipway/accept", "readOnly": true}));
    }
    if node.reset_on_fault {
        args.push("--reset-on-fault".into());
    }
    // Without the toleration of acceptance, an agent that was restarted could not remove its own taint.
    let mut tolerations = node.tolerations.clone();
    tolerations.push(json!({"key": "slipway.dev/not-accepted", "operator": "Exists", "effect": "NoSchedule"}));
    if node.amd.enabled {
        args.extend(["--amd".into(), format!("--amd-naming={}", node.amd.naming)]);
        // A link in this folder leads to ROCm's current version, so the folder is mounted and not the link.
        volumes.push(host("rocm", &node.amd.rocm_dir, "DirectoryOrCreate"));
        mounts.push(
            json!({"name": "rocm", "mountPath": "/opt", "readOnly": true, "mountPropagation": "HostToContainer"}),
        );
        tolerations.push(json!({"key": "amd.com/gpu", "operator": "Exists", "effect": "NoSchedule"}));
    }
    if !node.gpu_settings.is_empty() {
        args.push("--gpu-settings-dir=/etc/slipway/gpu-settings".into());
        volumes.push(json!({"name": "gpu-settings", "configMap": {"name": "slipway-gpu-settings"}}));
        mounts.push(json!({"name": "gpu-settings", "mountPath": "/etc/slipway/gpu-settings", "readOnly": true}));
    }
    let mut env = vec![
        json!({"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}),
        // The agent allocates little, so one malloc arena saves memory.
        json!({"name": "MALLOC_ARENA_MAX", "value": "1"}),
    ];
    if runs_imex(values) {
        env.push(json!({"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}));
    }
    env.extend(node.env.iter().map(|(name, value)| json!({"name": name, "value": value})));
    // The kubelet's sockets belong to root, so the agent runs as root without capabilities, unless GPU access requires privileges.
    let mut security = restricted_security_context();
    security["runAsUser"] = json!(0);
    if node.privileged {
        security = json!({"privileged": true, "readOnlyRootFilesystem": true, "runAsUser": 0});
    }
    let mut pod = json!({
        "serviceAccountName": NAME,
        "priorityClassName": "system-node-critical",
        "terminationGracePeriodSeconds": 10,
        "nodeSelector": node.node_selector,
        "tolerations": tolerations,
        "imagePullSecrets": values.image_pull_secrets,
        "containers": [{
            "name": "agent",
            "image": values.image_name(),
            "imagePullPolicy": values.image.pull_policy,
            "args": args,
            "env": env,
            "ports": [{"name": "metrics", "containerPort": PORT, "protocol": "TCP"}],
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": "metrics"}, "periodSeconds": 10},
            "resources": node.resources,
            "securityContext": security,
            "volumeMounts": mounts,
        }],
        "volumes": volumes,
    });
    if !node.runtime_class_name.is_empty() {
        pod["runtimeClassName"] = json!(node.runtime_class_name);
    }
    let mut set = object(
        values,
        "node",
        ("apps/v1", "DaemonSet"),
        NAME,
        true,
        json!({"spec": {
            "selector": {"matchLabels": selector(values, "node")},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
            "template": {"metadata": {"labels": labels(values, "node")}, "spec": pod},
        }}),
    );
    let drivers =
        if domains.enabled { format!("{},{CHANNEL_DRIVER}", node.dra_driver) } else { node.dra_driver.clone() };
    set["metadata"]["annotations"] = json!({DRIVER_ANNOTATION: drivers});
    set
}

/// RBAC rules apply to all nodes. These policies restrict an agent to its own node, and there to labels of GPUs (`nvidia.com/`, `amd.com/gpu.`),
/// the label and the taint of acceptance, and the state of the GPU settings.
fn restrict_to_own_node(values: &Values) -> Vec<Value> {
    let own = "request.userInfo.extra[?'authentication.kubernetes.io/node-name'][?0].orValue('')";
    let policy = |suffix: &str, group: &'static str, resources: Value, operations: Value, validations: Value| {
        let name = format!("{NAME}-{}-{suffix}", values.namespace);
        let scope = PolicyScope { component: "node", name, account: NAME, group, resources, operations };
        admission_policy(values, &scope, validations)
    };
    let domain = if values.compute_domains.enabled { format!(" || k == '{LABEL}'") } else { String::new() };
    let own_label = format!(
        "k.startsWith('nvidia.com/') || k.startsWith('amd.com/gpu.') || k.startsWith('beta.amd.com/gpu.') || \
         k == 'slipway.dev/accepted' || k == 'slipway.dev/gpu-settings.state'{domain}"
    );
    let other_labels_unchanged = |a: &str, b: &str| {
        format!(
            "{a}.metadata.?labels.orValue({{}}).all(k, {own_label} || \
             {b}.metadata.?labels[?k].orValue('') == {a}.metadata.labels[k])"
        )
    };
    let spec_unchanged =
        |a: &str, b: &str| format!("{a}.spec.all(k, k == 'taints' || (k in {b}.spec && {a}.spec[k] == {b}.spec[k]))");
    let other_taints = |a: &str| format!("{a}.spec.?taints.orValue([]).filter(t, t.key != 'slipway.dev/not-accepted')");
    let taint_effect =
        "object.spec.?taints.orValue([]).all(t, t.key != 'slipway.dev/not-accepted' || t.effect == 'NoSchedule')";
    let mut all = Vec::new();
    all.extend(policy(
        "nodes",
        "",
        json!(["nodes", "nodes/status"]),
        json!(["UPDATE"]),
        json!([
            {"expression": format!("object.metadata.name == {own}"), "message": "an agent changes its own node only"},
            {"expression": spec_unchanged("object", "oldObject"), "message": "an agent does not change a node's spec, except for its taint"},
            {"expression": spec_unchanged("oldObject", "object"), "message": "an agent removes nothing of a node's spec, except for its taint"},
            {
                "expression": format!("{} == {}", other_taints("object"), other_taints("oldObject")),
                "message": "an agent changes no taint but slipway.dev/not-accepted",
            },
            {"expression": taint_effect, "message": "the taint slipway.dev/not-accepted has the effect NoSchedule"},
            {"expression": other_labels_unchanged("object", "oldObject"), "message": "an agent sets its own labels only"},
            {"expression": other_labels_unchanged("oldObject", "object"), "message": "an agent removes its own labels only"},
        ]),
    ));
    all.extend(policy(
        "slices",
        "resource.k8s.io",
        json!(["resourceslices"]),
        json!(["CREATE", "UPDATE", "DELETE"]),
        json!([{
            "expression": format!("(request.operation == 'DELETE' ? oldObject : object).spec.?nodeName.orValue('') == {own}"),
            "message": "an agent publishes its own node's devices only",
        }]),
    ));
    all
}

fn device_classes(values: &Values) -> Vec<Value> {
    let driver = &values.node.dra_driver;
    let class = |name: &str, kind: &str, extended: &str| {
        let expression = format!("device.driver == '{driver}' && device.attributes['{driver}'].type == '{kind}'");
        let mut spec = json!({"selectors": [{"cel": {"expression": expression}}]});
        if !extended.is_empty() && values.node.offer == "dra" {
            spec["extendedResourceName"] = json!(extended);
        }
        object(values, "node", ("resource.k8s.io/v1", "DeviceClass"), name, false, json!({"spec": spec}))
    };
    // With NVIDIA's driver name `gpu.nvidia.com`, the class names are NVIDIA's too: `gpu.nvidia.com` and `mig.nvidia.com`.
    let vendor = driver.strip_prefix("gpu.").unwrap_or(driver);
    vec![
        class(driver, "gpu", &values.device_classes.extended_resource_name),
        class(&format!("mig.{vendor}"), "mig", ""),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon_set_of(text: &str) -> Value {
        let all = objects(&Values::read("sys", &[text.to_owned()]).unwrap());
        all.into_iter().find(|o| o["kind"] == "DaemonSet").unwrap()["spec"]["template"]["spec"].clone()
    }

    #[test]
    fn agent_tolerates_its_own_taint_and_gets_the_settings_of_acceptance() {
        let pod = daemon_set_of("node: {tolerations: [], accept: {level: 3, every: 7d, limits: 'pcie: 0.8'}}");
        let taint = json!({"key": "slipway.dev/not-accepted", "operator": "Exists", "effect": "NoSchedule"});
        assert_eq!(pod["tolerations"], json!([taint]));
        let args = pod["containers"][0]["args"].as_array().unwrap();
        let file = "--accept-limits=/etc/slipway/accept/limits.yaml";
        for argument in ["--accept=3", "--accept-every=7d", file] {
            assert!(args.contains(&json!(argument)), "{args:?}");
        }
        assert!(pod["volumes"].as_array().unwrap().iter().any(|v| v["configMap"]["name"] == "slipway-accept-limits"));
        assert!(!daemon_set_of("{}").to_string().contains("--accept"));
    }
}
