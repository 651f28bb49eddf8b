//! Artifacts as the messages that tasks see.

use serde_json::{Map, Value};

use crate::model::{Artifact, Launch};
use crate::proto::ml_pipelines::{ArtifactTypeSchema, artifact_type_schema};
use crate::value;

/// The JSON of a `RuntimeArtifact` with a URI of its own.
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
    out.insert("metadata".into(), Value::Object(artifact.metadata.clone()));
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
