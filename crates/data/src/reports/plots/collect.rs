//! Which plots there are, and their data in each revision.

use std::path::Path;

use regex::Regex;

use super::points::{self, Sources};
use super::{Axes, Content, Failure, Picture, PlotFailure, Plots, Series, is_picture};
use crate::config::normalise;
use crate::error::DataError;
use crate::pipeline::params::parse;
use crate::project::Project;
use crate::reports::definitions::Definitions;
use crate::reports::revisions::{WORKSPACE, at};
use crate::tree::Tree;
use crate::yaml::Value;

/// The definition of a plot in one revision.
#[derive(Debug)]
struct Definition {
    /// The path of the `dvc.yaml`, empty for outputs of stages and for targets.
    file: String,
    /// The identifier.
    id: String,
    properties: Value,
    /// The data of its sources, and whether each has a header.
    data: Sources,
    pictures: Vec<(String, Vec<u8>)>,
    failures: Vec<(String, Failure)>,
}

/// The plots of the targets, or all, in these revisions. `properties` replace those of the definitions.
///
/// # Errors
/// If a revision does not exist or a target is not a valid pattern.
pub fn collect(
    project: &Project,
    targets: &[String],
    revisions: &[String],
    properties: &Value,
) -> Result<Plots, DataError> {
    let patterns = targets
        .iter()
        .map(|target| {
            Regex::new(&format!("^(?:{target})")).or_else(|_| Regex::new(&format!("^{}", regex::escape(target))))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| DataError::Invalid(error.to_string()))?;
    let mut found = Vec::new();
    let mut plots = Plots::default();
    for revision in revisions {
        let read = at(project, revision, |tree| {
            let selected = Selected { tree, targets, patterns: &patterns, properties };
            selected.definitions()
        })?;
        match read {
            Ok(definitions) => found.push((revision.clone(), definitions)),
            Err(failure) => {
                plots.failures.push(PlotFailure { plot: None, revision: revision.clone(), source: None, failure });
            }
        }
    }
    let mut order: Vec<String> = Vec::new();
    for (_, definitions) in &found {
        for definition in definitions {
            let id = full_id(definitions, definition);
            if !order.contains(&id) {
                order.push(id);
            }
        }
    }
    for id in order {
        let group: Vec<(&str, &Definition)> = found
            .iter()
            .flat_map(|(revision, list)| {
                list.iter().filter(|d| full_id(list, d) == id).map(move |definition| (revision.as_str(), definition))
            })
            .collect();
        join(&id, &group, &mut plots);
    }
    Ok(plots)
}

/// The revisions of `plots diff`: those that are given, and the workspace if there are less than two. Without any, `HEAD` is the first if
/// tracked files have changed.
///
/// # Errors
/// If git cannot be run.
pub fn revisions_of_diff(project: &Project, given: &[String]) -> Result<Vec<String>, DataError> {
    let mut revisions = given.to_vec();
    if revisions.len() <= 1 {
        let Some(git) = &project.git else { return Ok(vec![WORKSPACE.into()]) };
        if revisions.is_empty() && git.has_changes()? {
            revisions.push("HEAD".into());
        }
        revisions.push(WORKSPACE.into());
    }
    if let Some(place) = revisions.iter().position(|revision| revision == WORKSPACE) {
        let workspace = revisions.remove(place);
        revisions.insert(0, workspace);
    }
    Ok(revisions)
}

/// The identifier, with the file if several files define it.
fn full_id(definitions: &[Definition], definition: &Definition) -> String {
    let several = definitions.iter().any(|other| other.id == definition.id && other.file != definition.file);
    if several && !definition.file.is_empty() {
        format!("{}::{}", definition.file, definition.id)
    } else {
        definition.id.clone()
    }
}

/// Joins the data of a plot in all revisions.
fn join(id: &str, group: &[(&str, &Definition)], plots: &mut Plots) {
    let mut properties: Vec<(String, Value)> = Vec::new();
    for (name, value) in group.iter().flat_map(|(_, definition)| definition.properties.entries()) {
        if !properties.iter().any(|(known, _)| known == name) {
            properties.push((name.clone(), value.clone()));
        }
    }
    let properties = Value::Map(properties);
    let mut series: Option<Series> = None;
    let mut pictures = Vec::new();
    for (revision, definition) in group {
        for (source, failure) in &definition.failures {
            plots.failures.push(PlotFailure {
                plot: Some(id.to_owned()),
                revision: (*revision).to_owned(),
                source: Some(source.clone()),
                failure: failure.clone(),
            });
        }
        for (path, bytes) in &definition.pictures {
            let picture = Picture { revision: (*revision).to_owned(), path: path.clone(), bytes: bytes.clone() };
            pictures.push(picture);
        }
        match points::points(&definition.id, &properties, &definition.data, revision) {
            Ok(Some((found, axes))) => {
                let text = |name: &str| properties.get(name).and_then(Value::as_str).map(str::to_owned);
                let series = series.get_or_insert_with(|| Series {
                    title: text("title").unwrap_or_else(|| id.to_owned()),
                    template: text("template"),
                    axes: Axes::default(),
                    revisions: Vec::new(),
                    points: Vec::new(),
                });
                if series.points.is_empty() {
                    series.axes = axes;
                }
                series.points.extend(found);
                if !series.revisions.iter().any(|known| known == revision) {
                    series.revisions.push((*revision).to_owned());
                }
            }
            Ok(None) => {}
            Err(message) => plots.failures.push(PlotFailure {
                plot: Some(id.to_owned()),
                revision: (*revision).to_owned(),
                source: None,
                failure: Failure { kind: "FieldNotFoundError", message },
            }),
        }
    }
    if !pictures.is_empty() {
        plots.plots.push((id.to_owned(), Content::Pictures(pictures)));
    } else if let Some(series) = series {
        plots.plots.push((id.to_owned(), Content::Series(Box::new(series))));
    }
}

/// The plots of a version of the project that a command is about.
struct Selected<'a> {
    tree: &'a Tree<'a>,
    targets: &'a [String],
    patterns: &'a [Regex],
    properties: &'a Value,
}

impl Selected<'_> {
    fn definitions(&self) -> Result<Vec<Definition>, DataError> {
        let known = Definitions::read(self.tree)?;
        let mut found: Vec<Definition> = Vec::new();
        for top in &known.top_plots {
            let file = self.shown(&top.file);
            let folder = top.file.parent().unwrap_or(Path::new("/"));
            let folders: Vec<_> = top.plots.iter().map(|(id, _)| normalise(&folder.join(id))).collect();
            for (id, properties) in &top.plots {
                if !self.matches(&file, id) {
                    continue;
                }
                if matches!(properties.get("y"), Some(Value::Map(_))) {
                    let properties = self.with_paths(properties, folder);
                    self.add(&mut found, &known, &file, id.clone(), properties)?;
                    continue;
                }
                let path = normalise(&folder.join(id));
                for below in self.unpack(&path)? {
                    // The definition of the closest folder counts.
                    let closest =
                        folders.iter().filter(|folder| below.starts_with(folder)).max_by_key(|f| f.as_os_str().len());
                    if closest == Some(&path) {
                        self.add(&mut found, &known, &file, self.shown(&below), properties.clone())?;
                    }
                }
            }
        }
        for plot in &known.stage_plots {
            if self.matches("", &self.shown(&plot.path)) {
                for below in self.unpack(&plot.path)? {
                    self.add(&mut found, &known, "", self.shown(&below), plot.properties.clone())?;
                }
            }
        }
        for target in self.targets {
            let path = self.tree.project().absolute(target);
            if self.tree.read(&path)?.is_some() || self.tree.files_below(&path)?.is_some() {
                for below in self.unpack(&path)? {
                    let id = self.shown(&below);
                    // As in DVC, it is a plot of its own beside one of a `dvc.yaml`.
                    if !found.iter().any(|definition| definition.file.is_empty() && definition.id == id) {
                        self.add(&mut found, &known, "", id, Value::Map(Vec::new()))?;
                    }
                }
            }
        }
        Ok(found)
    }

    fn shown(&self, path: &Path) -> String {
        self.tree.project().display(path)
    }

    fn matches(&self, file: &str, id: &str) -> bool {
        let full = if file.is_empty() { id.to_owned() } else { format!("{file}::{id}") };
        self.patterns.is_empty() || self.patterns.iter().any(|p| p.is_match(id) || p.is_match(&full))
    }

    fn unpack(&self, path: &Path) -> Result<Vec<std::path::PathBuf>, DataError> {
        Ok(self.tree.files_below(path)?.map_or_else(|| vec![path.to_owned()], |files| files.into_iter().collect()))
    }

    /// The properties with the files of the axes relative to the current folder.
    fn with_paths(&self, properties: &Value, folder: &Path) -> Value {
        let axis = |value: &Value| match value {
            Value::Map(files) => Value::Map(
                files
                    .iter()
                    .map(|(file, fields)| (self.shown(&normalise(&folder.join(file))), fields.clone()))
                    .collect(),
            ),
            other => other.clone(),
        };
        let entry = |(name, value): &(String, Value)| match name.as_str() {
            "x" | "y" => (name.clone(), axis(value)),
            _ => (name.clone(), value.clone()),
        };
        Value::Map(properties.entries().iter().map(entry).collect())
    }

    fn add(
        &self,
        found: &mut Vec<Definition>,
        known: &Definitions,
        file: &str,
        id: String,
        properties: Value,
    ) -> Result<(), DataError> {
        let properties = merge(self.properties, &properties);
        let mut definition = Definition {
            file: file.to_owned(),
            id: id.clone(),
            properties: properties.clone(),
            data: Sources::new(),
            pictures: Vec::new(),
            failures: Vec::new(),
        };
        for source in points::sources(&id, &properties) {
            let path = self.tree.project().absolute(&source);
            let of_stage = known.stage_plots.iter().find(|plot| path.starts_with(&plot.path));
            let header = of_stage.map_or(Value::Null, |plot| merge(self.properties, &plot.properties));
            let header = [&header, &properties].iter().find_map(|p| p.get("header")?.as_bool()).unwrap_or(true);
            let allowance = &self.tree.project().allowance;
            let read = |bytes: Vec<u8>| allowance.points(bytes.len()).map(|()| bytes);
            let bytes = match self.tree.read(&path).and_then(|found| found.map(read).transpose()) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => {
                    definition.failures.push((source.clone(), Failure::missing(&source)));
                    continue;
                }
                Err(error) => {
                    definition.failures.push((source.clone(), Failure::from_error(&error, &source)));
                    continue;
                }
            };
            if is_picture(&source) {
                definition.pictures.push((source, bytes));
                continue;
            }
            match parse_data(&source, bytes, header) {
                Ok(value) => definition.data.push((source, value)),
                Err(failure) => definition.failures.push((source, failure)),
            }
        }
        found.push(definition);
        Ok(())
    }
}

/// The properties of both; those of the first count.
fn merge(first: &Value, second: &Value) -> Value {
    let mut entries = first.entries().to_vec();
    entries.extend(second.entries().iter().filter(|(name, _)| first.get(name).is_none()).cloned());
    Value::Map(entries)
}

fn parse_data(path: &str, bytes: Vec<u8>, header: bool) -> Result<Value, Failure> {
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if !["csv", "tsv", "json", "yaml", "yml", "toml", "py"].contains(&extension) {
        return Err(Failure {
            kind: "PlotMetricTypeError",
            message: format!("'{path}' - file type error\nOnly JSON, YAML, CSV and TSV formats are supported."),
        });
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure { kind: "EncodingError", message: format!("'{path}' is not UTF-8") })?;
    match extension {
        "csv" => Ok(points::parse_separated(&text, ',', header)),
        "tsv" => Ok(points::parse_separated(&text, '\t', header)),
        _ => parse(Path::new(path), &text).map_err(|error| Failure::from_error(&error, path)),
    }
}
