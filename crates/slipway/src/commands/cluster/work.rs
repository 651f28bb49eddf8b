//! Commands that change machines and the cluster step by step: apply, upgrade, stop, start, scale, destroy, adopt and rollback.

use std::io::IsTerminal;

use futures_util::future::BoxFuture;
use slipway_cluster::ClusterError;
use slipway_cluster::report::Report;
use slipway_cluster::session::{ApplyRequest, Session};
use slipway_cluster::spec::edit;
use slipway_cluster::steps::{self, Step};
use slipway_cluster::work::Progress;
use tokio::sync::mpsc::UnboundedReceiver;

use super::progress::observe;
use super::query::{print_report, render_plan, show};
use super::{invalid, open, session_error};
use crate::Failure;
use crate::cli::cluster as cli;
use crate::commands::Context;
use crate::output::{confirm, print_note, prompt_line};

/// Shows the progress of steps on stderr.
fn observer(context: &Context) -> impl Fn(usize, UnboundedReceiver<Progress>) -> BoxFuture<'static, ()> + use<> {
    let quiet = context.global.quiet;
    move |machines, progress| observe(quiet, machines, progress)
}

/// Saves and prints a report. Fails if a step failed.
fn finish(context: &Context, session: &Session, report: &Report) -> Result<(), Failure> {
    session.state().save("report", report)?;
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

pub(super) async fn apply(context: &Context, session: &Session, request: &ApplyRequest<'_>) -> Result<(), Failure> {
    let lock = session.lock()?;
    if context.global.yes && !context.global.dry_run {
        // Without a plan on the screen, its warnings are shown alone.
        for warning in session.file().warnings(slipway_core::clock::now_ms()) {
            print_note(format_args!("warning: {warning}"));
        }
    }
    if context.global.dry_run || !context.global.yes {
        let plan = session.plan(request.hosts, request.layers).await.map_err(session_error)?;
        if context.global.dry_run {
            return show(context, &plan);
        }
        print_note(render_plan(&plan).trim_end());
        if plan.is_empty() && !request.smoke {
            return Ok(());
        }
        if !confirm(&context.global, "Apply?") {
            return Err(Failure::declined("cluster.spec"));
        }
    }
    let done = apply_confirmed(context, session, request).await;
    drop(lock);
    done
}

/// Runs an apply that the user has confirmed.
async fn apply_confirmed(context: &Context, session: &Session, request: &ApplyRequest<'_>) -> Result<(), Failure> {
    let applied = session.apply(request, &observer(context)).await.map_err(session_error)?;
    if let Some(report) = &applied.report {
        finish(context, session, report)?;
    }
    applied.ended_early.map_or(Ok(()), |error| Err(session_error(error)))
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
    let mut session = open(context, &machines.file)?;
    let lock = session.lock()?;
    let old = text(&machines.file)?;
    let mut new = None;
    if let Some(channel) = to {
        let (text, cluster) = edit::channel(&old, channel).map_err(invalid)?;
        new = Some(text);
        session.replace_file(cluster)?;
    }
    let now = session.check_upgrade().await?;
    let channel = &session.file().spec.kubernetes.channel;
    for (name, version) in now {
        print_note(format_args!("{name}: {version} -> {channel}"));
    }
    let steps = session.upgrade_steps(&machines.hosts, workers)?;
    if !confirm_steps(context, &steps, "Upgrade these nodes, in this order?")? {
        return Ok(());
    }
    // Write the file before the upgrade starts, so that a retry after a failure uses the new channel.
    if let Some(new) = new {
        replace_text(&machines.file, &old, &new)?;
    }
    let report = session.run("upgrade", steps, &observer(context)).await?;
    drop(lock);
    finish(context, &session, &report)
}

pub(super) async fn stop(context: &Context, session: &Session, hosts: &[String]) -> Result<(), Failure> {
    let lock = session.lock()?;
    let steps = session.stop_steps(hosts)?;
    if !confirm_steps(context, &steps, "Stop these machines, in this order?")? {
        return Ok(());
    }
    let report = session.run("stop", steps, &observer(context)).await?;
    drop(lock);
    finish(context, session, &report)
}

pub(super) async fn start(context: &Context, session: &Session, hosts: &[String]) -> Result<(), Failure> {
    let lock = session.lock()?;
    let report = session.start(hosts, &observer(context)).await?;
    drop(lock);
    finish(context, session, &report)
}

pub(super) async fn scale(context: &Context, file: &cli::File, group: &str) -> Result<(), Failure> {
    let (group, count) = group.split_once('=').ok_or_else(|| invalid("the argument is not GROUP=COUNT".into()))?;
    let count = count.parse().map_err(|_| invalid(format!("'{count}' is not a number")))?;
    let old = text(file)?;
    let (new, cluster) = edit::count(&old, group, count).map_err(invalid)?;
    let mut session = open(context, file)?;
    session.replace_file(cluster)?;
    session.connect_providers()?;
    let lock = session.lock()?;
    let plan = session.plan(&[], &[]).await.map_err(session_error)?;
    if context.global.dry_run {
        return show(context, &plan);
    }
    print_note(render_plan(&plan).trim_end());
    if !confirm(&context.global, "Scale?") {
        return Err(Failure::declined("cluster.spec"));
    }
    replace_text(file, &old, &new)?;
    let request = ApplyRequest { smoke: true, ..ApplyRequest::default() };
    let done = apply_confirmed(context, &session, &request).await;
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
    let steps = session.destroy_steps(hosts).map_err(session_error)?;
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
    let expected = &session.file().metadata.name;
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
    let report = session.run("destroy", steps, &observer(context)).await?;
    drop(lock);
    finish(context, session, &report)
}

pub(super) async fn adopt(session: &Session, machine: &str, id: &str) -> Result<(), Failure> {
    let lock = session.lock()?;
    let Some(fleet) = session.fleet() else { return Err(invalid("the file has no groups".into())) };
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
    let hosts = session.hosts(hosts).map_err(session_error)?;
    if !confirm(&context.global, "Roll back the last change of these machines?") {
        return Err(Failure::declined("cluster.spec"));
    }
    let done = session.roll_back(&hosts, |machine, line| print_note(format_args!("{machine}: {line}"))).await;
    drop(lock);
    Ok(done?)
}
