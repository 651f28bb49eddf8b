//! Files whose whole content slipway manages: compare and undo. The engine writes them itself.

use std::path::Path;

use super::diff;
use crate::probe::{Facts, MAX_FILE_BYTES};
use crate::resource::{Change, Text};
use crate::shell::ChangeContext;
use crate::undo::Undo;

/// Octal mode and content of the file on the machine; `None` if there is no file.
pub(super) fn current_file(facts: &Facts, id: &str) -> Option<(String, String)> {
    let stat = facts.text(id, "stat")?;
    Some((stat.split_whitespace().next().unwrap_or_default().to_owned(), facts.text(id, "content").unwrap_or_default()))
}

/// An octal mode without leading zeros, as `stat` prints it.
fn without_leading_zeros(mode: &str) -> &str {
    mode.trim_start_matches('0')
}

pub(crate) fn check(facts: &Facts, id: &str, path: &str, desired: &Text, mode: &str) -> Vec<Change> {
    let Some((current_mode, current)) = current_file(facts, id) else {
        return vec![Change::add(format!("file {path}"))];
    };
    let mut changes = Vec::new();
    if current != desired.text {
        let shown = if desired.secret {
            "(content not shown)".into()
        } else if current.len() > MAX_FILE_BYTES {
            "(the current file is larger than 1 MiB)".into()
        } else {
            diff(&current, &desired.text)
        };
        changes.push(Change::alter(format!("file {path}\n{shown}")));
    }
    let desired_mode = without_leading_zeros(mode);
    if without_leading_zeros(&current_mode) != desired_mode {
        changes.push(Change::alter(format!("file {path}: mode {current_mode} -> {desired_mode}")));
    }
    changes
}

/// Backs up the current content of a file, so that a rollback can restore it.
pub(crate) fn undo(facts: &Facts, id: &str, path: &str, context: &mut ChangeContext<'_>) -> Result<Undo, String> {
    match current_file(facts, id) {
        None => Ok(Undo::Remove(path.to_owned())),
        Some((mode, _)) => {
            let copy = context.backup(Path::new(path))?;
            Ok(Undo::Restore { path: path.to_owned(), copy, mode })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::facts;

    #[test]
    fn diff_is_shown_unless_the_content_is_secret() {
        let facts = facts(&[("f", "stat", "644 regular file\n"), ("f", "content", "a\nb\n")]);
        let text = |text: &str, secret| Text { text: text.into(), secret };
        assert!(check(&facts, "f", "/etc/f", &text("a\nb\n", false), "0644").is_empty());
        let changes = check(&facts, "f", "/etc/f", &text("a\nc\n", false), "0600");
        assert_eq!(changes[0].text, "file /etc/f\n a\n-b\n+c");
        assert_eq!(changes[1].text, "file /etc/f: mode 644 -> 600");
        assert!(!check(&facts, "f", "/etc/f", &text("pass\n", true), "0644")[0].text.contains("pass"));
        assert_eq!(check(&facts, "g", "/etc/g", &text("", false), "0644")[0].sign, '+');
    }
}
