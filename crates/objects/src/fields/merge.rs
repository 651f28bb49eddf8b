//! Merging of an applied configuration into a value.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::element::Element;
use super::typed::{Atom, Type, elements, fields, identity};
use crate::schema::Schema;

/// The value with the fields of the configuration.
///
/// # Errors
/// The first fault of a list whose elements must have identities.
pub fn merge(live: &Value, configuration: &Value, value_type: Type<'_>) -> Result<Value, String> {
    Ok(merged(Some(live), Some(configuration), value_type)?.unwrap_or_default())
}

fn merged(live: Option<&Value>, applied: Option<&Value>, value_type: Type<'_>) -> Result<Option<Value>, String> {
    let atom = if applied.is_some() { value_type.atom(applied) } else { value_type.atom(live) };
    let as_one = || applied.or(live).cloned();
    match atom {
        Atom::Scalar | Atom::AtomicMap | Atom::AtomicList => Ok(as_one()),
        Atom::Map => {
            let (before, after) = (fields(live), fields(applied));
            if before.is_none_or(Map::is_empty) && after.is_none_or(Map::is_empty) {
                return Ok(as_one());
            }
            let mut result = Map::new();
            let names: BTreeSet<&String> = [before, after].into_iter().flatten().flat_map(Map::keys).collect();
            for name in names {
                let field = value_type.field(name).unwrap_or(Type::Deduced(0));
                let [old, new] = [before, after].map(|side| side.and_then(|fields| fields.get(name)));
                let value = match (old, new) {
                    (Some(live), None) => Some(live.clone()),
                    (live, applied) => merged(live, applied, field)?,
                };
                if let Some(value) = value {
                    result.insert(name.clone(), value);
                }
            }
            Ok((!result.is_empty()).then_some(Value::Object(result)))
        }
        Atom::List(list) => {
            let (before, after) = (elements(live).unwrap_or_default(), elements(applied).unwrap_or_default());
            if before.is_empty() && after.is_empty() {
                return Ok(as_one());
            }
            let result = merge_lists(list, before, after, value_type.items())?;
            Ok((!result.is_empty()).then_some(Value::Array(result)))
        }
    }
}

/// The elements of a list with their identities, and by them. `None` stands for elements that occur more than once.
type Indexed<'v> = (Vec<Element>, BTreeMap<Element, Option<&'v Value>>);

fn index<'v>(list: &Schema, values: &'v [Value], allow_duplicates: bool) -> Result<Indexed<'v>, String> {
    let (mut order, mut found) = (Vec::with_capacity(values.len()), BTreeMap::new());
    for (i, value) in values.iter().enumerate() {
        let id = identity(list, value).map_err(|detail| format!("element {i}: {detail}"))?;
        if found.contains_key(&id) {
            if !allow_duplicates {
                return Err(format!("duplicate entries for key {id}"));
            }
            found.insert(id.clone(), None);
        } else {
            found.insert(id.clone(), Some(value));
        }
        order.push(id);
    }
    Ok((order, found))
}

/// Merges lists. The elements of the configuration have its order, and of the others, each keeps its place before the next shared one.
fn merge_lists(list: &Schema, live: &[Value], applied: &[Value], items: Type<'_>) -> Result<Vec<Value>, String> {
    let (applied_order, in_applied) = index(list, applied, false)?;
    let (live_order, in_live) = index(list, live, true)?;
    let mut shared = applied_order.iter().filter(|id| in_live.contains_key(*id));
    let mut next_shared = shared.next();
    let mut done = BTreeSet::new();
    let mut result = Vec::with_capacity(live.len().max(applied.len()));
    let mut push = |live: Option<&Value>, applied: Option<&Value>| {
        result.extend(merged(live, applied, items)?);
        Ok::<(), String>(())
    };
    let null = Value::Null;
    let in_live = |id: &Element| in_live.get(id).map(|value| value.unwrap_or(&null));
    let in_applied_value = |id: &Element| in_applied.get(id).copied().flatten();
    let (mut l, mut a) = (0, 0);
    while l < live_order.len() || a < applied_order.len() {
        if let (Some(old), Some(new)) = (live_order.get(l), applied_order.get(a)) {
            if old == new {
                done.insert(old);
                push(in_live(old), in_applied_value(old))?;
                (l, a) = (l + 1, a + 1);
                next_shared = shared.next();
                continue;
            }
            if in_applied.contains_key(old) && next_shared.is_some_and(|next| next != old) {
                // It is shared, but another one comes before it in the configuration.
                l += 1;
                continue;
            }
        }
        if let Some(old) = live_order.get(l) {
            if !in_applied.contains_key(old) {
                push(live.get(l), None)?;
                l += 1;
                continue;
            }
            if done.contains(old) {
                l += 1;
            }
        }
        if let Some(new) = applied_order.get(a) {
            done.insert(new);
            push(in_live(new), in_applied_value(new))?;
            a += 1;
            if next_shared == Some(new) {
                next_shared = shared.next();
            }
        }
    }
    Ok(result)
}
