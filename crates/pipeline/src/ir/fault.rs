//! Faults of a pipeline, with their places.

use super::tree::{Node, Place};
use crate::error::Error;

/// Maximum number of faults that an error lists.
const MAX_LISTED: usize = 50;

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
pub(crate) struct Faults(Vec<Fault>);

impl Faults {
    pub(crate) fn push(&mut self, place: Option<Place>, path: &[String], reason: impl Into<String>) {
        self.0.push(Fault { place, path: path.to_vec(), reason: reason.into() });
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Sets the places of the faults that have only a path.
    pub(crate) fn locate(&mut self, root: &Node) {
        for fault in self.0.iter_mut().filter(|fault| fault.place.is_none()) {
            fault.place = root.find(&fault.path);
        }
    }

    /// Adds faults of another part of the file.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// `Ok` if there are no faults.
    pub(crate) fn into_result(mut self) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0.sort_by_key(|fault| fault.place);
        self.0.dedup();
        let mut lines: Vec<String> = self.0.iter().take(MAX_LISTED).map(Fault::line).collect();
        if self.0.len() > MAX_LISTED {
            lines.push(format!("… and {} more", self.0.len() - MAX_LISTED));
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
