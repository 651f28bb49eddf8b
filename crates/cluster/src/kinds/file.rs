//! Files with this content and no other.

use std::path::Path;

use super::diff;
use crate::probe::{Facts, MOST_BYTES};
use crate::resource::{Change, Text};
use crate::shell::Node;
use crate::undo::Undo;

/// What is there: mode and content.
pub(super) fn found(facts: &Facts, id: &str) -> Option<(String, String)> {
    let stat = facts.text(id, "stat")?;
    Some((stat.split_whitespace().next().unwrap_or_default().to_owned(), facts.text(id, "content").unwrap_or_default()))
}

/// Octal digits without zeros in front, as `stat` prints them.
fn digits(mode: &str) -> &str {
    mode.trim_start_matches('0')
}

pub(crate) fn check(facts: &Facts, id: &str, path: &str, wanted: &Text, mode: &str) -> Vec<Change> {
    let Some((now_mode, now)) = found(facts, id) else {
        return vec![Change::add(format!("file {path}"))];
    };
    let mut changes = Vec::new();
    if now != wanted.text {
        let shown = if wanted.secret {
            "(content not shown)".into()
        } else if now.len() > MOST_BYTES {
            "(it is longer than 1 MiB)".into()
        } else {
            diff(&now, &wanted.text)
        };
        changes.push(Change::alter(format!("file {path}\n{shown}")));
    }
    if digits(&now_mode) != digits(mode) {
        changes.push(Change::alter(format!("file {path}: mode {now_mode} -> {}", digits(mode))));
    }
    changes
}

/// Keeps what a file holds now, for the way back.
pub(crate) fn undo(facts: &Facts, id: &str, path: &str, node: &mut Node<'_>) -> Result<Undo, String> {
    match found(facts, id) {
        None => Ok(Undo::Remove(path.to_owned())),
        Some((mode, _)) => {
            let copy = node.backup(Path::new(path))?;
            Ok(Undo::Restore { path: path.to_owned(), copy, mode })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::facts;

    #[test]
    fn differences_are_shown_unless_they_are_secret() {
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
