//! What changes machines and the cluster, step by step.

use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use slipway_cluster::apply;
use slipway_cluster::report::Report;
use slipway_cluster::shell::FOLDER;
use slipway_cluster::spec::edit;
use slipway_cluster::steps::{self, Step};
use slipway_cluster::work::{Progress, Work};
use slipway_cluster::{ClusterError, nodes};

use super::ask::{ask, print_report, show, words};
use super::progress::Watcher;
use super::{Session, wrong};
use crate::Failure;
use crate::cli::cluster as cli;
use crate::commands::Context;
use crate::output::{agreed, say};

/// All that steps share, as things are now.
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

/// Does steps, and tells of them. The report has what was done before them, too.
async fn perform(
    context: &Context,
    session: &Session,
    verb: &'static str,
    steps: Vec<Step>,
    before: Option<Report>,
) -> Result<Report, Failure> {
    let (watch, mut news) = tokio::sync::mpsc::unbounded_channel();
    let work = Work { before, ..work(session, verb, watch)? };
    let mut watcher = Watcher::new(context.global.quiet, work.hosts.len());
    let telling = tokio::spawn(async move {
        while let Some(progress) = news.recv().await {
            watcher.tell(&progress);
        }
        watcher.end();
    });
    let report = apply::apply(Arc::new(work), steps).await;
    let _ = telling.await; // a watcher that failed changes nothing of what was done
    Ok(report)
}

/// Keeps and prints a report; a failure in it is that of the whole.
fn told(context: &Context, session: &Session, report: &Report) -> Result<(), Failure> {
    session.state.keep("report", report)?;
    print_report(context, report);
    say(format_args!("{} changes in {:.1} s", report.changed(), report.seconds));
    Ok(report.result()?)
}

/// Whether these steps are what is wanted, told before anything is done.
fn confirmed(context: &Context, steps: &[Step], question: &str) -> Result<bool, Failure> {
    if context.global.dry_run || !context.global.yes {
        for step in steps {
            let after =
                if step.needs.is_empty() { String::new() } else { format!("  (after {})", step.needs.join(", ")) };
            say(format_args!("  {}{after}", step.id));
        }
    }
    if context.global.dry_run {
        return Ok(false);
    }
    if agreed(&context.global, question) { Ok(true) } else { Err(Failure::declined("cluster.spec")) }
}

fn chosen(hosts: &[String]) -> BTreeSet<String> {
    hosts.iter().cloned().collect()
}

/// Options of an apply.
pub(super) struct Options<'a> {
    pub(super) choice: &'a cli::Choice,
    pub(super) canary: usize,
    pub(super) from: Option<&'a str>,
    pub(super) smoke: bool,
}

pub(super) async fn apply(context: &Context, session: &Session, options: &Options<'_>) -> Result<(), Failure> {
    let lock = session.lock()?;
    let (layers, hosts) = (options.choice.layers(), &options.choice.machines.hosts);
    if context.global.dry_run || !context.global.yes {
        let plan = ask(session, hosts, &layers).await?;
        if context.global.dry_run {
            return show(context, &plan);
        }
        say(words(&plan).trim_end());
        if plan.is_empty() && !options.smoke {
            return Ok(());
        }
        if !agreed(&context.global, "Apply?") {
            return Err(Failure::declined("cluster.spec"));
        }
    }
    let done = applied(context, session, options).await;
    drop(lock);
    done
}

/// An apply that was agreed to.
async fn applied(context: &Context, session: &Session, options: &Options<'_>) -> Result<(), Failure> {
    let (layers, hosts) = (options.choice.layers(), &options.choice.machines.hosts);
    let all = layers.is_empty() && options.from.is_none();
    let mut report: Option<Report> = None;
    // Machines first: their addresses are part of what is wanted of all others.
    if let (Some(fleet), true) = (&session.fleet, all) {
        let names: Vec<String> = fleet.wanted().into_iter().filter(|n| hosts.is_empty() || hosts.contains(n)).collect();
        report = Some(perform(context, session, "apply", steps::machines(&names), None).await?);
    }
    let cluster = session.cluster()?;
    if cluster.first().is_none() {
        if let Some(report) = &report {
            told(context, session, report)?;
        }
        return Err(wrong("no control plane is there".into()));
    }
    let choice = steps::Choice { only: layers, canary: options.canary, smoke: options.smoke && hosts.is_empty() };
    let mut wanted = steps::on(steps::apply(&cluster, &choice), &chosen(hosts));
    if let Some(from) = options.from {
        wanted = steps::from(wanted, from).map_err(wrong)?;
    }
    report = Some(perform(context, session, "apply", wanted, report).await?);
    // Who is no longer wanted goes when the others stand.
    let stands =
        report.as_ref().is_some_and(|r| r.steps.iter().all(|s| s.outcome.went_well() || s.step.contains("/smoke-")));
    if let (Some(fleet), true) = (&session.fleet, all && hosts.is_empty() && stands) {
        let leaving = fleet.leaving();
        let mut steps = steps::leave(&leaving.iter().collect::<Vec<_>>());
        steps.extend(steps::delete(&fleet.unprovisioned(false)));
        if !steps.is_empty() {
            report = Some(perform(context, session, "apply", steps, report).await?);
        }
    }
    report.map_or(Ok(()), |report| told(context, session, &report))
}

/// Puts another text into the file, which is still the one that was read.
fn put(file: &cli::File, old: &str, new: &str) -> Result<(), Failure> {
    let io = |source| ClusterError::Io { what: file.file.display().to_string(), source };
    if text(file)? != old {
        return Err(wrong(format!("{} was changed meanwhile", file.file.display())));
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
        let (text, cluster) = edit::channel(&old, channel).map_err(wrong)?;
        new = Some(text);
        session.file = session.agreed(cluster)?;
    }
    let (silent, _) = tokio::sync::mpsc::unbounded_channel();
    let now = nodes::may_upgrade(&work(&session, "upgrade", silent)?).await?;
    let channel = session.file.spec.kubernetes.channel.clone();
    for (name, version) in now {
        say(format_args!("{name}: {version} -> {channel}"));
    }
    let steps = steps::on(steps::upgrade(&session.cluster()?, workers), &chosen(&machines.hosts));
    if !confirmed(context, &steps, "Upgrade these nodes, in this order?")? {
        return Ok(());
    }
    // Before anything is done: who goes on after a failure finds in the file what was meant.
    if let Some(new) = new {
        put(&machines.file, &old, &new)?;
    }
    let report = perform(context, &session, "upgrade", steps, None).await?;
    drop(lock);
    told(context, &session, &report)
}

pub(super) async fn stop(context: &Context, session: &Session, hosts: &[String]) -> Result<(), Failure> {
    let lock = session.lock()?;
    let steps = steps::on(steps::stop(&session.cluster()?), &chosen(hosts));
    if !confirmed(context, &steps, "Stop these machines, in this order?")? {
        return Ok(());
    }
    let report = perform(context, session, "stop", steps, None).await?;
    drop(lock);
    told(context, session, &report)
}

pub(super) async fn start(context: &Context, session: &Session, hosts: &[String]) -> Result<(), Failure> {
    let lock = session.lock()?;
    let names: Vec<String> =
        session.cluster()?.spec.machines.into_iter().filter(|m| m.made.is_some()).map(|m| m.name).collect();
    let machines = steps::on(steps::machines(&names), &chosen(hosts));
    let report = perform(context, session, "start", machines, None).await?;
    // Addresses may be others now.
    let steps = steps::on(steps::start(&session.cluster()?), &chosen(hosts));
    let report = perform(context, session, "start", steps, Some(report)).await?;
    drop(lock);
    told(context, session, &report)
}

pub(super) async fn scale(context: &Context, file: &cli::File, group: &str) -> Result<(), Failure> {
    let (group, count) = group.split_once('=').ok_or_else(|| wrong("write GROUP=COUNT".into()))?;
    let count = count.parse().map_err(|_| wrong(format!("'{count}' is no number")))?;
    let old = text(file)?;
    let (new, cluster) = edit::count(&old, group, count).map_err(wrong)?;
    let mut session = Session::open(context, file)?;
    session.replace(cluster)?;
    let lock = session.lock()?;
    let plan = ask(&session, &[], &[]).await?;
    if context.global.dry_run {
        return show(context, &plan);
    }
    say(words(&plan).trim_end());
    if !agreed(&context.global, "Scale?") {
        return Err(Failure::declined("cluster.spec"));
    }
    put(file, &old, &new)?;
    let choice = cli::Choice {
        machines: cli::Machines { file: cli::File { file: file.file.clone() }, hosts: Vec::new() },
        only: Vec::new(),
    };
    let done = applied(context, &session, &Options { choice: &choice, canary: 0, from: None, smoke: true }).await;
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
            steps::Action::Delete => "is deleted, with all that is on it",
            steps::Action::Erase => "is as it was before slipway's first change",
            _ => "drains and leaves the cluster",
        };
        say(format_args!("  {} {about}", step.host));
    }
    if context.global.dry_run {
        return Ok(());
    }
    let wanted = &cluster.metadata.name;
    let said = match name {
        Some(name) => name.to_owned(),
        None if std::io::stdin().is_terminal() => {
            eprint!("This cannot be undone. The cluster's name, to go on: ");
            let mut line = String::new();
            let _ = std::io::stdin().lock().read_line(&mut line); // nothing that could be read is not the name
            line.trim().to_owned()
        }
        None => String::new(),
    };
    if said != *wanted {
        let hint = Some(format!("say --name {wanted} where nobody can be asked"));
        return Err(Failure::Error { message: "nothing was changed".into(), code: "cluster.spec", hint, exit: 1 });
    }
    let report = perform(context, session, "destroy", steps, None).await?;
    drop(lock);
    told(context, session, &report)
}

pub(super) async fn adopt(session: &Session, machine: &str, id: &str) -> Result<(), Failure> {
    let lock = session.lock()?;
    let Some(fleet) = &session.fleet else { return Err(wrong("the file has no groups".into())) };
    let instance = fleet.adopt(machine, id).await?;
    drop(lock);
    say(format_args!(
        "{machine} is {} ({}); it is used, and never deleted; next: slipway cluster plan",
        instance.name, instance.size
    ));
    Ok(())
}

pub(super) async fn roll_back(context: &Context, session: &Session, hosts: &[String]) -> Result<(), Failure> {
    let lock = session.lock()?;
    let hosts = session.hosts(hosts)?;
    if !agreed(&context.global, "Take the last change of these machines back?") {
        return Err(Failure::declined("cluster.spec"));
    }
    let mut first = Ok(());
    for (machine, host) in &hosts {
        let path = host.push(&session.program).await?;
        let command = format!("exec {path} node converge --rollback --folder {FOLDER}");
        let done = host
            .run(&command, b"", Duration::from_secs(3600), |line| say(format_args!("{}: {line}", machine.name)))
            .await;
        if let Err(error) = done {
            say(format_args!("{}: {error}", machine.name));
            first = first.and(Err(error));
        }
    }
    drop(lock);
    Ok(first?)
}
