//! Uploads of packages: forms with the file in the field `uploadfile`, and everything else in the query. Their errors have another form
//! than those of the other routes: `{"error_message", "error_details"}`.

use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;
use slipway_access::{Access, Decision, Routes, Verb};

use super::failure::{Code, Failure};
use super::multipart;
use super::pipelines::authorize_pipeline;
use super::request::{Query, authorize, body, json_response, respond};
use super::wire::{PipelineMessage, VersionMessage};
use crate::Error;
use crate::entity::Tags;
use crate::service::{NewPipeline, NewVersion, Service, read_package};

pub(super) fn routes() -> Routes<Service> {
    Routes::new().post("/pipelines/upload", Access::DecidedByHandler, upload).post(
        "/pipelines/upload_version",
        Access::DecidedByHandler,
        upload_version,
    )
}

/// An error of the routes that do not go through upstream's gateway.
pub(super) fn form_error(status: StatusCode, message: &str) -> Response {
    json_response(status, json!({"error_message": message, "error_details": message}).to_string())
}

/// A failed upload: what was attempted, and the reason, which upstream only logs.
fn failed(attempt: &str) -> impl Fn(Failure) -> Response {
    let attempt = attempt.to_owned();
    move |failure| {
        // Upstream reports a missing permission and a missing pipeline as 400; the true codes help more, and clients treat all alike.
        let message =
            if failure.code() == Code::Internal { attempt.clone() } else { format!("{attempt}: {}", failure.reason()) };
        form_error(failure.status(), &message)
    }
}

/// What an upload has in its form and query.
struct Upload {
    file_name: String,
    text: String,
    tags: Tags,
}

async fn read(request: Request, query: &Query) -> Result<Upload, Failure> {
    let headers = request.headers().clone();
    let body = body(request, &()).await?;
    let invalid = |reason: &str| Failure::new(Code::InvalidArgument, reason);
    let file = multipart::file(&headers, &body, "uploadfile")
        .ok_or_else(|| invalid("Failed to read pipeline from file: the form has no file in the field uploadfile"))?;
    let (file_name, content) = (file.name, file.content.to_vec());
    let name = file_name.clone();
    let text = tokio::task::spawn_blocking(move || read_package(&name, content))
        .await
        .map_err(|error| Failure::new(Code::Internal, error.to_string()))?
        .map_err(Error::from)?;
    let tags = match query.text("tags") {
        "" => Tags::new(),
        text => serde_json::from_str(text).map_err(|_| {
            invalid("Failed to parse tags query parameter. Expected JSON object with string keys and values")
        })?,
    };
    Ok(Upload { file_name, text, tags })
}

/// The name of what is uploaded: the one in the query, else the one for users, else that of the file.
fn name(query: &Query, file_name: &str) -> String {
    let names = [query.text("name"), query.text("display_name"), file_name];
    names.into_iter().find(|name| !name.is_empty()).unwrap_or_default().to_owned()
}

async fn upload(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    query: Query,
    request: Request,
) -> Result<Response, Response> {
    let failed = failed("Failed to create a pipeline and a pipeline version");
    let namespace = service.namespace(query.text("namespace"));
    authorize(&decision, Verb::Create, &namespace).await.map_err(&failed)?;
    let upload = read(request, &query).await.map_err(&failed)?;
    let name = name(&query, &upload.file_name);
    let description = query.text("description").to_owned();
    let first = NewVersion {
        name: name.clone(),
        display_name: query.text("display_name").to_owned(),
        description: description.clone(),
        code_source_url: query.text("code_source_url").to_owned(),
        ..NewVersion::default()
    };
    let new = NewPipeline {
        namespace,
        name,
        display_name: query.text("display_name").to_owned(),
        description,
        tags: upload.tags,
    };
    let created = service.create_pipeline_and_version(new, first, upload.text).await;
    let created = created.map_err(|error| failed(error.into()))?;
    Ok(respond(&PipelineMessage::new(&service, &created)))
}

async fn upload_version(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    query: Query,
    request: Request,
) -> Result<Response, Response> {
    let failed = failed("Failed to create a pipeline version");
    let pipeline_id = query.text("pipelineid").to_owned();
    authorize_pipeline(&service, &decision, Verb::Create, &pipeline_id).await.map_err(&failed)?;
    let upload = read(request, &query).await.map_err(&failed)?;
    let new = NewVersion {
        name: name(&query, &upload.file_name),
        display_name: query.text("display_name").to_owned(),
        description: query.text("description").to_owned(),
        code_source_url: query.text("code_source_url").to_owned(),
        tags: upload.tags,
        ..NewVersion::default()
    };
    let created = service.create_version(pipeline_id, new, upload.text).await;
    let created = created.map_err(|error| failed(error.into()))?;
    let spec = service.specification(&created.spec).map_err(|error| failed(error.into()))?;
    Ok(respond(&VersionMessage::new(&created, &spec).map_err(&failed)?))
}
