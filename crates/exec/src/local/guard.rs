//! The guard: the parent process of a program that must not outlive the process which started it, such as an installer of packages. It is the
//! same binary, started as `slipway guard PID -- PROGRAM ARGUMENTS`.
//!
//! A supervisor is the opposite: it keeps the program of an attempt running while the server is away.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, getppid, kill_process, kill_process_group, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::ExecError;

/// A command that executes a program which ends with this process. `binary` is the guard. Its standard input and output are those of the
/// program.
pub fn command(binary: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(binary);
    command.arg("guard").arg(std::process::id().to_string()).arg("--").arg(program);
    // Ctrl-C in the terminal of this process ends the program through the guard, when this process has ended.
    command.process_group(0);
    command
}

/// Executes a [`command`] and returns its output; `None` if it did not end within the timeout, and was killed.
///
/// # Errors
/// Those of the system when the guard cannot be started.
pub async fn output(command: &mut Command, timeout: Duration) -> std::io::Result<Option<Output>> {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let guard = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut output = std::pin::pin!(child.wait_with_output());
    if let Ok(output) = tokio::time::timeout(timeout, &mut output).await {
        return output.map(Some);
    }
    if let Some(guard) = guard {
        let _ = kill_process(guard, Signal::TERM); // fails if it has just ended
    }
    output.await?;
    Ok(None)
}

/// Executes a program until it ends, or until the process `parent`, which started this one, has ended: then the program is killed with its
/// process group. Returns the exit status of the program.
///
/// # Errors
/// [`ExecError::Spawn`] when the program cannot be started, [`ExecError::Io`] when the system cannot observe processes.
pub async fn guard(parent: i32, program: &[OsString]) -> Result<u8, ExecError> {
    let io = |what: &str| ExecError::io(what.to_owned());
    let mut terminated = signal(SignalKind::terminate()).map_err(io("waiting for signals"))?;
    let Some((name, arguments)) = program.split_first() else { return Ok(0) };
    let Some(parent) = Pid::from_raw(parent) else { return Ok(1) };
    let descriptor = pidfd_open(parent, PidfdFlags::NONBLOCK).ok();
    // The parent may have ended, and its id may be that of another process. Checked after the descriptor was opened, so that it is the
    // parent's.
    let Some(descriptor) = descriptor.filter(|_| getppid() == Some(parent)) else { return Ok(1) };
    // Deprecated for types whose descriptor may change; an `OwnedFd` keeps its descriptor.
    #[allow(deprecated)]
    let descriptor = AsyncFd::with_interest(descriptor, Interest::READABLE)
        .map_err(io("watching the process that started this one"))?;
    let mut command = Command::new(name);
    let spawned = command.args(arguments).process_group(0).kill_on_drop(true).spawn();
    let program = name.to_string_lossy().into_owned();
    let mut child = spawned.map_err(|source| ExecError::Spawn { program, source })?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let status = tokio::select! {
        status = child.wait() => Some(status.map_err(io("waiting for the program"))?),
        _ = descriptor.readable() => None,
        _ = terminated.recv() => None,
    };
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL); // fails if nothing is left of it
    }
    match status {
        Some(status) => Ok(exit_code(status)),
        None => {
            let _ = child.wait().await; // killed above
            Ok(1)
        }
    }
}

/// The exit code as a shell reports it.
fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(1)
}
