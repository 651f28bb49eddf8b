//! An object of any kind: typed metadata and a JSON body.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::meta::ObjectMeta;

/// An object of any kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    /// The group and version, such as `slipway.dev/v1`.
    pub api_version: String,
    /// The kind, such as `Run`.
    pub kind: String,
    /// What objects of all kinds have.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// The fields of the kind, such as `spec` and `status`.
    #[serde(flatten)]
    pub body: Map<String, Value>,
}

impl Object {
    /// The value at a path of field names; `Null` if there is none.
    pub fn at(&self, path: &[&str]) -> &Value {
        let Some((first, rest)) = path.split_first() else { return &Value::Null };
        rest.iter().fold(self.body.get(*first).unwrap_or(&Value::Null), |value, name| &value[*name])
    }

    /// The text at a path of field names; empty if there is none.
    pub fn text(&self, path: &[&str]) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }

    /// The object as JSON.
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("objects are plain data with text keys")
    }

    /// The object as JSON text.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("objects are plain data with text keys")
    }
}
