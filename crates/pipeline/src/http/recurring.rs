//! Recurring runs.

use axum::extract::{Extension, Path, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_access::{Access, Decision, Routes, Verb};

use super::failure::{Attempt, Code, Failure};
use super::request::{Input, Named, Query, action, authorize_named, done, respond, unknown_action};
use super::runs::{ConfigInput, ReferenceInput, authorize_experiment, authorize_list, source};
use super::wire::RecurringRunMessage;
use crate::proto_json::{Int64, Message, Time};
use crate::schedule::{Schedule, Trigger};
use crate::service::{NewRecurringRun, Service};

pub(super) fn routes() -> Routes<Service> {
    let access = Access::DecidedByHandler;
    Routes::new()
        .get("/recurringruns", access, list)
        .post("/recurringruns", access, create)
        .get("/recurringruns/{id}", access, show)
        .post("/recurringruns/{id}", access, act)
        .delete("/recurringruns/{id}", access, remove)
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct CronInput {
    start_time: Option<Time>,
    end_time: Option<Time>,
    cron: String,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct PeriodicInput {
    start_time: Option<Time>,
    end_time: Option<Time>,
    interval_second: Int64,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct TriggerInput {
    cron_schedule: Option<Message<CronInput>>,
    periodic_schedule: Option<Message<PeriodicInput>>,
}

/// A recurring run in a request. Fields that the server sets are ignored.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct RecurringRunInput {
    display_name: String,
    description: String,
    pipeline_version_id: String,
    pipeline_spec: Value,
    pipeline_version_reference: Option<Message<ReferenceInput>>,
    runtime_config: Message<ConfigInput>,
    service_account: String,
    max_concurrency: Int64,
    trigger: Message<TriggerInput>,
    mode: Value,
    no_catchup: bool,
    namespace: String,
    experiment_id: String,
    #[serde(rename = "recurring_run_id")]
    _id: Value,
    #[serde(rename = "created_at")]
    _created_at: Value,
    #[serde(rename = "updated_at")]
    _updated_at: Value,
    #[serde(rename = "status")]
    _status: Value,
    #[serde(rename = "error")]
    _error: Value,
    #[serde(rename = "plugins_input")]
    _plugins_input: Value,
}

fn schedule(trigger: TriggerInput, no_catchup: bool) -> Result<Schedule, Failure> {
    let (trigger, start, end) = match (trigger.cron_schedule, trigger.periodic_schedule) {
        (Some(_), Some(_)) => {
            return Err(Failure::new(
                Code::InvalidArgument,
                "oneof trigger is already set: give either cron_schedule or periodic_schedule",
            ));
        }
        (Some(Message(cron)), None) => (Trigger::Cron(cron.cron), cron.start_time, cron.end_time),
        (None, Some(Message(periodic))) => {
            (Trigger::Every(periodic.interval_second.0), periodic.start_time, periodic.end_time)
        }
        (None, None) => (Trigger::Once, None, None),
    };
    let seconds = |time: Option<Time>| time.map(|time| time.0.div_euclid(1000));
    Ok(Schedule { trigger, start: seconds(start), end: seconds(end), catch_up: !no_catchup, created: 0 })
}

/// Whether a mode, by its name or number, enables.
fn is_enabled(mode: &Value) -> Result<bool, Failure> {
    match mode {
        Value::Null => Ok(false),
        Value::String(name) if name == "ENABLE" => Ok(true),
        Value::String(name) if name == "DISABLE" || name == "MODE_UNSPECIFIED" => Ok(false),
        Value::Number(number) if number.as_i64() == Some(1) => Ok(true),
        Value::Number(number) if matches!(number.as_i64(), Some(0 | 2)) => Ok(false),
        other => Err(Failure::new(Code::InvalidArgument, format!("Recurring run's mode is invalid: {other}"))),
    }
}

async fn create(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Input(new): Input<RecurringRunInput>,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to create a recurring run";
    let place = (new.experiment_id.as_str(), new.namespace.as_str());
    authorize_experiment(&service, &decision, Verb::Create, place, ATTEMPT).await?;
    let experiment = service.experiment_for(place.0, place.1).await.attempt(ATTEMPT)?;
    let new = NewRecurringRun {
        display_name: new.display_name,
        description: new.description,
        service_account: new.service_account,
        source: source(new.pipeline_spec, new.pipeline_version_reference, new.pipeline_version_id)?,
        config: new.runtime_config.0.into(),
        schedule: schedule(new.trigger.0, new.no_catchup).attempt(ATTEMPT)?,
        max_concurrency: new.max_concurrency.0,
        enabled: is_enabled(&new.mode).attempt(ATTEMPT)?,
    };
    let created = service.create_recurring_run(&experiment, new).await.attempt(ATTEMPT)?;
    message(&service, &created.recurring_run_id, ATTEMPT)
}

fn named<'a>(id: &'a str, namespace: &'a str, attempt: &'a str) -> Named<'a> {
    Named { kind: "Job", id, namespace, attempt }
}

/// The response with a recurring run as it is stored.
fn message(service: &Service, id: &str, attempt: &str) -> Result<Response, Failure> {
    let recurring = service.recurring_run(id).attempt(attempt)?;
    let spec = match &recurring.source {
        crate::entity::Source::Inline { spec } => Some(service.specification(spec).attempt(attempt)?),
        _ => None,
    };
    Ok(respond(&RecurringRunMessage::new(&recurring, spec.as_ref())?))
}

async fn show(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to fetch a recurring run";
    let namespace = service.recurring_run(&id).attempt(ATTEMPT)?.namespace;
    authorize_named(&decision, Verb::Get, &named(&id, &namespace, ATTEMPT)).await?;
    message(&service, &id, ATTEMPT)
}

#[derive(Serialize)]
struct List<'a> {
    // Upstream's message has this one name in camel case.
    #[serde(rename = "recurringRuns", skip_serializing_if = "Vec::is_empty")]
    recurring_runs: Vec<RecurringRunMessage<'a>>,
    #[serde(skip_serializing_if = "super::is_zero")]
    total_size: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

async fn list(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    query: Query,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to list jobs";
    let namespace = authorize_list(&service, &decision, &query, ATTEMPT).await?;
    let experiment = query.text("experiment_id").to_owned();
    let page = service.recurring_runs(namespace, experiment, &query.list()?).await.attempt(ATTEMPT)?;
    let messages = page.items.iter().map(|(item, spec)| RecurringRunMessage::new(item, spec.as_ref()));
    Ok(respond(&List {
        recurring_runs: messages.collect::<Result<_, _>>()?,
        total_size: page.total,
        next_page_token: page.next_page_token,
    }))
}

async fn act(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(path): Path<String>,
) -> Result<Response, Failure> {
    let (id, action) = action(&path)?;
    let enabled = match action {
        "enable" => true,
        "disable" => false,
        _ => return Err(unknown_action()),
    };
    let attempt = format!("Failed to {action} a recurring run");
    let namespace = service.recurring_run(id).attempt(&attempt)?.namespace;
    authorize_named(&decision, Verb::Update, &named(id, &namespace, &attempt)).await?;
    service.set_recurring_run_enabled(id.to_owned(), enabled).await.attempt(&attempt)?;
    Ok(done())
}

async fn remove(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to delete a recurring run";
    let namespace = service.recurring_run(&id).attempt(ATTEMPT)?.namespace;
    authorize_named(&decision, Verb::Delete, &named(&id, &namespace, ATTEMPT)).await?;
    service.delete_recurring_run(id).await.attempt(ATTEMPT)?;
    Ok(done())
}
