//! What a run may change. In a cluster, namespaces are tenants: the token of a run changes its own tracked run, and the experiments, runs,
//! logged models and registered models of its own namespace. Reading is not limited, since a run has to load the models that others
//! registered.
//!
//! The owner is named by the tag [`NAMESPACE_TAG`], which is set when a run creates something or is submitted, and which only people may
//! change. Whatever lies in an experiment also belongs to that experiment's owner. Being in an experiment gives no right to it: whoever
//! submits a run names any experiment, and runs that name none share the default one.

use slipway_access::RunIdentity;
use slipway_core::ids::RUN_TAG;

use super::Tracking;
use crate::model::{Experiment, KeyValue};
use crate::{Error, ErrorCode, repo, validate};

/// The tag that names the namespace to which an experiment, a run, a logged model or a registered model belongs.
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

    /// Whether an experiment carries the namespace of this run.
    fn owns_experiment(&self, run: &RunIdentity, id: &str) -> Result<bool, Error> {
        let number = validate::experiment_id(id)?;
        let tags = self.db.read_now(|c| Ok::<_, Error>(repo::experiments::find(c, number)?.tags))?;
        Ok(owner(&tags) == Some(&run.namespace))
    }

    /// Whether the caller may change this experiment itself.
    pub(crate) fn may_change_experiment(&self, id: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        if self.owns_experiment(run, id)? { Ok(()) } else { Err(Self::refusal(run, &format!("experiment {id}"))) }
    }

    /// Whether the caller may add runs and logged models to this experiment: its own one, though others may use it, too.
    pub(crate) fn may_add_to_experiment(&self, id: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        let number = validate::experiment_id(id)?;
        match self.run_info(&run.run_id) {
            Ok(own) if own.experiment_id == number.to_string() => Ok(()),
            _ => self.may_change_experiment(id),
        }
    }

    /// Whether the caller may change this tracked run.
    pub(crate) fn may_change_run(&self, run_id: &str) -> Result<(), Error> {
        let Some(run) = self.tenant().filter(|run| run.run_id != run_id) else { return Ok(()) };
        let (experiment, namespace) = self.db.read_now(|c| {
            let found = repo::runs::find(c, run_id)?;
            Ok::<_, Error>((found.info.experiment_id, repo::runs::tag(c, found.run, NAMESPACE_TAG)?))
        })?;
        if namespace.as_ref() == Some(&run.namespace) || self.owns_experiment(run, &experiment)? {
            return Ok(());
        }
        Err(Self::refusal(run, &format!("run {run_id}")))
    }

    /// Whether the caller may change this logged model.
    pub(crate) fn may_change_logged_model(&self, id: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        let info = self.logged_model(id, true)?.info;
        if owner(&info.tags) == Some(&run.namespace) || self.owns_experiment(run, &info.experiment_id)? {
            return Ok(());
        }
        Err(Self::refusal(run, &format!("logged model {id}")))
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

    /// Whether the caller may write the artifact at this path of the object store: `EXPERIMENT/RUN/...` or
    /// `EXPERIMENT/models/MODEL/...`, as runs and logged models get their locations.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` when it is outside of what the run may change.
    pub fn may_change_artifact(&self, path: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        // The object store understands a path so, too.
        let mut names = path.split('/').filter(|name| !name.is_empty() && *name != ".");
        let mut next = || names.next().unwrap_or_default();
        let (experiment, below) = (next(), next());
        let is_in = |found: Result<String, Error>| found.is_ok_and(|id| id == experiment);
        let allowed = self.owns_experiment(run, experiment).unwrap_or(false)
            || if below == "models" {
                let id = next();
                self.may_change_logged_model(id).is_ok()
                    && is_in(self.logged_model(id, true).map(|m| m.info.experiment_id))
            } else {
                self.may_change_run(below).is_ok() && is_in(self.run_info(below).map(|r| r.experiment_id))
            };
        if allowed { Ok(()) } else { Err(Self::refusal(run, &format!("artifact {path}"))) }
    }

    /// Whether the caller may set or remove a tag of this key: no run says to whom something belongs, or which run ends it.
    pub(crate) fn may_change_tag(&self, key: &str) -> Result<(), Error> {
        match &self.run {
            Some(run) if key == NAMESPACE_TAG || key == RUN_TAG => {
                Err(Self::refusal(run, &format!("the tag \"{key}\"")))
            }
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

    /// The tags of a new experiment, run or model: those that were asked for, and the owner where runs are kept apart.
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
