//! Previews of files: the first rows of a table, the beginning of a text, a picture.

use schemars::JsonSchema;
use serde::Serialize;

use super::objects::below;
use super::opened::Opened;
use crate::error::DataError;
use crate::model::Digest;
use crate::parquet;
use crate::reports::plots::separated_rows;
use crate::stage::Output;

/// Maximum bytes that are read of a table or text.
const MAX_TEXT_BYTES: u64 = 256 << 10;
/// Maximum characters of a text that are shown.
const MAX_SHOWN_CHARS: usize = 20_000;
/// Maximum rows of a table.
const MAX_ROWS: usize = 100;
/// Maximum columns of a table.
const MAX_COLUMNS: usize = 50;
/// Maximum characters of a cell.
const MAX_CELL_CHARS: usize = 300;
/// Maximum bytes of a Parquet file that is only in a remote.
const MAX_PARQUET_BYTES: u64 = 8 << 20;
/// Maximum bytes of a picture.
const MAX_PICTURE_BYTES: u64 = 8 << 20;

/// What a file is shown as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[schemars(rename = "ShownData")]
pub enum Shown {
    /// A table with comma- or tab-separated values, JSON lines, or a Parquet file.
    Table {
        /// The titles of the columns.
        columns: Vec<String>,
        /// The first rows.
        rows: Vec<Vec<String>>,
    },
    /// A text.
    Text {
        /// Its beginning.
        text: String,
    },
    /// A picture, which another route sends.
    Picture {
        /// Its media type.
        media: String,
    },
    /// Bytes that are not shown.
    Binary,
}

/// The preview of a file.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DataPreview")]
pub struct Preview {
    /// The digest of the file.
    pub digest: String,
    /// Bytes, if they are known.
    pub size: Option<u64>,
    /// Whether there is more than is shown.
    pub truncated: bool,
    /// What is shown.
    #[serde(flatten)]
    pub shown: Shown,
}

/// A picture.
#[derive(Debug)]
pub struct Picture {
    /// Its media type.
    pub media: &'static str,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The media type of a picture that consists of pixels, by its first bytes. Vector graphics can contain scripts and are text here.
fn picture_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

/// The text of a file's beginning; `None` for bytes that are no text. A character that is cut off at the end is left out.
fn text_of(bytes: &[u8], is_complete: bool) -> Option<&str> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if !is_complete && error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    (!text.contains('\0')).then_some(text)
}

fn cell(text: &str) -> String {
    match text.char_indices().nth(MAX_CELL_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The first rows of a table, and whether there are more; `None` if the name or content is not that of a table.
fn table(name: &str, text: &str, is_complete: bool) -> Option<(Shown, bool)> {
    // The last line may be cut off.
    let whole = if is_complete { text } else { text.rsplit_once('\n').map_or("", |(whole, _)| whole) };
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    let (columns, rows) = match extension.as_deref() {
        Some("csv") => separated(whole, ','),
        Some("tsv") => separated(whole, '\t'),
        Some("jsonl" | "ndjson") => json_lines(whole)?,
        _ => return None,
    };
    if columns.is_empty() {
        return None;
    }
    let is_cut = rows.len() > MAX_ROWS || columns.len() > MAX_COLUMNS;
    let cells = |row: &Vec<String>| row.iter().take(MAX_COLUMNS).map(|text| cell(text)).collect::<Vec<_>>();
    let rows = rows.iter().take(MAX_ROWS).map(cells).collect();
    Some((Shown::Table { columns: cells(&columns), rows }, is_cut || !is_complete))
}

fn separated(text: &str, separator: char) -> (Vec<String>, Vec<Vec<String>>) {
    let mut rows = separated_rows(text, separator).into_iter().filter(|row| row.len() > 1 || !row[0].is_empty());
    (rows.next().unwrap_or_default(), rows.take(MAX_ROWS + 1).collect())
}

fn json_lines(text: &str) -> Option<(Vec<String>, Vec<Vec<String>>)> {
    let mut columns: Vec<String> = Vec::new();
    let mut records = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()).take(MAX_ROWS + 1) {
        let record: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
        for name in record.keys() {
            if columns.len() <= MAX_COLUMNS && !columns.contains(name) {
                columns.push(name.clone());
            }
        }
        records.push(record);
    }
    let value = |value: Option<&serde_json::Value>| match value {
        None | Some(serde_json::Value::Null) => String::new(),
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let rows = records.iter().map(|record| columns.iter().map(|name| value(record.get(name))).collect()).collect();
    Some((columns, rows))
}

/// What the beginning of a file is shown as, and whether there is more.
fn show(name: &str, bytes: &[u8], is_complete: bool) -> (Shown, bool) {
    if let Some(media) = picture_type(bytes) {
        return (Shown::Picture { media: media.to_owned() }, false);
    }
    let Some(text) = text_of(bytes, is_complete) else { return (Shown::Binary, false) };
    table(name, text, is_complete).unwrap_or_else(|| match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => (Shown::Text { text: text[..end].to_owned() }, true),
        None => (Shown::Text { text: text.to_owned() }, !is_complete),
    })
}

impl Opened {
    /// The file at a path of a version: its output and digest.
    fn file(&self, path: &str) -> Result<(Output, Digest), DataError> {
        let (output, digest, part) = self.located(path)?;
        if !digest.is_dir {
            return Ok((output, digest));
        }
        let manifest = self.manifest(&output, &digest)?;
        let file = below(&manifest, &part).find(|(rest, _)| rest.is_empty()).map(|(_, digest)| *digest);
        file.map(|digest| (output, digest)).ok_or_else(|| DataError::Target(path.to_owned()))
    }

    /// The preview of the file at a path of a version.
    ///
    /// # Errors
    /// [`DataError::Target`] if no file is tracked there, [`DataError::Unavailable`] if its bytes are not.
    pub fn preview(&self, path: &str) -> Result<Preview, DataError> {
        let (output, digest) = self.file(path)?;
        let (bytes, is_complete) = self.object(&output, &digest, MAX_TEXT_BYTES)?;
        let (shown, truncated) = match parquet::is_parquet(&bytes) {
            true => self.parquet(&output, &digest, &bytes, is_complete)?,
            false => show(path, &bytes, is_complete),
        };
        let read = is_complete.then_some(bytes.len() as u64);
        let recorded = if output.digest == Some(digest) { output.meta.size } else { None };
        let size = read.or_else(|| self.cached_size(output.hash, &digest)).or(recorded);
        Ok(Preview { digest: digest.to_string(), size, truncated, shown })
    }

    /// The first rows of a Parquet file. Its metadata is at its end, so the file is in the cache or small.
    fn parquet(
        &self,
        output: &Output,
        digest: &Digest,
        start: &[u8],
        is_complete: bool,
    ) -> Result<(Shown, bool), DataError> {
        let found = if is_complete {
            parquet::first_rows(&start, MAX_ROWS, MAX_COLUMNS)
        } else if let Some(file) = self.project.cache_of(output.hash).open_object(digest)? {
            parquet::first_rows(&file, MAX_ROWS, MAX_COLUMNS)
        } else {
            let (bytes, is_complete) = self.object(output, digest, MAX_PARQUET_BYTES)?;
            if !is_complete {
                return Ok((Shown::Binary, true));
            }
            parquet::first_rows(&bytes.as_slice(), MAX_ROWS, MAX_COLUMNS)
        };
        Ok(match found {
            Ok(table) => {
                let cells = |row: &Vec<String>| row.iter().map(|text| cell(text)).collect::<Vec<_>>();
                let rows = table.rows.iter().map(cells).collect();
                (Shown::Table { columns: cells(&table.columns), rows }, table.has_more)
            }
            // A file that only begins like a Parquet file.
            Err(_) => (Shown::Binary, false),
        })
    }

    /// The picture at a path of a version.
    ///
    /// # Errors
    /// As [`Self::preview`]; [`DataError::Invalid`] for other files, [`DataError::Limit`] for a picture of more than 8 MiB.
    pub fn picture(&self, path: &str) -> Result<Picture, DataError> {
        let (output, digest) = self.file(path)?;
        let (bytes, is_complete) = self.object(&output, &digest, MAX_PICTURE_BYTES)?;
        let media = picture_type(&bytes).ok_or_else(|| DataError::Invalid(format!("'{path}' is not a picture")))?;
        match is_complete {
            true => Ok(Picture { media, bytes }),
            false => Err(DataError::Limit(format!("the picture '{path}' has more than 8 MiB"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn tables_show_whole_rows() {
        let (shown, truncated) = show("a.csv", b"x,y\n1,\"a, b\"\n2,c\n3,cut", false);
        let rows = vec![strings(&["1", "a, b"]), strings(&["2", "c"])];
        assert_eq!((shown, truncated), (Shown::Table { columns: strings(&["x", "y"]), rows }, true));
        let (shown, truncated) = show(
            "a.jsonl",
            br#"{"a": 1, "b": "x"}
{"b": [1], "c": null}"#,
            true,
        );
        let rows = vec![strings(&["1", "x", ""]), strings(&["", "[1]", ""])];
        assert_eq!((shown, truncated), (Shown::Table { columns: strings(&["a", "b", "c"]), rows }, false));
        let long = "v\n".to_owned() + &"x\n".repeat(500);
        let (shown, truncated) = show("a.tsv", long.as_bytes(), true);
        assert!(truncated && matches!(shown, Shown::Table { rows, .. } if rows.len() == MAX_ROWS));
    }

    #[test]
    fn what_is_no_table_is_text_or_bytes() {
        let text = |text: &str| Shown::Text { text: text.to_owned() };
        assert_eq!(show("a.jsonl", b"{broken", true), (text("{broken"), false));
        assert_eq!(show("a.csv", b"", true), (text(""), false));
        assert_eq!(show("a", "ü".as_bytes(), true), (text("ü"), false));
        assert_eq!(show("a", &"aü".as_bytes()[..2], false), (text("a"), true));
        assert_eq!(show("a", &[0xff, 0xfe], true), (Shown::Binary, false));
        assert_eq!(show("a", b"a\0b", true), (Shown::Binary, false));
        // The name does not decide what a picture is, and vector graphics are not one.
        assert_eq!(show("a.png", b"<script>", true), (text("<script>"), false));
        assert_eq!(show("a.svg", b"<svg/>", true), (text("<svg/>"), false));
        assert_eq!(show("a", b"GIF89a...", true).0, Shown::Picture { media: "image/gif".into() });
    }
}
