//! `slipway cluster`, and `slipway node converge`, which it runs on the machines.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use slipway_cluster::ClusterError;
use slipway_cluster::apply::{self, Ended, Outcome, Progress, Report, Work};
use slipway_cluster::converge::{Event, FOLDER, Mode, Records};
use slipway_cluster::plan::{self, Plan};
use slipway_cluster::resource::{Layer, Wanted};
use slipway_cluster::spec::{Cluster, Machine, Role};
use slipway_cluster::state::State;
use slipway_cluster::transport::{Connections, Host, Program};
use slipway_core::home::Home;

use super::Context;
use crate::Failure;
use crate::cli::Format;
use crate::cli::cluster as cli;
use crate::output::{Table, agreed, print, print_text, say};

pub(crate) async fn run(context: &Context, verb: cli::Cluster) -> Result<(), Failure> {
    match verb {
        cli::Cluster::Init { machines, name, channel, user, identity, known_hosts, accept_new_host_keys, file } => {
            let mut ssh = String::new();
            for (key, value) in [("user", &user), ("identityFile", &identity), ("knownHosts", &known_hosts)] {
                if let Some(value) = value {
                    ssh += &format!("    {key}: {value}\n");
                }
            }
            if accept_new_host_keys {
                ssh += "    acceptNewHostKeys: true\n";
            }
            init(&machines, &name, &channel, &ssh, &file)
        }
        cli::Cluster::Schema => {
            print_text(&(serde_json::to_string_pretty(&Cluster::schema()).unwrap_or_default() + "\n"));
            Ok(())
        }
        cli::Cluster::Plan { choice, save } => show_plan(context, &choice, save.as_deref()).await,
        cli::Cluster::Apply { choice, canary } => apply(context, &choice, canary).await,
        cli::Cluster::Status { choice, drift } => status(context, &choice, drift).await,
        cli::Cluster::Rollback { choice } => roll_back(context, &choice).await,
        cli::Cluster::Inventory { file, list: _, host } => {
            let cluster = Cluster::read(&file.file)?;
            let inventory = inventory(&cluster);
            let document = match host {
                Some(host) => inventory["_meta"]["hostvars"].get(&host).cloned().unwrap_or_else(|| json!({})),
                None => inventory,
            };
            print_text(&(serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"));
            Ok(())
        }
        cli::Cluster::Ssh { file, machine, command } => ssh(&file, &machine, &command),
        cli::Cluster::Logs { file, machine } => {
            let cluster = Cluster::read(&file.file)?;
            let path = state(context, &cluster)?.log_path(&machine);
            let text = std::fs::read_to_string(&path)
                .map_err(|source| ClusterError::Io { what: path.display().to_string(), source })?;
            print_text(&text);
            Ok(())
        }
    }
}

fn wrong(message: String) -> Failure {
    Failure::Error { message, code: "cluster.spec", hint: None, exit: 2 }
}

fn init(machines: &[String], name: &str, channel: &str, ssh: &str, file: &Path) -> Result<(), Failure> {
    let mut text = format!("apiVersion: slipway.dev/v1\nkind: Cluster\nmetadata:\n  name: {name}\nspec:\n");
    if !ssh.is_empty() {
        text += &format!("  ssh:\n{ssh}");
    }
    text += "  machines:\n";
    for machine in machines {
        let (roles, rest) = match machine.split_once(':') {
            Some(("worker", rest)) => ("worker", rest),
            Some(("gpu", rest)) => ("worker, gpu", rest),
            _ => ("control-plane", machine.as_str()),
        };
        let (name, address) = rest.split_once('=').ok_or_else(|| wrong(format!("'{machine}': write NAME=ADDRESS")))?;
        text += &format!("    - name: {name}\n      address: {address}\n      roles: [{roles}]\n");
    }
    text += &format!(
        "  kubernetes:\n    distribution: microk8s\n    channel: {channel}\n    addons: [dns, rbac, hostpath-storage, metrics-server]\n"
    );
    Cluster::parse(&text).map_err(wrong)?;
    let io = |source| ClusterError::Io { what: file.display().to_string(), source };
    let mut out = std::fs::File::options().write(true).create_new(true).open(file).map_err(io)?;
    out.write_all(text.as_bytes()).map_err(io)?;
    say(format_args!("{} was written; next: slipway cluster plan -f {}", file.display(), file.display()));
    Ok(())
}

fn state(context: &Context, cluster: &Cluster) -> Result<State, Failure> {
    let home = Home::at(context.config.get("home").unwrap_or_default());
    Ok(State::open(home.root(), &cluster.metadata.name)?)
}

/// The machines chosen, and how they are spoken to.
fn hosts(connections: &Connections, cluster: &Cluster, names: &[String]) -> Result<Vec<(Machine, Host)>, Failure> {
    for name in names {
        if !cluster.spec.machines.iter().any(|m| m.name == *name) {
            return Err(wrong(format!("there is no machine '{name}' in the file")));
        }
    }
    let chosen = cluster.spec.machines.iter().filter(|m| names.is_empty() || names.contains(&m.name));
    chosen.map(|m| Ok((m.clone(), connections.host(cluster, m)?))).collect()
}

/// What is put onto machines.
fn this_program() -> Result<Program, ClusterError> {
    let file = std::env::current_exe().map_err(|source| ClusterError::Io { what: "this program".into(), source })?;
    Ok(Program::new(file))
}

fn print_plan(context: &Context, plan: &Plan) {
    match context.global.output {
        Format::Table | Format::Wide | Format::Svg => print_text(&words(plan)),
        format => print(format, plan, |plan| {
            let mut table = Table::new(&["MACHINE"]);
            for machine in plan.machines.iter().filter(|m| !m.changes.is_empty()) {
                table.row(vec![machine.name.clone()]);
            }
            table
        }),
    }
}

/// A plan for people.
fn words(plan: &Plan) -> String {
    let mut out = String::new();
    for machine in &plan.machines {
        let about = machine.machine.as_ref().map_or(String::new(), |m| {
            let gpus = if m.gpus.is_empty() { String::new() } else { format!(", {} GPUs", m.gpus.len()) };
            format!("{} {}, {} CPUs, {} GiB{gpus}", m.distribution, m.release, m.cpus, m.memory_mib >> 10)
        });
        out += &format!("{}  {about}\n", machine.name);
        if let Some(trouble) = &machine.unreachable {
            out += &format!("  ! {} [{}]\n", trouble.message, trouble.code);
            continue;
        }
        for finding in &machine.findings {
            out += &format!("  ! {finding}\n");
        }
        if machine.changes.is_empty() {
            out += "  = as wanted\n";
        }
        for planned in &machine.changes {
            for change in &planned.changes {
                let mut lines = change.text.lines();
                out += &format!("  {} {:24} {}\n", change.sign, planned.resource, lines.next().unwrap_or_default());
                for line in lines {
                    out += &format!("      {line}\n");
                }
            }
            for effect in &planned.effects {
                out += &format!("    {:24} ({effect})\n", "");
            }
        }
    }
    let all = &plan.machines;
    let changes: usize = all.iter().map(|m| m.changes.len()).sum();
    let changed = all.iter().filter(|m| !m.changes.is_empty()).count();
    let away = all.iter().filter(|m| m.unreachable.is_some()).count();
    let away = if away > 0 { format!("; {away} cannot be reached") } else { String::new() };
    out + &format!("{changes} changes on {changed} of {} machines{away}\n", all.len())
}

/// Asks the machines. The folder of connections must outlive what speaks through it.
async fn ask(context: &Context, choice: &cli::Choice) -> Result<Plan, Failure> {
    let cluster = Cluster::read(&choice.file.file)?;
    let connections = Connections::new()?;
    let hosts = hosts(&connections, &cluster, &choice.hosts)?;
    let plan = plan::plan(&cluster, &hosts, &choice.layers()).await;
    print_plan(context, &plan);
    Ok(plan)
}

fn findings(plan: &Plan) -> Result<(), Failure> {
    if let Some(trouble) = plan.machines.iter().find_map(|m| m.unreachable.as_ref()) {
        let hint = slipway_core::explain::find(&trouble.code).map(|t| t.remedy.to_owned());
        let code = slipway_core::explain::find(&trouble.code).map_or("cluster.host", |t| t.code);
        return Err(Failure::Error { message: trouble.message.clone(), code, hint, exit: 5 });
    }
    if plan.is_empty() { Ok(()) } else { Err(Failure::Findings) }
}

async fn show_plan(context: &Context, choice: &cli::Choice, save: Option<&Path>) -> Result<(), Failure> {
    let plan = ask(context, choice).await?;
    if let Some(file) = save {
        let text = serde_json::to_vec_pretty(&plan).unwrap_or_default();
        slipway_core::files::replace(file, &text)
            .map_err(|source| ClusterError::Io { what: file.display().to_string(), source })?;
    }
    findings(&plan)
}

async fn status(context: &Context, choice: &cli::Choice, drift: bool) -> Result<(), Failure> {
    if drift {
        return findings(&ask(context, choice).await?);
    }
    let cluster = Cluster::read(&choice.file.file)?;
    match state(context, &cluster)?.kept::<Report>("report") {
        Some(report) => print_report(context, &report),
        None => say("nothing was applied from here yet; next: slipway cluster plan"),
    }
    Ok(())
}

fn print_report(context: &Context, report: &Report) {
    print(context.global.output, report, |report| {
        let mut table = Table::new(&["STEP", "OUTCOME", "SECONDS", "ABOUT"]);
        for Ended { step, outcome, seconds } in &report.steps {
            let (word, about) = match outcome {
                Outcome::Unchanged => ("unchanged", String::new()),
                Outcome::Changed { changes } => ("changed", format!("{changes} changes")),
                Outcome::Failed { reason } => ("failed", reason.lines().next().unwrap_or_default().to_owned()),
                Outcome::Skipped { because } => ("skipped", format!("{because} failed")),
            };
            table.row(vec![step.clone(), word.into(), format!("{seconds:.1}"), about]);
        }
        table
    });
}

async fn apply(context: &Context, choice: &cli::Choice, canary: usize) -> Result<(), Failure> {
    let cluster = Cluster::read(&choice.file.file)?;
    let (state, layers) = (state(context, &cluster)?, choice.layers());
    let lock = state.lock()?;
    let connections = Connections::new()?;
    // Whoever joins needs the first machine, chosen or not.
    let all = hosts(&connections, &cluster, &[])?;
    let chosen = hosts(&connections, &cluster, &choice.hosts)?;
    if context.global.dry_run || !context.global.yes {
        let plan = plan::plan(&cluster, &chosen, &layers).await;
        print_plan(context, &plan);
        if context.global.dry_run {
            return findings(&plan);
        }
        if plan.is_empty() {
            return Ok(());
        }
        if !agreed(&context.global, "Apply?") {
            return Err(Failure::declined("cluster.spec"));
        }
    }
    let program = this_program()?;
    let (watch, mut news) = tokio::sync::mpsc::unbounded_channel();
    let steps =
        apply::on(apply::steps(&cluster, &layers, canary), &choice.hosts.iter().cloned().collect::<BTreeSet<_>>());
    let work = Work {
        cluster,
        hosts: all.into_iter().map(|(m, h)| (m.name.clone(), (m, h))).collect::<BTreeMap<_, _>>(),
        program,
        state: state.clone(),
        change: format!("{:013}", slipway_core::clock::now_ms()),
        watch,
    };
    let quiet = context.global.quiet;
    let telling = tokio::spawn(async move {
        while let Some(progress) = news.recv().await {
            if !quiet {
                tell(&progress);
            }
        }
    });
    let report = apply::apply(Arc::new(work), steps).await;
    drop(telling.await);
    state.keep("report", &report)?;
    print_report(context, &report);
    say(format_args!("{} changes in {:.1} s", report.changed(), report.seconds));
    drop(lock);
    Ok(report.result()?)
}

/// A line for people about what happens.
fn tell(progress: &Progress) {
    match progress {
        Progress::Began { step } => say(format_args!("{step}: begins")),
        Progress::Event { step, event } => match event {
            Event::Changing { resource, changes } => {
                let first =
                    changes.first().map(|c| c.text.lines().next().unwrap_or_default().to_owned()).unwrap_or_default();
                say(format_args!("{step}: ~ {resource}: {first}"));
            }
            Event::Failed { resource, reason } => say(format_args!("{step}: ! {resource}: {reason}")),
            Event::Skipped { resource, because } => say(format_args!("{step}: - {resource}: {because}")),
            Event::Rebooting { reason, .. } => say(format_args!("{step}: starts anew: {reason}")),
            _ => {}
        },
        Progress::Ended(Ended { step, outcome, seconds }) => {
            let word = match outcome {
                Outcome::Unchanged => "as wanted".to_owned(),
                Outcome::Changed { changes } => format!("{changes} changes"),
                Outcome::Failed { reason } => format!("failed: {reason}"),
                Outcome::Skipped { because } => format!("skipped: {because} failed"),
            };
            say(format_args!("{step}: {word} ({seconds:.1} s)"));
        }
    }
}

async fn roll_back(context: &Context, choice: &cli::Choice) -> Result<(), Failure> {
    let cluster = Cluster::read(&choice.file.file)?;
    let lock = state(context, &cluster)?.lock()?;
    let connections = Connections::new()?;
    let hosts = hosts(&connections, &cluster, &choice.hosts)?;
    if !agreed(&context.global, "Take the last change of these machines back?") {
        return Err(Failure::declined("cluster.spec"));
    }
    let program = this_program()?;
    let mut first = Ok(());
    for (machine, host) in &hosts {
        let path = host.push(&program).await?;
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

/// Groups and hosts as Ansible's dynamic inventories tell them (Ansible, "Developing dynamic inventory").
fn inventory(cluster: &Cluster) -> Value {
    let named = |wanted: &dyn Fn(&Machine) -> bool| -> Vec<&str> {
        cluster.spec.machines.iter().filter(|m| wanted(m)).map(|m| m.name.as_str()).collect()
    };
    let variables = |machine: &Machine| {
        let ssh = cluster.ssh(machine);
        let mut out = serde_json::Map::new();
        let mut put = |key: &str, value: Option<Value>| out.extend(value.map(|v| (key.to_owned(), v)));
        put("ansible_host", Some(json!(machine.address)));
        put("ansible_user", ssh.user.map(|v| json!(v)));
        put("ansible_port", ssh.port.map(|v| json!(v)));
        put("ansible_ssh_private_key_file", ssh.identity_file.map(|v| json!(v)));
        put("slipway_roles", Some(json!(machine.roles)));
        Value::Object(out)
    };
    let hosts: serde_json::Map<String, Value> =
        cluster.spec.machines.iter().map(|m| (m.name.clone(), variables(m))).collect();
    json!({
        "_meta": {"hostvars": hosts},
        "all": {"children": ["control_plane", "workers", "gpu"]},
        "control_plane": {"hosts": named(&|m| m.is(Role::ControlPlane))},
        "workers": {"hosts": named(&|m| m.is(Role::Worker))},
        "gpu": {"hosts": named(&|m| m.is(Role::Gpu))},
    })
}

fn ssh(file: &cli::File, machine: &str, command: &[String]) -> Result<(), Failure> {
    let cluster = Cluster::read(&file.file)?;
    let connections = Connections::new()?;
    let hosts = hosts(&connections, &cluster, &[machine.to_owned()])?;
    let Some((_, host)) = hosts.first() else { return Ok(()) };
    let arguments = host.arguments(false);
    drop(connections);
    let mut ssh = std::process::Command::new("ssh");
    if command.is_empty() && std::io::stdin().is_terminal() {
        ssh.arg("-t");
    }
    let error = ssh.args(arguments).args(command).exec();
    Err(ClusterError::Io { what: "ssh".into(), source: error }.into())
}

/// `slipway node converge`: on the machine.
pub(crate) fn converge(args: cli::Converge) -> Result<(), Failure> {
    let events = args.events;
    // Whether somebody still reads decides whether work goes on after the resource at hand.
    let mut tell = move |event: Event| -> bool {
        let line = if events { serde_json::to_string(&event).unwrap_or_default() } else { in_words(&event) };
        let mut out = std::io::stdout();
        line.is_empty() || writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
    };
    let done = converge_here(args, &mut tell);
    if let (true, Err(Failure::Error { message, .. })) = (events, &done) {
        tell(Event::Refused { reason: message.clone() });
    }
    done
}

fn converge_here(args: cli::Converge, tell: &mut dyn FnMut(Event) -> bool) -> Result<(), Failure> {
    let records = Records::open(&args.folder, Duration::from_secs(args.wait))?;
    let host = |reason: String| ClusterError::Host { host: "this machine".into(), reason };
    if args.rollback {
        let change = records
            .roll_back(&mut |event| {
                tell(event);
            })
            .map_err(host)?;
        say(change.map_or_else(|| "there is no change to take back".into(), |c| format!("change {c} was taken back")));
        return Ok(());
    }
    let document = args.document.unwrap_or_default();
    let io = |source| ClusterError::Io { what: document.display().to_string(), source };
    let mut text = String::new();
    if document == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map_err(io)?;
    } else {
        text = std::fs::read_to_string(&document).map_err(io)?;
    }
    let wanted: Wanted = serde_json::from_str(&text).map_err(|e| wrong(format!("{}: {e}", document.display())))?;
    let layers: Vec<Layer> = args.only.into_iter().map(Into::into).collect();
    let mode = if args.check { Mode::Check } else { Mode::Apply };
    let change = args.change.unwrap_or_else(|| format!("{:013}", slipway_core::clock::now_ms()));
    let summary = records.converge(&wanted.only(&layers), mode, &change, tell).map_err(host)?;
    if summary.failed > 0 {
        return Err(host(format!("{} resources could not be made as wanted", summary.failed)).into());
    }
    if args.check && summary.changed > 0 { Err(Failure::Findings) } else { Ok(()) }
}

/// An event for people; nothing for what does not matter to them.
fn in_words(event: &Event) -> String {
    match event {
        Event::Differs { resource, changes, .. } | Event::Changing { resource, changes } => {
            changes.iter().map(|c| format!("{} {resource}: {}", c.sign, c.text)).collect::<Vec<_>>().join("\n")
        }
        Event::Output { line, .. } => format!("    {line}"),
        Event::Changed { resource, seconds } => format!("= {resource} ({seconds:.1} s)"),
        Event::Failed { resource, reason } => format!("! {resource}: {reason}"),
        Event::Skipped { resource, because } => format!("- {resource}: {because}"),
        Event::Rebooting { resource, reason } => format!("! {resource}: this machine must start anew: {reason}"),
        Event::Done { ok, changed, failed, skipped } => {
            format!("{ok} as wanted, {changed} changed, {failed} failed, {skipped} skipped")
        }
        // The error itself is told anyway.
        Event::Begun { .. } | Event::Ok { .. } | Event::Refused { .. } => String::new(),
    }
}
