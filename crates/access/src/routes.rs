//! Routes that carry their access.

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

/// A route and its access, for tests and documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteInfo {
    /// The method; unset where every method is served, as by a fallback.
    pub method: Option<Method>,
    /// The path with axum's parameters, such as `/v2/models/{name}`; a fallback's ends with `/**`.
    pub path: String,
    /// What the route asks of its caller.
    pub access: Access,
}

/// Routes, each with its access. It is the only thing that [`Guard::protect`](crate::Guard::protect) makes a served router of, and there is
/// no way to add a handler without saying who may reach it.
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
    /// No routes.
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

    /// GET, and HEAD with it.
    #[must_use]
    pub fn get<H: Handler<T, S>, T: 'static>(self, path: &str, access: Access, handler: H) -> Self {
        self.add(Some(Method::GET), path, access, axum::routing::on(MethodFilter::GET, handler))
    }

    /// POST.
    #[must_use]
    pub fn post<H: Handler<T, S>, T: 'static>(self, path: &str, access: Access, handler: H) -> Self {
        self.add(Some(Method::POST), path, access, axum::routing::on(MethodFilter::POST, handler))
    }

    /// PUT.
    #[must_use]
    pub fn put<H: Handler<T, S>, T: 'static>(self, path: &str, access: Access, handler: H) -> Self {
        self.add(Some(Method::PUT), path, access, axum::routing::on(MethodFilter::PUT, handler))
    }

    /// PATCH.
    #[must_use]
    pub fn patch<H: Handler<T, S>, T: 'static>(self, path: &str, access: Access, handler: H) -> Self {
        self.add(Some(Method::PATCH), path, access, axum::routing::on(MethodFilter::PATCH, handler))
    }

    /// DELETE.
    #[must_use]
    pub fn delete<H: Handler<T, S>, T: 'static>(self, path: &str, access: Access, handler: H) -> Self {
        self.add(Some(Method::DELETE), path, access, axum::routing::on(MethodFilter::DELETE, handler))
    }

    /// A service that answers POST, such as one method of gRPC.
    #[must_use]
    pub fn post_service<T>(self, path: &str, access: Access, service: T) -> Self
    where
        T: Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
        T::Response: IntoResponse + 'static,
        T::Future: Send + 'static,
    {
        self.add(Some(Method::POST), path, access, axum::routing::on_service(MethodFilter::POST, service))
    }

    /// What answers paths that no route has.
    #[must_use]
    pub fn fallback<H: Handler<T, S>, T: 'static>(mut self, access: Access, handler: H) -> Self {
        let handler: MethodRouter<S, Infallible> = axum::routing::any(handler);
        let guarded = handler.layer(axum::middleware::from_fn(move |request, next| enforce(access, request, next)));
        self.router = self.router.fallback(guarded);
        self.table.push(RouteInfo { method: None, path: "/**".into(), access });
        self
    }

    /// These routes and the others.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.table.extend(other.table);
        self
    }

    /// The others below a path.
    #[must_use]
    pub fn nest(mut self, prefix: &str, other: Self) -> Self {
        self.router = self.router.nest(prefix, other.router);
        self.table.extend(other.table.into_iter().map(|r| RouteInfo { path: format!("{prefix}{}", r.path), ..r }));
        self
    }

    /// A layer around every route that is there.
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

    /// The routes with their state.
    pub fn with_state(self, state: S) -> Routes {
        Routes { router: self.router.with_state(state), table: self.table }
    }

    /// Every route with its access, in the order in which they were added.
    pub fn table(&self) -> &[RouteInfo] {
        &self.table
    }
}

impl Routes {
    /// The router behind the guard. Without one in front of it, all but public routes answer 500.
    pub(crate) fn into_unguarded_router(self) -> Router {
        self.router
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, Caller, Decision, Guard, HostNames, Permission, Policy, Resource, Unavailable, Verb};
    use axum::body::Body;
    use axum::extract::Extension;
    use axum::http::StatusCode;
    use futures_util::future::BoxFuture;
    use std::sync::Arc;
    use tower::ServiceExt;

    /// Knows the token "reader", which may get experiments.
    struct OneReader;

    impl Policy for OneReader {
        fn authenticate<'a>(&'a self, token: Option<&'a str>) -> BoxFuture<'a, Result<Option<Caller>, Unavailable>> {
            let known = token.filter(|t| *t == "reader").map(|_| Caller::Administrator);
            Box::pin(std::future::ready(Ok(known)))
        }
        fn allows<'a>(&'a self, _: &'a Caller, wanted: &'a Permission) -> BoxFuture<'a, Result<bool, Unavailable>> {
            Box::pin(std::future::ready(Ok(wanted.verb == Verb::Get && wanted.resource == Resource::Experiments)))
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
    async fn each_route_asks_for_its_own_access() {
        let router = Guard::new(Arc::new(OneReader), "ns", HostNames::default()).protect(routes());
        for (method, path, nobody, reader) in [
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
            assert_eq!(status(&router, method, path, None).await, nobody, "{method} {path}");
            assert_eq!(status(&router, method, path, Some("reader")).await, reader, "{method} {path}");
        }
    }

    #[tokio::test]
    async fn without_a_guard_or_a_decision_answers_are_withheld() {
        let unguarded = routes().into_unguarded_router();
        assert_eq!(status(&unguarded, "GET", "/open", None).await, 200);
        assert_eq!(status(&unguarded, "GET", "/thing", Some("reader")).await, 500);
        let guarded = Guard::new(Arc::new(OneReader), "ns", HostNames::default()).protect(routes());
        for forgets in ["/forgets", "/redirects", "/unchanged"] {
            assert_eq!(status(&guarded, "POST", forgets, Some("reader")).await, 500, "{forgets}");
        }
        assert_eq!(status(&guarded, "POST", "/malformed", Some("reader")).await, 400);
    }

    #[test]
    fn the_table_names_every_route() {
        let all: Vec<_> = routes().table().iter().map(|r| format!("{} {}", r.path, r.access)).collect();
        assert!(all.contains(&"/below/{id} get models +runs".to_owned()), "{all:?}");
        assert_eq!(all.len(), 10);
    }
}
