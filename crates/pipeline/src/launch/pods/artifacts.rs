//! Artifacts of steps in the object store. Their URIs are `slipway-pipelines:/NAMESPACE/RUN/TASK/ATTEMPT/INDEX/OUTPUT`.
//!
//! Invariant: a URI leads to an object only for the namespace that it names, so that a pipeline cannot read the artifacts of another tenant
//! by importing their URIs.

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use slipway_store::{Objects, StoreError};

use crate::error::Error;
use crate::launch::{ArtifactStream, buckets, file_name};
use crate::model::Artifact;

/// What the URIs of artifacts begin with; a path in the object store follows.
pub(super) const SCHEME: &str = "slipway-pipelines:/";

/// What the URIs of the outputs of an attempt in the object store begin with.
pub(super) fn prefix(namespace: &str, step: &str, place: &str, run_id: &str) -> String {
    format!("{SCHEME}{namespace}/{run_id}/{step}/{place}")
}

/// The URI of an output below a prefix.
pub(crate) fn uri(prefix: &str, name: &str, index: usize) -> String {
    format!("{prefix}/{index}/{}", file_name(name))
}

/// The path in the object store of an artifact of this namespace; `None` for any other.
pub(super) fn object_of<'a>(uri: &'a str, namespace: &str) -> Option<&'a str> {
    let path = uri.strip_prefix(SCHEME)?;
    let (owner, rest) = path.split_once('/')?;
    let is_plain = rest.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    (owner == namespace && is_plain).then_some(path)
}

/// The files of an artifact.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Files {
    /// Whether it is one file; else the paths are those in a folder.
    pub(crate) is_file: bool,
    /// Paths in the folder.
    pub(crate) paths: Vec<String>,
}

/// The files of an artifact. An artifact that was never written has none.
pub(super) async fn files(objects: &Objects, path: &str) -> Result<Files, StoreError> {
    match objects.get(path).await {
        Ok(_) => return Ok(Files { is_file: true, paths: Vec::new() }),
        Err(StoreError::NotFound(_) | StoreError::IsFolder(_)) => {}
        Err(error) => return Err(error),
    }
    let below = format!("{path}/");
    let found = objects.walk(path).await?;
    let mut paths: Vec<String> =
        found.into_iter().map(|found| found.strip_prefix(&below).map_or(found.clone(), str::to_owned)).collect();
    paths.sort();
    Ok(Files { is_file: false, paths })
}

/// Whether the content of an artifact is still there. One without a digest never had any, or is elsewhere.
pub(super) async fn is_there(objects: &Objects, artifact: &Artifact) -> bool {
    let Some(path) = artifact.uri.strip_prefix(SCHEME).filter(|_| artifact.digest.is_some()) else { return true };
    files(objects, path).await.is_ok_and(|files| files.is_file || !files.paths.is_empty())
}

/// The content of an artifact that is a file.
pub(super) async fn read(objects: &Objects, namespace: &str, artifact: &Artifact) -> Result<ArtifactStream, Error> {
    if buckets::is_bucket(&artifact.uri) {
        let reason =
            format!("artifact {} is at {}, which only the pods of its namespace can read", artifact.id, artifact.uri);
        return Err(Error::NotFound(reason));
    }
    let missing = || Error::NotFound(format!("artifact {} has no file in this installation", artifact.id));
    let path = object_of(&artifact.uri, namespace).ok_or_else(missing)?;
    let reader = match objects.get(path).await {
        Err(StoreError::NotFound(_) | StoreError::IsFolder(_)) => return Err(missing()),
        found => found?,
    };
    let size = reader.size;
    let what = "reading an artifact";
    Ok(reader.stream(0, size).map(move |piece| piece.map_err(|source| Error::Io { what: what.into(), source })).boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_lead_to_objects_of_their_own_namespace_only() {
        let uri = uri(&prefix("team-a", "train-1", "1", "run"), "model", 0);
        assert_eq!(object_of(&uri, "team-a"), Some("team-a/run/train-1/1/0/model"));
        assert_eq!(object_of(&uri, "team-b"), None);
        for uri in [
            "slipway-pipelines:/team-a/../team-b/x",
            "slipway-pipelines:/team-a//x",
            "gs://team-a/x",
            "slipway-pipelines:/team-a",
        ] {
            assert_eq!(object_of(uri, "team-a"), None, "{uri}");
        }
    }
}
