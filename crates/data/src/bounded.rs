//! The output of a program that is not trusted to end or to be brief, such as git on a foreign repository: a tree of a few kilobytes can list
//! billions of files.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Maximum bytes of the messages of a program.
const MAX_MESSAGE_BYTES: u64 = 1 << 16;
/// Time for the messages after the output has ended.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits of a program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Maximum duration.
    pub(crate) time: Duration,
    /// Maximum bytes of the output.
    pub(crate) bytes: u64,
}

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    /// The program cannot be run.
    #[error("it cannot be run: {0}")]
    NotStarted(std::io::Error),
    /// It was ended at a limit.
    #[error("{0}")]
    Limit(String),
}

/// Runs a command to its end, or ends it at a limit.
///
/// # Errors
/// [`Stopped`]
pub(crate) fn output(mut command: Command, limits: Limits) -> Result<Output, Stopped> {
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(Stopped::NotStarted)?;
    let stdout = read_in_background(child.stdout.take(), limits.bytes);
    let stderr = read_in_background(child.stderr.take(), MAX_MESSAGE_BYTES);
    let stdout = stdout.recv_timeout(limits.time);
    let is_within = stdout.as_ref().is_ok_and(|bytes| bytes.len() as u64 <= limits.bytes);
    if !is_within {
        let _ = child.kill(); // It may have ended by itself.
    }
    let status = child.wait().map_err(Stopped::NotStarted)?;
    match stdout {
        Ok(stdout) if is_within => {
            Ok(Output { status, stdout, stderr: stderr.recv_timeout(MESSAGE_TIMEOUT).unwrap_or_default() })
        }
        Ok(_) => Err(Stopped::Limit(format!("it writes more than {}", slipway_core::units::bytes(limits.bytes)))),
        Err(_) => Err(Stopped::Limit(format!("it did not finish within {} s", limits.time.as_secs()))),
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
        let limits = Limits { time: Duration::from_secs(20), bytes: 1 << 20 };
        let endless = Command::new("yes");
        assert!(matches!(output(endless, limits), Err(Stopped::Limit(_))));
        let mut short = Command::new("echo");
        short.arg("hello");
        assert_eq!(output(short, limits).unwrap().stdout, b"hello\n");
        let mut silent = Command::new("sleep");
        silent.arg("1000");
        let stopped = output(silent, Limits { time: Duration::from_millis(10), bytes: 1 });
        assert!(stopped.unwrap_err().to_string().contains("did not finish"));
        assert!(matches!(output(Command::new("/no/program"), limits), Err(Stopped::NotStarted(_))));
    }
}
