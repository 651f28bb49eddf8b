//! The data of runs on this machine: fetched before the first attempt starts, and linked into the working folder.
//!
//! Nothing is mounted, because that needs root: in the working folder there is a symbolic link to the read-only data. A link at an absolute path
//! would be seen by all programs of the machine, so there the variable `SLIPWAY_DATA` has the location instead.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use slipway_core::clock::now_ms;

use super::runs::key_of;
use super::{AbortOnDrop, Inner};
use crate::data::{DATA_VARIABLE, DataSource, DataVolume, FetchedData};
use crate::lifecycle::{Observation, Outcome};
use crate::{ExecError, Submitted};

/// Whether the data of a run is on this machine.
#[derive(Default)]
pub(super) enum DataState {
    /// It has not been requested by this process.
    #[default]
    Unknown,
    /// It is being fetched; the text says how far.
    Fetching(String, #[allow(dead_code)] AbortOnDrop), // dropping the handle stops the transfer
    /// It is there.
    Ready(Vec<FetchedData>),
    /// It cannot be fetched, for this reason.
    Failed(String),
}

/// The step that the reconciler takes before it starts an attempt.
pub(super) enum Step {
    /// Wait for this.
    Wait(String),
    /// Start the attempt with this data.
    Start(Vec<FetchedData>),
}

/// Returns the data of a run, or begins to fetch it.
pub(super) fn prepare(this: &Arc<Inner>, run: &Submitted) -> Result<Step, ExecError> {
    if run.manifest.spec.data.is_empty() {
        return Ok(Step::Start(Vec::new()));
    }
    let source = this.settings.data.clone().ok_or_else(no_source)?;
    let step = this.runs.with_entry(&key_of(&run.manifest.metadata), |entry| match &entry.data {
        DataState::Ready(data) => Some(Step::Start(data.clone())),
        DataState::Fetching(progress, _) => Some(Step::Wait(progress.clone())),
        // The next pass ends the run.
        DataState::Failed(reason) => Some(Step::Wait(reason.clone())),
        DataState::Unknown => None,
    });
    if let Some(Some(step)) = step {
        return Ok(step);
    }
    let task = tokio::spawn(fetch(Arc::downgrade(this), source, run.clone()));
    let text = "fetching data".to_owned();
    set_state(this, run, |state| *state = DataState::Fetching(text.clone(), AbortOnDrop(task)));
    Ok(Step::Wait(text))
}

fn no_source() -> ExecError {
    ExecError::Manifest("spec.data: this server cannot fetch data".into())
}

/// Changes the state of the data of a run, unless another run has got its name.
fn set_state(this: &Inner, run: &Submitted, change: impl FnOnce(&mut DataState)) {
    let metadata = &run.manifest.metadata;
    this.runs.with_entry(&key_of(metadata), |entry| {
        if entry.run.manifest.metadata.uid == metadata.uid {
            change(&mut entry.data);
        }
    });
}

/// Fetches all data of a run. The versions of an earlier attempt are used again, also if a branch has moved meanwhile.
async fn fetch(executor: Weak<Inner>, source: Arc<dyn DataSource>, run: Submitted) {
    let mut fetched = Vec::new();
    let mut failure = None;
    for (i, data) in run.manifest.spec.data.iter().enumerate() {
        let pinned = run.status.data.get(i).map(|used| used.commit.clone());
        let data = DataVolume { rev: pinned.or_else(|| data.rev.clone()), ..data.clone() };
        let (weak, for_progress) = (Weak::clone(&executor), run.clone());
        let progress = move |text: String| {
            if let Some(executor) = weak.upgrade() {
                set_state(&executor, &for_progress, |state| {
                    if let DataState::Fetching(shown, _) = state {
                        *shown = text;
                    }
                });
            }
        };
        match source.fetch(&run.manifest.metadata.uid, &data, Box::new(progress)).await {
            Ok(found) if data.digest.as_ref().is_some_and(|digest| *digest != found.used.digest) => {
                let (expected, used) = (data.digest.unwrap_or_default(), found.used);
                failure = Some(format!(
                    "spec.data[{i}]: '{}' at commit {} has the digest {}, not {expected}",
                    used.path, used.commit, used.digest
                ));
                break;
            }
            Ok(data) => fetched.push(data),
            Err(reason) => {
                failure = Some(format!("spec.data[{i}]: {reason}"));
                break;
            }
        }
    }
    if let Some(executor) = executor.upgrade() {
        let state = failure.map_or(DataState::Ready(fetched), DataState::Failed);
        set_state(&executor, &run, |current| *current = state);
        executor.changed.notify_one();
    }
}

/// The end of an attempt whose data cannot be fetched, with the number of the attempt.
pub(super) fn failure(this: &Inner, name: &str) -> Option<(u32, Observation)> {
    this.runs.with_entry(name, |entry| {
        let DataState::Failed(reason) = &entry.data else { return None };
        let outcome = Outcome::CannotStart("DataUnavailable".into(), reason.clone());
        let (node, finished_at) = (super::node_name(), now_ms());
        Some((entry.newest_attempt + 1, Observation::Finished { started_at: None, finished_at, node, outcome }))
    })?
}

/// The link of an entry of `spec.data` in the working folder; `None` for an absolute path.
fn link_path(run: &Submitted, data: &DataVolume) -> Option<PathBuf> {
    let spec = &run.manifest.spec;
    let relative = Path::new(&data.mount_path);
    let folder = spec.working_dir.as_deref().filter(|_| relative.is_relative())?;
    // Without `.` components, equal places have equal paths.
    Some(Path::new(folder).join(relative).components().collect())
}

/// Rejects a run whose data would hide something. Blocks.
pub(super) fn check(this: &Inner, run: &Submitted) -> Result<(), ExecError> {
    let spec = &run.manifest.spec;
    if spec.data.is_empty() {
        return Ok(());
    }
    let locations = this.settings.data.as_ref().ok_or_else(no_source)?.locations();
    for (i, data) in spec.data.iter().enumerate() {
        let invalid = |text: String| Err(ExecError::Manifest(format!("spec.data[{i}].{text}")));
        let mount = Path::new(&data.mount_path);
        if mount.is_absolute() && mount.symlink_metadata().is_ok() {
            return invalid(format!(
                "mountPath: {} exists on this machine, and the run would use it instead of the data; use a path relative to the working \
                 directory",
                data.mount_path
            ));
        }
        if mount.is_relative() && spec.working_dir.is_none() {
            return invalid("mountPath is relative and needs spec.workingDir".into());
        }
        let Some(link) = link_path(run, data) else { continue };
        if link.symlink_metadata().is_ok() && !is_link_to_data(&link, &locations) {
            return invalid(format!(
                "mountPath: {} exists and is not replaced; choose a path that does not exist yet",
                link.display()
            ));
        }
    }
    Ok(())
}

fn is_link_to_data(path: &Path, locations: &Path) -> bool {
    std::fs::read_link(path).is_ok_and(|target| target.starts_with(locations))
}

/// Links the data of a run into its working folder, and returns the variable with the locations. Blocks.
///
/// # Errors
/// [`ExecError::NotNow`] if another run uses other data at the same path, or an error of the file system.
pub(super) fn link(
    this: &Inner,
    run: &Submitted,
    fetched: &[FetchedData],
) -> Result<Option<(String, String)>, ExecError> {
    if fetched.is_empty() {
        return Ok(None);
    }
    let mut paths = Vec::new();
    for (data, fetched) in run.manifest.spec.data.iter().zip(fetched) {
        let location = fetched.location.display().to_string();
        let Some(link) = link_path(run, data) else {
            paths.push(location);
            continue;
        };
        paths.push(link.display().to_string());
        let present = std::fs::read_link(&link).ok();
        if present.as_deref() == Some(&fetched.location) {
            continue;
        }
        if present.is_some()
            && let Some(other) = other_user(this, run, &link)
        {
            return Err(ExecError::NotNow(format!("run '{other}' uses other data at {}", link.display())));
        }
        let error = || ExecError::io(format!("linking {} to the data", link.display()));
        if let Some(parent) = link.parent() {
            std::fs::create_dir_all(parent).map_err(error())?;
        }
        if present.is_some() {
            std::fs::remove_file(&link).map_err(error())?;
        }
        std::os::unix::fs::symlink(&fetched.location, &link).map_err(error())?;
    }
    Ok(Some((DATA_VARIABLE.into(), paths.join(":"))))
}

/// The name of another run that has not ended and links data to the same path.
fn other_user(this: &Inner, run: &Submitted, link: &Path) -> Option<String> {
    let active = this.runs.active().into_iter().filter_map(|(name, _)| this.runs.get(&name));
    let mut others = active.filter(|other| other.manifest.metadata.uid != run.manifest.metadata.uid);
    let same_link =
        |other: &Submitted| other.manifest.spec.data.iter().any(|data| link_path(other, data).as_deref() == Some(link));
    others.find(same_link).map(|other| other.manifest.metadata.name)
}

/// Removes the links of a run that has ended, unless another run uses them, and releases its data. Blocks.
pub(super) fn release(this: &Inner, run: &Submitted) -> Result<(), ExecError> {
    let Some(source) = this.settings.data.as_ref().filter(|_| !run.manifest.spec.data.is_empty()) else {
        return Ok(());
    };
    let locations = source.locations();
    for link in run.manifest.spec.data.iter().filter_map(|data| link_path(run, data)) {
        if is_link_to_data(&link, &locations) && other_user(this, run, &link).is_none() {
            // Best effort: the folder may have become read-only, and the link does no harm.
            let _ = std::fs::remove_file(&link);
        }
    }
    source.release(&run.manifest.metadata.uid).map_err(|reason| ExecError::Io {
        what: "releasing the data of the run".into(),
        source: std::io::Error::other(reason),
    })
}
