//! Tests that send requests through the real routes and the real guard, without sockets.

mod access;
mod attacks;
mod cors;
mod data;
mod fuzz;
mod health;
mod json_schema;
mod metrics;
mod openapi;
mod repositories;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use slipway_access::{Guard, HostNames, Permission, Person, RouteInfo, Verb};
use slipway_core::home::Home;
use slipway_exec::TokenRequest;
use slipway_serve::runtime::Preference;
use slipway_track::service::NewRun;
use tower::ServiceExt;

use crate::addresses::Addresses;
use crate::auth::{Authority, Callers, RunTokens, Tokens};
use crate::run::routes;
use crate::{Platform, Stores};

const OWNER: &str = "owner-0123456789abcdef";
const ADMINISTRATOR: &str = "administrator-0123456789";
/// Id of the tracked run that the run token belongs to.
const RUN_ID: &str = "0123456789abcdef0123456789abcdef";

/// A cluster with three users: `reader` and `writer` have the roles of the chart; `inferrer` may only run inference.
struct Roles;

impl Authority for Roles {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Person>, String>> {
        let known = ["reader", "inferrer", "writer"].contains(&token);
        let person = known.then(|| Person { name: token.to_owned(), ..Person::default() });
        Box::pin(std::future::ready(Ok(person)))
    }

    fn is_allowed<'a>(&'a self, person: &'a Person, permission: &'a Permission) -> BoxFuture<'a, Result<bool, String>> {
        let resource = permission.resource.name();
        let view = matches!(permission.verb, Verb::Get | Verb::List)
            && ["runs", "runs/log", "experiments", "models", "deployments", "data", "nodes"].contains(&resource);
        let infer = permission.verb == Verb::Create && resource == "inferences";
        let edit = ["runs", "experiments", "models", "deployments", "data"].contains(&resource) || infer || view;
        let allowed = match person.name.as_str() {
            "reader" => view,
            "inferrer" => infer,
            _ => edit,
        };
        Box::pin(std::future::ready(Ok(allowed)))
    }
}

/// A platform on an empty state folder, behind the guard, without sockets.
struct TestServer {
    home: Home,
    platform: Platform,
    /// Control plane, inference over REST, inference over gRPC.
    routers: [Router; 3],
    tables: [Vec<RouteInfo>; 3],
    run_token: String,
}

/// A received response.
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl TestServer {
    async fn open() -> Self {
        Self::open_with(slipway_store::Limits::default()).await
    }

    async fn open_with(uploads: slipway_store::Limits) -> Self {
        let home = Home::at(std::env::temp_dir().join(slipway_core::ids::hex32()));
        let platform = Platform::open(&home, &Stores { uploads, ..Stores::default() }, Preference::Builtin, None, None)
            .await
            .unwrap();
        let runs = RunTokens::new([7; 32]).isolated(true);
        let request = TokenRequest {
            namespace: "team-a".into(),
            run_id: RUN_ID.into(),
            run: "train".into(),
            experiment: None,
            attempt: 1,
            expires_at: i64::MAX,
        };
        let run_token = runs.mint(&request);
        let callers = Callers {
            owner: Some(Tokens::single(OWNER)),
            administrators: Some(Tokens::single(ADMINISTRATOR)),
            runs: Some(runs),
            authority: Some(Arc::new(Roles)),
            anonymous: false,
        };
        let run = NewRun { run_id: Some(RUN_ID.into()), experiment_id: "0".into(), ..NewRun::default() };
        platform.tracking.create_run(run).await.unwrap();
        let guard = Guard::new(Arc::new(callers), "slipway-system", HostNames::default());
        let loopback = ([127, 0, 0, 1], 1).into();
        let addresses = Addresses {
            pid: 1,
            control: loopback,
            inference: loopback,
            grpc: loopback,
            tls: false,
            fingerprint: None,
            version: String::new(),
            started: 0,
        };
        let all = routes(&platform, &addresses, false);
        let tables = all.each_ref().map(|r| r.table().to_vec());
        let routers = all.map(|r| guard.protect(r));
        Self { home, platform, routers, tables, run_token }
    }

    /// The token of a role; `None` for the role `no-token`. Tokens of cluster users equal their names.
    fn token<'a>(&'a self, role: &'a str) -> Option<&'a str> {
        match role {
            "no-token" => None,
            "runner" => Some(&self.run_token),
            "owner" => Some(OWNER),
            "administrator" => Some(ADMINISTRATOR),
            other => Some(other),
        }
    }

    async fn send(&self, port: usize, request: Request<Body>) -> Reply {
        let response = self.routers[port].clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    /// A request with the token of a role. `port` is an index into `routers`; the content type is JSON, or gRPC on the gRPC port.
    fn request(&self, port: usize, role: &str, method: &Method, path: &str, body: &str) -> Option<Request<Body>> {
        let content_type = if port == 2 { "application/grpc" } else { "application/json" };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost:7070")
            .header("content-type", content_type);
        if let Some(token) = self.token(role) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.body(Body::from(body.to_owned())).ok()
    }

    /// Sends a request to the control plane.
    async fn send_as(&self, role: &str, method: &str, path: &str, body: &str) -> Reply {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.request(0, role, &method, path, body).unwrap();
        self.send(0, request).await
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.home.root()); // A folder left behind in /tmp must not fail a test.
    }
}
