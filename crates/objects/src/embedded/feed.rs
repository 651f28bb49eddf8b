//! The feed of changes: one task reads the log, and all watches take the changes from memory.
//!
//! Invariant: the feed has every change between its first and its last version, in the order of versions.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use slipway_store::Database;
use tokio::sync::{Notify, watch};

use super::codec::Codec;
use crate::encoded::Encoded;
use crate::error::Error;
use crate::repo::{self, Key};
use crate::resource::Registry;

/// Maximum number of changes in memory. A watch that is further behind reads the log.
const MAX_CHANGES: usize = 4096;
/// Maximum bytes of the stored states of changes in memory.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Maximum number of changes that one query reads.
const MAX_ROWS: i64 = 256;
/// How often the log is read for the changes of other servers.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A change.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) version: i64,
    pub(super) key: Key,
    /// The state after the change; `None` for a deletion.
    pub(super) current: Option<Arc<Encoded>>,
    /// The state before the change, with the version of the change; `None` for a creation.
    pub(super) previous: Option<Arc<Encoded>>,
    /// The size of both states in the database.
    bytes: usize,
}

/// The newest changes.
pub(super) struct Feed {
    recent: RwLock<Recent>,
    /// The version up to which changes are in the feed; closed when the feed is.
    head: watch::Sender<Head>,
    /// Wakes the task that reads the log.
    wake: Notify,
}

/// The end of the feed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) version: i64,
    pub(super) is_closed: bool,
}

struct Recent {
    changes: VecDeque<Arc<Change>>,
    /// All changes after this version are in `changes`.
    start: i64,
    bytes: usize,
}

impl Feed {
    pub(super) fn new(version: i64) -> Self {
        Self {
            recent: RwLock::new(Recent { changes: VecDeque::new(), start: version, bytes: 0 }),
            head: watch::Sender::new(Head { version, is_closed: false }),
            wake: Notify::new(),
        }
    }

    /// Reports that the log has a new change.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Ends all watches.
    pub(super) fn close(&self) {
        self.head.send_modify(|head| head.is_closed = true);
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// At most `limit` changes after a version; `None` if some of them are no longer in memory.
    pub(super) fn after(&self, version: i64, limit: usize) -> Option<Vec<Arc<Change>>> {
        let recent = self.recent.read();
        if version < recent.start {
            return None;
        }
        let first = recent.changes.partition_point(|change| change.version <= version);
        Some(recent.changes.range(first..).take(limit).map(Arc::clone).collect())
    }

    fn push(&self, changes: Vec<Arc<Change>>) {
        let Some(version) = changes.last().map(|change| change.version) else { return };
        {
            let mut recent = self.recent.write();
            for change in changes {
                recent.bytes += change.bytes;
                recent.changes.push_back(change);
            }
            while recent.changes.len() > MAX_CHANGES || recent.bytes > MAX_BYTES {
                let Some(oldest) = recent.changes.pop_front() else { break };
                recent.bytes -= oldest.bytes;
                recent.start = oldest.version;
            }
        }
        self.head.send_modify(|head| head.version = version);
    }
}

/// Reads the first changes after a version.
pub(super) async fn read_log(
    database: &Database,
    registry: &Registry,
    codec: &Codec,
    after: i64,
) -> Result<Vec<Arc<Change>>, Error> {
    let rows = database
        .read(move |c| {
            let clock = repo::clock(c)?;
            if after < clock.compacted {
                return Err(super::lists::too_old(after, clock));
            }
            Ok(repo::changes_after(c, after, MAX_ROWS)?)
        })
        .await?;
    let mut changes = Vec::with_capacity(rows.len());
    for row in rows {
        let size = |state: &Option<repo::Stored>| state.as_ref().map_or(0, |state| state.body.len());
        let bytes = size(&row.current) + size(&row.previous);
        // A state that cannot be read, for example because the key was lost, must not hold up all others. Reading the object itself
        // reports the error.
        let text = |state: Option<repo::Stored>| {
            let resource = registry.stored_as(&row.key.resource)?;
            let text = codec.text(resource, &state?, row.version);
            let text = text.inspect_err(|error| tracing::error!(%error, "watches cannot show a change of an object"));
            text.ok().map(Arc::new)
        };
        changes.push(Arc::new(Change {
            version: row.version,
            current: text(row.current),
            previous: text(row.previous),
            key: row.key,
            bytes,
        }));
    }
    Ok(changes)
}

/// Starts the task that fills the feed from the log.
pub(super) fn follow(
    feed: Arc<Feed>,
    database: Database,
    registry: Registry,
    codec: Codec,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let after = feed.head.borrow().version;
            match read_log(&database, &registry, &codec, after).await {
                Ok(changes) if changes.is_empty() => {}
                Ok(changes) => {
                    feed.push(changes);
                    continue;
                }
                Err(error) => tracing::warn!(%error, "cannot read the log of object changes; watches are delayed"),
            }
            // The interval also covers changes of other servers, and a failed read.
            let _ = tokio::time::timeout(POLL_INTERVAL, feed.wake.notified()).await;
        }
    })
}
