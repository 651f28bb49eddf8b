//! Printing: stdout is data, stderr is talk.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::cli::Format;

/// Whether to use colours on stderr.
pub(crate) fn colour() -> bool {
    let off =
        std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || std::env::args().any(|a| a == "--no-color");
    !off && std::io::stderr().is_terminal()
}

/// Columns for people.
pub(crate) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |i: usize| {
            let cells = self.rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
            cells.max().unwrap_or(0).max(self.head[i].len())
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |cells: Vec<&str>| {
            let padded = cells
                .iter()
                .zip(&widths)
                .map(|(c, w)| format!("{c}{}", " ".repeat(w.saturating_sub(c.chars().count()))));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        writeln!(f, "{}", line(self.head.clone()))?;
        for row in &self.rows {
            writeln!(f, "{}", line(row.iter().map(String::as_str).collect()))?;
        }
        Ok(())
    }
}

/// Prints `data` in the form asked for; `table` makes the columns, the first of which holds the names.
pub(crate) fn print<T: Serialize>(format: Format, data: &T, table: impl FnOnce(&T) -> Table) {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(data).unwrap_or_default() + "\n",
        Format::Yaml => serde_saphyr::to_string(data).unwrap_or_default(),
        Format::Table => table(data).to_string(),
        Format::Name => table(data).rows.iter().filter_map(|r| r.first()).map(|n| format!("{n}\n")).collect(),
    };
    // A closed pipe is the reader's choice.
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// Says something to a person.
pub(crate) fn say(text: impl std::fmt::Display) {
    eprintln!("{text}");
}
