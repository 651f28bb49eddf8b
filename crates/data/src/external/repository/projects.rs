//! The DVC projects in a repository: where they are, their configuration, and what they track.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Data, Options, Repository, Source, child, parent};
use crate::cache::Cache;
use crate::config::{Config, Files, Level};
use crate::error::DataError;
use crate::ignore::Rules;
use crate::ini::{Ini, Section};
use crate::model::HashName;
use crate::pipeline::{self, template::Unpacking};
use crate::project::{DVC_DIR, cache_dir, is_stage_file};
use crate::scm::Blob;
use crate::stage::{PIPELINE_FILE, Stage};

impl Repository {
    pub(super) fn load_projects(&mut self, place: Option<&Path>, options: &Options) -> Result<(), DataError> {
        let (roots, files) = match &self.source {
            Source::Workspace { root, rules } => {
                let mut found = Found::default();
                search(root, "", rules, &mut found)?;
                (found.projects, found.stages)
            }
            Source::Commit { files, .. } => {
                let config = |path: &&String| *path == ".dvc/config" || path.ends_with("/.dvc/config");
                let roots = files.keys().filter(config).map(|path| parent(parent(path)).to_owned()).collect();
                let is_stage = |path: &&String| is_stage_file(Path::new(path.as_str()));
                (roots, files.keys().filter(is_stage).cloned().collect())
            }
        };
        let base = place.map_or_else(|| PathBuf::from("/"), Path::to_owned);
        for root in roots {
            let folder = base.join(&root).join(DVC_DIR);
            let config = self.config(&root, &folder, place.is_some(), options)?;
            let mut caches = Vec::new();
            if place.is_some() {
                let folder = cache_dir(&config, &folder);
                caches.extend([HashName::Md5, HashName::Dos2Unix].map(|hash| Cache::new(&folder, hash, false)));
            }
            self.projects.push(Data { root, config, caches, outs: BTreeMap::new() });
        }
        self.projects.sort_by(|a, b| a.root.cmp(&b.root));
        let texts = self.texts(&files)?;
        for file in files.iter().filter(|path| is_stage_file(Path::new(path))) {
            let Some(number) = self.project_of(file) else { continue };
            let full = base.join(file);
            let root = base.join(&self.projects[number].root);
            let Some(text) = texts.get(file).cloned() else { continue };
            let stages = if full.file_name().is_some_and(|name| name == PIPELINE_FILE) {
                let read = |path: &Path| match path.strip_prefix(&base).ok().and_then(Path::to_str) {
                    Some(path) => self.text(path),
                    None => Ok(None),
                };
                pipeline::load(&full, &text, &mut pipeline::Files::new(&root, &read), Unpacking::default())?
            } else {
                vec![Stage::parse(&full, &root, text)?]
            };
            for out in stages.into_iter().flat_map(|stage| stage.outs) {
                if let Some(path) = out.path.as_ref().and_then(|path| path.strip_prefix(&base).ok()?.to_str()) {
                    self.projects[number].outs.insert(path.to_owned(), out);
                }
            }
        }
        Ok(())
    }

    /// The configuration of a project: the user's, that of the version, and the given options.
    fn config(&self, root: &str, folder: &Path, is_local: bool, options: &Options) -> Result<Config, DataError> {
        let mut config = match &self.source {
            Source::Workspace { .. } => Files::new(Some(folder.to_owned())).load()?,
            Source::Commit { .. } => {
                let mut config = Files::new(None).load_below(Some(Level::Project))?;
                let file = child(root, ".dvc/config");
                if let Some(text) = self.texts(std::slice::from_ref(&file))?.remove(&file) {
                    let ini = Ini::parse(&text);
                    let place = folder.join("config");
                    let ini = ini.map_err(|(line, reason)| DataError::file(&place, line, reason))?;
                    config.merge_file(&ini, folder);
                }
                if is_local {
                    // The remote of the workspace, which may have credentials that Git does not track.
                    let workspace = Files::new(Some(folder.to_owned()));
                    let mut local = workspace.read_resolved(Level::Local)?;
                    local.sections.retain(|section| section.name.starts_with("remote "));
                    config.merge_file(&local, folder);
                }
                config
            }
        };
        if let Some(file) = &options.config {
            let text = std::fs::read_to_string(file).map_err(DataError::io(file))?;
            let ini = Ini::parse(&text).map_err(|(line, reason)| DataError::file(file, line, reason))?;
            config.merge_file(&ini, file.parent().unwrap_or(Path::new(".")));
        }
        let mut given = Ini::default();
        options.settings.iter().for_each(|(section, option, value)| given.section_mut(section).set(option, value));
        if let Some(remote) = &options.remote {
            given.section_mut("core").set("remote", remote);
        }
        if !options.remote_config.is_empty() {
            let name = options.remote.as_deref().or_else(|| config.get("core", "remote")).unwrap_or("given").to_owned();
            given.section_mut("core").set("remote", &name);
            let section: &mut Section = given.section_mut(&format!("remote \"{name}\""));
            options.remote_config.iter().for_each(|(option, value)| section.set(option, value));
        }
        let current = std::env::current_dir().map_err(DataError::io("."))?;
        config.merge_file(&given, &current);
        Ok(config)
    }

    /// The texts of those of the files that exist.
    pub(super) fn texts(&self, paths: &[String]) -> Result<BTreeMap<String, String>, DataError> {
        let mut texts = BTreeMap::new();
        match &self.source {
            Source::Workspace { root, .. } => {
                for path in paths {
                    let full = root.join(path);
                    match std::fs::read(&full) {
                        Ok(bytes) => drop(texts.insert(path.clone(), String::from_utf8_lossy(&bytes).into_owned())),
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                        Err(error) => return Err(DataError::io(&full)(error)),
                    }
                }
            }
            Source::Commit { git, files } => {
                let found: Vec<(&String, &Blob)> = paths.iter().filter_map(|path| files.get_key_value(path)).collect();
                let ids: Vec<&str> = found.iter().map(|(_, blob)| blob.id.as_str()).collect();
                git.read_blobs(&ids, |i, content| {
                    let mut bytes = Vec::new();
                    let path = found[i].0;
                    std::io::Read::read_to_end(content, &mut bytes).map_err(DataError::io(path))?;
                    texts.insert(path.clone(), String::from_utf8_lossy(&bytes).into_owned());
                    Ok(())
                })?;
            }
        }
        Ok(texts)
    }
}

#[derive(Default)]
struct Found {
    projects: Vec<String>,
    stages: Vec<String>,
}

/// The projects and stage files below a folder of the workspace. Outputs are searched, too, since stages in them are ignored by `.dvcignore` or rare.
fn search(root: &Path, folder: &str, rules: &Arc<Rules>, found: &mut Found) -> Result<(), DataError> {
    let full = root.join(folder);
    if full.join(DVC_DIR).is_dir() {
        found.projects.push(folder.to_owned());
    }
    for entry in std::fs::read_dir(&full).map_err(DataError::io(&full))? {
        let entry = entry.map_err(DataError::io(&full))?;
        let kind = entry.file_type().map_err(DataError::io(&full))?;
        let name = entry.file_name();
        // A name that is not UTF-8 is reported where it is listed or copied.
        let Some(name) = name.to_str() else { continue };
        let path = entry.path();
        if rules.is_ignored(&path, kind.is_dir()) {
            continue;
        }
        if kind.is_dir() {
            search(root, &child(folder, name), &rules.enter(&path)?, found)?;
        } else if is_stage_file(&path) && path.is_file() {
            found.stages.push(child(folder, name));
        }
    }
    Ok(())
}
