//! Leader election by a Lease (`coordination.k8s.io/v1`), with the rules and times of client-go's `tools/leaderelection`.
//!
//! At most one participant leads at any time. A leader may lead for [`RENEW_DEADLINE`] counted from the moment at which its last
//! successful renewal was *sent*; another may take the lease only after it saw it unchanged for [`LEASE_DURATION`], counted from the
//! moment at which it *read* it. A renewal is sent before it is stored and stored before it is read, so the leader always stops at
//! least `LEASE_DURATION - RENEW_DEADLINE` earlier, however slow the API server answers. Clocks of different machines are never
//! compared; they may run at different speeds up to the ratio of the two times.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::{Api, KubeError};

/// A lease that was seen unchanged for so long may be taken by another.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A leader whose last successful renewal was sent so long ago leads no longer.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// The pause between two attempts.
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// The longest that one attempt may take, so that one lost answer does not use up the whole deadline.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
/// The longest that giving the lease back may take at the end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// One participant of an election.
#[derive(Debug, Clone)]
pub struct Election {
    /// The API server that keeps the lease.
    pub api: Api,
    /// The namespace of the lease.
    pub namespace: String,
    /// The name of the lease.
    pub lease: String,
    /// The name of this participant, which nobody else has.
    pub identity: String,
}

/// What an attempt to take or renew the lease came to.
enum Attempt {
    /// The lease is ours; the attempt was sent at this time.
    Held(Instant),
    /// Somebody else holds it.
    HeldByAnother,
}

/// The lease as it was last read, to see whether it changes.
struct Observed {
    /// The version of the object; `None` where there was no lease.
    version: Option<String>,
    /// When this version was first read.
    since: Instant,
}

impl Election {
    /// Takes part until `stop` is done, and does `work` whenever this participant leads. `work` is a part of this future: it is
    /// dropped before the leadership ends, before `leading` says so, and before the lease is given back. Work that ends by itself is
    /// begun again with the next term.
    pub async fn run<W: Future<Output = ()>>(
        self,
        leading: watch::Sender<bool>,
        stop: impl Future<Output = ()>,
        work: impl Fn() -> W,
    ) {
        tokio::select! {
            biased;
            () = stop => {}
            () = self.terms(&leading, work) => {}
        }
        if leading.send_replace(false) {
            match timeout(RELEASE_TIMEOUT, self.release()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "the lease was not given back and has to expire"),
                Err(_) => tracing::debug!("the lease was not given back in time and has to expire"),
            }
        }
    }

    /// Waits for leadership and does the work, again and again.
    async fn terms<W: Future<Output = ()>>(&self, leading: &watch::Sender<bool>, work: impl Fn() -> W) {
        let mut observed = None;
        loop {
            let renewed = self.acquire(&mut observed).await;
            tracing::info!(lease = self.lease, identity = self.identity, "leading");
            leading.send_replace(true);
            let why = self.lead(renewed, &mut observed, work()).await;
            leading.send_replace(false);
            tracing::warn!(lease = self.lease, identity = self.identity, why, "no longer leading");
        }
    }

    /// Waits until the lease is ours; returns when the attempt was sent that got it.
    async fn acquire(&self, observed: &mut Option<Observed>) -> Instant {
        loop {
            match self.attempt(observed).await {
                // The answer may have come so late that the term is over before it began.
                Ok(Attempt::Held(sent)) if sent.elapsed() < RENEW_DEADLINE => return sent,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, lease = self.lease, "the lease cannot be read or written"),
            }
            sleep(RETRY_PERIOD).await;
        }
    }

    /// Does the work for as long as the lease is renewed in time; returns why it ended.
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
                    Ok(Attempt::HeldByAnother) => return "another leads",
                    Err(_) => return EXPIRED,
                }
            }
        };
        let (mut renewing, mut work) = (std::pin::pin!(renewing), std::pin::pin!(work));
        std::future::poll_fn(|context| {
            if let std::task::Poll::Ready(why) = renewing.as_mut().poll(context) {
                return std::task::Poll::Ready(why);
            }
            // After a suspended process wakes up, the work may be polled before the timer has fired; the clock is never late.
            if Instant::now() >= *deadline.lock() {
                return std::task::Poll::Ready(EXPIRED);
            }
            work.as_mut().poll(context).map(|()| "its work ended")
        })
        .await
    }

    /// Renews once after a pause, with as many attempts as it takes.
    async fn renew(&self, observed: &mut Option<Observed>) -> Attempt {
        loop {
            sleep(RETRY_PERIOD).await;
            match self.attempt(observed).await {
                Ok(outcome) => return outcome,
                Err(error) => tracing::debug!(%error, lease = self.lease, "the lease was not renewed"),
            }
        }
    }

    /// Takes or renews the lease. A conflict with another writer is an error: the next attempt reads who won.
    async fn attempt(&self, observed: &mut Option<Observed>) -> Result<Attempt, KubeError> {
        let sent = Instant::now();
        match timeout(ATTEMPT_TIMEOUT, self.take(observed)).await {
            Ok(Ok(true)) => Ok(Attempt::Held(sent)),
            Ok(Ok(false)) => Ok(Attempt::HeldByAnother),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(KubeError::Unreachable(format!("no answer within {} s", ATTEMPT_TIMEOUT.as_secs()))),
        }
    }

    /// Takes the lease if it is free, or renews it if it is ours; whether it is ours now.
    async fn take(&self, observed: &mut Option<Observed>) -> Result<bool, KubeError> {
        let leases = self.api.typed::<Lease>(&self.namespace);
        let found = self.api.answered(leases.get_opt(&self.lease)).await?;
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
            // A lease that was there and is gone was deleted by somebody, and its holder may not know it yet.
            if !first && unchanged < LEASE_DURATION {
                return Ok(false);
            }
            let metadata = ObjectMeta { name: Some(self.lease.clone()), ..ObjectMeta::default() };
            let spec = LeaseSpec { lease_transitions: Some(0), ..spec };
            let lease = Lease { metadata, spec: Some(spec) };
            self.api.answered(leases.create(&PostParams::default(), &lease)).await?;
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
        // The version in the object makes the API server refuse it when somebody else was quicker.
        self.api.answered(leases.replace(&self.lease, &PostParams::default(), &lease)).await?;
        Ok(true)
    }

    /// Gives the lease back, so that nobody has to wait until it expires.
    async fn release(&self) -> Result<(), KubeError> {
        let leases = self.api.typed::<Lease>(&self.namespace);
        loop {
            let Some(mut lease) = self.api.answered(leases.get_opt(&self.lease)).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return Ok(());
            }
            spec.holder_identity = None;
            match self.api.answered(leases.replace(&self.lease, &PostParams::default(), &lease)).await {
                // A renewal that was given up may have been stored after all.
                Err(KubeError::Refused { code: 409, .. }) => {}
                done => return done.map(drop),
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

    /// Counts who does the work at the moment; dropping it is what stops the work.
    struct Working(Arc<Watched>);

    #[derive(Default)]
    struct Watched {
        now: AtomicUsize,
        most: AtomicUsize,
        terms: AtomicUsize,
    }

    impl Working {
        fn begin(watched: &Arc<Watched>) -> Self {
            let now = watched.now.fetch_add(1, SeqCst) + 1;
            watched.most.fetch_max(now, SeqCst);
            watched.terms.fetch_add(1, SeqCst);
            Self(Arc::clone(watched))
        }
    }

    impl Drop for Working {
        fn drop(&mut self) {
            self.0.now.fetch_sub(1, SeqCst);
        }
    }

    struct Participant {
        leading: watch::Receiver<bool>,
        stop: tokio::sync::oneshot::Sender<()>,
        task: tokio::task::JoinHandle<()>,
    }

    fn join(cluster: &Arc<MockCluster>, identity: &str, watched: &Arc<Watched>) -> Participant {
        let election = Election {
            api: cluster.api(identity),
            namespace: "slipway-system".into(),
            lease: "runs".into(),
            identity: identity.into(),
        };
        let (sender, leading) = watch::channel(false);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let watched = Arc::clone(watched);
        let task = tokio::spawn(election.run(
            sender,
            async {
                let _ = stopped.await; // An error means that the test is over, which is a reason to stop as well.
            },
            move || {
                let working = Working::begin(&watched);
                async move {
                    std::future::pending::<()>().await;
                    drop(working);
                }
            },
        ));
        Participant { leading, stop, task }
    }

    async fn leads(participant: &mut Participant, within: Duration) -> bool {
        timeout(within, participant.leading.wait_for(|l| *l)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_counts_from_when_the_renewal_was_sent() {
        // Each answer of the leader's API server takes 3.9 s, and then there are none: the answer to the last renewal comes late, so
        // whoever counts from the answer leads on after a rival has seen 15 s without a change.
        let cluster = MockCluster::new();
        let silent = Arc::new(AtomicBool::new(false));
        let slow = Arc::clone(&silent);
        cluster.faults(move |who, method, _| match (who, method) {
            ("a", _) if slow.load(SeqCst) => Fault::Lost,
            ("a", "GET") => Fault::None,
            ("a", _) => Fault::Late { stored: Duration::ZERO, answered: Duration::from_millis(3900) },
            _ => Fault::None,
        });
        let watched = Arc::new(Watched::default());
        let mut a = join(&cluster, "a", &watched);
        assert!(leads(&mut a, Duration::from_secs(5)).await);
        let mut b = join(&cluster, "b", &watched);
        let written = || cluster.count("PUT", "leases");
        let before = written();
        while written() == before {
            sleep(Duration::from_millis(10)).await;
        }
        let (last, seen) = (Instant::now(), Duration::from_millis(20));
        // The answer to this renewal still arrives.
        sleep(Duration::from_millis(3950)).await;
        assert!(*a.leading.borrow());
        silent.store(true, SeqCst);
        a.leading.wait_for(|l| !*l).await.unwrap();
        assert!(last.elapsed() <= RENEW_DEADLINE + seen, "led for {:?} after its last renewal", last.elapsed());
        assert!(leads(&mut b, Duration::from_secs(60)).await);
        assert!(last.elapsed() >= LEASE_DURATION, "taken after {:?}", last.elapsed());
        assert_eq!(watched.most.load(SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn two_never_lead_at_once_whatever_the_api_server_does() {
        for seed in 1..=60u64 {
            let cluster = MockCluster::new();
            let calm = Arc::new(AtomicBool::new(false));
            let quiet = Arc::clone(&calm);
            let state = Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let random = move |below: usize| {
                // xorshift64: the same seed gives the same faults.
                let mut state = state.lock();
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                (*state % below as u64) as usize
            };
            // What each participant's connection is like at the moment, and when that ends.
            let weather: Mutex<HashMap<String, (Instant, usize)>> = Mutex::default();
            cluster.faults(move |who, _, _| {
                const TIMES: [u64; 8] = [0, 1, 500, 1900, 3900, 4100, 9900, 16_000];
                if quiet.load(SeqCst) {
                    return Fault::None;
                }
                let mut weather = weather.lock();
                let (ends, kind) = weather.entry(who.to_owned()).or_insert((Instant::now(), 0));
                if Instant::now() >= *ends {
                    *ends = Instant::now() + Duration::from_secs(random(30) as u64);
                    *kind = random(5);
                }
                let late = |stored, more| Fault::Late {
                    stored: Duration::from_millis(stored),
                    answered: Duration::from_millis(stored + more),
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
            let watched = Arc::new(Watched::default());
            let all = ["a", "b", "c"].map(|name| join(&cluster, name, &watched));
            sleep(Duration::from_secs(600)).await;
            assert_eq!(watched.most.load(SeqCst).max(1), 1, "seed {seed}");
            calm.store(true, SeqCst);
            sleep(Duration::from_secs(60)).await;
            assert_eq!(watched.now.load(SeqCst), 1, "seed {seed}: somebody leads when all is well again");
            let said = all.iter().filter(|p| *p.leading.borrow()).count();
            assert_eq!((said, watched.most.load(SeqCst)), (1, 1), "seed {seed}");
            for participant in all {
                participant.task.abort();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_given_back_is_taken_at_once_and_after_the_work_ended() {
        let cluster = MockCluster::new();
        let watched = Arc::new(Watched::default());
        let mut a = join(&cluster, "a", &watched);
        assert!(leads(&mut a, Duration::from_secs(1)).await);
        let mut b = join(&cluster, "b", &watched);
        sleep(Duration::from_secs(30)).await;
        assert!(!*b.leading.borrow());
        a.stop.send(()).unwrap();
        a.task.await.unwrap();
        assert!(leads(&mut b, RETRY_PERIOD * 2).await);
        assert_eq!((watched.most.load(SeqCst), watched.terms.load(SeqCst)), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_lease_is_no_free_one() {
        let cluster = MockCluster::new();
        let watched = Arc::new(Watched::default());
        let mut a = join(&cluster, "a", &watched);
        assert!(leads(&mut a, Duration::from_secs(1)).await);
        let _b = join(&cluster, "b", &watched);
        sleep(Duration::from_secs(5)).await;
        // The leader is cut off, and somebody deletes its lease.
        cluster.faults(|who, _, _| if who == "a" { Fault::Lost } else { Fault::None });
        cluster.remove("leases", "slipway-system", "runs");
        sleep(Duration::from_secs(60)).await;
        assert_eq!((watched.most.load(SeqCst), watched.now.load(SeqCst), watched.terms.load(SeqCst)), (1, 1, 2));
    }
}
