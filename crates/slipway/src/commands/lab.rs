//! `slipway lab`: a real Kubernetes on this machine. Its Go sources come with the binary; Go builds them once.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;
use crate::cli::Lab;

#[derive(rust_embed::Embed)]
#[folder = "../../lab"]
#[include = "*.go"]
#[include = "go.*"]
#[include = "*/*.go"]
#[include = "*/go.*"]
struct Sources;

#[derive(rust_embed::Embed)]
#[folder = "../../testkit/fake-nvml/fixtures"]
struct Fixtures;

fn failed(message: impl Into<String>) -> Failure {
    Failure::known(message, "lab.failed", 1)
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map_or_else(home, PathBuf::from).join("slipway/lab")
}

/// Writes the sources where they differ.
fn unpack(folder: &Path) -> std::io::Result<()> {
    for name in Sources::iter() {
        let path = folder.join(&*name);
        let Some(file) = Sources::get(&name) else { continue };
        if std::fs::read(&path).ok().as_deref() == Some(&file.data[..]) {
            continue;
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, &file.data)?;
    }
    Ok(())
}

pub(super) fn run(verb: Lab) -> Result<(), Failure> {
    let source = cache().join(format!("source-{}", env!("CARGO_PKG_VERSION")));
    unpack(&source).map_err(|e| failed(format!("{}: {e}", source.display())))?;
    let program = cache().join("lab");
    let built = Command::new("go")
        .args(["build", "-trimpath", "-buildvcs=false", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(&source)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .status()
        .map_err(|e| failed(format!("go cannot be run: {e}")))?;
    if !built.success() {
        return Err(failed("the lab could not be built"));
    }
    let lab = || {
        let mut command = Command::new(&program);
        command.arg("--source").arg(&source);
        command
    };
    let mut command = lab();
    match verb {
        Lab::Up { nodes, gpus } => {
            let up = lab().args(["--nodes", &nodes.to_string(), "up"]).status();
            if !up.is_ok_and(|s| s.success()) {
                return Err(failed("the lab did not come up"));
            }
            if gpus.is_empty() {
                return Ok(());
            }
            simulate(&mut command, &source, nodes, &gpus)?;
            // The values' path is for people; scripts want the configuration alone.
            command.stdout(std::process::Stdio::null());
        }
        Lab::Down => drop(command.arg("down")),
        Lab::Status => drop(command.arg("status")),
        Lab::Do { words } => drop(command.args(words)),
    }
    // Its exit code and its output are the command's own.
    Err(failed(command.exec().to_string()))
}

/// What gives every node GPUs that answer from a fixture.
fn simulate(command: &mut Command, source: &Path, nodes: u32, gpus: &[String]) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
    let library = program.with_file_name("libslipway_fake_nvml.so");
    command.arg("simulate").arg(&program).arg(&library);
    for node in 0..nodes as usize {
        let name = gpus.get(node).or_else(|| gpus.last().filter(|_| gpus.len() == 1));
        let name = name.ok_or_else(|| failed(format!("{} fixtures for {nodes} nodes", gpus.len())))?;
        let Some(file) = Fixtures::get(&format!("{name}.yaml")) else {
            let known: Vec<String> = Fixtures::iter().map(|n| n.trim_end_matches(".yaml").to_owned()).collect();
            return Err(failed(format!("there is no fixture '{name}'; there is {}", known.join(", "))));
        };
        let path = source.join(format!("{name}.yaml"));
        std::fs::write(&path, &file.data).map_err(|e| failed(format!("{}: {e}", path.display())))?;
        command.arg(path);
    }
    Ok(())
}
