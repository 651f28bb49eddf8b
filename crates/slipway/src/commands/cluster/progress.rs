//! What happens, for people: a bar for each machine on a terminal, lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use slipway_cluster::event::Event;
use slipway_cluster::report::{Ended, Outcome};
use slipway_cluster::work::Progress;

use crate::output::{lines, one_line, say};

/// More bars than this are no help.
const MOST_BARS: usize = 30;

/// Tells of progress.
pub(super) enum Watcher {
    /// Nothing.
    Quiet,
    /// A line for each thing.
    Lines,
    /// A bar for each machine.
    Bars(MultiProgress, BTreeMap<String, ProgressBar>),
}

impl Watcher {
    pub(super) fn new(quiet: bool, machines: usize) -> Self {
        match quiet {
            true => Self::Quiet,
            false if std::io::stderr().is_terminal() && machines <= MOST_BARS => {
                Self::Bars(MultiProgress::new(), BTreeMap::new())
            }
            false => Self::Lines,
        }
    }

    pub(super) fn tell(&mut self, progress: &Progress) {
        match self {
            Self::Quiet => {}
            Self::Lines => line(progress),
            Self::Bars(all, bars) => {
                let step = match progress {
                    Progress::Began { step } | Progress::Event { step, .. } => step,
                    Progress::Ended(ended) => &ended.step,
                };
                let machine = step.split('/').next().unwrap_or_default().to_owned();
                let bar = bars.entry(machine).or_insert_with_key(|name| {
                    // The template is a constant: if it cannot be read, a plain bar will do.
                    let style =
                        ProgressStyle::with_template("{prefix:12!} {bar:24} {pos:>3}/{len:3} {elapsed:>4} {wide_msg}")
                            .unwrap_or_else(|_| ProgressStyle::default_bar());
                    all.add(ProgressBar::new(1).with_style(style).with_prefix(name.clone()))
                });
                drawn(bar, progress);
                if let Progress::Ended(Ended { step, outcome: Outcome::Failed { reason }, .. }) = progress {
                    let _ = all.println(lines(&format!("! {step}: {reason}"))); // the report says it again
                }
            }
        }
    }

    /// Bars stay where they are.
    pub(super) fn end(self) {
        if let Self::Bars(_, bars) = self {
            bars.into_values().for_each(|bar| bar.abandon());
            // What follows begins on a line of its own.
            say("");
        }
    }
}

fn drawn(bar: &ProgressBar, progress: &Progress) {
    match progress {
        Progress::Began { step } => {
            bar.set_position(0);
            bar.set_length(1);
            bar.reset_elapsed();
            bar.set_message(one_line(step));
        }
        Progress::Event { event, .. } => match event {
            Event::Begun { resources, .. } => bar.set_length(*resources as u64),
            Event::Ok { .. } | Event::Changed { .. } | Event::Skipped { .. } => bar.inc(1),
            Event::Changing { resource, .. } => bar.set_message(one_line(resource)),
            Event::Failed { resource, .. } => bar.set_message(one_line(&format!("{resource} failed"))),
            Event::Rebooting { reason, .. } => bar.set_message(one_line(&format!("restarts: {reason}"))),
            _ => {}
        },
        Progress::Ended(Ended { step, outcome, .. }) => {
            bar.set_position(bar.length().unwrap_or(1));
            let (word, about) = outcome.words();
            let about = about.lines().next().map_or_else(String::new, |a| format!(", {a}"));
            bar.set_message(one_line(&format!("{step}: {word}{about}")));
        }
    }
}

/// A line about what happens.
fn line(progress: &Progress) {
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
        Progress::Ended(Ended { step, outcome, seconds, .. }) => {
            let (word, about) = outcome.words();
            let about = if about.is_empty() { String::new() } else { format!(": {about}") };
            say(format_args!("{step}: {word}{about} ({seconds:.1} s)"));
        }
    }
}
