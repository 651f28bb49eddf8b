//! The rules of logged models (MLflow 3).

use slipway_core::{clock::now_ms, ids};
use slipway_store::sql::Value;

use super::experiments::require_active_stage;
use super::runs::join_location;
use super::{Tracking, page_size};
use crate::filter::{self, page_token};
use crate::model::{DatasetFilter, KeyValue, LoggedModel, LoggedModelInfo, OrderBy, Page};
use crate::repo::logged_models as repo;
use crate::{Error, validate};

/// Page size of a search without `max_results`.
const DEFAULT_PAGE_SIZE: i64 = 100;

fn not_found(id: &str) -> Error {
    Error::missing(format!("Logged model with ID '{id}' not found."))
}

impl Tracking {
    /// Creates a logged model with the status pending.
    ///
    /// # Errors
    /// An invalid name, or an experiment that does not exist or is deleted.
    pub async fn create_logged_model(
        &self,
        experiment_id: &str,
        name: Option<String>,
        model_type: String,
        source_run_id: String,
        params: Vec<KeyValue>,
        tags: Vec<KeyValue>,
    ) -> Result<LoggedModel, Error> {
        self.may_add_to_experiment(experiment_id)?;
        let tags = self.with_owner(tags)?;
        let name = name.filter(|n| !n.is_empty());
        if let Some(name) = &name {
            validate::logged_model_name(name)?;
        }
        let experiment = validate::experiment_id(experiment_id)?;
        self.db
            .write(move |c| {
                let (location, stage) = crate::repo::experiments::location(c, experiment)?;
                require_active_stage(&experiment.to_string(), &stage)?;
                let model_id = format!("m-{}", ids::hex32());
                let now = now_ms();
                let info = LoggedModelInfo {
                    artifact_uri: join_location(&location, &format!("models/{model_id}/artifacts")),
                    experiment_id: experiment.to_string(),
                    name: name.unwrap_or_else(ids::friendly_name),
                    creation_timestamp_ms: now,
                    last_updated_timestamp_ms: now,
                    status: "",
                    model_type,
                    source_run_id,
                    status_message: None,
                    tags: Vec::new(),
                    model_id,
                };
                repo::insert(c, &info)?;
                for param in &params {
                    repo::add_param(c, &info.model_id, param)?;
                }
                for tag in &tags {
                    repo::set_tag(c, &info.model_id, tag)?;
                }
                repo::find(c, &info.model_id, false)
            })
            .await
    }

    /// The logged model with this id.
    ///
    /// # Errors
    /// No such model, or it is deleted and `include_deleted` is false.
    pub fn logged_model(&self, id: &str, include_deleted: bool) -> Result<LoggedModel, Error> {
        self.db.read_now(|c| repo::find(c, id, include_deleted))
    }

    /// Sets the final status, given as a number or a name.
    ///
    /// # Errors
    /// An unknown status, or no such model.
    pub async fn finalize_logged_model(&self, id: String, status: String) -> Result<LoggedModel, Error> {
        self.may_change_logged_model(&id)?;
        let number = status
            .parse()
            .ok()
            .or_else(|| repo::status_number(&status))
            .filter(|n| (1..=3).contains(n))
            .ok_or_else(|| Error::invalid(format!("Unknown model status: {status}")))?;
        self.db
            .write(move |c| {
                if !repo::set_status(c, &id, number, now_ms())? {
                    return Err(not_found(&id));
                }
                repo::find(c, &id, true)
            })
            .await
    }

    /// Marks the logged model as deleted.
    ///
    /// # Errors
    /// No such model.
    pub async fn delete_logged_model(&self, id: String) -> Result<(), Error> {
        self.db.write(move |c| if repo::delete(c, &id, now_ms())? { Ok(()) } else { Err(not_found(&id)) }).await
    }

    /// Sets tags.
    ///
    /// # Errors
    /// No such model.
    pub async fn set_logged_model_tags(&self, id: String, tags: Vec<KeyValue>) -> Result<(), Error> {
        self.may_change_logged_model(&id)?;
        tags.iter().try_for_each(|tag| self.may_change_tag(&tag.key))?;
        self.db
            .write(move |c| {
                repo::find(c, &id, true)?;
                tags.iter().try_for_each(|tag| repo::set_tag(c, &id, tag))
            })
            .await
    }

    /// Removes a tag.
    ///
    /// # Errors
    /// No such model or tag.
    pub async fn delete_logged_model_tag(&self, id: String, key: String) -> Result<(), Error> {
        self.may_change_logged_model(&id)?;
        self.may_change_tag(&key)?;
        self.db
            .write(move |c| {
                repo::find(c, &id, true)?;
                if repo::delete_tag(c, &id, &key)? {
                    return Ok(());
                }
                Err(Error::missing(format!("No tag with key '{key}' found for model with ID '{id}'.")))
            })
            .await
    }

    /// Adds parameters.
    ///
    /// # Errors
    /// A parameter that exists already, or no such model.
    pub async fn log_logged_model_params(&self, id: String, params: Vec<KeyValue>) -> Result<(), Error> {
        self.may_change_logged_model(&id)?;
        self.db
            .write(move |c| {
                repo::find(c, &id, true)?;
                for param in &params {
                    if !repo::add_param(c, &id, param)? {
                        return Err(Error::new(
                            crate::ErrorCode::BadRequest,
                            format!("Parameter '{}' of logged model '{id}' is already set.", param.key),
                        ));
                    }
                }
                Ok(())
            })
            .await
    }

    /// Searches logged models.
    ///
    /// # Errors
    /// An invalid filter, order, page size or page token.
    pub async fn search_logged_models(
        &self,
        experiment_ids: &[String],
        filter: &str,
        datasets: &[DatasetFilter],
        max_results: Option<i64>,
        order_by: &[OrderBy],
        token: Option<&str>,
    ) -> Result<Page<LoggedModel>, Error> {
        if datasets.iter().any(|d| d.dataset_name.is_empty()) {
            return Err(Error::invalid("`dataset_name` in the `datasets` clause must be specified."));
        }
        let limit = page_size(max_results.filter(|n| *n > 0).unwrap_or(DEFAULT_PAGE_SIZE))?;
        let (conditions, condition_params) = conditions(filter, datasets)?;
        let (order, order_params) = order(order_by)?;
        let offset = page_token::decode(token)?;
        let experiments = experiment_ids.iter().map(|id| validate::experiment_id(id)).collect::<Result<Vec<_>, _>>()?;
        let found = self
            .db
            .read(move |c| {
                repo::search(
                    c,
                    &experiments,
                    (&conditions, &condition_params),
                    (&order, &order_params),
                    limit + 1,
                    offset,
                )
            })
            .await?;
        Ok(page_token::page(found, offset, limit))
    }
}

/// The column of an attribute, and whether it is numeric.
fn attribute(name: &str) -> Option<(&'static str, bool)> {
    Some(match name {
        "creation_time" | "creation_timestamp" | "creation_timestamp_ms" => ("m.creation_timestamp_ms", true),
        "last_updated_timestamp" | "last_updated_timestamp_ms" => ("m.last_updated_timestamp_ms", true),
        "name" => ("m.name", false),
        "model_id" => ("m.model_id", false),
        "model_type" => ("m.model_type", false),
        "status" => ("m.status", false),
        "source_run_id" => ("m.source_run_id", false),
        "experiment_id" => ("m.experiment_id", true),
        _ => return None,
    })
}

/// SQL that limits metrics `x` to these datasets; the values are appended to `params`.
fn dataset_condition(datasets: &[DatasetFilter], params: &mut Vec<Value>) -> String {
    if datasets.is_empty() {
        return String::new();
    }
    let each = datasets.iter().map(|d| {
        params.push(d.dataset_name.clone().into());
        if d.dataset_digest.is_empty() {
            return "x.dataset_name = ?".to_owned();
        }
        params.push(d.dataset_digest.clone().into());
        "(x.dataset_name = ? AND x.dataset_digest = ?)".to_owned()
    });
    format!(" AND ({})", each.collect::<Vec<_>>().join(" OR "))
}

/// Compiles a filter to SQL conditions (each starts with ` AND `) and their parameters.
fn conditions(filter: &str, datasets: &[DatasetFilter]) -> Result<(String, Vec<Value>), Error> {
    const METRICS: &str = "logged_model_metrics x WHERE x.model_id = m.model_id";
    let mut sql = String::new();
    let mut params = Vec::new();
    let mut has_metric_condition = false;
    for comparison in filter::parse(filter, true)? {
        let (entity, key) = comparison.split();
        let operator = comparison.operator.as_str();
        let column = match entity {
            None | Some("attributes") => attribute(&key),
            _ => None,
        };
        let numeric = entity == Some("metrics") || column.is_some_and(|(_, numeric)| numeric);
        let allowed: &[&str] =
            if numeric { &["<", "<=", ">", ">=", "=", "!="] } else { &["=", "!=", "LIKE", "ILIKE", "IN", "NOT IN"] };
        if !allowed.contains(&operator) {
            let listed = allowed.iter().map(|o| format!("'{o}'")).collect::<Vec<_>>().join(", ");
            return Err(Error::invalid(format!(
                "Invalid comparison operator for {}.{key}: '{operator}'. Expected one of ({listed}).",
                entity.unwrap_or("attributes")
            )));
        }
        let values: Vec<Value> = match comparison.operand.clone() {
            Some(filter::Operand::Number(n)) if numeric => vec![n.parse::<f64>().unwrap_or(f64::NAN).into()],
            Some(filter::Operand::Number(n) | filter::Operand::Text(n) | filter::Operand::Bare(n)) => {
                vec![if key == "status" { repo::status_number(&n).map_or(n.into(), Value::from) } else { n.into() }]
            }
            Some(list) => filter::texts(&list)?.into_iter().map(Value::from).collect(),
            None => return Err(Error::invalid("Invalid comparison. Expected a comparison with 3 tokens.")),
        };
        match (entity, column) {
            (_, Some((column, _))) => {
                sql.push_str(&format!(" AND {}", filter::sql_operator(column, operator, values.len())))
            }
            (Some("metrics"), _) => {
                has_metric_condition = true;
                let compared = filter::sql_operator("x.value", operator, values.len());
                params.push(key.into());
                params.extend(values);
                let on_dataset = dataset_condition(datasets, &mut params);
                sql.push_str(&format!(
                    " AND EXISTS (SELECT 1 FROM {METRICS} AND x.key = ? AND {compared}{on_dataset})"
                ));
                continue;
            }
            (Some(entity @ ("params" | "tags")), _) => {
                let compared = filter::sql_operator("x.value", operator, values.len());
                sql.push_str(&format!(
                    " AND EXISTS (SELECT 1 FROM logged_model_{entity} x WHERE x.model_id = m.model_id AND x.key = ? AND {compared})"
                ));
                params.push(key.into());
            }
            (None | Some("attributes"), None) => {
                return Err(Error::invalid(format!("Invalid attribute key '{key}' specified.")));
            }
            (Some(other), _) => {
                return Err(Error::invalid(format!(
                    "Invalid entity type: '{other}'. Expected one of ['attributes', 'metrics', 'params', 'tags']."
                )));
            }
        }
        params.extend(values);
    }
    if !has_metric_condition && !datasets.is_empty() {
        let on_dataset = dataset_condition(datasets, &mut params);
        sql.push_str(&format!(" AND EXISTS (SELECT 1 FROM {METRICS}{on_dataset})"));
    }
    Ok((sql, params))
}

/// Compiles `order_by` to an SQL ordering and its parameters.
fn order(order_by: &[OrderBy]) -> Result<(String, Vec<Value>), Error> {
    let mut clauses = Vec::new();
    let mut params = Vec::new();
    let mut seen = Vec::new();
    for by in order_by {
        let direction = if by.ascending { "" } else { " DESC" };
        let Some((entity, key)) = by.field_name.split_once('.') else {
            let (column, _) = attribute(&by.field_name)
                .ok_or_else(|| Error::invalid(format!("Invalid order by field name: {}", by.field_name)))?;
            clauses.push(format!("{column} IS NULL, {column}{direction}"));
            seen.push(column);
            continue;
        };
        if entity != "metrics" {
            return Err(Error::invalid(format!(
                "Invalid order by field name: {}. Only metrics are supported.",
                by.field_name
            )));
        }
        let mut on_dataset = String::new();
        let mut own: Vec<Value> = vec![key.to_owned().into()];
        for (column, value) in [("dataset_name", &by.dataset_name), ("dataset_digest", &by.dataset_digest)] {
            if !value.is_empty() {
                on_dataset.push_str(&format!(" AND x.{column} = ?"));
                own.push(value.clone().into());
            }
        }
        let value = format!(
            "(SELECT x.value FROM logged_model_metrics x WHERE x.model_id = m.model_id AND x.key = ?{on_dataset} \
             ORDER BY x.timestamp DESC, x.step DESC, x.run_id LIMIT 1)"
        );
        clauses.push(format!("{value} IS NULL, {value}{direction}"));
        params.extend(own.iter().cloned());
        params.extend(own);
    }
    for (column, direction) in [("m.creation_timestamp_ms", " DESC"), ("m.model_id", "")] {
        if !seen.contains(&column) {
            clauses.push(format!("{column}{direction}"));
        }
    }
    Ok((clauses.join(", "), params))
}
