//! The repositories of versioned data that the server reads, once for those of the installation and once for those of a namespace.

use axum::http::StatusCode;
use slipway_data::catalog::http::{
    AtPath, AtRevision, DifferencesQuery, ExperimentsQuery, FilesQuery, Repositories, RevisionsQuery,
};
use slipway_data::catalog::{
    Children, DataSets, DataVersions, DifferencesPage, Experiments, NewRepository, Places, Plots, Preview, Registered,
    StageGraph, Summary, Values,
};

use super::{JSON, Operation, delete, get, post};
use crate::openapi::Content;

/// The operations below `$prefix`, with `$suffix` at the end of their names and `$of` at the end of their summaries.
macro_rules! below {
    ($prefix:literal, $suffix:literal, $of:literal) => {
        vec![
            below!(get $prefix, "", "listDataRepositories", $suffix, "Repositories of versioned data", $of)
                .json::<Repositories>(),
            below!(post $prefix, "", "addDataRepository", $suffix, "Register a repository of versioned data", $of)
                .request::<NewRepository>(JSON)
                .json::<Registered>(),
            below!(get $prefix, "/{repository}", "getDataRepository", $suffix, "A repository at a revision", $of)
                .query::<AtRevision>()
                .json::<Summary>(),
            below!(delete $prefix, "/{repository}", "removeDataRepository", $suffix, "Forget a repository", $of),
            below!(get $prefix, "/{repository}/datasets", "listDataSets", $suffix, "Data sets of a repository", $of)
                .query::<AtRevision>()
                .json::<DataSets>(),
            below!(get $prefix, "/{repository}/versions", "listDataVersions", $suffix, "Commits that changed a data set", $of)
                .query::<AtPath>()
                .json::<DataVersions>(),
            below!(get $prefix, "/{repository}/files", "listDataFiles", $suffix, "Files of a version of data", $of)
                .query::<FilesQuery>()
                .json::<Children>(),
            below!(get $prefix, "/{repository}/places", "findDataPlaces", $suffix, "Where the bytes of a version are", $of)
                .query::<AtPath>()
                .json::<Places>(),
            below!(get $prefix, "/{repository}/differences", "compareDataVersions", $suffix, "Differences of two versions", $of)
                .query::<DifferencesQuery>()
                .json::<DifferencesPage>(),
            below!(get $prefix, "/{repository}/preview", "previewData", $suffix, "The beginning of a file of a version", $of)
                .query::<AtPath>()
                .json::<Preview>(),
            below!(get $prefix, "/{repository}/picture", "getDataPicture", $suffix, "A picture of a version", $of)
                .query::<AtPath>()
                .response(StatusCode::OK, Content::Picture),
            below!(get $prefix, "/{repository}/stages", "getDataStages", $suffix, "The graph of stages, and which are stale", $of)
                .query::<AtRevision>()
                .json::<StageGraph>(),
            below!(get $prefix, "/{repository}/values", "compareDataValues", $suffix, "Metrics and parameters of several revisions", $of)
                .query::<RevisionsQuery>()
                .json::<Values>(),
            below!(get $prefix, "/{repository}/plots", "drawDataPlots", $suffix, "Plots of several revisions", $of)
                .query::<RevisionsQuery>()
                .json::<Plots>(),
            below!(get $prefix, "/{repository}/experiments", "listDataExperiments", $suffix, "Commits with their experiments", $of)
                .query::<ExperimentsQuery>()
                .json::<Experiments>(),
        ]
    };
    ($method:ident $prefix:literal, $path:literal, $id:literal, $suffix:literal, $summary:literal, $of:literal) => {
        $method(concat!($prefix, "/repositories", $path), concat!($id, $suffix), concat!($summary, $of))
    };
}

pub(super) fn operations() -> Vec<Operation> {
    let mut all = below!("/api/v1/data", "", "");
    all.extend(below!("/api/v1/data/namespaces/{namespace}", "OfNamespace", " of a namespace"));
    all
}
