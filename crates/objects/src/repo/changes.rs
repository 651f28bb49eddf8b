//! The log of changes.

use slipway_store::sql::{Connection, Result, params};

use super::{Key, Stored};

/// Maximum number of retained changes.
const MAX_CHANGES: i64 = 20_000;
/// Maximum bytes of retained changes.
const MAX_BYTES: i64 = 256 * 1024 * 1024;
/// The log is compacted once in so many changes.
const COMPACTION_INTERVAL: i64 = 256;

/// A change of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The version of the change.
    pub version: i64,
    /// The key of the object.
    pub key: Key,
    /// The state after the change; `None` for a deletion.
    pub current: Option<Stored>,
    /// The state before the change; `None` for a creation.
    pub previous: Option<Stored>,
}

/// At most `limit` changes after a version, in their order. Changes are missing if `after` is less than the clock's `compacted`.
///
/// # Errors
/// The store's.
pub fn changes_after(c: &Connection, after: i64, limit: i64) -> Result<Vec<Change>> {
    c.rows(
        "SELECT c.resource, c.namespace, c.name, c.version, c.deleted, c.previous_version, c.previous, n.previous, o.body \
         FROM object_changes c \
         LEFT JOIN object_changes n ON n.previous_version = c.version \
         LEFT JOIN objects o ON o.version = c.version \
         WHERE c.version > ?1 ORDER BY c.version LIMIT ?2",
        params![after, limit],
        |row| {
            let key = Key { resource: row.get(0)?, namespace: row.get(1)?, name: row.get(2)? };
            let version = row.get(3)?;
            let state = |version: i64, body: Vec<u8>| Stored { key: key.clone(), version, body };
            let previous = match row.get::<Option<i64>>(5)? {
                Some(version) => Some(state(version, row.get(6)?)),
                None => None,
            };
            let current = match (row.get::<i64>(4)?, row.get::<Option<Vec<u8>>>(7)?) {
                (1, _) => None,
                (_, Some(body)) => Some(state(version, body)),
                (_, None) => Some(state(version, row.get(8)?)),
            };
            Ok(Change { version, key, current, previous })
        },
    )
}

/// Removes changes beyond the limits of the log, if it is time for it after the change with this version.
///
/// # Errors
/// The store's.
pub fn compact(c: &Connection, version: i64) -> Result<()> {
    if version % COMPACTION_INTERVAL != 0 {
        return Ok(());
    }
    compact_to(c, version - MAX_CHANGES, MAX_BYTES)
}

/// Removes the changes up to a version, and the oldest ones of more than `max_bytes`.
pub(super) fn compact_to(c: &Connection, version: i64, max_bytes: i64) -> Result<()> {
    let last = c.first(
        "SELECT MAX(version) FROM object_changes WHERE version <= ?1 OR log_end <= (SELECT log_end FROM object_clock WHERE id = 1) - ?2",
        params![version, max_bytes],
        |row| row.get::<Option<i64>>(0),
    )?;
    if let Some(last) = last.flatten() {
        c.execute("DELETE FROM object_changes WHERE version <= ?1", params![last])?;
        c.execute("UPDATE object_clock SET compacted = ?1 WHERE id = 1", params![last])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{self as repo, *};
    use super::*;
    use slipway_store::{Database, StoreError};

    fn state(name: &str, body: &str) -> State {
        State {
            key: Key { resource: "configmaps".into(), namespace: "n".into(), name: name.into() },
            uid: format!("uid-{name}"),
            deleting: false,
            expires_at: None,
            owners: Vec::new(),
            body: body.as_bytes().to_vec(),
        }
    }

    fn bodies(states: Vec<Stored>) -> Vec<String> {
        states.into_iter().map(|s| String::from_utf8(s.body).unwrap()).collect()
    }

    #[tokio::test]
    async fn every_retained_version_can_be_listed_and_followed() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("t.db"), &[MIGRATION]).unwrap();
        database
            .write(|c| {
                let a1 = insert(c, &state("a", "a1"))?;
                let b1 = insert(c, &state("b", "b1"))?;
                let a2 = replace(c, &state("a", "a2"), a1)?.unwrap();
                assert_eq!(replace(c, &state("a", "lost"), a1)?, None);
                let b2 = repo::delete(c, &state("b", "").key, "uid-b", b1)?.unwrap();
                let c1 = insert(c, &state("c", "c1"))?;
                let a3 = replace(c, &state("a", "a3"), a2)?.unwrap();
                assert_eq!([a1, b1, a2, b2, c1, a3], [2, 3, 4, 5, 6, 7]);

                let first = Key { resource: "configmaps".into(), ..Key::default() };
                for (version, expected) in [
                    (1, vec![]),
                    (2, vec!["a1"]),
                    (3, vec!["a1", "b1"]),
                    (4, vec!["a2", "b1"]),
                    (5, vec!["a2"]),
                    (6, vec!["a2", "c1"]),
                    (7, vec!["a3", "c1"]),
                ] {
                    assert_eq!(bodies(repo::list(c, version, &first, None, None, 10)?), expected, "{version}");
                }
                let after_a = Key { namespace: "n".into(), name: "a".into(), ..first.clone() };
                assert_eq!(bodies(repo::list(c, 7, &after_a, Some("n"), None, 10)?), ["c1"]);
                assert_eq!(repo::list(c, 7, &first, Some("other"), None, 10)?, []);
                assert_eq!(bodies(repo::list(c, 7, &first, None, Some("c"), 10)?), ["c1"]);

                let followed = changes_after(c, 1, 100)?;
                let followed: Vec<_> = followed
                    .into_iter()
                    .map(|change| {
                        let text = |s: Option<Stored>| bodies(s.into_iter().collect()).pop().unwrap_or_default();
                        (change.version, text(change.previous), text(change.current))
                    })
                    .collect();
                let expected =
                    [(2, "", "a1"), (3, "", "b1"), (4, "a1", "a2"), (5, "b1", ""), (6, "", "c1"), (7, "a2", "a3")];
                assert_eq!(followed, expected.map(|(v, p, c)| (v, p.to_owned(), c.to_owned())));

                compact_to(c, 3, i64::MAX)?;
                assert_eq!(clock(c)?, Clock { version: 7, compacted: 3 });
                assert_eq!(changes_after(c, 3, 100)?.len(), 4);
                // The log has 6 bytes: a1, b1 and a2.
                compact_to(c, 0, 2)?;
                assert_eq!(clock(c)?.compacted, 6);
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
    }
}
