//! Who a request comes from, and what that caller may do.
//!
//! Four kinds of callers are known by their tokens: the owner of the state folder, by the token in it ([`home_token`]); administrators, by
//! the token file ([`Tokens`]); runs, by the token of their attempt ([`RunTokens`]); and, in a cluster, its users and service accounts, who
//! may do what the cluster's own rules say ([`Authority`]: TokenReview and SubjectAccessReview). What a route asks is written beside the
//! route (crate `slipway-access`); this module only answers for callers.

mod authority;
mod home_token;
mod runs;
mod tokens;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use slipway_access::{Caller, Permission, Policy, Resource, Unavailable, Verb};

pub use authority::Authority;
pub use home_token::{home_token, read_home_token};
pub(crate) use runs::MIGRATION;
pub use runs::{RunStates, RunTokens};
pub use tokens::Tokens;

/// Whom a server knows. What is unset is not known, so the default lets nobody in.
#[derive(Clone, Default)]
pub struct Callers {
    /// The token of the state folder.
    pub owner: Option<Tokens>,
    /// The token file.
    pub administrators: Option<Tokens>,
    /// Runs.
    pub runs: Option<RunTokens>,
    /// The users of a cluster.
    pub authority: Option<Arc<dyn Authority>>,
    /// Whether callers without a token may do everything but run programs (`--no-auth`).
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
            let nobody = || self.anonymous.then_some(Caller::Anonymous);
            let Some(token) = token else { return Ok(nobody()) };
            let accepts = |tokens: &Option<Tokens>| tokens.as_ref().is_some_and(|t| t.accepts(token));
            if accepts(&self.owner) {
                return Ok(Some(Caller::Owner));
            }
            if accepts(&self.administrators) {
                return Ok(Some(Caller::Administrator));
            }
            if RunTokens::is_one(token) {
                let Some(runs) = &self.runs else { return Ok(nobody()) };
                return Ok(runs.identify(token).await?.map(Caller::Run).or_else(nobody));
            }
            match &self.authority {
                Some(authority) => {
                    let person = authority.who(token).await.map_err(Unavailable)?;
                    Ok(person.map(Caller::Person).or_else(nobody))
                }
                None => Ok(nobody()),
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
                // A server that asks nobody who they are executes nothing for them.
                Caller::Anonymous => Ok(!(permission.resource == Resource::Runs && permission.verb == Verb::Create)),
                // Which routes runs may use is written beside the routes.
                Caller::Run(_) => Ok(false),
                Caller::Person(person) => match &self.authority {
                    Some(authority) => authority.may(person, permission).await.map_err(Unavailable),
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
        fn who<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Person>, String>> {
            let person =
                (token == "viewer-token-of-the-cluster").then(|| Person { name: "eva".into(), ..Person::default() });
            Box::pin(std::future::ready(Ok(person)))
        }
        fn may<'a>(&'a self, _: &'a Person, wanted: &'a Permission) -> BoxFuture<'a, Result<bool, String>> {
            Box::pin(std::future::ready(Ok(wanted.verb == Verb::Get)))
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
    async fn each_token_has_its_caller_and_strangers_have_none() {
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
        let who = async |token: &str| callers.authenticate(Some(token)).await.unwrap();
        assert_eq!(who("the-owner-of-this-machine").await, Some(Caller::Owner));
        assert_eq!(who("0123456789abcdef").await, Some(Caller::Administrator));
        assert!(matches!(who("viewer-token-of-the-cluster").await, Some(Caller::Person(p)) if p.name == "eva"));
        assert!(matches!(who(&run).await, Some(Caller::Run(r)) if r.name == "train" && r.isolated));
        for wrong in [
            "0123456789abcdeg",
            "",
            "0123456789abcde",
            &expired,
            &run[..run.len() - 1],
            "slipway-run.",
            "slipway-run.a.b",
        ] {
            assert_eq!(who(wrong).await, None, "{wrong}");
        }
        assert_eq!(callers.authenticate(None).await.unwrap(), None);
        assert_eq!(Callers::default().authenticate(Some("0123456789abcdef")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn anonymous_callers_run_no_programs() {
        let callers = Callers { anonymous: true, ..Callers::default() };
        assert_eq!(callers.authenticate(None).await.unwrap(), Some(Caller::Anonymous));
        let may = async |verb, resource| {
            let permission = Permission { verb, resource, namespace: None };
            callers.allows(&Caller::Anonymous, &permission).await.unwrap()
        };
        assert!(!may(Verb::Create, Resource::Runs).await);
        assert!(may(Verb::Update, Resource::Experiments).await);
    }
}
