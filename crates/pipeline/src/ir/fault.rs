//! Faults of a pipeline, with their places.

use super::tree::{Node, Place};
use crate::error::Error;

/// Maximum number of faults that an error lists.
const MAX_LISTED: usize = 50;
/// Maximum number of faults that are kept: a hostile file has one on every line, and each is searched for in the file.
const MAX_KEPT: usize = 200;

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) place: Option<Place>,
    /// Names of the fields that lead to the fault.
    pub(crate) path: Vec<String>,
    pub(crate) reason: String,
}

/// All faults that were found.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    kept: Vec<Fault>,
    /// Number of all, those included that were not kept.
    count: usize,
}

impl Faults {
    pub(crate) fn push(&mut self, place: Option<Place>, path: &[String], reason: impl Into<String>) {
        self.count += 1;
        if self.kept.len() < MAX_KEPT {
            self.kept.push(Fault { place, path: path.to_vec(), reason: reason.into() });
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Sets the places of the faults that have only a path.
    pub(crate) fn locate(&mut self, root: &Node) {
        for fault in self.kept.iter_mut().filter(|fault| fault.place.is_none()) {
            fault.place = root.find(&fault.path);
        }
    }

    /// Adds faults of another part of the file.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.count += other.count;
        self.kept.append(&mut other.kept);
    }

    /// `Ok` if there are no faults.
    pub(crate) fn into_result(mut self) -> Result<(), Error> {
        if self.count == 0 {
            return Ok(());
        }
        let found = self.kept.len();
        self.kept.sort_by_key(|fault| fault.place);
        self.kept.dedup();
        let count = self.count - (found - self.kept.len());
        let mut lines: Vec<String> = self.kept.iter().take(MAX_LISTED).map(Fault::line).collect();
        if count > lines.len() {
            lines.push(format!("… and {} more", count - lines.len()));
        }
        Err(Error::Specification(lines.join("\n")))
    }
}

impl Fault {
    fn line(&self) -> String {
        let path = if self.path.is_empty() { String::new() } else { format!("{}: ", self.path.join(".")) };
        match self.place {
            Some(Place { line, column }) => format!("line {line}, column {column}: {path}{}", self.reason),
            None => format!("{path}{}", self.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_faults_are_counted_but_few_are_kept() {
        let mut faults = Faults::default();
        for number in 0..10_000 {
            faults.push(None, &[], number.to_string());
        }
        assert_eq!((faults.len(), faults.kept.len()), (10_000, MAX_KEPT));
        let text = faults.into_result().unwrap_err().to_string();
        assert_eq!(text.lines().count(), MAX_LISTED + 1);
        assert!(text.ends_with("… and 9950 more"), "{text}");
    }
}
