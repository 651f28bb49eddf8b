use slipway_access::{Caller, HostNames, Permission, Policy, Resource, Unavailable, Verb};

use super::*;

/// Each token is a namespace, whose runs its owner may see and change; `reader` may only read those of `a`.
#[derive(Debug)]
struct Owners;

impl Policy for Owners {
    fn authenticate<'a>(&'a self, token: Option<&'a str>) -> BoxFuture<'a, Result<Option<Caller>, Unavailable>> {
        let person = |name: &str| Caller::Person(slipway_access::Person { name: name.into(), ..Default::default() });
        std::future::ready(Ok(token.map(person))).boxed()
    }

    fn allows<'a>(
        &'a self,
        caller: &'a Caller,
        permission: &'a Permission,
    ) -> BoxFuture<'a, Result<bool, Unavailable>> {
        let namespace = permission.namespace.as_deref();
        let allowed = match caller.name() {
            Some("reader") => {
                namespace == Some("a")
                    && matches!(permission.verb, Verb::Get | Verb::List)
                    && permission.resource == Resource::Runs
            }
            name => name == namespace,
        };
        std::future::ready(Ok(allowed)).boxed()
    }
}

struct Tenants(Api, Router);

impl Tenants {
    async fn send(&self, token: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(format!("/apis/v2beta1/{path}"))
            .header("host", "localhost")
            .header("authorization", format!("Bearer {token}"))
            .body(Body::from(if body.is_null() { String::new() } else { body.to_string() }));
        let response = self.1.clone().oneshot(request.unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }
}

async fn tenants() -> Tenants {
    let api = Api::with(Options { multi_user: true, namespace: "system".into(), ..Options::default() }).await;
    let guard = Guard::new(Arc::new(Owners), "system", HostNames::default());
    let router = guard.protect(super::super::routes(api.service.clone()));
    Tenants(api, router)
}

#[tokio::test]
async fn tenants_neither_see_nor_change_each_other() {
    let t = tenants().await;
    let (status, experiment) = t.send("a", "POST", "experiments", json!({"display_name": "e", "namespace": "a"})).await;
    assert_eq!((status, &experiment["namespace"]), (200, &json!("a")));
    assert_eq!(t.send("b", "POST", "experiments", json!({"display_name": "e", "namespace": "a"})).await.0, 403);
    let experiment_id = text(&experiment, "experiment_id");
    let run = json!({"experiment_id": experiment_id, "display_name": "r", "pipeline_spec": pipeline_spec(),
        "runtime_config": {"parameters": {"text": ""}}});
    assert_eq!(t.send("b", "POST", "runs", run.clone()).await.0, 404);
    let (status, created) = t.send("a", "POST", "runs", run.clone()).await;
    assert_eq!(status, 200, "{created}");
    let id = text(&created, "run_id");
    let mut recurring = run;
    recurring["max_concurrency"] = json!(1);
    let (_, recurring) = t.send("a", "POST", "recurringruns", recurring).await;
    let recurring = text(&recurring, "recurring_run_id");
    let (_, pipeline) = t.send("a", "POST", "pipelines", json!({"name": "p", "namespace": "a"})).await;
    let pipeline = text(&pipeline, "pipeline_id");

    let requests = [
        ("GET", format!("runs/{id}"), true),
        ("GET", format!("runs?experiment_id={experiment_id}"), true),
        ("GET", "runs?namespace=a".into(), true),
        ("GET", "experiments?namespace=a".into(), true),
        ("GET", format!("experiments/{experiment_id}"), true),
        ("GET", "pipelines?namespace=a".into(), true),
        ("GET", "pipelines/names/p?namespace=a".into(), true),
        ("GET", format!("pipelines/{pipeline}"), true),
        ("GET", format!("pipelines/{pipeline}/versions"), true),
        ("GET", format!("recurringruns/{recurring}"), true),
        ("GET", "recurringruns?namespace=a".into(), true),
        ("PATCH", format!("pipelines/{pipeline}"), false),
        ("POST", format!("recurringruns/{recurring}:disable"), false),
        ("POST", format!("runs/{id}:archive"), false),
        ("POST", format!("runs/{id}:terminate"), false),
        ("POST", format!("experiments/{experiment_id}:archive"), false),
        ("DELETE", format!("recurringruns/{recurring}"), false),
        ("DELETE", format!("pipelines/{pipeline}"), false),
        ("DELETE", format!("runs/{id}"), false),
        ("DELETE", format!("experiments/{experiment_id}"), false),
    ];
    for (method, path, reads) in requests {
        // What another tenant's id names does not exist for this one.
        let hidden = if path.contains("namespace=") { 403 } else { 404 };
        let (status, refused) = t.send("b", method, &path, Value::Null).await;
        assert_eq!(status, hidden, "b {method} {path}");
        if hidden == 404 {
            let ids = [id, experiment_id, recurring, pipeline];
            let unknown = ids.iter().fold(path.clone(), |path, id| path.replace(*id, "no-such-id"));
            let (status, missing) = t.send("b", method, &unknown, Value::Null).await;
            let refused = ids.iter().fold(refused.to_string(), |text, id| text.replace(*id, "no-such-id"));
            assert_eq!((status, missing.to_string()), (404, refused), "{method} {path}");
        }
        assert_eq!(
            t.send("reader", method, &path, Value::Null).await.0,
            if reads { 200 } else { 403 },
            "reader {method} {path}"
        );
        assert_eq!(t.send("a", method, &path, Value::Null).await.0, 200, "a {method} {path}");
    }
}

#[tokio::test]
async fn logs_need_their_own_permission_and_pipelines_of_others_cannot_be_run() {
    let t = tenants().await;
    let (status, pipeline) = t.0.upload("upload?name=p&namespace=a", "p.yaml", PIPELINE.as_bytes()).await;
    assert_eq!(status, StatusCode::OK, "{pipeline}");
    let (_, shared) = t.0.upload("upload?name=p&namespace=system", "p.yaml", PIPELINE.as_bytes()).await;
    let run = |id: &Value, experiment: &Value| {
        json!({"experiment_id": experiment, "display_name": "r", "pipeline_version_reference": {"pipeline_id": id},
            "runtime_config": {"parameters": {"text": ""}}})
    };
    let (_, experiment) = t.send("b", "POST", "experiments", json!({"display_name": "e", "namespace": "b"})).await;
    let experiment = &experiment["experiment_id"];
    assert_eq!(t.send("b", "POST", "runs", run(&pipeline["pipeline_id"], experiment)).await.0, 404);
    let (status, created) = t.send("b", "POST", "runs", run(&shared["pipeline_id"], experiment)).await;
    assert_eq!(status, 200, "{created}");

    let (_, experiment) = t.send("a", "POST", "experiments", json!({"display_name": "e", "namespace": "a"})).await;
    let (_, created) = t.send("a", "POST", "runs", run(&pipeline["pipeline_id"], &experiment["experiment_id"])).await;
    let log = format!("runs/{}/nodes/say/log", text(&created, "run_id"));
    assert_eq!(t.send("reader", "GET", &log, Value::Null).await.0, 403);
    assert_eq!(t.send("a", "GET", &log, Value::Null).await.0, 404, "there is no task yet");
}

#[tokio::test]
async fn nothing_is_written_and_no_namespace_is_named_before_the_caller_is_authorized() {
    let t = tenants().await;
    let run = json!({"display_name": "r", "pipeline_spec": pipeline_spec(), "max_concurrency": 1,
        "runtime_config": {"parameters": {"text": ""}}});
    let mut recurring = run.clone();
    recurring["namespace"] = json!("a");
    assert_eq!(t.send("b", "POST", "recurringruns", recurring).await.0, 403);
    assert_eq!(t.send("a", "GET", "experiments?namespace=a", Value::Null).await, (200, json!({})));

    let (_, experiment) = t.send("a", "POST", "experiments", json!({"display_name": "e", "namespace": "a"})).await;
    let id = text(&experiment, "experiment_id");
    let mut recurring = run;
    recurring["namespace"] = json!("b");
    recurring["experiment_id"] = json!(id);
    for (method, path, body) in [
        ("POST", "recurringruns".to_owned(), recurring),
        ("GET", format!("recurringruns?namespace=b&experiment_id={id}"), Value::Null),
        ("GET", format!("runs?namespace=b&experiment_id={id}"), Value::Null),
    ] {
        let (status, body) = t.send("b", method, &path, body).await;
        assert_eq!(status, 404, "{method} {path}: {body}");
        assert!(!body.to_string().contains("'a'"), "{body}");
    }
}

#[tokio::test]
async fn versions_of_others_do_not_exist_below_ones_own_pipeline() {
    let t = tenants().await;
    let (_, foreign) = t.0.upload("upload?name=p&namespace=a", "p.yaml", PIPELINE.as_bytes()).await;
    let foreign = text(&foreign, "pipeline_id");
    let (_, versions) = t.send("a", "GET", &format!("pipelines/{foreign}/versions"), Value::Null).await;
    let version = text(&versions["pipeline_versions"][0], "pipeline_version_id");
    let (_, own) = t.send("b", "POST", "pipelines", json!({"name": "p", "namespace": "b"})).await;
    let own = text(&own, "pipeline_id");
    for method in ["GET", "PATCH", "DELETE"] {
        let (status, body) = t.send("b", method, &format!("pipelines/{own}/versions/{version}"), Value::Null).await;
        assert_eq!(status, 404, "{method}");
        assert!(!body.to_string().contains(foreign), "{body}");
    }
    let (_, experiment) = t.send("b", "POST", "experiments", json!({"display_name": "e", "namespace": "b"})).await;
    let run = json!({"experiment_id": experiment["experiment_id"], "display_name": "r", "pipeline_version_reference":
        {"pipeline_id": own, "pipeline_version_id": version}, "runtime_config": {"parameters": {"text": ""}}});
    let (status, body) = t.send("b", "POST", "runs", run).await;
    assert_eq!(status, 404);
    assert!(!body.to_string().contains(foreign), "{body}");
}
