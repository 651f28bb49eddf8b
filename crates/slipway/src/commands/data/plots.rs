//! `data plots`: a page with plots, or their specifications.

use std::path::Path;

use slipway_data::DataError;
use slipway_data::commands::plots::modify;
use slipway_data::project::{DVC_DIR, Project};
use slipway_data::reports::plots::{self, template};
use slipway_data::reports::python::value_to_json;
use slipway_data::yaml::Value;

use super::reports::is_json;
use crate::cli::data::reports::{Look, Plot, Plots};
use crate::commands::Context;
use crate::output::{print_note, print_text};

/// The folder of the page unless the configuration or `--out` name another.
const FOLDER: &str = "dvc_plots";

/// Prints a template, or the names of all. It needs no project.
pub(super) fn templates(name: Option<&str>) -> Result<(), DataError> {
    let Some(name) = name else {
        print_text(&format!("{}\n", template::NAMES.join("\n")));
        return Ok(());
    };
    let content = template::built_in(name)
        .ok_or_else(|| DataError::Invalid(format!("there is no template '{name}'; `plots templates` lists them")))?;
    print_text(&format!("{}\n", value_to_json(&content).to_text()));
    Ok(())
}

pub(super) fn run(context: &Context, project: &Project, verb: Plots) -> Result<(), DataError> {
    let (targets, plot, revisions) = match verb {
        Plots::Show { targets, plot } => (targets, plot, vec!["workspace".to_owned()]),
        Plots::Diff { targets, plot, revisions } => {
            let revisions = plots::revisions_of_diff(project, &revisions)?;
            (targets, plot, revisions)
        }
        Plots::Modify { target, look, unset } => {
            let files = modify(project, &target, properties(&look).entries(), &unset)?;
            super::show_git_files(context, project, &files);
            return Ok(());
        }
        Plots::Templates { template } => return templates(template.as_deref()),
    };
    if plot.show_vega && targets.len() != 1 {
        return Err(DataError::Invalid("'--show-vega' needs exactly one target".into()));
    }
    let found = plots::collect(project, &targets, &revisions, &properties(&plot.look))?;
    if plot.show_vega {
        if let Some(specification) = found.specification(project)? {
            print_text(&format!("{}\n", specification.to_text()));
        }
        return Ok(());
    }
    let configured = project.config.get("plots", "out_dir").unwrap_or(FOLDER);
    let folder = project.absolute(plot.out.as_deref().unwrap_or(configured));
    if is_json(context, plot.json) {
        let value = found.to_json(project, &folder, plot.split)?;
        print_text(&format!("{}\n", value.to_text()));
        return Ok(());
    }
    for failure in &found.failures {
        let plot = failure.plot.as_deref().unwrap_or("plots");
        print_note(format_args!("WARNING: {plot} in {}: {}", failure.revision, failure.failure.message));
    }
    if found.plots.is_empty() {
        print_note("No plots were loaded, visualization file will not be created.");
        return Ok(());
    }
    write_page(project, &found, &folder, &revisions, &plot)
}

fn write_page(
    project: &Project,
    found: &plots::Plots,
    folder: &Path,
    revisions: &[String],
    plot: &Plot,
) -> Result<(), DataError> {
    let name = project.root.file_name().map_or_else(|| "project".into(), |name| name.to_string_lossy().into_owned());
    let configured = project.config.get("plots", "html_template").map(|path| project.root.join(DVC_DIR).join(path));
    let template = plot.html_template.as_ref().map(|path| project.absolute(path)).or(configured);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| DataError::Io { path, source }
    };
    let page = match template {
        Some(file) => plots::page_in(&std::fs::read_to_string(&file).map_err(io(&file))?, found)?,
        None => plots::page(found, &name, revisions),
    };
    std::fs::create_dir_all(folder).map_err(io(folder))?;
    let file = folder.join("index.html");
    slipway_core::files::replace(&file, page.as_bytes()).map_err(io(&file))?;
    let url = file_url(&file);
    print_text(&format!("{url}\n"));
    if plot.open || project.config.is_true("plots", "auto_open") {
        let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
        if std::process::Command::new(program).arg(&file).spawn().is_err() {
            print_note(format_args!("WARNING: no browser could be opened with {program}"));
        }
    }
    Ok(())
}

/// The URL of a file.
fn file_url(path: &Path) -> String {
    let mut url = String::from("file://");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => url.push(char::from(*byte)),
            byte => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

fn properties(plot: &Look) -> Value {
    let texts = [
        ("template", &plot.template),
        ("x", &plot.x),
        ("y", &plot.y),
        ("title", &plot.title),
        ("x_label", &plot.x_label),
        ("y_label", &plot.y_label),
    ];
    let mut entries: Vec<(String, Value)> =
        texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::string(text.as_ref()?)))).collect();
    if plot.no_header {
        entries.push(("header".into(), Value::Bool(false)));
    }
    Value::Map(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_in_urls() {
        assert_eq!(file_url(Path::new("/a b/é.html")), "file:///a%20b/%C3%A9.html");
    }
}
