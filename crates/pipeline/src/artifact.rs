//! Artifacts as the messages that tasks see.

use serde_json::{Map, Value};

use crate::model::{Artifact, Launch};
use crate::proto::ml_pipelines::{ArtifactTypeSchema, artifact_type_schema};
use crate::value;

/// Key of the metadata of an artifact that tasks find in the workspace of the run (Kubeflow's `component/launcher_v2.go`, and `Artifact.path`
/// of the SDK).
const IN_WORKSPACE: &str = "_kfp_workspace";
/// Folder of the workspace with the copies of artifacts.
const WORKSPACE_FOLDER: &str = ".artifacts";

/// Records that tasks find an artifact in the workspace of the run.
pub(crate) fn put_into_workspace(artifact: &mut Artifact) {
    artifact.metadata.insert(IN_WORKSPACE.into(), Value::Bool(true));
}

/// Whether tasks find an artifact in the workspace of the run.
pub(crate) fn is_in_workspace(artifact: &Artifact) -> bool {
    artifact.metadata.get(IN_WORKSPACE) == Some(&Value::Bool(true))
}

/// The path of an artifact in a workspace, as in Kubeflow: `.artifacts/SCHEME/BUCKET/KEY`.
///
/// # Errors
/// The URI leads out of the workspace.
pub(crate) fn path_in_workspace(workspace: &str, uri: &str) -> Result<String, String> {
    let uri = uri.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = uri.split_once(":/").unwrap_or(("", uri));
    let parts: Vec<&str> = rest.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err(format!("{uri} is not the URI of a file or folder"));
    }
    let parts = [workspace, WORKSPACE_FOLDER, scheme].into_iter().filter(|part| !part.is_empty()).chain(parts);
    Ok(parts.collect::<Vec<_>>().join("/"))
}

/// The JSON of a `RuntimeArtifact` with a URI of its own, which is a path for one in the workspace.
pub(crate) fn artifact_json(artifact: &Artifact, uri: &str) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), Value::String(artifact.id.clone()));
    let mut schema = Map::new();
    if !artifact.schema_title.is_empty() {
        schema.insert("schemaTitle".into(), Value::String(artifact.schema_title.clone()));
    }
    if !artifact.schema_version.is_empty() {
        schema.insert("schemaVersion".into(), Value::String(artifact.schema_version.clone()));
    }
    out.insert("type".into(), Value::Object(schema));
    out.insert("uri".into(), Value::String(uri.to_owned()));
    let mut metadata = artifact.metadata.clone();
    // With it, the SDK would derive another path from the URI.
    metadata.remove(IN_WORKSPACE);
    out.insert("metadata".into(), Value::Object(metadata));
    Value::Object(out)
}

/// An output artifact as it is before the program has run: its declared type and metadata, named like the output.
pub(crate) fn output_artifact(launch: &Launch, name: &str) -> Artifact {
    let declared = launch.component.output_definitions.as_ref().and_then(|outputs| outputs.artifacts.get(name));
    let mut artifact = Artifact { id: name.to_owned(), ..Artifact::default() };
    if let Some(declared) = declared {
        (artifact.schema_title, artifact.schema_version) = schema(declared.artifact_type.as_ref());
        artifact.metadata = declared.metadata.as_ref().map(value::from_struct).unwrap_or_default();
    }
    artifact
}

/// Title and version of an artifact's type.
pub fn schema(schema: Option<&ArtifactTypeSchema>) -> (String, String) {
    use artifact_type_schema::Kind;
    let Some(schema) = schema else {
        return Default::default();
    };
    let title = match &schema.kind {
        Some(Kind::SchemaTitle(title)) => title.clone(),
        #[allow(deprecated)] // older files have it
        Some(Kind::SchemaUri(uri)) => uri.clone(),
        Some(Kind::InstanceSchema(schema)) => schema.clone(),
        None => String::new(),
    };
    (title, schema.schema_version.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_have_kubeflows_places_in_the_workspace() {
        let place = |uri: &str| path_in_workspace("/w", uri);
        for (uri, path) in [
            ("minio://mlpipeline/sample/sample.txt", "/w/.artifacts/minio/mlpipeline/sample/sample.txt"),
            ("s3://bucket/a//b/./c?endpoint=x", "/w/.artifacts/s3/bucket/a/b/c"),
            ("https://example.com/data.csv", "/w/.artifacts/https/example.com/data.csv"),
            ("slipway-pipelines:/ns/run/a", "/w/.artifacts/slipway-pipelines/ns/run/a"),
            ("/data/x", "/w/.artifacts/data/x"),
        ] {
            assert_eq!(place(uri).unwrap(), path);
        }
        for uri in ["", "/", "s3://", "s3://bucket/../x", "/a/../../b"] {
            assert!(place(uri).is_err(), "{uri}");
        }
    }
}
