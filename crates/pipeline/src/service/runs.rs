//! Runs.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use slipway_core::clock::now_ms;
use slipway_exec::LogStream;
use slipway_store::sql::Connection;

use super::pipelines::belongs;
use super::runner::ArtifactStream;
use super::{Service, blocking, check_description, check_length, ids, parameters, specification};
use crate::Error;
use crate::engine::TaskRecord;
use crate::entity::{Experiment, Run, RuntimeConfig, Source, StateChange, StorageState, StoredSpec};
use crate::ir::read::Document;
use crate::listing::{ListRequest, Listing};
use crate::model::{Artifact, RunState, TaskPath};
use crate::repo::runs::Scope;
use crate::repo::tasks::StoredTask;
use crate::repo::{self, Page};
use crate::schedule::macros::Macros;

/// Where the specification of a new run comes from.
#[derive(Debug, Clone)]
pub enum NewSource {
    /// The request has it: the specification, or an object with the fields `pipeline_spec` and `platform_spec`.
    Inline(Value),
    /// A version; without its id the newest one of the pipeline, without the pipeline's id any pipeline's.
    Reference {
        /// Id of the pipeline; may be empty.
        pipeline_id: String,
        /// Id of the version; may be empty.
        version_id: String,
    },
}

/// A run to create.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Name that users see.
    pub display_name: String,
    /// Description.
    pub description: String,
    /// Service account of its pods; may be empty.
    pub service_account: String,
    /// Where the specification comes from.
    pub source: NewSource,
    /// Parameters and root.
    pub config: RuntimeConfig,
}

/// What a task was given, or what it gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What it was given.
    Inputs,
    /// What it gave.
    Outputs,
}

/// A specification that was found or read.
pub(super) struct Resolved {
    pub(super) source: Source,
    pub(super) spec: StoredSpec,
    pub(super) document: Arc<Document>,
}

impl Service {
    /// Finds or reads the specification of a run in `namespace`.
    pub(super) async fn resolve(&self, source: NewSource, namespace: String) -> Result<Resolved, Error> {
        match source {
            NewSource::Inline(Value::Null) => {
                Err(Error::Invalid("Failed to fetch a template with an empty pipeline spec manifest".into()))
            }
            NewSource::Inline(value) => {
                let (spec, document) = blocking(move || specification::from_json(value)).await?;
                Ok(Resolved {
                    source: Source::Inline { spec: spec.digest.clone() },
                    spec,
                    document: Arc::new(document),
                })
            }
            NewSource::Reference { pipeline_id, version_id } => {
                let service = self.clone();
                let find = move |c: &Connection| service.find_version(c, &pipeline_id, &version_id, &namespace);
                let (source, spec) = self.db.read(find).await?;
                let stored = spec.clone();
                let document = blocking(move || specification::from_stored(&stored)).await?;
                Ok(Resolved { source, spec, document: Arc::new(document) })
            }
        }
    }

    fn find_version(
        &self,
        c: &Connection,
        pipeline_id: &str,
        version_id: &str,
        namespace: &str,
    ) -> Result<(Source, StoredSpec), Error> {
        let version = if version_id.is_empty() {
            if pipeline_id.is_empty() {
                return Err(Error::Invalid("Pipeline spec source is missing".into()));
            }
            let newest = repo::pipelines::newest_version(c, pipeline_id)?;
            newest.ok_or_else(|| Error::NotFound(format!("PipelineVersion {pipeline_id} not found")))?
        } else {
            repo::pipelines::find_version(c, version_id)?
        };
        let owner = repo::pipelines::find(c, &version.pipeline_id)?;
        if !self.is_usable(&owner.namespace, namespace) {
            // Another tenant's pipeline does not exist for this one.
            return Err(Error::NotFound(format!("PipelineVersion {} not found", version.version_id)));
        }
        if !pipeline_id.is_empty() {
            belongs(&version, pipeline_id)?;
        }
        let spec = repo::specs::find(c, &version.spec)?;
        Ok((Source::Version { pipeline_id: version.pipeline_id, version_id: version.version_id }, spec))
    }

    /// Creates a run in an experiment and starts it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the request, [`Error::Specification`], [`Error::NotFound`] for the version, or an error of the store.
    pub async fn create_run(&self, experiment: &Experiment, new: NewRun) -> Result<Run, Error> {
        if new.display_name.is_empty() {
            return Err(Error::Invalid("The run name is empty. Please specify a valid name".into()));
        }
        check_length("Run.DisplayName", &new.display_name, 1024)?;
        check_length("Run.ServiceAccount", &new.service_account, 253)?;
        check_length("Run.PipelineRoot", &new.config.pipeline_root, 4096)?;
        check_description(&new.description)?;
        self.runner.ready()?;
        let resolved = self.resolve(new.source, experiment.namespace.clone()).await?;
        parameters::check(&resolved.document, &new.config.parameters)?;
        let now = now_ms();
        let run_id = ids::random();
        let macros = Macros { run_id: run_id.clone(), now: now.div_euclid(1000), slot: None };
        let run = Run {
            run_id,
            namespace: experiment.namespace.clone(),
            experiment_id: experiment.experiment_id.clone(),
            display_name: new.display_name,
            description: new.description,
            service_account: new.service_account,
            storage_state: StorageState::Available,
            state: RunState::Pending,
            created_at: now,
            scheduled_at: now,
            finished_at: 0,
            pipeline_name: specification::name(&resolved.document),
            source: resolved.source,
            spec: resolved.spec.digest.clone(),
            config: RuntimeConfig {
                parameters: macros.in_parameters(new.config.parameters),
                pipeline_root: new.config.pipeline_root,
            },
            recurring_run_id: String::new(),
            history: vec![StateChange { at: now, state: RunState::Pending, error: String::new() }],
            error: String::new(),
            task_changes: 0,
        };
        let owner = self.runner.owner();
        let created = self.db.write(move |c| insert(c, &run, &resolved.spec, &owner).map(|_| run)).await?;
        self.runner.start(created.run_id.clone(), resolved.document);
        Ok(created)
    }

    /// The run with this id.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub fn run(&self, id: &str) -> Result<Run, Error> {
        self.db.read_now(|c| repo::runs::find(c, id))
    }

    /// The specification with this digest.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub fn specification(&self, digest: &str) -> Result<StoredSpec, Error> {
        self.db.read_now(|c| repo::specs::find(c, digest))
    }

    /// The tasks of a run, in the order in which they were first recorded.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub async fn tasks(&self, run_id: String) -> Result<Vec<StoredTask>, Error> {
        self.db.read(move |c| repo::tasks::list(c, &run_id)).await
    }

    /// What the engine recorded of the tasks of a run, in the order in which they were first recorded.
    ///
    /// # Errors
    /// An error of the store.
    pub async fn task_records(&self, run_id: String) -> Result<Vec<TaskRecord>, Error> {
        self.db.read(move |c| repo::tasks::records(c, &run_id)).await
    }

    /// What the engine recorded of a task.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub async fn task_record(&self, run_id: String, path: TaskPath) -> Result<TaskRecord, Error> {
        let missing = Error::NotFound(format!("run {run_id} has no task '{path}'"));
        self.db.read(move |c| repo::tasks::record(c, &run_id, &path)).await?.ok_or(missing)
    }

    /// A page of the runs of a namespace or experiment.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the parameters of the list, or an error of the store.
    pub async fn runs(
        &self,
        namespace: String,
        experiment_id: String,
        request: &ListRequest,
    ) -> Result<Page<(Run, Option<StoredSpec>)>, Error> {
        let listing = Listing::new(&repo::runs::FIELDS, request)?;
        self.db
            .read(move |c| {
                let scope = scope(&namespace, &experiment_id);
                let page = repo::runs::list(c, scope, &listing)?;
                let items = page.items.into_iter().map(|run| {
                    let spec = match &run.source {
                        Source::Inline { spec } => Some(repo::specs::find(c, spec)?),
                        Source::Version { .. } | Source::Newest { .. } => None,
                    };
                    Ok((run, spec))
                });
                Ok(Page {
                    items: items.collect::<Result<_, Error>>()?,
                    total: page.total,
                    next_page_token: page.next_page_token,
                })
            })
            .await
    }

    /// As [`Self::runs`], without the specifications, which can be large.
    ///
    /// # Errors
    /// As [`Self::runs`].
    pub async fn list_runs(
        &self,
        namespace: String,
        experiment_id: String,
        request: &ListRequest,
    ) -> Result<Page<Run>, Error> {
        let listing = Listing::new(&repo::runs::FIELDS, request)?;
        self.db.read(move |c| repo::runs::list(c, scope(&namespace, &experiment_id), &listing)).await
    }

    /// Archives or unarchives a run.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotNow`] to unarchive a run of an archived experiment, or an error of the store.
    pub async fn set_run_archived(&self, id: String, archived: bool) -> Result<(), Error> {
        self.db
            .write(move |c| {
                if archived {
                    return repo::runs::set_storage_state(c, &id, StorageState::Archived);
                }
                let experiment = repo::runs::find(c, &id)?.experiment_id;
                if repo::experiments::find(c, &experiment)?.storage_state == StorageState::Archived {
                    return Err(Error::NotNow(format!(
                        "Failed to unarchive run {id} as experiment {experiment} must be un-archived first"
                    )));
                }
                repo::runs::set_storage_state(c, &id, StorageState::Available)
            })
            .await
    }

    /// Stops a run.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`] if it has finished or is being stopped, or an error of the store.
    pub async fn terminate_run(&self, id: String) -> Result<(), Error> {
        const FROM: &[RunState] = &[RunState::Pending, RunState::Running, RunState::Paused];
        let run_id = id.clone();
        let changed =
            self.db.write(move |c| repo::runs::set_state(c, &run_id, FROM, RunState::Canceling, "", now_ms())).await?;
        if !changed {
            return Err(Error::Invalid(format!("Failed to terminate a run {id}. Row not found")));
        }
        self.runner.cancel(id);
        Ok(())
    }

    /// Continues a run that failed or was canceled, from what failed.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`] in any other state, or an error of the store.
    pub async fn retry_run(&self, id: String) -> Result<(), Error> {
        const FROM: &[RunState] = &[RunState::Failed, RunState::Canceled];
        let (run_id, owner) = (id.clone(), self.runner.owner());
        let changed = self.db.write(move |c| {
            let changed = repo::runs::set_state(c, &run_id, FROM, RunState::Pending, "", now_ms())?;
            if changed {
                // Nothing carries out a run that has ended.
                repo::runs::set_owner(c, &run_id, &owner)?;
            }
            Ok::<_, Error>(changed)
        });
        let changed = changed.await?;
        if !changed {
            return Err(Error::Conflict(format!(
                "Failed to retry run {id} as it does not allow retries: only runs that failed or were canceled do"
            )));
        }
        self.runner.retry(id);
        Ok(())
    }

    /// Deletes a run with its tasks, artifacts and logs, and stops it if it has not finished.
    ///
    /// # Errors
    /// [`Error::NotFound`], an error of the store, or one of the runner.
    pub async fn delete_run(&self, id: String) -> Result<(), Error> {
        let run_id = id.clone();
        let namespace = self
            .db
            .write(move |c| {
                let namespace = repo::runs::find(c, &run_id)?.namespace;
                repo::runs::delete(c, &run_id)?;
                Ok::<_, Error>(namespace)
            })
            .await?;
        self.runner.forget(namespace, id).await
    }

    /// The path of the task that a request names: by its id in the API, or by its path.
    async fn task_path(&self, run_id: &str, node: &str) -> Result<TaskPath, Error> {
        let (id, node) = (run_id.to_owned(), node.to_owned());
        self.db
            .read(move |c| {
                let path = TaskPath(node.clone());
                if !node.is_empty() && repo::tasks::find(c, &id, &path)?.is_some() {
                    return Ok(path);
                }
                let paths = repo::tasks::paths(c, &id)?;
                let found = paths.into_iter().find(|path| ids::task_id(&id, path) == node);
                found.ok_or_else(|| Error::NotFound(format!("Task {node} of run {id} not found")))
            })
            .await
    }

    /// What a task wrote to standard output and standard error.
    ///
    /// # Errors
    /// [`Error::NotFound`], an error of the store, or one of the runner.
    pub async fn task_log(
        &self,
        run_id: String,
        node: &str,
        attempt: Option<u32>,
        follow: bool,
    ) -> Result<LogStream, Error> {
        let path = self.task_path(&run_id, node).await?;
        self.runner.log(run_id, path, attempt, follow).await
    }

    /// The content of an output artifact of a task, and its first piece, so that an artifact that cannot be read is an error.
    ///
    /// # Errors
    /// [`Error::NotFound`], an error of the store, or one of the runner.
    pub async fn read_artifact(
        &self,
        run_id: String,
        node: &str,
        name: String,
    ) -> Result<(Option<Bytes>, ArtifactStream), Error> {
        let path = self.task_path(&run_id, node).await?;
        let namespace = self.run(&run_id)?.namespace;
        let missing = format!("artifact runs/{run_id}/nodes/{node}/artifacts/{name} not found");
        let found = self.db.read_now(|c| repo::artifacts::of_output(c, &run_id, &path, &name))?;
        let artifact = found.into_iter().next().ok_or(Error::NotFound(missing))?;
        self.open_artifact(namespace, artifact).await
    }

    /// The content of an artifact that a task was given or gave: that number `index` of the input or output `name`. As
    /// [`Self::read_artifact`] otherwise.
    ///
    /// # Errors
    /// [`Error::NotFound`], an error of the store, or one of the runner.
    pub async fn read_task_artifact(
        &self,
        run: &Run,
        path: TaskPath,
        side: Side,
        name: &str,
        index: usize,
    ) -> Result<(Option<Bytes>, ArtifactStream), Error> {
        let record = self.task_record(run.run_id.clone(), path).await?;
        let artifacts = match side {
            Side::Inputs => &record.inputs.artifacts,
            Side::Outputs => &record.outputs.artifacts,
        };
        let artifact = artifacts.get(name).and_then(|list| list.get(index)).cloned().ok_or_else(|| {
            Error::NotFound(format!("task {} of run {} has no artifact {index} of {name:?}", record.path.0, run.run_id))
        })?;
        self.open_artifact(run.namespace.clone(), artifact).await
    }

    async fn open_artifact(
        &self,
        namespace: String,
        artifact: Artifact,
    ) -> Result<(Option<Bytes>, ArtifactStream), Error> {
        use futures_util::TryStreamExt as _;
        let mut stream = self.runner.read_artifact(namespace, artifact).await?;
        Ok((stream.try_next().await?, stream))
    }

    /// The compiled pipeline with this digest, read.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub async fn document(&self, digest: &str) -> Result<Document, Error> {
        let stored = self.specification(digest)?;
        blocking(move || specification::from_stored(&stored)).await
    }
}

/// Stores a run with its specification, and with the server that carries it out. `false` if a run with this id exists.
pub(super) fn insert(c: &Connection, run: &Run, spec: &StoredSpec, owner: &str) -> Result<bool, Error> {
    repo::specs::insert(c, spec)?;
    let inserted = repo::runs::insert(c, run, owner)?;
    if inserted {
        repo::experiments::run_created(c, &run.experiment_id, run.created_at)?;
    }
    Ok(inserted)
}

/// The runs that a list request means.
pub(super) fn scope<'a>(namespace: &'a str, experiment_id: &'a str) -> Scope<'a> {
    if experiment_id.is_empty() { Scope::Namespace(namespace) } else { Scope::Experiment(experiment_id) }
}
