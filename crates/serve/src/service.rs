//! All deployments: apply, split, roll back, remove; reload a model when its alias moves; answer requests.

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
use crate::deployment::{Answer, Deployment, Loaded, Request, State, Variant};
use crate::manifest::Manifest;
use crate::model::{LocalPaths, ModelSource, ModelUri, ResolvedModel};
pub use crate::repo::Revision;
use crate::runtime::Runtime;
use crate::stats::Snapshot;
use crate::{Error, repo};

/// Number of answered requests that are kept in memory for `slipway show --lineage` and the UI.
const REMEMBERED: usize = 1000;

/// How often a server that shares its database polls it for changes that other servers made.
const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// A request that was answered.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "AnsweredRequest")]
pub struct Remembered {
    /// Its id.
    pub id: String,
    /// The deployment.
    pub deployment: String,
    /// The variant.
    pub variant: String,
    /// The model.
    pub model: ResolvedModel,
    /// When, in milliseconds since the Unix epoch.
    pub time: i64,
    /// Microseconds it took.
    pub took_us: u64,
}

/// State of a deployment, as the API shows it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Deployment")]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its revision.
    pub revision: i64,
    /// Whether all models with traffic answer.
    pub ready: bool,
    /// Requests that are waiting or being computed now.
    pub in_flight: usize,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its models.
    pub variants: Vec<VariantStatus>,
}

/// State of one model of a deployment, as the API shows it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "DeploymentModelStatus")]
pub struct VariantStatus {
    /// Its name in the deployment.
    pub name: String,
    /// Where it comes from.
    pub uri: String,
    /// Its share in per cent.
    pub weight: u32,
    /// `ready`, `loading` or `failed`.
    pub state: &'static str,
    /// Why it failed, why a newer version could not be loaded, or why its requests are not batched though that was asked for.
    pub reason: Option<String>,
    /// Which model it is.
    pub model: Option<ResolvedModel>,
    /// Its request counters and latencies.
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
    remembered: Mutex<VecDeque<Remembered>>,
    /// Held while deployments are changed, so that changes happen one after another.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl Gateway {
    /// Opens the gateway with the deployments that the store holds; their models are loaded in the background.
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
                remembered: Mutex::default(),
                changing: Arc::default(),
            }),
        };
        // Subscribed before anything is resolved, so that no change is missed.
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

    /// What receives the bodies of requests.
    pub(crate) fn bodies(&self) -> &Bodies {
        &self.inner.bodies
    }

    /// What runs the models.
    pub fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    /// The deployment of this name.
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

    /// All deployments by name.
    pub fn deployments(&self) -> Vec<Arc<Deployment>> {
        self.inner.deployments.read().values().cloned().collect()
    }

    #[cfg(test)]
    pub(crate) fn insert(&self, deployment: Arc<Deployment>) {
        self.inner.deployments.write().insert(deployment.name().to_owned(), deployment);
    }

    /// Answers a request and remembers which model it was.
    ///
    /// # Errors
    /// As [`Deployment::infer`].
    pub async fn infer(&self, deployment: &Deployment, request: Request) -> Result<Answer, Error> {
        let answer = deployment.infer(request).await?;
        let remembered = Remembered {
            id: answer.id.clone(),
            deployment: deployment.name().to_owned(),
            variant: answer.variant.clone(),
            model: answer.model.resolved.clone(),
            time: now_ms(),
            took_us: u64::try_from(answer.took.as_micros()).unwrap_or(u64::MAX),
        };
        let mut list = self.inner.remembered.lock();
        if list.len() == REMEMBERED {
            list.pop_front();
        }
        list.push_back(remembered);
        Ok(answer)
    }

    /// The last requests, newest first.
    pub fn recent(&self, limit: usize) -> Vec<Remembered> {
        self.inner.remembered.lock().iter().rev().take(limit).cloned().collect()
    }

    /// The newest request with this id, if it is among the last thousand.
    pub fn request(&self, id: &str) -> Option<Remembered> {
        self.inner.remembered.lock().iter().rev().find(|r| r.id == id).cloned()
    }

    /// Puts a manifest in force: loads its models, stores it, then lets it take the traffic over.
    ///
    /// # Errors
    /// [`Error::Manifest`]; [`Error::LocalPath`] for a local path that is not allowed; [`Error::Model`] when a model cannot be
    /// loaded. Nothing changed then.
    pub async fn apply(
        &self,
        manifest: Manifest,
        reason: &'static str,
        local_paths: LocalPaths,
    ) -> Result<Status, Error> {
        manifest.check()?;
        let changing = Arc::clone(&self.inner.changing).lock_owned().await;
        let name = manifest.metadata.name.clone();
        let before = self.inner.deployments.read().get(&name).cloned();
        if local_paths == LocalPaths::Refused {
            no_new_local_path(&manifest, before.as_deref())?;
        }
        if let Some(before) = before.as_ref().filter(|b| b.manifest == manifest && b.is_ready()) {
            return Ok(status(before));
        }
        let mut next = Deployment::new(manifest, 0, admitted_before(before.as_deref()));
        for variant in &next.variants {
            self.load_or_reuse(&next, variant, before.as_deref()).await?;
        }
        let stored = Some(next.manifest.clone());
        self.commit(changing, name.clone(), stored, reason, move |deployments, revision| {
            next.revision = revision;
            let next = Arc::new(next);
            deployments.insert(name, Arc::clone(&next));
            status(&next)
        })
        .await
    }

    /// Stores a revision (`None` for a removal) and puts it in force. Both happen in a task of their own: a caller that goes away in
    /// between, as the handler of a client that disconnects does, must not leave stored what is not in force.
    async fn commit<T: Send + 'static>(
        &self,
        changing: OwnedMutexGuard<()>,
        name: String,
        manifest: Option<Manifest>,
        reason: &'static str,
        put_in_force: impl FnOnce(&mut BTreeMap<String, Arc<Deployment>>, i64) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move {
            let _one = changing;
            let add = move |c: &Connection| repo::add(c, &name, manifest.as_ref(), now_ms(), reason);
            let revision = inner.db.write(add).await?;
            Ok(put_in_force(&mut inner.deployments.write(), revision))
        });
        task.await.unwrap_or_else(|error| Err(Error::Store(format!("the change was not stored: {error}"))))
    }

    /// Changes the weights.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Manifest`].
    pub async fn split(&self, name: &str, weights: &[(String, u32)]) -> Result<Status, Error> {
        let manifest = self.deployment(name)?.manifest.with_weights(weights)?;
        // The models are those of the deployment in force.
        self.apply(manifest, "split", LocalPaths::Refused).await
    }

    /// Puts an earlier revision in force again, the one before this by default.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none; as [`Gateway::apply`].
    pub async fn rollback(&self, name: &str, to: Option<i64>, local_paths: LocalPaths) -> Result<Status, Error> {
        let current = self.deployment(name)?;
        let history = self.history(name)?;
        // Going back from a rollback means the one before the revision that it restored.
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

    /// Takes a deployment away. Requests in flight are answered.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the store's.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let changing = Arc::clone(&self.inner.changing).lock_owned().await;
        self.deployment(name)?;
        let key = name.to_owned();
        self.commit(changing, name.to_owned(), None, "rm", move |deployments, _| {
            deployments.remove(&key);
        })
        .await
    }

    /// All changes of a deployment, newest first.
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

    /// Gives a variant its model. A model that is loaded already with the same settings is reused, statistics included.
    async fn load_or_reuse(
        &self,
        next: &Deployment,
        variant: &Arc<Variant>,
        before: Option<&Deployment>,
    ) -> Result<(), Error> {
        let same = before
            .filter(|b| {
                b.manifest.spec.batching == next.manifest.spec.batching
                    && b.manifest.spec.limits == next.manifest.spec.limits
            })
            .and_then(|b| {
                b.variants.iter().find(|v| v.spec.uri == variant.spec.uri && v.spec.name == variant.spec.name)
            })
            .and_then(|v| v.loaded());
        let fresh = self.inner.source_of(&variant.spec.uri)?;
        match same.filter(|l| l.resolved == fresh) {
            Some(loaded) => *variant.state.write() = State::Ready(loaded),
            None => self.load(next, variant, fresh).await?,
        }
        Ok(())
    }

    /// Applies changes that another server stored. New models are loaded before they take traffic over.
    async fn apply_stored(&self, stored: Vec<(Manifest, i64)>) {
        let _one = self.inner.changing.lock().await;
        let names: Vec<_> = stored.iter().map(|(manifest, _)| manifest.metadata.name.clone()).collect();
        self.inner.deployments.write().retain(|name, _| names.contains(name));
        for (manifest, revision) in stored {
            let name = manifest.metadata.name.clone();
            let before = self.inner.deployments.read().get(&name).cloned();
            // This server may have changed the deployment itself after the store was read; its own revision is newer then.
            if before.as_ref().is_some_and(|b| b.revision >= revision) {
                continue;
            }
            let next = Arc::new(Deployment::new(manifest, revision, admitted_before(before.as_deref())));
            self.load_all(&next, before.as_deref()).await;
            self.inner.deployments.write().insert(name, next);
        }
    }

    /// Loads the models of the deployments that were stored when the gateway was opened, all at once.
    async fn load_stored(&self, stored: Vec<Arc<Deployment>>) {
        let _one = self.inner.changing.lock().await;
        // Whoever came first may have replaced or removed some.
        let in_force = |d: &Arc<Deployment>| self.deployment(d.name()).is_ok_and(|now| Arc::ptr_eq(&now, d));
        let loading = stored.iter().filter(|d| in_force(d)).map(|deployment| self.load_all(deployment, None));
        futures_util::future::join_all(loading).await;
    }

    async fn load_all(&self, deployment: &Deployment, before: Option<&Deployment>) {
        for variant in &deployment.variants {
            if let Err(error) = self.load_or_reuse(deployment, variant, before).await {
                tracing::warn!(deployment = deployment.name(), variant = variant.spec.name, %error, "not loaded");
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
        let loaded = opened.map_err(|e| Error::Model(format!("loading crashed: {e}")))??;
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

    /// Loads the models that moved aliases point to now. The old model answers until the new one is ready.
    async fn reload_moved(&self) {
        // A deployment that is being put in force may hold what the alias pointed to before, so its turn comes after that.
        let _one = self.inner.changing.lock().await;
        for deployment in self.deployments() {
            for variant in &deployment.variants {
                let fresh = match self.inner.source_of(&variant.spec.uri) {
                    Ok(fresh) => fresh,
                    Err(error) => {
                        *variant.stale.write() = Some(error.to_string());
                        continue;
                    }
                };
                if variant.loaded().is_some_and(|l| l.resolved == fresh) {
                    *variant.stale.write() = None;
                    continue;
                }
                if let Err(error) = self.load(&deployment, variant, fresh).await {
                    tracing::warn!(deployment = deployment.name(), variant = variant.spec.name, %error, "kept the old model");
                    *variant.stale.write() = Some(error.to_string());
                }
            }
        }
    }
}

impl Inner {
    fn source_of(&self, uri: &ModelUri) -> Result<ResolvedModel, Error> {
        match uri {
            ModelUri::Registered(uri) => self.source.resolve(uri).map_err(Error::Model),
            ModelUri::Local(path) if path.exists() => Ok(ResolvedModel::local(path)),
            ModelUri::Local(path) => Err(Error::Model(format!("there is no file {}", path.display()))),
        }
    }

    /// A file or folder of this machine with the model. What the registry stored is for the registry alone to find.
    async fn fetch(&self, uri: &ModelUri, model: &ResolvedModel) -> Result<PathBuf, Error> {
        match uri {
            ModelUri::Registered(_) => self.source.fetch(model).await.map_err(Error::Model),
            ModelUri::Local(path) => Ok(path.clone()),
        }
    }
}

/// Refuses local paths that the deployment in force does not name, without looking whether they exist.
fn no_new_local_path(manifest: &Manifest, before: Option<&Deployment>) -> Result<(), Error> {
    let in_force = |uri: &ModelUri| before.is_some_and(|b| b.manifest.spec.models.iter().any(|m| m.uri == *uri));
    let new = |uri: &ModelUri| matches!(uri, ModelUri::Local(_)) && !in_force(uri);
    match manifest.spec.models.iter().find(|model| new(&model.uri)) {
        None => Ok(()),
        Some(model) => {
            Err(Error::LocalPath { deployment: manifest.metadata.name.clone(), variant: model.name.clone() })
        }
    }
}

/// Reloads models whenever the registry changes. With a shared database, where other servers change the registry and the
/// deployments too, it polls.
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
            Err(error) => tracing::warn!(%error, "the stored deployments cannot be read; those in force stay"),
        }
        gateway.reload_moved().await;
    }
}

/// The counter of requests in flight, which all revisions of a deployment share.
fn admitted_before(before: Option<&Deployment>) -> Arc<AtomicUsize> {
    before.map(|b| Arc::clone(&b.admitted)).unwrap_or_default()
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
            model: loaded.as_ref().map(|l| l.resolved.clone()),
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
