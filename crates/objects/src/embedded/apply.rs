//! New states of objects to which a configuration is applied.

use serde_json::Value;

use super::writes::tracker;
use crate::error::Error;
use crate::object::Object;
use crate::resource::{FieldValidation, Resource};
use crate::store::ApplyOptions;

fn bad_request(message: String) -> Error {
    Error::BadRequest(message)
}

/// The state of an object after a configuration is applied. Without `live`, the object is created.
pub(super) fn applied(
    resource: &Resource,
    live: Option<&Object>,
    name: &str,
    configuration: &Value,
    options: &ApplyOptions,
) -> Result<Object, Error> {
    let outcome = tracker(resource, &options.write).apply(live, configuration, options.force)?;
    let duplicates = &options.write.duplicates;
    if options.write.validation == FieldValidation::Strict && !duplicates.is_empty() {
        let lines: String = duplicates.iter().map(|duplicate| format!("\n  {duplicate}")).collect();
        let error = format!("error converting YAML to JSON: yaml: unmarshal errors:{lines}");
        return Err(bad_request(format!("error strict decoding YAML: {error}")));
    }
    let mut object = match (outcome.object, live) {
        (None, Some(live)) => live.clone(),
        (fields, _) => {
            let fields = fields.unwrap_or_else(|| configuration.clone());
            let decoded = resource.decode(fields, FieldValidation::Ignore, &[]);
            let (mut object, _) = decoded.map_err(|error| match error {
                Error::Undecodable { detail, .. } => {
                    let what = resource.described(configuration);
                    let kind = what.rsplit("; ").next().unwrap_or_default();
                    Error::Unmergeable(format!(
                        "failed to convert new object ({what}) to proper version: unable to convert unstructured object to \
                         {kind}: error decoding from json: {detail}"
                    ))
                }
                other => other,
            })?;
            resource.complete(&mut object);
            object
        }
    };
    object.metadata.managed_fields = outcome.managers.encode();
    let meta = &object.metadata;
    if live.is_none() && !meta.uid.is_empty() {
        let detail =
            format!("uid mismatch: the provided object specified uid {}, and no existing object was found", meta.uid);
        return Err(resource.conflict(name, detail));
    }
    if meta.name.is_empty() {
        let message = format!("the name of the object ({name} based on URL) was undeterminable: name must be provided");
        return Err(bad_request(message));
    }
    if meta.name != name {
        let message = format!("the name of the object ({}) does not match the name on the URL ({name})", meta.name);
        return Err(bad_request(message));
    }
    Ok(object)
}
