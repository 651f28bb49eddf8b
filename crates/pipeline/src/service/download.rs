//! Downloads packages from URLs that clients name. A client must not reach through the server what it cannot reach itself, so only
//! servers with public addresses are asked, by HTTPS.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url, redirect};
use slipway_core::tls::{self, Trust};

use super::package::MAX_PACKAGE;
use crate::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Total time of a download.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 5;

/// What may be downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownloadRules {
    /// HTTPS from public addresses.
    PublicHttps,
    /// Everything, for tests and installations whose users may reach all that the server reaches.
    Any,
}

/// Resolves names to public addresses only, so that a name cannot lead into the server's own network.
struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(format!("{} has no public address", name.as_str()).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
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

impl DownloadRules {
    /// Fails for a URL that may not be downloaded. Host names are checked again when they are resolved.
    fn check(self, url: &Url) -> Result<(), String> {
        if self == Self::Any {
            return Ok(());
        }
        if url.scheme() != "https" {
            return Err(format!("URL scheme {:?} not allowed, use https", url.scheme()));
        }
        if url.port().is_some() {
            return Err("HTTPS requires port 443".into());
        }
        let address = match url.host() {
            Some(url::Host::Ipv4(v4)) => IpAddr::V4(v4),
            Some(url::Host::Ipv6(v6)) => IpAddr::V6(v6),
            Some(url::Host::Domain(_)) => return Ok(()),
            None => return Err("the URL has no host".into()),
        };
        if is_public(address) { Ok(()) } else { Err(format!("{address} is not a public address")) }
    }

    fn client(self) -> Result<Client, String> {
        let policy = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > MAX_REDIRECTS {
                return attempt.error("too many redirects");
            }
            match self.check(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(reason) => attempt.error(reason),
            }
        });
        let mut client = Client::builder()
            .tls_backend_preconfigured(tls::client(Trust::System).map_err(|error| error.to_string())?)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .redirect(policy)
            .no_proxy();
        if self == Self::PublicHttps {
            client = client.https_only(true).dns_resolver(Arc::new(PublicResolver));
        }
        client.build().map_err(|error| error.to_string())
    }

    /// Downloads a file, and returns it with its name.
    pub(super) async fn fetch(self, text: &str) -> Result<(String, Vec<u8>), Error> {
        let url = Url::parse(text).map_err(|_| Error::Invalid(format!("invalid pipeline spec URL: {text}")))?;
        self.check(&url).map_err(|reason| Error::Invalid(format!("Pipeline URL validation failed: {reason}")))?;
        let name = url.path().rsplit('/').next().unwrap_or_default().to_owned();
        let failed =
            |error: String| Error::Invalid(format!("error downloading the pipeline spec from {text}: {error}"));
        let client = self.client().map_err(failed)?;
        let mut response = client.get(url).send().await.map_err(|error| failed(reason(&error)))?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(Error::Invalid(format!(
                "error fetching pipeline spec from {text} - request returned {}",
                response.status()
            )));
        }
        let mut content = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| failed(reason(&error)))? {
            if content.len() + piece.len() > MAX_PACKAGE {
                return Err(failed(format!("it has more than {MAX_PACKAGE} bytes")));
            }
            content.extend_from_slice(&piece);
        }
        Ok((name, content))
    }
}

/// The innermost reason of an error, which says more than "error sending request".
fn reason(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
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

    #[tokio::test]
    async fn urls_that_are_not_allowed_are_refused() {
        for url in [
            "http://example.com/p.yaml",
            "https://example.com:8443/p.yaml",
            "https://127.0.0.1/p.yaml",
            "https://[::1]/p.yaml",
            "https://2130706433/p.yaml",
            "file:///etc/passwd",
            "p.yaml",
            "https://localhost/p.yaml",
        ] {
            let error = DownloadRules::PublicHttps.fetch(url).await.unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{url}: {error}");
        }
    }
}
