//! Tokens of runs: each attempt gets one, with which it may track. Its claims are signed with a key that only this server has
//! (HMAC with SHA-256, RFC 2104), so nothing has to be stored for it. Whether its run is over is asked of tracking ([`RunStates`]).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use ring::hmac;
use ring::rand::SecureRandom;
use serde::{Deserialize, Serialize};
use slipway_access::{RunIdentity, Unavailable};
use slipway_core::clock::now_ms;
use slipway_exec::TokenRequest;
use slipway_store::sql::params;
use slipway_store::{Database, Migration, StoreError};

use super::home_token::{Owned, open_secret};

/// The tables.
pub(crate) const MIGRATION: Migration =
    Migration { domain: "server", steps: &["CREATE TABLE server_keys (name TEXT PRIMARY KEY, key BLOB NOT NULL)"] };

fn fresh_key() -> std::io::Result<[u8; 32]> {
    let mut key = [0; 32];
    let failed = |_| std::io::Error::other("the operating system gives no random numbers");
    ring::rand::SystemRandom::new().fill(&mut key).map_err(failed)?;
    Ok(key)
}

const PREFIX: &str = "slipway-run.";
/// What is known of a run holds for so long, so that a program that logs a thousand values a second costs one look-up in that time.
const STATE_CACHED: Duration = Duration::from_secs(1);
/// Runs whose state is remembered; beyond it all are forgotten, which only costs asking again.
const MAX_CACHED_STATES: usize = 4096;

/// Knows which runs are over.
pub trait RunStates: Send + Sync {
    /// Whether the tracked run with this id may still go on; an error is the reason why that is not known now.
    fn may_go_on<'a>(&'a self, run_id: &'a str) -> BoxFuture<'a, Result<bool, String>>;
}

impl RunStates for slipway_track::Tracking {
    fn may_go_on<'a>(&'a self, run_id: &'a str) -> BoxFuture<'a, Result<bool, String>> {
        let found = slipway_track::Tracking::may_go_on(self, run_id.to_owned());
        Box::pin(async move { found.await.map_err(|error| error.to_string()) })
    }
}

/// [`RunStates`] with a memory.
struct CachedStates {
    states: Arc<dyn RunStates>,
    known: Mutex<HashMap<String, (Instant, bool)>>,
}

impl CachedStates {
    async fn may_go_on(&self, run_id: &str) -> Result<bool, Unavailable> {
        if let Some((at, may)) = self.known.lock().get(run_id)
            && at.elapsed() < STATE_CACHED
        {
            return Ok(*may);
        }
        let may = self.states.may_go_on(run_id).await.map_err(Unavailable)?;
        let mut known = self.known.lock();
        if known.len() >= MAX_CACHED_STATES {
            known.clear();
        }
        known.insert(run_id.to_owned(), (Instant::now(), may));
        Ok(may)
    }
}

/// What the token is good for. There is one scope; it is named so that a later one is not taken for it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scope {
    /// To track: log to the run's experiment and namespace, and read experiments and models.
    #[default]
    Tracking,
}

/// What a token says; signed, not encrypted.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    /// The namespace of the run.
    ns: String,
    /// Its name.
    name: String,
    /// The id of the tracked run.
    run: String,
    /// The name of its experiment; the default one if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    experiment: Option<String>,
    /// The attempt.
    attempt: u32,
    /// Unset in tokens of earlier versions.
    #[serde(default)]
    scope: Scope,
    /// When the token ends, in milliseconds since the Unix epoch.
    exp: i64,
}

/// Makes and checks the tokens of runs; cheap to clone.
///
/// A token belongs to one attempt of one run: `slipway-run.CLAIMS.TAG`, where the claims are JSON and the tag is HMAC-SHA-256 over
/// them, both in base64 for URLs.
#[derive(Clone)]
pub struct RunTokens {
    key: hmac::Key,
    isolated: bool,
    /// Unset, tokens are good until they expire.
    states: Option<Arc<CachedStates>>,
}

impl RunTokens {
    /// With this key.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key), isolated: false, states: None }
    }

    /// Whether namespaces are tenants, whose runs are kept apart.
    #[must_use]
    pub fn isolated(self, isolated: bool) -> Self {
        Self { isolated, ..self }
    }

    /// The tokens of runs that are over by this account are refused, too.
    #[must_use]
    pub fn checked_by(self, states: Arc<dyn RunStates>) -> Self {
        Self { states: Some(Arc::new(CachedStates { states, known: Mutex::default() })), ..self }
    }

    /// With the key in a file, which is created when it is missing.
    ///
    /// # Errors
    /// The operating system's, and [`std::io::ErrorKind::PermissionDenied`] for a file whose content others may know.
    pub fn of_file(path: &Path) -> std::io::Result<Self> {
        use std::io::{Read, Write};
        use std::os::unix::fs::OpenOptionsExt;
        let mut bytes = Vec::new();
        match open_secret(path, Owned::ByThisUser) {
            Ok(file) => {
                file.take(64).read_to_end(&mut bytes)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if let Ok(key) = bytes.try_into() {
            return Ok(Self::new(key));
        }
        let key = fresh_key()?;
        let _ = std::fs::remove_file(path); // A file of another length is what a killed process left before any token was made.
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&key)?;
        file.sync_all()?;
        Ok(Self::new(key))
    }

    /// With the key of a database that several servers share, each of which must know the others' tokens; the first one creates it.
    ///
    /// # Errors
    /// The store's.
    pub async fn of_database(database: &Database) -> Result<Self, StoreError> {
        let fresh = fresh_key().map_err(|source| StoreError::Object { what: "making a key".into(), source })?;
        let kept: Option<[u8; 32]> = database
            .write(move |c| {
                c.execute(
                    "INSERT INTO server_keys (name, key) VALUES ('run-tokens', ?1) ON CONFLICT DO NOTHING",
                    [fresh.as_slice()],
                )?;
                c.first("SELECT key FROM server_keys WHERE name = 'run-tokens'", params![], |row| row.get(0))
            })
            .await?;
        Ok(Self::new(kept.unwrap_or(fresh)))
    }

    /// The token of an attempt.
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
        format!("{PREFIX}{claims}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
    }

    /// Whether a token has the form of a run's, valid or not.
    pub(super) fn is_one(token: &str) -> bool {
        token.starts_with(PREFIX)
    }

    /// The run that a token was made for; `None` when it was not made here, has expired, or its run is over or deleted.
    ///
    /// # Errors
    /// When it is not known now whether the run is over.
    pub async fn identify(&self, token: &str) -> Result<Option<RunIdentity>, Unavailable> {
        let Some(run) = self.verify(token) else { return Ok(None) };
        let may_go_on = match &self.states {
            Some(states) => states.may_go_on(&run.run_id).await?,
            None => true,
        };
        Ok(may_go_on.then_some(run))
    }

    /// The run that a token was made for, whether it is over or not; `None` when it was not made here, or has expired.
    pub fn verify(&self, token: &str) -> Option<RunIdentity> {
        let (claims, tag) = token.strip_prefix(PREFIX)?.split_once('.')?;
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
    use crate::tracker::InTracking;
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

    async fn begin(tracker: &InTracking, id: char) {
        let run = Tracked {
            run_id: id.to_string().repeat(32),
            namespace: "team-a".into(),
            experiment: None,
            name: "train".into(),
            user: String::new(),
            tags: Vec::new(),
        };
        tracker.begin(run).await.unwrap();
    }

    /// Waits until a token is refused; what was known of its run a moment ago may let it pass for that long.
    async fn until_refused(tokens: &RunTokens, token: &str) {
        let began = Instant::now();
        while tokens.identify(token).await.unwrap().is_some() {
            assert!(began.elapsed() < Duration::from_secs(60), "it is good for ever");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_token_of_a_run_that_is_over_is_refused() {
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        std::fs::create_dir_all(&folder).unwrap();
        let db = Database::open(&folder.join("t.db"), &[slipway_track::MIGRATION]).unwrap();
        let tracking = Tracking::open(db, Objects::open(folder.join("objects")).unwrap()).await.unwrap();
        let tracker = InTracking { tracking: tracking.clone(), isolated: false };
        let tokens = RunTokens::new([7; 32]).checked_by(Arc::new(tracking.clone()));
        let token = |id: char| tokens.mint(&request(id));

        begin(&tracker, 'a').await;
        assert_eq!(tokens.identify(&token('a')).await.unwrap().unwrap().name, "train");
        // The program itself says that it is done, and goes on.
        let run_id = |id: char| id.to_string().repeat(32);
        tracking.update_run(run_id('a'), Some("FINISHED".into()), Some(1), None).await.unwrap();
        // Other tokens know nothing of the state that was just looked up.
        let others = RunTokens::new([7; 32]).checked_by(Arc::new(tracking.clone()));
        assert!(others.identify(&token('a')).await.unwrap().is_some());

        let ended = RunStatus { phase: Phase::Succeeded, ..RunStatus::default() };
        tracker.end("team-a", &run_id('a'), &ended).await.unwrap();
        until_refused(&tokens, &token('a')).await;

        begin(&tracker, 'b').await;
        assert!(tokens.identify(&token('b')).await.unwrap().is_some());
        tracking.delete_run(run_id('b')).await.unwrap();
        until_refused(&tokens, &token('b')).await;
        assert_eq!(tokens.identify(&token('c')).await.unwrap(), None, "there is no such run");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_token_names_its_experiment_and_scope_and_those_of_earlier_versions_are_good() {
        let tokens = RunTokens::new([7; 32]);
        let token = tokens.mint(&request('a'));
        let claims = token.strip_prefix(PREFIX).unwrap().split_once('.').unwrap().0;
        let claims: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        assert_eq!((&claims["experiment"], &claims["scope"]), (&"ocr".into(), &"tracking".into()));
        let signed = |claims: &str| {
            let claims = URL_SAFE_NO_PAD.encode(claims);
            let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&tokens.key, claims.as_bytes()).as_ref());
            tokens.verify(&format!("{PREFIX}{claims}.{tag}"))
        };
        let earlier = r#"{"ns":"n","name":"a","run":"r","attempt":1,"exp":9000000000000"#;
        assert!(signed(&format!("{earlier}}}")).is_some());
        assert!(
            signed(&format!(r#"{earlier},"scope":"serving"}}"#)).is_none(),
            "a scope that this version does not know"
        );
    }
}
