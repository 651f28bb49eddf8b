use axum::body::{Body, Bytes};
use axum::http::{Request as HttpRequest, Response as HttpResponse};
use http_body_util::BodyExt;
use prost::Message;
use tonic::Code;
use tower::ServiceExt;

use super::*;
use crate::body::BodyLimits;
use crate::manifest::Manifest;
use crate::testing::{FakeModel, World, channel_body, manifest};
use crate::{LocalPaths, ModelUri};

const MIB: usize = 1 << 20;

/// A message with its gRPC prefix: not compressed, and the length.
fn framed(message: &impl Message) -> Vec<u8> {
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
    message.encode(&mut body).unwrap();
    body
}

async fn post(gateway: &Gateway, method: &str, body: impl Into<Body>) -> HttpResponse<Body> {
    let request = HttpRequest::post(format!("/inference.GRPCInferenceService/{method}"))
        .header("content-type", "application/grpc")
        .body(body.into())
        .unwrap();
    slipway_access::Guard::in_process().protect(routes(gateway.clone())).oneshot(request).await.unwrap()
}

/// Sends one call through the real router.
async fn call<T: Message + Default>(gateway: &Gateway, method: &str, body: impl Into<Body>) -> Result<T, Status> {
    let response = post(gateway, method, body).await;
    if let Some(status) = Status::from_header_map(response.headers()) {
        return Err(status);
    }
    let collected = response.into_body().collect().await.unwrap();
    let status = collected.trailers().and_then(Status::from_header_map);
    match status.filter(|status| status.code() != Code::Ok) {
        Some(status) => Err(status),
        None => Ok(T::decode(&collected.to_bytes()[5..]).unwrap()),
    }
}

fn request(model: &str, value: f32, id: String) -> ModelInferRequest {
    let contents = InferTensorContents { fp32_contents: vec![value, -value], ..Default::default() };
    let input = inference::model_infer_request::InferInputTensor {
        name: "x".into(),
        datatype: "FP32".into(),
        shape: vec![1, 2],
        contents: Some(contents),
        ..Default::default()
    };
    ModelInferRequest { model_name: model.into(), id, inputs: vec![input], ..Default::default() }
}

async fn infer(gateway: &Gateway, body: impl Into<Body>) -> Result<ModelInferResponse, Status> {
    call(gateway, "ModelInfer", body).await
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

#[tokio::test]
async fn inference_returns_outputs_and_the_model_version() {
    let world = world(BodyLimits::default()).await;
    let response = infer(&world.gateway, framed(&request("m", 1.5, "7".into()))).await.unwrap();
    assert_eq!((response.id.as_str(), response.model_version.as_str()), ("7", "1"));
    assert_eq!(response.raw_output_contents[0][..4], 3f32.to_le_bytes());
    // The prefix and the name may also arrive in different frames.
    let (sender, body) = channel_body();
    for piece in framed(&request("m", 1.5, "8".into())).chunks(3) {
        sender.send(Bytes::copy_from_slice(piece)).unwrap();
    }
    drop(sender);
    assert_eq!(infer(&world.gateway, body).await.unwrap().id, "8");
}

#[tokio::test]
async fn message_over_the_deployment_limit_is_rejected_by_its_length() {
    let world = world(BodyLimits::default()).await;
    let large = framed(&request("m", 1.0, "x".repeat(MIB)));
    // Only the first bytes are sent: the server neither waits for the rest nor allocates memory for it.
    let (sender, body) = channel_body();
    sender.send(Bytes::copy_from_slice(&large[..100])).unwrap();
    let status = infer(&world.gateway, body).await.unwrap_err();
    assert_eq!((status.code(), world.gateway.bodies().used()), (Code::ResourceExhausted, 0), "{status}");
    assert!(status.message().contains("limit of 1048576 bytes"));
    // With a false length the received bytes still count.
    let mut false_length = large.clone();
    false_length[1..5].copy_from_slice(&100u32.to_be_bytes());
    assert_eq!(infer(&world.gateway, false_length).await.unwrap_err().code(), Code::ResourceExhausted);
    // An unknown model is rejected before its body is received.
    let (sender, body) = channel_body();
    sender.send(Bytes::from(framed(&request("other", 1.0, "x".repeat(MIB)))).slice(..100)).unwrap();
    assert_eq!(infer(&world.gateway, body).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn methods_without_tensors_accept_only_small_messages() {
    let world = world(BodyLimits::default()).await;
    let ready = ModelReadyRequest { name: "m".into(), version: String::new() };
    assert!(call::<ModelReadyResponse>(&world.gateway, "ModelReady", framed(&ready)).await.unwrap().ready);
    let large = ModelReadyRequest { name: "m".repeat(65 << 10), version: String::new() };
    let status = call::<ModelReadyResponse>(&world.gateway, "ModelReady", framed(&large)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn all_messages_share_one_memory_limit() {
    let world = world(BodyLimits { memory: MIB, ..BodyLimits::default() }).await;
    let (sender, body) = channel_body();
    let gateway = world.gateway.clone();
    let first = tokio::spawn(async move { infer(&gateway, body).await });
    let message = Bytes::from(framed(&request("m", 1.0, "x".repeat(700 << 10))));
    sender.send(message.slice(..600 << 10)).unwrap();
    while world.gateway.bodies().used() < 600 << 10 {
        tokio::task::yield_now().await;
    }
    let status = infer(&world.gateway, message.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    sender.send(message.slice(600 << 10..)).unwrap();
    drop(sender);
    assert!(first.await.unwrap().is_ok());
    assert_eq!(world.gateway.bodies().used(), 0);
    assert!(infer(&world.gateway, message).await.is_ok());
}

#[tokio::test]
async fn stalled_message_times_out() {
    let world = world(BodyLimits::default()).await;
    let (_sender, body) = channel_body();
    tokio::time::pause();
    assert_eq!(infer(&world.gateway, body).await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn errors_map_to_grpc_codes() {
    let world = world(BodyLimits::default()).await;
    let gateway = &world.gateway;
    let code = async |request: ModelInferRequest| infer(gateway, framed(&request)).await.unwrap_err().code();
    assert_eq!(code(request("other", 1.0, String::new())).await, Code::NotFound);
    let version = ModelInferRequest { model_version: "7".into(), ..request("m", 1.0, String::new()) };
    assert_eq!(code(version).await, Code::NotFound);
    let mut shape = request("m", 1.0, String::new());
    shape.inputs[0].shape = vec![2, 1];
    assert_eq!(code(shape).await, Code::InvalidArgument);
    let mut no_rows = request("m", 1.0, String::new());
    (no_rows.inputs[0].shape, no_rows.inputs[0].contents) = (vec![0, 2], Some(InferTensorContents::default()));
    let no_rows = infer(gateway, framed(&no_rows)).await.map_or_else(|status| status.code(), |_| Code::Ok);
    assert!(matches!(no_rows, Code::Ok | Code::InvalidArgument), "{no_rows}");
    let load = RepositoryModelLoadRequest { model_name: "other".into(), ..Default::default() };
    let load = call::<RepositoryModelLoadResponse>(gateway, "RepositoryModelLoad", framed(&load)).await;
    assert_eq!(load.unwrap_err().code(), Code::NotFound);

    let refused = Manifest::single("local", ModelUri::Local("/nowhere".into()));
    let refused = gateway.apply(refused, "apply", LocalPaths::Refused).await.unwrap_err();
    assert_eq!(Status::from(refused).code(), Code::PermissionDenied);
    world.insert(manifest(), FakeModel::new(|_| panic!("unlucky")));
    assert_eq!(code(request("m", 1.0, String::new())).await, Code::Internal);
    world.gateway.remove("m").await.unwrap();
    assert_eq!(code(request("m", 1.0, String::new())).await, Code::NotFound);
}

#[tokio::test]
async fn inputs_may_have_empty_contents_or_none() {
    let world = world(BodyLimits::default()).await;
    let gateway = &world.gateway;
    let mut raw = request("m", 1.5, "raw".into());
    raw.raw_input_contents = vec![[1.5f32, -1.5].map(f32::to_le_bytes).concat().into()];
    let both = infer(gateway, framed(&raw)).await.unwrap_err();
    assert!(both.message().contains("both contents and raw_input_contents"), "{both}");
    raw.inputs[0].contents = Some(InferTensorContents::default());
    assert_eq!(infer(gateway, framed(&raw)).await.unwrap().raw_output_contents[0][..4], 3f32.to_le_bytes());
    world.insert(manifest(), FakeModel::doubling());
    let mut empty = request("m", 1.0, "empty".into());
    empty.inputs[0].shape = vec![0, 2];
    for contents in [None, Some(InferTensorContents::default())] {
        empty.inputs[0].contents = contents;
        let response = infer(gateway, framed(&empty)).await.unwrap();
        assert_eq!((response.outputs[0].shape.as_slice(), response.raw_output_contents[0].len()), (&[0, 2][..], 0));
    }
    empty.inputs[0].shape = vec![1, 2];
    empty.inputs[0].contents = None;
    assert!(infer(gateway, framed(&empty)).await.unwrap_err().message().contains("has no data"));
}

#[tokio::test]
async fn outputs_are_returned_as_requested_and_unsupported_parameters_rejected() {
    let world = world(BodyLimits::default()).await;
    let output = |parameter: Option<(&str, ParameterChoice)>| {
        let parameters =
            parameter.map(|(name, choice)| (name.into(), InferParameter { parameter_choice: Some(choice) }));
        inference::model_infer_request::InferRequestedOutputTensor {
            name: "y".into(),
            parameters: parameters.into_iter().collect(),
        }
    };
    let mut request = request("m", 1.0, String::new());
    request.outputs = vec![output(None), output(Some(("classification", ParameterChoice::Int64Param(0))))];
    let response = infer(&world.gateway, framed(&request)).await.unwrap();
    assert_eq!(response.outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["y", "y"]);
    for parameter in [
        ("classification", ParameterChoice::Int64Param(2)),
        ("classification", ParameterChoice::Uint64Param(2)),
        ("shared_memory_region", ParameterChoice::StringParam("r".into())),
    ] {
        request.outputs = vec![output(Some(parameter))];
        assert_eq!(infer(&world.gateway, framed(&request)).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let mut shared = self::request("m", 1.0, String::new());
    let region = InferParameter { parameter_choice: Some(ParameterChoice::StringParam("r".into())) };
    shared.inputs[0].parameters.insert("shared_memory_region".into(), region);
    assert_eq!(infer(&world.gateway, framed(&shared)).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn compressed_messages_are_decompressed_within_the_limits() {
    use std::io::Write;
    let world = world(BodyLimits::default()).await;
    let gateway = &world.gateway;
    let compressed = |name: &str, message: &ModelInferRequest| {
        let content = message.encode_to_vec();
        let data = if name == "gzip" {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&content).and_then(|()| encoder.finish()).unwrap()
        } else {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&content).and_then(|()| encoder.finish()).unwrap()
        };
        [&[1], &u32::try_from(data.len()).unwrap().to_be_bytes()[..], &data].concat()
    };
    let send = async |name: &str, body: Vec<u8>| {
        let request = HttpRequest::post("/inference.GRPCInferenceService/ModelInfer")
            .header("content-type", "application/grpc")
            .header("grpc-encoding", name)
            .body(Body::from(body))
            .unwrap();
        let app = slipway_access::Guard::in_process().protect(routes(gateway.clone()));
        let response = app.oneshot(request).await.unwrap();
        Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
    };
    for name in ["gzip", "deflate"] {
        assert_eq!(send(name, compressed(name, &request("m", 1.0, "7".into()))).await, Code::Ok, "{name}");
        // A client may also send a message without compression.
        assert_eq!(send(name, framed(&request("m", 1.0, "7".into()))).await, Code::Ok, "{name}");
        let bomb = compressed(name, &request("m", 1.0, "x".repeat(2 * MIB)));
        assert!(bomb.len() < 64 << 10);
        assert_eq!(send(name, bomb).await, Code::ResourceExhausted, "{name}");
        assert_eq!(send(name, [&[1, 0, 0, 0, 3][..], b"abc"].concat()).await, Code::InvalidArgument, "{name}");
    }
    assert_eq!(send("snappy", compressed("gzip", &request("m", 1.0, "7".into()))).await, Code::Unimplemented);
    assert_eq!(gateway.bodies().used(), 0);
}

#[test]
fn every_method_declares_its_access() {
    let protocols = [
        include_str!("../../proto/inference.proto"),
        include_str!("../../proto/health.proto"),
        include_str!("../../proto/reflection.proto"),
    ];
    let mut methods = Vec::new();
    for protocol in protocols {
        let package = protocol.lines().find_map(|line| line.strip_prefix("package ")?.strip_suffix(';')).unwrap();
        let mut service = String::new();
        for line in protocol.lines() {
            let name = |prefix: &str| line.trim().strip_prefix(prefix)?.split(['(', ' ']).next();
            if let Some(name) = name("service ") {
                service = format!("{package}.{name}");
            }
            methods.extend(name("rpc ").map(|method| (service.clone(), method.to_owned())));
        }
    }
    let mut declared: Vec<_> =
        METHODS.iter().map(|(service, name, _)| (service.to_string(), name.to_string())).collect();
    methods.sort_unstable();
    declared.sort_unstable();
    assert_eq!(methods, declared);
}

/// The messages in the body of a response.
async fn messages<T: Message + Default>(response: HttpResponse<Body>) -> Vec<T> {
    assert!(Status::from_header_map(response.headers()).is_none(), "{:?}", response.headers());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let (mut rest, mut found) = (&body[..], Vec::new());
    while let Some((prefix, tail)) = rest.split_at_checked(5) {
        let length = u32::from_be_bytes(*prefix.last_chunk().unwrap()) as usize;
        found.push(T::decode(&tail[..length]).unwrap());
        rest = &tail[length..];
    }
    found
}

#[tokio::test]
async fn stream_answers_each_request_in_order_within_its_limits() {
    let world = world(BodyLimits::default()).await;
    let (sender, body) = channel_body();
    let gateway = world.gateway.clone();
    let task = tokio::spawn(async move { messages(post(&gateway, "ModelStreamInfer", body).await).await });
    let large = request("m", 1.0, "x".repeat(MIB));
    let all = [request("m", 1.5, "1".into()), request("other", 1.5, "2".into()), request("m", 2.5, "3".into())];
    let bytes: Vec<u8> = all.iter().chain([&large]).flat_map(framed).collect();
    for piece in bytes.chunks(1000) {
        sender.send(Bytes::copy_from_slice(piece)).unwrap();
    }
    drop(sender);
    let responses: Vec<ModelStreamInferResponse> = task.await.unwrap();
    let ids: Vec<_> = responses.iter().map(|r| r.infer_response.as_ref().unwrap().id.as_str()).collect();
    // The last request is larger than any deployment accepts, which ends the stream.
    assert_eq!(ids, ["1", "2", "3"]);
    assert_eq!(responses[1].error_message, "model 'other' is not deployed");
    let values = |i: usize| responses[i].infer_response.as_ref().unwrap().raw_output_contents[0][..4].to_vec();
    assert_eq!((values(0), values(2)), (3f32.to_le_bytes().to_vec(), 5f32.to_le_bytes().to_vec()));
    assert_eq!(world.gateway.bodies().used(), 0);
}

#[tokio::test]
async fn health_follows_the_deployments() {
    use crate::generated::health::health_check_response::ServingStatus;
    use crate::generated::health::{HealthCheckRequest, HealthCheckResponse};
    let world = world(BodyLimits::default()).await;
    let check = async |service: &str| {
        let request = HttpRequest::post("/grpc.health.v1.Health/Check").header("content-type", "application/grpc");
        let message = HealthCheckRequest { service: service.into() };
        let app = slipway_access::Guard::in_process().protect(routes(world.gateway.clone()));
        let response = app.oneshot(request.body(Body::from(framed(&message))).unwrap()).await.unwrap();
        match Status::from_header_map(response.headers()) {
            Some(status) => Err(status.code()),
            None => Ok(messages::<HealthCheckResponse>(response).await[0].status()),
        }
    };
    assert_eq!(check("").await, Ok(ServingStatus::Serving));
    assert_eq!(check(SERVICE_NAME).await, Ok(ServingStatus::Serving));
    assert_eq!(check("other").await, Err(Code::NotFound));
    let loading =
        crate::deployment::Deployment::new(Manifest::single("n", ModelUri::Local("/n".into())), 1, Arc::default());
    world.gateway.insert(Arc::new(loading));
    assert_eq!(check("").await, Ok(ServingStatus::NotServing));
}

#[tokio::test]
async fn configuration_and_statistics_describe_the_model() {
    let world = world(BodyLimits::default()).await;
    let gateway = &world.gateway;
    infer(gateway, framed(&request("m", 1.0, String::new()))).await.unwrap();
    let name = ModelConfigRequest { name: "m".into(), version: "1".into() };
    let config = call::<ModelConfigResponse>(gateway, "ModelConfig", framed(&name)).await.unwrap().config.unwrap();
    assert_eq!((config.max_batch_size, config.input[0].dims.as_slice()), (0, &[-1, 2][..]));
    assert_eq!(config.input[0].data_type(), inference::DataType::TypeFp32);
    let statistics = async |name: &str, version: &str| {
        let request = ModelStatisticsRequest { name: name.into(), version: version.into() };
        call::<ModelStatisticsResponse>(gateway, "ModelStatistics", framed(&request)).await
    };
    for (name, version) in [("", ""), ("m", ""), ("m", "1")] {
        let stats = &statistics(name, version).await.unwrap().model_stats[0];
        let success = stats.inference_stats.unwrap().success.unwrap();
        assert!(success.count == 1 && success.ns < 10_000_000_000 && stats.last_inference > 0, "{stats:?}");
    }
    assert_eq!(statistics("m", "7").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(statistics("other", "").await.unwrap_err().code(), Code::NotFound);
}
