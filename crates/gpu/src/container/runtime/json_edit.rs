//! Sets single members in the text of a JSON object, for configuration files that people edit. The rest of the text stays as it is: order,
//! indentation, line ends and the final newline. New members follow the layout of their neighbours.
//!
//! Every position is found in a text that `serde_json` has accepted, so the scanner below need not report syntax errors.

use std::collections::HashSet;
use std::ops::Range;

use serde_json::Value;

/// A member of an object: positions in the text.
struct Member {
    name: String,
    key: Range<usize>,
    value: Range<usize>,
}

/// How the members of an object are laid out.
#[derive(Clone)]
struct Layout {
    /// Line end and indentation before each member; `None` if the object is on one line.
    line: Option<(&'static str, String)>,
    /// White space after the comma of an object on one line.
    gap: String,
    /// Between a key and its value, such as `": "`.
    colon: String,
    /// Indentation of one level.
    unit: String,
}

impl Layout {
    /// The layout of a file without members: lines, indented by two spaces.
    fn initial(text: &str) -> Self {
        let line = Some((line_end(text), "  ".to_owned()));
        Self { line, gap: " ".into(), colon: ": ".into(), unit: "  ".into() }
    }

    /// The layout of the members of `object`. `outer` is the layout of the object around it, or the initial layout.
    fn detect(text: &str, object: usize, members: &[Member], outer: &Self, is_root: bool) -> Self {
        let mut out = outer.clone();
        let Some(last) = members.last() else {
            if let (false, Some((_, indent))) = (is_root, &mut out.line) {
                indent.push_str(&outer.unit);
            }
            return out;
        };
        let colon = &text[last.key.end..last.value.start];
        out.colon = if colon.contains('\n') { ": ".into() } else { colon.to_owned() };
        let begin = members.len().checked_sub(2).map_or(object + 1, |previous| members[previous].value.end);
        let separator = text[begin..last.key.start].rsplit(',').next().unwrap_or_default();
        out.line = separator.rsplit_once('\n').map(|(_, indent)| (line_end(text), indent.to_owned()));
        out.gap = match members.len() {
            1 if out.colon.ends_with(char::is_whitespace) => " ".into(),
            1 => String::new(),
            _ => separator.to_owned(),
        };
        if let (true, Some((_, indent))) = (is_root, &out.line) {
            let outside = text[..object].rsplit('\n').next().unwrap_or_default();
            let unit = indent.strip_prefix(outside).unwrap_or(indent);
            out.unit = if unit.is_empty() { "  ".into() } else { unit.to_owned() };
        }
        out
    }
}

fn line_end(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

/// The position of the first byte at or after `at` that is not white space.
fn skip_space(text: &str, at: usize) -> usize {
    let rest = text.as_bytes().get(at..).unwrap_or_default();
    at + rest.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(rest.len())
}

/// The end of the value that begins at `at`. Not recursive, so nesting costs no stack.
fn skip_value(text: &str, at: usize) -> usize {
    let bytes = text.as_bytes();
    let (mut depth, mut position) = (0_usize, at);
    while let Some(byte) = bytes.get(position) {
        match byte {
            b'"' => {
                position += 1;
                while bytes.get(position).is_some_and(|b| *b != b'"') {
                    position += if bytes[position] == b'\\' { 2 } else { 1 };
                }
                position += 1;
            }
            b'{' | b'[' => (depth, position) = (depth + 1, position + 1),
            b'}' | b']' => (depth, position) = (depth.saturating_sub(1), position + 1),
            _ if depth == 0 => {
                let is_end = |b: &u8| b.is_ascii_whitespace() || b",:}]".contains(b);
                position += bytes[position..].iter().position(is_end).unwrap_or(bytes.len() - position);
            }
            _ => position += 1,
        }
        if depth == 0 {
            break;
        }
    }
    position.min(bytes.len())
}

/// The members of the object that begins at `object`.
fn members(text: &str, object: usize) -> Vec<Member> {
    let mut out = Vec::new();
    let mut at = skip_space(text, object + 1);
    while text.as_bytes().get(at) == Some(&b'"') {
        let key = at..skip_value(text, at);
        let start = skip_space(text, skip_space(text, key.end) + 1);
        let value = start..skip_value(text, start);
        at = skip_space(text, value.end);
        if text.as_bytes().get(at) == Some(&b',') {
            at = skip_space(text, at + 1);
        }
        let name = serde_json::from_str(&text[key.clone()]).unwrap_or_default();
        out.push(Member { name, key, value });
    }
    out
}

/// The first key that occurs a second time in its object, and its position. Programs disagree about which of the two counts.
fn repeated_key(text: &str) -> Option<(String, usize)> {
    // The keys of every open object; an open array has none.
    let mut open: Vec<HashSet<String>> = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.as_bytes().get(at) {
        let start = at;
        at = if *byte == b'"' { skip_value(text, at) } else { at + 1 };
        match byte {
            b'{' | b'[' => open.push(HashSet::new()),
            b'}' | b']' => drop(open.pop()),
            b'"' if text.as_bytes().get(skip_space(text, at)) == Some(&b':') => {
                let key: String = serde_json::from_str(&text[start..at]).unwrap_or_default();
                if open.last().is_some_and(|keys| keys.contains(&key)) {
                    return Some((key, start));
                }
                open.last_mut()?.insert(key);
            }
            _ => {}
        }
    }
    None
}

/// Sets the member at `path` to a value without members, and creates the objects around it if they are missing. Returns the new text, which
/// is the old one if the member has this value already.
///
/// # Errors
/// A message when the text is not a JSON object, when a part of the path is not an object, or when a key occurs twice in an object.
pub(super) fn set(text: &str, path: &[&str], value: &Value) -> Result<String, String> {
    let empty = if text.trim().is_empty() { "{}\n" } else { text };
    let root: Value = serde_json::from_str(empty).map_err(|e| e.to_string())?;
    if !root.is_object() {
        return Err("the file is not a JSON object".into());
    }
    if let Some((key, position)) = repeated_key(empty) {
        let line = empty[..position].matches('\n').count() + 1;
        return Err(format!("line {line}: '{key}' occurs twice in its object; remove one of the two"));
    }
    let mut text = empty.to_owned();
    let mut object = skip_space(&text, 0);
    let mut layout = Layout::initial(&text);
    for (level, key) in path.iter().enumerate() {
        let all = members(&text, object);
        layout = Layout::detect(&text, object, &all, &layout, level == 0);
        let member = all.iter().find(|member| member.name == *key);
        let is_last = level + 1 == path.len();
        object = match member {
            Some(member) if is_last => {
                if serde_json::from_str::<Value>(&text[member.value.clone()]).is_ok_and(|old| old == *value) {
                    return Ok(text);
                }
                text.replace_range(member.value.clone(), &value.to_string());
                member.value.start
            }
            Some(member) if text[member.value.clone()].starts_with('{') => member.value.start,
            Some(_) => return Err(format!("'{key}' is not an object")),
            None => {
                let new = if is_last { value.to_string() } else { "{}".into() };
                insert(&mut text, object, &all, &layout, key, &new)
            }
        };
    }
    Ok(text)
}

/// Inserts a member after the last one. Returns the position of its value.
fn insert(text: &mut String, object: usize, all: &[Member], layout: &Layout, key: &str, value: &str) -> usize {
    let key = format!("{}{}", Value::from(key), layout.colon);
    let before = match (&layout.line, all) {
        (Some((end, indent)), _) => format!("{end}{indent}"),
        (None, []) => String::new(),
        (None, _) => layout.gap.clone(),
    };
    let (range, comma, after) = match all.last() {
        Some(last) => (last.value.end..last.value.end, ",", String::new()),
        None => {
            // White space in an empty object is replaced. The closing brace is one level further out than the members.
            let outer = |(end, indent): &(&str, String)| {
                format!("{end}{}", indent.strip_suffix(layout.unit.as_str()).unwrap_or_default())
            };
            (object + 1..skip_space(text, object + 1), "", layout.line.as_ref().map(outer).unwrap_or_default())
        }
    };
    let position = range.start + comma.len() + before.len() + key.len();
    text.replace_range(range, &format!("{comma}{before}{key}{value}{after}"));
    position
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn edited(text: &str) -> String {
        let text = set(text, &["features", "cdi"], &json!(true)).unwrap();
        let text = set(&text, &["runtimes", "nvidia", "path"], &json!("/n")).unwrap();
        set(&text, &["runtimes", "nvidia", "args"], &json!([])).unwrap()
    }

    #[test]
    fn order_indentation_and_line_ends_are_kept() {
        let indented = "{\n_\"z\": 1,\n_\"features\": {\n__\"b\": false\n_},\n_\"a\": [1,2]\n}\n";
        let expected = "{\n_\"z\": 1,\n_\"features\": {\n__\"b\": false,\n__\"cdi\": true\n_},\n_\"a\": [1,2],\n_\"runtimes\": {\n__\"nvidia\": {\n___\"path\": \"/n\",\n___\"args\": []\n__}\n_}\n}\n";
        for unit in ["  ", "    ", "\t", " "] {
            for (from, to) in [("\n", "\n"), ("\n", "\r\n")] {
                for strip_end in [false, true] {
                    let layout = |text: &str| {
                        let text = text.replace('_', unit).replace(from, to);
                        if strip_end { text.trim_end().to_owned() } else { text }
                    };
                    assert_eq!(edited(&layout(indented)), layout(expected));
                }
            }
        }
    }

    #[test]
    fn objects_on_one_line_stay_on_one_line() {
        for (before, after) in [
            (
                "{\"z\":1,\"a\":2}",
                "{\"z\":1,\"a\":2,\"features\":{\"cdi\":true},\"runtimes\":{\"nvidia\":{\"path\":\"/n\",\"args\":[]}}}",
            ),
            (
                "{ \"z\": 1 }\n",
                "{ \"z\": 1, \"features\": {\"cdi\": true}, \"runtimes\": {\"nvidia\": {\"path\": \"/n\", \"args\": []}} }\n",
            ),
            (
                "{\n  \"features\": {\"b\": 1},\n  \"runtimes\": { }\n}",
                "{\n  \"features\": {\"b\": 1, \"cdi\": true},\n  \"runtimes\": {\n    \"nvidia\": {\n      \"path\": \"/n\",\n      \"args\": []\n    }\n  }\n}",
            ),
            (
                "",
                "{\n  \"features\": {\n    \"cdi\": true\n  },\n  \"runtimes\": {\n    \"nvidia\": {\n      \"path\": \"/n\",\n      \"args\": []\n    }\n  }\n}\n",
            ),
        ] {
            assert_eq!(edited(before), after);
            assert_eq!(edited(after), after, "the edit is idempotent");
        }
        let other = "{\"f\\u0065atures\" : { \"cdi\" : false }, \"s\": \"}\\\"{\"}";
        assert_eq!(set(other, &["features", "cdi"], &json!(true)).unwrap(), other.replace("false", "true"));
    }

    #[test]
    fn unclear_files_are_rejected() {
        for (text, reason) in [
            ("[]", "not a JSON object"),
            ("{\"features\": 1}", "'features' is not an object"),
            ("{\"features\": {}, \"features\": {}}", "line 1: 'features' occurs twice"),
            ("{\n\"log-opts\": [{\"a\": \"b\"}, {\"a\": 1,\n\n\"\\u0061\": 2}]}", "line 4: 'a' occurs twice"),
            ("{\"a\": \"a\", \"b\": [\"a\", \"a\"],\n\"b\": 1}", "line 2: 'b' occurs twice"),
            ("{\"features\": {},}", "trailing comma"),
            ("{} {}", "trailing characters"),
        ] {
            let error = set(text, &["features", "cdi"], &json!(true)).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    /// Any JSON value, with names that the edit may also use.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from)
        ];
        let name = || prop_oneof![Just("a".to_owned()), Just("b".to_owned()), Just("features".to_owned()), ".{0,3}"];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(name(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// The edited text has the value of an edited document, and repeating the edit changes nothing.
        #[test]
        fn text_and_document_agree(document in value(), pretty in any::<bool>(), path in proptest::collection::vec("a|b|features", 1..4)) {
            let text = if pretty { serde_json::to_string_pretty(&document).unwrap() } else { document.to_string() };
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            if let Ok(after) = set(&text, &path, &json!("new")) {
                let mut expected = document;
                let mut at = &mut expected;
                for key in &path {
                    at = at.as_object_mut().unwrap().entry(*key).or_insert_with(|| json!({}));
                }
                *at = json!("new");
                prop_assert_eq!(serde_json::from_str::<Value>(&after).unwrap(), expected);
                prop_assert_eq!(set(&after, &path, &json!("new")).unwrap(), after);
            }
        }

        #[test]
        fn arbitrary_text_is_edited_or_rejected(text in "[{}\\[\\]\":,\\\\a-c \n0-9]{0,40}|.{0,40}") {
            if let Ok(after) = set(&text, &["a", "b"], &json!(true)) {
                prop_assert_eq!(&serde_json::from_str::<Value>(&after).unwrap()["a"]["b"], &json!(true));
            }
        }
    }
}
