//! Shared test support: generated models, an in-memory registry, and a gateway on a temporary folder.

pub(crate) mod onnx;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use parking_lot::{Condvar, Mutex};
use slipway_store::Database;
use tokio::sync::{Semaphore, watch};

use crate::body::BodyLimits;
use crate::deployment::{Deployment, Loaded, State};
use crate::manifest::Manifest;
use crate::model::{FetchFuture, ModelSource, ResolvedModel};
use crate::runtime::{Model, Preference, Runtime};
use crate::tensor::{Data, DataType, Tensor, TensorSpec};
use crate::{Error, Gateway, ModelUri};

/// Input `x` with one row of two numbers: `value` and its negative.
pub(crate) fn row(value: f32) -> Vec<Tensor> {
    vec![Tensor { name: "x".into(), shape: vec![1, 2], data: Data::Fp32(vec![value, -value]) }]
}

pub(crate) fn floats(tensor: &Tensor) -> &[f32] {
    match &tensor.data {
        Data::Fp32(values) => values,
        other => panic!("{other:?}"),
    }
}

type Run = dyn Fn(&[Tensor]) -> Result<Vec<Tensor>, Error> + Send + Sync;

/// A model that runs a closure and records its calls.
pub(crate) struct FakeModel {
    specs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    run: Box<Run>,
    /// Number of rows and first element of each call.
    calls: Mutex<Vec<(usize, f32)>>,
}

impl FakeModel {
    pub(crate) fn with_specs(
        specs: Vec<TensorSpec>,
        run: impl Fn(&[Tensor]) -> Result<Vec<Tensor>, Error> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let outputs = specs.iter().map(|s| TensorSpec { name: "y".into(), ..s.clone() }).collect();
        Arc::new(Self { specs, outputs, run: Box::new(run), calls: Mutex::default() })
    }

    /// A model with input `x` and output `y`, both FP32 of shape [-1, 2].
    pub(crate) fn new(run: impl Fn(&[Tensor]) -> Result<Vec<Tensor>, Error> + Send + Sync + 'static) -> Arc<Self> {
        let spec = TensorSpec { name: "x".into(), datatype: DataType::Fp32, shape: Some(vec![-1, 2]) };
        Self::with_specs(vec![spec], run)
    }

    pub(crate) fn doubling() -> Arc<Self> {
        Self::new(|inputs| {
            let data = Data::Fp32(floats(&inputs[0]).iter().map(|x| x * 2.0).collect());
            Ok(vec![Tensor { name: "y".into(), shape: inputs[0].shape.clone(), data }])
        })
    }

    /// A model whose calls wait for the gate. It rejects the warm-up inputs, so a deployment does not run it inline.
    pub(crate) fn gated() -> (Arc<Self>, Gate) {
        let gate = Gate::default();
        let model_gate = gate.clone();
        let model = Self::new(move |inputs| {
            if floats(&inputs[0]).iter().all(|x| *x == 0.0) {
                return Err(Error::Model("zeros".into()));
            }
            model_gate.wait();
            Ok(vec![Tensor { name: "y".into(), ..inputs[0].clone() }])
        });
        (model, gate)
    }

    /// Number of rows of each call.
    pub(crate) fn calls(&self) -> Vec<usize> {
        self.calls.lock().iter().map(|(rows, _)| *rows).collect()
    }

    /// The first element of each call.
    pub(crate) fn first_elements(&self) -> Vec<f32> {
        self.calls.lock().iter().map(|(_, first)| *first).collect()
    }
}

impl Model for FakeModel {
    fn inputs(&self) -> &[TensorSpec] {
        &self.specs
    }
    fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
        let first = floats(&inputs[0]).first().copied().unwrap_or_default();
        self.calls.lock().push((crate::batch::rows_of(inputs), first));
        (self.run)(inputs)
    }
}

/// Blocks threads until it is opened.
#[derive(Clone)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar, Semaphore)>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new((Mutex::new(false), Condvar::new(), Semaphore::new(0))))
    }
}

impl Gate {
    fn wait(&self) {
        let (open, opened, entered) = &*self.0;
        entered.add_permits(1);
        let mut open = open.lock();
        // The timeout lets the thread end if the test fails before opening the gate.
        while !*open && !opened.wait_for(&mut open, Duration::from_secs(60)).timed_out() {}
    }

    /// Waits until one more call has reached the gate.
    pub(crate) async fn entered(&self) {
        self.0.2.acquire().await.unwrap().forget();
    }

    /// Lets all current and future calls pass.
    pub(crate) fn open(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_all();
    }
}

/// A temporary folder that is deleted on drop.
pub(crate) struct TempFolder(PathBuf);

impl TempFolder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // leftovers stay in the system's temporary folder
    }
}

pub(crate) fn folder() -> TempFolder {
    let path = std::env::temp_dir().join(format!("slipway-serve-{}", slipway_core::ids::hex32()));
    std::fs::create_dir_all(&path).unwrap();
    TempFolder(path)
}

pub(crate) fn builtin() -> Runtime {
    Runtime::choose(Preference::Builtin, None).unwrap()
}

/// The ONNX Runtime of this machine. Tests that call this are `#[ignore]`d.
pub(crate) fn onnx_runtime() -> Runtime {
    let library = std::env::var_os("SLIPWAY_ONNXRUNTIME").map(PathBuf::from);
    static ONCE: Mutex<Option<Runtime>> = Mutex::new(None);
    ONCE.lock().get_or_insert_with(|| Runtime::choose(Preference::Ort, library.as_deref()).unwrap()).clone()
}

/// An in-memory registry. Its locations have the form `stored:/PATH`.
pub(crate) struct Registry {
    /// Each fetch consumes one permit, so a test can delay fetches.
    pub(crate) fetches: Semaphore,
    models: Mutex<HashMap<String, ResolvedModel>>,
    changes: watch::Sender<u64>,
}

impl Registry {
    /// Points a URI to this version, stored at `location`.
    pub(crate) fn set(&self, uri: &str, version: &str, location: String) {
        let model =
            ResolvedModel { name: "m".into(), version: version.into(), run_id: format!("run-{version}"), location };
        self.models.lock().insert(uri.into(), model);
        self.changes.send_modify(|n| *n += 1);
    }
}

impl ModelSource for Registry {
    fn resolve(&self, uri: &str) -> Result<ResolvedModel, Error> {
        self.models.lock().get(uri).cloned().ok_or_else(|| Error::ModelNotFound(format!("no model {uri}")))
    }
    fn fetch<'a>(&'a self, model: &'a ResolvedModel) -> FetchFuture<'a> {
        Box::pin(async {
            self.fetches.acquire().await.unwrap().forget();
            let path = model.location.strip_prefix("stored:").map(PathBuf::from);
            path.ok_or_else(|| Error::Store(format!("{} is not stored by this server", model.location)))
        })
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// A gateway with its registry and folder.
pub(crate) struct World {
    pub(crate) folder: TempFolder,
    pub(crate) registry: Arc<Registry>,
    pub(crate) gateway: Gateway,
    db: Database,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_limits(BodyLimits::default())
    }

    pub(crate) fn with_limits(limits: BodyLimits) -> Self {
        let folder = folder();
        let db = Database::open(&folder.path().join("slipway.db"), &[crate::MIGRATION]).unwrap();
        let registry = Arc::new(Registry {
            fetches: Semaphore::new(1000),
            models: Mutex::default(),
            changes: watch::Sender::new(0),
        });
        let gateway =
            Gateway::open(db.clone(), builtin(), Arc::clone(&registry) as Arc<dyn ModelSource>, limits).unwrap();
        Self { folder, registry, gateway, db }
    }

    /// Opens another gateway on the same database, as after a restart.
    pub(crate) fn reopen(&self) -> Gateway {
        let source = Arc::clone(&self.registry) as Arc<dyn ModelSource>;
        Gateway::open(self.db.clone(), builtin(), source, BodyLimits::default()).unwrap()
    }

    /// Writes a model into the folder and returns its path.
    pub(crate) fn file(&self, name: &str, model: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, model).unwrap();
        path
    }

    /// Registers a model that multiplies its input by `factor`, as `version` of `uri`.
    pub(crate) fn register(&self, uri: &str, version: &str, factor: f32) {
        let path = self.file(&format!("{version}.onnx"), &onnx::scale(factor));
        self.registry.set(uri, version, format!("stored:{}", path.display()));
    }

    /// Activates a fake model without storing a revision.
    pub(crate) fn insert(&self, manifest: Manifest, model: Arc<dyn Model>) -> Arc<Deployment> {
        let deployment = Deployment::new(manifest, 1, Arc::default());
        let resolved = ResolvedModel::local(Path::new("fake.onnx"));
        let loaded = Loaded::new(model, resolved, &deployment.manifest.spec, Arc::clone(&deployment.admitted));
        *deployment.variants[0].state.write() = State::Ready(Arc::new(loaded));
        let deployment = Arc::new(deployment);
        self.gateway.insert(Arc::clone(&deployment));
        deployment
    }
}

/// A deployment `m` of `models:/m@live`.
pub(crate) fn manifest() -> Manifest {
    Manifest::single("m", ModelUri::parse("models:/m@live").unwrap())
}

/// A JSON request with one row, as [`row`].
pub(crate) fn json_row(value: f32) -> String {
    format!(r#"{{"inputs":[{{"name":"x","shape":[1,2],"datatype":"FP32","data":[{value},{}]}}]}}"#, -value)
}

/// A body that yields the frames sent to the channel, and ends when the sender is dropped.
pub(crate) fn channel_body() -> (tokio::sync::mpsc::UnboundedSender<Bytes>, Body) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|data: Bytes| (Ok::<_, std::convert::Infallible>(data), receiver))
    });
    (sender, Body::from_stream(frames))
}
