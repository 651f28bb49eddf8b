//! `slipway gpu cdi` and `slipway gpu container`: CDI specifications and container runtimes.

use std::path::{Path, PathBuf};

use slipway_gpu::GpuError;
use slipway_gpu::container::cdi::{self, Spec};
use slipway_gpu::container::runtime::{self, Options};
use slipway_gpu::container::trial;
use slipway_gpu::inventory::Inventory;

use super::{Context, nvml};
use crate::Failure;
use crate::cli::Format;
use crate::cli::gpu as cli;
use crate::output::{Table, confirm, print, print_note, print_text};

/// Converts an I/O error of a file.
fn io(path: &Path) -> impl FnOnce(std::io::Error) -> GpuError {
    let what = path.display().to_string();
    move |source| GpuError::Io { what, source }
}

pub(super) fn cdi(context: &Context, fixture: Option<&str>, verb: cli::Cdi) -> Result<(), Failure> {
    match verb {
        cli::Cdi::Generate { root, hook, write } => {
            let hook = hook.or_else(|| cdi::find_hook().map(PathBuf::from));
            let spec = cdi::generate(&Inventory::collect(&nvml(fixture)?)?, &root, hook.as_deref())?;
            let text = match context.global.output.format {
                Format::Json => serde_json::to_string_pretty(&spec).unwrap_or_default() + "\n",
                _ => serde_saphyr::to_string(&spec).unwrap_or_default(),
            };
            let Some(path) = write.filter(|_| !context.global.dry_run) else {
                print_text(&text);
                return Ok(());
            };
            slipway_gpu::container::replace(&path, &text)?;
            print_note(format_args!("{} devices in {}; next: slipway gpu cdi ls", spec.devices.len(), path.display()));
            Ok(())
        }
        cli::Cdi::Ls { dir } => ls(context, &dir),
        cli::Cdi::Check { file } => {
            let text = std::fs::read_to_string(&file).map_err(io(&file))?;
            let problems = cdi::check(&text)?;
            print(context.global.output.format, &problems, |problems| {
                let mut table = Table::new(&["PROBLEM"]);
                problems.iter().for_each(|p| table.row(vec![p.clone()]));
                table
            });
            if problems.is_empty() {
                print_note("the specification is valid");
                Ok(())
            } else {
                Err(Failure::Findings)
            }
        }
    }
}

fn ls(context: &Context, folders: &[PathBuf]) -> Result<(), Failure> {
    let mut devices: Vec<(String, String)> = Vec::new();
    for folder in folders {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if !path.extension().is_some_and(|e| e == "yaml" || e == "json") {
                continue;
            }
            let text = std::fs::read_to_string(&path).map_err(io(&path))?;
            match serde_saphyr::from_str::<Spec>(&text) {
                Ok(spec) => devices.extend(
                    spec.devices.iter().map(|d| (format!("{}={}", spec.kind, d.name), path.display().to_string())),
                ),
                Err(e) => print_note(format_args!("{}: {e}", path.display())),
            }
        }
    }
    devices.sort();
    print(context.global.output.format, &devices, |devices| {
        let mut table = Table::new(&["DEVICE", "FILE"]);
        devices.iter().for_each(|(name, file)| table.row(vec![name.clone(), file.clone()]));
        table
    });
    Ok(())
}

pub(super) fn container(context: &Context, verb: cli::Container) -> Result<(), Failure> {
    let (runtime, config, nvidia_runtime, set_default, undo) = match verb {
        cli::Container::Configure { runtime, config, nvidia_runtime, set_default, undo } => {
            (runtime, config, nvidia_runtime, set_default, undo)
        }
        cli::Container::Test { device, spec, runc } => return test(context, &device, &spec, &runc),
        cli::Container::Look { paths } => {
            print_text(&serde_json::to_string(&trial::check_paths(&paths)).unwrap_or_default());
            return Ok(());
        }
    };
    let path = config.unwrap_or_else(|| runtime.default_path());
    let edit = if undo {
        runtime::undo(&path)?
    } else {
        runtime::plan(runtime, &path, &Options { nvidia_runtime, default: set_default })?
    };
    edit.notes.iter().for_each(|note| print_note(format_args!("note: {note}")));
    if edit.is_empty() {
        print_note(format_args!("{} needs no changes", path.display()));
        return Ok(());
    }
    print_text(&edit.diff());
    if context.global.dry_run {
        return Ok(());
    }
    if !confirm(&context.global, &format!("Write {}?", path.display())) {
        return Err(Failure::Findings);
    }
    edit.write()?;
    print_note(format_args!(
        "written; the previous configuration is in {}. Next: {}",
        edit.backup().display(),
        runtime.next()
    ));
    Ok(())
}

fn test(context: &Context, device: &str, file: &Path, runc: &Path) -> Result<(), Failure> {
    let text = std::fs::read_to_string(file).map_err(io(file))?;
    let spec: Spec =
        serde_saphyr::from_str(&text).map_err(|e| GpuError::Invalid(format!("{}: {e}", file.display())))?;
    let program = std::env::current_exe().map_err(io(Path::new("/proc/self/exe")))?;
    let arguments = ["gpu", "container", "look"].map(str::to_owned);
    let results = trial::run(&spec, device, runc, &program, &arguments)?;
    print(context.global.output.format, &results, |results| {
        let mut table = Table::new(&["PATH", "STATE"]);
        results.iter().for_each(|s| table.row(vec![s.path.clone(), s.wrong.clone().unwrap_or_else(|| "ok".into())]));
        table
    });
    let failed = results.iter().filter(|s| s.wrong.is_some()).count();
    if failed == 0 {
        print_note(format_args!("all {} devices and files are in the container", results.len()));
        Ok(())
    } else {
        Err(Failure::Findings)
    }
}
