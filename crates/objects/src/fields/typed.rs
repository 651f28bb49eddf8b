//! How a schema divides a value into fields that have managers of their own.
//!
//! Objects are divided into their fields, unless they are atomic. Lists are atomic, unless they are sets or their elements have keys. Values
//! without a schema are divided by their form: objects into fields, and all else is atomic.

use serde_json::{Map, Value};

use super::element::Element;
use super::set::{Node, Set};
use crate::schema::{Schema, Type as SchemaType};

/// Maximum depth at which values without a schema are divided; deeper ones are atomic. Otherwise the text of managed fields could be nested
/// deeper than JSON is read.
const MAX_DEPTH: u8 = 48;

/// The type of a value.
#[derive(Debug, Clone, Copy)]
pub enum Type<'s> {
    /// That of a schema.
    Declared(&'s Schema),
    /// None, at this depth below the last schema.
    Deduced(u8),
}

/// How a value is divided.
#[derive(Debug, Clone, Copy)]
pub(super) enum Atom<'s> {
    /// A text, number or truth value.
    Scalar,
    /// An object that is set as one.
    AtomicMap,
    /// A list that is set as one.
    AtomicList,
    /// An object whose fields have managers of their own.
    Map,
    /// A list whose elements have managers of their own.
    List(&'s Schema),
}

impl Atom<'_> {
    pub(super) fn is_same(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

impl<'s> Type<'s> {
    /// The type of a part of a value without a schema.
    fn deduced_part(self) -> Self {
        Self::Deduced(match self {
            Self::Declared(_) => 0,
            Self::Deduced(depth) => depth.saturating_add(1),
        })
    }

    /// How a value of this type is divided.
    pub(super) fn atom(self, value: Option<&Value>) -> Atom<'s> {
        let schema = match self {
            Self::Declared(schema) if schema.int_or_string => return Self::Deduced(0).atom(value),
            Self::Declared(schema) => schema,
            Self::Deduced(depth) => {
                return match value {
                    Some(Value::Array(_)) => Atom::AtomicList,
                    None | Some(Value::Null | Value::Object(_)) if depth < MAX_DEPTH => Atom::Map,
                    None | Some(Value::Null | Value::Object(_)) => Atom::AtomicMap,
                    Some(_) => Atom::Scalar,
                };
            }
        };
        match schema.kind {
            None => Self::Deduced(0).atom(value),
            Some(SchemaType::Object) if schema.map_type == "atomic" => Atom::AtomicMap,
            Some(SchemaType::Object) => Atom::Map,
            Some(SchemaType::Array) if matches!(&*schema.list_type, "set" | "map") => Atom::List(schema),
            Some(SchemaType::Array) => Atom::AtomicList,
            Some(_) => Atom::Scalar,
        }
    }

    /// Whether the schema names this field.
    pub(super) fn names(self, field: &str) -> bool {
        matches!(self, Self::Declared(schema) if schema.properties.contains_key(field))
    }

    /// The type of a field; `None` if there is no such field.
    pub(super) fn field(self, name: &str) -> Option<Self> {
        let Self::Declared(schema) = self else { return Some(self.deduced_part()) };
        let is_open = schema.properties.is_empty() && schema.additional_properties.is_none();
        match schema.field(name) {
            Some(field) => Some(Self::Declared(field)),
            None if schema.preserve_unknown || is_open => Some(self.deduced_part()),
            None => None,
        }
    }

    /// The type of the elements of a list.
    pub(super) fn items(self) -> Self {
        match self {
            Self::Declared(Schema { items: Some(items), .. }) => Self::Declared(items),
            other => other.deduced_part(),
        }
    }

    /// The type of what an element leads to.
    pub(super) fn at(self, element: &Element) -> Option<Self> {
        match (element, self) {
            (Element::Field(name), _) => self.field(name),
            (_, Self::Declared(schema)) if schema.kind == Some(SchemaType::Array) => Some(self.items()),
            _ => None,
        }
    }
}

/// The fields of an object; `None` for other values.
pub(super) fn fields(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

/// The elements of a list; `None` for other values.
pub(super) fn elements(value: Option<&Value>) -> Option<&[Value]> {
    value.and_then(Value::as_array).map(Vec::as_slice)
}

/// What identifies an element of a list that is a set or has keys.
///
/// # Errors
/// Why the element has no identity.
pub(super) fn identity(list: &Schema, element: &Value) -> Result<Element, String> {
    if list.list_map_keys.is_empty() {
        return match element {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
            scalar => Ok(Element::Value(scalar.clone())),
        };
    }
    let fields = match element {
        Value::Object(fields) => fields,
        Value::Null => return Err("associative list with keys may not have a null element".into()),
        _ => return Err("associative list with keys may not have non-map elements".into()),
    };
    let default = |key: &str| list.items.as_ref().and_then(|items| items.properties.get(key)?.default.as_ref());
    let key = |key: &String| {
        let value = fields.get(key).or_else(|| default(key))?;
        Some((key.clone(), value.clone()))
    };
    let mut keys: Vec<(String, Value)> = list.list_map_keys.iter().filter_map(key).collect();
    if keys.is_empty() {
        let names: Vec<String> = list.list_map_keys.iter().map(|key| format!("{key:?}")).collect();
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any \
             key fields)",
            names.join(" ")
        ));
    }
    keys.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(Element::Key(keys))
}

/// The fields of a value.
pub fn field_set(value: &Value, value_type: Type<'_>) -> Set {
    node_of(value, value_type).children
}

/// The fields of a value, and whether the value itself is one.
fn node_of(value: &Value, value_type: Type<'_>) -> Node {
    let mut node = Node::default();
    match value_type.atom(Some(value)) {
        Atom::Scalar | Atom::AtomicMap | Atom::AtomicList => node.is_member = true,
        Atom::Map => {
            for (name, value) in fields(Some(value)).into_iter().flatten() {
                let mut child = value_type.field(name).map_or_else(Node::member, |field| node_of(value, field));
                let is_empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                child.is_member |= is_empty || !value_type.names(name);
                node.children.attach(Element::field(name.as_str()), child);
            }
        }
        Atom::List(list) => {
            let mut seen: std::collections::BTreeMap<Element, Option<&Value>> = std::collections::BTreeMap::new();
            for element in elements(Some(value)).unwrap_or_default() {
                if let Ok(id) = identity(list, element) {
                    // Elements that occur more than once are set as one.
                    seen.entry(id).and_modify(|first| *first = None).or_insert(Some(element));
                }
            }
            for (id, element) in seen {
                let mut child = element.map(|element| node_of(element, value_type.items())).unwrap_or_default();
                child.is_member = true;
                node.children.attach(id, child);
            }
        }
    }
    node
}

/// Makes fields that were divided when they were written, and are atomic now, members as a whole.
pub(super) fn reconcile(set: &mut Set, set_type: Type<'_>) {
    for (element, node) in set.nodes_mut() {
        let Some(part) = set_type.at(element) else { continue };
        let is_divided = !node.children.is_empty();
        match part {
            Type::Declared(schema) if schema.kind.is_some() => match part.atom(None) {
                Atom::AtomicList => *node = Node::member(),
                Atom::AtomicMap if is_divided => *node = Node::member(),
                Atom::Map | Atom::List(_) => reconcile(&mut node.children, part),
                _ => {}
            },
            _ => {}
        }
    }
}

/// A value as Go prints it: with `%#v`, which is the form of source text, or with `%v`.
fn go_value(value: &Value, is_source: bool) -> String {
    let inner = |value: &Value| go_value(value, is_source);
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) if is_source => format!("{text:?}"),
        Value::String(text) => text.clone(),
        Value::Array(elements) => {
            let separator = if is_source { ", " } else { " " };
            let elements = elements.iter().map(inner).collect::<Vec<_>>().join(separator);
            if is_source { format!("[]interface {{}}{{{elements}}}") } else { format!("[{elements}]") }
        }
        Value::Object(fields) => {
            let name = |name: &String| if is_source { format!("{name:?}") } else { name.clone() };
            let fields = fields.iter().map(|(key, value)| format!("{}:{}", name(key), inner(value)));
            if is_source {
                format!("map[string]interface {{}}{{{}}}", fields.collect::<Vec<_>>().join(", "))
            } else {
                format!("map[{}]", fields.collect::<Vec<_>>().join(" "))
            }
        }
        other => super::element::go_json(other),
    }
}

/// The name of a value's type in Go.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// Finds values of wrong types, unknown fields, and elements of lists that occur twice.
///
/// # Errors
/// All faults with their paths, in the words of the API server.
pub fn validate(value: &Value, value_type: Type<'_>) -> Result<(), String> {
    let mut faults = Vec::new();
    validate_at(value, value_type, "", &mut faults);
    match &*faults {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => {
            Err(format!("errors:\n{}", many.iter().map(|fault| format!("  {fault}")).collect::<Vec<_>>().join("\n")))
        }
    }
}

fn validate_at(value: &Value, value_type: Type<'_>, path: &str, faults: &mut Vec<String>) {
    let mut report = |path: &str, detail: String| {
        faults.push(if path.is_empty() { detail } else { format!("{path}: {detail}") });
    };
    let Type::Declared(schema) = value_type else { return };
    if value.is_null() {
        return;
    }
    match (schema.kind, value) {
        (Some(SchemaType::Object), Value::Object(fields)) => {
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                match value_type.field(name) {
                    Some(field) => validate_at(value, field, &path, faults),
                    None => {
                        faults.push(format!("{path}: field not declared in schema"));
                        return;
                    }
                }
            }
        }
        (Some(SchemaType::Object), other) => report(path, format!("expected map, got &{{{}}}", go_value(other, false))),
        (Some(SchemaType::Array), Value::Array(elements)) => {
            let is_associative = matches!(value_type.atom(Some(value)), Atom::List(_));
            let mut seen = std::collections::BTreeSet::new();
            for (i, element) in elements.iter().enumerate() {
                let id = if is_associative {
                    match identity(schema, element) {
                        Ok(id) => id,
                        Err(detail) => {
                            faults.push(format!("{path}: element {i}: {detail}"));
                            return;
                        }
                    }
                } else {
                    Element::Index(i64::try_from(i).unwrap_or(i64::MAX))
                };
                let text = id.to_string();
                if !seen.insert(id) {
                    faults.push(format!("{path}: duplicate entries for key {text}"));
                }
                validate_at(element, value_type.items(), &format!("{path}{text}"), faults);
            }
        }
        (Some(SchemaType::Array), other) => report(path, format!("expected list, got &{{{}}}", go_value(other, false))),
        _ if schema.int_or_string => {}
        (Some(SchemaType::String), other) if !other.is_string() => {
            let value = go_value(other, true);
            report(path, format!("expected string, got &value.valueUnstructured{{Value:{value}}}"));
        }
        (Some(SchemaType::Integer | SchemaType::Number), other) if !other.is_number() => {
            report(path, format!("expected numeric (int or float), got {}", go_type(other)));
        }
        (Some(SchemaType::Boolean), other) if !other.is_boolean() => {
            report(path, format!("expected boolean, got &{{{}}}", go_value(other, false)));
        }
        _ => {}
    }
}
