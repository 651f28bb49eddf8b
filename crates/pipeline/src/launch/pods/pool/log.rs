//! The log of a step in that of its worker: the lines between two that the worker writes.

use bytes::Bytes;

/// Maximum bytes of a line that are kept until its end. Longer lines are passed on in pieces.
const MAX_LINE_BYTES: usize = 1 << 16;

/// The line that a worker writes before the output of a step.
pub(crate) fn begin_line(step: &str) -> String {
    format!("slipway: step {step} begins")
}

/// The line that a worker writes after the output of a step, and after a newline of its own: programs may end without one.
pub(crate) fn end_line(step: &str) -> String {
    format!("slipway: step {step} has ended")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    Inside,
    After,
}

/// Finds the log of a step in pieces of its worker's log.
#[derive(Debug)]
pub(in super::super) struct Part {
    begin: String,
    end: String,
    state: State,
    /// The last line, which is not complete yet.
    line: Vec<u8>,
    /// A newline that is only passed on if the log of the step goes on.
    newline: bool,
}

impl Part {
    pub(in super::super) fn new(step: &str) -> Self {
        Self { begin: begin_line(step), end: end_line(step), state: State::Before, line: Vec::new(), newline: false }
    }

    /// Whether the step has ended, so that nothing follows.
    pub(in super::super) fn is_over(&self) -> bool {
        self.state == State::After
    }

    /// What the next piece of the worker's log has of the step's.
    pub(in super::super) fn push(&mut self, piece: &[u8]) -> Bytes {
        let mut found = Vec::new();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            let is_complete = part.ends_with(b"\n");
            if is_complete || self.line.len() > MAX_LINE_BYTES {
                let line = std::mem::take(&mut self.line);
                self.line(&line, is_complete, &mut found);
            }
        }
        found.into()
    }

    fn line(&mut self, line: &[u8], is_complete: bool, found: &mut Vec<u8>) {
        let text = if is_complete { &line[..line.len() - 1] } else { line };
        match self.state {
            State::Before if text == self.begin.as_bytes() => self.state = State::Inside,
            State::Inside if text == self.end.as_bytes() => self.state = State::After,
            State::Inside => {
                if std::mem::replace(&mut self.newline, is_complete) {
                    found.push(b'\n');
                }
                found.extend_from_slice(text);
            }
            State::Before | State::After => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(log: &str, pieces: usize) -> (String, bool) {
        let mut part = Part::new("b");
        let found: Vec<u8> = log.as_bytes().chunks(pieces).flat_map(|piece| part.push(piece).to_vec()).collect();
        (String::from_utf8(found).unwrap(), part.is_over())
    }

    #[test]
    fn log_of_a_step_is_between_its_lines_however_the_log_is_cut() {
        let of = |step: &str, output: &str| format!("{}\n{output}\n{}\n", begin_line(step), end_line(step));
        for output in ["one\n", "one", "one\ntwo\n\n", ""] {
            let log = format!("pulled\n{}{}{}", of("a", "x\n"), of("b", output), of("c", "y"));
            for pieces in [1, 7, 1000] {
                let (found, is_over) = part(&log, pieces);
                assert_eq!((found.as_str(), is_over), (output, true), "{output:?} in pieces of {pieces}");
            }
        }
        let (found, is_over) = part(&format!("{}\nnot ", begin_line("b")), 5);
        assert_eq!((found.as_str(), is_over), ("", false));
    }
}
