//! Objects of the control plane and of separate gateways: Deployments whose state is on a volume, or shared in a database and a bucket.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use slipway_core::env;
use slipway_core::node_access::ACCOUNT;

use super::Values;
use super::objects::{
    PolicyScope, admission_policy, allow_ingress, labels, object, pod_security_context, restricted_security_context,
    selector,
};
use crate::names::SERVER_NAME as NAME;

const GATEWAY: &str = "slipway-gateway";
const RBAC: &str = "rbac.authorization.k8s.io/v1";

pub(super) fn objects(values: &Values) -> Vec<Value> {
    let server_object = |kind, name: &str, body| object(values, "server", kind, name, true, body);
    let server = &values.server;
    let rbac = "rbac.authorization.k8s.io";
    let subjects = json!([{"kind": "ServiceAccount", "name": NAME, "namespace": values.namespace}]);
    let cluster_name = format!("{NAME}-{}", values.namespace);
    let cluster_wide = |kind, body| object(values, "server", (RBAC, kind), &cluster_name, false, body);
    let mut all = vec![
        server_object(("v1", "ServiceAccount"), NAME, json!({})),
        // List nodes; show, cancel and delete runs; review tokens and permissions.
        cluster_wide(
            "ClusterRole",
            json!({"rules": [
                {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]},
                {"apiGroups": ["slipway.dev"], "resources": ["runs"], "verbs": ["get", "list", "patch", "delete"]},
                {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
                {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
            ]}),
        ),
        cluster_wide(
            "ClusterRoleBinding",
            json!({
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": cluster_name}, "subjects": subjects,
            }),
        ),
        server_object(
            (RBAC, "Role"),
            NAME,
            // Requests to the node agents for their GPUs.
            json!({"rules": [
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
                {"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": [ACCOUNT], "verbs": ["create"]},
            ]}),
        ),
        server_object(
            (RBAC, "RoleBinding"),
            NAME,
            json!({
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": NAME}, "subjects": subjects,
            }),
        ),
    ];
    all.extend(restrict_to_cancelling(values));
    all.extend(user_roles(values));
    let shared = values.is_shared();
    let claim = if server.storage.existing_claim.is_empty() { NAME } else { &server.storage.existing_claim };
    if server.storage.existing_claim.is_empty() && !server.storage.ephemeral && !shared {
        let mut spec = json!({
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": server.storage.size}},
        });
        if !server.storage.class.is_empty() {
            spec["storageClassName"] = json!(server.storage.class);
        }
        all.push(server_object(("v1", "PersistentVolumeClaim"), NAME, json!({"spec": spec})));
    }
    all.extend(workload(
        values,
        &Workload {
            component: "server",
            name: NAME,
            replicas: server.replicas,
            argument: None,
            volume: (!server.storage.ephemeral && !shared).then_some(claim),
            resources: &server.resources,
            node_selector: &server.node_selector,
            tolerations: &server.tolerations,
        },
    ));
    all
}

/// Gateways separate from the control plane. Their only permission in the cluster is to review tokens and permissions.
pub(super) fn gateway(values: &Values) -> Vec<Value> {
    let gateway_object = |kind, name: &str, body| object(values, "gateway", kind, name, true, body);
    let cluster_name = format!("{GATEWAY}-{}", values.namespace);
    let gateway = &values.gateway;
    let mut all = vec![
        gateway_object(("v1", "ServiceAccount"), GATEWAY, json!({})),
        object(
            values,
            "gateway",
            (RBAC, "ClusterRoleBinding"),
            &cluster_name,
            false,
            json!({
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"},
                "subjects": [{"kind": "ServiceAccount", "name": GATEWAY, "namespace": values.namespace}],
            }),
        ),
    ];
    all.extend(workload(
        values,
        &Workload {
            component: "gateway",
            name: GATEWAY,
            replicas: gateway.replicas,
            argument: Some("--gateway-only"),
            volume: None,
            resources: &gateway.resources,
            node_selector: &gateway.node_selector,
            tolerations: &gateway.tolerations,
        },
    ));
    all
}

/// Names and numbers of the ports. A separate gateway uses the first only for probes and metrics.
const PORTS: [(&str, u16); 3] = [("http", 7070), ("inference", 7071), ("grpc", 7072)];

/// A Deployment of `slipway up`, with its Service, disruption budget and network policy.
struct Workload<'a> {
    component: &'static str,
    name: &'static str,
    replicas: u32,
    /// Additional command-line argument.
    argument: Option<&'static str>,
    /// Name of the PersistentVolumeClaim for the state; `None` if the state is elsewhere or is deleted with the pod.
    volume: Option<&'a str>,
    resources: &'a Value,
    node_selector: &'a BTreeMap<String, String>,
    tolerations: &'a [Value],
}

fn workload(values: &Values, workload: &Workload<'_>) -> Vec<Value> {
    let workload_object = |kind, body| object(values, workload.component, kind, workload.name, true, body);
    let server = &values.server;
    let state = match workload.volume {
        None => json!({"name": "state", "emptyDir": {}}),
        Some(claim) => json!({"name": "state", "persistentVolumeClaim": {"claimName": claim}}),
    };
    let container_ports: Vec<Value> =
        PORTS.iter().map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"})).collect();
    let service_ports: Vec<Value> = PORTS
        .iter()
        .map(|(name, port)| json!({"name": name, "port": port, "targetPort": name, "protocol": "TCP"}))
        .collect();
    let mut security = restricted_security_context();
    security["runAsNonRoot"] = json!(true);
    let mut arguments = vec![
        "up",
        "--home=/var/lib/slipway/home",
        "--listen=0.0.0.0:7070",
        "--inference-listen=0.0.0.0:7071",
        "--grpc-listen=0.0.0.0:7072",
        "--token-file=/etc/slipway/tokens/tokens",
    ];
    let tls = &server.tls;
    if !tls.secret.is_empty() {
        arguments.extend(["--tls-cert=/etc/slipway/tls/tls.crt", "--tls-key=/etc/slipway/tls/tls.key"]);
    }
    let hosts = format!("--hosts={}", server.hosts.join(","));
    if !server.hosts.is_empty() {
        arguments.push(&hosts);
    }
    let cors_origins: Vec<String> = server.cors_origins.iter().map(|o| format!("--cors-origin={o}")).collect();
    arguments.extend(cors_origins.iter().map(String::as_str));
    arguments.extend(workload.argument);
    let mut environment = vec![
        json!({"name": "SLIPWAY_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}),
        json!({"name": "SLIPWAY_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        json!({"name": "SLIPWAY_CONTROLLER", "value": "apart"}),
        json!({"name": env::IMAGE, "value": values.image_name()}),
        json!({"name": env::IMAGE_PULL_POLICY, "value": values.image.pull_policy}),
    ];
    let pull_secrets: Vec<&str> =
        values.image_pull_secrets.iter().filter_map(|secret| secret["name"].as_str()).collect();
    if !pull_secrets.is_empty() {
        environment.push(json!({"name": env::IMAGE_PULL_SECRETS, "value": pull_secrets.join(",")}));
    }
    let mut mounts = vec![
        json!({"name": "state", "mountPath": "/var/lib/slipway"}),
        json!({"name": "tokens", "mountPath": "/etc/slipway/tokens", "readOnly": true}),
        json!({"name": "tmp", "mountPath": "/tmp"}),
    ];
    let mut volumes = vec![
        state,
        json!({"name": "tokens", "secret": {"secretName": server.token_secret, "defaultMode": 0o440}}),
        json!({"name": "tmp", "emptyDir": {}}),
    ];
    let probe = |path: &str| {
        let mut get = json!({"path": path, "port": "http"});
        if !tls.secret.is_empty() {
            get["scheme"] = json!("HTTPS");
        }
        get
    };
    if !tls.secret.is_empty() {
        mounts.push(json!({"name": "tls", "mountPath": "/etc/slipway/tls", "readOnly": true}));
        volumes.push(json!({"name": "tls", "secret": {"secretName": tls.secret, "defaultMode": 0o440}}));
    }
    let mut variables = Vec::new();
    if !server.database.secret.is_empty() {
        let url = json!({"secretKeyRef": {"name": server.database.secret, "key": "url"}});
        environment.push(json!({"name": "SLIPWAY_DATABASE", "valueFrom": url}));
    }
    if !server.objects.url.is_empty() {
        environment.push(json!({"name": "SLIPWAY_OBJECTS", "value": server.objects.url}));
    }
    if !server.objects.secret.is_empty() {
        variables.push(json!({"secretRef": {"name": server.objects.secret}}));
    }
    // Two pods must not write the same SQLite file, so stop the old pod before starting the new one.
    let strategy = if values.is_shared() { "RollingUpdate" } else { "Recreate" };
    let pod = selector(values, workload.component);
    let mut all = vec![
        workload_object(
            ("apps/v1", "Deployment"),
            json!({"spec": {
                "replicas": workload.replicas,
                "strategy": {"type": strategy},
                "selector": {"matchLabels": pod},
                "template": {
                    "metadata": {"labels": labels(values, workload.component)},
                    "spec": {
                        "serviceAccountName": workload.name,
                        "securityContext": pod_security_context(),
                        "nodeSelector": workload.node_selector,
                        "tolerations": workload.tolerations,
                        "topologySpreadConstraints": [{
                            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                            "labelSelector": {"matchLabels": pod},
                        }],
                        "imagePullSecrets": values.image_pull_secrets,
                        "containers": [{
                            "name": "slipway",
                            "image": values.image_name(),
                            "imagePullPolicy": values.image.pull_policy,
                            "args": arguments,
                            "env": environment,
                            "envFrom": variables,
                            "ports": container_ports,
                            "startupProbe": {"httpGet": probe("/readyz"), "periodSeconds": 1, "failureThreshold": 120},
                            "readinessProbe": {"httpGet": probe("/readyz"), "periodSeconds": 5},
                            "livenessProbe": {"httpGet": probe("/healthz"), "periodSeconds": 10},
                            "resources": workload.resources,
                            "securityContext": security,
                            "volumeMounts": mounts,
                        }],
                        "volumes": volumes,
                    },
                },
            }}),
        ),
        workload_object(("v1", "Service"), json!({"spec": {"selector": pod, "ports": service_ports}})),
    ];
    if workload.replicas > 1 {
        let spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": pod}});
        all.push(workload_object(("policy/v1", "PodDisruptionBudget"), json!({"spec": spec})));
    }
    if values.network_policy {
        all.push(allow_ingress(values, workload.component, &[7070, 7071, 7072]));
    }
    all
}

/// The control plane can change runs in every namespace, because it cancels them. This policy denies all other changes, such as to the
/// service account of a run whose pod does not exist yet.
fn restrict_to_cancelling(values: &Values) -> [Value; 2] {
    let scope = PolicyScope {
        component: "server",
        name: format!("{NAME}-{}-runs", values.namespace),
        account: NAME,
        group: "slipway.dev",
        resources: json!(["runs"]),
        operations: json!(["UPDATE"]),
    };
    let message = "the control plane may change only spec.cancel of a run";
    let validations = json!([
        {
            "expression": "object.spec.all(k, k == 'cancel' || (k in oldObject.spec && object.spec[k] == oldObject.spec[k])) && \
                           oldObject.spec.all(k, k == 'cancel' || k in object.spec)",
            "message": message,
        },
        {
            "expression": "['labels', 'annotations', 'finalizers', 'ownerReferences'].all(k, \
                           object.metadata[?k] == oldObject.metadata[?k])",
            "message": message,
        },
    ]);
    admission_policy(values, &scope, validations)
}

/// Permissions of users, added to the cluster's roles `view` and `edit` (RBAC, aggregated ClusterRoles).
fn user_roles(values: &Values) -> [Value; 2] {
    let role = |name: &str, rules: Value| {
        let full_name = format!("{NAME}-{name}-{}", values.namespace);
        let mut role = object(values, "server", (RBAC, "ClusterRole"), &full_name, false, json!({"rules": rules}));
        role["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{name}")] = json!("true");
        role
    };
    [
        role(
            "view",
            json!([{
                "apiGroups": ["slipway.dev"], "verbs": ["get", "list", "watch"],
                "resources": ["runs", "runs/log", "experiments", "models", "deployments", "data", "nodes"],
            }]),
        ),
        role(
            "edit",
            json!([
                {
                    "apiGroups": ["slipway.dev"], "verbs": ["create", "update", "patch", "delete"],
                    "resources": ["runs", "experiments", "models", "deployments", "data"],
                },
                {"apiGroups": ["slipway.dev"], "resources": ["inferences"], "verbs": ["create"]},
            ]),
        ),
    ]
}

/// The CustomResourceDefinition of runs.
pub(super) fn definition(values: &Values) -> Value {
    let mut definition: Value = serde_saphyr::from_str(crate::runs::DEFINITION).expect("a test parses the file");
    definition["metadata"]["labels"] = Value::Object(labels(values, "server"));
    definition
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::CONTROLLER_NAME;

    /// All objects of an installation in the namespace `sys` with these values.
    fn render(values: &[&str]) -> Vec<Value> {
        let texts: Vec<String> = values.iter().map(|t| (*t).to_owned()).collect();
        crate::install::objects(&Values::read("sys", &texts).unwrap())
    }

    fn find<'a>(all: &'a [Value], kind: &str, name: &str) -> Vec<&'a Value> {
        all.iter().filter(|o| o["kind"] == kind && o["metadata"]["name"] == name).collect()
    }

    /// RBAC rules of a service account that apply to all namespaces.
    fn cluster_wide_rules(all: &[Value], account: &str) -> Vec<Value> {
        let bound = |b: &&Value| b["kind"] == "ClusterRoleBinding" && b["subjects"][0]["name"] == account;
        let roles = all.iter().filter(bound).map(|b| b["roleRef"]["name"].as_str().unwrap());
        let rules = roles.flat_map(|name| find(all, "ClusterRole", name)).flat_map(|r| r["rules"].as_array().unwrap());
        rules.cloned().collect()
    }

    #[test]
    fn only_the_controller_creates_pods_and_secrets_in_enabled_namespaces_only() {
        let all = render(&["runs: {namespaces: [team-a, team-b]}"]);
        let server = cluster_wide_rules(&all, NAME);
        assert!(!server.is_empty() && server.iter().all(|rule| !rule.to_string().contains("pods")));
        let cluster_wide: Vec<Value> = [server, cluster_wide_rules(&all, CONTROLLER_NAME)].concat();
        for rule in &cluster_wide {
            let text = rule.to_string();
            assert!(!text.contains("secrets") && !text.contains('*') && !text.contains("pods/"), "{text}");
            let core = rule["resources"].as_array().unwrap().iter().any(|r| r == "pods" || r == "runs");
            let creates = rule["verbs"].as_array().unwrap().iter().any(|v| v == "create" || v == "update");
            assert!(!(core && creates), "{text}");
        }
        let bindings = find(&all, "RoleBinding", "slipway-runs");
        let namespaces: Vec<&Value> = bindings.iter().map(|b| &b["metadata"]["namespace"]).collect();
        assert_eq!(namespaces, ["team-a", "team-b"]);
        assert_eq!(bindings[0]["roleRef"]["name"], "slipway-runs-sys");
        assert_eq!(bindings[0]["subjects"][0]["name"], CONTROLLER_NAME);
        // This role is bound to the controller only, and it does not allow reading secrets.
        let bound = all.iter().filter(|o| o["roleRef"]["name"] == "slipway-runs-sys");
        assert_eq!(bound.count(), bindings.len());
        let submit = find(&all, "ClusterRole", "slipway-submit-sys")[0].to_string();
        assert!(!submit.contains("secrets") && !submit.contains("\"pods\""), "{submit}");
        let own = find(&all, "Role", NAME)[0];
        for rule in own["rules"].as_array().unwrap() {
            // The server can create only a token of an account without RBAC rules, with which it authenticates to node agents.
            let is_token =
                rule["resources"] == json!(["serviceaccounts/token"]) && rule["resourceNames"] == json!([ACCOUNT]);
            let text = rule.to_string();
            assert!(!text.contains("secrets") && (is_token || !text.contains("create")), "{text}");
        }
        let role = find(&all, "ClusterRole", "slipway-runs-sys")[0];
        let secrets = role["rules"].as_array().unwrap().iter().filter(|r| r.to_string().contains("secrets"));
        assert!(secrets.clone().all(|r| r["verbs"] == json!(["create"])) && secrets.count() == 1);
        // Its cluster-wide permissions on pods are restricted to pods of runs.
        for suffix in ["pods", "secrets"] {
            let policy = find(&all, "ValidatingAdmissionPolicy", &format!("slipway-controller-sys-{suffix}"))[0];
            assert_eq!(policy["spec"]["failurePolicy"], "Fail");
            let binding =
                find(&all, "ValidatingAdmissionPolicyBinding", &format!("slipway-controller-sys-{suffix}"))[0];
            assert_eq!(binding["spec"]["validationActions"], json!(["Deny"]));
        }
        let policy = find(&all, "ValidatingAdmissionPolicy", "slipway-sys-runs")[0];
        let account = policy["spec"]["matchConditions"][0]["expression"].as_str().unwrap();
        assert!(account.ends_with("'system:serviceaccount:sys:slipway'"), "{account}");
        assert!(find(&render(&[]), "RoleBinding", "slipway-runs").is_empty(), "no namespace is enabled by default");
    }

    #[test]
    fn tls_certificate_is_used_by_servers_probes_and_runs() {
        let shared = "{server: {database: {secret: db}, objects: {url: 's3://b'}, tls: {secret: cert}}, gateway: {enabled: true}}";
        let all = render(&[shared]);
        for name in ["slipway", "slipway-gateway"] {
            let pod = &find(&all, "Deployment", name)[0]["spec"]["template"]["spec"];
            let container = &pod["containers"][0];
            let args = container["args"].as_array().unwrap();
            for argument in ["--tls-cert=/etc/slipway/tls/tls.crt", "--tls-key=/etc/slipway/tls/tls.key"] {
                assert!(args.contains(&json!(argument)), "{args:?}");
            }
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                assert_eq!(container[probe]["httpGet"]["scheme"], "HTTPS");
            }
            assert!(pod["volumes"].as_array().unwrap().iter().any(|v| v["secret"]["secretName"] == "cert"));
        }
        // The controller and the runs get the certificate of the authority, but not the key.
        let pod = &find(&all, "Deployment", CONTROLLER_NAME)[0]["spec"]["template"]["spec"];
        let env = pod["containers"][0]["env"].as_array().unwrap();
        assert!(env.contains(&json!({"name": "SLIPWAY_RUNS_URL", "value": "https://slipway.sys.svc:7070"})));
        for name in ["SLIPWAY_RUNS_CA", "SLIPWAY_CA_FILE"] {
            assert!(env.contains(&json!({"name": name, "value": "/etc/slipway/tls/ca.crt"})), "{env:?}");
        }
        let tls = pod["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "tls").unwrap();
        assert_eq!(tls["secret"]["items"], json!([{"key": "ca.crt", "path": "ca.crt"}]));
        assert_eq!(tls["secret"]["optional"], true, "a certificate of a public authority comes without ca.crt");
        let plain = render(&[]);
        for name in ["slipway", CONTROLLER_NAME] {
            let text = find(&plain, "Deployment", name)[0].to_string();
            assert!(!text.contains("tls") && !text.contains("HTTPS") && !text.contains("SLIPWAY_RUNS"), "{text}");
        }
    }

    #[test]
    fn hosts_and_origins_are_passed_to_servers_and_gateways() {
        let all = render(&[
            "{server: {hosts: [ml.example.org, slipway.sys.svc.corp.local], corsOrigins: ['https://a.example', 'http://localhost:5173'], \
             database: {secret: db}, objects: {url: 's3://b'}}, \
             gateway: {enabled: true}}",
        ]);
        for name in ["slipway", "slipway-gateway"] {
            let args = &find(&all, "Deployment", name)[0]["spec"]["template"]["spec"]["containers"][0]["args"];
            let hosts = json!("--hosts=ml.example.org,slipway.sys.svc.corp.local");
            let origins = ["--cors-origin=https://a.example", "--cors-origin=http://localhost:5173"].map(|o| json!(o));
            assert!([&[hosts][..], &origins].concat().iter().all(|a| args.as_array().unwrap().contains(a)), "{args}");
        }
        assert!(!find(&render(&[]), "Deployment", "slipway")[0].to_string().contains("--hosts"));
    }

    #[test]
    fn run_definition_is_valid_yaml() {
        let values = Values::read("a", &[]).unwrap();
        assert_eq!(definition(&values)["spec"]["names"]["kind"], crate::runs::RUN.kind);
    }
}
