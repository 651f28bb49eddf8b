//! The business rules of tracking and of the model registry. The HTTP handlers call this layer, which calls `repo` in one transaction per
//! request.

mod artifacts;
pub(crate) mod compaction;
mod experiments;
mod lineage;
mod logged_models;
pub mod metrics;
mod registry;
mod runs;
mod scope;

pub use artifacts::ArtifactRoot;
pub use lineage::{Lineage, Resolved};
pub use metrics::MetricQuery;
pub use registry::NewModelVersion;
pub use runs::NewRun;
pub use scope::{ATTEMPT_TAG, ATTEMPTS_TAG, NAMESPACE_TAG};

use std::sync::Arc;

use slipway_access::RunIdentity;
use slipway_core::clock::now_ms;
use slipway_store::{Database, Objects};
use tokio::sync::watch;

use crate::signed_parts::PartSigner;
use crate::{Error, repo};
use compaction::Compactor;

/// The lifecycle stages that a search includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ViewType {
    /// Only `active` entities.
    #[default]
    ActiveOnly,
    /// Only `deleted` entities.
    DeletedOnly,
    /// Entities of both stages.
    All,
}

impl ViewType {
    /// The stages as the inside of an SQL list.
    fn stages(self) -> &'static str {
        match self {
            Self::ActiveOnly => "'active'",
            Self::DeletedOnly => "'deleted'",
            Self::All => "'active','deleted'",
        }
    }
}

/// A handle to the tracking and registry service; cheap to clone.
#[derive(Clone)]
pub struct Tracking {
    pub(crate) db: Database,
    pub(crate) objects: Objects,
    pub(crate) part_signer: PartSigner,
    pub(crate) compactor: Arc<Compactor>,
    /// Number of changes of models, versions and aliases. The gateway watches it to notice a moved alias at once.
    registry_changes: Arc<watch::Sender<u64>>,
    /// The run that sent the request, if any. It may change only what belongs to it (`scope.rs`).
    run: Option<Arc<RunIdentity>>,
}

impl Tracking {
    /// Opens the service on an open store. Creates the default experiment if it does not exist, and starts the compaction task.
    ///
    /// # Errors
    /// An error of the store.
    pub async fn open(db: Database, objects: Objects) -> Result<Self, Error> {
        let now = now_ms();
        db.write(move |c| repo::experiments::ensure_default(c, now)).await?;
        let part_signer = PartSigner::open(&db).await?;
        let compactor = Arc::new(Compactor::start(db.clone(), compaction::LIMITS, compaction::SWEEP_DELAY));
        Ok(Self { db, objects, part_signer, compactor, registry_changes: Arc::new(watch::Sender::new(0)), run: None })
    }

    /// Removes multipart uploads that received no part for `older_than`, and returns their number.
    ///
    /// # Errors
    /// An error of the object store.
    pub async fn collect_abandoned_uploads(&self, older_than: std::time::Duration) -> Result<usize, Error> {
        Ok(self.objects.collect_abandoned(older_than).await?)
    }

    /// A receiver that is notified of every change of a model, version or alias.
    pub fn registry_changes(&self) -> watch::Receiver<u64> {
        self.registry_changes.subscribe()
    }

    /// Notifies the receivers of [`Tracking::registry_changes`].
    pub(crate) fn registry_changed(&self) {
        self.registry_changes.send_modify(|n| *n += 1);
    }
}

/// Maximum page size of a search for runs, experiments or logged models.
pub(crate) const MAX_RESULTS: i64 = 50_000;

/// Validates a page size as MLflow's SQL store does.
pub(crate) fn page_size(max_results: i64) -> Result<i64, Error> {
    if max_results < 1 {
        return Err(Error::invalid(format!(
            "Invalid value {max_results} for parameter 'max_results' supplied. It must be a positive integer"
        )));
    }
    if max_results > MAX_RESULTS {
        return Err(Error::invalid(format!(
            "Invalid value {max_results} for parameter 'max_results' supplied. It must be at most {MAX_RESULTS}"
        )));
    }
    Ok(max_results)
}
