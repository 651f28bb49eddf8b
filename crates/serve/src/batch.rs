//! Adaptive batching: requests that wait together are computed together.
//!
//! The first request of a batch waits for others at most `max_delay`, and not at all when nobody else is on
//! the way: the deployment knows how many requests it has admitted, so a lone caller pays no delay.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::Error;
use crate::manifest::Batching;
use crate::runtime::{Model, run_caught};
use crate::tensor::Tensor;

/// A request in the queue.
struct Waiting {
    /// Taken by the collector, or dropped by a caller that goes away: what nobody waits for takes no memory.
    inputs: Arc<Mutex<Option<Vec<Tensor>>>>,
    /// When its caller stops waiting.
    deadline: Instant,
    reply: oneshot::Sender<Result<Vec<Tensor>, Error>>,
}

impl Waiting {
    /// The request, if anybody still waits for it.
    fn take(self) -> Option<Job> {
        let inputs = self.inputs.lock().take()?;
        Some(Job { inputs, deadline: self.deadline, reply: self.reply }).filter(Job::is_wanted)
    }
}

/// Drops the inputs of a request that was not taken from the queue.
struct Withdraw(Arc<Mutex<Option<Vec<Tensor>>>>);

impl Drop for Withdraw {
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
    /// Whether anybody still waits for the answer.
    fn is_wanted(&self) -> bool {
        !self.reply.is_closed() && Instant::now() < self.deadline
    }

    fn answer(self, result: Result<Vec<Tensor>, Error>) {
        let _ = self.reply.send(result); // fails when the caller stopped waiting in the meantime
    }
}

/// Collects requests for one loaded model.
pub(crate) struct Batcher {
    queue: mpsc::Sender<Waiting>,
}

impl Batcher {
    /// Starts the collector; it ends when the batcher is dropped.
    ///
    /// `admitted` counts the deployment's requests that are waiting or computed.
    pub(crate) fn start(model: Arc<dyn Model>, settings: &Batching, admitted: Arc<AtomicUsize>) -> Self {
        let (queue, jobs) = mpsc::channel(1024);
        let (max_size, max_delay) = (settings.max_size, Duration::from_millis(settings.max_delay_ms));
        tokio::spawn(collect(model, jobs, max_size, max_delay, admitted));
        Self { queue }
    }

    /// Computes the inputs in some batch; nothing when they were not computed, since the deadline passed or the model was
    /// unloaded.
    pub(crate) async fn run(&self, inputs: Vec<Tensor>, deadline: Instant) -> Option<Result<Vec<Tensor>, Error>> {
        let (reply, answer) = oneshot::channel();
        let inputs = Arc::new(Mutex::new(Some(inputs)));
        let _withdraw = Withdraw(Arc::clone(&inputs));
        self.queue.send(Waiting { inputs, deadline, reply }).await.ok()?;
        answer.await.ok()
    }
}

async fn collect(
    model: Arc<dyn Model>,
    mut jobs: mpsc::Receiver<Waiting>,
    max_size: usize,
    max_delay: Duration,
    admitted: Arc<AtomicUsize>,
) {
    // The request that did not fit into the batch before this one.
    let mut held: Option<Job> = None;
    loop {
        let first = match held.take() {
            Some(job) => job,
            None => match jobs.recv().await.map(Waiting::take) {
                Some(Some(job)) => job,
                Some(None) => continue,
                None => return,
            },
        };
        let mut rows = rows_counted(&first);
        let mut batch = vec![first];
        let deadline = Instant::now() + max_delay;
        while rows < max_size {
            let waiting = match jobs.try_recv() {
                Ok(waiting) => waiting,
                Err(_) if admitted.load(Relaxed) <= batch.len() => break,
                Err(_) => match tokio::time::timeout_at(deadline, jobs.recv()).await {
                    Ok(Some(waiting)) => waiting,
                    _ => break,
                },
            };
            let Some(job) = waiting.take() else { continue };
            let more = rows_counted(&job);
            if rows + more > max_size {
                held = Some(job);
                break;
            }
            rows += more;
            batch.push(job);
        }
        for group in alike(batch) {
            let model = Arc::clone(&model);
            let done = tokio::task::spawn_blocking(move || compute(model.as_ref(), group)).await;
            if let Err(error) = done {
                tracing::error!(%error, "a batch was lost");
            }
        }
    }
}

/// Rows of a request: the first dimension of its first input.
pub(crate) fn rows_of(inputs: &[Tensor]) -> usize {
    inputs.first().and_then(|t| t.shape.first()).copied().unwrap_or(1)
}

/// Rows that a request takes of a batch; one without any takes a place nevertheless, so that a batch always ends.
fn rows_counted(job: &Job) -> usize {
    rows_of(&job.inputs).max(1)
}

/// Whether a request has rows that can be joined with others'.
fn has_rows(inputs: &[Tensor]) -> bool {
    let rows = rows_of(inputs);
    inputs.iter().all(|t| t.shape.first() == Some(&rows))
}

/// Groups of requests whose inputs differ in the first dimension only.
fn alike(batch: Vec<Job>) -> Vec<Vec<Job>> {
    let mut groups: Vec<Vec<Job>> = Vec::new();
    for job in batch {
        let fits = |group: &Vec<Job>| {
            let other = &group[0].inputs;
            has_rows(other)
                && has_rows(&job.inputs)
                && other.iter().zip(&job.inputs).all(|(a, b)| a.shape.get(1..) == b.shape.get(1..))
        };
        match groups.iter_mut().find(|g| fits(g)) {
            Some(group) => group.push(job),
            None => groups.push(vec![job]),
        }
    }
    groups
}

/// Computes a group of requests in one call. Where that fails, each is computed by itself, so that a request which the model
/// refuses does not fail the others.
fn compute(model: &dyn Model, mut group: Vec<Job>) {
    group.retain(Job::is_wanted);
    if group.len() > 1 {
        let parts: Vec<&[Tensor]> = group.iter().map(|job| job.inputs.as_slice()).collect();
        match run_joined(model, &parts) {
            Ok(results) => {
                group.into_iter().zip(results).for_each(|(job, outputs)| job.answer(Ok(outputs)));
                return;
            }
            Err(error) => tracing::debug!(%error, "a batch is computed one by one"),
        }
    }
    for job in group.into_iter().filter(Job::is_wanted) {
        let result = run_caught(model, &job.inputs);
        job.answer(result);
    }
}

/// Runs requests of the same shape as one and parts the outputs by rows.
///
/// # Errors
/// The model's; [`Error::Model`] when an output has not one row for each row of the inputs.
pub(crate) fn run_joined(model: &dyn Model, requests: &[&[Tensor]]) -> Result<Vec<Vec<Tensor>>, Error> {
    let Some((first, others)) = requests.split_first() else { return Ok(Vec::new()) };
    let mut joined = first.to_vec();
    for request in others {
        for (all, own) in joined.iter_mut().zip(*request) {
            all.data.append(&own.data);
            all.shape[0] += own.shape[0];
        }
    }
    let total: usize = requests.iter().map(|request| rows_of(request)).sum();
    let outputs = run_caught(model, &joined)?;
    if let Some(odd) = outputs.iter().find(|o| o.shape.first() != Some(&total)) {
        return Err(Error::Model(format!(
            "output '{}' has shape {:?} for a batch of {total} rows",
            odd.name, odd.shape
        )));
    }
    let mut from = 0;
    let part = |request: &&[Tensor]| {
        let rows = rows_of(request);
        let cut = |o: &Tensor| {
            let width: usize = o.shape[1..].iter().product();
            let mut shape = o.shape.clone();
            shape[0] = rows;
            Tensor { name: o.name.clone(), shape, data: o.data.slice(from * width, (from + rows) * width) }
        };
        let own = outputs.iter().map(cut).collect();
        from += rows;
        own
    };
    Ok(requests.iter().map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Data;
    use crate::testing::{FakeModel, row};

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    /// Requests of these numbers of rows, sent at once, in a collector that knows of all of them.
    async fn send(model: &Arc<FakeModel>, max_size: usize, requests: Vec<Vec<Tensor>>) -> Vec<Vec<Tensor>> {
        let admitted = Arc::new(AtomicUsize::new(requests.len()));
        let settings = Batching { max_size, max_delay_ms: 50 };
        let batcher = Batcher::start(Arc::clone(model) as Arc<dyn Model>, &settings, admitted);
        let answers = requests.into_iter().map(|inputs| batcher.run(inputs, far()));
        futures_util::future::join_all(answers).await.into_iter().map(|answer| answer.unwrap().unwrap()).collect()
    }

    #[tokio::test]
    async fn requests_are_joined_and_parted_again() {
        let model = FakeModel::doubling();
        let answers = send(&model, 8, (0..20).map(|i| row(i as f32)).collect()).await;
        for (i, outputs) in answers.iter().enumerate() {
            assert_eq!(outputs[0].data, Data::Fp32(vec![2.0 * i as f32, -2.0 * i as f32]));
            assert_eq!(outputs[0].shape, [1, 2]);
        }
        let calls = model.calls();
        assert_eq!(calls.iter().sum::<usize>(), 20);
        assert!(calls.len() < 20 && calls.iter().all(|n| *n <= 8), "{calls:?}");
    }

    #[tokio::test]
    async fn a_batch_never_has_more_rows_than_its_size_but_for_one_request_that_has() {
        let model = FakeModel::doubling();
        let rows =
            |n: usize| vec![Tensor { name: "x".into(), shape: vec![n, 2], data: Data::Fp32(vec![n as f32; 2 * n]) }];
        let answers = send(&model, 8, [3, 3, 3, 7, 2, 20, 8, 0, 1].map(rows).into()).await;
        for (outputs, n) in answers.iter().zip([3, 3, 3, 7, 2, 20, 8, 0, 1]) {
            assert_eq!(outputs[0].data, Data::Fp32(vec![2.0 * n as f32; 2 * n]));
        }
        assert_eq!(model.calls(), [6, 3, 7, 2, 20, 8, 1]);
    }

    #[tokio::test]
    async fn requests_that_nobody_waits_for_are_not_computed() {
        let (model, gate) = FakeModel::gated();
        let settings = Batching { max_size: 1, max_delay_ms: 0 };
        let batcher = Arc::new(Batcher::start(Arc::clone(&model) as Arc<dyn Model>, &settings, Arc::default()));
        let ask = |value: f32, deadline: Instant| {
            let batcher = Arc::clone(&batcher);
            tokio::spawn(async move { batcher.run(row(value), deadline).await })
        };
        let first = ask(1.0, far());
        gate.entered().await;
        // While the first is computed, one caller goes away, one deadline passes, and one waits.
        let gone = ask(2.0, far());
        let late = ask(3.0, Instant::now());
        let patient = ask(4.0, far());
        while batcher.queue.capacity() > 1024 - 3 {
            tokio::task::yield_now().await;
        }
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        gate.open();
        assert!(first.await.unwrap().unwrap().is_ok());
        assert!(late.await.unwrap().is_none());
        assert!(patient.await.unwrap().unwrap().is_ok());
        assert_eq!(model.seen(), [1.0, 4.0]);
    }

    #[tokio::test]
    async fn a_request_whose_caller_is_gone_takes_no_memory() {
        let (queue, mut jobs) = mpsc::channel(1);
        let batcher = Batcher { queue };
        let gone = tokio::spawn(async move { batcher.run(row(1.0), far()).await });
        let waiting = jobs.recv().await.unwrap();
        assert!(waiting.inputs.lock().is_some());
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        assert!(waiting.inputs.lock().is_none());
    }

    #[tokio::test]
    async fn a_request_that_fails_does_not_fail_its_neighbours() {
        let model = FakeModel::new(|inputs| {
            let Data::Fp32(v) = &inputs[0].data else { return Err(Error::Model("type".into())) };
            assert!(!v.contains(&13.0), "a panic of the model");
            if v.contains(&3.0) {
                return Err(Error::Model("three".into()));
            }
            Ok(vec![Tensor { name: "y".into(), ..inputs[0].clone() }])
        });
        let settings = Batching { max_size: 64, max_delay_ms: 50 };
        let batcher = &Batcher::start(Arc::clone(&model) as Arc<dyn Model>, &settings, Arc::new(AtomicUsize::new(5)));
        let ask = |value| async move { batcher.run(row(value), far()).await.unwrap().map_err(|e| e.to_string()) };
        let (a, three, b, panics, c) = tokio::join!(ask(1.0), ask(3.0), ask(2.0), ask(13.0), ask(4.0));
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
        assert_eq!(three.unwrap_err(), "three");
        assert!(panics.unwrap_err().contains("crashed"));
        assert!(ask(5.0).await.is_ok(), "the collector lives on");
    }
}
