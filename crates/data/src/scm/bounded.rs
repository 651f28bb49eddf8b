//! The output of a command of Git on a repository that is not trusted: a tree of a few kilobytes can list billions of files.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::start_error;
use crate::error::DataError;

/// Maximum duration of a command.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum bytes of its output; about 500,000 files of a commit.
const MAX_OUTPUT_BYTES: u64 = 64 << 20;
/// Maximum bytes of its messages.
const MAX_MESSAGE_BYTES: u64 = 1 << 16;

/// Runs a command to its end, or ends it at a limit.
///
/// # Errors
/// [`DataError::Limit`], or [`DataError::Git`] if git cannot be run.
pub(super) fn output(mut command: Command) -> Result<Output, DataError> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(start_error)?;
    let stdout = read_in_background(child.stdout.take(), MAX_OUTPUT_BYTES);
    let stderr = read_in_background(child.stderr.take(), MAX_MESSAGE_BYTES);
    let stdout = stdout.recv_timeout(TIMEOUT);
    let is_within = stdout.as_ref().is_ok_and(|bytes| bytes.len() as u64 <= MAX_OUTPUT_BYTES);
    if !is_within {
        let _ = child.kill(); // It may have ended by itself.
    }
    let status = child.wait().map_err(start_error)?;
    match stdout {
        Ok(stdout) if is_within => {
            Ok(Output { status, stdout, stderr: stderr.recv_timeout(TIMEOUT).unwrap_or_default() })
        }
        Ok(_) => Err(DataError::Limit("git lists more than 64 MiB".into())),
        Err(_) => Err(DataError::Limit(format!("git did not finish within {} s", TIMEOUT.as_secs()))),
    }
}

/// Reads one byte more than the limit, so that a longer stream can be told from a complete one.
fn read_in_background(stream: Option<impl Read + Send + 'static>, limit: u64) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stream) = stream {
            let _ = stream.take(limit + 1).read_to_end(&mut bytes); // What was read before a failure counts.
        }
        let _ = sender.send(bytes); // The receiver may have given up.
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_output_ends_at_the_limit() {
        let endless = Command::new("yes");
        assert!(matches!(output(endless), Err(DataError::Limit(_))));
        let mut short = Command::new("echo");
        short.arg("hello");
        assert_eq!(output(short).unwrap().stdout, b"hello\n");
    }
}
