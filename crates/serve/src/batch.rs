//! Adaptive batching: queued requests for one model are computed in one call. Used when the manifest has `batching` and
//! [`crate::joinable`] found that the model computes rows independently.
//!
//! The first request of a batch waits for others for at most `max_delay`, and not at all when no other request is admitted, so a single
//! client pays no delay. Invariant: a batch has at most `max_size` rows, unless it is one larger request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::Error;
use crate::manifest::Batching;
use crate::runtime::{Model, run_catching_panics};
use crate::tensor::Tensor;

/// A queued request.
struct QueuedRequest {
    /// Taken by the collector, or dropped with its caller, so that a cancelled request frees its memory while it is queued.
    inputs: Arc<Mutex<Option<Vec<Tensor>>>>,
    /// When its caller stops waiting.
    deadline: Instant,
    reply: oneshot::Sender<Result<Vec<Tensor>, Error>>,
}

impl QueuedRequest {
    /// The request, unless it was cancelled or its deadline passed.
    fn take(self) -> Option<Job> {
        let inputs = self.inputs.lock().take()?;
        Some(Job { inputs, deadline: self.deadline, reply: self.reply }).filter(Job::is_awaited)
    }
}

/// Drops the inputs of a request that is still queued.
struct WithdrawOnDrop(Arc<Mutex<Option<Vec<Tensor>>>>);

impl Drop for WithdrawOnDrop {
    fn drop(&mut self) {
        let withdrawn = self.0.lock().take();
        drop(withdrawn);
    }
}

/// A request that was taken from the queue.
struct Job {
    inputs: Vec<Tensor>,
    deadline: Instant,
    reply: oneshot::Sender<Result<Vec<Tensor>, Error>>,
}

impl Job {
    /// Whether the caller still waits for the result.
    fn is_awaited(&self) -> bool {
        !self.reply.is_closed() && Instant::now() < self.deadline
    }

    fn respond(self, result: Result<Vec<Tensor>, Error>) {
        let _ = self.reply.send(result); // fails if the caller has stopped waiting in the meantime
    }
}

/// Collects requests for one loaded model into batches.
pub(crate) struct Batcher {
    queue: mpsc::Sender<QueuedRequest>,
}

impl Batcher {
    /// Starts the collector; it ends when the batcher is dropped.
    ///
    /// `admitted` counts the deployment's requests that are queued or being computed.
    pub(crate) fn start(model: Arc<dyn Model>, settings: &Batching, admitted: Arc<AtomicUsize>) -> Self {
        let (queue, jobs) = mpsc::channel(1024);
        let (max_size, max_delay) = (settings.max_size, Duration::from_millis(settings.max_delay_ms));
        tokio::spawn(collect(model, jobs, max_size, max_delay, admitted));
        Self { queue }
    }

    /// Computes the inputs in a batch. `None` if they were not computed because the deadline passed or the model was unloaded.
    pub(crate) async fn run(&self, inputs: Vec<Tensor>, deadline: Instant) -> Option<Result<Vec<Tensor>, Error>> {
        let (reply, result) = oneshot::channel();
        let inputs = Arc::new(Mutex::new(Some(inputs)));
        let _withdraw = WithdrawOnDrop(Arc::clone(&inputs));
        self.queue.send(QueuedRequest { inputs, deadline, reply }).await.ok()?;
        result.await.ok()
    }
}

async fn collect(
    model: Arc<dyn Model>,
    mut jobs: mpsc::Receiver<QueuedRequest>,
    max_size: usize,
    max_delay: Duration,
    admitted: Arc<AtomicUsize>,
) {
    // A request that did not fit into the previous batch.
    let mut carried_over: Option<Job> = None;
    loop {
        let first = match carried_over.take() {
            Some(job) => job,
            None => match jobs.recv().await.map(QueuedRequest::take) {
                Some(Some(job)) => job,
                Some(None) => continue,
                None => return,
            },
        };
        let mut rows = batch_rows(&first);
        let mut batch = vec![first];
        let deadline = Instant::now() + max_delay;
        while rows < max_size {
            let queued = match jobs.try_recv() {
                Ok(queued) => queued,
                Err(_) if admitted.load(Relaxed) <= batch.len() => break,
                Err(_) => match tokio::time::timeout_at(deadline, jobs.recv()).await {
                    Ok(Some(queued)) => queued,
                    _ => break,
                },
            };
            let Some(job) = queued.take() else { continue };
            let more = batch_rows(&job);
            if rows + more > max_size {
                carried_over = Some(job);
                break;
            }
            rows += more;
            batch.push(job);
        }
        for group in group_by_shape(batch) {
            let model = Arc::clone(&model);
            let done = tokio::task::spawn_blocking(move || compute_group(model.as_ref(), group)).await;
            if let Err(error) = done {
                tracing::error!(%error, "the task that computes a batch panicked");
            }
        }
    }
}

/// Number of rows of a request: the first dimension of its first input, or 1 for a scalar.
pub(crate) fn rows_of(inputs: &[Tensor]) -> usize {
    inputs.first().and_then(|t| t.shape.first()).copied().unwrap_or(1)
}

/// Rows that a request counts for in a batch: at least 1, so that empty requests cannot make a batch grow without end.
fn batch_rows(job: &Job) -> usize {
    rows_of(&job.inputs).max(1)
}

/// Whether all inputs have the same first dimension, so that the request can be joined with others.
fn has_rows(inputs: &[Tensor]) -> bool {
    let rows = rows_of(inputs);
    inputs.iter().all(|t| t.shape.first() == Some(&rows))
}

/// Groups requests whose input shapes are equal except for the first dimension.
fn group_by_shape(batch: Vec<Job>) -> Vec<Vec<Job>> {
    let mut groups: Vec<Vec<Job>> = Vec::new();
    for job in batch {
        let same_shapes = |group: &Vec<Job>| {
            let other = &group[0].inputs;
            has_rows(other)
                && has_rows(&job.inputs)
                && other.iter().zip(&job.inputs).all(|(a, b)| a.shape.get(1..) == b.shape.get(1..))
        };
        match groups.iter_mut().find(|g| same_shapes(g)) {
            Some(group) => group.push(job),
            None => groups.push(vec![job]),
        }
    }
    groups
}

/// Computes a group of requests in one call. If that call fails, each request is computed alone, so that a request that the model
/// rejects does not fail the others.
fn compute_group(model: &dyn Model, mut group: Vec<Job>) {
    group.retain(Job::is_awaited);
    if group.len() > 1 {
        let requests: Vec<&[Tensor]> = group.iter().map(|job| job.inputs.as_slice()).collect();
        match run_batched(model, &requests) {
            Ok(results) => {
                group.into_iter().zip(results).for_each(|(job, outputs)| job.respond(Ok(outputs)));
                return;
            }
            Err(error) => tracing::debug!(%error, "the batch failed; its requests are computed one by one"),
        }
    }
    for job in group.into_iter().filter(Job::is_awaited) {
        let result = run_catching_panics(model, &job.inputs);
        job.respond(result);
    }
}

/// Runs requests of the same shape in one call and splits the outputs by rows.
///
/// # Errors
/// The model's, and [`Error::Model`] when an output does not have one row per input row.
pub(crate) fn run_batched(model: &dyn Model, requests: &[&[Tensor]]) -> Result<Vec<Vec<Tensor>>, Error> {
    let Some((first, others)) = requests.split_first() else { return Ok(Vec::new()) };
    let mut joined = first.to_vec();
    for request in others {
        for (all, own) in joined.iter_mut().zip(*request) {
            all.data.append(&own.data);
            all.shape[0] += own.shape[0];
        }
    }
    let total: usize = requests.iter().map(|request| rows_of(request)).sum();
    let outputs = run_catching_panics(model, &joined)?;
    if let Some(mismatched) = outputs.iter().find(|o| o.shape.first() != Some(&total)) {
        return Err(Error::Model(format!(
            "output '{}' has shape {:?} for a batch of {total} rows",
            mismatched.name, mismatched.shape
        )));
    }
    let mut from = 0;
    let split = |request: &&[Tensor]| {
        let rows = rows_of(request);
        let slice_rows = |o: &Tensor| {
            let width: usize = o.shape[1..].iter().product();
            let mut shape = o.shape.clone();
            shape[0] = rows;
            Tensor { name: o.name.clone(), shape, data: o.data.slice(from * width, (from + rows) * width) }
        };
        let own = outputs.iter().map(slice_rows).collect();
        from += rows;
        own
    };
    Ok(requests.iter().map(split).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Data;
    use crate::testing::{FakeModel, row};

    fn far_deadline() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    /// Sends all requests at once to a collector whose `admitted` counter already includes them; returns their outputs.
    async fn send(model: &Arc<FakeModel>, max_size: usize, requests: Vec<Vec<Tensor>>) -> Vec<Vec<Tensor>> {
        let admitted = Arc::new(AtomicUsize::new(requests.len()));
        let settings = Batching { max_size, max_delay_ms: 50 };
        let batcher = Batcher::start(Arc::clone(model) as Arc<dyn Model>, &settings, admitted);
        let results = requests.into_iter().map(|inputs| batcher.run(inputs, far_deadline()));
        futures_util::future::join_all(results).await.into_iter().map(|result| result.unwrap().unwrap()).collect()
    }

    #[tokio::test]
    async fn requests_are_batched_and_outputs_split() {
        let model = FakeModel::doubling();
        let results = send(&model, 8, (0..20).map(|i| row(i as f32)).collect()).await;
        for (i, outputs) in results.iter().enumerate() {
            assert_eq!(outputs[0].data, Data::Fp32(vec![2.0 * i as f32, -2.0 * i as f32]));
            assert_eq!(outputs[0].shape, [1, 2]);
        }
        let calls = model.calls();
        assert_eq!(calls.iter().sum::<usize>(), 20);
        assert!(calls.len() < 20 && calls.iter().all(|n| *n <= 8), "{calls:?}");
    }

    #[tokio::test]
    async fn batches_respect_max_size_except_for_single_larger_requests() {
        let model = FakeModel::doubling();
        let rows =
            |n: usize| vec![Tensor { name: "x".into(), shape: vec![n, 2], data: Data::Fp32(vec![n as f32; 2 * n]) }];
        let results = send(&model, 8, [3, 3, 3, 7, 2, 20, 8, 0, 1].map(rows).into()).await;
        for (outputs, n) in results.iter().zip([3, 3, 3, 7, 2, 20, 8, 0, 1]) {
            assert_eq!(outputs[0].data, Data::Fp32(vec![2.0 * n as f32; 2 * n]));
        }
        assert_eq!(model.calls(), [6, 3, 7, 2, 20, 8, 1]);
    }

    #[tokio::test]
    async fn cancelled_and_expired_requests_are_not_computed() {
        let (model, gate) = FakeModel::gated();
        let settings = Batching { max_size: 1, max_delay_ms: 0 };
        let batcher = Arc::new(Batcher::start(Arc::clone(&model) as Arc<dyn Model>, &settings, Arc::default()));
        let infer = |value: f32, deadline: Instant| {
            let batcher = Arc::clone(&batcher);
            tokio::spawn(async move { batcher.run(row(value), deadline).await })
        };
        let first = infer(1.0, far_deadline());
        gate.entered().await;
        // While the first request is computed, the second is cancelled, the third expires, and the fourth waits.
        let cancelled = infer(2.0, far_deadline());
        let expired = infer(3.0, Instant::now());
        let waiting = infer(4.0, far_deadline());
        while batcher.queue.capacity() > 1024 - 3 {
            tokio::task::yield_now().await;
        }
        cancelled.abort();
        assert!(cancelled.await.unwrap_err().is_cancelled());
        gate.open();
        assert!(first.await.unwrap().unwrap().is_ok());
        assert!(expired.await.unwrap().is_none());
        assert!(waiting.await.unwrap().unwrap().is_ok());
        assert_eq!(model.first_elements(), [1.0, 4.0]);
    }

    #[tokio::test]
    async fn cancelled_request_frees_its_inputs() {
        let (queue, mut jobs) = mpsc::channel(1);
        let batcher = Batcher { queue };
        let cancelled = tokio::spawn(async move { batcher.run(row(1.0), far_deadline()).await });
        let queued = jobs.recv().await.unwrap();
        assert!(queued.inputs.lock().is_some());
        cancelled.abort();
        assert!(cancelled.await.unwrap_err().is_cancelled());
        assert!(queued.inputs.lock().is_none());
    }

    #[tokio::test]
    async fn failed_request_does_not_fail_others_in_its_batch() {
        let model = FakeModel::new(|inputs| {
            let Data::Fp32(v) = &inputs[0].data else { return Err(Error::Model("type".into())) };
            assert!(!v.contains(&13.0), "the model panics");
            if v.contains(&3.0) {
                return Err(Error::Model("three".into()));
            }
            Ok(vec![Tensor { name: "y".into(), ..inputs[0].clone() }])
        });
        let settings = Batching { max_size: 64, max_delay_ms: 50 };
        let batcher = &Batcher::start(Arc::clone(&model) as Arc<dyn Model>, &settings, Arc::new(AtomicUsize::new(5)));
        let infer =
            |value| async move { batcher.run(row(value), far_deadline()).await.unwrap().map_err(|e| e.to_string()) };
        let (a, three, b, panics, c) = tokio::join!(infer(1.0), infer(3.0), infer(2.0), infer(13.0), infer(4.0));
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
        assert_eq!(three.unwrap_err(), "three");
        assert!(panics.unwrap_err().contains("crashed"));
        assert!(infer(5.0).await.is_ok(), "the collector keeps running");
    }
}
