//! The rules of metrics: logging, histories, sampling.

use std::collections::HashMap;
use std::sync::Arc;

use slipway_store::sql::Connection;

use super::Tracking;
use super::compaction::{Compactor, Stored};
use crate::filter::page_token;
use crate::model::{Metric, Page};
use crate::points::{Point, pack};
use crate::{Error, repo, validate};

/// A metric point as a client sends it.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct NewMetric {
    pub key: String,
    pub value: f64,
    pub timestamp: i64,
    pub step: i64,
    pub model_id: Option<String>,
    pub dataset_name: Option<String>,
    pub dataset_digest: Option<String>,
}

/// A query for the histories of one metric in several runs.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct MetricQuery {
    pub run_ids: Vec<String>,
    pub metric_key: String,
    pub max_results: usize,
    /// Limits the points to these steps, both inclusive.
    pub steps: Option<(i64, i64)>,
}

impl Tracking {
    /// Logs one point. It is not an error to log the same point again.
    ///
    /// # Errors
    /// An invalid name or timestamp, or a run that does not exist or is deleted.
    pub async fn log_metric(&self, run_id: String, metric: NewMetric) -> Result<(), Error> {
        self.may_change_run(&run_id)?;
        self.may_log_for_models(std::slice::from_ref(&metric))?;
        validate::metric(&metric.key, metric.value, metric.timestamp, "")?;
        let stored = self
            .db
            .write(move |c| {
                let (run, _) = repo::runs::active(c, &run_id)?;
                store(c, run, &run_id, std::slice::from_ref(&metric))
            })
            .await?;
        self.compactor.record_write(stored);
        Ok(())
    }

    /// Fails unless the caller may change the logged models to which these metrics are also logged.
    pub(super) fn may_log_for_models(&self, metrics: &[NewMetric]) -> Result<(), Error> {
        let mut ids: Vec<&str> = metrics.iter().filter_map(|m| m.model_id.as_deref()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().try_for_each(|id| self.may_change_logged_model(id))
    }

    /// The history of a metric, sorted by timestamp, step and value. Without `max_results`, returns the whole history.
    ///
    /// # Errors
    /// An invalid page size or page token.
    pub async fn metric_history(
        &self,
        run_id: String,
        key: String,
        max_results: Option<i64>,
        token: Option<&str>,
    ) -> Result<Page<Metric>, Error> {
        if let Some(n) = max_results.filter(|n| *n <= 0) {
            return Err(Error::invalid(format!(
                "Invalid value {n} for parameter 'max_results' supplied. It must be a positive integer."
            )));
        }
        let offset = page_token::decode(token)?;
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let compactor = Arc::clone(&self.compactor);
        self.db
            .read(move |c| {
                let mut metrics = Vec::new();
                for (_, run) in repo::metrics::find_runs(c, &[run_id])? {
                    let points = history(c, &compactor, run, &key)?;
                    metrics.extend(points.into_iter().skip(skip).map(|p| metric(&key, p, None)));
                }
                Ok(match max_results {
                    Some(limit) => page_token::page(metrics, offset, limit),
                    None => Page { items: metrics, next_page_token: None },
                })
            })
            .await
    }

    /// The histories of several runs one after the other, sorted by run id, with `max_results` points in total.
    ///
    /// # Errors
    /// An error of the store.
    pub async fn metric_history_bulk(&self, query: MetricQuery) -> Result<Vec<Metric>, Error> {
        let compactor = Arc::clone(&self.compactor);
        self.db
            .read(move |c| {
                let mut runs = repo::metrics::find_runs(c, &query.run_ids)?;
                runs.sort_unstable();
                runs.dedup();
                let mut metrics = Vec::new();
                for (run_id, run) in runs {
                    let remaining = query.max_results - metrics.len();
                    let points = history(c, &compactor, run, &query.metric_key)?;
                    metrics.extend(
                        points.into_iter().take(remaining).map(|p| metric(&query.metric_key, p, Some(&run_id))),
                    );
                }
                Ok(metrics)
            })
            .await
    }

    /// A sample of at most `max_results` points per run, evenly spaced in its history by step. It includes the last point, and the
    /// first unless `max_results` is 1.
    ///
    /// # Errors
    /// An error of the store.
    pub async fn metric_history_interval(&self, query: MetricQuery) -> Result<Vec<Metric>, Error> {
        let compactor = Arc::clone(&self.compactor);
        self.db
            .read(move |c| {
                let mut metrics = Vec::new();
                for (run_id, run) in repo::metrics::find_runs(c, &query.run_ids)? {
                    let mut points = points(c, &compactor, run, &query.metric_key)?;
                    if let Some((from, to)) = query.steps {
                        points.retain(|p| (from..=to).contains(&p.step));
                    }
                    points.sort_unstable_by(Point::by_step);
                    points.dedup_by(|a, b| a.same(b));
                    let sampled = sample(&points, query.max_results);
                    metrics.extend(sampled.into_iter().map(|p| metric(&query.metric_key, p, Some(&run_id))));
                }
                Ok(metrics)
            })
            .await
    }
}

/// Stores points of a run that is known to be active. After the commit, the caller must pass the result to
/// [`Compactor::record_write`].
pub(super) fn store(c: &Connection, run: i64, run_id: &str, metrics: &[NewMetric]) -> Result<Stored, Error> {
    if metrics.is_empty() {
        return Ok(Stored { run, bytes: 0 });
    }
    let points = || metrics.iter().map(|m| (m.key.as_str(), sanitized(m)));
    let packed = pack(points());
    repo::metrics::append(c, run, &packed)?;
    // Only the newest point of each key in the request can become the run's newest.
    let mut newest: HashMap<&str, Point> = HashMap::with_capacity(metrics.len());
    for (key, point) in points() {
        let best = newest.entry(key).or_insert(point);
        if best.by_step(&point).is_lt() {
            *best = point;
        }
    }
    repo::metrics::set_latest(c, run, newest.iter().map(|(key, point)| (*key, point)))?;
    for m in metrics {
        if let Some(model_id) = &m.model_id {
            let metric = Metric {
                key: m.key.clone(),
                value: m.value.clamp(f64::MIN, f64::MAX),
                timestamp: m.timestamp,
                step: m.step,
                run_id: None,
                model_id: None,
                dataset_name: m.dataset_name.clone(),
                dataset_digest: m.dataset_digest.clone(),
            };
            repo::logged_models::add_metric(c, model_id, run_id, &metric)?;
        }
    }
    Ok(Stored { run, bytes: packed.len() })
}

/// Replaces infinities by the largest doubles, as MLflow's SQL stores do.
fn sanitized(metric: &NewMetric) -> Point {
    let point = Point::from(metric);
    Point { value: if point.value.is_nan() { point.value } else { point.value.clamp(f64::MIN, f64::MAX) }, ..point }
}

/// All points of a key in no particular order. If the run has many uncompacted rows, it is queued for compaction.
fn points(c: &Connection, compactor: &Compactor, run: i64, key: &str) -> Result<Vec<Point>, Error> {
    let (points, uncompacted) = repo::metrics::points(c, run, key)?;
    compactor.record_read(run, uncompacted);
    Ok(points)
}

/// All points of a key, sorted by timestamp and without duplicates.
fn history(c: &Connection, compactor: &Compactor, run: i64, key: &str) -> Result<Vec<Point>, Error> {
    let mut points = points(c, compactor, run, key)?;
    points.sort_unstable_by(Point::by_time);
    points.dedup_by(|a, b| a.same(b));
    Ok(points)
}

fn metric(key: &str, point: Point, run_id: Option<&String>) -> Metric {
    Metric {
        key: key.to_owned(),
        value: point.value,
        timestamp: point.timestamp,
        step: point.step,
        run_id: run_id.cloned(),
        model_id: None,
        dataset_name: None,
        dataset_digest: None,
    }
}

/// Samples the first point of each of `n` buckets of nearly equal size (like SQL's `NTILE`). The last sample is replaced by the last
/// point.
fn sample(points: &[Point], n: usize) -> Vec<Point> {
    let n = n.max(1);
    let (Some(last), true) = (points.last(), points.len() > n) else { return points.to_vec() };
    let (size, larger) = (points.len() / n, points.len() % n);
    let mut sampled: Vec<Point> = (0..n).map(|bucket| points[bucket * size + bucket.min(larger)]).collect();
    if !sampled[n - 1].same(last) {
        sampled[n - 1] = *last;
    }
    sampled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_keeps_first_and_last_point() {
        let points: Vec<Point> = (0..10).map(|step| Point { step, timestamp: 0, value: 0.0 }).collect();
        let steps = |n| sample(&points, n).into_iter().map(|p| p.step).collect::<Vec<_>>();
        assert_eq!(steps(3), [0, 4, 9]);
        assert_eq!(steps(1), [9]);
        assert_eq!(steps(10).len(), 10);
        assert_eq!(steps(99).len(), 10);
    }
}
