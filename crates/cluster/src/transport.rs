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

use crate::shell::{ENVIRONMENT, quote};
use crate::spec::{self, Cluster, Machine, Ssh, home};
use crate::{ClusterError, digest};

/// Seconds until a machine counts as unreachable.
const CONNECT_SECONDS: u64 = 10;
/// So much of what a command says of errors is kept.
const MOST_ERROR_BYTES: u64 = 16 << 10;

/// Seconds for which a connection stays after its last use; Ansible's default, too.
const PERSIST_SECONDS: u64 = 60;
/// What is told of a connection that ended without a word of OpenSSH's.
const ENDED: &str = "the connection was closed";
/// The machine's first line: its shell is there and waits for [`GO`]. What a login shell printed before is left out.
const BEGAN: &str = "slipway: began";
/// The line that lets the machine begin with a command.
const GO: &str = "slipway: go";
/// In larger fleets connections are not kept: each is a process here.
const MOST_KEPT: usize = 256;

/// Where connections are.
#[derive(Debug)]
pub struct Connections {
    folder: PathBuf,
    /// Keys of machines that were made for us, which have them by their identifier: addresses are used again.
    known: PathBuf,
    /// OpenSSH's client.
    ssh_program: PathBuf,
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
        Ok(Self { folder, known, ssh_program: "ssh".into() })
    }

    /// A machine of a cluster. Reads the password for sudo, if there is one.
    ///
    /// # Errors
    /// [`ClusterError::Secret`], or [`ClusterError::Spec`] when its address or user could be taken for an option of `ssh`.
    pub fn host(&self, cluster: &Cluster, machine: &Machine) -> Result<Host, ClusterError> {
        let ssh = cluster.ssh(machine);
        // Files and providers are checked where they are read. This is the one door to `ssh`, also for what was kept on disk.
        spec::check_address(&machine.address)
            .and_then(|()| spec::check_ssh(&ssh))
            .map_err(|reason| ClusterError::Spec { file: format!("machine {:?}", machine.name), reason })?;
        let password = ssh.sudo_password.as_ref().map(|source| source.read(&cluster.trusted)).transpose()?;
        let kept = cluster.spec.machines.len() <= MOST_KEPT;
        Ok(Host {
            name: machine.name.clone(),
            address: machine.address.clone(),
            ssh_program: self.ssh_program.clone(),
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
    ssh_program: PathBuf,
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
    /// What OpenSSH is told to reach it: options, `--`, and its address last. A person is at the other end unless it is a `batch`.
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
        out.extend(["--".into(), self.address.clone()]);
        out
    }

    /// Runs a command as root, never more than once. Its input is `input`; `line` gets each line of its output.
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
        let mut began = false;
        match self.attempt(command, input, limit, &mut line, &mut began).await {
            // OpenSSH says why it cannot connect, but says nothing when the shared connection was dead already. A command that was not
            // allowed to begin was not run, so a new connection may be tried.
            Err(ClusterError::Unreachable { reason, .. }) if !began && reason == ENDED => {
                if let Some(socket) = self.socket() {
                    let _ = std::fs::remove_file(socket); // one that is gone already is as good
                }
                self.attempt(command, input, limit, &mut line, &mut began).await
            }
            done => done,
        }
    }

    /// One connection, one command. `began` tells whether the machine may have begun the command: it does so only when it was told to
    /// after its first line had arrived here. So a connection that ended before leaves no doubt that the command was not run.
    async fn attempt(
        &self,
        command: &str,
        input: &[u8],
        limit: Duration,
        line: &mut impl FnMut(&str),
        began: &mut bool,
    ) -> Result<(), ClusterError> {
        let command = quote(&format!("{ENVIRONMENT}{command}"));
        let handshake = format!("echo '{BEGAN}'; IFS= read -r go && [ \"$go\" = '{GO}' ] || exit 1; ");
        let as_root = if self.password.is_some() {
            // The next line of the input is the password, whether or not it is asked for.
            format!(
                "IFS= read -r pw; if [ \"$(id -u)\" = 0 ]; then exec sh -c {command}; fi; \
                 if sudo -n true 2>/dev/null; then exec sudo -n -- sh -c {command}; fi; \
                 {{ printf '%s\\n' \"$pw\"; cat; }} | sudo -S -k -p '' -- sh -c {command}"
            )
        } else {
            format!("if [ \"$(id -u)\" = 0 ]; then exec sh -c {command}; fi; exec sudo -n -- sh -c {command}")
        };
        let remote = handshake + &as_root;
        let unreachable = |reason: String| ClusterError::Unreachable { host: self.name.clone(), reason };
        let mut child = Command::new(&self.ssh_program)
            .args(self.arguments(true))
            .arg(format!("sh -c {}", quote(&remote)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| unreachable(format!("ssh: {e}")))?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let feed = async {
            let (Some(mut stdin), Ok(())) = (stdin, is_ready.await) else { return };
            let password = self.password.as_ref().map(|p| format!("{p}\n")).unwrap_or_default();
            // A machine that does not read its input says why on another stream, or by its exit status.
            let _ = stdin.write_all(format!("{GO}\n{password}").as_bytes()).await;
            let _ = stdin.write_all(input).await; // as above
            let _ = stdin.shutdown().await; // as above
        };
        let read = async {
            let Some(stdout) = stdout else { return };
            let mut lines = BufReader::new(stdout).split(b'\n');
            let mut ready = Some(ready);
            while let Ok(Some(bytes)) = lines.next_segment().await {
                let text = String::from_utf8_lossy(&bytes);
                if ready.is_none() {
                    line(&text);
                } else if text.trim_end_matches('\r') == BEGAN {
                    *began = true;
                    let _ = ready.take().map(|ready| ready.send(())); // the receiver waits in `feed`
                }
            }
        };
        let errors = async {
            let mut text = Vec::new();
            if let Some(stderr) = stderr {
                let mut first = stderr.take(MOST_ERROR_BYTES);
                let _ = first.read_to_end(&mut text).await; // what was read until then is told
                // The rest is read and thrown away, so that the other side never waits for a reader.
                let _ = tokio::io::copy(&mut first.into_inner(), &mut tokio::io::sink()).await;
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

    /// A machine behind a program that stands in for `ssh`: it runs the remote command here, as a user that `id` calls root.
    struct Fake {
        folder: PathBuf,
        host: Host,
    }

    impl Fake {
        /// `first` is what the first connection does with the remote command, `"$last"`; every later one just runs it.
        fn new(first: &str) -> Self {
            let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
            std::fs::create_dir_all(folder.join("bin")).unwrap();
            let here = folder.display();
            let program = |name: &str, text: String| {
                let path = folder.join(name);
                std::fs::write(&path, text).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            };
            program("bin/id", "#!/bin/sh\necho 0\n".into());
            program(
                "ssh",
                format!(
                    "#!/bin/sh\nexport PATH='{here}/bin':\"$PATH\"\ncd '{here}'\nprintf '%s\\n' \"$@\" >arguments\n\
                     for last; do :; done\necho x >>connections\n\
                     if [ \"$(wc -l <connections)\" = 1 ]; then {first}; fi\nexec sh -c \"$last\"\n"
                ),
            );
            let connections = Connections {
                folder: folder.clone(),
                known: folder.join("known_hosts"),
                ssh_program: folder.join("ssh"),
            };
            let cluster = Cluster::parse(spec::tests::FILE).unwrap();
            let host = connections.host(&cluster, &cluster.spec.machines[0]).unwrap();
            Self { folder, host }
        }

        async fn run(&self, command: &str) -> (Result<(), ClusterError>, Vec<String>) {
            let mut lines = Vec::new();
            let done = self.host.run(command, b"input\n", Duration::from_secs(30), |l| lines.push(l.to_owned())).await;
            (done, lines)
        }

        fn lines(&self, file: &str) -> usize {
            std::fs::read_to_string(self.folder.join(file)).map_or(0, |text| text.lines().count())
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.folder); // a temporary folder
        }
    }

    /// Leaves a trace of each time that it runs.
    const COMMAND: &str = "echo ran >>ran; IFS= read -r line; echo \"got $line\"";

    #[tokio::test]
    async fn a_command_gets_its_input_and_its_output_begins_with_its_own_first_line() {
        let fake = Fake::new("echo 'a banner of the login shell'");
        let (done, lines) = fake.run(COMMAND).await;
        done.unwrap();
        assert_eq!((lines, fake.lines("ran")), (vec!["got input".to_owned()], 1));
        let (done, _) = fake.run("exit 3").await;
        assert!(matches!(done, Err(ClusterError::Host { .. })), "{done:?}");
    }

    #[tokio::test]
    async fn a_password_is_the_line_before_the_input() {
        let mut fake = Fake::new(":");
        fake.host.password = Some("hunter2".into());
        let (done, lines) = fake.run(COMMAND).await;
        done.unwrap();
        assert_eq!(lines, ["got input"]);
    }

    #[tokio::test]
    async fn a_connection_that_ended_before_the_command_is_made_again() {
        // It ends at once; the machine has its shell, but its first line is lost, as is whatever is said to it.
        for first in ["exit 255", "sh -c \"$last\" >/dev/null </dev/null; exit 255"] {
            let fake = Fake::new(first);
            let (done, lines) = fake.run(COMMAND).await;
            done.unwrap();
            assert_eq!(
                (lines, fake.lines("ran"), fake.lines("connections")),
                (vec!["got input".to_owned()], 1, 2),
                "{first}"
            );
        }
    }

    #[tokio::test]
    async fn a_command_that_may_have_run_is_not_run_again() {
        // The connection ends after the command, and it ends while the command has said nothing yet.
        for first in ["sh -c \"$last\"; exit 255", "sh -c \"$last\" | head -n 1; exit 255"] {
            let fake = Fake::new(first);
            let (done, _) = fake.run("echo ran >>ran; IFS= read -r line").await;
            assert!(matches!(&done, Err(ClusterError::Unreachable { reason, .. }) if reason == ENDED), "{done:?}");
            assert_eq!((fake.lines("ran"), fake.lines("connections")), (1, 1), "{first}");
        }
        // What OpenSSH says of is no reason to try again.
        let fake = Fake::new("echo 'connect to host: No route to host' >&2; exit 255");
        let (done, _) = fake.run(COMMAND).await;
        assert!(done.unwrap_err().to_string().contains("No route to host"));
        assert_eq!((fake.lines("ran"), fake.lines("connections")), (0, 1));
    }

    #[tokio::test]
    async fn nothing_is_an_option_of_ssh_that_is_not_meant_as_one() {
        let fake = Fake::new(":");
        fake.run("true").await.0.unwrap();
        let arguments = std::fs::read_to_string(fake.folder.join("arguments")).unwrap();
        assert!(arguments.contains("\n--\n10.0.0.1\nsh -c "), "{arguments}");
        let cluster = Cluster::parse(spec::tests::FILE).unwrap();
        let connections = Connections::new(fake.folder.join("known_hosts")).unwrap();
        let first = &cluster.spec.machines[0];
        let ssh = |ssh: Ssh| Machine { ssh: Some(ssh), ..first.clone() };
        for wrong in [
            Machine { address: "-oProxyCommand=id".into(), ..first.clone() },
            Machine { address: String::new(), ..first.clone() },
            ssh(Ssh { user: Some("-oProxyCommand=id".into()), ..Ssh::default() }),
            ssh(Ssh { user: Some("$(id)".into()), ..Ssh::default() }),
            ssh(Ssh { identity_file: Some("-x".into()), ..Ssh::default() }),
        ] {
            assert!(matches!(connections.host(&cluster, &wrong), Err(ClusterError::Spec { .. })), "{wrong:?}");
        }
    }
}
