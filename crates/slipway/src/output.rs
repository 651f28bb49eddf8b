//! Printing. Data goes to stdout or to the file of `-o FILE`, messages go to stderr. Untrusted text is escaped for the terminal
//! ([`escape`]).

mod escape;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

pub(crate) use self::escape::{escape_line, escape_lines};
use crate::Failure;
use crate::cli::Format;

/// Whether to use colours on stderr.
pub(crate) fn colour() -> bool {
    let off =
        std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || std::env::args().any(|a| a == "--no-color");
    !off && std::io::stderr().is_terminal()
}

/// A table of escaped text with aligned columns.
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(head: &[&'static str]) -> Self {
        Self::with_columns(head.iter().map(|h| (*h).to_owned()).collect())
    }

    /// A table whose column names are not constants.
    pub(crate) fn with_columns(head: Vec<String>) -> Self {
        Self { head: head.iter().map(|cell| escape_line(cell)).collect(), rows: Vec::new() }
    }

    /// Adds a row, which must have as many cells as the table has columns.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| escape_line(cell)).collect());
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

/// Prints `data` in the requested format. `table` builds the table; its first column is printed for `-o name`.
pub(crate) fn print<T: Serialize>(format: Format, data: &T, table: impl FnOnce(&T) -> Table) {
    let text = match format {
        Format::Json => escape::escape_json(&serde_json::to_string_pretty(data).unwrap_or_default()) + "\n",
        Format::Yaml => serde_saphyr::to_string(data).unwrap_or_default(),
        Format::Table | Format::Wide | Format::Svg | Format::Html => table(data).to_string(),
        Format::Name => table(data).rows.iter().filter_map(|r| r.first()).map(|n| format!("{n}\n")).collect(),
    };
    print_text(&text);
}

/// Prints text: unchanged to a pipe or a file, escaped to a terminal.
pub(crate) fn print_text(text: &str) {
    if let Some(buffer) = BUFFER.get() {
        return buffer.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
    }
    let mut stdout = Raw::stdout();
    stdout.write(text.as_bytes());
    stdout.finish();
}

/// A writer for the output of runs and machines: unchanged to a pipe or a file, escaped except for colours to a terminal.
pub(crate) struct Raw {
    out: std::io::Stdout,
    terminal: Option<escape::StreamEscaper>,
}

impl Raw {
    /// A writer to stdout.
    pub(crate) fn stdout() -> Self {
        let out = std::io::stdout();
        let terminal = out.is_terminal().then(escape::StreamEscaper::default);
        Self { out, terminal }
    }

    /// Writes and flushes bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let text = self.terminal.as_mut().map(|stream| stream.push(bytes));
        let bytes = text.as_deref().map_or(bytes, str::as_bytes);
        let _ = self.out.write_all(bytes).and_then(|()| self.out.flush()); // A closed pipe is not an error: the reader stopped reading.
    }

    /// Writes a pending incomplete character or sequence.
    pub(crate) fn finish(mut self) {
        if let Some(stream) = self.terminal.take() {
            let _ = self.out.write_all(stream.finish().as_bytes()); // A closed pipe is not an error.
        }
    }
}

/// The output for `-o FILE`. It is buffered so that the file is replaced atomically when the command ends.
static BUFFER: OnceLock<Mutex<String>> = OnceLock::new();

/// From now on, printed data is buffered for [`write_buffer`].
pub(crate) fn start_buffering() {
    BUFFER.get_or_init(Mutex::default);
}

/// Writes the buffered output to a file, unless it is empty.
///
/// # Errors
/// If the file cannot be written; its old content is then unchanged.
pub(crate) fn write_buffer(file: &Path) -> Result<(), Failure> {
    let Some(buffer) = BUFFER.get() else { return Ok(()) };
    let text = buffer.lock().unwrap_or_else(PoisonError::into_inner);
    if text.is_empty() {
        return Ok(());
    }
    slipway_core::files::replace(file, text.as_bytes())
        .map_err(|error| Failure::with_code(format!("{}: {error}", file.display()), "output.unwritable", 1))
}

/// Asks the user to confirm a change. `--yes` confirms it without a prompt; without a terminal and `--yes`, it is declined.
pub(crate) fn confirm(global: &crate::cli::Global, prompt: &str) -> bool {
    if global.yes {
        return true;
    }
    if !std::io::stdin().is_terminal() {
        print_note("nothing was changed: pass --yes to apply changes without a terminal");
        return false;
    }
    // The user must see the plan before confirming it, even if it goes to a file.
    if let Some(buffer) = BUFFER.get() {
        eprint!("{}", escape_lines(&buffer.lock().unwrap_or_else(PoisonError::into_inner)));
    }
    eprint!("{} [y/N] ", escape_lines(prompt));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Prints a message for the user to stderr.
pub(crate) fn print_note(text: impl std::fmt::Display) {
    eprintln!("{}", escape_lines(&text.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_escaped_and_aligned_by_display_width() {
        let mut table = Table::new(&["NAME", "ABOUT"]);
        table.row(vec!["日本".into(), "x\x1b]0;title\x07".into()]);
        table.row(vec!["a\nadmin  fine".into(), "\u{202e}y".into()]);
        let shown = table.to_string();
        let expected =
            ["NAME               ABOUT", r"日本               x\u{1b}]0;title\u{7}", r"a\u{a}admin  fine  \u{202e}y"];
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines, expected, "{shown}");
    }
}
