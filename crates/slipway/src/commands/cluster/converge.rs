//! `slipway node converge`, which `slipway cluster apply` runs on each machine.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use slipway_cluster::ClusterError;
use slipway_cluster::converge::{Mode, Records};
use slipway_cluster::event::Event;
use slipway_cluster::resource::DesiredState;
use slipway_cluster::resume;

use super::invalid;
use crate::Failure;
use crate::cli::cluster as cli;
use crate::output::{Raw, escape_lines, print_note};

/// Runs `slipway node converge` on this machine and prints its events.
pub(crate) fn converge(args: cli::Converge) -> Result<(), Failure> {
    let events = args.events;
    // `send` returns false if nobody reads stdout any more; the convergence then stops after the current resource.
    let mut send = move |event: Event| -> bool {
        let line =
            if events { serde_json::to_string(&event).unwrap_or_default() } else { escape_lines(&describe(&event)) };
        line.is_empty() || Raw::stdout().write(format!("{line}\n").as_bytes())
    };
    let done = converge_here(args, &mut send);
    if let (true, Err(Failure::Error { message, .. })) = (events, &done) {
        send(Event::Refused { reason: message.clone() });
    }
    done
}

fn converge_here(args: cli::Converge, send: &mut dyn FnMut(Event) -> bool) -> Result<(), Failure> {
    let records = Records::open(&args.folder, Duration::from_secs(args.wait))?;
    if args.rollback {
        let mut roll_back = || {
            records
                .roll_back(&mut |event| {
                    send(event);
                })
                .map_err(host)
        };
        let mut change = roll_back()?;
        if change.is_none() {
            print_note("there is no change to roll back");
        }
        while let Some(done) = change {
            print_note(format_args!("change {done} was rolled back"));
            change = if args.all { roll_back()? } else { None };
        }
        return Ok(());
    }
    if args.resume {
        let Some(rest) = resume::pending_change(&args.folder) else {
            print_note("there is no interrupted change");
            return Ok(());
        };
        let summary = records.converge(&rest.wanted, Mode::Apply, &rest.change, send).map_err(host)?;
        // The SSH session that started the change may be gone, so this machine reboots itself.
        return if summary.rebooting { Ok(resume::reboot().map_err(host)?) } else { check_failures(summary.failed) };
    }
    let document = args.document.unwrap_or_default();
    let io = |source| ClusterError::Io { what: document.display().to_string(), source };
    let mut text = String::new();
    if document == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map_err(io)?;
    } else {
        text = std::fs::read_to_string(&document).map_err(io)?;
    }
    let desired: DesiredState =
        serde_json::from_str(&text).map_err(|e| invalid(format!("{}: {e}", document.display())))?;
    let mode = if args.check { Mode::Check } else { Mode::Apply };
    let change = args.change.unwrap_or_else(|| format!("{:013}", slipway_core::clock::now_ms()));
    let summary = records.converge(&desired.only(&args.only), mode, &change, send).map_err(host)?;
    check_failures(summary.failed)?;
    if args.check && summary.changed > 0 { Err(Failure::Findings) } else { Ok(()) }
}

/// An error of this machine.
fn host(reason: String) -> ClusterError {
    ClusterError::Host { host: "this machine".into(), reason }
}

/// Fails if any resource failed.
fn check_failures(failed: usize) -> Result<(), Failure> {
    if failed > 0 {
        return Err(host(format!("{failed} resources failed")).into());
    }
    Ok(())
}

/// Describes an event for people. Empty for events that are not shown.
fn describe(event: &Event) -> String {
    match event {
        Event::Differs { resource, changes, .. } | Event::Changing { resource, changes } => {
            changes.iter().map(|c| format!("{} {resource}: {}", c.sign, c.text)).collect::<Vec<_>>().join("\n")
        }
        Event::Output { line, .. } => format!("    {line}"),
        Event::Changed { resource, seconds } => format!("= {resource} ({seconds:.1} s)"),
        Event::Failed { resource, reason } => format!("! {resource}: {reason}"),
        Event::Skipped { resource, because } => format!("- {resource}: {because}"),
        Event::Rebooting { resource, reason } => format!("! {resource}: this machine must reboot: {reason}"),
        Event::Done { ok, changed, failed, skipped } => {
            format!("{ok} unchanged, {changed} changed, {failed} failed, {skipped} skipped")
        }
        // The error that a refusal reports is printed by the caller.
        Event::Begun { .. } | Event::Ok { .. } | Event::Refused { .. } => String::new(),
    }
}
