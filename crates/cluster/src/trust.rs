//! Which files may run commands here: by the file's path and a digest of its commands, in a file of the user's own.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::ClusterError;
use crate::spec::Cluster;

/// The agreements of a user.
#[derive(Debug)]
pub struct Agreements {
    path: PathBuf,
}

/// Digests by the path of the file.
type Document = BTreeMap<String, String>;

impl Agreements {
    /// Those in slipway's own folder.
    pub fn at(home: &Path) -> Self {
        Self { path: home.join("trusted-commands.json") }
    }

    fn error(&self, source: std::io::Error) -> ClusterError {
        ClusterError::Io { what: self.path.display().to_string(), source }
    }

    fn load(&self) -> Result<Document, ClusterError> {
        match std::fs::metadata(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Document::new()),
            // What others can write, or have written, is nobody's agreement.
            Ok(about) if about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o077 == 0 => {}
            Ok(_) => {
                let reason = "it is not this user's alone (mode 0600); remove it and agree again";
                return Err(self.error(std::io::Error::new(std::io::ErrorKind::PermissionDenied, reason)));
            }
            Err(e) => return Err(self.error(e)),
        }
        let bytes = std::fs::read(&self.path).map_err(|e| self.error(e))?;
        serde_json::from_slice(&bytes).map_err(|e| self.error(e.into()))
    }

    /// Lets a file's commands run where its user agreed to exactly these; any other file stays as it was read, and runs none.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when the file or the agreements cannot be read.
    pub fn apply(&self, file: &Path, cluster: &mut Cluster) -> Result<(), ClusterError> {
        if !cluster.commands().is_empty() && self.load()?.get(&key(file)?) == Some(&digest(cluster)?) {
            cluster.trust_commands();
        }
        Ok(())
    }

    /// Remembers that the file's commands may run.
    ///
    /// # Errors
    /// [`ClusterError::Io`] when that cannot be written.
    pub fn add(&self, file: &Path, cluster: &Cluster) -> Result<(), ClusterError> {
        let mut all = self.load()?;
        all.insert(key(file)?, digest(cluster)?);
        let text = serde_json::to_vec_pretty(&all).map_err(|e| self.error(e.into()))?;
        slipway_core::files::replace_as(&self.path, &text, 0o600).map_err(|e| self.error(e))
    }
}

/// The file by its absolute path without links.
fn key(file: &Path) -> Result<String, ClusterError> {
    let path = std::fs::canonicalize(file).map_err(ClusterError::io(file.display().to_string()))?;
    Ok(path.display().to_string())
}

/// SHA-256 of all commands, in hexadecimal digits. Their order and their places do not matter.
fn digest(cluster: &Cluster) -> Result<String, ClusterError> {
    let commands: BTreeSet<String> = cluster.commands().into_iter().map(|(_, command)| command).collect();
    let text = serde_json::to_vec(&commands).map_err(|e| ClusterError::io("the commands")(e.into()))?;
    let digest = ring::digest::digest(&ring::digest::SHA256, &text);
    Ok(digest.as_ref().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::spec::tests::FILE;

    #[test]
    fn an_agreement_is_for_one_file_and_its_commands() {
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
            agreements.apply(file, &mut cluster).map(|()| cluster.check_trusted().is_ok())
        };
        let (one, two) = (write("one.yaml", "echo a"), write("two.yaml", "echo a"));
        assert!(!runs(&one).unwrap());
        agreements.add(&one, &Cluster::read(&one).unwrap()).unwrap();
        assert!(runs(&one).unwrap() && !runs(&two).unwrap(), "another file with the same command is another file");
        let link = folder.join("link.yaml");
        std::os::unix::fs::symlink(&one, &link).unwrap();
        assert!(runs(&link).unwrap() && runs(&folder.join("./one.yaml")).unwrap());
        // The rest of the file may change, its commands may not.
        let text = std::fs::read_to_string(&one).unwrap();
        std::fs::write(&one, text.replace("10.0.0.3", "10.0.0.4")).unwrap();
        assert!(runs(&one).unwrap());
        write("one.yaml", "echo b");
        assert!(!runs(&one).unwrap());
        write("one.yaml", "echo a");
        assert!(runs(&one).unwrap());

        let kept = folder.join("trusted-commands.json");
        assert_eq!(std::fs::metadata(&kept).unwrap().mode() & 0o777, 0o600);
        assert!(
            !std::fs::read_to_string(&kept).unwrap().contains("echo"),
            "commands may hold what is nobody's business"
        );
        std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(runs(&one).is_err(), "what came with a clone of a repository is no agreement");
        std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&kept, "{").unwrap();
        assert!(runs(&one).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
