//! Recurring runs.

use slipway_core::clock::now_ms;

use super::runs::scope;
use super::{NewSource, Service, check_description, check_length, ids, parameters};
use crate::Error;
use crate::entity::{Experiment, RecurringRun, RuntimeConfig, Source, StoredSpec};
use crate::listing::{ListRequest, Listing};
use crate::repo::{self, Page};
use crate::schedule::{Schedule, Trigger};

/// A recurring run to create.
#[derive(Debug, Clone)]
pub struct NewRecurringRun {
    /// Name that users see.
    pub display_name: String,
    /// Description.
    pub description: String,
    /// Service account of the pods; may be empty.
    pub service_account: String,
    /// Where the specification comes from. Without the id of a version, each run takes the version that is newest then.
    pub source: NewSource,
    /// Parameters, with macros such as `[[ScheduledTime]]`, and root.
    pub config: RuntimeConfig,
    /// When it starts runs; its creation time is set here.
    pub schedule: Schedule,
    /// Maximum number of unfinished runs.
    pub max_concurrency: i64,
    /// Whether it starts runs.
    pub enabled: bool,
}

impl Service {
    /// Creates a recurring run in an experiment.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the request, [`Error::Specification`], [`Error::NotFound`] for the version, or an error of the store.
    pub async fn create_recurring_run(
        &self,
        experiment: &Experiment,
        new: NewRecurringRun,
    ) -> Result<RecurringRun, Error> {
        if new.display_name.is_empty() {
            return Err(Error::Invalid("Recurring run's name cannot be empty".into()));
        }
        if !(1..=10).contains(&new.max_concurrency) {
            return Err(Error::Invalid(format!(
                "Max concurrency of a recurring run must be at least 1 and at most 10. Received {}",
                new.max_concurrency
            )));
        }
        check_length("RecurringRun.DisplayName", &new.display_name, 1024)?;
        check_length("RecurringRun.ServiceAccount", &new.service_account, 253)?;
        check_length("RecurringRun.PipelineRoot", &new.config.pipeline_root, 4096)?;
        check_description(&new.description)?;
        new.schedule.check().map_err(Error::Invalid)?;
        warn_of_five_fields(&new);
        let newest = match &new.source {
            NewSource::Reference { pipeline_id, version_id } if version_id.is_empty() => Some(pipeline_id.clone()),
            NewSource::Reference { .. } | NewSource::Inline(_) => None,
        };
        let resolved = self.resolve(new.source, experiment.namespace.clone()).await?;
        parameters::check(&resolved.document, &new.config.parameters)?;
        let source = newest.map_or(resolved.source, |pipeline_id| Source::Newest { pipeline_id });

        let now = now_ms();
        let schedule = Schedule { created: now.div_euclid(1000), ..new.schedule };
        let recurring = RecurringRun {
            recurring_run_id: ids::random(),
            namespace: experiment.namespace.clone(),
            experiment_id: experiment.experiment_id.clone(),
            display_name: new.display_name,
            description: new.description,
            service_account: new.service_account,
            enabled: new.enabled,
            created_at: now,
            updated_at: now,
            max_concurrency: new.max_concurrency,
            next_slot: schedule.next(None, &self.options.time_zone),
            schedule,
            source,
            config: new.config,
            last_slot: None,
            triggered: 0,
            error: String::new(),
        };
        let created = self
            .db
            .write(move |c| {
                if matches!(recurring.source, Source::Inline { .. }) {
                    repo::specs::insert(c, &resolved.spec)?;
                }
                repo::recurring::insert(c, &recurring)?;
                Ok::<_, Error>(recurring)
            })
            .await?;
        self.wake_scheduler();
        Ok(created)
    }

    /// The recurring run with this id.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub fn recurring_run(&self, id: &str) -> Result<RecurringRun, Error> {
        self.db.read_now(|c| repo::recurring::find(c, id))
    }

    /// A page of the recurring runs of a namespace or experiment.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the parameters of the list, or an error of the store.
    pub async fn recurring_runs(
        &self,
        namespace: String,
        experiment_id: String,
        request: &ListRequest,
    ) -> Result<Page<(RecurringRun, Option<StoredSpec>)>, Error> {
        let listing = Listing::new(&repo::recurring::FIELDS, request)?;
        self.db
            .read(move |c| {
                let page = repo::recurring::list(c, scope(&namespace, &experiment_id), &listing)?;
                let items = page.items.into_iter().map(|recurring| {
                    let spec = match &recurring.source {
                        Source::Inline { spec } => Some(repo::specs::find(c, spec)?),
                        Source::Version { .. } | Source::Newest { .. } => None,
                    };
                    Ok((recurring, spec))
                });
                Ok(Page {
                    items: items.collect::<Result<_, Error>>()?,
                    total: page.total,
                    next_page_token: page.next_page_token,
                })
            })
            .await
    }

    /// Enables or disables a recurring run. One that is enabled again makes up for the slots that it missed, if it catches up.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub async fn set_recurring_run_enabled(&self, id: String, enabled: bool) -> Result<(), Error> {
        self.db.write(move |c| repo::recurring::set_enabled(c, &id, enabled, now_ms())).await?;
        self.wake_scheduler();
        Ok(())
    }

    /// Deletes a recurring run. Its runs stay.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub async fn delete_recurring_run(&self, id: String) -> Result<(), Error> {
        self.db.write(move |c| repo::recurring::delete(c, &id)).await
    }
}

/// Logs a cron expression that its author may have meant otherwise.
fn warn_of_five_fields(new: &NewRecurringRun) {
    if let Trigger::Cron(text) = &new.schedule.trigger
        && !text.starts_with('@')
        && text.split_whitespace().count() == 5
    {
        tracing::warn!(
            recurring_run = new.display_name,
            cron = text,
            "the cron expression has five fields, which are read as second, minute, hour, day of month and month"
        );
    }
}
