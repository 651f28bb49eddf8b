use std::sync::Arc;

use super::*;
use crate::ir;
use crate::model::{RunInfo, TaskPath};

/// The settings of the task of a pipeline with this container and these settings for Kubernetes.
fn settings(container: &str, kubernetes: &str, component: &str) -> Result<PodSettings, String> {
    let text = format!(
        r#"
pipelineInfo: {{name: p}}
schemaVersion: 2.1.0
deploymentSpec: {{executors: {{e: {{container: {{image: python, {container}}}}}}}}}
components: {{c: {{executorLabel: e, {component}}}}}
root: {{dag: {{tasks: {{t: {{componentRef: {{name: c}}}}}}}}}}
---
platforms: {{kubernetes: {{deploymentSpec: {{executors: {{e: {{{kubernetes}}}}}}}}}}}
"#
    );
    let document = ir::read(&text).map_err(|error| error.to_string())?;
    let mut launch = Launch {
        run: Arc::new(RunInfo::default()),
        path: TaskPath("t".into()),
        task_name: "t".into(),
        attempt: 1,
        component: Arc::new(document.spec.components["c"].clone()),
        executor: Arc::new(document.deployment.executors["e"].clone()),
        platform: document.kubernetes.get("e").cloned().map(Arc::new),
        inputs: Default::default(),
        platform_inputs: BTreeMap::new(),
    };
    launch.inputs.parameters.extend([("cpu".to_owned(), json!(2)), ("image".to_owned(), json!("mine:1"))]);
    let references = [
        ("secret", json!("my.secret")),
        ("none", json!(null)),
        ("create/name", json!("claim-1")),
        ("json", json!({"disk": "ssd"})),
        ("tolerations", json!([{"key": "a"}, {"key": "b"}])),
        ("number", json!(1)),
    ];
    launch.platform_inputs.extend(references.map(|(name, value)| (name.to_owned(), value)));
    pod_settings(&launch)
}

fn input(name: &str) -> String {
    format!("{{componentInputParameter: {name}}}")
}

#[test]
fn texts_win_over_numbers_and_memory_is_in_gigabytes() {
    let container = "resources: {cpuLimit: 4, resourceCpuLimit: \"{{$.inputs.parameters['cpu']}}\", memoryLimit: 0.5, memoryRequest: 2, \
                     accelerator: {type: nvidia.com/gpu, count: 1}}, env: [{name: A, value: b}]";
    let spec = settings(container, "", "").unwrap().spec;
    assert_eq!(
        json!(spec.resources),
        json!({
            "limits": {"cpu": "2", "memory": "0.5G", "nvidia.com/gpu": "1"},
            "requests": {"memory": "2G"},
        })
    );
    assert_eq!(json!(spec.env), json!([{"name": "A", "value": "b"}]));
    let error = settings("resources: {resourceMemoryLimit: much}", "", "").unwrap_err();
    assert_eq!(error, "'much' is not a valid quantity of memory");
    settings("resources: {resourceCpuLimit: \"{{$.inputs.parameters['absent']}}\"}", "", "").unwrap_err();
}

#[test]
fn secrets_and_config_maps_become_variables_and_volumes() {
    let kubernetes = format!(
        "secretAsEnv: [{{secretName: s, keyToEnv: [{{secretKey: k, envVar: K}}], optional: true}}], \
         configMapAsEnv: [{{configMapName: m, keyToEnv: [{{configMapKey: k, envVar: M}}]}}], \
         fieldPathAsEnv: [{{name: POD, fieldPath: metadata.name}}], \
         secretAsVolume: [{{secretName: ignored, secretNameParameter: {secret}, mountPath: /s}}, {{secretNameParameter: {none}, mountPath: /n}}], \
         configMapAsVolume: [{{configMapName: my-secret, mountPath: /m}}], \
         imagePullSecret: [{{secretName: pull}}]",
        secret = input("secret"),
        none = input("none"),
    );
    let spec = settings("", &kubernetes, "").unwrap().spec;
    assert_eq!(
        json!(spec.env),
        json!([
            {"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}},
            {"name": "M", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ])
    );
    // The names of the two volumes would be the same.
    assert_eq!(
        json!(spec.volumes),
        json!([
            {"name": "my-secret", "secret": {"secretName": "my.secret", "optional": false}},
            {"name": "my-secret-2", "configMap": {"name": "my-secret", "optional": false}},
        ])
    );
    assert_eq!(
        json!(spec.volume_mounts),
        json!([
            {"name": "my-secret", "mountPath": "/s"},
            {"name": "my-secret-2", "mountPath": "/m"},
        ])
    );
    assert_eq!(json!(spec.image_pull_secrets), json!([{"name": "pull"}]));
    let error =
        settings("", "secretAsVolume: [{secretNameParameter: {componentInputParameter: number}, mountPath: /s}]", "");
    assert_eq!(error.unwrap_err(), "the name of the secret is 1; expected a text that is not empty");
    let error =
        settings("", "secretAsVolume: [{secretNameParameter: {componentInputParameter: absent}, mountPath: /s}]", "");
    assert_eq!(error.unwrap_err(), "the secret refers to 'absent', which has no value");
}

#[test]
fn claims_are_named_in_four_ways() {
    let mounts = "pvcMount: [{constant: c, mountPath: /a, subPath: x}, \
                  {taskOutputParameter: {producerTask: create, outputParameterKey: name}, mountPath: /b}, \
                  {pvcNameParameter: {runtimeValue: {constant: c}}, mountPath: /c}, \
                  {componentInputParameter: secret, mountPath: /d}]";
    let spec = settings("", mounts, "").unwrap().spec;
    let claims: Vec<&Value> = spec.volumes.iter().map(|v| &v["persistentVolumeClaim"]["claimName"]).collect();
    assert_eq!(claims, ["c", "claim-1", "my.secret"]);
    assert_eq!(json!(spec.volume_mounts[0]), json!({"name": "c", "mountPath": "/a", "subPath": "x"}));
    assert_eq!(spec.volume_mounts[2].name, "c");
    settings("", "pvcMount: [{pvcNameParameter: {componentInputParameter: none}, mountPath: /a}]", "").unwrap_err();
}

#[test]
fn placement_comes_from_fields_or_from_json() {
    let kubernetes = format!(
        "nodeSelector: {{labels: {{a: b}}, nodeSelectorJson: {}}}, \
         tolerations: [{{key: k, operator: Exists, tolerationSeconds: 5}}, {{tolerationJson: {}}}, {{tolerationJson: {}}}], \
         nodeAffinity: [{{matchExpressions: [{{key: z, operator: In, values: [x]}}], weight: 3}}, \
                        {{matchFields: [{{key: n, operator: Exists}}]}}], \
         podAffinity: [{{topologyKey: host, matchPodLabels: {{app: a}}, anti: true}}]",
        input("json"),
        input("tolerations"),
        input("none"),
    );
    let spec = settings("", &kubernetes, "").unwrap().spec;
    assert_eq!(json!(spec.node_selector), json!({"disk": "ssd"}));
    assert_eq!(
        json!(spec.tolerations),
        json!([
            {"key": "k", "operator": "Exists", "tolerationSeconds": 5}, {"key": "a"}, {"key": "b"}
        ])
    );
    assert_eq!(
        spec.affinity.unwrap(),
        json!({
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchFields": [{"key": "n", "operator": "Exists"}]}]
                },
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 3, "preference": {"matchExpressions": [{"key": "z", "operator": "In", "values": ["x"]}]}}
                ],
            },
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "host", "labelSelector": {"matchLabels": {"app": "a"}}}
            ]},
        })
    );
}

#[test]
fn the_other_settings_are_those_of_a_pod() {
    let kubernetes = "imagePullPolicy: Always, activeDeadlineSeconds: 30, podMetadata: {labels: {a: b}, annotations: {c: d}}, \
                      enabledSharedMemory: {size: 1Gi}, emptyDirMounts: [{volumeName: tmp, mountPath: /t, medium: Memory, sizeLimit: 1Mi}], \
                      genericEphemeralVolume: [{volumeName: e, mountPath: /e, accessModes: [ReadWriteOnce], size: 5Gi, storageClassName: fast}], \
                      securityContext: {runAsUser: 1000}, \
                      initContainers: [{name: i, image: busybox, command: [sh], volumeMounts: [{volumeName: tmp, mountPath: /t}]}]";
    let settings = settings("", kubernetes, "").unwrap();
    let spec = &settings.spec;
    assert_eq!((spec.image_pull_policy.as_deref(), spec.active_deadline_seconds), (Some("Always"), Some(30)));
    assert_eq!((json!(settings.labels), json!(settings.annotations)), (json!({"a": "b"}), json!({"c": "d"})));
    assert_eq!(
        json!(spec.volumes),
        json!([
            {"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}, "storageClassName": "fast",
            }}}},
            {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        ])
    );
    assert_eq!(json!(spec.security_context), json!({"runAsUser": 1000, "capabilities": {"drop": ["ALL"]}}));
    assert_eq!(settings.init_containers[0]["volumeMounts"], json!([{"name": "tmp", "mountPath": "/t"}]));
}

#[test]
fn settings_are_passed_on_instead_of_being_applied() {
    let component = "taskConfigPassthroughs: [{field: RESOURCES}, {field: ENV, applyToTask: true}]";
    let container = "resources: {cpuLimit: 1}, env: [{name: A, value: b}]";
    let settings = settings(container, "", component).unwrap();
    assert_eq!(
        json!(settings.task_config),
        json!({
            "resources": {"limits": {"cpu": "1"}}, "env": [{"name": "A", "value": "b"}]
        })
    );
    assert_eq!((json!(settings.spec.resources), settings.spec.env.len()), (json!({}), 1));
}
