//! Printing: stdout is data, stderr is talk. Nothing that others say acts on the terminal ([`escape`]).

mod escape;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

pub(crate) use self::escape::{lines, one_line};
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
        Self { head: head.iter().map(|cell| one_line(cell)).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| one_line(cell)).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |i: usize| {
            let cells = self.rows.iter().filter_map(|r| r.get(i)).map(|c| c.width());
            cells.max().unwrap_or(0).max(self.head[i].width())
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |cells: Vec<&str>| {
            let padded =
                cells.iter().zip(&widths).map(|(c, w)| format!("{c}{}", " ".repeat(w.saturating_sub(c.width()))));
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
        Format::Json => escape::json(&serde_json::to_string_pretty(data).unwrap_or_default()) + "\n",
        Format::Yaml => serde_saphyr::to_string(data).unwrap_or_default(),
        Format::Table | Format::Wide | Format::Svg | Format::Html => table(data).to_string(),
        Format::Name => table(data).rows.iter().filter_map(|r| r.first()).map(|n| format!("{n}\n")).collect(),
    };
    print_text(&text);
}

/// Prints a text: as it is into a pipe or a file, and with nothing that acts on a terminal.
pub(crate) fn print_text(text: &str) {
    if let Some(kept) = KEPT.get() {
        return kept.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
    }
    let mut stdout = Raw::stdout();
    stdout.write(text.as_bytes());
    stdout.finish();
}

/// What a run or a machine printed, byte by byte: as it is into a pipe or a file, with nothing but colours on a terminal.
pub(crate) struct Raw {
    out: std::io::Stdout,
    terminal: Option<escape::Stream>,
}

impl Raw {
    /// To the standard output.
    pub(crate) fn stdout() -> Self {
        let out = std::io::stdout();
        let terminal = out.is_terminal().then(escape::Stream::default);
        Self { out, terminal }
    }

    /// The next bytes, at once.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let text = self.terminal.as_mut().map(|stream| stream.push(bytes));
        let bytes = text.as_deref().map_or(bytes, str::as_bytes);
        let _ = self.out.write_all(bytes).and_then(|()| self.out.flush()); // a closed pipe is the reader's choice
    }

    /// Nothing more comes.
    pub(crate) fn finish(mut self) {
        if let Some(stream) = self.terminal.take() {
            let _ = self.out.write_all(stream.finish().as_bytes()); // as above
        }
    }
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
        eprint!("{}", lines(&kept.lock().unwrap_or_else(PoisonError::into_inner)));
    }
    eprint!("{} [y/N] ", lines(question));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Says something to a person.
pub(crate) fn say(text: impl std::fmt::Display) {
    eprintln!("{}", lines(&text.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_neither_act_nor_break_the_table_and_are_as_wide_as_they_look() {
        let mut table = Table::new(&["NAME", "ABOUT"]);
        table.row(vec!["日本".into(), "x\x1b]0;title\x07".into()]);
        table.row(vec!["a\nadmin  fine".into(), "\u{202e}y".into()]);
        let shown = table.to_string();
        let wanted =
            ["NAME               ABOUT", r"日本               x\u{1b}]0;title\u{7}", r"a\u{a}admin  fine  \u{202e}y"];
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines, wanted, "{shown}");
    }
}
