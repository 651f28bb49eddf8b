//! Edits containerd's configuration: versions 1 to 4, with the files that it imports.
//!
//! Source: containerd, `docs/man/containerd-config.toml.5.md`, `RELEASES.md` ("Daemon Configuration") and
//! `cmd/containerd/server/config/config.go` (the order of imports).

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, Item, TableLike};

use super::layers::{Layer, Layers, clean, glob, low_level_runtime};
use super::{CDI_FOLDERS, Change, NVIDIA, Options, Runtime, invalid, note_on_cdi_folders, toml};
use crate::GpuError;

/// The newest version of the format, that of containerd 2.3.
const NEWEST_VERSION: i64 = 4;
/// The version of a new file: containerd 1.7 and all of 2.x read it.
const VERSION_OF_NEW_FILES: i64 = 2;
/// The names of the plugin for Kubernetes, by version of the format.
const PLUGINS: [&str; 3] = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];
/// The plugin of containerd 2 that pulls images, without which the one that runs containers does not start.
const IMAGES_PLUGIN: &str = "io.containerd.cri.v1.images";
/// Maximum number of files that one configuration imports.
const MAX_IMPORTS: usize = 256;

/// The plugin for Kubernetes in a file of this version.
pub(super) fn plugin(version: i64) -> &'static str {
    match version {
        1 => PLUGINS[0],
        2 => PLUGINS[1],
        _ => PLUGINS[2],
    }
}

/// The version of a file; `None` if it does not have one and is therefore of version 1.
fn version(document: &DocumentMut) -> Result<Option<i64>, GpuError> {
    let Some(item) = document.get("version") else { return Ok(None) };
    let version = item.as_integer().ok_or_else(|| invalid("'version' is not a number"))?;
    if version < 1 {
        return Err(invalid(format!("there is no version {version}")));
    }
    Ok(Some(version))
}

/// The settings of the plugin for Kubernetes, under whichever of its names the file uses.
fn settings(document: &dyn TableLike) -> Option<&dyn TableLike> {
    PLUGINS.iter().find_map(|name| toml::get(document, &["plugins", name])?.as_table_like())
}

/// Edits the configuration.
pub(super) fn edit(runtime: Runtime, path: &Path, text: &str, options: &Options) -> Result<Change, GpuError> {
    if text.contains("{{") && toml::parse(text).is_err() {
        return Err(invalid("the file is a Go template: use `--runtime k3s` or `--runtime rke2`"));
    }
    let document = toml::parse(text)?;
    let (layers, missing) = match runtime {
        // k0s imports its drop-ins in the order of their names.
        Runtime::K0s => {
            let folder = path.parent().unwrap_or(Path::new("/"));
            let main = folder.parent().unwrap_or(folder).join("containerd.toml");
            (Layers::drop_ins(&main, folder, ".toml", path)?, Vec::new())
        }
        _ => imports(runtime, path, &document)?,
    };
    let is_new = document.is_empty();
    let version = match version(&document)? {
        Some(version) => version,
        None if runtime == Runtime::K0s => match layers.earlier.first() {
            Some(main) => self::version(&main.document)?.unwrap_or(VERSION_OF_NEW_FILES),
            // k0s from 1.36 on refuses drop-ins of version 2.
            None => 3,
        },
        None if is_new => VERSION_OF_NEW_FILES,
        None => 1,
    };
    let all: Vec<&DocumentMut> = layers.by_precedence(&document).collect();
    let source = low_level_runtime(
        &all,
        |document| toml::get_str(settings(document)?, &["containerd", "default_runtime_name"]),
        |document, name| toml::get(settings(document)?, &["containerd", "runtimes", name]),
    )
    .filter(|_| !has_inherited(&all));
    let after = toml::edit(text, |document| apply(document, version, source, options))?;
    let mut notes = Vec::new();
    if version > NEWEST_VERSION {
        notes.push(format!(
            "version {version} of containerd's configuration is newer than {NEWEST_VERSION}, the newest known; the names of version \
             {NEWEST_VERSION} are used, so check the change"
        ));
    }
    notes.extend(missing);
    let edited = toml::parse(&after)?;
    notes.extend(notes_on_plugins(&layers, &edited));
    let folders =
        layers.by_precedence(&edited).find_map(|d| toml::get_strings(settings(d.as_table())?, &["cdi_spec_dirs"]));
    notes.extend(folders.and_then(|folders| note_on_cdi_folders("cdi_spec_dirs", &folders)));
    if runtime != Runtime::K0s {
        notes.extend(layers.later.iter().filter_map(|layer| note_on_override(layer, path, options)));
    }
    Ok(Change { text: after, notes })
}

/// Whether NVIDIA's runtime is the default runtime and has the settings of another one. The runtime that was the default before is then no
/// longer known, so the settings stay; otherwise the edit could not be repeated.
fn has_inherited(documents: &[&DocumentMut]) -> bool {
    let settings = || documents.iter().filter_map(|document| settings(document.as_table()));
    let default = settings().find_map(|plugin| toml::get_str(plugin, &["containerd", "default_runtime_name"]));
    let runtimes = || settings().filter_map(|plugin| toml::get(plugin, &["containerd", "runtimes"])?.as_table_like());
    let values = |runtime: &dyn TableLike| {
        let mut values = toml::values(runtime);
        values.retain(|path, _| path != "options.BinaryName" && path != "options.Runtime");
        values
    };
    let ours = runtimes().find_map(|runtimes| runtimes.get(NVIDIA)?.as_table_like()).map(values);
    let mut others = runtimes().flat_map(TableLike::iter).filter(|(name, _)| !name.starts_with(NVIDIA));
    default == Some(NVIDIA) && others.any(|(_, other)| other.as_table_like().map(values) == ours)
}

fn apply(
    document: &mut DocumentMut,
    version: i64,
    source: Option<&dyn TableLike>,
    options: &Options,
) -> Result<(), GpuError> {
    let is_new = document.is_empty();
    let is_needed = options.nvidia_runtime.is_some() || version < 3;
    if is_new && is_needed {
        toml::set(document.as_table_mut(), "version", version);
    }
    // Reading first keeps a file without changes free of empty tables.
    let enabled = toml::get(document.as_table(), &["plugins", plugin(version), "enable_cdi"]).and_then(Item::as_bool);
    // CDI is enabled by default in containerd 2, but not in 1.7, which reads versions 1 and 2.
    if enabled == Some(false) || enabled.is_none() && version < 3 {
        let plugin = toml::table(document.as_table_mut(), &["plugins", plugin(version)])?;
        toml::set(plugin, "enable_cdi", true);
        if !plugin.contains_key("cdi_spec_dirs") {
            toml::set(plugin, "cdi_spec_dirs", Array::from_iter(CDI_FOLDERS));
        }
    }
    let Some(binary) = &options.nvidia_runtime else { return Ok(()) };
    let containerd = toml::table(document.as_table_mut(), &["plugins", plugin(version), "containerd"])?;
    if options.default {
        toml::set(containerd, "default_runtime_name", NVIDIA);
    } else if toml::get_str(containerd, &["default_runtime_name"]) == Some(NVIDIA) {
        containerd.remove("default_runtime_name");
    }
    let nvidia = toml::table(containerd, &["runtimes", NVIDIA])?;
    if let Some(source) = source {
        toml::merge(nvidia, source)?;
    }
    if toml::get_str(nvidia, &["runtime_type"]).unwrap_or_default().is_empty() {
        toml::set(nvidia, "runtime_type", "io.containerd.runc.v2");
    }
    let shim = toml::table(nvidia, &["options"])?;
    toml::set(shim, "BinaryName", binary.as_str());
    if version == 1 {
        toml::set(shim, "Runtime", binary.as_str());
    }
    Ok(())
}

/// The files that the configuration imports, in the order in which containerd reads them, and notes on those that do not exist.
fn imports(runtime: Runtime, path: &Path, document: &DocumentMut) -> Result<(Layers, Vec<String>), GpuError> {
    let mut layers = Layers::default();
    let mut notes = Vec::new();
    let mut read = BTreeSet::from([clean(path)]);
    let mut pending: VecDeque<PathBuf> = VecDeque::new();
    let mut add = |from: &Path, document: &DocumentMut, pending: &mut VecDeque<PathBuf>| -> Result<(), GpuError> {
        for import in toml::get_strings(document.as_table(), &["imports"]).unwrap_or_default() {
            let import = expand(runtime, path, &import);
            let full = clean(&from.parent().unwrap_or(Path::new("/")).join(&import));
            if import.contains('*') {
                pending.extend(glob(&full)?);
            } else if full.exists() {
                pending.push_back(full);
            } else {
                notes.push(format!(
                    "{} imports {}, which does not exist: containerd will not start",
                    from.display(),
                    full.display()
                ));
            }
        }
        Ok(())
    };
    add(path, document, &mut pending)?;
    while let Some(import) = pending.pop_front() {
        if !read.insert(import.clone()) {
            continue;
        }
        if read.len() > MAX_IMPORTS {
            return Err(invalid(format!("more than {MAX_IMPORTS} files are imported")));
        }
        if let Some(layer) = Layer::read(&import)? {
            add(&import, &layer.document, &mut pending)?;
            layers.later.push(layer);
        }
    }
    Ok((layers, notes))
}

/// Replaces the variable in the template of MicroK8s that names the snap's data folder.
fn expand(runtime: Runtime, path: &Path, import: &str) -> String {
    let data = path.parent().and_then(Path::parent).filter(|_| runtime == Runtime::Microk8s);
    data.map_or_else(|| import.to_owned(), |data| import.replace("${SNAP_DATA}", &data.display().to_string()))
}

/// Notes on a plugin for Kubernetes that is switched off.
fn notes_on_plugins(layers: &Layers, edited: &DocumentMut) -> Vec<String> {
    let disabled = layers
        .by_precedence(edited)
        .flat_map(|document| toml::get_strings(document.as_table(), &["disabled_plugins"]).unwrap_or_default());
    let is_needed = |name: &String| PLUGINS.contains(&name.as_str()) || name == IMAGES_PLUGIN;
    let names: BTreeSet<String> = disabled.filter(is_needed).collect();
    let note = |name| {
        format!(
            "disabled_plugins lists \"{name}\", so containerd serves no Kubernetes and ignores this configuration; Docker's package \
             containerd.io installs it so. Remove it from the list, or write a complete file with `containerd config default`"
        )
    };
    names.into_iter().map(note).collect()
}

/// A note if an imported file overrides the edited one.
fn note_on_override(layer: &Layer, path: &Path, options: &Options) -> Option<String> {
    let plugin = settings(layer.document.as_table())?;
    let mut overrides = Vec::new();
    if toml::get(plugin, &["enable_cdi"]).and_then(Item::as_bool) == Some(false) {
        overrides.push("enable_cdi".to_owned());
    }
    if let Some(binary) = &options.nvidia_runtime {
        let default = toml::get_str(plugin, &["containerd", "default_runtime_name"]);
        if default.is_some_and(|name| (name == NVIDIA) != options.default) {
            overrides.push("default_runtime_name".into());
        }
        let theirs = toml::get_str(plugin, &["containerd", "runtimes", NVIDIA, "options", "BinaryName"]);
        if theirs.is_some_and(|theirs| theirs != binary) {
            overrides.push(format!("the path of the runtime \"{NVIDIA}\""));
        }
    }
    let import = layer.path.display();
    Some(if overrides.is_empty() {
        // containerd issue 5837, resolved in 2.1.
        format!(
            "{import} is imported after {} and configures the same plugin: containerd before 2.1 then uses only the imported part, so \
             make the change there with `--config {import}`",
            path.display()
        )
    } else {
        format!(
            "{import} is imported after {} and overrides {}: make the change there with `--config {import}`",
            path.display(),
            overrides.join(", ")
        )
    })
}

#[cfg(test)]
mod tests;
