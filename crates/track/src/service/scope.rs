//! What a run may change. In a cluster, namespaces are tenants: the token of a run changes only its own experiment and the experiments
//! and models of its own namespace. Reading is not limited, since a run has to load the models that others registered.
//!
//! The owner of an experiment or model is the tag [`NAMESPACE_TAG`], which is set when a run creates it and which only people may change.

use slipway_access::RunIdentity;

use super::Tracking;
use crate::model::{Experiment, KeyValue};
use crate::{Error, ErrorCode, repo, validate};

/// The tag that names the namespace to which an experiment or a registered model belongs.
pub const NAMESPACE_TAG: &str = "slipway.namespace";
/// The tag with the number of attempts that a submitted run took. It is set when slipway ends the tracked run, after its last attempt.
pub const ATTEMPTS_TAG: &str = "slipway.attempts";

impl Tracking {
    /// The same tracking, limited to what this run may change.
    #[must_use]
    pub fn for_run(mut self, run: &RunIdentity) -> Self {
        self.run = Some(run.clone().into());
        self
    }

    /// Whether a submitted run may still go on: its tracked run is there, and slipway has not ended it. What MLflow's status says does not
    /// matter, since a program may end the tracked run and go on, as one that tracks several runs after each other does.
    ///
    /// # Errors
    /// The store's.
    pub async fn may_go_on(&self, run_id: String) -> Result<bool, Error> {
        self.db.read(move |c| repo::runs::is_active_without_tag(c, &run_id, ATTEMPTS_TAG)).await
    }

    /// The run that calls, if runs are kept apart.
    fn tenant(&self) -> Option<&RunIdentity> {
        self.run.as_deref().filter(|run| run.isolated)
    }

    fn refusal(run: &RunIdentity, what: &str) -> Error {
        let (name, namespace) = (&run.name, &run.namespace);
        Error::new(
            ErrorCode::PermissionDenied,
            format!(
                "run \"{name}\" of namespace \"{namespace}\" cannot change {what}, which does not belong to its namespace"
            ),
        )
    }

    /// Whether the caller may change this experiment.
    pub(crate) fn may_change_experiment(&self, id: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        let number = validate::experiment_id(id)?;
        let allowed = self.db.read_now(|c| {
            let own = repo::runs::find(c, &run.run_id).map(|r| r.info.experiment_id).ok();
            if own.as_deref() == Some(number.to_string().as_str()) {
                return Ok::<_, Error>(true);
            }
            Ok(owner(&repo::experiments::find(c, number)?.tags) == Some(&run.namespace))
        })?;
        if allowed { Ok(()) } else { Err(Self::refusal(run, &format!("experiment {id}"))) }
    }

    /// Whether the caller may change this tracked run.
    pub(crate) fn may_change_run(&self, run_id: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        let experiment = self.db.read_now(|c| Ok::<_, Error>(repo::runs::find(c, run_id)?.info.experiment_id))?;
        self.may_change_experiment(&experiment).map_err(|_| Self::refusal(run, &format!("run {run_id}")))
    }

    /// Whether the caller may change this logged model.
    pub(crate) fn may_change_logged_model(&self, id: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        let experiment = self.logged_model(id, true)?.info.experiment_id;
        self.may_change_experiment(&experiment).map_err(|_| Self::refusal(run, &format!("logged model {id}")))
    }

    /// Whether the caller may change this registered model: add versions, move aliases and stages, set tags.
    pub(crate) fn may_change_model(&self, name: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        let owner = self.db.read_now(|c| {
            repo::registry::require_model(c, name)?;
            repo::registry::model_tag(c, name, NAMESPACE_TAG)
        })?;
        if owner.as_ref() == Some(&run.namespace) {
            Ok(())
        } else {
            Err(Self::refusal(run, &format!("model \"{name}\"")))
        }
    }

    /// Whether the caller may write the artifact at this path of the object store, which begins with the id of an experiment.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` when it is outside of what the run may change.
    pub fn may_change_artifact(&self, path: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        let experiment = path.split('/').next().unwrap_or_default();
        self.may_change_experiment(experiment).map_err(|_| Self::refusal(run, &format!("artifact {path}")))
    }

    /// Whether the caller may set or remove a tag of an experiment or registered model.
    pub(crate) fn may_change_tag(&self, key: &str) -> Result<(), Error> {
        match &self.run {
            Some(run) if key == NAMESPACE_TAG => Err(Self::refusal(run, &format!("the tag \"{NAMESPACE_TAG}\""))),
            _ => Ok(()),
        }
    }

    /// Whether the caller may say where the artifacts of a new experiment are, which could be the folder of another tenant.
    pub(crate) fn may_choose_location(&self, location: Option<&str>) -> Result<(), Error> {
        match self.tenant() {
            Some(run) if location.is_some_and(|l| !l.is_empty()) => {
                Err(Self::refusal(run, "the location of artifacts"))
            }
            _ => Ok(()),
        }
    }

    /// The tags of a new experiment or model: those that were asked for, and the owner where runs are kept apart.
    pub(crate) fn owned(&self, mut tags: Vec<KeyValue>) -> Result<Vec<KeyValue>, Error> {
        for tag in &tags {
            self.may_change_tag(&tag.key)?;
        }
        if let Some(run) = self.tenant() {
            tags.push(KeyValue { key: NAMESPACE_TAG.into(), value: run.namespace.clone() });
        }
        Ok(tags)
    }
}

/// The namespace that owns something with these tags.
fn owner(tags: &[KeyValue]) -> Option<&String> {
    tags.iter().find(|t| t.key == NAMESPACE_TAG).map(|t| &t.value)
}

impl Experiment {
    /// The namespace that it belongs to; `None` if it belongs to no namespace alone.
    pub fn namespace(&self) -> Option<&str> {
        owner(&self.tags).map(String::as_str)
    }
}
