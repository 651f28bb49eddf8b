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

fn failed(message: impl Into<String>) -> Failure {
    let hint = slipway_core::explain::find("lab.failed").map(|t| t.remedy.to_owned());
    Failure::Error { message: message.into(), code: "lab.failed", hint, exit: 1 }
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
    let mut command = Command::new(&program);
    command.arg("--source").arg(&source);
    match verb {
        Lab::Up { nodes } => command.args(["--nodes", &nodes.to_string(), "up"]),
        Lab::Down => command.arg("down"),
        Lab::Status => command.arg("status"),
        Lab::Do { words } => command.args(words),
    };
    // Its exit code and its output are the command's own.
    Err(failed(command.exec().to_string()))
}
