//! Limits on what a run may change. In a cluster, namespaces are tenants: with its token, a run may change its own tracked run, and the
//! experiments, runs, logged models and registered models of its own namespace. Reading is not limited, because runs load models that
//! other tenants registered.
//!
//! The owner of an entity is the namespace in its tag [`NAMESPACE_TAG`]. The tag is set when a run creates the entity or is submitted, and
//! only users may change it. The owner of an experiment also owns everything in it. A run does not own its experiment: a submitted run may
//! name any experiment, and all runs without one share the default experiment.

use slipway_access::RunIdentity;
use slipway_core::ids::RUN_TAG;

use super::Tracking;
use crate::model::{Experiment, KeyValue};
use crate::{Error, ErrorCode, repo, validate};

/// The tag with the namespace that owns an experiment, run, logged model or registered model.
pub const NAMESPACE_TAG: &str = "slipway.namespace";
/// The tag with the number of attempts of a submitted run. It is set when slipway ends the tracked run, after the last attempt.
pub const ATTEMPTS_TAG: &str = "slipway.attempts";
/// The tag with the number of the current attempt of a submitted run. It is set from the second attempt on.
pub const ATTEMPT_TAG: &str = "slipway.attempt";

impl Tracking {
    /// A handle to the same service that is limited to what this run may change.
    #[must_use]
    pub fn for_run(mut self, run: &RunIdentity) -> Self {
        self.run = Some(run.clone().into());
        self
    }

    /// The number of the attempt with which a submitted run may continue, from 1; `None` if its tracked run does not exist or slipway has
    /// ended it. MLflow's status does not matter, because a program may end the tracked run and continue, for instance to track several runs one after the other.
    ///
    /// # Errors
    /// An error of the store.
    pub async fn current_attempt(&self, run_id: String) -> Result<Option<u32>, Error> {
        let tags = self.db.read(move |c| repo::runs::tags_of_active(c, &run_id, [ATTEMPTS_TAG, ATTEMPT_TAG])).await?;
        Ok(match tags {
            Some([None, attempt]) => Some(attempt.and_then(|number| number.parse().ok()).unwrap_or(1)),
            _ => None,
        })
    }

    /// The run that sent the request, if tenants are isolated; `None` means no limits.
    fn tenant(&self) -> Option<&RunIdentity> {
        self.run.as_deref().filter(|run| run.isolated)
    }

    /// The error for a change of `what`, which belongs to another namespace.
    fn permission_denied(run: &RunIdentity, what: &str) -> Error {
        let (name, namespace) = (&run.name, &run.namespace);
        Error::new(
            ErrorCode::PermissionDenied,
            format!(
                "run \"{name}\" of namespace \"{namespace}\" cannot change {what}, which does not belong to its namespace"
            ),
        )
    }

    /// Whether the namespace of this run owns the experiment.
    fn owns_experiment(&self, run: &RunIdentity, id: &str) -> Result<bool, Error> {
        let number = validate::experiment_id(id)?;
        let tags = self.db.read_now(|c| Ok::<_, Error>(repo::experiments::find(c, number)?.tags))?;
        Ok(owner(&tags) == Some(&run.namespace))
    }

    /// Fails with `PERMISSION_DENIED` unless the caller may change this experiment.
    pub(crate) fn may_change_experiment(&self, id: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        if self.owns_experiment(run, id)? {
            Ok(())
        } else {
            Err(Self::permission_denied(run, &format!("experiment {id}")))
        }
    }

    /// Fails unless the caller may add runs and logged models to this experiment. A run may always add to its own experiment, even if other
    /// tenants use it, too.
    pub(crate) fn may_add_to_experiment(&self, id: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        let number = validate::experiment_id(id)?;
        match self.run_info(&run.run_id) {
            Ok(own) if own.experiment_id == number.to_string() => Ok(()),
            _ => self.may_change_experiment(id),
        }
    }

    /// Fails with `PERMISSION_DENIED` unless the caller may change this tracked run.
    pub(crate) fn may_change_run(&self, run_id: &str) -> Result<(), Error> {
        let Some(run) = self.tenant().filter(|run| run.run_id != run_id) else { return Ok(()) };
        let (experiment, namespace) = self.db.read_now(|c| {
            let found = repo::runs::find(c, run_id)?;
            Ok::<_, Error>((found.info.experiment_id, repo::runs::tag(c, found.run, NAMESPACE_TAG)?))
        })?;
        if namespace.as_ref() == Some(&run.namespace) || self.owns_experiment(run, &experiment)? {
            return Ok(());
        }
        Err(Self::permission_denied(run, &format!("run {run_id}")))
    }

    /// Fails with `PERMISSION_DENIED` unless the caller may change this logged model.
    pub(crate) fn may_change_logged_model(&self, id: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        let info = self.logged_model(id, true)?.info;
        if owner(&info.tags) == Some(&run.namespace) || self.owns_experiment(run, &info.experiment_id)? {
            return Ok(());
        }
        Err(Self::permission_denied(run, &format!("logged model {id}")))
    }

    /// Fails with `PERMISSION_DENIED` unless the caller may change this registered model: add versions, set aliases, stages and tags.
    pub(crate) fn may_change_model(&self, name: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        let owner = self.db.read_now(|c| {
            repo::registry::require_model(c, name)?;
            repo::registry::model_tag(c, name, NAMESPACE_TAG)
        })?;
        if owner.as_ref() == Some(&run.namespace) {
            Ok(())
        } else {
            Err(Self::permission_denied(run, &format!("model \"{name}\"")))
        }
    }

    /// Checks that the caller may write the artifact at this path in the object store: `EXPERIMENT/RUN/...` or
    /// `EXPERIMENT/models/MODEL/...`, the locations of runs and logged models.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` when it belongs to another namespace.
    pub fn may_change_artifact(&self, path: &str) -> Result<(), Error> {
        let Some(run) = self.tenant() else { return Ok(()) };
        // Ignore empty and `.` segments, as the object store does.
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
        if allowed { Ok(()) } else { Err(Self::permission_denied(run, &format!("artifact {path}"))) }
    }

    /// Fails unless the caller may set or remove a tag with this key. No run may change the tags with the owner and with the submitted run.
    pub(crate) fn may_change_tag(&self, key: &str) -> Result<(), Error> {
        match &self.run {
            Some(run) if key == NAMESPACE_TAG || key == RUN_TAG => {
                Err(Self::permission_denied(run, &format!("the tag \"{key}\"")))
            }
            _ => Ok(()),
        }
    }

    /// Fails unless the caller may choose the artifact location of a new experiment, which could be the folder of another tenant.
    pub(crate) fn may_choose_location(&self, location: Option<&str>) -> Result<(), Error> {
        match self.tenant() {
            Some(run) if location.is_some_and(|l| !l.is_empty()) => {
                Err(Self::permission_denied(run, "the location of artifacts"))
            }
            _ => Ok(()),
        }
    }

    /// The tags of a new experiment, run or model: the requested tags, and the owner if tenants are isolated.
    pub(crate) fn with_owner(&self, mut tags: Vec<KeyValue>) -> Result<Vec<KeyValue>, Error> {
        for tag in &tags {
            self.may_change_tag(&tag.key)?;
        }
        if let Some(run) = self.tenant() {
            tags.push(KeyValue { key: NAMESPACE_TAG.into(), value: run.namespace.clone() });
        }
        Ok(tags)
    }
}

/// The namespace that owns an entity with these tags.
fn owner(tags: &[KeyValue]) -> Option<&String> {
    tags.iter().find(|t| t.key == NAMESPACE_TAG).map(|t| &t.value)
}

impl Experiment {
    /// The namespace that owns the experiment; `None` if it has no owner.
    pub fn namespace(&self) -> Option<&str> {
        owner(&self.tags).map(String::as_str)
    }
}
