use super::*;
use crate::model::TaskState;
use crate::repo::tasks::NewTask;

#[tokio::test]
async fn healthz_is_public_below_all_prefixes() {
    let api = Api::new().await;
    for path in ["/apis/v2beta1/healthz", "/apis/v1beta1/healthz", "/pipeline/apis/v2beta1/healthz"] {
        assert_eq!(api.get(path).await, json!({"multi_user": false, "pipeline_store": "database"}));
    }
    assert_eq!(api.send("GET", "/apis/v2beta1/nothing", "", "").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_pipeline_has_its_whole_life() {
    let api = Api::new().await;
    let (status, uploaded) =
        api.upload("upload?name=x+y&description=d%2F%C3%BC", "hello.yaml", PIPELINE.as_bytes()).await;
    assert_eq!(status, StatusCode::OK, "{uploaded}");
    let id = text(&uploaded, "pipeline_id").to_owned();
    assert_eq!(
        (&uploaded["name"], &uploaded["display_name"], &uploaded["description"]),
        (&json!("x y"), &json!("x y"), &json!("d/ü"))
    );
    assert!(uploaded.get("namespace").is_none() && uploaded.get("tags").is_none());
    assert_eq!(api.get(&format!("pipelines/{id}")).await, uploaded);
    assert_eq!(api.get("pipelines/names/x%20y").await, uploaded);

    let versions = api.get(&format!("pipelines/{id}/versions")).await;
    assert_eq!(versions["total_size"], 1);
    let first = &versions["pipeline_versions"][0];
    assert_eq!((&first["name"], &first["pipeline_spec"]), (&json!("x y"), &pipeline_spec()));

    let (status, second) = api
        .upload(
            &format!("upload_version?name=v2&pipelineid={id}&tags=%7B%22a%22%3A%22b%22%7D"),
            "p.json",
            pipeline_spec().to_string().as_bytes(),
        )
        .await;
    assert_eq!(status, StatusCode::OK, "{second}");
    assert_eq!(second["tags"], json!({"a": "b"}));
    let path = format!("pipelines/{id}/versions/{}", text(&second, "pipeline_version_id"));
    assert_eq!(api.get(&path).await, second);
    let renamed = api.ok("PATCH", &path, json!({"displayName": "other", "tags": {}})).await;
    assert_eq!((renamed["display_name"].as_str(), renamed.get("tags")), (Some("other"), None));
    let renamed = api.ok("PATCH", &format!("pipelines/{id}"), json!({"display_name": "z", "tags": {"k": "v"}})).await;
    assert_eq!(
        (&renamed["display_name"], &renamed["name"], &renamed["tags"]),
        (&json!("z"), &json!("x y"), &json!({"k": "v"}))
    );

    let (status, code, reason) = api.refused("DELETE", &format!("pipelines/{id}"), Value::Null).await;
    assert_eq!((status, code), (400, 3));
    assert!(reason.contains("Set cascade=true to delete all versions"), "{reason}");
    api.delete(&path).await;
    assert_eq!(api.refused("GET", &path, Value::Null).await.1, 5);
    api.delete(&format!("pipelines/{id}?cascade=true")).await;
    assert_eq!(api.get("pipelines").await, json!({}));
    let specs: i64 = api
        .service
        .db
        .read_now(|c| c.first("SELECT COUNT(*) FROM pipeline_specs", [0_i64; 0], |row| row.get(0)))
        .unwrap()
        .unwrap();
    assert_eq!(specs, 0, "unused specifications are deleted");
}

#[tokio::test]
async fn faulty_uploads_are_refused_in_the_form_of_their_route() {
    let api = Api::new().await;
    let faults = [
        ("upload?name=a", "a.txt", "text", 400, "Unexpected pipeline file format"),
        ("upload?name=a", "a.yaml", "a: [", 400, "line"),
        ("upload?name=a&tags=x", "a.yaml", PIPELINE, 400, "Failed to parse tags"),
        ("upload_version?name=a", "a.yaml", PIPELINE, 404, "not found"),
        ("upload_version?name=a&pipelineid=no", "a.yaml", PIPELINE, 404, "Pipeline no not found"),
    ];
    for (query, name, content, expected, reason) in faults {
        let (status, body) = api.upload(query, name, content.as_bytes()).await;
        assert_eq!(status, expected, "{body}");
        assert!(text(&body, "error_message").contains(reason), "{body}");
    }
    let long = format!("upload?name={}", "x".repeat(129));
    assert_eq!(api.upload(&long, "a.yaml", PIPELINE.as_bytes()).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(api.upload("upload?name=a", "a.yaml", PIPELINE.as_bytes()).await.0, StatusCode::OK);
    assert_eq!(api.upload("upload?name=a", "a.yaml", PIPELINE.as_bytes()).await.0, StatusCode::CONFLICT);
    assert_eq!(api.send("POST", "pipelines/upload", "text/plain", "x").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_pipeline_is_created_without_versions_or_from_a_url() {
    let api = Api::new().await;
    let created = api.post("pipelines", json!({"displayName": "d", "namespace": "ignored", "tags": {"a": "b"}})).await;
    assert_eq!(
        (&created["name"], &created["display_name"], &created["tags"]),
        (&json!("d"), &json!("d"), &json!({"a": "b"}))
    );
    for (body, code) in [
        (json!({}), 3),
        (json!({"name": "d"}), 6),
        (json!({"name": "x", "unknown": 1}), 3),
        (json!({"name": "x", "tags": {"a.b": "c"}}), 3),
        (json!({"name": "x".repeat(129)}), 3),
    ] {
        assert_eq!(api.refused("POST", "pipelines", body.clone()).await.1, code, "{body}");
    }

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let files = Router::new().route("/p.yaml", axum::routing::get(async || PIPELINE));
    let server = tokio::spawn(async move { axum::serve(listener, files).await });
    let url = format!("{base}/p.yaml");
    let body = json!({"pipeline": {"description": "x"}, "pipeline_version": {"package_url": {"pipeline_url": url}}});
    let created = api.post("pipelines/create", body).await;
    assert_eq!(created["name"], "p.yaml");
    let id = text(&created, "pipeline_id");
    let version =
        api.post(&format!("pipelines/{id}/versions"), json!({"name": "two", "packageUrl": {"pipelineUrl": url}})).await;
    assert_eq!((&version["package_url"]["pipeline_url"], &version["pipeline_spec"]), (&json!(url), &pipeline_spec()));
    let missing = json!({"name": "three", "package_url": {"pipeline_url": format!("{base}/no.yaml")}});
    let (status, _, reason) = api.refused("POST", &format!("pipelines/{id}/versions"), missing).await;
    assert!(status == 400 && reason.contains("request returned 404"), "{reason}");
    assert_eq!(api.refused("POST", &format!("pipelines/{id}/versions"), json!({"name": "three"})).await.1, 3);
    server.abort();
}

#[tokio::test]
async fn an_experiment_has_its_whole_life() {
    let api = Api::new().await;
    let list = api.get("experiments").await;
    assert_eq!((&list["total_size"], &list["experiments"][0]["display_name"]), (&json!(1), &json!("Default")));
    let created = api.post("experiments", json!({"display_name": "e", "description": "d", "namespace": ""})).await;
    let id = text(&created, "experiment_id").to_owned();
    assert_eq!(
        (&created["storage_state"], &created["last_run_created_at"]),
        (&json!("AVAILABLE"), &json!("1970-01-01T00:00:00Z"))
    );
    assert_eq!(api.get(&format!("experiments/{id}")).await, created);
    assert_eq!(
        api.refused("POST", "experiments", json!({"display_name": "e"})).await,
        (409, 6, "Failed to create a new experiment. The name e already exists. Please specify a new name".into())
    );
    assert_eq!(api.refused("POST", "experiments", json!({})).await.1, 3);

    let body = json!({"experiment_id": id, "display_name": "r", "pipeline_spec": pipeline_spec(), "runtime_config": {"parameters": {"text": "a"}}});
    let run = text(&api.post("runs", body).await, "run_id").to_owned();
    assert_ne!(api.get(&format!("experiments/{id}")).await["last_run_created_at"], created["last_run_created_at"]);
    assert_eq!(api.post(&format!("experiments/{id}:archive"), Value::Null).await, json!({}));
    assert_eq!(api.get(&format!("experiments/{id}")).await["storage_state"], "ARCHIVED");
    assert_eq!(api.get(&format!("runs/{run}")).await["storage_state"], "ARCHIVED");
    let (status, code, reason) = api.refused("POST", &format!("runs/{run}:unarchive"), Value::Null).await;
    assert_eq!((status, code), (400, 9), "{reason}");
    api.post(&format!("experiments/{id}:unarchive"), Value::Null).await;
    assert_eq!(api.get(&format!("runs/{run}")).await["storage_state"], "ARCHIVED");
    api.post(&format!("runs/{run}:unarchive"), Value::Null).await;
    assert_eq!(api.get(&format!("runs/{run}")).await["storage_state"], "AVAILABLE");

    api.delete(&format!("experiments/{id}")).await;
    assert_eq!(
        api.refused("GET", &format!("experiments/{id}"), Value::Null).await,
        (404, 5, format!("Experiment {id} not found"))
    );
    assert_eq!(api.get(&format!("runs/{run}")).await["experiment_id"], json!(id));
    let default = text(&list["experiments"][0], "experiment_id");
    assert_eq!(api.refused("DELETE", &format!("experiments/{default}"), Value::Null).await.0, 409);
    assert_eq!(api.refused("POST", &format!("experiments/{default}:explode"), Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_run_has_its_whole_life() {
    let api = Api::new().await;
    let run = api.run("r").await;
    let id = text(&run, "run_id").to_owned();
    assert_eq!(api.recorded(), [format!("start {id}")]);
    assert_eq!(
        (&run["state"], &run["storage_state"], &run["pipeline_spec"]),
        (&json!("PENDING"), &json!("AVAILABLE"), &pipeline_spec())
    );
    assert_eq!(run["runtime_config"], json!({"parameters": {"text": "hi"}}));
    assert_eq!(run["finished_at"], "1970-01-01T00:00:00Z");
    assert_eq!(run["state_history"][0]["state"], "PENDING");
    assert_eq!(api.get(&format!("runs/{id}")).await, run);

    assert_eq!(api.refused("POST", &format!("runs/{id}:retry"), Value::Null).await.0, 409);
    assert_eq!(api.post(&format!("runs/{id}:terminate"), Value::Null).await, json!({}));
    assert_eq!(api.get(&format!("runs/{id}")).await["state"], "CANCELING");
    assert_eq!(
        api.refused("POST", &format!("runs/{id}:terminate"), Value::Null).await,
        (400, 3, format!("Failed to terminate a run {id}. Row not found"))
    );
    api.set_state(&id, RunState::Canceled).await;
    let canceled = api.get(&format!("runs/{id}")).await;
    assert_eq!(canceled["finished_at"], "1970-01-01T00:00:05Z");
    let states: Vec<_> = canceled["state_history"].as_array().unwrap().iter().map(|change| &change["state"]).collect();
    assert_eq!(states, ["PENDING", "CANCELING", "CANCELED"]);
    api.post(&format!("runs/{id}:retry"), Value::Null).await;
    assert_eq!(api.refused("POST", &format!("runs/{id}:retry"), Value::Null).await.1, 10, "one of two retries wins");
    assert_eq!(api.get(&format!("runs/{id}")).await["finished_at"], "1970-01-01T00:00:00Z");
    api.post(&format!("runs/{id}:archive"), Value::Null).await;
    api.delete(&format!("runs/{id}")).await;
    assert_eq!(api.recorded(), [format!("cancel {id}"), format!("retry {id}"), format!("forget default {id}")]);
    for (method, action) in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", ":archive"),
        ("POST", ":unarchive"),
        ("POST", ":terminate"),
        ("POST", ":retry"),
    ] {
        let (status, code, reason) = api.refused(method, &format!("runs/{id}{action}"), Value::Null).await;
        assert_eq!((status, code, reason), (404, 5, format!("Run {id} not found")), "{method} {action}");
    }
}

#[tokio::test]
async fn faulty_runs_are_refused() {
    let api = Api::new().await;
    let with = |parameters: Value| json!({"display_name": "r", "pipeline_spec": pipeline_spec(), "runtime_config": {"parameters": parameters}});
    for (body, reason) in [
        (json!({"pipeline_spec": pipeline_spec()}), "The run name is empty. Please specify a valid name"),
        (json!({"display_name": "r"}), "empty pipeline spec manifest"),
        (json!({"display_name": "r", "pipeline_version_reference": {}}), "Pipeline spec source is missing"),
        (json!({"display_name": "r", "pipeline_spec": {}, "pipeline_version_id": "x"}), "oneof pipeline_source"),
        (json!({"display_name": "r", "pipeline_spec": {"root": 1}}), "root"),
        (json!({"display_name": "r", "x": 1}), "unknown field `x`"),
        (with(json!({})), "parameter text is not optional, yet has neither default value nor user provided value"),
        (
            with(json!({"text": 1})),
            "input parameter text requires type string, but the input parameter is not of string value type",
        ),
        (
            with(json!({"text": "", "n": "1"})),
            "input parameter n requires type double or integer, but the parameter value is not of number value type",
        ),
        (with(json!({"text": "", "b": 1, "a": 1})), "parameter(s) provided are not required by pipeline: a, b"),
    ] {
        let (status, code, text) = api.refused("POST", "runs", body.clone()).await;
        assert_eq!((status, code), (400, 3), "{body}: {text}");
        assert!(text.contains(reason), "{text}");
    }
    let absent =
        json!({"display_name": "r", "pipeline_version_reference": {"pipelineId": "p", "pipelineVersionId": "v"}});
    assert_eq!(api.refused("POST", "runs", absent).await.0, 404);
    assert_eq!(
        api.refused("POST", "runs", json!({"display_name": "r", "experiment_id": "e"})).await.2,
        "Experiment e not found"
    );
    assert_eq!(api.recorded(), Vec::<String>::new());
}

#[tokio::test]
async fn a_run_takes_a_version_or_the_newest_one() {
    let api = Api::new().await;
    let (_, pipeline) = api.upload("upload?name=p", "p.yaml", PIPELINE.as_bytes()).await;
    let id = text(&pipeline, "pipeline_id");
    let first =
        api.get(&format!("pipelines/{id}/versions")).await["pipeline_versions"][0]["pipeline_version_id"].clone();
    let (_, second) =
        api.upload(&format!("upload_version?name=v2&pipelineid={id}"), "p.yaml", PIPELINE.as_bytes()).await;
    for (reference, expected) in [
        (json!({"pipeline_id": id, "pipeline_version_id": first}), &first),
        (json!({"pipeline_id": id}), &second["pipeline_version_id"]),
    ] {
        let body = json!({"display_name": "r", "pipeline_version_reference": reference, "runtime_config": {"parameters": {"text": "[[RunUUID]]"}}});
        let run = api.post("runs", body).await;
        assert_eq!(run["pipeline_version_reference"], json!({"pipeline_id": id, "pipeline_version_id": expected}));
        assert!(run.get("pipeline_spec").is_none());
        assert_eq!(run["runtime_config"]["parameters"]["text"], run["run_id"], "macros are replaced");
    }
    let wrong = json!({"display_name": "r", "pipeline_version_reference": {"pipeline_id": "other", "pipeline_version_id": first}});
    assert!(api.refused("POST", "runs", wrong).await.2.contains("(not other)"));
}

fn task(path: &str, state: TaskState, record: &Value) -> NewTask {
    NewTask::new(&TaskPath(path.into()), state, record)
}

#[tokio::test]
async fn tasks_logs_and_artifacts_of_a_run_are_shown() {
    let api = Api::new().await;
    let id = text(&api.run("r").await, "run_id").to_owned();
    let run = id.clone();
    let artifact = api
        .service
        .db
        .write(move |c| {
            let made = Artifact { schema_title: "system.Model".into(), uri: "file:///m".into(), ..Artifact::default() };
            let mut artifacts = [made.clone(), made];
            repo::artifacts::insert(c, &run, &TaskPath("say".into()), "model", &mut artifacts, 1)?;
            let outputs = json!({"artifacts": {"model": artifacts}});
            let rows = [
                task("", TaskState::Running, &json!({"taskName": "", "createdAt": 1000})),
                task("say", TaskState::Cached, &json!({"parent": "", "taskName": "say", "displayName": "say it", "createdAt": 1000,
                    "startedAt": 2000, "finishedAt": 3000, "outputs": outputs, "history": [[1000, "PENDING"], [3000, "CACHED"]],
                    "failure": {"message": "why"}})),
            ];
            repo::tasks::upsert(c, repo::runs::advance(c, &run, OWNER)?.0, &rows)?;
            Ok::<_, Error>(artifacts[0].id.clone())
        })
        .await
        .unwrap();
    let details = api.get(&format!("runs/{id}")).await["run_details"]["task_details"].clone();
    let (root, say) = (&details[0], &details[1]);
    assert_eq!(
        (&root["display_name"], &root["state"], &root["end_time"]),
        (&json!("root"), &json!("RUNNING"), &json!("1970-01-01T00:00:00Z"))
    );
    assert_eq!(root["child_tasks"], json!([{"task_id": say["task_id"]}]));
    assert_eq!(
        (&say["parent_task_id"], &say["display_name"], &say["state"]),
        (&root["task_id"], &json!("say it"), &json!("SKIPPED"))
    );
    assert_eq!(say["start_time"], "1970-01-01T00:00:02Z");
    assert_eq!(say["outputs"]["model"]["artifact_ids"][0], json!(artifact));
    assert_eq!(say["state_history"][1], json!({"update_time": "1970-01-01T00:00:03Z", "state": "SKIPPED"}));
    assert_eq!(say["error"]["message"], "why");
    assert!(say["execution_id"].is_string());

    // The view follows changes of tasks.
    let run = id.clone();
    let change = move |c: &slipway_store::sql::Connection| {
        let row = repo::runs::advance(c, &run, OWNER)?.0;
        repo::tasks::upsert(c, row, &[task("", TaskState::Succeeded, &json!({"createdAt": 1000}))])
    };
    api.service.db.write(change).await.unwrap();
    assert_eq!(api.get(&format!("runs/{id}")).await["run_details"]["task_details"][0]["state"], "SUCCEEDED");

    let node = text(say, "task_id");
    for path in [format!("runs/{id}/nodes/{node}/log"), format!("/apis/v1alpha1/runs/{id}/nodes/say/log")] {
        assert_eq!(api.get(&path).await, json!("say None false 36"));
    }
    assert_eq!(
        api.get(&format!("runs/{id}/nodes/{node}/log?follow=true&attempt=2")).await,
        json!("say Some(2) true 36")
    );
    for version in ["v2beta1", "v1beta1"] {
        let content = api.get(&format!("/apis/{version}/runs/{id}/nodes/{node}/artifacts/model:read")).await;
        assert_eq!(content, json!({"data": "YWJjZGVmZ2hpag=="}));
    }
    for path in
        [format!("{id}/nodes/no/log"), format!("{id}/nodes/{node}/artifacts/no:read"), "no/nodes/say/log".into()]
    {
        let (status, body) = api.send("GET", &format!("runs/{path}"), "", "").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
        assert!(text(&body, "error_message").contains("not found"));
    }
}
