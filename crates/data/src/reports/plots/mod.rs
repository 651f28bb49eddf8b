//! `plots show`, `plots diff`: plots of one or several revisions, as specifications in Vega-Lite in DVC's JSON, and as a page of our own.

mod chart;
mod collect;
mod page;
mod points;
pub mod template;

use std::path::{Path, PathBuf};

use base64::Engine;
pub use points::Axes;
use points::Point;

use super::Failure;
use crate::error::DataError;
use crate::json::Json;
use crate::project::{DVC_DIR, Project};
use crate::yaml::Value;

pub use collect::{collect, revisions_of_diff};
pub use page::{Figure, figures, page, page_in};
pub(crate) use points::rows as separated_rows;

/// The points of a plot in all revisions.
#[derive(Debug, Clone)]
pub struct Series {
    /// The title.
    pub title: String,
    /// The name of the template.
    pub template: Option<String>,
    /// The fields that are drawn.
    pub axes: Axes,
    /// The revisions that have points.
    pub revisions: Vec<String>,
    points: Vec<Point>,
}

/// A picture of a revision.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The revision.
    pub revision: String,
    /// The path of the file.
    pub path: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// What a plot shows.
#[derive(Debug, Clone)]
pub enum Content {
    /// Points.
    Series(Box<Series>),
    /// Pictures.
    Pictures(Vec<Picture>),
}

/// A failure that concerns one revision of a plot.
#[derive(Debug, Clone)]
pub struct PlotFailure {
    /// The plot; `None` if no plot of the revision could be read.
    pub plot: Option<String>,
    /// The revision.
    pub revision: String,
    /// The file, if the failure concerns one.
    pub source: Option<String>,
    /// What failed.
    pub failure: Failure,
}

/// The plots.
#[derive(Debug, Default)]
pub struct Plots {
    /// Identifiers and content.
    pub plots: Vec<(String, Content)>,
    /// What could not be read.
    pub failures: Vec<PlotFailure>,
}

/// The extensions of pictures.
const PICTURES: &[&str] = &["jpg", "jpeg", "gif", "png", "svg"];

fn is_picture(path: &str) -> bool {
    let extension = Path::new(path).extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| PICTURES.contains(&extension))
}

impl Plots {
    /// The plots as JSON. Pictures are written into the folder `out`.
    ///
    /// # Errors
    /// If a template does not exist or fit, or a picture cannot be written.
    pub fn to_json(&self, project: &Project, out: &Path, split: bool) -> Result<Json, DataError> {
        let mut data = Vec::new();
        for (id, content) in &self.plots {
            let list = match content {
                Content::Series(series) => vec![series_json(project, series, split)?],
                Content::Pictures(pictures) => {
                    let picture = |picture: &Picture| {
                        let file = picture.write(out)?;
                        Ok(Json::Map(vec![
                            ("type".into(), Json::string("image")),
                            ("revisions".into(), Json::List(vec![Json::string(&picture.revision)])),
                            ("url".into(), Json::string(file.to_string_lossy())),
                        ]))
                    };
                    pictures.iter().map(picture).collect::<Result<_, DataError>>()?
                }
            };
            data.push((id.clone(), Json::List(list)));
        }
        let failure = |failure: &PlotFailure| {
            let mut members = Vec::new();
            members.extend(failure.plot.as_ref().map(|plot| ("name".to_owned(), Json::string(plot))));
            members.push(("rev".into(), Json::string(&failure.revision)));
            members.extend(failure.source.as_ref().map(|source| ("source".to_owned(), Json::string(source))));
            members.push(("type".into(), Json::string(failure.failure.kind)));
            members.push(("msg".into(), Json::string(&failure.failure.message)));
            Json::Map(members)
        };
        let mut members = Vec::new();
        if !self.failures.is_empty() {
            members.push(("errors".to_owned(), Json::List(self.failures.iter().map(failure).collect())));
        }
        if !data.is_empty() {
            members.push(("data".into(), Json::Map(data)));
        }
        Ok(Json::Map(members))
    }

    /// The specification in Vega-Lite of the first plot with points.
    ///
    /// # Errors
    /// If its template does not exist or fit.
    pub fn specification(&self, project: &Project) -> Result<Option<Json>, DataError> {
        let series = self.plots.iter().find_map(|(_, content)| match content {
            Content::Series(series) => Some(series),
            Content::Pictures(_) => None,
        });
        series.map(|series| Ok(filled(project, series, false)?.to_json())).transpose()
    }
}

fn filled(project: &Project, series: &Series, split: bool) -> Result<template::Filled, DataError> {
    let name = series.template.as_deref().unwrap_or(template::DEFAULT);
    let template = template::load(name, &project.root.join(DVC_DIR), &project.current)?;
    template::fill(&template, series, split)
        .map_err(|reason| DataError::Plot(format!("the plot '{}' cannot be shown: {reason}", series.title)))
}

fn series_json(project: &Project, series: &Series, split: bool) -> Result<Json, DataError> {
    let filled = filled(project, series, split)?;
    let mut members = vec![
        ("type".to_owned(), Json::string("vega")),
        ("revisions".into(), Json::List(series.revisions.iter().map(Json::string).collect())),
        ("content".into(), filled.to_json()),
    ];
    if split {
        members.push(("anchor_definitions".into(), super::python::value_to_json(&Value::Map(filled.left))));
    }
    Ok(Json::Map(members))
}

impl Picture {
    /// The picture as a `data:` URL.
    pub fn data_url(&self) -> String {
        let media = match Path::new(&self.path).extension().and_then(|extension| extension.to_str()) {
            Some("svg") => "svg+xml",
            Some("jpg") => "jpeg",
            other => other.unwrap_or_default(),
        };
        let data = base64::engine::general_purpose::STANDARD.encode(&self.bytes);
        format!("data:image/{media};base64,{data}")
    }

    /// Writes the picture into a folder and returns the path of the file.
    fn write(&self, folder: &Path) -> Result<PathBuf, DataError> {
        std::fs::create_dir_all(folder).map_err(DataError::io(folder))?;
        let path = folder.join(format!("{}_{}", self.revision, self.path).replace('/', "_"));
        slipway_core::files::replace(&path, &self.bytes).map_err(DataError::io(&path))?;
        Ok(path)
    }
}
