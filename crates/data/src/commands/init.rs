//! `init`: creates a project.

use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::ignore::DVCIGNORE;
use crate::project::DVC_DIR;
use crate::scm::Git;

/// The text of a new `.dvcignore`, which is that of DVC.
const IGNORE_TEXT: &str = "# Add patterns of files dvc should ignore, which could improve
# the performance. Learn more at
# https://dvc.org/doc/user-guide/dvcignore
";

/// How to create a project.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Without Git.
    pub no_scm: bool,
    /// In a folder below the root of the Git work tree.
    pub subdir: bool,
    /// Replace an existing project; its cache is removed.
    pub force: bool,
}

/// Creates a project in a folder, and returns its files, which are staged in Git.
///
/// # Errors
/// [`DataError::Init`] if there is a project already, or no Git work tree.
pub fn init(folder: &Path, options: Options) -> Result<Vec<PathBuf>, DataError> {
    if options.no_scm && options.subdir {
        return Err(DataError::Invalid("Cannot initialize repo with `--no-scm` and `--subdir`".into()));
    }
    let dvc_dir = folder.join(DVC_DIR);
    let git = if options.no_scm { None } else { Git::find(folder, options.subdir) };
    if git.is_none() && !options.no_scm {
        let reason = format!("{} is not tracked by any supported SCM tool (e.g. Git)", folder.display());
        return Err(DataError::Init(reason));
    }
    if let Some(git) = &git
        && !git.ignored(&[&dvc_dir])?.is_empty()
    {
        return Err(DataError::Init(format!(
            "{} is ignored by Git; add '!{DVC_DIR}' to .gitignore",
            dvc_dir.display()
        )));
    }
    if dvc_dir.is_dir() {
        if !options.force {
            return Err(DataError::Init(format!("'{DVC_DIR}' exists; `-f` replaces it, with its cache")));
        }
        std::fs::remove_dir_all(&dvc_dir).map_err(DataError::io(&dvc_dir))?;
    }
    let tmp = dvc_dir.join("tmp");
    std::fs::create_dir_all(&tmp).map_err(DataError::io(&tmp))?;
    let write = |path: &Path, text: &str| std::fs::write(path, text).map_err(DataError::io(path));
    let config = dvc_dir.join("config");
    write(&config, if options.no_scm { "[core]\n    no_scm = True\n" } else { "" })?;
    let mut files = vec![config];
    let dvcignore = folder.join(DVCIGNORE);
    if !dvcignore.exists() {
        write(&dvcignore, IGNORE_TEXT)?;
    }
    files.push(dvcignore);
    if let Some(git) = git {
        let gitignore = dvc_dir.join(".gitignore");
        write(&gitignore, "/config.local\n/tmp\n/cache\n")?;
        files.push(gitignore);
        git.add(&files)?;
    }
    // DVC compares the times of files with that of this one.
    write(&tmp.join("btime"), "")?;
    Ok(files)
}
