//! Pipelines and their versions.

use axum::extract::{Extension, Path, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use slipway_access::{Access, Decision, Routes, Verb};

use super::failure::{Attempt, Code, Failure};
use super::request::{Input, Named, Query, authorize, authorize_named, done, respond};
use super::wire::{PipelineMessage, VersionMessage};
use crate::entity::Tags;
use crate::proto_json::Message;
use crate::service::{NewPipeline, NewVersion, Service};

pub(super) fn routes() -> Routes<Service> {
    let access = Access::DecidedByHandler;
    Routes::new()
        .get("/pipelines", access, list)
        .post("/pipelines", access, create)
        .post("/pipelines/create", access, create_with_version)
        .get("/pipelines/names/{name}", access, show_by_name)
        .get("/pipelines/{id}", access, show)
        .patch("/pipelines/{id}", access, update)
        .delete("/pipelines/{id}", access, remove)
        .get("/pipelines/{id}/versions", access, list_versions)
        .post("/pipelines/{id}/versions", access, create_version)
        .get("/pipelines/{id}/versions/{version_id}", access, show_version)
        .patch("/pipelines/{id}/versions/{version_id}", access, update_version)
        .delete("/pipelines/{id}/versions/{version_id}", access, remove_version)
}

/// A pipeline in a request. Fields that the server sets are ignored.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct PipelineInput {
    display_name: String,
    name: String,
    description: String,
    namespace: String,
    tags: Option<Tags>,
    #[serde(rename = "pipeline_id")]
    _id: Value,
    #[serde(rename = "created_at")]
    _created_at: Value,
    #[serde(rename = "error")]
    _error: Value,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct UrlInput {
    pipeline_url: String,
}

/// A version in a request. Fields that the server sets are ignored; the specification always comes from the URL.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct VersionInput {
    display_name: String,
    name: String,
    description: String,
    package_url: Message<UrlInput>,
    code_source_url: String,
    tags: Option<Tags>,
    #[serde(rename = "pipeline_id")]
    _pipeline_id: Value,
    #[serde(rename = "pipeline_version_id")]
    _id: Value,
    #[serde(rename = "created_at")]
    _created_at: Value,
    #[serde(rename = "pipeline_spec")]
    _spec: Value,
    #[serde(rename = "error")]
    _error: Value,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct CreateInput {
    pipeline: Message<PipelineInput>,
    pipeline_version: Message<VersionInput>,
}

async fn create(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Input(new): Input<PipelineInput>,
) -> Result<Response, Failure> {
    let namespace = service.namespace(&new.namespace);
    authorize(&decision, Verb::Create, &namespace).await?;
    let new = NewPipeline {
        namespace,
        name: new.name,
        display_name: new.display_name,
        description: new.description,
        tags: new.tags.unwrap_or_default(),
    };
    let created = service.create_pipeline(new).await.attempt("Failed to create a pipeline")?;
    Ok(respond(&PipelineMessage::new(&service, &created)))
}

/// The name of the file at a URL.
fn file_name(url: &str) -> &str {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default()
}

async fn create_with_version(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Input(new): Input<CreateInput>,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to create a pipeline due to server error";
    let (pipeline, version) = (new.pipeline.0, new.pipeline_version.0);
    let namespace = service.namespace(&pipeline.namespace);
    authorize(&decision, Verb::Create, &namespace).await?;
    let url = version.package_url.0.pipeline_url;
    if url.is_empty() {
        return Err(missing_url());
    }
    let named = [pipeline.name.as_str(), pipeline.display_name.as_str(), file_name(&url)];
    let name = named.into_iter().find(|name| !name.is_empty()).unwrap_or_default().to_owned();
    let text = service.download_package(&url).await.attempt(ATTEMPT)?;
    let first = NewVersion {
        name: name.clone(),
        display_name: pipeline.display_name.clone(),
        description: pipeline.description.clone(),
        package_url: url,
        code_source_url: version.code_source_url,
        tags: version.tags.unwrap_or_default(),
    };
    let new = NewPipeline {
        namespace,
        name,
        display_name: pipeline.display_name,
        description: pipeline.description,
        tags: pipeline.tags.unwrap_or_default(),
    };
    let created = service.create_pipeline_and_version(new, first, text).await.attempt(ATTEMPT)?;
    Ok(respond(&PipelineMessage::new(&service, &created)))
}

fn missing_url() -> Failure {
    Failure::new(Code::InvalidArgument, "Failed to create a pipeline version due to missing pipeline URL")
}

/// Authorizes the caller for a pipeline, which must exist.
pub(super) async fn authorize_pipeline(
    service: &Service,
    decision: &Decision,
    verb: Verb,
    id: &str,
) -> Result<(), Failure> {
    let namespace = service.pipeline(id)?.namespace;
    authorize_named(decision, verb, &Named { kind: "Pipeline", id, namespace: &namespace, attempt: "" }).await
}

async fn show(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to get a pipeline. Check error stack";
    let pipeline = service.pipeline(&id).attempt(ATTEMPT)?;
    let named = Named { kind: "Pipeline", id: &id, namespace: &pipeline.namespace, attempt: ATTEMPT };
    authorize_named(&decision, Verb::Get, &named).await?;
    Ok(respond(&PipelineMessage::new(&service, &pipeline)))
}

async fn show_by_name(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(name): Path<String>,
    query: Query,
) -> Result<Response, Failure> {
    let namespace = service.namespace(query.text("namespace"));
    authorize(&decision, Verb::Get, &namespace).await?;
    let attempt = format!("Failed to get a pipeline with name {name} and namespace {namespace}. Check error stack");
    let pipeline = service.pipeline_by_name(&namespace, &name).attempt(&attempt)?;
    Ok(respond(&PipelineMessage::new(&service, &pipeline)))
}

#[derive(Serialize)]
struct List<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pipelines: Vec<PipelineMessage<'a>>,
    #[serde(skip_serializing_if = "super::is_zero")]
    total_size: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

async fn list(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    query: Query,
) -> Result<Response, Failure> {
    let namespace = service.namespace(query.text("namespace"));
    authorize(&decision, Verb::List, &namespace).await?;
    let page = service.pipelines(namespace, &query.list()?).await.attempt("Failed to list pipelines")?;
    Ok(respond(&List {
        pipelines: page.items.iter().map(|item| PipelineMessage::new(&service, item)).collect(),
        total_size: page.total,
        next_page_token: page.next_page_token,
    }))
}

async fn update(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
    Input(change): Input<PipelineInput>,
) -> Result<Response, Failure> {
    let attempt = format!("Failed to update pipeline {id}. Check error stack");
    authorize_pipeline(&service, &decision, Verb::Update, &id).await.attempt(&attempt)?;
    let updated = service.update_pipeline(id, change.display_name, change.tags).await.attempt(&attempt)?;
    Ok(respond(&PipelineMessage::new(&service, &updated)))
}

async fn remove(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, Failure> {
    let attempt = format!("Failed to delete pipeline {id}. Check error stack");
    authorize_pipeline(&service, &decision, Verb::Delete, &id).await.attempt(&attempt)?;
    service.delete_pipeline(id, query.flag("cascade")?).await.attempt(&attempt)?;
    Ok(done())
}

async fn create_version(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
    Input(new): Input<VersionInput>,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to create a pipeline version. Check error stack";
    authorize_pipeline(&service, &decision, Verb::Create, &id).await.attempt(ATTEMPT)?;
    let url = new.package_url.0.pipeline_url;
    if url.is_empty() {
        return Err(missing_url());
    }
    let text = service.download_package(&url).await.attempt(ATTEMPT)?;
    let new = NewVersion {
        name: new.name,
        display_name: new.display_name,
        description: new.description,
        package_url: url,
        code_source_url: new.code_source_url,
        tags: new.tags.unwrap_or_default(),
    };
    let created = service.create_version(id, new, text).await.attempt(ATTEMPT)?;
    let spec = service.specification(&created.spec)?;
    Ok(respond(&VersionMessage::new(&created, &spec)?))
}

async fn show_version(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path((id, version_id)): Path<(String, String)>,
) -> Result<Response, Failure> {
    let attempt = format!("Failed to get a pipeline version with id {version_id}");
    authorize_pipeline(&service, &decision, Verb::Get, &id).await.attempt(&attempt)?;
    let (version, spec) = service.version(&id, &version_id).attempt(&attempt)?;
    Ok(respond(&VersionMessage::new(&version, &spec)?))
}

#[derive(Serialize)]
struct VersionList<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pipeline_versions: Vec<VersionMessage<'a>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
    #[serde(skip_serializing_if = "super::is_zero")]
    total_size: i64,
}

async fn list_versions(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, Failure> {
    const ATTEMPT: &str = "Failed to list pipeline versions";
    authorize_pipeline(&service, &decision, Verb::List, &id).await.attempt(ATTEMPT)?;
    let page = service.versions(id, &query.list()?).await.attempt(ATTEMPT)?;
    Ok(respond(&VersionList {
        pipeline_versions: page
            .items
            .iter()
            .map(|(version, spec)| VersionMessage::new(version, spec))
            .collect::<Result<_, _>>()?,
        next_page_token: page.next_page_token,
        total_size: page.total,
    }))
}

async fn update_version(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path((id, version_id)): Path<(String, String)>,
    Input(change): Input<VersionInput>,
) -> Result<Response, Failure> {
    let attempt = format!("Failed to update pipeline version {version_id}. Check error stack");
    authorize_pipeline(&service, &decision, Verb::Update, &id).await.attempt(&attempt)?;
    let updated = service.update_version(id, version_id, change.display_name, change.tags).await;
    let (version, spec) = updated.attempt(&attempt)?;
    Ok(respond(&VersionMessage::new(&version, &spec)?))
}

async fn remove_version(
    State(service): State<Service>,
    Extension(decision): Extension<Decision>,
    Path((id, version_id)): Path<(String, String)>,
) -> Result<Response, Failure> {
    let attempt = format!("Failed to delete a pipeline version id {version_id} under pipeline id {id}");
    authorize_pipeline(&service, &decision, Verb::Delete, &id).await.attempt(&attempt)?;
    service.delete_version(id, version_id).await.attempt(&attempt)?;
    Ok(done())
}
