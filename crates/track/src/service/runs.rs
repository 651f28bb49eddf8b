//! The rules of runs: their parameters, tags, inputs and outputs.

use std::collections::HashMap;

use slipway_core::{clock::now_ms, ids};

use super::experiments::require_active_stage;
use super::{Tracking, ViewType, page_size};
use crate::filter::{page_token, runs as query};
use crate::model::{DatasetInput, KeyValue, ModelInput, ModelOutput, Page, Run, RunInfo, stage};
use crate::points::Point;
use crate::service::metrics::NewMetric;
use crate::{Error, artifact_path, repo, validate};

/// Tag with the name of a run.
const RUN_NAME: &str = "mlflow.runName";
/// Tag with the JSON list of models that a run logged with MLflow 2.
const LOGGED_MODELS: &str = "mlflow.log-model.history";

/// The fields of a new run.
#[derive(Debug, Default)]
#[allow(missing_docs)] // the names are the protocol's own
pub struct NewRun {
    /// The id, if the caller chooses it. If a run with this id exists already, it is returned unchanged.
    pub run_id: Option<String>,
    pub experiment_id: String,
    pub user_id: String,
    pub start_time: i64,
    pub run_name: String,
    pub tags: Vec<KeyValue>,
}

impl Tracking {
    /// Creates a run.
    ///
    /// # Errors
    /// An experiment that does not exist or is deleted, or two different names.
    pub async fn create_run(&self, new: NewRun) -> Result<Run, Error> {
        self.may_add_to_experiment(&new.experiment_id)?;
        let experiment = validate::experiment_id(&new.experiment_id)?;
        let mut tags = self.with_owner(new.tags)?;
        let tagged = tags.iter().rev().find(|t| t.key == RUN_NAME).map(|t| t.value.clone()).unwrap_or_default();
        if !new.run_name.is_empty() && !tagged.is_empty() && new.run_name != tagged {
            return Err(Error::invalid(format!(
                "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with different values \
                 (run_name='{}', mlflow.runName='{tagged}').",
                new.run_name
            )));
        }
        let run_name = [new.run_name, tagged.clone()].into_iter().find(|n| !n.is_empty());
        let run_name = run_name.unwrap_or_else(ids::friendly_name);
        if tagged.is_empty() {
            tags.retain(|t| t.key != RUN_NAME);
            tags.push(KeyValue { key: RUN_NAME.into(), value: run_name.clone() });
        }
        let has_given_id = new.run_id.is_some();
        let run_id = new.run_id.unwrap_or_else(ids::hex32);
        validate::run_id(&run_id)?;
        let mut info = RunInfo {
            run_uuid: run_id.clone(),
            run_name,
            experiment_id: experiment.to_string(),
            user_id: new.user_id,
            status: "RUNNING".into(),
            start_time: new.start_time,
            end_time: None,
            artifact_uri: String::new(),
            lifecycle_stage: stage::ACTIVE.into(),
            run_id,
        };
        self.db
            .write(move |c| {
                if has_given_id && let Ok(found) = repo::runs::find(c, &info.run_id) {
                    return repo::runs::load(c, found);
                }
                let (location, lifecycle) = repo::experiments::location(c, experiment)?;
                require_active_stage(&info.experiment_id, &lifecycle)?;
                info.artifact_uri = join_location(&location, &format!("{}/artifacts", info.run_id));
                repo::runs::insert(c, &info, &tags)?;
                Ok(Run {
                    info,
                    data: crate::model::RunData { tags, ..Default::default() },
                    inputs: Default::default(),
                    outputs: None,
                })
            })
            .await
    }

    /// The run with everything that it logged.
    ///
    /// # Errors
    /// No such run.
    pub fn run(&self, run_id: &str) -> Result<Run, Error> {
        self.db.read_now(|c| repo::runs::load(c, repo::runs::find(c, run_id)?))
    }

    /// A run's metadata, without its data.
    ///
    /// # Errors
    /// No such run.
    pub fn run_info(&self, run_id: &str) -> Result<RunInfo, Error> {
        self.db.read_now(|c| Ok(repo::runs::find(c, run_id)?.info))
    }

    /// Sets status, end time and name where given.
    ///
    /// # Errors
    /// A run that does not exist or is deleted.
    pub async fn update_run(
        &self,
        run_id: String,
        status: Option<String>,
        end_time: Option<i64>,
        name: Option<String>,
    ) -> Result<RunInfo, Error> {
        self.may_change_run(&run_id)?;
        let name = name.filter(|n| !n.is_empty());
        self.db
            .write(move |c| {
                let (run, _) = repo::runs::active(c, &run_id)?;
                repo::runs::update(c, run, status.as_deref(), end_time, name.as_deref())?;
                Ok(repo::runs::find(c, &run_id)?.info)
            })
            .await
    }

    /// Marks the run as deleted.
    ///
    /// # Errors
    /// No such run.
    pub async fn delete_run(&self, run_id: String) -> Result<(), Error> {
        self.db.write(move |c| repo::runs::set_stage(c, &run_id, stage::DELETED, now_ms())).await
    }

    /// Restores a deleted run.
    ///
    /// # Errors
    /// No such run.
    pub async fn restore_run(&self, run_id: String) -> Result<(), Error> {
        self.db.write(move |c| repo::runs::set_stage(c, &run_id, stage::ACTIVE, now_ms())).await
    }

    /// Searches runs and returns them with everything that they logged.
    ///
    /// # Errors
    /// An invalid filter, order, page size, experiment id or page token.
    pub async fn search_runs(
        &self,
        experiment_ids: &[String],
        filter: &str,
        view: ViewType,
        max_results: i64,
        order_by: &[String],
        token: Option<&str>,
    ) -> Result<Page<Run>, Error> {
        let limit = page_size(max_results)?;
        let query = query::compile(filter, order_by)?;
        let offset = page_token::decode(token)?;
        let experiments = experiment_ids.iter().map(|id| validate::experiment_id(id)).collect::<Result<Vec<_>, _>>()?;
        self.db
            .read(move |c| {
                let rows = repo::runs::search(c, &experiments, view.stages(), &query, limit + 1, offset)?;
                let page = page_token::page(rows, offset, limit);
                let items = page.items.into_iter().map(|row| repo::runs::load(c, row)).collect::<Result<_, _>>()?;
                Ok(Page { items, next_page_token: page.next_page_token })
            })
            .await
    }

    /// Logs a parameter. It is not an error to log the same value again.
    ///
    /// # Errors
    /// An invalid key, another value than before, or a run that does not exist or is deleted.
    pub async fn log_param(&self, run_id: String, param: KeyValue) -> Result<(), Error> {
        self.may_change_run(&run_id)?;
        let param = validate::param(param, "")?;
        self.db
            .write(move |c| {
                let (run, _) = repo::runs::active(c, &run_id)?;
                match repo::runs::add_param(c, run, &param)? {
                    Some(old) if old != param.value => Err(Error::invalid(format!(
                        "Changing param values is not allowed. Param with key='{}' was already logged with \
                         value='{old}' for run ID='{run_id}'. Attempted logging new value '{}'.",
                        param.key, param.value
                    ))),
                    _ => Ok(()),
                }
            })
            .await
    }

    /// Logs metrics, parameters and tags in one transaction: all of them or none.
    ///
    /// # Errors
    /// An invalid metric, parameter or tag, or a run that does not exist or is deleted.
    pub async fn log_batch(
        &self,
        run_id: String,
        metrics: Vec<NewMetric>,
        params: Vec<KeyValue>,
        tags: Vec<KeyValue>,
    ) -> Result<(), Error> {
        self.may_change_run(&run_id)?;
        self.may_log_for_models(&metrics)?;
        tags.iter().try_for_each(|tag| self.may_change_tag(&tag.key))?;
        validate::run_id(&run_id)?;
        for (i, metric) in metrics.iter().enumerate() {
            // Format the path only for an invalid metric, because this is a hot path.
            if validate::metric(&metric.key, metric.value, metric.timestamp, "").is_err() {
                validate::metric(&metric.key, metric.value, metric.timestamp, &format!("metrics[{i}]"))?;
            }
        }
        let params = validate_each(params, |i, p| validate::param(p, &format!("params[{i}]")))?;
        let tags = validate_each(tags, |i, t| validate::tag(t, &format!("tags[{i}]")))?;
        validate::batch(metrics.len(), params.len(), tags.len())?;
        unique_params(&params)?;
        let stored = self
            .db
            .write(move |c| {
                let (run, _) = repo::runs::active(c, &run_id)?;
                let mut changed = Vec::new();
                for param in &params {
                    match repo::runs::add_param(c, run, param)? {
                        Some(old) if old != param.value => changed.push(format!(
                            "{{'key': '{}', 'old_value': '{old}', 'new_value': '{}'}}",
                            param.key, param.value
                        )),
                        _ => {}
                    }
                }
                if !changed.is_empty() {
                    return Err(Error::invalid(format!(
                        "Changing param values is not allowed. Params were already logged='[{}]' for run ID='{run_id}'.",
                        changed.join(", ")
                    )));
                }
                let stored = super::metrics::store(c, run, &run_id, &metrics)?;
                for tag in &tags {
                    set_tag(c, run, tag)?;
                }
                Ok(stored)
            })
            .await?;
        self.compactor.record_write(stored);
        Ok(())
    }

    /// Sets a tag; `mlflow.runName` renames the run.
    ///
    /// # Errors
    /// An invalid key, or a run that does not exist or is deleted.
    pub async fn set_tag(&self, run_id: String, tag: KeyValue) -> Result<(), Error> {
        self.may_change_run(&run_id)?;
        self.may_change_tag(&tag.key)?;
        let tag = validate::tag(tag, "")?;
        self.db
            .write(move |c| {
                let (run, _) = repo::runs::active(c, &run_id)?;
                set_tag(c, run, &tag)
            })
            .await
    }

    /// Removes a tag.
    ///
    /// # Errors
    /// No such tag, or a run that does not exist or is deleted.
    pub async fn delete_tag(&self, run_id: String, key: String) -> Result<(), Error> {
        self.may_change_run(&run_id)?;
        self.may_change_tag(&key)?;
        self.db
            .write(move |c| {
                let (run, _) = repo::runs::active(c, &run_id)?;
                if repo::runs::delete_tag(c, run, &key)? {
                    Ok(())
                } else {
                    Err(Error::missing(format!("No tag with name: {key} in run with id {run_id}")))
                }
            })
            .await
    }

    /// Records datasets and logged models as inputs of the run.
    ///
    /// # Errors
    /// An invalid dataset, or a run that does not exist or is deleted.
    pub async fn log_inputs(
        &self,
        run_id: String,
        datasets: Vec<DatasetInput>,
        models: Vec<ModelInput>,
    ) -> Result<(), Error> {
        self.may_change_run(&run_id)?;
        validate::run_id(&run_id)?;
        for input in &datasets {
            let dataset = input
                .dataset
                .as_ref()
                .ok_or_else(|| Error::invalid("Dataset input must have a dataset associated with it."))?;
            validate::dataset(dataset, &input.tags)?;
        }
        self.db
            .write(move |c| {
                let (run, experiment) = repo::runs::active(c, &run_id)?;
                for input in &datasets {
                    if let Some(dataset) = &input.dataset {
                        repo::runs::add_dataset(c, run, experiment, dataset, &input.tags)?;
                    }
                }
                for model in &models {
                    repo::runs::add_model_input(c, run, &model.model_id)?;
                }
                Ok(())
            })
            .await
    }

    /// Records logged models as outputs of the run.
    ///
    /// # Errors
    /// A run that does not exist or is deleted.
    pub async fn log_outputs(&self, run_id: String, models: Vec<ModelOutput>) -> Result<(), Error> {
        self.may_change_run(&run_id)?;
        self.db
            .write(move |c| {
                let (run, _) = repo::runs::active(c, &run_id)?;
                for model in &models {
                    repo::runs::add_model_output(c, run, &model.model_id, model.step)?;
                }
                Ok(())
            })
            .await
    }

    /// Appends the description of a model to the run's tag `mlflow.log-model.history`.
    ///
    /// # Errors
    /// Text that is not valid JSON or lacks a field, or a run that does not exist or is deleted.
    pub async fn log_model(&self, run_id: String, model_json: String) -> Result<(), Error> {
        self.may_change_run(&run_id)?;
        let Ok(serde_json::Value::Object(model)) = serde_json::from_str(&model_json) else {
            return Err(Error::invalid(format!("Malformed model info. \n {model_json} \n is not a valid JSON.")));
        };
        let missing: Vec<_> = ["artifact_path", "flavors", "run_id", "utc_time_created"]
            .into_iter()
            .filter(|f| !model.contains_key(*f))
            .map(|f| format!("'{f}'"))
            .collect();
        if !missing.is_empty() {
            return Err(Error::invalid(format!("Model json is missing mandatory fields: {{{}}}", missing.join(", "))));
        }
        if let Some(path) = model.get("artifact_path").and_then(|path| path.as_str()) {
            artifact_path::for_writing(path)?;
        }
        let mut kept = serde_json::Map::new();
        for field in ["run_id", "utc_time_created", "artifact_path", "model_uuid"] {
            if let Some(value) = model.get(field) {
                kept.insert(field.into(), value.clone());
            }
        }
        let mut flavors = model.get("flavors").cloned().unwrap_or_default();
        if let Some(flavors) = flavors.as_object_mut() {
            for flavor in flavors.values_mut().filter_map(|f| f.as_object_mut()) {
                flavor.remove("config");
            }
        }
        kept.insert("flavors".into(), flavors);
        self.db
            .write(move |c| {
                let (run, _) = repo::runs::active(c, &run_id)?;
                let history = repo::runs::tag(c, run, LOGGED_MODELS)?;
                let mut history: Vec<serde_json::Value> =
                    history.and_then(|h| serde_json::from_str(&h).ok()).unwrap_or_default();
                history.push(kept.into());
                let value = validate::python_json(&serde_json::Value::Array(history));
                set_tag(c, run, &validate::tag(KeyValue { key: LOGGED_MODELS.into(), value }, "")?)
            })
            .await
    }

    /// The datasets that are used in these experiments, each with `experiment_id`, `name`, `digest` and `context`.
    ///
    /// # Errors
    /// No experiment id, more than 20, or an invalid one.
    pub async fn search_datasets(
        &self,
        experiment_ids: &[String],
    ) -> Result<Vec<HashMap<&'static str, String>>, Error> {
        const LIMIT: usize = 20;
        if experiment_ids.is_empty() {
            return Err(Error::invalid("SearchDatasets request must specify at least one experiment_id."));
        }
        if experiment_ids.len() > LIMIT {
            return Err(Error::invalid(format!(
                "SearchDatasets request cannot specify more than {LIMIT} experiment_ids. Received {} experiment_ids.",
                experiment_ids.len()
            )));
        }
        let ids = experiment_ids.iter().map(|id| validate::experiment_id(id)).collect::<Result<Vec<_>, _>>()?;
        let found = self.db.read(move |c| repo::runs::dataset_summaries(c, &ids)).await?;
        let summary = |d: repo::runs::DatasetSummary| {
            let mut map =
                HashMap::from([("experiment_id", d.experiment_id.to_string()), ("name", d.name), ("digest", d.digest)]);
            if let Some(context) = d.context {
                map.insert("context", context);
            }
            map
        };
        Ok(found.into_iter().map(summary).collect())
    }
}

/// Sets a tag of a run that is known to be active.
fn set_tag(c: &slipway_store::sql::Connection, run: i64, tag: &KeyValue) -> Result<(), Error> {
    if tag.key == RUN_NAME && !tag.value.is_empty() {
        repo::runs::update(c, run, None, None, Some(&tag.value))
    } else {
        repo::runs::set_tag(c, run, &tag.key, &tag.value)
    }
}

/// Joins an artifact location and a relative path, which is inserted before the location's query string if it has one.
pub(super) fn join_location(location: &str, path: &str) -> String {
    match location.split_once('?') {
        Some((base, query)) => format!("{}/{path}?{query}", base.trim_end_matches('/')),
        None => format!("{}/{path}", location.trim_end_matches('/')),
    }
}

fn validate_each<T>(items: Vec<T>, check: impl Fn(usize, T) -> Result<T, Error>) -> Result<Vec<T>, Error> {
    items.into_iter().enumerate().map(|(i, item)| check(i, item)).collect()
}

fn unique_params(params: &[KeyValue]) -> Result<(), Error> {
    let mut seen = std::collections::HashSet::new();
    let duplicates: Vec<_> = params.iter().filter(|p| !seen.insert(&p.key)).map(|p| format!("'{}'", p.key)).collect();
    if duplicates.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "Duplicate parameter keys have been submitted: [{}]. Please ensure the request contains only one param value \
         per param key.",
        duplicates.join(", ")
    )))
}

impl From<&NewMetric> for Point {
    fn from(metric: &NewMetric) -> Self {
        Self { step: metric.step, timestamp: metric.timestamp, value: metric.value }
    }
}
