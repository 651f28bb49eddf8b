//! Work trees of their own for a time, in which a state of this work tree is tried out.

use std::path::{Path, PathBuf};

use super::{Git, RefChange};
use crate::error::DataError;

impl Git {
    fn text(&self, arguments: &[&str]) -> Result<String, DataError> {
        let output = self.run(arguments)?;
        Ok(String::from_utf8_lossy(&output).trim_end_matches('\n').to_owned())
    }

    fn git_path(&self, name: &str) -> Result<PathBuf, DataError> {
        self.text(&["rev-parse", "--path-format=absolute", "--git-path", name]).map(PathBuf::from)
    }

    /// Creates a repository in an empty folder, with the commit `head` checked out without a branch, and the files of the commit `state` in
    /// its work tree and index. It reads the objects of this repository where they are, and has its configuration; its references and new
    /// objects are its own.
    ///
    /// # Errors
    /// If git fails, or a file cannot be written.
    pub fn clone_state(&self, folder: &Path, head: &str, state: &str) -> Result<Self, DataError> {
        let place = folder.to_string_lossy().into_owned();
        let format = format!("--object-format={}", self.text(&["rev-parse", "--show-object-format"])?);
        // Without a template there are no hooks, which are for the commits of users.
        self.run(&["init", "--quiet", "--template=", &format, "--", &place])?;
        let clone = Self::at(folder);
        let git_dir = folder.join(".git");
        write(&git_dir.join("objects/info/alternates"), &format!("{}\n", self.git_path("objects")?.display()))?;
        let config = git_dir.join("config");
        let own = std::fs::read_to_string(&config).map_err(DataError::io(&config))?;
        let quoted = |path: &Path| path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
        let mut text = format!("[include]\n\tpath = \"{}\"\n{own}", quoted(&self.git_path("config")?));
        if self.run(&["config", "--get", "core.worktree"]).is_ok() {
            text.push_str(&format!("\tworktree = \"{}\"\n", quoted(folder)));
        }
        write(&config, &text)?;
        if let Ok(exclude) = std::fs::read_to_string(self.git_path("info/exclude")?) {
            write(&git_dir.join("info/exclude"), &exclude)?;
        }
        clone.change_references(&[RefChange::Set("HEAD".into(), head.to_owned())])?;
        clone.run(&["read-tree", "--reset", "-u", state])?;
        Ok(clone)
    }

    /// Applies the changes of a stash to the work tree and the index.
    ///
    /// # Errors
    /// If git cannot be run, or the changes are in conflict with the files.
    pub fn apply_stash(&self, stash: &str) -> Result<(), DataError> {
        let output = self.output(&["stash", "apply", "--quiet", stash])?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr);
        Err(DataError::Git(format!(
            "the changes of {stash} are in conflict with the files of the commit. {}",
            reason.trim()
        )))
    }

    /// Removes a file from the index and the work tree.
    ///
    /// # Errors
    /// If git cannot be run or fails.
    pub fn remove_file(&self, path: &str) -> Result<(), DataError> {
        self.run(&["--literal-pathspecs", "rm", "--quiet", "--force", "--ignore-unmatch", "--", path]).map(drop)
    }
}

fn write(path: &Path, text: &str) -> Result<(), DataError> {
    slipway_core::files::replace(path, text.as_bytes()).map_err(DataError::io(path))
}
