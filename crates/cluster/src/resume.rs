//! A machine goes on by itself after a new start, whether or not the one who asked for it still listens.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::resource::Wanted;

const UNIT: &str = "slipway-converge.service";
const UNITS: &str = "/etc/systemd/system";
/// A machine that wants to start anew more often is in a circle.
pub(crate) const MOST_RESTARTS: u32 = 3;

/// What is left to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rest {
    /// The change that it belongs to.
    pub change: String,
    /// New starts so far.
    pub restarts: u32,
    /// What is wanted.
    pub wanted: Wanted,
}

fn document(folder: &Path) -> PathBuf {
    folder.join("continue.json")
}

fn systemctl(words: &[&str]) -> Result<(), String> {
    let done = Command::new("systemctl").args(words).output().map_err(|e| format!("systemctl: {e}"))?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()) }
}

/// What is left to do of a change; nothing when there is none.
pub fn left(folder: &Path) -> Option<Rest> {
    serde_json::from_slice(&std::fs::read(document(folder)).ok()?).ok()
}

/// Has systemd go on after the next start.
///
/// # Errors
/// When it was tried too often, or cannot be written.
pub(crate) fn arrange(folder: &Path, change: &str, wanted: &Wanted) -> Result<(), String> {
    let restarts = left(folder).filter(|r| r.change == change).map_or(0, |r| r.restarts) + 1;
    if restarts > MOST_RESTARTS {
        forget(folder);
        return Err(format!("it wants to start anew again after {MOST_RESTARTS} times"));
    }
    let rest = Rest { change: change.to_owned(), restarts, wanted: wanted.clone() };
    let text = serde_json::to_vec(&rest).map_err(|e| e.to_string())?;
    let path = document(folder);
    let wrong = |e: std::io::Error| format!("{}: {e}", path.display());
    // It may hold secrets.
    slipway_core::files::replace_as(&path, &text, 0o600).map_err(wrong)?;
    let program = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    let unit = format!(
        "[Unit]\nDescription=slipway goes on after a new start\nConditionPathExists={}\nWants=network-online.target\n\
         After=network-online.target\n\n[Service]\nType=oneshot\nExecStart={} node converge --continue --events --folder {}\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        path.display(),
        program.display(),
        folder.display()
    );
    let file = Path::new(UNITS).join(UNIT);
    slipway_core::files::replace(&file, unit.as_bytes()).map_err(|e| format!("{}: {e}", file.display()))?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--quiet", UNIT])
}

/// Nothing is left to do.
pub(crate) fn forget(folder: &Path) {
    if std::fs::remove_file(document(folder)).is_ok() {
        // The unit would find nothing to do, so what fails here hurts nobody.
        let _ = systemctl(&["disable", "--quiet", UNIT]);
        let _ = std::fs::remove_file(Path::new(UNITS).join(UNIT)); // as above
    }
}

/// Starts this machine anew.
///
/// # Errors
/// When systemd refuses.
pub fn start_anew() -> Result<(), String> {
    systemctl(&["reboot"])
}
