//! The addresses of a running server, as its clients on this machine read them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_core::tls::Fingerprint;

/// The addresses of a running server; stored in `server.json` for clients on the same machine.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Addresses {
    /// Process id of the server.
    pub pid: u32,
    /// Address of the control plane and UI.
    pub control: SocketAddr,
    /// Address for inference over REST.
    pub inference: SocketAddr,
    /// Address for inference over gRPC.
    pub grpc: SocketAddr,
    /// Whether the ports use TLS.
    #[serde(default)]
    pub tls: bool,
    /// SHA-256 fingerprint of the certificate; unset without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub fingerprint: Option<Fingerprint>,
    /// Version of slipway.
    pub version: String,
    /// Start time, in milliseconds since the Unix epoch.
    pub started: i64,
}

impl Addresses {
    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// URL of the control plane and UI, for clients on this machine.
    pub fn control_url(&self) -> String {
        self.url(self.control)
    }

    /// URL of the inference gateway over REST, for clients on this machine.
    pub fn inference_url(&self) -> String {
        self.url(self.inference)
    }

    fn url(&self, address: SocketAddr) -> String {
        format!("{}://{}", self.scheme(), local_address(address))
    }
}

/// The address at which a client on this machine reaches a listener: loopback if it listens on all interfaces.
pub(crate) fn local_address(mut address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
