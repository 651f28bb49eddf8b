//! `slipway pipeline schedule`: recurring runs, which are described by files.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::Context;
use super::{document, each, experiment, failure, text};
use crate::Failure;
use crate::cli::pipeline::{Namespace, Schedule};
use crate::client::{Client, encode};
use crate::output::{Table, print, print_note};

const RECURRING_RUNS: &str = "/apis/v2beta1/recurringruns";
/// Maximum bytes of a file with a schedule.
const MAX_FILE_BYTES: u64 = 1 << 20;

pub(super) async fn run(context: &Context, verb: Schedule) -> Result<(), Failure> {
    match verb {
        Schedule::Ls { namespace } => list(context, &namespace.namespace).await,
        Schedule::Apply { files, namespace } => {
            for file in &files {
                apply(context, file, &namespace.namespace).await?;
            }
            Ok(())
        }
        Schedule::Pause { name, namespace } => act(context, &name, &namespace, "disable").await,
        Schedule::Resume { name, namespace } => act(context, &name, &namespace, "enable").await,
        Schedule::Delete { name, namespace } => {
            let client = context.client().await?;
            let id = id(&client, &name, &namespace.namespace).await?;
            Ok(client.delete(&format!("{RECURRING_RUNS}/{id}")).await?)
        }
    }
}

/// A file with a schedule.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    /// Name, by which `apply` finds it again.
    name: String,
    #[serde(default)]
    description: String,
    pipeline: Source,
    #[serde(default = "default_experiment")]
    experiment: String,
    /// Cron expression with seconds.
    cron: Option<String>,
    /// Time zone of the expression, such as `Europe/Berlin`; UTC if unset.
    time_zone: Option<String>,
    /// Seconds between two runs.
    interval_seconds: Option<i64>,
    /// RFC 3339.
    start: Option<String>,
    /// RFC 3339.
    end: Option<String>,
    /// Whether each missed time is made up for.
    #[serde(default = "default_true")]
    catch_up: bool,
    /// Maximum number of its runs at the same time.
    #[serde(default = "default_concurrency")]
    max_concurrency: u32,
    #[serde(default = "default_true")]
    enabled: bool,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// The pipeline of a schedule.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Source {
    /// A compiled pipeline or a Python file, relative to the file of the schedule.
    file: Option<PathBuf>,
    /// Name of an uploaded pipeline.
    name: Option<String>,
    /// Name of its version; the newest one if unset.
    version: Option<String>,
}

fn default_experiment() -> String {
    "Default".into()
}

fn default_true() -> bool {
    true
}

fn default_concurrency() -> u32 {
    1
}

impl File {
    fn read(path: &Path) -> Result<Self, Failure> {
        let invalid = |reason: String| failure(format!("{}: {reason}", path.display()), "pipeline.invalid");
        let size = std::fs::metadata(path).map_err(|e| invalid(e.to_string()))?.len();
        if size > MAX_FILE_BYTES {
            return Err(invalid(format!("it has more than {MAX_FILE_BYTES} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
        let file: Self = serde_saphyr::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        file.trigger().map(|_| file).map_err(invalid)
    }

    /// The trigger as the API has it.
    fn trigger(&self) -> Result<Value, String> {
        let times = |mut schedule: Value| {
            for (field, time) in [("start_time", &self.start), ("end_time", &self.end)] {
                if let Some(time) = time {
                    schedule[field] = json!(time);
                }
            }
            schedule
        };
        match (&self.cron, self.interval_seconds) {
            (Some(cron), None) => {
                let cron = match &self.time_zone {
                    Some(zone) => format!("TZ={zone} {cron}"),
                    None => cron.clone(),
                };
                Ok(json!({ "cron_schedule": times(json!({ "cron": cron })) }))
            }
            (None, Some(_)) if self.time_zone.is_some() => Err("timeZone needs cron".into()),
            (None, Some(seconds)) => {
                Ok(json!({ "periodic_schedule": times(json!({ "interval_second": seconds.to_string() })) }))
            }
            _ => Err("it needs one of cron and intervalSeconds".into()),
        }
    }

    /// The field of the API with the pipeline, and its value.
    async fn source(&self, client: &Client, path: &Path, namespace: &str) -> Result<(&'static str, Value), Failure> {
        match (&self.pipeline.file, &self.pipeline.name) {
            (Some(file), None) => {
                let folder = path.parent().unwrap_or(Path::new("."));
                Ok(("pipeline_spec", slipway_pipeline::ir::to_json(&document(&folder.join(file))?)))
            }
            (None, Some(name)) => {
                let id = super::package::pipeline_id(client, name, namespace).await?;
                let version = super::package::version_id(client, &id, self.pipeline.version.as_deref()).await?;
                let reference = json!({ "pipeline_id": id, "pipeline_version_id": version });
                Ok(("pipeline_version_reference", reference))
            }
            _ => Err(failure(format!("{}: pipeline needs one of file and name", path.display()), "pipeline.invalid")),
        }
    }
}

/// The recurring runs of a namespace.
async fn all(client: &Client, namespace: &str) -> Result<Vec<Value>, Failure> {
    let mut found = Vec::new();
    let collect = |recurring| {
        found.push(recurring);
        true
    };
    each(client, &format!("{RECURRING_RUNS}?namespace={}", encode(namespace)), "recurringRuns", collect).await?;
    Ok(found)
}

fn trigger_text(recurring: &Value) -> String {
    let trigger = &recurring["trigger"];
    if let Some(cron) = trigger["cron_schedule"]["cron"].as_str() {
        return cron.to_owned();
    }
    let seconds = text(&trigger["periodic_schedule"]["interval_second"]);
    if seconds.is_empty() { "once".into() } else { format!("every {seconds} s") }
}

async fn list(context: &Context, namespace: &str) -> Result<(), Failure> {
    let found = all(&context.client().await?, namespace).await?;
    print(context.global.output.format, &found, |found| {
        let mut table = Table::new(&["NAME", "STATUS", "SCHEDULE", "CONCURRENCY", "ID"]);
        for recurring in found {
            table.row(vec![
                text(&recurring["display_name"]),
                text(&recurring["status"]),
                trigger_text(recurring),
                text(&recurring["max_concurrency"]),
                text(&recurring["recurring_run_id"]),
            ]);
        }
        table
    });
    Ok(())
}

/// The id of the recurring run with this name or id.
async fn id(client: &Client, name: &str, namespace: &str) -> Result<String, Failure> {
    let found = all(client, namespace).await?;
    let ids = found.iter().filter(|run| run["display_name"] == name || run["recurring_run_id"] == name);
    match ids.map(|run| text(&run["recurring_run_id"])).collect::<Vec<_>>().as_slice() {
        [id] => Ok(encode(id)),
        [] => Err(failure(format!("there is no schedule '{name}'"), "pipeline.not_found")),
        _ => Err(failure(format!("several schedules have the name '{name}'; use the id"), "pipeline.invalid")),
    }
}

async fn act(context: &Context, name: &str, namespace: &Namespace, action: &str) -> Result<(), Failure> {
    let client = context.client().await?;
    let id = id(&client, name, &namespace.namespace).await?;
    let _: Value = client.post(&format!("{RECURRING_RUNS}/{id}:{action}"), &json!({})).await?;
    Ok(())
}

/// Makes the schedule of a file the one with its name: a recurring run cannot be changed, so one that differs is replaced.
async fn apply(context: &Context, path: &Path, namespace: &str) -> Result<(), Failure> {
    let file = File::read(path)?;
    let client = context.client().await?;
    let (source_field, source) = file.source(&client, path, namespace).await?;
    let trigger = file.trigger().map_err(|reason| failure(reason, "pipeline.invalid"))?;
    let mut desired = json!({
        "display_name": file.name,
        "description": file.description,
        "experiment_id": experiment(&client, &file.experiment, namespace).await?,
        "runtime_config": { "parameters": file.parameters },
        "max_concurrency": file.max_concurrency.to_string(),
        "trigger": trigger,
        "mode": if file.enabled { "ENABLE" } else { "DISABLE" },
        "no_catchup": !file.catch_up,
        "namespace": namespace,
    });
    desired[source_field] = source;
    let existing: Vec<Value> =
        all(&client, namespace).await?.into_iter().filter(|run| run["display_name"] == file.name.as_str()).collect();
    if let [only] = existing.as_slice()
        && is_same(only, &desired)
    {
        print_note(format!("= {} is as in {}", file.name, path.display()));
        return Ok(());
    }
    // Created first, so that an invalid schedule leaves the earlier one as it is.
    let created: Value = client.post(RECURRING_RUNS, &desired).await?;
    for old in &existing {
        client.delete(&format!("{RECURRING_RUNS}/{}", encode(&text(&old["recurring_run_id"])))).await?;
    }
    let sign = if existing.is_empty() { "+" } else { "~" };
    print_note(format!("{sign} {}: {} ({})", file.name, trigger_text(&created), text(&created["recurring_run_id"])));
    Ok(())
}

/// Whether a recurring run is the desired one. The server leaves out fields with their defaults.
fn is_same(existing: &Value, desired: &Value) -> bool {
    let is_empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Object(fields) => fields.values().all(|value| value.as_object().is_some_and(Map::is_empty)),
        _ => false,
    };
    ["description", "runtime_config", "max_concurrency", "trigger", "mode", "no_catchup", "experiment_id"]
        .into_iter()
        .chain(["pipeline_spec", "pipeline_version_reference"])
        .all(|field| existing[field] == desired[field] || (is_empty(&existing[field]) && is_empty(&desired[field])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        serde_saphyr::from_str(&format!("name: nightly\npipeline: {{file: p.yaml}}\n{text}")).unwrap()
    }

    #[test]
    fn schedules_have_one_trigger() {
        let cron = file("cron: 0 0 3 * * *\ntimeZone: Europe/Berlin\nstart: 2026-01-01T00:00:00Z").trigger().unwrap();
        assert_eq!(cron["cron_schedule"]["cron"], "TZ=Europe/Berlin 0 0 3 * * *");
        assert_eq!(cron["cron_schedule"]["start_time"], "2026-01-01T00:00:00Z");
        let interval = file("intervalSeconds: 60").trigger().unwrap();
        assert_eq!(interval["periodic_schedule"]["interval_second"], "60");
        for faulty in ["", "cron: x\nintervalSeconds: 1", "intervalSeconds: 1\ntimeZone: UTC"] {
            assert!(file(faulty).trigger().is_err(), "{faulty}");
        }
    }

    #[test]
    fn defaults_that_the_server_leaves_out_are_no_difference() {
        let desired =
            json!({"description": "", "runtime_config": {"parameters": {}}, "no_catchup": false, "mode": "ENABLE"});
        assert!(is_same(&json!({"mode": "ENABLE"}), &desired));
        assert!(!is_same(&json!({"mode": "DISABLE"}), &desired));
        assert!(!is_same(&json!({"mode": "ENABLE", "no_catchup": true}), &desired));
    }
}
