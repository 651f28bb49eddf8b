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

/// A message as it stands in a body: not compressed, its length, itself.
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

/// One call through the real router.
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

async fn world(limits: BodyLimits) -> World {
    let world = World::with_limits(limits);
    world.register("models:/m@live", "1", 2.0);
    let mut manifest = manifest();
    manifest.spec.limits.max_body_mb = 1;
    world.gateway.apply(manifest, "apply", LocalPaths::Refused).await.unwrap();
    world
}

#[tokio::test]
async fn a_request_is_answered() {
    let world = world(BodyLimits::default()).await;
    let answer = infer(&world.gateway, framed(&request("m", 1.5, "7".into()))).await.unwrap();
    assert_eq!((answer.id.as_str(), answer.model_version.as_str()), ("7", "1"));
    assert_eq!(answer.raw_output_contents[0][..4], 3f32.to_le_bytes());
    // In pieces as well: the prefix and the name may be in different frames.
    let (sender, body) = channel_body();
    for piece in framed(&request("m", 1.5, "8".into())).chunks(3) {
        sender.send(Bytes::copy_from_slice(piece)).unwrap();
    }
    drop(sender);
    assert_eq!(infer(&world.gateway, body).await.unwrap().id, "8");
}

#[tokio::test]
async fn a_message_over_the_deployments_limit_is_refused_when_its_length_is_known() {
    let world = world(BodyLimits::default()).await;
    let large = framed(&request("m", 1.0, "x".repeat(MIB)));
    // Only the first bytes are sent: nothing else is waited for, and no room is made.
    let (sender, body) = channel_body();
    sender.send(Bytes::copy_from_slice(&large[..100])).unwrap();
    let status = infer(&world.gateway, body).await.unwrap_err();
    assert_eq!((status.code(), world.gateway.bodies().used()), (Code::ResourceExhausted, 0), "{status}");
    assert!(status.message().contains("limit of 1048576 bytes"));
    // The length lies: the bytes are counted all the same.
    let mut lie = large.clone();
    lie[1..5].copy_from_slice(&100u32.to_be_bytes());
    assert_eq!(infer(&world.gateway, lie).await.unwrap_err().code(), Code::ResourceExhausted);
    // Another deployment's limit is its own, and a model that is not there needs no body.
    let (sender, body) = channel_body();
    sender.send(Bytes::from(framed(&request("other", 1.0, "x".repeat(MIB)))).slice(..100)).unwrap();
    assert_eq!(infer(&world.gateway, body).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn messages_without_tensors_are_small() {
    let world = world(BodyLimits::default()).await;
    let ready = ModelReadyRequest { name: "m".into(), version: String::new() };
    assert!(call::<ModelReadyResponse>(&world.gateway, "ModelReady", framed(&ready)).await.unwrap().ready);
    let large = ModelReadyRequest { name: "m".repeat(65 << 10), version: String::new() };
    let status = call::<ModelReadyResponse>(&world.gateway, "ModelReady", framed(&large)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn messages_of_all_connections_together_have_a_limit() {
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
async fn a_message_that_does_not_arrive_is_not_waited_for() {
    let world = world(BodyLimits::default()).await;
    let (_sender, body) = channel_body();
    tokio::time::pause();
    assert_eq!(infer(&world.gateway, body).await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn mistakes_have_their_code() {
    let world = world(BodyLimits::default()).await;
    let gateway = &world.gateway;
    let code = async |request: ModelInferRequest| infer(gateway, framed(&request)).await.unwrap_err().code();
    assert_eq!(code(request("other", 1.0, String::new())).await, Code::NotFound);
    let version = ModelInferRequest { model_version: "7".into(), ..request("m", 1.0, String::new()) };
    assert_eq!(code(version).await, Code::NotFound);
    let mut shape = request("m", 1.0, String::new());
    shape.inputs[0].shape = vec![2, 1];
    assert_eq!(code(shape).await, Code::InvalidArgument);
    let load = RepositoryModelLoadRequest { model_name: "other".into(), ..Default::default() };
    let load = call::<RepositoryModelLoadResponse>(gateway, "RepositoryModelLoad", framed(&load)).await;
    assert_eq!(load.unwrap_err().code(), Code::Internal);

    let refused = Manifest::single("local", ModelUri::Local("/nowhere".into()));
    let refused = gateway.apply(refused, "apply", LocalPaths::Refused).await.unwrap_err();
    assert_eq!(Status::from(refused).code(), Code::PermissionDenied);
    world.insert(manifest(), FakeModel::new(|_| panic!("unlucky")));
    assert_eq!(code(request("m", 1.0, String::new())).await, Code::Internal);
    world.gateway.remove("m").await.unwrap();
    assert_eq!(code(request("m", 1.0, String::new())).await, Code::NotFound);
}

#[test]
fn every_method_has_its_access() {
    let protocol = include_str!("../../proto/inference.proto");
    let mut methods: Vec<&str> = protocol
        .lines()
        .filter_map(|line| line.trim().strip_prefix("rpc "))
        .filter_map(|rest| rest.split(['(', ' ']).next())
        .collect();
    let mut known: Vec<&str> = METHODS.iter().map(|(name, _)| *name).collect();
    methods.sort_unstable();
    known.sort_unstable();
    assert_eq!(methods, known);
}
