//! Experiments.

use slipway_core::clock::now_ms;

use super::{DEFAULT_EXPERIMENT, Service, check_description, check_length, ids};
use crate::Error;
use crate::entity::{Experiment, StorageState};
use crate::listing::{ListRequest, Listing};
use crate::repo::{self, Page};

impl Service {
    /// Creates an experiment.
    ///
    /// # Errors
    /// [`Error::Invalid`] for its name, [`Error::Exists`], or an error of the store.
    pub async fn create_experiment(
        &self,
        namespace: String,
        name: String,
        description: String,
    ) -> Result<Experiment, Error> {
        if name.is_empty() {
            return Err(Error::Invalid("Experiment must have a non-empty name".into()));
        }
        check_length("Experiment.Name", &name, 128)?;
        check_length("Experiment.Namespace", &namespace, 63)?;
        check_description(&description)?;
        let experiment = Experiment {
            experiment_id: ids::random(),
            namespace,
            name,
            description,
            created_at: now_ms(),
            last_run_created_at: 0,
            storage_state: StorageState::Available,
        };
        self.db.write(move |c| repo::experiments::insert(c, &experiment).map(|()| experiment)).await
    }

    /// The default experiment of a namespace, which is created if it does not exist.
    ///
    /// # Errors
    /// An error of the store.
    pub async fn default_experiment(&self, namespace: String) -> Result<Experiment, Error> {
        let wanted = namespace.clone();
        let found = self.db.read_now(|c| repo::experiments::find_by_name(c, &wanted, DEFAULT_EXPERIMENT))?;
        if let Some(found) = found {
            return Ok(found);
        }
        let description = "Runs that name no other experiment.".to_owned();
        match self.create_experiment(namespace, DEFAULT_EXPERIMENT.into(), description).await {
            // Another request came first.
            Err(Error::Exists(reason)) => {
                let found = self.db.read_now(|c| repo::experiments::find_by_name(c, &wanted, DEFAULT_EXPERIMENT))?;
                found.ok_or(Error::Conflict(reason))
            }
            result => result,
        }
    }

    /// The experiment with this id.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub fn experiment(&self, id: &str) -> Result<Experiment, Error> {
        self.db.read_now(|c| repo::experiments::find(c, id))
    }

    /// The experiment of a new run, or recurring run, in `namespace`: the one with this id, else the default one.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Invalid`] if it belongs to another namespace than the one named, or an error of the store.
    pub async fn experiment_for(&self, id: &str, namespace: &str) -> Result<Experiment, Error> {
        if id.is_empty() {
            return self.default_experiment(self.namespace(namespace)).await;
        }
        let experiment = self.experiment(id)?;
        let owner = &experiment.namespace;
        if self.options.multi_user && !namespace.is_empty() && namespace != owner {
            return Err(Error::Invalid(format!(
                "Experiment {id} belongs to namespace '{owner}' instead of '{namespace}'"
            )));
        }
        Ok(experiment)
    }

    /// A page of the experiments of a namespace.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the parameters of the list, or an error of the store.
    pub async fn experiments(&self, namespace: String, request: &ListRequest) -> Result<Page<Experiment>, Error> {
        let listing = Listing::new(&repo::experiments::FIELDS, request)?;
        self.db.read(move |c| repo::experiments::list(c, &namespace, &listing)).await
    }

    /// Archives an experiment and its runs, and disables its recurring runs; or unarchives only the experiment.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub async fn set_experiment_archived(&self, id: String, archived: bool) -> Result<(), Error> {
        self.db
            .write(move |c| {
                if archived {
                    repo::experiments::archive(c, &id, now_ms())
                } else {
                    repo::experiments::unarchive(c, &id)
                }
            })
            .await
    }

    /// Deletes an experiment. Its runs and recurring runs stay.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`] for the default experiment, or an error of the store.
    pub async fn delete_experiment(&self, id: String) -> Result<(), Error> {
        self.db
            .write(move |c| {
                if repo::experiments::find(c, &id)?.name == DEFAULT_EXPERIMENT {
                    return Err(Error::Conflict(format!(
                        "Failed to delete experiment {id}. The default experiment cannot be deleted"
                    )));
                }
                repo::experiments::delete(c, &id)
            })
            .await
    }
}
