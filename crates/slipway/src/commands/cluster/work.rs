//! Commands that change machines and the cluster step by step: apply, upgrade, stop, start, scale, destroy, adopt and rollback.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use slipway_cluster::report::Report;
use slipway_cluster::runner;
use slipway_cluster::shell::FOLDER;
use slipway_cluster::spec::edit;
use slipway_cluster::steps::{self, Step};
use slipway_cluster::work::{Progress, Work};
use slipway_cluster::{ClusterError, nodes};

use super::progress::ProgressPrinter;
use super::query::{compute_plan, print_report, render_plan, show};
use super::{Session, invalid};
use crate::Failure;
use crate::cli::cluster as cli;
use crate::commands::Context;
use crate::output::{confirm, print_note, prompt_line};

/// Builds the context that the steps share, from the current state of the session.
fn work(
    session: &Session,
    verb: &'static str,
    watch: tokio::sync::mpsc::UnboundedSender<Progress>,
) -> Result<Work, Failure> {
    let mut hosts = session.hosts(&[])?;
    let leaving = session.fleet.as_ref().map(|f| f.leaving()).unwrap_or_default();
    let cluster = session.cluster()?;
    for machine in leaving {
        let host = session.connections.host(&cluster, &machine)?;
        hosts.push((machine, host));
    }
    Ok(Work {
        verb,
        cluster,
        hosts: hosts.into_iter().map(|(m, h)| (m.name.clone(), (m, h))).collect(),
        connections: Arc::clone(&session.connections),
        fleet: session.fleet.clone(),
        program: Arc::clone(&session.program),
        state: session.state.clone(),
        change: session.change.clone(),
        watch,
        before: None,
    })
}

/// Runs steps and shows their progress. The returned report also contains the steps in `before`.
async fn perform(
    context: &Context,
    session: &Session,
    verb: &'static str,
    steps: Vec<Step>,
    before: Option<Report>,
) -> Result<Report, Failure> {
    let (watch, mut events) = tokio::sync::mpsc::unbounded_channel();
    let work = Work { before, ..work(session, verb, watch)? };
    let mut printer = ProgressPrinter::new(context.global.quiet, work.hosts.len());
    let printing = tokio::spawn(async move {
        while let Some(progress) = events.recv().await {
            printer.show(&progress);
        }
        printer.end();
    });
    let report = runner::run(Arc::new(work), steps).await;
    let _ = printing.await; // A failure of the progress output does not affect the report.
    Ok(report)
}

/// Saves and prints a report. Fails if a step failed.
fn finish(context: &Context, session: &Session, report: &Report) -> Result<(), Failure> {
    session.state.save("report", report)?;
    print_report(context, report);
    print_note(format_args!("{} changes in {:.1} s", report.changed(), report.seconds));
    Ok(report.result()?)
}

/// Shows the steps and asks the user to confirm them. Returns false for a dry run.
fn confirm_steps(context: &Context, steps: &[Step], question: &str) -> Result<bool, Failure> {
    if context.global.dry_run || !context.global.yes {
        for step in steps {
            let after =
                if step.needs.is_empty() { String::new() } else { format!("  (after {})", step.needs.join(", ")) };
            print_note(format_args!("  {}{after}", step.id));
        }
    }
    if context.global.dry_run {
        return Ok(false);
    }
    if confirm(&context.global, question) { Ok(true) } else { Err(Failure::declined("cluster.spec")) }
}

fn host_set(hosts: &[String]) -> BTreeSet<String> {
    hosts.iter().cloned().collect()
}

/// Options of an apply.
pub(super) struct Options<'a> {
    pub(super) selection: &'a cli::Selection,
    pub(super) canary: usize,
    pub(super) from: Option<&'a str>,
    pub(super) smoke: bool,
}

pub(super) async fn apply(context: &Context, session: &Session, options: &Options<'_>) -> Result<(), Failure> {
    let lock = session.lock()?;
    let (layers, hosts) = (&options.selection.only, &options.selection.machines.hosts);
    if context.global.dry_run || !context.global.yes {
        let plan = compute_plan(session, hosts, layers).await?;
        if context.global.dry_run {
            return show(context, &plan);
        }
        print_note(render_plan(&plan).trim_end());
        if plan.is_empty() && !options.smoke {
            return Ok(());
        }
        if !confirm(&context.global, "Apply?") {
            return Err(Failure::declined("cluster.spec"));
        }
    }
    let done = apply_confirmed(context, session, options).await;
    drop(lock);
    done
}

/// Runs an apply that the user has confirmed.
async fn apply_confirmed(context: &Context, session: &Session, options: &Options<'_>) -> Result<(), Failure> {
    let (layers, hosts) = (&options.selection.only, &options.selection.machines.hosts);
    let all = layers.is_empty() && options.from.is_none();
    let mut report: Option<Report> = None;
    // Create provider machines first, because the desired state of all machines contains their addresses.
    if let (Some(fleet), true) = (&session.fleet, all) {
        let names: Vec<String> =
            fleet.desired_names().into_iter().filter(|n| hosts.is_empty() || hosts.contains(n)).collect();
        report = Some(perform(context, session, "apply", steps::machines(&names), None).await?);
    }
    let cluster = session.cluster()?;
    if cluster.first().is_none() {
        if let Some(report) = &report {
            finish(context, session, report)?;
        }
        return Err(invalid("there is no control plane".into()));
    }
    let choice =
        steps::ApplyOptions { only: layers.clone(), canary: options.canary, smoke: options.smoke && hosts.is_empty() };
    let mut steps = steps::on(steps::apply(&cluster, &choice), &host_set(hosts));
    if let Some(from) = options.from {
        steps = steps::from(steps, from).map_err(invalid)?;
    }
    report = Some(perform(context, session, "apply", steps, report).await?);
    // Remove surplus machines only after all other steps except smoke tests have succeeded.
    let succeeded =
        report.as_ref().is_some_and(|r| r.steps.iter().all(|s| s.outcome.succeeded() || s.step.contains("/smoke-")));
    if let (Some(fleet), true) = (&session.fleet, all && hosts.is_empty() && succeeded) {
        let leaving = fleet.leaving();
        let mut steps = steps::leave(&leaving.iter().collect::<Vec<_>>());
        steps.extend(steps::delete(&fleet.unprovisioned(false)));
        if !steps.is_empty() {
            report = Some(perform(context, session, "apply", steps, report).await?);
        }
    }
    report.map_or(Ok(()), |report| finish(context, session, &report))
}

/// Replaces the text of the cluster file, unless the file was changed since it was read.
fn replace_text(file: &cli::File, old: &str, new: &str) -> Result<(), Failure> {
    let io = |source| ClusterError::Io { what: file.file.display().to_string(), source };
    if text(file)? != old {
        return Err(invalid(format!("{} was changed in the meantime", file.file.display())));
    }
    Ok(slipway_core::files::replace(&file.file, new.as_bytes()).map_err(io)?)
}

fn text(file: &cli::File) -> Result<String, Failure> {
    let io = |source| ClusterError::Io { what: file.file.display().to_string(), source };
    Ok(std::fs::read_to_string(&file.file).map_err(io)?)
}

pub(super) async fn upgrade(
    context: &Context,
    machines: &cli::Machines,
    to: Option<&str>,
    workers: usize,
) -> Result<(), Failure> {
    let mut session = Session::open(context, &machines.file)?;
    let lock = session.lock()?;
    let old = text(&machines.file)?;
    let mut new = None;
    if let Some(channel) = to {
        let (text, cluster) = edit::channel(&old, channel).map_err(invalid)?;
        new = Some(text);
        session.file = session.with_agreements(cluster)?;
    }
    let (silent, _) = tokio::sync::mpsc::unbounded_channel();
    let now = nodes::may_upgrade(&work(&session, "upgrade", silent)?).await?;
    let channel = session.file.spec.kubernetes.channel.clone();
    for (name, version) in now {
        print_note(format_args!("{name}: {version} -> {channel}"));
    }
    let steps = steps::on(steps::upgrade(&session.cluster()?, workers), &host_set(&machines.hosts));
    if !confirm_steps(context, &steps, "Upgrade these nodes, in this order?")? {
        return Ok(());
    }
    // Write the file before the upgrade starts, so that a retry after a failure uses the new channel.
    if let Some(new) = new {
        replace_text(&machines.file, &old, &new)?;
    }
    let report = perform(context, &session, "upgrade", steps, None).await?;
    drop(lock);
    finish(context, &session, &report)
}

pub(super) async fn stop(context: &Context, session: &Session, hosts: &[String]) -> Result<(), Failure> {
    let lock = session.lock()?;
    let steps = steps::on(steps::stop(&session.cluster()?), &host_set(hosts));
    if !confirm_steps(context, &steps, "Stop these machines, in this order?")? {
        return Ok(());
    }
    let report = perform(context, session, "stop", steps, None).await?;
    drop(lock);
    finish(context, session, &report)
}

pub(super) async fn start(context: &Context, session: &Session, hosts: &[String]) -> Result<(), Failure> {
    let lock = session.lock()?;
    let names: Vec<String> =
        session.cluster()?.spec.machines.into_iter().filter(|m| m.provisioned.is_some()).map(|m| m.name).collect();
    let machines = steps::on(steps::machines(&names), &host_set(hosts));
    let report = perform(context, session, "start", machines, None).await?;
    // The addresses may have changed, so read the cluster again.
    let steps = steps::on(steps::start(&session.cluster()?), &host_set(hosts));
    let report = perform(context, session, "start", steps, Some(report)).await?;
    drop(lock);
    finish(context, session, &report)
}

pub(super) async fn scale(context: &Context, file: &cli::File, group: &str) -> Result<(), Failure> {
    let (group, count) = group.split_once('=').ok_or_else(|| invalid("the argument is not GROUP=COUNT".into()))?;
    let count = count.parse().map_err(|_| invalid(format!("'{count}' is not a number")))?;
    let old = text(file)?;
    let (new, cluster) = edit::count(&old, group, count).map_err(invalid)?;
    let mut session = Session::open(context, file)?;
    session.replace(cluster)?;
    let lock = session.lock()?;
    let plan = compute_plan(&session, &[], &[]).await?;
    if context.global.dry_run {
        return show(context, &plan);
    }
    print_note(render_plan(&plan).trim_end());
    if !confirm(&context.global, "Scale?") {
        return Err(Failure::declined("cluster.spec"));
    }
    replace_text(file, &old, &new)?;
    let selection = cli::Selection {
        machines: cli::Machines { file: cli::File { file: file.file.clone() }, hosts: Vec::new() },
        only: Vec::new(),
    };
    let done =
        apply_confirmed(context, &session, &Options { selection: &selection, canary: 0, from: None, smoke: true })
            .await;
    drop(lock);
    done
}

pub(super) async fn destroy(
    context: &Context,
    session: &Session,
    hosts: &[String],
    name: Option<&str>,
) -> Result<(), Failure> {
    let lock = session.lock()?;
    let cluster = session.cluster()?;
    let mut machines = cluster.spec.machines.clone();
    machines.extend(session.fleet.as_ref().map(|f| f.leaving()).unwrap_or_default());
    let steps = if hosts.is_empty() {
        let unprovisioned = session.fleet.as_ref().map(|f| f.unprovisioned(true)).unwrap_or_default();
        [steps::destroy(&machines), steps::delete(&unprovisioned)].concat()
    } else {
        session.hosts(hosts)?;
        steps::leave(&machines.iter().filter(|m| hosts.contains(&m.name)).collect::<Vec<_>>())
    };
    for step in &steps {
        let about = match &step.action {
            steps::Action::Delete => "is deleted with all its data",
            steps::Action::Erase => "is restored to its state before slipway's first change",
            _ => "drains and leaves the cluster",
        };
        print_note(format_args!("  {} {about}", step.host));
    }
    if context.global.dry_run {
        return Ok(());
    }
    let expected = &cluster.metadata.name;
    let typed = match name {
        Some(name) => name.to_owned(),
        None if std::io::stdin().is_terminal() => {
            // If reading fails, the line is empty and does not match the name.
            prompt_line("This cannot be undone. Type the name of the cluster to continue: ").unwrap_or_default()
        }
        None => String::new(),
    };
    if typed != *expected {
        let hint = Some(format!("pass --name {expected} without a terminal"));
        return Err(Failure::Error { message: "nothing was changed".into(), code: "cluster.spec", hint, exit: 1 });
    }
    let report = perform(context, session, "destroy", steps, None).await?;
    drop(lock);
    finish(context, session, &report)
}

pub(super) async fn adopt(session: &Session, machine: &str, id: &str) -> Result<(), Failure> {
    let lock = session.lock()?;
    let Some(fleet) = &session.fleet else { return Err(invalid("the file has no groups".into())) };
    let instance = fleet.adopt(machine, id).await?;
    drop(lock);
    print_note(format_args!(
        "{machine} is {} ({}); slipway uses it but never deletes it; next: slipway cluster plan",
        instance.name, instance.size
    ));
    Ok(())
}

pub(super) async fn roll_back(context: &Context, session: &Session, hosts: &[String]) -> Result<(), Failure> {
    let lock = session.lock()?;
    let hosts = session.hosts(hosts)?;
    if !confirm(&context.global, "Roll back the last change of these machines?") {
        return Err(Failure::declined("cluster.spec"));
    }
    let mut first = Ok(());
    for (machine, host) in &hosts {
        let path = host.push(&session.program).await?;
        let command = format!("exec {path} node converge --rollback --folder {FOLDER}");
        let done = host
            .run(&command, b"", Duration::from_secs(3600), |line| print_note(format_args!("{}: {line}", machine.name)))
            .await;
        if let Err(error) = done {
            print_note(format_args!("{}: {error}", machine.name));
            first = first.and(Err(error));
        }
    }
    drop(lock);
    Ok(first?)
}
