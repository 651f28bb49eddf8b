//! The commands of `slipway data` about other repositories and URLs.

use std::path::Path;

use slipway_data::DataError;
use slipway_data::commands::artifacts::{self, Version};
use slipway_data::commands::get::{self, Branch, Listing};
use slipway_data::commands::{import, update};
use slipway_data::external::location::Item;
use slipway_data::external::{self, Node};
use slipway_data::json::Json;
use slipway_data::project::Project;

use super::{Terminal, show_git_files};
use crate::cli::Format;
use crate::cli::data::external as cli;
use crate::commands::Context;
use crate::output::{escape_line, print_text};

/// Runs a command about another repository or a URL.
pub(super) async fn run(
    context: &Context,
    verb: cli::External,
    current: &Path,
    open: &dyn Fn() -> Result<Project, DataError>,
) -> Result<(), DataError> {
    match verb {
        cli::External::List(options) => list(context, options, current).await,
        cli::External::ListUrl(options) => list_url(&options, current).await,
        cli::External::Get(options) => {
            let from = source(options.source);
            if options.show_url {
                let url = get::url_of(&options.url, &options.path, &from, current).await?;
                print_text(&format!("{}\n", escape_line(&url)));
                return Ok(());
            }
            let out = options.out.as_deref();
            get::get(&options.url, &options.path, &from, out, options.force, options.jobs, current).await.map(drop)
        }
        cli::External::GetUrl(options) => {
            let out = options.out.as_deref();
            get::get_url(&options.url, &options.fs_config, out, options.force, options.jobs, current).await
        }
        cli::External::Import(options) => {
            let how = import::Options {
                out: options.out,
                force: options.force,
                no_exec: options.no_exec,
                no_download: options.no_download,
                jobs: options.jobs,
                ..import::Options::default()
            };
            let mut project = open()?;
            let from = source(options.source);
            let files =
                import::import(&mut project, &options.url, &options.path, &from, &how, &Terminal(context)).await?;
            show_git_files(context, &project, &files);
            Ok(())
        }
        cli::External::ImportUrl(options) => import_url(context, options, open).await,
        cli::External::Update(options) => {
            let how = update::Options {
                revision: options.rev,
                recursive: options.recursive,
                no_download: options.no_download,
                to_remote: options.to_remote.then_some(options.remote),
                jobs: options.jobs,
            };
            update::update(&mut open()?, &options.targets, &how, &Terminal(context)).await
        }
        cli::External::Artifacts(cli::Artifacts::Get(options)) => artifact(options, current).await,
    }
}

fn settings(settings: cli::Settings, revision: Option<String>) -> external::Options {
    external::Options {
        revision,
        config: settings.config,
        remote: settings.remote,
        remote_config: settings.remote_config,
        settings: Vec::new(),
    }
}

fn source(source: cli::Source) -> external::Options {
    settings(source.settings, source.rev)
}

async fn import_url(
    context: &Context,
    options: cli::ImportUrl,
    open: &dyn Fn() -> Result<Project, DataError>,
) -> Result<(), DataError> {
    let how = import::Options {
        out: options.out,
        force: options.force,
        no_exec: options.no_exec,
        no_download: options.no_download,
        to_remote: options.to_remote.then_some(options.remote),
        jobs: options.jobs,
        version_aware: options.version_aware,
    };
    let mut project = open()?;
    let files = import::import_url(&mut project, &options.url, &options.fs_config, &how, &Terminal(context)).await?;
    show_git_files(context, &project, &files);
    Ok(())
}

async fn artifact(options: cli::ArtifactsGet, current: &Path) -> Result<(), DataError> {
    let version = match (options.rev, options.stage) {
        (Some(version), _) => Version::Exact(version),
        (None, Some(stage)) => Version::Stage(stage),
        (None, None) => Version::Greatest,
    };
    let from = settings(options.settings, None);
    let found = artifacts::find(&options.url, &options.name, &version, &from, current).await?;
    let from = external::Options { revision: Some(found.commit), ..from };
    if options.show_url {
        let url = get::url_of(&options.url, &found.path, &from, current).await?;
        print_text(&format!("{}\n", escape_line(&url)));
        return Ok(());
    }
    let out = options.out.as_deref();
    let copy = get::get(&options.url, &found.path, &from, out, options.force, options.jobs, current).await?;
    let place = slipway_data::config::relative_path(&copy.target, current);
    print_text(&format!("Downloaded {} file(s) to '{}'\n", copy.files, escape_line(&place.to_string_lossy())));
    Ok(())
}

async fn list(context: &Context, options: cli::List, current: &Path) -> Result<(), DataError> {
    let from = source(options.source);
    let shape = &options.shape;
    let how = Listing { recursive: shape.recursive, dvc_only: options.dvc_only, depth: shape.level };
    let path = options.path.as_deref().unwrap_or_default();
    let json = options.json || matches!(context.global.output.format, Format::Json);
    let columns = |node: &Node, name: String| Row {
        size: node.size.filter(|size| *size > 0 || !node.is_folder()),
        digest: node.digest.map(|digest| digest.to_string()),
        name,
    };
    if shape.tree {
        if json {
            return Err(DataError::Invalid("Cannot use --tree and --json options together.".into()));
        }
        let rows = get::tree(&options.url, path, &from, how, current).await?;
        let rows: Vec<Row> = rows.iter().map(|branch| columns(&branch.node, tree_line(branch))).collect();
        print_rows(&rows, shape.size, options.show_hash);
        return Ok(());
    }
    let entries = get::list(&options.url, path, &from, how, current).await?;
    if json {
        let items = entries.iter().map(|(path, node)| entry_json(path, node)).collect();
        print_text(&format!("{}\n", Json::List(items).to_text()));
        return Ok(());
    }
    let rows: Vec<Row> = entries.iter().map(|(path, node)| columns(node, path.clone())).collect();
    print_rows(&rows, shape.size, options.show_hash);
    Ok(())
}

fn entry_json(path: &str, node: &Node) -> Json {
    let size = node.size.map_or(Json::Null, |size| Json::Number(size.to_string()));
    let digest = node.digest.map_or(Json::Null, |digest| Json::string(digest.to_string()));
    Json::Map(vec![
        ("isout".into(), Json::Bool(node.is_out)),
        ("isdir".into(), Json::Bool(node.is_folder())),
        ("isexec".into(), Json::Bool(node.is_exec)),
        ("size".into(), size),
        ("md5".into(), digest),
        ("path".into(), Json::string(path)),
    ])
}

/// An entry with the lines that lead to it.
fn tree_line(branch: &Branch) -> String {
    let Some((own, above)) = branch.lines.split_last() else { return branch.name.clone() };
    let mut line: String = above.iter().map(|more| if *more { "│   " } else { "    " }).collect();
    line.push_str(if *own { "├── " } else { "└── " });
    line + &branch.name
}

async fn list_url(options: &cli::ListUrl, current: &Path) -> Result<(), DataError> {
    let shape = &options.shape;
    let how = Listing { recursive: shape.recursive || shape.tree, dvc_only: false, depth: shape.level };
    let items = get::list_url(&options.url, &options.fs_config, how, current).await?;
    let row = |item: &Item| Row { size: item.size, digest: None, name: item.path.clone() };
    let rows: Vec<Row> = items.iter().map(row).collect();
    print_rows(&rows, shape.size, false);
    Ok(())
}

/// A line of a listing.
struct Row {
    size: Option<u64>,
    digest: Option<String>,
    name: String,
}

/// Prints a listing in DVC's columns.
fn print_rows(rows: &[Row], with_size: bool, with_digest: bool) {
    let sizes: Vec<String> = rows.iter().map(|row| row.size.map_or_else(|| "-".into(), human_size)).collect();
    let digests: Vec<&str> = rows.iter().map(|row| row.digest.as_deref().unwrap_or("-")).collect();
    let size_width = sizes.iter().map(String::len).max().unwrap_or(0);
    let digest_width = digests.iter().map(|digest| digest.len()).max().unwrap_or(0);
    let mut text = String::new();
    for ((row, size), digest) in rows.iter().zip(&sizes).zip(&digests) {
        if with_size {
            text.push_str(&format!("{size:>size_width$}  "));
        }
        if with_digest {
            text.push_str(&format!("{digest:digest_width$}  "));
        }
        text.push_str(&escape_line(&row.name));
        text.push('\n');
    }
    print_text(&text);
}

/// A size with three digits and a unit of 1024 bytes, as DVC shows it.
#[allow(clippy::cast_precision_loss)] // Three digits are shown.
fn human_size(bytes: u64) -> String {
    if bytes < 1024 {
        return bytes.to_string();
    }
    let mut value = bytes as f64;
    for unit in ["", "k", "M", "G", "T", "P", "E"] {
        if value < 999.5 {
            return match value {
                v if v < 9.995 => format!("{v:.2}{unit}"),
                v if v < 99.95 => format!("{v:.1}{unit}"),
                v => format!("{v:.0}{unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_as_by_dvc() {
        let sizes =
            [(0, "0"), (1023, "1023"), (1024, "1.00k"), (1500, "1.46k"), (150_000, "146k"), (1_048_575, "1.00M")];
        for (bytes, shown) in sizes.into_iter().chain([(3_000_000, "2.86M"), (4096, "4.00k"), (100_000_000, "95.4M")]) {
            assert_eq!(human_size(bytes), shown, "{bytes}");
        }
    }
}
