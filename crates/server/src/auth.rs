//! Who a request comes from, and what that may do.
//!
//! A request carries a token, as bearer or as the password of basic authentication (which is how MLflow's clients send
//! `MLFLOW_TRACKING_TOKEN` and `MLFLOW_TRACKING_PASSWORD`). Three kinds are known: those of the token file, which may do everything;
//! those that runs get, which may track; and, in a cluster, those of the cluster's users and service accounts, who may do what the
//! cluster's own rules say (TokenReview and SubjectAccessReview).

mod authority;
mod runs;
mod tokens;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

pub use authority::{Access, Authority, Person};
pub(crate) use runs::MIGRATION;
pub use runs::RunTokens;
pub use tokens::Tokens;

/// Paths that anyone may read: they tell that a server is there, and nothing about what it holds.
const OPEN: &[&str] = &["/health", "/healthz", "/readyz", "/version", "/v2/health/live", "/v2/health/ready"];

/// Who a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Somebody on this machine, who is not asked.
    Anyone,
    /// A holder of a token of the token file.
    Operator,
    /// A run of this namespace.
    Run(String),
    /// A user or a service account of the cluster.
    Person(Person),
}

impl Caller {
    /// The name, if it has one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Person(person) => Some(&person.name),
            _ => None,
        }
    }
}

/// What lets requests pass; cheap to clone.
#[derive(Clone, Default)]
pub struct Guard(Option<Arc<Rules>>);

struct Rules {
    tokens: Option<Tokens>,
    runs: RunTokens,
    authority: Option<Arc<dyn Authority>>,
    /// The namespace that what belongs to nobody else is in.
    namespace: String,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Guard").field(&self.0.is_some()).finish()
    }
}

impl Guard {
    /// One that asks everybody who they are.
    pub fn new(
        tokens: Option<Tokens>,
        runs: RunTokens,
        authority: Option<Arc<dyn Authority>>,
        namespace: String,
    ) -> Self {
        Self(Some(Arc::new(Rules { tokens, runs, authority, namespace })))
    }

    /// A router that only those reach who may, and no page of another site.
    pub fn around(&self, router: axum::Router) -> axum::Router {
        router
            .layer(axum::middleware::from_fn(refuse_foreign))
            .layer(axum::middleware::from_fn_with_state(self.clone(), require))
    }

    /// Who sends these headers; `None` for nobody that is known.
    async fn who(&self, headers: &HeaderMap) -> Result<Option<Caller>, String> {
        let Some(rules) = &self.0 else { return Ok(Some(Caller::Anyone)) };
        let Some(token) = token(headers) else { return Ok(None) };
        if rules.tokens.as_ref().is_some_and(|t| t.accepts(&token)) {
            return Ok(Some(Caller::Operator));
        }
        if let Some(namespace) = rules.runs.namespace(&token) {
            return Ok(Some(Caller::Run(namespace)));
        }
        match &rules.authority {
            Some(authority) => Ok(authority.who(&token).await?.map(Caller::Person)),
            None => Ok(None),
        }
    }

    /// Whether a caller may do this.
    ///
    /// # Errors
    /// Why it cannot be said: the cluster does not answer.
    pub async fn allows(&self, caller: &Caller, access: &Access) -> Result<bool, String> {
        match caller {
            Caller::Anyone | Caller::Operator => Ok(true),
            // What a run tracks and registers.
            Caller::Run(_) => Ok(matches!(access.resource, "experiments" | "models") && access.verb != "delete"),
            Caller::Person(person) => {
                let Some(rules) = &self.0 else { return Ok(true) };
                let Some(authority) = &rules.authority else { return Ok(false) };
                authority.may(person, access).await
            }
        }
    }
}

/// The token that a request carries.
fn token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    use base64::Engine;
    let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
    let text = String::from_utf8_lossy(&decoded);
    text.split_once(':').map(|(_, password)| password.to_owned())
}

/// Lets a request pass if its sender may do what it asks for; what handlers judge themselves they find in the extensions.
async fn require(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let caller = match guard.who(request.headers()).await {
        Ok(Some(caller)) => caller,
        Ok(None) if OPEN.contains(&request.uri().path()) => return next.run(request).await,
        Ok(None) => return refused(&request, Refusal::Unknown),
        Err(why) => return refused(&request, Refusal::Unreachable(why)),
    };
    if let Some(rules) = &guard.0
        && let Some(access) = authority::wanted(request.method(), request.uri().path(), &rules.namespace)
    {
        match guard.allows(&caller, &access).await {
            Ok(true) => {}
            Ok(false) => return refused(&request, Refusal::Forbidden(access.refusal(&caller))),
            Err(why) => return refused(&request, Refusal::Unreachable(why)),
        }
    }
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(guard);
    next.run(request).await
}

enum Refusal {
    Unknown,
    Forbidden(String),
    Unreachable(String),
}

/// Says no in the protocol of who asked.
fn refused(request: &Request, why: Refusal) -> Response {
    let (status, grpc, code, error_code, message) = match why {
        Refusal::Unknown => (
            StatusCode::UNAUTHORIZED,
            "16",
            "auth.required",
            "UNAUTHENTICATED",
            "You are not authenticated: this server asks for a token.".to_owned(),
        ),
        Refusal::Forbidden(message) => (StatusCode::FORBIDDEN, "7", "auth.forbidden", "PERMISSION_DENIED", message),
        Refusal::Unreachable(why) => {
            let message = format!("Who you are cannot be checked just now: {why}");
            (StatusCode::SERVICE_UNAVAILABLE, "14", "auth.unreachable", "TEMPORARILY_UNAVAILABLE", message)
        }
    };
    let kind = request.headers().get(header::CONTENT_TYPE);
    if kind.is_some_and(|t| t.as_bytes().starts_with(b"application/grpc")) {
        // gRPC carries its status in headers of a 200 answer.
        let plain: String = message.chars().filter(|c| c.is_ascii() && !c.is_ascii_control()).collect();
        let headers = [("content-type", "application/grpc"), ("grpc-status", grpc), ("grpc-message", plain.as_str())];
        return (StatusCode::OK, headers).into_response();
    }
    let body = serde_json::json!({"error_code": error_code, "message": message, "code": code});
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
    if status == StatusCode::UNAUTHORIZED {
        let ask = header::HeaderValue::from_static("Basic realm=\"slipway\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
    }
    response
}

/// Whether a request that changes something comes from a page of another site, which a browser says by `Origin`.
fn is_foreign(method: &Method, headers: &HeaderMap) -> bool {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return false;
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let from = origin.to_str().ok().and_then(|o| o.split_once("://")).map(|(_, authority)| authority);
    let to = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    from.is_none() || from != to
}

/// Turns away changes that a web page of another site asks the user's browser for.
async fn refuse_foreign(request: Request, next: Next) -> Response {
    if !is_foreign(request.method(), request.headers()) {
        return next.run(request).await;
    }
    let body = serde_json::json!({
        "error_code": "PERMISSION_DENIED",
        "message": "This request comes from a page of another site and is refused.",
        "code": "auth.foreign",
    });
    (StatusCode::FORBIDDEN, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn changes_from_other_sites_are_refused() {
        let from = |origin: &str| {
            HeaderMap::from_iter([
                (header::HOST, "127.0.0.1:7070".parse().unwrap()),
                (header::ORIGIN, origin.parse().unwrap()),
            ])
        };
        assert!(is_foreign(&Method::POST, &from("https://evil.example")));
        assert!(is_foreign(&Method::DELETE, &from("null")));
        assert!(!is_foreign(&Method::POST, &from("http://127.0.0.1:7070")));
        assert!(!is_foreign(&Method::GET, &from("https://evil.example")));
        assert!(!is_foreign(&Method::POST, &HeaderMap::new()));
    }

    #[tokio::test]
    async fn tokens_pass_as_bearer_and_as_password() {
        let runs = RunTokens::new([7; 32]);
        let of_a_run = runs.mint("team-a");
        let tokens = Tokens::from_lines("0123456789abcdef").unwrap();
        let guard = Guard::new(Some(tokens), runs, None, "slipway-system".into());
        let who = async |value: &str| guard.who(&headers(value)).await.unwrap();
        assert_eq!(who("Bearer 0123456789abcdef").await, Some(Caller::Operator));
        // any:0123456789abcdef
        assert_eq!(who("Basic YW55OjAxMjM0NTY3ODlhYmNkZWY=").await, Some(Caller::Operator));
        assert_eq!(who(&format!("Bearer {of_a_run}")).await, Some(Caller::Run("team-a".into())));
        for wrong in ["Bearer 0123456789abcdeg", "Bearer ", "Basic !!!", "0123456789abcdef"] {
            assert_eq!(who(wrong).await, None, "{wrong}");
        }
        let forged = of_a_run.replace("team-a", "team-b");
        assert_eq!(who(&format!("Bearer {forged}")).await, None);
    }

    #[tokio::test]
    async fn a_run_may_track_and_nothing_else() {
        let guard = Guard::new(None, RunTokens::new([7; 32]), None, "slipway-system".into());
        let run = Caller::Run("team-a".into());
        let may = async |verb, resource| {
            let access = Access { verb, resource, namespace: Some("slipway-system".into()) };
            guard.allows(&run, &access).await.unwrap()
        };
        assert!(may("update", "experiments").await && may("get", "models").await);
        assert!(
            !may("create", "runs").await && !may("delete", "experiments").await && !may("update", "deployments").await
        );
    }
}
