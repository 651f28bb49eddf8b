//! Repositories that a server knows, and what it shows of them: data sets, their versions and files, stages, metrics, experiments. Administrators
//! register a repository by its path on the server's machine or by its URL.
//!
//! Invariant: a repository is only read, and is not trusted. Everything comes from commits, through [`Git::foreign`](crate::scm::Git::foreign):
//! nothing of it is executed, and time, sizes and the number of concurrent readers are limited.

mod datasets;
mod differences;
mod graph;
pub mod http;
mod names;
mod objects;
mod opened;
mod preview;
mod received;
mod registry;
mod reports;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use slipway_store::Database;
use tokio::sync::Semaphore;

pub use datasets::{DataSet, DataSets, DataVersion, DataVersions, Reference, Summary};
pub use differences::{ChangedFile, DifferencesPage, FolderChanges};
pub use graph::{StageGraph, StageNode};
pub use objects::{CachePlace, Children, FileEntry, FolderEntry, Places, RemotePlace};
pub use opened::Opened;
pub use preview::{Picture, Preview, Shown};
pub use registry::{MIGRATION, NewRepository, Registered};
pub use reports::{Experiments, Pictures, Plot, PlotLine, PlotPicture, Plots, RevisionValues, Values};

use crate::error::DataError;
use crate::external::redact;
use crate::incoming::TEMPORARY;
use crate::scm::mirror::{self, Receiver};

/// Number of requests that read repositories at the same time.
const READERS: usize = 4;
/// How long a request waits for others.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum duration of a request.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum duration of the first clone of a repository, below the time that clients wait for a response.
const CLONE_TIMEOUT: Duration = Duration::from_secs(100);
/// A mirror of a URL is updated when it is older.
const MIRROR_TTL: Duration = Duration::from_secs(60);
/// Maximum number of repositories of a namespace.
const MAX_REPOSITORIES: usize = 1000;

/// A lock for each mirror, with the time at which the mirror was updated.
type Mirrors = Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<Option<Instant>>>>>;

/// The repositories of a server; cheap to clone.
#[derive(Clone)]
pub struct Catalog(Arc<Inner>);

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("mirrors", &self.0.mirrors).finish_non_exhaustive()
    }
}

struct Inner {
    database: Database,
    /// The folder of mirrors.
    mirrors: PathBuf,
    updates: Mirrors,
    readers: Arc<Semaphore>,
}

impl Catalog {
    /// The repositories that the database contains, with mirrors in a folder of the server.
    pub fn new(database: Database, folder: &Path) -> Self {
        let (mirrors, readers) = (folder.join("mirrors"), Arc::new(Semaphore::new(READERS)));
        Self(Arc::new(Inner { database, mirrors, updates: Mutex::default(), readers }))
    }

    /// The repositories of a namespace, or of the installation, by name.
    ///
    /// # Errors
    /// An error of the database.
    pub async fn list(&self, namespace: Option<&str>) -> Result<Vec<Registered>, DataError> {
        let namespace = registry::key(namespace);
        Ok(self.0.database.read(move |c| registry::list(c, &namespace)).await?)
    }

    /// A repository.
    ///
    /// # Errors
    /// [`DataError::UnknownRepository`], or an error of the database.
    pub async fn find(&self, namespace: Option<&str>, name: &str) -> Result<Registered, DataError> {
        let (namespace, wanted) = (registry::key(namespace), name.to_owned());
        let found: Option<Registered> = self.0.database.read(move |c| registry::find(c, &namespace, &wanted)).await?;
        found.ok_or_else(|| DataError::UnknownRepository(name.to_owned()))
    }

    /// Registers a repository after it was read once.
    ///
    /// # Errors
    /// [`DataError::Exists`], [`DataError::Invalid`] for a name or location that is not accepted, or what is wrong with the repository.
    pub async fn add(&self, namespace: Option<&str>, new: NewRepository) -> Result<Registered, DataError> {
        let added = new.checked()?;
        let others = self.list(namespace).await?;
        if others.len() >= MAX_REPOSITORIES {
            return Err(DataError::Limit(format!("a namespace has at most {MAX_REPOSITORIES} data repositories")));
        }
        if others.iter().any(|other| other.name == added.name) {
            return Err(DataError::Exists(added.name));
        }
        self.read_from(&added, None, |_| Ok(())).await?;
        let (key, name, row) = (registry::key(namespace), added.name.clone(), added.clone());
        let is_new = self.0.database.write(move |c| registry::add(c, &key, &row)).await?;
        if is_new { Ok(added) } else { Err(DataError::Exists(name)) }
    }

    /// Forgets a repository. The repository itself, and the data, stay as they are; a mirror that nothing uses any more is removed.
    ///
    /// # Errors
    /// [`DataError::UnknownRepository`], or an error of the database.
    pub async fn remove(&self, namespace: Option<&str>, name: &str) -> Result<(), DataError> {
        let (key, wanted) = (registry::key(namespace), name.to_owned());
        let removed = self.0.database.write(move |c| registry::remove(c, &key, &wanted)).await?;
        match removed {
            true => self.remove_unused_mirrors().await,
            false => Err(DataError::UnknownRepository(name.to_owned())),
        }
    }

    /// Reads a repository at a revision, or at the last commit of its current branch, on a thread that may block.
    ///
    /// # Errors
    /// [`DataError::UnknownRepository`], [`DataError::TooManyReaders`], [`DataError::Limit`] if it takes too long, what is wrong with the
    /// repository or revision, and the errors of `work`.
    pub async fn read<T: Send + 'static>(
        &self,
        namespace: Option<&str>,
        name: &str,
        revision: Option<&str>,
        work: impl FnOnce(&Opened) -> Result<T, DataError> + Send + 'static,
    ) -> Result<T, DataError> {
        let registered = self.find(namespace, name).await?;
        self.read_from(&registered, revision, work).await
    }

    async fn read_from<T: Send + 'static>(
        &self,
        registered: &Registered,
        revision: Option<&str>,
        work: impl FnOnce(&Opened) -> Result<T, DataError> + Send + 'static,
    ) -> Result<T, DataError> {
        let permit = tokio::time::timeout(QUEUE_TIMEOUT, Arc::clone(&self.0.readers).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return Err(DataError::TooManyReaders) };
        let mirror = match registered.is_url() {
            true => Some(self.mirror(registered).await?),
            false => None,
        };
        let (entry, revision) = (registered.clone(), revision.map(str::to_owned));
        let runtime = tokio::runtime::Handle::current();
        let reading = tokio::task::spawn_blocking(move || {
            // Held to the end of the work, also if nobody waits for it any more.
            let _permit = permit;
            let opened = Opened::new(&entry, mirror.as_deref(), revision.as_deref(), runtime)?;
            work(&opened).map_err(|error| opened.without_paths(error))
        });
        match tokio::time::timeout(READ_TIMEOUT, reading).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panicked)) => Err(DataError::Invalid(format!("the repository could not be read: {panicked}"))),
            Err(_) => Err(DataError::Limit(format!("the repository was not read within {} s", READ_TIMEOUT.as_secs()))),
        }
    }

    /// The mirror of a URL, which is created or updated if it is due. If an update fails, the mirror is used as it is.
    async fn mirror(&self, registered: &Registered) -> Result<PathBuf, DataError> {
        let path = self.0.mirrors.join(registered.mirror_name());
        let update = {
            let mut updates = self.0.updates.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(updates.entry(path.clone()).or_default())
        };
        let mut updated = update.lock().await;
        if updated.is_none_or(|time| time.elapsed() > MIRROR_TTL) || !path.is_dir() {
            let update = mirror::update(&registered.location, None, &path, Receiver::Service(None));
            let failure = match tokio::time::timeout(CLONE_TIMEOUT, update).await {
                Ok(Ok(_)) => None,
                Ok(Err(reason)) => Some(reason),
                Err(_) => Some(format!("it was not received within {} s", CLONE_TIMEOUT.as_secs())),
            };
            match failure {
                Some(reason) if !path.is_dir() => {
                    return Err(DataError::Repository { repo: redact(&registered.location), reason });
                }
                Some(reason) => tracing::warn!(repository = registered.name, reason, "a mirror was not updated"),
                None => {}
            }
            *updated = Some(Instant::now());
        }
        Ok(path)
    }

    /// Removes the mirrors of URLs that no namespace has registered.
    async fn remove_unused_mirrors(&self) -> Result<(), DataError> {
        let all: Vec<Registered> = self.0.database.read(registry::all).await?;
        let used: Vec<String> = all.iter().map(Registered::mirror_name).collect();
        let entries = match std::fs::read_dir(&self.0.mirrors) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(DataError::io(&self.0.mirrors)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(DataError::io(&self.0.mirrors))?;
            let name = entry.file_name();
            let stem = Path::new(&name).file_stem().unwrap_or_default();
            // A mirror that is being received has a temporary name.
            let is_complete = !name.to_string_lossy().starts_with(TEMPORARY);
            if is_complete && !used.iter().any(|used| stem == used.as_str()) {
                let is_lock = entry.path().extension().is_some_and(|extension| extension == mirror::LOCK);
                let removed = match is_lock {
                    true => std::fs::remove_file(entry.path()),
                    false => std::fs::remove_dir_all(entry.path()),
                };
                removed.map_err(DataError::io(entry.path()))?;
            }
        }
        Ok(())
    }
}
