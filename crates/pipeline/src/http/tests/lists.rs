use super::*;

fn names<'a>(list: &'a Value, objects: &str) -> Vec<&'a str> {
    let items = list[objects].as_array().map_or(&[][..], Vec::as_slice);
    items.iter().map(|item| text(item, "display_name")).collect()
}

fn encoded(filter: &Value) -> String {
    form_urlencoded::byte_serialize(filter.to_string().as_bytes()).collect()
}

#[tokio::test]
async fn every_list_is_read_in_pages() {
    let api = Api::new().await;
    let (_, pipeline) = api.upload("upload?name=p0", "p.yaml", PIPELINE.as_bytes()).await;
    let id = text(&pipeline, "pipeline_id");
    for n in 1..5 {
        api.post("experiments", json!({"display_name": format!("e{n}")})).await;
        api.post("pipelines", json!({"display_name": format!("p{n}")})).await;
        api.upload(&format!("upload_version?name=v{n}&pipelineid={id}"), "p.yaml", PIPELINE.as_bytes()).await;
        api.run(&format!("r{n}")).await;
    }
    api.run("r1").await;
    let versions = format!("pipelines/{id}/versions");
    for (path, objects, expected) in [
        ("experiments", "experiments", ["e4", "e3", "e2", "e1", "Default"]),
        ("pipelines", "pipelines", ["p4", "p3", "p2", "p1", "p0"]),
        ("runs", "runs", ["r4", "r3", "r2", "r1", "r1"]),
        (versions.as_str(), "pipeline_versions", ["v4", "v3", "v2", "v1", "p0"]),
    ] {
        for (order, reversed) in [("name%20desc", false), ("name", true)] {
            let (mut found, mut token) = (Vec::new(), String::new());
            loop {
                let page = api.get(&format!("{path}?page_size=2&sort_by={order}&page_token={token}")).await;
                assert_eq!(page["total_size"], 5);
                found.extend(names(&page, objects).into_iter().map(str::to_owned));
                let Some(next) = page["next_page_token"].as_str() else { break };
                token = form_urlencoded::byte_serialize(next.as_bytes()).collect();
            }
            let mut expected = expected.map(str::to_owned).to_vec();
            if reversed {
                expected.sort();
            } else {
                expected.sort_by(|a, b| b.cmp(a));
            }
            assert_eq!(found, expected, "{path}");
        }
        let (status, code, reason) = api.refused("GET", &format!("{path}?page_token=x"), Value::Null).await;
        assert_eq!((status, code, reason.as_str()), (400, 3, "Invalid page token"));
        assert_eq!(api.refused("GET", &format!("{path}?sort_by=x"), Value::Null).await.1, 3);
        assert_eq!(api.refused("GET", &format!("{path}?page_size=x"), Value::Null).await.1, 3);
        assert_eq!(api.refused("GET", &format!("{path}?page_size=-1"), Value::Null).await.1, 3);
    }
}

#[tokio::test]
async fn runs_are_filtered_by_every_operation() {
    let api = Api::new().await;
    for name in ["alpha", "beta", "100%"] {
        api.run(name).await;
    }
    let ids = api.get("runs").await;
    api.set_state(text(&ids["runs"][1], "run_id"), RunState::Failed).await;
    let future = "2100-01-01T00:00:00Z";
    for (predicates, expected) in [
        (json!([{"operation": 1, "key": "name", "stringValue": "alpha"}]), vec!["alpha"]),
        (json!([{"operation": "NOT_EQUALS", "key": "display_name", "string_value": "alpha"}]), vec!["beta", "100%"]),
        (
            json!([{"operation": "IN", "key": "state", "string_values": {"values": ["FAILED", "SUCCEEDED"]}}]),
            vec!["beta"],
        ),
        (json!([{"operation": "IN", "key": "state", "string_values": {"values": []}}]), vec![]),
        (json!([{"operation": "IS_SUBSTRING", "key": "name", "string_value": "A"}]), vec!["alpha", "beta"]),
        (json!([{"operation": "IS_SUBSTRING", "key": "name", "string_value": "%"}]), vec!["100%"]),
        (json!([{"operation": "GREATER_THAN", "key": "finished_at", "long_value": 4}]), vec!["beta"]),
        (json!([{"operation": "GREATER_THAN_EQUALS", "key": "finished_at", "long_value": "5"}]), vec!["beta"]),
        (json!([{"operation": "LESS_THAN", "key": "finished_at", "long_value": 5}]), vec!["alpha", "100%"]),
        (
            json!([{"operation": "EQUALS", "key": "finished_at", "timestamp_value": "1970-01-01T00:00:05Z"}]),
            vec!["beta"],
        ),
        (
            json!([{"operation": "LESS_THAN_EQUALS", "key": "created_at", "timestamp_value": future}]),
            vec!["alpha", "beta", "100%"],
        ),
        (json!([{"operation": 1, "key": "storage_state", "string_value": "ARCHIVED"}]), vec![]),
        (
            json!([{"operation": 1, "key": "state", "string_value": "PENDING"}, {"operation": 9, "key": "name", "string_value": "a"}]),
            vec!["alpha"],
        ),
    ] {
        let filter = encoded(&json!({"predicates": predicates}));
        let page = api.get(&format!("runs?filter={filter}")).await;
        assert_eq!(names(&page, "runs"), expected, "{predicates}");
        assert_eq!(page["total_size"].as_u64().unwrap_or(0), expected.len() as u64);
    }
    let unknown = encoded(&json!({"predicates": [{"operation": 1, "key": "x", "string_value": "y"}]}));
    let (status, _, reason) = api.refused("GET", &format!("runs?filter={unknown}"), Value::Null).await;
    assert_eq!((status, reason.as_str()), (400, "no support for filtering on unrecognized field \"x\""));
}

#[tokio::test]
async fn pipelines_are_filtered_by_tags_and_runs_by_experiment() {
    let api = Api::new().await;
    api.post("pipelines", json!({"name": "a", "tags": {"team": "x"}})).await;
    api.post("pipelines", json!({"name": "b", "tags": {"team": "y"}})).await;
    let filter = encoded(&json!({"predicates": [{"operation": 1, "key": "tags.team", "string_value": "y"}]}));
    assert_eq!(names(&api.get(&format!("pipelines?filter={filter}")).await, "pipelines"), ["b"]);
    api.run("r").await;
    let experiment = api.post("experiments", json!({"display_name": "e"})).await;
    let id = text(&experiment, "experiment_id");
    assert_eq!(api.get(&format!("runs?experiment_id={id}")).await, json!({}));
    assert_eq!(api.refused("GET", "runs?experiment_id=no", Value::Null).await.1, 5);
}
