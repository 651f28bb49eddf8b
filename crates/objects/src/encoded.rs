//! An object as JSON text, as lists and watches send it. Most readers take the text as it is stored, so that it is decoded only for selectors and
//! tables, and at most once for all watches together.

use std::sync::OnceLock;

use crate::error::Error;
use crate::object::Object;
use crate::resource::Resource;

/// An object as JSON text, with its version.
#[derive(Debug)]
pub struct Encoded {
    json: Vec<u8>,
    /// Where the field `metadata` begins, if only the API version and the kind are before it.
    metadata_at: Option<usize>,
    object: OnceLock<Object>,
}

impl Encoded {
    /// The object that is stored as `body`, which does not contain the version.
    ///
    /// # Errors
    /// [`Error::Sealed`] if the text is not an object.
    pub fn from_stored(resource: &Resource, body: &[u8], version: i64) -> Result<Self, Error> {
        let prefix = format!(r#"{{"apiVersion":"{}","kind":"{}","#, resource.api_version(), resource.kind);
        const METADATA: &[u8] = br#""metadata":{""#;
        let rest = body.strip_prefix(prefix.as_bytes()).and_then(|rest| rest.strip_prefix(METADATA));
        let Some(rest) = rest else {
            // Stored by another version of the program, in another order.
            let mut object = decode(body)?;
            object.metadata.resource_version = version.to_string();
            return Ok(Self::from(object));
        };
        let mut json = Vec::with_capacity(body.len() + 48);
        json.extend_from_slice(prefix.as_bytes());
        json.extend_from_slice(format!(r#""metadata":{{"resourceVersion":"{version}",""#).as_bytes());
        json.extend_from_slice(rest);
        Ok(Self { json, metadata_at: Some(prefix.len()), object: OnceLock::new() })
    }

    /// The whole object.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Whether a field with this name is somewhere in the object. Nothing is decoded for it, so it may also be a part of another text.
    pub fn mentions(&self, field: &str) -> bool {
        std::str::from_utf8(&self.json).is_ok_and(|json| json.contains(field))
    }

    /// Appends the object without its API version and kind, which the API server leaves out in lists of its own kinds.
    pub fn write_without_kind(&self, out: &mut Vec<u8>) {
        if let Some(at) = self.metadata_at {
            out.push(b'{');
            out.extend_from_slice(&self.json[at..]);
            return;
        }
        let mut value = self.object.get().map(Object::to_value).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        out.extend_from_slice(value.to_string().as_bytes());
    }

    /// The decoded object.
    ///
    /// # Errors
    /// [`Error::Sealed`] if the text is not an object.
    pub fn object(&self) -> Result<&Object, Error> {
        if let Some(object) = self.object.get() {
            return Ok(object);
        }
        let object = decode(&self.json)?;
        Ok(self.object.get_or_init(|| object))
    }

    /// The decoded object.
    ///
    /// # Errors
    /// [`Error::Sealed`] if the text is not an object.
    pub fn into_object(self) -> Result<Object, Error> {
        match self.object.into_inner() {
            Some(object) => Ok(object),
            None => decode(&self.json),
        }
    }
}

impl From<Object> for Encoded {
    fn from(object: Object) -> Self {
        Self { json: object.to_json(), metadata_at: None, object: OnceLock::from(object) }
    }
}

fn decode(json: &[u8]) -> Result<Object, Error> {
    serde_json::from_slice(json)
        .map_err(|error| Error::Sealed(format!("an object is stored in an unknown form: {error}")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::kinds;

    fn config_maps() -> std::sync::Arc<Resource> {
        kinds::registry().find("", "configmaps").cloned().unwrap()
    }

    fn without_kind(encoded: &Encoded) -> Value {
        let mut text = Vec::new();
        encoded.write_without_kind(&mut text);
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn stored_objects_get_their_version_without_being_decoded() {
        let expected = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "resourceVersion": "7"}, "data": {"metadata": "{}"}});
        let stored = br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"metadata":"{}"}}"#;
        let reordered = br#"{"kind":"ConfigMap","data":{"metadata":"{}"},"apiVersion":"v1","metadata":{"name":"a"}}"#;
        for body in [&stored[..], reordered] {
            let encoded = Encoded::from_stored(&config_maps(), body, 7).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(encoded.json()).unwrap(), expected);
            assert_eq!(encoded.object().unwrap().to_value(), expected);
            let mut rest = expected.clone();
            rest.as_object_mut().unwrap().retain(|field, _| field != "kind" && field != "apiVersion");
            assert_eq!(without_kind(&encoded), rest);
            assert_eq!(encoded.into_object().unwrap().to_value(), expected);
        }
    }

    #[test]
    fn invalid_texts_are_errors() {
        assert!(Encoded::from_stored(&config_maps(), b"{", 1).is_err());
        let cut = Encoded::from_stored(&config_maps(), br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"na"#, 1)
            .unwrap();
        assert!(cut.object().is_err() && cut.into_object().is_err());
    }
}
