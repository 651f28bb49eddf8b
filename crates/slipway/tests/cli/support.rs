//! The binary in a folder of its own, and a server of it on free ports.

use std::fs::File;
use std::io::{Read, Seek};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use axum::body::Body;
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything; a test that needs it all fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes of an answer.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;

/// Asks `check` until it has an answer.
///
/// # Panics
/// When it has none within [`PATIENCE`].
pub(crate) fn wait_until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// Stdout as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Stderr in one line: reports are wrapped to the width of a terminal.
    pub(crate) fn talk(&self) -> String {
        let words = self.stderr.split_whitespace().filter(|word| !matches!(*word, "│" | "·"));
        words.collect::<Vec<_>>().join(" ")
    }

    /// Itself, if it ended with this code.
    pub(crate) fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// A folder of its own, in which commands are carried out with nothing of this machine's configuration.
pub(crate) struct Place {
    folder: TempDir,
    variables: Vec<(String, String)>,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), variables: Vec::new() }
    }

    /// One whose commands find the library that simulates GPUs, which cargo built beside this test.
    pub(crate) fn with_simulated_gpus() -> Self {
        let mut place = Self::new();
        let library = std::env::current_exe().unwrap().with_file_name("libslipway_fake_nvml.so");
        assert!(library.exists(), "{} is not there", library.display());
        place.set("SLIPWAY_NVML_LIB", library.to_str().unwrap());
        place
    }

    /// Commands of this place have this variable.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// The folder that commands start in.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The state folder.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder().join("home")
    }

    /// Writes a file, and the folders above it.
    pub(crate) fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.folder().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.folder().join(path)).unwrap()
    }

    /// The command, which may still be changed.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slipway"));
        command.args(arguments).current_dir(self.folder()).stdin(Stdio::null());
        command.env_clear().env("HOME", self.folder()).env("SLIPWAY_HOME", self.home());
        for inherited in ["PATH", "TMPDIR", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(inherited) {
                command.env(inherited, value);
            }
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        self.begin(arguments).wait()
    }

    /// Starts a command.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments))
    }
}

/// A command that goes on; its output is kept in files, so that it never waits for a reader.
pub(crate) struct Running {
    process: Child,
    stdout: File,
    stderr: File,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        Self { process: command.spawn().unwrap(), stdout, stderr }
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Done {
        let status = wait_until("the command ends", || self.process.try_wait().unwrap());
        let text = |file: &mut File| {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).expect("it prints UTF-8");
            text
        };
        let code = status.code().expect("it ends by itself");
        Done { code, stdout: text(&mut self.stdout), stderr: text(&mut self.stderr) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill(); // It has ended, unless the test has failed.
        let _ = self.process.wait(); // A killed child always ends.
    }
}

/// Answers of a server.
static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());
static HTTP: LazyLock<Client<HttpConnector, Body>> =
    LazyLock::new(|| Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http());

/// A status and a body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: axum::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null when it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Its JSON, if the status is this one.
    pub(crate) fn with_status(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }
}

/// A request with all that it is made of.
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a str,
    pub(crate) url: String,
    pub(crate) headers: Vec<(&'a str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Ask<'_> {
    /// Sends it; an error when the connection fails.
    pub(crate) fn send(self) -> Result<Answer, String> {
        let mut request = axum::http::Request::builder().method(self.method).uri(&self.url);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Body::from(self.body)).unwrap();
        RUNTIME.block_on(async {
            let call = async {
                let answer = HTTP.request(request).await.map_err(|e| e.to_string())?;
                let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
                let body = Limited::new(answer.into_body(), MAX_RESPONSE_BYTES).collect().await;
                let body = body.map_err(|e| e.to_string())?.to_bytes().to_vec();
                Ok(Answer { status, headers, body })
            };
            tokio::time::timeout(PATIENCE, call).await.map_err(|e| e.to_string())?
        })
    }
}

/// Where a server listens.
#[derive(Debug, Clone, serde::Deserialize)]
pub(crate) struct Addresses {
    pub(crate) pid: u32,
    pub(crate) control: SocketAddr,
    pub(crate) inference: SocketAddr,
}

/// A server on free ports, which is killed when the test is over.
pub(crate) struct Server {
    pub(crate) place: Place,
    options: Vec<String>,
    process: Option<Child>,
    addresses: Option<Addresses>,
    token: Option<String>,
}

impl Server {
    /// Starts one with a state folder of its own.
    pub(crate) fn start() -> Self {
        Self::start_in(Place::new(), &[])
    }

    /// Starts one in this place with these options.
    pub(crate) fn start_in(place: Place, options: &[&str]) -> Self {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        let mut server = Self { place, options, process: None, addresses: None, token: None };
        server.restart();
        server
    }

    /// Starts it again after it was stopped or killed.
    pub(crate) fn restart(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let log = std::fs::File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut words = vec!["up", "--listen", "127.0.0.1:0", "--inference-listen", "127.0.0.1:0"];
        words.extend(["--grpc-listen", "127.0.0.1:0"]);
        words.extend(self.options.iter().map(String::as_str));
        let mut command = self.place.command(&words);
        let mut process = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let file = self.place.home().join("server.json");
        let addresses = wait_until("the server listens", || {
            if let Some(status) = process.try_wait().unwrap() {
                panic!("the server ended with {status}: {}", self.log());
            }
            let addresses: Addresses = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
            (addresses.pid == process.id()).then_some(addresses)
        });
        self.process = Some(process);
        self.addresses = Some(addresses);
        // A server writes the token that it asks for into its state folder, unless it was given a file of tokens.
        let token = std::fs::read_to_string(self.place.home().join("token")).ok();
        self.token = token.map(|t| t.trim().to_owned()).or(self.token.take());
        wait_until("the server is ready", || (self.call("GET", "/readyz", b"").status == 200).then_some(()));
    }

    /// Requests carry this token from now on.
    pub(crate) fn use_token(&mut self, token: &str) {
        self.token = Some(token.to_owned());
    }

    fn log_file(&self) -> PathBuf {
        self.place.folder().join("server.log")
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub(crate) fn addresses(&self) -> &Addresses {
        self.addresses.as_ref().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addresses().control)
    }

    /// A request to the control plane, as whoever holds the token.
    pub(crate) fn ask<'a>(&self, method: &'a str, path: &str) -> Ask<'a> {
        let mut headers = vec![("content-type", "application/json".to_owned())];
        headers.extend(self.token.iter().map(|token| ("authorization", format!("Bearer {token}"))));
        Ask { method, url: self.url() + path, headers, body: Vec::new() }
    }

    /// Sends a request that may fail because the server was killed.
    pub(crate) fn try_call(&self, method: &str, path: &str, body: &[u8]) -> Result<Answer, String> {
        Ask { body: body.to_vec(), ..self.ask(method, path) }.send()
    }

    pub(crate) fn call(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        self.try_call(method, path, body).unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call("GET", path, b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, body.to_string().as_bytes())
    }

    /// Runs a client command on its state folder.
    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        self.place.run(arguments)
    }

    /// Sends a signal, such as `TERM`, without waiting for what comes of it.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let process = self.process.as_ref().expect("it runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(process), signal).unwrap();
    }

    /// Kills it as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Asks it to stop, and waits.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.ended()
    }

    /// Waits for it to end by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("it runs");
        wait_until("the server ends", || process.try_wait().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill(); // It may have ended by itself.
            let _ = process.wait(); // A killed child always ends.
        }
    }
}
