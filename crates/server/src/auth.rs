//! Authenticates callers by their tokens, and decides what they may do.
//!
//! There are four kinds of callers with tokens: the owner of the state folder, whose token is stored in it ([`home_token`]);
//! administrators, listed in the token file ([`Tokens`]); runs, with one token per attempt ([`RunTokens`]); and, in a cluster, its users
//! and service accounts, whose permissions come from the cluster's RBAC ([`Authority`]: TokenReview and SubjectAccessReview). Routes
//! declare the access that they require (crate `slipway-access`); this module implements the [`Policy`] that is checked against it.
//! Invariant: an unknown token never authenticates.

mod authority;
mod home_token;
mod key_file;
mod runs;
mod tokens;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use slipway_access::{Caller, Permission, Policy, Resource, Unavailable, Verb};

pub use authority::Authority;
pub use home_token::{home_token, read_home_token};
pub(crate) use key_file::key_from_file;
pub(crate) use runs::MIGRATION;
pub use runs::{RunStates, RunTokens};
pub use tokens::Tokens;

/// The callers that a server accepts. An unset field accepts no caller of its kind, so the default accepts none.
#[derive(Clone, Default)]
pub struct Callers {
    /// The token of the state folder's owner.
    pub owner: Option<Tokens>,
    /// The tokens of the token file.
    pub administrators: Option<Tokens>,
    /// Verifies the tokens of runs.
    pub runs: Option<RunTokens>,
    /// Verifies the users and service accounts of the cluster.
    pub authority: Option<Arc<dyn Authority>>,
    /// Whether callers without a known token may do everything except submit runs (`--no-auth`).
    pub anonymous: bool,
}

impl std::fmt::Debug for Callers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Callers").field("anonymous", &self.anonymous).finish_non_exhaustive()
    }
}

impl Policy for Callers {
    fn authenticate<'a>(&'a self, token: Option<&'a str>) -> BoxFuture<'a, Result<Option<Caller>, Unavailable>> {
        Box::pin(async move {
            let anonymous = || self.anonymous.then_some(Caller::Anonymous);
            let Some(token) = token else { return Ok(anonymous()) };
            let accepts = |tokens: &Option<Tokens>| tokens.as_ref().is_some_and(|t| t.accepts(token));
            if accepts(&self.owner) {
                return Ok(Some(Caller::Owner));
            }
            if accepts(&self.administrators) {
                return Ok(Some(Caller::Administrator));
            }
            if RunTokens::is_run_token(token) {
                let Some(runs) = &self.runs else { return Ok(anonymous()) };
                return Ok(runs.identify(token).await?.map(Caller::Run).or_else(anonymous));
            }
            match &self.authority {
                Some(authority) => {
                    let person = authority.authenticate(token).await.map_err(Unavailable)?;
                    Ok(person.map(Caller::Person).or_else(anonymous))
                }
                None => Ok(anonymous()),
            }
        })
    }

    fn allows<'a>(
        &'a self,
        caller: &'a Caller,
        permission: &'a Permission,
    ) -> BoxFuture<'a, Result<bool, Unavailable>> {
        Box::pin(async move {
            match caller {
                Caller::Owner | Caller::Administrator => Ok(true),
                // A submitted run executes a program, so unauthenticated callers may not submit one; and secrets are for nobody unknown.
                Caller::Anonymous => Ok(permission.resource != Resource::Secrets
                    && !(permission.resource == Resource::Runs && permission.verb == Verb::Create)),
                // Routes that admit runs say so in their `Access`; this permission check is for all other callers.
                Caller::Run(_) => Ok(false),
                Caller::Person(person) => match &self.authority {
                    Some(authority) => authority.is_allowed(person, permission).await.map_err(Unavailable),
                    None => Ok(false),
                },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slipway_access::Person;
    use slipway_exec::TokenRequest;

    struct OneViewer;

    impl Authority for OneViewer {
        fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Person>, String>> {
            let person =
                (token == "viewer-token-of-the-cluster").then(|| Person { name: "eva".into(), ..Person::default() });
            Box::pin(std::future::ready(Ok(person)))
        }
        fn is_allowed<'a>(&'a self, _: &'a Person, permission: &'a Permission) -> BoxFuture<'a, Result<bool, String>> {
            Box::pin(std::future::ready(Ok(permission.verb == Verb::Get)))
        }
    }

    fn request(run: &str, expires_at: i64) -> TokenRequest {
        TokenRequest {
            namespace: "team-a".into(),
            run_id: "0".repeat(32),
            run: run.into(),
            experiment: None,
            attempt: 1,
            expires_at,
        }
    }

    #[tokio::test]
    async fn known_tokens_authenticate_and_unknown_tokens_do_not() {
        let runs = RunTokens::new([7; 32]).isolated(true);
        let run = runs.mint(&request("train", i64::MAX));
        let expired = runs.mint(&request("train", 1));
        let callers = Callers {
            owner: Some(Tokens::from_lines("the-owner-of-this-machine").unwrap()),
            administrators: Some(Tokens::from_lines("0123456789abcdef").unwrap()),
            runs: Some(runs),
            authority: Some(Arc::new(OneViewer)),
            anonymous: false,
        };
        let caller = async |token: &str| callers.authenticate(Some(token)).await.unwrap();
        assert_eq!(caller("the-owner-of-this-machine").await, Some(Caller::Owner));
        assert_eq!(caller("0123456789abcdef").await, Some(Caller::Administrator));
        assert!(matches!(caller("viewer-token-of-the-cluster").await, Some(Caller::Person(p)) if p.name == "eva"));
        assert!(matches!(caller(&run).await, Some(Caller::Run(r)) if r.name == "train" && r.isolated));
        for unknown in [
            "0123456789abcdeg",
            "",
            "0123456789abcde",
            &expired,
            &run[..run.len() - 1],
            "slipway-run.",
            "slipway-run.a.b",
        ] {
            assert_eq!(caller(unknown).await, None, "{unknown}");
        }
        assert_eq!(callers.authenticate(None).await.unwrap(), None);
        assert_eq!(Callers::default().authenticate(Some("0123456789abcdef")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn anonymous_callers_cannot_submit_runs_or_read_secrets() {
        let callers = Callers { anonymous: true, ..Callers::default() };
        assert_eq!(callers.authenticate(None).await.unwrap(), Some(Caller::Anonymous));
        let is_allowed = async |verb, resource| {
            let permission = Permission { verb, resource, namespace: None };
            callers.allows(&Caller::Anonymous, &permission).await.unwrap()
        };
        assert!(!is_allowed(Verb::Create, Resource::Runs).await);
        assert!(!is_allowed(Verb::Get, Resource::Secrets).await);
        assert!(is_allowed(Verb::Update, Resource::Experiments).await);
    }
}
