//! How to connect to a machine: `spec.ssh` and `ssh` of a machine or a group. The values become arguments of OpenSSH's client.

use std::net::Ipv6Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_plain;
use super::secret::SecretSource;

/// How to connect to a machine. The settings of OpenSSH's own configuration also apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ssh {
    /// User to log in as; chosen by OpenSSH if absent.
    pub user: Option<String>,
    /// Port of the SSH server; 22 if absent.
    pub port: Option<u16>,
    /// Path of a private key.
    pub identity_file: Option<String>,
    /// Path of the file with known host keys.
    pub known_hosts: Option<String>,
    /// Accept and store the host key of a host that is not known yet. A changed key is always rejected.
    pub accept_new_host_keys: bool,
    /// Password for sudo, for a user that needs one to become root.
    pub sudo_password: Option<SecretSource>,
    /// Jump host through which the machine is reached: `[USER@]HOST[:PORT]`, an IPv6 address in brackets. `none` connects directly, for a
    /// machine that does not use the jump host of `spec.ssh`.
    pub jump: Option<String>,
}

/// The value of [`Ssh::jump`] for a direct connection, as in OpenSSH's `ProxyJump`.
const NO_JUMP: &str = "none";

impl Ssh {
    /// These settings, completed with those of `all`.
    #[must_use]
    pub(crate) fn or(self, all: &Self) -> Self {
        Self {
            user: self.user.or_else(|| all.user.clone()),
            port: self.port.or(all.port),
            identity_file: self.identity_file.or_else(|| all.identity_file.clone()),
            known_hosts: self.known_hosts.or_else(|| all.known_hosts.clone()),
            accept_new_host_keys: self.accept_new_host_keys || all.accept_new_host_keys,
            sudo_password: self.sudo_password.or_else(|| all.sudo_password.clone()),
            jump: self.jump.or_else(|| all.jump.clone()),
        }
    }

    /// The jump host; `None` for a direct connection.
    pub fn jump_host(&self) -> Option<Destination> {
        self.jump.as_deref().filter(|jump| *jump != NO_JUMP).and_then(|jump| Destination::parse(jump).ok())
    }
}

/// An SSH server as people write it: `[USER@]HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The user, if one is given.
    pub user: Option<String>,
    /// Name or IP address, an IPv6 address without brackets.
    pub address: String,
    /// The port, if one is given: 1 to 65535.
    pub port: Option<u16>,
}

impl Destination {
    /// Parses `[USER@]HOST[:PORT]`. An IPv6 address with a port must be in brackets; without a port it may be.
    ///
    /// # Errors
    /// A message that says which part is not valid.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, text),
        };
        let (address, port) = if let Some(bracketed) = rest.strip_prefix('[') {
            let (address, after) =
                bracketed.split_once(']').ok_or_else(|| format!("{text:?}: the bracket is not closed"))?;
            if address.parse::<Ipv6Addr>().is_err() {
                return Err(format!("{text:?}: only an IPv6 address is written in brackets"));
            }
            match after.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None if after.is_empty() => (address, None),
                None => return Err(format!("{text:?}: after the bracket, only :PORT may follow")),
            }
        } else if rest.parse::<Ipv6Addr>().is_ok() {
            (rest, None)
        } else {
            match rest.split_once(':') {
                Some((address, port)) => (address, Some(port)),
                None => (rest, None),
            }
        };
        check_address(address)?;
        if let Some(user) = user {
            check_user(user)?;
        }
        let port = port.map(|port| match port.parse::<u16>() {
            Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => Ok(number),
            _ => Err(format!("{text:?}: the port must be a number from 1 to 65535")),
        });
        Ok(Self { user: user.map(str::to_owned), address: address.to_owned(), port: port.transpose()? })
    }

    /// The form that OpenSSH's `ProxyJump` accepts, with an IPv6 address in brackets.
    pub fn to_proxy_jump(&self) -> String {
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{user}{}{port}", url_host(&self.address))
    }
}

/// An address as the host of a URL: IPv6 addresses are in brackets (RFC 3986, section 3.2.2).
pub fn url_host(address: &str) -> String {
    if address.parse::<Ipv6Addr>().is_ok() { format!("[{address}]") } else { address.to_owned() }
}

/// Checks that a text is a name or an IP address of a machine, and that `ssh` cannot take it for an option.
///
/// # Errors
/// A message with the invalid text, and where a user or a port belongs.
pub(crate) fn check_address(address: &str) -> Result<(), String> {
    if address.is_empty() {
        return Err("the address is empty".into());
    }
    if address.parse::<Ipv6Addr>().is_ok() {
        return Ok(());
    }
    let hint = if address.starts_with('[') {
        "; write an IPv6 address without brackets, and a port as ssh.port"
    } else if address.contains('@') {
        "; a user is written as ssh.user"
    } else if address.contains(':') {
        "; a port is written as ssh.port"
    } else {
        ""
    };
    if is_plain(address, "._") { Ok(()) } else { Err(format!("{address:?} is not a valid address{hint}")) }
}

fn check_user(user: &str) -> Result<(), String> {
    if is_plain(user, "._@+") {
        return Ok(());
    }
    Err(format!("ssh.user {user:?}: use letters, digits and ._@+-, and do not begin with a dash"))
}

/// Checks that SSH settings are safe as arguments of `ssh`: no value can be taken for an option, and the user has no special characters of
/// the shell, because OpenSSH's own configuration may insert the user into a command (`%r` in a `ProxyCommand`).
///
/// # Errors
/// A message with the invalid value.
pub(crate) fn check_ssh(ssh: &Ssh) -> Result<(), String> {
    ssh.user.as_deref().map_or(Ok(()), check_user)?;
    if ssh.port == Some(0) {
        return Err("ssh.port 0: use a port from 1 to 65535, or remove the field for port 22".into());
    }
    for (name, path) in [("identityFile", &ssh.identity_file), ("knownHosts", &ssh.known_hosts)] {
        if let Some(path) = path.as_ref().filter(|p| p.is_empty() || p.starts_with('-') || p.contains(char::is_control))
        {
            return Err(format!("ssh.{name} {path:?}: use a path that does not begin with a dash"));
        }
    }
    match ssh.jump.as_deref() {
        None | Some(NO_JUMP) => Ok(()),
        Some(jump) if jump.contains(',') => Err(format!(
            "ssh.jump {jump:?}: name one jump host; a chain of them belongs into ~/.ssh/config, as ProxyJump of the last one"
        )),
        Some(jump) => Destination::parse(jump).map(drop).map_err(|reason| format!("ssh.jump: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_have_optional_users_and_ports() {
        let parse = |text: &str| {
            let Destination { user, address, port } = Destination::parse(text).unwrap();
            (user.unwrap_or_default(), address, port.unwrap_or_default())
        };
        for (text, user, address, port) in [
            ("10.0.0.1", "", "10.0.0.1", 0),
            ("10.0.0.1:2222", "", "10.0.0.1", 2222),
            ("ops@node.example.com:22", "ops", "node.example.com", 22),
            ("2001:db8::1", "", "2001:db8::1", 0),
            ("[2001:db8::1]", "", "2001:db8::1", 0),
            ("ops@[fd00::1]:2222", "ops", "fd00::1", 2222),
            ("first.last@example.com@10.0.0.1", "first.last@example.com", "10.0.0.1", 0),
        ] {
            assert_eq!(parse(text), (user.into(), address.into(), port), "{text}");
        }
        assert_eq!(Destination::parse("ops@[fd00::1]:2222").unwrap().to_proxy_jump(), "ops@[fd00::1]:2222");
        for invalid in [
            "",
            ":22",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:+22",
            "10.0.0.1:a",
            "[10.0.0.1]:22",
            "[fd00::1",
            "[fd00::1]22",
            "-oProxyCommand=x",
            "a b",
            "10.0.0.1 # x",
            "10.0.0.1\nroles: []",
            "-l@10.0.0.1",
            "@10.0.0.1",
            "fd00::1::2",
            "fe80::1%eth0",
        ] {
            assert!(Destination::parse(invalid).is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn own_settings_override_and_none_disables_the_jump_host() {
        let all = Ssh { jump: Some("bastion".into()), port: Some(22), ..Ssh::default() };
        assert_eq!(Ssh::default().or(&all).jump_host().unwrap().address, "bastion");
        assert_eq!(Ssh { jump: Some("none".into()), ..Ssh::default() }.or(&all).jump_host(), None);
        assert!(check_ssh(&Ssh { jump: Some("a,b".into()), ..Ssh::default() }).unwrap_err().contains("one jump host"));
        assert!(check_ssh(&Ssh { jump: Some("-x".into()), ..Ssh::default() }).is_err());
        assert!(check_ssh(&Ssh { port: Some(0), ..Ssh::default() }).unwrap_err().contains("1 to 65535"));
    }
}
