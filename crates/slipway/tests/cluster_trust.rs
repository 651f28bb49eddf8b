//! Commands in an untrusted `cluster.yaml` do not run before they are approved, and its text cannot control the terminal.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct UntrustedFile {
    folder: PathBuf,
}

impl UntrustedFile {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("slipway-trust-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("home")).unwrap();
        let proof = folder.join("proof");
        // Port 1 refuses connections, so that a plan fails at once.
        let text = format!(
            r#"apiVersion: slipway.dev/v1
kind: Cluster
metadata: {{name: lab}}
spec:
  ssh: {{port: 1, sudoPassword: {{command: "echo sudo >>{proof}; echo '\e]0;title\a'"}}}}
  machines: [{{name: cp1, address: 127.0.0.1, roles: [control-plane]}}]
  system: {{files: [{{path: /etc/token, secret: {{command: "echo file >>{proof}"}}}}]}}
  kubernetes: {{distribution: microk8s, channel: 1.32/stable}}
"#,
            proof = proof.display()
        );
        std::fs::write(folder.join("cluster.yaml"), text).unwrap();
        Self { folder }
    }

    fn run(&self, words: &str) -> (i32, String) {
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_slipway"))
            .arg("cluster")
            .args(words.split(' '))
            .current_dir(&self.folder)
            .env("HOME", self.folder.join("home"))
            .env("SLIPWAY_HOME", self.folder.join("home/slipway"))
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let output = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
        assert!(!output.contains(['\u{1b}', '\u{7}']), "{words}: {output:?}");
        (status.code().unwrap(), output)
    }

    fn executed_commands(&self) -> usize {
        std::fs::read_to_string(self.folder.join("proof")).map_or(0, |text| text.lines().count())
    }

    fn approvals_file(&self) -> PathBuf {
        Path::new(&self.folder).join("home/slipway/trusted-commands.json")
    }
}

impl Drop for UntrustedFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder); // A leftover temporary folder is harmless.
    }
}

#[test]
fn commands_run_only_after_they_are_approved() {
    let untrusted = UntrustedFile::new();
    for words in [
        "plan",
        "apply --yes",
        "status --drift",
        "doctor",
        "cost",
        "ssh cp1 -- true",
        "kubeconfig",
        "rollback --yes",
        "stop --yes",
    ] {
        let (code, output) = untrusted.run(words);
        assert_eq!(code, 4, "{words}: {output}");
        assert!(output.contains("cluster.untrusted") && output.contains("slipway cluster trust"), "{words}: {output}");
        assert!(
            output.contains("echo sudo >>")
                && output.contains("echo file >>")
                && output.contains(r"\u{1b}]0;title\u{7}"),
            "{output}"
        );
    }
    assert_eq!(untrusted.run("resources cp1").0, 4);
    for words in ["schema", "status", "inventory --list", "trust --dry-run"] {
        assert_eq!(untrusted.run(words).0, 0, "{words}");
    }
    // Without a terminal, the prompt is declined.
    let (code, output) = untrusted.run("trust");
    assert_eq!(code, 1, "{output}");
    assert_eq!(untrusted.run("plan").0, 4);
    assert!(untrusted.executed_commands() == 0 && !untrusted.approvals_file().exists(), "nothing ran");

    let (code, output) = untrusted.run("trust --yes");
    assert!(code == 0 && output.contains("spec.ssh.sudoPassword: echo sudo >>"), "{output}");
    let (code, output) = untrusted.run("plan");
    assert_eq!(code, 5, "{output}");
    let executed = untrusted.executed_commands();
    assert!(executed > 0, "{output}");
    // `resources` only prints and never runs commands.
    assert!(untrusted.run("resources cp1").0 == 4 && untrusted.executed_commands() == executed);
    let (code, output) = untrusted.run("trust");
    assert!(code == 0 && output.contains("already approved"), "{output}");

    // A changed command needs a new approval.
    let file = untrusted.folder.join("cluster.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("echo file", "echo other")).unwrap();
    assert!(untrusted.run("plan").0 == 4 && untrusted.executed_commands() == executed);
}
