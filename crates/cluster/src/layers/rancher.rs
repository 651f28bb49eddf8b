//! The Kubernetes layer of a machine with K3s or RKE2: the program, its configuration, its systemd unit, and the service.
//!
//! A machine other than the first control plane must not start before it has joined, because it would create a cluster of its own. The join
//! step writes the file [`Rancher::join_file`](crate::distribution::Rancher::join_file) and starts the service.
//!
//! Source: K3s, "Configuration Options", "K3s Server", "High Availability Embedded etcd", `install.sh` (checksums, unit, uninstall script);
//! RKE2, "Install Options", "Tarball", "Server Configuration Reference".

use serde_json::{Map, Value, json};

use super::{CLEAN_NETWORK, absent, command, file, proxy, ready, registries};
use crate::ClusterError;
use crate::distribution::Rancher;
use crate::resource::{Layer, PackageManager, Resource, ResourceKind};
use crate::shell::quote;
use crate::spec::{Cluster, Distribution, Machine, Role};

const LAYER: Layer = Layer::Kubernetes;

/// The configuration: the options of `k3s server` or `k3s agent` without their dashes.
fn config(cluster: &Cluster, machine: &Machine) -> String {
    let (spec, mut out) = (&cluster.spec, Map::new());
    let mut put = |key: &str, value: Value| out.insert(key.to_owned(), value);
    put("node-name", json!(machine.name));
    if machine.internal().parse::<std::net::IpAddr>().is_ok() && spec.network.pods.len() < 2 {
        // With dual stack, a node needs an address of each family, which K3s finds by itself.
        put("node-ip", json!(machine.internal()));
    }
    if !spec.kubernetes.kubelet_args.is_empty() {
        let args: Vec<String> = spec.kubernetes.kubelet_args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        put("kubelet-arg", json!(args));
    }
    if machine.is(Role::ControlPlane) {
        let planes: Vec<&Machine> = spec.machines.iter().filter(|m| m.is(Role::ControlPlane)).collect();
        let mut names: Vec<&str> = planes.iter().flat_map(|m| [m.name.as_str(), &m.address, m.internal()]).collect();
        names.extend(spec.kubernetes.extra_sans.iter().map(String::as_str));
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(*name));
        put("tls-san", json!(names));
        // RKE2 always uses etcd. K3s converts the database of a single control plane to etcd when it starts with this option.
        if spec.kubernetes.distribution == Distribution::K3s && planes.len() > 1 && planes[0] == machine {
            put("cluster-init", json!(true));
        }
        for (key, networks) in [("cluster-cidr", &spec.network.pods), ("service-cidr", &spec.network.services)] {
            if !networks.is_empty() {
                put(key, json!(networks.join(",")));
            }
        }
    }
    // JSON is valid YAML.
    serde_json::to_string_pretty(&Value::Object(out)).unwrap_or_default() + "\n"
}

/// The unit as K3s' installer writes it. RKE2's archive has its own.
fn k3s_unit(unit: &str, server: bool) -> String {
    let (kind, verb) = if server { ("notify", "server") } else { ("exec", "agent") };
    format!(
        "[Unit]\nDescription=Lightweight Kubernetes\nWants=network-online.target\nAfter=network-online.target\n\n\
         [Service]\nType={kind}\nEnvironmentFile=-/etc/default/{unit}\nKillMode=process\nDelegate=yes\nLimitNOFILE=1048576\n\
         LimitNPROC=infinity\nLimitCORE=infinity\nTasksMax=infinity\nTimeoutStartSec=0\nRestart=always\nRestartSec=5s\n\
         ExecStartPre=-/sbin/modprobe br_netfilter\nExecStartPre=-/sbin/modprobe overlay\nExecStart=/usr/local/bin/k3s {verb}\n\n\
         [Install]\nWantedBy=multi-user.target\n"
    )
}

/// Shell commands that stop a service with its containers, and remove what it has written.
fn uninstall(rancher: Rancher, unit: &str) -> String {
    let name = rancher.name;
    // A stopped service leaves its containers running, and their mounts. `--one-file-system` keeps the files of a volume that could not be
    // unmounted.
    format!(
        "systemctl disable --now --quiet {unit} 2>/dev/null; \
         for p in $(pgrep -f '/var/lib/rancher/{name}/data/[^/]*/bin/containerd-shim'); do pkill -9 -P $p; kill -9 $p; done; \
         grep -oE ' (/run/k3s|/var/lib/kubelet|/var/lib/rancher/{name})[^ ]*' /proc/self/mounts | sort -r | xargs -r umount -f; \
         {CLEAN_NETWORK}\
         rm -rf --one-file-system /var/lib/rancher/{name} /run/k3s /var/lib/kubelet /var/lib/cni /etc/cni /etc/rancher/node /usr/local/share/{name}; \
         rm -f {} /etc/rancher/{name}/{name}.yaml /usr/local/bin/{name} /usr/local/bin/{name}-*.sh /usr/local/lib/systemd/system/{name}-*; \
         for d in /etc/rancher/{name}/config.yaml.d /etc/rancher/{name} /etc/rancher /var/lib/rancher; do [ ! -d $d ] || rmdir --ignore-fail-on-non-empty $d; done",
        rancher.join_file()
    )
}

/// The program in the file's version, with the checksum of its release.
fn program(cluster: &Cluster, rancher: Rancher, unit: &str) -> Resource {
    let kubernetes = &cluster.spec.kubernetes;
    let (name, version) = (rancher.name, kubernetes.release());
    let source = kubernetes.source.as_deref().unwrap_or(rancher.releases).trim_end_matches('/');
    // A plus sign of the version is part of the path, so it is encoded.
    let base = quote(&format!("{source}/{}", version.replace('+', "%2B")));
    // `k3s --version` prints `k3s version v1.36.2+k3s1 (0123abcd)`.
    let check = format!(
        "[ \"$(/usr/local/bin/{name} --version 2>/dev/null | sed -n 's/^{name} version \\([^ ]*\\).*/\\1/p')\" = {} ]",
        quote(version)
    );
    let (file, install) = match kubernetes.distribution {
        Distribution::Rke2 => {
            ("rke2.linux-$arch.tar.gz", "tar -xzf \"$f\" -C /usr/local && systemctl daemon-reload".to_owned())
        }
        _ => (
            "k3s$suffix",
            format!(
                "install -m 755 \"$f\" /usr/local/bin/.{name}.slipway && mv -f /usr/local/bin/.{name}.slipway /usr/local/bin/{name}"
            ),
        ),
    };
    let previous = format!("/var/lib/slipway/{name}.previous");
    let run = format!(
        "{}case $(uname -m) in x86_64) arch=amd64 suffix=;; aarch64) arch=arm64 suffix=-arm64;; *) echo \"there is no {name} for $(uname -m)\"; exit 1;; esac; \
         d=$(mktemp -d) && trap 'rm -rf \"$d\"' EXIT && cd \"$d\" && f={file} && \
         curl -sSfL --retry 3 -o sums {base}/sha256sum-$arch.txt && curl -sSfL --retry 3 -o \"$f\" {base}/\"$f\" && \
         grep \" \\*\\{{0,1\\}}$f\\$\" sums >sum && sha256sum -c --quiet sum && \
         {{ [ ! -e /usr/local/bin/{name} ] || {{ mkdir -p /var/lib/slipway && cp -p /usr/local/bin/{name} {previous}; }}; }} && {install} && \
         {{ ! command -v restorecon >/dev/null || restorecon /usr/local/bin/{name}; }}",
        proxy::exports(cluster)
    );
    let mut out = command(LAYER, name, &check, &run, &format!("{name} {version}")).with_timeout(1200);
    if let ResourceKind::Command { undo, .. } = &mut out.what {
        // An upgrade is undone by the program that was there before, an installation by removing everything.
        *undo = Some(format!(
            "if [ -e {previous} ]; then mv -f {previous} /usr/local/bin/{name}; {}; else {}; fi",
            restart(unit),
            uninstall(rancher, unit)
        ));
    }
    out.then(restart(unit)).effect(format!("downloads {name}, and restarts it if it is running; pods keep running"))
}

/// SELinux: the policy of K3s or RKE2 from Rancher's repository, which brings container-selinux, and the option that confines containers.
///
/// Source: K3s, "SELinux"; RKE2, "SELinux", "Install Methods" (repository `common`).
fn selinux(cluster: &Cluster, rancher: Rancher, unit: &str) -> [Resource; 2] {
    let name = rancher.name;
    let repo = format!("/etc/yum.repos.d/slipway-{name}.repo");
    let check = format!("! selinuxenabled || rpm -q {name}-selinux");
    let run = format!(
        "{}. /etc/os-release; printf '[slipway-{name}]\nname={name}\nbaseurl=https://rpm.rancher.io/{name}/stable/common/centos/%s/noarch\nenabled=1\ngpgcheck=1\n\
         repo_gpgcheck=1\ngpgkey=https://rpm.rancher.io/public.key\n' \"${{VERSION_ID%%.*}}\" >{repo} && dnf -q -y install {name}-selinux",
        proxy::exports(cluster)
    );
    let mut policy = command(LAYER, "selinux", &check, &run, &format!("the SELinux policy {name}-selinux"));
    if let ResourceKind::Command { undo, .. } = &mut policy.what {
        *undo = Some(format!("dnf -q -y remove {name}-selinux; rm -f {repo}"));
    }
    let path = format!("/etc/rancher/{name}/config.yaml.d/40-slipway-selinux.yaml");
    let option = file(LAYER, "selinux-config", &path, "{\"selinux\": true}\n").then(restart(unit));
    [policy, option].map(|r| r.only_with(PackageManager::Dnf))
}

/// Restarts a unit if it is running.
fn restart(unit: &str) -> String {
    format!("systemctl daemon-reload; ! systemctl is-active --quiet {unit} || systemctl restart {unit}")
}

pub(super) fn resources(cluster: &Cluster, machine: &Machine, rancher: Rancher) -> Result<Vec<Resource>, ClusterError> {
    let (name, unit) = (rancher.name, rancher.unit(machine));
    let is_first = cluster.first() == Some(machine);
    let program_id = format!("kubernetes/{name}");
    let [policy, option] = selinux(cluster, rancher, unit);
    let mut out = vec![policy, program(cluster, rancher, unit), option];
    if cluster.spec.kubernetes.distribution == Distribution::Rke2 {
        // NetworkManager would change the links and routes of pods (RKE2, "Known Issues and Limitations", "NetworkManager").
        let text = "[keyfile]\nunmanaged-devices=interface-name:flannel*;interface-name:cali*;interface-name:tunl*;interface-name:vxlan.calico;interface-name:vxlan-v6.calico\n";
        out.push(
            file(LAYER, "network-manager", "/etc/NetworkManager/conf.d/slipway-rke2.conf", text)
                .then("! systemctl is-active --quiet NetworkManager || systemctl reload NetworkManager")
                .only_with(PackageManager::Dnf),
        );
    }
    if cluster.spec.kubernetes.distribution == Distribution::K3s {
        let text = k3s_unit(unit, machine.is(Role::ControlPlane));
        out.push(file(LAYER, "unit", &format!("/etc/systemd/system/{unit}.service"), text).then(restart(unit)));
    }
    let mut settings =
        vec![file(LAYER, "config", &format!("/etc/rancher/{name}/config.yaml"), config(cluster, machine))];
    settings.extend(registries::rancher(cluster, name)?);
    let environment = proxy::environment(cluster);
    let path = format!("/etc/default/{unit}");
    settings.push(if environment.is_empty() {
        absent(LAYER, "proxy-containerd", &path)
    } else {
        file(LAYER, "proxy-containerd", &path, environment)
    });
    out.extend(
        settings
            .into_iter()
            .map(|r| r.then(restart(unit)).effect(format!("restarts {name} if it is running; pods keep running"))),
    );
    let running = format!("systemctl is-enabled --quiet {unit} && systemctl is-active --quiet {unit}");
    let check = if is_first { running } else { format!("[ ! -e {} ] || {{ {running}; }}", rancher.join_file()) };
    let run = format!("systemctl daemon-reload && systemctl enable --quiet {unit} && systemctl start {unit}");
    let mut service = command(LAYER, "service", &check, &run, &format!("service {unit}")).needs(&[&program_id]);
    if let ResourceKind::Command { undo, .. } = &mut service.what {
        *undo = Some(format!("systemctl disable --now --quiet {unit}"));
    }
    out.push(service);
    if is_first {
        out.push(ready(cluster, unit).needs(&["kubernetes/service"]));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::desired_state;
    use crate::spec::tests::FILE;

    fn cluster(kubernetes: &str, more: &str) -> Cluster {
        let text =
            FILE.replace("distribution: microk8s, channel: 1.32/stable, addons: [dns, metrics-server]", kubernetes);
        Cluster::parse(&text.replace("spec:\n", &format!("spec:\n{more}"))).unwrap()
    }

    fn find(cluster: &Cluster, machine: usize, id: &str) -> Option<ResourceKind> {
        let desired = desired_state(cluster, &cluster.spec.machines[machine]).unwrap();
        desired.validate().unwrap();
        desired.resources.into_iter().find(|r| r.id == id).map(|r| r.what)
    }

    #[test]
    fn configuration_differs_by_role() {
        let cluster = cluster(
            "distribution: k3s, version: v1.36.2+k3s1, extraSans: [lab.example], kubeletArgs: {max-pods: '200'}",
            "  network: {pods: [10.3.0.0/16, 'fd01::/64'], services: [10.4.0.0/24, 'fd02::/112']}\n",
        );
        let config = |n: usize| match find(&cluster, n, "kubernetes/config").unwrap() {
            ResourceKind::File { path, content, .. } => {
                assert_eq!(path, "/etc/rancher/k3s/config.yaml");
                serde_saphyr::from_str::<Value>(&content.text).unwrap()
            }
            _ => panic!(),
        };
        let (first, second, worker) = (config(0), config(1), config(2));
        assert_eq!((&first["cluster-init"], second.get("cluster-init")), (&json!(true), None));
        assert_eq!(
            (&first["cluster-cidr"], &second["service-cidr"]),
            (&json!("10.3.0.0/16,fd01::/64"), &json!("10.4.0.0/24,fd02::/112"))
        );
        assert_eq!(first["tls-san"], json!(["cp1", "10.0.0.1", "cp2", "10.0.0.2", "lab.example"]));
        assert_eq!(worker, json!({"node-name": "gpu1", "kubelet-arg": ["max-pods=200"]}));
        let unit = |n: usize| match find(&cluster, n, "kubernetes/unit").unwrap() {
            ResourceKind::File { path, content, .. } => (path, content.text),
            _ => panic!(),
        };
        assert!(unit(0).0.ends_with("/k3s.service") && unit(0).1.contains("ExecStart=/usr/local/bin/k3s server\n"));
        assert!(unit(2).0.ends_with("/k3s-agent.service") && unit(2).1.contains("Type=exec\n"));
    }

    #[test]
    fn only_the_first_control_plane_starts_before_it_has_joined() {
        let cluster = cluster("distribution: rke2, version: v1.36.2+rke2r1", "");
        let check = |n: usize| match find(&cluster, n, "kubernetes/service").unwrap() {
            ResourceKind::Command { check, .. } => check,
            _ => panic!(),
        };
        assert!(check(0).contains("is-active --quiet rke2-server") && !check(0).contains("join"));
        assert!(check(1).starts_with("[ ! -e /etc/rancher/rke2/config.yaml.d/50-slipway-join.yaml ] || "));
        assert!(check(2).contains("rke2-agent"));
        assert!(find(&cluster, 0, "kubernetes/ready").is_some() && find(&cluster, 1, "kubernetes/ready").is_none());
        assert!(find(&cluster, 0, "kubernetes/unit").is_none(), "the archive has the units");
    }

    #[test]
    fn download_is_installed_only_with_the_right_checksum() {
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        let release = folder.join("v1.36.2%2Bk3s1");
        std::fs::create_dir_all(&release).unwrap();
        let here = folder.display().to_string();
        let mut cluster = cluster("distribution: k3s, version: v1.36.2+k3s1", "");
        // curl decodes the percent sign of a file URL, so the folder has a plus sign.
        std::fs::rename(&release, folder.join("v1.36.2+k3s1")).unwrap();
        let release = folder.join("v1.36.2+k3s1");
        cluster.spec.kubernetes.source = Some(format!("file://{here}/"));
        let ResourceKind::Command { check, run, .. } = find(&cluster, 0, "kubernetes/k3s").unwrap() else { panic!() };
        let own = |script: &str| script.replace("/usr/local/bin", &here).replace("/var/lib/slipway", &here);
        let sh = |script: &str| std::process::Command::new("sh").args(["-c", &own(script)]).status().unwrap().success();
        let (arch, suffix) = if std::env::consts::ARCH == "aarch64" { ("arm64", "-arm64") } else { ("amd64", "") };
        let program = "#!/bin/sh\necho 'k3s version v1.36.2+k3s1 (abc)'\n";
        std::fs::write(release.join(format!("k3s{suffix}")), program).unwrap();
        let sum = |text: &str| std::fs::write(release.join(format!("sha256sum-{arch}.txt")), text).unwrap();
        sum(&format!("{}  k3s{suffix}\n", "0".repeat(64)));
        assert!(!sh(&run) && !sh(&check), "with a wrong checksum");
        let digest = ring::digest::digest(&ring::digest::SHA256, program.as_bytes());
        let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        sum(&format!("{}  k3s-airgap-images.tar\n{hex}  k3s{suffix}\n", "0".repeat(64)));
        assert!(sh(&run) && sh(&check) && !folder.join("k3s.previous").exists());
        assert!(sh(&run) && folder.join("k3s.previous").exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
