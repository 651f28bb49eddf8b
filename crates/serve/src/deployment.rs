//! One deployment: picks the model for a request, and computes it within the limits of queue and time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use slipway_core::ids;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::batch::{Batcher, rows_of};
use crate::manifest::{Manifest, SplitBy};
use crate::model::{ResolvedModel, model_file};
use crate::runtime::{Model, Runtime, check_inputs, example, run_caught};
use crate::stats::Stats;
use crate::tensor::Tensor;
use crate::{Error, joinable, manifest};

/// A call that is expected to take less than this is computed on the thread that read the request, since handing it to another
/// thread would cost more than the call.
const INLINE: Duration = Duration::from_micros(400);

/// A model that was loaded for one version.
pub struct Loaded {
    /// The model.
    pub model: Arc<dyn Model>,
    /// Which version of which registered model it is.
    pub resolved: ResolvedModel,
    /// Its request counters and latencies.
    pub stats: Stats,
    batcher: Option<Batcher>,
    /// Why there is no batcher though the manifest asks for one.
    pub(crate) not_batched: Option<String>,
    /// Nanoseconds that a row takes, exponentially smoothed; `u64::MAX` until the first call.
    row_ns: AtomicU64,
}

impl Loaded {
    /// Loads the model that is at `path` and warms it up.
    ///
    /// # Errors
    /// [`Error::Model`] when the file is no usable model.
    pub fn open(
        runtime: &Runtime,
        resolved: ResolvedModel,
        path: &std::path::Path,
        spec: &manifest::Spec,
        admitted: Arc<AtomicUsize>,
    ) -> Result<Self, Error> {
        Ok(Self::new(runtime.load(&model_file(path)?)?, resolved, spec, admitted))
    }

    pub(crate) fn new(
        model: Arc<dyn Model>,
        resolved: ResolvedModel,
        spec: &manifest::Spec,
        admitted: Arc<AtomicUsize>,
    ) -> Self {
        let inputs = example(model.inputs());
        // The first call allocates, the second tells how long a row takes. A model that cannot take zeros (one
        // that looks texts up, say) is loaded all the same.
        let mut row_ns = u64::MAX;
        for _ in 0..2 {
            let started = Instant::now();
            match run_caught(model.as_ref(), &inputs) {
                Ok(_) => row_ns = nanos(started.elapsed()),
                Err(error) => {
                    tracing::debug!(%error, "the model does not take zeros");
                    break;
                }
            }
        }
        let (mut batcher, mut not_batched) = (None, None);
        if let Some(batching) = &spec.batching {
            match joinable::check(model.as_ref()) {
                Ok(()) => batcher = Some(Batcher::start(Arc::clone(&model), batching, admitted)),
                Err(why) => not_batched = Some(format!("requests are not batched: {why}")),
            }
        }
        Self { model, resolved, stats: Stats::default(), batcher, not_batched, row_ns: AtomicU64::new(row_ns) }
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        let started = Instant::now();
        let result = run_caught(self.model.as_ref(), inputs);
        let row = nanos(started.elapsed()) / rows_of(inputs).max(1) as u64;
        let old = self.row_ns.load(Relaxed);
        let smoothed = if old == u64::MAX { row } else { old - old / 8 + row / 8 };
        self.row_ns.store(smoothed, Relaxed);
        result
    }

    fn is_quick(&self, rows: usize) -> bool {
        u128::from(self.row_ns.load(Relaxed)) * (rows as u128) < INLINE.as_nanos()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX - 1)
}

fn concurrency(limits: &manifest::Limits) -> usize {
    match limits.concurrency {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n.min(Semaphore::MAX_PERMITS),
    }
}

/// Whether a variant can answer.
#[derive(Clone)]
pub enum State {
    /// Being loaded for the first time.
    Loading,
    /// Answers requests.
    Ready(Arc<Loaded>),
    /// Could not be loaded.
    Failed(String),
}

/// One of the models of a deployment.
pub struct Variant {
    /// Its manifest.
    pub spec: manifest::Variant,
    /// Whether it can answer.
    pub state: RwLock<State>,
    /// Why the newest version of a moved alias could not be loaded; the one before goes on answering.
    pub stale: RwLock<Option<String>>,
}

impl Variant {
    /// The loaded model, if there is one.
    pub fn loaded(&self) -> Option<Arc<Loaded>> {
        match &*self.state.read() {
            State::Ready(loaded) => Some(Arc::clone(loaded)),
            _ => None,
        }
    }
}

/// A deployment in force.
pub struct Deployment {
    /// Its manifest.
    pub manifest: Manifest,
    /// The number of its revision in the store.
    pub revision: i64,
    /// Its models, in the manifest's order.
    pub variants: Vec<Arc<Variant>>,
    /// Requests that are waiting or being computed; shared with the revisions before and after.
    pub admitted: Arc<AtomicUsize>,
    /// One permit for each slow call that may be computed at once.
    slots: Arc<Semaphore>,
}

/// A request for a model.
#[derive(Debug, Default)]
pub struct Request {
    /// The client's id.
    pub id: Option<String>,
    /// A version the client insists on.
    pub version: Option<String>,
    /// The value of the header that decides, if the deployment splits by one.
    pub split_key: Option<String>,
    /// The inputs.
    pub inputs: Vec<Tensor>,
}

/// An answer.
pub struct Answer {
    /// The request's id, the client's or a new one.
    pub id: String,
    /// The variant's name.
    pub variant: String,
    /// Which model it was.
    pub model: Arc<Loaded>,
    /// The outputs.
    pub outputs: Vec<Tensor>,
    /// How long it took.
    pub took: Duration,
}

impl Answer {
    /// The output of that name.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the names there are.
    pub fn output(&self, name: &str) -> Result<&Tensor, Error> {
        self.outputs.iter().find(|o| o.name == name).ok_or_else(|| {
            let known = self.outputs.iter().map(|o| format!("'{}'", o.name)).collect::<Vec<_>>().join(", ");
            Error::Invalid(format!("unexpected output '{name}'; the model gives {known}"))
        })
    }

    /// What every protocol's answer names in its headers: deployment, model version, variant and request.
    pub(crate) fn headers<'a>(&'a self, deployment: &'a str) -> [(&'static str, &'a str); 4] {
        [
            ("x-slipway-model", deployment),
            ("x-slipway-model-version", &self.model.resolved.version),
            ("x-slipway-variant", &self.variant),
            ("x-slipway-request-id", &self.id),
        ]
    }
}

struct Admission<'a>(&'a AtomicUsize);

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Deployment {
    /// A deployment whose models are still to be loaded.
    pub fn new(manifest: Manifest, revision: i64, admitted: Arc<AtomicUsize>) -> Self {
        let variant = |spec: &manifest::Variant| {
            Arc::new(Variant { spec: spec.clone(), state: RwLock::new(State::Loading), stale: RwLock::new(None) })
        };
        let variants = manifest.spec.models.iter().map(variant).collect();
        let slots = Arc::new(Semaphore::new(concurrency(&manifest.spec.limits)));
        Self { manifest, revision, variants, admitted, slots }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.manifest.metadata.name
    }

    /// Whether every model with traffic answers.
    pub fn is_ready(&self) -> bool {
        self.variants.iter().filter(|v| v.spec.weight > 0).all(|v| v.loaded().is_some())
    }

    /// The variant whose share of the traffic `key` falls into.
    pub fn pick(&self, key: &str) -> &Arc<Variant> {
        let point = stable_hash(key) % 100;
        let mut upto = 0;
        for variant in &self.variants {
            upto += u64::from(variant.spec.weight);
            if point < upto {
                return variant;
            }
        }
        // The weights add up to 100, which `Manifest::check` ensures; the last one is as good as any otherwise.
        &self.variants[self.variants.len() - 1]
    }

    fn choose(&self, version: Option<&str>, key: &str) -> Result<(&Arc<Variant>, Arc<Loaded>), Error> {
        if let Some(version) = version.filter(|v| !v.is_empty()) {
            let loaded = self.variants.iter().filter_map(|v| v.loaded().map(|l| (v, l)));
            let mut named = loaded.filter(|(v, l)| l.resolved.version == version || v.spec.name == version);
            return named
                .next()
                .ok_or_else(|| Error::NotFound(format!("model '{}' has no version '{version}' loaded", self.name())));
        }
        let variant = self.pick(key);
        match &*variant.state.read() {
            State::Ready(loaded) => Ok((variant, Arc::clone(loaded))),
            State::Loading => Err(Error::NotReady(format!("model '{}' is being loaded", self.name()))),
            State::Failed(why) => Err(Error::NotReady(format!("model '{}' could not be loaded: {why}", self.name()))),
        }
    }

    /// The model that metadata is asked of: of the version, or the first that is loaded.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::NotReady`].
    pub fn representative(&self, version: Option<&str>) -> Result<Arc<Loaded>, Error> {
        match version.filter(|v| !v.is_empty()) {
            Some(version) => self.choose(Some(version), "").map(|(_, loaded)| loaded),
            None => self
                .variants
                .iter()
                .find_map(|v| v.loaded())
                .ok_or_else(|| Error::NotReady(format!("model '{}' is not loaded", self.name()))),
        }
    }

    /// Answers a request.
    ///
    /// # Errors
    /// What is wrong with the request; overload; the time limit; the model's failure.
    pub async fn infer(&self, request: Request) -> Result<Answer, Error> {
        let started = Instant::now();
        let limits = &self.manifest.spec.limits;
        let waiting = self.admitted.fetch_add(1, Relaxed);
        let _admission = Admission(&self.admitted);
        if waiting >= limits.queue {
            return Err(Error::Overloaded(self.name().to_owned()));
        }
        let id = request.id.filter(|id| !id.is_empty()).unwrap_or_else(ids::hex32);
        let key = match self.manifest.spec.split.by {
            SplitBy::Header => request.split_key.as_deref().unwrap_or(&id),
            SplitBy::RequestId => &id,
        };
        let (variant, loaded) = self.choose(request.version.as_deref(), key)?;
        let result = self.compute(&loaded, request.inputs, Duration::from_millis(limits.timeout_ms)).await;
        let took = started.elapsed();
        let (rows, failed) = result.as_ref().map_or((0, true), |(rows, _)| (*rows, false));
        loaded.stats.record(took, rows, failed);
        let (_, outputs) = result?;
        Ok(Answer { id, variant: variant.spec.name.clone(), model: loaded, outputs, took })
    }

    async fn compute(
        &self,
        loaded: &Arc<Loaded>,
        inputs: Vec<Tensor>,
        limit: Duration,
    ) -> Result<(usize, Vec<Tensor>), Error> {
        let inputs = check_inputs(loaded.model.inputs(), inputs)?;
        let rows = rows_of(&inputs);
        if loaded.batcher.is_none() && loaded.is_quick(rows) {
            return loaded.run(&inputs).map(|outputs| (rows, outputs));
        }
        let deadline = tokio::time::Instant::now().checked_add(limit).unwrap_or_else(far_future);
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let timed_out = || Error::Timeout { model: self.name().to_owned(), limit_ms };
        let going_away = || Error::NotReady(format!("model '{}' is going away", self.name()));
        let work = async {
            if let Some(batcher) = &loaded.batcher {
                return match batcher.run(inputs, deadline).await {
                    Some(result) => result,
                    None if tokio::time::Instant::now() >= deadline => Err(timed_out()),
                    None => Err(going_away()),
                };
            }
            let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| going_away())?;
            let loaded = Arc::clone(loaded);
            let computation = tokio::task::spawn_blocking(move || {
                // The slot is held until the computation ends, even if its caller stopped waiting.
                let _slot = slot;
                loaded.run(&inputs)
            });
            let mut computation = CancelOnDrop(computation);
            (&mut computation.0).await.map_err(|e| Error::Model(format!("the model crashed: {e}")))?
        };
        let done = tokio::time::timeout_at(deadline, work).await.map_err(|_| timed_out())?;
        done.map(|outputs| (rows, outputs))
    }
}

/// Cancels a computation that still waits for a thread when its caller goes away. One that has started runs to its end.
struct CancelOnDrop<T>(JoinHandle<T>);

impl<T> Drop for CancelOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A deadline for a time limit too long to be added to the clock.
fn far_future() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(86_400)
}

/// FNV-1a with a final mix (MurmurHash3's `fmix64`): the same on every machine and in every version.
fn stable_hash(text: &str) -> u64 {
    let mut hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    for multiplier in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(multiplier);
    }
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelUri;
    use crate::testing::{FakeModel, World, manifest, row};

    fn split(a: u32, b: u32) -> Deployment {
        let mut manifest = Manifest::single("m", ModelUri::Local("a.onnx".into()));
        let mut second = manifest.spec.models[0].clone();
        manifest.spec.models[0].weight = a;
        second.name = "b".into();
        second.weight = b;
        manifest.spec.models.push(second);
        Deployment::new(manifest, 1, Arc::default())
    }

    #[test]
    fn shares_are_kept_and_a_key_always_finds_the_same_model() {
        let deployment = split(90, 10);
        let count = |d: &Deployment| (0..10_000).filter(|i| d.pick(&format!("request-{i}")).spec.name == "b").count();
        let share = count(&deployment);
        assert!((900..1100).contains(&share), "{share}");
        assert_eq!(share, count(&deployment));
        assert_eq!(count(&split(100, 0)), 0);
        assert_eq!(count(&split(0, 100)), 10_000);
    }

    #[test]
    fn a_computation_that_waits_for_a_thread_is_not_started_when_its_caller_goes_away() {
        let one_thread = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        one_thread.unwrap().block_on(async {
            let world = World::new();
            let (model, gate) = FakeModel::gated();
            let mut manifest = manifest();
            manifest.spec.limits.concurrency = 4;
            let deployment = world.insert(manifest, model.clone());
            let ask = |value| {
                let deployment = Arc::clone(&deployment);
                let request = Request { inputs: row(value), ..Request::default() };
                tokio::spawn(async move { deployment.infer(request).await.is_ok() })
            };
            let first = ask(1.0);
            gate.entered().await;
            let gone = ask(2.0);
            while deployment.slots.available_permits() > 2 {
                tokio::task::yield_now().await;
            }
            gone.abort();
            assert!(gone.await.unwrap_err().is_cancelled());
            let third = ask(3.0);
            gate.open();
            assert!(first.await.unwrap() && third.await.unwrap());
            assert_eq!(model.seen().into_iter().filter(|v| *v != 0.0).collect::<Vec<_>>(), [1.0, 3.0]);
            assert_eq!(deployment.slots.available_permits(), 4);
        });
    }

    #[tokio::test]
    async fn a_full_queue_turns_requests_away() {
        let deployment = split(100, 0);
        deployment.admitted.store(deployment.manifest.spec.limits.queue, Relaxed);
        assert!(matches!(deployment.infer(Request::default()).await, Err(Error::Overloaded(_))));
        deployment.admitted.store(0, Relaxed);
        assert!(matches!(deployment.infer(Request::default()).await, Err(Error::NotReady(_))));
    }
}
