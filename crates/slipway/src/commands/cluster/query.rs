//! Commands that query the machines: plan, status, doctor and cost.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use slipway_cluster::ClusterError;
use slipway_cluster::doctor::{self, Finding, Severity};
use slipway_cluster::fleet::Price;
use slipway_cluster::plan::Plan;
use slipway_cluster::report::{Report, StepReport, html};
use slipway_cluster::session::Session;
use slipway_cluster::spec::Role;

use super::session_error;
use crate::Failure;
use crate::cli::Format;
use crate::cli::cluster as cli;
use crate::commands::Context;
use crate::output::{Table, escape_line, escape_lines, print, print_note, print_text};

/// Hours per month, as used by cloud providers (365 * 24 / 12).
const HOURS_PER_MONTH: f64 = 730.0;

/// Renders a plan as text.
pub(super) fn render_plan(plan: &Plan) -> String {
    let mut out: String = plan.warnings.iter().map(|warning| format!("! {}\n", escape_line(warning))).collect();
    for machine in &plan.machines {
        let about = machine.machine.as_ref().map_or(String::new(), |m| {
            let gpus = if m.gpus.is_empty() { String::new() } else { format!(", {} GPUs", m.gpus.len()) };
            escape_line(&format!("{} {}, {} CPUs, {} GiB{gpus}", m.distribution, m.release, m.cpus, m.memory_mib >> 10))
        });
        out += &format!("{}  {about}\n", machine.name);
        if let Some(error) = &machine.unreachable {
            out += &format!("  ! {} [{}]\n", escape_lines(&error.message), error.code);
            continue;
        }
        for finding in &machine.findings {
            out += &format!("  ! {}: {}\n", escape_line(&finding.what), escape_line(&finding.remedy));
        }
        if machine.changes.is_empty() {
            out += "  = no changes\n";
        }
        for planned in &machine.changes {
            for change in &planned.changes {
                let text = escape_lines(&change.text);
                let mut rest = text.lines();
                let (resource, first) = (escape_line(&planned.resource), rest.next().unwrap_or_default());
                out += &format!("  {} {resource:24} {first}\n", change.sign);
                for line in rest {
                    out += &format!("      {line}\n");
                }
            }
            for effect in &planned.effects {
                out += &format!("    {:24} ({})\n", "", escape_line(effect));
            }
        }
    }
    let all = &plan.machines;
    let changes: usize = all.iter().map(|m| m.changes.len()).sum();
    let changed = all.iter().filter(|m| !m.changes.is_empty()).count();
    let unreachable = all.iter().filter(|m| m.unreachable.is_some()).count();
    let unreachable = if unreachable > 0 { format!("; {unreachable} cannot be reached") } else { String::new() };
    if let Some(hourly) = plan.hourly {
        out += &format!(
            "the machines of the groups cost {hourly:.2} $ per hour, {:.0} $ per month\n",
            hourly * HOURS_PER_MONTH
        );
    }
    out + &format!("{changes} changes on {changed} of {} machines{unreachable}\n", all.len())
}

/// Prints a plan. Fails if a machine is unreachable; returns findings if there are changes.
pub(super) fn show(context: &Context, plan: &Plan) -> Result<(), Failure> {
    match context.global.output.format {
        Format::Table | Format::Wide | Format::Svg | Format::Html => print_text(&render_plan(plan)),
        format => print(format, plan, |plan| {
            let mut table = Table::new(&["MACHINE"]);
            for machine in plan.machines.iter().filter(|m| !m.changes.is_empty()) {
                table.row(vec![machine.name.clone()]);
            }
            table
        }),
    }
    if let Some(error) = plan.machines.iter().find_map(|m| m.unreachable.as_ref()) {
        let hint = slipway_core::explain::find(&error.code).map(|t| t.remedy.to_owned());
        let code = slipway_core::explain::find(&error.code).map_or("cluster.host", |t| t.code);
        return Err(Failure::Error { message: error.message.clone(), code, hint, exit: 5 });
    }
    if plan.is_empty() { Ok(()) } else { Err(Failure::Findings) }
}

pub(super) async fn show_plan(context: &Context, session: &Session, selection: &cli::Selection) -> Result<(), Failure> {
    show(context, &session.plan(&selection.machines.hosts, &selection.only).await.map_err(session_error)?)
}

/// Prints the report of the last apply.
pub(super) fn print_last_report(context: &Context, session: &Session) {
    match session.state().load_optional::<Report>("report") {
        Some(report) => print_report(context, &report),
        None => print_note("nothing was applied from this state folder yet; next: slipway cluster plan"),
    }
}

pub(super) fn print_report(context: &Context, report: &Report) {
    if context.global.output.format == Format::Html {
        return print_text(&html::page(report));
    }
    print(context.global.output.format, report, |report| {
        let mut table = Table::new(&["STEP", "OUTCOME", "SECONDS", "DETAILS"]);
        for StepReport { step, outcome, seconds, .. } in &report.steps {
            let (word, about) = outcome.words();
            let about = about.lines().next().unwrap_or_default().to_owned();
            table.row(vec![step.clone(), word.into(), format!("{seconds:.1}"), about]);
        }
        table
    });
}

pub(super) async fn doctor(context: &Context, session: &Session, hosts: &[String]) -> Result<(), Failure> {
    let found = doctor::doctor(&session.cluster()?, &session.hosts(hosts).map_err(session_error)?).await;
    print(context.global.output.format, &found, |found: &Vec<Finding>| {
        let mut table = Table::new(&["MACHINE", "", "PROBLEM", "REMEDY"]);
        for finding in found {
            let mark = if finding.severity == Severity::Error { "!" } else { "" };
            table.row(vec![finding.machine.clone(), mark.into(), finding.what.clone(), finding.remedy.clone()]);
        }
        table
    });
    if found.is_empty() {
        print_note("no known problems found");
    }
    if found.iter().any(|f| f.severity == Severity::Error) { Err(Failure::Findings) } else { Ok(()) }
}

/// The cost of machines, and idle GPUs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cost {
    machines: Vec<Price>,
    /// US dollars per hour, for the machines whose price is known.
    hourly: f64,
    monthly: f64,
    /// Idle GPUs, keyed by machine.
    idle_gpus: BTreeMap<String, Vec<String>>,
    /// Machines whose GPUs could not be queried, with the error.
    not_asked: BTreeMap<String, String>,
}

pub(super) async fn cost(context: &Context, session: &Session) -> Result<(), Failure> {
    let machines = match session.fleet() {
        Some(fleet) => fleet.prices().await?,
        None => Vec::new(),
    };
    let hourly = machines.iter().filter_map(|p| p.hourly).sum();
    let mut cost = Cost {
        machines,
        hourly,
        monthly: hourly * HOURS_PER_MONTH,
        idle_gpus: BTreeMap::new(),
        not_asked: BTreeMap::new(),
    };
    let hosts = session.hosts(&[]).map_err(session_error)?;
    let gpus = hosts.iter().filter(|(m, _)| m.is(Role::Gpu)).map(|(machine, host)| async move {
        let query = async {
            let program = host.push(session.program()).await?;
            let text = host.script(&format!("{program} gpu ls -o json"), Duration::from_secs(60)).await?;
            serde_json::from_str::<Value>(&text)
                .map_err(|e| ClusterError::Host { host: machine.name.clone(), reason: e.to_string() })
        };
        (machine.name.clone(), query.await)
    });
    for (machine, result) in futures_util::future::join_all(gpus).await {
        match result {
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
            idle.or_else(|| cost.not_asked.contains_key(machine).then(|| "unknown".into())).unwrap_or_default()
        };
        for price in &cost.machines {
            let (hour, month) = (money(price.hourly, 1.0), money(price.hourly, HOURS_PER_MONTH));
            let row = [&price.machine, &price.provider, &price.size, price.state, &hour, &month, &gpus(&price.machine)];
            table.row(row.map(ToString::to_string).into());
        }
        // Machines without a provider may have idle GPUs too.
        for machine in cost.idle_gpus.keys().chain(cost.not_asked.keys()) {
            if !cost.machines.iter().any(|p| p.machine == *machine) {
                let row = [machine, "own", "", "", "", "", &gpus(machine)];
                table.row(row.map(ToString::to_string).into());
            }
        }
        if !cost.machines.is_empty() {
            let all = ["total", "", "", "", &money(Some(cost.hourly), 1.0), &money(Some(cost.monthly), 1.0), ""];
            table.row(all.map(ToString::to_string).into());
        }
        table
    });
    Ok(())
}

/// The GPUs of a machine with no utilization and almost no memory in use.
fn idle(inventory: &Value) -> Vec<String> {
    // The driver itself uses some memory.
    const MAX_IDLE_MEMORY_SHARE: f64 = 0.02;
    let is_idle = |gpu: &&Value| {
        let (used, total) = (gpu["memory_used"].as_f64().unwrap_or(0.0), gpu["memory_total"].as_f64().unwrap_or(0.0));
        gpu["utilization_percent"].as_f64().unwrap_or(0.0) == 0.0 && used <= total * MAX_IDLE_MEMORY_SHARE
    };
    let gpus = inventory["gpus"].as_array().into_iter().flatten();
    gpus.filter(is_idle).map(|gpu| format!("{} {}", gpu["index"], gpu["name"].as_str().unwrap_or("?"))).collect()
}
