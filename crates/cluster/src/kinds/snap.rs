//! Snaps: compare, apply and undo.

use crate::probe::Facts;
use crate::resource::Change;
use crate::shell::ChangeContext;
use crate::shell::quote;
use crate::spec::minor;
use crate::undo::Undo;

struct Installed {
    channel: String,
    held: bool,
}

/// Finds a snap in the output of `snap list`, whose columns are name, version, revision, tracking, publisher and notes.
fn installed(facts: &Facts, name: &str) -> Option<Installed> {
    let list = facts.machine("snaps");
    list.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.first() == Some(&name)).then(|| Installed {
            channel: fields.get(3).map(|c| (*c).to_owned()).unwrap_or_default(),
            held: fields.last().is_some_and(|notes| notes.split(',').any(|n| n == "held")),
        })
    })
}

pub(crate) fn check(facts: &Facts, name: &str, channel: &str, hold: bool) -> Vec<Change> {
    let Some(now) = installed(facts, name) else {
        return vec![Change::add(format!("snap {name} {channel}{}", if hold { ", refreshes held" } else { "" }))];
    };
    let mut changes = Vec::new();
    if now.channel != channel {
        changes.push(Change::alter(format!("snap {name} {} -> {channel}", now.channel)));
    }
    if now.held != hold {
        changes.push(Change::alter(format!("snap {name}: refreshes {}", if hold { "held" } else { "no longer held" })));
    }
    changes
}

/// The current and the desired channel, if an installed snap would change its minor version.
pub(crate) fn minor_version_change(facts: &Facts, name: &str, channel: &str) -> Option<(String, String)> {
    let now = installed(facts, name)?.channel;
    (minor(&now) != minor(channel)).then(|| (now, channel.to_owned()))
}

pub(crate) fn apply(
    facts: &Facts,
    (name, channel, classic, hold): (&str, &str, bool, bool),
    context: &mut ChangeContext<'_>,
) -> Result<(), String> {
    let before = installed(facts, name);
    let (snap, quoted_channel) = (quote(name), quote(channel));
    let confinement = if classic { " --classic" } else { "" };
    match &before {
        None => context.shell(&format!("snap install {snap} --channel={quoted_channel}{confinement}"))?,
        Some(b) if b.channel != channel => {
            context.shell(&format!("snap refresh {snap} --channel={quoted_channel}{confinement}"))?
        }
        Some(_) => {}
    }
    if before.as_ref().map_or(hold, |b| b.held != hold) {
        context.shell(&format!("snap refresh {} {snap}", if hold { "--hold" } else { "--unhold" }))?;
    }
    Ok(())
}

pub(crate) fn undo(facts: &Facts, name: &str, classic: bool) -> Undo {
    let (snap, confinement) = (quote(name), if classic { " --classic" } else { "" });
    Undo::Shell(match installed(facts, name) {
        None => format!("snap remove {snap}"),
        Some(b) => format!(
            "snap refresh {snap} --channel={}{confinement} && snap refresh {} {snap}",
            quote(&b.channel),
            if b.held { "--hold" } else { "--unhold" }
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::facts;

    #[test]
    fn channel_and_hold_are_parsed_from_snap_list() {
        let list = "Name      Version  Rev   Tracking       Publisher   Notes\n\
                    core20    20240   2318  latest/stable  canonical✓  base\n\
                    microk8s  v1.32.1  7665  1.32/stable    canonical✓  classic,held\n";
        let facts = facts(&[("@", "snaps", list)]);
        assert!(check(&facts, "microk8s", "1.32/stable", true).is_empty());
        assert_eq!(check(&facts, "microk8s", "1.33/stable", false).len(), 2);
        assert_eq!(minor_version_change(&facts, "microk8s", "1.33/stable").unwrap().0, "1.32/stable");
        assert!(minor_version_change(&facts, "microk8s", "1.32/edge").is_none());
        assert!(minor_version_change(&facts, "helm", "3/stable").is_none());
        assert_eq!(check(&facts, "helm", "latest/stable", false)[0].sign, '+');
    }
}
