//! Bind mounts on the host, through the programs `mount` and `umount`, which know its kernel and its mount table.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// Mounts of folders. Blocks.
pub trait Mounts: Send + Sync {
    /// Mounts a folder read-only at another, which exists.
    fn bind(&self, source: &Path, target: &Path) -> io::Result<()>;
    /// Ends a mount.
    fn unbind(&self, target: &Path) -> io::Result<()>;
    /// Whether something is mounted at a folder.
    fn is_mounted(&self, target: &Path) -> io::Result<bool>;
}

/// The mounts of this machine.
#[derive(Debug, Clone, Copy)]
pub struct HostMounts;

fn run(program: &str, arguments: &[&OsStr]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

impl Mounts for HostMounts {
    fn bind(&self, source: &Path, target: &Path) -> io::Result<()> {
        run("mount", &["--bind".as_ref(), source.as_ref(), target.as_ref()])?;
        // The kernel ignores `ro` when it creates a bind mount.
        let options = "remount,bind,ro,nosuid,nodev".as_ref();
        run("mount", &["-o".as_ref(), options, target.as_ref()]).inspect_err(|_| {
            let _ = self.unbind(target); // The first error is the one to report.
        })
    }

    fn unbind(&self, target: &Path) -> io::Result<()> {
        run("umount", &[target.as_ref()])
    }

    fn is_mounted(&self, target: &Path) -> io::Result<bool> {
        // Fields of `proc_pid_mountinfo(5)` are separated by spaces; spaces in paths are written as `\040`.
        let escaped = target.display().to_string().replace('\\', "\\134").replace(' ', "\\040");
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        Ok(table.lines().any(|line| line.split(' ').nth(4) == Some(escaped.as_str())))
    }
}
