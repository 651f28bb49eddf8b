//! The guard in front of every router. For each request it checks that the request is meant for this server, authenticates the caller and
//! checks that the caller may use the route.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::future::BoxFuture;

use crate::cors::{self, CorsOrigins};
use crate::refusal::Refusal;
use crate::rule::{Access, Permission, Resource, RunTokenUse, Verb};
use crate::{Caller, Routes};

/// The reason why a policy cannot decide at the moment, for instance because the API server is unreachable.
#[derive(Debug, Clone)]
pub struct Unavailable(pub String);

/// Authenticates tokens and decides about permissions.
pub trait Policy: Send + Sync {
    /// Extracts the token from the headers of a request: by default a bearer token or a basic-authentication password.
    fn token(&self, headers: &HeaderMap) -> Option<String> {
        bearer_or_password(headers)
    }
    /// The response to a refused request with these headers. A server overrides this to add its own hints.
    fn refuse(&self, refusal: Refusal, headers: &HeaderMap) -> Response {
        refusal.response(headers)
    }
    /// The caller with this token; without a token, [`Caller::Anonymous`] if the server allows it. `None` if authentication fails.
    fn authenticate<'a>(&'a self, token: Option<&'a str>) -> BoxFuture<'a, Result<Option<Caller>, Unavailable>>;
    /// Whether a caller has a permission. Not called for runs: the routes declare what run tokens may do.
    fn allows<'a>(&'a self, caller: &'a Caller, permission: &'a Permission)
    -> BoxFuture<'a, Result<bool, Unavailable>>;
}

/// The host names of a server. IP addresses are always accepted: a DNS rebinding attack needs a host name, so only names must be
/// checked.
#[derive(Debug, Clone, Default)]
pub struct HostNames(Vec<String>);

impl HostNames {
    /// Accepts `localhost`, its subdomains and these names.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let normalize = |name: String| name.trim().trim_end_matches('.').to_ascii_lowercase();
        Self(names.into_iter().map(normalize).filter(|n| !n.is_empty()).collect())
    }

    /// Whether a host (without a port) names this server.
    fn contains(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if bare.parse::<IpAddr>().is_ok() {
            return true;
        }
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        name == "localhost" || name.ends_with(".localhost") || self.0.contains(&name)
    }
}

/// The base URL at which the client reaches this server, such as `https://slipway.example:7070`. The guard adds it as an extension to every
/// request whose `Host` it checked; handlers use it to build absolute URLs.
#[derive(Debug, Clone)]
pub struct Origin {
    scheme: &'static str,
    authority: Authority,
}

impl Origin {
    /// Creates an origin from a scheme (`http` or `https`) and a host with an optional port.
    pub fn new(scheme: &'static str, authority: Authority) -> Self {
        Self { scheme, authority }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

#[derive(Clone)]
struct Rules {
    policy: Arc<dyn Policy>,
    /// The namespace of the installation, which owns every object that belongs to no other namespace.
    namespace: String,
    /// The accepted host names; `None` accepts every host.
    hosts: Option<HostNames>,
    /// Whether the server uses TLS.
    tls: bool,
    /// Origins whose web pages may call the server.
    cors: CorsOrigins,
}

/// Protects a router. Cheap to clone.
#[derive(Clone)]
pub struct Guard(Arc<Rules>);

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("namespace", &self.0.namespace).finish_non_exhaustive()
    }
}

/// The policy of calls within the process: the caller is the owner, who may do everything.
struct InProcess;

impl Policy for InProcess {
    fn authenticate<'a>(&'a self, _: Option<&'a str>) -> BoxFuture<'a, Result<Option<Caller>, Unavailable>> {
        Box::pin(std::future::ready(Ok(Some(Caller::Owner))))
    }
    fn allows<'a>(&'a self, _: &'a Caller, _: &'a Permission) -> BoxFuture<'a, Result<bool, Unavailable>> {
        Box::pin(std::future::ready(Ok(true)))
    }
}

impl Guard {
    /// Creates a guard with this policy. `namespace` is the namespace of the installation. Without `hosts`, neither `Host` nor `Origin` is
    /// checked; use this only for servers that cannot know their own names and whose tokens no browser sends automatically.
    pub fn new(policy: Arc<dyn Policy>, namespace: impl Into<String>, hosts: impl Into<Option<HostNames>>) -> Self {
        Self(Arc::new(Rules {
            policy,
            namespace: namespace.into(),
            hosts: hosts.into(),
            tls: false,
            cors: CorsOrigins::default(),
        }))
    }

    /// Sets whether the server uses TLS, which decides the scheme of [`Origin`].
    #[must_use]
    pub fn with_tls(self, tls: bool) -> Self {
        Self(Arc::new(Rules { tls, ..Arc::unwrap_or_clone(self.0) }))
    }

    /// Sets the origins whose web pages may call the server, in addition to its own pages.
    #[must_use]
    pub fn with_cors(self, cors: CorsOrigins) -> Self {
        Self(Arc::new(Rules { cors, ..Arc::unwrap_or_clone(self.0) }))
    }

    /// A guard for calls within this process by the owner of the state folder. Never use it for a router that listens on a socket.
    pub fn in_process() -> Self {
        Self::new(Arc::new(InProcess), "", None)
    }

    /// Builds the router of these routes, with this guard in front of each route.
    pub fn protect(&self, routes: Routes) -> axum::Router {
        let guard = self.clone();
        routes.into_unguarded_router().layer(axum::middleware::from_fn(move |mut request: Request, next: Next| {
            let guard = guard.clone();
            async move {
                let shared_with = guard.0.cors.allowed(request.headers());
                if let Some(hosts) = &guard.0.hosts {
                    let authority = match check_destination(&request, hosts, shared_with.is_some()) {
                        Ok(authority) => authority,
                        Err(refusal) => return guard.0.policy.refuse(refusal, request.headers()),
                    };
                    // A proxy that terminates TLS sets this header. A client that forges it only affects the URLs in its own response.
                    let forwarded = request.headers().get("x-forwarded-proto").is_some_and(|p| p == "https");
                    let scheme = if guard.0.tls || forwarded { "https" } else { "http" };
                    request.extensions_mut().insert(Origin::new(scheme, authority));
                }
                // Browsers send preflight requests without a token.
                let mut response = if shared_with.is_some() && cors::is_preflight(&request) {
                    cors::preflight(request.headers())
                } else {
                    request.extensions_mut().insert(guard.clone());
                    next.run(request).await
                };
                if !guard.0.cors.is_empty() {
                    cors::share(&mut response, shared_with);
                }
                response
            }
        }))
    }

    async fn allows(&self, caller: &Caller, permission: &Permission) -> Result<(), Refusal> {
        match self.0.policy.allows(caller, permission).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::Forbidden(caller.lacks(permission))),
            Err(Unavailable(reason)) => Err(Refusal::Unavailable(reason)),
        }
    }

    /// The caller that sent a request with these headers.
    async fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let token = self.0.policy.token(headers);
        match self.0.policy.authenticate(token.as_deref()).await {
            Ok(Some(caller)) => Ok(caller),
            Ok(None) => Err(Refusal::Unauthenticated),
            Err(Unavailable(reason)) => Err(Refusal::Unavailable(reason)),
        }
    }

    /// Whether a caller may use a route with this access.
    async fn authorize(&self, caller: &Caller, access: Access) -> Result<(), Refusal> {
        match (access, caller) {
            (Access::Public | Access::SignedUrl | Access::DecidedByHandler, _)
            | (
                Access::Authenticated(RunTokenUse::Scoped) | Access::Permission(_, _, RunTokenUse::Scoped),
                Caller::Run(_),
            ) => Ok(()),
            (Access::Authenticated(RunTokenUse::Denied), Caller::Run(run)) => {
                Err(Refusal::Forbidden(format!("the token of run \"{}\" does not open this route", run.name)))
            }
            (Access::Authenticated(_), _) => Ok(()),
            (Access::Permission(verb, resource, run_tokens), caller) => {
                let permission = Permission { verb, resource, namespace: Some(self.0.namespace.clone()) };
                if caller.run().is_some() && run_tokens == RunTokenUse::Denied {
                    return Err(Refusal::Forbidden(caller.lacks(&permission)));
                }
                self.allows(caller, &permission).await
            }
        }
    }
}

/// Runs before each handler, with the access of its route.
pub(crate) async fn enforce(access: Access, mut request: Request, next: Next) -> Response {
    if matches!(access, Access::Public | Access::SignedUrl) {
        return next.run(request).await;
    }
    let Some(guard) = request.extensions_mut().remove::<Guard>() else {
        tracing::error!(path = request.uri().path(), "a router is served without a guard");
        return Refusal::Unguarded.response(request.headers());
    };
    let caller = match guard.authenticate(request.headers()).await {
        Ok(caller) => caller,
        Err(refusal) => return guard.0.policy.refuse(refusal, request.headers()),
    };
    if let Err(refusal) = guard.authorize(&caller, access).await {
        return guard.0.policy.refuse(refusal, request.headers());
    }
    if access == Access::DecidedByHandler {
        let decided = Arc::new(AtomicBool::new(false));
        let decision = Decision { guard, caller: caller.clone(), decided: Arc::clone(&decided) };
        request.extensions_mut().insert(caller);
        request.extensions_mut().insert(decision);
        let headers = request.headers().clone();
        let response = next.run(request).await;
        // Error responses need not be withheld: a handler may reject a malformed request before it knows the namespace. All others must
        // be, including redirects, which reveal a location.
        let is_error = response.status().is_client_error() || response.status().is_server_error();
        if !is_error && !decided.load(Ordering::Acquire) {
            tracing::error!("a handler responded without checking the caller's permission");
            return Refusal::Unguarded.response(&headers);
        }
        return response;
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// The permission check of an [`Access::DecidedByHandler`] route. Its handler must call [`Self::authorize`] once it knows the namespace.
#[derive(Debug, Clone)]
pub struct Decision {
    guard: Guard,
    caller: Caller,
    decided: Arc<AtomicBool>,
}

impl Decision {
    /// Checks that the caller has this permission in `namespace`, or in all namespaces if it is `None`.
    ///
    /// # Errors
    /// A [`Refusal`] if the caller lacks the permission or the policy cannot decide.
    pub async fn authorize(&self, verb: Verb, resource: Resource, namespace: Option<&str>) -> Result<(), Refusal> {
        let permission = Permission { verb, resource, namespace: namespace.map(str::to_owned) };
        self.decided.store(true, Ordering::Release);
        if self.caller.run().is_some() {
            return Err(Refusal::Forbidden(self.caller.lacks(&permission)));
        }
        self.guard.allows(&self.caller, &permission).await
    }

    /// Like [`Self::authorize`] for the namespace, but a run may do it in its own namespace without a permission.
    ///
    /// # Errors
    /// As [`Self::authorize`].
    pub async fn authorize_or_own_run(&self, verb: Verb, resource: Resource, namespace: &str) -> Result<(), Refusal> {
        if self.caller.run().is_some_and(|run| !run.isolated || run.namespace == namespace) {
            self.decided.store(true, Ordering::Release);
            return Ok(());
        }
        self.authorize(verb, resource, Some(namespace)).await
    }

    /// The namespace of the installation.
    pub fn installation(&self) -> &str {
        &self.guard.0.namespace
    }

    /// The caller that sent the request.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

/// The token of a request: a bearer token, or the password of basic authentication. MLflow clients send `MLFLOW_TRACKING_PASSWORD` and
/// browsers send the input of their login dialog as a password.
fn bearer_or_password(headers: &HeaderMap) -> Option<String> {
    use base64::Engine;
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
    let text = String::from_utf8_lossy(&decoded);
    text.split_once(':').map(|(_, password)| password.to_owned())
}

/// The host and port that a request is addressed to: the authority of its URL (HTTP/2 and absolute form) or its `Host` header.
fn destination(request: &Request) -> Option<Authority> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next().map(|h| h.to_str().ok().and_then(|h| h.parse::<Authority>().ok()));
    if hosts.next().is_some() {
        return None;
    }
    match (request.uri().authority(), host) {
        // RFC 9112, section 3.2.2: the authority of an absolute URL replaces `Host`. If both exist and differ, the request is an attack.
        (Some(authority), Some(host)) => host.filter(|h| h.as_str().eq_ignore_ascii_case(authority.as_str())),
        (Some(authority), None) => Some(authority.clone()),
        (None, host) => host.flatten(),
    }
}

/// Returns the host that a request is addressed to. Refuses requests to other hosts and, unless `is_allowed_origin`, requests from web pages
/// of other origins.
fn check_destination(request: &Request, names: &HostNames, is_allowed_origin: bool) -> Result<Authority, Refusal> {
    let Some(own) = destination(request) else { return Err(Refusal::Misdirected(String::new())) };
    if own.as_str().contains('@') || !names.contains(own.host()) {
        return Err(Refusal::Misdirected(own.host().to_owned()));
    }
    if is_allowed_origin {
        return Ok(own);
    }
    let text = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap_or("null"));
    for origin in request.headers().get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("null");
        let from = origin.split_once("://").map_or("", |(_, authority)| authority);
        if !from.eq_ignore_ascii_case(own.as_str()) {
            return Err(Refusal::ForeignOrigin);
        }
    }
    // Browsers send `Sec-Fetch-Site` even for requests without `Origin`, such as images. Following a link from another site is harmless;
    // submitting a form is not.
    let site = text("sec-fetch-site").unwrap_or("none");
    let follows_link = text("sec-fetch-mode") == Some("navigate") && request.method().is_safe();
    if matches!(site, "cross-site" | "same-site") && !follows_link {
        return Err(Refusal::ForeignOrigin);
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn request(parts: &[(&str, &str)]) -> Request {
        let mut builder = Request::builder().uri("/x");
        for (name, value) in parts {
            builder = builder.header(*name, *value);
        }
        builder.body(Body::empty()).unwrap()
    }

    #[test]
    fn only_configured_names_and_ip_addresses_are_accepted_as_host() {
        let names = HostNames::new(["gpu1.example".to_owned(), "slipway.ns.svc".to_owned()]);
        let check = |host: &str| check_destination(&request(&[("host", host)]), &names, false).map(drop);
        for own in [
            "127.0.0.1:7070",
            "localhost:1",
            "LOCALHOST.",
            "[::1]:7070",
            "10.1.2.3",
            "gpu1.example:7070",
            "slipway.ns.svc",
        ] {
            assert_eq!(check(own), Ok(()), "{own}");
        }
        for foreign in
            ["evil.example:7070", "localhost.evil.example", "127.0.0.1.evil.example", "a@localhost", "gpu1", ""]
        {
            assert!(matches!(check(foreign), Err(Refusal::Misdirected(_))), "{foreign}");
        }
        assert!(check_destination(&request(&[]), &names, false).is_err());
        let twice = request(&[("host", "localhost"), ("host", "evil.example")]);
        assert!(check_destination(&twice, &names, false).is_err());
    }

    #[test]
    fn absolute_url_must_match_the_host_header() {
        let check = |uri: &str, host: Option<&str>| {
            let mut builder = Request::builder().uri(uri);
            if let Some(host) = host {
                builder = builder.header("host", host);
            }
            check_destination(&builder.body(Body::empty()).unwrap(), &HostNames::default(), false).map(drop)
        };
        assert_eq!(check("http://localhost:7070/x", None), Ok(()));
        assert_eq!(check("http://localhost:7070/x", Some("localhost:7070")), Ok(()));
        assert!(check("http://localhost:7070/x", Some("evil.example:7070")).is_err());
        assert!(check("http://evil.example/x", Some("localhost")).is_err());
    }

    #[test]
    fn requests_from_other_origins_are_refused() {
        let check = |parts: &[(&str, &str)]| {
            let mut all = vec![("host", "127.0.0.1:7070")];
            all.extend_from_slice(parts);
            check_destination(&request(&all), &HostNames::default(), false).map(drop)
        };
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[("origin", "http://127.0.0.1:7070")]), Ok(()));
        for foreign in
            ["https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:7070", "http://127.0.0.1"]
        {
            assert_eq!(check(&[("origin", foreign)]), Err(Refusal::ForeignOrigin), "{foreign}");
        }
        assert!(check(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]).is_err());
        assert!(check(&[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors")]).is_err());
        assert_eq!(check(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]), Ok(()));
        assert_eq!(check(&[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")]), Ok(()));
        let twice = [("origin", "http://127.0.0.1:7070"), ("origin", "https://evil.example")];
        assert_eq!(check(&twice), Err(Refusal::ForeignOrigin));
        let mut form =
            request(&[("host", "127.0.0.1"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]);
        *form.method_mut() = axum::http::Method::POST;
        assert!(check_destination(&form, &HostNames::default(), false).is_err());
    }

    #[test]
    fn tokens_are_read_from_bearer_or_basic_authentication() {
        let token =
            |value: &str| bearer_or_password(&HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]));
        assert_eq!(token("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(token("bearer  abc ").as_deref(), Some("abc"));
        // The base64 text decodes to "any:0123".
        assert_eq!(token("Basic YW55OjAxMjM=").as_deref(), Some("0123"));
        for invalid in ["Basic !!!", "abc", "Digest abc"] {
            assert_eq!(token(invalid), None, "{invalid}");
        }
    }
}
