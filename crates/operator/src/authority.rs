//! Who holds a token and what that may do, as the cluster knows it (`authentication.k8s.io/v1 TokenReview`,
//! `authorization.k8s.io/v1 SubjectAccessReview`). Answers are kept for a short time, as an API server's own webhooks are.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::{Api, KubeError};

/// The group of our resources in roles.
const GROUP: &str = "slipway.dev";
/// The audience that a token must be made for: `kubectl create token ACCOUNT --audience slipway`, or a projected volume with
/// `audience: slipway`. A token for the API server itself is refused, so that nobody has to hand one to slipway.
pub const AUDIENCE: &str = "slipway";
/// How long a token that was accepted is accepted without asking again.
const ACCEPTED_TTL: Duration = Duration::from_secs(60);
/// How long any other answer is kept; short, so that rights that were given or taken away are in force soon.
const ANSWER_TTL: Duration = Duration::from_secs(5);
/// The most answers of a kind that are kept. Beyond it those that are too old are forgotten, and all where that does not suffice, which
/// only costs asking again.
const MAX_ANSWERS: usize = 10_000;
/// Tokens that are reviewed at the same time. Anybody may send tokens that nobody knows, and each is a request to the API server.
const MAX_REVIEWS: usize = 16;
/// The longest that a token waits to be reviewed.
const REVIEW_WAIT: Duration = Duration::from_secs(5);
/// The most bytes of a token; service accounts' tokens have about a thousand.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// A user, or a service account. Decisions depend on all of it, so all of it is the key under which they are kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)] // Kubernetes' own names
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What somebody wants to do to a resource of `slipway.dev`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    user: User,
    verb: String,
    /// With the subresource, if any: `runs/log`.
    resource: String,
    /// `None` means everywhere.
    namespace: Option<String>,
}

/// Answers of the API server, and when they were given.
struct Answers<K, V> {
    ttl: Duration,
    known: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + Hash, V: Clone> Answers<K, V> {
    fn new(ttl: Duration) -> Self {
        Self { ttl, known: Mutex::default() }
    }

    fn get(&self, key: &K) -> Option<V> {
        let known = self.known.lock();
        known.get(key).filter(|(at, _)| at.elapsed() < self.ttl).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut known = self.known.lock();
        if known.len() >= MAX_ANSWERS {
            known.retain(|_, (at, _)| at.elapsed() < self.ttl);
        }
        if known.len() >= MAX_ANSWERS {
            known.clear();
        }
        known.insert(key, (Instant::now(), value));
    }
}

/// The SHA-256 digest of a token: tokens themselves are not kept.
type Digest = Vec<u8>;

/// Asks the API server, and remembers its answers for a while.
pub struct Reviews {
    api: Api,
    accepted: Answers<Digest, User>,
    /// Apart from those that were accepted, so that no number of bad tokens makes the good ones forgotten.
    refused: Answers<Digest, ()>,
    reviews: Semaphore,
    rights: Answers<Question, bool>,
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviews").finish_non_exhaustive()
    }
}

impl Reviews {
    /// Of the cluster of this client.
    pub fn new(api: Api) -> Self {
        Self {
            api,
            accepted: Answers::new(ACCEPTED_TTL),
            refused: Answers::new(ANSWER_TTL),
            reviews: Semaphore::new(MAX_REVIEWS),
            rights: Answers::new(ANSWER_TTL),
        }
    }

    /// Who holds a token that was made for [`AUDIENCE`]; `None` when the cluster knows no such token.
    ///
    /// # Errors
    /// The API server's; [`KubeError::Unreachable`] when too many tokens wait to be reviewed.
    pub async fn who(&self, token: &str) -> Result<Option<User>, KubeError> {
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Ok(None);
        }
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref().to_vec();
        if let Some(user) = self.accepted.get(&digest) {
            return Ok(Some(user));
        }
        if self.refused.get(&digest).is_some() {
            return Ok(None);
        }
        let busy = || KubeError::Unreachable("too many tokens wait to be reviewed".into());
        let waiting = tokio::time::timeout(REVIEW_WAIT, self.reviews.acquire()).await;
        let _permit = waiting.map_err(|_| busy())?.map_err(|_| busy())?;
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = self.api.answered(self.api.typed_all().create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        // An API server whose authenticator knows no audiences answers without any, and has not checked them.
        let for_us = status.audiences.unwrap_or_default().iter().any(|a| a == AUDIENCE);
        let user = match status.user {
            Some(user) if status.authenticated == Some(true) && for_us => Some(User {
                name: user.username.unwrap_or_default(),
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            }),
            _ => None,
        };
        // A user without a name could not be told from any other.
        let user = user.filter(|u| !u.name.is_empty());
        match &user {
            Some(user) => self.accepted.put(digest, user.clone()),
            None => self.refused.put(digest, ()),
        }
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
        let question = Question {
            user: user.clone(),
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.map(str::to_owned),
        };
        if let Some(allowed) = self.rights.get(&question) {
            return Ok(allowed);
        }
        let (name, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: Some(user.uid.clone()),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.into()),
                version: Some("v1".into()),
                resource: Some(name.to_owned()),
                subresource: Some(subresource.to_owned()),
                verb: Some(verb.to_owned()),
                namespace: Some(namespace.unwrap_or_default().to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = self.api.answered(self.api.typed_all().create(&PostParams::default(), &review)).await?;
        // An explicit denial wins over what another authorizer allowed.
        let allowed = answer.status.is_some_and(|s| s.allowed && s.denied != Some(true));
        self.rights.put(question, allowed);
        Ok(allowed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::mock::{Fault, MockCluster};

    fn ada() -> User {
        User { name: "ada".into(), uid: "1".into(), groups: vec!["a".into(), "b".into()], extra: BTreeMap::new() }
    }

    #[tokio::test]
    async fn a_token_must_have_been_made_for_our_audience() {
        let cluster = MockCluster::new();
        // As an API server answers: a token for another audience is not authenticated; an old authenticator names no audiences.
        cluster.answer_with(|_, path, review| {
            assert_eq!((path.rsplit('/').next().unwrap(), &review["spec"]["audiences"]), ("tokenreviews", &json!(["slipway"])));
            let status = |audiences: Value| json!({"authenticated": true, "audiences": audiences, "user": {"username": "ada", "uid": "1", "groups": ["g"], "extra": {"k": ["v"]}}});
            let status = match review["spec"]["token"].as_str().unwrap() {
                "ours" => status(json!(["slipway"])),
                "unchecked" => status(Value::Null),
                "another's" => status(json!(["https://kubernetes.default.svc"])),
                "nameless" => json!({"authenticated": true, "audiences": ["slipway"], "user": {}}),
                _ => json!({"authenticated": false, "error": "token audiences do not match"}),
            };
            Some((201, json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": status})))
        });
        let reviews = Reviews::new(cluster.api("server"));
        let user = reviews.who("ours").await.unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.groups, user.extra["k"][0].as_str()), ("ada", vec!["g".to_owned()], "v"));
        for token in ["unchecked", "another's", "for the API server", "nameless", ""] {
            assert_eq!(reviews.who(token).await.unwrap(), None, "{token}");
        }
        assert_eq!(cluster.count("POST", "tokenreviews"), 5);
        reviews.who("ours").await.unwrap();
        assert_eq!(cluster.count("POST", "tokenreviews"), 5, "a good token is not asked about again");
    }

    fn reviewed(token: &str) -> Value {
        let status = match token {
            "good" => json!({"authenticated": true, "audiences": ["slipway"], "user": {"username": "ada"}}),
            _ => json!({"authenticated": false}),
        };
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": status})
    }

    #[tokio::test]
    async fn bad_tokens_do_not_make_good_ones_forgotten() {
        let cluster = MockCluster::new();
        cluster.answer_with(|_, _, review| Some((201, reviewed(review["spec"]["token"].as_str().unwrap()))));
        let reviews = Reviews::new(cluster.api("server"));
        assert!(reviews.who("good").await.unwrap().is_some());
        for number in 0..=MAX_ANSWERS {
            reviews.refused.put(number.to_be_bytes().to_vec(), ());
        }
        assert!(reviews.refused.known.lock().len() <= MAX_ANSWERS);
        assert!(reviews.who("good").await.unwrap().is_some());
        assert_eq!(cluster.count("POST", "tokenreviews"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_tokens_is_a_bounded_number_of_reviews() {
        let cluster = MockCluster::new();
        // An API server that does not answer any more.
        cluster.faults(|_, _, _| Fault::Lost);
        let reviews = Reviews::new(cluster.api("server"));
        let tokens: Vec<String> = (0..100).map(|n| format!("random {n}")).collect();
        let all = futures_util::future::join_all(tokens.iter().map(|token| reviews.who(token))).await;
        assert!(all.iter().all(|answer| matches!(answer, Err(KubeError::Unreachable(_)))));
        let refused = all.iter().filter(|answer| format!("{answer:?}").contains("too many tokens"));
        assert_eq!(refused.count(), 100 - MAX_REVIEWS);
        assert_eq!(cluster.count("POST", "tokenreviews"), MAX_REVIEWS);
    }

    #[tokio::test]
    async fn decisions_are_kept_by_all_that_they_depend_on() {
        let cluster = MockCluster::new();
        cluster.answer_with(|_, _, review| {
            let allowed = review["spec"]["groups"] == json!(["a", "b"]);
            Some((201, json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": {}, "status": {"allowed": allowed}})))
        });
        let reviews = Reviews::new(cluster.api("server"));
        let asked = || cluster.count("POST", "subjectaccessreviews");
        let ask = async |user: &User| reviews.may(user, "get", "runs", Some("n")).await.unwrap();
        assert!(ask(&ada()).await && ask(&ada()).await);
        assert_eq!(asked(), 1);
        // The same name with other groups, another uid, other extras: each is a question of its own.
        let mut others = vec![
            User { groups: vec!["a".into()], ..ada() },
            User { groups: vec!["a\nb".into()], ..ada() },
            User { groups: vec!["a\0b".into()], ..ada() },
            User { groups: vec!["a".into(), "b".into(), String::new()], ..ada() },
            User { name: "ada\n1".into(), uid: String::new(), ..ada() },
        ];
        for (n, other) in others.iter().enumerate() {
            assert_eq!(ask(other).await, other.groups == ada().groups, "{other:?}");
            assert_eq!(asked(), 2 + n, "{other:?}");
        }
        others = vec![
            User { uid: "2".into(), ..ada() },
            User { extra: BTreeMap::from([("k".into(), vec!["v".into()])]), ..ada() },
            User { extra: BTreeMap::from([("k".into(), vec!["v".into(), "w".into()])]), ..ada() },
        ];
        let before = asked();
        for (n, other) in others.iter().enumerate() {
            ask(other).await;
            assert_eq!(asked(), before + 1 + n, "{other:?}");
        }
        // Another verb, resource or namespace likewise.
        for (verb, resource, namespace) in [
            ("list", "runs", Some("n")),
            ("get", "runs/log", Some("n")),
            ("get", "runs", Some("m")),
            ("get", "runs", None),
        ] {
            let before = asked();
            reviews.may(&ada(), verb, resource, namespace).await.unwrap();
            assert_eq!(asked(), before + 1, "{verb} {resource} {namespace:?}");
        }
    }
}
