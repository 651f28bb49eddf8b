//! Entries in `.gitignore` that keep tracked data out of Git, byte for byte those of DVC.

use std::path::Path;

use crate::error::DataError;

/// The line that ignores a file or folder in the folder of the `.gitignore`.
fn entry(name: &str) -> String {
    let mut line = String::from("/");
    for c in name.chars() {
        if matches!(c, '\\' | '[' | ']' | '!' | '*' | '#' | '?') {
            line.push('\\');
        }
        line.push(c);
    }
    line
}

/// Appends the entry of a path to the `.gitignore` in its folder. Returns whether the file changed.
///
/// # Errors
/// If the file cannot be read or written.
pub(crate) fn add(path: &Path) -> Result<bool, DataError> {
    let (file, name) = place(path)?;
    let text = read(&file)?.unwrap_or_default();
    let separator = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let line = entry(&name);
    if separator.is_empty() && text.lines().any(|existing| existing == line) {
        return Ok(false);
    }
    write(&file, &format!("{text}{separator}{line}\n"))?;
    Ok(true)
}

/// Removes the entry of a path from the `.gitignore` in its folder, and the file if nothing is left. Returns whether the file is left and
/// changed or unchanged, as opposed to removed or missing.
///
/// # Errors
/// If the file cannot be read or written.
pub(crate) fn remove(path: &Path) -> Result<bool, DataError> {
    let (file, name) = place(path)?;
    let Some(text) = read(&file)? else { return Ok(false) };
    // DVC looks for the name without escapes, so an escaped entry stays.
    let line = format!("/{name}");
    let kept: String = text.split_inclusive('\n').filter(|existing| existing.trim() != line.trim()).collect();
    if kept.is_empty() {
        std::fs::remove_file(&file).map_err(DataError::io(&file))?;
        return Ok(false);
    }
    if kept != text {
        write(&file, &kept)?;
    }
    Ok(true)
}

fn place(path: &Path) -> Result<(std::path::PathBuf, String), DataError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| DataError::Invalid(format!("{}: the name is not valid UTF-8", path.display())))?;
    Ok((path.with_file_name(".gitignore"), name.to_owned()))
}

fn read(file: &Path) -> Result<Option<String>, DataError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DataError::io(file)(error)),
    }
}

fn write(file: &Path, text: &str) -> Result<(), DataError> {
    slipway_core::files::replace(file, text.as_bytes()).map_err(DataError::io(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_those_of_dvc() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(".gitignore");
        let text = || std::fs::read_to_string(&file).unwrap();
        assert!(add(&folder.path().join("a b")).unwrap());
        assert_eq!(text(), "/a b\n");
        std::fs::write(&file, "x").unwrap();
        assert!(add(&folder.path().join("d*[1]")).unwrap());
        assert_eq!(text(), "x\n/d\\*\\[1\\]\n");
        assert!(!add(&folder.path().join("d*[1]")).unwrap());
        std::fs::write(&file, "/a\n").unwrap();
        assert!(!remove(&folder.path().join("a")).unwrap());
        assert!(!file.exists());
    }
}
