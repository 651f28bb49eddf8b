//! containerd as the container runtime of kubeadm: the package, its configuration, its proxy and its registries.
//!
//! A containerd that is installed already stays. Otherwise its package is `containerd.io`, from the machine's own repositories if they have
//! it, and else from Docker's: the archives of stable distributions have versions that current versions of Kubernetes do not support.
//!
//! Source: Kubernetes, "Container Runtimes" (`SystemdCgroup`); containerd, "CRI Plugin Config Guide" (a configuration of version 2 is read by
//! containerd 1.x and 2.x), "man containerd-config.toml" (`imports`); Docker, "Install Docker Engine" (repositories).

use super::packages::FUNCTIONS;
use super::{absent, command, file, proxy, registries};
use crate::ClusterError;
use crate::resource::{Layer, Resource, ResourceKind};
use crate::spec::Cluster;

const LAYER: Layer = Layer::Kubernetes;
const CONFIG: &str = "/etc/containerd/config.toml";
const REGISTRIES: &str = "/etc/containerd/certs.d";
/// Socket of containerd's CRI plugin.
pub(super) const SOCKET: &str = "unix:///run/containerd/containerd.sock";
const RESTART: &str = "systemctl daemon-reload; systemctl try-restart containerd";
const EFFECT: &str = "restarts containerd; pods keep running";

/// Adds Docker's repository.
const ADD_DOCKER: &str = r#"
add_docker() {
  . /etc/os-release
  if [ -n "$apt" ]; then
    case $ID in ubuntu|debian) ;; *) echo "Docker has no repository for $ID: add one that has containerd.io to spec.system.repositories"; return 1;; esac
    mkdir -p /etc/apt/keyrings && curl -fsSL --retry 3 -o /etc/apt/keyrings/slipway-docker.asc "https://download.docker.com/linux/$ID/gpg" || return
    printf 'Types: deb\nURIs: https://download.docker.com/linux/%s\nSuites: %s\nComponents: stable\nSigned-By: /etc/apt/keyrings/slipway-docker.asc\n' \
      "$ID" "$VERSION_CODENAME" >/etc/apt/sources.list.d/slipway-docker.sources
  else
    case $ID in rhel|fedora) name=$ID;; *) name=centos;; esac
    curl -fsSL --retry 3 -o /etc/yum.repos.d/slipway-docker.repo "https://download.docker.com/linux/$name/docker-ce.repo" || return
  fi
  update
}
"#;

/// `config.toml`. Files in `conf.d` belong to others, such as NVIDIA's container runtime.
fn config(cluster: &Cluster) -> String {
    const CRI: &str = "plugins.\"io.containerd.grpc.v1.cri\"";
    let cdi = cluster.spec.gpu.cdi;
    format!(
        "# Written by slipway; put your own settings into conf.d\nversion = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n\n\
         [{CRI}]\n  enable_cdi = {cdi}\n\n[{CRI}.registry]\n  config_path = \"{REGISTRIES}\"\n\n\
         [{CRI}.containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\n\
         [{CRI}.containerd.runtimes.runc.options]\n  SystemdCgroup = true\n"
    )
}

pub(super) fn resources(cluster: &Cluster) -> Result<Vec<Resource>, ClusterError> {
    let run = format!(
        "{}{FUNCTIONS}{ADD_DOCKER}known containerd.io || update; known containerd.io || add_docker || exit; get containerd.io",
        proxy::exports(cluster)
    );
    let mut package = command(LAYER, "containerd", "command -v containerd", &run, "containerd")
        .with_timeout(900)
        .effect("installs containerd");
    if let ResourceKind::Command { undo, .. } = &mut package.what {
        *undo = Some(format!(
            "{FUNCTIONS}systemctl disable --now --quiet containerd; remove containerd.io; \
             rm -rf --one-file-system /var/lib/containerd /run/containerd /opt/containerd; \
             rm -f /etc/apt/keyrings/slipway-docker.asc /etc/apt/sources.list.d/slipway-docker.sources /etc/yum.repos.d/slipway-docker.repo"
        ));
    }
    let drop_in = "/etc/systemd/system/containerd.service.d/50-slipway-proxy.conf";
    let environment: String = proxy::environment(cluster)
        .lines()
        .map(|line| format!("Environment=\"{}\"\n", line.replace('%', "%%")))
        .collect();
    let proxy = if environment.is_empty() {
        absent(LAYER, "proxy-containerd", drop_in)
    } else {
        file(LAYER, "proxy-containerd", drop_in, format!("[Service]\n{environment}"))
    };
    let settings = [file(LAYER, "containerd-config", CONFIG, config(cluster)), proxy];
    let mut out = vec![package];
    out.extend(settings.map(|r| r.then(RESTART).effect(EFFECT).needs(&["kubernetes/containerd"])));
    out.extend(registries::hosts(cluster, REGISTRIES)?);
    out.push(
        Resource::new(LAYER, "containerd-service", ResourceKind::Service { name: "containerd".into() })
            .needs(&["kubernetes/containerd"]),
    );
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    #[test]
    fn configuration_is_toml_with_systemd_cgroups_and_imports() {
        let text = config(&Cluster::parse(FILE).unwrap());
        let value: toml_edit::DocumentMut = text.parse().unwrap();
        let cri = &value["plugins"]["io.containerd.grpc.v1.cri"];
        assert_eq!(cri["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(cri["registry"]["config_path"].as_str(), Some(REGISTRIES));
        assert_eq!(value["imports"][0].as_str(), Some("/etc/containerd/conf.d/*.toml"));
    }
}
