//! Validates all values of `cluster.yaml`, because names, addresses and paths become part of commands and files on the machines.

use std::collections::BTreeSet;

use super::addresses::{self, Conflict, Index};
use super::network::check_authority;
use super::releases::{DEFAULT_CHANNEL, DYNAMIC_RESOURCES};
use super::workloads::{DevicePlugin, Share};
use super::{Cluster, Distribution, Kubernetes, Role, Ssh, check_address, check_ssh, minor, nodes};

/// Whether a text only has ASCII letters, digits, dashes and the characters of `extra`, and does not begin with a dash. Such a text is safe
/// in commands and files.
pub(crate) fn is_plain(text: &str, extra: &str) -> bool {
    !text.is_empty()
        && text.len() < 254
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || extra.contains(c))
        && !text.starts_with('-')
}

/// A larger count is probably a typing error, and would be expensive.
const MAX_GROUP_SIZE: u32 = 1000;
/// Maximum length of a label (RFC 1123, section 2.1), which host names and names of Kubernetes' nodes consist of.
const MAX_LABEL_LENGTH: usize = 63;
/// The first MicroK8s that reads a launch configuration (MicroK8s, "Launch configurations").
const MIN_MICROK8S: (u32, u32) = (1, 27);
/// The first kubeadm that reads configurations of `kubeadm.k8s.io/v1beta4` (Kubernetes, "kubeadm Configuration (v1beta4)").
const MIN_KUBEADM: (u32, u32) = (1, 31);
/// MicroK8s' add-ons that install NVIDIA's GPU operator (`gpu` is the earlier name of `nvidia`).
const GPU_ADDONS: [&str; 2] = ["nvidia", "gpu"];

/// Checks a name that becomes a host name.
fn check_name(what: &str, text: &str) -> Result<(), String> {
    if !is_plain(text, "") || text != text.to_lowercase() {
        return Err(format!("{what} '{text}': use lower-case letters, digits and dashes"));
    }
    if text.len() > MAX_LABEL_LENGTH {
        return Err(format!("{what} '{text}': {} characters, at most {MAX_LABEL_LENGTH} are allowed", text.len()));
    }
    if text.ends_with('-') {
        return Err(format!("{what} '{text}': a name must not end with a dash"));
    }
    Ok(())
}

impl Cluster {
    /// Validates all values. `text` is the file, of which errors name lines.
    pub(super) fn validate(&self, text: &str) -> Result<(), String> {
        if self.api_version != "slipway.dev/v1" || self.kind != "Cluster" {
            return Err(format!(
                "apiVersion '{}' and kind '{}' are not supported; use slipway.dev/v1 and Cluster",
                self.api_version, self.kind
            ));
        }
        check_name("metadata.name", &self.metadata.name)?;
        let spec = &self.spec;
        let ssh = |place: &str, ssh: Option<&Ssh>| {
            ssh.map_or(Ok(()), check_ssh).map_err(|reason| format!("{place}: {reason}"))
        };
        ssh("spec", Some(&spec.ssh))?;
        let mut names = BTreeSet::new();
        let check_roles = |place: &str, name: &str, roles: &BTreeSet<Role>| {
            if roles.contains(&Role::ControlPlane) == roles.contains(&Role::Worker) {
                return Err(format!(
                    "{place}: {name}: roles must have either control-plane or worker; a control plane runs pods too, so it needs no \
                     role worker"
                ));
            }
            Ok(())
        };
        for machine in &spec.machines {
            check_name("spec.machines: name", &machine.name)?;
            if !names.insert(machine.name.clone()) {
                let lines = addresses::lines_of(text, &[&machine.name]);
                return Err(format!("spec.machines: duplicate name '{}'{lines}", machine.name));
            }
            for address in [&machine.address].into_iter().chain(&machine.internal_address) {
                check_address(address).map_err(|e| format!("spec.machines: {}: {e}", machine.name))?;
            }
            ssh(&format!("spec.machines: {}", machine.name), machine.ssh.as_ref())?;
            check_roles("spec.machines", &machine.name, &machine.roles)?;
            nodes::check_labels(&machine.labels, &machine.taints)
                .map_err(|e| format!("spec.machines: {}: {e}", machine.name))?;
        }
        if let (_, Some(Conflict { first, second, reason })) = Index::new(self) {
            let (first, second) = (first.name.as_str(), second.name.as_str());
            let lines = addresses::lines_of(text, &[first, second]);
            return Err(format!(
                "spec.machines: '{first}' and '{second}'{lines} have {reason}, so they would overwrite each other's state; remove one of \
                 them. Two machines behind one address need different ssh.port and internalAddress"
            ));
        }
        let mut group_names = BTreeSet::new();
        for group in &spec.groups {
            check_name("spec.groups: name", &group.name)?;
            if !group_names.insert(&group.name) {
                return Err(format!("spec.groups: duplicate group '{}'", group.name));
            }
            ssh(&format!("spec.groups: {}", group.name), group.ssh.as_ref())?;
            check_roles("spec.groups", &group.name, &group.roles)?;
            if !spec.providers.contains_key(&group.provider) {
                return Err(format!("spec.groups: {}: there is no '{}' in spec.providers", group.name, group.provider));
            }
            if group.count > MAX_GROUP_SIZE {
                return Err(format!("spec.groups: {}: count must not exceed {MAX_GROUP_SIZE}", group.name));
            }
            if let Some(last) = group.names().last() {
                check_name("spec.groups: machine", &last)?;
            }
            if let Some(duplicate) = group.names().find(|n| !names.insert(n.clone())) {
                let lines = addresses::lines_of(text, &[&duplicate]);
                return Err(format!("spec.groups: {}: duplicate machine name '{duplicate}'{lines}", group.name));
            }
        }
        let is_control_plane = |roles: &BTreeSet<Role>| roles.contains(&Role::ControlPlane);
        if !spec.machines.iter().any(|m| is_control_plane(&m.roles))
            && !spec.groups.iter().any(|g| g.count > 0 && is_control_plane(&g.roles))
        {
            return Err("spec.machines: no machine has the role control-plane".into());
        }
        self.validate_kubernetes()?;
        self.validate_network()?;
        spec.system.validate()?;
        self.validate_workloads()
    }

    fn validate_kubernetes(&self) -> Result<(), String> {
        let kubernetes = &self.spec.kubernetes;
        check_release(kubernetes)?;
        for addon in &kubernetes.addons {
            if !is_plain(addon.name(), ":./,=") {
                return Err(format!("spec.kubernetes.addons: '{}' is not a valid add-on name", addon.name()));
            }
        }
        let addon = |name: &str| kubernetes.addons.iter().any(|a| a.name().split(':').next() == Some(name));
        if let Some(name) = GPU_ADDONS.into_iter().find(|name| addon(name) && self.advertises_gpus()) {
            return Err(format!(
                "spec.kubernetes.addons: {name} installs NVIDIA's GPU operator, whose device plugin would register nvidia.com/gpu a second \
                 time beside the one of this file; remove the add-on, or set spec.gpu.devicePlugin: none"
            ));
        }
        for (name, value) in &kubernetes.kubelet_args {
            let valid = is_plain(name, "") && value.chars().all(|c| c.is_ascii_graphic() && !"\"'\\#$`".contains(c));
            if !valid {
                return Err(format!(
                    "spec.kubernetes.kubeletArgs: '{name}: {value}': use the name of an argument without dashes in front, and a value \
                     without spaces and quotes"
                ));
            }
        }
        if let Some(san) = kubernetes.extra_sans.iter().find(|s| !is_plain(s, ".:*_")) {
            return Err(format!("spec.kubernetes.extraSans: '{san}' is not a valid name or address"));
        }
        if let Some(endpoint) = &kubernetes.endpoint {
            check_authority(endpoint).map_err(|reason| format!("spec.kubernetes.endpoint: {reason}"))?;
        }
        self.check_supported()
    }

    /// Rejects fields that would have no effect with the distribution.
    fn check_supported(&self) -> Result<(), String> {
        let (kubernetes, network) = (&self.spec.kubernetes, &self.spec.network);
        if kubernetes.distribution != Distribution::Kubeadm {
            if network.plugin.is_some() {
                return Err(
                    "spec.network.plugin is for kubeadm; the other distributions have their own network plugin".into(),
                );
            }
            if kubernetes.endpoint.is_some() {
                return Err(
                    "spec.kubernetes.endpoint is for kubeadm; nodes of the other distributions know all API servers. Add the name of a load \
                     balancer for users to spec.kubernetes.extraSans"
                        .into(),
                );
            }
        }
        let rancher = match kubernetes.distribution {
            Distribution::K3s => Some("K3s"),
            Distribution::Rke2 => Some("RKE2"),
            Distribution::Microk8s | Distribution::Kubeadm => None,
        };
        if let Some(name) = rancher {
            if !kubernetes.hold {
                return Err(format!("spec.kubernetes.hold: {name} never upgrades itself; remove the field"));
            }
            if kubernetes.token_seconds != super::token_seconds() {
                return Err(format!(
                    "spec.kubernetes.tokenSeconds: nodes of {name} keep the token with which they have joined, so it does not expire; remove \
                     the field"
                ));
            }
        }
        Ok(())
    }

    fn validate_workloads(&self) -> Result<(), String> {
        let spec = &self.spec;
        spec.gpu.validate(self)?;
        let mut defaults = 0;
        for class in &spec.storage.classes {
            defaults += usize::from(class.default);
            let parts = match &class.share {
                Share::Nfs(nfs) => [&nfs.server, &nfs.path],
                Share::Smb(smb) => [&smb.source, &smb.user],
            };
            if !is_plain(&class.name, ".") || !parts.iter().all(|p| is_plain(p, "./_:@")) {
                return Err(format!(
                    "spec.storage.classes: {}: use names, addresses and paths without spaces",
                    class.name
                ));
            }
        }
        if defaults > 1 {
            return Err("spec.storage.classes: only one class may be the default".into());
        }
        if let Some(platform) = &spec.platform
            && !(is_plain(&platform.image, "./:@_") && is_plain(&platform.namespace, ""))
        {
            return Err("spec.platform: image or namespace is not a valid name".into());
        }
        let offer = spec.platform.as_ref().and_then(|platform| platform.values.get("node")?.get("offer")?.as_str());
        if offer == Some("dra") && minor(spec.kubernetes.release()).is_some_and(|minor| minor < DYNAMIC_RESOURCES) {
            let (major, number) = DYNAMIC_RESOURCES;
            return Err(format!(
                "spec.platform.values: node.offer: dra needs Kubernetes {major}.{number}, the first version with resource.k8s.io/v1; \
                 this file has {}",
                spec.kubernetes.release()
            ));
        }
        Ok(())
    }

    /// Whether the file installs a device plugin, which advertises GPUs to the kubelet.
    pub(crate) fn advertises_gpus(&self) -> bool {
        match self.spec.gpu.device_plugin {
            DevicePlugin::Nvidia => true,
            DevicePlugin::Slipway => self.spec.platform.is_some(),
            DevicePlugin::None => false,
        }
    }
}

/// Checks the fields of the distribution's version.
fn check_release(kubernetes: &Kubernetes) -> Result<(), String> {
    let Kubernetes { distribution, channel, version, source, addons, .. } = kubernetes;
    let (name, suffix) = match distribution {
        Distribution::Microk8s => {
            if !version.is_empty() || source.is_some() {
                return Err(
                    "spec.kubernetes: version and source are for K3s, RKE2 and kubeadm; MicroK8s has a channel".into(),
                );
            }
            return check_channel(kubernetes);
        }
        Distribution::K3s => ("K3s", "k3s"),
        Distribution::Rke2 => ("RKE2", "rke2r"),
        Distribution::Kubeadm => ("kubeadm", ""),
    };
    // The versions of kubeadm's packages are those of Kubernetes.
    let example = if suffix.is_empty() { "v1.36.2".to_owned() } else { format!("v1.36.2+{suffix}1") };
    if !channel.is_empty() {
        return Err(format!("spec.kubernetes.channel is for MicroK8s; {name} has a version, such as {example}"));
    }
    if !addons.is_empty() {
        let has = match distribution {
            Distribution::Kubeadm => "DNS built in; install others with Helm",
            _ => "DNS, metrics and an ingress controller built in",
        };
        return Err(format!("spec.kubernetes.addons are MicroK8s' add-ons; {name} has {has}"));
    }
    let number = |text: &str| !text.is_empty() && text.len() < 6 && text.bytes().all(|b| b.is_ascii_digit());
    let three_numbers = |text: &str| text.split('.').count() == 3 && text.split('.').all(number);
    let valid = version.strip_prefix('v').is_some_and(|rest| match rest.split_once('+') {
        Some((kubernetes, build)) => {
            !suffix.is_empty() && three_numbers(kubernetes) && build.strip_prefix(suffix).is_some_and(number)
        }
        None => suffix.is_empty() && three_numbers(rest),
    });
    if !valid {
        return Err(format!(
            "spec.kubernetes.version '{version}': write the exact version of {name}, such as {example}"
        ));
    }
    if *distribution == Distribution::Kubeadm && minor(version).is_some_and(|minor| minor < MIN_KUBEADM) {
        let (major, number) = MIN_KUBEADM;
        return Err(format!(
            "spec.kubernetes.version '{version}': kubeadm reads v1beta4, the format that slipway writes, since v{major}.{number}"
        ));
    }
    let is_source = |url: &&String| {
        let rest = ["https://", "http://", "file:///"].iter().find_map(|scheme| url.strip_prefix(scheme));
        rest.is_some_and(|rest| !rest.is_empty() && is_plain(rest.trim_start_matches('/'), "./:_~[]"))
    };
    match source.as_ref().filter(|url| !is_source(url)) {
        Some(url) => {
            Err(format!("spec.kubernetes.source '{url}': use a URL that begins with https://, http:// or file:///"))
        }
        None => Ok(()),
    }
}

/// Checks the channel of MicroK8s' snap: `TRACK/RISK[/BRANCH]` with a minor version as its track (snapcraft, "Channels").
fn check_channel(kubernetes: &Kubernetes) -> Result<(), String> {
    let channel = &kubernetes.channel;
    let invalid = |why: &str| Err(format!("spec.kubernetes.channel '{channel}': {why}"));
    let parts: Vec<&str> = channel.split('/').collect();
    let track = parts[0];
    if track.ends_with("-strict") {
        return invalid(
            "a strict snap may not change the machine as slipway's add-ons and drivers need; use the same channel without -strict",
        );
    }
    let is_number = |text: &str| !text.is_empty() && text.len() < 4 && text.bytes().all(|b| b.is_ascii_digit());
    let numbers = track.split_once('.').filter(|(major, minor)| is_number(major) && is_number(minor));
    let Some(minor) = numbers.and_then(|_| minor(track)) else {
        return invalid(&format!(
            "write the minor version, such as {DEFAULT_CHANNEL}; 'latest' would change over time"
        ));
    };
    match parts[1..] {
        [] => return invalid(&format!("add the risk, such as {track}/stable")),
        ["stable" | "candidate" | "beta" | "edge"] => {}
        ["stable" | "candidate" | "beta" | "edge", branch] if is_plain(branch, "._") => {}
        _ => return invalid("after the version, use /stable, /candidate, /beta or /edge"),
    }
    if minor < MIN_MICROK8S {
        let (major, number) = MIN_MICROK8S;
        return invalid(&format!("MicroK8s reads launch configurations, which slipway writes, since {major}.{number}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    fn error_of(from: &str, to: &str) -> String {
        assert!(FILE.contains(from), "{from}");
        Cluster::parse(&FILE.replacen(from, to, 1)).unwrap_err()
    }

    #[test]
    fn names_are_host_names() {
        let longest = "a".repeat(63);
        assert!(Cluster::parse(&FILE.replace("cp2", &longest)).is_ok());
        assert!(error_of("name: cp2", &format!("name: {longest}a")).contains("64 characters"));
        assert!(error_of("name: cp2", "name: cp-").contains("end with a dash"));
        assert!(error_of("name: lab", "name: lab-").contains("end with a dash"));
        assert!(error_of("name: cp2", "name: CP2").contains("lower-case"));
        let group = |name: &str| {
            format!(
                "spec:\n  providers: {{d: {{digitalocean: {{token: {{env: T}}, region: r, sshKeys: []}}}}}}\n  groups: [{{name: {name}, provider: d, size: s, image: i, count: 10, roles: [worker]}}]"
            )
        };
        assert!(Cluster::parse(&FILE.replace("spec:", &group(&"g".repeat(60)))).is_ok());
        assert!(error_of("spec:", &group(&"g".repeat(61))).contains("64 characters"), "with -10 in its name");
    }

    #[test]
    fn addresses_name_the_field_of_users_and_ports() {
        for (address, reason) in [
            ("'10.0.0.2:2222'", "ssh.port"),
            ("'[fd00::1]'", "without brackets"),
            ("ops@10.0.0.2", "ssh.user"),
            ("''", "address is empty"),
        ] {
            let error = error_of("10.0.0.2", address);
            assert!(error.contains(reason) && error.contains("cp2"), "{address}: {error}");
        }
        assert!(Cluster::parse(&FILE.replace("10.0.0.2", "'fd00::2'")).is_ok());
        assert!(error_of("name: cp2,", "name: cp2, ssh: {port: 0},").contains("1 to 65535"));
    }

    #[test]
    fn channels_are_those_that_the_snap_store_has() {
        for channel in ["1.36/stable", "1.34/edge", "1.35/stable/hotfix", "1.99/stable"] {
            assert!(Cluster::parse(&FILE.replace("1.32/stable", channel)).is_ok(), "{channel}");
        }
        for (channel, reason) in [
            ("latest/stable", "write the minor version"),
            ("1/stable", "write the minor version"),
            ("v1.36/stable", "write the minor version"),
            ("1.36.1/stable", "write the minor version"),
            ("1.36-strict/stable", "without -strict"),
            ("1.36-eks/stable", "write the minor version"),
            ("1.36", "add the risk"),
            ("1.36/nightly", "/stable, /candidate"),
            ("1.36/stable/a/b", "/stable, /candidate"),
            ("1.12/stable", "since 1.27"),
        ] {
            let error = error_of("1.32/stable", channel);
            assert!(error.contains(reason), "{channel}: {error}");
        }
    }

    #[test]
    fn other_distributions_have_an_exact_version() {
        let with = |kubernetes: &str| {
            Cluster::parse(
                &FILE
                    .replace("distribution: microk8s, channel: 1.32/stable, addons: [dns, metrics-server]", kubernetes),
            )
        };
        with("distribution: k3s, version: v1.36.2+k3s1").unwrap();
        with("distribution: kubeadm, version: v1.36.2, endpoint: 'api.example:6443'").unwrap();
        with("distribution: rke2, version: v1.36.2+rke2r3, source: 'https://mirror.example/rke2'").unwrap();
        for (kubernetes, reason) in [
            ("distribution: k3s", "write the exact version"),
            ("distribution: k3s, version: v1.36.2", "such as v1.36.2+k3s1"),
            ("distribution: k3s, version: v1.36.2+rke2r1", "such as v1.36.2+k3s1"),
            ("distribution: k3s, version: 'v1.36.2+k3s1; id'", "write the exact version"),
            ("distribution: k3s, channel: 1.36/stable", "has a version"),
            ("distribution: k3s, version: v1.36.2+k3s1, addons: [dns]", "built in"),
            ("distribution: k3s, version: v1.36.2+k3s1, source: ftp://a", "begins with https"),
            ("distribution: microk8s, version: v1.36.2+k3s1", "MicroK8s has a channel"),
            ("distribution: kubeadm", "such as v1.36.2"),
            ("distribution: kubeadm, version: v1.36.2+k3s1", "such as v1.36.2"),
            ("distribution: kubeadm, version: v1.30.1", "since v1.31"),
            ("distribution: kubeadm, version: v1.36.2, addons: [dns]", "DNS built in"),
            ("distribution: kubeadm, version: v1.36.2, endpoint: 'a b'", "spec.kubernetes.endpoint"),
            ("distribution: kubespray", "microk8s"),
        ] {
            let error = with(kubernetes).unwrap_err();
            assert!(error.contains(reason), "{kubernetes}: {error}");
        }
    }

    #[test]
    fn a_second_device_plugin_and_claims_on_an_old_version_are_rejected() {
        let platform = "platform: {image: 'slipway:1'}\n  kubernetes:";
        for addon in ["nvidia", "gpu"] {
            let text = FILE.replace("metrics-server", addon);
            assert!(Cluster::parse(&text).is_ok(), "without a device plugin of slipway");
            let error = Cluster::parse(&text.replace("kubernetes:", platform)).unwrap_err();
            assert!(error.contains("a second time"), "{error}");
            assert!(
                Cluster::parse(&text.replace("kubernetes:", &format!("gpu: {{devicePlugin: none}}\n  {platform}")))
                    .is_ok()
            );
            assert!(
                Cluster::parse(&text.replace("kubernetes:", "gpu: {devicePlugin: nvidia}\n  kubernetes:")).is_err()
            );
        }
        let dra = "platform: {image: 'slipway:1', values: {node: {offer: dra}}}\n  kubernetes:";
        let error = error_of("kubernetes:", dra);
        assert!(error.contains("needs Kubernetes 1.34") && error.contains("has 1.32/stable"), "{error}");
        assert!(Cluster::parse(&FILE.replace("1.32", "1.34").replace("kubernetes:", dra)).is_ok());
    }

    #[test]
    fn kubelet_arguments_have_no_dashes_and_spaces() {
        let with =
            |args: &str| Cluster::parse(&FILE.replace("channel:", &format!("kubeletArgs: {{{args}}}, channel:")));
        with("max-pods: '250', system-reserved: 'cpu=500m,memory=1Gi'").unwrap();
        for invalid in ["--max-pods: '250'", "'max pods': '1'", "a: 'b c'", "a: \"b'c\"", "a: '$(id)'"] {
            assert!(with(invalid).unwrap_err().contains("kubeletArgs"), "{invalid}");
        }
    }

    #[test]
    fn control_planes_need_no_role_worker() {
        assert!(
            error_of(
                "cp2, address: 10.0.0.2, roles: [control-plane]",
                "cp2, address: 10.0.0.2, roles: [control-plane, worker]"
            )
            .contains("runs pods too")
        );
    }
}
