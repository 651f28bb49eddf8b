//! `slipway cluster init`: writes a first cluster file.

use std::io::{IsTerminal, Write};
use std::net::Ipv4Addr;
use std::path::Path;

use slipway_cluster::ClusterError;
use slipway_cluster::spec::ssh::Destination;
use slipway_cluster::spec::{Cluster, Ssh, minor};

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
        ("Control planes, one or three, as NAME=[USER@]ADDRESS[:PORT]", ""),
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

/// Words that YAML 1.1 or 1.2 readers take for a boolean or for null (yaml.org/type, "bool" and "null"; YAML 1.2, section 10.3.2).
const NOT_STRINGS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];

/// A text as a YAML scalar that every reader takes for this string. Anything but a simple word or an IPv4 address is quoted.
fn scalar(text: &str) -> String {
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._/".contains(c))
        && !NOT_STRINGS.contains(&text.to_ascii_lowercase().as_str());
    // A channel such as 1.36/stable is no number because of its slash, and four numbers with dots are none either.
    let is_plain = is_word || text.parse::<Ipv4Addr>().is_ok() || minor(text).is_some() && text.ends_with("/stable");
    // A JSON string is a double-quoted YAML scalar.
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// The settings of `ssh`, as lines with this indentation.
fn ssh_lines(ssh: &Ssh, indentation: &str) -> String {
    let mut out = String::new();
    let port = ssh.port.map(|port| port.to_string());
    let accept = ssh.accept_new_host_keys.then(|| "true".to_owned());
    let text = |value: &Option<String>| value.as_deref().map(scalar);
    for (key, value) in [
        ("user", text(&ssh.user)),
        ("port", port),
        ("identityFile", text(&ssh.identity_file)),
        ("knownHosts", text(&ssh.known_hosts)),
        ("acceptNewHostKeys", accept),
    ] {
        if let Some(value) = value {
            out += &format!("{indentation}{key}: {value}\n");
        }
    }
    out
}

/// The text of a cluster file, with `machines` as the arguments of `cluster init`: `[ROLE:]NAME=[USER@]ADDRESS[:PORT]`.
fn render(machines: &[String], name: &str, channel: &str, ssh: &Ssh) -> Result<String, String> {
    let name = scalar(name);
    let mut text = format!("apiVersion: slipway.dev/v1\nkind: Cluster\nmetadata:\n  name: {name}\nspec:\n");
    let common = ssh_lines(ssh, "    ");
    if !common.is_empty() {
        text += &format!("  ssh:\n{common}");
    }
    text += "  machines:\n";
    for machine in machines {
        let (roles, rest) = match machine.split_once(':') {
            Some(("worker", rest)) => ("worker", rest),
            Some(("gpu", rest)) => ("worker, gpu", rest),
            Some(("control-plane", rest)) => ("control-plane", rest),
            _ => ("control-plane", machine.as_str()),
        };
        let (name, address) = rest.split_once('=').ok_or_else(|| format!("{machine:?} is not NAME=ADDRESS"))?;
        let Destination { user, address, port } =
            Destination::parse(address).map_err(|reason| format!("{machine:?}: {reason}"))?;
        text += &format!("    - name: {}\n      address: {}\n", scalar(name), scalar(&address));
        let own = ssh_lines(&Ssh { user, port, ..Ssh::default() }, "        ");
        if !own.is_empty() {
            text += &format!("      ssh:\n{own}");
        }
        text += &format!("      roles: [{roles}]\n");
    }
    let channel = scalar(channel);
    Ok(text
        + &format!(
            "  kubernetes:\n    distribution: microk8s\n    channel: {channel}\n    addons: [dns, rbac, hostpath-storage, metrics-server]\n"
        ))
}

/// Writes the cluster file. An existing file is never overwritten.
pub(super) fn write(machines: &[String], name: &str, channel: &str, ssh: &Ssh, file: &Path) -> Result<(), Failure> {
    let text = render(machines, name, channel, ssh).map_err(invalid)?;
    let cluster = Cluster::parse(&text).map_err(invalid)?;
    let io = |source| ClusterError::Io { what: file.display().to_string(), source };
    let mut out = std::fs::File::options().write(true).create_new(true).open(file).map_err(io)?;
    out.write_all(text.as_bytes()).map_err(io)?;
    for warning in cluster.warnings(slipway_core::clock::now_ms()) {
        print_note(format_args!("warning: {warning}"));
    }
    print_note(format_args!("{} was written; next: slipway cluster plan -f {}", file.display(), file.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use slipway_cluster::spec::releases::DEFAULT_CHANNEL;

    use super::*;

    /// The text and its cluster.
    fn init(machines: &[&str], name: &str, ssh: &Ssh) -> Result<(String, Cluster), String> {
        let machines: Vec<String> = machines.iter().map(ToString::to_string).collect();
        let text = render(&machines, name, DEFAULT_CHANNEL, ssh)?;
        let cluster = Cluster::parse(&text)?;
        Ok((text, cluster))
    }

    #[test]
    fn users_ports_and_ipv6_addresses_become_fields() {
        let machines = [
            "cp1=10.0.0.1:2222",
            "worker:w1=[2001:db8::1]",
            "gpu:g1=ops@[fd00::1]:2222",
            "gpu:g2=fd00::2",
            "worker:w2=ops@w2.example",
        ];
        let (text, cluster) = init(&machines, "lab", &Ssh { user: Some("root".into()), ..Ssh::default() }).unwrap();
        let shown: Vec<String> = cluster
            .spec
            .machines
            .iter()
            .map(|m| {
                let ssh = cluster.ssh(m);
                format!("{} {} {} {}", m.name, ssh.user.unwrap(), m.address, ssh.port.unwrap_or(22))
            })
            .collect();
        let expected = [
            "cp1 root 10.0.0.1 2222",
            "w1 root 2001:db8::1 22",
            "g1 ops fd00::1 2222",
            "g2 root fd00::2 22",
            "w2 ops w2.example 22",
        ];
        assert_eq!(shown, expected, "{text}");
        assert!(text.contains("address: 10.0.0.1\n") && text.contains("channel: 1.36/stable\n"), "{text}");
    }

    #[test]
    fn names_that_look_like_other_types_are_quoted() {
        for name in ["1", "true", "1e3", "on", "null", "yes", "n", "0x1f", "1-2", "2026-11-29", "123456"] {
            let (text, cluster) = init(&[&format!("{name}=10.0.0.1")], name, &Ssh::default()).unwrap();
            assert!(text.contains(&format!("name: \"{name}\"\n")), "{text}");
            assert_eq!((cluster.metadata.name.as_str(), cluster.spec.machines[0].name.as_str()), (name, name));
        }
        let ssh =
            Ssh { identity_file: Some("/a b/#1: key".into()), known_hosts: Some("~/known".into()), ..Ssh::default() };
        let (_, cluster) = init(&["cp1=10.0.0.1"], "lab", &ssh).unwrap();
        assert_eq!(cluster.spec.ssh, ssh);
    }

    #[test]
    fn values_cannot_add_fields_to_the_file() {
        let evil = "10.0.0.1\n      ssh: {user: evil}";
        for machine in [
            &format!("cp1={evil}"),
            "cp1=10.0.0.1 # x",
            "cp1=",
            "=10.0.0.1",
            "cp1",
            "cp1=10.0.0.1:0",
            "a: b=10.0.0.1",
            "c{p=10.0.0.1",
            "wroker:w1=10.0.0.1",
        ] {
            assert!(init(&[machine], "lab", &Ssh::default()).is_err(), "{machine}");
        }
        for name in ["lab\nspec: {}", "lab # x", "", "-lab", &"l".repeat(64)] {
            assert!(init(&["cp1=10.0.0.1"], name, &Ssh::default()).is_err(), "{name}");
        }
        for user in ["root\n    port: 1", "-oProxyCommand=x", "a b"] {
            let ssh = Ssh { user: Some(user.into()), ..Ssh::default() };
            assert!(init(&["cp1=10.0.0.1"], "lab", &ssh).is_err(), "{user}");
        }
        let error = init(&["cp1=10.0.0.1", "worker:w1=10.0.0.1"], "lab", &Ssh::default()).unwrap_err();
        assert!(error.contains("'cp1' and 'w1'"), "{error}");
    }
}
