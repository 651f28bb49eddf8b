//! The layout of a remote: which path has which item. It is the layout of DVC's cache.

use std::fmt;

use crate::model::{Digest, HashName};

/// An item of a remote.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// The content of a file, or the manifest of a folder: `files/md5/XX/…`, and `XX/…` for digests of DVC 2.
    Object(HashName, Digest),
    /// The recorded results of a stage, `runs/XX/KEY/VALUE`, named by two SHA-256 digests of its lock entry.
    Run {
        /// The digest of the command, its dependencies and the names of its outputs.
        key: String,
        /// The digest of all of it, with the digests of the outputs.
        value: String,
    },
}

impl Item {
    /// Parses a path below the remote. Only the path that DVC writes is accepted: no other separators, and digits in lower case.
    pub fn parse(path: &str) -> Option<Self> {
        let segments: Vec<&str> = path.split('/').collect();
        let item = match segments[..] {
            ["files", "md5", shard, name] => Self::Object(HashName::Md5, Digest::parse(&format!("{shard}{name}"))?),
            ["runs", _, key, value] if is_sha256(key) && is_sha256(value) => {
                Self::Run { key: key.to_owned(), value: value.to_owned() }
            }
            [shard, name] => Self::Object(HashName::Dos2Unix, Digest::parse(&format!("{shard}{name}"))?),
            _ => return None,
        };
        (item.to_string() == path).then_some(item)
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(hash, digest) => {
                let (shard, name) = digest.object_name();
                let folder = if *hash == HashName::Md5 { "files/md5/" } else { "" };
                write!(f, "{folder}{shard}/{name}")
            }
            Self::Run { key, value } => write!(f, "runs/{}/{key}/{value}", key.get(..2).unwrap_or_default()),
        }
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_dvc_are_items() {
        let run = format!("runs/{0}/{1}/{1}", "ab", "ab".repeat(32));
        let digest = "d41d8cd98f00b204e9800998ecf8427e";
        let (shard, name) = digest.split_at(2);
        for path in [
            format!("files/md5/{shard}/{name}"),
            format!("files/md5/{shard}/{name}.dir"),
            format!("{shard}/{name}"),
            run.clone(),
        ] {
            assert_eq!(Item::parse(&path).map(|item| item.to_string()), Some(path));
        }
        for path in [
            String::new(),
            "..".into(),
            format!("files/md5/{shard}/../{name}"),
            format!("files/md5//{shard}{name}"),
            format!("files/md5/{digest}"),
            format!("files/md5/{}/{name}", "D4"),
            format!("files/md5/{shard}/{name}.dir.dir"),
            format!("files/md5/{shard}{}/{}", &name[..1], &name[1..]),
            format!("/files/md5/{shard}/{name}"),
            format!("files/sha256/{shard}/{name}"),
            run.replace("runs/ab", "runs/cd"),
            run.replace("abab", "ABAB"),
        ] {
            assert_eq!(Item::parse(&path), None, "{path}");
        }
    }
}
