//! A router builder that requires an [`Access`] for every route.

use std::convert::Infallible;

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::http::Method;
use axum::response::IntoResponse;
use axum::routing::{MethodFilter, MethodRouter, Route};
use tower::{Layer, Service};

use crate::guard::enforce;
use crate::rule::Access;

/// A route and its required access, for tests and documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteInfo {
    /// The HTTP method; `None` for a fallback, which serves all methods.
    pub method: Option<Method>,
    /// The path in axum's syntax, such as `/v2/models/{name}`; the path of a fallback ends with `/**`.
    pub path: String,
    /// What the route requires of its caller.
    pub access: Access,
}

/// Routes, each with its access. [`Guard::protect`](crate::Guard::protect) builds served routers only from this type, and every method
/// that adds a handler requires an [`Access`].
pub struct Routes<S = ()> {
    router: Router<S>,
    table: Vec<RouteInfo>,
}

impl<S> std::fmt::Debug for Routes<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routes").field("table", &self.table).finish_non_exhaustive()
    }
}

impl<S: Clone + Send + Sync + 'static> Clone for Routes<S> {
    fn clone(&self) -> Self {
        Self { router: self.router.clone(), table: self.table.clone() }
    }
}

impl<S: Clone + Send + Sync + 'static> Default for Routes<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    /// Creates an empty set of routes.
    pub fn new() -> Self {
        Self { router: Router::new(), table: Vec::new() }
    }

    fn add(mut self, method: Option<Method>, path: &str, access: Access, handler: MethodRouter<S, Infallible>) -> Self {
        let guarded =
            handler.route_layer(axum::middleware::from_fn(move |request, next| enforce(access, request, next)));
        self.router = self.router.route(path, guarded);
        self.table.push(RouteInfo { method, path: path.to_owned(), access });
        self
    }

    /// Adds a GET route, which also serves HEAD.
    #[must_use]
    pub fn get<H: Handler<T, S>, T: 'static>(self, path: &str, access: Access, handler: H) -> Self {
        self.add(Some(Method::GET), path, access, axum::routing::on(MethodFilter::GET, handler))
    }

    /// Adds a POST route.
    #[must_use]
    pub fn post<H: Handler<T, S>, T: 'static>(self, path: &str, access: Access, handler: H) -> Self {
        self.add(Some(Method::POST), path, access, axum::routing::on(MethodFilter::POST, handler))
    }

    /// Adds a PUT route.
    #[must_use]
    pub fn put<H: Handler<T, S>, T: 'static>(self, path: &str, access: Access, handler: H) -> Self {
        self.add(Some(Method::PUT), path, access, axum::routing::on(MethodFilter::PUT, handler))
    }

    /// Adds a PATCH route.
    #[must_use]
    pub fn patch<H: Handler<T, S>, T: 'static>(self, path: &str, access: Access, handler: H) -> Self {
        self.add(Some(Method::PATCH), path, access, axum::routing::on(MethodFilter::PATCH, handler))
    }

    /// Adds a DELETE route.
    #[must_use]
    pub fn delete<H: Handler<T, S>, T: 'static>(self, path: &str, access: Access, handler: H) -> Self {
        self.add(Some(Method::DELETE), path, access, axum::routing::on(MethodFilter::DELETE, handler))
    }

    /// Adds a POST route that is served by a tower service, such as one gRPC method.
    #[must_use]
    pub fn post_service<T>(self, path: &str, access: Access, service: T) -> Self
    where
        T: Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
        T::Response: IntoResponse + 'static,
        T::Future: Send + 'static,
    {
        self.add(Some(Method::POST), path, access, axum::routing::on_service(MethodFilter::POST, service))
    }

    /// Sets the handler for paths without a route.
    #[must_use]
    pub fn fallback<H: Handler<T, S>, T: 'static>(mut self, access: Access, handler: H) -> Self {
        let handler: MethodRouter<S, Infallible> = axum::routing::any(handler);
        let guarded = handler.layer(axum::middleware::from_fn(move |request, next| enforce(access, request, next)));
        self.router = self.router.fallback(guarded);
        self.table.push(RouteInfo { method: None, path: "/**".into(), access });
        self
    }

    /// Adds all routes of `other`.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.table.extend(other.table);
        self
    }

    /// Adds all routes of `other` below `prefix`.
    #[must_use]
    pub fn nest(mut self, prefix: &str, other: Self) -> Self {
        self.router = self.router.nest(prefix, other.router);
        self.table.extend(other.table.into_iter().map(|r| RouteInfo { path: format!("{prefix}{}", r.path), ..r }));
        self
    }

    /// Wraps every route added so far in a layer.
    #[must_use]
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Route> + Clone + Send + Sync + 'static,
        L::Service: Service<Request> + Clone + Send + Sync + 'static,
        <L::Service as Service<Request>>::Response: IntoResponse + 'static,
        <L::Service as Service<Request>>::Error: Into<Infallible> + 'static,
        <L::Service as Service<Request>>::Future: Send + 'static,
    {
        self.router = self.router.layer(layer);
        self
    }

    /// Provides the state that the handlers need.
    pub fn with_state(self, state: S) -> Routes {
        Routes { router: self.router.with_state(state), table: self.table }
    }

    /// All routes with their access, in the order in which they were added.
    pub fn table(&self) -> &[RouteInfo] {
        &self.table
    }
}

impl Routes {
    /// The router without a guard. Unless a guard is put in front of it, all routes that are not public respond with status 500.
    pub(crate) fn into_unguarded_router(self) -> Router {
        self.router
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Access, Caller, CorsOrigins, Decision, Guard, HostNames, Permission, Policy, Resource, Unavailable, Verb,
    };
    use axum::body::Body;
    use axum::extract::Extension;
    use axum::http::StatusCode;
    use futures_util::future::BoxFuture;
    use std::sync::Arc;
    use tower::ServiceExt;

    /// A policy with one token, "reader", which may get experiments.
    struct OneReader;

    impl Policy for OneReader {
        fn authenticate<'a>(&'a self, token: Option<&'a str>) -> BoxFuture<'a, Result<Option<Caller>, Unavailable>> {
            let caller = token.filter(|t| *t == "reader").map(|_| Caller::Administrator);
            Box::pin(std::future::ready(Ok(caller)))
        }
        fn allows<'a>(&'a self, _: &'a Caller, permission: &'a Permission) -> BoxFuture<'a, Result<bool, Unavailable>> {
            Box::pin(std::future::ready(Ok(
                permission.verb == Verb::Get && permission.resource == Resource::Experiments
            )))
        }
    }

    fn routes() -> Routes {
        Routes::new()
            .get("/open", Access::Public, async || "open")
            .get("/thing", Access::get(Resource::Experiments), async || "read")
            .post("/thing", Access::update(Resource::Experiments), async || "changed")
            .post("/forgets", Access::DecidedByHandler, async || "secret")
            .post("/redirects", Access::DecidedByHandler, async || axum::response::Redirect::temporary("/secret"))
            .post("/unchanged", Access::DecidedByHandler, async || StatusCode::NOT_MODIFIED)
            .post("/malformed", Access::DecidedByHandler, async || StatusCode::BAD_REQUEST)
            .post("/decides", Access::DecidedByHandler, async |Extension(decision): Extension<Decision>| match decision
                .authorize(Verb::Get, Resource::Experiments, Some("ns"))
                .await
            {
                Ok(()) => "decided".into_response(),
                Err(refusal) => refusal.response(&axum::http::HeaderMap::new()),
            })
            .nest("/below", Routes::new().get("/{id}", Access::get(Resource::Models), async || "model"))
            .fallback(Access::Authenticated(crate::RunTokenUse::Denied), async || (StatusCode::NOT_FOUND, "nothing"))
    }

    async fn status(router: &Router, method: &str, path: &str, token: Option<&str>) -> u16 {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn each_route_enforces_its_access() {
        let router = Guard::new(Arc::new(OneReader), "ns", HostNames::default()).protect(routes());
        for (method, path, without_token, reader) in [
            ("GET", "/open", 200, 200),
            ("GET", "/thing", 401, 200),
            ("HEAD", "/thing", 401, 200),
            ("POST", "/thing", 401, 403),
            ("GET", "/below/x", 401, 403),
            ("POST", "/decides", 401, 200),
            ("GET", "/nowhere", 401, 404),
            ("DELETE", "/nowhere", 401, 404),
            ("DELETE", "/thing", 405, 405),
        ] {
            assert_eq!(status(&router, method, path, None).await, without_token, "{method} {path}");
            assert_eq!(status(&router, method, path, Some("reader")).await, reader, "{method} {path}");
        }
    }

    #[tokio::test]
    async fn responses_without_guard_or_permission_check_are_withheld() {
        let unguarded = routes().into_unguarded_router();
        assert_eq!(status(&unguarded, "GET", "/open", None).await, 200);
        assert_eq!(status(&unguarded, "GET", "/thing", Some("reader")).await, 500);
        let guarded = Guard::new(Arc::new(OneReader), "ns", HostNames::default()).protect(routes());
        for path in ["/forgets", "/redirects", "/unchanged"] {
            assert_eq!(status(&guarded, "POST", path, Some("reader")).await, 500, "{path}");
        }
        assert_eq!(status(&guarded, "POST", "/malformed", Some("reader")).await, 400);
    }

    #[tokio::test]
    async fn only_pages_of_configured_origins_may_call_from_a_browser() {
        let origins = CorsOrigins::new(["https://app.example".to_owned()]).unwrap();
        let guard = Guard::new(Arc::new(OneReader), "ns", HostNames::default());
        let with_cors = guard.clone().with_cors(origins).protect(routes());
        let without = guard.protect(routes());
        let send = async |router: &Router, method: &str, path: &str, headers: &[(&str, &str)]| {
            let mut request = Request::builder().method(method).uri(path);
            for (name, value) in [("host", "localhost")].iter().chain(headers) {
                request = request.header(*name, *value);
            }
            let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            let header = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
            assert_eq!(header("access-control-allow-credentials"), None);
            (response.status().as_u16(), header("access-control-allow-origin"), header("access-control-allow-headers"))
        };
        let app = Some("https://app.example".to_owned());
        let page = [("origin", "https://app.example"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "cors")];
        let evil = [("origin", "https://evil.example")];
        let reader = ("authorization", "Bearer reader");
        let preflight =
            [("access-control-request-method", "POST"), ("access-control-request-headers", "authorization,x-user")];

        // Preflights need no token, and are the same for all paths.
        for path in ["/thing", "/open", "/nowhere"] {
            let expected = (204, app.clone(), Some("authorization,x-user".to_owned()));
            assert_eq!(send(&with_cors, "OPTIONS", path, &[&page[..], &preflight].concat()).await, expected, "{path}");
            for headers in [[&evil[..], &preflight].concat(), [&page[..], &evil, &preflight].concat()] {
                assert_eq!(send(&with_cors, "OPTIONS", path, &headers).await, (403, None, None), "{path}");
            }
            assert_eq!(send(&without, "OPTIONS", path, &[&page[..], &preflight].concat()).await, (403, None, None));
        }
        // A page needs a token, and may read the error if it has none.
        assert_eq!(send(&with_cors, "GET", "/thing", &page).await, (401, app.clone(), None));
        assert_eq!(send(&with_cors, "GET", "/thing", &[&page[..], &[reader]].concat()).await, (200, app, None));
        assert_eq!(send(&with_cors, "GET", "/thing", &[&evil[..], &[reader]].concat()).await, (403, None, None));
        assert_eq!(send(&with_cors, "GET", "/thing", &[reader]).await, (200, None, None));
        assert_eq!(send(&without, "GET", "/thing", &[&page[..], &[reader]].concat()).await, (403, None, None));
    }

    #[test]
    fn table_lists_every_route() {
        let all: Vec<_> = routes().table().iter().map(|r| format!("{} {}", r.path, r.access)).collect();
        assert!(all.contains(&"/below/{id} get models +runs".to_owned()), "{all:?}");
        assert_eq!(all.len(), 10);
    }
}
