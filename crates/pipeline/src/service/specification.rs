//! Specifications between their text, their messages and the store.

use std::sync::Arc;

use ring::digest::{SHA256, digest};
use serde_json::Value;

use crate::Error;
use crate::entity::StoredSpec;
use crate::ir::read::Document;
use crate::ir::{read, write};

/// Reads a file.
pub(super) fn from_text(text: &str) -> Result<(StoredSpec, Document), Error> {
    let document = read::read(text)?;
    Ok((stored(&document), document))
}

/// Reads what a client sent.
pub(super) fn from_json(value: Value) -> Result<(StoredSpec, Document), Error> {
    let document = read::read_json(value)?;
    Ok((stored(&document), document))
}

/// Reads a stored specification.
pub(super) fn from_stored(spec: &StoredSpec) -> Result<Document, Error> {
    let value = serde_json::from_str(&spec.text).map_err(|error| {
        Error::Specification(format!("the stored specification {} is damaged: {error}", spec.digest))
    })?;
    read::read_json(value)
}

fn stored(document: &Document) -> StoredSpec {
    let text: Arc<str> = write::to_text(document).into();
    StoredSpec { digest: slipway_core::hex::encode(digest(&SHA256, text.as_bytes()).as_ref()), text }
}

/// The name in the specification.
pub(super) fn name(document: &Document) -> String {
    document.spec.pipeline_info.as_ref().map(|info| info.name.clone()).unwrap_or_default()
}
