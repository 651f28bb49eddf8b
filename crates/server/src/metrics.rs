//! Prometheus metrics in the text format (version 0.0.4).

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::Platform;

/// Counters of the control plane.
#[derive(Debug)]
pub(crate) struct Meters {
    started: Instant,
    /// Answers by the first digit of their status.
    answers: [AtomicU64; 6],
    micros: AtomicU64,
}

impl Default for Meters {
    fn default() -> Self {
        Self { started: Instant::now(), answers: Default::default(), micros: AtomicU64::new(0) }
    }
}

/// Counts a request of the control plane.
pub(crate) async fn count(State(meters): State<Arc<Meters>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let response = next.run(request).await;
    meters.answers[usize::from(response.status().as_u16() / 100).min(5)].fetch_add(1, Relaxed);
    meters.micros.fetch_add(u64::try_from(started.elapsed().as_micros()).unwrap_or(0), Relaxed);
    response
}

/// Resident memory in bytes, from `/proc/self/statm`; 0 where there is none.
pub(crate) fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Seconds since the start.
pub(crate) fn uptime(platform: &Platform) -> f64 {
    platform.meters.started.elapsed().as_secs_f64()
}

/// All metrics as text.
pub(crate) fn render(platform: &Platform) -> String {
    let mut out = String::with_capacity(4096);
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
        // Writing into a string cannot fail.
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    let plain = |value: f64| vec![(String::new(), value)];
    family("slipway_uptime_seconds", "gauge", "Time since the server started.", &plain(uptime(platform)));
    family("process_resident_memory_bytes", "gauge", "Resident memory.", &plain(resident_bytes() as f64));
    let meters = &platform.meters;
    let by_class: Vec<_> =
        (1..6).map(|c| (format!("{{class=\"{c}xx\"}}"), meters.answers[c].load(Relaxed) as f64)).collect();
    family("slipway_http_requests_total", "counter", "Answers of the control plane by status class.", &by_class);
    let seconds = meters.micros.load(Relaxed) as f64 / 1e6;
    family("slipway_http_request_seconds_total", "counter", "Time spent answering.", &plain(seconds));

    let mut requests = Vec::new();
    let mut errors = Vec::new();
    let mut rows = Vec::new();
    let mut latency = Vec::new();
    let mut weights = Vec::new();
    let mut waiting = Vec::new();
    for status in platform.gateway.statuses() {
        waiting.push((format!("{{model=\"{}\"}}", status.name), status.in_flight as f64));
        for variant in status.variants {
            let version = variant.model.map(|m| m.version).unwrap_or_default();
            let labels = format!("model=\"{}\",variant=\"{}\",version=\"{version}\"", status.name, variant.name);
            let stats = variant.stats;
            requests.push((format!("{{{labels}}}"), stats.requests as f64));
            errors.push((format!("{{{labels}}}"), stats.errors as f64));
            rows.push((format!("{{{labels}}}"), stats.rows as f64));
            weights.push((format!("{{{labels}}}"), f64::from(variant.weight)));
            for (q, us) in [("0.5", stats.p50_us), ("0.95", stats.p95_us), ("0.99", stats.p99_us)] {
                latency.push((format!("{{{labels},quantile=\"{q}\"}}"), us / 1e6));
            }
            latency.push((format!("_sum{{{labels}}}"), stats.total_us as f64 / 1e6));
            latency.push((format!("_count{{{labels}}}"), stats.requests as f64));
        }
    }
    family("slipway_inference_requests_total", "counter", "Inference requests by model version.", &requests);
    family("slipway_inference_errors_total", "counter", "Inference requests that failed.", &errors);
    family("slipway_inference_rows_total", "counter", "Rows computed.", &rows);
    family("slipway_inference_latency_seconds", "summary", "Latency over the last 30 to 60 s.", &latency);
    family("slipway_inference_weight_percent", "gauge", "Share of the traffic.", &weights);
    family("slipway_inference_in_flight", "gauge", "Requests waiting or computed.", &waiting);
    out.push_str(&platform.cluster.metrics());
    out
}
