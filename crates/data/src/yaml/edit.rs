//! Edits of a text that keep everything that did not change.

use super::Value;
use super::anchors::MERGE_KEY;
use super::emit::{emit, emit_after, emit_key};
use super::parse::{Entry, Kind, Node, ParseError, parse_nodes};

/// Changes a text so that it has the value `new`. Entries of mappings keep their order and comments; new entries are appended, and entries
/// that `new` lacks are removed with their lines. A comment beside a value keeps its column if the value leaves room.
///
/// # Errors
/// If the text is not readable.
pub fn edit(text: &str, new: &Value) -> Result<String, ParseError> {
    let Some(root) = parse_nodes(text)? else { return Ok(format!("{text}{}", emit(new))) };
    let mut changes = Vec::new();
    if !compare(text, &root, new, &mut changes) {
        return Ok(emit(new));
    }
    changes.sort_by_key(|change| change.start);
    // The removal of the first entry of a mapping beside its dash reaches into the line of the next entry, which may change too.
    if changes.windows(2).any(|pair| pair[1].start < pair[0].end) {
        return Ok(emit(new));
    }
    let mut result = String::with_capacity(text.len());
    let mut at = 0;
    for change in changes {
        result.push_str(&text[at..change.start]);
        result.push_str(&change.text);
        at = change.end;
    }
    result.push_str(&text[at..]);
    Ok(result)
}

/// A replacement of some bytes.
struct Change {
    start: usize,
    end: usize,
    text: String,
}

/// Collects the changes from `old` to `new`. False if the text must be written anew, because its form does not allow the change.
fn compare(text: &str, old: &Node, new: &Value, changes: &mut Vec<Change>) -> bool {
    match (&old.value, new) {
        (Kind::Map(entries), Value::Map(wanted)) => compare_maps(text, old, entries, wanted, changes),
        (Kind::List(items), Value::List(wanted))
            if items.len() == wanted.len() && !text[old.span.start..].starts_with('*') =>
        {
            items.iter().zip(wanted).all(|(item, wanted)| compare(text, item, wanted, changes))
        }
        _ => old.to_value() == *new,
    }
}

fn compare_maps(
    text: &str,
    old: &Node,
    entries: &[Entry],
    wanted: &[(String, Value)],
    changes: &mut Vec<Change>,
) -> bool {
    if entries.iter().any(|entry| entry.key == MERGE_KEY) {
        return old.to_value() == Value::Map(wanted.to_vec());
    }
    // The text of an alias is elsewhere.
    if text[old.span.start..].starts_with('*') {
        return false;
    }
    let is_flow = text[old.span.start..].starts_with('{');
    for entry in entries {
        match wanted.iter().find(|(key, _)| *key == entry.key) {
            Some((_, value)) if entry.value.to_value() == *value => {}
            Some((_, value))
                if matches!(
                    (&entry.value.value, value),
                    (Kind::Map(_), Value::Map(_)) | (Kind::List(_), Value::List(_))
                ) =>
            {
                if !compare(text, &entry.value, value, changes) {
                    return false;
                }
            }
            Some(_) if is_flow => return false,
            Some((_, value)) => changes.push(replacement(text, entry, value)),
            None if is_flow => return false,
            None => {
                let Some(removal) = removal(text, entries, entry) else { return false };
                changes.push(removal);
            }
        }
    }
    let added: Vec<_> = wanted.iter().filter(|(key, _)| !entries.iter().any(|entry| entry.key == *key)).collect();
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return added.is_empty() };
    if added.is_empty() {
        return true;
    }
    if is_flow {
        return false;
    }
    let indent = first.start - line_start(text, first.start);
    let end = line_end(text, last.value.span.end.max(last.colon));
    let mut lines = String::new();
    if !text[..end].ends_with('\n') {
        lines.push('\n');
    }
    for (key, value) in added {
        let key = emit_key(key);
        lines.extend(std::iter::repeat_n(' ', indent));
        lines.push_str(&format!("{key}:{}", emit_after(value, indent + key.chars().count() + 1, indent + 2)));
    }
    changes.push(Change { start: end, end, text: lines });
    true
}

/// The change of the value of an entry.
fn replacement(text: &str, entry: &Entry, value: &Value) -> Change {
    let start = entry.start - line_start(text, entry.start);
    let column = entry.colon - line_start(text, entry.colon);
    let end = entry.value.span.end.max(entry.colon);
    let emitted = emit_after(value, column, start + 2);
    let mut written = emitted.trim_end_matches('\n').to_owned();
    let line = &text[end..line_end(text, end)];
    let comment = line.trim_start();
    if comment.starts_with('#') && !written.contains('\n') {
        // The comment keeps its column, and at least one space before it.
        let comment_column = end - line_start(text, end) + (line.len() - comment.len());
        let spaces = comment_column.saturating_sub(column + written.chars().count()).max(1);
        written.extend(std::iter::repeat_n(' ', spaces));
        return Change { start: entry.colon, end: end + line.len() - comment.len(), text: written };
    }
    Change { start: entry.colon, end, text: written }
}

/// The removal of an entry with its lines. The first entry of a mapping in a sequence shares its line with the dash: its place is taken by
/// the entry that follows.
fn removal(text: &str, entries: &[Entry], entry: &Entry) -> Option<Change> {
    let start = line_start(text, entry.start);
    let end = line_end(text, entry.value.span.end.max(entry.colon));
    if text[start..entry.start].trim().is_empty() {
        return Some(Change { start, end, text: String::new() });
    }
    let next = entries.iter().find(|other| other.start > entry.start)?;
    Some(Change { start: entry.start, end: next.start, text: String::new() })
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |i| i + 1)
}

/// The byte after the line break of the line.
fn line_end(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |i| at + i + 1)
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn with(text: &str, change: impl FnOnce(&mut Vec<(String, Value)>)) -> String {
        let mut value = parse(text).unwrap();
        let Value::Map(entries) = &mut value else { unreachable!() };
        let Value::List(outs) = &mut entries.iter_mut().find(|(k, _)| k == "outs").unwrap().1 else { unreachable!() };
        let Value::Map(out) = &mut outs[0] else { unreachable!() };
        change(out);
        let edited = edit(text, &value).unwrap();
        assert_eq!(parse(&edited).unwrap(), value, "{edited}");
        edited
    }

    #[test]
    fn comments_and_order_are_kept() {
        let text = "# about\nouts:\n- md5: aa  # digest\n  # the size\n  size: 3\n  path: x\n# end\nmeta:\n  k: 1\n";
        let edited = with(text, |out| {
            out[0].1 = Value::string("bbbb");
            out[1].1 = Value::number(1234);
            out.push(("hash".into(), Value::string("md5")));
        });
        let expected = "# about\nouts:\n- md5: bbbb # digest\n  # the size\n  size: 1234\n  path: x\n  hash: md5\n# end\nmeta:\n  k: 1\n";
        assert_eq!(edited, expected);
    }

    #[test]
    fn entries_are_removed_with_their_lines() {
        let text = "outs:\n- size: 3\n  md5: aa\n  nfiles: 2\n  path: x";
        let edited = with(text, |out| out.retain(|(key, _)| key != "nfiles"));
        assert_eq!(edited, "outs:\n- size: 3\n  md5: aa\n  path: x");
        let edited = with(text, |out| out.retain(|(key, _)| key != "size"));
        assert_eq!(edited, "outs:\n- md5: aa\n  nfiles: 2\n  path: x");
    }

    #[test]
    fn a_form_that_cannot_be_edited_is_written_anew() {
        let text = "outs:\n- size: 3\n  nfiles: 2\n  path: x # ours\n";
        let edited = with(text, |out| out.retain(|(key, _)| key == "path"));
        assert_eq!(edited, "outs:\n- path: x\n");
        let text = "outs: [{md5: aa, path: x}]\n";
        let edited = with(text, |out| out[0].1 = Value::string("bb"));
        assert_eq!(edited, "outs:\n- md5: bb\n  path: x\n");
    }
}
