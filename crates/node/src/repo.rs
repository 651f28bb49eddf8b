//! Stores the lease log and prepared claims. This module contains all SQL of the crate.

use serde::Serialize;
use slipway_gpu::usage::Usage;
use slipway_store::sql::{Connection, params};
use slipway_store::{Migration, StoreError};

use crate::model::Holder;

/// The tables of this crate.
pub(crate) const MIGRATION: Migration = Migration {
    domain: "node",
    steps: &["CREATE TABLE leases (id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, pod TEXT NOT NULL, container TEXT NOT NULL,
        resource TEXT NOT NULL, device TEXT NOT NULL, replica INTEGER NOT NULL, began INTEGER NOT NULL, seen INTEGER NOT NULL,
        ended INTEGER, joules REAL NOT NULL, busy_seconds REAL NOT NULL, idle_seconds REAL NOT NULL);
      CREATE UNIQUE INDEX leases_open ON leases (namespace, pod, container, resource, device, replica) WHERE ended IS NULL;
      CREATE INDEX leases_by_time ON leases (began);
      CREATE TABLE claims (uid TEXT PRIMARY KEY, prepared TEXT NOT NULL);",
      "CREATE TABLE domain_claims (uid TEXT PRIMARY KEY, namespace TEXT NOT NULL, name TEXT NOT NULL, domain_uid TEXT NOT NULL,
        domain_name TEXT NOT NULL);"],
};

/// Retention period of ended leases: 90 days.
const RETENTION_MS: i64 = 90 * 24 * 3600 * 1000;

/// A lease: the period in which a container held a device. Times are in milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Lease {
    #[serde(flatten)]
    pub(crate) holder: Holder,
    pub(crate) began: i64,
    /// The last time the lease was observed, which is also the end of a lease that ended while no agent ran.
    pub(crate) seen: i64,
    pub(crate) ended: Option<i64>,
    #[serde(flatten)]
    pub(crate) used: Usage,
}

/// The replica number for the database; -1 if the device is not shared.
fn replica(holder: &Holder) -> i64 {
    holder.replica.map_or(-1, i64::from)
}

/// Records the current holders: starts leases of new holders, updates running leases, and ends those of `former` holders with their
/// final usage.
///
/// # Errors
/// [`StoreError`] if the database fails.
pub(crate) fn record(
    c: &Connection,
    time: i64,
    held: &[(Holder, Usage)],
    former: &[(Holder, Usage)],
) -> Result<(), StoreError> {
    for (h, used) in held {
        c.execute(
            "INSERT INTO leases (namespace, pod, container, resource, device, replica, began, seen, joules, busy_seconds, idle_seconds)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9, ?10)
             ON CONFLICT (namespace, pod, container, resource, device, replica) WHERE ended IS NULL DO UPDATE SET
               seen = ?7, joules = ?8, busy_seconds = ?9, idle_seconds = ?10",
            params![
            h.namespace, h.pod, h.container, h.resource, h.device, replica(h), time, used.joules, used.busy_seconds, used.idle_seconds
        ],
        )?;
    }
    for (h, used) in former {
        c.execute(
            "UPDATE leases SET joules = ?7, busy_seconds = ?8, idle_seconds = ?9 WHERE ended IS NULL AND namespace = ?1
             AND pod = ?2 AND container = ?3 AND resource = ?4 AND device = ?5 AND replica = ?6",
            params![
                h.namespace,
                h.pod,
                h.container,
                h.resource,
                h.device,
                replica(h),
                used.joules,
                used.busy_seconds,
                used.idle_seconds
            ],
        )?;
    }
    c.execute("UPDATE leases SET ended = seen WHERE ended IS NULL AND seen < ?1", [time])?;
    c.execute("DELETE FROM leases WHERE began < ?1 AND ended IS NOT NULL", [time - RETENTION_MS])?;
    Ok(())
}

/// Lists at most `limit` leases, newest first.
///
/// # Errors
/// [`StoreError`] if the database fails.
pub(crate) fn leases(c: &Connection, limit: u32) -> Result<Vec<Lease>, StoreError> {
    c.rows(
        "SELECT namespace, pod, container, resource, device, replica, began, seen, ended, joules, busy_seconds, idle_seconds
         FROM leases ORDER BY began DESC, id DESC LIMIT ?1",
        [limit],
        |r| Ok(Lease {
            holder: Holder {
                namespace: r.get(0)?,
                pod: r.get(1)?,
                container: r.get(2)?,
                resource: r.get(3)?,
                device: r.get(4)?,
                replica: r.get::<i64>(5)?.try_into().ok(),
            },
            began: r.get(6)?,
            seen: r.get(7)?,
            ended: r.get(8)?,
            used: Usage { joules: r.get(9)?, busy_seconds: r.get(10)?, idle_seconds: r.get(11)? },
        }),
    )
}

/// Stores the record of a prepared claim (JSON), keyed by the UID of the claim.
///
/// # Errors
/// [`StoreError`] if the database fails.
pub(crate) fn put_claim(c: &Connection, uid: &str, record: &str) -> Result<(), StoreError> {
    c.execute(
        "INSERT INTO claims (uid, prepared) VALUES (?1, ?2) ON CONFLICT (uid) DO UPDATE SET prepared = ?2",
        [uid, record],
    )?;
    Ok(())
}

/// The record of a prepared claim, if it exists.
///
/// # Errors
/// [`StoreError`] if the database fails.
pub(crate) fn claim(c: &Connection, uid: &str) -> Result<Option<String>, StoreError> {
    c.first("SELECT prepared FROM claims WHERE uid = ?1", [uid], |r| r.get(0))
}

/// All prepared claims, as (UID, record).
///
/// # Errors
/// [`StoreError`] if the database fails.
pub(crate) fn claims(c: &Connection) -> Result<Vec<(String, String)>, StoreError> {
    c.rows("SELECT uid, prepared FROM claims ORDER BY uid", params![], |r| Ok((r.get(0)?, r.get(1)?)))
}

/// Deletes the record of a claim.
///
/// # Errors
/// [`StoreError`] if the database fails.
pub(crate) fn delete_claim(c: &Connection, uid: &str) -> Result<(), StoreError> {
    c.execute("DELETE FROM claims WHERE uid = ?1", [uid])?;
    Ok(())
}

/// A claim on this node for a channel of a ComputeDomain, which is in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DomainClaim {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) domain_uid: String,
    pub(crate) domain_name: String,
}

/// Records a claim, unless a claim of another domain is recorded; then that one is returned.
///
/// # Errors
/// [`StoreError`] if the database fails.
pub(crate) fn put_domain_claim(c: &Connection, claim: &DomainClaim) -> Result<Option<DomainClaim>, StoreError> {
    if let Some(other) = domain_claims(c)?.into_iter().find(|other| other.domain_uid != claim.domain_uid) {
        return Ok(Some(other));
    }
    c.execute(
        "INSERT INTO domain_claims (uid, namespace, name, domain_uid, domain_name) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (uid) DO NOTHING",
        params![claim.uid, claim.namespace, claim.name, claim.domain_uid, claim.domain_name],
    )?;
    Ok(None)
}

/// All recorded claims for channels.
///
/// # Errors
/// [`StoreError`] if the database fails.
pub(crate) fn domain_claims(c: &Connection) -> Result<Vec<DomainClaim>, StoreError> {
    c.rows("SELECT uid, namespace, name, domain_uid, domain_name FROM domain_claims ORDER BY uid", params![], |r| {
        Ok(DomainClaim {
            uid: r.get(0)?,
            namespace: r.get(1)?,
            name: r.get(2)?,
            domain_uid: r.get(3)?,
            domain_name: r.get(4)?,
        })
    })
}

/// Deletes the record of a claim for a channel.
///
/// # Errors
/// [`StoreError`] if the database fails.
pub(crate) fn delete_domain_claim(c: &Connection, uid: &str) -> Result<(), StoreError> {
    c.execute("DELETE FROM domain_claims WHERE uid = ?1", [uid])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_start_continue_and_end() {
        let c = Connection::in_memory(&[MIGRATION]).unwrap();
        let holder = |pod: &str| Holder {
            namespace: "team".into(),
            pod: pod.into(),
            container: "main".into(),
            resource: "nvidia.com/gpu".into(),
            device: "GPU-1".into(),
            replica: Some(0),
        };
        let used = |joules| Usage { joules, ..Usage::default() };
        record(&c, 10, &[(holder("a"), used(5.0))], &[]).unwrap();
        record(&c, 20, &[(holder("a"), used(6.0)), (holder("b"), used(0.0))], &[]).unwrap();
        record(&c, 30, &[(holder("b"), used(0.0))], &[(holder("a"), used(7.0))]).unwrap();
        // The same pod gets a new lease when it holds the device again.
        record(&c, 40, &[(holder("a"), used(0.0))], &[]).unwrap();
        let all = leases(&c, 10).unwrap();
        let short: Vec<_> = all.iter().map(|l| (l.holder.pod.as_str(), l.began, l.ended, l.used.joules)).collect();
        assert_eq!(short, [("a", 40, None, 0.0), ("b", 20, Some(30), 0.0), ("a", 10, Some(20), 7.0)]);
        assert_eq!(all[0].holder.replica, Some(0));
    }
}
