//! systemd units that are enabled and running: compare, apply and undo.

use std::collections::BTreeMap;

use crate::probe::Facts;
use crate::resource::Change;
use crate::shell::ChangeContext;
use crate::shell::quote;
use crate::undo::Undo;

/// The full name of a unit: `ssh` is `ssh.service`.
fn full_name(name: &str) -> String {
    if name.contains('.') { name.to_owned() } else { format!("{name}.service") }
}

/// Properties of a unit. `systemctl show` prints several units separated by empty lines.
fn unit(facts: &Facts, name: &str) -> BTreeMap<String, String> {
    let all = facts.machine("services");
    let properties = |text: &str| {
        text.lines().filter_map(|l| l.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    };
    let units = all.split("\n\n").map(properties);
    units.into_iter().find(|u: &BTreeMap<String, String>| u.get("Id") == Some(&full_name(name))).unwrap_or_default()
}

fn is_enabled(unit: &BTreeMap<String, String>) -> bool {
    // Units in the other four states cannot be enabled themselves, because other units start them.
    matches!(
        unit.get("UnitFileState").map(String::as_str),
        Some("enabled" | "static" | "indirect" | "alias" | "generated")
    )
}

fn is_active(unit: &BTreeMap<String, String>) -> bool {
    unit.get("ActiveState").map(String::as_str) == Some("active")
}

pub(crate) fn check(facts: &Facts, name: &str) -> Vec<Change> {
    let unit = unit(facts, name);
    if unit.get("LoadState").is_none_or(|s| s == "not-found") {
        return vec![Change::add(format!("service {name}"))];
    }
    let mut changes = Vec::new();
    if !is_enabled(&unit) {
        changes.push(Change::alter(format!("service {name} enabled")));
    }
    if !is_active(&unit) {
        changes.push(Change::alter(format!("service {name} started")));
    }
    changes
}

pub(crate) fn apply(name: &str, context: &mut ChangeContext<'_>) -> Result<(), String> {
    let quoted = quote(&full_name(name));
    context.shell(&format!("systemctl daemon-reload && systemctl enable --quiet {quoted} && systemctl start {quoted}"))
}

pub(crate) fn undo(facts: &Facts, name: &str) -> Undo {
    let unit = unit(facts, name);
    let quoted = quote(&full_name(name));
    let mut undo = String::from("true");
    if !is_active(&unit) {
        undo += &format!("; systemctl stop {quoted}");
    }
    if !is_enabled(&unit) {
        undo += &format!("; systemctl disable --quiet {quoted}");
    }
    Undo::Shell(undo)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::facts;

    #[test]
    fn unit_must_be_enabled_and_active() {
        let show = "Id=ssh.service\nLoadState=loaded\nActiveState=active\nUnitFileState=enabled\n\n\
                    Id=cron.service\nLoadState=loaded\nActiveState=failed\nUnitFileState=disabled\n\n\
                    Id=nothing.service\nLoadState=not-found\nActiveState=inactive\nUnitFileState=\n";
        let facts = facts(&[("@", "services", show)]);
        assert!(check(&facts, "ssh").is_empty());
        assert_eq!(check(&facts, "cron").len(), 2);
        assert_eq!(check(&facts, "nothing")[0].sign, '+');
    }
}
