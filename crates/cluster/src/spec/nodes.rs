//! Labels and taints of Kubernetes' nodes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_plain;

/// Maximum length of a name and of a value (Kubernetes, "Labels and Selectors", "Syntax and character set").
const MAX_LENGTH: usize = 63;

/// What a taint does to pods that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// New pods are not scheduled to the node.
    NoSchedule,
    /// New pods are scheduled to the node only if no other has capacity.
    PreferNoSchedule,
    /// New pods are not scheduled to the node, and running pods are evicted.
    NoExecute,
}

impl Effect {
    const ALL: [(&str, Self); 3] = [
        ("NoSchedule", Self::NoSchedule),
        ("PreferNoSchedule", Self::PreferNoSchedule),
        ("NoExecute", Self::NoExecute),
    ];

    /// The name in Kubernetes' API.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, effect)| *effect == self).map_or("", |(name, _)| name)
    }
}

/// A taint of a node, written as for `kubectl taint`: `KEY=VALUE:EFFECT` or `KEY:EFFECT`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Taint {
    /// Key, such as `nvidia.com/gpu`.
    pub key: String,
    /// Value; may be empty.
    pub value: String,
    /// Effect on pods.
    pub effect: Effect,
}

impl TryFrom<String> for Taint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let names = || Effect::ALL.map(|(name, _)| name).join(", ");
        let (rest, effect) = text.rsplit_once(':').ok_or_else(|| {
            format!("the taint '{text}' has no effect; write KEY=VALUE:EFFECT with one of {}", names())
        })?;
        let found = Effect::ALL.into_iter().find(|(name, _)| *name == effect);
        let (_, effect) = found.ok_or_else(|| format!("the taint '{text}': the effect must be one of {}", names()))?;
        let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
        Ok(Self { key: key.to_owned(), value: value.to_owned(), effect })
    }
}

impl From<Taint> for String {
    fn from(taint: Taint) -> Self {
        taint.to_string()
    }
}

impl std::fmt::Display for Taint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, value, effect } = self;
        let value = if value.is_empty() { String::new() } else { format!("={value}") };
        write!(f, "{key}{value}:{}", effect.name())
    }
}

impl JsonSchema for Taint {
    fn schema_name() -> Cow<'static, str> {
        "Taint".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A taint of a node: KEY=VALUE:EFFECT or KEY:EFFECT.",
            "type": "string",
            "pattern": "^[^=:]+(=[^=:]*)?:(NoSchedule|PreferNoSchedule|NoExecute)$",
        })
    }
}

/// Whether a text has at most 63 letters, digits and `-_.`, and begins and ends with a letter or digit.
fn is_name(text: &str) -> bool {
    is_plain(text, "._")
        && text.len() <= MAX_LENGTH
        && !text.starts_with(['.', '_'])
        && !text.ends_with(['-', '.', '_'])
}

fn check(what: &str, key: &str, value: &str) -> Result<(), String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let is_domain = |text: &str| is_plain(text, ".") && text == text.to_lowercase() && text.split('.').all(is_name);
    if !is_name(name) || !prefix.is_none_or(is_domain) {
        return Err(format!(
            "{what} '{key}': use at most {MAX_LENGTH} letters, digits and -_., after an optional domain and a slash"
        ));
    }
    if !value.is_empty() && !is_name(value) {
        return Err(format!(
            "{what} '{key}': the value '{value}' must have at most {MAX_LENGTH} letters, digits and -_."
        ));
    }
    Ok(())
}

/// Checks labels and taints by Kubernetes' rules.
///
/// # Errors
/// A message with the invalid key or value.
pub(super) fn check_labels(labels: &BTreeMap<String, String>, taints: &[Taint]) -> Result<(), String> {
    labels.iter().try_for_each(|(key, value)| check("label", key, value))?;
    let mut seen = BTreeSet::new();
    for taint in taints {
        check("taint", &taint.key, &taint.value)?;
        if !seen.insert((&taint.key, taint.effect)) {
            return Err(format!("taint '{}' with the effect {} is listed twice", taint.key, taint.effect.name()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::spec::Cluster;
    use crate::spec::tests::FILE;

    fn with(more: &str) -> Result<Cluster, String> {
        Cluster::parse(&FILE.replace("name: gpu1,", &format!("name: gpu1, {more},")))
    }

    #[test]
    fn labels_and_taints_follow_the_rules_of_kubernetes() {
        let cluster = with("labels: {topology.kubernetes.io/zone: a, empty: ''}, taints: ['nvidia.com/gpu=present:NoSchedule', 'own:NoExecute']").unwrap();
        let taints: Vec<String> = cluster.spec.machines[2].taints.iter().map(ToString::to_string).collect();
        assert_eq!(taints, ["nvidia.com/gpu=present:NoSchedule", "own:NoExecute"]);
        for (invalid, reason) in [
            ("labels: {'a b': c}", "label 'a b'"),
            ("labels: {'-a': c}", "label '-a'"),
            ("labels: {'Example.com/a': c}", "label"),
            ("labels: {a: '$(id)'}", "the value"),
            ("labels: {a: '-c'}", "the value"),
            ("taints: [own]", "has no effect"),
            ("taints: ['own:Never']", "NoSchedule, PreferNoSchedule, NoExecute"),
            ("taints: ['own=a:NoExecute', 'own=b:NoExecute']", "listed twice"),
        ] {
            let error = with(invalid).unwrap_err();
            assert!(error.contains(reason), "{invalid}: {error}");
        }
    }
}
