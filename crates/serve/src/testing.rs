//! What the tests of this crate share: models made by hand, a registry in memory, a gateway on a folder of its own.

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
use crate::model::{Fetching, ModelSource, ResolvedModel};
use crate::runtime::{Model, Preference, Runtime};
use crate::tensor::{Data, DataType, Tensor, TensorSpec};
use crate::{Error, Gateway, ModelUri};

/// One row of two numbers, `value` and its negative, for input `x`.
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

/// A model that is a closure, and remembers what it was called with.
pub(crate) struct FakeModel {
    specs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    run: Box<Run>,
    /// Rows and first element of each call.
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

    /// A model from `x` to `y`, both FP32 of shape [-1, 2].
    pub(crate) fn new(run: impl Fn(&[Tensor]) -> Result<Vec<Tensor>, Error> + Send + Sync + 'static) -> Arc<Self> {
        let spec = TensorSpec { name: "x".into(), datatype: DataType::Fp32, shape: vec![-1, 2] };
        Self::with_specs(vec![spec], run)
    }

    pub(crate) fn doubling() -> Arc<Self> {
        Self::new(|inputs| {
            let data = Data::Fp32(floats(&inputs[0]).iter().map(|x| x * 2.0).collect());
            Ok(vec![Tensor { name: "y".into(), shape: inputs[0].shape.clone(), data }])
        })
    }

    /// A model whose calls wait for the gate. It refuses zeros, so a deployment takes it for slow.
    pub(crate) fn gated() -> (Arc<Self>, Gate) {
        let gate = Gate::default();
        let inside = gate.clone();
        let model = Self::new(move |inputs| {
            if floats(&inputs[0]).iter().all(|x| *x == 0.0) {
                return Err(Error::Model("zeros".into()));
            }
            inside.pass();
            Ok(vec![Tensor { name: "y".into(), ..inputs[0].clone() }])
        });
        (model, gate)
    }

    /// Rows of each call.
    pub(crate) fn calls(&self) -> Vec<usize> {
        self.calls.lock().iter().map(|(rows, _)| *rows).collect()
    }

    /// The first element of each call.
    pub(crate) fn seen(&self) -> Vec<f32> {
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

/// Holds threads up until it is opened.
#[derive(Clone)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar, Semaphore)>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new((Mutex::new(false), Condvar::new(), Semaphore::new(0))))
    }
}

impl Gate {
    fn pass(&self) {
        let (open, opened, entered) = &*self.0;
        entered.add_permits(1);
        let mut open = open.lock();
        // A test that failed does not hang: it leaves the thread to end by itself.
        while !*open && !opened.wait_for(&mut open, Duration::from_secs(60)).timed_out() {}
    }

    /// Until one more call has come to the gate.
    pub(crate) async fn entered(&self) {
        self.0.2.acquire().await.unwrap().forget();
    }

    /// Lets all calls pass from now on.
    pub(crate) fn open(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_all();
    }
}

/// A folder that goes with its owner.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // what is left over lies in the system's temporary folder
    }
}

pub(crate) fn folder() -> Folder {
    let path = std::env::temp_dir().join(format!("slipway-serve-{}", slipway_core::ids::hex32()));
    std::fs::create_dir_all(&path).unwrap();
    Folder(path)
}

pub(crate) fn tract() -> Runtime {
    Runtime::choose(Preference::Tract, None).unwrap()
}

/// The ONNX Runtime of this machine; a test that calls this is ignored unless it is asked for.
pub(crate) fn onnx_runtime() -> Runtime {
    let library = std::env::var_os("SLIPWAY_ONNXRUNTIME").map(PathBuf::from);
    static ONCE: Mutex<Option<Runtime>> = Mutex::new(None);
    ONCE.lock().get_or_insert_with(|| Runtime::choose(Preference::Ort, library.as_deref()).unwrap()).clone()
}

/// A registry of URIs; what it stored is `stored:/PATH`.
pub(crate) struct Registry {
    /// One permit lets one model be fetched.
    pub(crate) fetches: Semaphore,
    models: Mutex<HashMap<String, ResolvedModel>>,
    changes: watch::Sender<u64>,
}

impl Registry {
    /// Lets a URI mean this version, whose file is at `location`.
    pub(crate) fn set(&self, uri: &str, version: &str, location: String) {
        let model =
            ResolvedModel { name: "m".into(), version: version.into(), run_id: format!("run-{version}"), location };
        self.models.lock().insert(uri.into(), model);
        self.changes.send_modify(|n| *n += 1);
    }
}

impl ModelSource for Registry {
    fn resolve(&self, uri: &str) -> Result<ResolvedModel, String> {
        self.models.lock().get(uri).cloned().ok_or_else(|| format!("no model {uri}"))
    }
    fn fetch<'a>(&'a self, model: &'a ResolvedModel) -> Fetching<'a> {
        Box::pin(async {
            self.fetches.acquire().await.unwrap().forget();
            let path = model.location.strip_prefix("stored:").map(PathBuf::from);
            path.ok_or_else(|| format!("{} is not stored by this server", model.location))
        })
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// A gateway with its registry and its folder.
pub(crate) struct World {
    pub(crate) folder: Folder,
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
            Gateway::open(db.clone(), tract(), Arc::clone(&registry) as Arc<dyn ModelSource>, limits).unwrap();
        Self { folder, registry, gateway, db }
    }

    /// Another gateway on the same database, as after a restart.
    pub(crate) fn reopen(&self) -> Gateway {
        let source = Arc::clone(&self.registry) as Arc<dyn ModelSource>;
        Gateway::open(self.db.clone(), tract(), source, BodyLimits::default()).unwrap()
    }

    /// Writes a model into the folder; its path.
    pub(crate) fn file(&self, name: &str, model: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, model).unwrap();
        path
    }

    /// Registers a model that multiplies by `factor` as `version` of `uri`.
    pub(crate) fn register(&self, uri: &str, version: &str, factor: f32) {
        let path = self.file(&format!("{version}.onnx"), &onnx::scale(factor));
        self.registry.set(uri, version, format!("stored:{}", path.display()));
    }

    /// Puts a fake model in force, without the store knowing.
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

/// A deployment of `models:/m@live` by name `m`.
pub(crate) fn manifest() -> Manifest {
    Manifest::single("m", ModelUri::parse("models:/m@live").unwrap())
}

/// A request for one row, as JSON.
pub(crate) fn json_row(value: f32) -> String {
    format!(r#"{{"inputs":[{{"name":"x","shape":[1,2],"datatype":"FP32","data":[{value},{}]}}]}}"#, -value)
}

/// A body that sends what it is told to, and ends when the sender goes.
pub(crate) fn channel_body() -> (tokio::sync::mpsc::UnboundedSender<Bytes>, Body) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|data: Bytes| (Ok::<_, std::convert::Infallible>(data), receiver))
    });
    (sender, Body::from_stream(frames))
}
