//! Secrets and config maps of the Kubernetes API for the variables of runs. A run reads those of its own namespace, as in a cluster: a caller
//! who may create runs there can read them through a run.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use serde_json::Value;
use slipway_exec::local::{ReferenceKind, ReferencedValues, References};
use slipway_objects::embedded::Embedded;
use slipway_objects::store::ObjectStore;
use slipway_objects::{Error, Resource};

/// The secrets and config maps of a store.
#[derive(Debug)]
pub(crate) struct StoredReferences {
    store: Embedded,
}

impl StoredReferences {
    pub(crate) fn new(store: Embedded) -> Self {
        Self { store }
    }

    fn resource(&self, kind: ReferenceKind) -> Option<&Arc<Resource>> {
        let plural = match kind {
            ReferenceKind::Secret => "secrets",
            ReferenceKind::ConfigMap => "configmaps",
        };
        self.store.registry().find("", plural)
    }
}

impl References for StoredReferences {
    fn read<'a>(
        &'a self,
        kind: ReferenceKind,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ReferencedValues>, String>> {
        Box::pin(async move {
            let Some(resource) = self.resource(kind) else { return Ok(None) };
            let object = match self.store.get(resource, namespace, name).await {
                Ok(object) => object,
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error.to_string()),
            };
            let entries = object.at(&["data"]).as_object().into_iter().flatten();
            let decoded = entries.map(|(key, value)| Ok((key.clone(), bytes(kind, value)?)));
            decoded.collect::<Result<_, String>>().map(Some)
        })
    }
}

/// A value of an object. Those of secrets are encoded.
fn bytes(kind: ReferenceKind, value: &Value) -> Result<Vec<u8>, String> {
    let text = value.as_str().unwrap_or_default();
    match kind {
        ReferenceKind::ConfigMap => Ok(text.as_bytes().to_vec()),
        ReferenceKind::Secret => STANDARD.decode(text).map_err(|_| "a value is not base64".to_owned()),
    }
}
