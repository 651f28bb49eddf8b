//! Reads request bodies in Kubernetes' protobuf encoding, which Go clients use for the kinds that they know (`kubectl create configmap`).
//! Responses are never in this encoding: clients that prefer it accept JSON too.
//!
//! Source: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf` and the numbers of fields in `generated.proto` of each API group.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use slipway_core::clock::rfc3339;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Maximum depth of messages.
const MAX_DEPTH: usize = 16;

/// The type of a field.
#[derive(Clone, Copy)]
enum Type {
    /// A text; an empty one is absent.
    Text,
    /// Bytes, which JSON has as base64.
    Bytes,
    Bool,
    /// A number; 0 is absent.
    Int,
    /// A number that may be 0.
    OptionalInt,
    /// A time of seconds and nanoseconds.
    Time,
    Message(&'static [Field]),
}

/// How often a field occurs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Many {
    One,
    List,
    /// Messages with a key and a value.
    Map,
}

struct Field(u32, &'static str, Type, Many);

const fn text(number: u32, name: &'static str) -> Field {
    Field(number, name, Type::Text, Many::One)
}

const fn time(number: u32, name: &'static str) -> Field {
    Field(number, name, Type::Time, Many::One)
}

const fn message(number: u32, name: &'static str, fields: &'static [Field]) -> Field {
    Field(number, name, Type::Message(fields), Many::One)
}

const OWNER: &[Field] = &[
    text(1, "kind"),
    text(3, "name"),
    text(4, "uid"),
    text(5, "apiVersion"),
    Field(6, "controller", Type::Bool, Many::One),
    Field(7, "blockOwnerDeletion", Type::Bool, Many::One),
];
const METADATA: &[Field] = &[
    text(1, "name"),
    text(2, "generateName"),
    text(3, "namespace"),
    text(5, "uid"),
    text(6, "resourceVersion"),
    Field(7, "generation", Type::Int, Many::One),
    time(8, "creationTimestamp"),
    time(9, "deletionTimestamp"),
    Field(10, "deletionGracePeriodSeconds", Type::OptionalInt, Many::One),
    Field(11, "labels", Type::Text, Many::Map),
    Field(12, "annotations", Type::Text, Many::Map),
    Field(13, "ownerReferences", Type::Message(OWNER), Many::List),
    Field(14, "finalizers", Type::Text, Many::List),
];
const CONFIG_MAP: &[Field] = &[
    message(1, "metadata", METADATA),
    Field(2, "data", Type::Text, Many::Map),
    Field(3, "binaryData", Type::Bytes, Many::Map),
    Field(4, "immutable", Type::Bool, Many::One),
];
const SECRET: &[Field] = &[
    message(1, "metadata", METADATA),
    Field(2, "data", Type::Bytes, Many::Map),
    text(3, "type"),
    Field(4, "stringData", Type::Text, Many::Map),
    Field(5, "immutable", Type::Bool, Many::One),
];
const CONDITION: &[Field] =
    &[text(1, "type"), text(2, "status"), time(4, "lastTransitionTime"), text(5, "reason"), text(6, "message")];
const NAMESPACE: &[Field] = &[
    message(1, "metadata", METADATA),
    message(2, "spec", &[Field(1, "finalizers", Type::Text, Many::List)]),
    message(3, "status", &[text(1, "phase"), Field(2, "conditions", Type::Message(CONDITION), Many::List)]),
];
const REFERENCE: &[Field] = &[
    text(1, "kind"),
    text(2, "namespace"),
    text(3, "name"),
    text(4, "uid"),
    text(5, "apiVersion"),
    text(6, "resourceVersion"),
    text(7, "fieldPath"),
];
const SOURCE: &[Field] = &[text(1, "component"), text(2, "host")];
const SERIES: &[Field] = &[Field(1, "count", Type::Int, Many::One), time(2, "lastObservedTime")];
const EVENT: &[Field] = &[
    message(1, "metadata", METADATA),
    message(2, "involvedObject", REFERENCE),
    text(3, "reason"),
    text(4, "message"),
    message(5, "source", SOURCE),
    time(6, "firstTimestamp"),
    time(7, "lastTimestamp"),
    Field(8, "count", Type::Int, Many::One),
    text(9, "type"),
    time(10, "eventTime"),
    message(11, "series", SERIES),
    text(12, "action"),
    message(13, "related", REFERENCE),
    text(14, "reportingComponent"),
    text(15, "reportingInstance"),
];
const GROUPED_EVENT: &[Field] = &[
    message(1, "metadata", METADATA),
    time(2, "eventTime"),
    message(3, "series", SERIES),
    text(4, "reportingController"),
    text(5, "reportingInstance"),
    text(6, "action"),
    text(7, "reason"),
    message(8, "regarding", REFERENCE),
    message(9, "related", REFERENCE),
    text(10, "note"),
    text(11, "type"),
    message(12, "deprecatedSource", SOURCE),
    time(13, "deprecatedFirstTimestamp"),
    time(14, "deprecatedLastTimestamp"),
    Field(15, "deprecatedCount", Type::Int, Many::One),
];
const DELETE_OPTIONS: &[Field] = &[
    Field(1, "gracePeriodSeconds", Type::OptionalInt, Many::One),
    message(2, "preconditions", &[text(1, "uid"), text(2, "resourceVersion")]),
    Field(3, "orphanDependents", Type::Bool, Many::One),
    text(4, "propagationPolicy"),
    Field(5, "dryRun", Type::Text, Many::List),
];
const RESOURCE_ATTRIBUTES: &[Field] = &[
    text(1, "namespace"),
    text(2, "verb"),
    text(3, "group"),
    text(4, "version"),
    text(5, "resource"),
    text(6, "subresource"),
    text(7, "name"),
];
const ACCESS_REVIEW: &[Field] = &[
    message(1, "metadata", METADATA),
    message(
        2,
        "spec",
        &[
            message(1, "resourceAttributes", RESOURCE_ATTRIBUTES),
            message(2, "nonResourceAttributes", &[text(1, "path"), text(2, "verb")]),
        ],
    ),
];
const RULES_REVIEW: &[Field] = &[message(1, "metadata", METADATA), message(2, "spec", &[text(1, "namespace")])];
const SUBJECT_REVIEW: &[Field] = &[message(1, "metadata", METADATA)];

/// The fields of a kind.
fn fields_of(api_version: &str, kind: &str) -> Option<&'static [Field]> {
    Some(match kind {
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "Namespace" => NAMESPACE,
        "Event" if api_version.starts_with("events.k8s.io/") => GROUPED_EVENT,
        "Event" => EVENT,
        "DeleteOptions" => DELETE_OPTIONS,
        "SelfSubjectAccessReview" => ACCESS_REVIEW,
        "SelfSubjectReview" => SUBJECT_REVIEW,
        "SelfSubjectRulesReview" => RULES_REVIEW,
        _ => return None,
    })
}

/// The value of a field on the wire.
enum Wire<'b> {
    Number(u64),
    Bytes(&'b [u8]),
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'b>(bytes: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

/// The next field: its number and value. Fields of fixed width are not used by these kinds, and are skipped.
fn next<'b>(bytes: &mut &'b [u8]) -> Option<(u32, Wire<'b>)> {
    loop {
        let tag = varint(bytes)?;
        let number = u32::try_from(tag >> 3).ok()?;
        match tag & 7 {
            0 => return Some((number, Wire::Number(varint(bytes)?))),
            1 => drop(take(bytes, 8)?),
            2 => {
                let length = usize::try_from(varint(bytes)?).ok()?;
                return Some((number, Wire::Bytes(take(bytes, length)?)));
            }
            5 => drop(take(bytes, 4)?),
            _ => return None,
        }
    }
}

/// Decodes a message. `None` for malformed bytes.
fn decode_message(mut bytes: &[u8], fields: &[Field], depth: usize) -> Option<Map<String, Value>> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut message = Map::new();
    while !bytes.is_empty() {
        let (number, wire) = next(&mut bytes)?;
        let Some(Field(_, name, kind, many)) = fields.iter().find(|field| field.0 == number) else { continue };
        match many {
            Many::One => {
                if let Some(value) = decode_value(&wire, *kind, depth)?.filter(|value| !is_absent(value, *kind)) {
                    message.insert((*name).into(), value);
                }
            }
            Many::List => {
                let list = message.entry(*name).or_insert_with(|| json!([]));
                if let (Value::Array(list), Some(value)) = (list, decode_value(&wire, *kind, depth)?) {
                    list.push(value);
                }
            }
            Many::Map => {
                let Wire::Bytes(entry) = wire else { return None };
                let (key, value) = decode_entry(entry, *kind, depth)?;
                message.entry(*name).or_insert_with(|| json!({}))[key] = value;
            }
        }
    }
    Some(message)
}

/// Whether a value is that of a field that Go's JSON leaves out.
fn is_absent(value: &Value, kind: Type) -> bool {
    match kind {
        Type::Text => value == "",
        Type::Int => value == 0,
        _ => false,
    }
}

fn decode_entry(mut entry: &[u8], kind: Type, depth: usize) -> Option<(String, Value)> {
    let (mut key, mut value) = (String::new(), json!(""));
    while !entry.is_empty() {
        match next(&mut entry)? {
            (1, Wire::Bytes(bytes)) => key = String::from_utf8(bytes.to_vec()).ok()?,
            (2, wire) => value = decode_value(&wire, kind, depth)?.unwrap_or_default(),
            _ => {}
        }
    }
    Some((key, value))
}

/// Decodes a value. The outer `None` is for malformed bytes, the inner one for an absent value.
fn decode_value(wire: &Wire<'_>, kind: Type, depth: usize) -> Option<Option<Value>> {
    Some(match (kind, wire) {
        (Type::Text, Wire::Bytes(bytes)) => Some(json!(std::str::from_utf8(bytes).ok()?)),
        (Type::Bytes, Wire::Bytes(bytes)) => Some(json!(STANDARD.encode(bytes))),
        (Type::Bool, Wire::Number(number)) => Some(json!(*number != 0)),
        (Type::Int | Type::OptionalInt, Wire::Number(number)) => Some(json!(number.cast_signed())),
        (Type::Message(fields), Wire::Bytes(bytes)) => Some(Value::Object(decode_message(bytes, fields, depth + 1)?)),
        (Type::Time, Wire::Bytes(bytes)) => decode_time(bytes)?,
        _ => return None,
    })
}

fn decode_time(mut bytes: &[u8]) -> Option<Option<Value>> {
    let (mut seconds, mut nanoseconds) = (None, 0);
    while !bytes.is_empty() {
        match next(&mut bytes)? {
            (1, Wire::Number(number)) => seconds = Some(number.cast_signed()),
            (2, Wire::Number(number)) => nanoseconds = number,
            _ => {}
        }
    }
    let Some(seconds) = seconds else { return Some(None) };
    let whole = rfc3339(seconds.checked_mul(1000)?);
    // Only the time of an event has fractions; the API has six digits of them.
    Some(Some(json!(match nanoseconds / 1000 {
        0 => whole,
        microseconds => format!("{}.{microseconds:06}Z", whole.trim_end_matches('Z')),
    })))
}

/// Decodes a body as JSON.
///
/// # Errors
/// What is malformed, or the name of a kind that is not supported.
pub fn decode(body: &[u8]) -> Result<Value, String> {
    let malformed = || "the body is not in Kubernetes' protobuf encoding".to_owned();
    let mut bytes = body.strip_prefix(MAGIC).ok_or_else(malformed)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while !bytes.is_empty() {
        match next(&mut bytes).ok_or_else(malformed)? {
            (1, Wire::Bytes(meta)) => {
                let meta = decode_message(meta, &[text(1, "apiVersion"), text(2, "kind")], 0).ok_or_else(malformed)?;
                let field = |name: &str| meta.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
                (api_version, kind) = (field("apiVersion"), field("kind"));
            }
            (2, Wire::Bytes(message)) => raw = message,
            _ => {}
        }
    }
    let fields = fields_of(&api_version, &kind)
        .ok_or_else(|| format!("the kind {kind:?} cannot be read in protobuf encoding"))?;
    let mut object = decode_message(raw, fields, 0).ok_or_else(malformed)?;
    object.insert("apiVersion".into(), json!(api_version));
    object.insert("kind".into(), json!(kind));
    Ok(Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A field with bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
    }

    fn envelope(kind: &str, message: &[u8]) -> Vec<u8> {
        let meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [MAGIC, &field(1, &meta), &field(2, message)].concat()
    }

    #[test]
    fn config_map_is_decoded() {
        let labels = field(11, &[field(1, b"app"), field(2, b"web")].concat());
        let created = field(8, &[1 << 3, 60]);
        let meta = field(1, &[field(1, b"a"), field(2, b""), labels, created].concat());
        let data = field(2, &[field(1, b"k"), field(2, b"v")].concat());
        let bytes = field(3, &[field(1, b"b"), field(2, &[0xff])].concat());
        let body = envelope("ConfigMap", &[meta, data, bytes, vec![4 << 3, 1]].concat());
        assert_eq!(
            decode(&body).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "immutable": true,
                "metadata": {"name": "a", "labels": {"app": "web"}, "creationTimestamp": "1970-01-01T00:01:00Z"},
                "data": {"k": "v"}, "binaryData": {"b": "/w=="}})
        );
        assert!(decode(&envelope("Pod", &[])).unwrap_err().contains("Pod"));
        assert!(decode(b"{}").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for kind in ["ConfigMap", "Event", "DeleteOptions"] {
                let _ = decode(&envelope(kind, &bytes));
            }
            let _ = decode(&[MAGIC, &bytes].concat());
        }
    }
}
