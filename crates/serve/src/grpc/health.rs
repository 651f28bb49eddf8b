//! The health checking protocol of gRPC (`grpc.health.v1`), which Kubernetes' `grpc` probes and load balancers use.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use tonic::{Request, Response, Status};

use crate::Gateway;
use crate::generated::health::health_check_response::ServingStatus;
use crate::generated::health::health_server::Health;
use crate::generated::health::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};
use crate::generated::inference::grpc_inference_service_server::SERVICE_NAME as INFERENCE;
use crate::generated::inference::model_repository_service_server::SERVICE_NAME as REPOSITORY;

/// Interval at which the status is polled for `Watch`.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The services whose health is known; the empty name stands for the whole server.
const SERVICES: [&str; 3] = ["", INFERENCE, REPOSITORY];

/// The health of the gateway: it serves when all deployments are ready.
pub(super) struct HealthService {
    pub(super) gateway: Gateway,
}

fn status(gateway: &Gateway, service: &str) -> ServingStatus {
    if !SERVICES.contains(&service) {
        ServingStatus::ServiceUnknown
    } else if gateway.is_ready() {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match status(&self.gateway, &service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("this server has no such service")),
            status => Ok(Response::new(response(status))),
        }
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let entry = |service: &str| (service.to_owned(), response(status(&self.gateway, service)));
        Ok(Response::new(HealthListResponse { statuses: SERVICES.into_iter().map(entry).collect::<HashMap<_, _>>() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (gateway, service) = (self.gateway.clone(), request.into_inner().service);
        // The current status is sent at once, and then each change.
        let changes = futures_util::stream::unfold(None, move |sent| {
            let (gateway, service) = (gateway.clone(), service.clone());
            async move {
                loop {
                    let current = status(&gateway, &service);
                    if sent != Some(current) {
                        return Some((Ok(response(current)), Some(current)));
                    }
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
