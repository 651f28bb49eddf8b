//! Runs on the machine: makes it what is wanted, one resource after the other.
//!
//! Before a change it is written down how the machine was, so that the change can be taken back; after it the machine is asked again
//! whether it took. A process that is killed anywhere leaves a machine on which the next one goes on: files are replaced whole, what has
//! to follow a change is remembered until it has succeeded, and everything else is asked anew.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ClusterError;
use crate::event::Event;
use crate::kinds;
use crate::lock::Lock;
use crate::probe::{self, Facts};
use crate::resource::{Resource, Wanted, What};
use crate::resume;
use crate::shell::{Node, Output, run};
use crate::undo::Undo;

/// Asking a machine takes a second or two; commands that ask may wait for a service.
const PROBE_SECONDS: u64 = 120;
#[derive(Serialize, Deserialize)]
struct Record {
    resource: String,
    undo: Undo,
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;
    use crate::resource::{Edit, Layer, Text};

    fn file(name: &str, path: &Path) -> Resource {
        let content = Text { text: "from slipway\n".into(), secret: false };
        let path = path.display().to_string();
        Resource::new(Layer::System, name, What::File { path, content, mode: "0644".into() })
    }

    /// A user who may log in on the machine, and whose folder the cluster's file wants something in.
    #[test]
    fn a_users_links_lead_root_neither_on_the_way_there_nor_on_the_way_back() {
        const USER: u32 = 54_321;
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give folders to another user");
            return;
        }
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        let (etc, home) = (folder.join("etc"), folder.join("home"));
        for sub in [&etc, &home, &home.join("d")] {
            std::fs::create_dir_all(sub).unwrap();
        }
        for users in [&home, &home.join("d")] {
            chown(users, Some(USER), Some(USER)).unwrap();
        }
        std::fs::write(etc.join("shadow"), "root's\n").unwrap();
        std::fs::write(home.join("own"), "the user's\n").unwrap();
        symlink(etc.join("shadow"), home.join("link")).unwrap();
        let records = Records::open(&folder.join("records"), Duration::ZERO).unwrap();
        let converge = |change: &str, resources: Vec<Resource>| {
            records.converge(&Wanted { resources }, Mode::Apply, change, &mut |_| true).unwrap()
        };

        let line = Edit::Line { line: "mine".into(), begins: None };
        let path = home.join("link").display().to_string();
        let edit = Resource::new(Layer::System, "edit", What::Edit { path, edits: vec![line] });
        assert_eq!(converge("1", vec![file("file", &home.join("link")), edit]).failed, 2);
        assert_eq!(std::fs::read_to_string(etc.join("shadow")).unwrap(), "root's\n");
        let copies = std::fs::read_dir(folder.join("records/backup/1")).map_or(0, Iterator::count);
        assert_eq!(copies, 0, "nothing of root's is kept, which the way back would give to the user");

        // What was made and changed is taken back, unless the user leads elsewhere meanwhile.
        let wanted = || vec![file("new", &home.join("d/shadow")), file("own", &home.join("own"))];
        assert_eq!(converge("2", wanted()).changed, 2);
        std::fs::rename(home.join("d"), home.join("moved")).unwrap();
        symlink(&etc, home.join("d")).unwrap();
        let error = records.roll_back(&mut |_| {}).unwrap_err();
        assert!(error.contains("is not followed"), "{error}");
        assert_eq!(std::fs::read_to_string(etc.join("shadow")).unwrap(), "root's\n");
        assert_eq!(std::fs::read_to_string(home.join("own")).unwrap(), "the user's\n");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
