//! The steps that create and delete persistent volume claims, which need no program (`CreatePVC` and `DeletePVC` of kfp-kubernetes).

use serde_json::{Map, Value, json};
use slipway_core::dns;

use crate::model::{Launch, Outputs};

/// The label on claims that steps create; a step deletes no others.
pub const CLAIM_LABEL: &str = "slipway.dev/pipeline-claim";

/// What such a step asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Request {
    /// Create a claim.
    Create(NewClaim),
    /// Delete the claim with this name.
    Delete(String),
}

/// A claim to create.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NewClaim {
    pub(super) name: String,
    annotations: Map<String, Value>,
    /// `spec` of the claim.
    spec: Value,
}

/// The request of a step; `None` if its image is another one.
pub(super) fn request(image: &str, launch: &Launch) -> Option<Result<Request, String>> {
    match image.split(':').next().unwrap_or(image) {
        "argostub/createpvc" => Some(new_claim(launch).map(Request::Create)),
        "argostub/deletepvc" => {
            let name = text(launch, "pvc_name").ok_or_else(|| "DeletePVC needs pvc_name".to_owned());
            Some(name.and_then(|name| check_name(name)).map(|name| Request::Delete(name.to_owned())))
        }
        _ => None,
    }
}

/// Checks that a text can be the name of a claim, and so that it stays one segment of a path: a DNS subdomain as in RFC 1123.
fn check_name(name: &str) -> Result<&str, String> {
    if dns::is_subdomain(name) {
        Ok(name)
    } else {
        let name = crate::value::shortened(name);
        Err(format!("'{name}' cannot be the name of a volume; it may have lowercase letters, digits, '-' and '.'"))
    }
}

fn text<'a>(launch: &'a Launch, name: &str) -> Option<&'a str> {
    launch.inputs.parameters.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn new_claim(launch: &Launch) -> Result<NewClaim, String> {
    let name = match (text(launch, "pvc_name"), text(launch, "pvc_name_suffix")) {
        (Some(name), None) => name.to_owned(),
        (None, Some(suffix)) => format!("{}{suffix}", launch.run.resource_name),
        _ => return Err("CreatePVC needs one of pvc_name and pvc_name_suffix".into()),
    };
    check_name(&name)?;
    let value = |name: &str| launch.inputs.parameters.get(name).filter(|value| !value.is_null());
    let mut spec = Map::new();
    spec.insert("accessModes".into(), value("access_modes").cloned().unwrap_or_else(|| json!(["ReadWriteOnce"])));
    if let Some(size) = text(launch, "size") {
        spec.insert("resources".into(), json!({ "requests": { "storage": size } }));
    }
    // An empty name asks for no class, and an absent one for the default class.
    if let Some(class) = value("storage_class_name").and_then(Value::as_str) {
        spec.insert("storageClassName".into(), json!(class));
    }
    if let Some(volume) = text(launch, "volume_name") {
        spec.insert("volumeName".into(), json!(volume));
    }
    let annotations = value("annotations").and_then(Value::as_object).cloned().unwrap_or_default();
    Ok(NewClaim { name, annotations, spec: spec.into() })
}

impl Request {
    /// The claim as an object of Kubernetes; null for a deletion.
    pub(super) fn manifest(&self, namespace: &str) -> Value {
        let Self::Create(claim) = self else { return Value::Null };
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": claim.name, "namespace": namespace, "annotations": claim.annotations,
                "labels": { CLAIM_LABEL: "true" },
            },
            "spec": claim.spec,
        })
    }

    /// The outputs of the step.
    pub(super) fn outputs(&self) -> Outputs {
        let mut outputs = Outputs::default();
        if let Self::Create(claim) = self {
            outputs.parameters.insert("name".into(), json!(claim.name));
        }
        outputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_claims_stay_names() {
        let long = "a".repeat(254);
        for name in [
            "../../b/persistentvolumeclaims/x",
            "x/../y",
            "..",
            ".",
            "?labelSelector=",
            "a#b",
            "a%2fb",
            "A",
            "-a",
            "a-",
            "a..b",
            &long,
        ] {
            assert!(check_name(name).unwrap_err().contains("cannot be the name of a volume"), "{name}");
        }
        for name in ["a", "run-1.data", "0-9"] {
            assert_eq!(check_name(name), Ok(name));
        }
        let claim = NewClaim { name: "a".into(), annotations: Map::new(), spec: json!({}) };
        assert_eq!(Request::Create(claim).manifest("team")["metadata"]["labels"][CLAIM_LABEL], "true");
    }
}
