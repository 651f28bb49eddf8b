//! Where secrets come from, and which commands may run for them.

use std::collections::BTreeSet;
use std::process::Command;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cluster, home};
use crate::ClusterError;

/// Where a secret comes from. It goes into no state and no log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum SecretSource {
    /// An environment variable.
    Env(String),
    /// A file, without the line's end.
    File(String),
    /// What a command prints, without the line's end. It runs once you agreed to it: `slipway cluster trust`.
    Command(String),
}

/// Commands that may run here, word for word. None by default, so that whoever only reads a stranger's file runs nothing of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedCommands(BTreeSet<String>);

impl Cluster {
    /// The commands of the file, each with the place where it stands.
    pub fn commands(&self) -> Vec<(String, String)> {
        let command = |(place, source): (String, &SecretSource)| match source {
            SecretSource::Command(command) => Some((place, command.clone())),
            SecretSource::Env(_) | SecretSource::File(_) => None,
        };
        self.secrets().into_iter().filter_map(command).collect()
    }

    /// Lets the commands of the file run, which its user has agreed to.
    pub fn trust_commands(&mut self) {
        self.trusted = TrustedCommands(self.commands().into_iter().map(|(_, command)| command).collect());
    }

    /// Refuses a file whose commands may not all run, and names them.
    ///
    /// # Errors
    /// [`ClusterError::Untrusted`].
    pub fn check_trusted(&self) -> Result<(), ClusterError> {
        let untrusted: Vec<String> = self
            .commands()
            .into_iter()
            .filter(|(_, command)| !self.trusted.0.contains(command))
            .map(|(place, command)| format!("\n  {place}: {command}"))
            .collect();
        if untrusted.is_empty() { Ok(()) } else { Err(ClusterError::Untrusted(untrusted.concat())) }
    }
}

impl SecretSource {
    /// The secret itself.
    ///
    /// # Errors
    /// [`ClusterError::Secret`], without the secret; [`ClusterError::Untrusted`] for a command that is not among the trusted ones.
    pub fn read(&self, trusted: &TrustedCommands) -> Result<String, ClusterError> {
        let wrong = |reason: String| ClusterError::Secret { name: format!("{self:?}"), reason };
        let text = match self {
            Self::Env(name) => std::env::var(name).map_err(|e| wrong(e.to_string()))?,
            Self::File(path) => std::fs::read_to_string(home(path)).map_err(|e| wrong(e.to_string()))?,
            Self::Command(command) => {
                if !trusted.0.contains(command) {
                    return Err(ClusterError::Untrusted(format!("\n  {command}")));
                }
                let done = Command::new("sh").args(["-c", command]).output().map_err(|e| wrong(e.to_string()))?;
                if !done.status.success() {
                    return Err(wrong(format!("{}", done.status)));
                }
                String::from_utf8_lossy(&done.stdout).into_owned()
            }
        };
        Ok(text.trim_end_matches(['\n', '\r']).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::FILE;
    use super::*;

    /// A file with a command in every place that takes a secret; each writes its own word into `proof`.
    pub(crate) fn file(proof: &str) -> String {
        let run = |word: &str| format!("{{command: 'echo {word} >>{proof}; echo secret'}}");
        let ssh = |word: &str| format!("ssh: {{sudoPassword: {}}}", run(word));
        let spec = format!(
            "spec:
  {}
  providers: {{do: {{digitalocean: {{token: {}, region: nyc2, sshKeys: ['1']}}}}, ps: {{paperspace: {{token: {}, region: r}}}}}}
  groups: [{{name: g, provider: do, size: s, image: i, count: 1, roles: [worker], {}}}]
  storage: {{classes: [{{name: a, share: {{smb: {{source: //s/d, user: u, password: {}}}}}}}]}}
  system:
    repositories: [{{name: r, uri: 'https://r.example', suites: [s], components: [main], key: {}}}]
    files: [{{path: /etc/token, secret: {}}}]",
            ssh("all"),
            run("ocean"),
            run("space"),
            ssh("group"),
            run("smb"),
            run("key"),
            run("file")
        );
        FILE.replacen("spec:", &spec, 1).replacen("name: cp1,", &format!("name: cp1, {},", ssh("one")), 1)
    }

    #[test]
    fn no_command_runs_before_somebody_agreed_to_it() {
        let proof = std::env::temp_dir().join(slipway_core::ids::hex32());
        let mut cluster = Cluster::parse(&file(&proof.display().to_string())).unwrap();
        let connections = crate::transport::Connections::new(proof.with_extension("hosts")).unwrap();
        let state = crate::state::State::open(&proof.with_extension("home"), "lab").unwrap();
        let refused = |done: Result<(), ClusterError>| {
            let error = done.unwrap_err();
            assert!(matches!(&error, ClusterError::Untrusted(text) if text.contains("echo secret")), "{error}");
        };
        let first = cluster.spec.machines[0].clone();
        refused(crate::layers::wanted(&cluster, &first).map(drop));
        refused(connections.host(&cluster, &first).map(drop));
        refused(crate::fleet::Fleet::connect(&cluster, &state).map(drop));
        refused(cluster.check_trusted());
        let error = cluster.check_trusted().unwrap_err().to_string();
        for (place, word) in [
            ("spec.ssh.sudoPassword", "all"),
            ("spec.providers.do.token", "ocean"),
            ("spec.providers.ps.token", "space"),
            ("spec.groups: g: ssh.sudoPassword", "group"),
            ("spec.machines: cp1: ssh.sudoPassword", "one"),
            ("spec.system.repositories: r: key", "key"),
            ("spec.system.files: /etc/token: secret", "file"),
            ("spec.storage.classes: a: password", "smb"),
        ] {
            assert!(error.contains(&format!("{place}: echo {word} >>")), "{place} in {error}");
        }
        assert!(!proof.exists(), "nothing ran");

        cluster.trust_commands();
        cluster.check_trusted().unwrap();
        crate::layers::wanted(&cluster, &first).unwrap();
        connections.host(&cluster, &first).unwrap();
        let ran = std::fs::read_to_string(&proof).unwrap();
        assert_eq!(ran.lines().collect::<BTreeSet<_>>(), ["file", "key", "one", "smb"].into(), "{ran}");
        // Another command, after the agreement.
        cluster.spec.ssh.sudo_password = Some(SecretSource::Command("echo other; echo secret".into()));
        refused(cluster.check_trusted());
        let second = cluster.spec.machines[1].clone();
        refused(connections.host(&cluster, &second).map(drop));
        std::fs::remove_file(&proof).unwrap();
        std::fs::remove_dir_all(proof.with_extension("home")).unwrap();
    }

    /// What serde knows of the file has no secret of which [`Cluster::secrets`] does not know.
    #[test]
    fn every_secret_of_the_file_is_known() {
        let cluster = Cluster::parse(&file("proof")).unwrap();
        let text = serde_json::to_string(&cluster).unwrap();
        assert_eq!(text.matches(r#"{"command":"#).count(), cluster.commands().len());
        let schema = Cluster::schema().to_string();
        // Ssh (in three places), two providers, a repository, a file, a share.
        assert_eq!(schema.matches("#/$defs/SecretSource\"").count(), 6, "a new secret belongs into Cluster::secrets");
    }
}
