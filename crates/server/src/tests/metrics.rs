//! The output of `/metrics`.

use super::TestServer;

#[tokio::test]
async fn requests_are_counted_by_route_pattern() {
    let server = TestServer::open().await;
    for _ in 0..3 {
        server.send_as("reader", "GET", "/api/2.0/mlflow/runs/get?run_id=x", "").await;
    }
    server.send_as("no-token", "GET", "/api/v1/runs/a%22%0Ab/c", "").await;
    server.send_as("owner", "PROPFIND", "/x%22y", "").await;
    let reply = server.send_as("administrator", "GET", "/metrics", "").await;
    assert!(reply.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text; version=1.0.0"));
    let text = String::from_utf8(reply.body.to_vec()).unwrap();
    for line in [
        "slipway_http_requests_total{method=\"GET\",route=\"/api/2.0/mlflow/runs/get\",code=\"404\"} 3",
        "slipway_http_requests_total{method=\"GET\",route=\"/api/v1/runs/{namespace}/{name}\",code=\"401\"} 1",
        "slipway_http_request_duration_seconds_count{method=\"GET\",route=\"/api/2.0/mlflow/runs/get\"} 3",
        "slipway_http_request_duration_seconds_bucket{le=\"+Inf\",method=\"GET\",route=\"/api/2.0/mlflow/runs/get\"} 3",
        "# TYPE process_resident_memory_bytes gauge",
        "# TYPE slipway_inference_latency_seconds histogram",
        "# EOF",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
    // Paths and methods that clients choose are not label values.
    assert!(
        !text.contains("PROPFIND") && !text.contains("a%22") && text.contains("method=\"other\",route=\"unmatched\""),
        "{text}"
    );
}

#[tokio::test]
async fn inference_port_serves_the_same_metrics_with_the_same_access() {
    let server = TestServer::open().await;
    for role in ["no-token", "runner", "reader", "owner"] {
        let scrape = async |port| {
            let request = server.request(port, role, &axum::http::Method::GET, "/metrics", "").unwrap();
            let reply = server.send(port, request).await;
            let text = String::from_utf8(reply.body.to_vec()).unwrap();
            let names = text.lines().filter(|l| l.starts_with("# TYPE")).map(str::to_owned).collect::<Vec<_>>();
            (reply.status, reply.headers.get("content-type").cloned(), names)
        };
        assert_eq!(scrape(0).await, scrape(1).await, "{role}");
    }
}
