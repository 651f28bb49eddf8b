//! Finds two entries of `cluster.yaml` that lead to the same machine. slipway would configure such a machine twice, and each entry would
//! overwrite the state of the other.
//!
//! Only what the file says is compared; no name is resolved. A machine is identified by its address and SSH port as the controller reaches
//! it, and by its internal address as the other machines reach it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{Cluster, Machine};

/// The port of an SSH server if the file has none.
const SSH_PORT: u16 = 22;

/// One spelling of an address: names in lower case without a trailing dot, IPv6 addresses in their canonical form, IPv4-mapped IPv6
/// addresses and the short, octal and hexadecimal forms of `inet_aton` as IPv4 addresses.
fn normalized(address: &str) -> String {
    let name = address.strip_suffix('.').unwrap_or(address).to_ascii_lowercase();
    let parsed = name.parse::<IpAddr>().map(|ip| ip.to_canonical()).ok();
    parsed.or_else(|| inet_aton(&name).map(IpAddr::V4)).map_or(name, |ip| ip.to_string())
}

/// Parses the IPv4 forms that the C library accepts besides four decimal numbers, such as `10.1` and `0x0a000001`. All parts but the last
/// are one byte; the last one fills the remaining bytes.
fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let number = |part: &str| match part.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if part.len() > 1 && part.starts_with('0') => u32::from_str_radix(part, 8).ok(),
        None => part.parse().ok(),
    };
    let parts: Vec<u32> = text.split('.').map(number).collect::<Option<_>>()?;
    let (last, first) = parts.split_last().filter(|(_, first)| first.len() < 4)?;
    let mut out = 0;
    for (index, part) in first.iter().enumerate() {
        out |= u32::from(u8::try_from(*part).ok()?) << (24 - 8 * index);
    }
    let remaining_bits = 32 - 8 * u32::try_from(first.len()).ok()?;
    (u64::from(*last) < 1 << remaining_bits).then(|| Ipv4Addr::from_bits(out | last))
}

/// What identifies a machine.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// Normalized address and SSH port.
    Ssh(String, u16),
    /// Normalized internal address.
    Internal(String),
}

/// Two entries for one machine.
#[derive(Debug)]
pub(crate) struct Conflict<'m> {
    pub(crate) first: &'m Machine,
    pub(crate) second: &'m Machine,
    /// What they have in common, such as `the same address 10.0.0.1`.
    pub(crate) reason: String,
}

/// Machines by what identifies them. The name of a machine also counts as one of its addresses, because `/etc/hosts` of the machines maps
/// it there.
///
/// Machines behind one address with different SSH ports are different machines if they have different internal addresses.
#[derive(Debug, Default)]
pub(crate) struct Index<'m>(BTreeMap<Key, &'m Machine>);

/// What identifies a machine of the cluster, and what another machine with the same key has in common with it.
fn keys(cluster: &Cluster, machine: &Machine) -> [(Key, String); 4] {
    let port = cluster.ssh(machine).port.unwrap_or(SSH_PORT);
    let (name, address, internal) = (&machine.name, &machine.address, machine.internal());
    [
        (Key::Ssh(normalized(address), port), format!("the same address {address}")),
        (Key::Internal(normalized(internal)), format!("the same internal address {internal}")),
        (Key::Ssh(normalized(name), port), format!("the same address: '{name}' is the name of one of them")),
        (Key::Internal(normalized(name)), format!("the same internal address: '{name}' is the name of one of them")),
    ]
}

impl<'m> Index<'m> {
    /// An index of the machines of `cluster`, and the first two entries that lead to one machine.
    pub(crate) fn new(cluster: &'m Cluster) -> (Self, Option<Conflict<'m>>) {
        let (mut out, mut conflict) = (Self::default(), None);
        for machine in &cluster.spec.machines {
            conflict = conflict.or_else(|| out.find(cluster, machine));
            for (key, _) in keys(cluster, machine) {
                out.0.entry(key).or_insert(machine);
            }
        }
        (out, conflict)
    }

    /// The entry that leads to the same machine as `machine`.
    pub(crate) fn find<'o>(&self, cluster: &Cluster, machine: &'o Machine) -> Option<Conflict<'o>>
    where
        'm: 'o,
    {
        keys(cluster, machine).into_iter().find_map(|(key, reason)| {
            let first = *self.0.get(&key)?;
            (first.name != machine.name).then_some(Conflict { first, second: machine, reason })
        })
    }
}

#[derive(Deserialize)]
struct File {
    spec: Parts,
}

#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    machines: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: Spanned<String>,
}

/// The lines of the file on which machines of these names are defined, for an error: ` (line 6)`, ` (lines 6 and 7)`. Empty if unknown.
pub(super) fn lines_of(text: &str, names: &[&str]) -> String {
    let Ok(File { spec }) = serde_saphyr::from_str::<File>(text) else { return String::new() };
    let named = spec.machines.iter().filter(|m| names.contains(&m.name.value.as_str()));
    let lines: Vec<String> = named.map(|m| m.name.referenced.line().to_string()).collect();
    match lines.as_slice() {
        [] => String::new(),
        [line] => format!(" (line {line})"),
        lines => format!(" (lines {})", lines.join(" and ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    /// The result of parsing [`FILE`] with other settings in place of the address of `cp2`.
    fn with_cp2(settings: &str) -> Result<Cluster, String> {
        Cluster::parse(&FILE.replace("address: 10.0.0.2", settings))
    }

    #[test]
    fn entries_with_one_address_are_rejected_with_their_lines() {
        for same in ["10.0.0.1", "'::ffff:10.0.0.1'", "'::FFFF:a00:1'", "10.0.1", "0x0a.0.0.01", "167772161"] {
            let error = with_cp2(&format!("address: {same}")).unwrap_err();
            assert!(
                error.contains("'cp1' and 'cp2' (lines 6 and 7)") && error.contains("the same address"),
                "{same}: {error}"
            );
        }
        for (one, other) in [("Node.Example.com", "node.example.COM."), ("'2001:db8::1'", "'2001:0DB8:0:0::1'")] {
            let text = FILE.replace("10.0.0.1", one).replace("10.0.0.3", other);
            let error = Cluster::parse(&text).unwrap_err();
            assert!(error.contains("'cp1' and 'gpu1' (lines 6 and 8)"), "{one}: {error}");
        }
        for name in ["cp1", "CP1.", "gpu1"] {
            let error = with_cp2(&format!("address: {name}")).unwrap_err();
            assert!(error.contains("is the name of one of them") || error.contains("the same address"), "{error}");
        }
        assert!(with_cp2("address: cp2").is_ok() && with_cp2("address: 10.0.0.256").is_ok());
    }

    #[test]
    fn one_address_with_different_ssh_ports_needs_different_internal_addresses() {
        assert!(with_cp2("address: 10.0.0.1, ssh: {port: 2222}, internalAddress: 10.1.0.2").is_ok());
        for settings in [
            "address: 10.0.0.1, ssh: {port: 2222}",
            "address: 192.0.2.9, internalAddress: 10.0.0.1",
            "address: 10.0.0.1, ssh: {port: 22}, internalAddress: 10.1.0.2",
            "address: 10.0.0.1, ssh: {user: other}, internalAddress: 10.1.0.2",
        ] {
            assert!(with_cp2(settings).unwrap_err().contains("address 10.0.0.1"), "{settings}");
        }
    }

    #[test]
    fn duplicate_names_are_rejected_with_their_lines() {
        let error = Cluster::parse(&FILE.replace("name: cp2", "name: cp1")).unwrap_err();
        assert!(error.contains("duplicate name 'cp1' (lines 6 and 7)"), "{error}");
        let account = "{digitalocean: {token: {env: T}, region: r, sshKeys: []}}";
        let with = |providers: &str, groups: &str| {
            let more = format!("spec:\n  providers: {{{providers}}}\n  groups: [{groups}]");
            Cluster::parse(&FILE.replace("spec:", &more)).unwrap_err()
        };
        let group = |name: &str, count: u32| {
            format!("{{name: {name}, provider: d, size: s, image: i, count: {count}, roles: [worker]}}")
        };
        let one = format!("d: {account}");
        let error = with(&one, &[group("gpu", 0), group("gpu", 0)].join(", "));
        assert!(error.contains("duplicate group 'gpu'"), "{error}");
        assert!(with(&format!("{one}, {one}"), "").contains("duplicate"));
        let text = FILE.replace("name: cp2", "name: gpu-1");
        let more = format!("spec:\n  providers: {{{one}}}\n  groups: [{}]", group("gpu", 1));
        let error = Cluster::parse(&text.replace("spec:", &more)).unwrap_err();
        assert!(error.contains("spec.groups: gpu: duplicate machine name 'gpu-1' (line 9)"), "{error}");
    }
}
