//! Writes a pipeline as JSON, with protobuf's names and mapping.

use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::{Map, Value};

use super::descriptors;
use super::read::Document;

/// The pipeline as the API returns it: the specification, or an object with the fields `pipeline_spec` and `platform_spec` if there are
/// settings for a platform.
pub fn to_json(document: &Document) -> Value {
    let spec = message_to_json("ml_pipelines.PipelineSpec", &document.spec);
    let Some(platform) = &document.platform else {
        return spec;
    };
    let mut both = Map::new();
    both.insert("pipeline_spec".into(), spec);
    both.insert("platform_spec".into(), message_to_json("ml_pipelines.PlatformSpec", platform));
    Value::Object(both)
}

/// The JSON of a message, with names in camel case. Fields with their default value are left out.
///
/// # Panics
/// Never for the messages of this crate: `name` is the full name of the type `M`.
pub(crate) fn message_to_json<M: prost::Message>(name: &str, message: &M) -> Value {
    let descriptor = descriptors().get_message_by_name(name).expect("the message is in the committed descriptors");
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .expect("the generated messages and the descriptors come from the same files");
    let options = SerializeOptions::new().skip_default_fields(true);
    // Only numbers that are not finite cannot be expressed; a reader of JSON cannot have produced them.
    dynamic.serialize_with_options(serde_json::value::Serializer, &options).unwrap_or(Value::Null)
}
