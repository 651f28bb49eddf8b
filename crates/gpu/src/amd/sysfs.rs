//! The files of the kernel below `/sys`, or those that a simulator provides in their place.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

/// Maximum number of bytes that are read of a file. Attributes of the kernel have at most a page of 4 KiB, up to 64 KiB on some machines.
const MAX_BYTES: u64 = 64 << 10;

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sysfs {
    /// In a folder, usually `/sys`.
    Folder(PathBuf),
    /// In memory: contents by path, such as `module/amdgpu/version`.
    Files(BTreeMap<String, String>),
}

impl Sysfs {
    /// The text of a file without surrounding white space; `None` if there is no such file, or if the kernel refuses to read it.
    pub fn read(&self, path: &str) -> Option<String> {
        let text = match self {
            Self::Files(files) => files.get(path)?.clone(),
            Self::Folder(root) => {
                let mut bytes = Vec::new();
                std::fs::File::open(root.join(path)).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
                String::from_utf8_lossy(&bytes).into_owned()
            }
        };
        Some(text.trim().to_owned())
    }

    /// The names in a folder, sorted; none if there is no such folder.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = match self {
            Self::Files(files) => {
                let below = files.keys().filter_map(|path| path.strip_prefix(folder)?.strip_prefix('/'));
                below.filter_map(|rest| rest.split('/').next()).map(str::to_owned).collect()
            }
            Self::Folder(root) => {
                let entries = std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
                entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            }
        };
        names.sort();
        names.dedup();
        names
    }

    /// Whether there is such a file or folder.
    pub fn exists(&self, path: &str) -> bool {
        match self {
            Self::Files(files) => files.contains_key(path) || !self.names(path).is_empty(),
            Self::Folder(root) => root.join(path).exists(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_memory_are_read_like_a_folder() {
        let files = [("a/b/c", "1\n"), ("a/b/d", " 2"), ("a/e", "3")];
        let root = std::env::temp_dir().join(slipway_core::ids::hex32());
        for (path, text) in files {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), text).unwrap();
        }
        let memory = Sysfs::Files(files.iter().map(|(p, t)| ((*p).to_owned(), (*t).to_owned())).collect());
        for sysfs in [memory, Sysfs::Folder(root.clone())] {
            assert_eq!(sysfs.names("a"), ["b", "e"]);
            assert_eq!(sysfs.names("a/b"), ["c", "d"]);
            assert!(sysfs.names("a/x").is_empty() && sysfs.exists("a/b") && !sysfs.exists("b"));
            assert_eq!((sysfs.read("a/b/c").as_deref(), sysfs.read("a/b")), (Some("1"), None));
        }
        std::fs::remove_dir_all(root).unwrap();
    }
}
