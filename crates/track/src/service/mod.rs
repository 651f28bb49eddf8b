//! All rules of tracking and registry. Routers call these; these call `repo` inside one transaction.

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
pub use scope::{ATTEMPTS_TAG, NAMESPACE_TAG};

use std::sync::Arc;

use slipway_access::RunIdentity;
use slipway_core::clock::now_ms;
use slipway_store::{Database, Objects};
use tokio::sync::watch;

use crate::signed_parts::PartSigner;
use crate::{Error, repo};
use compaction::Compactor;

/// Which lifecycle stages a search covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ViewType {
    /// `active`.
    #[default]
    ActiveOnly,
    /// `deleted`.
    DeletedOnly,
    /// Both.
    All,
}

impl ViewType {
    fn stages(self) -> &'static str {
        match self {
            Self::ActiveOnly => "'active'",
            Self::DeletedOnly => "'deleted'",
            Self::All => "'active','deleted'",
        }
    }
}

/// Tracking and registry; cheap to clone.
#[derive(Clone)]
pub struct Tracking {
    pub(crate) db: Database,
    pub(crate) objects: Objects,
    pub(crate) part_signer: PartSigner,
    pub(crate) compactor: Arc<Compactor>,
    /// Counts changes of aliases and versions, so that the gateway notices a moved alias at once.
    registry_changes: Arc<watch::Sender<u64>>,
    /// The run that calls, which may change only what is its own.
    run: Option<Arc<RunIdentity>>,
}

impl Tracking {
    /// Tracking on an open store; makes the default experiment if it is not there.
    ///
    /// # Errors
    /// The store's.
    pub async fn open(db: Database, objects: Objects) -> Result<Self, Error> {
        let now = now_ms();
        db.write(move |c| repo::experiments::ensure_default(c, now)).await?;
        let part_signer = PartSigner::open(&db).await?;
        let compactor = Arc::new(Compactor::start(db.clone(), compaction::LIMITS, compaction::SWEEP_AFTER));
        Ok(Self { db, objects, part_signer, compactor, registry_changes: Arc::new(watch::Sender::new(0)), run: None })
    }

    /// Removes the parts of uploads that got none for this long; how many uploads that were.
    ///
    /// # Errors
    /// The object store's.
    pub async fn collect_abandoned_uploads(&self, older_than: std::time::Duration) -> Result<usize, Error> {
        Ok(self.objects.collect_abandoned(older_than).await?)
    }

    /// Changes whenever an alias, a version or a model changed.
    pub fn registry_changes(&self) -> watch::Receiver<u64> {
        self.registry_changes.subscribe()
    }

    pub(crate) fn registry_changed(&self) {
        self.registry_changes.send_modify(|n| *n += 1);
    }
}

/// The largest page of runs and experiments.
pub(crate) const MAX_RESULTS: i64 = 50_000;

/// Checks a page size as MLflow's SQL store does.
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
