//! Sets of paths of fields.
//!
//! Invariant: every node is a member or has members below it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::element::{Element, Unreadable};
use super::typed::Type;

/// A set of paths, as a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set(BTreeMap<Element, Node>);

/// The paths that begin with an element.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// Whether the path up to this element is in the set.
    pub(super) is_member: bool,
    /// The paths behind this element.
    pub(super) children: Set,
}

impl Node {
    /// A node of a path that is in the set.
    pub(super) fn member() -> Self {
        Self { is_member: true, children: Set::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.is_member && self.children.is_empty()
    }
}

impl Set {
    /// A set of paths of field names.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let path: Vec<Element> = path.iter().map(|name| Element::field(*name)).collect();
            set.insert(&path);
        }
        set
    }

    /// Whether there is no path in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a path; an empty one is ignored.
    pub fn insert(&mut self, path: &[Element]) {
        let Some((last, parents)) = path.split_last() else { return };
        let mut set = self;
        for element in parents {
            set = &mut set.0.entry(element.clone()).or_default().children;
        }
        set.0.entry(last.clone()).or_default().is_member = true;
    }

    /// Adds the paths that begin with an element.
    pub(super) fn attach(&mut self, element: Element, node: Node) {
        if node.is_empty() {
            return;
        }
        match self.0.entry(element) {
            Entry::Vacant(entry) => drop(entry.insert(node)),
            Entry::Occupied(mut entry) => {
                let existing = entry.get_mut();
                existing.is_member |= node.is_member;
                existing.children.extend(node.children);
            }
        }
    }

    /// Whether a path is in the set.
    pub fn contains(&self, path: &[Element]) -> bool {
        let Some((last, parents)) = path.split_last() else { return false };
        let parent = parents.iter().try_fold(self, |set, element| set.0.get(element).map(|node| &node.children));
        parent.is_some_and(|set| set.has(last))
    }

    /// Whether a path of one element is in the set.
    pub(super) fn has(&self, element: &Element) -> bool {
        self.0.get(element).is_some_and(|node| node.is_member)
    }

    /// The paths behind an element, if there are any.
    pub(super) fn below(&self, element: &Element) -> Option<&Self> {
        self.0.get(element).map(|node| &node.children).filter(|children| !children.is_empty())
    }

    pub(super) fn nodes_mut(&mut self) -> impl Iterator<Item = (&Element, &mut Node)> {
        self.0.iter_mut()
    }

    /// Adds the paths of another set.
    pub fn extend(&mut self, other: Self) {
        for (element, node) in other.0 {
            self.attach(element, node);
        }
    }

    /// The paths that are in one of two sets.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        union.extend(other.clone());
        union
    }

    /// The nodes of this set, combined with those of another one.
    fn combined(&self, other: &Self, combine: impl Fn(&Node, Option<&Node>) -> Node) -> Self {
        let nodes = self.0.iter().map(|(element, node)| (element, combine(node, other.0.get(element))));
        Self(nodes.filter(|(_, node)| !node.is_empty()).map(|(element, node)| (element.clone(), node)).collect())
    }

    /// The paths that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        // Only the smaller set is walked, so that a large one costs nothing for a small change.
        if other.0.len() < self.0.len() {
            return other.intersection(self);
        }
        self.combined(other, |node, other| match other {
            None => Node::default(),
            Some(other) => Node {
                is_member: node.is_member && other.is_member,
                children: node.children.intersection(&other.children),
            },
        })
    }

    /// The paths that are not in the other set.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.combined(other, |node, other| match other {
            None => node.clone(),
            Some(other) => Node {
                is_member: node.is_member && !other.is_member,
                children: node.children.difference(&other.children),
            },
        })
    }

    /// The paths that are neither in the other set nor below a path in it.
    #[must_use]
    pub fn difference_with_descendants(&self, other: &Self) -> Self {
        self.combined(other, |node, other| match other {
            None => node.clone(),
            Some(other) if other.is_member => Node::default(),
            Some(other) => {
                Node { is_member: node.is_member, children: node.children.difference_with_descendants(&other.children) }
            }
        })
    }

    /// The set with all fields that the schema names and that have members below them. An applied configuration does not own these, but
    /// without them it could not remove them.
    #[must_use]
    pub(super) fn with_named_fields(&self, schema: Option<Type<'_>>) -> Self {
        let complete = |(element, node): (&Element, &Node)| {
            let is_named = matches!((element, schema), (Element::Field(name), Some(schema)) if schema.names(name));
            let schema = schema.and_then(|schema| schema.at(element));
            let has_children = !node.children.is_empty();
            let node = Node {
                is_member: node.is_member || (is_named && has_children),
                children: node.children.with_named_fields(schema),
            };
            (element.clone(), node)
        };
        Self(self.0.iter().map(complete).collect())
    }

    /// The paths that begin with a field.
    #[must_use]
    pub(super) fn only(mut self, field: &str) -> Self {
        let node = self.0.remove_entry(&Element::field(field));
        Self(node.into_iter().collect())
    }

    /// All paths. At each level, the members come before those below them.
    pub fn paths(&self) -> Vec<Vec<Element>> {
        let mut paths = Vec::new();
        self.collect_paths(&mut Vec::new(), &mut paths);
        paths
    }

    fn collect_paths(&self, prefix: &mut Vec<Element>, paths: &mut Vec<Vec<Element>>) {
        for (element, _) in self.0.iter().filter(|(_, node)| node.is_member) {
            let mut path = prefix.clone();
            path.push(element.clone());
            paths.push(path);
        }
        for (element, node) in &self.0 {
            prefix.push(element.clone());
            node.children.collect_paths(prefix, paths);
            prefix.pop();
        }
    }
}

/// The message form of a path.
pub(super) fn path_text(path: &[Element]) -> String {
    path.iter().map(ToString::to_string).collect()
}

/// A node in `FieldsV1`: an object with the elements behind it, and `.` if it is a member itself.
struct Written<'s> {
    with_self: bool,
    set: &'s Set,
}

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if self.with_self && !self.set.is_empty() {
            map.serialize_entry(".", &serde_json::Map::new())?;
        }
        for (element, node) in &self.set.0 {
            map.serialize_entry(&element.to_text(), &Written { with_self: node.is_member, set: &node.children })?;
        }
        map.end()
    }
}

impl Serialize for Set {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Written { with_self: false, set: self }.serialize(serializer)
    }
}

/// A node that was read. An object without known elements is a member.
struct Read(Node);

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Nodes;

        impl<'de> Visitor<'de> for Nodes {
            type Value = Read;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Read, E> {
                Ok(Read(Node::member()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
                let mut node = Node::default();
                while let Some(text) = map.next_key::<String>()? {
                    if text == "." {
                        node.is_member = true;
                        map.next_value::<de::IgnoredAny>()?;
                        continue;
                    }
                    match Element::parse(&text) {
                        Ok(element) => node.children.attach(element, map.next_value::<Read>()?.0),
                        Err(Unreadable::Unknown) => drop(map.next_value::<de::IgnoredAny>()?),
                        Err(Unreadable::Malformed) => {
                            return Err(de::Error::custom(format!("{text:?} is not an element of a path")));
                        }
                    }
                }
                node.is_member |= node.children.is_empty();
                Ok(Read(node))
            }
        }

        deserializer.deserialize_any(Nodes)
    }
}

impl<'de> Deserialize<'de> for Set {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Read::deserialize(deserializer).map(|read| read.0.children)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::subsequence;
    use serde_json::json;

    fn set(text: &str) -> Set {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn sets_are_read_and_written_in_one_order() {
        let text = r#"{"f:a":{".":{},"f:b":{}},"f:c":{},"k:{\"n\":1}":{"f:d":{}},"v:\"x\"":{},"i:0":{}}"#;
        assert_eq!(serde_json::to_string(&set(text)).unwrap(), text);
        let shuffled = r#"{"i:0":{},"f:c":{},"x:future":{"f:e":{}},"f:a":{"f:b":{},".":{}},"v:\"x\"":null,"k:{\"n\":1}":{"f:d":{}}}"#;
        assert_eq!(set(shuffled), set(text));
        assert_eq!(serde_json::to_string(&Set::default()).unwrap(), "{}");
        assert!(serde_json::from_str::<Set>(r#"{"odd":{}}"#).is_err());
        assert!(serde_json::from_str::<Set>(r#"{"f:a":1}"#).is_err());
    }

    #[test]
    fn members_come_before_those_below_them() {
        let paths = set(r#"{"f:a":{"f:b":{}},"f:c":{".":{},"f:d":{}}}"#).paths();
        let paths: Vec<String> = paths.iter().map(|path| path_text(path)).collect();
        assert_eq!(paths, [".c", ".a.b", ".c.d"]);
    }

    #[test]
    fn descendants_are_removed_on_request() {
        let all = set(r#"{"f:a":{".":{},"f:b":{}},"f:c":{}}"#);
        let some = Set::of_fields(&[&["a"]]);
        assert_eq!(all.difference(&some), set(r#"{"f:a":{"f:b":{}},"f:c":{}}"#));
        assert_eq!(all.difference_with_descendants(&some), set(r#"{"f:c":{}}"#));
    }

    fn any_paths() -> impl Strategy<Value = Vec<Vec<Element>>> {
        let all: Vec<Vec<Element>> = [json!(1), json!(2), json!(3)]
            .iter()
            .flat_map(|number| {
                let first = Element::Value(number.clone());
                [vec![first.clone()], vec![first.clone(), Element::field("a")], vec![first, Element::Index(0)]]
            })
            .collect();
        subsequence(all, 0..9)
    }

    fn of(paths: &[Vec<Element>]) -> Set {
        let mut set = Set::default();
        paths.iter().for_each(|path| set.insert(path));
        set
    }

    proptest! {
        #[test]
        fn operations_are_those_of_sets(a in any_paths(), b in any_paths()) {
            let (first, second) = (of(&a), of(&b));
            let both: Vec<_> = a.iter().filter(|path| b.contains(path)).cloned().collect();
            let only: Vec<_> = a.iter().filter(|path| !b.contains(path)).cloned().collect();
            prop_assert_eq!(first.intersection(&second), of(&both));
            prop_assert_eq!(first.difference(&second), of(&only));
            prop_assert_eq!(first.union(&second), of(&[a.clone(), b].concat()));
            prop_assert!(a.iter().all(|path| first.contains(path)));
            let written = serde_json::to_string(&first).unwrap();
            prop_assert_eq!(set(&written), first);
        }
    }
}
