//! `slipway`: the command line. It parses, calls the server (or the same routers in this process when none runs),
//! and prints. It holds no rule of any domain.

mod cli;
mod client;
mod commands;
mod credentials;
mod output;

use std::process::ExitCode;

use clap::Parser;
use slipway_core::Explain;
use slipway_core::config::{Config, Origin};

/// What a command ends with.
enum Failure {
    /// A refused or failed request, or a local failure: exit code 1, 4 or 5.
    Error { message: String, code: &'static str, hint: Option<String>, exit: u8 },
    /// Something was found, and printed: exit code 3.
    Findings,
}

impl Failure {
    /// An error of the catalogue, which says what helps.
    fn known(message: impl Into<String>, code: &'static str, exit: u8) -> Self {
        let hint = slipway_core::explain::find(code).map(|topic| topic.remedy.to_owned());
        Self::Error { message: message.into(), code, hint, exit }
    }

    /// Shows it to a person, unless it was printed already; the exit code that goes with it.
    fn show(self) -> u8 {
        match self {
            Self::Findings => 3,
            Self::Error { message, code, hint, exit } => {
                // Messages quote what other machines and files say, which must not act on the terminal.
                let (message, hint) = (output::lines(&message), hint.map(|hint| output::lines(&hint)));
                eprintln!("{:?}", miette::Report::new(Report { message, code, hint }));
                exit
            }
        }
    }

    /// Somebody was asked, and said no.
    fn declined(code: &'static str) -> Self {
        let hint = Some("Say -y to apply without being asked.".into());
        Self::Error { message: "nothing was changed".into(), code, hint, exit: 1 }
    }
}

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Self {
        let code = error.code();
        let exit = match code {
            "server.unreachable" | "cluster.unreachable" | "tls.certificate" => 5,
            "auth.required" | "auth.forbidden" | "auth.credentials" | "cluster.untrusted" | "tls.plaintext" => 4,
            "config.invalid" | "config.project" => 2,
            _ => 1,
        };
        Self::Error { message: error.to_string(), code, hint: error.hint(), exit }
    }
}

/// The report that miette draws.
#[derive(Debug)]
struct Report {
    message: String,
    code: &'static str,
    hint: Option<String>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for Report {}
impl miette::Diagnostic for Report {
    fn code<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        Some(Box::new(self.code))
    }
    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        let more = format!("`slipway explain {}` tells more.", self.code);
        Some(Box::new(self.hint.as_ref().map_or(more.clone(), |h| format!("{h}\n{more}"))))
    }
}

fn main() -> ExitCode {
    let args = cli::Cli::parse();
    // Reports are not wrapped: a path or a command that is broken into lines can be neither copied nor searched for.
    // The call fails when a hook is set already, and here is the only one.
    let _ = miette::set_hook(Box::new(|_| Box::new(miette::MietteHandlerOpts::new().wrap_lines(false).build())));
    let (config, problem) = commands::settings(&args);
    log(&args, &config);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if matches!(args.command, cli::Command::Node(_)) {
        // The agent waits most of its life; a thread for each of a node's hundred cores would only hold memory.
        builder.worker_threads(2);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start the asynchronous runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let file = args.global.output.file.clone();
    if file.is_some() {
        output::keep();
    }
    let result = runtime.block_on(commands::run(args, config, problem));
    // What was printed counts even if it is told that something was found; that it cannot be kept counts more than that.
    let result = match file.map_or(Ok(()), |file| output::write(&file)) {
        Err(unwritten) if !matches!(result, Err(Failure::Error { .. })) => Err(unwritten),
        _ => result,
    };
    // Threads that still read or compute must not hold the process back.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.show()),
    }
}

/// Starts logging to stderr: as `$SLIPWAY_LOG` says, else as the flags say, else as a configuration file says.
fn log(args: &cli::Cli, config: &Config) {
    let configured = |from: fn(&Origin) -> bool| {
        config.origin("log").filter(|origin| from(origin)).and_then(|_| config.get("log")).map(str::to_owned)
    };
    let default = match (args.global.quiet, args.global.verbose) {
        (true, _) => "error",
        (_, 0) if matches!(args.command, cli::Command::Up(_) | cli::Command::Node(_) | cli::Command::Controller(_)) => {
            "info"
        }
        (_, 0) => "warn",
        (_, 1) => "info",
        _ => "debug",
    };
    let flagged = args.global.quiet || args.global.verbose > 0;
    let filter = configured(|origin| matches!(origin, Origin::Environment(_)))
        .or_else(|| if flagged { None } else { configured(|o| matches!(o, Origin::User(_) | Origin::Project(_))) });
    let filter = tracing_subscriber::EnvFilter::new(filter.unwrap_or_else(|| default.to_owned()));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let json = std::env::var(slipway_core::env::LOG_FORMAT).is_ok_and(|f| f == "json");
    if json { builder.json().init() } else { builder.with_ansi(output::colour()).init() }
}
