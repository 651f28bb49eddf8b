//! The part of `cluster.yaml` about machines that a cloud provider creates: `spec.providers` and `spec.groups`.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::SecretSource;
use super::{Role, Ssh};

/// A cloud provider, and the account to use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Provider {
    /// DigitalOcean, which creates droplets.
    DigitalOcean(DigitalOcean),
    /// Paperspace, which creates machines.
    Paperspace(Paperspace),
}

impl Provider {
    /// The source of the API token.
    pub fn token(&self) -> &SecretSource {
        match self {
            Self::DigitalOcean(account) => &account.token,
            Self::Paperspace(account) => &account.token,
        }
    }

    /// The kind and the URL of the API. Machine identifiers are unique in one API, across its accounts.
    pub(crate) fn api(&self) -> (&'static str, &str) {
        match self {
            Self::DigitalOcean(account) => ("digitalocean", account.endpoint.trim_end_matches('/')),
            Self::Paperspace(account) => ("paperspace", account.endpoint.trim_end_matches('/')),
        }
    }
}

/// An account at DigitalOcean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DigitalOcean {
    /// A personal access token.
    pub token: SecretSource,
    /// Region of new machines, such as `nyc2` or `tor1`.
    pub region: String,
    /// Identifiers or fingerprints of the account's SSH keys that may log in.
    pub ssh_keys: Vec<String>,
    /// UUID of the private network; the region's default network if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpc: Option<String>,
    /// URL of the API; `https://api.digitalocean.com` by default.
    #[serde(default = "digital_ocean")]
    pub endpoint: String,
}

fn digital_ocean() -> String {
    "https://api.digitalocean.com".into()
}

/// An account at Paperspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Paperspace {
    /// An API key. All SSH keys of the account may log in.
    pub token: SecretSource,
    /// Region of new machines: `East Coast (NY2)`, `West Coast (CA1)` or `Europe (AMS1)`.
    pub region: String,
    /// Identifier of the private network; the region's default network if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// URL of the API; `https://api.paperspace.com` by default.
    #[serde(default = "paperspace")]
    pub endpoint: String,
}

fn paperspace() -> String {
    "https://api.paperspace.com".into()
}

/// A group of identical machines, named `gpu-1`, `gpu-2`, … after the group `gpu`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Group {
    /// Name of the group, and prefix of the machines' names.
    pub name: String,
    /// Name of the provider in `spec.providers`.
    pub provider: String,
    /// The provider's name of the size: `s-4vcpu-8gb`, `gpu-h100x1-80gb`, `C4`, `A4000`.
    pub size: String,
    /// The provider's image (DigitalOcean) or template (Paperspace).
    pub image: String,
    /// Number of machines, 0 to 1000.
    pub count: u32,
    /// Roles of the machines.
    pub roles: BTreeSet<Role>,
    /// Size of the disk in GiB, for providers where the machine's size does not determine it (Paperspace).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_gib: Option<u32>,
    /// SSH settings that override `spec.ssh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<Ssh>,
}

impl Group {
    /// Names of the machines of the group.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        (1..=self.count).map(|n| format!("{}-{n}", self.name))
    }
}
