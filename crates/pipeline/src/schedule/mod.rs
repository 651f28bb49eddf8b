//! When a recurring run starts runs: a pure function of its schedule, the newest slot that was triggered, and the time.
//!
//! All times are whole seconds since the Unix epoch. A slot is a time at which a run is due. Invariant: the slots of a schedule do not
//! depend on when they are asked for, so two servers, or one that was restarted, find the same slots.

mod cron;
mod go_time;
pub mod macros;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

pub use cron::Cron;
use cron::split_zone;

/// What makes slots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Trigger {
    /// One slot, when the recurring run is created.
    #[default]
    Once,
    /// A cron expression with seconds.
    Cron(String),
    /// Every so many seconds.
    Every(i64),
}

/// A schedule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Schedule {
    /// What makes slots.
    pub trigger: Trigger,
    /// No slot is before it. An interval counts from it.
    pub start: Option<i64>,
    /// No slot is after it.
    pub end: Option<i64>,
    /// Whether each missed slot is made up for, one after the other, or only the newest one.
    pub catch_up: bool,
    /// When the recurring run was created.
    pub created: i64,
}

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Slots to start runs for now, oldest first.
    pub slots: Vec<i64>,
    /// The newest slot that needs no run any more.
    pub last: Option<i64>,
    /// The slot after it, if there is one. It may have passed already, if `capacity` did not suffice.
    pub next: Option<i64>,
}

impl Schedule {
    /// Checks the trigger.
    ///
    /// # Errors
    /// The reason, in the words of Kubeflow's API.
    pub fn check(&self) -> Result<(), String> {
        match &self.trigger {
            Trigger::Cron(text) => split_zone(text).and_then(|(_, text)| Cron::parse(text)).map(drop).map_err(|reason| {
                format!(
                    "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron). Error: {reason}"
                )
            }),
            Trigger::Every(seconds) if *seconds < 1 => {
                Err(format!("Found invalid period schedule interval {seconds}. Set at interval to least 1 second"))
            }
            Trigger::Once | Trigger::Every(_) => Ok(()),
        }
    }

    /// The slot after `last`, the newest one that was triggered; `None` if there is none.
    pub fn next(&self, last: Option<i64>, zone: &TimeZone) -> Option<i64> {
        let base = last.or(self.start).unwrap_or(self.created);
        let next = match &self.trigger {
            Trigger::Once => return if last.is_none() { Some(self.created) } else { None },
            Trigger::Every(_) if self.start.is_some_and(|start| start > base) => self.start?,
            Trigger::Every(seconds) => base.checked_add((*seconds).max(1))?,
            Trigger::Cron(text) => {
                let from = self.start.map_or(base, |start| start.max(base));
                // `check` refused schedules that cannot be parsed.
                let (own_zone, text) = split_zone(text).ok()?;
                Cron::parse(text).ok()?.next(from, own_zone.as_ref().unwrap_or(zone))?
            }
        };
        self.end.is_none_or(|end| next <= end).then_some(next)
    }

    /// What is due at `now`, if `last` was the newest slot triggered and there is capacity for `capacity` runs.
    pub fn due(&self, last: Option<i64>, now: i64, capacity: usize, zone: &TimeZone) -> Due {
        let mut last = last.map(|last| self.rewound(last, now));
        let mut slots = Vec::new();
        while slots.len() < capacity
            && let Some(slot) = self.next(last, zone).filter(|slot| *slot <= now)
        {
            let slot = if self.catch_up { slot } else { self.newest(slot, now, zone) };
            slots.push(slot);
            last = Some(slot);
        }
        Due { slots, next: self.next(last, zone), last }
    }

    /// The newest slot triggered, after the clock may have been set back. Slots between the new and the old time come again; as a run's id
    /// depends on its slot, they give no second run.
    fn rewound(&self, last: i64, now: i64) -> i64 {
        match &self.trigger {
            Trigger::Cron(_) => last.min(now),
            Trigger::Once => last,
            Trigger::Every(seconds) if last > now => {
                let seconds = (*seconds).max(1);
                last.saturating_sub((last - now).saturating_add(seconds - 1) / seconds * seconds)
            }
            Trigger::Every(_) => last,
        }
    }

    /// The newest slot until `now`, if `first` is one.
    fn newest(&self, first: i64, now: i64, zone: &TimeZone) -> i64 {
        let until = self.end.map_or(now, |end| end.min(now));
        match &self.trigger {
            Trigger::Once => first,
            Trigger::Every(seconds) => first + (until - first) / (*seconds).max(1) * (*seconds).max(1),
            Trigger::Cron(_) => {
                // The slot after a time grows with that time, so the last time with a slot until `until` is found by bisection.
                let slot_after = |time| self.next(Some(time), zone).filter(|slot| *slot <= until);
                let (mut low, mut high, mut newest) = (first, until, first);
                while low < high {
                    let middle = low + (high - low) / 2;
                    match slot_after(middle) {
                        Some(slot) => (newest, low) = (slot, slot),
                        None => high = middle,
                    }
                }
                newest
            }
        }
    }
}

#[cfg(test)]
mod tests;
