//! Runs the binary in a temporary folder, and a server of it on free ports.

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

/// Time limit of every wait; a test that exceeds it fails.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum size of a response.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;

/// Polls `check` until it returns a value.
///
/// # Panics
/// If it returns none within [`TIMEOUT`].
pub(crate) fn wait_until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The output and the exit code of a command.
#[derive(Debug)]
pub(crate) struct CommandOutput {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl CommandOutput {
    /// Parses stdout as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Stderr on one line, without the frame of error reports.
    pub(crate) fn message(&self) -> String {
        let words = self.stderr.split_whitespace().filter(|word| !matches!(*word, "│" | "·"));
        words.collect::<Vec<_>>().join(" ")
    }

    /// Asserts the exit code.
    pub(crate) fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// A temporary folder in which commands run without the configuration of this machine.
pub(crate) struct Sandbox {
    folder: TempDir,
    variables: Vec<(String, String)>,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), variables: Vec::new() }
    }

    /// Sets an environment variable for all commands of this sandbox.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(existing, _)| existing != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// The current folder of commands.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The state folder.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder().join("home")
    }

    /// Writes a file, creating its parent folders.
    pub(crate) fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.folder().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.folder().join(path)).unwrap()
    }

    /// Builds a command, which the caller may still change.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_slipway")), arguments)
    }

    /// Builds a command of another copy of the binary.
    pub(crate) fn command_of(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
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

    /// Runs a command and waits for its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> CommandOutput {
        self.spawn(arguments).wait()
    }

    /// Starts a command without waiting for its end.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments))
    }
}

/// A running command. Its output goes to files, so that it never blocks on a full pipe.
pub(crate) struct Running {
    process: Child,
    stdout: File,
    stderr: File,
}

impl Running {
    pub(crate) fn start(command: Command) -> Self {
        Self::start_with(command, |_| {})
    }

    /// Starts a command after `change`, which may replace its streams; the output of a replaced stream is not captured.
    pub(crate) fn start_with(mut command: Command, change: impl FnOnce(&mut Command)) -> Self {
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        change(&mut command);
        Self { process: command.spawn().unwrap(), stdout, stderr }
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Waits for the end of the command.
    pub(crate) fn wait(mut self) -> CommandOutput {
        let status = wait_until("the command ends", || self.process.try_wait().unwrap());
        let text = |file: &mut File| {
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).expect("the output is UTF-8");
            text
        };
        let code = status.code().expect("the command is not killed by a signal");
        CommandOutput { code, stdout: text(&mut self.stdout), stderr: text(&mut self.stderr) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill(); // An error means that the process has already ended.
        let _ = self.process.wait(); // A killed child always ends.
    }
}

/// The runtime of [`HTTP`].
static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());
static HTTP: LazyLock<Client<HttpConnector, Body>> =
    LazyLock::new(|| Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http());

/// An HTTP response with its complete body.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: axum::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, or null if it is not JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Asserts the status and returns the body as JSON.
    pub(crate) fn with_status(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }
}

/// An HTTP request.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) url: String,
    pub(crate) headers: Vec<(&'a str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request<'_> {
    /// Sends the request. Returns an error if the connection fails or the time limit is exceeded.
    pub(crate) fn send(self) -> Result<Response, String> {
        let mut request = axum::http::Request::builder().method(self.method).uri(&self.url);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Body::from(self.body)).unwrap();
        RUNTIME.block_on(async {
            let call = async {
                let response = HTTP.request(request).await.map_err(|e| e.to_string())?;
                let (status, headers) = (response.status().as_u16(), response.headers().clone());
                let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES).collect().await;
                let body = body.map_err(|e| e.to_string())?.to_bytes().to_vec();
                Ok(Response { status, headers, body })
            };
            tokio::time::timeout(TIMEOUT, call).await.map_err(|e| e.to_string())?
        })
    }
}

/// The addresses of a running server, from `server.json`.
#[derive(Debug, Clone, serde::Deserialize)]
pub(crate) struct Addresses {
    pub(crate) pid: u32,
    pub(crate) control: SocketAddr,
    pub(crate) inference: SocketAddr,
    pub(crate) grpc: SocketAddr,
}

/// A server on free ports; killed when dropped.
pub(crate) struct Server {
    pub(crate) sandbox: Sandbox,
    options: Vec<String>,
    process: Option<Child>,
    addresses: Option<Addresses>,
    token: Option<String>,
}

impl Server {
    /// Starts a server in a new sandbox.
    pub(crate) fn start() -> Self {
        Self::start_in(Sandbox::new(), &[])
    }

    /// Starts a server in this sandbox with these options of `slipway up`.
    pub(crate) fn start_in(sandbox: Sandbox, options: &[&str]) -> Self {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        let mut server = Self { sandbox, options, process: None, addresses: None, token: None };
        server.restart();
        server
    }

    /// Starts the server again after it was stopped or killed.
    pub(crate) fn restart(&mut self) {
        assert!(self.process.is_none(), "the server is running");
        let log = std::fs::File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut words = vec!["up", "--listen", "127.0.0.1:0", "--inference-listen", "127.0.0.1:0"];
        words.extend(["--grpc-listen", "127.0.0.1:0"]);
        words.extend(self.options.iter().map(String::as_str));
        let mut command = self.sandbox.command(&words);
        let mut process = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let file = self.sandbox.home().join("server.json");
        let addresses = wait_until("the server listens", || {
            if let Some(status) = process.try_wait().unwrap() {
                panic!("the server ended with {status}: {}", self.log());
            }
            let addresses: Addresses = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
            (addresses.pid == process.id()).then_some(addresses)
        });
        self.process = Some(process);
        self.addresses = Some(addresses);
        // Without `--token-file`, the server writes its token to the state folder.
        let token = std::fs::read_to_string(self.sandbox.home().join("token")).ok();
        self.token = token.map(|t| t.trim().to_owned()).or(self.token.take());
        wait_until("the server is ready", || (self.call("GET", "/readyz", b"").status == 200).then_some(()));
    }

    /// Sets the token of the following requests.
    pub(crate) fn use_token(&mut self, token: &str) {
        self.token = Some(token.to_owned());
    }

    fn log_file(&self) -> PathBuf {
        self.sandbox.folder().join("server.log")
    }

    /// The log of the server.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub(crate) fn addresses(&self) -> &Addresses {
        self.addresses.as_ref().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addresses().control)
    }

    /// Builds a request to the control plane with the current token.
    pub(crate) fn request<'a>(&self, method: &'a str, path: &str) -> Request<'a> {
        let mut headers = vec![("content-type", "application/json".to_owned())];
        headers.extend(self.token.iter().map(|token| ("authorization", format!("Bearer {token}"))));
        Request { method, url: self.url() + path, headers, body: Vec::new() }
    }

    /// Sends a request. Returns an error if the connection fails, for instance because the server was killed.
    pub(crate) fn try_call(&self, method: &str, path: &str, body: &[u8]) -> Result<Response, String> {
        Request { body: body.to_vec(), ..self.request(method, path) }.send()
    }

    pub(crate) fn call(&self, method: &str, path: &str, body: &[u8]) -> Response {
        self.try_call(method, path, body).unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.call("GET", path, b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Response {
        self.call("POST", path, body.to_string().as_bytes())
    }

    /// Runs a client command in the server's sandbox.
    pub(crate) fn run(&self, arguments: &[&str]) -> CommandOutput {
        self.sandbox.run(arguments)
    }

    /// Sends a signal, such as `TERM`, without waiting for the effect.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let process = self.process.as_ref().expect("the server is running");
        rustix::process::kill_process(rustix::process::Pid::from_child(process), signal).unwrap();
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("the server is running");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Stops the server with SIGTERM and waits for its end.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait_for_exit()
    }

    /// Waits until the server exits.
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the server is running");
        wait_until("the server ends", || process.try_wait().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill(); // An error means that the process has already ended.
            let _ = process.wait(); // A killed child always ends.
        }
    }
}
