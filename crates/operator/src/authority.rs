//! Authentication and authorization by the cluster (`authentication.k8s.io/v1 TokenReview`, `authorization.k8s.io/v1
//! SubjectAccessReview`). Results are cached for a short time, as the API server does for its webhooks.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use slipway_core::cache::TtlCache;
use tokio::sync::Semaphore;

use crate::{Api, KubeError};

/// API group of slipway's resources in roles.
const GROUP: &str = "slipway.dev";
/// Required audience of a token: `kubectl create token ACCOUNT --audience slipway`, or a projected volume with `audience: slipway`.
/// Tokens for the API server itself are rejected, so that users do not send such a powerful token to slipway.
pub const AUDIENCE: &str = "slipway";
/// How long an accepted token is cached.
const ACCEPTED_TTL: Duration = Duration::from_secs(60);
/// How long a rejected token or a permission is cached: short, so that changed permissions take effect soon.
const DECISION_TTL: Duration = Duration::from_secs(5);
/// Maximum entries of each cache.
const MAX_CACHE_ENTRIES: usize = 10_000;
/// Maximum concurrent token reviews. Each is a request to the API server, and unauthenticated clients can send any number of tokens.
const MAX_CONCURRENT_REVIEWS: usize = 16;
/// Maximum wait for one of the concurrent reviews.
const REVIEW_QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum bytes of a token. Tokens of service accounts have about a thousand bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// A user or a service account. Permissions may depend on every field, so all fields are part of the cache key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)] // Kubernetes' own names
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A request of a user for a resource of `slipway.dev`; the key of the permission cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct AccessRequest {
    user: User,
    verb: String,
    /// Plural name, with the subresource if any: `runs`, `runs/log`.
    resource: String,
    /// `None` for all namespaces.
    namespace: Option<String>,
}

/// SHA-256 digest of a token. The tokens themselves are not stored.
type Digest = Vec<u8>;

/// A client for token and access reviews that caches their results.
pub struct Reviews {
    api: Api,
    accepted: TtlCache<Digest, User>,
    /// Separate from `accepted`, so that a flood of invalid tokens cannot evict valid ones.
    rejected: TtlCache<Digest, ()>,
    reviews: Semaphore,
    permissions: TtlCache<AccessRequest, bool>,
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviews").finish_non_exhaustive()
    }
}

impl Reviews {
    /// Creates empty caches for the cluster of this client.
    pub fn new(api: Api) -> Self {
        Self {
            api,
            accepted: TtlCache::new(ACCEPTED_TTL, MAX_CACHE_ENTRIES),
            rejected: TtlCache::new(DECISION_TTL, MAX_CACHE_ENTRIES),
            reviews: Semaphore::new(MAX_CONCURRENT_REVIEWS),
            permissions: TtlCache::new(DECISION_TTL, MAX_CACHE_ENTRIES),
        }
    }

    /// Returns the user of a token for [`AUDIENCE`]; `None` if the token is invalid or has another audience.
    ///
    /// # Errors
    /// An error of the API server; [`KubeError::Unreachable`] when too many tokens are waiting for review.
    pub async fn authenticate(&self, token: &str) -> Result<Option<User>, KubeError> {
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Ok(None);
        }
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref().to_vec();
        if let Some(user) = self.accepted.get(&digest) {
            return Ok(Some(user));
        }
        if self.rejected.get(&digest).is_some() {
            return Ok(None);
        }
        let busy = || KubeError::Unreachable("too many tokens are waiting for review".into());
        let acquired = tokio::time::timeout(REVIEW_QUEUE_TIMEOUT, self.reviews.acquire()).await;
        let _permit = acquired.map_err(|_| busy())?.map_err(|_| busy())?;
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let review = self.api.send(self.api.typed_cluster_scoped().create(&PostParams::default(), &review)).await?;
        let status = review.status.unwrap_or_default();
        // An authenticator without support for audiences returns none, because it has not checked them.
        let has_audience = status.audiences.unwrap_or_default().iter().any(|a| a == AUDIENCE);
        let user = match status.user {
            Some(user) if status.authenticated == Some(true) && has_audience => Some(User {
                name: user.username.unwrap_or_default(),
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            }),
            _ => None,
        };
        // Users without a name could not be distinguished.
        let user = user.filter(|u| !u.name.is_empty());
        match &user {
            Some(user) => self.accepted.put(digest, user.clone()),
            None => self.rejected.put(digest, ()),
        }
        Ok(user)
    }

    /// Whether a user has a permission on a resource of `slipway.dev`, in one namespace or, with `None`, in all.
    ///
    /// # Errors
    /// An error of the API server.
    pub async fn is_allowed(
        &self,
        user: &User,
        verb: &str,
        resource: &str,
        namespace: Option<&str>,
    ) -> Result<bool, KubeError> {
        let request = AccessRequest {
            user: user.clone(),
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.map(str::to_owned),
        };
        if let Some(allowed) = self.permissions.get(&request) {
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
        let review = self.api.send(self.api.typed_cluster_scoped().create(&PostParams::default(), &review)).await?;
        // An explicit denial overrides the permission of another authorizer.
        let allowed = review.status.is_some_and(|s| s.allowed && s.denied != Some(true));
        self.permissions.put(request, allowed);
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
    async fn tokens_for_other_audiences_are_rejected() {
        let cluster = MockCluster::new();
        // As in an API server: a token for another audience is not authenticated; an old authenticator returns no audiences.
        cluster.respond_with(|_, path, review| {
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
        let user = reviews.authenticate("ours").await.unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.groups, user.extra["k"][0].as_str()), ("ada", vec!["g".to_owned()], "v"));
        for token in ["unchecked", "another's", "for the API server", "nameless", ""] {
            assert_eq!(reviews.authenticate(token).await.unwrap(), None, "{token}");
        }
        assert_eq!(cluster.count("POST", "tokenreviews"), 5);
        reviews.authenticate("ours").await.unwrap();
        assert_eq!(cluster.count("POST", "tokenreviews"), 5, "an accepted token is not reviewed again");
    }

    fn token_review(token: &str) -> Value {
        let status = match token {
            "good" => json!({"authenticated": true, "audiences": ["slipway"], "user": {"username": "ada"}}),
            _ => json!({"authenticated": false}),
        };
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": status})
    }

    #[tokio::test]
    async fn invalid_tokens_do_not_evict_valid_ones() {
        let cluster = MockCluster::new();
        cluster.respond_with(|_, _, review| Some((201, token_review(review["spec"]["token"].as_str().unwrap()))));
        let reviews = Reviews::new(cluster.api("server"));
        assert!(reviews.authenticate("good").await.unwrap().is_some());
        for number in 0..=MAX_CACHE_ENTRIES {
            reviews.rejected.put(number.to_be_bytes().to_vec(), ());
        }
        assert!(reviews.authenticate("good").await.unwrap().is_some());
        assert_eq!(cluster.count("POST", "tokenreviews"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_reviews_are_bounded() {
        let cluster = MockCluster::new();
        // An API server that does not respond any more.
        cluster.faults(|_, _, _| Fault::Lost);
        let reviews = Reviews::new(cluster.api("server"));
        let tokens: Vec<String> = (0..100).map(|n| format!("random {n}")).collect();
        let all = futures_util::future::join_all(tokens.iter().map(|token| reviews.authenticate(token))).await;
        assert!(all.iter().all(|result| matches!(result, Err(KubeError::Unreachable(_)))));
        let rejected = all.iter().filter(|result| format!("{result:?}").contains("too many tokens"));
        assert_eq!(rejected.count(), 100 - MAX_CONCURRENT_REVIEWS);
        assert_eq!(cluster.count("POST", "tokenreviews"), MAX_CONCURRENT_REVIEWS);
    }

    #[tokio::test]
    async fn permissions_are_cached_by_every_field_of_the_request() {
        let cluster = MockCluster::new();
        cluster.respond_with(|_, _, review| {
            let allowed = review["spec"]["groups"] == json!(["a", "b"]);
            Some((201, json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": {}, "status": {"allowed": allowed}})))
        });
        let reviews = Reviews::new(cluster.api("server"));
        let review_count = || cluster.count("POST", "subjectaccessreviews");
        let is_allowed = async |user: &User| reviews.is_allowed(user, "get", "runs", Some("n")).await.unwrap();
        assert!(is_allowed(&ada()).await && is_allowed(&ada()).await);
        assert_eq!(review_count(), 1);
        // The same name with other groups, another uid or other extras is a different cache key.
        let mut others = vec![
            User { groups: vec!["a".into()], ..ada() },
            User { groups: vec!["a\nb".into()], ..ada() },
            User { groups: vec!["a\0b".into()], ..ada() },
            User { groups: vec!["a".into(), "b".into(), String::new()], ..ada() },
            User { name: "ada\n1".into(), uid: String::new(), ..ada() },
        ];
        for (n, other) in others.iter().enumerate() {
            assert_eq!(is_allowed(other).await, other.groups == ada().groups, "{other:?}");
            assert_eq!(review_count(), 2 + n, "{other:?}");
        }
        others = vec![
            User { uid: "2".into(), ..ada() },
            User { extra: BTreeMap::from([("k".into(), vec!["v".into()])]), ..ada() },
            User { extra: BTreeMap::from([("k".into(), vec!["v".into(), "w".into()])]), ..ada() },
        ];
        let before = review_count();
        for (n, other) in others.iter().enumerate() {
            is_allowed(other).await;
            assert_eq!(review_count(), before + 1 + n, "{other:?}");
        }
        // So is another verb, resource or namespace.
        for (verb, resource, namespace) in [
            ("list", "runs", Some("n")),
            ("get", "runs/log", Some("n")),
            ("get", "runs", Some("m")),
            ("get", "runs", None),
        ] {
            let before = review_count();
            reviews.is_allowed(&ada(), verb, resource, namespace).await.unwrap();
            assert_eq!(review_count(), before + 1, "{verb} {resource} {namespace:?}");
        }
    }
}
