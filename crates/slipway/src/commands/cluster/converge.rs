//! `slipway node converge`, which runs on the machines.

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use slipway_cluster::ClusterError;
use slipway_cluster::converge::{Mode, Records};
use slipway_cluster::event::Event;
use slipway_cluster::resource::{Layer, Wanted};
use slipway_cluster::resume;

use super::wrong;
use crate::Failure;
use crate::cli::cluster as cli;
use crate::output::{lines, say};

/// `slipway node converge`: on the machine.
pub(crate) fn converge(args: cli::Converge) -> Result<(), Failure> {
    let events = args.events;
    // Whether somebody still reads decides whether work goes on after the resource at hand.
    let mut tell = move |event: Event| -> bool {
        let line = if events { serde_json::to_string(&event).unwrap_or_default() } else { lines(&in_words(&event)) };
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
    if args.rollback {
        let mut back = || {
            records
                .roll_back(&mut |event| {
                    tell(event);
                })
                .map_err(host)
        };
        let mut change = back()?;
        if change.is_none() {
            say("there is no change to take back");
        }
        while let Some(done) = change {
            say(format_args!("change {done} was taken back"));
            change = if args.all { back()? } else { None };
        }
        return Ok(());
    }
    if args.resume {
        let Some(rest) = resume::left(&args.folder) else {
            say("nothing was cut off");
            return Ok(());
        };
        let summary = records.converge(&rest.wanted, Mode::Apply, &rest.change, tell).map_err(host)?;
        // Whoever asked may be gone: the machine does it by itself.
        return if summary.rebooting { Ok(resume::start_anew().map_err(host)?) } else { ended(summary.failed) };
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
    ended(summary.failed)?;
    if args.check && summary.changed > 0 { Err(Failure::Findings) } else { Ok(()) }
}

fn host(reason: String) -> ClusterError {
    ClusterError::Host { host: "this machine".into(), reason }
}

fn ended(failed: usize) -> Result<(), Failure> {
    if failed > 0 {
        return Err(host(format!("{failed} resources could not be made as wanted")).into());
    }
    Ok(())
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
