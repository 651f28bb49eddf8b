//! The reflection protocol of gRPC (`grpc.reflection.v1`), with which tools such as grpcurl find the services and their messages.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::generated::DESCRIPTORS;
use crate::generated::reflection::server_reflection_request::MessageRequest;
use crate::generated::reflection::server_reflection_response::MessageResponse;
use crate::generated::reflection::server_reflection_server::ServerReflection;
use crate::generated::reflection::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest,
    ServerReflectionResponse, ServiceResponse,
};

/// The descriptions of all services of this server.
#[derive(Clone)]
pub(super) struct ReflectionService {
    files: Vec<DescribedFile>,
}

/// A proto file with the full names of what it defines. No file depends on another one.
#[derive(Clone)]
struct DescribedFile {
    name: String,
    services: Vec<String>,
    /// Services, methods, messages and enumerations.
    symbols: Vec<String>,
    encoded: Vec<u8>,
}

impl DescribedFile {
    fn new(file: &FileDescriptorProto) -> Self {
        let full = |name: &str| format!("{}.{name}", file.package());
        let services: Vec<String> = file.service.iter().map(|service| full(service.name())).collect();
        let mut symbols = services.clone();
        for service in &file.service {
            symbols.extend(service.method.iter().map(|m| format!("{}.{}", full(service.name()), m.name())));
        }
        symbols.extend(file.enum_type.iter().map(|e| full(e.name())));
        file.message_type.iter().for_each(|message| collect_messages(file.package(), message, &mut symbols));
        Self { name: file.name().to_owned(), services, symbols, encoded: file.encode_to_vec() }
    }
}

fn collect_messages(parent: &str, message: &DescriptorProto, symbols: &mut Vec<String>) {
    let name = format!("{parent}.{}", message.name());
    symbols.extend(message.enum_type.iter().map(|e| format!("{name}.{}", e.name())));
    message.nested_type.iter().for_each(|nested| collect_messages(&name, nested, symbols));
    symbols.push(name);
}

impl ReflectionService {
    pub(super) fn new() -> Self {
        // The bytes are a part of the program, and a test decodes them.
        let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default();
        Self { files: set.file.iter().map(DescribedFile::new).collect() }
    }

    fn respond(&self, request: &MessageRequest) -> MessageResponse {
        let file = |found: Option<&DescribedFile>, requested: &str| match found {
            Some(file) => MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
                file_descriptor_proto: vec![file.encoded.clone().into()],
            }),
            None => not_found(requested),
        };
        match request {
            MessageRequest::FileByFilename(name) => file(self.files.iter().find(|f| f.name == *name), name),
            MessageRequest::FileContainingSymbol(symbol) => {
                file(self.files.iter().find(|f| f.symbols.contains(symbol)), symbol)
            }
            MessageRequest::ListServices(_) => {
                let services = self.files.iter().flat_map(|f| &f.services).cloned();
                let service = services.map(|name| ServiceResponse { name }).collect();
                MessageResponse::ListServicesResponse(ListServiceResponse { service })
            }
            // Messages of proto3 have no extensions.
            MessageRequest::FileContainingExtension(extension) => not_found(&extension.containing_type),
            MessageRequest::AllExtensionNumbersOfType(name) if self.files.iter().any(|f| f.symbols.contains(name)) => {
                MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                    base_type_name: name.clone(),
                    extension_number: Vec::new(),
                })
            }
            MessageRequest::AllExtensionNumbersOfType(name) => not_found(name),
        }
    }
}

fn not_found(requested: &str) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse {
        error_code: Code::NotFound as i32,
        error_message: format!("'{requested}' is not described by this server"),
    })
}

#[tonic::async_trait]
impl ServerReflection for ReflectionService {
    type ServerReflectionInfoStream = Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let service = self.clone();
        let responses = request.into_inner().map(move |request| {
            let request = request?;
            let requested = request.message_request.as_ref();
            let message =
                requested.map(|r| service.respond(r)).ok_or_else(|| Status::invalid_argument("no request"))?;
            Ok(ServerReflectionResponse {
                valid_host: request.host.clone(),
                original_request: Some(request),
                message_response: Some(message),
            })
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_is_described() {
        let reflection = ReflectionService::new();
        let MessageResponse::ListServicesResponse(list) = reflection.respond(&MessageRequest::ListServices("".into()))
        else {
            panic!("no list of services");
        };
        let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
        for (service, _, _) in super::super::METHODS {
            assert!(names.iter().any(|n| n == service), "{service} is not among {names:?}");
        }
        for symbol in [
            "inference.GRPCInferenceService.ModelInfer",
            "inference.ModelInferRequest.InferInputTensor",
            "inference.DataType",
        ] {
            let found = reflection.respond(&MessageRequest::FileContainingSymbol(symbol.into()));
            assert!(matches!(found, MessageResponse::FileDescriptorResponse(_)), "{symbol}");
        }
        let unknown = reflection.respond(&MessageRequest::FileByFilename("other.proto".into()));
        assert!(matches!(unknown, MessageResponse::ErrorResponse(e) if e.error_code == 5));
    }
}
