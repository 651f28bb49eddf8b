//! Lists as tables, which the server formats for `kubectl get`.

use serde_json::{Value, json};
use slipway_core::clock::parse_rfc3339;

use crate::object::Object;
use crate::resource::{Cell, Column, PrinterColumn, Resource};

/// What a row of a table contains besides its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// The metadata of the object.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// The table of objects. `with_columns` adds the definitions of the columns, which the events of a watch have only once.
pub fn table(
    resource: &Resource,
    objects: &[&Object],
    include: IncludeObject,
    list_metadata: Value,
    with_columns: bool,
    now: i64,
) -> Value {
    let describe = |column: &Column| {
        json!({
            "name": column.name,
            "type": column.kind,
            "format": column.format,
            "description": column.description,
            "priority": column.priority,
        })
    };
    let columns: Vec<Value> = resource.columns.iter().filter(|_| with_columns).map(describe).collect();
    let row = |object: &&Object| {
        let cells: Vec<Value> = resource.columns.iter().map(|column| cell(column, object, now)).collect();
        match include {
            IncludeObject::None => json!({"cells": cells, "object": null}),
            IncludeObject::Metadata => json!({"cells": cells, "object": partial_metadata(object)}),
            IncludeObject::Object => json!({"cells": cells, "object": object}),
        }
    };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_metadata,
        "columnDefinitions": columns,
        "rows": objects.iter().map(row).collect::<Vec<_>>(),
    })
}

/// The cell of an object.
fn cell(column: &Column, object: &Object, now: i64) -> Value {
    match column.cell {
        Cell::Computed(compute) => compute(object, now),
        Cell::Printed(column) => printed(column, object, now),
    }
}

/// The cell of an object in a column of a definition: the value at the path; for a date the time since then.
fn printed(column: &PrinterColumn, object: &Object, now: i64) -> Value {
    let metadata = column.json_path.starts_with(".metadata.").then(|| json!({"metadata": object.metadata}));
    let mut names = column.json_path.split('.').filter(|name| !name.is_empty());
    let value = match &metadata {
        Some(metadata) => names.fold(metadata, |value, name| &value[name]),
        None => {
            let first = names.next().and_then(|name| object.body.get(name)).unwrap_or(&Value::Null);
            names.fold(first, |value, name| &value[name])
        }
    };
    match (column.kind.as_str(), value) {
        ("date", Value::String(time)) if parse_rfc3339(time).is_some() => json!(age(Some(time), now)),
        (_, value) => value.clone(),
    }
}

/// The metadata of an object as an object of its own.
pub fn partial_metadata(object: &Object) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.metadata})
}

/// The time since an RFC 3339 time, such as `5m30s` or `3d`, as kubectl prints it; `<unknown>` for an absent time.
pub fn age(since: Option<&str>, now: i64) -> String {
    match since.and_then(parse_rfc3339) {
        Some(time) => human_duration((now - time).div_euclid(1000)),
        None => "<unknown>".into(),
    }
}

/// Formats seconds with the two largest units that matter.
fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    let pair = |large: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    match seconds {
        // The clocks of two machines may differ a little.
        ..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => pair(days, "d", hours % 24, "h"),
        _ if days < 2 * 365 => format!("{days}d"),
        _ if days < 8 * 365 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_formatted_as_kubectl_does() {
        for (seconds, expected) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (345, "5m45s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600 + 60, "9h"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (800 * 86400, "2y70d"),
            (9 * 365 * 86400, "9y"),
        ] {
            assert_eq!(human_duration(seconds), expected);
        }
        assert_eq!(age(None, 0), "<unknown>");
    }
}
