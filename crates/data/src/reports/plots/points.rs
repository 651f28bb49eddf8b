//! Points of plots: the tables in data files as lists of records, and the fields for the axes.

use std::collections::BTreeSet;

use crate::yaml::Value;

/// A record of a data file: fields and values in their order.
pub(super) type Point = Vec<(String, Value)>;

/// Names of fields that are added to each point.
pub(super) const INDEX: &str = "step";
pub(super) const REVISION: &str = "rev";
pub(super) const FILENAME: &str = "filename";
pub(super) const FIELD: &str = "field";
const INFERRED_X: &str = "dvc_inferred_x_value";
const INFERRED_Y: &str = "dvc_inferred_y_value";

/// The data of a plot in one revision: the content of each source.
pub(super) type Sources = Vec<(String, Value)>;

/// The fields that are drawn, with the file and field of each series.
#[derive(Debug, Clone, Default)]
pub struct Axes {
    /// The field for the x axis.
    pub x: String,
    /// The field for the y axis.
    pub y: String,
    /// The text at the x axis.
    pub x_label: String,
    /// The text at the y axis.
    pub y_label: String,
    /// The short name of the file and the field of each series.
    pub series: Vec<(String, String)>,
}

/// A list of comma- or tab-separated values as records. Without a header, fields are named `0`, `1`, and so on. As in DVC, values are text.
pub(super) fn parse_separated(text: &str, separator: char, header: bool) -> Value {
    let mut rows = rows(text, separator).into_iter().filter(|row| row.len() > 1 || !row[0].is_empty()).peekable();
    let names: Vec<String> = match header {
        true => rows.next().unwrap_or_default(),
        false => (0..rows.peek().map_or(0, Vec::len)).map(|i| i.to_string()).collect(),
    };
    let record = |row: Vec<String>| {
        let value = |i: usize| row.get(i).map_or(Value::Null, Value::string);
        Value::Map(names.iter().enumerate().map(|(i, name)| (name.clone(), value(i))).collect())
    };
    Value::List(rows.map(record).collect())
}

/// The rows of separated values. Values in double quotes may contain separators, line breaks and doubled quotes.
pub(crate) fn rows(text: &str, separator: char) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut row = Vec::new();
    let mut value = String::new();
    let mut quoted = false;
    let mut characters = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                value.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if value.is_empty() => quoted = true,
            c if quoted => value.push(c),
            c if c == separator => row.push(std::mem::take(&mut value)),
            '\r' if characters.peek() == Some(&'\n') => {}
            '\r' | '\n' => {
                row.push(std::mem::take(&mut value));
                rows.push(std::mem::take(&mut row));
            }
            c => value.push(c),
        }
    }
    if !value.is_empty() || !row.is_empty() {
        row.push(value);
        rows.push(row);
    }
    rows
}

/// The lists in a value: itself, or those in nested mappings.
fn lists(value: &Value) -> Vec<&[Value]> {
    match value {
        Value::List(items) => vec![items],
        Value::Map(entries) => entries.iter().flat_map(|(_, value)| lists(value)).collect(),
        _ => Vec::new(),
    }
}

/// The records in a data file. Lists of records with the same fields are joined by their position.
fn records(content: &Value) -> Vec<Point> {
    let mut records: Vec<Point> = Vec::new();
    for list in lists(content) {
        let Some(Value::Map(first)) = list.first() else { continue };
        let names = |entries: &[(String, Value)]| entries.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>();
        let known = names(first);
        // Lists whose records have fields that the first lacks are not tables.
        if !list.iter().all(|item| matches!(item, Value::Map(entries) if names(entries).is_subset(&known))) {
            continue;
        }
        for (i, item) in list.iter().enumerate() {
            if records.len() <= i {
                records.push(Point::new());
            }
            item.entries().iter().for_each(|(name, value)| set(&mut records[i], name, value.clone()));
        }
    }
    records
}

/// Sets a field of a point.
pub(super) fn set(point: &mut Point, name: &str, value: Value) {
    match point.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value,
        None => point.push((name.to_owned(), value)),
    }
}

/// A field of a point.
pub(super) fn get<'a>(point: &'a Point, name: &str) -> Option<&'a Value> {
    point.iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

/// Files and fields of an axis: `{file: field}` or `{file: [field, field]}`.
fn file_fields(axis: Option<&Value>) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (file, fields) in axis.map_or(&[][..], Value::entries) {
        match fields {
            Value::String(field) => pairs.push((file.clone(), field.clone())),
            Value::List(fields) => {
                pairs.extend(fields.iter().filter_map(Value::as_str).map(|field| (file.clone(), field.to_owned())));
            }
            _ => {}
        }
    }
    pairs
}

/// The files from which a plot takes its data.
pub(super) fn sources(id: &str, properties: &Value) -> Vec<String> {
    let mut sources = match properties.get("y") {
        Some(Value::Map(files)) => files.iter().map(|(file, _)| file.clone()).collect(),
        _ => vec![id.to_owned()],
    };
    if let Some(Value::Map(files)) = properties.get("x")
        && let Some((file, _)) = files.first()
        && !sources.contains(file)
    {
        sources.push(file.clone());
    }
    sources
}

/// The axis `y`, by file: as given, of the plot's own file, or the last field of its first record.
fn y_axis(id: &str, properties: &Value, data: &Sources) -> Option<Value> {
    match properties.get("y") {
        Some(map @ Value::Map(_)) => Some(map.clone()),
        Some(Value::Null) | None => {
            let content = data.iter().find(|(file, _)| file == id).map(|(_, content)| content)?;
            let is_table = |list: &&[Value]| !list.is_empty() && list.iter().all(|item| matches!(item, Value::Map(_)));
            let list = lists(content).into_iter().find(is_table)?;
            let (field, _) = list.first()?.entries().last()?;
            Some(Value::Map(vec![(id.to_owned(), Value::string(field))]))
        }
        Some(other) => Some(Value::Map(vec![(id.to_owned(), other.clone())])),
    }
}

/// The axis `x`, by file; a name is the field of each file of the axis `y`.
fn x_axis(id: &str, properties: &Value) -> Option<Value> {
    match properties.get("x") {
        Some(Value::String(field)) => match properties.get("y") {
            Some(Value::Map(files)) => {
                let repeat = |fields: &Value| match fields {
                    Value::List(items) => Value::List(vec![Value::string(field); items.len()]),
                    _ => Value::string(field),
                };
                Some(Value::Map(files.iter().map(|(file, fields)| (file.clone(), repeat(fields))).collect()))
            }
            _ => Some(Value::Map(vec![(id.to_owned(), Value::string(field))])),
        },
        other => other.cloned(),
    }
}

fn label(properties: &Value, name: &str, fields: &[(String, String)], fallback: &str) -> String {
    if let Some(label) = properties.get(name).and_then(Value::as_str) {
        return label.to_owned();
    }
    let names: BTreeSet<&str> = fields.iter().map(|(_, field)| field.as_str()).collect();
    match names.first() {
        Some(name) if names.len() == 1 => (*name).to_owned(),
        _ => fallback.to_owned(),
    }
}

/// The points of a plot in one revision, each with the revision, file and field to which it belongs. None if there is no data.
///
/// # Errors
/// If a field does not exist, or files have different numbers of points.
pub(super) fn points(
    id: &str,
    properties: &Value,
    data: &Sources,
    revision: &str,
) -> Result<Option<(Vec<Point>, Axes)>, String> {
    let tables: Vec<(&str, Vec<Point>)> =
        data.iter().map(|(file, content)| (file.as_str(), records(content))).collect();
    let table = |file: &str| tables.iter().find(|(known, _)| *known == file).map(|(_, records)| records.as_slice());
    let check = |pairs: &[(String, String)]| {
        for (file, field) in pairs {
            if let Some(first) = table(file).and_then(<[Point]>::first)
                && get(first, field).is_none()
            {
                let known: Vec<&str> = first.iter().map(|(name, _)| name.as_str()).collect();
                return Err(format!("there is no field '{field}' among '{}'", known.join("', '")));
            }
        }
        Ok(())
    };
    let (x_axis, y_axis) = (x_axis(id, properties), y_axis(id, properties, data));
    let (xs, ys) = (file_fields(x_axis.as_ref()), file_fields(y_axis.as_ref()));
    check(&xs)?;
    check(&ys)?;
    if xs.len() > 1 && xs.len() != ys.len() {
        return Err(format!("there are {} fields for x and {} for y", xs.len(), ys.len()));
    }
    let distinct = |pairs: &[(String, String)], second: bool| -> BTreeSet<String> {
        pairs.iter().map(|(file, field)| if second { field.clone() } else { file.clone() }).collect()
    };
    let several_x = xs.len() > 1 && distinct(&xs, true).len() > 1;
    let several_y = distinct(&ys, true).len() > 1;
    let prefix = common_folder(&distinct(&ys, false));
    let short = |file: &str| file.get(prefix..).unwrap_or(file).trim_matches(['/', '\\']).to_owned();
    let x_name = if several_x { INFERRED_X } else { xs.first().map_or(INDEX, |(_, field)| field) };
    let y_name = if several_y { INFERRED_Y } else { ys.first().map_or("", |(_, field)| field) };
    let x_label = if xs.is_empty() { INDEX } else { "x" };
    let axes = Axes {
        x: x_name.to_owned(),
        y: y_name.to_owned(),
        x_label: label(properties, "x_label", &xs, x_label),
        y_label: label(properties, "y_label", &ys, "y"),
        series: ys.iter().map(|(file, field)| (short(file), field.clone())).collect(),
    };
    let mut all = Vec::new();
    for (i, (file, field)) in ys.iter().enumerate() {
        let mut points = table(file).unwrap_or_default().to_vec();
        if several_y {
            for point in &mut points {
                if let Some(value) = get(point, field).cloned() {
                    set(point, INFERRED_Y, value);
                }
            }
        }
        match if xs.len() > 1 { xs.get(i) } else { xs.first() } {
            None => {
                points.iter_mut().enumerate().for_each(|(i, point)| set(point, INDEX, Value::number(i as u64)));
            }
            Some((x_file, x_field)) => {
                let values = table(x_file).unwrap_or_default();
                if values.len() != points.len() {
                    return Err(format!(
                        "'{x_field}' of '{x_file}' and '{field}' of '{file}' have different numbers of points"
                    ));
                }
                for (point, other) in points.iter_mut().zip(values) {
                    if let Some(value) = get(other, x_field).cloned() {
                        set(point, x_name, value);
                    }
                }
            }
        }
        for point in &mut points {
            set(point, REVISION, Value::string(revision));
            set(point, FILENAME, Value::string(short(file)));
            set(point, FIELD, Value::string(field));
        }
        all.extend(points);
    }
    Ok(if all.is_empty() { None } else { Some((all, axes)) })
}

/// Bytes of the common folder of several files; 0 for one file.
fn common_folder(files: &BTreeSet<String>) -> usize {
    let (Some(first), Some(last)) = (files.first(), files.last()) else { return 0 };
    if files.len() < 2 {
        return 0;
    }
    // All others are between these in the order of bytes, so what both have in common is common to all.
    let mut length = 0;
    for (a, b) in first.split('/').zip(last.split('/')) {
        if a != b {
            break;
        }
        length += a.len() + usize::from(length > 0);
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use crate::reports::python;

    fn shown(points: &[Point]) -> String {
        python::value_to_json(&Value::List(points.iter().cloned().map(Value::Map).collect())).to_text()
    }

    #[test]
    fn separated_values_are_read() {
        let value = parse_separated("a,b\r\n1,\"x, \"\"y\"\"\n\"\n\n2\n", ',', true);
        let expected = r#"[{"a": "1", "b": "x, \"y\"\n"}, {"a": "2", "b": null}]"#;
        assert_eq!(python::value_to_json(&value).to_text(), expected);
        let value = parse_separated("1\t2\n3\t4\n", '\t', false);
        assert_eq!(python::value_to_json(&value).to_text(), r#"[{"0": "1", "1": "2"}, {"0": "3", "1": "4"}]"#);
    }

    #[test]
    fn fields_are_inferred() {
        let data =
            vec![("p.json".to_owned(), json::parse(r#"{"log": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]}"#).unwrap())];
        let (found, axes) = points("p.json", &Value::Map(Vec::new()), &data, "HEAD").unwrap().unwrap();
        assert_eq!((axes.x.as_str(), axes.y.as_str(), axes.y_label.as_str()), ("step", "b", "b"));
        assert_eq!(
            shown(&found),
            r#"[{"a": 1, "b": 2, "step": 0, "rev": "HEAD", "filename": "p.json", "field": "b"}, {"a": 3, "b": 4, "step": 1, "rev": "HEAD", "filename": "p.json", "field": "b"}]"#
        );
    }

    #[test]
    fn fields_of_several_files_are_joined() {
        let properties = json::parse(r#"{"x": "t", "y": {"logs/a.csv": "u", "logs/b.csv": ["u", "v"]}}"#).unwrap();
        let table = |text: &str| parse_separated(text, ',', true);
        let data =
            vec![("logs/a.csv".to_owned(), table("t,u\n0,1\n")), ("logs/b.csv".to_owned(), table("t,u,v\n0,2,3\n"))];
        let (found, axes) = points("all", &properties, &data, "r").unwrap().unwrap();
        assert_eq!(
            axes.series,
            [("a.csv".into(), "u".into()), ("b.csv".into(), "u".into()), ("b.csv".into(), "v".into())]
        );
        assert_eq!((axes.x.as_str(), axes.y.as_str(), axes.y_label.as_str()), ("t", INFERRED_Y, "y"));
        assert_eq!(get(&found[2], INFERRED_Y), Some(&Value::string("3")));
        let missing = json::parse(r#"{"y": {"logs/a.csv": "w"}}"#).unwrap();
        assert!(points("all", &missing, &data, "r").unwrap_err().contains("'w'"));
    }
}
