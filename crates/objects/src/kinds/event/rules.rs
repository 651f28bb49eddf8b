//! Which events are valid. Those of the core group must only be consistent, as events always had to be; those of `events.k8s.io` must also
//! have what new recorders set, and only their series can be changed.
//!
//! Source: `pkg/apis/core/validation/events.go` of Kubernetes. Its messages name fields as in the core group, for both forms.

use serde_json::{Value, json};
use slipway_core::clock::parse_rfc3339;

use super::form::{GROUPED, field, part, text};
use crate::error::FieldError;
use crate::name::key_faults;
use crate::object::Object;

/// Maximum bytes of the reporting instance, the action and the reason.
const MAX_WORD_BYTES: usize = 128;
/// Maximum bytes of the message.
const MAX_MESSAGE_BYTES: usize = 1024;
/// The namespaces of events about objects without a namespace.
const CLUSTER_NAMESPACES: [&str; 2] = ["default", "kube-system"];
/// What an update of `events.k8s.io` must not change, in the order of upstream's checks: the name in messages, and that of the field.
const IMMUTABLE: [(&str, &str); 13] = [
    ("involvedObject", "involvedObject"),
    ("reason", "reason"),
    ("message", "message"),
    ("source", "source"),
    ("firstTimestamp", "firstTimestamp"),
    ("lastTimestamp", "lastTimestamp"),
    ("count", "count"),
    ("type", "type"),
    ("eventTime", "eventTime"),
    ("action", "action"),
    ("related", "related"),
    ("reportingController", "reportingComponent"),
    ("reportingInstance", "reportingInstance"),
];

/// The errors of an event in the core group.
pub(super) fn validate_core(new: &Object, _: Option<&Object>) -> Vec<FieldError> {
    consistency_errors(new)
}

/// The errors of an event in `events.k8s.io`.
pub(super) fn validate_grouped(new: &Object, old: Option<&Object>) -> Vec<FieldError> {
    let mut errors = consistency_errors(new);
    match old {
        None => errors.extend(creation_errors(new)),
        Some(old) => errors.extend(change_errors(new, old)),
    }
    errors
}

/// What every event must satisfy.
fn consistency_errors(event: &Object) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (namespace, about) = (event.metadata.namespace.as_str(), part(event, "involvedObject", "namespace"));
    let is_timed = field(event, "eventTime").is_string();
    let is_consistent = match about {
        "" if is_timed => CLUSTER_NAMESPACES.contains(&namespace),
        "" => namespace == CLUSTER_NAMESPACES[0],
        about => is_timed || about == namespace,
    };
    if !is_consistent {
        errors.push(FieldError::invalid("involvedObject.namespace", &json!(about), "does not match event.namespace"));
    }
    if !is_timed {
        return errors;
    }
    let controller_field = if event.api_version == GROUPED { "reportingController" } else { "reportingComponent" };
    let controller = text(event, "reportingComponent");
    if controller.is_empty() {
        errors.push(FieldError::required(controller_field, ""));
    }
    let faults = key_faults(controller);
    errors.extend(faults.iter().map(|fault| FieldError::invalid(controller_field, &json!(controller), fault)));
    let too_long = |name: &str, limit: usize| {
        let is_too_long = text(event, name).len() > limit;
        is_too_long.then(|| FieldError::invalid(name, &json!(""), format!("can have at most {limit} characters")))
    };
    for name in ["reportingInstance", "action", "reason"] {
        if text(event, name).is_empty() {
            errors.push(FieldError::required(name, ""));
        }
        errors.extend(too_long(name, MAX_WORD_BYTES));
    }
    errors.extend(too_long("message", MAX_MESSAGE_BYTES));
    errors
}

/// What a new event of `events.k8s.io` must satisfy in addition.
fn creation_errors(event: &Object) -> Vec<FieldError> {
    let mut errors = series_errors(event);
    if !field(event, "eventTime").is_string() {
        errors.push(FieldError::required("eventTime", ""));
    }
    let kind = text(event, "type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(FieldError::invalid("type", &json!(""), format!("has invalid value: {kind}")));
    }
    let is_set = |name: &str| match field(event, name) {
        Value::Object(parts) => parts.values().any(|part| part != ""),
        value => !value.is_null() && *value != 0,
    };
    let set = ["firstTimestamp", "lastTimestamp", "count", "source"].into_iter().filter(|name| is_set(name));
    errors.extend(set.map(|name| FieldError::invalid(name, &json!(""), "needs to be unset")));
    errors
}

fn series_errors(event: &Object) -> Vec<FieldError> {
    let series = field(event, "series");
    if !series.is_object() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if series["count"].as_i64().unwrap_or_default() < 2 {
        errors.push(FieldError::invalid("series.count", &json!(""), "should be at least 2"));
    }
    if !series["lastObservedTime"].is_string() {
        errors.push(FieldError::required("series.lastObservedTime", ""));
    }
    errors
}

fn change_errors(new: &Object, old: &Object) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if field(new, "series") != field(old, "series") {
        errors.extend(series_errors(new));
    }
    for (shown, name) in IMMUTABLE {
        let (value, before) = (field(new, name), field(old, name));
        if !is_same(value, before) {
            let message = format!("Invalid value: {}: field is immutable", go_value(name, value));
            errors.push(FieldError { field: shown.into(), reason: "FieldValueInvalid".into(), message });
        }
    }
    errors
}

/// Whether two values of a field mean the same: an empty one is an absent one, and times can be written in several ways.
fn is_same(new: &Value, old: &Value) -> bool {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    let time = |value: &Value| value.as_str().and_then(parse_rfc3339);
    new == old || (is_empty(new) && is_empty(old)) || time(new).is_some_and(|new| time(old) == Some(new))
}

/// A value as messages of a server show it that is written in Go: absent texts and numbers as empty ones, and references as structures with
/// all of their fields.
fn go_value(name: &str, value: &Value) -> String {
    let fields: &[(&str, &str)] = match name {
        "related" if value.is_null() => &[],
        "involvedObject" | "related" => &[
            ("Kind", "kind"),
            ("Namespace", "namespace"),
            ("Name", "name"),
            ("UID", "uid"),
            ("APIVersion", "apiVersion"),
            ("ResourceVersion", "resourceVersion"),
            ("FieldPath", "fieldPath"),
        ],
        "source" => &[("Component", "component"), ("Host", "host")],
        _ => &[],
    };
    if !fields.is_empty() {
        let field =
            |(shown, name): &(&str, &str)| format!("{shown:?}:{}", json!(value[*name].as_str().unwrap_or_default()));
        return format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(","));
    }
    match name {
        "count" if value.is_null() => "0".to_owned(),
        "reason" | "message" | "type" | "action" | "reportingComponent" | "reportingInstance" if value.is_null() => {
            "\"\"".to_owned()
        }
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(fields: Value) -> Object {
        let mut value = json!({"apiVersion": GROUPED, "kind": "Event", "metadata": {"name": "e", "namespace": "n"},
            "regarding": {"kind": "Run", "namespace": "n"}, "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal",
            "reason": "Tested", "action": "Test", "reportingController": "slipway.dev/test", "reportingInstance": "i"});
        for (name, field) in fields.as_object().unwrap() {
            value[name] = field.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn errors(new: &Object, old: Option<&Object>) -> Vec<String> {
        validate_grouped(new, old).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn new_events_need_what_recorders_set() {
        assert_eq!(errors(&event(json!({})), None), Vec::<String>::new());
        let odd =
            event(json!({"reportingController": "", "action": "a".repeat(129), "type": "Odd", "deprecatedCount": 1,
            "series": {"count": 1}}));
        assert_eq!(
            errors(&odd, None),
            [
                "reportingController: Required value",
                "reportingController: Invalid value: \"\": name part must be non-empty",
                "reportingController: Invalid value: \"\": name part must consist of alphanumeric characters, '-', '_' or \
                 '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', \
                 regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                "action: Invalid value: \"\": can have at most 128 characters",
                "series.count: Invalid value: \"\": should be at least 2",
                "series.lastObservedTime: Required value",
                "type: Invalid value: \"\": has invalid value: Odd",
                "count: Invalid value: \"\": needs to be unset",
            ]
        );
    }

    #[test]
    fn only_series_can_be_changed() {
        let old = event(json!({}));
        let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}});
        assert_eq!(errors(&event(series), Some(&old)), Vec::<String>::new());
        let changed = event(json!({"note": "n", "eventTime": "2026-01-01T00:00:00Z", "regarding": {"namespace": "n"}}));
        assert_eq!(
            errors(&changed, Some(&old)),
            [
                "involvedObject: Invalid value: {\"Kind\":\"\",\"Namespace\":\"n\",\"Name\":\"\",\"UID\":\"\",\
                 \"APIVersion\":\"\",\"ResourceVersion\":\"\",\"FieldPath\":\"\"}: field is immutable",
                "message: Invalid value: \"n\": field is immutable",
            ]
        );
    }

    #[test]
    fn events_of_the_core_group_may_have_no_time() {
        let mut old = event(json!({"eventTime": null}));
        old.api_version = "v1".into();
        old.body.insert("involvedObject".into(), json!({"namespace": "n"}));
        assert_eq!(validate_core(&old, None), []);
        old.metadata.namespace = "m".into();
        assert_eq!(validate_core(&old, None).len(), 1);
    }
}
