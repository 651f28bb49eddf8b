//! Paths and revisions as requests name them.

use std::path::{Component, Path};

use crate::error::DataError;

/// Maximum bytes of a path or revision in a request.
const MAX_NAME_BYTES: usize = 4096;

/// Checks a path in the repository.
///
/// # Errors
/// [`DataError::Invalid`] if it could name something outside.
pub(super) fn check_path(path: &str) -> Result<(), DataError> {
    let is_inside = Path::new(path).components().all(|component| matches!(component, Component::Normal(_)));
    let is_normal = !path.split('/').any(|name| matches!(name, "" | "." | ".."));
    let is_valid = is_inside && is_normal && path.len() <= MAX_NAME_BYTES && !path.contains(char::is_control);
    if is_valid { Ok(()) } else { Err(DataError::Invalid(format!("{path:?} is not a path in the repository"))) }
}

/// Checks a revision: a commit, or the name of a branch, tag or experiment, perhaps with `^` or `~` and a number. Git's other forms can be
/// expensive, as they search the history.
///
/// # Errors
/// [`DataError::Invalid`] for another form.
pub(super) fn check_revision(revision: &str) -> Result<(), DataError> {
    let is_allowed = |c: char| c.is_alphanumeric() || "-_./+^~#@".contains(c);
    let is_valid = !revision.is_empty()
        && revision.len() <= MAX_NAME_BYTES
        && !revision.starts_with('-')
        && !revision.contains("..")
        && revision.chars().all(is_allowed);
    if is_valid { Ok(()) } else { Err(DataError::Invalid(format!("{revision:?} is not the name of a revision"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_revisions_that_leave_the_repository_are_rejected() {
        for path in ["", "..", "../x", "/etc/passwd", "a/../b", "a//b", "./a", "a/", "a\0b", &"x".repeat(5000)] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
        assert!(check_path("data/images/ü 1.png").is_ok());
        for revision in ["", "--all", "HEAD..x", ":/text", "HEAD^{/x}", "a b", "@{-1}", "HEAD:x", "a\nb"] {
            assert!(check_revision(revision).is_err(), "{revision:?}");
        }
        for revision in ["HEAD", "HEAD~2", "v1.0", "feature/x", "0a1b2c3", "main^"] {
            assert!(check_revision(revision).is_ok(), "{revision:?}");
        }
    }
}
