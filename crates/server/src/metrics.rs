//! Prometheus metrics in the OpenMetrics text format (version 1.0.0).
//!
//! Invariant: labels never contain text that a request can choose freely, so clients cannot create any number of time series.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use slipway_serve::service::Status;
use slipway_serve::stats::Snapshot;
use slipway_store::PoolStats;

use crate::Platform;
use crate::cluster::ControllerMetric;
use crate::listen::{ConnectionCounts, Connections};

/// The media type of the rendered metrics.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the request duration buckets, in seconds.
const DURATION_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    method: &'static str,
    route: String,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: String,
}

#[derive(Debug, Clone)]
struct NewDurationHistogram;

impl MetricConstructor<Histogram> for NewDurationHistogram {
    fn new_metric(&self) -> Histogram {
        Histogram::new(DURATION_BUCKETS)
    }
}

/// Metrics of requests to the control plane.
#[derive(Debug)]
pub(crate) struct RequestMetrics {
    started: Instant,
    responses: Family<ResponseLabels, Counter>,
    durations: Family<RequestLabels, Histogram, NewDurationHistogram>,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            responses: Family::default(),
            durations: Family::new_with_constructor(NewDurationHistogram),
        }
    }
}

/// The label for a method. All unknown methods share one label, because clients can send any method.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Counts a request to the control plane by the pattern of its route. The path is not a label, because clients can send any path.
pub(crate) async fn count(State(metrics): State<Arc<RequestMetrics>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method_label(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    metrics
        .durations
        .get_or_create(&RequestLabels { method, route: route.clone() })
        .observe(started.elapsed().as_secs_f64());
    let code = response.status().as_u16();
    metrics.responses.get_or_create(&ResponseLabels { method, route, code }).inc();
    response
}

/// Resident memory of this process in bytes, from `/proc/self/statm`; 0 if the file does not exist.
pub(crate) fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Seconds since the server started.
pub(crate) fn uptime(platform: &Platform) -> f64 {
    platform.request_metrics.started.elapsed().as_secs_f64()
}

/// Values that are collected on each scrape: of the process, the database, the connections and the deployments.
#[derive(Debug)]
struct PlatformCollector {
    uptime_seconds: f64,
    resident_bytes: u64,
    deployments: Vec<Status>,
    pool: PoolStats,
    connections: Arc<Connections>,
}

/// The metrics of the cluster's controllers.
#[derive(Debug)]
struct ControllerCollector(Vec<ControllerMetric>);

impl Collector for ControllerCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        for metric in &self.0 {
            if metric.is_counter {
                let counter = ConstCounter::new(metric.value);
                counter.encode(encoder.encode_descriptor(metric.name, metric.help, None, MetricType::Counter)?)?;
            } else {
                let gauge = ConstGauge::new(i64::try_from(metric.value).unwrap_or(i64::MAX));
                gauge.encode(encoder.encode_descriptor(metric.name, metric.help, None, MetricType::Gauge)?)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Variant {
    model: String,
    variant: String,
    version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Model {
    model: String,
}

impl Collector for PlatformCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let value = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, value.metric_type())?;
            value.encode(metric)
        };
        gauge("slipway_uptime_seconds", "Time since the server started.", self.uptime_seconds)?;
        gauge("process_resident_memory_bytes", "Resident memory.", self.resident_bytes as f64)?;
        let readers = [
            ("slipway_database_readers_max", "Maximum number of connections for reading.", self.pool.max),
            ("slipway_database_readers_open", "Open connections for reading.", self.pool.open),
            ("slipway_database_readers_idle", "Idle connections for reading.", self.pool.idle),
            ("slipway_database_readers_waiting", "Requests that wait for a connection for reading.", self.pool.waiting),
        ];
        for (name, help, value) in readers {
            gauge(name, help, value as f64)?;
        }
        let ports = [
            ("control", &self.connections.control),
            ("inference", &self.connections.inference),
            ("grpc", &self.connections.grpc),
        ];
        let help = "Open connections.";
        let mut family = encoder.encode_descriptor("slipway_connections_open", help, None, MetricType::Gauge)?;
        for (port, counts) in ports {
            let open = i64::try_from(counts.open.load(Relaxed)).unwrap_or(i64::MAX);
            ConstGauge::new(open).encode(family.encode_family(&[("port", port)])?)?;
        }
        type Count = fn(&ConnectionCounts) -> &AtomicU64;
        let totals: [(&str, &str, Count); 5] = [
            ("slipway_connections_accepted", "Accepted connections.", |c| &c.accepted),
            (
                "slipway_connections_evicted",
                "Idle connections that were closed because the port had reached its limit.",
                |c| &c.evicted,
            ),
            (
                "slipway_connections_timed_out",
                "Connections that were closed because the client was too slow or idle for too long.",
                |c| &c.timed_out,
            ),
            ("slipway_connections_handshakes_failed", "Failed TLS handshakes.", |c| &c.handshakes_failed),
            ("slipway_connections_accept_errors", "Failed attempts to accept a connection.", |c| &c.accept_errors),
        ];
        for (name, help, count) in totals {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (port, counts) in ports {
                ConstCounter::new(count(counts).load(Relaxed)).encode(family.encode_family(&[("port", port)])?)?;
            }
        }
        let variants: Vec<_> = self
            .deployments
            .iter()
            .flat_map(|status| status.variants.iter().map(move |variant| (status, variant)))
            .map(|(status, variant)| {
                let version = variant.model.as_ref().map(|m| m.version.clone()).unwrap_or_default();
                (Variant { model: status.name.clone(), variant: variant.name.clone(), version }, variant)
            })
            .collect();
        let mut counter = |name: &str, help: &str, value: &dyn Fn(&Snapshot) -> u64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, variant) in &variants {
                ConstCounter::new(value(&variant.stats)).encode(family.encode_family(labels)?)?;
            }
            Ok(())
        };
        counter("slipway_inference_requests", "Inference requests by model version.", &|s| s.requests)?;
        counter("slipway_inference_errors", "Failed inference requests.", &|s| s.errors)?;
        counter("slipway_inference_rows", "Rows computed by inference requests.", &|s| s.rows)?;
        let help = "Latency of inference requests.";
        let mut family =
            encoder.encode_descriptor("slipway_inference_latency_seconds", help, None, MetricType::Histogram)?;
        for (labels, variant) in &variants {
            let stats = &variant.stats;
            let count = stats.latency_buckets.iter().map(|(_, n)| n).sum();
            let mut metric = family.encode_family(labels)?;
            metric.encode_histogram::<NoLabelSet>(stats.total_us as f64 / 1e6, count, &stats.latency_buckets, None)?;
        }
        let mut family = encoder.encode_descriptor(
            "slipway_inference_weight_percent",
            "Share of the traffic in per cent.",
            None,
            MetricType::Gauge,
        )?;
        for (labels, variant) in &variants {
            ConstGauge::new(i64::from(variant.weight)).encode(family.encode_family(labels)?)?;
        }
        self.encode_compatible(&mut encoder)?;
        let help = "Inference requests that are queued or being computed.";
        let mut family = encoder.encode_descriptor("slipway_inference_in_flight", help, None, MetricType::Gauge)?;
        for status in &self.deployments {
            let labels = Model { model: status.name.clone() };
            ConstGauge::new(i64::try_from(status.in_flight).unwrap_or(i64::MAX))
                .encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelVersion {
    model: String,
    version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelName {
    model_name: String,
}

impl PlatformCollector {
    /// Inference requests under the names of MLServer (`model_infer_request_…`), Triton (`nv_inference_…`) and KServe
    /// (`request_predict_seconds`), so that existing dashboards and autoscalers work.
    fn encode_compatible(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        // Two models of a deployment may have the same version, and time series must be unique.
        let mut models: BTreeMap<(&str, &str), Snapshot> = BTreeMap::new();
        for status in &self.deployments {
            for variant in &status.variants {
                let version = variant.model.as_ref().map_or("", |m| m.version.as_str());
                models.entry((&status.name, version)).or_default().add(&variant.stats);
            }
        }
        type Count = fn(&Snapshot) -> u64;
        let counters: [(&str, &str, Count); 6] = [
            ("model_infer_request_success", "Successful inference requests.", |s| s.requests - s.errors),
            ("model_infer_request_failure", "Failed inference requests.", |s| s.errors),
            ("nv_inference_request_success", "Successful inference requests.", |s| s.requests - s.errors),
            ("nv_inference_request_failure", "Failed inference requests.", |s| s.errors),
            ("nv_inference_count", "Rows computed by inference requests.", |s| s.rows),
            ("nv_inference_request_duration_us", "Sum of the latencies in microseconds.", |s| s.total_us),
        ];
        for (name, help, count) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for ((model, version), stats) in &models {
                let labels = ModelVersion { model: (*model).to_owned(), version: (*version).to_owned() };
                ConstCounter::new(count(stats)).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut by_name: BTreeMap<&str, Snapshot> = BTreeMap::new();
        models.iter().for_each(|((model, _), stats)| by_name.entry(model).or_default().add(stats));
        let help = "Latency of inference requests.";
        let mut family = encoder.encode_descriptor("request_predict_seconds", help, None, MetricType::Histogram)?;
        for (model, stats) in by_name {
            let count = stats.latency_buckets.iter().map(|(_, n)| n).sum();
            let labels = ModelName { model_name: model.to_owned() };
            let mut metric = family.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(stats.total_us as f64 / 1e6, count, &stats.latency_buckets, None)?;
        }
        Ok(())
    }
}

/// Renders all metrics of a server.
pub(crate) fn render(platform: &Platform) -> String {
    let requests = &platform.request_metrics;
    let mut registry = Registry::default();
    registry.register("slipway_http_requests", "Requests to the control plane.", requests.responses.clone());
    let help = "Time until the response headers of requests to the control plane.";
    registry.register("slipway_http_request_duration_seconds", help, requests.durations.clone());
    registry.register_collector(Box::new(PlatformCollector {
        uptime_seconds: uptime(platform),
        resident_bytes: resident_bytes(),
        deployments: platform.gateway.statuses(),
        pool: platform.database.pool_stats(),
        connections: Arc::clone(&platform.connections),
    }));
    registry.register_collector(Box::new(ControllerCollector(platform.cluster.controller_metrics())));
    encode(&registry)
}

/// Renders the metrics of a process that runs only controllers.
pub fn render_controller_metrics(metrics: Vec<ControllerMetric>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ControllerCollector(metrics)));
    encode(&registry)
}

fn encode(registry: &Registry) -> String {
    let mut out = String::with_capacity(8192);
    // Cannot fail, because neither writing into a string nor a collector returns an error. Scrapers would reject a partial text anyway,
    // because it has no end mark.
    if let Err(error) = text::encode(&mut out, registry) {
        tracing::error!(%error, "cannot encode the metrics");
    }
    out
}
