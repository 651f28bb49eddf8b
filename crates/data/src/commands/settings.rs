//! `config`, `remote` and `cache dir`: the configuration.

use std::path::{Path, PathBuf};

use crate::config::{Files, LEVELS, Level};
use crate::error::DataError;
use crate::ini::Ini;
use crate::project::{DVC_DIR, cache_dir, find_root};

/// The files of the configuration that apply in a folder.
pub fn files(current: &Path) -> Files {
    Files::new(find_root(current).ok().map(|root| root.join(DVC_DIR)))
}

/// The section and option of a name such as `core.remote` or `remote.NAME.url`.
fn split(name: &str) -> Result<(String, String), DataError> {
    let invalid = || {
        DataError::Usage("name argument should look like remote.name.option or db.name.option or section.option".into())
    };
    let name = name.to_lowercase();
    let (section, option) = name.rsplit_once('.').ok_or_else(invalid)?;
    let section = match section.split_once('.') {
        Some((kind @ ("remote" | "db"), rest)) if !rest.contains('.') => format!("{kind} \"{rest}\""),
        None => section.to_owned(),
        _ => return Err(invalid()),
    };
    Ok((section, option.to_owned()))
}

fn levels(level: Option<Level>) -> Vec<Level> {
    level.map_or_else(|| LEVELS.to_vec(), |level| vec![level])
}

/// The value of an option and the file that sets it: that of the level, or of the last level that has it. `None` if none does.
///
/// # Errors
/// [`DataError::Config`] if the given level does not have it.
pub fn get(files: &Files, name: &str, level: Option<Level>) -> Result<Option<(String, PathBuf)>, DataError> {
    let (section, option) = split(name)?;
    for level in levels(level).into_iter().rev() {
        let Some(path) = files.path(level) else { continue };
        let value = files.read_resolved(level)?.section(&section).and_then(|section| section.get(&option));
        if let Some(value) = value {
            return Ok(Some((value, path)));
        }
    }
    match level {
        Some(_) => Err(DataError::Config(format!("option '{option}' doesn't exist in section '{section}'"))),
        None => Ok(None),
    }
}

/// All options as `section.option`, with value and file, in the order of the levels.
///
/// # Errors
/// If a file cannot be read.
pub fn list(files: &Files, level: Option<Level>) -> Result<Vec<(String, String, PathBuf)>, DataError> {
    let mut found = Vec::new();
    for level in levels(level) {
        let Some(path) = files.path(level) else { continue };
        let ini = files.read_resolved(level)?;
        let (named, plain): (Vec<_>, Vec<_>) =
            ini.sections.iter().partition(|section| crate::ini::named(&section.name).is_some());
        for section in named.into_iter().chain(plain) {
            let name = match crate::ini::named(&section.name) {
                Some((kind, name)) => format!("{kind}.{name}"),
                None => section.name.clone(),
            };
            found.extend(
                section.options.iter().map(|option| (format!("{name}.{}", option.name), option.value(), path.clone())),
            );
        }
    }
    Ok(found)
}

/// Sets an option, or removes it if there is no value. Without a level, the project's file is changed.
///
/// # Errors
/// [`DataError::Config`] for an unknown option.
pub fn set(files: &Files, name: &str, value: Option<&str>, level: Option<Level>) -> Result<(), DataError> {
    let (section, option) = split(name)?;
    files.edit(level.unwrap_or(Level::Project), |ini| match value {
        Some(value) => {
            ini.section_mut(&section).set(&option, value);
            Ok(())
        }
        None => unset(ini, &section, &option),
    })
}

fn unset(ini: &mut Ini, section: &str, option: &str) -> Result<(), DataError> {
    let found = ini.sections.iter_mut().find(|existing| existing.name == section);
    let found = found.ok_or_else(|| DataError::Config(format!("section '{section}' doesn't exist")))?;
    let before = found.options.len();
    found.options.retain(|existing| existing.name != option);
    if found.options.len() == before {
        return Err(DataError::Config(format!("option '{option}' doesn't exist in section '{section}'")));
    }
    Ok(())
}

fn section_of(name: &str) -> String {
    format!("remote \"{}\"", name.to_lowercase())
}

/// Adds a remote.
///
/// # Errors
/// [`DataError::Config`] if it exists and `force` is false.
pub fn add_remote(
    files: &Files,
    name: &str,
    url: &str,
    default: bool,
    force: bool,
    level: Option<Level>,
) -> Result<(), DataError> {
    let section = section_of(name);
    files.edit(level.unwrap_or(Level::Project), |ini| {
        if ini.section(&section).is_some() {
            if !force {
                return Err(DataError::Config(format!(
                    "remote '{name}' already exists. Use `-f|--force` to overwrite it."
                )));
            }
            ini.section_mut(&section).options.clear();
        }
        ini.section_mut(&section).set("url", url);
        if default {
            ini.section_mut("core").set("remote", &name.to_lowercase());
        }
        Ok(())
    })
}

/// Sets an option of a remote, or removes it if there is no value.
///
/// # Errors
/// [`DataError::Config`] if there is no such remote.
pub fn modify_remote(
    files: &Files,
    name: &str,
    option: &str,
    value: Option<&str>,
    level: Option<Level>,
) -> Result<(), DataError> {
    let level = level.unwrap_or(Level::Project);
    let section = section_of(name);
    let exists = files.load_below(Some(level))?.has(&section);
    files.edit(level, |ini| {
        if !exists && ini.section(&section).is_none() {
            return Err(DataError::Config(format!("remote '{name}' doesn't exist.")));
        }
        match value {
            Some(value) => ini.section_mut(&section).set(option, value),
            None => ini.section_mut(&section).options.retain(|existing| existing.name != option),
        }
        Ok(())
    })
}

/// Removes a remote, and its choice as the default one in all levels from the given one on.
///
/// # Errors
/// [`DataError::Config`] if there is no such remote.
pub fn remove_remote(files: &Files, name: &str, level: Option<Level>) -> Result<(), DataError> {
    let level = level.unwrap_or(Level::Project);
    let section = section_of(name);
    files.edit(level, |ini| {
        let before = ini.sections.len();
        ini.sections.retain(|existing| existing.name != section);
        let missing = || DataError::Config(format!("remote '{name}' doesn't exist."));
        if ini.sections.len() == before { Err(missing()) } else { Ok(()) }
    })?;
    for other in LEVELS.into_iter().rev().take_while(|other| *other >= level) {
        let is_default =
            files.read(other)?.section("core").and_then(|core| core.get("remote")) == Some(name.to_lowercase());
        if is_default {
            files.edit(other, |ini| unset(ini, "core", "remote"))?;
        }
    }
    Ok(())
}

/// Renames a remote, also where it is the default one.
///
/// # Errors
/// [`DataError::Config`] if there is no such remote, or one with the new name.
pub fn rename_remote(files: &Files, name: &str, new: &str, level: Option<Level>) -> Result<(), DataError> {
    let level = level.unwrap_or(Level::Project);
    let (section, new_section) = (section_of(name), section_of(new));
    if files.load()?.has(&new_section) {
        return Err(DataError::Config(format!("Rename failed. Remote name '{new}' already exists.")));
    }
    files.edit(level, |ini| {
        let found = ini.sections.iter().position(|existing| existing.name == section);
        let found = found.ok_or_else(|| DataError::Config(format!("remote '{name}' doesn't exist.")))?;
        let mut renamed = ini.sections.remove(found);
        renamed.name = new_section.clone();
        ini.sections.push(renamed);
        Ok(())
    })?;
    for other in LEVELS.into_iter().rev().take_while(|other| *other >= level) {
        if files.read(other)?.section("core").and_then(|core| core.get("remote")) == Some(name.to_lowercase()) {
            set(files, "core.remote", Some(&new.to_lowercase()), Some(other))?;
        }
    }
    Ok(())
}

/// The default remote: of the level, or the effective one.
///
/// # Errors
/// If a file cannot be read.
pub fn default_remote(files: &Files, level: Option<Level>) -> Result<Option<String>, DataError> {
    Ok(get(files, "core.remote", level)
        .or_else(|error| if level.is_some() { Ok(None) } else { Err(error) })?
        .map(|(value, _)| value))
}

/// Makes a remote the default one, or none if there is no name.
///
/// # Errors
/// [`DataError::Config`] if there is no such remote.
pub fn set_default_remote(files: &Files, name: Option<&str>, level: Option<Level>) -> Result<(), DataError> {
    match name {
        Some(name) => {
            if !files.load()?.has(&section_of(name)) {
                return Err(DataError::Config("default remote must be present in remote list.".into()));
            }
            set(files, "core.remote", Some(&name.to_lowercase()), level)
        }
        None => files.edit(level.unwrap_or(Level::Project), |ini| {
            ini.section_mut("core").options.retain(|option| option.name != "remote");
            Ok(())
        }),
    }
}

/// The remotes with their URLs: of the level, or the effective ones.
///
/// # Errors
/// If a file cannot be read.
pub fn remotes(files: &Files, level: Option<Level>) -> Result<Vec<(String, String)>, DataError> {
    let config = match level {
        Some(level) => {
            let ini = files.read_resolved(level)?;
            let found = ini.sections.iter().filter_map(|section| match crate::ini::named(&section.name) {
                Some(("remote", name)) => Some((name.to_owned(), section.get("url").unwrap_or_default())),
                _ => None,
            });
            return Ok(found.collect());
        }
        None => files.load()?,
    };
    let url = |name: &String| config.remote(name).and_then(|options| options.get("url")).cloned().unwrap_or_default();
    Ok(config.remotes().iter().map(|name| (name.clone(), url(name))).collect())
}

/// The folder of the cache: of the level, or the effective one.
///
/// # Errors
/// [`DataError::NoProject`] outside of a project, [`DataError::Config`] if the level does not set it.
pub fn cache_folder(current: &Path, level: Option<Level>) -> Result<PathBuf, DataError> {
    let dvc_dir = find_root(current)?.join(DVC_DIR);
    let files = Files::new(Some(dvc_dir.clone()));
    match level {
        Some(_) => Ok(get(&files, "cache.dir", level)?.map(|(value, _)| PathBuf::from(value)).unwrap_or_default()),
        None => Ok(cache_dir(&files.load()?, &dvc_dir)),
    }
}
