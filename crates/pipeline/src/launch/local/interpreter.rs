//! Python interpreters of this machine.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use slipway_exec::local::guard;
use tokio::process::Command;

/// Major and minor version.
pub(super) type Version = (u32, u32);

/// The newest minor version of Python 3 that is searched for.
const MAX_MINOR: u32 = 20;
/// Timeout of an interpreter that reports its version.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// Timeout of the download of an interpreter.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interpreter {
    pub(super) path: PathBuf,
    pub(super) version: Version,
}

/// The version of Python that an image's name states: `python:3.11-slim`, `ubi9/python-311`, `python:alpine3.9` (none).
pub(super) fn version_of_image(image: &str) -> Option<Version> {
    let (_, rest) = image.rsplit_once("python")?;
    let rest = rest.strip_prefix([':', '-'])?;
    let digits = |text: &str| -> String { text.chars().take_while(char::is_ascii_digit).collect() };
    let major = digits(rest);
    if let Some(minor) = rest[major.len()..].strip_prefix('.').map(digits) {
        return Some((major.parse().ok()?, minor.parse().ok()?));
    }
    // `311` is 3.11, and `3` alone states no minor version.
    let (major, minor) = (major.len() > 1).then(|| major.split_at(1))?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The interpreter for a version: that version, or the nearest newer one, or the nearest older one. Returns also a note for the log if it
/// is not the requested version. `binary` guards the download of an interpreter.
pub(super) async fn find(
    wanted: Option<Version>,
    uv: Option<&Path>,
    binary: &Path,
) -> Result<(Interpreter, Option<String>), String> {
    let Some(wanted) = wanted else {
        for program in ["python3", "python"] {
            if let Some(found) = probe(Path::new(program)).await {
                return Ok((found, None));
            }
        }
        return match newest(MAX_MINOR, 8, uv).await {
            Some(found) => Ok((found, None)),
            None => Err("there is no Python on this machine; install python3 with its venv module, or uv".into()),
        };
    };
    if let Some(found) = exact(wanted, uv).await {
        return Ok((found, None));
    }
    if let Some(uv) = uv
        && let Some(found) = download(wanted, uv, binary).await
    {
        return Ok((found, None));
    }
    let mut other = None;
    for minor in wanted.1 + 1..=MAX_MINOR {
        if other.is_none() {
            other = exact((3, minor), uv).await;
        }
    }
    if other.is_none() {
        other = newest(wanted.1, 6, uv).await;
    }
    let Some(other) = other else {
        return Err(format!("there is no Python {}.{} on this machine, nor any other", wanted.0, wanted.1));
    };
    let (major, minor) = other.version;
    let note = format!("Python {}.{} is not on this machine; the step uses Python {major}.{minor}", wanted.0, wanted.1);
    Ok((other, Some(note)))
}

/// The newest interpreter below a minor version.
async fn newest(below: u32, oldest: u32, uv: Option<&Path>) -> Option<Interpreter> {
    for minor in (oldest..below).rev() {
        if let Some(found) = exact((3, minor), uv).await {
            return Some(found);
        }
    }
    None
}

async fn exact(version: Version, uv: Option<&Path>) -> Option<Interpreter> {
    let name = format!("python{}.{}", version.0, version.1);
    let mut candidates: Vec<PathBuf> = super::programs::all(&name);
    // Interpreters that pyenv has installed and that its settings do not select.
    if let Some(home) = std::env::var_os("PYENV_ROOT").map(PathBuf::from).or_else(|| Some(home()?.join(".pyenv"))) {
        let prefix = format!("{}.{}.", version.0, version.1);
        let versions = std::fs::read_dir(home.join("versions")).into_iter().flatten().flatten();
        let matching = versions.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        candidates.extend(matching.map(|entry| entry.path().join("bin").join(&name)));
    }
    for candidate in candidates {
        if let Some(found) = probe(&candidate).await.filter(|found| found.version == version) {
            return Some(found);
        }
    }
    let uv = uv?;
    let found = output(Command::new(uv).args(["python", "find", "--no-project", &name]), PROBE_TIMEOUT).await?;
    probe(Path::new(found.trim())).await.filter(|found| found.version == version)
}

async fn download(version: Version, uv: &Path, binary: &Path) -> Option<Interpreter> {
    let name = format!("{}.{}", version.0, version.1);
    let mut command = guard::command(binary, uv);
    command.args(["python", "install", "--no-bin", &name]).stdin(Stdio::null());
    succeeded(guard::output(&mut command, DOWNLOAD_TIMEOUT).await.ok()??)?;
    exact(version, Some(uv)).await
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from)
}

/// Runs an interpreter to learn its version and where it really is: programs named `python3.11` may be scripts that choose one.
pub(super) async fn probe(program: &Path) -> Option<Interpreter> {
    const SCRIPT: &str = "import sys; print(sys.version_info[0], sys.version_info[1], sys.executable)";
    let text = output(Command::new(program).args(["-I", "-c", SCRIPT]), PROBE_TIMEOUT).await?;
    let mut parts = text.trim().splitn(3, ' ');
    let version = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let path = PathBuf::from(parts.next()?);
    path.is_absolute().then_some(Interpreter { path, version })
}

/// The standard output of a program that succeeds within the timeout.
async fn output(command: &mut Command, timeout: Duration) -> Option<String> {
    let command = command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    succeeded(tokio::time::timeout(timeout, command.output()).await.ok()?.ok()?)
}

fn succeeded(output: Output) -> Option<String> {
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_names_of_images() {
        for (image, version) in [
            ("python:3.11", Some((3, 11))),
            ("docker.io/library/python:3.9-slim@sha256:00", Some((3, 9))),
            ("registry.access.redhat.com/ubi9/python-311:latest", Some((3, 11))),
            ("python:alpine3.9", None),
            ("python:3", None),
            ("python", None),
            ("alpine", None),
        ] {
            assert_eq!(version_of_image(image), version, "{image}");
        }
    }
}
