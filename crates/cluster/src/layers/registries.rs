//! Mirrors, certificate authorities and credentials of registries.
//!
//! Source: containerd, "Registry Configuration" (`hosts.toml`); K3s, "Private Registry Configuration" (`registries.yaml`).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{absent, command, id_part};
use crate::ClusterError;
use crate::resource::{Layer, Resource, ResourceKind, Text};
use crate::shell::quote;
use crate::spec::{Cluster, Registry};

const LAYER: Layer = Layer::Kubernetes;
/// First line of the files that slipway writes, by which it finds those of registries that are no longer in the file.
const MARK: &str = "# Written by slipway";

fn secret_file(name: &str, path: &str, text: String, secret: bool) -> Resource {
    let mode = if secret { "0600" } else { "0644" };
    let content = Text { text, secret };
    Resource::new(LAYER, name, ResourceKind::File { path: path.into(), content, mode: mode.into() })
}

/// `hosts.toml` of a registry: its mirrors in their order, and the registry itself at last.
fn hosts_toml(registry: &Registry, ca: Option<&str>, password: Option<&str>) -> String {
    let mut text = format!("{MARK}\nserver = \"{}\"\n", registry.server());
    for url in registry.configured() {
        let capabilities =
            if registry.endpoints.is_empty() { r#"["pull", "resolve", "push"]"# } else { r#"["pull", "resolve"]"# };
        text += &format!("\n[host.\"{url}\"]\n  capabilities = {capabilities}\n");
        if let Some(ca) = ca {
            text += &format!("  ca = \"{ca}\"\n");
        }
        if let (Some(user), Some(password)) = (&registry.username, password) {
            let basic = STANDARD.encode(format!("{user}:{password}"));
            text += &format!("  [host.\"{url}\".header]\n    Authorization = \"Basic {basic}\"\n");
        }
    }
    text
}

/// Files below a folder of containerd with a folder for each registry (`config_path`), which containerd reads at every pull.
pub(super) fn hosts(cluster: &Cluster, folder: &str) -> Result<Vec<Resource>, ClusterError> {
    let (mut out, mut paths) = (Vec::new(), Vec::new());
    for registry in &cluster.spec.registries {
        let folder = format!("{folder}/{}", registry.host);
        let name = id_part(&registry.host);
        let ca_path = format!("{folder}/slipway-ca.pem");
        if let Some(ca) = &registry.ca {
            out.push(secret_file(&format!("registry-ca-{name}"), &ca_path, ca.read(&cluster.trusted)? + "\n", false));
        }
        let password = registry.password.as_ref().map(|source| source.read(&cluster.trusted)).transpose()?;
        let text = hosts_toml(registry, registry.ca.as_ref().map(|_| ca_path.as_str()), password.as_deref());
        let path = format!("{folder}/hosts.toml");
        out.push(secret_file(&format!("registry-{name}"), &path, text, password.is_some()));
        paths.push(path);
    }
    // The empty pattern matches no path, so that the list of patterns is never empty.
    let keep: String = paths.iter().map(|path| format!(" -e {}", quote(path))).collect();
    let unused = format!("grep -lxF {} {folder}/*/hosts.toml 2>/dev/null | grep -vxF -e ''{keep}", quote(MARK));
    let run = format!(
        "{unused} | while read -r f; do rm -f \"$f\" \"${{f%/*}}/slipway-ca.pem\"; rmdir \"${{f%/*}}\" || true; done"
    );
    out.push(command(
        LAYER,
        "registries-unused",
        &format!("! {{ {unused}; }}"),
        &run,
        "registries that are no longer in the file",
    ));
    Ok(out)
}

/// `registries.yaml` of K3s and RKE2 below `/etc/rancher/NAME`, which they read when they start.
pub(super) fn rancher(cluster: &Cluster, name: &str) -> Result<Vec<Resource>, ClusterError> {
    let path = format!("/etc/rancher/{name}/registries.yaml");
    let registries = &cluster.spec.registries;
    if registries.is_empty() {
        return Ok(vec![absent(LAYER, "registries", &path)]);
    }
    let (mut out, mut mirrors, mut configs, mut secret) = (Vec::new(), BTreeMap::new(), BTreeMap::new(), false);
    for registry in registries {
        if !registry.endpoints.is_empty() {
            mirrors.insert(registry.host.clone(), json!({"endpoint": registry.endpoints}));
        }
        let mut config = serde_json::Map::new();
        if let Some(ca) = &registry.ca {
            let part = id_part(&registry.host);
            let path = format!("/etc/rancher/{name}/registry-ca-{part}.pem");
            out.push(secret_file(&format!("registry-ca-{part}"), &path, ca.read(&cluster.trusted)? + "\n", false));
            config.insert("tls".into(), json!({"ca_file": path}));
        }
        if let (Some(user), Some(password)) = (&registry.username, &registry.password) {
            secret = true;
            config.insert("auth".into(), json!({"username": user, "password": password.read(&cluster.trusted)?}));
        }
        if !config.is_empty() {
            for url in registry.configured() {
                // Configurations are keyed by host and port, without the scheme and the path.
                let host =
                    url.split("//").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default().to_owned();
                configs.insert(host, Value::Object(config.clone()));
            }
        }
    }
    // JSON is valid YAML.
    let text =
        serde_json::to_string_pretty(&json!({"mirrors": mirrors, "configs": configs})).unwrap_or_default() + "\n";
    out.push(secret_file("registries", &path, text, secret));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::secret::SecretSource;

    const REGISTRIES: &str = "spec:\n  registries:\n    - {host: docker.io, endpoints: ['https://a.example', 'https://b.example/v2/hub']}\n    - {host: 'own.example:5000', username: ada, password: {command: printf hunter2}, ca: {command: printf PEM}}\n";

    fn cluster(kubernetes: &str) -> Cluster {
        let text = crate::spec::tests::FILE.replace("spec:\n", REGISTRIES);
        let mut cluster = Cluster::parse(
            &text.replace("distribution: microk8s, channel: 1.32/stable, addons: [dns, metrics-server]", kubernetes),
        )
        .unwrap();
        cluster.trust_commands();
        assert!(matches!(cluster.spec.registries[1].password, Some(SecretSource::Command(_))));
        cluster
    }

    fn files(resources: &[Resource]) -> BTreeMap<String, (String, String)> {
        let file = |r: &Resource| match &r.what {
            ResourceKind::File { path, content, mode } => Some((path.clone(), (content.text.clone(), mode.clone()))),
            _ => None,
        };
        resources.iter().filter_map(file).collect()
    }

    #[test]
    fn hosts_files_have_mirrors_certificates_and_credentials() {
        let resources = hosts(&cluster("distribution: microk8s, channel: 1.36/stable"), "/c").unwrap();
        let files = files(&resources);
        let docker = "# Written by slipway\nserver = \"https://registry-1.docker.io\"\n\n[host.\"https://a.example\"]\n  capabilities = [\"pull\", \"resolve\"]\n\n[host.\"https://b.example/v2/hub\"]\n  capabilities = [\"pull\", \"resolve\"]\n";
        assert_eq!(files["/c/docker.io/hosts.toml"], (docker.into(), "0644".into()));
        let (own, mode) = &files["/c/own.example:5000/hosts.toml"];
        assert!(
            mode == "0600" && own.contains("ca = \"/c/own.example:5000/slipway-ca.pem\"") && own.contains("\"push\""),
            "{own}"
        );
        assert!(own.contains("Authorization = \"Basic YWRhOmh1bnRlcjI=\""), "{own}");
        assert!(own.parse::<toml_edit::DocumentMut>().is_ok());
        let shown: Vec<String> =
            resources.iter().flat_map(|r| r.check(&crate::probe::Facts::default())).map(|c| c.text).collect();
        assert!(!shown.join("\n").contains("YWRhOmh1bnRlcjI"), "{shown:?}");
    }

    #[test]
    fn only_files_of_slipway_are_removed() {
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        let write = |host: &str, text: &str| {
            std::fs::create_dir_all(folder.join(host)).unwrap();
            std::fs::write(folder.join(host).join("hosts.toml"), text).unwrap();
        };
        write("docker.io", "# Written by slipway\n");
        write("gone.example", "# Written by slipway\nserver = \"x\"\n");
        write("other.example", "server = \"x\"\n");
        let resources =
            hosts(&cluster("distribution: microk8s, channel: 1.36/stable"), folder.to_str().unwrap()).unwrap();
        let ResourceKind::Command { check, run, .. } = &resources.last().unwrap().what else { panic!() };
        let sh = |script: &str| std::process::Command::new("sh").args(["-c", script]).status().unwrap().success();
        assert!(!sh(check) && sh(run) && sh(check));
        let mut left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["docker.io", "other.example"]);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn registries_yaml_has_mirrors_and_configurations_by_host() {
        let files = files(&rancher(&cluster("distribution: k3s, version: v1.36.2+k3s1"), "k3s").unwrap());
        let (text, mode) = &files["/etc/rancher/k3s/registries.yaml"];
        let value: Value = serde_saphyr::from_str(text).unwrap();
        assert_eq!(value["mirrors"]["docker.io"]["endpoint"][1], "https://b.example/v2/hub");
        let own = &value["configs"]["own.example:5000"];
        assert_eq!(
            (&own["auth"]["password"], &own["tls"]["ca_file"]),
            (&json!("hunter2"), &json!("/etc/rancher/k3s/registry-ca-own.example-5000.pem"))
        );
        assert!(mode == "0600" && files["/etc/rancher/k3s/registry-ca-own.example-5000.pem"].0 == "PEM\n");
    }
}
