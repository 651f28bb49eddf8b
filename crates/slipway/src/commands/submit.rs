//! `slipway run submit`, `ls --submitted`, `status`, `logs`, `cancel` and `rm`: submitted runs.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use slipway_core::clock;
use slipway_core::home::Home;
use slipway_exec::manifest::{EnvVar, Manifest};
use slipway_exec::quantity::Quantity;
use slipway_exec::{ExecError, Phase, Submitted, Topology};

use super::{Context, source};
use crate::Failure;
use crate::cli::{RunTarget, Submit};
use crate::client::{Client, encode};
use crate::output::{Raw, Table, confirm, print, print_note};

/// Interval at which the status of a run is polled while waiting for its end.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// The API path of a submitted run.
pub(super) fn path(namespace: &str, name: &str) -> String {
    format!("/api/v1/runs/{}/{}", encode(namespace), encode(name))
}

/// Builds the manifest from the file and the options, which override it.
fn manifest(options: &Submit) -> Result<Manifest, Failure> {
    let mut run = match &options.file {
        Some(file) => {
            let text = if file.as_os_str() == "-" {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).map(|_| text)
            } else {
                std::fs::read_to_string(file)
            };
            Manifest::parse(&text.map_err(|e| ExecError::Manifest(format!("{}: {e}", file.display())))?)?
        }
        None => {
            let mut run = Manifest::new("", options.command.iter());
            run.metadata.generate_name = "run-".into();
            run
        }
    };
    if let Some(name) = &options.name {
        run.metadata.name.clone_from(name);
    }
    if let Some(namespace) = &options.namespace {
        run.metadata.namespace.clone_from(namespace);
    }
    let spec = &mut run.spec;
    spec.experiment = options.experiment.clone().or(spec.experiment.take());
    spec.image = options.image.clone().or(spec.image.take());
    spec.queue = options.queue.clone().or(spec.queue.take());
    spec.queue_system = options.queue_system.or(spec.queue_system);
    if let Some(topology) = &options.topology {
        spec.topology = Some(Topology::parse(topology)?);
    }
    for pair in &options.env {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| ExecError::Manifest(format!("--env {pair}: is not NAME=VALUE")))?;
        spec.env.push(EnvVar { name: name.into(), value: Some(value.into()), value_from: None });
    }
    if let Some(gpus) = options.gpus {
        spec.resources.limits.insert("nvidia.com/gpu".into(), Quantity::Whole(gpus.into()));
    }
    run.check()?;
    Ok(run)
}

/// The folder of the manifest file, or the current folder without a file.
fn base_folder(file: Option<&Path>) -> &Path {
    let parent = file.filter(|f| f.as_os_str() != "-").and_then(Path::parent);
    parent.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Sets the working folder and the repositories of a local run relative to a folder.
fn resolve_paths(run: &mut Manifest, base: &Path) {
    run.spec.data.iter_mut().for_each(|data| source::resolve_repository(data, base));
    let folder = match &run.spec.working_dir {
        Some(folder) => base.join(folder),
        None => base.to_owned(),
    };
    if let Ok(folder) = folder.canonicalize() {
        run.spec.working_dir = Some(folder.display().to_string());
    }
}

/// Records the project that the run is submitted from. A project that cannot be read is no reason not to run.
fn record_source(context: &Context, run: &mut Manifest, base: &Path) {
    let folder = run.spec.working_dir.as_deref().map_or_else(|| base.to_owned(), |folder| base.join(folder));
    let folder = folder.canonicalize().or_else(|_| base.canonicalize());
    match folder.map_or(Ok(None), |folder| source::source(&folder)) {
        Ok(found) => run.spec.source = run.spec.source.take().or(found),
        Err(error) if context.global.quiet => tracing::debug!(%error, "the project is not recorded"),
        Err(error) => print_note(format_args!("the project of this folder is not recorded with the run: {error}")),
    }
}

/// The fields of the manifest that only a cluster supports and a single machine ignores.
fn ignored_fields(run: &Manifest) -> Vec<&'static str> {
    let spec = &run.spec;
    [
        ("image", spec.image.is_some()),
        ("nodeSelector", !spec.node_selector.is_empty()),
        ("affinity", spec.affinity.is_some()),
        ("tolerations", !spec.tolerations.is_empty()),
        ("volumes", !spec.volumes.is_empty()),
        ("serviceAccountName", spec.service_account_name.is_some()),
        ("priorityClassName", spec.priority_class_name.is_some()),
        ("securityContext", spec.security_context.is_some()),
        ("queue", spec.queue.is_some()),
        ("topology", spec.topology.is_some()),
        ("data[].secretName", spec.data.iter().any(|data| data.secret_name.is_some())),
    ]
    .into_iter()
    .filter_map(|(name, set)| set.then_some(name))
    .collect()
}

pub(super) async fn submit(context: &Context, client: &Client, options: Submit) -> Result<(), Failure> {
    let mut run = manifest(&options)?;
    let status: Value = client.get("/api/v1/status").await?;
    let base = base_folder(options.file.as_deref());
    record_source(context, &mut run, base);
    if status["runs"] != "pods" {
        resolve_paths(&mut run, base);
        let ignored = ignored_fields(&run);
        if !ignored.is_empty() && !context.global.quiet {
            print_note(format_args!("running as a process on this machine, without {}", ignored.join(", ")));
        }
    } else {
        let home = Home::at(context.config.get("home").unwrap_or_default());
        source::pin(&mut run.spec.data, &home).await?;
    }
    let text = json!(run).to_string();
    if context.global.dry_run {
        print(context.global.output.format, &run, |_| Table::new(&["RUN"]));
        return Ok(());
    }
    let run: Submitted = client.post_text("/api/v1/runs", text).await?;
    let metadata = &run.manifest.metadata;
    if !options.follow && !options.wait {
        print(context.global.output.format, &run, |run| {
            let mut table = Table::new(&["RUN", "NAMESPACE", "TRACKED AS"]);
            let metadata = &run.manifest.metadata;
            table.row(vec![metadata.name.clone(), metadata.namespace.clone(), run.status.run_id.clone()]);
            table
        });
        let namespace =
            if metadata.namespace == "default" { String::new() } else { format!(" -n {}", metadata.namespace) };
        print_note(format_args!("Try next: slipway run logs {} --follow{namespace}", metadata.name));
        return Ok(());
    }
    let target = RunTarget { name: metadata.name.clone(), namespace: metadata.namespace.clone() };
    let finished = follow(client, &target, options.follow).await?;
    let summary = format!("run {} {}", target.name, summarize(&finished));
    if finished.status.phase == Phase::Succeeded {
        print_note(summary);
        return Ok(());
    }
    Err(ExecError::Failed(summary).into())
}

/// Waits for the end of a run. With `log`, prints the log of each attempt.
async fn follow(client: &Client, target: &RunTarget, log: bool) -> Result<Submitted, Failure> {
    let mut last_shown = 0;
    let mut last_summary = String::new();
    loop {
        let run: Submitted = client.get(&path(&target.namespace, &target.name)).await?;
        let newest = run.status.attempts.iter().find(|a| a.number > last_shown && a.started_at.is_some());
        if let Some(attempt) = newest.filter(|_| log) {
            last_shown = attempt.number;
            logs(client, target, true, Some(last_shown), None).await?;
            continue;
        }
        if run.status.phase.is_final() {
            return Ok(run);
        }
        let summary = summarize(&run);
        if summary != last_summary && run.status.phase == Phase::Pending && !run.status.reason.is_empty() {
            print_note(format_args!("{}: {summary}", target.name));
        }
        last_summary = summary;
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The phase, reason and message of a run, such as `failed (DeadlineExceeded): ...`.
pub(super) fn summarize(run: &Submitted) -> String {
    let status = &run.status;
    let phase = format!("{:?}", status.phase).to_lowercase();
    let reason =
        if status.reason.is_empty() || status.reason == "Completed" || status.reason == format!("{:?}", status.phase) {
            String::new()
        } else {
            format!(" ({})", status.reason)
        };
    let message = if status.message.is_empty() { String::new() } else { format!(": {}", status.message) };
    format!("{phase}{reason}{message}")
}

pub(super) async fn list(context: &Context, client: &Client, namespace: Option<&str>) -> Result<(), Failure> {
    let query = namespace.map_or(String::new(), |n| format!("?namespace={}", encode(n)));
    let runs: Vec<Submitted> = client.get(&format!("/api/v1/runs{query}")).await?;
    print(context.global.output.format, &runs, |runs| {
        let mut table =
            Table::new(&["RUN", "NAMESPACE", "PHASE", "ATTEMPT", "NODE", "SUBMITTED", "DURATION", "REASON"]);
        for run in runs {
            let (metadata, status) = (&run.manifest.metadata, &run.status);
            let ended = status.completion_time.map_or_else(clock::now_ms, |t| t.0);
            let duration = status.start_time.map(|s| slipway_core::units::micros((ended - s.0).max(0) as f64 * 1000.0));
            let mut reason = status.message.chars().take(80).collect::<String>();
            if reason.is_empty() && status.phase != Phase::Running {
                reason.clone_from(&status.reason);
            }
            table.row(vec![
                metadata.name.clone(),
                metadata.namespace.clone(),
                format!("{:?}", status.phase),
                status.current().map_or(String::new(), |a| a.number.to_string()),
                status.node.clone(),
                metadata.creation_timestamp.clone(),
                duration.unwrap_or_default(),
                reason,
            ]);
        }
        table
    });
    Ok(())
}

pub(super) async fn status(context: &Context, client: &Client, target: &RunTarget) -> Result<(), Failure> {
    let run: Submitted = client.get(&path(&target.namespace, &target.name)).await?;
    print(context.global.output.format, &run, |run| {
        let mut table = Table::new(&["FIELD", "VALUE"]);
        let (metadata, status) = (&run.manifest.metadata, &run.status);
        let mut row = |field: &str, value: String| {
            if !value.is_empty() {
                table.row(vec![field.to_owned(), value]);
            }
        };
        row("run", format!("{}/{}", metadata.namespace, metadata.name));
        row("phase", summarize(run));
        if let Some(queue) = &status.queue {
            let position = queue.position.map_or(String::new(), |p| format!(", position {p}"));
            row("queue", format!("{} ({}){position}", queue.name, queue.system));
        }
        row("tracked as", status.run_id.clone());
        row("submitted", metadata.creation_timestamp.clone());
        for attempt in &status.attempts {
            let time = |t: Option<slipway_exec::status::Time>| t.map_or("-".into(), |t| clock::rfc3339(t.0));
            let code = attempt.exit_code.map_or(String::new(), |c| format!(" code {c}"));
            let text = format!(
                "{} to {} on {} {}{code} {}",
                time(attempt.started_at),
                time(attempt.finished_at),
                attempt.node,
                attempt.reason,
                attempt.message
            );
            row(&format!("attempt {}", attempt.number), text.trim().to_owned());
            for gpu in &attempt.gpus {
                let text = format!(
                    "{} {}: {:.1} kJ, busy {:.0} s, idle {:.0} s",
                    gpu.resource,
                    gpu.device,
                    gpu.joules / 1000.0,
                    gpu.busy_seconds,
                    gpu.idle_seconds
                );
                row("  gpu", text);
            }
        }
        table
    });
    Ok(())
}

pub(super) async fn logs(
    client: &Client,
    target: &RunTarget,
    follow: bool,
    attempt: Option<u32>,
    tail: Option<u64>,
) -> Result<(), Failure> {
    let mut query = format!("{}/log?follow={follow}", path(&target.namespace, &target.name));
    for (key, value) in [("attempt", attempt.map(u64::from)), ("tail", tail)] {
        if let Some(value) = value {
            query.push_str(&format!("&{key}={value}"));
        }
    }
    let mut out = Raw::stdout();
    client.follow(&query, |bytes| out.write(bytes)).await?;
    out.finish();
    Ok(())
}

pub(super) async fn cancel(context: &Context, client: &Client, target: &RunTarget) -> Result<(), Failure> {
    let run: Submitted =
        client.post(&format!("{}/cancel", path(&target.namespace, &target.name)), &Value::Null).await?;
    if !context.global.quiet {
        let state = if run.status.phase.is_final() { "has already finished" } else { "is being cancelled" };
        print_note(format_args!("run {} {state}", target.name));
    }
    Ok(())
}

pub(super) async fn remove(context: &Context, client: &Client, target: &RunTarget) -> Result<(), Failure> {
    let run: Submitted = client.get(&path(&target.namespace, &target.name)).await?;
    if !run.status.phase.is_final()
        && !confirm(&context.global, &format!("Run {} is still active. Cancel and remove it?", target.name))
    {
        return Err(ExecError::NotNow("nothing was removed".into()).into());
    }
    client.delete(&path(&target.namespace, &target.name)).await?;
    print_note(format_args!("run {} was removed", target.name));
    Ok(())
}
