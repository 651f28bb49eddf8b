//! Forms with a file (`multipart/form-data`, RFC 7578). A form is in memory, as its size is limited.

use axum::http::{HeaderMap, header};

/// A file in a form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File<'a> {
    pub(super) name: String,
    pub(super) content: &'a [u8],
}

/// The file in the field `field` of a form with these headers; `None` if the form is malformed or has no such file.
pub(super) fn file<'a>(headers: &HeaderMap, body: &'a [u8], field: &str) -> Option<File<'a>> {
    let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters, "boundary").filter(|boundary| (1..=70).contains(&boundary.len()))?;
    let delimiter = format!("--{boundary}");
    let mut rest = after(body, delimiter.as_bytes())?;
    // Two dashes follow the last delimiter, a line break any other.
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let end = find(part, format!("\r\n{delimiter}").as_bytes())?;
        let (head, content) = split(&part[..end], b"\r\n\r\n")?;
        rest = &part[end + 2 + delimiter.len()..];
        let Some(disposition) = disposition(head) else { continue };
        if parameter(disposition, "name").as_deref() == Some(field)
            && let Some(name) = parameter(disposition, "filename")
        {
            // Some clients send a path.
            let name = name.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
            return Some(File { name, content });
        }
    }
    None
}

/// The parameters of the header `Content-Disposition` among these lines.
fn disposition(head: &[u8]) -> Option<&str> {
    let head = std::str::from_utf8(head).ok()?;
    head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let (kind, parameters) = value.split_once(';')?;
        (name.eq_ignore_ascii_case("content-disposition") && kind.trim().eq_ignore_ascii_case("form-data"))
            .then_some(parameters)
    })
}

/// A parameter of a header, as in `name="a"; filename="b"`.
fn parameter(text: &str, wanted: &str) -> Option<String> {
    let mut rest = text;
    loop {
        let (name, after) = rest.split_once('=')?;
        let name = name.trim_start_matches([';', ' ', '\t']).trim();
        let value;
        if let Some(quoted) = after.strip_prefix('"') {
            let mut text = String::new();
            let mut chars = quoted.char_indices();
            let end = loop {
                match chars.next()? {
                    (at, '"') => break at + 1,
                    // Browsers escape only quotes, so that a backslash in a path stays.
                    (_, '\\') if chars.as_str().starts_with('"') => text.extend(chars.next().map(|(_, c)| c)),
                    (_, c) => text.push(c),
                }
            };
            (value, rest) = (text, &quoted[end..]);
        } else {
            let end = after.find(';').unwrap_or(after.len());
            (value, rest) = (after[..end].trim().to_owned(), &after[end..]);
        }
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

fn after<'a>(text: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    find(text, wanted).map(|at| &text[at + wanted.len()..])
}

fn split<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = find(text, separator)?;
    Some((&text[..at], &text[at + separator.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content_type: &str, body: &str) -> Option<(String, String)> {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, content_type.parse().unwrap())]);
        let file = file(&headers, body.as_bytes(), "uploadfile")?;
        Some((file.name, String::from_utf8(file.content.to_vec()).unwrap()))
    }

    const FORM: &str = "ignored\r\n--XX\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\nvalue\r\n--XX\r\n\
        content-disposition: form-data; name=\"uploadfile\"; filename=\"a \\\"b\\\".yaml\"\r\nContent-Type: application/octet-stream\r\n\r\n\
        line 1\r\n--X\r\nline 3\r\n--XX--\r\n";

    #[test]
    fn the_file_is_found() {
        let expected = Some(("a \"b\".yaml".to_owned(), "line 1\r\n--X\r\nline 3".to_owned()));
        assert_eq!(read("multipart/form-data; boundary=XX", FORM), expected);
        assert_eq!(read("Multipart/Form-Data; charset=utf-8; boundary=\"XX\"", FORM), expected);
        let path = FORM.replace("a \\\"b\\\".yaml", "C:\\x\\p.yaml");
        assert_eq!(read("multipart/form-data; boundary=XX", &path).unwrap().0, "p.yaml");
    }

    #[test]
    fn malformed_forms_have_no_file() {
        for content_type in
            ["text/plain", "multipart/form-data", "multipart/form-data; boundary=YY", "multipart/form-data; boundary="]
        {
            assert_eq!(read(content_type, FORM), None, "{content_type}");
        }
        for end in 0..FORM.len() - 5 {
            assert_eq!(read("multipart/form-data; boundary=XX", &FORM[..end]), None, "{end}");
        }
    }
}
