use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::Request as HttpRequest;
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::body::BodyLimits;
use crate::testing::{FakeModel, World, channel_body, json_row, manifest, onnx};

const MIB: usize = 1 << 20;

/// Sends a request through the real router; returns status, headers and body.
async fn send(g: &Gateway, method: &str, path: &str, body: impl Into<Body>) -> (StatusCode, HeaderMap, String) {
    let request = HttpRequest::builder().method(method).uri(path).body(body.into()).unwrap();
    let (parts, body) =
        slipway_access::Guard::in_process().protect(routes(g.clone())).oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, String::from_utf8(body.into()).unwrap())
}

async fn infer(g: &Gateway, body: impl Into<Body>) -> (StatusCode, HeaderMap, String) {
    send(g, "POST", "/v2/models/m/infer", body).await
}

/// A gateway with the deployment `m`, which doubles its input and accepts bodies of up to 1 MiB.
async fn world(limits: BodyLimits) -> World {
    let world = World::with_limits(limits);
    world.register("models:/m@live", "1", 2.0);
    let mut manifest = manifest();
    manifest.spec.limits.max_body_mb = 1;
    world.gateway.apply(manifest, "apply", LocalPaths::Refused).await.unwrap();
    world
}

/// A body that announces its length and never sends a byte.
struct Announced(u64);

impl axum::body::HttpBody for Announced {
    type Data = Bytes;
    type Error = std::convert::Infallible;
    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Poll::Pending
    }
    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.0)
    }
}

#[tokio::test]
async fn inference_returns_outputs_and_the_model_version() {
    let world = world(BodyLimits::default()).await;
    let (status, headers, body) = infer(&world.gateway, json_row(1.5)).await;
    assert_eq!((status, headers["x-slipway-model-version"].as_bytes()), (StatusCode::OK, &b"1"[..]), "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["outputs"][0]["data"], json!([3.0, -3.0]));
}

#[tokio::test]
async fn body_over_the_deployment_limit_is_rejected_before_reading() {
    let world = world(BodyLimits::default()).await;
    let (status, _, body) = infer(&world.gateway, Body::new(Announced(MIB as u64 + 1))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(body.contains("limit of 1048576 bytes") && body.contains("serve.too_large"), "{body}");
    // The deployment is looked up before the body is considered.
    let (status, ..) = send(&world.gateway, "POST", "/v2/models/other/infer", Body::new(Announced(1 << 40))).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn body_of_unknown_length_is_read_only_up_to_the_limit() {
    let world = world(BodyLimits::default()).await;
    static SENT: AtomicUsize = AtomicUsize::new(0);
    let endless = futures_util::stream::repeat_with(|| {
        SENT.fetch_add(1, Relaxed);
        Ok::<_, std::convert::Infallible>(Bytes::from(vec![b' '; 64 << 10]))
    });
    let request = HttpRequest::post("/v2/models/m/infer").body(Body::from_stream(endless)).unwrap();
    let response =
        slipway_access::Guard::in_process().protect(routes(world.gateway.clone())).oneshot(request).await.unwrap();
    assert_eq!((response.status(), SENT.load(Relaxed)), (StatusCode::PAYLOAD_TOO_LARGE, 17));
    assert_eq!(world.gateway.bodies().used(), 0);
}

#[tokio::test]
async fn all_bodies_share_one_memory_limit() {
    let world = world(BodyLimits { memory: MIB, ..BodyLimits::default() }).await;
    let (sender, body) = channel_body();
    let gateway = world.gateway.clone();
    let first = tokio::spawn(async move { infer(&gateway, body).await });
    sender.send(Bytes::from(" ".repeat(700 << 10))).unwrap();
    while world.gateway.bodies().used() < 700 << 10 {
        tokio::task::yield_now().await;
    }
    let large = format!("{}{}", " ".repeat(400 << 10), json_row(1.0));
    let (status, headers, body) = infer(&world.gateway, large.clone()).await;
    assert_eq!((status, headers["retry-after"].as_bytes()), (StatusCode::SERVICE_UNAVAILABLE, &b"1"[..]));
    assert!(body.contains("serve.body_memory"), "{body}");
    // Smaller bodies still fit, and the first request completes.
    assert_eq!(infer(&world.gateway, json_row(1.0)).await.0, StatusCode::OK);
    sender.send(json_row(2.0).into()).unwrap();
    drop(sender);
    assert_eq!(first.await.unwrap().0, StatusCode::OK);
    assert_eq!(world.gateway.bodies().used(), 0);
    assert_eq!(infer(&world.gateway, large).await.0, StatusCode::OK);
}

#[tokio::test]
async fn stalled_body_times_out() {
    let world = world(BodyLimits::default()).await;
    tokio::time::pause();
    for body in [Body::new(Announced(100)), Body::new(Announced(0))] {
        let (status, _, body) = infer(&world.gateway, body).await;
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT, "{body}");
    }
}

#[tokio::test]
async fn repository_requests_accept_only_small_bodies() {
    let world = world(BodyLimits::default()).await;
    let (status, _, body) = send(&world.gateway, "POST", "/v2/repository/index", r#"{"ready":true}"#).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains(r#""name":"m""#), "{body}");
    let (status, ..) = send(&world.gateway, "POST", "/v2/repository/index", " ".repeat(65 << 10)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    // Load and unload do not read the body.
    let (status, ..) =
        send(&world.gateway, "POST", "/v2/repository/models/m/load", Body::new(Announced(1 << 40))).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn errors_map_to_http_status_codes() {
    let world = world(BodyLimits::default()).await;
    let g = &world.gateway;
    assert_eq!(infer(g, "nonsense").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(send(g, "GET", "/v2/models/other", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(send(g, "GET", "/v2/models/m/versions/7", "").await.0, StatusCode::NOT_FOUND);
    let (status, _, body) = send(g, "POST", "/v2/repository/models/other/load", "").await;
    assert!(status == StatusCode::NOT_FOUND && body.contains("no model models:/other/latest"), "{status} {body}");
    assert_eq!(send(g, "POST", "/v2/repository/models/m/unload", "").await.0, StatusCode::OK);
    assert_eq!(infer(g, json_row(1.0)).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn full_queue_is_429_and_timeout_is_504() {
    let world = World::new();
    let (model, gate) = FakeModel::gated();
    let mut manifest = manifest();
    (manifest.spec.limits.queue, manifest.spec.limits.concurrency) = (2, 1);
    let deployment = world.insert(manifest, model.clone());
    let send_row = |value| {
        let gateway = world.gateway.clone();
        tokio::spawn(async move { infer(&gateway, json_row(value)).await })
    };
    let first = send_row(1.0);
    gate.entered().await;
    let second = send_row(2.0);
    while deployment.admitted.load(Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    let (status, headers, body) = infer(&world.gateway, json_row(3.0)).await;
    assert_eq!((status, headers["retry-after"].as_bytes()), (StatusCode::TOO_MANY_REQUESTS, &b"1"[..]), "{body}");
    // Both time out: the first while it is computed, the second while it is queued, so it is never computed.
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(10_001)).await;
    for request in [first, second] {
        let (status, _, body) = request.await.unwrap();
        assert!(status == StatusCode::GATEWAY_TIMEOUT && body.contains("within 10000 ms"), "{status} {body}");
    }
    gate.open();
    tokio::time::resume();
    assert_eq!(send_row(4.0).await.unwrap().0, StatusCode::OK);
    assert_eq!(model.first_elements().into_iter().filter(|v| *v != 0.0).collect::<Vec<_>>(), [1.0, 4.0]);
}

#[tokio::test]
async fn model_panic_fails_only_its_request() {
    for slow in [false, true] {
        let world = World::new();
        let model = FakeModel::new(move |inputs| {
            let first = crate::testing::floats(&inputs[0])[0];
            assert!(first != 13.0, "unlucky");
            if slow && first == 0.0 {
                return Err(Error::Model("zeros".into()));
            }
            Ok(vec![crate::tensor::Tensor { name: "y".into(), ..inputs[0].clone() }])
        });
        world.insert(manifest(), model);
        let (status, _, body) = infer(&world.gateway, json_row(13.0)).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(body.contains("the model crashed: unlucky"), "{body}");
        assert_eq!(infer(&world.gateway, json_row(1.0)).await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn unexpected_input_is_rejected() {
    let world = World::new();
    let path = world.file("sum.onnx", &onnx::addition());
    let manifest = Manifest::single("m", ModelUri::Local(path));
    world.gateway.apply(manifest, "apply", LocalPaths::Allowed).await.unwrap();
    let (status, _, body) = infer(&world.gateway, json_row(1.0)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("unexpected input 'x'; the model takes 'a', 'b'"), "{body}");
}

#[tokio::test]
async fn client_that_sends_too_much_can_read_the_error() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = world(BodyLimits::default()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = slipway_access::Guard::in_process().protect(routes(world.gateway.clone()));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let mut response = [0; 12];
    // A client that sends `Expect: 100-continue` gets the error before it sends the body.
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = "POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\nexpect: 100-continue\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    client.read_exact(&mut response).await.unwrap();
    assert_eq!(&response, b"HTTP/1.1 413");
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    // Much more than the socket buffers hold, so that the client can only finish sending if the server reads.
    let length = 32 * MIB;
    let head = format!("POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&vec![b' '; length]).await.unwrap();
    client.read_exact(&mut response).await.unwrap();
    assert_eq!(&response, b"HTTP/1.1 413");
}

#[tokio::test]
async fn batch_without_rows_is_a_client_error_or_an_empty_result() {
    let empty = r#"{"inputs":[{"name":"x","shape":[0,2],"datatype":"FP32","data":[]}]}"#;
    let world = world(BodyLimits::default()).await;
    let (status, _, body) = infer(&world.gateway, empty).await;
    assert!(matches!(status, StatusCode::OK | StatusCode::BAD_REQUEST), "{status} {body}");
    let world = World::new();
    world.insert(manifest(), FakeModel::doubling());
    let (status, _, body) = infer(&world.gateway, empty).await;
    assert!(status == StatusCode::OK && body.contains(r#""shape":[0,2],"data":[]"#), "{status} {body}");
    // Both on the thread of the request and on another one.
    for rejects_warm_up in [false, true] {
        let model = FakeModel::new(move |inputs| match crate::testing::floats(&inputs[0]).first() {
            None => panic!("index out of bounds"),
            Some(_) if rejects_warm_up => Err(Error::Model("zeros".into())),
            Some(_) => Ok(vec![crate::tensor::Tensor { name: "y".into(), ..inputs[0].clone() }]),
        });
        world.insert(manifest(), model);
        let (status, _, body) = infer(&world.gateway, empty).await;
        assert!(status == StatusCode::BAD_REQUEST && body.contains("without rows"), "{status} {body}");
    }
}

#[tokio::test]
async fn models_that_cannot_be_deployed_are_client_errors() {
    let world = World::new();
    let apply = async |uri: &str| {
        let manifest = Manifest::single("m", ModelUri::parse(uri).unwrap());
        world.gateway.apply(manifest, "apply", LocalPaths::Allowed).await.unwrap_err()
    };
    let text = world.file("text.onnx", b"no model");
    let truncated = world.file("truncated.onnx", &onnx::scale(2.0)[..20]);
    let empty = world.folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    world.registry.set("models:/m@lost", "1", "stored:/nowhere/m.onnx".into());
    world.registry.set("models:/m@text", "2", format!("stored:{}", text.display()));
    for (uri, status) in [
        ("models:/m@none", StatusCode::NOT_FOUND),
        ("models:/m@lost", StatusCode::NOT_FOUND),
        ("/nowhere/m.onnx", StatusCode::NOT_FOUND),
        ("models:/m@text", StatusCode::UNPROCESSABLE_ENTITY),
        (text.to_str().unwrap(), StatusCode::UNPROCESSABLE_ENTITY),
        (truncated.to_str().unwrap(), StatusCode::UNPROCESSABLE_ENTITY),
        (empty.to_str().unwrap(), StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let error = apply(uri).await;
        assert_eq!(error.status(), status, "{uri}: {error}");
        assert!(slipway_core::Explain::hint(&error).is_some(), "{uri}: {error}");
    }
    // The registry's own failure stays a server error.
    world.registry.set("models:/m@elsewhere", "3", "bucket:/m.onnx".into());
    assert_eq!(apply("models:/m@elsewhere").await.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

/// A body in a content encoding.
fn encode(encoding: &str, body: &[u8]) -> Vec<u8> {
    use std::io::Write;
    if encoding == "gzip" {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(body).unwrap();
        return encoder.finish().unwrap();
    }
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn decode(encoding: &str, body: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut out = Vec::new();
    match encoding {
        "gzip" => flate2::read::GzDecoder::new(body).read_to_end(&mut out).unwrap(),
        _ => flate2::read::ZlibDecoder::new(body).read_to_end(&mut out).unwrap(),
    };
    out
}

/// Sends an inference request with these headers; returns status, headers and the body as received.
async fn infer_with(g: &Gateway, headers: &[(&str, &str)], body: Vec<u8>) -> (StatusCode, HeaderMap, Vec<u8>) {
    let mut request = HttpRequest::post("/v2/models/m/infer");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let router = slipway_access::Guard::in_process().protect(routes(g.clone()));
    let (parts, body) = router.oneshot(request.body(Body::from(body)).unwrap()).await.unwrap().into_parts();
    (parts.status, parts.headers, body.collect().await.unwrap().to_bytes().into())
}

#[tokio::test]
async fn encoded_requests_and_responses_carry_json_and_binary_tensors() {
    let world = world(BodyLimits::default()).await;
    let rows = 4000;
    let json = format!(
        r#"{{"inputs":[{{"name":"x","shape":[{rows},2],"datatype":"FP32","parameters":{{"binary_data_size":{}}}}}],"parameters":{{"binary_data_output":true}}}}"#,
        rows * 8
    );
    let mut binary = json.clone().into_bytes();
    (0..rows * 2).for_each(|i| binary.extend_from_slice(&((i % 10) as f32).to_le_bytes()));
    let json_length = json.len().to_string();
    for encoding in ["gzip", "deflate"] {
        let (status, headers, body) =
            infer_with(&world.gateway, &[("content-encoding", encoding)], encode(encoding, json_row(1.5).as_bytes()))
                .await;
        let text = String::from_utf8(body).unwrap();
        assert!(status == StatusCode::OK && text.contains("[3.0,-3.0]"), "{status} {text}");
        // Without `Accept-Encoding`, and below the minimum size, responses are not encoded.
        assert!(!headers.contains_key("content-encoding"));

        let sent = [
            ("content-encoding", encoding),
            ("accept-encoding", encoding),
            ("inference-header-content-length", &json_length),
        ];
        let (status, headers, body) = infer_with(&world.gateway, &sent, encode(encoding, &binary)).await;
        assert_eq!((status, headers["content-encoding"].as_bytes()), (StatusCode::OK, encoding.as_bytes()));
        assert_eq!(headers["vary"], "accept-encoding");
        let decoded = decode(encoding, &body);
        assert!(body.len() < decoded.len() / 2);
        let length: usize = headers["inference-header-content-length"].to_str().unwrap().parse().unwrap();
        let head: Value = serde_json::from_slice(&decoded[..length]).unwrap();
        assert_eq!(head["outputs"][0]["shape"], json!([rows, 2]));
        assert_eq!(decoded.len() - length, rows * 8);
        assert_eq!(decoded[length + 4 * 9..][..4], 18f32.to_le_bytes());

        let small = [("accept-encoding", encoding)];
        let (_, headers, _) = infer_with(&world.gateway, &small, json_row(1.5).into()).await;
        assert!(!headers.contains_key("content-encoding"));
    }
    assert_eq!(world.gateway.bodies().used(), 0);
}

#[tokio::test]
async fn decoded_bodies_count_against_the_limits() {
    let world = world(BodyLimits { memory: 4 * MIB, ..BodyLimits::default() }).await;
    for encoding in ["gzip", "deflate"] {
        let fits = format!("{}{}", " ".repeat(MIB - 200), json_row(1.5));
        let (status, ..) =
            infer_with(&world.gateway, &[("content-encoding", encoding)], encode(encoding, fits.as_bytes())).await;
        assert_eq!(status, StatusCode::OK);
        // 64 MiB of spaces are about 64 KiB of gzip data.
        let bomb = encode(encoding, &vec![b' '; 64 * MIB]);
        assert!(bomb.len() < MIB / 4);
        let (status, _, body) = infer_with(&world.gateway, &[("content-encoding", encoding)], bomb).await;
        let body = String::from_utf8(body).unwrap();
        assert!(status == StatusCode::PAYLOAD_TOO_LARGE && body.contains("limit of 1048576 bytes"), "{status} {body}");
        let (status, _, body) = infer_with(&world.gateway, &[("content-encoding", encoding)], b"{}".to_vec()).await;
        let body = String::from_utf8(body).unwrap();
        assert!(status == StatusCode::BAD_REQUEST && body.contains("the body is not"), "{status} {body}");
    }
    assert_eq!(world.gateway.bodies().used(), 0);
}

#[tokio::test]
async fn unsupported_content_encoding_is_415_and_names_the_supported_ones() {
    let world = world(BodyLimits::default()).await;
    let (status, headers, body) = infer_with(&world.gateway, &[("content-encoding", "br")], json_row(1.0).into()).await;
    let body = String::from_utf8(body).unwrap();
    assert_eq!(
        (status, headers["accept-encoding"].as_bytes()),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, &b"gzip, deflate"[..]),
        "{body}"
    );
    assert!(body.contains("serve.content_encoding") && body.contains("'br'"), "{body}");
}

#[tokio::test]
async fn nan_is_null_in_both_directions_and_bytes_are_never_changed() {
    let world = World::new();
    world.insert(manifest(), FakeModel::doubling());
    let body = r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.5,null]}]}"#;
    let (status, _, body) = infer(&world.gateway, body).await;
    assert!(status == StatusCode::OK && body.contains(r#""data":[3.0,null]"#), "{status} {body}");

    let path = world.file("strings.onnx", &onnx::identity_of_strings());
    let manifest = Manifest::single("m", ModelUri::Local(path));
    world.gateway.apply(manifest, "apply", LocalPaths::Allowed).await.unwrap();
    let binary = b"\x02\0\0\0\xff\xfe\x01\0\0\0a\0\0\0\0";
    for (in_binary, expected) in [(true, StatusCode::OK), (false, StatusCode::BAD_REQUEST)] {
        let json = format!(
            r#"{{"inputs":[{{"name":"x","shape":[3],"datatype":"BYTES","parameters":{{"binary_data_size":15}}}}],"parameters":{{"binary_data_output":{in_binary}}}}}"#
        );
        let headers = [("inference-header-content-length", json.len().to_string())];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        let (status, _, body) = infer_with(&world.gateway, &headers, [json.as_bytes(), binary].concat()).await;
        assert_eq!(status, expected, "{}", String::from_utf8_lossy(&body));
        if in_binary {
            assert!(body.ends_with(binary), "{}", body.escape_ascii());
        } else {
            assert!(String::from_utf8_lossy(&body).contains("element 0 of output 'y' is not UTF-8"));
        }
    }
    let body = r#"{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["\u0000x"]}]}"#;
    let (status, _, body) = infer(&world.gateway, body).await;
    assert!(status == StatusCode::OK && body.contains(r#""data":["\u0000x"]"#), "{status} {body}");
}

#[tokio::test]
async fn version_1_predicts_rows_and_columns() {
    let world = world(BodyLimits::default()).await;
    let g = &world.gateway;
    for (path, body, expected) in [
        ("/v1/models/m:predict", r#"{"instances":[[1,2],[3,4]]}"#, r#"{"predictions":[[2.0,4.0],[6.0,8.0]]}"#),
        ("/v1/models/m:predict", r#"{"instances":[{"x":[1,null]}]}"#, r#"{"predictions":[[2.0,null]]}"#),
        ("/v1/models/m/versions/1:predict", r#"{"inputs":{"x":[[1,2]]}}"#, r#"{"outputs":[[2.0,4.0]]}"#),
        ("/v1/models/m:predict", r#"{"inputs":[[1,2]]}"#, r#"{"outputs":[[2.0,4.0]]}"#),
    ] {
        let (status, headers, text) = send(g, "POST", path, body).await;
        assert_eq!((status, text.as_str()), (StatusCode::OK, expected), "{body}");
        assert_eq!(headers["x-slipway-model-version"], "1");
    }
    for (path, body, status) in [
        ("/v1/models/m:predict", r#"{"instances":[[1,2,3]]}"#, StatusCode::BAD_REQUEST),
        ("/v1/models/m:predict", "nonsense", StatusCode::BAD_REQUEST),
        ("/v1/models/other:predict", "{}", StatusCode::NOT_FOUND),
        ("/v1/models/m/versions/7:predict", r#"{"instances":[[1,2]]}"#, StatusCode::NOT_FOUND),
        ("/v1/models/m:explain", "{}", StatusCode::NOT_FOUND),
        ("/v1/models/m", "{}", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(send(g, "POST", path, body).await.0, status, "{path} {body}");
    }
    let (status, ..) = send(g, "POST", "/v1/models/m:predict", Body::new(Announced(MIB as u64 + 1))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn several_outputs_are_named_in_each_row() {
    let world = World::new();
    let rows = |name: &str, shape: Vec<usize>, v: Vec<f32>| crate::tensor::Tensor {
        name: name.into(),
        shape,
        data: crate::tensor::Data::Fp32(v),
    };
    let model = FakeModel::new(move |inputs| {
        let n = inputs[0].shape[0];
        let whole = rows("whole", vec![2], vec![0.0; 2]);
        let own = vec![rows("a", vec![n], vec![1.5; n]), rows("b", vec![n, 1, 2], vec![2.5; 2 * n])];
        Ok(if n == 1 { vec![whole, own[0].clone()] } else { own })
    });
    world.insert(manifest(), model);
    let (_, _, body) = send(&world.gateway, "POST", "/v1/models/m:predict", r#"{"instances":[[1,2],[3,4]]}"#).await;
    assert_eq!(body, r#"{"predictions":[{"a":1.5,"b":[[2.5,2.5]]},{"a":1.5,"b":[[2.5,2.5]]}]}"#);
    let (status, _, body) = send(&world.gateway, "POST", "/v1/models/m:predict", r#"{"instances":[[1,2]]}"#).await;
    assert!(status == StatusCode::BAD_REQUEST && body.contains("send inputs instead"), "{body}");
    let (_, _, body) = send(&world.gateway, "POST", "/v1/models/m:predict", r#"{"inputs":[[1,2]]}"#).await;
    assert_eq!(body, r#"{"outputs":{"whole":[0.0,0.0],"a":[1.5]}}"#);
}

#[tokio::test]
async fn extensions_describe_models_and_settings() {
    let world = world(BodyLimits::default()).await;
    let g = &world.gateway;
    assert_eq!(infer(g, json_row(1.0)).await.0, StatusCode::OK);
    let get = async |path: &str| {
        let (status, _, body) = send(g, "GET", path, "").await;
        (status, serde_json::from_str::<Value>(&body).unwrap_or_default())
    };
    for path in ["/v2/models/m/config", "/v2/models/m/versions/1/config"] {
        let (status, config) = get(path).await;
        assert_eq!((status, &config["input"][0]["data_type"]), (StatusCode::OK, &json!("TYPE_FP32")), "{config}");
    }
    for path in ["/v2/models/stats", "/v2/models/m/stats", "/v2/models/m/versions/1/stats"] {
        let (status, stats) = get(path).await;
        let count = &stats["model_stats"][0]["inference_stats"]["success"]["count"];
        assert_eq!((status, count), (StatusCode::OK, &json!(1)), "{path} {stats}");
    }
    for path in ["/v2/models", "/v1/models"] {
        assert_eq!(get(path).await.1, json!({ "models": ["m"] }));
    }
    assert_eq!(get("/v2/repository/models/index").await.1[0]["name"], "m");
    assert_eq!(get("/v2/systemsharedmemory/status").await.1, json!([]));
    assert_eq!(get("/v2/trace/setting").await.1, json!({ "trace_level": ["OFF"] }));
    for path in ["/", "/healthz", "/readyz", "/v2/logging"] {
        assert_eq!(get(path).await.0, StatusCode::OK, "{path}");
    }
    for (path, body, status) in [
        ("/v2/logging", "{}", StatusCode::OK),
        ("/v2/logging", r#"{"log_info":false}"#, StatusCode::BAD_REQUEST),
        ("/v2/models/m/trace/setting", r#"{"trace_level":["TIMESTAMPS"]}"#, StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(send(g, "POST", path, body).await.0, status, "{path} {body}");
    }
    assert_eq!(get("/v2/models/other/config").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get("/v2/models/m/versions/7/stats").await.0, StatusCode::NOT_FOUND);
}

/// A benchmark: prints the time of a request through the router, without connections, to compare two versions of the code.
#[tokio::test]
#[ignore = "benchmark"]
async fn throughput() {
    let world = World::new();
    let path = world.file("layers.onnx", &onnx::layers(64, 1));
    let manifest = Manifest::single("m", ModelUri::Local(path));
    world.gateway.apply(manifest, "apply", LocalPaths::Allowed).await.unwrap();
    let values: Vec<String> = (0..64).map(|i| format!("{}", f64::from(i) / 16.0)).collect();
    let body =
        format!(r#"{{"inputs":[{{"name":"x","shape":[1,64],"datatype":"FP32","data":[{}]}}]}}"#, values.join(", "));
    let body = Bytes::from(body);
    let app = slipway_access::Guard::in_process().protect(routes(world.gateway.clone()));
    for _ in 0..3 {
        let started = std::time::Instant::now();
        const COUNT: u32 = 50_000;
        for _ in 0..COUNT {
            let request = HttpRequest::post("/v2/models/m/infer").body(Body::from(body.clone())).unwrap();
            let response = app.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            drop(response.into_body().collect().await.unwrap());
        }
        println!("{:?} per request", started.elapsed() / COUNT);
    }
}
