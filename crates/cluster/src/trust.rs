//! The user's agreements to commands in `cluster.yaml` files.
//!
//! An agreement is stored in slipway's home, as the path of the file and a digest of all its commands. It no longer holds when a command
//! of the file changes.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::ClusterError;
use crate::spec::Cluster;

/// The file with the user's agreements.
#[derive(Debug)]
pub struct Agreements {
    path: PathBuf,
}

/// Digests of the commands, by the path of their `cluster.yaml`.
type Document = BTreeMap<String, String>;

impl Agreements {
    /// The agreements in slipway's home folder.
    pub fn at(home: &Path) -> Self {
        Self { path: home.join("trusted-commands.json") }
    }

    fn error(&self, source: std::io::Error) -> ClusterError {
        ClusterError::Io { what: self.path.display().to_string(), source }
    }

    fn load(&self) -> Result<Document, ClusterError> {
        match std::fs::metadata(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Document::new()),
            // A file that other users can write, or that came with a clone of a repository, is not the user's own agreement.
            Ok(metadata) if metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0 => {}
            Ok(_) => {
                let reason = "other users have access to it; remove it, and run `slipway cluster trust` again";
                return Err(self.error(std::io::Error::new(std::io::ErrorKind::PermissionDenied, reason)));
            }
            Err(e) => return Err(self.error(e)),
        }
        let bytes = std::fs::read(&self.path).map_err(|e| self.error(e))?;
        serde_json::from_slice(&bytes).map_err(|e| self.error(e.into()))
    }

    /// Allows the commands of a cluster if the user has agreed to exactly these commands of this file. Otherwise none is allowed.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when the file or the agreements cannot be read.
    pub fn allow_commands(&self, file: &Path, cluster: &mut Cluster) -> Result<(), ClusterError> {
        if !cluster.commands().is_empty() && self.load()?.get(&key(file)?) == Some(&digest(cluster)?) {
            cluster.trust_commands();
        }
        Ok(())
    }

    /// Stores the agreement to the current commands of a file.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when it cannot be written.
    pub fn add(&self, file: &Path, cluster: &Cluster) -> Result<(), ClusterError> {
        let mut all = self.load()?;
        all.insert(key(file)?, digest(cluster)?);
        let text = serde_json::to_vec_pretty(&all).map_err(|e| self.error(e.into()))?;
        slipway_core::files::replace_as(&self.path, &text, 0o600).map_err(|e| self.error(e))
    }
}

/// The absolute path of the file without symbolic links, which is its key in the document.
fn key(file: &Path) -> Result<String, ClusterError> {
    let path = std::fs::canonicalize(file).map_err(ClusterError::io(file.display().to_string()))?;
    Ok(path.display().to_string())
}

/// SHA-256 of all commands, in hexadecimal digits. The order of the commands and the fields that they are in do not matter.
fn digest(cluster: &Cluster) -> Result<String, ClusterError> {
    let commands: BTreeSet<String> = cluster.commands().into_iter().map(|(_, command)| command).collect();
    let text = serde_json::to_vec(&commands).map_err(|e| ClusterError::io("the commands")(e.into()))?;
    Ok(slipway_core::hex::encode(ring::digest::digest(&ring::digest::SHA256, &text).as_ref()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::spec::tests::FILE;

    #[test]
    fn agreement_holds_for_one_file_and_its_exact_commands() {
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, command: &str| {
            let ssh = format!("spec:\n  ssh: {{sudoPassword: {{command: '{command}'}}}}");
            std::fs::write(folder.join(name), FILE.replacen("spec:", &ssh, 1)).unwrap();
            folder.join(name)
        };
        let agreements = Agreements::at(&folder);
        let runs = |file: &Path| {
            let mut cluster = Cluster::read(file).unwrap();
            agreements.allow_commands(file, &mut cluster).map(|()| cluster.check_trusted().is_ok())
        };
        let (one, two) = (write("one.yaml", "echo a"), write("two.yaml", "echo a"));
        assert!(!runs(&one).unwrap());
        agreements.add(&one, &Cluster::read(&one).unwrap()).unwrap();
        assert!(
            runs(&one).unwrap() && !runs(&two).unwrap(),
            "an agreement does not hold for another file with the same command"
        );
        let link = folder.join("link.yaml");
        std::os::unix::fs::symlink(&one, &link).unwrap();
        assert!(runs(&link).unwrap() && runs(&folder.join("./one.yaml")).unwrap());
        // The agreement holds while other parts of the file change, but not when a command changes.
        let text = std::fs::read_to_string(&one).unwrap();
        std::fs::write(&one, text.replace("10.0.0.3", "10.0.0.4")).unwrap();
        assert!(runs(&one).unwrap());
        write("one.yaml", "echo b");
        assert!(!runs(&one).unwrap());
        write("one.yaml", "echo a");
        assert!(runs(&one).unwrap());

        let stored = folder.join("trusted-commands.json");
        assert_eq!(std::fs::metadata(&stored).unwrap().mode() & 0o777, 0o600);
        assert!(
            !std::fs::read_to_string(&stored).unwrap().contains("echo"),
            "commands may contain secrets, so only their digest is stored"
        );
        std::fs::set_permissions(&stored, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(runs(&one).is_err(), "a file that came with a clone of a repository is not an agreement");
        std::fs::set_permissions(&stored, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&stored, "{").unwrap();
        assert!(runs(&one).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
