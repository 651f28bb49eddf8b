//! `up`, `down`, `status`.

use std::io::IsTerminal;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use slipway_core::home::Home;
use slipway_core::units;
use slipway_server::auth::read_home_token;
use slipway_server::{CertificateSource, Limits, Options, Server};
use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use crate::Failure;
use crate::client::running;
use crate::output::{Table, print, say};

fn address(context: &Context, key: &str) -> Result<SocketAddr, Failure> {
    let text = context.config.get(key).unwrap_or_default();
    text.to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next())
        .ok_or_else(|| Failure::known(format!("{key}: '{text}' is not HOST:PORT"), "listen.invalid", 2))
}

/// The values of a setting that is a list, separated by commas.
fn list(context: &Context, key: &str) -> Vec<String> {
    let text = context.config.get(key).unwrap_or_default();
    text.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect()
}

/// What is configured for TLS, if anything.
fn certificate(context: &Context) -> Result<Option<CertificateSource>, Failure> {
    let config = &context.config;
    let is_self_signed = match config.get("tls-self-signed") {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            return Err(Failure::known(format!("tls-self-signed: '{other}' is neither true nor false"), "tls.file", 2));
        }
    };
    match (config.get("tls-cert"), config.get("tls-key"), is_self_signed) {
        (None, None, false) => Ok(None),
        (None, None, true) => Ok(Some(CertificateSource::SelfSigned)),
        (Some(certificate), Some(key), false) => {
            Ok(Some(CertificateSource::Files { certificate: certificate.into(), key: key.into() }))
        }
        (.., true) => {
            Err(Failure::known("tls-self-signed and a certificate of your own exclude each other", "tls.file", 2))
        }
        _ => Err(Failure::known("tls-cert and tls-key need each other", "tls.file", 2)),
    }
}

fn limits(context: &Context) -> Result<Limits, Failure> {
    let mut limits = Limits::default();
    if let Some(text) = context.config.get("max-connections") {
        let count = text.parse().ok().filter(|count| (1..=1_000_000).contains(count));
        let wrong = || format!("max-connections: '{text}' is not a number from 1 to 1000000");
        limits.connections = count.ok_or_else(|| Failure::known(wrong(), "config.invalid", 2))?;
    }
    Ok(limits)
}

pub(super) async fn up(context: &Context, gateway_only: bool, no_auth: bool) -> Result<(), Failure> {
    // Before the limits are asked for: the connections of a port are a part of the descriptors.
    slipway_exec::local::descriptors::raise_limit();
    let options = Options {
        home: Home::at(context.config.get("home").unwrap_or_default()),
        stores: crate::client::stores(&context.config)?,
        control: address(context, "listen")?,
        inference: address(context, "inference-listen")?,
        grpc: address(context, "grpc-listen")?,
        gateway_only,
        token_file: context.config.get("token-file").map(Into::into),
        no_auth,
        run_environment: list(context, "run-environment"),
        hosts: list(context, "hosts"),
        certificate: certificate(context)?,
        limits: limits(context)?,
        runtime: context.config.get("runtime").unwrap_or("auto").parse()?,
        onnxruntime: context.config.get("onnxruntime").map(Into::into),
        cluster: super::in_cluster::InCluster::of_this_pod().await?,
    };
    let root = options.home.root().to_owned();
    let server = Server::bind(options).await?;
    let a = &server.addresses;
    if !context.global.quiet {
        say(format_args!("slipway {} is up, state in {}", a.version, root.display()));
        if gateway_only {
            say(format_args!("  probes, metrics  {}", a.control_url()));
        } else {
            say(format_args!("  UI and API       {}", a.control_url()));
        }
        say(format_args!("  inference, REST  {}/v2", a.inference_url()));
        say(format_args!("  inference, gRPC  {}{}", a.grpc, if a.tls { " (TLS)" } else { "" }));
        if let Some(fingerprint) = &a.fingerprint {
            say(format_args!("  certificate      sha256:{fingerprint}"));
        }
        if !gateway_only {
            say(format_args!("  MLflow clients:  export MLFLOW_TRACKING_URI={}", a.control_url()));
            if let Some(file) = server.own_certificate() {
                say(format_args!("                   export MLFLOW_TRACKING_SERVER_CERT_PATH={}", file.display()));
            }
        }
        if no_auth {
            say(
                "  no token is asked for (--no-auth): every user of this machine may read and change everything; runs are refused",
            );
        } else {
            // The token is shown to a person at a terminal; what goes into a log names the command that prints it.
            say(format_args!(
                "                   export MLFLOW_TRACKING_TOKEN=$(slipway token --home {})",
                root.display()
            ));
            if std::io::stderr().is_terminal()
                && !gateway_only
                && let Ok(token) = read_home_token(&Home::at(&root))
            {
                say(format_args!("  open the UI      {}", super::token::ui_link(a, &token)));
            }
        }
    }
    server.run(terminated()?).await?;
    Ok(())
}

/// Done when this process is asked to end.
pub(super) fn terminated() -> Result<impl Future<Output = ()>, Failure> {
    // Installing a handler fails only when the process has run out of descriptors; Ctrl-C then ends it at once.
    let (mut term, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(term), Ok(interrupt)) => (term, interrupt),
        (Err(e), _) | (_, Err(e)) => {
            return Err(Failure::Error { message: e.to_string(), code: "home.unusable", hint: None, exit: 1 });
        }
    };
    Ok(async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
    })
}

pub(super) async fn down(context: &Context) -> Result<(), Failure> {
    let home = Home::at(context.config.get("home").unwrap_or_default());
    let Some(addresses) = running(&home) else {
        say("nothing is running");
        return Ok(());
    };
    let Some(pid) = i32::try_from(addresses.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let refused = |e: rustix::io::Errno| Failure::Error {
        message: format!("process {} cannot be stopped: {e}", addresses.pid),
        code: "home.locked",
        hint: None,
        exit: 4,
    };
    kill_process(pid, Signal::TERM).map_err(refused)?;
    for _ in 0..300 {
        if test_kill_process(pid).is_err() {
            say("stopped");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(refused(rustix::io::Errno::TIMEDOUT))
}

pub(super) async fn status(context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let mut status: Value = client.get("/api/v1/status").await?;
    if let Some(a) = &client.addresses {
        status["control"] = json!(a.control);
        status["inference"] = json!(a.inference);
        status["grpc"] = json!(a.grpc);
        status["pid"] = json!(a.pid);
    }
    status["running"] = json!(!client.is_in_process());
    print(context.global.output.format, &status, |s| {
        let mut table = Table::new(&["WHAT", "VALUE"]);
        for (key, value) in s.as_object().into_iter().flatten() {
            let shown = match (key.as_str(), value) {
                ("memory_bytes", v) => units::bytes(v.as_u64().unwrap_or(0)),
                ("uptime_seconds", v) => units::micros(v.as_f64().unwrap_or(0.0) * 1e6),
                (_, Value::String(text)) => text.clone(),
                (_, other) => other.to_string(),
            };
            table.row(vec![key.clone(), shown]);
        }
        table
    });
    Ok(())
}
