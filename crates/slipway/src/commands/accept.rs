//! `slipway node accept`: checks this machine before it takes work, keeps the report and shows it.

use std::path::Path;

use slipway_core::env;
use slipway_core::home::Home;
use slipway_gpu::accept::accelerator::{self, Accelerator};
use slipway_gpu::accept::check::{Check, Level, NAMES, Outcome, Report};
use slipway_gpu::accept::limits::Limits;
use slipway_gpu::accept::{Request, run as run_checks};
use slipway_gpu::inventory::Inventory;
use slipway_gpu::{GpuError, vendor};
use slipway_node::accept::store::Subject;
use slipway_node::accept::{Machines, Store};

use super::Context;
use crate::Failure;
use crate::cli::Format;
use crate::cli::node as cli;
use crate::output::{Table, print, print_note};

/// Maximum bytes of a file with limits or a token.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The folder of the node agent, which keeps the reports.
pub(super) fn agent_home(context: &Context) -> std::path::PathBuf {
    Home::at(context.config.get("home").unwrap_or_default()).root().join("node")
}

fn read(path: &Path) -> Result<String, GpuError> {
    let io = |source| GpuError::Io { what: path.display().to_string(), source };
    if std::fs::metadata(path).map_err(io)?.len() > MAX_FILE_BYTES {
        return Err(GpuError::Invalid(format!("{} is larger than {MAX_FILE_BYTES} bytes", path.display())));
    }
    std::fs::read_to_string(path).map_err(io)
}

pub(super) fn accept(context: &Context, options: cli::Accept) -> Result<(), Failure> {
    if options.list {
        list(context);
        return Ok(());
    }
    let store = Store::new(&agent_home(context));
    if options.show {
        let report = store
            .report()?
            .ok_or_else(|| GpuError::Invalid("this machine has no report; run slipway node accept first".into()))?;
        return show(context, &report);
    }
    let fixture = options.fixture.clone().or_else(|| env::value(env::GPU_FIXTURE));
    if fixture.as_deref().is_some_and(vendor::is_amd) {
        return Err(GpuError::Invalid("the checks are for GPUs of NVIDIA".into()).into());
    }
    let mut limits = match &options.limits {
        Some(file) => Limits::parse(&read(file)?)?,
        None => Limits::default(),
    };
    limits.skip.extend(options.skip.iter().cloned());
    let request = Request { level: options.level, only: options.only.clone(), gpus: options.gpus.clone(), limits };
    let machines = machines(&options)?;

    let nvml = super::gpu::nvml(fixture.as_deref())?;
    let running = store.begin(Subject::from_inventory(&Inventory::collect(&nvml)?), request.level)?;
    let hardware = if request.level > Level::DEPLOYMENT { accelerator::open(&nvml) } else { Err(GpuError::NoGpu) };
    let quiet = context.global.quiet;
    let mut progress = |step: &str| {
        if !quiet {
            print_note(format_args!("checking {step}"));
        }
    };
    let mut join = |accelerator: &dyn Accelerator, gpus: usize| match &machines {
        Some(machines) => machines.join(gpus, || accelerator.unique_id()).map_err(|e| GpuError::Invalid(e.to_string())),
        None => Err(GpuError::Invalid("no other machine was named".into())),
    };
    let join = machines.is_some().then_some(&mut join as &mut slipway_gpu::accept::Join<'_>);
    let report = match run_checks(&nvml, &hardware, Path::new("/"), &request, join, &mut progress) {
        Ok(report) => report,
        Err(error) => {
            running.abandon()?;
            return Err(error.into());
        }
    };
    let kept = running.finish(&report)?;
    if let Some(file) = &options.report {
        let text = serde_json::to_string_pretty(&report).unwrap_or_default() + "\n";
        slipway_core::files::replace(file, text.as_bytes())
            .map_err(|source| GpuError::Io { what: file.display().to_string(), source })?;
    }
    if !kept && report.complete && !quiet {
        print_note("the kept report is of a higher level or of real GPUs, and stays; see --show");
    }
    show(context, &report)
}

/// The group of machines that the options name.
fn machines(options: &cli::Accept) -> Result<Option<Machines>, Failure> {
    let (Some(count), Some(number), Some(address), Some(file)) =
        (options.nodes, options.rank, &options.address, &options.token_file)
    else {
        return Ok(None);
    };
    let token = read(file)?.trim().as_bytes().to_vec();
    Ok(Some(Machines { count, number, address: address.clone(), token, timeout: options.join_timeout }))
}

fn list(context: &Context) {
    #[derive(serde::Serialize)]
    struct Row {
        name: &'static str,
        level: Level,
        checks: &'static str,
    }
    let mut rows: Vec<Row> = NAMES.iter().map(|(name, level, checks)| Row { name, level: *level, checks }).collect();
    rows.sort_by_key(|r| r.level);
    print(context.global.output.format, &rows, |rows| {
        let mut table = Table::new(&["CHECK", "LEVEL", "WHAT"]);
        for r in rows {
            table.row(vec![r.name.into(), r.level.to_string(), r.checks.into()]);
        }
        table
    });
}

/// Prints a report with its verdict; fails if the machine did not pass.
fn show(context: &Context, report: &Report) -> Result<(), Failure> {
    let wide = context.global.output.format == Format::Wide;
    print(context.global.output.format, report, |report| {
        let mut table = Table::new(&["CHECK", "LEVEL", "DEVICE", "RESULT", "FOUND"]);
        for group in groups(&report.checks, wide) {
            let (first, last) = (group[0], group[group.len() - 1]);
            let device = if group.len() == 1 {
                first.device.clone()
            } else {
                format!("{} to {}", first.device, last.device.rsplit(' ').next().unwrap_or_default())
            };
            table.row(vec![
                first.name.clone(),
                first.level.to_string(),
                device,
                first.outcome.name().into(),
                lowest(&group).what.clone(),
            ]);
        }
        table
    });
    for check in
        report.checks.iter().filter(|c| matches!(c.outcome, Outcome::Warn | Outcome::Fail | Outcome::CannotRun))
    {
        if let Some(hint) = &check.hint {
            print_note(format_args!("{} of {}: {hint}", check.name, check.device));
        }
    }
    let passed = report.passed_level().map_or_else(|| "no level".to_owned(), |level| format!("level {level}"));
    let verdict = match (report.passed(), report.complete) {
        (true, true) => format!("ACCEPTED at level {}", report.level),
        (true, false) => "passed, but not all checks ran on all GPUs".into(),
        (false, _) => {
            format!(
                "NOT ACCEPTED at level {}: {} checks failed or did not run; passed {passed}",
                report.level,
                report.failures().count()
            )
        }
    };
    print_note(verdict);
    if report.passed() { Ok(()) } else { Err(Failure::Findings) }
}

/// Consecutive checks of several GPUs that passed are one row, unless all rows are requested.
fn groups(checks: &[Check], wide: bool) -> Vec<Vec<&Check>> {
    let mut groups: Vec<Vec<&Check>> = Vec::new();
    let gpu = |c: &Check| c.device.starts_with("gpu ") && !c.device.contains("->");
    let quiet = |c: &Check| matches!(c.outcome, Outcome::Pass | Outcome::Skip);
    // Checks of one GPU after the other are listed by check.
    let mut sorted: Vec<&Check> = checks.iter().collect();
    let position = |c: &Check| NAMES.iter().position(|(name, ..)| *name == c.name);
    sorted.sort_by_key(|c| (c.level, position(c)));
    for check in sorted {
        let joins = |group: &Vec<&Check>| {
            let last = group[group.len() - 1];
            gpu(last) && gpu(check) && quiet(last) && (&last.name, last.outcome) == (&check.name, check.outcome)
        };
        match groups.last_mut().filter(|group| !wide && joins(group)) {
            Some(group) => group.push(check),
            None => groups.push(vec![check]),
        }
    }
    groups
}

/// The check with the smallest measured value, which is the one to show.
fn lowest<'a>(group: &[&'a Check]) -> &'a Check {
    let value = |c: &Check| c.measured.as_ref().map_or(f64::INFINITY, |m| m.value);
    group.iter().copied().min_by(|a, b| value(a).total_cmp(&value(b))).unwrap_or(group[0])
}
