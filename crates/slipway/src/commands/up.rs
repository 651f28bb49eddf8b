//! `slipway up`, `down` and `status` for a server on this machine.

use std::io::IsTerminal;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use slipway_core::home::Home;
use slipway_core::units;
use slipway_pipeline::launch::local::ImageMapping;
use slipway_server::auth::read_home_token;
use slipway_server::{CertificateSource, Limits, Options, Server};
use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use crate::Failure;
use crate::output::{Table, print, print_note};
use crate::running_server::running_server;

/// Resolves the listen address in a setting.
fn address(context: &Context, key: &str) -> Result<SocketAddr, Failure> {
    let text = context.config.get(key).unwrap_or_default();
    text.to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| Failure::with_code(format!("{key}: '{text}' is not HOST:PORT"), "listen.invalid", 2))
}

/// The values of a comma-separated setting.
fn list(context: &Context, key: &str) -> Vec<String> {
    crate::client::list_setting(&context.config, key)
}

/// The configured source of the server's certificate; `None` without TLS.
fn certificate(context: &Context) -> Result<Option<CertificateSource>, Failure> {
    let config = &context.config;
    let is_self_signed = match config.get("tls-self-signed") {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            return Err(Failure::with_code(format!("tls-self-signed: '{other}' is not true or false"), "tls.file", 2));
        }
    };
    match (config.get("tls-cert"), config.get("tls-key"), is_self_signed) {
        (None, None, false) => Ok(None),
        (None, None, true) => Ok(Some(CertificateSource::SelfSigned)),
        (Some(certificate), Some(key), false) => {
            Ok(Some(CertificateSource::Files { certificate: certificate.into(), key: key.into() }))
        }
        (.., true) => Err(Failure::with_code("tls-self-signed and tls-cert cannot be used together", "tls.file", 2)),
        _ => Err(Failure::with_code("tls-cert and tls-key must be set together", "tls.file", 2)),
    }
}

fn limits(context: &Context) -> Result<Limits, Failure> {
    let mut limits = Limits::default();
    if let Some(text) = context.config.get("max-connections") {
        let count = text.parse().ok().filter(|count| (1..=1_000_000).contains(count));
        let message = || format!("max-connections: '{text}' is not a number from 1 to 1000000");
        limits.connections = count.ok_or_else(|| Failure::with_code(message(), "config.invalid", 2))?;
    }
    Ok(limits)
}

/// The configured images of pipelines' steps that need no container.
fn images(context: &Context) -> Result<Vec<ImageMapping>, Failure> {
    let mapping = |text: String| {
        let invalid = |reason| Failure::with_code(format!("pipeline-images: {reason}"), "config.invalid", 2);
        text.parse().map_err(invalid)
    };
    list(context, "pipeline-images").into_iter().map(mapping).collect()
}

pub(super) async fn up(context: &Context, gateway_only: bool, no_auth: bool) -> Result<(), Failure> {
    // Raise the limit first, because the default number of connections per port depends on it.
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
        pipeline_images: images(context)?,
        data_cache_bytes: crate::client::bytes_setting(&context.config, "data-cache-bytes")?,
        hosts: list(context, "hosts"),
        cors_origins: list(context, "cors-origin"),
        certificate: certificate(context)?,
        limits: limits(context)?,
        runtime: context.config.get("runtime").unwrap_or("auto").parse()?,
        onnxruntime: context.config.get("onnxruntime").map(Into::into),
        cluster: super::in_cluster::InCluster::detect().await?,
    };
    let root = options.home.root().to_owned();
    let server = Server::bind(options).await?;
    let a = &server.addresses;
    if !context.global.quiet {
        print_note(format_args!("slipway {} is up, state in {}", a.version, root.display()));
        if gateway_only {
            print_note(format_args!("  probes, metrics  {}", a.control_url()));
        } else {
            print_note(format_args!("  UI and API       {}", a.control_url()));
        }
        print_note(format_args!("  inference, REST  {}/v2", a.inference_url()));
        print_note(format_args!("  inference, gRPC  {}{}", a.grpc, if a.tls { " (TLS)" } else { "" }));
        if let Some(fingerprint) = &a.fingerprint {
            print_note(format_args!("  certificate      sha256:{fingerprint}"));
        }
        if !gateway_only {
            print_note(format_args!("  MLflow clients:  export MLFLOW_TRACKING_URI={}", a.control_url()));
            if let Some(file) = server.self_signed_certificate() {
                print_note(format_args!(
                    "                   export MLFLOW_TRACKING_SERVER_CERT_PATH={}",
                    file.display()
                ));
            }
        }
        if no_auth {
            print_note(
                "  no token is required (--no-auth): every user of this machine may read and change everything; runs are refused",
            );
        } else {
            // The token itself is shown only on a terminal. In a log, only the command that prints it appears.
            print_note(format_args!(
                "                   export MLFLOW_TRACKING_TOKEN=$(slipway token --home {})",
                root.display()
            ));
            if std::io::stderr().is_terminal()
                && !gateway_only
                && let Ok(token) = read_home_token(&Home::at(&root))
            {
                print_note(format_args!("  open the UI      {}", super::token::ui_link(a, &token)));
            }
        }
    }
    server.run(termination_signal()?).await?;
    Ok(())
}

/// Returns a future that completes when this process receives SIGTERM or SIGINT.
pub(super) fn termination_signal() -> Result<impl Future<Output = ()>, Failure> {
    // Installing a handler fails only if the process has no file descriptors left.
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
    let Some(addresses) = running_server(&home) else {
        print_note("nothing is running");
        return Ok(());
    };
    let Some(pid) = i32::try_from(addresses.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let not_stopped = |e: rustix::io::Errno| Failure::Error {
        message: format!("process {} cannot be stopped: {e}", addresses.pid),
        code: "home.locked",
        hint: None,
        exit: 4,
    };
    kill_process(pid, Signal::TERM).map_err(not_stopped)?;
    for _ in 0..300 {
        if test_kill_process(pid).is_err() {
            print_note("stopped");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(not_stopped(rustix::io::Errno::TIMEDOUT))
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
        let mut table = Table::new(&["KEY", "VALUE"]);
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
