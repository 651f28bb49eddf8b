//! Shows the progress of steps on stderr: a bar per machine on a terminal, lines otherwise.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use futures_util::future::BoxFuture;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use slipway_cluster::event::Event;
use slipway_cluster::report::{Outcome, StepReport};
use slipway_cluster::work::Progress;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::output::{escape_line, escape_lines, print_note};

/// Shows the progress of steps on this many machines until the channel ends.
pub(super) fn observe(
    quiet: bool,
    machines: usize,
    mut progress: UnboundedReceiver<Progress>,
) -> BoxFuture<'static, ()> {
    let mut printer = ProgressPrinter::new(quiet, machines);
    Box::pin(async move {
        while let Some(progress) = progress.recv().await {
            printer.show(&progress);
        }
        printer.end();
    })
}

/// Maximum number of progress bars; with more machines, lines are printed instead.
const MAX_BARS: usize = 30;

/// Prints progress events.
enum ProgressPrinter {
    /// Prints nothing.
    Quiet,
    /// Prints a line per event.
    Lines,
    /// Shows a bar per machine, keyed by machine name.
    Bars(MultiProgress, BTreeMap<String, ProgressBar>),
}

impl ProgressPrinter {
    fn new(quiet: bool, machines: usize) -> Self {
        match quiet {
            true => Self::Quiet,
            false if std::io::stderr().is_terminal() && machines <= MAX_BARS => {
                Self::Bars(MultiProgress::new(), BTreeMap::new())
            }
            false => Self::Lines,
        }
    }

    /// Shows one event.
    fn show(&mut self, progress: &Progress) {
        match self {
            Self::Quiet => {}
            Self::Lines => print_line(progress),
            Self::Bars(all, bars) => {
                let step = match progress {
                    Progress::Began { step } | Progress::Event { step, .. } => step,
                    Progress::Ended(ended) => &ended.step,
                };
                let machine = step.split('/').next().unwrap_or_default().to_owned();
                let bar = bars.entry(machine).or_insert_with_key(|name| {
                    // The template is a constant, so parsing cannot fail; the fallback is the default bar.
                    let style =
                        ProgressStyle::with_template("{prefix:12!} {bar:24} {pos:>3}/{len:3} {elapsed:>4} {wide_msg}")
                            .unwrap_or_else(|_| ProgressStyle::default_bar());
                    all.add(ProgressBar::new(1).with_style(style).with_prefix(name.clone()))
                });
                update_bar(bar, progress);
                if let Progress::Ended(StepReport { step, outcome: Outcome::Failed { reason }, .. }) = progress {
                    let _ = all.println(escape_lines(&format!("! {step}: {reason}"))); // The report repeats the message, so an error can be ignored.
                }
            }
        }
    }

    /// Ends the output and leaves the bars on the screen.
    fn end(self) {
        if let Self::Bars(_, bars) = self {
            bars.into_values().for_each(|bar| bar.abandon());
            // Start the following output on a new line.
            print_note("");
        }
    }
}

fn update_bar(bar: &ProgressBar, progress: &Progress) {
    match progress {
        Progress::Began { step } => {
            bar.set_position(0);
            bar.set_length(1);
            bar.reset_elapsed();
            bar.set_message(escape_line(step));
        }
        Progress::Event { event, .. } => match event {
            Event::Begun { resources, .. } => bar.set_length(*resources as u64),
            Event::Ok { .. } | Event::Changed { .. } | Event::Skipped { .. } => bar.inc(1),
            Event::Changing { resource, .. } => bar.set_message(escape_line(resource)),
            Event::Failed { resource, .. } => bar.set_message(escape_line(&format!("{resource} failed"))),
            Event::Rebooting { reason, .. } => bar.set_message(escape_line(&format!("rebooting: {reason}"))),
            _ => {}
        },
        Progress::Ended(StepReport { step, outcome, .. }) => {
            bar.set_position(bar.length().unwrap_or(1));
            let (word, about) = outcome.words();
            let about = about.lines().next().map_or_else(String::new, |a| format!(", {a}"));
            bar.set_message(escape_line(&format!("{step}: {word}{about}")));
        }
    }
}

/// Prints an event as a line.
fn print_line(progress: &Progress) {
    match progress {
        Progress::Began { step } => print_note(format_args!("{step}: begins")),
        Progress::Event { step, event } => match event {
            Event::Changing { resource, changes } => {
                let first =
                    changes.first().map(|c| c.text.lines().next().unwrap_or_default().to_owned()).unwrap_or_default();
                print_note(format_args!("{step}: ~ {resource}: {first}"));
            }
            Event::Failed { resource, reason } => print_note(format_args!("{step}: ! {resource}: {reason}")),
            Event::Skipped { resource, because } => print_note(format_args!("{step}: - {resource}: {because}")),
            Event::Rebooting { reason, .. } => print_note(format_args!("{step}: rebooting: {reason}")),
            _ => {}
        },
        Progress::Ended(StepReport { step, outcome, seconds, .. }) => {
            let (word, about) = outcome.words();
            let about = if about.is_empty() { String::new() } else { format!(": {about}") };
            print_note(format_args!("{step}: {word}{about} ({seconds:.1} s)"));
        }
    }
}
