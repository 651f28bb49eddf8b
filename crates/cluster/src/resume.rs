//! Continues an interrupted change after a reboot of the machine.
//!
//! Before the reboot, the engine stores the desired state and enables a systemd unit that runs the engine again at boot. The machine
//! continues by itself, even if the controller is no longer connected.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::resource::DesiredState;

const UNIT: &str = "slipway-converge.service";
const UNIT_FOLDER: &str = "/etc/systemd/system";
/// A change that requires more reboots is stopped, because it would probably reboot the machine forever.
pub(crate) const MAX_REBOOTS: u32 = 3;

/// The change that is continued after the reboot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingChange {
    /// Name of the change.
    pub change: String,
    /// Number of reboots so far.
    pub restarts: u32,
    /// The desired state of the machine.
    pub wanted: DesiredState,
}

fn document(folder: &Path) -> PathBuf {
    folder.join("continue.json")
}

fn systemctl(arguments: &[&str]) -> Result<(), String> {
    let done = Command::new("systemctl").args(arguments).output().map_err(|e| format!("systemctl: {e}"))?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()) }
}

/// The change to continue; `None` if no change was interrupted by a reboot.
pub fn pending_change(folder: &Path) -> Option<PendingChange> {
    serde_json::from_slice(&std::fs::read(document(folder)).ok()?).ok()
}

/// Stores the desired state, and lets systemd continue the change at the next boot.
///
/// # Errors
/// When the change has caused [`MAX_REBOOTS`] reboots already, or a file cannot be written.
pub(crate) fn schedule(folder: &Path, change: &str, desired: &DesiredState) -> Result<(), String> {
    let restarts = pending_change(folder).filter(|p| p.change == change).map_or(0, |p| p.restarts) + 1;
    if restarts > MAX_REBOOTS {
        clear(folder);
        return Err(format!("it still requires a reboot after {MAX_REBOOTS} reboots"));
    }
    let pending = PendingChange { change: change.to_owned(), restarts, wanted: desired.clone() };
    let text = serde_json::to_vec(&pending).map_err(|e| e.to_string())?;
    let path = document(folder);
    let io_error = |e: std::io::Error| format!("{}: {e}", path.display());
    // Only root may read the file, because the desired state may contain secrets.
    slipway_core::files::replace_as(&path, &text, 0o600).map_err(io_error)?;
    let program = std::env::current_exe().map_err(|e| format!("this program: {e}"))?;
    let unit = format!(
        "[Unit]\nDescription=slipway continues a change after a reboot\nConditionPathExists={}\nWants=network-online.target\n\
         After=network-online.target\n\n[Service]\nType=oneshot\nExecStart={} node converge --continue --events --folder {}\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        path.display(),
        program.display(),
        folder.display()
    );
    let file = Path::new(UNIT_FOLDER).join(UNIT);
    slipway_core::files::replace(&file, unit.as_bytes()).map_err(|e| format!("{}: {e}", file.display()))?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--quiet", UNIT])
}

/// Removes the stored change and the unit, when the change is complete.
pub(crate) fn clear(folder: &Path) {
    if std::fs::remove_file(document(folder)).is_ok() {
        // Errors are ignored: a unit that remains does nothing, because its condition requires the file removed above.
        let _ = systemctl(&["disable", "--quiet", UNIT]);
        let _ = std::fs::remove_file(Path::new(UNIT_FOLDER).join(UNIT)); // as above
    }
}

/// Reboots this machine.
///
/// # Errors
/// The output of `systemctl`, when it fails.
pub fn reboot() -> Result<(), String> {
    systemctl(&["reboot"])
}
