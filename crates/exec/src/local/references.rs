//! Variables of a run from secrets and config maps, with the rules and messages of the kubelet. The values are read for each attempt: they are
//! passed to it in memory, and nothing of them is stored with the run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::environment::{is_file_name, secret};
use super::supervisor::Environment;
use super::{Inner, blocking};
use crate::{ExecError, Manifest, RunSpec};

/// The reason for which a run waits whose variables refer to what does not exist, as the kubelet has it.
pub(super) const CONFIG_ERROR: &str = "CreateContainerConfigError";

/// A kind of object with values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReferenceKind {
    /// `v1 Secret`.
    Secret,
    /// `v1 ConfigMap`.
    ConfigMap,
}

impl ReferenceKind {
    /// The kind as messages about keys have it.
    fn name(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }

    /// The kind as messages about missing objects have it.
    fn lower_case(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::ConfigMap => "configmap",
        }
    }
}

/// The values of an object, by their keys.
pub type ReferencedValues = BTreeMap<String, Vec<u8>>;

/// The secrets and config maps of this machine, as the executor sees them. The server implements this trait.
pub trait References: Send + Sync {
    /// Reads an object; `None` if there is none of this name in the namespace. The error is a sentence without any value.
    fn read<'a>(
        &'a self,
        kind: ReferenceKind,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ReferencedValues>, String>>;
}

/// A reference to an object, or to one of its keys.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Reference<'a> {
    kind: ReferenceKind,
    name: &'a str,
    /// Whether the object and the key may be missing.
    is_optional: bool,
    source: &'a Value,
}

impl<'a> Reference<'a> {
    /// The reference in one of two fields, which are those of a secret and of a config map; `None` if neither is valid.
    fn new(value: &'a Value, secret: &str, config_map: &str) -> Option<Self> {
        let (kind, source) = match (value.get(secret), value.get(config_map)) {
            (Some(source), None) => (ReferenceKind::Secret, source),
            (None, Some(source)) => (ReferenceKind::ConfigMap, source),
            _ => return None,
        };
        let name = source["name"].as_str().filter(|name| is_file_name(name))?;
        Some(Self { kind, name, is_optional: source["optional"] == true, source })
    }

    /// The object of an entry of `envFrom`.
    fn of_object(entry: &'a Value) -> Result<Self, String> {
        Self::new(entry, "secretRef", "configMapRef").ok_or_else(|| {
            "spec.envFrom: each entry needs a secretRef or a configMapRef with the name of an object".to_owned()
        })
    }

    /// The object and the key of a variable's `valueFrom`.
    fn of_key(variable: &str, value_from: &'a Value) -> Result<(Self, &'a str), String> {
        let reference = Self::new(value_from, "secretKeyRef", "configMapKeyRef");
        reference.and_then(|reference| Some((reference, reference.source["key"].as_str()?))).ok_or_else(|| {
            format!(
                "spec.env: the valueFrom of {variable} needs a cluster; a single machine supports secretKeyRef and configMapKeyRef only"
            )
        })
    }
}

/// What a name refers to.
#[derive(Debug)]
enum Content {
    /// There is no such object.
    Missing,
    Values(ReferencedValues),
    /// A secret in the folder of secrets.
    Folder,
}

/// The objects that a run refers to.
type Objects = BTreeMap<(ReferenceKind, String), Content>;

/// Why the variables of a run have no values.
#[derive(Debug, PartialEq)]
pub(super) struct Unresolved {
    /// The variable; empty if it is an object with all its keys.
    variable: String,
    /// As the kubelet reports it.
    pub(super) message: String,
}

impl From<Unresolved> for ExecError {
    fn from(error: Unresolved) -> Self {
        let Unresolved { variable, message } = error;
        Self::Manifest(match variable.as_str() {
            "" => format!("spec.envFrom: {message}"),
            variable => format!("spec.env: cannot read the value of {variable}: {message}"),
        })
    }
}

/// Checks the form of all references of a run.
///
/// # Errors
/// A sentence about the first that a single machine does not support.
pub(super) fn check(spec: &RunSpec) -> Result<(), String> {
    references(spec).map(drop)
}

/// All references of a run.
fn references(spec: &RunSpec) -> Result<Vec<Reference<'_>>, String> {
    let of_objects = spec.env_from.iter().map(Reference::of_object);
    let of_keys = spec.env.iter().filter_map(|v| Some(Reference::of_key(&v.name, v.value_from.as_ref()?).map(|r| r.0)));
    of_objects.chain(of_keys).collect()
}

impl Inner {
    /// The variables that the executor and the manifest set; a later variable overrides an earlier one.
    ///
    /// # Errors
    /// The inner error, if the manifest refers to what does not exist; [`ExecError::Manifest`] if it is not valid;
    /// [`ExecError::Unreachable`] if objects cannot be read.
    pub(super) async fn variables(
        self: &std::sync::Arc<Self>,
        run: &Manifest,
    ) -> Result<Result<Environment, Unresolved>, ExecError> {
        let mut objects = Objects::new();
        for Reference { kind, name, .. } in references(&run.spec).map_err(ExecError::Manifest)? {
            let key = (kind, name.to_owned());
            if objects.contains_key(&key) {
                continue;
            }
            let read = match &self.settings.references {
                Some(source) => source.read(kind, &run.metadata.namespace, name).await,
                None => Ok(None),
            };
            let values =
                read.map_err(|reason| ExecError::Unreachable(format!("{} {name:?}: {reason}", kind.lower_case())))?;
            let is_folder = || kind == ReferenceKind::Secret && self.settings.secrets.join(name).is_dir();
            let content = match values {
                Some(values) => Content::Values(values),
                None if is_folder() => Content::Folder,
                None => Content::Missing,
            };
            objects.insert(key, content);
        }
        let (inner, run) = (std::sync::Arc::clone(self), run.clone());
        // Reads the files of secrets.
        blocking(move || {
            let own = inner.own_variables(&run).into_iter().map(|(name, value)| (name.into(), value.into()));
            Ok(resolve(&run, own.collect(), &objects, &inner.settings.secrets))
        })
        .await
    }
}

/// The variables of a run. Those of whole objects come first, so that all others override them. Blocks if a secret is a folder.
fn resolve(run: &Manifest, own: Environment, objects: &Objects, secrets: &Path) -> Result<Environment, Unresolved> {
    let unresolved = |variable: &str| {
        let variable = variable.to_owned();
        move |message| Unresolved { variable, message }
    };
    let mut variables = Environment::new();
    for entry in &run.spec.env_from {
        let reference = Reference::of_object(entry).map_err(unresolved(""))?;
        let prefix = entry["prefix"].as_str().unwrap_or_default();
        for (key, value) in all_values(reference, objects, secrets).map_err(unresolved(""))? {
            // The kubelet leaves out what cannot be the name of a variable.
            let name = format!("{prefix}{key}");
            if !name.is_empty() && !name.contains(['=', '\0']) {
                variables.push((name.into(), variable_value(value).map_err(unresolved(""))?));
            }
        }
    }
    variables.extend(own);
    for variable in &run.spec.env {
        let name = &variable.name;
        let value = match &variable.value_from {
            None => variable.value.clone().unwrap_or_default().into(),
            Some(source) => {
                let (reference, key) = Reference::of_key(name, source).map_err(unresolved(name))?;
                let value = value_of_key(&run.metadata.namespace, reference, key, objects, secrets);
                match value.map_err(unresolved(name))? {
                    Some(value) => variable_value(value).map_err(unresolved(name))?,
                    None => continue,
                }
            }
        };
        variables.push((name.into(), value));
    }
    Ok(variables)
}

/// A value as that of a variable.
fn variable_value(value: Vec<u8>) -> Result<OsString, String> {
    if value.contains(&0) {
        return Err("a value has a NUL byte, which a variable cannot have".into());
    }
    Ok(OsString::from_vec(value))
}

/// The object of a reference; `None` if it is missing and may be.
fn content<'a>(reference: Reference<'_>, objects: &'a Objects) -> Result<Option<&'a Content>, String> {
    match objects.get(&(reference.kind, reference.name.to_owned())) {
        Some(Content::Missing) | None if reference.is_optional => Ok(None),
        Some(Content::Missing) | None => Err(format!("{} {:?} not found", reference.kind.lower_case(), reference.name)),
        content => Ok(content),
    }
}

/// All values of an object.
fn all_values(reference: Reference<'_>, objects: &Objects, secrets: &Path) -> Result<ReferencedValues, String> {
    match content(reference, objects)? {
        Some(Content::Values(values)) => Ok(values.clone()),
        Some(Content::Folder) => {
            let folder = secrets.join(reference.name);
            let files = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            let keys = files.flatten().filter_map(|file| file.file_name().into_string().ok());
            let of_secret = |key: String| {
                let value = secret(secrets, reference.name, &key)?;
                Ok((key, value.into_bytes()))
            };
            keys.filter(|key| is_file_name(key)).map(of_secret).collect()
        }
        Some(Content::Missing) | None => Ok(ReferencedValues::new()),
    }
}

/// One value of an object; `None` if it is missing and may be.
fn value_of_key(
    namespace: &str,
    reference: Reference<'_>,
    key: &str,
    objects: &Objects,
    secrets: &Path,
) -> Result<Option<Vec<u8>>, String> {
    let value = match content(reference, objects)? {
        Some(Content::Values(values)) => values.get(key).cloned(),
        Some(Content::Folder) if reference.is_optional && !secrets.join(reference.name).join(key).exists() => None,
        Some(Content::Folder) => return secret(secrets, reference.name, key).map(|value| Some(value.into_bytes())),
        Some(Content::Missing) | None => return Ok(None),
    };
    match value {
        None if !reference.is_optional => {
            Err(format!("couldn't find key {key} in {} {namespace}/{}", reference.kind.name(), reference.name))
        }
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(spec: Value) -> Manifest {
        let metadata = json!({"name": "train", "namespace": "team"});
        let object = json!({"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": metadata, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    fn resolved(spec: Value) -> Result<Vec<(String, String)>, String> {
        let values = |pairs: &[(&str, &str)]| {
            Content::Values(pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect())
        };
        let objects = Objects::from([
            ((ReferenceKind::Secret, "hub".into()), values(&[("token", "t"), ("a=b", "x")])),
            ((ReferenceKind::ConfigMap, "rates".into()), values(&[("LR", "0.1"), ("nul", "a\0b")])),
        ]);
        let own = vec![("LR".into(), "own".into())];
        let variables = resolve(&run(spec), own, &objects, Path::new("/nonexistent"));
        let text = |text: OsString| text.into_string().unwrap();
        variables
            .map(|variables| variables.into_iter().map(|(name, value)| (text(name), text(value))).collect())
            .map_err(|error| error.message)
    }

    fn of_key(field: &str, name: &str, key: &str, optional: bool) -> Value {
        json!({"env": [{"name": "V", "valueFrom": {field: {"name": name, "key": key, "optional": optional}}}]})
    }

    #[test]
    fn keys_become_variables() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let own = || pair("LR", "own");
        assert_eq!(resolved(of_key("secretKeyRef", "hub", "token", false)).unwrap(), [own(), pair("V", "t")]);
        assert_eq!(resolved(of_key("configMapKeyRef", "rates", "LR", false)).unwrap(), [own(), pair("V", "0.1")]);
        let whole = json!({"envFrom": [{"prefix": "HUB_", "secretRef": {"name": "hub"}}]});
        assert_eq!(resolved(whole).unwrap(), [pair("HUB_token", "t"), own()], "others override whole objects");
    }

    #[test]
    fn missing_objects_and_keys_are_reported_as_by_the_kubelet() {
        for (spec, message) in [
            (of_key("secretKeyRef", "none", "a", false), "secret \"none\" not found"),
            (of_key("configMapKeyRef", "none", "a", false), "configmap \"none\" not found"),
            (of_key("secretKeyRef", "hub", "a", false), "couldn't find key a in Secret team/hub"),
            (of_key("configMapKeyRef", "rates", "a", false), "couldn't find key a in ConfigMap team/rates"),
            (json!({"envFrom": [{"configMapRef": {"name": "none"}}]}), "configmap \"none\" not found"),
            (of_key("configMapKeyRef", "rates", "nul", false), "a value has a NUL byte, which a variable cannot have"),
        ] {
            assert_eq!(resolved(spec).unwrap_err(), message);
        }
        for spec in [
            of_key("secretKeyRef", "none", "a", true),
            of_key("secretKeyRef", "hub", "a", true),
            json!({"envFrom": [{"secretRef": {"name": "none", "optional": true}}]}),
        ] {
            assert_eq!(resolved(spec).unwrap().len(), 1);
        }
    }

    #[test]
    fn references_that_need_a_cluster_are_refused() {
        let check = |spec| check(&run(spec).spec);
        let of_field = json!({"env": [{"name": "V", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]});
        assert!(check(of_field).unwrap_err().contains("the valueFrom of V needs a cluster"));
        assert!(check(of_key("secretKeyRef", "../../x", "a", false)).is_err());
        assert!(check(json!({"envFrom": [{"prefix": "A"}]})).unwrap_err().contains("spec.envFrom"));
        assert_eq!(check(of_key("configMapKeyRef", "none", "a", false)), Ok(()));
    }
}
