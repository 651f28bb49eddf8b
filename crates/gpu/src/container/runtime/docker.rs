//! Edits Docker's configuration, which is JSON without comments.

use serde_json::Value;

use super::{Change, NVIDIA, Options, invalid, json_edit, note_on_cdi_folders};
use crate::GpuError;

/// Edits `daemon.json`.
pub(super) fn edit(text: &str, options: &Options) -> Result<Change, GpuError> {
    let set = |text: &str, path: &[&str], value: Value| json_edit::set(text, path, &value).map_err(invalid);
    let mut after = set(text, &["features", "cdi"], true.into())?;
    let document: Value = serde_json::from_str(&after).map_err(invalid)?;
    if let Some(binary) = &options.nvidia_runtime {
        after = set(&after, &["runtimes", NVIDIA, "path"], binary.as_str().into())?;
        // The arguments of a runtime that is configured already are the user's.
        if document["runtimes"][NVIDIA].is_null() {
            after = set(&after, &["runtimes", NVIDIA, "args"], Value::Array(Vec::new()))?;
        }
        if options.default {
            after = set(&after, &["default-runtime"], NVIDIA.into())?;
        }
    }
    let folders = document["cdi-spec-dirs"]
        .as_array()
        .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>());
    let note = folders.and_then(|folders| note_on_cdi_folders("cdi-spec-dirs", &folders));
    Ok(Change { text: after, notes: note.into_iter().collect() })
}
