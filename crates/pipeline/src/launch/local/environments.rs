//! Environments of Python steps: one for each Python version and list of `pip` arguments, created once, shared by all steps that ask for
//! the same, and never changed again.
//!
//! An environment is complete when its `environment.json` exists. It is created under a lock that the installing processes inherit, so
//! that a server which is killed meanwhile leaves nothing that a later server takes for complete, or changes at the same time.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{BoxFuture, FutureExt, Shared};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use slipway_core::{files, hex};
use slipway_exec::local::guard;

use super::interpreter::{self, Version};
use super::programs;

/// Timeout of one `pip install`.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(1800);
/// Interval at which the use of an environment is recorded.
const USE_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum bytes of an installer's output in an error.
const MAX_ERROR_BYTES: usize = 2000;
/// The file that marks a complete environment.
const RECORD: &str = "environment.json";
/// Options of `pip install` that `uv pip install` has as well, with the same meaning.
const OPTIONS_OF_UV: &[&str] =
    &["--no-deps", "--index-url", "-i", "--extra-index-url", "--find-links", "-f", "--upgrade", "-U"];

/// What an environment is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Request {
    /// Version of Python; any if unset.
    pub(super) version: Option<Version>,
    /// An environment of this machine whose packages are there as well.
    pub(super) base: Option<PathBuf>,
    /// Arguments of each `pip install`.
    pub(super) installs: Vec<Vec<String>>,
}

impl Request {
    /// Name of the environment's folder. The order of arguments does not matter.
    fn key(&self) -> String {
        let mut sorted = self.clone();
        sorted.installs.iter_mut().for_each(|arguments| arguments.sort());
        let text = serde_json::to_vec(&sorted).unwrap_or_default();
        let digest = ring::digest::digest(&ring::digest::SHA256, &text);
        hex::encode(&digest.as_ref()[..12])
    }
}

/// Content of `environment.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    request: Request,
    /// A note for the log of each step.
    note: Option<String>,
}

/// A complete environment. It is not removed as long as it is held.
#[derive(Debug)]
pub(super) struct Environment {
    pub(super) folder: PathBuf,
    pub(super) note: Option<String>,
    /// Held while a worker is started.
    pub(super) start: tokio::sync::Mutex<()>,
    /// When its use was last recorded.
    used: Mutex<Instant>,
}

impl Environment {
    /// Whether it still exists. Records from time to time that it is used, for the removal of unused environments.
    fn renew(&self) -> bool {
        let record = self.folder.join(RECORD);
        let mut used = self.used.lock();
        if used.elapsed() < USE_INTERVAL {
            return record.exists();
        }
        *used = Instant::now();
        File::options().append(true).open(record).and_then(|file| file.set_modified(SystemTime::now())).is_ok()
    }

    /// The folder of its programs.
    pub(super) fn programs(&self) -> PathBuf {
        self.venv().join("bin")
    }

    pub(super) fn venv(&self) -> PathBuf {
        self.folder.join("venv")
    }
}

type Pending = Shared<BoxFuture<'static, Result<Arc<Environment>, String>>>;

#[derive(Debug, Default)]
struct State {
    /// The environments that this process has used. One that something else refers to is in use.
    ready: HashMap<String, Arc<Environment>>,
    pending: HashMap<String, Pending>,
}

/// The environments in a folder; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Environments {
    folder: PathBuf,
    /// Number of environments above which those that were not used for the longest time are removed.
    limit: usize,
    /// This binary, which guards installers.
    binary: PathBuf,
    /// Variables of installers.
    variables: Arc<Vec<(OsString, OsString)>>,
    state: Arc<Mutex<State>>,
}

impl Environments {
    pub(super) fn new(folder: PathBuf, limit: usize, binary: PathBuf, variables: Vec<(OsString, OsString)>) -> Self {
        Self { folder, limit, binary, variables: Arc::new(variables), state: Arc::default() }
    }

    /// The environment for a request, which is created if it does not exist. Dropping the future does not stop the creation.
    ///
    /// # Errors
    /// The reason, with the last lines of the installer's output.
    pub(super) async fn get(&self, request: &Request) -> Result<Arc<Environment>, String> {
        let key = request.key();
        let pending = {
            let mut state = self.state.lock();
            if let Some(found) = state.ready.get(&key).filter(|found| found.renew()) {
                return Ok(Arc::clone(found));
            }
            let create = || self.creation(key.clone(), request.clone());
            state.pending.entry(key.clone()).or_insert_with(create).clone()
        };
        pending.await
    }

    fn creation(&self, key: String, request: Request) -> Pending {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let created = this.open_or_create(&key, request).await.map(Arc::new);
            let mut state = this.state.lock();
            state.pending.remove(&key);
            if let Ok(environment) = &created {
                state.ready.insert(key, Arc::clone(environment));
            }
            drop(state);
            created
        });
        async move { task.await.unwrap_or_else(|error| Err(format!("creating the environment failed: {error}"))) }
            .boxed()
            .shared()
    }

    async fn open_or_create(&self, key: &str, request: Request) -> Result<Environment, String> {
        let io = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        let folder = self.folder.join(key);
        let lock = {
            let (root, path) = (self.folder.clone(), self.folder.join(format!("{key}.lock")));
            let locked = tokio::task::spawn_blocking(move || {
                std::fs::create_dir_all(root)?;
                let lock = File::options().create(true).append(true).open(path)?;
                flock(&lock, FlockOperation::LockExclusive)?;
                Ok(lock)
            });
            locked.await.map_err(|e| e.to_string())?.map_err(io("locking the environment"))?
        };
        let record = match read_record(&folder) {
            Some(record) => record,
            None => {
                self.remove_unused(key).await;
                let folder = folder.clone();
                let note = self.create(&folder, &request, &lock).await?;
                let record = Record { request, note };
                let text = serde_json::to_vec_pretty(&record).map_err(|error| error.to_string())?;
                files::replace(&folder.join(RECORD), &text).map_err(io("recording the environment"))?;
                record
            }
        };
        // The time of the last use, for the removal of unused environments. Best effort.
        let _ = File::options().append(true).open(folder.join(RECORD)).and_then(|f| f.set_modified(SystemTime::now()));
        let used = Mutex::new(Instant::now());
        Ok(Environment { folder, note: record.note, start: tokio::sync::Mutex::default(), used })
    }

    /// Creates an environment in a folder. Returns a note for the log of its steps.
    async fn create(&self, folder: &Path, request: &Request, lock: &File) -> Result<Option<String>, String> {
        let io = |error: std::io::Error| format!("creating the environment: {error}");
        if folder.exists() {
            std::fs::remove_dir_all(folder).map_err(io)?; // the remains of a killed server
        }
        std::fs::create_dir_all(folder).map_err(io)?;
        let uv = programs::find("uv");
        let (python, note) = match &request.base {
            Some(base) => {
                let program = base.join("bin/python");
                let found = interpreter::probe(&program).await;
                (found.ok_or_else(|| format!("{} is not a Python interpreter", program.display()))?, None)
            }
            None => interpreter::find(request.version, uv.as_deref(), &self.binary).await?,
        };
        let venv = folder.join("venv");
        let command = match &uv {
            Some(uv) => words(uv, &["venv", "--quiet", "--no-project", "--seed", "--python"], &[&python.path, &venv]),
            None => words(&python.path, &["-m", "venv"], &[&venv]),
        };
        self.run("creating the virtual environment", command, &[], lock).await?;
        if let Some(base) = &request.base {
            link_packages(base, &venv, python.version).map_err(io)?;
        }
        let program = venv.join("bin/python");
        let settings = match &uv {
            Some(_) if request.installs.iter().flatten().all(|argument| is_understood_by_uv(argument)) => {
                let command = words(&program, &["-m", "pip", "config", "list"], &[]);
                settings_of_uv(&self.run("reading the configuration of pip", command, &[], lock).await?)
            }
            _ => None,
        };
        for arguments in &request.installs {
            let command = match (&uv, &settings) {
                (Some(uv), Some(_)) => words(uv, &["pip", "install", "--quiet", "--python"], &[&program]),
                _ => words(
                    &program,
                    &["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"],
                    &[],
                ),
            };
            let command = command.into_iter().chain(arguments.iter().map(OsString::from)).collect();
            let what = format!("pip install {}", arguments.join(" "));
            self.run(&what, command, settings.as_deref().unwrap_or_default(), lock).await?;
        }
        Ok(note)
    }

    /// Runs an installer and returns its standard output. It ends with this process, and inherits the lock, so that nothing else changes
    /// the environment until it has.
    async fn run(
        &self,
        what: &str,
        words: Vec<OsString>,
        settings: &[(&str, String)],
        lock: &File,
    ) -> Result<String, String> {
        let lock = lock.try_clone().map_err(|error| format!("{what}: {error}"))?;
        let mut command = guard::command(&self.binary, &words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(lock))
            .current_dir(&self.folder);
        let output = guard::output(&mut command, INSTALL_TIMEOUT).await;
        let output = output.map_err(|error| format!("{what}: {}: {error}", words[0].display()))?;
        let output = output.ok_or_else(|| format!("{what}: timed out after {} s", INSTALL_TIMEOUT.as_secs()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        let reason = [text(&output.stderr), text(&output.stdout)].into_iter().find(|t| !t.trim().is_empty());
        Err(format!("{what}: {}", crate::launch::end_of(reason.unwrap_or_default().trim(), MAX_ERROR_BYTES)))
    }

    /// Removes environments beyond the limit, those that were not used for the longest time first; never one that is in use. Best effort:
    /// what cannot be removed only needs disk space.
    async fn remove_unused(&self, except: &str) {
        let this = self.clone();
        let except = except.to_owned();
        let _ = tokio::task::spawn_blocking(move || {
            let mut found: Vec<(SystemTime, String)> = std::fs::read_dir(&this.folder)?
                .flatten()
                .filter_map(|entry| {
                    let used = std::fs::metadata(entry.path().join(RECORD)).ok()?.modified().ok()?;
                    Some((used, entry.file_name().into_string().ok()?))
                })
                .filter(|(_, key)| *key != except)
                .collect();
            found.sort();
            let excess = (found.len() + 1).saturating_sub(this.limit);
            for (_, key) in found.into_iter().take(excess) {
                this.remove(&key)?;
            }
            Ok::<_, std::io::Error>(())
        })
        .await;
    }

    fn remove(&self, key: &str) -> std::io::Result<()> {
        let lock = File::options().append(true).open(self.folder.join(format!("{key}.lock")))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        // No step of this process can begin to use it while the state is locked and its record is deleted.
        let mut state = self.state.lock();
        let folder = self.folder.join(key);
        let is_held = state.ready.get(key).is_some_and(|environment| Arc::strong_count(environment) > 1);
        if is_held || state.pending.contains_key(key) || super::workers::has_worker(&folder) {
            return Ok(());
        }
        state.ready.remove(key);
        std::fs::remove_file(folder.join(RECORD))?;
        drop(state);
        std::fs::remove_dir_all(&folder)
    }
}

fn read_record(folder: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(folder.join(RECORD)).ok()?).ok()
}

fn words(program: &Path, arguments: &[&str], paths: &[&Path]) -> Vec<OsString> {
    let arguments = arguments.iter().map(OsString::from);
    std::iter::once(program.into()).chain(arguments).chain(paths.iter().map(|path| OsString::from(*path))).collect()
}

/// Makes the packages of an environment of this machine importable in another one.
fn link_packages(base: &Path, venv: &Path, version: Version) -> std::io::Result<()> {
    let packages = |folder: &Path| folder.join(format!("lib/python{}.{}/site-packages", version.0, version.1));
    let text = format!("{}\n", packages(base).display());
    std::fs::write(packages(venv).join("base.pth"), text)
}

/// Whether `uv pip install` understands an argument: a requirement, the value of an option, or an option with the same meaning.
fn is_understood_by_uv(argument: &str) -> bool {
    !argument.starts_with('-') || OPTIONS_OF_UV.iter().any(|option| argument.split('=').next() == Some(option))
}

/// The configuration of `pip`, as `pip config list` prints it, as variables of `uv`; `None` if it has settings without an equivalent.
fn settings_of_uv(config: &str) -> Option<Vec<(&'static str, String)>> {
    let mut settings = Vec::new();
    for line in config.lines() {
        let (name, value) = line.split_once('=')?;
        let value = value.trim_matches(['\'', '"']).replace("\\n", " ").trim().to_owned();
        let variable = match name.rsplit_once('.')?.1 {
            "index-url" => "UV_DEFAULT_INDEX",
            "extra-index-url" => "UV_INDEX",
            "find-links" => "UV_FIND_LINKS",
            "trusted-host" => "UV_INSECURE_HOST",
            "cert" => "SSL_CERT_FILE",
            "default-timeout" | "timeout" => "UV_HTTP_TIMEOUT",
            "disable-pip-version-check" | "no-warn-script-location" | "root-user-action" | "no-cache-dir" => continue,
            _ => return None,
        };
        let value = if variable == "UV_FIND_LINKS" { value.replace(' ', ",") } else { value };
        settings.push((variable, value));
    }
    Some(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(installs: &[&[&str]]) -> Request {
        let owned = |list: &&[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        Request { version: Some((3, 11)), base: None, installs: installs.iter().map(owned).collect() }
    }

    #[test]
    fn environments_are_the_same_if_their_arguments_are() {
        let key = |installs: &[&[&str]]| request(installs).key();
        assert_eq!(key(&[&["a", "b"]]), key(&[&["b", "a"]]));
        assert_ne!(key(&[&["a", "b"]]), key(&[&["a"], &["b"]]));
        assert_ne!(key(&[&["a"]]), Request { version: Some((3, 12)), ..request(&[&["a"]]) }.key());
    }

    #[test]
    fn configuration_of_pip_is_translated_for_uv_or_left_to_pip() {
        let config = ":env:.cert='/ca.crt'\nglobal.index-url='https://index/simple'\n:env:.find-links='/a /b'\n";
        let settings = settings_of_uv(config).unwrap();
        assert!(settings.contains(&("UV_DEFAULT_INDEX", "https://index/simple".into())));
        assert!(settings.contains(&("UV_FIND_LINKS", "/a,/b".into())));
        assert!(settings_of_uv("global.constraint='c.txt'").is_none());
        assert!(is_understood_by_uv("--index-url=x") && !is_understood_by_uv("--no-binary"));
    }
}
