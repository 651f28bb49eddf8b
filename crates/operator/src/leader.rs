//! Leader election by a Lease (`coordination.k8s.io/v1`), with the rules and times of client-go's `tools/leaderelection`.
//!
//! At most one participant leads at any time. A leader may lead for [`RENEW_DEADLINE`] after it *sent* its last successful renewal.
//! Another participant may take the lease only after it has observed it unchanged for [`LEASE_DURATION`], counted from the moment at
//! which it *read* it. A renewal is sent before it is stored and stored before it is read, so the leader always stops at least
//! `LEASE_DURATION - RENEW_DEADLINE` earlier, however slowly the API server responds. Clocks of different machines are never compared;
//! they may run at different speeds up to the ratio of the two times.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::{Api, KubeError};

/// Another participant may take a lease that it has observed unchanged for this long.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A leader stops leading this long after it sent its last successful renewal.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Delay between two attempts.
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// Timeout of one attempt, so that one lost response does not use up the whole deadline.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
/// Timeout for releasing the lease at the end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// One participant of an election.
#[derive(Debug, Clone)]
pub struct Election {
    /// Client of the API server that stores the lease.
    pub api: Api,
    /// Namespace of the lease.
    pub namespace: String,
    /// Name of the lease.
    pub lease: String,
    /// Unique name of this participant.
    pub identity: String,
}

/// Result of an attempt to acquire or renew the lease.
enum Attempt {
    /// This participant holds the lease. The attempt was sent at this time.
    Held(Instant),
    /// Another participant holds the lease.
    HeldByAnother,
}

/// The lease as it was last read, to detect changes.
struct Observed {
    /// Resource version of the lease; `None` if the lease did not exist.
    version: Option<String>,
    /// When this version was first read.
    since: Instant,
}

impl Election {
    /// Participates until `stop` completes, and polls `work` while this participant leads. `work` is a part of this future: it is
    /// dropped before the leadership ends, before `leading` becomes false, and before the lease is released. Work that completes by
    /// itself is restarted in the next term.
    pub async fn run<W: Future<Output = ()>>(
        self,
        leading: watch::Sender<bool>,
        stop: impl Future<Output = ()>,
        work: impl Fn() -> W,
    ) {
        tokio::select! {
            biased;
            () = stop => {}
            () = self.run_terms(&leading, work) => {}
        }
        if leading.send_replace(false) {
            match timeout(RELEASE_TIMEOUT, self.release()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "cannot release the lease; it has to expire"),
                Err(_) => tracing::debug!("releasing the lease timed out; it has to expire"),
            }
        }
    }

    /// Acquires leadership and runs the work, repeatedly.
    async fn run_terms<W: Future<Output = ()>>(&self, leading: &watch::Sender<bool>, work: impl Fn() -> W) {
        let mut observed = None;
        loop {
            let renewed = self.acquire(&mut observed).await;
            tracing::info!(lease = self.lease, identity = self.identity, "leading");
            leading.send_replace(true);
            let reason = self.lead(renewed, &mut observed, work()).await;
            leading.send_replace(false);
            tracing::warn!(lease = self.lease, identity = self.identity, why = reason, "no longer leading");
        }
    }

    /// Waits until this participant holds the lease. Returns the time at which the successful attempt was sent.
    async fn acquire(&self, observed: &mut Option<Observed>) -> Instant {
        loop {
            match self.attempt(observed).await {
                // Ignore a response so late that the renewal deadline has already passed.
                Ok(Attempt::Held(sent)) if sent.elapsed() < RENEW_DEADLINE => return sent,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, lease = self.lease, "cannot read or write the lease"),
            }
            sleep(RETRY_PERIOD).await;
        }
    }

    /// Runs the work as long as the lease is renewed in time. Returns why the term ended.
    async fn lead(
        &self,
        renewed: Instant,
        observed: &mut Option<Observed>,
        work: impl Future<Output = ()>,
    ) -> &'static str {
        const EXPIRED: &str = "the lease could not be renewed in time";
        let deadline = Mutex::new(renewed + RENEW_DEADLINE);
        let renewing = async {
            loop {
                let until = *deadline.lock();
                match timeout_at(until, self.renew(observed)).await {
                    Ok(Attempt::Held(sent)) => *deadline.lock() = sent + RENEW_DEADLINE,
                    Ok(Attempt::HeldByAnother) => return "another participant leads",
                    Err(_) => return EXPIRED,
                }
            }
        };
        let (mut renewing, mut work) = (std::pin::pin!(renewing), std::pin::pin!(work));
        std::future::poll_fn(|context| {
            if let std::task::Poll::Ready(reason) = renewing.as_mut().poll(context) {
                return std::task::Poll::Ready(reason);
            }
            // When a suspended process resumes, the work may be polled before the timer fires, so check the clock as well.
            if Instant::now() >= *deadline.lock() {
                return std::task::Poll::Ready(EXPIRED);
            }
            work.as_mut().poll(context).map(|()| "the work ended")
        })
        .await
    }

    /// Renews the lease once after [`RETRY_PERIOD`], and retries until an attempt gets a response.
    async fn renew(&self, observed: &mut Option<Observed>) -> Attempt {
        loop {
            sleep(RETRY_PERIOD).await;
            match self.attempt(observed).await {
                Ok(outcome) => return outcome,
                Err(error) => tracing::debug!(%error, lease = self.lease, "cannot renew the lease"),
            }
        }
    }

    /// Acquires or renews the lease. A conflict with another writer is an error; the next attempt reads the new holder.
    async fn attempt(&self, observed: &mut Option<Observed>) -> Result<Attempt, KubeError> {
        let sent = Instant::now();
        match timeout(ATTEMPT_TIMEOUT, self.acquire_or_renew(observed)).await {
            Ok(Ok(true)) => Ok(Attempt::Held(sent)),
            Ok(Ok(false)) => Ok(Attempt::HeldByAnother),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(KubeError::Unreachable(format!("no response within {} s", ATTEMPT_TIMEOUT.as_secs()))),
        }
    }

    /// Acquires the lease if it is free, or renews it if this participant holds it. Returns whether this participant holds it now.
    async fn acquire_or_renew(&self, observed: &mut Option<Observed>) -> Result<bool, KubeError> {
        let leases = self.api.typed::<Lease>(&self.namespace);
        let found = self.api.send(leases.get_opt(&self.lease)).await?;
        let version = found.as_ref().map(|l| l.metadata.resource_version.clone().unwrap_or_default());
        let first = observed.is_none();
        if observed.as_ref().is_none_or(|o| o.version != version) {
            *observed = Some(Observed { version: version.clone(), since: Instant::now() });
        }
        let unchanged = observed.as_ref().map_or(Duration::ZERO, |o| o.since.elapsed());
        let now = MicroTime(Timestamp::now());
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            ..LeaseSpec::default()
        };
        let Some(mut lease) = found else {
            // The lease existed before and was deleted. Its holder may not have noticed yet.
            if !first && unchanged < LEASE_DURATION {
                return Ok(false);
            }
            let metadata = ObjectMeta { name: Some(self.lease.clone()), ..ObjectMeta::default() };
            let spec = LeaseSpec { lease_transitions: Some(0), ..spec };
            let lease = Lease { metadata, spec: Some(spec) };
            self.api.send(leases.create(&PostParams::default(), &lease)).await?;
            return Ok(true);
        };
        let before = lease.spec.take().unwrap_or_default();
        let holder = before.holder_identity.as_deref().unwrap_or_default();
        let transitions = before.lease_transitions.unwrap_or(0);
        lease.spec = Some(if holder == self.identity {
            LeaseSpec { acquire_time: before.acquire_time, lease_transitions: Some(transitions), ..spec }
        } else if holder.is_empty() || unchanged >= LEASE_DURATION {
            LeaseSpec { lease_transitions: Some(transitions.saturating_add(1)), ..spec }
        } else {
            return Ok(false);
        });
        // The resource version in the object makes the API server reject the write if the lease has changed since.
        self.api.send(leases.replace(&self.lease, &PostParams::default(), &lease)).await?;
        Ok(true)
    }

    /// Releases the lease, so that other participants need not wait until it expires.
    async fn release(&self) -> Result<(), KubeError> {
        let leases = self.api.typed::<Lease>(&self.namespace);
        loop {
            let Some(mut lease) = self.api.send(leases.get_opt(&self.lease)).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return Ok(());
            }
            spec.holder_identity = None;
            match self.api.send(leases.replace(&self.lease, &PostParams::default(), &lease)).await {
                // A renewal that timed out may have been stored after all; read the lease again.
                Err(KubeError::Refused { code: 409, .. }) => {}
                result => return result.map(drop),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::mock::{Fault, MockCluster};

    /// Counted as running work until it is dropped.
    struct Work(Arc<WorkCounts>);

    #[derive(Default)]
    struct WorkCounts {
        current: AtomicUsize,
        max: AtomicUsize,
        terms: AtomicUsize,
    }

    impl Work {
        fn begin(counts: &Arc<WorkCounts>) -> Self {
            let current = counts.current.fetch_add(1, SeqCst) + 1;
            counts.max.fetch_max(current, SeqCst);
            counts.terms.fetch_add(1, SeqCst);
            Self(Arc::clone(counts))
        }
    }

    impl Drop for Work {
        fn drop(&mut self) {
            self.0.current.fetch_sub(1, SeqCst);
        }
    }

    struct Participant {
        leading: watch::Receiver<bool>,
        stop: tokio::sync::oneshot::Sender<()>,
        task: tokio::task::JoinHandle<()>,
    }

    fn join(cluster: &Arc<MockCluster>, identity: &str, counts: &Arc<WorkCounts>) -> Participant {
        let election = Election {
            api: cluster.api(identity),
            namespace: "slipway-system".into(),
            lease: "runs".into(),
            identity: identity.into(),
        };
        let (sender, leading) = watch::channel(false);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let counts = Arc::clone(counts);
        let task = tokio::spawn(election.run(
            sender,
            async {
                let _ = stopped.await; // an error means that the test has ended, so stop as well
            },
            move || {
                let work = Work::begin(&counts);
                async move {
                    std::future::pending::<()>().await;
                    drop(work);
                }
            },
        ));
        Participant { leading, stop, task }
    }

    async fn leads(participant: &mut Participant, within: Duration) -> bool {
        timeout(within, participant.leading.wait_for(|l| *l)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_counts_from_the_sending_of_the_renewal() {
        // Each response to the leader takes 3.9 s, and then there are none. A leader that counted from the response to its last renewal
        // would still lead after the rival has observed the lease unchanged for 15 s.
        let cluster = MockCluster::new();
        let silent = Arc::new(AtomicBool::new(false));
        let slow = Arc::clone(&silent);
        cluster.faults(move |client, method, _| match (client, method) {
            ("a", _) if slow.load(SeqCst) => Fault::Lost,
            ("a", "GET") => Fault::None,
            ("a", _) => Fault::Late { stored: Duration::ZERO, responded: Duration::from_millis(3900) },
            _ => Fault::None,
        });
        let counts = Arc::new(WorkCounts::default());
        let mut a = join(&cluster, "a", &counts);
        assert!(leads(&mut a, Duration::from_secs(5)).await);
        let mut b = join(&cluster, "b", &counts);
        let writes = || cluster.count("PUT", "leases");
        let before = writes();
        while writes() == before {
            sleep(Duration::from_millis(10)).await;
        }
        let (last, tolerance) = (Instant::now(), Duration::from_millis(20));
        // The response to this renewal still arrives.
        sleep(Duration::from_millis(3950)).await;
        assert!(*a.leading.borrow());
        silent.store(true, SeqCst);
        a.leading.wait_for(|l| !*l).await.unwrap();
        assert!(last.elapsed() <= RENEW_DEADLINE + tolerance, "led for {:?} after its last renewal", last.elapsed());
        assert!(leads(&mut b, Duration::from_secs(60)).await);
        assert!(last.elapsed() >= LEASE_DURATION, "taken after {:?}", last.elapsed());
        assert_eq!(counts.max.load(SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_one_leads_under_random_faults() {
        for seed in 1..=60u64 {
            let cluster = MockCluster::new();
            let healthy = Arc::new(AtomicBool::new(false));
            let is_healthy = Arc::clone(&healthy);
            let state = Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let random = move |below: usize| {
                // xorshift64: the same seed gives the same faults.
                let mut state = state.lock();
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                (*state % below as u64) as usize
            };
            // The kind of fault of each participant's connection, and when it changes.
            let connections: Mutex<HashMap<String, (Instant, usize)>> = Mutex::default();
            cluster.faults(move |client, _, _| {
                const TIMES: [u64; 8] = [0, 1, 500, 1900, 3900, 4100, 9900, 16_000];
                if is_healthy.load(SeqCst) {
                    return Fault::None;
                }
                let mut connections = connections.lock();
                let (ends, kind) = connections.entry(client.to_owned()).or_insert((Instant::now(), 0));
                if Instant::now() >= *ends {
                    *ends = Instant::now() + Duration::from_secs(random(30) as u64);
                    *kind = random(5);
                }
                let late = |stored, more| Fault::Late {
                    stored: Duration::from_millis(stored),
                    responded: Duration::from_millis(stored + more),
                };
                match (*kind, random(6)) {
                    (0 | 1, _) | (4, 0) => Fault::None,
                    (2, _) => late(0, 1950),
                    (3, _) | (4, 1) => Fault::Lost,
                    (4, 2) => Fault::StoredAndLost(Duration::from_millis(TIMES[random(8)])),
                    (4, 3) => Fault::Refused(500),
                    _ => late(TIMES[random(8)], TIMES[random(8)]),
                }
            });
            let counts = Arc::new(WorkCounts::default());
            let all = ["a", "b", "c"].map(|name| join(&cluster, name, &counts));
            sleep(Duration::from_secs(600)).await;
            assert_eq!(counts.max.load(SeqCst).max(1), 1, "seed {seed}");
            healthy.store(true, SeqCst);
            sleep(Duration::from_secs(60)).await;
            assert_eq!(
                counts.current.load(SeqCst),
                1,
                "seed {seed}: one participant leads after the faults have ended"
            );
            let leaders = all.iter().filter(|p| *p.leading.borrow()).count();
            assert_eq!((leaders, counts.max.load(SeqCst)), (1, 1), "seed {seed}");
            for participant in all {
                participant.task.abort();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn released_lease_is_acquired_at_once_and_after_the_work_has_ended() {
        let cluster = MockCluster::new();
        let counts = Arc::new(WorkCounts::default());
        let mut a = join(&cluster, "a", &counts);
        assert!(leads(&mut a, Duration::from_secs(1)).await);
        let mut b = join(&cluster, "b", &counts);
        sleep(Duration::from_secs(30)).await;
        assert!(!*b.leading.borrow());
        a.stop.send(()).unwrap();
        a.task.await.unwrap();
        assert!(leads(&mut b, RETRY_PERIOD * 2).await);
        assert_eq!((counts.max.load(SeqCst), counts.terms.load(SeqCst)), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn deleted_lease_is_not_free() {
        let cluster = MockCluster::new();
        let counts = Arc::new(WorkCounts::default());
        let mut a = join(&cluster, "a", &counts);
        assert!(leads(&mut a, Duration::from_secs(1)).await);
        let _b = join(&cluster, "b", &counts);
        sleep(Duration::from_secs(5)).await;
        // The leader loses its connection, and its lease is deleted.
        cluster.faults(|client, _, _| if client == "a" { Fault::Lost } else { Fault::None });
        cluster.remove("leases", "slipway-system", "runs");
        sleep(Duration::from_secs(60)).await;
        assert_eq!((counts.max.load(SeqCst), counts.current.load(SeqCst), counts.terms.load(SeqCst)), (1, 1, 2));
    }
}
