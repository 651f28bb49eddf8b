//! Configuration that is spread over several files: which files a runtime reads besides the edited one, and what is in effect.

use std::path::{Component, Path, PathBuf};

use toml_edit::{DocumentMut, Item, TableLike};

use super::{invalid, read, toml};
use crate::GpuError;

/// Maximum number of files that are read for one configuration.
const MAX_FILES: usize = 256;

/// A configuration file that is read, but not edited.
pub(super) struct Layer {
    pub(super) path: PathBuf,
    pub(super) document: DocumentMut,
}

/// The other files of a configuration. A later file overrides an earlier one.
#[derive(Default)]
pub(super) struct Layers {
    /// The files that the runtime reads before the edited one.
    pub(super) earlier: Vec<Layer>,
    /// The files that the runtime reads after the edited one.
    pub(super) later: Vec<Layer>,
}

impl Layers {
    /// All documents, the one that overrides the others first.
    pub(super) fn by_precedence<'a>(&'a self, edited: &'a DocumentMut) -> impl Iterator<Item = &'a DocumentMut> {
        let documents = |layers: &'a [Layer]| layers.iter().rev().map(|layer| &layer.document);
        documents(&self.later).chain([edited]).chain(documents(&self.earlier))
    }

    /// The files of a folder of drop-ins beside the main file `main`, which is read first; the rest follows in the order of the names.
    /// `edited` is one of these files.
    pub(super) fn drop_ins(main: &Path, folder: &Path, extension: &str, edited: &Path) -> Result<Self, GpuError> {
        let mut layers = Self::default();
        if main != edited {
            layers.earlier.extend(Layer::read(main)?);
        }
        for path in glob(&folder.join(format!("*{extension}")))? {
            if path == edited {
                continue;
            }
            let is_earlier = edited != main && path < *edited;
            let list = if is_earlier { &mut layers.earlier } else { &mut layers.later };
            list.extend(Layer::read(&path)?);
        }
        Ok(layers)
    }
}

impl Layer {
    /// Reads a file; `None` if it does not exist.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, GpuError> {
        let text = read(path)?;
        if text.is_empty() {
            return Ok(None);
        }
        let document = toml::parse(&text).map_err(|e| GpuError::Invalid(format!("{}: {e}", path.display())))?;
        Ok(Some(Self { path: path.to_owned(), document }))
    }
}

/// The runtime whose settings NVIDIA's runtime takes over: the default runtime, else runc, else crun. As in nvidia-ctk, a default runtime
/// of NVIDIA is passed over, because its settings are those that are written.
pub(super) fn low_level_runtime<'a>(
    documents: &[&'a DocumentMut],
    default: impl Fn(&'a dyn TableLike) -> Option<&'a str>,
    runtime: impl Fn(&'a dyn TableLike, &str) -> Option<&'a Item>,
) -> Option<&'a dyn TableLike> {
    let default = documents.iter().find_map(|document| default(document.as_table()));
    let names = default.into_iter().filter(|name| !name.is_empty() && !name.starts_with(super::NVIDIA));
    names
        .chain(["runc", "crun"])
        .find_map(|name| documents.iter().find_map(|document| runtime(document.as_table(), name)?.as_table_like()))
}

/// A path without `.` and `..`, so that the same file always has the same name.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(out.pop()),
            _ => out.push(part),
        }
    }
    out
}

/// The files that match a pattern, sorted, as Go's `filepath.Glob` finds them: `*` and `?` stand for characters of one name.
pub(super) fn glob(pattern: &Path) -> Result<Vec<PathBuf>, GpuError> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let part = part.as_os_str();
        let text = part.to_string_lossy();
        let mut next = Vec::new();
        for folder in found {
            if !text.contains(['*', '?']) {
                next.push(folder.join(part));
                continue;
            }
            // A folder that does not exist has no files that match.
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            let names = entries.flatten().map(|entry| entry.file_name());
            next.extend(names.filter(|name| matches(&text, &name.to_string_lossy())).map(|name| folder.join(name)));
        }
        if next.len() > MAX_FILES {
            return Err(invalid(format!("'{}' matches more than {MAX_FILES} files", pattern.display())));
        }
        found = next;
    }
    found.retain(|path| path.exists());
    found.sort();
    Ok(found)
}

/// Whether a file name matches a pattern with `*` and `?`.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // The position after the last star, and the position in the name from which it is retried with one more character.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((after, taken)) = star else { return false };
                star = Some((after, taken + 1));
                (p, n) = (after, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names() {
        for (pattern, name, expected) in [
            ("*.toml", "99-nvidia.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml.bak", false),
            ("runtime_*.t?ml", "runtime_a.toml", true),
            ("*a*b*", "xaxxb", true),
            ("*a*b*", "xbxxa", false),
            ("a", "a", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
