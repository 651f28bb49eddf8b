//! Open Inference Protocol V2 over gRPC (`inference.GRPCInferenceService`), with Triton's extensions, health checks and reflection.
//!
//! Invariant: every method of the service is a route with its own access rule.

mod health;
mod messages;
mod receive;
mod reflection;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::Request as HttpRequest;
use futures_util::{Stream, StreamExt};
use slipway_access::{Access, Resource, Routes, RunTokenUse};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::deployment::Request as InferRequest;
use crate::generated::health::health_server::{HealthServer, SERVICE_NAME as HEALTH};
use crate::generated::inference;
use crate::generated::inference::grpc_inference_service_server::{
    GrpcInferenceService, GrpcInferenceServiceServer, SERVICE_NAME,
};
use crate::generated::inference::log_settings_response::SettingValue as LogSetting;
use crate::generated::inference::log_settings_response::setting_value::ParameterChoice as LogChoice;
use crate::generated::inference::model_infer_response::InferOutputTensor;
use crate::generated::inference::model_metadata_response::TensorMetadata;
use crate::generated::inference::model_repository_service_server::{
    ModelRepositoryService, ModelRepositoryServiceServer, SERVICE_NAME as REPOSITORY,
};
use crate::generated::inference::repository_index_response::ModelIndex;
use crate::generated::inference::trace_setting_response::SettingValue as TraceSettingValue;
use crate::generated::inference::{
    InferParameter, InferTensorContents, LogSettingsRequest, LogSettingsResponse, ModelConfigRequest,
    ModelConfigResponse, ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse, ModelStreamInferResponse,
    RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest, RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest, RepositoryModelUnloadResponse, ServerLiveRequest, ServerLiveResponse,
    ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse, SharedMemoryStatusRequest,
    SharedMemoryStatusResponse, TraceSettingRequest, TraceSettingResponse, infer_parameter::ParameterChoice,
};
use crate::generated::reflection::server_reflection_server::{SERVICE_NAME as REFLECTION, ServerReflectionServer};
use crate::http::wire::{unsupported_input, unsupported_output};
use crate::http::{EXTENSIONS, index_entries, load_model, versions};
use crate::tensor::{Data, DataType, Tensor, TensorSpec, parse_shape};
use crate::{Error, Gateway, triton};

/// tonic's limit for one message, in bytes. [`receive`] enforces the deployment's lower limit.
const MESSAGE_LIMIT: usize = 1 << 30;

/// Required for inference, and for what describes a model.
const INFER: Access = Access::create(Resource::Inferences);
const READ_DEPLOYMENTS: Access = Access::get(Resource::Deployments);
const AUTHENTICATED: Access = Access::Authenticated(RunTokenUse::Denied);

/// The methods of all services and the access that each requires. `every_method_declares_its_access` compares them with the protocol.
const METHODS: [(&str, &str, Access); 23] = [
    (SERVICE_NAME, "ServerLive", Access::Public),
    (SERVICE_NAME, "ServerReady", Access::Public),
    (SERVICE_NAME, "ServerMetadata", INFER),
    (SERVICE_NAME, "ModelReady", INFER),
    (SERVICE_NAME, "ModelMetadata", INFER),
    (SERVICE_NAME, "ModelInfer", INFER),
    (SERVICE_NAME, "ModelStreamInfer", INFER),
    (SERVICE_NAME, "ModelConfig", INFER),
    (SERVICE_NAME, "ModelStatistics", INFER),
    (SERVICE_NAME, "RepositoryIndex", READ_DEPLOYMENTS),
    (SERVICE_NAME, "RepositoryModelLoad", Access::update(Resource::Deployments)),
    (SERVICE_NAME, "RepositoryModelUnload", Access::delete(Resource::Deployments)),
    (SERVICE_NAME, "SystemSharedMemoryStatus", INFER),
    (SERVICE_NAME, "CudaSharedMemoryStatus", INFER),
    (SERVICE_NAME, "TraceSetting", INFER),
    (SERVICE_NAME, "LogSettings", INFER),
    (REPOSITORY, "RepositoryIndex", READ_DEPLOYMENTS),
    (REPOSITORY, "RepositoryModelLoad", Access::update(Resource::Deployments)),
    (REPOSITORY, "RepositoryModelUnload", Access::delete(Resource::Deployments)),
    (HEALTH, "Check", Access::Public),
    (HEALTH, "List", Access::Public),
    (HEALTH, "Watch", Access::Public),
    (REFLECTION, "ServerReflectionInfo", AUTHENTICATED),
];

/// All routes of the gRPC gateway: one for each method, also under the aliases of its service.
pub fn routes(gateway: Gateway) -> Routes {
    let inference = GrpcInferenceServiceServer::new(Service { gateway: gateway.clone() })
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let repository = ModelRepositoryServiceServer::new(Service { gateway: gateway.clone() });
    let health = HealthServer::new(health::HealthService { gateway: gateway.clone() });
    let reflection = ServerReflectionServer::new(reflection::ReflectionService::new());
    METHODS
        .iter()
        .fold(Routes::new(), |routes, (service, method, access)| match *service {
            SERVICE_NAME => add(routes, &gateway, service, method, *access, inference.clone()),
            REPOSITORY => add(routes, &gateway, service, method, *access, repository.clone()),
            HEALTH => add(routes, &gateway, service, method, *access, health.clone()),
            _ => add(routes, &gateway, service, method, *access, reflection.clone()),
        })
        .fallback(AUTHENTICATED, unimplemented)
}

/// Adds the routes of a method: its own, and one for each alias of its service.
fn add<S>(routes: Routes, gateway: &Gateway, name: &str, method: &str, access: Access, service: S) -> Routes
where
    S: tower::Service<HttpRequest, Error = std::convert::Infallible> + Clone + Send + Sync + 'static,
    S::Response: axum::response::IntoResponse + 'static,
    S::Future: Send + 'static,
{
    // Bodies are received within their limits, and only after the route has authorized the caller.
    let limits = axum::middleware::from_fn_with_state(gateway.clone(), receive::receive);
    let service = tower::Layer::layer(&limits, service);
    let aliases = receive::ALIASES.iter().filter(|(_, own)| *own == name).map(|(alias, _)| *alias);
    aliases
        .chain([name])
        .fold(routes, |routes, name| routes.post_service(&format!("/{name}/{method}"), access, service.clone()))
}

/// The response to a method that the service does not have.
async fn unimplemented() -> axum::response::Response {
    Status::unimplemented("this server has no such method").into_http()
}

/// The inference and repository services, backed by the gateway.
#[derive(Clone)]
pub struct Service {
    gateway: Gateway,
}

fn tensor_metadata(specs: &[TensorSpec]) -> Vec<TensorMetadata> {
    let convert = |s: &TensorSpec| TensorMetadata {
        name: s.name.clone(),
        datatype: s.datatype.name().into(),
        shape: s.declared_shape(),
    };
    specs.iter().map(convert).collect()
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.gateway.is_ready() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let request = request.into_inner();
        let ready = self.gateway.deployment(&request.name).is_ok_and(|d| {
            if request.version.is_empty() { d.is_ready() } else { d.representative(Some(&request.version)).is_ok() }
        });
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: "slipway".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: EXTENSIONS.iter().map(|e| (*e).to_owned()).collect(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        let deployment = self.gateway.deployment(&request.name)?;
        let loaded = deployment.representative(Some(&request.version))?;
        Ok(Response::new(ModelMetadataResponse {
            name: request.name,
            versions: versions(&deployment),
            platform: self.gateway.runtime().platform().into(),
            inputs: tensor_metadata(loaded.model.inputs()),
            outputs: tensor_metadata(loaded.model.outputs()),
        }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let (headers, _, request) = request.into_parts();
        let (response, own_headers) = self.infer(&headers, request).await?;
        let mut response = Response::new(response);
        *response.metadata_mut() = own_headers;
        Ok(response)
    }

    type ModelStreamInferStream = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let (headers, _, requests) = request.into_parts();
        let (service, headers) = (self.clone(), Arc::new(headers));
        // One after another, so that the responses are in the order of the requests.
        let responses = requests.then(move |request| {
            let (service, headers) = (service.clone(), Arc::clone(&headers));
            async move {
                let request = request?;
                let id = request.id.clone();
                // A failed request does not end the stream. The response names the request, as Triton's does.
                Ok(service.infer(&headers, request).await.map_or_else(
                    |error| ModelStreamInferResponse {
                        error_message: error.to_string(),
                        infer_response: Some(ModelInferResponse { id, ..Default::default() }),
                    },
                    |(response, _)| ModelStreamInferResponse {
                        error_message: String::new(),
                        infer_response: Some(response),
                    },
                ))
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let request = request.into_inner();
        let deployment = self.gateway.deployment(&request.name)?;
        let config = triton::config(&deployment, Some(&request.version), self.gateway.runtime().platform())?;
        Ok(Response::new(ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let request = request.into_inner();
        let name = Some(request.name.as_str()).filter(|name| !name.is_empty());
        let model_stats = self.gateway.statistics(name, Some(&request.version))?;
        Ok(Response::new(ModelStatisticsResponse { model_stats }))
    }

    async fn system_shared_memory_status(
        &self,
        _: Request<SharedMemoryStatusRequest>,
    ) -> Result<Response<SharedMemoryStatusResponse>, Status> {
        Ok(Response::new(SharedMemoryStatusResponse {}))
    }

    async fn cuda_shared_memory_status(
        &self,
        _: Request<SharedMemoryStatusRequest>,
    ) -> Result<Response<SharedMemoryStatusResponse>, Status> {
        Ok(Response::new(SharedMemoryStatusResponse {}))
    }

    async fn trace_setting(
        &self,
        request: Request<TraceSettingRequest>,
    ) -> Result<Response<TraceSettingResponse>, Status> {
        if !request.get_ref().settings.is_empty() {
            return Err(triton::fixed_settings("trace").into());
        }
        let off = TraceSettingValue { value: vec!["OFF".into()] };
        Ok(Response::new(TraceSettingResponse { settings: HashMap::from([("trace_level".into(), off)]) }))
    }

    async fn log_settings(
        &self,
        request: Request<LogSettingsRequest>,
    ) -> Result<Response<LogSettingsResponse>, Status> {
        if !request.get_ref().settings.is_empty() {
            return Err(triton::fixed_settings("log").into());
        }
        let setting = |(name, on): (&str, bool)| {
            (name.to_owned(), LogSetting { parameter_choice: Some(LogChoice::BoolParam(on)) })
        };
        Ok(Response::new(LogSettingsResponse { settings: triton::LOG_LEVELS.into_iter().map(setting).collect() }))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let models = index_entries(&self.gateway, request.into_inner().ready)
            .into_iter()
            .map(|(name, version, state, reason)| ModelIndex { name, version, state: state.into(), reason })
            .collect();
        Ok(Response::new(RepositoryIndexResponse { models }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        load_model(&self.gateway, &request.into_inner().model_name).await?;
        Ok(Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        self.gateway.remove(&request.into_inner().model_name).await?;
        Ok(Response::new(RepositoryModelUnloadResponse {}))
    }
}

#[tonic::async_trait]
impl ModelRepositoryService for Service {
    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        GrpcInferenceService::repository_index(self, request).await
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        GrpcInferenceService::repository_model_load(self, request).await
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        GrpcInferenceService::repository_model_unload(self, request).await
    }
}

impl Service {
    async fn infer(
        &self,
        headers: &MetadataMap,
        request: ModelInferRequest,
    ) -> Result<(ModelInferResponse, MetadataMap), Error> {
        let deployment = self.gateway.deployment(&request.model_name)?;
        let limit = deployment.manifest.spec.limits.max_body();
        if prost::Message::encoded_len(&request) > limit {
            return Err(Error::TooLarge(limit));
        }
        let split_header = deployment.manifest.spec.split.header.as_deref().map(str::to_ascii_lowercase);
        let split_key =
            split_header.and_then(|h| headers.get(h.as_str())).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let requested = requested_outputs(request.outputs)?;
        let inputs = read_inputs(request.inputs, &request.raw_input_contents)?;
        let version = Some(request.model_version).filter(|v| !v.is_empty());
        let infer_request = InferRequest { id: Some(request.id), version, split_key, inputs };
        let result = self.gateway.infer(&deployment, infer_request).await?;

        let mut outputs = Vec::new();
        let mut raw = Vec::new();
        let all = if requested.is_empty() { result.outputs.as_slice() } else { &[] };
        let named = requested.iter().map(|name| result.output(name)).collect::<Result<Vec<_>, _>>()?;
        for tensor in all.iter().chain(named) {
            let mut bytes = Vec::with_capacity(tensor.data.len() * 4);
            tensor.data.write_binary(&mut bytes);
            raw.push(bytes.into());
            outputs.push(InferOutputTensor {
                name: tensor.name.clone(),
                datatype: tensor.data.datatype().name().into(),
                shape: tensor.shape.iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect(),
                parameters: HashMap::new(),
                contents: None,
            });
        }
        let string_parameter =
            |value: &str| InferParameter { parameter_choice: Some(ParameterChoice::StringParam(value.into())) };
        let mut own_headers = MetadataMap::new();
        for (key, value) in result.headers(&request.model_name) {
            if let Ok(value) = value.parse() {
                own_headers.insert(key, value);
            }
        }
        let response = ModelInferResponse {
            model_version: result.model.resolved.version.clone(),
            id: result.id.clone(),
            parameters: HashMap::from([("slipway_variant".to_owned(), string_parameter(&result.variant))]),
            outputs,
            raw_output_contents: raw,
            model_name: request.model_name,
        };
        Ok((response, own_headers))
    }
}

/// The names of the requested outputs, in the order of the request.
///
/// # Errors
/// [`Error::Invalid`] for the parameters of extensions that are not supported, as over REST.
fn requested_outputs(
    outputs: Vec<inference::model_infer_request::InferRequestedOutputTensor>,
) -> Result<Vec<String>, Error> {
    let name = |output: inference::model_infer_request::InferRequestedOutputTensor| {
        let class_count = output.parameters.get("classification").and_then(|p| p.parameter_choice.as_ref());
        let wants_classes = class_count.is_some_and(|n| !matches!(n, ParameterChoice::Int64Param(0)));
        if wants_classes || output.parameters.contains_key("shared_memory_region") {
            return Err(unsupported_output(&output.name));
        }
        Ok(output.name)
    };
    outputs.into_iter().map(name).collect()
}

/// Whether the contents of a tensor have elements. Clients also send empty contents beside raw data, and protobuf cannot distinguish empty
/// contents from none.
fn has_elements(c: &InferTensorContents) -> bool {
    !(c.bool_contents.is_empty()
        && c.int_contents.is_empty()
        && c.int64_contents.is_empty()
        && c.uint_contents.is_empty()
        && c.uint64_contents.is_empty()
        && c.fp32_contents.is_empty()
        && c.fp64_contents.is_empty()
        && c.bytes_contents.is_empty())
}

fn read_inputs(
    inputs: Vec<inference::model_infer_request::InferInputTensor>,
    raw: &[bytes::Bytes],
) -> Result<Vec<Tensor>, Error> {
    if !raw.is_empty() && raw.len() != inputs.len() {
        return Err(Error::Invalid(format!(
            "raw_input_contents has {} entries, expected one for each of the {} inputs",
            raw.len(),
            inputs.len()
        )));
    }
    let parse = |(i, input): (usize, inference::model_infer_request::InferInputTensor)| {
        let (shape, count) = parse_shape(&input.shape, &input.name)?;
        let datatype = DataType::parse(&input.datatype, &input.name)?;
        if input.parameters.contains_key("shared_memory_region") {
            return Err(unsupported_input(&input.name));
        }
        let data = match (raw.get(i), input.contents.filter(has_elements)) {
            (Some(_), Some(_)) => {
                return Err(Error::Invalid(format!("input '{}' has both contents and raw_input_contents", input.name)));
            }
            (Some(bytes), None) => Data::from_binary(bytes, datatype, &input.name, count)?,
            (None, Some(contents)) => from_contents(contents, datatype, &input.name)?,
            (None, None) if count == 0 => Data::zeros(datatype, 0),
            (None, None) => return Err(Error::Invalid(format!("input '{}' has no data", input.name))),
        };
        Tensor::new(input.name, shape, data)
    };
    inputs.into_iter().enumerate().map(parse).collect()
}

fn from_contents(c: InferTensorContents, datatype: DataType, tensor: &str) -> Result<Data, Error> {
    fn narrow<A: Copy + std::fmt::Display, B: TryFrom<A>>(items: &[A], tensor: &str) -> Result<Vec<B>, Error> {
        let convert = |x: &A| {
            B::try_from(*x).map_err(|_| Error::Invalid(format!("input '{tensor}': element {x} is out of range")))
        };
        items.iter().map(convert).collect()
    }
    Ok(match datatype {
        DataType::Bool => Data::Bool(c.bool_contents),
        DataType::Uint8 => Data::Uint8(narrow(&c.uint_contents, tensor)?),
        DataType::Uint16 => Data::Uint16(narrow(&c.uint_contents, tensor)?),
        DataType::Uint32 => Data::Uint32(c.uint_contents),
        DataType::Uint64 => Data::Uint64(c.uint64_contents),
        DataType::Int8 => Data::Int8(narrow(&c.int_contents, tensor)?),
        DataType::Int16 => Data::Int16(narrow(&c.int_contents, tensor)?),
        DataType::Int32 => Data::Int32(c.int_contents),
        DataType::Int64 => Data::Int64(c.int64_contents),
        DataType::Fp32 => Data::Fp32(c.fp32_contents),
        DataType::Fp64 => Data::Fp64(c.fp64_contents),
        DataType::Bytes => Data::Bytes(c.bytes_contents.into_iter().map(Vec::from).collect()),
        DataType::Fp16 | DataType::Bf16 => {
            return Err(Error::Invalid(format!(
                "input '{tensor}': {} has no contents field; send it in raw_input_contents",
                datatype.name()
            )));
        }
    })
}

#[cfg(test)]
mod tests;
