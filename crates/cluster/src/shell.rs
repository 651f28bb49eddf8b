//! Shell commands and files of the machine, for the engine.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Folder of the machine's records: journals, backups, the lock. Only root can read it.
pub const FOLDER: &str = "/var/lib/slipway/converge";
/// Maximum number of output lines in the error of a failed command.
const MAX_ERROR_LINES: usize = 12;

/// Prefix of every command on a machine: English messages, and a `PATH` with the administration programs and snaps.
pub(crate) const ENVIRONMENT: &str =
    "export LC_ALL=C PATH=\"$PATH:/usr/sbin:/sbin:/snap/bin:/var/lib/snapd/snap/bin\"; ";

/// Quotes a text, so that the shell takes it as one literal word.
pub(crate) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What the change of one resource works with: the machine's shell and files, and the records that undo it.
#[derive(Debug)]
pub struct ChangeContext<'a> {
    /// The records folder; see [`FOLDER`].
    pub(crate) folder: &'a Path,
    /// Name of the change.
    pub(crate) change: &'a str,
    /// Id of the resource.
    pub(crate) resource: &'a str,
    /// Timeout of each command.
    pub(crate) timeout: Duration,
    /// Receives the output of commands as pairs of resource id and line.
    pub(crate) lines: mpsc::Sender<(String, String)>,
}

impl ChangeContext<'_> {
    /// Runs a shell script, and sends each line of its output.
    ///
    /// # Errors
    /// The last lines of its output when it fails, or a message when it times out.
    pub(crate) fn shell(&mut self, script: &str) -> Result<(), String> {
        let mut last: std::collections::VecDeque<String> = std::collections::VecDeque::new();
        let status = run(script, self.timeout, Output::UntilQuiet, |line| {
            let _ = self.lines.send((self.resource.to_owned(), line.clone())); // the script continues without a receiver
            last.push_back(line);
            if last.len() > MAX_ERROR_LINES {
                last.pop_front();
            }
        })?;
        if status == 0 {
            return Ok(());
        }
        let output = last.into_iter().collect::<Vec<_>>().join("\n");
        Err(if output.is_empty() { format!("exit status {status}") } else { output })
    }

    /// Replaces a file atomically, and creates its folder if needed. `mode` is octal.
    ///
    /// # Errors
    /// The I/O error, with the path.
    pub(crate) fn write(&mut self, path: &Path, bytes: &[u8], mode: &str) -> Result<(), String> {
        let mode = u32::from_str_radix(mode, 8).map_err(|_| format!("'{mode}' is not an octal mode"))?;
        slipway_core::files::replace_as(path, bytes, mode).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Reads a text file without following links of its owner, like [`Self::write`]; `None` if there is no file. The content from the probe
    /// is not used, because the owner may have replaced the file with a link since then.
    ///
    /// # Errors
    /// The I/O error, with the path, or a message if the file is not UTF-8.
    pub(crate) fn read(&mut self, path: &Path) -> Result<Option<String>, String> {
        let error = |e: String| format!("{}: {e}", path.display());
        match slipway_core::files::read(path) {
            Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| error("it is not UTF-8 text".into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(error(e.to_string())),
        }
    }

    /// Copies a file into the records folder, so that a rollback can restore it. Returns the path of the copy.
    ///
    /// # Errors
    /// The I/O error, with the path.
    pub(crate) fn backup(&mut self, path: &Path) -> Result<PathBuf, String> {
        let name = path.display().to_string().trim_start_matches('/').replace('/', "%");
        let copy = self.folder.join("backup").join(self.change).join(name);
        let io_error = |e: std::io::Error| format!("{}: {e}", copy.display());
        std::fs::create_dir_all(copy.parent().unwrap_or(self.folder)).map_err(io_error)?;
        // Only the first copy of a change has the content from before the change, so it is never overwritten.
        if !copy.exists() {
            let bytes = slipway_core::files::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&copy).map_err(io_error)?;
            file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io_error)?;
        }
        Ok(copy)
    }
}

/// How long to keep reading the output after a script has exited.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Until the end of the stream, because the output must be complete.
    UntilEof,
    /// Until no line arrives for half a second. A daemon that the script started may keep the stream open.
    UntilQuiet,
}

/// Runs a shell script, and returns its exit status. `line` receives each line of its output, in which both streams are merged. The script
/// has its own process group, which is killed on timeout.
pub(crate) fn run(
    script: &str,
    timeout: Duration,
    output: Output,
    mut line: impl FnMut(String),
) -> Result<i32, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    let mut child = Command::new("sh")
        .env("SLIPWAY", program)
        .args(["-c", &format!("exec 2>&1; {}{script}", ENVIRONMENT)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|e| format!("sh: {e}"))?;
    let (sender, receiver) = mpsc::channel();
    let stdout = child.stdout.take();
    std::thread::spawn(move || {
        let Some(stdout) = stdout else { return };
        for bytes in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned()).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + timeout;
    loop {
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(text) => line(text),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            // The output stream is closed; only the exit status is missing.
            Err(mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(5)),
        }
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            let quiet = match output {
                Output::UntilEof => deadline.saturating_duration_since(Instant::now()),
                Output::UntilQuiet => Duration::from_millis(500),
            };
            while let Ok(text) = receiver.recv_timeout(quiet) {
                line(text);
            }
            return Ok(status.code().unwrap_or(128));
        }
        if Instant::now() > deadline {
            let group = rustix::process::Pid::from_child(&child);
            // An error is ignored, because the process may have exited in the meantime.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ = child.wait(); // the status of a killed process has no information
            return Err(format!("it did not finish within {} s and was killed", timeout.as_secs()));
        }
    }
}
