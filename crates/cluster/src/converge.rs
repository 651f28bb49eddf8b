//! Runs on the machine: makes it what is wanted, one resource after the other.
//!
//! Before a change it is written down how the machine was, so that the change can be taken back; after it the machine is asked again
//! whether it took. A process that is killed anywhere leaves a machine on which the next one goes on: files are replaced whole, what has
//! to follow a change is remembered until it has succeeded, and everything else is asked anew.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ClusterError;
use crate::kinds;
use crate::lock::Lock;
use crate::probe::{self, Facts};
use crate::resource::{Change, Layer, Resource, Wanted, What};
use crate::resume;

/// Where a machine keeps records of its changes; root's.
pub const FOLDER: &str = "/var/lib/slipway/converge";
/// Asking a machine takes a second or two; commands that ask may wait for a service.
const PROBE_SECONDS: u64 = 120;
/// The last lines of a failed command that are told.
const LAST_LINES: usize = 12;

/// What happens, as it happens; a line of JSON each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[allow(missing_docs)] // names say it
pub enum Event {
    /// Work begins.
    Begun { change: String, resources: usize },
    /// It is as wanted.
    Ok { resource: String },
    /// It would be changed.
    Differs { resource: String, layer: Layer, changes: Vec<Change> },
    /// It is being changed.
    Changing { resource: String, changes: Vec<Change> },
    /// A command's output.
    Output { resource: String, line: String },
    /// It was changed.
    Changed { resource: String, seconds: f64 },
    /// It could not be changed.
    Failed { resource: String, reason: String },
    /// It was not tried.
    Skipped { resource: String, because: String },
    /// The machine starts anew now; what is left comes after.
    Rebooting { resource: String, reason: String },
    /// Work could not even begin.
    Refused { reason: String },
    /// Nothing more comes.
    Done { ok: usize, changed: usize, failed: usize, skipped: usize },
}

/// How a change is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Undo {
    /// A command.
    Shell(String),
    /// A file was not there.
    Remove(String),
    /// A file was another.
    Restore {
        /// Where it was.
        path: String,
        /// Where it is kept.
        copy: PathBuf,
        /// Its mode.
        mode: String,
    },
    /// There is no way back.
    Nothing,
}

#[derive(Serialize, Deserialize)]
struct Record {
    resource: String,
    undo: Undo,
}

/// The machine, as a change of one resource sees it.
#[derive(Debug)]
pub struct Node<'a> {
    folder: &'a Path,
    change: &'a str,
    resource: &'a str,
    timeout: Duration,
    lines: mpsc::Sender<(String, String)>,
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
enum Output {
    /// To its end: all of it is needed.
    Whole,
    /// Until nothing more comes for a while: a daemon that was started may hold the stream.
    UntilQuiet,
}

/// Runs a script in a process group of its own, which a limit of time ends whole. Output and errors are one stream of lines.
fn run(script: &str, limit: Duration, output: Output, mut line: impl FnMut(String)) -> Result<i32, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    let mut child = Command::new("sh")
        .env("SLIPWAY", program)
        .args(["-c", &format!("exec 2>&1; {}{script}", probe::ENVIRONMENT)])
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

/// Asks this machine.
///
/// # Errors
/// When the shell does not answer.
pub fn ask(resources: &[Resource]) -> Result<Facts, String> {
    let mut output = String::new();
    let script = probe::script(resources, 0);
    let question = format!("{{ {script}\n}} 2>/dev/null");
    let status = run(&question, Duration::from_secs(PROBE_SECONDS), Output::Whole, |line| {
        output += &line;
        output.push('\n');
    })?;
    Facts::parse(&output).map_err(|e| format!("{e} (exit status {status})"))
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Tell what differs.
    Check,
    /// Make it so.
    Apply,
}

/// The records of this machine, held by one at a time.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
    _lock: Lock,
}

impl Records {
    /// Takes the lock; waits a while for one who was cut off and finishes what it does.
    ///
    /// # Errors
    /// [`ClusterError::Locked`] when another still works.
    pub fn open(folder: &Path, wait: Duration) -> Result<Self, ClusterError> {
        let shown = folder.display().to_string();
        for sub in ["", "pending", "journal"] {
            std::fs::create_dir_all(folder.join(sub)).map_err(ClusterError::io(shown.clone()))?;
        }
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(folder, private).map_err(ClusterError::io(shown.clone()))?;
        let lock = Lock::take(&folder.join("lock"), wait)?;
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    fn journal(&self, change: &str) -> PathBuf {
        self.folder.join("journal").join(change)
    }

    fn remember(&self, change: &str, record: &Record) -> Result<(), String> {
        let path = self.journal(change);
        let wrong = |e: std::io::Error| format!("{}: {e}", path.display());
        let mut file = File::options().append(true).create(true).mode(0o600).open(&path).map_err(wrong)?;
        let line = serde_json::to_string(record).map_err(|e| e.to_string())?;
        writeln!(file, "{line}").and_then(|()| file.sync_all()).map_err(wrong)
    }

    /// Changes of which there are records, oldest first.
    pub fn changes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.join("journal")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Takes the last change back, its last step first.
    ///
    /// # Errors
    /// What could not be taken back; the rest was.
    pub fn roll_back(&self, tell: &mut dyn FnMut(Event)) -> Result<Option<String>, String> {
        let Some(change) = self.changes().pop() else { return Ok(None) };
        let path = self.journal(&change);
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let records: Vec<Record> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        let (mut changed, mut failed) = (0, Vec::new());
        tell(Event::Begun { change: change.clone(), resources: records.len() });
        for record in records.into_iter().rev() {
            let resource = record.resource;
            let began = Instant::now();
            let (lines, output) = mpsc::channel();
            let mut node = Node {
                folder: &self.folder,
                change: "rollback",
                resource: &resource,
                timeout: Duration::from_secs(600),
                lines,
            };
            let done = match record.undo {
                Undo::Shell(script) => node.shell(&script),
                Undo::Remove(path) => match slipway_core::files::remove(Path::new(&path)) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("{path}: {e}")),
                    _ => Ok(()),
                },
                Undo::Restore { path, copy, mode } => std::fs::read(&copy)
                    .map_err(|e| format!("{}: {e}", copy.display()))
                    .and_then(|bytes| node.write(Path::new(&path), &bytes, &mode)),
                Undo::Nothing => {
                    tell(Event::Skipped { resource, because: "there is no way back".into() });
                    continue;
                }
            };
            drop(node);
            for (resource, line) in output {
                tell(Event::Output { resource, line });
            }
            match done {
                Ok(()) => {
                    changed += 1;
                    tell(Event::Changed { resource, seconds: began.elapsed().as_secs_f64() });
                }
                Err(reason) => {
                    failed.push(format!("{resource}: {reason}"));
                    tell(Event::Failed { resource, reason });
                }
            }
        }
        tell(Event::Done { ok: 0, changed, failed: failed.len(), skipped: 0 });
        if !failed.is_empty() {
            return Err(failed.join("; "));
        }
        std::fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Some(change))
    }

    /// Makes the machine what is wanted, or tells what differs. `change` names the records of what is done; names sort by time. `tell`
    /// answers whether somebody still listens: when nobody does, work ends after the resource at hand.
    ///
    /// # Errors
    /// When the machine cannot even be asked.
    pub fn converge(
        &self,
        wanted: &Wanted,
        mode: Mode,
        change: &str,
        tell: &mut dyn FnMut(Event) -> bool,
    ) -> Result<Summary, String> {
        wanted.validate()?;
        let mut facts = ask(&wanted.resources)?;
        let mut summary = Summary::default();
        let mut broken: Vec<&str> = Vec::new();
        let mut stale = false;
        tell(Event::Begun { change: change.to_owned(), resources: wanted.resources.len() });
        for resource in &wanted.resources {
            let id = resource.id.clone();
            if let Some(needed) = resource.needs.iter().find(|n| broken.contains(&n.as_str())) {
                broken.push(&resource.id);
                summary.skipped += 1;
                tell(Event::Skipped { resource: id, because: format!("{needed} failed") });
                continue;
            }
            // A change may have changed what follows it.
            if stale {
                facts.renew(ask(std::slice::from_ref(resource))?, &[&resource.id]);
            }
            let changes = resource.check(&facts);
            if changes.is_empty() {
                summary.ok += 1;
                tell(Event::Ok { resource: id });
                continue;
            }
            if mode == Mode::Check {
                summary.changed += 1;
                tell(Event::Differs { resource: id, layer: resource.layer, changes });
                continue;
            }
            if let What::Reboot { reason, .. } = &resource.what {
                if let Err(reason) = resume::arrange(&self.folder, change, wanted) {
                    tell(Event::Failed { resource: id, reason });
                    summary.failed += 1;
                    break;
                }
                tell(Event::Rebooting { resource: id, reason: reason.clone() });
                summary.rebooting = true;
                return Ok(summary);
            }
            let listened = tell(Event::Changing { resource: id.clone(), changes });
            let began = Instant::now();
            let done = self.change(resource, &facts, change, tell).and_then(|()| {
                facts.renew(ask(std::slice::from_ref(resource))?, &[&resource.id]);
                let left = resource.check(&facts);
                let first = left.first().map(|c| format!("it did not take: {} {}", c.sign, c.text));
                first.map_or(Ok(()), Err)
            });
            stale = true;
            match done {
                Ok(()) => {
                    summary.changed += 1;
                    tell(Event::Changed { resource: id, seconds: began.elapsed().as_secs_f64() });
                }
                Err(reason) => {
                    summary.failed += 1;
                    broken.push(&resource.id);
                    tell(Event::Failed { resource: id, reason });
                }
            }
            if !listened {
                return Ok(summary);
            }
        }
        if mode == Mode::Apply {
            resume::forget(&self.folder);
        }
        let Summary { ok, changed, failed, skipped, .. } = summary;
        tell(Event::Done { ok, changed, failed, skipped });
        Ok(summary)
    }

    fn change(
        &self,
        resource: &Resource,
        facts: &Facts,
        change: &str,
        tell: &mut dyn FnMut(Event) -> bool,
    ) -> Result<(), String> {
        let pending = self.folder.join("pending").join(resource.id.replace('/', "_"));
        if resource.then.is_some() {
            std::fs::write(&pending, change).map_err(|e| format!("{}: {e}", pending.display()))?;
        }
        let (lines, output) = mpsc::channel();
        let mut node = Node {
            folder: &self.folder,
            change,
            resource: &resource.id,
            timeout: Duration::from_secs(resource.timeout),
            lines,
        };
        // Commands run in a thread, so that their lines are told while they run.
        let done = std::thread::scope(|scope| {
            let work = scope.spawn(move || {
                let undo = way_back(resource, facts, &mut node)?;
                self.remember(change, &Record { resource: resource.id.clone(), undo })?;
                act(resource, facts, &mut node)?;
                resource.then.as_ref().map_or(Ok(()), |then| node.shell(then))
            });
            for (resource, line) in output {
                tell(Event::Output { resource, line });
            }
            work.join().unwrap_or_else(|_| Err("the change ended in a panic".into()))
        });
        if done.is_ok() {
            let _ = std::fs::remove_file(&pending); // what stays is done again, which changes nothing
        }
        done
    }
}

/// How a change of a resource will be taken back.
fn way_back(resource: &Resource, facts: &Facts, node: &mut Node<'_>) -> Result<Undo, String> {
    match &resource.what {
        What::Package { name, .. } => Ok(kinds::apt::undo(facts, name)),
        What::Snap { name, classic, .. } => Ok(kinds::snap::undo(facts, name, *classic)),
        What::File { path, .. } | What::Edit { path, .. } => kinds::file::undo(facts, &resource.id, path, node),
        What::Service { name } => Ok(kinds::service::undo(facts, name)),
        What::Command { undo, .. } => Ok(undo.clone().map_or(Undo::Nothing, Undo::Shell)),
        What::Reboot { .. } => Ok(Undo::Nothing),
    }
}

/// Makes a resource so.
fn act(resource: &Resource, facts: &Facts, node: &mut Node<'_>) -> Result<(), String> {
    let id = &resource.id;
    match &resource.what {
        What::Package { name, version, hold } => kinds::apt::apply(facts, name, version.as_deref(), *hold, node),
        What::Snap { name, channel, classic, hold } => {
            kinds::snap::apply(facts, (name, channel, *classic, *hold), node)
        }
        What::File { path, content, mode } => node.write(Path::new(path), content.text.as_bytes(), mode),
        What::Edit { path, edits } => kinds::edit::apply(facts, id, path, edits, node),
        What::Service { name } => kinds::service::apply(name, node),
        What::Command { .. } if facts.succeeded(id) => Ok(()),
        What::Command { run, .. } => node.shell(run),
        What::Reboot { .. } => Err("a new start is no change of its own".into()),
    }
}

/// How many were what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // names say it
pub struct Summary {
    pub ok: usize,
    pub changed: usize,
    pub failed: usize,
    pub skipped: usize,
    pub rebooting: bool,
}
