//! One deployment: picks the model for each request and runs it.
//!
//! Invariant: at most `limits.queue` requests are queued or computed at once, and a request returns within `limits.timeout_ms`, unless
//! it runs inline because its call is expected to take microseconds.

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
use crate::runtime::{Model, Runtime, check_inputs, run_catching_panics, zero_inputs};
use crate::stats::Stats;
use crate::tensor::Tensor;
use crate::{Error, joinable, manifest};

/// A call that is expected to take less than this runs on the thread that read the request, because moving it to another thread
/// would cost more than the call itself.
const INLINE_THRESHOLD: Duration = Duration::from_micros(400);

/// A loaded model version.
pub struct Loaded {
    /// The model.
    pub model: Arc<dyn Model>,
    /// Name and version in the registry, and the run that produced the model.
    pub resolved: Arc<ResolvedModel>,
    /// Request counters and latencies since the model was loaded.
    pub stats: Stats,
    batcher: Option<Batcher>,
    /// Why requests are not batched although the manifest enables batching.
    pub(crate) not_batched: Option<String>,
    /// Exponentially smoothed time per row in nanoseconds; `u64::MAX` until the first successful call.
    row_ns: AtomicU64,
}

impl Loaded {
    /// Loads the model at `path` and warms it up. `admitted` is the deployment's [`Deployment::admitted`].
    ///
    /// # Errors
    /// [`Error::ModelNotFound`] and [`Error::ModelUnusable`] when the file does not exist or is not a usable model.
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
        let inputs = zero_inputs(model.inputs());
        // The first call allocates; the second measures the time per row. A model that rejects zeros (for example one that
        // looks strings up in a vocabulary) is still loaded.
        let mut row_ns = u64::MAX;
        for inputs in std::iter::repeat_n(inputs, 2).flatten() {
            let started = Instant::now();
            match run_catching_panics(model.as_ref(), &inputs) {
                Ok(_) => row_ns = nanos(started.elapsed()),
                Err(error) => {
                    tracing::debug!(%error, "the model rejects the warm-up inputs");
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
        Self {
            model,
            resolved: Arc::new(resolved),
            stats: Stats::default(),
            batcher,
            not_batched,
            row_ns: AtomicU64::new(row_ns),
        }
    }

    /// Whether requests are computed in batches.
    pub(crate) fn is_batched(&self) -> bool {
        self.batcher.is_some()
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        let started = Instant::now();
        let result = run_catching_panics(self.model.as_ref(), inputs);
        let row = nanos(started.elapsed()) / rows_of(inputs).max(1) as u64;
        let old = self.row_ns.load(Relaxed);
        let smoothed = if old == u64::MAX { row } else { old - old / 8 + row / 8 };
        self.row_ns.store(smoothed, Relaxed);
        result
    }

    fn is_quick(&self, rows: usize) -> bool {
        u128::from(self.row_ns.load(Relaxed)) * (rows as u128) < INLINE_THRESHOLD.as_nanos()
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

/// Whether a variant can serve requests.
#[derive(Clone)]
pub enum State {
    /// Being loaded for the first time.
    Loading,
    /// Serves requests.
    Ready(Arc<Loaded>),
    /// Could not be loaded, with the reason.
    Failed(String),
}

/// One of the models of a deployment.
pub struct Variant {
    /// Name, URI and weight from the manifest.
    pub spec: manifest::Variant,
    /// The loaded model, or why there is none.
    pub state: RwLock<State>,
    /// Why the newest version of a moved alias could not be loaded; the previous version keeps serving.
    pub stale: RwLock<Option<String>>,
}

impl Variant {
    /// The loaded model, unless it is still loading or failed to load.
    pub fn loaded(&self) -> Option<Arc<Loaded>> {
        match &*self.state.read() {
            State::Ready(loaded) => Some(Arc::clone(loaded)),
            _ => None,
        }
    }
}

/// The active revision of a deployment.
pub struct Deployment {
    /// The manifest of this revision.
    pub manifest: Manifest,
    /// The revision's number in the store.
    pub revision: i64,
    /// The models, in the manifest's order.
    pub variants: Vec<Arc<Variant>>,
    /// Number of requests that are queued or being computed; shared by all revisions of the deployment.
    pub admitted: Arc<AtomicUsize>,
    /// Limits how many calls run on blocking threads at once.
    slots: Arc<Semaphore>,
}

/// An inference request.
#[derive(Debug, Default)]
pub struct Request {
    /// The id that the client chose.
    pub id: Option<String>,
    /// The model version, or the variant's name, that the client asks for.
    pub version: Option<String>,
    /// The value of the header that the deployment splits traffic by, if it does.
    pub split_key: Option<String>,
    /// The input tensors.
    pub inputs: Vec<Tensor>,
}

/// The result of an inference request.
pub struct InferOutput {
    /// The request's id: the client's, or a generated one.
    pub id: String,
    /// Name of the variant that computed the outputs.
    pub variant: String,
    /// The model that computed the outputs.
    pub model: Arc<Loaded>,
    /// The output tensors, in the model's order.
    pub outputs: Vec<Tensor>,
    /// Time from admission to the result, queueing included.
    pub took: Duration,
}

impl InferOutput {
    /// The output tensor with this name.
    ///
    /// # Errors
    /// [`Error::Invalid`] that lists the model's outputs.
    pub fn output(&self, name: &str) -> Result<&Tensor, Error> {
        self.outputs.iter().find(|o| o.name == name).ok_or_else(|| {
            let known = self.outputs.iter().map(|o| format!("'{}'", o.name)).collect::<Vec<_>>().join(", ");
            Error::Invalid(format!("unexpected output '{name}'; the model returns {known}"))
        })
    }

    /// Response headers of both protocols: deployment, model version, variant and request id.
    pub(crate) fn headers<'a>(&'a self, deployment: &'a str) -> [(&'static str, &'a str); 4] {
        [
            ("x-slipway-model", deployment),
            ("x-slipway-model-version", &self.model.resolved.version),
            ("x-slipway-variant", &self.variant),
            ("x-slipway-request-id", &self.id),
        ]
    }
}

/// A new request id of 32 hexadecimal digits: random for each process, and counted within it, because a random number for each request
/// would take a system call. The multiplier spreads the counter over all digits.
fn request_id() -> String {
    static PROCESS: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| ids::hex32()[..16].to_owned());
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{}{number:016x}", *PROCESS)
}

/// Holds a request's place in the admission counter.
struct Admission<'a>(&'a AtomicUsize);

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Deployment {
    /// A deployment whose models are not loaded yet.
    pub fn new(manifest: Manifest, revision: i64, admitted: Arc<AtomicUsize>) -> Self {
        let variant = |spec: &manifest::Variant| {
            Arc::new(Variant { spec: spec.clone(), state: RwLock::new(State::Loading), stale: RwLock::new(None) })
        };
        let variants = manifest.spec.models.iter().map(variant).collect();
        let slots = Arc::new(Semaphore::new(concurrency(&manifest.spec.limits)));
        Self { manifest, revision, variants, admitted, slots }
    }

    /// The deployment's name.
    pub fn name(&self) -> &str {
        &self.manifest.metadata.name
    }

    /// Whether every model with a weight above 0 is loaded.
    pub fn is_ready(&self) -> bool {
        self.variants.iter().filter(|v| v.spec.weight > 0).all(|v| v.loaded().is_some())
    }

    /// The variant that `key` is routed to.
    pub fn pick(&self, key: &str) -> &Arc<Variant> {
        let point = stable_hash(key) % 100;
        let mut upper_bound = 0;
        for variant in &self.variants {
            upper_bound += u64::from(variant.spec.weight);
            if point < upper_bound {
                return variant;
            }
        }
        // Unreachable: `Manifest::check` ensures that the weights add up to 100.
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
            State::Loading => Err(Error::NotReady(format!("model '{}' is loading", self.name()))),
            State::Failed(why) => Err(Error::NotReady(format!("model '{}' could not be loaded: {why}", self.name()))),
        }
    }

    /// The model whose metadata describes the deployment: the given version, or the first loaded one.
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

    /// Runs an inference request.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NotFound`], [`Error::NotReady`], [`Error::Overloaded`], [`Error::Timeout`] or [`Error::Model`].
    pub async fn infer(&self, request: Request) -> Result<InferOutput, Error> {
        let started = Instant::now();
        let limits = &self.manifest.spec.limits;
        let waiting = self.admitted.fetch_add(1, Relaxed);
        let _admission = Admission(&self.admitted);
        if waiting >= limits.queue {
            return Err(Error::Overloaded(self.name().to_owned()));
        }
        let id = request.id.filter(|id| !id.is_empty()).unwrap_or_else(request_id);
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
        Ok(InferOutput { id, variant: variant.spec.name.clone(), model: loaded, outputs, took })
    }

    async fn compute(
        &self,
        loaded: &Arc<Loaded>,
        inputs: Vec<Tensor>,
        limit: Duration,
    ) -> Result<(usize, Vec<Tensor>), Error> {
        let inputs = check_inputs(loaded.model.inputs(), inputs)?;
        let rows = rows_of(&inputs);
        let no_rows = inputs.first().filter(|_| rows == 0).map(|input| (input.name.clone(), input.shape.clone()));
        let result = self.compute_checked(loaded, inputs, rows, limit).await;
        match (result, no_rows) {
            // Some models compute an empty batch, so it is rejected only after the model has failed on it.
            (Err(Error::Model(why)), Some((name, shape))) => Err(Error::Invalid(format!(
                "input '{name}' has shape {shape:?}, which is a batch without rows, and the model cannot compute it: {why}"
            ))),
            (result, _) => result.map(|outputs| (rows, outputs)),
        }
    }

    /// Computes inputs that have passed [`check_inputs`].
    async fn compute_checked(
        &self,
        loaded: &Arc<Loaded>,
        inputs: Vec<Tensor>,
        rows: usize,
        limit: Duration,
    ) -> Result<Vec<Tensor>, Error> {
        if loaded.batcher.is_none() && loaded.is_quick(rows) {
            return loaded.run(&inputs);
        }
        let deadline = tokio::time::Instant::now().checked_add(limit).unwrap_or_else(far_future);
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let timed_out = || Error::Timeout { model: self.name().to_owned(), limit_ms };
        let unloading = || Error::NotReady(format!("model '{}' is being unloaded", self.name()));
        let work = async {
            if let Some(batcher) = &loaded.batcher {
                return match batcher.run(inputs, deadline).await {
                    Some(result) => result,
                    None if tokio::time::Instant::now() >= deadline => Err(timed_out()),
                    None => Err(unloading()),
                };
            }
            let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| unloading())?;
            let loaded = Arc::clone(loaded);
            let computation = tokio::task::spawn_blocking(move || {
                // Keep the slot until the computation ends, even if the caller has stopped waiting.
                let _slot = slot;
                loaded.run(&inputs)
            });
            let mut computation = CancelOnDrop(computation);
            (&mut computation.0).await.map_err(|e| Error::Model(format!("the model crashed: {e}")))?
        };
        tokio::time::timeout_at(deadline, work).await.map_err(|_| timed_out())?
    }
}

/// Cancels a blocking task that has not started yet when its caller is dropped. A started task runs to completion.
struct CancelOnDrop<T>(JoinHandle<T>);

impl<T> Drop for CancelOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The deadline for a timeout that would overflow the clock.
fn far_future() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(86_400)
}

/// FNV-1a with MurmurHash3's `fmix64` as finalizer. Must not change: the same key has to reach the same model on every server and
/// in every version.
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
    fn traffic_follows_the_weights_and_keys_are_sticky() {
        let deployment = split(90, 10);
        let count = |d: &Deployment| (0..10_000).filter(|i| d.pick(&format!("request-{i}")).spec.name == "b").count();
        let share = count(&deployment);
        assert!((900..1100).contains(&share), "{share}");
        assert_eq!(share, count(&deployment));
        assert_eq!(count(&split(100, 0)), 0);
        assert_eq!(count(&split(0, 100)), 10_000);
    }

    #[test]
    fn queued_computation_is_cancelled_when_its_caller_is_dropped() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        runtime.unwrap().block_on(async {
            let world = World::new();
            let (model, gate) = FakeModel::gated();
            let mut manifest = manifest();
            manifest.spec.limits.concurrency = 4;
            let deployment = world.insert(manifest, model.clone());
            let infer = |value| {
                let deployment = Arc::clone(&deployment);
                let request = Request { inputs: row(value), ..Request::default() };
                tokio::spawn(async move { deployment.infer(request).await.is_ok() })
            };
            let first = infer(1.0);
            gate.entered().await;
            let cancelled = infer(2.0);
            while deployment.slots.available_permits() > 2 {
                tokio::task::yield_now().await;
            }
            cancelled.abort();
            assert!(cancelled.await.unwrap_err().is_cancelled());
            let third = infer(3.0);
            gate.open();
            assert!(first.await.unwrap() && third.await.unwrap());
            assert_eq!(model.first_elements().into_iter().filter(|v| *v != 0.0).collect::<Vec<_>>(), [1.0, 3.0]);
            assert_eq!(deployment.slots.available_permits(), 4);
        });
    }

    #[tokio::test]
    async fn full_queue_rejects_requests() {
        let deployment = split(100, 0);
        deployment.admitted.store(deployment.manifest.spec.limits.queue, Relaxed);
        assert!(matches!(deployment.infer(Request::default()).await, Err(Error::Overloaded(_))));
        deployment.admitted.store(0, Relaxed);
        assert!(matches!(deployment.infer(Request::default()).await, Err(Error::NotReady(_))));
    }
}
