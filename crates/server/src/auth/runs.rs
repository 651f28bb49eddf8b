//! Tokens of runs. Each attempt of a run gets a token for the tracking API. Its claims are signed (HMAC-SHA-256, RFC 2104) with a key that
//! only the servers of this installation have, so tokens need no storage. Whether the run has finished is looked up in the tracking store
//! ([`RunStates`]).
//!
//! Invariant: a token is valid only during its attempt and until it expires. A superseded attempt may still have processes, for example on
//! a node that lost its connection.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use ring::hmac;
use serde::{Deserialize, Serialize};
use slipway_access::{RunIdentity, Unavailable};
use slipway_core::clock::now_ms;
use slipway_exec::TokenRequest;
use slipway_store::sql::params;
use slipway_store::{Database, Migration, StoreError};

use super::key_file::{key_from_file, random_key};

/// Schema migrations of the server's own tables.
pub(crate) const MIGRATION: Migration =
    Migration { domain: "server", steps: &["CREATE TABLE server_keys (name TEXT PRIMARY KEY, key BLOB NOT NULL)"] };

/// All run tokens begin with this.
const TOKEN_PREFIX: &str = "slipway-run.";
/// How long the state of a run is cached, so that a program that logs a thousand values per second causes one database query per second.
const STATE_CACHE_TTL: Duration = Duration::from_secs(1);
/// Maximum number of cached run states. When it is reached, the cache is cleared, which only costs new queries.
const MAX_CACHED_STATES: usize = 4096;

/// Looks up the attempts of runs.
pub trait RunStates: Send + Sync {
    /// The number of the current attempt of the tracked run with this id; `None` if the run does not exist or has finished. An error means
    /// that this cannot be determined now.
    fn current_attempt<'a>(&'a self, run_id: &'a str) -> BoxFuture<'a, Result<Option<u32>, String>>;
}

impl RunStates for slipway_track::Tracking {
    fn current_attempt<'a>(&'a self, run_id: &'a str) -> BoxFuture<'a, Result<Option<u32>, String>> {
        let result = slipway_track::Tracking::current_attempt(self, run_id.to_owned());
        Box::pin(async move { result.await.map_err(|error| error.to_string()) })
    }
}

/// [`RunStates`] with a cache.
struct CachedStates {
    states: Arc<dyn RunStates>,
    cache: Mutex<HashMap<String, (Instant, Option<u32>)>>,
}

impl CachedStates {
    async fn current_attempt(&self, run_id: &str) -> Result<Option<u32>, Unavailable> {
        if let Some((at, attempt)) = self.cache.lock().get(run_id)
            && at.elapsed() < STATE_CACHE_TTL
        {
            return Ok(*attempt);
        }
        let attempt = self.states.current_attempt(run_id).await.map_err(Unavailable)?;
        let mut cache = self.cache.lock();
        if cache.len() >= MAX_CACHED_STATES {
            cache.clear();
        }
        cache.insert(run_id.to_owned(), (Instant::now(), attempt));
        Ok(attempt)
    }
}

/// What a token allows. There is only one scope; it is part of the claims so that this version rejects tokens with a future scope.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scope {
    /// The tracking API: log to the run's experiment and namespace, and read experiments and models.
    #[default]
    Tracking,
}

/// The claims of a token. They are signed, not encrypted.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    /// Namespace of the run.
    ns: String,
    /// Name of the submitted run.
    name: String,
    /// Id of the tracked run.
    run: String,
    /// Name of the run's experiment; the default experiment if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    experiment: Option<String>,
    /// Number of the attempt, from 1.
    attempt: u32,
    /// Absent in tokens of earlier versions.
    #[serde(default)]
    scope: Scope,
    /// Expiry, in milliseconds since the Unix epoch.
    exp: i64,
}

/// Issues and verifies the tokens of runs; cheap to clone.
///
/// A token belongs to one attempt of one run: `slipway-run.CLAIMS.TAG`, where CLAIMS is JSON and TAG is HMAC-SHA-256 over
/// CLAIMS, both in URL-safe base64.
#[derive(Clone)]
pub struct RunTokens {
    key: hmac::Key,
    isolated: bool,
    /// If unset, tokens are valid until they expire.
    states: Option<Arc<CachedStates>>,
}

impl RunTokens {
    /// Signs and verifies with this key.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key), isolated: false, states: None }
    }

    /// Sets whether namespaces are tenants whose runs are isolated from each other.
    #[must_use]
    pub fn isolated(self, isolated: bool) -> Self {
        Self { isolated, ..self }
    }

    /// Also rejects the tokens of runs that have finished and of superseded attempts, according to `states`.
    #[must_use]
    pub fn with_states(self, states: Arc<dyn RunStates>) -> Self {
        Self { states: Some(Arc::new(CachedStates { states, cache: Mutex::default() })), ..self }
    }

    /// Reads the key from a file, which is created if it is missing.
    ///
    /// # Errors
    /// I/O errors, and [`std::io::ErrorKind::PermissionDenied`] for a file whose content other users may know.
    pub fn from_file(path: &Path) -> std::io::Result<Self> {
        key_from_file(path).map(Self::new)
    }

    /// Reads the key from a database that several servers share, so that each accepts the others' tokens. The first server creates it.
    ///
    /// # Errors
    /// The store's.
    pub async fn from_database(database: &Database) -> Result<Self, StoreError> {
        let candidate = random_key().map_err(|source| StoreError::Object { what: "creating a key".into(), source })?;
        let stored: Option<[u8; 32]> = database
            .write(move |c| {
                c.execute(
                    "INSERT INTO server_keys (name, key) VALUES ('run-tokens', ?1) ON CONFLICT DO NOTHING",
                    [candidate.as_slice()],
                )?;
                c.first("SELECT key FROM server_keys WHERE name = 'run-tokens'", params![], |row| row.get(0))
            })
            .await?;
        Ok(Self::new(stored.unwrap_or(candidate)))
    }

    /// Issues a token for one attempt of a run.
    pub fn mint(&self, request: &TokenRequest) -> String {
        let claims = Claims {
            ns: request.namespace.clone(),
            name: request.run.clone(),
            run: request.run_id.clone(),
            experiment: request.experiment.clone(),
            attempt: request.attempt,
            scope: Scope::Tracking,
            exp: request.expires_at,
        };
        let claims = URL_SAFE_NO_PAD.encode(serde_json::json!(claims).to_string());
        let tag = hmac::sign(&self.key, claims.as_bytes());
        format!("{TOKEN_PREFIX}{claims}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
    }

    /// Whether a token has the form of a run token. It may still be invalid.
    pub(super) fn is_run_token(token: &str) -> bool {
        token.starts_with(TOKEN_PREFIX)
    }

    /// The run that a token was issued for. `None` if the token is invalid or expired, a later attempt has begun, or the run has finished
    /// or was deleted.
    ///
    /// # Errors
    /// [`Unavailable`] when the state of the run cannot be determined now.
    pub async fn identify(&self, token: &str) -> Result<Option<RunIdentity>, Unavailable> {
        let Some(run) = self.verify(token) else { return Ok(None) };
        let is_current = match &self.states {
            Some(states) => states.current_attempt(&run.run_id).await?.is_some_and(|current| run.attempt >= current),
            None => true,
        };
        Ok(is_current.then_some(run))
    }

    /// The run that a token was issued for, active or not. `None` if the token is invalid or expired.
    pub fn verify(&self, token: &str) -> Option<RunIdentity> {
        let (claims, tag) = token.strip_prefix(TOKEN_PREFIX)?.split_once('.')?;
        hmac::verify(&self.key, claims.as_bytes(), &URL_SAFE_NO_PAD.decode(tag).ok()?).ok()?;
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        (now_ms() < claims.exp).then_some(RunIdentity {
            namespace: claims.ns,
            name: claims.name,
            run_id: claims.run,
            attempt: claims.attempt,
            isolated: self.isolated,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::RunTracker;
    use slipway_exec::{Phase, RunStatus, Tracked, Tracker};
    use slipway_store::{Database, Objects};
    use slipway_track::Tracking;

    fn request(id: char) -> TokenRequest {
        TokenRequest {
            namespace: "team-a".into(),
            run_id: id.to_string().repeat(32),
            run: "train".into(),
            experiment: Some("ocr".into()),
            attempt: 1,
            expires_at: i64::MAX,
        }
    }

    async fn begin_attempt(tracker: &RunTracker, id: char, attempt: u32) {
        let run = Tracked {
            run_id: id.to_string().repeat(32),
            namespace: "team-a".into(),
            experiment: None,
            name: "train".into(),
            user: String::new(),
            tags: Vec::new(),
            attempt,
            data: Vec::new(),
        };
        tracker.begin(run).await.unwrap();
    }

    /// Waits until a token is rejected. The cached state of its run may keep it valid for [`STATE_CACHE_TTL`].
    async fn until_rejected(tokens: &RunTokens, token: &str) {
        let started = Instant::now();
        while tokens.identify(token).await.unwrap().is_some() {
            assert!(started.elapsed() < Duration::from_secs(60), "the token is still accepted");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn tokens_of_finished_runs_and_superseded_attempts_are_rejected() {
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        std::fs::create_dir_all(&folder).unwrap();
        let db = Database::open(&folder.join("t.db"), &[slipway_track::MIGRATION]).unwrap();
        let tracking = Tracking::open(db, Objects::open(folder.join("objects")).unwrap()).await.unwrap();
        let tracker = RunTracker { tracking: tracking.clone(), isolated: false };
        let tokens = RunTokens::new([7; 32]).with_states(Arc::new(tracking.clone()));
        let token = |id: char| tokens.mint(&request(id));

        begin_attempt(&tracker, 'a', 1).await;
        assert_eq!(tokens.identify(&token('a')).await.unwrap().unwrap().name, "train");
        // The program itself sets the status to FINISHED, and keeps running.
        let run_id = |id: char| id.to_string().repeat(32);
        tracking.update_run(run_id('a'), Some("FINISHED".into()), Some(1), None).await.unwrap();
        // A second instance has no cached state.
        let uncached = RunTokens::new([7; 32]).with_states(Arc::new(tracking.clone()));
        assert!(uncached.identify(&token('a')).await.unwrap().is_some());

        let finished = RunStatus { phase: Phase::Succeeded, ..RunStatus::default() };
        tracker.end("team-a", &run_id('a'), &finished).await.unwrap();
        until_rejected(&tokens, &token('a')).await;

        begin_attempt(&tracker, 'b', 1).await;
        assert!(tokens.identify(&token('b')).await.unwrap().is_some());
        begin_attempt(&tracker, 'b', 2).await;
        until_rejected(&tokens, &token('b')).await;
        let second = tokens.mint(&TokenRequest { attempt: 2, ..request('b') });
        assert!(tokens.identify(&second).await.unwrap().is_some());
        begin_attempt(&tracker, 'b', 1).await;
        assert!(tokens.identify(&token('b')).await.unwrap().is_none(), "attempts are not numbered backwards");
        tracking.delete_run(run_id('b')).await.unwrap();
        until_rejected(&tokens, &second).await;
        assert_eq!(tokens.identify(&token('c')).await.unwrap(), None, "the run does not exist");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn token_contains_experiment_and_scope_and_earlier_versions_are_accepted() {
        let tokens = RunTokens::new([7; 32]);
        let token = tokens.mint(&request('a'));
        let claims = token.strip_prefix(TOKEN_PREFIX).unwrap().split_once('.').unwrap().0;
        let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        assert_eq!((&claims["experiment"], &claims["scope"]), (&"ocr".into(), &"tracking".into()));
        let signed = |claims: &str| {
            let claims = URL_SAFE_NO_PAD.encode(claims);
            let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&tokens.key, claims.as_bytes()).as_ref());
            tokens.verify(&format!("{TOKEN_PREFIX}{claims}.{tag}"))
        };
        let earlier = r#"{"ns":"n","name":"a","run":"r","attempt":1,"exp":9000000000000"#;
        assert!(signed(&format!("{earlier}}}")).is_some());
        assert!(signed(&format!(r#"{earlier},"scope":"serving"}}"#)).is_none(), "an unknown scope");
    }
}
