//! All deployments: apply, split, roll back and remove them, reload a model when its alias moves, and serve requests.
//!
//! Invariant: a revision is stored before it becomes active, and an apply that fails changes nothing.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::{Mutex, RwLock};
use schemars::JsonSchema;
use serde::Serialize;
use slipway_core::clock::now_ms;
use slipway_store::Database;
use slipway_store::sql::Connection;
use tokio::sync::{OwnedMutexGuard, watch};

use crate::body::{Bodies, BodyLimits};
use crate::deployment::{Deployment, InferOutput, Loaded, Request, State, Variant};
use crate::generated::inference::ModelStatistics;
use crate::manifest::Manifest;
use crate::model::{LocalPaths, ModelSource, ModelUri, ResolvedModel};
pub use crate::repo::Revision;
use crate::runtime::Runtime;
use crate::stats::Snapshot;
use crate::{Error, repo, triton};

/// Number of served requests that are kept in memory for `slipway show --lineage` and the UI.
const MAX_RECENT_REQUESTS: usize = 1000;

/// How often a server that shares its database polls it for changes that other servers made.
const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// A served inference request.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "AnsweredRequest")]
pub struct RequestRecord {
    /// The request's id: the client's, or a generated one.
    pub id: String,
    /// Name of the deployment.
    pub deployment: String,
    /// Name of the model within the deployment.
    pub variant: String,
    /// The model version that computed the response.
    #[serde(serialize_with = "shared")]
    pub model: Arc<ResolvedModel>,
    /// Time of the response, in milliseconds since the Unix epoch.
    pub time: i64,
    /// Duration of the request in microseconds.
    pub took_us: u64,
}

fn shared<T: Serialize, S: serde::Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().serialize(serializer)
}

/// State of a deployment, as the API returns it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Deployment")]
pub struct Status {
    /// The deployment's name.
    pub name: String,
    /// Number of the active revision.
    pub revision: i64,
    /// Whether all models with a weight above 0 are loaded.
    pub ready: bool,
    /// Requests that are currently queued or being computed.
    pub in_flight: usize,
    /// Manifest of the active revision.
    pub manifest: Manifest,
    /// State of each model, in the manifest's order.
    pub variants: Vec<VariantStatus>,
}

/// State of one model of a deployment, as the API returns it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "DeploymentModelStatus")]
pub struct VariantStatus {
    /// Name within the deployment.
    pub name: String,
    /// Model URI from the manifest.
    pub uri: String,
    /// Share of the traffic in per cent.
    pub weight: u32,
    /// `ready`, `loading` or `failed`.
    pub state: &'static str,
    /// Why loading failed, why a newer version could not be loaded, or why requests are not batched although `batching` is set.
    pub reason: Option<String>,
    /// The loaded model version; null if none is loaded.
    pub model: Option<ResolvedModel>,
    /// Request counters and latencies since the model was loaded.
    pub stats: Snapshot,
}

/// All deployments; cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

struct Inner {
    db: Database,
    runtime: Runtime,
    source: Arc<dyn ModelSource>,
    bodies: Bodies,
    deployments: RwLock<BTreeMap<String, Arc<Deployment>>>,
    /// Served requests, newest last.
    recent: Mutex<VecDeque<RequestRecord>>,
    /// Serializes changes of deployments.
    changes_lock: Arc<tokio::sync::Mutex<()>>,
}

impl Gateway {
    /// Opens the gateway with the stored deployments. Their models are loaded in the background.
    ///
    /// # Errors
    /// The store's.
    pub fn open(
        db: Database,
        runtime: Runtime,
        source: Arc<dyn ModelSource>,
        bodies: BodyLimits,
    ) -> Result<Self, Error> {
        let stored = db.read_now(repo::current)?;
        let gateway = Self {
            inner: Arc::new(Inner {
                db,
                runtime,
                source,
                bodies: Bodies::new(bodies),
                deployments: RwLock::default(),
                recent: Mutex::default(),
                changes_lock: Arc::default(),
            }),
        };
        // Subscribe before any URI is resolved, so that no change is missed.
        let changes = gateway.inner.source.changes();
        for (manifest, revision) in stored {
            let deployment = Arc::new(Deployment::new(manifest, revision, Arc::default()));
            gateway.inner.deployments.write().insert(deployment.name().to_owned(), deployment);
        }
        let (background, deployments) = (gateway.clone(), gateway.deployments());
        tokio::spawn(async move {
            background.load_stored(deployments).await;
            let start = || follow(background.clone(), changes.clone());
            slipway_core::task::restart_on_panic("following deployments", start).await;
        });
        Ok(gateway)
    }

    /// Receives request bodies.
    pub(crate) fn bodies(&self) -> &Bodies {
        &self.inner.bodies
    }

    /// The runtime that executes the models.
    pub fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    /// The deployment with this name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn deployment(&self, name: &str) -> Result<Arc<Deployment>, Error> {
        self.inner
            .deployments
            .read()
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NotFound(format!("model '{name}' is not deployed")))
    }

    /// All deployments, sorted by name.
    pub fn deployments(&self) -> Vec<Arc<Deployment>> {
        self.inner.deployments.read().values().cloned().collect()
    }

    #[cfg(test)]
    pub(crate) fn insert(&self, deployment: Arc<Deployment>) {
        self.inner.deployments.write().insert(deployment.name().to_owned(), deployment);
    }

    /// Whether all deployments are ready, which is also the case without deployments.
    pub fn is_ready(&self) -> bool {
        self.inner.deployments.read().values().all(|deployment| deployment.is_ready())
    }

    /// Statistics of one deployment, or of all; only of `version` if it is set and not empty.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn statistics(&self, name: Option<&str>, version: Option<&str>) -> Result<Vec<ModelStatistics>, Error> {
        let deployments = match name {
            Some(name) => vec![self.deployment(name)?],
            None => self.deployments(),
        };
        let found = deployments.iter().map(|deployment| triton::statistics(deployment, version));
        Ok(found.collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Runs an inference request and records which model served it.
    ///
    /// # Errors
    /// As [`Deployment::infer`].
    pub async fn infer(&self, deployment: &Deployment, request: Request) -> Result<InferOutput, Error> {
        let output = deployment.infer(request).await?;
        let record = RequestRecord {
            id: output.id.clone(),
            deployment: deployment.name().to_owned(),
            variant: output.variant.clone(),
            model: Arc::clone(&output.model.resolved),
            time: now_ms(),
            took_us: u64::try_from(output.took.as_micros()).unwrap_or(u64::MAX),
        };
        let mut recent = self.inner.recent.lock();
        let oldest = if recent.len() == MAX_RECENT_REQUESTS { recent.pop_front() } else { None };
        recent.push_back(record);
        drop(recent);
        drop(oldest); // freed without the lock
        Ok(output)
    }

    /// Up to `limit` served requests, newest first.
    pub fn recent(&self, limit: usize) -> Vec<RequestRecord> {
        self.inner.recent.lock().iter().rev().take(limit).cloned().collect()
    }

    /// The newest request with this id, if it is among the last 1000 served requests.
    pub fn request(&self, id: &str) -> Option<RequestRecord> {
        self.inner.recent.lock().iter().rev().find(|r| r.id == id).cloned()
    }

    /// Activates a manifest: loads its models, stores it as a new revision, then switches traffic to it. An error changes nothing.
    ///
    /// # Errors
    /// [`Error::Manifest`]; [`Error::LocalPath`] for a local path that is not allowed; [`Error::ModelNotFound`] and
    /// [`Error::ModelUnusable`] for a model that does not exist or cannot be loaded; [`Error::Model`] and [`Error::Store`] when the server
    /// fails.
    pub async fn apply(
        &self,
        manifest: Manifest,
        reason: &'static str,
        local_paths: LocalPaths,
    ) -> Result<Status, Error> {
        manifest.check()?;
        let lock = Arc::clone(&self.inner.changes_lock).lock_owned().await;
        let name = manifest.metadata.name.clone();
        let previous = self.inner.deployments.read().get(&name).cloned();
        if local_paths == LocalPaths::Refused {
            refuse_new_local_paths(&manifest, previous.as_deref())?;
        }
        if let Some(previous) = previous.as_ref().filter(|p| p.manifest == manifest && p.is_ready()) {
            return Ok(status(previous));
        }
        let mut next = Deployment::new(manifest, 0, shared_admitted_counter(previous.as_deref()));
        for variant in &next.variants {
            self.load_or_reuse(&next, variant, previous.as_deref()).await?;
        }
        let stored = Some(next.manifest.clone());
        self.commit(lock, name.clone(), stored, reason, move |deployments, revision| {
            next.revision = revision;
            let next = Arc::new(next);
            deployments.insert(name, Arc::clone(&next));
            status(&next)
        })
        .await
    }

    /// Stores a revision (`None` for a removal) and activates it. Both run in a separate task: if the client disconnects in between,
    /// its handler is dropped, and that must not leave a revision that is stored but not active.
    async fn commit<T: Send + 'static>(
        &self,
        lock: OwnedMutexGuard<()>,
        name: String,
        manifest: Option<Manifest>,
        reason: &'static str,
        activate: impl FnOnce(&mut BTreeMap<String, Arc<Deployment>>, i64) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move {
            let _lock = lock;
            let add = move |c: &Connection| repo::add(c, &name, manifest.as_ref(), now_ms(), reason);
            let revision = inner.db.write(add).await?;
            Ok(activate(&mut inner.deployments.write(), revision))
        });
        task.await.unwrap_or_else(|error| Err(Error::Store(format!("the change was not stored: {error}"))))
    }

    /// Changes the traffic weights.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Manifest`].
    pub async fn split(&self, name: &str, weights: &[(String, u32)]) -> Result<Status, Error> {
        let manifest = self.deployment(name)?.manifest.with_weights(weights)?;
        // The manifest names the same models as the active revision, so no new local path can occur.
        self.apply(manifest, "split", LocalPaths::Refused).await
    }

    /// Activates an earlier revision again, by default the previous one.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, and those of [`Gateway::apply`].
    pub async fn rollback(&self, name: &str, to: Option<i64>, local_paths: LocalPaths) -> Result<Status, Error> {
        let current = self.deployment(name)?;
        let history = self.history(name)?;
        // After a rollback, "previous" is relative to the restored revision, not to the revision that the rollback added.
        let at = history
            .iter()
            .rev()
            .find(|r| r.manifest.as_ref() == Some(&current.manifest))
            .map_or(current.revision, |r| r.revision);
        let target = to.or_else(|| {
            history
                .iter()
                .find(|r| r.revision < at && r.manifest.as_ref().is_some_and(|m| *m != current.manifest))
                .map(|r| r.revision)
        });
        let missing = || Error::NotFound(format!("'{name}' has no earlier revision to go back to"));
        let target = target.ok_or_else(missing)?;
        let key = name.to_owned();
        let manifest = self.inner.db.read_now(|c| repo::manifest(c, &key, target))?.ok_or_else(missing)?;
        self.apply(manifest, "rollback", local_paths).await
    }

    /// Removes a deployment. Requests in flight still complete.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the store's.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let lock = Arc::clone(&self.inner.changes_lock).lock_owned().await;
        self.deployment(name)?;
        let key = name.to_owned();
        self.commit(lock, name.to_owned(), None, "rm", move |deployments, _| {
            deployments.remove(&key);
        })
        .await
    }

    /// The last 100 revisions of a deployment, newest first.
    ///
    /// # Errors
    /// The store's.
    pub fn history(&self, name: &str) -> Result<Vec<Revision>, Error> {
        self.inner.db.read_now(|c| repo::history(c, name))
    }

    /// State of all deployments.
    pub fn statuses(&self) -> Vec<Status> {
        self.deployments().iter().map(|d| status(d)).collect()
    }

    /// State of one deployment.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn status(&self, name: &str) -> Result<Status, Error> {
        Ok(status(self.deployment(name)?.as_ref()))
    }

    /// Loads a variant's model, or reuses the one that is already loaded with the same settings, statistics included.
    async fn load_or_reuse(
        &self,
        next: &Deployment,
        variant: &Arc<Variant>,
        previous: Option<&Deployment>,
    ) -> Result<(), Error> {
        let same = previous
            .filter(|b| {
                b.manifest.spec.batching == next.manifest.spec.batching
                    && b.manifest.spec.limits == next.manifest.spec.limits
            })
            .and_then(|b| {
                b.variants.iter().find(|v| v.spec.uri == variant.spec.uri && v.spec.name == variant.spec.name)
            })
            .and_then(|v| v.loaded());
        let resolved = self.inner.resolve(&variant.spec.uri)?;
        match same.filter(|l| *l.resolved == resolved) {
            Some(loaded) => *variant.state.write() = State::Ready(loaded),
            None => self.load(next, variant, resolved).await?,
        }
        Ok(())
    }

    /// Applies changes that another server stored. New models are loaded before they receive traffic.
    async fn apply_stored(&self, stored: Vec<(Manifest, i64)>) {
        let _lock = self.inner.changes_lock.lock().await;
        let names: Vec<_> = stored.iter().map(|(manifest, _)| manifest.metadata.name.clone()).collect();
        self.inner.deployments.write().retain(|name, _| names.contains(name));
        for (manifest, revision) in stored {
            let name = manifest.metadata.name.clone();
            let previous = self.inner.deployments.read().get(&name).cloned();
            // This server may have changed the deployment after the store was read; then its own revision is newer.
            if previous.as_ref().is_some_and(|p| p.revision >= revision) {
                continue;
            }
            let next = Arc::new(Deployment::new(manifest, revision, shared_admitted_counter(previous.as_deref())));
            self.load_all(&next, previous.as_deref()).await;
            self.inner.deployments.write().insert(name, next);
        }
    }

    /// Loads the models of the deployments that were stored when the gateway was opened, all concurrently.
    async fn load_stored(&self, stored: Vec<Arc<Deployment>>) {
        let _lock = self.inner.changes_lock.lock().await;
        // Requests that took the lock first may have replaced or removed some of them.
        let is_active = |d: &Arc<Deployment>| self.deployment(d.name()).is_ok_and(|active| Arc::ptr_eq(&active, d));
        let loading = stored.iter().filter(|d| is_active(d)).map(|deployment| self.load_all(deployment, None));
        futures_util::future::join_all(loading).await;
    }

    async fn load_all(&self, deployment: &Deployment, previous: Option<&Deployment>) {
        for variant in &deployment.variants {
            if let Err(error) = self.load_or_reuse(deployment, variant, previous).await {
                tracing::warn!(deployment = deployment.name(), variant = variant.spec.name, %error, "cannot load the model");
                *variant.state.write() = State::Failed(error.to_string());
            }
        }
    }

    async fn load(&self, deployment: &Deployment, variant: &Variant, resolved: ResolvedModel) -> Result<(), Error> {
        let path = self.inner.fetch(&variant.spec.uri, &resolved).await?;
        let spec = deployment.manifest.spec.clone();
        let (runtime, admitted) = (self.inner.runtime.clone(), Arc::clone(&deployment.admitted));
        let opened =
            tokio::task::spawn_blocking(move || Loaded::open(&runtime, resolved, &path, &spec, admitted)).await;
        // Only the file decides whether the runtime's parser panics on it; anything else that ends the task is the server's fault.
        let crashed = |e: tokio::task::JoinError| match e.is_panic() {
            true => Error::ModelUnusable("the runtime crashed while it loaded the model".into()),
            false => Error::Model(format!("loading was aborted: {e}")),
        };
        let loaded = opened.map_err(crashed)??;
        tracing::info!(
            deployment = deployment.name(),
            variant = variant.spec.name,
            version = loaded.resolved.version,
            "model loaded"
        );
        *variant.state.write() = State::Ready(Arc::new(loaded));
        *variant.stale.write() = None;
        Ok(())
    }

    /// Loads the models that moved aliases now point to. The old model serves until the new one is ready.
    async fn reload_moved(&self) {
        // Wait for a running change: the deployment that it activates may still have resolved the alias to the old version.
        let _lock = self.inner.changes_lock.lock().await;
        for deployment in self.deployments() {
            for variant in &deployment.variants {
                let resolved = match self.inner.resolve(&variant.spec.uri) {
                    Ok(resolved) => resolved,
                    Err(error) => {
                        *variant.stale.write() = Some(error.to_string());
                        continue;
                    }
                };
                if variant.loaded().is_some_and(|l| *l.resolved == resolved) {
                    *variant.stale.write() = None;
                    continue;
                }
                if let Err(error) = self.load(&deployment, variant, resolved).await {
                    tracing::warn!(deployment = deployment.name(), variant = variant.spec.name, %error, "cannot load the new model version; the previous one keeps serving");
                    *variant.stale.write() = Some(error.to_string());
                }
            }
        }
    }
}

impl Inner {
    fn resolve(&self, uri: &ModelUri) -> Result<ResolvedModel, Error> {
        match uri {
            ModelUri::Registered(uri) => self.source.resolve(uri),
            ModelUri::Local(path) if path.exists() => Ok(ResolvedModel::local(path)),
            ModelUri::Local(path) => Err(Error::ModelNotFound(format!("there is no file {}", path.display()))),
        }
    }

    /// A file or folder on this machine with the model. Only the registry may interpret the location of a registered model.
    async fn fetch(&self, uri: &ModelUri, model: &ResolvedModel) -> Result<PathBuf, Error> {
        match uri {
            ModelUri::Registered(_) => self.source.fetch(model).await,
            ModelUri::Local(path) => Ok(path.clone()),
        }
    }
}

/// Rejects local paths that the active revision does not name, without checking whether they exist.
fn refuse_new_local_paths(manifest: &Manifest, previous: Option<&Deployment>) -> Result<(), Error> {
    let is_active = |uri: &ModelUri| previous.is_some_and(|p| p.manifest.spec.models.iter().any(|m| m.uri == *uri));
    let is_new = |uri: &ModelUri| matches!(uri, ModelUri::Local(_)) && !is_active(uri);
    match manifest.spec.models.iter().find(|model| is_new(&model.uri)) {
        None => Ok(()),
        Some(model) => {
            Err(Error::LocalPath { deployment: manifest.metadata.name.clone(), variant: model.name.clone() })
        }
    }
}

/// Reloads models whenever the registry changes. With a shared database it also polls, because other servers change the registry and
/// the deployments.
async fn follow(gateway: Gateway, mut changes: watch::Receiver<u64>) {
    if !gateway.inner.db.is_shared() {
        while changes.changed().await.is_ok() {
            gateway.reload_moved().await;
        }
        return;
    }
    loop {
        if let Ok(Err(_)) = tokio::time::timeout(POLL_INTERVAL, changes.changed()).await {
            return;
        }
        match gateway.inner.db.read(repo::current).await {
            Ok(stored) => gateway.apply_stored(stored).await,
            Err(error) => tracing::warn!(%error, "cannot read the stored deployments; the active ones keep serving"),
        }
        gateway.reload_moved().await;
    }
}

/// The counter of requests in flight, which all revisions of a deployment share.
fn shared_admitted_counter(previous: Option<&Deployment>) -> Arc<AtomicUsize> {
    previous.map(|p| Arc::clone(&p.admitted)).unwrap_or_default()
}

fn status(deployment: &Deployment) -> Status {
    let variants = deployment.variants.iter().map(|variant| {
        let (state, reason, loaded) = match &*variant.state.read() {
            State::Loading => ("loading", None, None),
            State::Failed(why) => ("failed", Some(why.clone()), None),
            State::Ready(loaded) => {
                let reason = variant.stale.read().clone().or_else(|| loaded.not_batched.clone());
                ("ready", reason, Some(Arc::clone(loaded)))
            }
        };
        VariantStatus {
            name: variant.spec.name.clone(),
            uri: variant.spec.uri.to_string(),
            weight: variant.spec.weight,
            state,
            reason,
            model: loaded.as_ref().map(|l| (*l.resolved).clone()),
            stats: loaded.map(|l| l.stats.snapshot()).unwrap_or_default(),
        }
    });
    Status {
        name: deployment.name().to_owned(),
        revision: deployment.revision,
        ready: deployment.is_ready(),
        in_flight: deployment.admitted.load(std::sync::atomic::Ordering::Relaxed),
        variants: variants.collect(),
        manifest: deployment.manifest.clone(),
    }
}

#[cfg(test)]
mod tests;
