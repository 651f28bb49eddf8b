//! `slipway run`: tracked runs. The commands for submitted runs are in `submit.rs`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Context;
use super::submit;
use crate::Failure;
use crate::cli::Run;
use crate::client::{Client, encode};
use crate::output::{Table, print, print_text};

/// Page size of searches.
const PAGE_SIZE: i64 = 1000;

/// The ids of the experiment with this name or id, or of all experiments.
async fn experiments(client: &Client, name_or_id: Option<&str>) -> Result<Vec<String>, Failure> {
    if let Some(experiment) = name_or_id {
        if experiment.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(vec![experiment.to_owned()]);
        }
        let path = format!("/api/2.0/mlflow/experiments/get-by-name?experiment_name={}", encode(experiment));
        let found: Value = client.get(&path).await?;
        return Ok(found["experiment"]["experiment_id"].as_str().map(str::to_owned).into_iter().collect());
    }
    let mut ids = Vec::new();
    let mut token = Value::Null;
    loop {
        let body = json!({ "max_results": PAGE_SIZE, "page_token": token });
        let page: Value = client.post("/api/2.0/mlflow/experiments/search", &body).await?;
        let found = page["experiments"].as_array().into_iter().flatten();
        ids.extend(found.filter_map(|e| e["experiment_id"].as_str().map(str::to_owned)));
        token = page["next_page_token"].clone();
        if token.is_null() {
            return Ok(ids);
        }
    }
}

/// Searches tracked runs and returns at most `limit` of them.
pub(super) async fn search(
    client: &Client,
    experiment: Option<&str>,
    filter: &str,
    order_by: &[String],
    limit: i64,
) -> Result<Vec<Value>, Failure> {
    let ids = experiments(client, experiment).await?;
    let mut runs = Vec::new();
    let mut token = Value::Null;
    loop {
        let remaining = limit - i64::try_from(runs.len()).unwrap_or(i64::MAX);
        let body = json!({
            "experiment_ids": ids, "filter": filter, "order_by": order_by, "max_results": remaining.clamp(1, PAGE_SIZE),
            "page_token": token,
        });
        let mut page: Value = client.post("/api/2.0/mlflow/runs/search", &body).await?;
        if let Value::Array(found) = page["runs"].take() {
            runs.extend(found);
        }
        token = page["next_page_token"].take();
        if token.is_null() || i64::try_from(runs.len()).unwrap_or(i64::MAX) >= limit {
            return Ok(runs);
        }
    }
}

/// The names and values of a run's `params`, `metrics` or `tags`.
fn pairs(run: &Value, kind: &str) -> Vec<(String, String)> {
    let items = run["data"][kind].as_array().into_iter().flatten();
    items
        .filter_map(|i| {
            let value = match &i["value"] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            Some((i["key"].as_str()?.to_owned(), value))
        })
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(super) async fn run(context: &Context, verb: Run) -> Result<(), Failure> {
    let client = context.client().await?;
    match verb {
        Run::Submit(options) => return submit::submit(context, &client, *options).await,
        Run::Status { target } => return submit::status(context, &client, &target).await,
        Run::Logs { target, follow, attempt, tail } => {
            return submit::logs(&client, &target, follow, attempt, tail).await;
        }
        Run::Cancel { target } => return submit::cancel(context, &client, &target).await,
        Run::Rm { target } => return submit::remove(context, &client, &target).await,
        Run::Queue { namespace } | Run::Ls { submitted: true, namespace, .. } => {
            return submit::list(context, &client, namespace.as_deref()).await;
        }
        Run::Ls { experiment, filter, order_by, limit, .. } => {
            let runs = search(&client, experiment.as_deref(), &filter, &order_by, limit).await?;
            print(context.global.output.format, &runs, |runs| {
                let mut table = Table::new(&["RUN", "NAME", "STATUS", "METRICS"]);
                for run in runs {
                    let mut metrics = pairs(run, "metrics");
                    metrics.truncate(4);
                    let shown = metrics.iter().map(|(k, v)| format!("{k}={v:.6}")).collect::<Vec<_>>().join(" ");
                    let info = &run["info"];
                    table.row(vec![text(&info["run_id"]), text(&info["run_name"]), text(&info["status"]), shown]);
                }
                table
            });
        }
        Run::Show { id } => {
            let found: Value = client.get(&format!("/api/2.0/mlflow/runs/get?run_id={}", encode(&id))).await?;
            print(context.global.output.format, &found["run"], |run| {
                let mut table = Table::new(&["FIELD", "VALUE"]);
                for key in ["run_id", "run_name", "experiment_id", "status", "user_id", "artifact_uri"] {
                    table.row(vec![key.to_owned(), text(&run["info"][key])]);
                }
                for kind in ["params", "metrics", "tags"] {
                    for (key, value) in pairs(run, kind) {
                        table.row(vec![format!("{kind}.{key}"), value]);
                    }
                }
                for input in run["inputs"]["dataset_inputs"].as_array().into_iter().flatten() {
                    let d = &input["dataset"];
                    table.row(vec![format!("dataset.{}", text(&d["name"])), text(&d["digest"])]);
                }
                table
            });
        }
        Run::Compare { ids } => {
            let mut runs = Vec::new();
            for id in &ids {
                let found: Value = client.get(&format!("/api/2.0/mlflow/runs/get?run_id={}", encode(id))).await?;
                runs.push(found["run"].clone());
            }
            print(context.global.output.format, &runs, |runs| {
                // One column per run, at most 8. The names of the runs are in the first row.
                let mut table = Table::new(&["", "1", "2", "3", "4", "5", "6", "7", "8"][..=runs.len().min(8)]);
                let row = |name: String, cell: &dyn Fn(&Value) -> String| {
                    std::iter::once(name).chain(runs.iter().take(8).map(cell)).collect::<Vec<_>>()
                };
                table.row(row("name".into(), &|r| text(&r["info"]["run_name"])));
                for kind in ["params", "metrics"] {
                    let keys: BTreeSet<String> = runs.iter().flat_map(|r| pairs(r, kind)).map(|(k, _)| k).collect();
                    for key in keys {
                        let cell = |r: &Value| {
                            pairs(r, kind).into_iter().find(|(k, _)| *k == key).map_or_else(|| "-".into(), |(_, v)| v)
                        };
                        let cells = row(format!("{kind}.{key}"), &cell);
                        let differs = cells[1..].windows(2).any(|w| w[0] != w[1]);
                        let mut cells = cells;
                        if differs {
                            cells[0].push_str(" *");
                        }
                        table.row(cells);
                    }
                }
                table
            });
        }
        Run::Export { experiment, filter } => {
            let runs = search(&client, experiment.as_deref(), &filter, &[], i64::MAX).await?;
            let mut columns: BTreeSet<(&str, String)> = BTreeSet::new();
            for run in &runs {
                for kind in ["params", "metrics", "tags"] {
                    columns.extend(pairs(run, kind).into_iter().map(|(k, _)| (kind, k)));
                }
            }
            let quote = |s: &str| {
                if s.contains(['"', ',', '\n']) { format!("\"{}\"", s.replace('"', "\"\"")) } else { s.to_owned() }
            };
            let mut lines = vec![];
            let heads = ["run_id", "run_name", "status", "start_time", "end_time"];
            let named = columns.iter().map(|(kind, key)| quote(&format!("{kind}.{key}")));
            lines.push(heads.iter().map(|h| (*h).to_owned()).chain(named).collect::<Vec<_>>().join(","));
            for run in &runs {
                let info = heads.iter().map(|h| match &run["info"][*h] {
                    Value::String(s) => quote(s),
                    Value::Null => String::new(),
                    other => other.to_string(),
                });
                let cells = columns.iter().map(|(kind, key)| {
                    pairs(run, kind).into_iter().find(|(k, _)| k == key).map_or_else(String::new, |(_, v)| quote(&v))
                });
                lines.push(info.chain(cells).collect::<Vec<_>>().join(","));
            }
            print_text(&(lines.join("\n") + "\n"));
        }
    }
    Ok(())
}
