//! Prometheus metrics, in the OpenMetrics text format (version 1.0.0), which Prometheus and its kin read.

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
use slipway_store::PoolStats;

use crate::Platform;
use crate::cluster::Figure;
use crate::listen::{ConnectionCounts, Connections};

/// The media type of [`render_figures`] and of all other metrics.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of request durations, in seconds.
const DURATION_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: String,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    method: &'static str,
    route: String,
}

#[derive(Debug, Clone)]
struct Durations;

impl MetricConstructor<Histogram> for Durations {
    fn new_metric(&self) -> Histogram {
        Histogram::new(DURATION_BUCKETS)
    }
}

/// Counters of the control plane.
#[derive(Debug)]
pub(crate) struct Meters {
    started: Instant,
    answers: Family<Answered, Counter>,
    durations: Family<Asked, Histogram, Durations>,
}

impl Default for Meters {
    fn default() -> Self {
        Self { started: Instant::now(), answers: Family::default(), durations: Family::new_with_constructor(Durations) }
    }
}

/// The method as a label. Methods are chosen by clients, so unknown ones share a label and cannot fill the memory.
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

/// Counts a request of the control plane under the pattern of its route, never under its path, which the client chooses.
pub(crate) async fn count(State(meters): State<Arc<Meters>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method_label(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    meters.durations.get_or_create(&Asked { method, route: route.clone() }).observe(started.elapsed().as_secs_f64());
    let code = response.status().as_u16();
    meters.answers.get_or_create(&Answered { method, route, code }).inc();
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

/// What is known only when it is asked for: the process, and the deployments.
#[derive(Debug)]
struct Now {
    uptime: f64,
    resident: u64,
    deployments: Vec<Status>,
    pool: PoolStats,
    connections: Arc<Connections>,
}

/// Figures as metrics without labels.
#[derive(Debug)]
struct Figures(Vec<Figure>);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        for figure in &self.0 {
            if figure.is_counter {
                let counter = ConstCounter::new(figure.value);
                counter.encode(encoder.encode_descriptor(figure.name, figure.help, None, MetricType::Counter)?)?;
            } else {
                let gauge = ConstGauge::new(i64::try_from(figure.value).unwrap_or(i64::MAX));
                gauge.encode(encoder.encode_descriptor(figure.name, figure.help, None, MetricType::Gauge)?)?;
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

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut plain = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)
        };
        plain("slipway_uptime_seconds", "Time since the server started.", self.uptime)?;
        plain("process_resident_memory_bytes", "Resident memory.", self.resident as f64)?;
        let readers = [
            ("slipway_database_readers_max", "Connections that may read at once.", self.pool.max),
            ("slipway_database_readers_open", "Connections for reading that are open.", self.pool.open),
            ("slipway_database_readers_idle", "Open connections for reading that are not in use.", self.pool.idle),
            ("slipway_database_readers_waiting", "Requests that wait for a connection.", self.pool.waiting),
        ];
        for (name, help, value) in readers {
            plain(name, help, value as f64)?;
        }
        let ports = [
            ("control", &self.connections.control),
            ("inference", &self.connections.inference),
            ("grpc", &self.connections.grpc),
        ];
        let help = "Connections that are open.";
        let mut family = encoder.encode_descriptor("slipway_connections_open", help, None, MetricType::Gauge)?;
        for (port, counts) in ports {
            let open = i64::try_from(counts.open.load(Relaxed)).unwrap_or(i64::MAX);
            ConstGauge::new(open).encode(family.encode_family(&[("port", port)])?)?;
        }
        type Count = fn(&ConnectionCounts) -> &AtomicU64;
        let totals: [(&str, &str, Count); 5] = [
            ("slipway_connections_accepted", "Connections that were accepted.", |c| &c.accepted),
            ("slipway_connections_evicted", "Idle connections that were closed to make room.", |c| &c.evicted),
            ("slipway_connections_timed_out", "Connections whose client was too slow or idle for too long.", |c| {
                &c.timed_out
            }),
            ("slipway_connections_handshakes_failed", "TLS handshakes that failed.", |c| &c.handshakes_failed),
            ("slipway_connections_accept_errors", "Connections that could not be accepted.", |c| &c.accept_errors),
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
        let mut counter = |name: &str, help: &str, of: &dyn Fn(&slipway_serve::stats::Snapshot) -> u64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, variant) in &variants {
                ConstCounter::new(of(&variant.stats)).encode(family.encode_family(labels)?)?;
            }
            Ok(())
        };
        counter("slipway_inference_requests", "Inference requests by model version.", &|s| s.requests)?;
        counter("slipway_inference_errors", "Inference requests that failed.", &|s| s.errors)?;
        counter("slipway_inference_rows", "Rows computed.", &|s| s.rows)?;
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
            "Share of the traffic.",
            None,
            MetricType::Gauge,
        )?;
        for (labels, variant) in &variants {
            ConstGauge::new(i64::from(variant.weight)).encode(family.encode_family(labels)?)?;
        }
        let help = "Requests that wait or are computed.";
        let mut family = encoder.encode_descriptor("slipway_inference_in_flight", help, None, MetricType::Gauge)?;
        for status in &self.deployments {
            let labels = Model { model: status.name.clone() };
            ConstGauge::new(i64::try_from(status.in_flight).unwrap_or(i64::MAX))
                .encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// All metrics as text.
pub(crate) fn render(platform: &Platform) -> String {
    let meters = &platform.meters;
    let mut registry = Registry::default();
    registry.register("slipway_http_requests", "Requests to the control plane.", meters.answers.clone());
    let help = "Time that requests to the control plane took, up to the headers of the answer.";
    registry.register("slipway_http_request_duration_seconds", help, meters.durations.clone());
    registry.register_collector(Box::new(Now {
        uptime: uptime(platform),
        resident: resident_bytes(),
        deployments: platform.gateway.statuses(),
        pool: platform.database.pool_stats(),
        connections: Arc::clone(&platform.connections),
    }));
    registry.register_collector(Box::new(Figures(platform.cluster.figures())));
    encoded(&registry)
}

/// Figures as text, for processes that have no other metrics.
pub fn render_figures(figures: Vec<Figure>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Figures(figures)));
    encoded(&registry)
}

fn encoded(registry: &Registry) -> String {
    let mut out = String::with_capacity(8192);
    // Writing into a string does not fail, and neither do the collectors; half a text would lack its end mark and be refused.
    if let Err(error) = text::encode(&mut out, registry) {
        tracing::error!(%error, "metrics cannot be written");
    }
    out
}
