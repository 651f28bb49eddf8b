//! The two forms of events: in the core group, in which they are stored, and in `events.k8s.io`, where some fields have other names. Both are
//! of the same objects.
//!
//! Source: `pkg/apis/events/v1/conversion.go` of Kubernetes.

use serde_json::{Value, json};

use crate::object::Object;

/// The `apiVersion` of the stored form.
pub(super) const CORE: &str = "v1";
/// The `apiVersion` of the other form.
pub(super) const GROUPED: &str = "events.k8s.io/v1";

/// The fields that have different names: in the core group, and in `events.k8s.io`.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// The name in `events.k8s.io` of a field in the core group.
pub(super) fn grouped_name(core: &str) -> &str {
    RENAMED.iter().find(|(name, _)| *name == core).map_or(core, |(_, name)| name)
}

/// The name in the core group of a field in `events.k8s.io`.
pub(super) fn core_name(grouped: &str) -> &str {
    RENAMED.iter().find(|(_, name)| *name == grouped).map_or(grouped, |(name, _)| name)
}

/// The value of a field of an event in either form, by its name in the core group; `Null` if there is none.
pub(super) fn field<'e>(event: &'e Object, core: &str) -> &'e Value {
    event.at(&[if event.api_version == GROUPED { grouped_name(core) } else { core }])
}

/// The text of a field of an event in either form, by its name in the core group; empty if there is none.
pub(super) fn text<'e>(event: &'e Object, core: &str) -> &'e str {
    field(event, core).as_str().unwrap_or_default()
}

/// The text of a part of a field, as [`text`].
pub(super) fn part<'e>(event: &'e Object, core: &str, name: &str) -> &'e str {
    field(event, core)[name].as_str().unwrap_or_default()
}

/// Adds the fields that an event in the core group always has, also if they are empty.
pub(super) fn fill_core(event: &mut Object) {
    for (field, empty) in [
        ("involvedObject", json!({})),
        ("source", json!({})),
        ("eventTime", Value::Null),
        ("firstTimestamp", Value::Null),
        ("lastTimestamp", Value::Null),
        ("reportingComponent", json!("")),
        ("reportingInstance", json!("")),
    ] {
        event.body.entry(field).or_insert(empty);
    }
}

/// Adds the fields that an event in `events.k8s.io` always has, also if they are empty, and removes empty ones that it never has.
pub(super) fn fill_grouped(event: &mut Object) {
    for (field, empty) in [
        ("regarding", json!({})),
        ("deprecatedSource", json!({})),
        ("eventTime", Value::Null),
        ("deprecatedFirstTimestamp", Value::Null),
        ("deprecatedLastTimestamp", Value::Null),
    ] {
        event.body.entry(field).or_insert(empty);
    }
    for field in ["reportingController", "reportingInstance"] {
        if event.body.get(field).is_some_and(|value| value == "") {
            event.body.remove(field);
        }
    }
}

fn rename(event: &mut Object, name: fn(&str) -> &str) {
    let fields = std::mem::take(&mut event.body);
    event.body = fields.into_iter().map(|(field, value)| (name(&field).to_owned(), value)).collect();
}

/// Converts an event of `events.k8s.io` to the stored form.
pub(super) fn to_core(event: &mut Object) {
    rename(event, core_name);
    event.api_version = CORE.to_owned();
    fill_core(event);
}

/// Converts a stored event to the form of `events.k8s.io`.
pub(super) fn from_core(event: &mut Object) {
    rename(event, grouped_name);
    event.api_version = GROUPED.to_owned();
    fill_grouped(event);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_to_either_form_and_back_changes_nothing() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "a"},
            "involvedObject": {"kind": "Run"}, "message": "m", "source": {"component": "c"}, "count": 2, "type": "Normal",
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": null, "eventTime": null,
            "reportingComponent": "", "reportingInstance": ""});
        let stored: Object = serde_json::from_value(core).unwrap();
        let mut event = stored.clone();
        from_core(&mut event);
        assert_eq!(
            event.to_value(),
            json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "a"},
                "regarding": {"kind": "Run"}, "note": "m", "deprecatedSource": {"component": "c"}, "deprecatedCount": 2,
                "deprecatedFirstTimestamp": "2026-01-01T00:00:00Z", "deprecatedLastTimestamp": null, "eventTime": null,
                "type": "Normal"})
        );
        assert_eq!((text(&event, "message"), part(&event, "involvedObject", "kind")), ("m", "Run"));
        to_core(&mut event);
        assert_eq!(event, stored);
    }
}
