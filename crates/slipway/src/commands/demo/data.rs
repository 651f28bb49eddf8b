//! The digits as a version of data: a project like that of a user, with the data set that ships in scikit-learn.

use std::path::{Path, PathBuf};
use std::process::Command;

use slipway_data::commands::add::{self, add};
use slipway_data::commands::init::{self, init};
use slipway_data::project::Project;
use slipway_exec::DataVolume;

/// The name of the data set in scikit-learn and in the project.
pub(super) const FILE: &str = "digits.csv.gz";
/// Prints the path of the data set.
const LOCATE: &str =
    "import pathlib, sklearn.datasets as d; print(pathlib.Path(d.__file__).parent / 'data' / 'digits.csv.gz')";

/// Creates the project in a folder, replacing that of an earlier demo, and returns its version of the data.
pub(super) fn version(project: &Path, python: &Path) -> Result<DataVolume, String> {
    if project.exists() {
        std::fs::remove_dir_all(project).map_err(|error| error.to_string())?;
    }
    std::fs::create_dir_all(project).map_err(|error| error.to_string())?;
    git(project, &["init", "--quiet"])?;
    let explained = |error: slipway_data::DataError| error.to_string();
    init(project, init::Options::default()).map_err(explained)?;
    let source = PathBuf::from(output(Command::new(python).args(["-c", LOCATE]))?);
    let copied = std::fs::copy(&source, project.join(FILE));
    copied.map_err(|error| format!("{}: {error}", source.display()))?;
    let mut opened = Project::open(project, &|_| ()).map_err(explained)?;
    add(&mut opened, &[FILE.to_owned()], &add::Options::default()).map_err(explained)?;
    drop(opened);
    git(project, &["add", "--all"])?;
    git(project, &["commit", "--quiet", "--message", "UCI handwritten digits"])?;
    Ok(DataVolume {
        repo: project.display().to_string(),
        rev: Some(git(project, &["rev-parse", "HEAD"])?),
        path: FILE.into(),
        mount_path: format!("data/{FILE}"),
        ..DataVolume::default()
    })
}

fn git(folder: &Path, arguments: &[&str]) -> Result<String, String> {
    let identity = ["user.name=slipway demo", "user.email=demo@example.invalid", "commit.gpgSign=false"];
    let mut command = Command::new("git");
    command.current_dir(folder).args(identity.iter().flat_map(|setting| ["-c", *setting])).args(arguments);
    output(&mut command)
}

/// The output of a program without the last line break.
fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command.output().map_err(|error| format!("{program}: {error}"))?;
    if !done.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&done.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
}
