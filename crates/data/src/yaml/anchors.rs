//! Anchors (`&name`), aliases (`*name`) and merge keys (`<<`).

use std::collections::BTreeMap;

use super::parse::{Entry, Kind, Node};

/// Maximum number of values that the aliases of a document stand for, so that nested aliases cannot fill the memory.
const MAX_ALIASED_VALUES: usize = 100_000;
/// The key whose value is merged into its mapping.
pub(super) const MERGE_KEY: &str = "<<";

/// The anchors of a document.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    nodes: BTreeMap<String, Node>,
    aliased: usize,
}

impl Anchors {
    /// Names a value.
    pub(super) fn define(&mut self, name: &str, node: &Node) {
        self.nodes.insert(name.to_owned(), node.clone());
    }

    /// The value of an alias, which may be nested up to `max_depth` levels.
    pub(super) fn resolve(&mut self, name: &str, max_depth: usize) -> Result<Kind, &'static str> {
        let node = self.nodes.get(name).ok_or("no value before it has the anchor of this alias")?;
        self.aliased += node.count();
        if self.aliased > MAX_ALIASED_VALUES {
            return Err("the aliases stand for too many values");
        }
        if node.depth() > max_depth {
            return Err("the aliases stand for values that are nested too deeply");
        }
        Ok(node.value.clone())
    }
}

impl Node {
    /// The number of levels of lists and mappings.
    fn depth(&self) -> usize {
        match &self.value {
            Kind::Scalar(_) => 0,
            Kind::List(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Kind::Map(entries) => 1 + entries.iter().map(|entry| entry.value.depth()).max().unwrap_or(0),
        }
    }

    /// The number of values in this one.
    fn count(&self) -> usize {
        1 + match &self.value {
            Kind::Scalar(_) => 0,
            Kind::List(items) => items.iter().map(Self::count).sum(),
            Kind::Map(entries) => entries.iter().map(|entry| entry.value.count()).sum(),
        }
    }
}

/// The entries of a mapping with those that its merge key adds. As in YAML's definition of it, entries of the mapping itself win, and of
/// several merged mappings the first.
pub(super) fn merged(entries: &[Entry]) -> Vec<(&str, &Node)> {
    let mut all: Vec<(&str, &Node)> = Vec::new();
    let own = entries.iter().filter(|entry| entry.key != MERGE_KEY);
    for source in entries.iter().filter(|entry| entry.key == MERGE_KEY) {
        let sources = match &source.value.value {
            Kind::List(items) => items.as_slice(),
            _ => std::slice::from_ref(&source.value),
        };
        for node in sources {
            let Kind::Map(inner) = &node.value else { continue };
            for (key, value) in merged(inner) {
                if !all.iter().any(|(known, _)| *known == key) {
                    all.push((key, value));
                }
            }
        }
    }
    for entry in own {
        match all.iter_mut().find(|(known, _)| *known == entry.key) {
            Some(known) => known.1 = &entry.value,
            None => all.push((&entry.key, &entry.value)),
        }
    }
    all
}

/// The name after `&` or `*` at the beginning of a text.
pub(super) fn name(text: &str) -> &str {
    let rest = text.get(1..).unwrap_or_default();
    &rest[..rest.find([' ', '\t', '\r', '\n', ',', '[', ']', '{', '}']).unwrap_or(rest.len())]
}

#[cfg(test)]
mod tests {
    use super::super::{edit, parse};

    #[test]
    fn aliases_stand_for_their_values() {
        let text = "base: &base\n  a: 1\n  b: [&x x, *x]\nuse:\n  <<: *base\n  b: 2\n  c: *x\nlist:\n- &l [1]\n- *l\n";
        let plain = "base:\n  a: 1\n  b: [x, x]\nuse:\n  a: 1\n  b: 2\n  c: x\nlist:\n- [1]\n- [1]\n";
        assert_eq!(parse(text), parse(plain));
    }

    #[test]
    fn anchors_survive_an_edit_elsewhere() {
        let text = "a: &x\n  k: 1\nb:\n  <<: *x\nc: 1\n";
        let new = parse("a:\n  k: 1\nb:\n  k: 1\nc: 2\n").unwrap();
        assert_eq!(edit(text, &new).unwrap(), "a: &x\n  k: 1\nb:\n  <<: *x\nc: 2\n");
    }

    #[test]
    fn nested_aliases_are_limited() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..9 {
            let items = vec![format!("*a{}", i - 1); 10].join(", ");
            text.push_str(&format!("a{i}: &a{i} [{items}]\n"));
        }
        assert!(parse(&text).is_err());
        assert!(parse("a: *b\n").is_err());
        let mut text = format!("a0: &a0 {}{}\n", "[".repeat(40), "]".repeat(40));
        text.push_str(&format!("a1: {}*a0{}\n", "[".repeat(40), "]".repeat(40)));
        assert!(parse(&text).is_err());
        for chain in [format!("a: [{}x]\n", "&b ".repeat(10_000)), format!("a: {}x\n", "&b ".repeat(10_000))] {
            assert!(parse(&chain).is_err());
        }
    }
}
