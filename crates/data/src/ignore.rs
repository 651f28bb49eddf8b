//! `.dvcignore` files, and the rules of Git for the search of `.dvc` files. Both have Git's syntax; a deeper file has precedence.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::ignore::Match;
use ::ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::error::DataError;

/// The name of the file with ignore rules.
pub const DVCIGNORE: &str = ".dvcignore";
/// Folders that are never tracked.
const ALWAYS_IGNORED: &[&str] = &[".hg/", ".git/", ".git", ".dvc/"];
/// The names of these folders.
const RESERVED: [&str; 3] = [".hg", ".git", ".dvc"];

/// Whether a path is in a folder of a version control system or of DVC, or is one: whoever writes there lets the user run programs, such as the
/// hooks of Git. Data is never read from there, and never put there.
pub(crate) fn is_reserved(relative: &Path) -> bool {
    relative.components().any(|part| RESERVED.iter().any(|name| part.as_os_str() == *name))
}

/// The rules that apply in a folder: those of its own file, and those of the folders above.
#[derive(Debug, Clone)]
pub struct Rules {
    own: Option<Arc<Gitignore>>,
    above: Option<Arc<Rules>>,
    file_name: &'static str,
}

impl Rules {
    /// The rules of `.dvcignore` at the root of a project.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn dvcignore(root: &Path) -> Result<Arc<Self>, DataError> {
        let mut builder = GitignoreBuilder::new(root);
        for pattern in ALWAYS_IGNORED {
            // These patterns are constants that are valid.
            let _ = builder.add_line(None, pattern);
        }
        let built_in = Self { own: builder.build().ok().map(Arc::new), above: None, file_name: DVCIGNORE };
        Arc::new(built_in).enter(root)
    }

    /// The rules of `.gitignore` at the root of a repository, with those of `.git/info/exclude`.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn gitignore(root: &Path) -> Result<Arc<Self>, DataError> {
        let mut builder = GitignoreBuilder::new(root);
        let exclude = root.join(".git/info/exclude");
        if exclude.is_file() {
            let _ = builder.add(&exclude); // Lines that are not patterns are ignored, as Git does.
        }
        let exclude = Self { own: builder.build().ok().map(Arc::new), above: None, file_name: ".gitignore" };
        Arc::new(exclude).enter(root)
    }

    /// The rules in a folder below the one of these rules.
    ///
    /// # Errors
    /// If the folder's file cannot be read.
    pub fn enter(self: &Arc<Self>, folder: &Path) -> Result<Arc<Self>, DataError> {
        let file = folder.join(self.file_name);
        let text = match std::fs::read(&file) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory | std::io::ErrorKind::IsADirectory
                ) =>
            {
                return Ok(self.clone());
            }
            Err(error) => return Err(DataError::io(&file)(error)),
        };
        if self.is_ignored(&file, false) {
            return Ok(self.clone());
        }
        let mut builder = GitignoreBuilder::new(folder);
        for line in text.lines() {
            // DVC strips the lines of its files, also at their start.
            let line = if self.file_name == DVCIGNORE { line.trim() } else { line };
            let _ = builder.add_line(Some(file.clone()), line); // A line that is not a pattern matches nothing.
        }
        match builder.build() {
            Ok(own) if !own.is_empty() => {
                Ok(Arc::new(Self { own: Some(Arc::new(own)), above: Some(self.clone()), file_name: self.file_name }))
            }
            _ => Ok(self.clone()),
        }
    }

    /// Whether an entry of a folder is ignored, given that the folder is not.
    pub fn is_ignored(&self, path: &Path, is_dir: bool) -> bool {
        let mut rules = Some(self);
        while let Some(current) = rules {
            match current.own.as_ref().map_or(Match::None, |own| own.matched(path, is_dir)) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => rules = current.above.as_deref(),
            }
        }
        false
    }
}

/// The rule that decides about a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The file with the rule, and its line, from 1; `None` for a rule that is built in.
    pub place: Option<(PathBuf, usize)>,
    /// The rule.
    pub pattern: String,
    /// Whether it ignores the path, as opposed to including it.
    pub is_ignored: bool,
}

impl Rules {
    /// The rule that decides about an entry of a folder.
    fn decision(&self, path: &Path, is_dir: bool) -> Option<Decision> {
        let mut rules = Some(self);
        while let Some(current) = rules {
            let matched = current.own.as_ref().map_or(Match::None, |own| own.matched(path, is_dir));
            if let Some(glob) = matched.inner() {
                let line = |file: &Path| {
                    let text = std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).ok()?;
                    let last = text.lines().enumerate().filter(|(_, line)| line.trim() == glob.original()).last()?;
                    Some((file.to_owned(), last.0 + 1))
                };
                return Some(Decision {
                    place: glob.from().and_then(line),
                    pattern: glob.original().to_owned(),
                    is_ignored: matched.is_ignore(),
                });
            }
            rules = current.above.as_deref();
        }
        None
    }
}

/// The rule that decides about a path below `root`: the one that ignores it or a folder above it, or that includes it.
///
/// # Errors
/// If a file with rules cannot be read.
pub fn decide(rules: &Arc<Rules>, root: &Path, path: &Path, is_dir: bool) -> Result<Option<Decision>, DataError> {
    let Ok(relative) = path.strip_prefix(root) else { return Ok(None) };
    let mut rules = rules.clone();
    let mut current = PathBuf::from(root);
    let mut components = relative.components().peekable();
    while let Some(component) = components.next() {
        current.push(component);
        let last = components.peek().is_none();
        let decision = rules.decision(&current, is_dir || !last);
        if last || decision.as_ref().is_some_and(|decision| decision.is_ignored) {
            return Ok(decision);
        }
        rules = rules.enter(&current)?;
    }
    Ok(None)
}

/// Whether a path below `root` is ignored, or a folder above it is.
///
/// # Errors
/// If a file with rules cannot be read.
pub fn is_path_ignored(rules: &Arc<Rules>, root: &Path, path: &Path, is_dir: bool) -> Result<bool, DataError> {
    let Ok(relative) = path.strip_prefix(root) else { return Ok(false) };
    let mut rules = rules.clone();
    let mut current = PathBuf::from(root);
    let mut components = relative.components().peekable();
    while let Some(component) = components.next() {
        current.push(component);
        let last = components.peek().is_none();
        if rules.is_ignored(&current, is_dir || !last) {
            return Ok(true);
        }
        if !last {
            rules = rules.enter(&current)?;
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deeper_files_have_precedence() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join(DVCIGNORE), "# rules\n  *.tmp  \n/only\nbuild/\n!keep.tmp\n").unwrap();
        std::fs::write(root.join("a").join(DVCIGNORE), "!*.tmp\n/b/x\n").unwrap();
        let rules = Rules::dvcignore(root).unwrap();
        let ignored = |path: &str, is_dir| is_path_ignored(&rules, root, &root.join(path), is_dir).unwrap();
        for path in ["x.tmp", "only", "d/x.tmp", "a/b/x", ".git/config"] {
            assert!(ignored(path, false), "{path}");
        }
        for path in ["keep.tmp", "a/x.tmp", "d/only", "build", "a/x", ".dvcignore"] {
            assert!(!ignored(path, false), "{path}");
        }
        assert!(ignored("build", true) && ignored("build/x", false));
    }
}
