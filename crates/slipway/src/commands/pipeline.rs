//! `slipway pipeline`: runs of Kubeflow's pipelines.

mod package;
mod schedule;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};
use slipway_core::env;
use slipway_pipeline::ir::{self, ml_pipelines::component_spec::Implementation};
use slipway_pipeline::step::worker::Worker;
use slipway_pipeline::step::{self, install};
use slipway_pipeline::value;

use super::Context;
use crate::Failure;
use crate::cli::pipeline::{Pipeline, Run, Submit};
use crate::client::{Client, encode};
use crate::output::{Raw, Table, print, print_note, print_text};

/// Interval at which a run is polled while waiting for its end.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum page size of a list.
const PAGE_SIZE: usize = 200;
const RUNS: &str = "/apis/v2beta1/runs";
const EXPERIMENTS: &str = "/apis/v2beta1/experiments";
/// slipway's own routes: what Kubeflow's API does not show of a run.
const OWN_RUNS: &str = "/api/v1/pipelines/runs";

pub(super) async fn run(context: &Context, verb: Pipeline) -> Result<(), Failure> {
    match verb {
        Pipeline::Validate { files } => validate(&files),
        Pipeline::Submit(options) => submit(context, *options).await,
        Pipeline::Upload(options) => package::upload(context, options).await,
        Pipeline::Schedule(verb) => schedule::run(context, verb).await,
        Pipeline::Export(options) => package::export(&options),
        Pipeline::Ls { namespace, limit } => list(context, &namespace.namespace, limit).await,
        Pipeline::Show { run } => show(context, &run).await,
        Pipeline::Logs { run, task, follow } => logs(context, &run, &task, follow).await,
        Pipeline::Retry { run } => act(context, &run, "retry").await,
        Pipeline::Cancel { run } => act(context, &run, "terminate").await,
        Pipeline::Diff { left, right, namespace } => {
            let client = context.client().await?;
            let of = async |id: String| {
                let run = Run { id, namespace: namespace.clone() };
                let id = full_id(&client, &run).await?;
                client.get::<Value>(&format!("{OWN_RUNS}/{id}")).await.map_err(Failure::from)
            };
            diff(context, &of(left).await?, &of(right).await?);
            Ok(())
        }
        Pipeline::Step { install: Some(folder), .. } => install::install(&folder)
            .map_err(|error| failure(format!("copying slipway to {}: {error}", folder.display()), "pipeline.io")),
        Pipeline::Step { install: None, worker } => execute_step(worker).await,
    }
}

/// Executes the step of this pod, or the steps that its worker is given, and ends with the exit code of the program.
async fn execute_step(is_worker: bool) -> Result<(), Failure> {
    let variable = |name: &str| {
        env::value(name).ok_or_else(|| {
            failure(format!("{name} is not set; this command runs in the pods of pipelines only"), "pipeline.invalid")
        })
    };
    let server = step::Server {
        url: variable("MLFLOW_TRACKING_URI")?,
        token: variable("MLFLOW_TRACKING_TOKEN")?,
        authorities: env::value("MLFLOW_TRACKING_SERVER_CERT_PATH").map(PathBuf::from),
    };
    let executed = if is_worker {
        let worker = Worker::of_this_pod();
        let worker = worker.map_err(|error| failure(format!("finding slipway's program: {error}"), "pipeline.io"))?;
        worker.serve(&server).await
    } else {
        step::execute(&server).await
    };
    match executed {
        Ok(0) => Ok(()),
        Ok(code) => std::process::exit(code),
        Err(reason) => Err(failure(reason, "pipeline.io")),
    }
}

fn failure(text: impl Into<String>, code: &'static str) -> Failure {
    Failure::with_code(text.into(), code, 1)
}

/// Reads a compiled pipeline, or compiles a Python file with the user's own `kfp`.
fn read(file: &Path) -> Result<String, Failure> {
    let unreadable = |e: std::io::Error| failure(format!("{}: {e}", file.display()), "pipeline.io");
    if file.extension().is_none_or(|extension| extension != "py") {
        return std::fs::read_to_string(file).map_err(unreadable);
    }
    let folder = tempfile::tempdir().map_err(unreadable)?;
    let compiled = folder.path().join("pipeline.yaml");
    let output = std::process::Command::new("kfp")
        .args(["dsl", "compile", "--py"])
        .arg(file)
        .arg("--output")
        .arg(&compiled)
        .output()
        .map_err(|e| {
            let text = format!("{}: a Python file is compiled by the program `kfp`: {e}", file.display());
            failure(text, "pipeline.specification")
        })?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(failure(format!("{}: {}", file.display(), errors.trim()), "pipeline.specification"));
    }
    std::fs::read_to_string(compiled).map_err(unreadable)
}

/// Checks a file and returns its pipeline.
fn document(file: &Path) -> Result<ir::Document, Failure> {
    faults(file, &read(file)?).map_err(|text| failure(text, "pipeline.specification"))
}

/// Checks the text of a file; the error has a line for each fault.
fn faults(file: &Path, text: &str) -> Result<ir::Document, String> {
    ir::read(text).map_err(|error| {
        let lines = error.to_string().lines().map(|line| format!("{}: {line}", file.display())).collect::<Vec<_>>();
        lines.join("\n")
    })
}

/// Makes every task execute, whatever the cache has.
fn disable_cache(document: &mut ir::Document) {
    let spec = &mut document.spec;
    for component in spec.components.values_mut().chain(&mut spec.root) {
        if let Some(Implementation::Dag(dag)) = &mut component.implementation {
            dag.tasks.values_mut().for_each(|task| task.caching_options = None);
        }
    }
}

fn validate(files: &[PathBuf]) -> Result<(), Failure> {
    let mut all = Vec::new();
    for file in files {
        match faults(file, &read(file)?) {
            Ok(_) => print_text(&format!("{}: valid\n", file.display())),
            Err(text) => all.push(text),
        }
    }
    if all.is_empty() { Ok(()) } else { Err(failure(all.join("\n"), "pipeline.specification")) }
}

/// The parameters as values of the types that the pipeline declares: text stays text for a STRING, and everything else is JSON.
fn parameters(pairs: &[String], document: &ir::Document) -> Result<Map<String, Value>, Failure> {
    let declared = document.spec.root.as_ref().and_then(|root| root.input_definitions.as_ref());
    let mut values = Map::new();
    for pair in pairs {
        let (name, text) = pair
            .split_once('=')
            .ok_or_else(|| Failure::with_code(format!("-p {pair}: is not NAME=VALUE"), "pipeline.invalid", 2))?;
        let is_text = declared
            .and_then(|inputs| inputs.parameters.get(name))
            .is_some_and(|input| value::kind(input.parameter_type) == Some(value::Kind::String));
        let parsed = if is_text { None } else { serde_json::from_str(text).ok() };
        values.insert(name.to_owned(), parsed.unwrap_or_else(|| Value::String(text.to_owned())));
    }
    Ok(values)
}

/// The id of the experiment with this name, which is created if necessary.
async fn experiment(client: &Client, name: &str, namespace: &str) -> Result<String, Failure> {
    let predicate = json!({ "predicates": [{ "operation": "EQUALS", "key": "display_name", "string_value": name }] });
    let (filter, encoded) = (encode(&predicate.to_string()), encode(namespace));
    let found: Value = client.get(&format!("{EXPERIMENTS}?namespace={encoded}&filter={filter}")).await?;
    let id = |experiment: &Value| experiment["experiment_id"].as_str().map(str::to_owned);
    if let Some(id) = id(&found["experiments"][0]) {
        return Ok(id);
    }
    let new: Value = client.post(EXPERIMENTS, &json!({ "display_name": name, "namespace": namespace })).await?;
    id(&new).ok_or_else(|| failure("the server returned an experiment without an id", "pipeline.invalid"))
}

async fn submit(context: &Context, options: Submit) -> Result<(), Failure> {
    let mut document = document(&options.file)?;
    if options.no_cache {
        disable_cache(&mut document);
    }
    let parameters = parameters(&options.parameters, &document)?;
    let pipeline = document.spec.pipeline_info.as_ref().map_or("pipeline", |info| &info.name).to_owned();
    let client = context.client().await?;
    let experiment_id = experiment(&client, &options.experiment, &options.namespace.namespace).await?;
    let name = options
        .name
        .unwrap_or_else(|| format!("{pipeline} {}", slipway_core::clock::rfc3339(slipway_core::clock::now_ms())));
    let body = json!({
        "display_name": name,
        "experiment_id": experiment_id,
        "pipeline_spec": ir::to_json(&document),
        "runtime_config": { "parameters": parameters },
    });
    let created: Value = client.post(RUNS, &body).await?;
    let id = created["run_id"].as_str().unwrap_or_default().to_owned();
    if !options.wait {
        print(context.global.output.format, &created, |_| {
            let mut table = Table::new(&["RUN", "NAME", "STATE"]);
            table.row(vec![id.clone(), name.clone(), text(&created["state"])]);
            table
        });
        print_note(format!("follow it with `slipway pipeline show {id}`"));
        return Ok(());
    }
    let state = loop {
        let run: Value = client.get(&format!("{RUNS}/{}", encode(&id))).await?;
        let state = text(&run["state"]);
        if matches!(state.as_str(), "SUCCEEDED" | "FAILED" | "CANCELED" | "SKIPPED") {
            break state;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    };
    print_run(context, &client.get(&format!("{OWN_RUNS}/{}", encode(&id))).await?);
    if state == "SUCCEEDED" || state == "SKIPPED" {
        return Ok(());
    }
    Err(failure(format!("the run ended as {state}"), "pipeline.failed"))
}

/// The objects of a list, page after page, until `wanted` returns false. `list` is the path of the list, which may have a query, and `field`
/// has the objects of a page.
async fn each(client: &Client, list: &str, field: &str, mut wanted: impl FnMut(Value) -> bool) -> Result<(), Failure> {
    let separator = if list.contains('?') { '&' } else { '?' };
    let mut token = String::new();
    loop {
        let path = format!("{list}{separator}page_size={PAGE_SIZE}&page_token={}", encode(&token));
        let mut page: Value = client.get(&path).await?;
        if let Value::Array(objects) = page[field].take() {
            for object in objects {
                if !wanted(object) {
                    return Ok(());
                }
            }
        }
        token = text(&page["next_page_token"]);
        if token.is_empty() {
            return Ok(());
        }
    }
}

/// The runs of a namespace, newest first, until `wanted` returns false.
async fn each_run(client: &Client, namespace: &str, wanted: impl FnMut(Value) -> bool) -> Result<(), Failure> {
    let list = format!("{RUNS}?namespace={}&sort_by={}", encode(namespace), encode("created_at desc"));
    each(client, &list, "runs", wanted).await
}

/// The whole id of a run that is named by the beginning of its id.
async fn full_id(client: &Client, run: &Run) -> Result<String, Failure> {
    if run.id.len() >= 32 {
        return Ok(encode(&run.id));
    }
    let mut found = Vec::new();
    let matches = |candidate: Value| {
        let id = text(&candidate["run_id"]);
        if id.starts_with(&run.id) {
            found.push(id);
        }
        found.len() < 2
    };
    each_run(client, &run.namespace.namespace, matches).await?;
    match found.as_slice() {
        [id] => Ok(encode(id)),
        [] => {
            Err(failure(format!("no run of a pipeline has an id that begins with '{}'", run.id), "pipeline.not_found"))
        }
        _ => Err(failure(format!("several runs have an id that begins with '{}'", run.id), "pipeline.invalid")),
    }
}

async fn list(context: &Context, namespace: &str, limit: usize) -> Result<(), Failure> {
    let client = context.client().await?;
    let mut runs = Vec::new();
    if limit > 0 {
        let collect = |run| {
            runs.push(run);
            runs.len() < limit
        };
        each_run(&client, namespace, collect).await?;
    }
    print(context.global.output.format, &runs, |runs| {
        let mut table = Table::new(&["RUN", "NAME", "STATE", "CREATED", "FINISHED"]);
        for run in runs {
            let finished = run["finished_at"].as_str().filter(|at| !at.starts_with("1970-")).unwrap_or("-");
            table.row(vec![
                text(&run["run_id"]),
                text(&run["display_name"]),
                text(&run["state"]),
                text(&run["created_at"]),
                finished.to_owned(),
            ]);
        }
        table
    });
    Ok(())
}

async fn show(context: &Context, run: &Run) -> Result<(), Failure> {
    let client = context.client().await?;
    let id = full_id(&client, run).await?;
    print_run(context, &client.get(&format!("{OWN_RUNS}/{id}")).await?);
    Ok(())
}

/// Prints a run as a tree of its tasks.
fn print_run(context: &Context, run: &Value) {
    print(context.global.output.format, run, |run| {
        let mut table = Table::new(&["TASK", "STATE", "SECONDS", "OUTPUTS"]);
        let row = |depth: usize, name: &str, task: &Value| {
            let seconds = match (task["startedAt"].as_i64(), task["finishedAt"].as_i64()) {
                (Some(start), Some(end)) => format!("{:.2}", (end - start) as f64 / 1000.0),
                _ => "-".into(),
            };
            let outputs = task["outputs"]["parameters"].as_object().into_iter().flatten();
            let outputs = outputs.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ");
            let detail = task["failure"].as_str().map_or(outputs, str::to_owned);
            let line = detail.lines().next().unwrap_or_default();
            let shown: String = line.chars().take(80).collect();
            vec![format!("{}{name}", "  ".repeat(depth)), text(&task["state"]), seconds, shown]
        };
        table.row(row(0, run["displayName"].as_str().unwrap_or("run"), run));
        for task in run["tasks"].as_array().into_iter().flatten() {
            let path = task["path"].as_str().unwrap_or_default();
            if path.is_empty() {
                continue;
            }
            let depth = path.matches('/').count() + path.matches('[').count() + 1;
            table.row(row(depth, path, task));
        }
        table
    });
}

async fn logs(context: &Context, run: &Run, task: &str, follow: bool) -> Result<(), Failure> {
    let client = context.client().await?;
    let id = full_id(&client, run).await?;
    let mut out = Raw::stdout();
    let path = format!("{OWN_RUNS}/{id}/log?task={}&follow={follow}", encode(task));
    client.follow(&path, |bytes| out.write(bytes)).await?;
    out.finish();
    Ok(())
}

async fn act(context: &Context, run: &Run, verb: &str) -> Result<(), Failure> {
    let client = context.client().await?;
    let id = full_id(&client, run).await?;
    let _: Value = client.post(&format!("{RUNS}/{id}:{verb}"), &json!({})).await?;
    print_note(format!("follow it with `slipway pipeline show {id}`"));
    Ok(())
}

/// Prints what differs between two runs: parameters of the runs, and inputs, states and outputs of tasks with the same path.
fn diff(context: &Context, left: &Value, right: &Value) {
    let facts = |run: &Value| {
        let mut facts = BTreeMap::new();
        let mut add = |at: String, values: &Value| {
            for (name, value) in values.as_object().into_iter().flatten() {
                facts.insert(format!("{at}{name}"), value.to_string());
            }
        };
        add("parameters.".into(), &run["parameters"]);
        for task in run["tasks"].as_array().into_iter().flatten() {
            let path = task["path"].as_str().unwrap_or_default();
            add(format!("{path} input "), &task["inputs"]["parameters"]);
            add(format!("{path} output "), &task["outputs"]["parameters"]);
        }
        for task in run["tasks"].as_array().into_iter().flatten() {
            facts.insert(format!("{} state", task["path"].as_str().unwrap_or_default()), text(&task["state"]));
        }
        facts
    };
    let (left, right) = (facts(left), facts(right));
    let mut names: Vec<&String> = left.keys().chain(right.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let differences: Vec<Value> = names
        .into_iter()
        .filter(|name| left.get(*name) != right.get(*name))
        .map(|name| json!({ "name": name, "left": left.get(name), "right": right.get(name) }))
        .collect();
    print(context.global.output.format, &differences, |differences| {
        let mut table = Table::new(&["WHAT", "LEFT", "RIGHT"]);
        let cell = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        for difference in differences {
            table.row(vec![text(&difference["name"]), cell(&difference["left"]), cell(&difference["right"])]);
        }
        table
    });
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
