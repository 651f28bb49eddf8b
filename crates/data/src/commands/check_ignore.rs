//! `check-ignore`: which paths `.dvcignore` excludes, and by which rule.

use crate::error::DataError;
use crate::ignore::{Decision, decide};
use crate::project::Project;

/// The rule that decides about a path, if there is one.
///
/// # Errors
/// If a file with rules cannot be read.
pub fn check_ignore(project: &Project, target: &str) -> Result<Option<Decision>, DataError> {
    let path = project.absolute(target);
    decide(&project.rules, &project.root, &path, path.is_dir())
}

/// The rule for the user: its file, line and text.
pub fn describe(project: &Project, decision: &Decision) -> String {
    match &decision.place {
        Some((file, line)) => {
            let file = crate::config::relative_path(file, &project.root);
            format!("{}:{line}:{}", file.display(), decision.pattern)
        }
        None => decision.pattern.clone(),
    }
}
