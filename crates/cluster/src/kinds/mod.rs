//! The kinds of resources. Each module compares a resource with the facts (`check`), applies it (`apply`) and undoes it (`undo`).
//! A check is a pure function, so a plan and the machine itself come to the same result.

pub(crate) mod edit;
pub(crate) mod file;
pub(crate) mod package;
pub(crate) mod service;
pub(crate) mod snap;

use crate::probe::Facts;
use crate::resource::{Change, DesiredState, Resource, ResourceKind};

impl Resource {
    /// Differences from the desired state; empty if there are none. A pure function of the facts of a probe.
    pub fn check(&self, facts: &Facts) -> Vec<Change> {
        if let (Some(desired), Some(actual)) = (self.only_with, facts.package_manager())
            && desired != actual
        {
            return Vec::new();
        }
        let mut changes = match &self.what {
            ResourceKind::Package { name, version, hold } => package::check(facts, name, version.as_deref(), *hold),
            ResourceKind::Snap { name, channel, hold, .. } => snap::check(facts, name, channel, *hold),
            ResourceKind::File { path, content, mode } => file::check(facts, &self.id, path, content, mode),
            ResourceKind::Edit { path, edits } => edit::check(facts, &self.id, path, edits),
            ResourceKind::Service { name } => service::check(facts, name),
            ResourceKind::Command { missing, .. } => {
                if facts.succeeded(&self.id) {
                    Vec::new()
                } else {
                    vec![Change::alter(missing.clone())]
                }
            }
            ResourceKind::Reboot { reason, .. } => {
                if facts.succeeded(&self.id) {
                    vec![Change::alter(format!("reboot: {reason}"))]
                } else {
                    Vec::new()
                }
            }
        };
        if let (true, Some(then), true) = (changes.is_empty(), &self.then, facts.pending(&self.id)) {
            changes.push(Change::alter(format!(
                "the follow-up command of an earlier change has not succeeded yet: {then}"
            )));
        }
        changes
    }
}

impl DesiredState {
    /// The resources that differ, with their differences, in order.
    pub fn check(&self, facts: &Facts) -> Vec<(&Resource, Vec<Change>)> {
        self.resources.iter().map(|r| (r, r.check(facts))).filter(|(_, c)| !c.is_empty()).collect()
    }
}

/// Unified diff of two texts with two lines of context, cut to what fits on a screen.
pub(crate) fn diff(old: &str, new: &str) -> String {
    const MAX_LINES: usize = 60;
    let text = slipway_core::diff::unified(old, new, 2, None);
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("@@") && !l.starts_with("\\ ")).collect();
    let mut shown = lines.iter().take(MAX_LINES).copied().collect::<Vec<_>>().join("\n");
    if lines.len() > MAX_LINES {
        shown += &format!("\n... {} more lines", lines.len() - MAX_LINES);
    }
    shown
}
