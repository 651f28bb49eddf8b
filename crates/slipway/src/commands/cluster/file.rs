//! Read-only commands on a cluster file: inventory, SSH, resources and kubeconfig.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use slipway_cluster::ClusterError;
use slipway_cluster::layers;
use slipway_cluster::session::Session;
use slipway_cluster::spec::secret::TrustedCommands;
use slipway_cluster::spec::ssh::{Destination, url_host};
use slipway_cluster::spec::{Cluster, Machine, Role};

use super::{invalid, session_error};
use crate::Failure;
use crate::cli::cluster as cli;
use crate::output::{print_note, print_text};

/// The groups and hosts as an Ansible dynamic inventory (Ansible, "Developing dynamic inventory").
pub(super) fn inventory(cluster: &Cluster) -> Value {
    let names = |filter: &dyn Fn(&Machine) -> bool| -> Vec<&str> {
        cluster.spec.machines.iter().filter(|m| filter(m)).map(|m| m.name.as_str()).collect()
    };
    let variables = |machine: &Machine| {
        let ssh = cluster.ssh(machine);
        let mut out = serde_json::Map::new();
        let mut put = |key: &str, value: Option<Value>| out.extend(value.map(|v| (key.to_owned(), v)));
        let jump = ssh.jump_host().map(|jump| json!(format!("-o ProxyJump={}", jump.to_proxy_jump())));
        put("ansible_ssh_common_args", jump);
        put("ansible_host", Some(json!(machine.address)));
        put("ansible_user", ssh.user.map(|v| json!(v)));
        put("ansible_port", ssh.port.map(|v| json!(v)));
        put("ansible_ssh_private_key_file", ssh.identity_file.map(|v| json!(v)));
        put("slipway_roles", Some(json!(machine.roles)));
        Value::Object(out)
    };
    let hosts: serde_json::Map<String, Value> =
        cluster.spec.machines.iter().map(|m| (m.name.clone(), variables(m))).collect();
    json!({
        "_meta": {"hostvars": hosts},
        "all": {"children": ["control_plane", "workers", "gpu"]},
        "control_plane": {"hosts": names(&|m| m.is(Role::ControlPlane))},
        "workers": {"hosts": names(&|m| m.is(Role::Worker))},
        "gpu": {"hosts": names(&|m| m.is(Role::Gpu))},
    })
}

/// Opens a shell on a machine, or runs a command, by replacing this process with `ssh`.
pub(super) fn ssh(session: &Session, machine: &str, command: &[String]) -> Result<(), Failure> {
    let hosts = session.hosts(&[machine.to_owned()]).map_err(session_error)?;
    let (_, host) = hosts
        .first()
        .ok_or_else(|| invalid(format!("{machine} does not exist yet; create it with: slipway cluster apply")))?;
    let mut ssh = std::process::Command::new("ssh");
    if command.is_empty() && std::io::stdin().is_terminal() {
        ssh.arg("-t");
    }
    ssh.args(host.arguments(false)).args(command);
    Err(ClusterError::Io { what: "ssh".into(), source: ssh.exec() }.into())
}

/// Prints the desired state of a machine.
pub(super) fn resources(session: &Session, selection: &cli::Selection, machine: &str) -> Result<(), Failure> {
    let mut cluster = session.cluster()?;
    // This command only prints, so it runs no commands of the file, not even approved ones.
    cluster.trusted = TrustedCommands::default();
    let found = cluster.spec.machines.iter().find(|m| m.name == machine);
    let machine = found.ok_or_else(|| invalid(format!("there is no machine '{machine}' in the file")))?;
    let desired = layers::desired_state(&cluster, machine)?.only(&selection.only);
    print_text(&(serde_json::to_string_pretty(&desired).unwrap_or_default() + "\n"));
    Ok(())
}

/// The URL of the API server at `HOST` or `HOST:PORT`; `port` is the default.
fn api_server(authority: &str, port: u16) -> Result<String, String> {
    let Destination { user, address, port: own } = Destination::parse(authority)?;
    match user {
        Some(_) => Err(format!("'{authority}' is not HOST or HOST:PORT")),
        None => Ok(format!("https://{}:{}", url_host(&address), own.unwrap_or(port))),
    }
}

/// Prints or saves the administrator's kubeconfig with a unique cluster name and an address that is reachable from this machine.
pub(super) async fn kubeconfig(session: &Session, server: Option<&str>, save: Option<&Path>) -> Result<(), Failure> {
    let cluster = session.cluster()?;
    let first = cluster.first().ok_or_else(|| invalid("there is no control plane yet".into()))?;
    let hosts = session.hosts(std::slice::from_ref(&first.name)).map_err(session_error)?;
    let Some((_, host)) = hosts.first() else { return Ok(()) };
    let distribution = cluster.spec.kubernetes.distribution;
    let text = host.script(&distribution.print_kubeconfig(), Duration::from_secs(60)).await?;
    let other = |e: String| ClusterError::Host { host: first.name.clone(), reason: format!("its kubeconfig: {e}") };
    let mut config: Value = serde_saphyr::from_str(&text).map_err(|e| other(e.to_string()))?;
    let (name, user) = (&cluster.metadata.name, format!("{}-admin", cluster.metadata.name));
    if !(config["clusters"][0]["cluster"].is_object() && config["users"][0]["user"].is_object()) {
        return Err(other("the output contains no cluster or no user".into()).into());
    }
    config["clusters"][0]["name"] = json!(name);
    let authority = match (server, &cluster.spec.kubernetes.endpoint) {
        (None, Some(endpoint)) => endpoint.as_str(),
        (Some(server), _) => server,
        (None, None) => &first.address,
    };
    let server = api_server(authority, distribution.api_port()).map_err(invalid)?;
    config["clusters"][0]["cluster"]["server"] = json!(server);
    config["users"][0]["name"] = json!(user);
    config["contexts"] = json!([{"name": name, "context": {"cluster": name, "user": user}}]);
    config["current-context"] = json!(name);
    let text = serde_saphyr::to_string(&config).map_err(|e| other(e.to_string()))?;
    let Some(file) = save else {
        print_text(&text);
        return Ok(());
    };
    // The kubeconfig gives full control of the cluster, so only the user may read it.
    let io = |source| ClusterError::Io { what: file.display().to_string(), source };
    slipway_core::files::replace_as(file, text.as_bytes(), 0o600).map_err(io)?;
    print_note(format_args!("{} was written; next: kubectl --kubeconfig {} get nodes", file.display(), file.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_the_api_server_may_have_a_port() {
        let url = |authority: &str| api_server(authority, 6443);
        assert_eq!(url("lab.example.org").unwrap(), "https://lab.example.org:6443");
        assert_eq!(url("10.0.0.9:8443").unwrap(), "https://10.0.0.9:8443");
        assert_eq!(url("fd00::1").unwrap(), "https://[fd00::1]:6443");
        assert_eq!(url("[fd00::1]:443").unwrap(), "https://[fd00::1]:443");
        assert!(url("ada@lab").unwrap_err().contains("HOST:PORT") && url("https://lab").is_err());
    }
}
