//! Which servers may be reached for somebody else. A client must not reach through this server what it cannot reach itself, such as the services
//! of its network or the metadata of its machine, so URLs that others choose lead to public addresses only.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{ClientBuilder, Url};

/// Which servers may be reached.
#[derive(Debug, Clone, Default)]
pub enum Reach {
    /// All: the user has chosen them.
    #[default]
    Any,
    /// Those with public addresses, and these hosts (names or addresses, without ports), which an administrator listed.
    Public(Arc<[String]>),
}

impl Reach {
    /// Public addresses only.
    pub fn public() -> Self {
        Self::Public(Arc::default())
    }

    /// Whether a host may be reached whatever its address is.
    pub fn has(&self, host: &str) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        match self {
            Self::Any => true,
            Self::Public(listed) => listed.iter().any(|name| name.eq_ignore_ascii_case(host)),
        }
    }

    /// Fails for a URL whose host is an address that may not be reached. Names are checked when they are resolved, see [`Self::limit`].
    ///
    /// # Errors
    /// The reason.
    pub fn check(&self, url: &Url) -> Result<(), String> {
        let Some(host) = url.host() else { return Err("the URL has no host".into()) };
        let address = match host {
            url::Host::Ipv4(v4) => IpAddr::V4(v4),
            url::Host::Ipv6(v6) => IpAddr::V6(v6),
            url::Host::Domain(_) => return Ok(()),
        };
        if self.has(&host.to_string()) || is_public(address) {
            return Ok(());
        }
        Err(format!("{address} is not a public address"))
    }

    /// Lets a client reach no other servers by name. Its redirects must be checked with [`Self::check`].
    pub fn limit(&self, client: ClientBuilder) -> ClientBuilder {
        match self {
            Self::Any => client,
            // A proxy would resolve the name itself.
            Self::Public(_) => client.no_proxy().dns_resolver(Arc::new(Resolver(self.clone()))),
        }
    }
}

/// Resolves names to addresses that may be reached, so that a name cannot lead into the server's own network.
struct Resolver(Reach);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let is_listed = self.0.has(name.as_str());
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|address| is_listed || is_public(address.ip())).collect();
            if allowed.is_empty() {
                return Err(format!("{} has no public address", name.as_str()).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            let is_special = a == 0 || a >= 240 || (a, b, c) == (192, 0, 0) || (a == 198 && matches!(b, 18 | 19));
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_documentation()
                || is_shared
                || is_special)
        }
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(v4) = address.to_ipv4_mapped() {
        return is_public(v4.into());
    }
    // Global unicast is 2000::/3. Of it, 2001:db8::/32 is documentation, and 2002::/16 and 2001::/32 carry addresses of version 4.
    let [first, second, ..] = address.segments();
    first & 0xe000 == 0x2000 && first != 0x2002 && !(first == 0x2001 && matches!(second, 0 | 0xdb8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_reached() {
        for address in ["8.8.8.8", "140.82.112.3", "2606:4700::1111"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.1",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "2002:7f00:1::",
            "2001::1",
            "64:ff9b::7f00:1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn listed_hosts_are_reached_whatever_their_addresses_are() {
        let listed = Reach::Public(["10.0.0.7".to_owned(), "minio.internal".into(), "fd00::1".into()].into());
        let check = |reach: &Reach, url: &str| reach.check(&Url::parse(url).unwrap()).is_ok();
        for url in ["http://10.0.0.7:9000/x", "https://[fd00::1]/", "https://8.8.8.8/"] {
            assert!(check(&listed, url) && check(&Reach::Any, url), "{url}");
        }
        for url in ["http://10.0.0.8/", "http://[::1]/", "http://2130706433/", "http://127.1/"] {
            assert!(!check(&listed, url) && !check(&Reach::public(), url), "{url}");
        }
        assert!(listed.has("MinIO.internal") && !listed.has("internal") && !Reach::public().has("minio.internal"));
    }

    #[tokio::test]
    async fn names_of_other_addresses_are_not_resolved() {
        let resolve = |reach: Reach| Resolver(reach).resolve("localhost".parse().unwrap());
        assert!(resolve(Reach::public()).await.is_err());
        assert!(resolve(Reach::Public(["localhost".to_owned()].into())).await.is_ok());
    }
}
