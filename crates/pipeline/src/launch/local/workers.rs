//! Warm workers: for each environment one process that has imported `kfp` and forks a child for each step. A worker outlives the server,
//! serves the next one, and exits when it has been idle. The protocol is described in `worker.py`.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use slipway_core::{files, hex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{ChildStdout, Command};

use super::environments::Environment;

const SCRIPT: &str = include_str!("worker.py");
/// Prefix of a worker's files. The rest is a digest of its script, so that a worker of another version of slipway is not used.
const PREFIX: &str = "worker-";
/// Timeout of the imports of a worker.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Time in which a worker that does not accept connections any more ends.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of the attempts to lock a worker that ends.
const LOCK_INTERVAL: Duration = Duration::from_millis(10);
/// Modules that a worker imports: those that `kfp.dsl.executor_main` imports.
const MODULES: &[&str] =
    &["kfp.dsl.executor", "kfp.dsl.kfp_config", "kfp.dsl.utils", "argparse", "logging", "shutil", "tempfile"];
/// Packages that a worker imports if they are in the environment, and the module of each. Their imports take long, and none of them keeps
/// threads or connections that a fork would break.
const PACKAGES: &[(&str, &str)] = &[("numpy", "numpy"), ("pandas", "pandas"), ("sklearn", "sklearn.base")];

static NAME: LazyLock<String> = LazyLock::new(|| {
    let digest = ring::digest::digest(&ring::digest::SHA256, SCRIPT.as_bytes());
    format!("{PREFIX}{}", hex::encode(&digest.as_ref()[..6]))
});

/// The other ends of the standard output of workers, by environment. A worker whose pipe is closed knows that its server is gone, and exits
/// after its last step; so nothing but the end of this process may close them.
static PIPES: LazyLock<Mutex<HashMap<PathBuf, BufReader<ChildStdout>>>> = LazyLock::new(Mutex::default);

/// A request to a worker, one line of JSON.
#[derive(Debug, Serialize)]
pub(super) struct Request {
    /// Folder of the attempt.
    pub(super) attempt: PathBuf,
    /// Working directory of the program.
    pub(super) folder: PathBuf,
    /// The module that is executed, as with `python -m`.
    pub(super) module: &'static str,
    /// Its arguments.
    pub(super) arguments: Vec<String>,
    /// All environment variables of the program.
    pub(super) environment: std::collections::BTreeMap<String, String>,
    /// Milliseconds after which the program is stopped.
    pub(super) limit: Option<i64>,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub(super) grace: u64,
    /// Maximum bytes of the log.
    pub(super) log_limit: u64,
}

/// Whether a worker of an environment is alive.
pub(super) fn has_worker(environment: &Path) -> bool {
    let entries = std::fs::read_dir(environment).into_iter().flatten().flatten();
    let mut locks = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "lock"));
    locks.any(|path| File::open(path).is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockShared).is_err()))
}

/// Has a step executed by the worker of an environment, which is started if it does not run. Returns when the step has ended, or was not
/// started; the files of the attempt show which.
///
/// # Errors
/// The reason why no worker could be started.
pub(super) async fn execute(
    environment: &Environment,
    request: &Request,
    idle: Duration,
    variables: &[(std::ffi::OsString, std::ffi::OsString)],
) -> Result<(), String> {
    let mut text = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    text.push(b'\n');
    let mut connection = match connect(&environment.folder).await {
        Ok(connection) => connection,
        Err(_) => start(environment, idle, variables).await?,
    };
    // Errors mean that the worker has just ended: the files of the attempt show that nothing was started.
    if connection.write_all(&text).await.is_ok() {
        let _ = connection.read(&mut [0]).await;
    }
    Ok(())
}

/// Connects through `/proc`, because the path of a socket is limited to 107 bytes.
async fn connect(environment: &Path) -> std::io::Result<UnixStream> {
    let folder = File::open(environment)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{}.socket", folder.as_raw_fd(), *NAME)).await
}

async fn start(
    environment: &Environment,
    idle: Duration,
    variables: &[(std::ffi::OsString, std::ffi::OsString)],
) -> Result<UnixStream, String> {
    let failed = |reason: String| format!("cannot start a Python worker: {reason}");
    let io = |error: std::io::Error| failed(error.to_string());
    let _permit = environment.start.lock().await;
    if let Ok(connection) = connect(&environment.folder).await {
        return Ok(connection);
    }
    let file = |extension: &str| environment.folder.join(format!("{}.{extension}", *NAME));
    let lock = File::options().create(true).append(true).open(file("lock")).map_err(io)?;
    let locked = tokio::time::timeout(END_TIMEOUT, async {
        while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            tokio::time::sleep(LOCK_INTERVAL).await;
        }
    });
    locked.await.map_err(|_| failed("the previous worker does not respond".into()))?;
    files::replace(&file("py"), SCRIPT.as_bytes()).map_err(io)?;
    let log = File::create(file("log")).map_err(io)?;
    let mut child = Command::new(environment.programs().join("python"))
        .arg("-I")
        .arg(file("py"))
        .arg(format!("{}.socket", *NAME))
        .arg(idle.as_secs_f64().to_string())
        .args(MODULES)
        .args(PACKAGES.iter().filter(|(package, _)| has_package(environment, package)).map(|(_, module)| module))
        .env_clear()
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .current_dir(&environment.folder)
        .stdin(Stdio::from(lock))
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(io)?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        let _ = tokio::time::timeout(START_TIMEOUT, output.read_line(&mut line)).await; // an incomplete line is handled below
        PIPES.lock().insert(environment.folder.clone(), output);
    }
    if line.trim_end() == "ready" {
        return connect(&environment.folder).await.map_err(io);
    }
    let _ = child.kill().await; // fails if it has ended by itself
    let log = std::fs::read_to_string(file("log")).unwrap_or_default();
    Err(failed(crate::launch::end_of(log.trim(), 2000).to_owned()))
}

fn has_package(environment: &Environment, package: &str) -> bool {
    let libraries = std::fs::read_dir(environment.venv().join("lib")).into_iter().flatten().flatten();
    libraries.into_iter().any(|library| library.path().join("site-packages").join(package).is_dir())
}
