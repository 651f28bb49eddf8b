//! Bodies of requests to a remote on a server, and of its responses: the routes and the client share them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::layout::Item;

/// Items of a remote.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DataItems")]
pub struct Items {
    /// Their paths below the remote, such as `files/md5/d4/1d8cd98f00b204e9800998ecf8427e`.
    pub items: Vec<String>,
}

impl Items {
    pub(crate) fn of(items: &[Item]) -> Self {
        Self { items: items.iter().map(Item::to_string).collect() }
    }

    pub(crate) fn parse(&self) -> Result<Vec<Item>, DataError> {
        self.items.iter().map(|path| Item::parse(path).ok_or_else(|| DataError::ItemName(path.clone()))).collect()
    }
}

/// The remotes of a namespace.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DataRemotes")]
pub struct Remotes {
    /// Their names, sorted.
    pub remotes: Vec<String>,
}

/// The parts of an unfinished upload that have arrived.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DataParts")]
pub struct Parts {
    /// The parts, sorted by their numbers.
    pub parts: Vec<Part>,
}

/// A part of an upload.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DataPart")]
pub struct Part {
    /// Counted from 1.
    pub number: u32,
    /// Bytes.
    pub size: u64,
}

/// Joins the parts of an upload into the object.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "CompleteDataUpload")]
pub struct Complete {
    /// Number of parts of the object.
    pub parts: u32,
}
