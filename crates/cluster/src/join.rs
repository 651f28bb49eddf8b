//! How a machine joins the cluster: with an invitation of MicroK8s, the token of K3s and RKE2, or `kubeadm join`.
//!
//! Tokens and keys are only sent to standard input, and never logged. Each way is safe to repeat.
//!
//! Source: MicroK8s, "Create a multi-node cluster"; K3s, "High Availability Embedded etcd"; Kubernetes, "Creating Highly Available Clusters with
//! kubeadm", "kubeadm join", "kubeadm token", "kubeadm init phase" (`upload-certs`).

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::ClusterError;
use crate::control::{Control, QUERY_TIMEOUT};
use crate::distribution::{Family, Rancher};
use crate::layers::kubeadm;
use crate::nodes::{START_TIMEOUT, run_microk8s};
use crate::shell::quote;
use crate::spec::ssh::url_host;
use crate::spec::{Machine, NetworkPlugin, Role};
use crate::state::Log;
use crate::transport::Host;
use crate::work::Work;

/// A join is retried, because a token may expire before it is used and the control plane may not be ready.
const JOIN_ATTEMPTS: u32 = 3;

/// The output of `microk8s add-node`: addresses to join, each with the token in it.
#[derive(Deserialize)]
struct Invitation {
    token: String,
    urls: Vec<String>,
}

/// Waits until the node is ready. A node without a network plugin is not ready until somebody has installed one.
async fn wait_joined(work: &Work, control: Control<'_>, machine: &Machine, log: &Log) -> Result<(), ClusterError> {
    if work.cluster.spec.network.plugin == Some(NetworkPlugin::None) {
        log.line("the node has joined; it becomes ready when a network plugin is installed");
        return Ok(());
    }
    control.wait_ready(&machine.name, None, log).await.map(drop)
}

/// Joins a machine to the cluster, and waits until its node is ready. Returns the number of changes.
pub(crate) async fn join(
    work: &Work,
    machine: &Machine,
    host: &Host,
    worker: bool,
    log: &Log,
) -> Result<usize, ClusterError> {
    let control = Control::first(work)?;
    if control.nodes().await?.contains_key(&machine.name) {
        return wait_joined(work, control, machine, log).await.map(|()| 0);
    }
    match control.distribution.family() {
        Family::Microk8s => join_microk8s(work, control, host, worker, log).await?,
        Family::Rancher(rancher) => join_rancher(control, rancher, machine, host, log).await?,
        Family::Kubeadm => join_kubeadm(work, control, machine, host, log).await?,
    }
    wait_joined(work, control, machine, log).await.map(|()| 1)
}

/// Gives the machine the address and the token of the cluster, and starts K3s or RKE2 there. The token is only sent to standard input, and
/// stored in a file that only root can read.
async fn join_rancher(
    control: Control<'_>,
    rancher: Rancher,
    machine: &Machine,
    host: &Host,
    log: &Log,
) -> Result<(), ClusterError> {
    let token = control.host.script(&format!("cat {}", rancher.token_file()), QUERY_TIMEOUT).await?;
    let server = format!("https://{}:{}", url_host(control.address), rancher.port);
    let settings = serde_json::json!({"server": server, "token": token.trim()}).to_string() + "\n";
    let (file, unit) = (quote(&rancher.join_file()), rancher.unit(machine));
    log.line(&format!("joins {server}"));
    let write = format!(
        "umask 077 && f={file} && mkdir -p \"${{f%/*}}\" && cat >\"$f.new\" && mv -f \"$f.new\" \"$f\" && systemctl daemon-reload && \
         systemctl enable --quiet {unit} && exec systemctl restart {unit}"
    );
    host.run(&write, settings.as_bytes(), START_TIMEOUT, |line| log.line(line)).await
}

/// Joins a machine to the cluster with an invitation of MicroK8s.
async fn join_microk8s(
    work: &Work,
    control: Control<'_>,
    host: &Host,
    worker: bool,
    log: &Log,
) -> Result<(), ClusterError> {
    let failure = |reason: String| ClusterError::Host { host: host.name.clone(), reason };
    let mut last_error = None;
    for attempt in 1..=JOIN_ATTEMPTS {
        let seconds = work.cluster.spec.kubernetes.token_seconds;
        let output = control.microk8s(&format!("add-node --token-ttl {seconds} --format json"), QUERY_TIMEOUT).await?;
        let invitation: Invitation = serde_json::from_str(&output)
            .map_err(|e| failure(format!("microk8s add-node printed unexpected output: {e}")))?;
        let prefix = format!("{}:", url_host(control.address));
        let url = invitation.urls.iter().find(|u| u.starts_with(&prefix)).or(invitation.urls.first());
        let Some(url) = url else { return Err(failure("microk8s add-node printed no address".into())) };
        let role = if worker { " --worker" } else { "" };
        let mut last_line = String::new();
        let joined = run_microk8s(host, &format!("join {}{role}", quote(url)), |line| {
            // The token gives access to the cluster, so it must not be logged.
            let line = line.replace(&invitation.token, "TOKEN");
            log.line(&line);
            last_line = line;
        })
        .await;
        match joined {
            Ok(()) => return Ok(()),
            Err(ClusterError::Host { .. }) => {
                log.line(&format!("attempt {attempt} of {JOIN_ATTEMPTS} to join failed"));
                last_error = Some(failure(format!("microk8s join: {last_line}")));
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            Err(other) => return Err(other),
        }
    }
    Err(last_error.unwrap_or_else(|| failure("the node did not join".into())))
}

/// The parts of the command that `kubeadm token create --print-join-command` prints: token and hash of the certificate authority.
fn parse_join_command(output: &str) -> Option<(String, String)> {
    let words: Vec<&str> = output.split_whitespace().collect();
    let after = |option: &str| words.iter().position(|w| *w == option).and_then(|at| words.get(at + 1));
    Some(((*after("--token")?).to_owned(), (*after("--discovery-token-ca-cert-hash")?).to_owned()))
}

/// The key that `kubeadm init phase upload-certs` prints: 32 bytes in hexadecimal.
fn parse_certificate_key(output: &str) -> Option<String> {
    let is_key = |line: &&str| line.len() == 64 && line.bytes().all(|b| b.is_ascii_hexdigit());
    output.lines().map(str::trim).rfind(is_key).map(str::to_owned)
}

/// Joins a machine with `kubeadm join`. The token is valid for `tokenSeconds` and is deleted afterwards; the certificates of the control plane
/// are encrypted with a key that Kubernetes deletes after two hours.
async fn join_kubeadm(
    work: &Work,
    control: Control<'_>,
    machine: &Machine,
    host: &Host,
    log: &Log,
) -> Result<(), ClusterError> {
    let failure = |host: &Host, reason: String| ClusterError::Host { host: host.name.clone(), reason };
    let seconds = work.cluster.spec.kubernetes.token_seconds;
    let output = control
        .host
        .script(&format!("kubeadm token create --ttl {seconds}s --print-join-command </dev/null"), QUERY_TIMEOUT)
        .await?;
    let (token, hash) = parse_join_command(&output)
        .ok_or_else(|| failure(control.host, "kubeadm token create printed no command to join".into()))?;
    let mut configuration = json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "JoinConfiguration",
        "discovery": {"bootstrapToken": {
            "token": token, "apiServerEndpoint": kubeadm::endpoint(&work.cluster), "caCertHashes": [hash],
        }},
        "nodeRegistration": kubeadm::node_registration(machine),
    });
    let mut secrets = vec![token.clone()];
    if machine.is(Role::ControlPlane) {
        let output =
            control.host.script("kubeadm init phase upload-certs --upload-certs </dev/null", QUERY_TIMEOUT).await?;
        let key = parse_certificate_key(&output)
            .ok_or_else(|| failure(control.host, "kubeadm init phase upload-certs printed no key".into()))?;
        configuration["controlPlane"] =
            json!({"localAPIEndpoint": kubeadm::local_endpoint(machine), "certificateKey": key});
        secrets.push(key);
    }
    log.line(&format!("joins {}", kubeadm::endpoint(&work.cluster)));
    // The configuration is in memory only, because /run is.
    let script = format!(
        "umask 077; f=$(mktemp /run/slipway-join.XXXXXX) || exit; trap 'rm -f \"$f\"' EXIT; cat >\"$f\"; exec 2>&1 </dev/null; {}\
         kubeadm join --config \"$f\" && {}",
        kubeadm::begin(),
        kubeadm::end()
    );
    let mut last = String::new();
    let joined = host
        .run(
            &format!("sh -c {}", quote(&script)),
            (configuration.to_string() + "\n").as_bytes(),
            START_TIMEOUT,
            |line| {
                let line = secrets.iter().fold(line.to_owned(), |line, secret| line.replace(secret.as_str(), "TOKEN"));
                log.line(&line);
                if !line.trim().is_empty() {
                    last = line;
                }
            },
        )
        .await;
    // The token is not needed any more. Its identifier, the part before the dot, is not secret; if the deletion fails, it expires.
    let id = token.split('.').next().unwrap_or_default();
    let _ = control.host.script(&format!("kubeadm token delete {} </dev/null", quote(id)), QUERY_TIMEOUT).await;
    joined.map_err(|error| match error {
        ClusterError::Host { .. } if !last.is_empty() => failure(host, format!("kubeadm join: {last}")),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_hash_and_key_are_found_in_the_output_of_kubeadm() {
        let command =
            "kubeadm join 10.0.0.1:6443 --token abcdef.0123456789abcdef --discovery-token-ca-cert-hash sha256:99aa \n";
        assert_eq!(parse_join_command(command), Some(("abcdef.0123456789abcdef".into(), "sha256:99aa".into())));
        assert_eq!(parse_join_command("W1129 could not reach the internet\n"), None);
        let key = "e6a2eb8581237ab72a4f494f30285ec12a9694d750b9785706a83bfcbbbd2204";
        let output = format!(
            "[upload-certs] Storing the certificates in Secret \"kubeadm-certs\" in the \"kube-system\" Namespace\n[upload-certs] Using certificate key:\n{key}\n"
        );
        assert_eq!(parse_certificate_key(&output).as_deref(), Some(key));
        assert_eq!(parse_certificate_key("error"), None);
    }
}
