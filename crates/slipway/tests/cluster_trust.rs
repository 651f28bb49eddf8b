//! Reading a stranger's `cluster.yaml` runs nothing of it, and nothing of it acts on the terminal.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Stranger {
    folder: PathBuf,
}

impl Stranger {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("slipway-trust-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("home")).unwrap();
        let proof = folder.join("proof");
        // A port at which nobody listens, so that a plan ends at once.
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
        let said = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
        assert!(!said.contains(['\u{1b}', '\u{7}']), "{words}: {said:?}");
        (status.code().unwrap(), said)
    }

    fn ran(&self) -> usize {
        std::fs::read_to_string(self.folder.join("proof")).map_or(0, |text| text.lines().count())
    }

    fn agreements(&self) -> PathBuf {
        Path::new(&self.folder).join("home/slipway/trusted-commands.json")
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder); // a temporary folder
    }
}

#[test]
fn commands_of_a_file_run_after_an_agreement_and_not_before() {
    let stranger = Stranger::new();
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
        let (code, said) = stranger.run(words);
        assert_eq!(code, 4, "{words}: {said}");
        assert!(said.contains("cluster.untrusted") && said.contains("slipway cluster trust"), "{words}: {said}");
        assert!(
            said.contains("echo sudo >>") && said.contains("echo file >>") && said.contains(r"\u{1b}]0;title\u{7}"),
            "{said}"
        );
    }
    assert_eq!(stranger.run("resources cp1").0, 4);
    for words in ["schema", "status", "inventory --list", "trust --dry-run"] {
        assert_eq!(stranger.run(words).0, 0, "{words}");
    }
    // Nobody is there to be asked.
    let (code, said) = stranger.run("trust");
    assert_eq!(code, 1, "{said}");
    assert_eq!(stranger.run("plan").0, 4);
    assert!(stranger.ran() == 0 && !stranger.agreements().exists(), "nothing ran");

    let (code, said) = stranger.run("trust --yes");
    assert!(code == 0 && said.contains("spec.ssh.sudoPassword: echo sudo >>"), "{said}");
    let (code, said) = stranger.run("plan");
    assert_eq!(code, 5, "{said}");
    let ran = stranger.ran();
    assert!(ran > 0, "{said}");
    // What only prints runs nothing even then.
    assert!(stranger.run("resources cp1").0 == 4 && stranger.ran() == ran);
    let (code, said) = stranger.run("trust");
    assert!(code == 0 && said.contains("may run already"), "{said}");

    // One of them changes.
    let file = stranger.folder.join("cluster.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("echo file", "echo other")).unwrap();
    assert!(stranger.run("plan").0 == 4 && stranger.ran() == ran);
}
