//! The cache of the tokens with which the client reads from node agents. It is a part of the client, so that its clones share it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Cached tokens for agents, keyed by the namespace of the installation, with their creation times. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct ReaderTokens(pub(crate) Arc<tokio::sync::Mutex<HashMap<String, (Instant, String)>>>);
