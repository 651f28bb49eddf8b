//! The engine on the machine: applies the desired resources, one after the other.
//!
//! Before each change the engine records how to undo it; after the change it probes the resource again to verify the result. The engine
//! may be killed at any point, and the next run continues: files are replaced atomically, a pending follow-up command is recorded until
//! it has succeeded, and everything else is probed again.

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
use crate::resource::{DesiredState, Resource, ResourceKind};
use crate::resume;
use crate::shell::{ChangeContext, Output, run};
use crate::undo::Undo;

/// A probe usually takes a second or two, but a check command may wait for a service.
const PROBE_TIMEOUT: Duration = Duration::from_secs(120);

/// One line of the journal of a change: how to undo the change of one resource.
#[derive(Serialize, Deserialize)]
struct Record {
    resource: String,
    undo: Undo,
}

/// Reads the state of these resources on this machine.
///
/// # Errors
/// When the shell cannot be run, times out, or prints output that cannot be parsed.
pub fn probe_local(resources: &[Resource]) -> Result<Facts, String> {
    let mut output = String::new();
    let script = probe::script(resources, 0);
    let quiet_script = format!("{{ {script}\n}} 2>/dev/null");
    let status = run(&quiet_script, PROBE_TIMEOUT, Output::UntilEof, |line| {
        output += &line;
        output.push('\n');
    })?;
    Facts::parse(&output).map_err(|e| format!("{e} (exit status {status})"))
}

/// Whether the engine changes the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Report differences, change nothing.
    Check,
    /// Apply the differences.
    Apply,
}

/// The records folder of this machine, locked so that only one engine runs at a time.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
    _lock: Lock,
}

impl Records {
    /// Creates the folder where it is missing and takes its lock. Waits up to `wait`, because an engine whose connection was lost still
    /// finishes its current resource.
    ///
    /// # Errors
    /// [`ClusterError::Locked`] when another engine still holds the lock.
    pub fn open(folder: &Path, wait: Duration) -> Result<Self, ClusterError> {
        let shown = folder.display().to_string();
        for sub in ["", "pending", "journal"] {
            std::fs::create_dir_all(folder.join(sub)).map_err(ClusterError::io(shown.clone()))?;
        }
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(folder, private).map_err(ClusterError::io(shown.clone()))?;
        let lock = Lock::acquire(&folder.join("lock"), wait)?;
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    fn journal(&self, change: &str) -> PathBuf {
        self.folder.join("journal").join(change)
    }

    /// Appends a record to the journal of a change, and waits until it is on disk.
    fn append(&self, change: &str, record: &Record) -> Result<(), String> {
        let path = self.journal(change);
        let io_error = |e: std::io::Error| format!("{}: {e}", path.display());
        let mut file = File::options().append(true).create(true).mode(0o600).open(&path).map_err(io_error)?;
        let line = serde_json::to_string(record).map_err(|e| e.to_string())?;
        writeln!(file, "{line}").and_then(|()| file.sync_all()).map_err(io_error)
    }

    /// Names of the changes that have a journal, oldest first.
    pub fn changes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.join("journal")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Undoes the last change, its resources in reverse order. Returns the name of the change, or `None` when there is none.
    ///
    /// # Errors
    /// The resources that could not be undone. All others were undone, and the journal is kept for another attempt.
    pub fn roll_back(&self, emit: &mut dyn FnMut(Event)) -> Result<Option<String>, String> {
        let Some(change) = self.changes().pop() else { return Ok(None) };
        let path = self.journal(&change);
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let records: Vec<Record> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        let (mut changed, mut failed) = (0, Vec::new());
        emit(Event::Begun { change: change.clone(), resources: records.len() });
        for record in records.into_iter().rev() {
            let resource = record.resource;
            let began = Instant::now();
            let (lines, output) = mpsc::channel();
            let mut context = ChangeContext {
                folder: &self.folder,
                change: "rollback",
                resource: &resource,
                timeout: Duration::from_secs(600),
                lines,
            };
            let done = match record.undo {
                Undo::Shell(script) => context.shell(&script),
                Undo::Remove(path) => match slipway_core::files::remove(Path::new(&path)) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("{path}: {e}")),
                    _ => Ok(()),
                },
                Undo::Restore { path, copy, mode } => std::fs::read(&copy)
                    .map_err(|e| format!("{}: {e}", copy.display()))
                    .and_then(|bytes| context.write(Path::new(&path), &bytes, &mode)),
                Undo::Nothing => {
                    emit(Event::Skipped { resource, because: "it cannot be undone".into() });
                    continue;
                }
            };
            drop(context);
            for (resource, line) in output {
                emit(Event::Output { resource, line });
            }
            match done {
                Ok(()) => {
                    changed += 1;
                    emit(Event::Changed { resource, seconds: began.elapsed().as_secs_f64() });
                }
                Err(reason) => {
                    failed.push(format!("{resource}: {reason}"));
                    emit(Event::Failed { resource, reason });
                }
            }
        }
        emit(Event::Done { ok: 0, changed, failed: failed.len(), skipped: 0 });
        if !failed.is_empty() {
            return Err(failed.join("; "));
        }
        std::fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Some(change))
    }

    /// Applies the desired state, or reports the differences. `change` names the journal; names sort by time. `emit` returns whether
    /// the receiver of events is still there: when it is gone, the engine stops after the current resource.
    ///
    /// # Errors
    /// When `desired` is not valid, or the machine cannot be probed.
    pub fn converge(
        &self,
        desired: &DesiredState,
        mode: Mode,
        change: &str,
        emit: &mut dyn FnMut(Event) -> bool,
    ) -> Result<Summary, String> {
        desired.validate()?;
        let mut facts = probe_local(&desired.resources)?;
        let mut summary = Summary::default();
        let mut failed_ids: Vec<&str> = Vec::new();
        let mut stale = false;
        emit(Event::Begun { change: change.to_owned(), resources: desired.resources.len() });
        for resource in &desired.resources {
            let id = resource.id.clone();
            if let Some(needed) = resource.needs.iter().find(|n| failed_ids.contains(&n.as_str())) {
                failed_ids.push(&resource.id);
                summary.skipped += 1;
                emit(Event::Skipped { resource: id, because: format!("{needed} failed") });
                continue;
            }
            // An earlier change may have altered this resource too, so the facts of the first probe no longer hold.
            if stale {
                facts.update(probe_local(std::slice::from_ref(resource))?, &[&resource.id]);
            }
            let changes = resource.check(&facts);
            if changes.is_empty() {
                summary.ok += 1;
                emit(Event::Ok { resource: id });
                continue;
            }
            if mode == Mode::Check {
                summary.changed += 1;
                emit(Event::Differs { resource: id, layer: resource.layer, changes });
                continue;
            }
            if let ResourceKind::Reboot { reason, .. } = &resource.what {
                if let Err(reason) = resume::schedule(&self.folder, change, desired) {
                    emit(Event::Failed { resource: id, reason });
                    summary.failed += 1;
                    break;
                }
                emit(Event::Rebooting { resource: id, reason: reason.clone() });
                summary.rebooting = true;
                return Ok(summary);
            }
            let has_receiver = emit(Event::Changing { resource: id.clone(), changes });
            let began = Instant::now();
            let done = self.change(resource, &facts, change, emit).and_then(|()| {
                facts.update(probe_local(std::slice::from_ref(resource))?, &[&resource.id]);
                let remaining = resource.check(&facts);
                let first = remaining.first().map(|c| format!("the change had no effect: {} {}", c.sign, c.text));
                first.map_or(Ok(()), Err)
            });
            stale = true;
            match done {
                Ok(()) => {
                    summary.changed += 1;
                    emit(Event::Changed { resource: id, seconds: began.elapsed().as_secs_f64() });
                }
                Err(reason) => {
                    summary.failed += 1;
                    failed_ids.push(&resource.id);
                    emit(Event::Failed { resource: id, reason });
                }
            }
            if !has_receiver {
                return Ok(summary);
            }
        }
        if mode == Mode::Apply {
            resume::clear(&self.folder);
        }
        let Summary { ok, changed, failed, skipped, .. } = summary;
        emit(Event::Done { ok, changed, failed, skipped });
        Ok(summary)
    }

    fn change(
        &self,
        resource: &Resource,
        facts: &Facts,
        change: &str,
        emit: &mut dyn FnMut(Event) -> bool,
    ) -> Result<(), String> {
        let pending = self.folder.join("pending").join(resource.id.replace('/', "_"));
        if resource.then.is_some() {
            std::fs::write(&pending, change).map_err(|e| format!("{}: {e}", pending.display()))?;
        }
        let (lines, output) = mpsc::channel();
        let mut context = ChangeContext {
            folder: &self.folder,
            change,
            resource: &resource.id,
            timeout: Duration::from_secs(resource.timeout),
            lines,
        };
        // Commands run in a separate thread, so that their output is emitted while they run.
        let done = std::thread::scope(|scope| {
            let work = scope.spawn(move || {
                let undo = prepare_undo(resource, facts, &mut context)?;
                self.append(change, &Record { resource: resource.id.clone(), undo })?;
                apply_resource(resource, facts, &mut context)?;
                resource.then.as_ref().map_or(Ok(()), |then| context.shell(then))
            });
            for (resource, line) in output {
                emit(Event::Output { resource, line });
            }
            work.join().unwrap_or_else(|_| Err("the change panicked".into()))
        });
        if done.is_ok() {
            let _ = std::fs::remove_file(&pending); // a file that remains only repeats the follow-up command
        }
        done
    }
}

/// Determines how to undo a change of a resource, and backs up the file that it replaces.
fn prepare_undo(resource: &Resource, facts: &Facts, context: &mut ChangeContext<'_>) -> Result<Undo, String> {
    match &resource.what {
        ResourceKind::Package { name, .. } => Ok(kinds::package::undo(facts, name)),
        ResourceKind::Snap { name, classic, .. } => Ok(kinds::snap::undo(facts, name, *classic)),
        ResourceKind::File { path, .. } | ResourceKind::Edit { path, .. } => {
            kinds::file::undo(facts, &resource.id, path, context)
        }
        ResourceKind::Service { name } => Ok(kinds::service::undo(facts, name)),
        ResourceKind::Command { undo, .. } => Ok(undo.clone().map_or(Undo::Nothing, Undo::Shell)),
        ResourceKind::Reboot { .. } => Ok(Undo::Nothing),
    }
}

/// Applies a resource to the machine.
fn apply_resource(resource: &Resource, facts: &Facts, context: &mut ChangeContext<'_>) -> Result<(), String> {
    let id = &resource.id;
    match &resource.what {
        ResourceKind::Package { name, version, hold } => {
            kinds::package::apply(facts, name, version.as_deref(), *hold, context)
        }
        ResourceKind::Snap { name, channel, classic, hold } => {
            kinds::snap::apply(facts, (name, channel, *classic, *hold), context)
        }
        ResourceKind::File { path, content, mode } => context.write(Path::new(path), content.text.as_bytes(), mode),
        ResourceKind::Edit { path, edits } => kinds::edit::apply(facts, id, path, edits, context),
        ResourceKind::Service { name } => kinds::service::apply(name, context),
        ResourceKind::Command { .. } if facts.succeeded(id) => Ok(()),
        ResourceKind::Command { run, .. } => context.shell(run),
        ResourceKind::Reboot { .. } => Err("a reboot is not applied as a change".into()),
    }
}

/// Number of resources by result, and whether the machine must be rebooted before the rest is applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are enough
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
        Resource::new(Layer::System, name, ResourceKind::File { path, content, mode: "0644".into() })
    }

    /// The desired files lie in the folder of an unprivileged user, who may replace them with links.
    #[test]
    fn apply_and_rollback_do_not_follow_user_symlinks() {
        const USER: u32 = 54_321;
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can change the owner of a folder");
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
            records.converge(&DesiredState { resources }, Mode::Apply, change, &mut |_| true).unwrap()
        };

        let line = Edit::Line { line: "mine".into(), begins: None };
        let path = home.join("link").display().to_string();
        let edit = Resource::new(Layer::System, "edit", ResourceKind::Edit { path, edits: vec![line] });
        assert_eq!(converge("1", vec![file("file", &home.join("link")), edit]).failed, 2);
        assert_eq!(std::fs::read_to_string(etc.join("shadow")).unwrap(), "root's\n");
        let copies = std::fs::read_dir(folder.join("records/backup/1")).map_or(0, Iterator::count);
        assert_eq!(copies, 0, "no backup of root's file, which a rollback would restore into the user's folder");

        // Created and changed files are rolled back, unless the user redirected a path with a link in the meantime.
        let files = || vec![file("new", &home.join("d/shadow")), file("own", &home.join("own"))];
        assert_eq!(converge("2", files()).changed, 2);
        std::fs::rename(home.join("d"), home.join("moved")).unwrap();
        symlink(&etc, home.join("d")).unwrap();
        let error = records.roll_back(&mut |_| {}).unwrap_err();
        assert!(error.contains("is not followed"), "{error}");
        assert_eq!(std::fs::read_to_string(etc.join("shadow")).unwrap(), "root's\n");
        assert_eq!(std::fs::read_to_string(home.join("own")).unwrap(), "the user's\n");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
