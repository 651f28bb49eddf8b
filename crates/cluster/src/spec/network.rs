//! The part of `cluster.yaml` about networks: the networks of pods and services, a proxy, and registries of images.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::SecretSource;
use super::ssh::{check_address, url_host};
use super::{Cluster, is_plain};

/// Networks of the cluster, and the proxy through which machines reach the internet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Network {
    /// Networks of pods: an IPv4 or an IPv6 network in CIDR notation, or one of each for dual stack. The distribution's default if empty.
    /// Fixed when the cluster is created.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<String>,
    /// Networks of services, of the same IP families in the same order as `pods`. Fixed when the cluster is created.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// The network plugin of pods with kubeadm; the other distributions have their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<NetworkPlugin>,
    /// The HTTP proxy of the machines, of snapd, of apt and of containerd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
}

/// A network plugin (CNI), which kubeadm leaves to its users.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkPlugin {
    /// Flannel with VXLAN.
    #[default]
    Flannel,
    /// None: you install one yourself, and nodes become ready only then.
    None,
}

/// An HTTP proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Proxy {
    /// URL of the proxy for `http://` addresses, such as `http://proxy.example:3128`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// URL of the proxy for `https://` addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https: Option<String>,
    /// Names, domains such as `.example.com`, addresses and networks to reach without the proxy. The machines, the networks of pods and
    /// services, the cluster's own domains and loopback addresses are always among them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub no_proxy: Vec<String>,
}

/// A registry of images, with its mirrors, its certificate authority and its credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Registry {
    /// Host of the registry as in names of images, with its port if there is one: `docker.io`, `registry.example:5000`.
    pub host: String,
    /// URLs from which its images are pulled, the first one first. The registry itself is the last one, so it may be empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// Certificates in PEM that sign the certificates of the endpoints, or of the registry if there are none. Those of the machine if
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<SecretSource>,
    /// User name for the endpoints, or for the registry if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretSource>,
}

impl Registry {
    /// URL of the registry itself.
    pub(crate) fn server(&self) -> String {
        // `docker.io` is a name; its registry has another one (containerd, "hosts.md").
        let host = if self.host == "docker.io" { "registry-1.docker.io" } else { &self.host };
        format!("https://{host}")
    }

    /// The URLs to which the certificate authority and the credentials belong.
    pub(crate) fn configured(&self) -> Vec<String> {
        if self.endpoints.is_empty() { vec![self.server()] } else { self.endpoints.clone() }
    }
}

/// A network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr {
    address: IpAddr,
    /// Number of leading bits of the network.
    prefix: u8,
}

/// The bits of an address, aligned to the left.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The leading `prefix` bits of an address.
fn network(address: IpAddr, prefix: u8) -> u128 {
    bits(address) & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl Cidr {
    /// Parses `ADDRESS/PREFIX`. The address must be the first one of the network.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let invalid = || format!("'{text}' is not a network such as 10.1.0.0/16 or fd00:1::/64");
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let length = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse::<u8>().ok().filter(|p| *p <= length).ok_or_else(invalid)?;
        if bits(address) != network(address, prefix) {
            return Err(format!("'{text}' is not a network: its address has bits beyond the prefix of {prefix}"));
        }
        Ok(Self { address, prefix })
    }

    pub(crate) fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }

    /// Number of bits that distinguish the addresses of the network.
    fn host_bits(self) -> u8 {
        (if self.is_ipv4() { 32 } else { 128 }) - self.prefix
    }

    fn contains(self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4() && network(address, self.prefix) == bits(self.address)
    }

    fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The first address after the network's own, which is that of the service `kubernetes`.
    pub(crate) fn first_host(self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) => IpAddr::V4(std::net::Ipv4Addr::from_bits(v4.to_bits() | 1)),
            IpAddr::V6(v6) => IpAddr::V6(std::net::Ipv6Addr::from_bits(v6.to_bits() | 1)),
        }
    }
}

/// kube-apiserver rejects networks of services with more bits (`--service-cluster-ip-range`).
const MAX_SERVICE_BITS: u8 = 20;

impl Cluster {
    /// The networks of pods and of services, those of the distribution where the file has none.
    pub(crate) fn networks(&self) -> (Vec<String>, Vec<String>) {
        let network = &self.spec.network;
        let (pods, services) = self.spec.kubernetes.distribution.default_networks();
        let or = |given: &[String], default: &str| {
            if given.is_empty() { vec![default.to_owned()] } else { given.to_vec() }
        };
        (or(&network.pods, pods), or(&network.services, services))
    }

    /// Everything that is reached without the proxy, each once.
    pub(crate) fn no_proxy(&self) -> Vec<String> {
        let (pods, services) = self.networks();
        let mut out: Vec<String> =
            ["localhost", "127.0.0.0/8", "::1", ".svc", ".cluster.local"].map(String::from).into();
        out.extend(pods.into_iter().chain(services));
        for machine in &self.spec.machines {
            out.extend([&machine.name, &machine.address, machine.internal()].map(ToString::to_string));
        }
        out.extend(self.spec.network.proxy.iter().flat_map(|proxy| proxy.no_proxy.clone()));
        let mut seen = std::collections::BTreeSet::new();
        out.retain(|entry| seen.insert(entry.clone()));
        out
    }

    /// The first machine whose address is in a network of pods or services, to which other nodes could not connect.
    pub(super) fn machine_in_network(&self) -> Option<String> {
        let (pods, services) = self.networks();
        let networks: Vec<Cidr> = pods.iter().chain(&services).filter_map(|text| Cidr::parse(text).ok()).collect();
        self.spec.machines.iter().find_map(|machine| {
            let addresses =
                [machine.address.as_str(), machine.internal()].into_iter().filter_map(|a| a.parse::<IpAddr>().ok());
            addresses.into_iter().find_map(|address| {
                let Cidr { address: first, prefix } = networks.iter().find(|n| n.contains(address))?;
                let name = &machine.name;
                Some(format!(
                    "{name} has the address {address}, which is in the network {first}/{prefix} of pods or services"
                ))
            })
        })
    }

    /// Checks `spec.network` and `spec.registries`.
    pub(super) fn validate_network(&self) -> Result<(), String> {
        let spec = &self.spec;
        let parse = |field: &str, list: &[String]| {
            let networks = list.iter().map(|text| Cidr::parse(text)).collect::<Result<Vec<_>, _>>();
            let networks = networks.map_err(|reason| format!("spec.network.{field}: {reason}"))?;
            let families = networks.iter().filter(|n| n.is_ipv4()).count();
            if networks.len() > 2 || (networks.len() == 2 && families != 1) {
                return Err(format!(
                    "spec.network.{field}: use one network, or one IPv4 and one IPv6 network for dual stack"
                ));
            }
            Ok(networks)
        };
        let (pods, services) = self.networks();
        let (pods, services) = (parse("pods", &pods)?, parse("services", &services)?);
        if !pods.iter().map(|n| n.is_ipv4()).eq(services.iter().map(|n| n.is_ipv4())) {
            return Err("spec.network: pods and services must have the same IP families in the same order".into());
        }
        if let Some((pod, service)) = pods.iter().zip(&services).find(|(pod, service)| pod.overlaps(**service)) {
            return Err(format!(
                "spec.network: the networks of pods and services overlap: {} and {}",
                pod.address, service.address
            ));
        }
        if services.iter().any(|n| n.host_bits() > MAX_SERVICE_BITS) {
            return Err("spec.network.services: a prefix must be at least /12 for IPv4 and /108 for IPv6, the limit of kube-apiserver".into());
        }
        let given = !spec.network.pods.is_empty() || !spec.network.services.is_empty();
        if let Some(conflict) = self.machine_in_network().filter(|_| given) {
            return Err(format!("spec.network: {conflict}"));
        }
        if let Some(proxy) = &spec.network.proxy {
            proxy.validate().map_err(|reason| format!("spec.network.proxy: {reason}"))?;
        }
        let mut hosts = std::collections::BTreeSet::new();
        for registry in &spec.registries {
            if !hosts.insert(&registry.host) {
                return Err(format!("spec.registries: {} is listed twice", registry.host));
            }
            registry.validate().map_err(|reason| format!("spec.registries: {}: {reason}", registry.host))?;
        }
        Ok(())
    }
}

/// Checks a URL of a server: `http://HOST[:PORT][/PATH]` or the same with `https`.
fn check_url(url: &str) -> Result<(), String> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let rest = rest.ok_or_else(|| format!("'{url}' is not a URL that begins with http:// or https://"))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(format!(
            "'{}' has a user in it, which every user of the machines could read",
            url.split('@').next_back().unwrap_or_default()
        ));
    }
    check_authority(authority)?;
    if path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-~".contains(c)) {
        Ok(())
    } else {
        Err(format!("'{url}': the path has invalid characters"))
    }
}

/// Checks `HOST[:PORT]`, an IPv6 address in brackets.
pub(super) fn check_authority(authority: &str) -> Result<(), String> {
    let parsed = super::ssh::Destination::parse(authority)?;
    let port = parsed.port.map(|port| format!(":{port}")).unwrap_or_default();
    if format!("{}{port}", url_host(&parsed.address)) == authority {
        Ok(())
    } else {
        Err(format!("'{authority}' is not HOST or HOST:PORT; an IPv6 address is written in brackets"))
    }
}

impl Proxy {
    fn validate(&self) -> Result<(), String> {
        if self.http.is_none() && self.https.is_none() {
            return Err("set http or https, or both".into());
        }
        self.http.iter().chain(&self.https).try_for_each(|url| check_url(url))?;
        for entry in &self.no_proxy {
            let name = entry.strip_prefix("*.").or_else(|| entry.strip_prefix('.')).unwrap_or(entry);
            if Cidr::parse(entry).is_err() && check_address(name).is_err() && check_authority(name).is_err() {
                return Err(format!("noProxy: '{entry}' is not a name, a domain, an address or a network"));
            }
        }
        Ok(())
    }
}

impl Registry {
    fn validate(&self) -> Result<(), String> {
        check_authority(&self.host)?;
        self.endpoints.iter().try_for_each(|url| check_url(url))?;
        if self.username.is_some() != self.password.is_some() {
            return Err("set username and password, or neither".into());
        }
        if let Some(user) = &self.username
            && !is_plain(user, "._@+$")
        {
            return Err(format!("username '{user}': use letters, digits and ._@+$-"));
        }
        if self.endpoints.is_empty() && self.ca.is_none() && self.username.is_none() {
            return Err("set endpoints, ca or username".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    fn with(more: &str) -> Result<Cluster, String> {
        Cluster::parse(&FILE.replace("spec:\n", &format!("spec:\n  {more}\n")))
    }

    #[test]
    fn networks_of_one_or_two_families_are_accepted() {
        with("network: {pods: [10.3.0.0/16], services: [10.4.0.0/24]}").unwrap();
        with("network: {pods: [10.3.0.0/16, 'fd01::/64'], services: [10.4.0.0/24, 'fd02::/108']}").unwrap();
        with("network: {pods: ['fd01::/64'], services: ['fd02::/112']}").unwrap();
        for (pods, services, reason) in [
            ("10.3.0.1/16", "10.4.0.0/24", "bits beyond the prefix"),
            ("10.3.0.0/33", "10.4.0.0/24", "not a network"),
            ("10.3.0.0", "10.4.0.0/24", "not a network"),
            ("10.3.0.0/16, 10.5.0.0/16", "10.4.0.0/24", "one IPv4 and one IPv6"),
            ("10.3.0.0/16, 'fd01::/64'", "10.4.0.0/24", "same IP families"),
            ("'fd01::/64', 10.3.0.0/16", "10.4.0.0/24, 'fd02::/108'", "same IP families"),
            ("10.4.0.0/16", "10.4.9.0/24", "overlap"),
            ("10.64.0.0/16", "10.32.0.0/11", "at least /12"),
            ("'fd01::/64'", "'fd02::/64'", "at least /12 for IPv4 and /108"),
            ("10.0.0.0/16", "10.4.0.0/24", "cp1 has the address 10.0.0.1"),
            ("10.3.0.0/16", "10.0.0.0/24", "cp1 has the address 10.0.0.1"),
        ] {
            let error = with(&format!("network: {{pods: [{pods}], services: [{services}]}}")).unwrap_err();
            assert!(error.contains(reason), "{pods} {services}: {error}");
        }
        // A machine in MicroK8s' default network of pods.
        let cluster = Cluster::parse(&FILE.replace("10.0.0.2", "10.1.0.2")).unwrap();
        assert!(
            cluster
                .machine_in_network()
                .unwrap()
                .contains("cp2 has the address 10.1.0.2, which is in the network 10.1.0.0/16")
        );
        assert_eq!(Cidr::parse("fd02::/108").unwrap().first_host().to_string(), "fd02::1");
    }

    #[test]
    fn what_needs_no_proxy_is_derived_from_the_file() {
        let proxy =
            "network: {proxy: {http: 'http://proxy.example:3128', noProxy: [.example.com, 192.168.0.0/16, 10.0.0.1]}}";
        let cluster = with(proxy).unwrap();
        let expected = "localhost 127.0.0.0/8 ::1 .svc .cluster.local 10.1.0.0/16 10.152.183.0/24 cp1 10.0.0.1 cp2 10.0.0.2 gpu1 10.0.0.3 \
                        .example.com 192.168.0.0/16";
        assert_eq!(cluster.no_proxy().join(" "), expected);
    }

    #[test]
    fn invalid_proxies_and_registries_are_rejected() {
        for (proxy, reason) in [
            ("{}", "set http or https"),
            ("{http: proxy.example}", "begins with http"),
            ("{http: 'http://'}", "empty"),
            ("{http: 'http://a b'}", "not a valid address"),
            ("{http: 'http://user:secret@proxy'}", "has a user in it"),
            ("{http: \"http://proxy/$(id)\"}", "invalid characters"),
            ("{http: 'http://proxy:0'}", "1 to 65535"),
            ("{http: 'http://proxy', noProxy: ['a b']}", "noProxy"),
        ] {
            let error = with(&format!("network: {{proxy: {proxy}}}")).unwrap_err();
            assert!(error.contains(reason) && !error.contains("secret"), "{proxy}: {error}");
        }
        with("network: {proxy: {https: 'http://[fd00::1]:3128', noProxy: ['*.example.com', 'fd00::/8', 'host:8080']}}")
            .unwrap();
        with("registries: [{host: docker.io, endpoints: ['https://mirror.example/v2/proxy']}]").unwrap();
        for (registry, reason) in [
            ("host: docker.io", "set endpoints"),
            ("host: https://docker.io, endpoints: []", "1 to 65535"),
            ("host: docker.io, endpoints: [mirror]", "begins with http"),
            ("host: docker.io, username: ada", "username and password"),
            ("host: 'a b', username: ada, password: {env: X}", "not a valid address"),
        ] {
            let error = with(&format!("registries: [{{{registry}}}]")).unwrap_err();
            assert!(error.contains(reason), "{registry}: {error}");
        }
        let twice = "registries: [{host: a, endpoints: ['http://b']}, {host: a, endpoints: ['http://c']}]";
        assert!(with(twice).unwrap_err().contains("listed twice"));
    }
}
