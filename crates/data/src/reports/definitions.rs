//! Which files of a version of the project are metrics, parameters and plots, according to its pipelines.

use std::path::{Path, PathBuf};

use crate::config::normalise;
use crate::error::DataError;
use crate::pipeline::value::text;
use crate::pipeline::{Files, PipelineFile, unpacking};
use crate::stage::{OutputKind, Stage};
use crate::tree::Tree;
use crate::yaml::Value;

/// A parameter file with the keys in it that count; all if there are none.
pub type Keys = (PathBuf, Vec<String>);

/// An output of a stage that is a plot.
#[derive(Debug, Clone)]
pub struct StagePlot {
    /// The file.
    pub path: PathBuf,
    /// How it is drawn: `x`, `y`, `title` and others.
    pub properties: Value,
}

/// The plots at the top of a `dvc.yaml`.
#[derive(Debug, Clone)]
pub struct TopPlots {
    /// The path of the `dvc.yaml`.
    pub file: PathBuf,
    /// Identifiers, which are paths unless `y` names files, and how each is drawn.
    pub plots: Vec<(String, Value)>,
}

/// The definitions. Paths are absolute.
#[derive(Debug, Default)]
pub struct Definitions {
    /// Metrics that stages write.
    pub metrics: Vec<PathBuf>,
    /// Other metrics.
    pub top_metrics: Vec<PathBuf>,
    /// Parameters on which stages depend.
    pub params: Vec<Keys>,
    /// Other parameter files.
    pub top_params: Vec<PathBuf>,
    /// Parameters that templates use.
    pub variables: Vec<Keys>,
    /// Plots that stages write.
    pub stage_plots: Vec<StagePlot>,
    /// Plots at the top, by file.
    pub top_plots: Vec<TopPlots>,
}

impl Definitions {
    /// Reads the definitions of a version of the project.
    ///
    /// # Errors
    /// If a `dvc.yaml` or a parameter file that it needs cannot be read.
    pub fn read(tree: &Tree<'_>) -> Result<Self, DataError> {
        let mut found = Self::default();
        let read = |path: &Path| tree.read_text(path);
        let project = tree.project();
        let mut files = Files::new(&project.root, &read).within(&project.allowance);
        tree.stages().iter().for_each(|stage| found.add_stage(stage, &project.root));
        for path in tree.pipelines()? {
            let Some(content) = tree.read_text(&path)? else { continue };
            let pipeline = PipelineFile::parse(&path, &content, &mut files, unpacking(&project.config))?;
            let folder = pipeline.folder();
            let list = |name: &str| -> Result<Vec<PathBuf>, DataError> {
                let section = pipeline.section(name)?;
                Ok(section.items().iter().map(|item| normalise(&folder.join(text(item)))).collect())
            };
            found.top_metrics.extend(list("metrics")?);
            found.top_params.extend(list("params")?);
            let plots: Vec<_> = pipeline.section("plots")?.items().iter().flat_map(named).collect();
            if !plots.is_empty() {
                found.top_plots.push(TopPlots { file: path, plots });
            }
        }
        Ok(found)
    }

    fn add_stage(&mut self, stage: &Stage, root: &Path) {
        for out in &stage.outs {
            let Some(path) = out.location.clone() else { continue };
            match &out.kind {
                OutputKind::Data => {}
                OutputKind::Metric => self.metrics.push(path),
                OutputKind::Plot(properties) => {
                    self.stage_plots.push(StagePlot { path, properties: Value::Map(properties.clone()) });
                }
            }
        }
        let Some(recipe) = &stage.recipe else { return };
        self.params.extend(recipe.params.iter().map(|params| (params.path.clone(), params.keys.clone())));
        self.variables.extend(recipe.used.iter().map(|(file, keys)| (normalise(&root.join(file)), keys.clone())));
    }

    /// The files that `dvc.yaml` names at the top and that no stage needs to write.
    pub fn top_level_files(&self) -> Vec<PathBuf> {
        let others = self.top_metrics.iter().chain(&self.top_params).cloned();
        others.chain(self.top_plot_files()).collect()
    }

    /// The files of the plots at the top of `dvc.yaml`.
    pub fn top_plot_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for plots in &self.top_plots {
            let folder = plots.file.parent().unwrap_or(Path::new("/"));
            for (id, properties) in &plots.plots {
                let mut sources: Vec<&str> = Vec::new();
                match properties.get("y") {
                    Some(Value::Map(by_file)) => {
                        sources.extend(by_file.iter().map(|(file, _)| file.as_str()));
                        let x = properties.get("x").map_or(&[][..], Value::entries);
                        sources.extend(x.iter().map(|(file, _)| file.as_str()));
                    }
                    _ => sources.push(id),
                }
                files.extend(sources.into_iter().map(|file| normalise(&folder.join(file))));
            }
        }
        files
    }
}

/// The entries of an item that is a name, or a mapping from names to properties.
fn named(item: &Value) -> Vec<(String, Value)> {
    match item {
        Value::Map(entries) => entries.clone(),
        name => vec![(text(name), Value::Map(Vec::new()))],
    }
}
