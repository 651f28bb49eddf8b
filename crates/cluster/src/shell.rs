//! The shell and the files of a machine, as changes and questions use them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Where a machine keeps records of its changes; root's.
pub const FOLDER: &str = "/var/lib/slipway/converge";
/// The last lines of a failed command that are told.
const LAST_LINES: usize = 12;

/// What every command on a machine begins with: English, and programs where root's shell alone does not look for them.
pub(crate) const ENVIRONMENT: &str = "export LC_ALL=C PATH=\"$PATH:/usr/sbin:/sbin:/snap/bin\"; ";

/// A word that the shell takes as it is.
pub(crate) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The machine, as a change of one resource sees it.
#[derive(Debug)]
pub struct Node<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) change: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) timeout: Duration,
    pub(crate) lines: mpsc::Sender<(String, String)>,
}

impl Node<'_> {
    /// Runs a script of the shell; its output is told line by line.
    ///
    /// # Errors
    /// Its last lines, when it fails or takes too long.
    pub(crate) fn shell(&mut self, script: &str) -> Result<(), String> {
        let mut last: std::collections::VecDeque<String> = std::collections::VecDeque::new();
        let status = run(script, self.timeout, Output::UntilQuiet, |line| {
            let _ = self.lines.send((self.resource.to_owned(), line.clone())); // nobody listens any more, and work goes on
            last.push_back(line);
            if last.len() > LAST_LINES {
                last.pop_front();
            }
        })?;
        if status == 0 {
            return Ok(());
        }
        let said = last.into_iter().collect::<Vec<_>>().join("\n");
        Err(if said.is_empty() { format!("exit status {status}") } else { said })
    }

    /// Replaces a file whole, with its folder where that is missing.
    ///
    /// # Errors
    /// The system's, with the path.
    pub(crate) fn write(&mut self, path: &Path, bytes: &[u8], mode: &str) -> Result<(), String> {
        let mode = u32::from_str_radix(mode, 8).map_err(|_| format!("'{mode}' is no mode"))?;
        slipway_core::files::replace_as(path, bytes, mode).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// The text of a file, read at the time of the change and with the care that [`Self::write`] takes: what the probe saw may have been
    /// another file, behind a link that its owner has changed since. None where there is no file.
    ///
    /// # Errors
    /// The system's, with the path, or that it is no text.
    pub(crate) fn read(&mut self, path: &Path) -> Result<Option<String>, String> {
        let wrong = |e: String| format!("{}: {e}", path.display());
        match slipway_core::files::read(path) {
            Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| wrong("it is no text".into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(wrong(e.to_string())),
        }
    }

    /// Copies a file to where it is found for the way back.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn backup(&mut self, path: &Path) -> Result<PathBuf, String> {
        let name = path.display().to_string().trim_start_matches('/').replace('/', "%");
        let copy = self.folder.join("backup").join(self.change).join(name);
        let wrong = |e: std::io::Error| format!("{}: {e}", copy.display());
        std::fs::create_dir_all(copy.parent().unwrap_or(self.folder)).map_err(wrong)?;
        // The first copy of this change is how the file was before it.
        if !copy.exists() {
            let bytes = slipway_core::files::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&copy).map_err(wrong)?;
            file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(wrong)?;
        }
        Ok(copy)
    }
}

/// How long the output of a script is waited for that has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// To its end: all of it is needed.
    Whole,
    /// Until nothing more comes for a while: a daemon that was started may hold the stream.
    UntilQuiet,
}

/// Runs a script in a process group of its own, which a limit of time ends whole. Output and errors are one stream of lines.
pub(crate) fn run(script: &str, limit: Duration, output: Output, mut line: impl FnMut(String)) -> Result<i32, String> {
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
    let until = Instant::now() + limit;
    loop {
        match receiver.recv_timeout(Duration::from_millis(20)) {
            Ok(text) => line(text),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            // Whoever holds the stream has closed it; what is left is the status.
            Err(mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(5)),
        }
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            let quiet = match output {
                Output::Whole => until.saturating_duration_since(Instant::now()),
                Output::UntilQuiet => Duration::from_millis(500),
            };
            while let Ok(text) = receiver.recv_timeout(quiet) {
                line(text);
            }
            return Ok(status.code().unwrap_or(128));
        }
        if Instant::now() > until {
            let group = rustix::process::Pid::from_child(&child);
            // It may have ended just now.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ = child.wait(); // it was killed, so its status says nothing
            return Err(format!("it did not end within {} s and was ended", limit.as_secs()));
        }
    }
}
