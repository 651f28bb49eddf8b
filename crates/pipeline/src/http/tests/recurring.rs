use super::*;

fn body(trigger: Value) -> Value {
    json!({
        "display_name": "nightly", "pipeline_spec": pipeline_spec(), "max_concurrency": "2", "mode": "ENABLE", "trigger": trigger,
        "runtime_config": {"parameters": {"text": "[[Index]] [[ScheduledTime.2006]]"}},
    })
}

/// Runs of the API, oldest first.
async fn runs(api: &Api) -> Vec<Value> {
    api.get("runs?page_size=200&sort_by=scheduled_at").await["runs"].as_array().cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_recurring_run_has_its_whole_life() {
    let api = Api::new().await;
    let created = api
        .post(
            "recurringruns",
            body(json!({"cronSchedule": {"cron": "0 0 9 ? * 2-6", "startTime": "2026-01-01T00:00:00Z"}})),
        )
        .await;
    let id = text(&created, "recurring_run_id").to_owned();
    assert_eq!(
        (&created["status"], &created["mode"], &created["max_concurrency"]),
        (&json!("ENABLED"), &json!("ENABLE"), &json!("2"))
    );
    assert_eq!(
        created["trigger"],
        json!({"cron_schedule": {"cron": "0 0 9 ? * 2-6", "start_time": "2026-01-01T00:00:00Z"}})
    );
    assert_eq!(created["pipeline_spec"], pipeline_spec());
    assert!(created.get("no_catchup").is_none());
    assert_eq!(api.get(&format!("recurringruns/{id}")).await, created);
    let list = api.get("recurringruns").await;
    assert_eq!((&list["recurringRuns"][0], &list["total_size"]), (&created, &json!(1)));
    assert_eq!(api.post(&format!("recurringruns/{id}:disable"), Value::Null).await, json!({}));
    assert_eq!(api.get(&format!("recurringruns/{id}")).await["status"], "DISABLED");
    api.post(&format!("recurringruns/{id}:enable"), Value::Null).await;
    assert_eq!(api.get(&format!("recurringruns/{id}")).await["mode"], "ENABLE");
    api.delete(&format!("recurringruns/{id}")).await;
    for (method, action) in [("GET", ""), ("DELETE", ""), ("POST", ":enable"), ("POST", ":disable")] {
        let refused = api.refused(method, &format!("recurringruns/{id}{action}"), Value::Null).await;
        assert_eq!(refused, (404, 5, format!("Job {id} not found")));
    }
}

#[tokio::test]
async fn faulty_recurring_runs_are_refused() {
    let api = Api::new().await;
    let interval = json!({"periodic_schedule": {"interval_second": "60"}});
    let with = |name: &str, value: Value| {
        let mut body = body(interval.clone());
        body[name] = value;
        body
    };
    for (body, reason) in [
        (with("display_name", json!("")), "name cannot be empty"),
        (
            with("max_concurrency", json!(0)),
            "Max concurrency of a recurring run must be at least 1 and at most 10. Received 0",
        ),
        (with("max_concurrency", json!("11")), "Received 11"),
        (with("mode", json!("SOMETIMES")), "mode is invalid"),
        (with("runtime_config", json!({})), "parameter text is not optional"),
        (body(json!({"periodic_schedule": {"interval_second": "0"}})), "Found invalid period schedule interval 0"),
        (body(json!({"cron_schedule": {"cron": "61 * * * * *"}})), "Schedule cron is not a supported format"),
        (body(json!({"cron_schedule": {"cron": "* * * * * *"}, "periodic_schedule": {}})), "oneof trigger"),
    ] {
        let (status, code, text) = api.refused("POST", "recurringruns", body.clone()).await;
        assert_eq!((status, code), (400, 3), "{text}");
        assert!(text.contains(reason), "{text}");
    }
}

#[tokio::test]
async fn due_slots_start_runs_up_to_the_maximum_and_once() {
    let api = Api::new().await;
    let created = api
        .post(
            "recurringruns",
            body(json!({"periodic_schedule": {"interval_second": "60", "start_time": "2030-01-01T00:00:00Z"}})),
        )
        .await;
    let id = text(&created, "recurring_run_id");
    let start = 1_893_456_000_000;
    api.service.trigger_due(start + 59_000).await.unwrap();
    assert_eq!(runs(&api).await, Vec::<Value>::new());
    // Five slots have passed, and two runs may be unfinished.
    for _ in 0..2 {
        api.service.trigger_due(start + 300_000).await.unwrap();
        assert_eq!(runs(&api).await.len(), 2);
    }
    let first = &runs(&api).await[0];
    assert_eq!((&first["display_name"], &first["recurring_run_id"]), (&json!("nightly-1"), &json!(id)));
    assert_eq!(
        (&first["scheduled_at"], &first["runtime_config"]["parameters"]["text"]),
        (&json!("2030-01-01T00:01:00Z"), &json!("1 2030"))
    );
    assert_eq!(api.recorded().len(), 2);

    api.set_state(text(first, "run_id"), RunState::Succeeded).await;
    api.service.trigger_due(start + 300_000).await.unwrap();
    let all = runs(&api).await;
    assert_eq!(
        all.iter().map(|run| text(run, "scheduled_at")).collect::<Vec<_>>(),
        ["2030-01-01T00:01:00Z", "2030-01-01T00:02:00Z", "2030-01-01T00:03:00Z"]
    );

    // A disabled one starts nothing.
    api.post(&format!("recurringruns/{id}:disable"), Value::Null).await;
    for run in &all {
        let run_id = text(run, "run_id").to_owned();
        api.service.db.write(move |c| repo::runs::set_state(c, &run_id, &[], RunState::Failed, "x", 1)).await.unwrap();
    }
    api.service.trigger_due(start + 900_000).await.unwrap();
    assert_eq!(runs(&api).await.len(), 3);
}

#[tokio::test]
async fn only_the_newest_missed_slot_runs_without_catching_up() {
    let api = Api::new().await;
    let mut new = body(json!({"cron_schedule": {"cron": "0 * * * * *", "start_time": "2030-01-01T00:00:00Z"}}));
    new["no_catchup"] = json!(true);
    assert_eq!(api.post("recurringruns", new).await["no_catchup"], true);
    api.service.trigger_due(1_893_456_000_000 + 3_600_500).await.unwrap();
    let all = runs(&api).await;
    assert_eq!(all.iter().map(|run| text(run, "scheduled_at")).collect::<Vec<_>>(), ["2030-01-01T01:00:00Z"]);
}

#[tokio::test]
async fn two_servers_and_a_clock_that_was_set_back_give_one_run_per_slot() {
    let api = Api::new().await;
    let mut new = body(json!({"cron_schedule": {"cron": "0 * * * * *", "start_time": "2030-01-01T00:00:00Z"}}));
    new["max_concurrency"] = json!(10);
    api.post("recurringruns", new).await;
    let start = 1_893_456_000_000;
    let (a, b) = tokio::join!(api.service.trigger_due(start + 180_000), api.service.trigger_due(start + 180_000));
    a.and(b).unwrap();
    assert_eq!(runs(&api).await.len(), 3);
    // The clock goes back by three minutes, and comes forward again.
    for now in [start, start + 60_000, start + 180_000, start + 240_000] {
        api.service.trigger_due(now).await.unwrap();
    }
    let slots: Vec<_> = runs(&api).await.iter().map(|run| text(run, "scheduled_at").to_owned()).collect();
    assert_eq!(slots, ["2030-01-01T00:01:00Z", "2030-01-01T00:02:00Z", "2030-01-01T00:03:00Z", "2030-01-01T00:04:00Z"]);
    let started = api.recorded();
    assert_eq!(started.len(), 4, "{started:?}");
}

#[tokio::test]
async fn a_slot_without_a_run_records_why() {
    let api = Api::new().await;
    let (_, pipeline) = api.upload("upload?name=p", "p.yaml", PIPELINE.as_bytes()).await;
    let id = text(&pipeline, "pipeline_id");
    let mut new = body(json!({"periodic_schedule": {"interval_second": 60, "start_time": "2030-01-01T00:00:00Z"}}));
    new.as_object_mut().unwrap().remove("pipeline_spec");
    new["pipeline_version_reference"] = json!({"pipeline_id": id});
    let created = api.post("recurringruns", new).await;
    assert_eq!(created["pipeline_version_reference"], json!({"pipeline_id": id}));
    let recurring = text(&created, "recurring_run_id");
    let start = 1_893_456_000_000;
    api.service.trigger_due(start + 60_000).await.unwrap();
    assert_eq!(runs(&api).await[0]["pipeline_version_reference"]["pipeline_id"], json!(id));
    api.delete(&format!("pipelines/{id}?cascade=true")).await;
    api.service.trigger_due(start + 120_000).await.unwrap();
    assert!(text(&api.get(&format!("recurringruns/{recurring}")).await["error"], "message").contains("not found"));
    assert_eq!(runs(&api).await.len(), 1);
}
