//! `slipway node domains`: the controller of ComputeDomains. It is a process of its own, because it needs permissions that no other component
//! has, and none of those that others have.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use slipway_core::env;
use slipway_operator::domains::DomainController;
use slipway_server::metrics;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::Failure;
use crate::cli::node as cli;

/// Time limit for metrics requests in flight when the process stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn run(options: cli::Domains) -> Result<(), Failure> {
    let api = super::node::connect(&options.installation).await?;
    let namespace = env::value(env::NAMESPACE).unwrap_or(options.installation.namespace);
    let pod = env::value(env::POD).unwrap_or_else(|| format!("slipway-{}", std::process::id()));
    let identity = format!("{pod}_{}", slipway_core::ids::hex32());
    let invalid = |e: String| Failure::with_code(e, "listen.invalid", 1);
    let listener = TcpListener::bind(&options.listen)
        .await
        .map_err(|e| invalid(format!("cannot listen on {}: {e}", options.listen)))?;
    let controller = Arc::new(DomainController::start(api, namespace, identity));
    let measured = Arc::clone(&controller);
    let metrics = move || async move {
        ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render_controller_metrics(measured.metrics()))
    };
    let router = Router::new().route("/healthz", get(|| async { "ok\n" })).route("/metrics", get(metrics));
    let (stop, mut stopped) = watch::channel(false);
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        let _ = stopped.wait_for(|s| *s).await; // An error means that the process is ending.
    });
    let mut server = tokio::spawn(async move { server.await });
    tracing::info!("the controller of ComputeDomains has started");
    tokio::select! {
        () = super::up::termination_signal()? => {}
        ended = &mut server => return Err(invalid(format!("the probe and metrics server failed: {ended:?}"))),
    }
    // Release the lease first, so that another replica can take over at once.
    controller.stop().await;
    stop.send_replace(true);
    if tokio::time::timeout(DRAIN_TIMEOUT, server).await.is_err() {
        tracing::debug!("a metrics request did not finish in time");
    }
    Ok(())
}
