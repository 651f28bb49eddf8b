//! The server that runs on a state folder of this machine.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use slipway_core::home::Home;
use slipway_server::Addresses;

/// The addresses of the running server of this state folder, if there is one.
pub(crate) fn running_server(home: &Home) -> Option<Addresses> {
    let text = std::fs::read(home.server_file()).ok()?;
    let addresses: Addresses = serde_json::from_slice(&text).ok()?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(addresses.pid).ok()?)?;
    rustix::process::test_kill_process(pid).ok()?;
    has_open(addresses.pid, &home.lock_file()).then_some(addresses)
}

/// Whether a process has a file open. `server.json` of a killed server remains, and its process id may have been reused; such a process
/// must not be stopped, and the program that now listens on the port must not receive the token.
fn has_open(pid: u32, file: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let Some(expected) = identity(file) else { return false };
    match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(open) => open.flatten().any(|entry| identity(&entry.path()) == Some(expected)),
        // On a system without /proc, assume that it does. Otherwise the process belongs to another user.
        Err(_) => !Path::new("/proc/self/fd").exists(),
    }
}
