//! What differs, what was done, what is wrong, what it costs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use slipway_cluster::ClusterError;
use slipway_cluster::doctor::{self, Finding, Severity};
use slipway_cluster::fleet::Price;
use slipway_cluster::plan::{self, MachinePlan, Plan};
use slipway_cluster::report::{Ended, Report, html};
use slipway_cluster::resource::Layer;
use slipway_cluster::spec::Role;

use super::Session;
use crate::Failure;
use crate::cli::Format;
use crate::cli::cluster as cli;
use crate::commands::Context;
use crate::output::{Table, lines, one_line, print, print_text, say};

/// Hours of a month, as providers count them.
const MONTH: f64 = 730.0;

/// A plan for people.
pub(super) fn words(plan: &Plan) -> String {
    let mut out = String::new();
    for machine in &plan.machines {
        let about = machine.machine.as_ref().map_or(String::new(), |m| {
            let gpus = if m.gpus.is_empty() { String::new() } else { format!(", {} GPUs", m.gpus.len()) };
            one_line(&format!("{} {}, {} CPUs, {} GiB{gpus}", m.distribution, m.release, m.cpus, m.memory_mib >> 10))
        });
        out += &format!("{}  {about}\n", machine.name);
        if let Some(trouble) = &machine.unreachable {
            out += &format!("  ! {} [{}]\n", lines(&trouble.message), trouble.code);
            continue;
        }
        for finding in &machine.findings {
            out += &format!("  ! {}: {}\n", one_line(&finding.what), one_line(&finding.remedy));
        }
        if machine.changes.is_empty() {
            out += "  = as wanted\n";
        }
        for planned in &machine.changes {
            for change in &planned.changes {
                let text = lines(&change.text);
                let mut rest = text.lines();
                let (resource, first) = (one_line(&planned.resource), rest.next().unwrap_or_default());
                out += &format!("  {} {resource:24} {first}\n", change.sign);
                for line in rest {
                    out += &format!("      {line}\n");
                }
            }
            for effect in &planned.effects {
                out += &format!("    {:24} ({})\n", "", one_line(effect));
            }
        }
    }
    let all = &plan.machines;
    let changes: usize = all.iter().map(|m| m.changes.len()).sum();
    let changed = all.iter().filter(|m| !m.changes.is_empty()).count();
    let away = all.iter().filter(|m| m.unreachable.is_some()).count();
    let away = if away > 0 { format!("; {away} cannot be reached") } else { String::new() };
    if let Some(hourly) = plan.hourly {
        out += &format!("the machines of its groups cost {hourly:.2} $ an hour, {:.0} $ a month\n", hourly * MONTH);
    }
    out + &format!("{changes} changes on {changed} of {} machines{away}\n", all.len())
}

/// What differs on machines that are there, and of machines that are not.
pub(super) async fn ask(session: &Session, hosts: &[String], layers: &[Layer]) -> Result<Plan, Failure> {
    let news = match &session.fleet {
        Some(fleet) if layers.is_empty() => fleet.plan().await?,
        _ => Vec::new(),
    };
    let there = session.hosts(hosts)?;
    let there: Vec<_> = there.into_iter().filter(|(m, _)| news.iter().all(|(name, _)| *name != m.name)).collect();
    let mut plan = plan::plan(&session.cluster()?, &there, layers).await;
    for (name, change) in news {
        if hosts.is_empty() || hosts.contains(&name) {
            plan.machines.push(MachinePlan::of_provider(&name, change));
        }
    }
    if let Some(fleet) = &session.fleet {
        plan.hourly = fleet.hourly().await?;
    }
    Ok(plan)
}

/// Prints a plan, and ends as what it found says.
pub(super) fn show(context: &Context, plan: &Plan) -> Result<(), Failure> {
    match context.global.output.format {
        Format::Table | Format::Wide | Format::Svg | Format::Html => print_text(&words(plan)),
        format => print(format, plan, |plan| {
            let mut table = Table::new(&["MACHINE"]);
            for machine in plan.machines.iter().filter(|m| !m.changes.is_empty()) {
                table.row(vec![machine.name.clone()]);
            }
            table
        }),
    }
    if let Some(trouble) = plan.machines.iter().find_map(|m| m.unreachable.as_ref()) {
        let hint = slipway_core::explain::find(&trouble.code).map(|t| t.remedy.to_owned());
        let code = slipway_core::explain::find(&trouble.code).map_or("cluster.host", |t| t.code);
        return Err(Failure::Error { message: trouble.message.clone(), code, hint, exit: 5 });
    }
    if plan.is_empty() { Ok(()) } else { Err(Failure::Findings) }
}

pub(super) async fn show_plan(context: &Context, session: &Session, choice: &cli::Choice) -> Result<(), Failure> {
    show(context, &ask(session, &choice.machines.hosts, &choice.layers()).await?)
}

pub(super) fn last(context: &Context, session: &Session) {
    match session.state.kept::<Report>("report") {
        Some(report) => print_report(context, &report),
        None => say("nothing was applied from here yet; next: slipway cluster plan"),
    }
}

pub(super) fn print_report(context: &Context, report: &Report) {
    if context.global.output.format == Format::Html {
        return print_text(&html::page(report));
    }
    print(context.global.output.format, report, |report| {
        let mut table = Table::new(&["STEP", "OUTCOME", "SECONDS", "ABOUT"]);
        for Ended { step, outcome, seconds, .. } in &report.steps {
            let (word, about) = outcome.words();
            let about = about.lines().next().unwrap_or_default().to_owned();
            table.row(vec![step.clone(), word.into(), format!("{seconds:.1}"), about]);
        }
        table
    });
}

pub(super) async fn doctor(context: &Context, session: &Session, hosts: &[String]) -> Result<(), Failure> {
    let found = doctor::doctor(&session.cluster()?, &session.hosts(hosts)?).await;
    print(context.global.output.format, &found, |found: &Vec<Finding>| {
        let mut table = Table::new(&["MACHINE", "", "FOUND", "WHAT HELPS"]);
        for finding in found {
            let mark = if finding.severity == Severity::Error { "!" } else { "" };
            table.row(vec![finding.machine.clone(), mark.into(), finding.what.clone(), finding.remedy.clone()]);
        }
        table
    });
    if found.is_empty() {
        say("nothing known is wrong");
    }
    if found.iter().any(|f| f.severity == Severity::Error) { Err(Failure::Findings) } else { Ok(()) }
}

/// What machines cost, and what is paid for nothing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cost {
    machines: Vec<Price>,
    /// US dollars; of machines whose price is known.
    hourly: f64,
    monthly: f64,
    /// GPUs that did nothing and held nothing when they were asked, by machine.
    idle_gpus: BTreeMap<String, Vec<String>>,
    /// Machines whose GPUs could not be asked.
    not_asked: BTreeMap<String, String>,
}

pub(super) async fn cost(context: &Context, session: &Session) -> Result<(), Failure> {
    let machines = match &session.fleet {
        Some(fleet) => fleet.prices().await?,
        None => Vec::new(),
    };
    let hourly = machines.iter().filter_map(|p| p.hourly).sum();
    let mut cost =
        Cost { machines, hourly, monthly: hourly * MONTH, idle_gpus: BTreeMap::new(), not_asked: BTreeMap::new() };
    let hosts = session.hosts(&[])?;
    let gpus = hosts.iter().filter(|(m, _)| m.is(Role::Gpu)).map(|(machine, host)| async move {
        let asked = async {
            let program = host.push(&session.program).await?;
            let text = host.script(&format!("{program} gpu ls -o json"), Duration::from_secs(60)).await?;
            serde_json::from_str::<Value>(&text)
                .map_err(|e| ClusterError::Host { host: machine.name.clone(), reason: e.to_string() })
        };
        (machine.name.clone(), asked.await)
    });
    for (machine, answer) in futures_util::future::join_all(gpus).await {
        match answer {
            Ok(inventory) => {
                cost.idle_gpus.insert(machine, idle(&inventory));
            }
            Err(error) => {
                cost.not_asked.insert(machine, error.to_string());
            }
        }
    }
    print(context.global.output.format, &cost, |cost| {
        let mut table = Table::new(&["MACHINE", "PROVIDER", "SIZE", "STATE", "$/H", "$/MONTH", "IDLE GPUS"]);
        let money = |price: Option<f64>, times: f64| price.map_or_else(|| "?".into(), |p| format!("{:.2}", p * times));
        let gpus = |machine: &str| {
            let idle = cost.idle_gpus.get(machine).map(|i| i.join(", "));
            idle.or_else(|| cost.not_asked.contains_key(machine).then(|| "not asked".into())).unwrap_or_default()
        };
        for price in &cost.machines {
            let (hour, month) = (money(price.hourly, 1.0), money(price.hourly, MONTH));
            let row = [&price.machine, &price.provider, &price.size, price.state, &hour, &month, &gpus(&price.machine)];
            table.row(row.map(ToString::to_string).into());
        }
        // Machines that nobody is paid for by the hour have GPUs too.
        for machine in cost.idle_gpus.keys().chain(cost.not_asked.keys()) {
            if !cost.machines.iter().any(|p| p.machine == *machine) {
                let row = [machine, "own", "", "", "", "", &gpus(machine)];
                table.row(row.map(ToString::to_string).into());
            }
        }
        if !cost.machines.is_empty() {
            let all = ["all", "", "", "", &money(Some(cost.hourly), 1.0), &money(Some(cost.monthly), 1.0), ""];
            table.row(all.map(ToString::to_string).into());
        }
        table
    });
    Ok(())
}

/// GPUs that compute nothing and hold next to nothing.
fn idle(inventory: &Value) -> Vec<String> {
    // A driver keeps some memory for itself.
    const LITTLE: f64 = 0.02;
    let quiet = |gpu: &&Value| {
        let (used, total) = (gpu["memory_used"].as_f64().unwrap_or(0.0), gpu["memory_total"].as_f64().unwrap_or(0.0));
        gpu["utilization_percent"].as_f64().unwrap_or(0.0) == 0.0 && used <= total * LITTLE
    };
    let gpus = inventory["gpus"].as_array().into_iter().flatten();
    gpus.filter(quiet).map(|gpu| format!("{} {}", gpu["index"], gpu["name"].as_str().unwrap_or("?"))).collect()
}
