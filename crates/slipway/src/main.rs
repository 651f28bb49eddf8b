//! The `slipway` command line. It parses arguments, calls the server (or, if none is running, the same routers in this process) and
//! prints the result. It contains no domain logic.

// These macros panic when the reader of a pipe is gone; `output` writes without a panic.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod client;
mod client_error;
mod commands;
mod credentials;
mod output;
mod running_server;

use std::process::ExitCode;

use clap::Parser;
use slipway_core::Explain;
use slipway_core::config::{Config, Origin};

/// The unsuccessful outcome of a command.
enum Failure {
    /// A rejected or failed request, or a local failure: exit code 1, 2, 4 or 5.
    Error { message: String, code: &'static str, hint: Option<String>, exit: u8 },
    /// The command succeeded and printed findings: exit code 3.
    Findings,
}

impl Failure {
    /// An error with a code and a remedy from the catalogue.
    fn with_code(message: impl Into<String>, code: &'static str, exit: u8) -> Self {
        let hint = slipway_core::explain::find(code).map(|topic| topic.remedy.to_owned());
        Self::Error { message: message.into(), code, hint, exit }
    }

    /// Reports an error on stderr (findings are already printed) and returns the exit code.
    fn report(self) -> u8 {
        match self {
            // DVC reports findings with 1.
            Self::Findings => {
                if commands::data::is_called_dvc() {
                    1
                } else {
                    3
                }
            }
            Self::Error { message, code, hint, exit } => {
                // Messages quote text from other machines and files, which must not control the terminal.
                let (message, hint) = (output::escape_lines(&message), hint.map(|hint| output::escape_lines(&hint)));
                output::print_report(&format!("{:?}\n", miette::Report::new(Report { message, code, hint })));
                exit
            }
        }
    }

    /// The user did not confirm a change.
    fn declined(code: &'static str) -> Self {
        let hint = Some("Pass -y to apply without a prompt.".into());
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

/// The error report that miette renders.
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
        let more = format!("`slipway explain {}` has more information.", self.code);
        Some(Box::new(self.hint.as_ref().map_or(more.clone(), |h| format!("{h}\n{more}"))))
    }
}

fn main() -> ExitCode {
    let parsed = commands::data::arguments().map(cli::Cli::try_parse_from);
    let args = match parsed {
        Ok(Ok(args)) => args,
        // The original exits with 254 for a wrong command line.
        Ok(Err(error)) if error.use_stderr() && commands::data::is_called_dvc() => {
            let _ = error.print(); // There is no other place to report that stderr is closed.
            return ExitCode::from(254);
        }
        Ok(Err(error)) => error.exit(),
        Err(error) => {
            output::print_note(format_args!("--cd: {error}"));
            return ExitCode::from(254);
        }
    };
    // Reports are not wrapped, so that paths and commands in them can be copied and searched for. `set_hook` fails only if a hook is
    // already set, and this is the only call.
    let _ = miette::set_hook(Box::new(|_| Box::new(miette::MietteHandlerOpts::new().wrap_lines(false).build())));
    let (config, problem) = commands::read_config(&args);
    init_logging(&args, &config);
    slipway_gpu::amd::set_simulator(slipway_fake_amd_smi::simulator());
    slipway_gpu::nvml::set_simulator(slipway_fake_nvml::simulator());
    slipway_gpu::accept::accelerator::set_simulator(slipway_fake_nvml::simulate);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if matches!(args.command, cli::Command::Node(_)) {
        // The node agent is mostly idle; one thread for each core of a large node would only waste memory.
        builder.worker_threads(2);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::print_note(format_args!("cannot start the asynchronous runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let file = args.global.output.file.clone();
    if file.is_some() {
        output::start_buffering();
    }
    let result = runtime.block_on(commands::run(args, config, problem));
    // The output file is also written when there are findings, and a write error replaces them; an earlier error is kept.
    let written = file.map_or(Ok(()), |file| output::write_buffer(&file)).and_then(|()| output::check_stdout());
    let result = match written {
        Err(unwritten) if !matches!(result, Err(Failure::Error { .. })) => Err(unwritten),
        _ => result,
    };
    // Do not wait for threads that are still reading or computing.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.report()),
    }
}

/// Starts logging to stderr. The level comes from `$SLIPWAY_LOG`, else from the flags, else from a configuration file.
fn init_logging(args: &cli::Cli, config: &Config) {
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
    // An error of the log would be reported with `eprintln!`, which panics if the reader of the log is gone.
    let builder = builder.log_internal_errors(false);
    let json = std::env::var(slipway_core::env::LOG_FORMAT).is_ok_and(|f| f == "json");
    if json { builder.json().init() } else { builder.with_ansi(output::colour()).init() }
}
