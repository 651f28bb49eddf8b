//! The IMEX daemon of a ComputeDomain on this node: its configuration, its process, and whether it is ready. It lets programs on several
//! machines of an NVLink domain map each other's GPU memory.
//!
//! Source: NVIDIA, "IMEX Service for NVLink Networks" (config options, signal handling, command service). The daemon reads its list of nodes
//! only when it starts, and refuses peers with another list. So the list has a fixed number of names, as upstream's
//! (`cmd/compute-domain-daemon/dnsnames.go`), and nodes that join or leave change only the addresses of the names in the hosts file.

use std::collections::BTreeMap;
use std::io::{Seek, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use slipway_core::compute_domain::MAX_NODES_PER_CLIQUE;
use slipway_gpu::container;
use tokio::process::{Child, Command};

use crate::NodeError;

const DAEMON: &str = "nvidia-imex";
const CONTROL: &str = "nvidia-imex-ctl";
/// Prefix of the names of nodes; upstream's. Its lines in the hosts file belong to this module.
const NAME_PREFIX: &str = "compute-domain-daemon-";
/// The daemon processes SIGUSR1 at most once in five seconds, and ignores others (IMEX guide, "Signal handling").
const RECONNECT_INTERVAL: Duration = Duration::from_secs(6);
/// Timeout of a status query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for a daemon to end after SIGTERM; it notifies its peers first.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum bytes of a hosts file.
const MAX_HOSTS_BYTES: u64 = 1 << 20;

/// Addresses of the daemons of a clique, keyed by the index of their node.
pub type Peers = BTreeMap<u32, IpAddr>;

/// Where programs are found and files are written.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Root folder of the driver, as this process sees it.
    pub driver_root: PathBuf,
    /// Folder of the daemon's configuration.
    pub folder: PathBuf,
    /// The file in which names are looked up, usually `/etc/hosts`.
    pub hosts: PathBuf,
}

/// The daemon of this node.
#[derive(Debug)]
pub struct Imex {
    settings: Settings,
    running: Option<Running>,
}

/// A running daemon. It gets SIGTERM when it is dropped.
#[derive(Debug)]
struct Running {
    /// UID of its ComputeDomain.
    domain: String,
    child: Child,
    /// When it started, or last reconnected to its peers.
    connected: Instant,
    /// Whether the address of a peer has changed since.
    must_reconnect: bool,
}

impl Running {
    fn signal(&self, signal: Signal) {
        // `id` is `None` after the process was reaped, so the signal reaches no other process.
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = kill_process(pid, signal); // it may have ended
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
    }
}

/// The first driver whose IMEX finds its peers by names: `IMEXDaemonsWithDNSNamesMinDriverVersion` of upstream's kubelet plugin.
const MIN_DRIVER: &str = "570.158.01";

/// Checks that the IMEX of a driver finds its peers by names.
///
/// # Errors
/// [`NodeError::Invalid`] if the driver is older than 570.158.01.
pub fn check_driver(version: &str) -> Result<(), NodeError> {
    let numbers = |text: &str| -> Vec<u32> { text.split('.').map_while(|n| n.parse().ok()).collect() };
    if numbers(version) >= numbers(MIN_DRIVER) {
        return Ok(());
    }
    Err(NodeError::Invalid(format!(
        "the IMEX of driver {version} cannot add nodes while it runs: update the driver to {MIN_DRIVER} or newer, or select the IMEX service of \
         the machine (--imex host)"
    )))
}

/// The name of the node with this index.
fn name(index: u32) -> String {
    format!("{NAME_PREFIX}{index:04}")
}

/// The list of nodes: all names that may exist.
fn nodes() -> String {
    (0..MAX_NODES_PER_CLIQUE).map(|index| format!("{}\n", name(index))).collect()
}

/// The daemon's configuration. Options that are missing have their defaults, among them the ports 50000 for peers and 50005 for queries.
fn config(nodes: &Path) -> String {
    format!(
        "# Written by slipway.\n\
         DAEMONIZE=0\n\
         LOG_FILE_NAME=\n\
         STATS_FILE_NAME=\n\
         SERVER_PORT=50000\n\
         IMEX_NODE_CONFIG_FILE={}\n\
         IMEX_WAIT_FOR_QUORUM=RECOVERY\n\
         IMEX_CMD_ENABLED=1\n\
         IMEX_CMD_BIND_INTERFACE_IP=127.0.0.1\n\
         IMEX_CMD_PORT=50005\n",
        nodes.display()
    )
}

/// A hosts file with the names of these peers, and its other lines unchanged. An empty file, as in a container, gets `localhost`.
fn hosts(text: &str, peers: &Peers) -> String {
    let mut out: String = text.lines().filter(|l| !l.contains(NAME_PREFIX)).map(|l| format!("{l}\n")).collect();
    if out.trim().is_empty() {
        out = "127.0.0.1\tlocalhost\n::1\tlocalhost\n".into();
    }
    out.extend(peers.iter().map(|(index, address)| format!("{address}\t{}\n", name(*index))));
    out
}

impl Imex {
    /// The daemon with these settings, which does not run yet. Ends one that an agent which was killed has left behind.
    pub async fn new(settings: Settings) -> Self {
        let imex = Self { settings, running: None };
        imex.end_leftover().await;
        imex
    }

    fn config_path(&self) -> PathBuf {
        self.settings.folder.join("imexd.cfg")
    }

    /// The path of a program: in this container if NVIDIA's runtime has put it there, else below the root of the driver.
    fn program(&self, name: &str) -> Result<PathBuf, NodeError> {
        let candidates = [Path::new("/usr/bin").join(name), self.settings.driver_root.join("usr/bin").join(name)];
        candidates.into_iter().find(|p| p.exists()).ok_or_else(|| {
            NodeError::Invalid(format!(
                "{name} is not installed: install the package nvidia-imex in the driver's version, or select the IMEX service of the machine \
                 (--imex host)"
            ))
        })
    }

    /// Makes the daemon of a domain run with these peers. Starts it if it does not run; if only addresses have changed, a running daemon
    /// reconnects, and programs keep the memory that they have mapped.
    ///
    /// # Errors
    /// If a program is missing, a file cannot be written, or the daemon cannot be started.
    pub async fn ensure(&mut self, domain: &str, peers: &Peers) -> Result<(), NodeError> {
        if self.running.as_ref().is_some_and(|r| r.domain != domain) {
            self.stop().await;
        }
        if let Some(running) = &mut self.running
            && let Ok(Some(status)) = running.child.try_wait()
        {
            tracing::warn!(domain, %status, "the IMEX daemon ended; restarting it");
            self.running = None;
        }
        let changed = self.write_hosts(peers)?;
        if let Some(running) = &mut self.running {
            running.must_reconnect |= changed;
            if running.must_reconnect && running.connected.elapsed() >= RECONNECT_INTERVAL {
                running.signal(Signal::USR1);
                running.connected = Instant::now();
                running.must_reconnect = false;
            }
            return Ok(());
        }
        let program = self.program(DAEMON)?;
        let nodes_path = self.settings.folder.join("nodes.cfg");
        container::replace(&nodes_path, &nodes())?;
        container::replace(&self.config_path(), &config(&nodes_path))?;
        let mut command = Command::new(&program);
        command.arg("-c").arg(self.config_path()).stdin(Stdio::null());
        let child = command.spawn().map_err(NodeError::io(program.display().to_string()))?;
        if let Some(pid) = child.id() {
            container::replace(&self.pid_path(), &pid.to_string())?;
        }
        tracing::info!(domain, peers = peers.len(), "the IMEX daemon has started");
        let domain = domain.to_owned();
        self.running = Some(Running { domain, child, connected: Instant::now(), must_reconnect: false });
        Ok(())
    }

    /// Whether the running daemon is ready. Says nothing about its peers.
    ///
    /// # Errors
    /// If the control program is missing or cannot be run.
    pub async fn is_ready(&self) -> Result<bool, NodeError> {
        if self.running.is_none() {
            return Ok(false);
        }
        let program = self.program(CONTROL)?;
        let mut command = Command::new(&program);
        command.arg("-c").arg(self.config_path()).arg("-q").stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(QUERY_TIMEOUT, command.output()).await {
            Ok(output) => {
                let output = output.map_err(NodeError::io(program.display().to_string()))?;
                Ok(output.status.success() && output.stdout.trim_ascii() == b"READY")
            }
            Err(_) => Ok(false),
        }
    }

    /// Stops the daemon and removes its peers from the hosts file.
    pub async fn stop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        running.signal(Signal::TERM);
        if tokio::time::timeout(STOP_TIMEOUT, running.child.wait()).await.is_err() {
            let _ = running.child.kill().await; // it may have ended
        }
        tracing::info!(domain = running.domain, "the IMEX daemon has stopped");
        let _ = std::fs::remove_file(self.pid_path()); // a file that remains names no running daemon
        if let Err(error) = self.write_hosts(&Peers::new()) {
            tracing::debug!(%error, "cannot remove the nodes of the ComputeDomain from the hosts file");
        }
    }

    fn pid_path(&self) -> PathBuf {
        self.settings.folder.join("pid")
    }

    /// Ends the daemon of an agent that was killed. Another one could not use its port.
    async fn end_leftover(&self) {
        let text = std::fs::read_to_string(self.pid_path()).unwrap_or_default();
        let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else { return };
        let config = self.config_path().display().to_string();
        let runs = || {
            let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            // Another process may have got its number since.
            line.split(|b| *b == 0).any(|argument| argument == config.as_bytes())
        };
        for (signal, attempts) in [(Signal::TERM, 100), (Signal::KILL, 20)] {
            if !runs() {
                return;
            }
            let _ = kill_process(pid, signal); // it may have ended
            for _ in 0..attempts {
                if !runs() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// Writes the names of peers; returns whether the file has changed. The file is changed in place, because in a container it is a mount,
    /// which cannot be replaced.
    fn write_hosts(&self, peers: &Peers) -> Result<bool, NodeError> {
        let path = &self.settings.hosts;
        let failed = || NodeError::io(path.display().to_string());
        if std::fs::metadata(path).is_ok_and(|m| m.len() > MAX_HOSTS_BYTES) {
            return Err(NodeError::Invalid(format!("{} is larger than 1 MiB", path.display())));
        }
        let before = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.map_err(failed())?,
        };
        let after = hosts(&before, peers);
        if before == after {
            return Ok(false);
        }
        // Cut the file only at the end, so that a reader never finds it empty.
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(failed())?;
        file.rewind().and_then(|()| file.write_all(after.as_bytes())).map_err(failed())?;
        file.set_len(after.len() as u64).map_err(failed())?;
        Ok(true)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A driver root with programs that behave like the daemon and its control program. The daemon logs to `log` in the root, and is ready
    /// once `ready` exists there.
    pub(crate) fn fake_programs() -> (PathBuf, Settings) {
        let root = std::env::temp_dir().join(format!("slipway-imex-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(root.join("usr/bin")).unwrap();
        let r = root.display();
        let daemon = format!(
            "#!/bin/sh\ntrap 'echo reconnect >>{r}/log' USR1\ntrap 'echo end >>{r}/log; exit 0' TERM\necho \"start $1 $2\" >>{r}/log\n\
             while :; do sleep 0.05; done\n"
        );
        let control = format!(
            "#!/bin/sh\n[ \"$3\" = -q ] && [ -e {r}/ready ] && echo READY || {{ echo INITIALIZING; exit 1; }}\n"
        );
        for (name, text) in [(DAEMON, daemon), (CONTROL, control)] {
            let path = root.join("usr/bin").join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let settings = Settings { driver_root: root.clone(), folder: root.join("imex"), hosts: root.join("hosts") };
        (root, settings)
    }

    fn log(root: &Path) -> String {
        std::fs::read_to_string(root.join("log")).unwrap_or_default()
    }

    async fn eventually(what: &str, condition: impl Fn() -> bool) {
        for _ in 0..200 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("timed out: {what}");
    }

    fn peers(list: &[(u32, &str)]) -> Peers {
        list.iter().map(|(index, address)| (*index, address.parse().unwrap())).collect()
    }

    #[test]
    fn old_drivers_are_refused() {
        for version in ["570.158.01", "570.172.08", "580.95.05"] {
            check_driver(version).unwrap();
        }
        for version in ["570.153.02", "550.90.07", ""] {
            assert!(check_driver(version).unwrap_err().to_string().contains("570.158.01 or newer"), "{version}");
        }
    }

    #[test]
    fn hosts_file_keeps_the_lines_of_others() {
        let before = "127.0.0.1 localhost\n10.0.0.9\tcompute-domain-daemon-0003\n10.0.0.1 n1 # me\n";
        let expected = "127.0.0.1 localhost\n10.0.0.1 n1 # me\n10.0.0.2\tcompute-domain-daemon-0000\nfd00::7\tcompute-domain-daemon-0017\n";
        let peers = peers(&[(0, "10.0.0.2"), (17, "fd00::7")]);
        assert_eq!(hosts(before, &peers), expected);
        assert_eq!(hosts(expected, &peers), expected);
        assert_eq!(hosts("", &Peers::new()), "127.0.0.1\tlocalhost\n::1\tlocalhost\n");
    }

    #[tokio::test]
    async fn daemon_starts_reconnects_restarts_and_stops() {
        let (root, settings) = fake_programs();
        let mut imex = Imex::new(settings.clone()).await;
        imex.ensure("d1", &peers(&[(0, "10.0.0.1")])).await.unwrap();
        eventually("the start", || log(&root) == format!("start -c {}\n", settings.folder.join("imexd.cfg").display()))
            .await;
        let nodes = std::fs::read_to_string(settings.folder.join("nodes.cfg")).unwrap();
        assert_eq!((nodes.lines().count(), nodes.lines().next()), (18, Some("compute-domain-daemon-0000")));
        assert!(!imex.is_ready().await.unwrap());
        std::fs::write(root.join("ready"), "").unwrap();
        assert!(imex.is_ready().await.unwrap());
        // A change during the first seconds is not lost, although the daemon would ignore the signal.
        let both = peers(&[(0, "10.0.0.1"), (1, "10.0.0.2")]);
        imex.ensure("d1", &both).await.unwrap();
        assert!(!log(&root).contains("reconnect"));
        imex.running.as_mut().unwrap().connected -= RECONNECT_INTERVAL;
        imex.ensure("d1", &both).await.unwrap();
        eventually("the reconnection", || log(&root).contains("reconnect")).await;
        // A daemon that was killed is started again.
        imex.running.as_mut().unwrap().child.kill().await.unwrap();
        imex.ensure("d1", &both).await.unwrap();
        eventually("the restart", || log(&root).matches("start").count() == 2).await;
        // The daemon of another domain replaces it.
        imex.ensure("d2", &peers(&[(0, "10.0.0.1")])).await.unwrap();
        eventually("the other domain", || {
            log(&root).ends_with(&format!("end\nstart -c {}\n", settings.folder.join("imexd.cfg").display()))
        })
        .await;
        imex.stop().await;
        assert!(log(&root).ends_with("end\n"));
        assert!(!std::fs::read_to_string(&settings.hosts).unwrap().contains(NAME_PREFIX));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[tokio::test]
    async fn daemon_of_a_killed_agent_is_ended() {
        let (root, settings) = fake_programs();
        let mut imex = Imex::new(settings.clone()).await;
        imex.ensure("d1", &Peers::new()).await.unwrap();
        eventually("the start", || log(&root).contains("start")).await;
        // A reaped child would no longer have a command line, so this process plays the parent that inherits it.
        let mut running = imex.running.take().unwrap();
        let inherited = async {
            running.child.wait().await.unwrap();
        };
        tokio::join!(inherited, Imex::new(settings));
        assert!(log(&root).ends_with("end\n"));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[tokio::test]
    async fn missing_program_is_reported() {
        let (root, settings) = fake_programs();
        std::fs::remove_file(root.join("usr/bin").join(DAEMON)).unwrap();
        let error = Imex::new(settings).await.ensure("d1", &Peers::new()).await.unwrap_err().to_string();
        assert!(error.starts_with("nvidia-imex is not installed") && error.contains("--imex host"), "{error}");
        std::fs::remove_dir_all(root).unwrap();
    }
}
