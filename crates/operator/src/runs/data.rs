//! The data of a run in its pod: each version is an ephemeral volume of the driver on the node (`slipway node data`), which mounts it read-only.

use serde_json::{Value, json};
use slipway_core::data_volume::{ATTRIBUTES, DRIVER, FILE};
use slipway_exec::data::{DATA_VARIABLE, DataVolume};
use slipway_exec::manifest::RunSpec;

/// Volumes and mounts of the pod, and the variable with the paths.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct PodData {
    pub(super) volumes: Vec<Value>,
    pub(super) mounts: Vec<Value>,
    pub(super) variable: Option<Value>,
}

impl PodData {
    /// The data of a run.
    ///
    /// # Errors
    /// Why it is not valid in a cluster: every node and every attempt must get the same bytes, so commit and digest have to be known.
    pub(super) fn new(spec: &RunSpec) -> Result<Self, String> {
        let mut pod = Self::default();
        let mut paths = Vec::new();
        for (i, data) in spec.data.iter().enumerate() {
            let invalid = |text: &str| format!("spec.data[{i}].{text}; `slipway run submit` fills in rev and digest");
            let rev = data.rev.as_deref().filter(|rev| rev.len() == 40 && rev.bytes().all(|b| b.is_ascii_hexdigit()));
            let rev = rev.ok_or_else(|| invalid("rev must be the 40 digits of a commit in a cluster"))?;
            let digest = data.digest.as_deref().ok_or_else(|| invalid("digest is required in a cluster"))?;
            let path = mount_path(spec, data).ok_or_else(|| {
                format!("spec.data[{i}].mountPath '{}' is relative; without an absolute spec.workingDir it must be absolute", data.mount_path)
            })?;
            let name = format!("slipway-data-{i}");
            let attributes: serde_json::Map<String, Value> = ATTRIBUTES
                .into_iter()
                .zip([data.repo.as_str(), rev, &data.path, digest])
                .map(|(key, value)| (key.to_owned(), json!(value)))
                .collect();
            let mut csi = json!({"driver": DRIVER, "readOnly": true, "volumeAttributes": attributes});
            if let Some(secret) = &data.secret_name {
                csi["nodePublishSecretRef"] = json!({"name": secret});
            }
            pod.volumes.push(json!({"name": name, "csi": csi}));
            let mut mount = json!({"name": name, "mountPath": path, "readOnly": true});
            if !digest.ends_with(".dir") {
                mount["subPath"] = json!(FILE);
            }
            pod.mounts.push(mount);
            paths.push(path);
        }
        pod.variable = (!paths.is_empty()).then(|| json!({"name": DATA_VARIABLE, "value": paths.join(":")}));
        Ok(pod)
    }
}

/// The absolute path in the container.
fn mount_path(spec: &RunSpec, data: &DataVolume) -> Option<String> {
    if data.mount_path.starts_with('/') {
        return Some(data.mount_path.clone());
    }
    let folder = spec.working_dir.as_deref().filter(|folder| folder.starts_with('/'))?;
    Some(format!("{}/{}", folder.trim_end_matches('/'), data.mount_path.trim_start_matches("./")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_exec::Manifest;

    fn spec(data: &str) -> RunSpec {
        let text = format!(
            "apiVersion: slipway.dev/v1\nkind: Run\nmetadata: {{name: a}}\nspec: {{image: i, workingDir: /work, data: [{data}]}}"
        );
        Manifest::parse(&text).unwrap().spec
    }

    #[test]
    fn pinned_data_becomes_read_only_volumes() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let folder = format!(
            "{{repo: 'https://h/r', rev: {commit}, path: images, mountPath: ./images, digest: 8b3662b0d460701f7734cdf533c5aa85.dir, secretName: s}}"
        );
        let file = format!(
            "{{repo: 'https://h/r', rev: {commit}, path: a/labels, mountPath: /labels, digest: d41d8cd98f00b204e9800998ecf8427e}}"
        );
        let pod = PodData::new(&spec(&format!("{folder}, {file}"))).unwrap();
        let expected = json!({"name": "slipway-data-0", "csi": {
            "driver": "data.slipway.dev", "readOnly": true, "nodePublishSecretRef": {"name": "s"},
            "volumeAttributes": {"repo": "https://h/r", "rev": commit, "path": "images", "digest": "8b3662b0d460701f7734cdf533c5aa85.dir"}}});
        assert_eq!(pod.volumes[0], expected);
        assert_eq!(pod.mounts[0], json!({"name": "slipway-data-0", "mountPath": "/work/images", "readOnly": true}));
        assert_eq!(
            pod.mounts[1],
            json!({"name": "slipway-data-1", "mountPath": "/labels", "readOnly": true, "subPath": "file"})
        );
        assert_eq!(pod.variable, Some(json!({"name": "SLIPWAY_DATA", "value": "/work/images:/labels"})));
        assert_eq!(PodData::new(&spec("")).unwrap(), PodData::default());
        for data in
            ["{repo: r, path: x, mountPath: /x}", &format!("{{repo: r, rev: {commit}, path: x, mountPath: /x}}")]
        {
            assert!(PodData::new(&spec(data)).unwrap_err().contains("`slipway run submit` fills in"));
        }
    }
}
