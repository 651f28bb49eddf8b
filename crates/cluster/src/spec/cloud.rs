//! Machines that a provider makes.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::SecretSource;
use super::{Role, Ssh};

/// Who makes machines, and the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Provider {
    /// DigitalOcean's droplets.
    DigitalOcean(DigitalOcean),
    /// Paperspace's machines.
    Paperspace(Paperspace),
}

impl Provider {
    /// Where its token comes from.
    pub fn token(&self) -> &SecretSource {
        match self {
            Self::DigitalOcean(own) => &own.token,
            Self::Paperspace(own) => &own.token,
        }
    }
}

/// An account at DigitalOcean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DigitalOcean {
    /// A personal access token.
    pub token: SecretSource,
    /// `nyc2`, `tor1`.
    pub region: String,
    /// Identifiers or fingerprints of the account's SSH keys that may log in.
    pub ssh_keys: Vec<String>,
    /// The private network; the region's default one without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpc: Option<String>,
    /// Where the API is, when not at DigitalOcean's.
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
    /// An API key. The account's SSH keys may log in.
    pub token: SecretSource,
    /// `East Coast (NY2)`, `West Coast (CA1)`, `Europe (AMS1)`.
    pub region: String,
    /// The private network; the region's default one without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Where the API is, when not at Paperspace's.
    #[serde(default = "paperspace")]
    pub endpoint: String,
}

fn paperspace() -> String {
    "https://api.paperspace.com".into()
}

/// Machines that are alike: `gpu-1`, `gpu-2`, …
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Group {
    /// What their names begin with.
    pub name: String,
    /// Who makes them, by its name in `spec.providers`.
    pub provider: String,
    /// The provider's size: `s-4vcpu-8gb`, `gpu-h100x1-80gb`, `C4`, `A4000`.
    pub size: String,
    /// The provider's image (DigitalOcean) or template (Paperspace).
    pub image: String,
    /// How many.
    pub count: u32,
    /// What they are for.
    pub roles: BTreeSet<Role>,
    /// Size of the disk, where it is chosen apart from the machine's (Paperspace).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_gib: Option<u32>,
    /// Where they are reached otherwise than the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<Ssh>,
}

impl Group {
    /// The names of its machines.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        (1..=self.count).map(|n| format!("{}-{n}", self.name))
    }
}
