//! Runs commands on machines over the system's OpenSSH client, which uses the user's configuration, agents, jump hosts and keys.
//!
//! All commands for a machine share one connection (`ControlMaster`). It stays open for a minute, so that a `plan` and the `apply` after it
//! need only one key exchange and login.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::shell::{ENVIRONMENT, quote};
use crate::spec::ssh::Destination;
use crate::spec::{self, Cluster, Machine, Ssh, expand_home};
use crate::{ClusterError, digest};

/// `ConnectTimeout` of OpenSSH, after which a machine is unreachable.
const CONNECT_TIMEOUT_SECONDS: u64 = 10;
/// Maximum bytes kept of the standard error of a command.
const MAX_STDERR_BYTES: u64 = 16 << 10;

/// `ControlPersist` of OpenSSH: how long a connection stays open after its last use. Ansible has the same default.
const PERSIST_SECONDS: u64 = 60;
/// The reason of a connection that ended without an error message of OpenSSH.
const CONNECTION_CLOSED: &str = "the connection was closed";
/// The first line that the machine sends when its shell waits for [`GO_LINE`]. Output before it comes from a login shell and is dropped.
const READY_LINE: &str = "slipway: began";
/// The line that tells the machine to run the command.
const GO_LINE: &str = "slipway: go";
/// With more machines, connections are not kept open, because each is a process on the controller.
const MAX_PERSISTENT_CONNECTIONS: usize = 256;

/// The SSH connections of this user.
#[derive(Debug)]
pub struct Connections {
    /// Folder of the control sockets.
    folder: PathBuf,
    /// File with the host keys of provisioned machines, by identifier: providers reuse addresses for other machines.
    known_hosts: PathBuf,
    /// OpenSSH's client.
    ssh_program: PathBuf,
}

impl Connections {
    /// Creates the folder of the control sockets. `known_hosts` is the file with the host keys of provisioned machines.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when the folder cannot be created, or other users have access to it.
    pub fn new(known_hosts: PathBuf) -> Result<Self, ClusterError> {
        // A socket path is limited to about a hundred characters, including the socket's name and a suffix that OpenSSH adds.
        const MAX_PARENT_LENGTH: usize = 60;
        let user = rustix::process::getuid().as_raw();
        let temporary = std::env::temp_dir();
        let parent = if temporary.as_os_str().len() > MAX_PARENT_LENGTH { Path::new("/tmp") } else { &temporary };
        let folder = parent.join(format!("slipway-{user}"));
        create_private_folder(&folder, user).map_err(ClusterError::io(folder.display().to_string()))?;
        Ok(Self { folder, known_hosts, ssh_program: "ssh".into() })
    }

    /// Prepares the connection to a machine of a cluster. Reads the sudo password, if there is one.
    ///
    /// # Errors
    /// [`ClusterError::Secret`], or [`ClusterError::Spec`] when `ssh` could take the address or the user for an option.
    pub fn host(&self, cluster: &Cluster, machine: &Machine) -> Result<Host, ClusterError> {
        let ssh = cluster.ssh(machine);
        // The file and responses of providers are validated when they are read. This check also covers addresses from the ledger on disk.
        spec::check_address(&machine.address)
            .and_then(|()| spec::check_ssh(&ssh))
            .map_err(|reason| ClusterError::Spec { file: format!("machine {:?}", machine.name), reason })?;
        let password = ssh.sudo_password.as_ref().map(|source| source.read(&cluster.trusted)).transpose()?;
        let persistent = cluster.spec.machines.len() <= MAX_PERSISTENT_CONNECTIONS;
        Ok(Host {
            name: machine.name.clone(),
            address: machine.address.clone(),
            ssh_program: self.ssh_program.clone(),
            ssh,
            password,
            key_alias: machine
                .provisioned
                .as_ref()
                .map(|provisioned| (self.known_hosts.clone(), format!("slipway-{}", provisioned.id))),
            sockets: persistent.then(|| self.folder.clone()),
        })
    }
}

/// Creates a folder that only this user can access. An existing folder is accepted only if it is private, because other users can write to
/// the parent folder and may have created it first.
fn create_private_folder(folder: &Path, user: u32) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        result => return result,
    }
    let metadata = std::fs::symlink_metadata(folder)?;
    if metadata.is_dir() && metadata.uid() == user && metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(std::io::Error::new(
        std::io::ErrorKind::PermissionDenied,
        "the folder exists and other users have access to it; remove it, or set TMPDIR",
    ))
}

/// A machine on which commands can be run.
#[derive(Clone)]
pub struct Host {
    /// Name of the machine in the cluster.
    pub name: String,
    address: String,
    ssh_program: PathBuf,
    ssh: Ssh,
    password: Option<String>,
    /// For a provisioned machine: the file with its host key, and the name of the key in it.
    key_alias: Option<(PathBuf, String)>,
    /// Folder of the control sockets; `None` if connections are not kept open.
    sockets: Option<PathBuf>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("name", &self.name).field("address", &self.address).finish_non_exhaustive()
    }
}

impl Host {
    /// The arguments of `ssh`: options, `--`, and the address. `batch` is for commands without a terminal; otherwise `ssh` may prompt.
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
            // Only errors are logged, because standard error becomes the error message.
            option("LogLevel=ERROR".into());
            option("ServerAliveInterval=5".into());
            option("ServerAliveCountMax=4".into());
        }
        option(format!("ConnectTimeout={CONNECT_TIMEOUT_SECONDS}"));
        out.extend(self.target());
        out
    }

    /// Path of the control socket. It depends on all target arguments, so that a changed setting opens a new connection.
    fn socket(&self) -> Option<PathBuf> {
        Some(self.sockets.as_ref()?.join(digest(self.target().join("\n").as_bytes())))
    }

    /// The arguments that determine the machine, the user and the keys.
    fn target(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut option = |text: String| out.extend(["-o".to_owned(), text]);
        if let Some((file, name)) = &self.key_alias {
            option(format!("UserKnownHostsFile={}", file.display()));
            option(format!("HostKeyAlias={name}"));
        } else if let Some(file) = &self.ssh.known_hosts {
            option(format!("UserKnownHostsFile={}", expand_home(file).display()));
        }
        if self.ssh.accept_new_host_keys || self.key_alias.is_some() {
            option("StrictHostKeyChecking=accept-new".into());
        }
        if let Some(file) = &self.ssh.identity_file {
            out.extend(["-i".into(), expand_home(file).display().to_string()]);
        }
        if let Some(jump) = self.ssh.jump_host() {
            out.extend(["-o".into(), self.through(&jump)]);
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

    /// The option that connects through a jump host. OpenSSH does not use the command line's key and known hosts for a jump host, so if the
    /// file sets any of these, `ssh` is run with them for the jump host too.
    fn through(&self, jump: &Destination) -> String {
        let Ssh { identity_file, known_hosts, accept_new_host_keys, .. } = &self.ssh;
        if identity_file.is_none() && known_hosts.is_none() && !accept_new_host_keys {
            return format!("ProxyJump={}", jump.to_proxy_jump());
        }
        let mut words = vec!["ssh".to_owned(), "-o".into(), format!("ConnectTimeout={CONNECT_TIMEOUT_SECONDS}")];
        words.extend(["-o".into(), "BatchMode=yes".into(), "-o".into(), "ControlPath=none".into()]);
        if let Some(file) = known_hosts {
            words.extend(["-o".into(), format!("UserKnownHostsFile={}", expand_home(file).display())]);
        }
        if *accept_new_host_keys {
            words.extend(["-o".into(), "StrictHostKeyChecking=accept-new".into()]);
        }
        if let Some(file) = identity_file {
            words.extend(["-i".into(), expand_home(file).display().to_string()]);
        }
        if let Some(port) = jump.port {
            words.extend(["-p".into(), port.to_string()]);
        }
        if let Some(user) = jump.user.as_ref().or(self.ssh.user.as_ref()) {
            words.extend(["-l".into(), user.clone()]);
        }
        // OpenSSH replaces %h and %p with the machine's address and port, and `%%` with a percent sign.
        let quoted: Vec<String> = words.iter().map(|word| quote(&word.replace('%', "%%"))).collect();
        format!("ProxyCommand={} -W '[%h]:%p' -- {}", quoted.join(" "), quote(&jump.address))
    }

    /// Runs a command as root, at most once. `input` is its standard input, and `line` receives each line of its output.
    ///
    /// # Errors
    /// [`ClusterError::Unreachable`], [`ClusterError::HostKey`], [`ClusterError::Sudo`], or [`ClusterError::Host`] with the command's
    /// standard error.
    pub async fn run(
        &self,
        command: &str,
        input: &[u8],
        timeout: Duration,
        mut line: impl FnMut(&str),
    ) -> Result<(), ClusterError> {
        let mut may_have_run = false;
        match self.attempt(command, input, timeout, &mut line, &mut may_have_run).await {
            // OpenSSH prints no error if the shared connection was dead already. The machine had not received the go-ahead, so the command
            // did not run, and one attempt with a new connection is safe.
            Err(ClusterError::Unreachable { reason, .. }) if !may_have_run && reason == CONNECTION_CLOSED => {
                if let Some(socket) = self.socket() {
                    let _ = std::fs::remove_file(socket); // OpenSSH may have removed it already
                }
                self.attempt(command, input, timeout, &mut line, &mut may_have_run).await
            }
            done => done,
        }
    }

    /// Runs a command over one connection. `may_have_run` is set before the go-ahead is sent, which happens only after the machine's first
    /// line has arrived. If it is not set, the command did certainly not run.
    async fn attempt(
        &self,
        command: &str,
        input: &[u8],
        timeout: Duration,
        line: &mut impl FnMut(&str),
        may_have_run: &mut bool,
    ) -> Result<(), ClusterError> {
        let command = quote(&format!("{ENVIRONMENT}{command}"));
        let handshake = format!("echo '{READY_LINE}'; IFS= read -r go && [ \"$go\" = '{GO_LINE}' ] || exit 1; ");
        let as_root = if self.password.is_some() {
            // The next line of the input is always the password, so it is read even if sudo does not need it.
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
            // Ignore write errors: a command that exits early reports through its standard error and exit status.
            let _ = stdin.write_all(format!("{GO_LINE}\n{password}").as_bytes()).await;
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
                } else if text.trim_end_matches('\r') == READY_LINE {
                    *may_have_run = true;
                    let _ = ready.take().map(|ready| ready.send(())); // `feed` holds the receiver
                }
            }
        };
        let errors = async {
            let mut text = Vec::new();
            if let Some(stderr) = stderr {
                let mut first = stderr.take(MAX_STDERR_BYTES);
                let _ = first.read_to_end(&mut text).await; // on an error, the bytes read so far are used
                // The rest is read and discarded, so that the command never blocks on a full pipe.
                let _ = tokio::io::copy(&mut first.into_inner(), &mut tokio::io::sink()).await;
            }
            String::from_utf8_lossy(&text).trim().to_owned()
        };
        let all = async {
            let (_, (), errors) = tokio::join!(feed, read, errors);
            (child.wait().await, errors)
        };
        let (status, errors) = tokio::time::timeout(timeout, all)
            .await
            .map_err(|_| unreachable(format!("no response within {} s", timeout.as_secs())))?;
        let status = status.map_err(|e| unreachable(e.to_string()))?;
        if status.success() {
            return Ok(());
        }
        Err(self.failure(status.code(), errors))
    }

    /// Classifies a failure by the exit status (255 is OpenSSH's own) and the standard error.
    fn failure(&self, status: Option<i32>, errors: String) -> ClusterError {
        let host = self.name.clone();
        let reason = match status {
            _ if !errors.is_empty() => errors,
            Some(255) => CONNECTION_CLOSED.into(),
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

    /// Runs a shell script as root, and returns its whole output.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn script(&self, script: &str, timeout: Duration) -> Result<String, ClusterError> {
        let mut output = String::new();
        self.run("exec sh -s", script.as_bytes(), timeout, |line| {
            output += line;
            output.push('\n');
        })
        .await?;
        Ok(output)
    }

    /// Uploads this program to the machine, unless it is there already. Returns its path on the machine.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn push(&self, program: &Program) -> Result<String, ClusterError> {
        let program = program.read()?;
        let (path, size) = (&program.path, program.bytes.len());
        let check = format!("[ -x {path} ] && [ \"$(stat -c %s {path})\" = {size} ] && echo there; true");
        if self.script(&check, Duration::from_secs(60)).await?.contains("there") {
            return Ok(path.clone());
        }
        let upload = format!(
            "umask 022 && mkdir -p /var/lib/slipway/bin && cat >{path}.$$ && \
             if [ \"$(stat -c %s {path}.$$)\" = {size} ]; then chmod 755 {path}.$$ && mv {path}.$$ {path}; else rm -f {path}.$$; exit 1; fi"
        );
        self.run(&upload, &program.bytes, Duration::from_secs(600), |_| {}).await?;
        Ok(path.clone())
    }
}

/// The program that is uploaded to machines. Its file is read on the first upload.
#[derive(Debug)]
pub struct Program {
    file: PathBuf,
    upload: OnceLock<Upload>,
}

/// The bytes to upload, and their path on the machine, which contains a digest of the bytes.
struct Upload {
    bytes: Vec<u8>,
    path: String,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Program {
    /// A program in this file.
    pub fn new(file: PathBuf) -> Self {
        Self { file, upload: OnceLock::new() }
    }

    fn read(&self) -> Result<&Upload, ClusterError> {
        if let Some(upload) = self.upload.get() {
            return Ok(upload);
        }
        let bytes = std::fs::read(&self.file).map_err(ClusterError::io(self.file.display().to_string()))?;
        let path = format!("/var/lib/slipway/bin/slipway-{}", digest(&bytes));
        let upload = Upload { bytes, path };
        Ok(self.upload.get_or_init(|| upload))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn socket_folder_must_be_private() {
        let user = rustix::process::getuid().as_raw();
        let parent = std::env::temp_dir().join(slipway_core::ids::hex32());
        std::fs::create_dir(&parent).unwrap();
        let folder = parent.join("mine");
        create_private_folder(&folder, user).unwrap();
        create_private_folder(&folder, user).unwrap();
        assert!(create_private_folder(&folder, user + 1).is_err());
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(create_private_folder(&folder, user).unwrap_err().to_string().contains("other users have access"));
        let link = parent.join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(create_private_folder(&link, user).is_err());
        std::fs::remove_dir_all(&parent).unwrap();
    }

    /// A machine behind a fake `ssh` program, which runs the remote command locally. A fake `id` reports the user as root.
    struct Fake {
        folder: PathBuf,
        host: Host,
    }

    impl Fake {
        /// `first` is the shell code of the first connection, with the remote command in `"$last"`. Later connections just run the command.
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
                known_hosts: folder.join("known_hosts"),
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

    /// Appends a line to the file `ran` on each run.
    const COMMAND: &str = "echo ran >>ran; IFS= read -r line; echo \"got $line\"";

    #[tokio::test]
    async fn command_gets_its_input_and_login_banner_is_dropped() {
        let fake = Fake::new("echo 'a banner of the login shell'");
        let (done, lines) = fake.run(COMMAND).await;
        done.unwrap();
        assert_eq!((lines, fake.lines("ran")), (vec!["got input".to_owned()], 1));
        let (done, _) = fake.run("exit 3").await;
        assert!(matches!(done, Err(ClusterError::Host { .. })), "{done:?}");
    }

    #[tokio::test]
    async fn sudo_password_is_not_part_of_the_input() {
        let mut fake = Fake::new(":");
        fake.host.password = Some("hunter2".into());
        let (done, lines) = fake.run(COMMAND).await;
        done.unwrap();
        assert_eq!(lines, ["got input"]);
    }

    #[tokio::test]
    async fn connection_that_closed_before_the_command_is_retried() {
        // The connection closes at once, or the machine's first line and all input to it are lost.
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
    async fn command_that_may_have_run_is_not_retried() {
        // The connection closes after the command, or while the command runs and before it has printed anything.
        for first in ["sh -c \"$last\"; exit 255", "sh -c \"$last\" | head -n 1; exit 255"] {
            let fake = Fake::new(first);
            let (done, _) = fake.run("echo ran >>ran; IFS= read -r line").await;
            assert!(
                matches!(&done, Err(ClusterError::Unreachable { reason, .. }) if reason == CONNECTION_CLOSED),
                "{done:?}"
            );
            assert_eq!((fake.lines("ran"), fake.lines("connections")), (1, 1), "{first}");
        }
        // An error that OpenSSH reports is not retried.
        let fake = Fake::new("echo 'connect to host: No route to host' >&2; exit 255");
        let (done, _) = fake.run(COMMAND).await;
        assert!(done.unwrap_err().to_string().contains("No route to host"));
        assert_eq!((fake.lines("ran"), fake.lines("connections")), (0, 1));
    }

    #[tokio::test]
    async fn jump_host_gets_the_key_and_the_known_hosts_of_the_file() {
        let mut fake = Fake::new(":");
        let options = |fake: &Fake| fake.host.arguments(true).join(" ");
        fake.host.ssh.jump = Some("ops@[fd00::1]:2222".into());
        assert!(options(&fake).contains(" -o ProxyJump=ops@[fd00::1]:2222 "));
        fake.host.ssh.identity_file = Some("/k/100% mine".into());
        fake.host.ssh.accept_new_host_keys = true;
        let through = options(&fake);
        let expected = "'-o' 'StrictHostKeyChecking=accept-new' '-i' '/k/100%% mine' '-p' '2222' '-l' 'ops' -W '[%h]:%p' -- 'fd00::1'";
        assert!(through.contains("ProxyCommand='ssh' ") && through.contains(expected), "{through}");
        fake.host.ssh.jump = Some("none".into());
        assert!(!options(&fake).contains("Proxy"));
    }

    #[tokio::test]
    async fn addresses_and_users_cannot_inject_ssh_options() {
        let fake = Fake::new(":");
        fake.run("true").await.0.unwrap();
        let arguments = std::fs::read_to_string(fake.folder.join("arguments")).unwrap();
        assert!(arguments.contains("\n--\n10.0.0.1\nsh -c "), "{arguments}");
        let cluster = Cluster::parse(spec::tests::FILE).unwrap();
        let connections = Connections::new(fake.folder.join("known_hosts")).unwrap();
        let first = &cluster.spec.machines[0];
        let ssh = |ssh: Ssh| Machine { ssh: Some(ssh), ..first.clone() };
        for invalid in [
            Machine { address: "-oProxyCommand=id".into(), ..first.clone() },
            Machine { address: String::new(), ..first.clone() },
            ssh(Ssh { user: Some("-oProxyCommand=id".into()), ..Ssh::default() }),
            ssh(Ssh { user: Some("$(id)".into()), ..Ssh::default() }),
            ssh(Ssh { identity_file: Some("-x".into()), ..Ssh::default() }),
        ] {
            assert!(matches!(connections.host(&cluster, &invalid), Err(ClusterError::Spec { .. })), "{invalid:?}");
        }
    }
}
