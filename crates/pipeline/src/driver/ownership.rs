//! Which runs this server carries out. A server with a database of its own carries out all of them. Of servers that share a database, each
//! carries out the runs that it accepted, and those of a server that does not live any more.
//!
//! Invariant: progress is recorded only by the owner of a run (`repo::runs::advance`), so a server that was taken over while it could not
//! reach the database leaves its runs alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::drive::Command;
use super::{Driver, Reason};
use crate::Error;
use crate::model::RunState;
use crate::repo;
use crate::repo::owners::Owner;
use crate::service::Runner;

/// Interval at which a server looks for what other servers were asked to do with its runs.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which a server reports that it lives.
const BEAT_INTERVAL: Duration = Duration::from_secs(3);
/// Time without a report after which a server counts as dead. The server that waits measures it, so that clocks need not agree.
const LEASE: Duration = Duration::from_secs(15);

/// The other servers.
#[derive(Debug, Default)]
struct Watch {
    /// The number of beats of each server, and when it was first seen.
    seen: HashMap<String, (i64, Instant)>,
    /// When this server last reported that it lives.
    beaten_at: Option<Instant>,
}

impl Watch {
    /// The servers other than `own` that have not reported for the time of a lease.
    fn dead(&mut self, own: &str, servers: Vec<Owner>, now: Instant) -> Vec<Owner> {
        let mut before = std::mem::take(&mut self.seen);
        let mut dead = Vec::new();
        for server in servers.into_iter().filter(|server| server.name != own) {
            let since = match before.remove(&server.name) {
                Some((beats, since)) if beats == server.beats => since,
                _ => now,
            };
            self.seen.insert(server.name.clone(), (server.beats, since));
            if now.duration_since(since) >= LEASE {
                dead.push(server);
            }
        }
        dead
    }
}

impl Driver {
    /// Takes up the unfinished runs of this server: those of its earlier process. If the database is shared, it also takes over the runs of
    /// servers that die, as long as the driver exists.
    ///
    /// # Errors
    /// An error of the store.
    pub async fn resume(&self) -> Result<(), Error> {
        let is_shared = self.inner.database.is_shared();
        let own = self.inner.settings.owner.clone();
        let adopted = self.inner.database.write(move |c| {
            if !is_shared {
                return repo::owners::adopt_all(c, &own);
            }
            repo::owners::beat(c, &own)?;
            repo::owners::adopt(c, &own)
        });
        adopted.await?;
        for (run_id, _) in self.own_runs().await? {
            self.take_up(run_id, Reason::Resume, None);
        }
        self.track_ended_runs().await?;
        if is_shared {
            let inner = Arc::downgrade(&self.inner);
            tokio::spawn(async move {
                let mut watch = Watch::default();
                loop {
                    tokio::time::sleep(POLL_INTERVAL).await;
                    let Some(inner) = inner.upgrade() else { return };
                    if let Err(error) = (Driver { inner }).poll(&mut watch).await {
                        tracing::warn!(%error, "the runs of pipelines that servers share cannot be read; the next attempt follows");
                    }
                }
            });
        }
        Ok(())
    }

    async fn own_runs(&self) -> Result<Vec<(String, RunState)>, Error> {
        let own = self.inner.settings.owner.clone();
        self.inner.database.read(move |c| repo::runs::unfinished_of_owner(c, &own)).await
    }

    /// Passes on to the tracking store what happened in the runs that ended before their earlier server could do it.
    async fn track_ended_runs(&self) -> Result<(), Error> {
        let own = self.inner.settings.owner.clone();
        for run_id in self.inner.database.read(move |c| repo::runs::untracked_of_owner(c, &own)).await? {
            self.take_up(run_id, Reason::Resume, None);
        }
        Ok(())
    }

    /// Reports that this server lives, takes over the runs of dead servers, and does what others were asked to do with its own runs.
    async fn poll(&self, watch: &mut Watch) -> Result<(), Error> {
        let (database, own) = (&self.inner.database, &self.inner.settings.owner);
        if watch.beaten_at.is_none_or(|at| at.elapsed() >= BEAT_INTERVAL) {
            let name = own.clone();
            let beat = database.write(move |c| {
                repo::owners::beat(c, &name)?;
                repo::owners::adopt(c, &name)
            });
            beat.await?;
            watch.beaten_at = Some(Instant::now());
        }
        let servers = database.read(repo::owners::list).await?;
        let dead = watch.dead(own, servers, Instant::now());
        if !dead.is_empty() {
            let name = own.clone();
            tracing::info!(
                servers = dead.len(),
                "the pipeline runs of servers that do not report any more are taken over"
            );
            database.write(move |c| dead.iter().try_for_each(|from| repo::owners::take_over(c, from, &name))).await?;
            self.track_ended_runs().await?;
        }
        // Taken before the runs are read: a run that is not among them has ended, was deleted, or belongs to another server now.
        let active: Vec<String> = self.inner.active.lock().keys().cloned().collect();
        let runs = self.own_runs().await?;
        let unfinished: HashSet<String> = runs.iter().map(|(run_id, _)| run_id.clone()).collect();
        for (run_id, state) in runs {
            match state {
                RunState::Canceling => self.cancel(run_id),
                _ => self.take_up(run_id, Reason::Resume, None),
            }
        }
        for run_id in active.into_iter().filter(|run_id| !unfinished.contains(run_id)) {
            let id = run_id.clone();
            match database.read(move |c| repo::runs::owner(c, &id)).await {
                Err(Error::NotFound(_)) => {
                    self.command(&run_id, Command::Forget);
                }
                Ok(owner) if owner != *own => {
                    self.command(&run_id, Command::Leave);
                }
                // It has just ended.
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, beats: i64) -> Owner {
        Owner { name: name.into(), beats }
    }

    #[test]
    fn server_is_dead_after_a_lease_without_a_beat() {
        let mut watch = Watch::default();
        let start = Instant::now();
        let all = |beats| vec![server("own", 1), server("other", beats)];
        assert!(watch.dead("own", all(7), start).is_empty());
        assert!(watch.dead("own", all(7), start + LEASE - Duration::from_millis(1)).is_empty());
        assert_eq!(watch.dead("own", all(7), start + LEASE), [server("other", 7)]);
        assert!(watch.dead("own", all(8), start + LEASE * 2).is_empty(), "it has beaten since");
        assert_eq!(watch.dead("own", all(8), start + LEASE * 3), [server("other", 8)]);
        // A server that was taken over and came back is a new one.
        assert!(watch.dead("own", Vec::new(), start + LEASE * 3).is_empty());
        assert!(watch.dead("own", all(8), start + LEASE * 4).is_empty());
    }
}
