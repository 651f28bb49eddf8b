//! Request counters and latencies per model version, for `slipway deploy show`, the UI and the metrics endpoint.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;

/// Buckets of the latency histogram: eight per power of two, from 1 µs to about 70 minutes.
const BUCKETS: usize = 8 * 32;
/// Minimum period that the latency quantiles cover.
const WINDOW: Duration = Duration::from_secs(30);

/// A log-linear histogram of latencies in microseconds, with a relative error of at most 1/8.
#[derive(Debug)]
pub struct Histogram {
    counts: Box<[AtomicU64; BUCKETS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([const { AtomicU64::new(0) }; BUCKETS]) }
    }
}

fn bucket(us: u64) -> usize {
    let us = us.max(1);
    let log = us.ilog2() as usize;
    let fraction = if log >= 3 { (us >> (log - 3)) & 7 } else { (us << (3 - log)) & 7 };
    (log * 8 + fraction as usize).min(BUCKETS - 1)
}

fn lower_bound(index: usize) -> f64 {
    let (log, fraction) = (index / 8, index % 8);
    (1u64 << log) as f64 * (1.0 + fraction as f64 / 8.0)
}

impl Histogram {
    fn add(&self, us: u64) {
        self.counts[bucket(us)].fetch_add(1, Relaxed);
    }

    fn snapshot(&self) -> Vec<u64> {
        self.counts.iter().map(|c| c.load(Relaxed)).collect()
    }
}

/// Upper bounds of the exported Prometheus buckets, in microseconds: 1-2-5 steps from 100 µs to 10 s, then infinity.
const EXPORTED_BOUNDS_US: [f64; 17] =
    [1e2, 2e2, 5e2, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7, f64::MAX];

/// Merges the fine buckets into the exported ones. A fine bucket counts towards the exported bucket that contains its upper end.
fn export_buckets(counts: &[u64]) -> Vec<(f64, u64)> {
    let mut exported: Vec<(f64, u64)> = EXPORTED_BOUNDS_US.iter().map(|us| (us / 1e6, 0)).collect();
    if let Some(last) = exported.last_mut() {
        last.0 = f64::MAX;
    }
    for (index, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let end = lower_bound(index + 1);
        let at = EXPORTED_BOUNDS_US.partition_point(|bound| *bound < end).min(exported.len() - 1);
        exported[at].1 += count;
    }
    exported
}

/// The `q` quantile of the counted latencies in microseconds, for `q` from 0 to 1.
fn quantile(counts: &[u64], q: f64) -> f64 {
    let total: u64 = counts.iter().sum();
    let rank = (q * total as f64).ceil() as u64;
    let mut cumulative = 0;
    for (index, count) in counts.iter().enumerate() {
        cumulative += count;
        if *count > 0 && cumulative >= rank {
            return f64::midpoint(lower_bound(index), lower_bound(index + 1));
        }
    }
    0.0
}

/// Counters and latencies of one model version since it was loaded.
#[derive(Debug)]
pub struct Stats {
    requests: AtomicU64,
    errors: AtomicU64,
    rows: AtomicU64,
    total: Histogram,
    total_us: AtomicU64,
    errors_us: AtomicU64,
    last_ms: AtomicU64,
    recent: Mutex<Recent>,
}

#[derive(Debug)]
struct Recent {
    since: Instant,
    /// Snapshots of the histogram at the beginning of the previous window and of the current one.
    marks: [Vec<u64>; 2],
}

/// Request counters and latencies at one moment.
#[derive(Debug, Clone, Serialize, Default, JsonSchema)]
#[schemars(rename = "ModelStatistics")]
pub struct Snapshot {
    /// Requests processed, failed ones included.
    pub requests: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Rows computed, by the first dimension of the first input.
    pub rows: u64,
    /// Median latency in microseconds over the last 30 to 60 seconds, or since the model was loaded if there was no request in that time.
    pub p50_us: f64,
    /// 95th percentile of the latency in microseconds, over the same period.
    pub p95_us: f64,
    /// 99th percentile of the latency in microseconds, over the same period.
    pub p99_us: f64,
    /// Sum of all latencies in microseconds.
    pub total_us: u64,
    /// Sum of the latencies of failed requests in microseconds.
    #[serde(skip)]
    pub errors_us: u64,
    /// Time of the newest request, in milliseconds since the Unix epoch; 0 if there was none.
    #[serde(skip)]
    pub last_ms: u64,
    /// Latency histogram: upper bound in seconds and count of each bucket, not cumulative. The last bound is `f64::MAX`.
    #[serde(skip)]
    pub latency_buckets: Vec<(f64, u64)>,
}

impl Snapshot {
    /// Adds the counters of another model version. The quantiles are not combined.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.rows += other.rows;
        self.total_us += other.total_us;
        self.errors_us += other.errors_us;
        self.last_ms = self.last_ms.max(other.last_ms);
        if self.latency_buckets.is_empty() {
            self.latency_buckets.clone_from(&other.latency_buckets);
        } else {
            self.latency_buckets.iter_mut().zip(&other.latency_buckets).for_each(|(own, more)| own.1 += more.1);
        }
    }
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            total: Histogram::default(),
            total_us: AtomicU64::new(0),
            errors_us: AtomicU64::new(0),
            last_ms: AtomicU64::new(0),
            recent: Mutex::new(Recent { since: Instant::now(), marks: [vec![0; BUCKETS], vec![0; BUCKETS]] }),
        }
    }
}

impl Stats {
    /// Records one request.
    pub fn record(&self, took: Duration, rows: usize, failed: bool) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.requests.fetch_add(1, Relaxed);
        self.rows.fetch_add(rows as u64, Relaxed);
        self.total.add(us);
        self.total_us.fetch_add(us, Relaxed);
        self.last_ms.store(u64::try_from(slipway_core::clock::now_ms()).unwrap_or_default(), Relaxed);
        if failed {
            self.errors.fetch_add(1, Relaxed);
            self.errors_us.fetch_add(us, Relaxed);
        }
    }

    /// The current counters and quantiles.
    pub fn snapshot(&self) -> Snapshot {
        let all = self.total.snapshot();
        let mut recent = self.recent.lock();
        if recent.since.elapsed() > WINDOW {
            let previous = std::mem::replace(&mut recent.marks[1], all.clone());
            recent.marks[0] = previous;
            recent.since = Instant::now();
        }
        let window: Vec<u64> = all.iter().zip(&recent.marks[0]).map(|(a, b)| a - b).collect();
        let counts = if window.iter().any(|c| *c > 0) { &window } else { &all };
        Snapshot {
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            rows: self.rows.load(Relaxed),
            p50_us: quantile(counts, 0.50),
            p95_us: quantile(counts, 0.95),
            p99_us: quantile(counts, 0.99),
            total_us: self.total_us.load(Relaxed),
            errors_us: self.errors_us.load(Relaxed),
            last_ms: self.last_ms.load(Relaxed),
            latency_buckets: export_buckets(&all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_one_eighth() {
        let stats = Stats::default();
        for us in 1..=1000 {
            stats.record(Duration::from_micros(us), 1, us % 100 == 0);
        }
        let s = stats.snapshot();
        assert_eq!((s.requests, s.errors, s.rows), (1000, 10, 1000));
        assert!((s.p50_us / 500.0 - 1.0).abs() < 0.13, "{}", s.p50_us);
        assert!((s.p99_us / 990.0 - 1.0).abs() < 0.13, "{}", s.p99_us);
    }

    #[test]
    fn exported_buckets_count_every_request_once() {
        let stats = Stats::default();
        for us in [50, 150, 900, 4_000, 90_000_000] {
            stats.record(Duration::from_micros(us), 1, false);
        }
        let exported = stats.snapshot().latency_buckets;
        assert_eq!(exported.iter().map(|(_, n)| n).sum::<u64>(), 5);
        assert_eq!((exported[0], exported[1], exported[3].1, exported[5].1), ((1e-4, 1), (2e-4, 1), 1, 1));
        assert_eq!(exported.last(), Some(&(f64::MAX, 1)));
    }

    #[test]
    fn bucket_index_is_monotonic() {
        let mut last = 0;
        for us in 1..100_000 {
            let b = bucket(us);
            assert!(b >= last);
            last = b;
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }
}
