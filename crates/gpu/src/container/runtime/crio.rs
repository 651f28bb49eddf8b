//! Edits CRI-O's configuration. CDI is always on in CRI-O, so only NVIDIA's runtime needs a file.
//!
//! Source: CRI-O, `docs/crio.conf.5.md`; the keys are those that `nvidia-ctk runtime configure --runtime=crio` writes.

use std::path::Path;

use super::layers::{Layers, low_level_runtime};
use super::{Change, NVIDIA, Options, note_on_cdi_folders, toml};
use crate::GpuError;

/// Edits a file of `crio.conf.d`, or `crio.conf` itself.
pub(super) fn edit(path: &Path, text: &str, options: &Options) -> Result<Change, GpuError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let layers = if folder.file_name().is_some_and(|name| name == "crio.conf.d") {
        Layers::drop_ins(&folder.with_file_name("crio.conf"), folder, "", path)?
    } else {
        Layers::drop_ins(path, &folder.join("crio.conf.d"), "", path)?
    };
    let document = toml::parse(text)?;
    let all: Vec<_> = layers.by_precedence(&document).collect();
    let folders = all.iter().find_map(|d| toml::get_strings(d.as_table(), &["crio", "runtime", "cdi_spec_dirs"]));
    let mut notes: Vec<String> =
        folders.and_then(|folders| note_on_cdi_folders("cdi_spec_dirs", &folders)).into_iter().collect();
    let Some(binary) = &options.nvidia_runtime else {
        notes.push("CRI-O gives CDI devices to containers without configuration".into());
        return Ok(Change { text: text.to_owned(), notes });
    };
    let source = low_level_runtime(
        &all,
        |document| toml::get_str(document, &["crio", "runtime", "default_runtime"]),
        |document, name| toml::get(document, &["crio", "runtime", "runtimes", name]),
    );
    let after = toml::edit(text, |document| {
        let runtime = toml::table(document.as_table_mut(), &["crio", "runtime"])?;
        if options.default {
            toml::set(runtime, "default_runtime", NVIDIA);
        } else if toml::get_str(runtime, &["default_runtime"]) == Some(NVIDIA) {
            runtime.remove("default_runtime");
        }
        let nvidia = toml::table(runtime, &["runtimes", NVIDIA])?;
        if let Some(source) = source {
            toml::merge(nvidia, source)?;
        }
        toml::set(nvidia, "runtime_path", binary.as_str());
        toml::set(nvidia, "runtime_type", "oci");
        Ok(())
    })?;
    for layer in &layers.later {
        let default = toml::get_str(layer.document.as_table(), &["crio", "runtime", "default_runtime"]);
        if options.default && default.is_some_and(|name| name != NVIDIA) {
            notes.push(format!(
                "{} is read later and sets another default_runtime: remove it there",
                layer.path.display()
            ));
        }
    }
    Ok(Change { text: after, notes })
}
