//! Printing: stdout is data, stderr is talk.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::Serialize;

use crate::Failure;
use crate::cli::Format;

/// Whether to use colours on stderr.
pub(crate) fn colour() -> bool {
    let off =
        std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || std::env::args().any(|a| a == "--no-color");
    !off && std::io::stderr().is_terminal()
}

/// Columns for people.
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(head: &[&'static str]) -> Self {
        Self::owned(head.iter().map(|h| (*h).to_owned()).collect())
    }

    /// A table with columns that are known only now.
    pub(crate) fn owned(head: Vec<String>) -> Self {
        Self { head, rows: Vec::new() }
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
            cells.max().unwrap_or(0).max(self.head[i].chars().count())
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |cells: Vec<&str>| {
            let padded = cells
                .iter()
                .zip(&widths)
                .map(|(c, w)| format!("{c}{}", " ".repeat(w.saturating_sub(c.chars().count()))));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        writeln!(f, "{}", line(self.head.iter().map(String::as_str).collect()))?;
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
        Format::Table | Format::Wide | Format::Svg | Format::Html => table(data).to_string(),
        Format::Name => table(data).rows.iter().filter_map(|r| r.first()).map(|n| format!("{n}\n")).collect(),
    };
    print_text(&text);
}

/// Prints a text as it is.
pub(crate) fn print_text(text: &str) {
    if let Some(kept) = KEPT.get() {
        return kept.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
    }
    // A closed pipe is the reader's choice.
    drop(std::io::stdout().write_all(text.as_bytes()));
}

/// What goes into a file, which is written whole.
static KEPT: OnceLock<Mutex<String>> = OnceLock::new();

/// From now on what is printed is kept for [`write`].
pub(crate) fn keep() {
    KEPT.get_or_init(Mutex::default);
}

/// Writes what was kept, unless that is nothing.
///
/// # Errors
/// When the file cannot be written; it is then as it was.
pub(crate) fn write(file: &Path) -> Result<(), Failure> {
    let Some(kept) = KEPT.get() else { return Ok(()) };
    let text = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if text.is_empty() {
        return Ok(());
    }
    slipway_core::files::replace(file, text.as_bytes())
        .map_err(|error| Failure::known(format!("{}: {error}", file.display()), "output.unwritable", 1))
}

/// Whether the person at the terminal agrees; `--yes` does, and without a terminal nobody can.
pub(crate) fn agreed(global: &crate::cli::Global, question: &str) -> bool {
    if global.yes {
        return true;
    }
    if !std::io::stdin().is_terminal() {
        say("nothing was changed: say --yes where nobody can be asked");
        return false;
    }
    // Nobody agrees to what went into a file unseen.
    if let Some(kept) = KEPT.get() {
        eprint!("{}", kept.lock().unwrap_or_else(PoisonError::into_inner));
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Says something to a person.
pub(crate) fn say(text: impl std::fmt::Display) {
    eprintln!("{text}");
}
