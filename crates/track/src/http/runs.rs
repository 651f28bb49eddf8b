//! Routes of runs and metrics: `/mlflow/runs/*` and `/mlflow/metrics/*`.

use axum::extract::RawQuery;
use serde::{Deserialize, Serialize};
use slipway_access::Routes;

use super::access::{CHANGE_EXPERIMENTS, DELETE_EXPERIMENTS, READ_EXPERIMENTS, TRACK_EXPERIMENTS};
use super::experiments::view_type;
use super::scoped::Scoped;
use super::wire::{Call, Empty, Enum, Float, Ids, Int, List, Reply, messages, missing, out_of_range};
use crate::Error;
use crate::model::{DatasetInput, KeyValue, Metric, ModelInput, ModelOutput, Run, RunInfo, null_default};
use crate::service::metrics::NewMetric;
use crate::service::{MetricQuery, NewRun, Tracking};

/// Maximum number of points per run in a sampled history.
const MAX_RESULTS_PER_RUN: i64 = 2500;
/// Maximum number of runs in a bulk request.
const MAX_RUNS: usize = 100;
/// Maximum number of points in the response to a bulk request.
const MAX_BULK_POINTS: usize = 25_000;

messages! {
    CreateRun {
        experiment_id: String, user_id: String, start_time: Int, run_name: String, tags: List<KeyValue>,
    }
    UpdateRun { #[required] run_id or run_uuid: String, status: Enum, end_time: Int, run_name: String }
    RunId { #[required] run_id or run_uuid: String }
    LogMetric {
        #[required] run_id or run_uuid: String, #[required] key: String, #[required] value: Float,
        #[required] timestamp: Int, step: Int, model_id: String, dataset_name: String, dataset_digest: String,
    }
    LogParam { #[required] run_id or run_uuid: String, #[required] key: String, value: String }
    SetTag { #[required] run_id or run_uuid: String, #[required] key: String, value: String }
    DeleteTag { #[required] run_id: String, #[required] key: String }
    LogBatch {
        #[required] run_id: String, metrics: List<BatchMetric>, params: List<BatchPair>, tags: List<BatchPair>,
    }
    LogInputs { #[required] run_id: String, datasets: List<DatasetInput>, models: List<ModelInput> }
    LogOutputs { #[required] run_id: String, #[required] models: List<ModelOutput> }
    LogModel { #[required] run_id: String, #[required] model_json: String }
    SearchRuns {
        experiment_ids: Ids, filter: String, run_view_type: Enum, max_results: Int, order_by: Vec<String>,
        page_token: String,
    }
    GetMetricHistory {
        #[required] run_id or run_uuid: String, #[required] metric_key: String, page_token: String, max_results: Int,
    }
    BulkInterval {
        #[required] run_ids: Vec<String>, #[required] metric_key: String, start_step: Int, end_step: Int,
        max_results: Int,
    }
}

/// A metric in a `log-batch` request. The error for an absent field names the metric's index.
#[derive(Debug, Deserialize)]
pub(crate) struct BatchMetric {
    #[serde(default, deserialize_with = "null_default")]
    key: String,
    value: Option<Float>,
    timestamp: Option<Int>,
    step: Option<Int>,
    model_id: Option<String>,
    dataset_name: Option<String>,
    dataset_digest: Option<String>,
}

/// A parameter or tag in a `log-batch` request.
#[derive(Debug, Deserialize)]
pub(crate) struct BatchPair {
    #[serde(default, deserialize_with = "null_default")]
    key: String,
    #[serde(default, deserialize_with = "null_default")]
    value: String,
}

pub(super) fn routes() -> Routes<Tracking> {
    Routes::new()
        .post("/2.0/mlflow/runs/create", TRACK_EXPERIMENTS, create)
        .get("/2.0/mlflow/runs/get", READ_EXPERIMENTS, find)
        .post("/2.0/mlflow/runs/update", TRACK_EXPERIMENTS, update)
        .post("/2.0/mlflow/runs/delete", DELETE_EXPERIMENTS, delete)
        .post("/2.0/mlflow/runs/restore", CHANGE_EXPERIMENTS, restore)
        .post("/2.0/mlflow/runs/search", READ_EXPERIMENTS, search)
        .post("/2.0/mlflow/runs/log-metric", TRACK_EXPERIMENTS, log_metric)
        .post("/2.0/mlflow/runs/log-parameter", TRACK_EXPERIMENTS, log_param)
        .post("/2.0/mlflow/runs/log-batch", TRACK_EXPERIMENTS, log_batch)
        .post("/2.0/mlflow/runs/log-inputs", TRACK_EXPERIMENTS, log_inputs)
        .post("/2.0/mlflow/runs/outputs", TRACK_EXPERIMENTS, log_outputs)
        .post("/2.0/mlflow/runs/log-model", TRACK_EXPERIMENTS, log_model)
        .post("/2.0/mlflow/runs/set-tag", TRACK_EXPERIMENTS, set_tag)
        .post("/2.0/mlflow/runs/delete-tag", TRACK_EXPERIMENTS, delete_tag)
        .get("/2.0/mlflow/metrics/get-history", READ_EXPERIMENTS, history)
        .get("/2.0/mlflow/metrics/get-history-bulk", READ_EXPERIMENTS, history_bulk)
        .get("/2.0/mlflow/metrics/get-history-bulk-interval", READ_EXPERIMENTS, history_interval)
}

#[derive(Serialize)]
struct One {
    run: Run,
}

async fn create(Scoped(t): Scoped, Call(m): Call<CreateRun>) -> Result<Reply<One>, Error> {
    let new = NewRun {
        run_id: None,
        experiment_id: m.experiment_id.unwrap_or_default(),
        user_id: m.user_id.unwrap_or_default(),
        start_time: m.start_time.map_or(0, |n| n.0),
        run_name: m.run_name.unwrap_or_default(),
        tags: m.tags.map(|t| t.0).unwrap_or_default(),
    };
    Ok(Reply(One { run: t.create_run(new).await? }))
}

async fn find(Scoped(t): Scoped, Call(m): Call<RunId>) -> Result<Reply<One>, Error> {
    Ok(Reply(One { run: t.run(&m.run_id.unwrap_or_default())? }))
}

/// The names of `RunStatus` in `service.proto`, indexed by number.
const STATUS: [&str; 6] = ["", "RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"];

fn status(given: Option<Enum>) -> Result<Option<String>, Error> {
    let known = |name: &str| STATUS.contains(&name).then(|| name.to_owned());
    match given {
        None => Ok(None),
        Some(Enum::Name(name)) => match known(&name) {
            Some(name) => Ok(Some(name)),
            None => Err(Error::invalid(format!(
                "Invalid value \"{name}\" for parameter 'status' supplied. Valid values are RUNNING, SCHEDULED, \
                 FINISHED, FAILED, KILLED."
            ))),
        },
        Some(Enum::Number(n)) => usize::try_from(n)
            .ok()
            .and_then(|n| STATUS.get(n))
            .filter(|s| !s.is_empty())
            .map(|s| Some((*s).to_owned()))
            .ok_or_else(|| Error::invalid(format!("Invalid value {n} for parameter 'status' supplied."))),
    }
}

#[derive(Serialize)]
struct Updated {
    run_info: RunInfo,
}

async fn update(Scoped(t): Scoped, Call(m): Call<UpdateRun>) -> Result<Reply<Updated>, Error> {
    let status = status(m.status)?;
    let run_info = t.update_run(m.run_id.unwrap_or_default(), status, m.end_time.map(|n| n.0), m.run_name).await?;
    Ok(Reply(Updated { run_info }))
}

async fn delete(Scoped(t): Scoped, Call(m): Call<RunId>) -> Result<Reply<Empty>, Error> {
    t.delete_run(m.run_id.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn restore(Scoped(t): Scoped, Call(m): Call<RunId>) -> Result<Reply<Empty>, Error> {
    t.restore_run(m.run_id.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

#[derive(Serialize)]
struct Found {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    runs: Vec<Run>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

async fn search(Scoped(t): Scoped, Call(m): Call<SearchRuns>) -> Result<Reply<Found>, Error> {
    // 1000 is the default of the proto field.
    let max_results = m.max_results.map_or(1000, |n| n.0);
    if max_results > crate::service::MAX_RESULTS {
        return Err(out_of_range("max_results", max_results, false));
    }
    let page = t
        .search_runs(
            &m.experiment_ids.map(|ids| ids.0).unwrap_or_default(),
            m.filter.as_deref().unwrap_or_default(),
            view_type(m.run_view_type)?,
            max_results,
            &m.order_by.unwrap_or_default(),
            m.page_token.as_deref(),
        )
        .await?;
    Ok(Reply(Found { runs: page.items, next_page_token: page.next_page_token }))
}

async fn log_metric(Scoped(t): Scoped, Call(m): Call<LogMetric>) -> Result<Reply<Empty>, Error> {
    let metric = NewMetric {
        key: m.key.unwrap_or_default(),
        value: m.value.map_or(0.0, |v| v.0),
        timestamp: m.timestamp.map_or(0, |n| n.0),
        step: m.step.map_or(0, |n| n.0),
        model_id: m.model_id.filter(|s| !s.is_empty()),
        dataset_name: m.dataset_name.filter(|s| !s.is_empty()),
        dataset_digest: m.dataset_digest.filter(|s| !s.is_empty()),
    };
    t.log_metric(m.run_id.unwrap_or_default(), metric).await?;
    Ok(Reply(Empty {}))
}

async fn log_param(Scoped(t): Scoped, Call(m): Call<LogParam>) -> Result<Reply<Empty>, Error> {
    let param = KeyValue { key: m.key.unwrap_or_default(), value: m.value.unwrap_or_default() };
    t.log_param(m.run_id.unwrap_or_default(), param).await?;
    Ok(Reply(Empty {}))
}

fn pairs(list: Option<List<BatchPair>>, name: &str) -> Result<Vec<KeyValue>, Error> {
    let pairs = list.map(|l| l.0).unwrap_or_default();
    let convert = |(i, p): (usize, BatchPair)| {
        if p.key.is_empty() {
            return Err(missing(&format!("{name}[{i}].key")));
        }
        Ok(KeyValue { key: p.key, value: p.value })
    };
    pairs.into_iter().enumerate().map(convert).collect()
}

async fn log_batch(Scoped(t): Scoped, Call(m): Call<LogBatch>) -> Result<Reply<Empty>, Error> {
    let metrics = m.metrics.map(|l| l.0).unwrap_or_default();
    let convert = |(i, m): (usize, BatchMetric)| {
        let absent = |field: &str| missing(&format!("metrics[{i}].{field}"));
        if m.key.is_empty() {
            return Err(absent("key"));
        }
        Ok(NewMetric {
            value: m.value.ok_or_else(|| absent("value"))?.0,
            timestamp: m.timestamp.ok_or_else(|| absent("timestamp"))?.0,
            step: m.step.map_or(0, |n| n.0),
            key: m.key,
            model_id: m.model_id.filter(|s| !s.is_empty()),
            dataset_name: m.dataset_name.filter(|s| !s.is_empty()),
            dataset_digest: m.dataset_digest.filter(|s| !s.is_empty()),
        })
    };
    let metrics = metrics.into_iter().enumerate().map(convert).collect::<Result<_, Error>>()?;
    let (params, tags) = (pairs(m.params, "params")?, pairs(m.tags, "tags")?);
    t.log_batch(m.run_id.unwrap_or_default(), metrics, params, tags).await?;
    Ok(Reply(Empty {}))
}

async fn log_inputs(Scoped(t): Scoped, Call(m): Call<LogInputs>) -> Result<Reply<Empty>, Error> {
    let datasets = m.datasets.map(|l| l.0).unwrap_or_default();
    t.log_inputs(m.run_id.unwrap_or_default(), datasets, m.models.map(|l| l.0).unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn log_outputs(Scoped(t): Scoped, Call(m): Call<LogOutputs>) -> Result<Reply<Empty>, Error> {
    t.log_outputs(m.run_id.unwrap_or_default(), m.models.map(|l| l.0).unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn log_model(Scoped(t): Scoped, Call(m): Call<LogModel>) -> Result<Reply<Empty>, Error> {
    t.log_model(m.run_id.unwrap_or_default(), m.model_json.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

async fn set_tag(Scoped(t): Scoped, Call(m): Call<SetTag>) -> Result<Reply<Empty>, Error> {
    let tag = KeyValue { key: m.key.unwrap_or_default(), value: m.value.unwrap_or_default() };
    t.set_tag(m.run_id.unwrap_or_default(), tag).await?;
    Ok(Reply(Empty {}))
}

async fn delete_tag(Scoped(t): Scoped, Call(m): Call<DeleteTag>) -> Result<Reply<Empty>, Error> {
    t.delete_tag(m.run_id.unwrap_or_default(), m.key.unwrap_or_default()).await?;
    Ok(Reply(Empty {}))
}

#[derive(Serialize)]
struct History {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    metrics: Vec<Metric>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

async fn history(Scoped(t): Scoped, Call(m): Call<GetMetricHistory>) -> Result<Reply<History>, Error> {
    let page = t
        .metric_history(
            m.run_id.unwrap_or_default(),
            m.metric_key.unwrap_or_default(),
            m.max_results.map(|n| n.0),
            m.page_token.as_deref(),
        )
        .await?;
    Ok(Reply(History { metrics: page.items, next_page_token: page.next_page_token }))
}

#[derive(Serialize)]
struct BulkHistory {
    metrics: Vec<Metric>,
}

async fn history_bulk(Scoped(t): Scoped, RawQuery(query): RawQuery) -> Result<Reply<BulkHistory>, Error> {
    let query = query.unwrap_or_default();
    let values = |name: &str| {
        let pairs = form_urlencoded::parse(query.as_bytes()).filter(|(k, _)| k == name);
        pairs.map(|(_, v)| v.into_owned()).collect::<Vec<_>>()
    };
    let run_ids = values("run_id");
    if run_ids.is_empty() {
        return Err(Error::invalid("GetMetricHistoryBulk request must specify at least one run_id."));
    }
    if run_ids.len() > MAX_RUNS {
        return Err(Error::invalid(format!(
            "GetMetricHistoryBulk request cannot specify more than {MAX_RUNS} run_ids. Received {} run_ids.",
            run_ids.len()
        )));
    }
    let metric_key = values("metric_key")
        .pop()
        .ok_or_else(|| Error::invalid("GetMetricHistoryBulk request must specify a metric_key."))?;
    let max_results = match values("max_results").pop() {
        None => MAX_BULK_POINTS,
        Some(text) => text
            .parse::<usize>()
            .map_err(|_| Error::invalid(format!("Invalid value \"{text}\" for parameter 'max_results' supplied.")))?
            .min(MAX_BULK_POINTS),
    };
    let metrics = t.metric_history_bulk(MetricQuery { run_ids, metric_key, max_results, steps: None }).await?;
    Ok(Reply(BulkHistory { metrics }))
}

async fn history_interval(Scoped(t): Scoped, Call(m): Call<BulkInterval>) -> Result<Reply<History>, Error> {
    const SEE: &str = " See the API docs for more information about request parameters.";
    let run_ids = m.run_ids.unwrap_or_default();
    if run_ids.is_empty() {
        return Err(missing("run_ids"));
    }
    if run_ids.len() > MAX_RUNS {
        return Err(Error::invalid(format!(
            "GetMetricHistoryBulkInterval request must specify at most {MAX_RUNS} run_ids. Received {} run_ids.{SEE}",
            run_ids.len()
        )));
    }
    let max_results = m.max_results.map_or(MAX_RESULTS_PER_RUN, |n| n.0);
    if !(1..=MAX_RESULTS_PER_RUN).contains(&max_results) {
        return Err(Error::invalid(format!("max_results must be between 1 and {MAX_RESULTS_PER_RUN}.{SEE}")));
    }
    let steps = match (m.start_step.map(|n| n.0), m.end_step.map(|n| n.0)) {
        (None, None) => None,
        (Some(from), Some(to)) if from <= to => Some((from, to)),
        (Some(from), Some(to)) => {
            return Err(Error::invalid(format!(
                "end_step must be greater than start_step. Found start_step={from} and end_step={to}."
            )));
        }
        _ => {
            return Err(Error::invalid("If either start step or end step are specified, both must be specified."));
        }
    };
    let query = MetricQuery {
        run_ids,
        metric_key: m.metric_key.unwrap_or_default(),
        max_results: usize::try_from(max_results).unwrap_or(1),
        steps,
    };
    Ok(Reply(History { metrics: t.metric_history_interval(query).await?, next_page_token: None }))
}
