//! Printing. Data goes to stdout or to the file of `-o FILE`, messages go to stderr. Untrusted text is escaped for the terminal
//! ([`escape`]).
//!
//! A closed pipe never ends the process, neither with a panic nor with SIGPIPE, which Rust ignores: a change of machines must not stop
//! halfway because its reader has stopped reading, and a server must outlive its log pipe. So this module is the only one that writes to
//! the standard streams, and the macros that panic (`println!`, `eprintln!`) are lints of this crate. As in cargo, the command runs to its
//! end and exits with the code of its outcome; only streams without an end, such as a followed log, stop early, as in ripgrep.

mod escape;

use std::io::{BufRead, ErrorKind, IsTerminal, Read, Write};
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

/// The first error of a write to stdout. Later writes are skipped, so that no output follows a gap.
static STDOUT_ERROR: OnceLock<std::io::Error> = OnceLock::new();

/// Whether stdout still accepts data. A command that prints a stream without an end stops when it does not.
pub(crate) fn stdout_is_open() -> bool {
    STDOUT_ERROR.get().is_none()
}

/// Checks that all data was written to stdout. A reader that stopped reading has all the data that it needs.
///
/// # Errors
/// If a write failed for another reason, such as a full disk.
pub(crate) fn check_stdout() -> Result<(), Failure> {
    match STDOUT_ERROR.get() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::with_code(format!("stdout: {error}"), "output.unwritable", 1))
        }
        _ => Ok(()),
    }
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

    /// Writes and flushes bytes. Returns false if stdout does not accept data any more.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> bool {
        let text = self.terminal.as_mut().map(|stream| stream.push(bytes));
        self.write_escaped(text.as_deref().map_or(bytes, str::as_bytes))
    }

    /// Writes a pending incomplete character or sequence.
    pub(crate) fn finish(mut self) {
        if let Some(stream) = self.terminal.take() {
            self.write_escaped(stream.finish().as_bytes());
        }
    }

    fn write_escaped(&mut self, bytes: &[u8]) -> bool {
        if stdout_is_open()
            && let Err(error) = self.out.write_all(bytes).and_then(|()| self.out.flush())
        {
            let _ = STDOUT_ERROR.set(error); // If another thread was faster, its error is the first one.
        }
        stdout_is_open()
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
        print_report(&escape_lines(&buffer.lock().unwrap_or_else(PoisonError::into_inner)));
    }
    prompt_line(&format!("{prompt} [y/N] ")).is_ok_and(|line| matches!(line.as_str(), "y" | "Y" | "yes"))
}

/// Maximum bytes that are read of a line in response to a prompt.
const MAX_LINE_BYTES: u64 = 4096;

/// Prompts the user for a line and returns it without surrounding spaces.
///
/// # Errors
/// If stdin cannot be read or the line is not UTF-8.
pub(crate) fn prompt_line(prompt: &str) -> std::io::Result<String> {
    print_report(&escape_lines(prompt));
    let mut line = String::new();
    std::io::stdin().lock().take(MAX_LINE_BYTES).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Prints a message for the user to stderr.
pub(crate) fn print_note(text: impl std::fmt::Display) {
    print_report(&(escape_lines(&text.to_string()) + "\n"));
}

/// Prints text to stderr whose untrusted parts are already escaped.
pub(crate) fn print_report(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes()); // There is no other place to report that stderr is closed.
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
