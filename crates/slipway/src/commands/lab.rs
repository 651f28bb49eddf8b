//! `slipway lab`: a real Kubernetes cluster on this machine. The binary contains the Go sources of the lab program, and Go builds them.

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

fn failed(message: impl Into<String>) -> Failure {
    Failure::with_code(message, "lab.failed", 1)
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map_or_else(home, PathBuf::from).join("slipway/lab")
}

/// Writes the embedded sources to `folder`, skipping files that are already up to date.
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
        .map_err(|e| failed(format!("cannot run go: {e}")))?;
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
                return Err(failed("the lab did not start"));
            }
            if gpus.is_empty() {
                return Ok(());
            }
            add_simulated_gpus(&mut command, &source, nodes, &gpus)?;
            // Scripts expect only the kubeconfig path of `up` on stdout, so the output of this command is discarded.
            command.stdout(std::process::Stdio::null());
        }
        Lab::Down => drop(command.arg("down")),
        Lab::Status => drop(command.arg("status")),
        Lab::Do { words } => drop(command.args(words)),
    }
    // `exec` replaces this process, so the exit code and the output are those of the lab program.
    Err(failed(command.exec().to_string()))
}

/// Adds the arguments that simulate GPUs on every node, one fixture per node.
fn add_simulated_gpus(command: &mut Command, source: &Path, nodes: u32, gpus: &[String]) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(|e| failed(e.to_string()))?;
    command.arg("simulate").arg(&program);
    for node in 0..nodes as usize {
        let name = gpus.get(node).or_else(|| gpus.last().filter(|_| gpus.len() == 1));
        let name = name.ok_or_else(|| failed(format!("{} fixtures do not match {nodes} nodes", gpus.len())))?;
        let Some((_, text)) = slipway_fake_nvml::FIXTURES.iter().find(|(built_in, _)| built_in == name) else {
            let available: Vec<&str> = slipway_fake_nvml::FIXTURES.iter().map(|(name, _)| *name).collect();
            return Err(failed(format!("there is no fixture '{name}'; available are {}", available.join(", "))));
        };
        let path = source.join(format!("{name}.yaml"));
        std::fs::write(&path, text).map_err(|e| failed(format!("{}: {e}", path.display())))?;
        command.arg(path);
    }
    Ok(())
}
