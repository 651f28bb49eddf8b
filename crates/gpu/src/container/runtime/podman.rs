//! Edits Podman's configuration. Podman passes CDI devices without configuration (4.1 and later), so only NVIDIA's runtime needs a file.
//!
//! Source: containers.conf(5), tables `engine` and `engine.runtimes`.

use toml_edit::Array;

use super::{Change, NVIDIA, Options, note_on_cdi_folders, toml};
use crate::GpuError;

/// Edits a file of `containers.conf.d`, or `containers.conf` itself.
pub(super) fn edit(text: &str, options: &Options) -> Result<Change, GpuError> {
    let document = toml::parse(text)?;
    let folders = toml::get_strings(document.as_table(), &["engine", "cdi_spec_dirs"]);
    let mut notes: Vec<String> =
        folders.and_then(|folders| note_on_cdi_folders("cdi_spec_dirs", &folders)).into_iter().collect();
    let Some(binary) = &options.nvidia_runtime else {
        notes.push(
            "Podman passes CDI devices to containers without configuration: `--device nvidia.com/gpu=all`".into(),
        );
        return Ok(Change { text: text.to_owned(), notes });
    };
    let after = toml::edit(text, |document| {
        let engine = toml::table(document.as_table_mut(), &["engine"])?;
        if options.default {
            toml::set(engine, "runtime", NVIDIA);
        } else if toml::get_str(engine, &["runtime"]) == Some(NVIDIA) {
            engine.remove("runtime");
        }
        toml::set(toml::table(engine, &["runtimes"])?, NVIDIA, Array::from_iter([binary.as_str()]));
        Ok(())
    })?;
    Ok(Change { text: after, notes })
}
