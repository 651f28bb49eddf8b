//! Sources of secrets in `cluster.yaml`.
//!
//! A secret may be the output of a command. A command runs only if the user has allowed it ([`crate::trust`]), because the file may come
//! from someone else.

use std::collections::BTreeSet;
use std::process::Command;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cluster, expand_home};
use crate::ClusterError;

/// Source of a secret. The secret itself is never stored or logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum SecretSource {
    /// Name of an environment variable.
    Env(String),
    /// Path of a file. Line breaks at the end are removed.
    File(String),
    /// A shell command that prints the secret. It runs only after `slipway cluster trust`. Line breaks at the end are removed.
    Command(String),
}

/// Commands that may run on this machine, as their exact text. Empty by default, so that reading a file from someone else runs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedCommands(BTreeSet<String>);

impl Cluster {
    /// The commands of the file, as pairs of field and command.
    pub fn commands(&self) -> Vec<(String, String)> {
        let command = |(place, source): (String, &SecretSource)| match source {
            SecretSource::Command(command) => Some((place, command.clone())),
            SecretSource::Env(_) | SecretSource::File(_) => None,
        };
        self.secrets().into_iter().filter_map(command).collect()
    }

    /// Allows all commands of the file. Call it only after the user has agreed to exactly these commands.
    pub fn trust_commands(&mut self) {
        self.trusted = TrustedCommands(self.commands().into_iter().map(|(_, command)| command).collect());
    }

    /// Checks that all commands of the file are allowed.
    ///
    /// # Errors
    /// [`ClusterError::Untrusted`] with the commands that are not.
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
    /// Reads the secret.
    ///
    /// # Errors
    /// [`ClusterError::Secret`], whose message does not contain the secret; [`ClusterError::Untrusted`] for a command that is not in
    /// `trusted`.
    pub fn read(&self, trusted: &TrustedCommands) -> Result<String, ClusterError> {
        let error = |reason: String| ClusterError::Secret { name: format!("{self:?}"), reason };
        let text = match self {
            Self::Env(name) => std::env::var(name).map_err(|e| error(e.to_string()))?,
            Self::File(path) => std::fs::read_to_string(expand_home(path)).map_err(|e| error(e.to_string()))?,
            Self::Command(command) => {
                if !trusted.0.contains(command) {
                    return Err(ClusterError::Untrusted(format!("\n  {command}")));
                }
                let done = Command::new("sh").args(["-c", command]).output().map_err(|e| error(e.to_string()))?;
                if !done.status.success() {
                    return Err(error(format!("{}", done.status)));
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

    /// A file with a command in every field that takes a secret. Each command appends its own word to the file `proof`.
    pub(crate) fn file(proof: &str) -> String {
        let run = |word: &str| format!("{{command: 'echo {word} >>{proof}; echo secret'}}");
        let ssh = |word: &str| format!("ssh: {{sudoPassword: {}}}", run(word));
        let spec = format!(
            "spec:
  {}
  providers: {{do: {{digitalocean: {{token: {}, region: nyc2, sshKeys: ['1']}}}}, ps: {{paperspace: {{token: {}, region: r}}}}}}
  groups: [{{name: g, provider: do, size: s, image: i, count: 1, roles: [worker], {}}}]
  storage: {{classes: [{{name: a, share: {{smb: {{source: //s/d, user: u, password: {}}}}}}}]}}
  registries: [{{host: r.example, username: u, password: {}, ca: {}}}]
  system:
    repositories: [{{name: r, uri: 'https://r.example', suites: [s], components: [main], key: {}}}]
    files: [{{path: /etc/token, secret: {}}}]",
            ssh("all"),
            run("ocean"),
            run("space"),
            ssh("group"),
            run("smb"),
            run("pull"),
            run("ca"),
            run("key"),
            run("file")
        );
        FILE.replacen("spec:", &spec, 1).replacen("name: cp1,", &format!("name: cp1, {},", ssh("one")), 1)
    }

    #[test]
    fn commands_run_only_after_they_are_trusted() {
        let proof = std::env::temp_dir().join(slipway_core::ids::hex32());
        let mut cluster = Cluster::parse(&file(&proof.display().to_string())).unwrap();
        let connections = crate::transport::Connections::new(proof.with_extension("hosts")).unwrap();
        let state = crate::state::State::open(&proof.with_extension("home"), "lab").unwrap();
        let assert_untrusted = |result: Result<(), ClusterError>| {
            let error = result.unwrap_err();
            assert!(matches!(&error, ClusterError::Untrusted(text) if text.contains("echo secret")), "{error}");
        };
        let first = cluster.spec.machines[0].clone();
        assert_untrusted(crate::layers::desired_state(&cluster, &first).map(drop));
        assert_untrusted(connections.host(&cluster, &first).map(drop));
        assert_untrusted(crate::fleet::Fleet::connect(&cluster, &state).map(drop));
        assert_untrusted(cluster.check_trusted());
        let error = cluster.check_trusted().unwrap_err().to_string();
        for (place, word) in [
            ("spec.ssh.sudoPassword", "all"),
            ("spec.providers.do.token", "ocean"),
            ("spec.providers.ps.token", "space"),
            ("spec.groups: g: ssh.sudoPassword", "group"),
            ("spec.machines: cp1: ssh.sudoPassword", "one"),
            ("spec.registries: r.example: password", "pull"),
            ("spec.registries: r.example: ca", "ca"),
            ("spec.system.repositories: r: key", "key"),
            ("spec.system.files: /etc/token: secret", "file"),
            ("spec.storage.classes: a: password", "smb"),
        ] {
            assert!(error.contains(&format!("{place}: echo {word} >>")), "{place} in {error}");
        }
        assert!(!proof.exists(), "nothing ran");

        cluster.trust_commands();
        cluster.check_trusted().unwrap();
        crate::layers::desired_state(&cluster, &first).unwrap();
        connections.host(&cluster, &first).unwrap();
        let ran = std::fs::read_to_string(&proof).unwrap();
        assert_eq!(ran.lines().collect::<BTreeSet<_>>(), ["ca", "file", "key", "one", "pull", "smb"].into(), "{ran}");
        // A command that was changed afterwards is not trusted.
        cluster.spec.ssh.sudo_password = Some(SecretSource::Command("echo other; echo secret".into()));
        assert_untrusted(cluster.check_trusted());
        let second = cluster.spec.machines[1].clone();
        assert_untrusted(connections.host(&cluster, &second).map(drop));
        std::fs::remove_file(&proof).unwrap();
        std::fs::remove_dir_all(proof.with_extension("home")).unwrap();
    }

    /// [`Cluster::secrets`] is written by hand, so it is compared with the serialized file and with the schema.
    #[test]
    fn secrets_lists_every_secret_source() {
        let cluster = Cluster::parse(&file("proof")).unwrap();
        let text = serde_json::to_string(&cluster).unwrap();
        assert_eq!(text.matches(r#"{"command":"#).count(), cluster.commands().len());
        let schema = Cluster::schema().to_string();
        // Ssh, two providers, a registry with two, a repository, a file, and an SMB share.
        assert_eq!(schema.matches("#/$defs/SecretSource\"").count(), 8, "add the new secret to Cluster::secrets");
    }
}
