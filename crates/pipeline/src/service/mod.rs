//! The rules of pipelines, experiments, runs and recurring runs. The HTTP handlers call this layer, which calls `repo`, and the
//! [`Runner`], which executes runs.

mod context;
mod download;
mod experiments;
mod ids;
mod package;
mod parameters;
mod pipelines;
mod recurring;
pub mod runner;
mod runs;
mod scheduler;
mod specification;

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::value::RawValue;
use slipway_core::cache::TtlCache;
use slipway_store::{Database, StoreError};
use tokio::sync::{Notify, Semaphore};

pub use context::RunContext;
pub use download::DownloadRules;
pub use ids::task_id;
pub use package::{MAX_PACKAGE, PackageError, read_package};
pub use pipelines::{NewPipeline, NewVersion};
pub use recurring::NewRecurringRun;
pub use runner::{ArtifactStream, Runner};
pub use runs::{NewRun, NewSource, Side};

use crate::Error;

/// Name of the experiment of runs that name none.
pub const DEFAULT_EXPERIMENT: &str = "Default";
/// How long the view of a run's tasks is kept without use.
const DETAILS_TTL: Duration = Duration::from_secs(60);
/// Maximum number of runs whose view of tasks is kept.
const MAX_DETAILS: usize = 16;

/// Maximum number of packages and specifications that are read at the same time.
const MAX_READERS: usize = 2;

/// Settings of a service.
#[derive(Debug, Clone)]
pub struct Options {
    /// The namespace of objects that name none: that of the installation.
    pub namespace: String,
    /// Whether namespaces are tenants. If not, all objects are in `namespace`, whatever requests name.
    pub multi_user: bool,
    /// Root of the artifacts' URIs of runs and pipelines that give none.
    pub pipeline_root: String,
    /// Time zone of cron expressions.
    pub time_zone: TimeZone,
    /// What may be downloaded.
    pub downloads: DownloadRules,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: slipway_exec::local::NAMESPACE.into(),
            multi_user: false,
            pipeline_root: "slipway-pipelines:/".into(),
            time_zone: TimeZone::UTC,
            downloads: DownloadRules::PublicHttps,
        }
    }
}

/// The view of a run's tasks in the API, after a number of changes of its tasks.
type Details = (i64, Arc<RawValue>);

/// A handle to the service; cheap to clone.
#[derive(Clone)]
pub struct Service {
    pub(crate) db: Database,
    pub(crate) runner: Arc<dyn Runner>,
    pub(crate) options: Arc<Options>,
    pub(crate) details: Arc<TtlCache<String, Details>>,
    schedules_changed: Arc<Notify>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Service {
    /// Opens the service on an open database, and creates the default experiment if it does not exist.
    ///
    /// # Errors
    /// An error of the store.
    pub async fn open(db: Database, runner: Arc<dyn Runner>, options: Options) -> Result<Self, Error> {
        let service = Self {
            db,
            runner,
            options: Arc::new(options),
            details: Arc::new(TtlCache::new(DETAILS_TTL, MAX_DETAILS)),
            schedules_changed: Arc::default(),
        };
        service.default_experiment(service.options.namespace.clone()).await?;
        Ok(service)
    }

    /// The namespace that a request means.
    pub fn namespace(&self, requested: &str) -> String {
        if self.options.multi_user && !requested.is_empty() {
            requested.to_owned()
        } else {
            self.options.namespace.clone()
        }
    }

    /// Whether namespaces are tenants.
    pub fn is_multi_user(&self) -> bool {
        self.options.multi_user
    }

    /// The namespace as responses show it: a server with one user has none.
    pub(crate) fn shown_namespace<'a>(&self, namespace: &'a str) -> &'a str {
        if self.options.multi_user { namespace } else { "" }
    }

    /// Whether objects of `owner` may be used in `namespace`: those of the same namespace, and those of the installation, which are shared.
    fn is_usable(&self, owner: &str, namespace: &str) -> bool {
        owner == namespace || owner == self.options.namespace
    }
}

/// Fails for a text with more than `max` bytes.
fn check_length(field: &str, text: &str, max: usize) -> Result<(), Error> {
    if text.len() > max {
        return Err(Error::Invalid(format!("{field} length cannot exceed {max}")));
    }
    Ok(())
}

/// Fails for texts that no column should hold.
fn check_description(text: &str) -> Result<(), Error> {
    check_length("Description", text, 64 << 10)
}

/// Reads a package or a specification on the pool of blocking threads. Each takes seconds and much memory at worst, so others wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    static READERS: Semaphore = Semaphore::const_new(MAX_READERS);
    let _permit = READERS.acquire().await.map_err(|_| StoreError::Closed)?;
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
}
