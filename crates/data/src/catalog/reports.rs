//! What the pipelines of several revisions produced: metrics, parameters, plots and experiments.

use schemars::JsonSchema;
use serde::Serialize;

use super::names::check_revision;
use super::opened::Opened;
use crate::error::DataError;
use crate::experiments::{show, table};
use crate::reports::changes::{flatten, with_lists_as_text};
use crate::reports::plots::{self, collect, figures};
use crate::reports::python::{self, Rounding};
use crate::reports::revisions::at;
use crate::reports::{Files, metrics, params};
use crate::revision::{Selection, all};
use crate::yaml::Value;

/// Maximum number of revisions side by side.
const MAX_REVISIONS: usize = 8;
/// Maximum number of values of a revision.
const MAX_VALUES: usize = 5000;
/// Maximum characters of a value.
const MAX_VALUE_CHARS: usize = 500;
/// Maximum number of plots.
const MAX_PLOTS: usize = 40;
/// Maximum bytes of the pictures of a page.
const MAX_PICTURE_BYTES: usize = 16 << 20;
/// Maximum number of commits whose experiments are listed.
const MAX_BASELINES: usize = 20;
/// Maximum number of experiments in a table.
const MAX_EXPERIMENTS: usize = 200;
/// Digits after the point of a number in a table.
const DECIMALS: usize = 5;

/// The values of a file in several revisions.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DataValue")]
pub struct RevisionValues {
    /// The file.
    pub file: String,
    /// The name of the value: keys, joined by dots.
    pub name: String,
    /// Its text in each revision; `null` where it does not exist.
    pub values: Vec<Option<String>>,
}

/// Metrics and parameters of several revisions side by side.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataValues")]
pub struct Values {
    /// The revisions, as they were requested.
    pub revisions: Vec<String>,
    /// Metrics.
    pub metrics: Vec<RevisionValues>,
    /// Parameters.
    pub params: Vec<RevisionValues>,
    /// What could not be read.
    pub failures: Vec<String>,
}

/// A group of points of a plot.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataPlotLine")]
pub struct PlotLine {
    /// The revision, perhaps with the file or field.
    pub name: String,
    /// Its colour in hexadecimal notation.
    pub color: String,
    /// The lengths of its dashes and gaps; empty for a continuous line.
    pub dash: String,
}

/// A plot.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataPlot")]
pub struct Plot {
    /// The title.
    pub title: String,
    /// The drawing for light pages, an SVG document.
    pub light: String,
    /// The drawing for dark pages.
    pub dark: String,
    /// What is drawn.
    pub legend: Vec<PlotLine>,
}

/// A picture of a revision.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataPlotPicture")]
pub struct PlotPicture {
    /// The revision.
    pub revision: String,
    /// The file.
    pub path: String,
    /// Its bytes as a `data:` URL. A browser runs no script of a picture that it shows in an `<img>`.
    pub url: String,
}

/// A plot that consists of pictures.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataPictures")]
pub struct Pictures {
    /// The title.
    pub title: String,
    /// The pictures, in the order of the revisions.
    pub pictures: Vec<PlotPicture>,
}

/// The plots of several revisions.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataPlots")]
pub struct Plots {
    /// The plots with points.
    pub plots: Vec<Plot>,
    /// The plots with pictures.
    pub pictures: Vec<Pictures>,
    /// What could not be read.
    pub failures: Vec<String>,
}

/// A table of commits with their experiments.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataExperiments")]
pub struct Experiments {
    /// The titles of the columns.
    pub columns: Vec<String>,
    /// Which of them are metrics.
    pub metrics: Vec<String>,
    /// The rows; experiments follow the commit from which they were derived.
    pub rows: Vec<Vec<String>>,
}

fn checked(revisions: &[String]) -> Result<(), DataError> {
    if revisions.is_empty() || revisions.len() > MAX_REVISIONS {
        return Err(DataError::Invalid(format!("give 1 to {MAX_REVISIONS} revisions")));
    }
    revisions.iter().try_for_each(|revision| check_revision(revision))
}

fn short(text: String) -> String {
    match text.char_indices().nth(MAX_VALUE_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Adds the values of the files in the revision with this number to the rows.
fn add(rows: &mut Vec<RevisionValues>, files: &Files, number: usize, count: usize) {
    for (file, value) in files {
        let Ok(value) = value else { continue };
        let found = match with_lists_as_text(value) {
            value @ Value::Map(_) => flatten(&value),
            single => vec![(String::new(), single)],
        };
        for (name, value) in found.into_iter().take(MAX_VALUES) {
            let place = rows.iter().position(|row| row.file == *file && row.name == name).unwrap_or_else(|| {
                rows.push(RevisionValues { file: file.clone(), name, values: vec![None; count] });
                rows.len() - 1
            });
            rows[place].values[number] = Some(short(python::text(&value, Rounding::None)));
        }
    }
}

/// The plots that consist of pictures, up to the limits of a page, and which pictures exceed them.
fn pictures(found: &plots::Plots) -> (Vec<Pictures>, Vec<String>) {
    let (mut groups, mut too_large, mut total) = (Vec::new(), Vec::new(), 0);
    for (title, content) in &found.plots {
        let plots::Content::Pictures(pictures) = content else { continue };
        if groups.len() == MAX_PLOTS {
            break;
        }
        let mut group = Pictures { title: title.clone(), pictures: Vec::new() };
        for picture in pictures {
            let (revision, path) = (picture.revision.clone(), picture.path.clone());
            if total + picture.bytes.len() > MAX_PICTURE_BYTES {
                too_large.push(format!("{path} in {revision}: a page shows at most 16 MiB of pictures"));
                continue;
            }
            total += picture.bytes.len();
            group.pictures.push(PlotPicture { revision, path, url: picture.data_url() });
        }
        groups.push(group);
    }
    groups.retain(|group| !group.pictures.is_empty());
    (groups, too_large)
}

impl Opened {
    /// Metrics and parameters of these revisions.
    ///
    /// # Errors
    /// [`DataError::Invalid`] for no or too many revisions, or an error for one that does not exist.
    pub fn values(&self, revisions: &[String]) -> Result<Values, DataError> {
        checked(revisions)?;
        let mut failures = self.receive_reports(revisions)?;
        let (mut metric_rows, mut param_rows) = (Vec::new(), Vec::new());
        for (number, revision) in revisions.iter().enumerate() {
            let read = at(&self.project, revision, |tree| {
                Ok((metrics::gather(tree, &[])?, params::gather(tree, &[], false)?))
            })?;
            let (metrics, params) = match read {
                Ok(found) => found,
                Err(failure) => {
                    failures.push(format!("{revision}: {}", failure.message));
                    continue;
                }
            };
            for (file, value) in metrics.iter().chain(&params) {
                failures.extend(value.as_ref().err().map(|failure| format!("{revision}: {file}: {}", failure.message)));
            }
            add(&mut metric_rows, &metrics, number, revisions.len());
            add(&mut param_rows, &params, number, revisions.len());
        }
        let failures = failures.into_iter().map(|text| self.without_paths(DataError::Invalid(text)).to_string());
        Ok(Values {
            revisions: revisions.to_vec(),
            metrics: metric_rows,
            params: param_rows,
            failures: failures.map(short).collect(),
        })
    }

    /// The plots of these revisions, which share their axes.
    ///
    /// # Errors
    /// As [`Self::values`].
    pub fn plots(&self, revisions: &[String]) -> Result<Plots, DataError> {
        checked(revisions)?;
        let not_received = self.receive_reports(revisions)?;
        let found = collect(&self.project, &[], revisions, &Value::Map(Vec::new()))?;
        let unread = found.failures.iter().map(|failure| format!("{}: {}", failure.revision, failure.failure.message));
        let shown = |text| short(self.without_paths(DataError::Invalid(text)).to_string());
        let (pictures, too_large) = pictures(&found);
        let failures = not_received.into_iter().chain(unread).chain(too_large).map(shown).collect();
        let line =
            |(name, color, dash): (String, &str, &str)| PlotLine { name, color: color.into(), dash: dash.into() };
        let plots = figures(&found).into_iter().take(MAX_PLOTS).map(|figure| {
            let [light, dark] = figure.svg;
            Plot { title: figure.title, light, dark, legend: figure.legend.into_iter().map(line).collect() }
        });
        Ok(Plots { plots: plots.collect(), pictures, failures })
    }

    /// The table of the last `count` commits with their experiments.
    ///
    /// # Errors
    /// [`DataError::Limit`] for more than 200 experiments.
    pub fn experiments(&self, count: usize) -> Result<Experiments, DataError> {
        let number = count.clamp(1, MAX_BASELINES);
        let baselines = self.git.history(&self.commit, number)?;
        let shown = all(&self.git, None)?.iter().filter(|e| baselines.contains(&e.baseline)).count();
        if shown > MAX_EXPERIMENTS {
            return Err(DataError::Limit(format!(
                "{shown} experiments derive from these commits; a table shows at most {MAX_EXPERIMENTS}"
            )));
        }
        let selection = Selection {
            all_commits: false,
            revisions: vec![self.commit.clone()],
            number: i64::try_from(number).unwrap_or(1),
        };
        let options = show::Options { selection, hide_workspace: true, ..show::Options::default() };
        let states = show::collect(&self.project, &options)?;
        let options = table::Options {
            raw: true,
            rounding: Rounding::Decimals(DECIMALS),
            only_changed: false,
            drop: Vec::new(),
            keep: Vec::new(),
            sort_by: None,
        };
        let found = table::to_table(&states, &options)?;
        Ok(Experiments {
            columns: found.table.columns,
            metrics: found.metrics.into_iter().collect(),
            rows: found.table.rows.into_iter().map(|row| row.into_iter().map(short).collect()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reports::plots::{Content, Picture};

    #[test]
    fn pictures_are_sent_up_to_the_limit_of_a_page() {
        let picture = |revision: &str, path: &str, size| Picture {
            revision: revision.into(),
            path: path.into(),
            bytes: vec![b'a'; size],
        };
        let large = MAX_PICTURE_BYTES - 2;
        let content = vec![picture("v1", "a.svg", 1), picture("v2", "a.svg", large), picture("main", "a.svg", 2)];
        let found = plots::Plots { plots: vec![("a.svg".into(), Content::Pictures(content))], failures: Vec::new() };
        let (groups, too_large) = pictures(&found);
        let revisions: Vec<_> = groups[0].pictures.iter().map(|picture| picture.revision.as_str()).collect();
        assert_eq!((groups.len(), revisions), (1, vec!["v1", "v2"]));
        assert_eq!(groups[0].pictures[0].url, "data:image/svg+xml;base64,YQ==");
        assert_eq!(too_large, ["a.svg in main: a page shows at most 16 MiB of pictures"]);
    }
}
