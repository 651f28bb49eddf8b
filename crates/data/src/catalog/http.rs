//! The repositories that a server knows, under `/api/v1/data/repositories`.
//!
//! Invariant: each handler gets its namespace from [`Place`], which has authorized the caller in it. Only administrators of the installation
//! register repositories, because a path or URL makes the server read what is there.

use axum::Json;
use axum::extract::{FromRequestParts, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_access::{Access, Routes, Verb, confine};

use super::{
    Catalog, Children, DataSets, DataVersions, DifferencesPage, Experiments, NewRepository, Opened, Places, Plots,
    Preview, Registered, StageGraph, Summary, Values,
};
use crate::error::DataError;
use crate::http::{Operation, authorize};

/// Entries of a page unless the request names another number.
const PAGE: usize = 200;
/// Commits of a table of experiments unless the request names another number.
const BASELINES: usize = 5;

/// Reads a repository. Runs have their data without it.
struct Viewing;
/// Registers a repository.
struct Registering;
/// Forgets a repository.
struct Forgetting;

impl Operation for Viewing {
    const VERB: Verb = Verb::Get;
    const BY_RUNS: bool = false;
}
impl Operation for Registering {
    const VERB: Verb = Verb::Create;
    const BY_RUNS: bool = false;
    const BY_ADMINISTRATORS: bool = true;
}
impl Operation for Forgetting {
    const VERB: Verb = Verb::Delete;
    const BY_RUNS: bool = false;
    const BY_ADMINISTRATORS: bool = true;
}

/// The namespace and name of a repository, where the caller may do the operation `O`.
struct Place<O> {
    namespace: Option<String>,
    name: String,
    operation: std::marker::PhantomData<O>,
}

impl<O: Operation + Send> FromRequestParts<Catalog> for Place<O> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, catalog: &Catalog) -> Result<Self, Response> {
        let named = authorize::<O, _>(parts, catalog).await?;
        if let Some(namespace) = &named.namespace {
            crate::service::check_name(namespace).map_err(IntoResponse::into_response)?;
        }
        Ok(Self { namespace: named.namespace, name: named.repository, operation: std::marker::PhantomData })
    }
}

/// The repositories of a namespace.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DataRepositories")]
pub struct Repositories {
    /// By name.
    pub repositories: Vec<Registered>,
}

/// A version of a repository.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct AtRevision {
    /// A commit, branch, tag or experiment; the last commit of the current branch if omitted.
    rev: Option<String>,
}

/// A path in a version.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct AtPath {
    /// The path of tracked data from the root of the project, or of a file or folder in it.
    path: String,
    /// A commit, branch, tag or experiment; the last commit of the current branch if omitted.
    rev: Option<String>,
}

/// A part of a list of files.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct FilesQuery {
    /// The path of tracked data from the root of the project, or of a folder in it.
    path: String,
    /// A commit, branch, tag or experiment; the last commit of the current branch if omitted.
    rev: Option<String>,
    /// Number of entries to skip.
    offset: Option<usize>,
    /// Maximum number of entries; at most 500.
    limit: Option<usize>,
}

/// Two versions of a path.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct DifferencesQuery {
    /// The path of tracked data from the root of the project, or of a file or folder in it.
    path: String,
    /// The old revision.
    from: String,
    /// The new revision; the last commit of the current branch if omitted.
    to: Option<String>,
    /// Number of files to skip.
    offset: Option<usize>,
    /// Maximum number of files; at most 500.
    limit: Option<usize>,
}

/// Several revisions.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct RevisionsQuery {
    /// Up to 8 revisions, separated by commas.
    revs: String,
}

/// The commits of a table of experiments.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct ExperimentsQuery {
    /// A commit, branch or tag; the last commit of the current branch if omitted.
    rev: Option<String>,
    /// Number of commits from there back; at most 20.
    commits: Option<usize>,
}

impl RevisionsQuery {
    fn list(&self) -> Vec<String> {
        self.revs.split(',').map(str::to_owned).collect()
    }
}

/// The routes of repositories. The namespace is in the path, or that of the installation, so the handlers decide about access.
pub fn routes(catalog: Catalog) -> Routes {
    of_namespace().nest("/namespaces/{namespace}", of_namespace()).with_state(catalog)
}

fn of_namespace() -> Routes<Catalog> {
    let access = Access::DecidedByHandler;
    let of_repository = Routes::new()
        .get("/datasets", access, data_sets)
        .get("/versions", access, versions)
        .get("/files", access, files)
        .get("/places", access, places)
        .get("/differences", access, differences)
        .get("/preview", access, preview)
        .get("/picture", access, picture)
        .get("/stages", access, stages)
        .get("/values", access, values)
        .get("/plots", access, plots)
        .get("/experiments", access, experiments);
    Routes::new()
        .get("/repositories", access, list)
        .post("/repositories", access, add)
        .get("/repositories/{repository}", access, summary)
        .delete("/repositories/{repository}", access, remove)
        .nest("/repositories/{repository}", of_repository)
}

async fn list(State(catalog): State<Catalog>, place: Place<Viewing>) -> Result<Json<Repositories>, DataError> {
    Ok(Json(Repositories { repositories: catalog.list(place.namespace.as_deref()).await? }))
}

async fn add(
    State(catalog): State<Catalog>,
    place: Place<Registering>,
    Json(new): Json<NewRepository>,
) -> Result<Json<Registered>, DataError> {
    Ok(Json(catalog.add(place.namespace.as_deref(), new).await?))
}

async fn remove(State(catalog): State<Catalog>, place: Place<Forgetting>) -> Result<StatusCode, DataError> {
    catalog.remove(place.namespace.as_deref(), &place.name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Reads the repository of a request at a revision.
async fn read<T: Send + 'static>(
    catalog: &Catalog,
    place: &Place<Viewing>,
    revision: Option<&str>,
    work: impl FnOnce(&Opened) -> Result<T, DataError> + Send + 'static,
) -> Result<Json<T>, DataError> {
    catalog.read(place.namespace.as_deref(), &place.name, revision, work).await.map(Json)
}

async fn summary(
    State(catalog): State<Catalog>,
    place: Place<Viewing>,
    Query(query): Query<AtRevision>,
) -> Result<Json<Summary>, DataError> {
    read(&catalog, &place, query.rev.as_deref(), Opened::summary).await
}

async fn data_sets(
    State(catalog): State<Catalog>,
    place: Place<Viewing>,
    Query(query): Query<AtRevision>,
) -> Result<Json<DataSets>, DataError> {
    read(&catalog, &place, query.rev.as_deref(), Opened::data_sets).await
}

async fn versions(
    State(catalog): State<Catalog>,
    place: Place<Viewing>,
    Query(query): Query<AtPath>,
) -> Result<Json<DataVersions>, DataError> {
    read(&catalog, &place, query.rev.clone().as_deref(), move |opened| opened.versions(&query.path)).await
}

async fn files(
    State(catalog): State<Catalog>,
    place: Place<Viewing>,
    Query(query): Query<FilesQuery>,
) -> Result<Json<Children>, DataError> {
    let (offset, limit) = (query.offset.unwrap_or(0), query.limit.unwrap_or(PAGE));
    read(&catalog, &place, query.rev.clone().as_deref(), move |opened| opened.children(&query.path, offset, limit))
        .await
}

async fn places(
    State(catalog): State<Catalog>,
    place: Place<Viewing>,
    Query(query): Query<AtPath>,
) -> Result<Json<Places>, DataError> {
    read(&catalog, &place, query.rev.clone().as_deref(), move |opened| opened.places(&query.path)).await
}

async fn differences(
    State(catalog): State<Catalog>,
    place: Place<Viewing>,
    Query(query): Query<DifferencesQuery>,
) -> Result<Json<DifferencesPage>, DataError> {
    let (to, offset, limit) = (query.to.clone(), query.offset.unwrap_or(0), query.limit.unwrap_or(PAGE));
    let work = move |opened: &Opened| opened.differences(&query.path, &query.from, offset, limit);
    read(&catalog, &place, to.as_deref(), work).await
}

async fn preview(
    State(catalog): State<Catalog>,
    place: Place<Viewing>,
    Query(query): Query<AtPath>,
) -> Result<Json<Preview>, DataError> {
    read(&catalog, &place, query.rev.clone().as_deref(), move |opened| opened.preview(&query.path)).await
}

/// Sends a picture. Browsers take it for nothing else, also when it is opened as a page.
async fn picture(
    State(catalog): State<Catalog>,
    place: Place<Viewing>,
    Query(query): Query<AtPath>,
) -> Result<Response, DataError> {
    let Json((media, bytes)) = read(&catalog, &place, query.rev.clone().as_deref(), move |opened| {
        opened.picture(&query.path).map(|picture| (picture.media, picture.bytes))
    })
    .await?;
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("inline"));
    confine(headers);
    Ok(response)
}

async fn stages(
    State(catalog): State<Catalog>,
    place: Place<Viewing>,
    Query(query): Query<AtRevision>,
) -> Result<Json<StageGraph>, DataError> {
    read(&catalog, &place, query.rev.as_deref(), Opened::stage_graph).await
}

async fn values(
    State(catalog): State<Catalog>,
    place: Place<Viewing>,
    Query(query): Query<RevisionsQuery>,
) -> Result<Json<Values>, DataError> {
    read(&catalog, &place, None, move |opened| opened.values(&query.list())).await
}

async fn plots(
    State(catalog): State<Catalog>,
    place: Place<Viewing>,
    Query(query): Query<RevisionsQuery>,
) -> Result<Json<Plots>, DataError> {
    read(&catalog, &place, None, move |opened| opened.plots(&query.list())).await
}

async fn experiments(
    State(catalog): State<Catalog>,
    place: Place<Viewing>,
    Query(query): Query<ExperimentsQuery>,
) -> Result<Json<Experiments>, DataError> {
    let commits = query.commits.unwrap_or(BASELINES);
    read(&catalog, &place, query.rev.clone().as_deref(), move |opened| opened.experiments(commits)).await
}
