//! The dialect of INI in DVC's configuration files: that of ConfigObj, with quoted values, lists, and sections such as `['remote "x"']`.
//!
//! A file is written as DVC would write it, except that comments, which DVC drops, stay with the line below or before them.

/// A configuration file: its sections in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ini {
    /// The sections in the order of the file.
    pub sections: Vec<Section>,
    /// Comment lines at the end.
    trailing: Vec<String>,
}

/// A section, such as `core` or `remote "x"`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Section {
    /// The name, in lower case except for the quoted part.
    pub name: String,
    /// The options in the order of the file.
    pub options: Vec<Setting>,
    comments: Vec<String>,
    beside: String,
}

/// An option of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The name, in lower case.
    pub name: String,
    /// The value; more than one for a list.
    pub values: Vec<String>,
    is_list: bool,
    comments: Vec<String>,
    beside: String,
}

impl Setting {
    /// The value; the items of a list are joined by commas.
    pub fn value(&self) -> String {
        self.values.join(",")
    }
}

impl Section {
    /// The value of an option.
    pub fn get(&self, name: &str) -> Option<String> {
        self.options.iter().find(|option| option.name == name).map(Setting::value)
    }

    /// Sets an option to a single value; a new one becomes the last.
    pub fn set(&mut self, name: &str, value: &str) {
        let values = vec![value.to_owned()];
        match self.options.iter_mut().find(|option| option.name == name) {
            Some(option) => (option.values, option.is_list) = (values, false),
            None => self.options.push(Setting {
                name: name.to_owned(),
                values,
                is_list: false,
                comments: Vec::new(),
                beside: String::new(),
            }),
        }
    }
}

/// The kind and name of a section such as `remote "x"`.
pub fn named(section: &str) -> Option<(&str, &str)> {
    let (kind, rest) = section.trim().split_once('"')?;
    let kind = kind.trim_end();
    let name = rest.strip_suffix('"')?;
    matches!(kind, "remote" | "machine" | "db").then_some((kind, name))
}

impl Ini {
    /// Reads a file.
    ///
    /// # Errors
    /// The line, from 1, and what is wrong there.
    pub fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut ini = Self::default();
        let mut comments = Vec::new();
        for (i, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let error = |reason| (i + 1, reason);
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                if !trimmed.is_empty() || !comments.is_empty() {
                    comments.push(line.to_owned());
                }
                continue;
            }
            if let Some(rest) = trimmed.strip_prefix('[') {
                let (name, after) = section_name(rest).ok_or_else(|| error("the section's name is not closed"))?;
                let name = lower_name(&name);
                if name.starts_with('[') {
                    return Err(error("nested sections are not supported"));
                }
                if ini.sections.iter().any(|section| section.name == name) {
                    return Err(error("the section occurs twice"));
                }
                let beside = after.trim().to_owned();
                if !beside.is_empty() && !beside.starts_with('#') {
                    return Err(error("text follows the section's name"));
                }
                ini.sections.push(Section {
                    name,
                    options: Vec::new(),
                    comments: std::mem::take(&mut comments),
                    beside,
                });
                continue;
            }
            let (name, value) = trimmed.split_once('=').ok_or_else(|| error("neither a section nor NAME = VALUE"))?;
            let name = unquote(name.trim()).to_lowercase();
            let (values, is_list, beside) =
                parse_values(value.trim()).ok_or_else(|| error("the quote is not closed"))?;
            let section = ini.sections.last_mut().ok_or_else(|| error("the option is in no section"))?;
            if name.is_empty() || section.options.iter().any(|option| option.name == name) {
                return Err(error("the option has no name, or occurs twice"));
            }
            section.options.push(Setting { name, values, is_list, comments: std::mem::take(&mut comments), beside });
        }
        while comments.last().is_some_and(|line: &String| line.trim().is_empty()) {
            comments.pop();
        }
        ini.trailing = comments;
        Ok(ini)
    }

    /// The section with this name.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The section with this name, created if necessary.
    pub fn section_mut(&mut self, name: &str) -> &mut Section {
        let at = self.sections.iter().position(|section| section.name == name).unwrap_or_else(|| {
            self.sections.push(Section { name: name.to_owned(), ..Section::default() });
            self.sections.len() - 1
        });
        &mut self.sections[at]
    }

    /// The text of the file, in DVC's form. Empty sections are left out, except those of remotes.
    pub fn to_text(&self, original: &[String], order: &[&str]) -> String {
        let rank = |section: &Section| match named(&section.name) {
            Some(("remote", _)) => (1, 0),
            Some(("machine", _)) => (2, 0),
            Some(_) => (3, 0),
            None => {
                let position = original.iter().position(|name| *name == section.name);
                let new =
                    || original.len() + order.iter().position(|name| *name == section.name).unwrap_or(order.len());
                (0, position.unwrap_or_else(new))
            }
        };
        let mut sections: Vec<&Section> = self
            .sections
            .iter()
            .filter(|section| !section.options.is_empty() || named(&section.name).is_some())
            .collect();
        sections.sort_by_key(|section| rank(section));
        let mut text = String::new();
        let beside = |comment: &str| if comment.is_empty() { String::new() } else { format!(" {comment}") };
        for section in sections {
            section.comments.iter().for_each(|line| text.push_str(&format!("{line}\n")));
            text.push_str(&format!("[{}]{}\n", quote(&section.name), beside(&section.beside)));
            for option in &section.options {
                option.comments.iter().for_each(|line| text.push_str(&format!("{line}\n")));
                let mut value = option.values.iter().map(|value| quote(value)).collect::<Vec<_>>().join(", ");
                if option.is_list && option.values.len() < 2 {
                    value.push(',');
                }
                text.push_str(&format!("    {} = {value}{}\n", quote(&option.name), beside(&option.beside)));
            }
        }
        self.trailing.iter().for_each(|line| text.push_str(&format!("{line}\n")));
        if text.is_empty() {
            text.push('\n'); // ConfigObj ends every file with a line break.
        }
        text
    }
}

/// Lower case, except for the part in double quotes, which is the name of a remote as its user wrote it.
fn lower_name(name: &str) -> String {
    match name.split_once('"') {
        Some((kind, rest)) => format!("{}\"{}", kind.to_lowercase(), rest.to_lowercase()),
        None => name.to_lowercase(),
    }
}

/// The name of a section after its opening bracket, and the text after the closing one.
fn section_name(rest: &str) -> Option<(String, &str)> {
    let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
    if let Some(quote) = quote {
        let end = rest[1..].find(quote)? + 1;
        let after = rest[end + 1..].trim_start().strip_prefix(']')?;
        return Some((rest[1..end].to_owned(), after));
    }
    let end = rest.find(']')?;
    Some((rest[..end].trim().to_owned(), &rest[end + 1..]))
}

fn unquote(text: &str) -> &str {
    let quoted = text.len() >= 2 && text.starts_with(['\'', '"']) && text.ends_with(&text[..1]);
    if quoted { &text[1..text.len() - 1] } else { text }
}

/// The values of an option, whether they form a list, and the comment beside them.
fn parse_values(text: &str) -> Option<(Vec<String>, bool, String)> {
    let mut values = Vec::new();
    let mut is_list = false;
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        if let Some(quote) = rest.chars().next().filter(|c| matches!(c, '\'' | '"')) {
            let end = rest[1..].find(quote)? + 1;
            values.push(rest[1..end].to_owned());
            rest = &rest[end + 1..];
        } else {
            let end = rest.find([',', '#']).unwrap_or(rest.len());
            let value = rest[..end].trim();
            if !value.is_empty() || (!is_list && !rest.starts_with(',')) {
                values.push(value.to_owned());
            }
            rest = &rest[end..];
        }
        rest = rest.trim_start();
        match rest.chars().next() {
            Some(',') => {
                is_list = true;
                rest = &rest[1..];
            }
            Some('#') => return Some((values, is_list, rest.to_owned())),
            Some(_) => return None,
            None => return Some((values, is_list, String::new())),
        }
        if rest.trim_start().is_empty() || rest.trim_start().starts_with('#') {
            return Some((values, is_list, rest.trim().to_owned()));
        }
    }
}

/// A value or name as ConfigObj writes it.
fn quote(text: &str) -> String {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_whitespace() || matches!(c, '\'' | '"'));
    let plain = !edge(text.chars().next()) && !edge(text.chars().next_back()) && !text.contains([',', '#']);
    match plain {
        true => text.to_owned(),
        false if text.contains('"') => format!("'{text}'"),
        false => format!("\"{text}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_as_dvc_does_and_keep_comments() {
        let text = "# ours\n[Core]\n    Remote = loc  # default\n\n['remote \"loc\"']\n    url = ../x\n    # the type\n    type = reflink,copy\n[cache]\n    dir = \"a,b\"\n# end\n";
        let mut ini = Ini::parse(text).unwrap();
        let original: Vec<String> = ini.sections.iter().map(|section| section.name.clone()).collect();
        ini.section_mut("state").set("x", "1 #");
        let written = ini.to_text(&original, &["core", "cache", "state"]);
        let expected = "# ours\n[core]\n    remote = loc # default\n[cache]\n    dir = \"a,b\"\n[state]\n    x = \"1 #\"\n['remote \"loc\"']\n    url = ../x\n    # the type\n    type = reflink, copy\n# end\n";
        assert_eq!(written, expected);
        assert_eq!(named("remote \"loc\""), Some(("remote", "loc")));
        assert_eq!(ini.section("remote \"loc\"").unwrap().get("type").as_deref(), Some("reflink,copy"));
    }

    #[test]
    fn invalid_files_are_rejected_with_the_line() {
        for (text, line) in [("x = 1\n", 1), ("[a]\nb\n", 2), ("[a\n", 1), ("[a]\nb = \"x\n", 2), ("[a]\n[a]\n", 2)] {
            assert_eq!(Ini::parse(text).map_err(|(line, _)| line), Err(line), "{text:?}");
        }
    }
}
