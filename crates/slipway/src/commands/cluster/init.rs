//! `slipway cluster init`: writes a first cluster file.

use std::io::{IsTerminal, Write};
use std::path::Path;

use slipway_cluster::ClusterError;
use slipway_cluster::spec::Cluster;

use super::invalid;
use crate::Failure;
use crate::output::{print_note, prompt_line};

/// Prompts the user for a line; an empty line selects the default.
fn prompt(question: &str, default: &str) -> Result<String, Failure> {
    let shown = if default.is_empty() { String::new() } else { format!(" [{default}]") };
    let line = prompt_line(&format!("{question}{shown}: "))
        .map_err(|source| ClusterError::Io { what: "the terminal".into(), source })?;
    Ok(if line.is_empty() { default.to_owned() } else { line })
}

/// The machines, the name of the cluster and the SSH user, from the arguments or from prompts.
pub(super) fn answers(
    machines: Vec<String>,
    name: Option<String>,
    user: Option<String>,
) -> Result<(Vec<String>, String, Option<String>), Failure> {
    if !machines.is_empty() {
        return Ok((machines, name.unwrap_or_else(|| "lab".into()), user));
    }
    if !std::io::stdin().is_terminal() {
        return Err(invalid(
            "no machines were given, and there is no terminal to prompt for them; pass NAME=ADDRESS".into(),
        ));
    }
    let name = match name {
        Some(name) => name,
        None => prompt("Name of the cluster", "lab")?,
    };
    let mut machines = Vec::new();
    for (question, prefix) in [
        ("Control planes, one or three, as NAME=ADDRESS", ""),
        ("Workers without GPUs, as NAME=ADDRESS", "worker:"),
        ("Workers with GPUs, as NAME=ADDRESS", "gpu:"),
    ] {
        let line = prompt(question, "")?;
        machines.extend(line.split([' ', ',']).filter(|w| !w.is_empty()).map(|w| format!("{prefix}{w}")));
    }
    let user = match user {
        Some(user) => Some(user),
        None => Some(prompt("SSH user, empty for OpenSSH's default", "")?).filter(|u| !u.is_empty()),
    };
    Ok((machines, name, user))
}

/// Writes the cluster file. An existing file is never overwritten.
pub(super) fn write(machines: &[String], name: &str, channel: &str, ssh: &str, file: &Path) -> Result<(), Failure> {
    let mut text = format!("apiVersion: slipway.dev/v1\nkind: Cluster\nmetadata:\n  name: {name}\nspec:\n");
    if !ssh.is_empty() {
        text += &format!("  ssh:\n{ssh}");
    }
    text += "  machines:\n";
    for machine in machines {
        let (roles, rest) = match machine.split_once(':') {
            Some(("worker", rest)) => ("worker", rest),
            Some(("gpu", rest)) => ("worker, gpu", rest),
            _ => ("control-plane", machine.as_str()),
        };
        let (name, address) =
            rest.split_once('=').ok_or_else(|| invalid(format!("'{machine}' is not NAME=ADDRESS")))?;
        text += &format!("    - name: {name}\n      address: {address}\n      roles: [{roles}]\n");
    }
    text += &format!(
        "  kubernetes:\n    distribution: microk8s\n    channel: {channel}\n    addons: [dns, rbac, hostpath-storage, metrics-server]\n"
    );
    Cluster::parse(&text).map_err(invalid)?;
    let io = |source| ClusterError::Io { what: file.display().to_string(), source };
    let mut out = std::fs::File::options().write(true).create_new(true).open(file).map_err(io)?;
    out.write_all(text.as_bytes()).map_err(io)?;
    print_note(format_args!("{} was written; next: slipway cluster plan -f {}", file.display(), file.display()));
    Ok(())
}
