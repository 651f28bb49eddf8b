//! One of several leads: a Lease (`coordination.k8s.io/v1`) says which, as client-go's `leaderelection` has it. Who leads renews the
//! lease; who could not for some time stops before another may begin. Clocks are not compared: another's lease is judged by how long
//! it has not changed, as seen from here.

use std::time::Duration;

use serde_json::{Value, json};
use slipway_core::clock;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{Api, KubeError, Resource};

const LEASE: Resource<'static> =
    Resource { group: "coordination.k8s.io", version: "v1", kind: "Lease", plural: "leases" };
/// A lease that has not changed for so long is free.
const DURATION: Duration = Duration::from_secs(15);
/// Who could not renew for so long leads no longer.
const RENEW: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(2);

/// Takes part in the election, for as long as a receiver lives; it says whether this one leads. Without anybody to give it back, a
/// lease is free again after its duration.
pub fn elect(api: Api, namespace: String, name: String, identity: String) -> watch::Receiver<bool> {
    let (leading, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let mut seen: Option<(String, Instant)> = None;
        let mut renewed = Instant::now();
        loop {
            let tried = tokio::time::timeout(RETRY * 2, take(&api, &namespace, &name, &identity, &mut seen)).await;
            match tried {
                Ok(Ok(true)) => {
                    renewed = Instant::now();
                    if !leading.send_replace(true) {
                        tracing::info!(lease = name, identity, "leading");
                    }
                }
                Ok(Ok(false)) => step_down(&leading, "another leads"),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the lease is not to be had");
                    if renewed.elapsed() >= RENEW {
                        step_down(&leading, "the lease could not be renewed");
                    }
                }
                Err(_) if renewed.elapsed() >= RENEW => step_down(&leading, "the API server does not answer"),
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = leading.closed() => break,
            }
        }
        if *leading.borrow() {
            drop(release(&api, &namespace, &name, &identity).await);
        }
    });
    receiver
}

fn step_down(leading: &watch::Sender<bool>, why: &str) {
    if leading.send_replace(false) {
        tracing::warn!(why, "leading no longer");
    }
}

/// Renews or takes the lease; whether it is ours now.
async fn take(
    api: &Api,
    namespace: &str,
    name: &str,
    identity: &str,
    seen: &mut Option<(String, Instant)>,
) -> Result<bool, KubeError> {
    let now = micros(clock::now_ms());
    let spec = |transitions: i64, acquired: Value| {
        json!({"holderIdentity": identity, "leaseDurationSeconds": DURATION.as_secs(), "renewTime": now,
            "acquireTime": acquired, "leaseTransitions": transitions})
    };
    let Some(found) = api.get(&LEASE, Some(namespace), name).await? else {
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec(0, json!(now))});
        return won(api.create(&LEASE, Some(namespace), &lease).await);
    };
    let version = found["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    if seen.as_ref().is_none_or(|(known, _)| *known != version) {
        *seen = Some((version.clone(), Instant::now()));
    }
    let holder = found["spec"]["holderIdentity"].as_str().unwrap_or_default();
    let stale = seen.as_ref().is_some_and(|(_, since)| since.elapsed() >= DURATION);
    let transitions = found["spec"]["leaseTransitions"].as_i64().unwrap_or(0);
    let spec = if holder == identity {
        spec(transitions, found["spec"]["acquireTime"].clone())
    } else if holder.is_empty() || stale {
        spec(transitions + 1, json!(now))
    } else {
        return Ok(false);
    };
    // The version makes it fail when somebody was quicker.
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": spec});
    won(api.merge(&LEASE, Some(namespace), name, false, &patch).await)
}

fn won(written: Result<Value, KubeError>) -> Result<bool, KubeError> {
    match written {
        Ok(_) => Ok(true),
        Err(KubeError::Refused { code: 409, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives the lease back, so that nobody has to wait for it to run out.
async fn release(api: &Api, namespace: &str, name: &str, identity: &str) -> Result<(), KubeError> {
    let Some(found) = api.get(&LEASE, Some(namespace), name).await? else { return Ok(()) };
    if found["spec"]["holderIdentity"] == identity {
        let version = &found["metadata"]["resourceVersion"];
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": ""}});
        api.merge(&LEASE, Some(namespace), name, false, &patch).await?;
    }
    Ok(())
}

/// A `MicroTime`.
fn micros(milliseconds: i64) -> String {
    let whole = clock::rfc3339(milliseconds);
    format!("{}.{:03}000Z", whole.trim_end_matches('Z'), milliseconds.rem_euclid(1000))
}
