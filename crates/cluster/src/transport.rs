//! Machines by the system's OpenSSH, which knows people's configuration, agents, jump hosts and keys.
//!
//! One connection a machine serves everything (`ControlMaster`), also what is asked by the next command within a minute: keys are
//! exchanged and a session of the system is begun once for `plan`, `apply` and `status` after each other.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::probe::{ENVIRONMENT, quote};
use crate::spec::{Cluster, Machine, Ssh, home};
use crate::{ClusterError, digest};

/// Seconds until a machine counts as unreachable.
const CONNECT_SECONDS: u64 = 10;
/// So much of what a command says of errors is kept.
const MOST_ERROR_BYTES: u64 = 16 << 10;

/// Seconds for which a connection stays after its last use; Ansible's default, too.
const PERSIST_SECONDS: u64 = 60;
/// What is told of a connection that ended without a word of OpenSSH's.
const ENDED: &str = "the connection was closed";
/// In larger fleets connections are not kept: each is a process here.
const MOST_KEPT: usize = 256;

/// Where connections are.
#[derive(Debug)]
pub struct Connections {
    folder: PathBuf,
    /// Keys of machines that were made for us, which have them by their identifier: addresses are used again.
    known: PathBuf,
}

impl Connections {
    /// This user's connections. The file of keys is for machines that were made for us.
    ///
    /// # Errors
    /// When their folder cannot be made, or is somebody else's.
    pub fn new(known: PathBuf) -> Result<Self, ClusterError> {
        // With the name of a socket and what OpenSSH adds to it, a path has to stay below a hundred characters.
        const MOST: usize = 60;
        let user = rustix::process::getuid().as_raw();
        let temporary = std::env::temp_dir();
        let parent = if temporary.as_os_str().len() > MOST { Path::new("/tmp") } else { &temporary };
        let folder = parent.join(format!("slipway-{user}"));
        private(&folder, user).map_err(ClusterError::io(folder.display().to_string()))?;
        Ok(Self { folder, known })
    }

    /// A machine of a cluster. Reads the password for sudo, if there is one.
    ///
    /// # Errors
    /// [`ClusterError::Secret`].
    pub fn host(&self, cluster: &Cluster, machine: &Machine) -> Result<Host, ClusterError> {
        let ssh = cluster.ssh(machine);
        let password = ssh.sudo_password.as_ref().map(crate::spec::SecretSource::read).transpose()?;
        let kept = cluster.spec.machines.len() <= MOST_KEPT;
        Ok(Host {
            name: machine.name.clone(),
            address: machine.address.clone(),
            ssh,
            password,
            made: machine.made.as_ref().map(|made| (self.known.clone(), format!("slipway-{}", made.id))),
            sockets: kept.then(|| self.folder.clone()),
        })
    }
}

/// Makes a folder that nobody else can look into, or finds it so. Others can write next to it, and could have been first.
fn private(folder: &Path, user: u32) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let there = std::fs::symlink_metadata(folder)?;
    if there.is_dir() && there.uid() == user && there.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(std::io::Error::new(
        std::io::ErrorKind::PermissionDenied,
        "it is there, and not this user's alone; remove it, or set TMPDIR",
    ))
}

/// A machine that can be spoken to.
#[derive(Clone)]
pub struct Host {
    /// Its name in the cluster.
    pub name: String,
    address: String,
    ssh: Ssh,
    password: Option<String>,
    /// Where the key of a machine that was made for us is, and under which name.
    made: Option<(PathBuf, String)>,
    /// Where the sockets of connections are that stay for a while.
    sockets: Option<PathBuf>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

impl Host {
    /// What OpenSSH is told to reach it, its address last. A person is at the other end unless it is a `batch`.
    pub fn arguments(&self, batch: bool) -> Vec<String> {
        let mut out = Vec::new();
        let mut option = |text: String| out.extend(["-o".to_owned(), text]);
        match self.socket() {
            Some(socket) => {
                option(format!("ControlPath={}", socket.display()));
                option(format!("ControlMaster={}", if batch { "auto" } else { "no" }));
                option(format!("ControlPersist={PERSIST_SECONDS}"));
            }
            None => option("ControlPath=none".into()),
        }
        if batch {
            option("BatchMode=yes".into());
            // What is no error is not told.
            option("LogLevel=ERROR".into());
            option("ServerAliveInterval=5".into());
            option("ServerAliveCountMax=4".into());
        }
        option(format!("ConnectTimeout={CONNECT_SECONDS}"));
        out.extend(self.target());
        out
    }

    /// Where its connection is; another way to a machine is another connection.
    fn socket(&self) -> Option<PathBuf> {
        Some(self.sockets.as_ref()?.join(digest(self.target().join("\n").as_bytes())))
    }

    /// Which machine, as whom, and how it proves itself.
    fn target(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut option = |text: String| out.extend(["-o".to_owned(), text]);
        if let Some((file, name)) = &self.made {
            option(format!("UserKnownHostsFile={}", file.display()));
            option(format!("HostKeyAlias={name}"));
        } else if let Some(file) = &self.ssh.known_hosts {
            option(format!("UserKnownHostsFile={}", home(file).display()));
        }
        if self.ssh.accept_new_host_keys || self.made.is_some() {
            option("StrictHostKeyChecking=accept-new".into());
        }
        if let Some(file) = &self.ssh.identity_file {
            out.extend(["-i".into(), home(file).display().to_string()]);
        }
        if let Some(port) = self.ssh.port {
            out.extend(["-p".into(), port.to_string()]);
        }
        if let Some(user) = &self.ssh.user {
            out.extend(["-l".into(), user.clone()]);
        }
        out.push(self.address.clone());
        out
    }

    /// Runs a command as root. Its input is `input`; `line` gets each line of its output.
    ///
    /// # Errors
    /// [`ClusterError::Unreachable`], [`ClusterError::HostKey`], [`ClusterError::Sudo`], or what the command said when it failed.
    pub async fn run(
        &self,
        command: &str,
        input: &[u8],
        limit: Duration,
        mut line: impl FnMut(&str),
    ) -> Result<(), ClusterError> {
        let mut spoke = false;
        let mut told = |text: &str| {
            spoke = true;
            line(text);
        };
        match self.run_once(command, input, limit, &mut told).await {
            // OpenSSH says why it cannot connect. It says nothing when a connection was there and ended: the next is a new one.
            Err(ClusterError::Unreachable { reason, .. }) if !spoke && reason == ENDED => {
                if let Some(socket) = self.socket() {
                    drop(std::fs::remove_file(socket));
                }
                self.run_once(command, input, limit, &mut line).await
            }
            done => done,
        }
    }

    async fn run_once(
        &self,
        command: &str,
        input: &[u8],
        limit: Duration,
        line: &mut impl FnMut(&str),
    ) -> Result<(), ClusterError> {
        let command = quote(&format!("{ENVIRONMENT}{command}"));
        let remote = if self.password.is_some() {
            // The first line of the input is the password, whether or not it is asked for.
            format!(
                "IFS= read -r pw; if [ \"$(id -u)\" = 0 ]; then exec sh -c {command}; fi; \
                 if sudo -n true 2>/dev/null; then exec sudo -n -- sh -c {command}; fi; \
                 {{ printf '%s\\n' \"$pw\"; cat; }} | sudo -S -k -p '' -- sh -c {command}"
            )
        } else {
            format!("if [ \"$(id -u)\" = 0 ]; then exec sh -c {command}; fi; exec sudo -n -- sh -c {command}")
        };
        let unreachable = |reason: String| ClusterError::Unreachable { host: self.name.clone(), reason };
        let mut child = Command::new("ssh")
            .args(self.arguments(true))
            .arg(format!("sh -c {}", quote(&remote)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| unreachable(format!("ssh: {e}")))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            let Some(mut stdin) = stdin else { return };
            if let Some(password) = &self.password {
                drop(stdin.write_all(format!("{password}\n").as_bytes()).await);
            }
            // Who does not read it says why in another place.
            drop(stdin.write_all(input).await);
            drop(stdin.shutdown().await);
        };
        let read = async {
            let Some(stdout) = stdout else { return };
            let mut lines = BufReader::new(stdout).split(b'\n');
            while let Ok(Some(bytes)) = lines.next_segment().await {
                line(&String::from_utf8_lossy(&bytes));
            }
        };
        let errors = async {
            let mut text = Vec::new();
            if let Some(stderr) = stderr {
                let mut first = stderr.take(MOST_ERROR_BYTES);
                drop(first.read_to_end(&mut text).await);
                // Who says more is not kept waiting for a reader.
                drop(tokio::io::copy(&mut first.into_inner(), &mut tokio::io::sink()).await);
            }
            String::from_utf8_lossy(&text).trim().to_owned()
        };
        let all = async {
            let (_, (), errors) = tokio::join!(feed, read, errors);
            (child.wait().await, errors)
        };
        let (status, errors) = tokio::time::timeout(limit, all)
            .await
            .map_err(|_| unreachable(format!("no answer within {} s", limit.as_secs())))?;
        let status = status.map_err(|e| unreachable(e.to_string()))?;
        if status.success() {
            return Ok(());
        }
        Err(self.failure(status.code(), errors))
    }

    fn failure(&self, status: Option<i32>, errors: String) -> ClusterError {
        let host = self.name.clone();
        let reason = match status {
            _ if !errors.is_empty() => errors,
            Some(255) => ENDED.into(),
            status => format!("exit status {}", status.unwrap_or(-1)),
        };
        if reason.contains("HOST IDENTIFICATION HAS CHANGED") || reason.contains("Host key verification failed") {
            let last = reason.lines().last().unwrap_or_default().to_owned();
            return ClusterError::HostKey { host, reason: last };
        }
        if status == Some(255) {
            return ClusterError::Unreachable { host, reason };
        }
        if reason.contains("sudo: ") || reason.contains("sudo:") && reason.contains("password") {
            return ClusterError::Sudo { host, reason };
        }
        ClusterError::Host { host, reason }
    }

    /// Runs a script of the shell as root; all of its output.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn script(&self, script: &str, limit: Duration) -> Result<String, ClusterError> {
        let mut output = String::new();
        self.run("exec sh -s", script.as_bytes(), limit, |line| {
            output += line;
            output.push('\n');
        })
        .await?;
        Ok(output)
    }

    /// Puts this program onto the machine, unless it is there, and tells where.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn push(&self, program: &Program) -> Result<String, ClusterError> {
        let program = program.read()?;
        let (path, size) = (&program.path, program.bytes.len());
        let there = format!("[ -x {path} ] && [ \"$(stat -c %s {path})\" = {size} ] && echo there; true");
        if self.script(&there, Duration::from_secs(60)).await?.contains("there") {
            return Ok(path.clone());
        }
        let receive = format!(
            "umask 022 && mkdir -p /var/lib/slipway/bin && cat >{path}.$$ && \
             if [ \"$(stat -c %s {path}.$$)\" = {size} ]; then chmod 755 {path}.$$ && mv {path}.$$ {path}; else rm -f {path}.$$; exit 1; fi"
        );
        self.run(&receive, &program.bytes, Duration::from_secs(600), |_| {}).await?;
        Ok(path.clone())
    }
}

/// This program, as it is pushed. It is read when the first machine wants it.
#[derive(Debug)]
pub struct Program {
    file: PathBuf,
    read: OnceLock<Read>,
}

/// Bytes, and where they go: the name tells them from every other version.
struct Read {
    bytes: Vec<u8>,
    path: String,
}

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Read").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Program {
    /// The program in this file.
    pub fn new(file: PathBuf) -> Self {
        Self { file, read: OnceLock::new() }
    }

    fn read(&self) -> Result<&Read, ClusterError> {
        if let Some(read) = self.read.get() {
            return Ok(read);
        }
        let bytes = std::fs::read(&self.file).map_err(ClusterError::io(self.file.display().to_string()))?;
        let path = format!("/var/lib/slipway/bin/slipway-{}", digest(&bytes));
        let read = Read { bytes, path };
        Ok(self.read.get_or_init(|| read))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn connections_lie_where_nobody_else_can_look() {
        let user = rustix::process::getuid().as_raw();
        let parent = std::env::temp_dir().join(slipway_core::ids::hex32());
        std::fs::create_dir(&parent).unwrap();
        let folder = parent.join("mine");
        private(&folder, user).unwrap();
        private(&folder, user).unwrap();
        assert!(private(&folder, user + 1).is_err());
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(private(&folder, user).unwrap_err().to_string().contains("not this user's alone"));
        let link = parent.join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(private(&link, user).is_err());
        std::fs::remove_dir_all(&parent).unwrap();
    }
}
