//! Adaptive batching: requests that wait together are computed together.
//!
//! The first request of a batch waits for others at most `max_delay`, and not at all when nobody else is on
//! the way: the deployment knows how many requests it has admitted, so a lone caller pays no delay.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::manifest::Batching;
use crate::runtime::Model;
use crate::tensor::Tensor;

struct Job {
    inputs: Vec<Tensor>,
    reply: oneshot::Sender<Result<Vec<Tensor>, Error>>,
}

/// Collects requests for one loaded model.
pub struct Batcher {
    queue: mpsc::Sender<Job>,
}

impl Batcher {
    /// Starts the collector; it ends when the batcher is dropped.
    ///
    /// `admitted` counts the deployment's requests that are waiting or computed.
    pub fn start(model: Arc<dyn Model>, settings: &Batching, admitted: Arc<AtomicUsize>) -> Self {
        let (queue, jobs) = mpsc::channel(1024);
        let (max_size, max_delay) = (settings.max_size, Duration::from_millis(settings.max_delay_ms));
        tokio::spawn(collect(model, jobs, max_size, max_delay, admitted));
        Self { queue }
    }

    /// Computes the inputs in some batch.
    ///
    /// # Errors
    /// The model's.
    pub async fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::NotReady("the model was unloaded".into());
        self.queue.send(Job { inputs, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

async fn collect(
    model: Arc<dyn Model>,
    mut jobs: mpsc::Receiver<Job>,
    max_size: usize,
    max_delay: Duration,
    admitted: Arc<AtomicUsize>,
) {
    while let Some(first) = jobs.recv().await {
        let mut batch = vec![first];
        let deadline = tokio::time::Instant::now() + max_delay;
        let rows = |batch: &[Job]| batch.iter().map(|j| rows_of(&j.inputs)).sum::<usize>();
        while rows(&batch) < max_size {
            if let Ok(job) = jobs.try_recv() {
                batch.push(job);
                continue;
            }
            if admitted.load(Relaxed) <= batch.len() {
                break;
            }
            match tokio::time::timeout_at(deadline, jobs.recv()).await {
                Ok(Some(job)) => batch.push(job),
                _ => break,
            }
        }
        for group in alike(batch) {
            let model = Arc::clone(&model);
            // A failing model must not take the collector with it.
            let done = tokio::task::spawn_blocking(move || compute(model.as_ref(), group)).await;
            if let Err(error) = done {
                tracing::error!(%error, "a batch was lost");
            }
        }
    }
}

/// Rows of a request: the first dimension of its first input.
pub fn rows_of(inputs: &[Tensor]) -> usize {
    inputs.first().and_then(|t| t.shape.first()).copied().unwrap_or(1)
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

fn compute(model: &dyn Model, mut group: Vec<Job>) {
    if group.len() == 1 {
        if let Some(job) = group.pop() {
            drop(job.reply.send(model.run(&job.inputs)));
        }
        return;
    }
    let counts: Vec<usize> = group.iter().map(|j| rows_of(&j.inputs)).collect();
    let mut joined = group[0].inputs.clone();
    for job in &group[1..] {
        for (all, own) in joined.iter_mut().zip(&job.inputs) {
            all.data.append(&own.data);
            all.shape[0] += own.shape[0];
        }
    }
    let total: usize = counts.iter().sum();
    let result =
        model.run(&joined).and_then(|outputs| match outputs.iter().find(|o| o.shape.first() != Some(&total)) {
            Some(odd) => Err(Error::Model(format!(
                "output '{}' has shape {:?} for a batch of {total} rows; this model cannot be batched",
                odd.name, odd.shape
            ))),
            None => Ok(outputs),
        });
    let mut from = 0;
    for (job, rows) in group.into_iter().zip(counts) {
        let own = result.as_ref().map_err(Clone::clone).map(|outputs| {
            let cut = |o: &Tensor| {
                let width: usize = o.shape[1..].iter().product();
                let mut shape = o.shape.clone();
                shape[0] = rows;
                Tensor { name: o.name.clone(), shape, data: o.data.slice(from * width, (from + rows) * width) }
            };
            outputs.iter().map(cut).collect()
        });
        drop(job.reply.send(own));
        from += rows;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Data, DataType, TensorSpec};

    /// Doubles its input and remembers how many rows each call had.
    struct Double(parking_lot::Mutex<Vec<usize>>, Vec<TensorSpec>);

    impl Model for Double {
        fn inputs(&self) -> &[TensorSpec] {
            &self.1
        }
        fn outputs(&self) -> &[TensorSpec] {
            &self.1
        }
        fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
            std::thread::sleep(Duration::from_millis(5));
            self.0.lock().push(rows_of(inputs));
            let Data::Fp32(v) = &inputs[0].data else { return Err(Error::Model("type".into())) };
            let data = Data::Fp32(v.iter().map(|x| x * 2.0).collect());
            Ok(vec![Tensor { name: "y".into(), shape: inputs[0].shape.clone(), data }])
        }
    }

    fn input(value: f32) -> Vec<Tensor> {
        vec![Tensor { name: "x".into(), shape: vec![1, 2], data: Data::Fp32(vec![value, -value]) }]
    }

    #[tokio::test]
    async fn requests_are_joined_and_parted_again() {
        let spec = TensorSpec { name: "x".into(), datatype: DataType::Fp32, shape: vec![-1, 2] };
        let model = Arc::new(Double(parking_lot::Mutex::new(Vec::new()), vec![spec]));
        let admitted = Arc::new(AtomicUsize::new(20));
        let settings = Batching { max_size: 8, max_delay_ms: 50 };
        let batcher = Arc::new(Batcher::start(model.clone(), &settings, admitted));
        let tasks: Vec<_> = (0..20)
            .map(|i| {
                let batcher = Arc::clone(&batcher);
                tokio::spawn(async move { (i, batcher.run(input(i as f32)).await.unwrap()) })
            })
            .collect();
        for task in tasks {
            let (i, outputs) = task.await.unwrap();
            assert_eq!(outputs[0].data, Data::Fp32(vec![2.0 * i as f32, -2.0 * i as f32]));
            assert_eq!(outputs[0].shape, [1, 2]);
        }
        let calls = model.0.lock().clone();
        assert_eq!(calls.iter().sum::<usize>(), 20);
        assert!(calls.len() < 20 && calls.iter().all(|n| *n <= 8), "{calls:?}");
    }
}
