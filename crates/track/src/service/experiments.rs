//! The rules of experiments.

use slipway_core::clock::now_ms;

use super::{Tracking, ViewType, page_size};
use crate::filter::{entities, page_token};
use crate::location::{self, Kind};
use crate::model::{Experiment, KeyValue, Page, stage};
use crate::{Error, ErrorCode, artifact_path, repo, validate};

impl Tracking {
    /// Creates an experiment and returns its id.
    ///
    /// # Errors
    /// An invalid or taken name, an invalid tag or location.
    pub async fn create_experiment(
        &self,
        name: String,
        location: Option<String>,
        tags: Vec<KeyValue>,
    ) -> Result<String, Error> {
        let tags = self.with_owner(tags)?;
        self.may_choose_location(location.as_deref())?;
        validate::experiment_name(&name)?;
        for tag in &tags {
            validate::experiment_tag(&tag.key, &tag.value)?;
        }
        let location = location.filter(|l| !l.is_empty());
        let location = location.map(|location| validated_location(&location)).transpose()?;
        let id =
            self.db.write(move |c| repo::experiments::insert(c, &name, location.as_deref(), &tags, now_ms())).await?;
        Ok(id.to_string())
    }

    /// The experiment with this id.
    ///
    /// # Errors
    /// No such experiment.
    pub fn experiment(&self, id: &str) -> Result<Experiment, Error> {
        let id = validate::experiment_id(id)?;
        self.db.read_now(|c| repo::experiments::find(c, id))
    }

    /// The experiment with this name.
    ///
    /// # Errors
    /// No such experiment.
    pub fn experiment_by_name(&self, name: &str) -> Result<Experiment, Error> {
        self.db
            .read_now(|c| repo::experiments::find_by_name(c, name))?
            .ok_or_else(|| Error::missing(format!("Could not find experiment with name '{name}'")))
    }

    /// Searches experiments.
    ///
    /// # Errors
    /// An invalid filter, order, page size or page token.
    pub async fn search_experiments(
        &self,
        view: ViewType,
        max_results: i64,
        filter: &str,
        order_by: &[String],
        token: Option<&str>,
    ) -> Result<Page<Experiment>, Error> {
        let limit = page_size(max_results)?;
        let conditions = entities::compile(&entities::EXPERIMENTS, filter)?;
        let order = entities::compile_order(
            &entities::EXPERIMENTS,
            order_by,
            &["creation_time DESC", "experiment_id ASC"],
            &[("e.experiment_id", " DESC")],
        )?;
        let offset = page_token::decode(token)?;
        let found = self
            .db
            .read(move |c| repo::experiments::search(c, view.stages(), &conditions, &order, limit + 1, offset))
            .await?;
        Ok(page_token::page(found, offset, limit))
    }

    /// Marks the experiment and its runs as deleted.
    ///
    /// # Errors
    /// No active experiment with this id.
    pub async fn delete_experiment(&self, id: &str) -> Result<(), Error> {
        self.move_experiment(id, stage::ACTIVE, stage::DELETED).await
    }

    /// Restores a deleted experiment and its runs.
    ///
    /// # Errors
    /// No deleted experiment with this id.
    pub async fn restore_experiment(&self, id: &str) -> Result<(), Error> {
        self.move_experiment(id, stage::DELETED, stage::ACTIVE).await
    }

    async fn move_experiment(&self, id: &str, from: &'static str, to: &'static str) -> Result<(), Error> {
        let id = validate::experiment_id(id)?;
        self.db
            .write(move |c| {
                if repo::experiments::find(c, id)?.lifecycle_stage != from {
                    return Err(Error::missing(format!("No Experiment with id={id} exists")));
                }
                repo::experiments::set_stage(c, id, to, now_ms())
            })
            .await
    }

    /// Renames the experiment.
    ///
    /// # Errors
    /// An invalid or taken name, or an experiment that does not exist or is deleted.
    pub async fn rename_experiment(&self, id: &str, name: String) -> Result<(), Error> {
        validate::experiment_name(&name)?;
        let id = validate::experiment_id(id)?;
        self.db
            .write(move |c| {
                if repo::experiments::find(c, id)?.lifecycle_stage != stage::ACTIVE {
                    return Err(Error::new(ErrorCode::InvalidState, "Cannot rename a non-active experiment."));
                }
                repo::experiments::rename(c, id, &name, now_ms())
            })
            .await
    }

    /// Sets a tag.
    ///
    /// # Errors
    /// An invalid tag, or an experiment that does not exist or is deleted.
    pub async fn set_experiment_tag(&self, id: &str, key: String, value: String) -> Result<(), Error> {
        self.may_change_experiment(id)?;
        self.may_change_tag(&key)?;
        validate::experiment_tag(&key, &value)?;
        let id = validate::experiment_id(id)?;
        self.db
            .write(move |c| {
                require_active(&repo::experiments::find(c, id)?)?;
                repo::experiments::set_tag(c, id, &key, &value)
            })
            .await
    }

    /// Removes a tag.
    ///
    /// # Errors
    /// No such tag, or an experiment that does not exist or is deleted.
    pub async fn delete_experiment_tag(&self, id: &str, key: String) -> Result<(), Error> {
        self.may_change_experiment(id)?;
        self.may_change_tag(&key)?;
        let id = validate::experiment_id(id)?;
        self.db
            .write(move |c| {
                require_active(&repo::experiments::find(c, id)?)?;
                if repo::experiments::delete_tag(c, id, &key)? {
                    Ok(())
                } else {
                    Err(Error::missing(format!("No tag with name: {key} in experiment with id {id}")))
                }
            })
            .await
    }
}

fn require_active(experiment: &Experiment) -> Result<(), Error> {
    super::experiments::require_active_stage(&experiment.experiment_id, &experiment.lifecycle_stage)
}

/// Fails unless the experiment is active.
pub(super) fn require_active_stage(id: &str, lifecycle_stage: &str) -> Result<(), Error> {
    if lifecycle_stage == stage::ACTIVE {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "The experiment {id} must be in the 'active' state. Current state is {lifecycle_stage}."
    )))
}

/// Validates the location of an experiment's artifacts. A relative path becomes absolute, as in MLflow.
fn validated_location(location: &str) -> Result<String, Error> {
    artifact_path::require_printable(location)?;
    if location.contains(['#', ';']) {
        return Err(Error::invalid("'artifact_location' URL can't include fragments or params."));
    }
    if location.starts_with("runs:") {
        return Err(Error::invalid(format!("Artifact location cannot be a runs:/ URI. Given: '{location}'")));
    }
    if location.split(['/', '?', '&', '=']).any(|p| p == "..") {
        return Err(Error::invalid(format!("Invalid artifact location: '{location}'")));
    }
    if location.chars().count() > 2048 {
        return Err(Error::invalid(format!(
            "Invalid artifact path length. The length of the artifact path cannot be greater than 2048. \
             To configure this limit, please set the MLFLOW_ARTIFACT_LOCATION_MAX_LENGTH environment variable. \
             Got: {location}"
        )));
    }
    match location::kind(location) {
        Some(Kind::Http) => Err(Error::invalid(format!(
            "'artifact_location' cannot use the '{}' scheme: the scheme addresses a host other than the tracking server's \
             configured artifact storage, so the server would connect to the host named in the URI.",
            location.split(':').next().unwrap_or_default()
        ))),
        Some(Kind::Local) if !location.contains(':') => {
            let absolute = std::path::absolute(location).ok().and_then(|path| path.into_os_string().into_string().ok());
            absolute.ok_or_else(|| Error::invalid(format!("Invalid artifact location: '{location}'")))
        }
        _ => Ok(location.to_owned()),
    }
}
