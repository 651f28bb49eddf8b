//! Who holds a token and what that may do, as the cluster knows it (`authentication.k8s.io/v1 TokenReview`,
//! `authorization.k8s.io/v1 SubjectAccessReview`). Answers are kept for a short time, as an API server's own webhooks are.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{Api, KubeError, Resource};

const TOKEN_REVIEW: Resource<'static> =
    Resource { group: "authentication.k8s.io", version: "v1", kind: "TokenReview", plural: "tokenreviews" };
const ACCESS_REVIEW: Resource<'static> = Resource {
    group: "authorization.k8s.io",
    version: "v1",
    kind: "SubjectAccessReview",
    plural: "subjectaccessreviews",
};
/// The group of our resources in roles.
const GROUP: &str = "slipway.dev";
/// A token that was good is good for so long.
const GOOD: Duration = Duration::from_secs(60);
/// What was refused, and what was allowed, is asked again after this: rights that were given should work soon.
const SOON: Duration = Duration::from_secs(5);
/// Answers that are kept; beyond it all are forgotten, which only costs asking again.
const MOST: usize = 10_000;
/// Bytes of a token; service accounts' have about a thousand.
const MAX_TOKEN: usize = 16 * 1024;

/// A user, or a service account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)] // Kubernetes' own names
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: Value,
}

struct Kept<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Eq + Hash, V: Clone> Kept<K, V> {
    fn get(&self, key: &K, fresh: impl Fn(&V) -> Duration) -> Option<V> {
        let known = self.0.lock();
        known.get(key).filter(|(at, value)| at.elapsed() < fresh(value)).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut known = self.0.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(key, (Instant::now(), value));
    }
}

/// Asks the API server; who and what was asked lately is known.
pub struct Reviews {
    api: Api,
    /// By the token's digest: tokens themselves are not kept.
    users: Kept<Vec<u8>, Option<User>>,
    rights: Kept<(String, String, String, Option<String>), bool>,
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviews").finish_non_exhaustive()
    }
}

impl Reviews {
    /// Of this cluster.
    pub fn new(api: Api) -> Self {
        Self { api, users: Kept(Mutex::default()), rights: Kept(Mutex::default()) }
    }

    /// Who holds a token; `None` for nobody that the cluster knows.
    ///
    /// # Errors
    /// The API server's.
    pub async fn who(&self, token: &str) -> Result<Option<User>, KubeError> {
        if token.is_empty() || token.len() > MAX_TOKEN {
            return Ok(None);
        }
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref().to_vec();
        if let Some(user) = self.users.get(&digest, |user| if user.is_some() { GOOD } else { SOON }) {
            return Ok(user);
        }
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let answer = self.api.create(&TOKEN_REVIEW, None, &review).await?;
        let status = &answer["status"];
        let found = &status["user"];
        let user = (status["authenticated"] == true).then(|| User {
            name: found["username"].as_str().unwrap_or_default().to_owned(),
            uid: found["uid"].as_str().unwrap_or_default().to_owned(),
            groups: found["groups"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|g| g.as_str().map(str::to_owned))
                .collect(),
            extra: found["extra"].clone(),
        });
        self.users.put(digest, user.clone());
        Ok(user)
    }

    /// Whether a user may do this to a resource of `slipway.dev`, in a namespace or everywhere.
    ///
    /// # Errors
    /// The API server's.
    pub async fn may(
        &self,
        user: &User,
        verb: &str,
        resource: &str,
        namespace: Option<&str>,
    ) -> Result<bool, KubeError> {
        let key = (
            format!("{}\n{}\n{}\n{}", user.name, user.uid, user.groups.join("\n"), user.extra),
            verb.to_owned(),
            resource.to_owned(),
            namespace.map(str::to_owned),
        );
        if let Some(allowed) = self.rights.get(&key, |_| SOON) {
            return Ok(allowed);
        }
        let (name, part) = resource.split_once('/').unwrap_or((resource, ""));
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra,
                "resourceAttributes": {
                    "group": GROUP, "version": "v1", "resource": name, "subresource": part, "verb": verb,
                    "namespace": namespace.unwrap_or_default(),
                },
            },
        });
        let answer = self.api.create(&ACCESS_REVIEW, None, &review).await?;
        let allowed = answer["status"]["allowed"] == true;
        self.rights.put(key, allowed);
        Ok(allowed)
    }
}
