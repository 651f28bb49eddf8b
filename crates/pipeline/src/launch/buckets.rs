//! Artifacts in buckets and on web servers: copies of inputs, and delivery of outputs, with the credentials of this process: those that each
//! vendor's own tools read from the environment.
//!
//! On one machine this process is the server, and steps need no credentials. In a cluster it is the program in the pod of a step, so that
//! what a tenant can read is what the tenant has credentials for, not what the control plane has.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use slipway_core::hex;
use slipway_core::tls::{self, Trust};
use slipway_store::{Limits, Objects, StoreError};
use tokio::io::AsyncWriteExt;

use crate::error::Error;
use crate::launch::ArtifactStream;
use crate::launch::content;

/// Schemes of buckets: as URIs of artifacts have them, as the store has them, and the prefix of the environment variables with their settings.
/// Kubeflow's own MinIO is a service with S3's protocol.
const BUCKETS: &[(&str, &str, &str)] =
    &[("s3", "s3", "AWS_"), ("minio", "s3", "AWS_"), ("gs", "gs", "GOOGLE_"), ("az", "az", "AZURE_")];
/// Words of the names of variables with credentials or with the address of a service.
const CREDENTIALS: &[&str] = &["KEY", "TOKEN", "CREDENTIALS", "ACCOUNT", "ENDPOINT", "METADATA"];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a web server may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// An object, or the objects below a prefix.
#[derive(Debug, PartialEq, Eq)]
struct Location<'a> {
    /// URL of the bucket.
    bucket: String,
    /// Prefix of the environment variables with the settings of its service.
    variables: &'static str,
    key: &'a str,
}

impl<'a> Location<'a> {
    fn parse(uri: &'a str) -> Option<Self> {
        let (scheme, rest) = uri.split_once("://")?;
        let (_, known, variables) = BUCKETS.iter().find(|(name, ..)| *name == scheme)?;
        // Kubeflow's roots may name the service behind a question mark; here the environment does.
        let rest = rest.split_once('?').map_or(rest, |(before, _)| before);
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        (!bucket.is_empty()).then(|| Self { bucket: format!("{known}://{bucket}"), variables, key })
    }

    fn has_credentials(&self) -> bool {
        std::env::vars_os().any(|(name, _)| {
            let name = name.to_str().and_then(|name| name.strip_prefix(self.variables));
            name.is_some_and(|rest| CREDENTIALS.iter().any(|word| rest.contains(word)))
        })
    }
}

/// Whether a URI names a bucket.
pub(crate) fn is_bucket(uri: &str) -> bool {
    Location::parse(uri).is_some()
}

/// Whether a URI names a bucket or a file on a web server.
pub(crate) fn is_remote(uri: &str) -> bool {
    is_bucket(uri) || is_web(uri)
}

/// The URI of what has a path below the root of a run, if the root is in a bucket.
pub(crate) fn below(root: &str, path: &str) -> Option<String> {
    // What Kubeflow's roots have behind a question mark is about the service, and would hide the path.
    let root = root.split_once('?').map_or(root, |(before, _)| before);
    is_bucket(root).then(|| format!("{}/{path}", root.trim_end_matches('/')))
}

fn is_web(uri: &str) -> bool {
    uri.starts_with("http://") || uri.starts_with("https://")
}

/// Whether the environment of this process has credentials for the service of a bucket.
pub(crate) fn has_credentials(uri: &str) -> bool {
    Location::parse(uri).is_some_and(|location| location.has_credentials())
}

/// The buckets and web servers that artifacts are in.
#[derive(Debug)]
pub(crate) struct Buckets {
    /// Folder of local copies.
    copies: PathBuf,
    limits: Limits,
    /// How this process gets credentials, for the message about missing ones.
    remedy: &'static str,
    /// Open buckets by URL.
    open: Mutex<HashMap<String, Objects>>,
}

impl Buckets {
    /// `remedy` is a sentence about how this process gets credentials.
    pub(crate) fn new(copies: PathBuf, limits: Limits, remedy: &'static str) -> Self {
        Self { copies, limits, remedy, open: Mutex::default() }
    }

    /// Opens a bucket. Blocks while it removes the copies of an earlier process; steps have links to them, which stay.
    fn bucket(&self, location: &Location<'_>) -> Result<Objects, StoreError> {
        let url = location.bucket.as_str();
        if !location.has_credentials() {
            // Without this, clients search for a cloud's own service for minutes.
            let (variables, remedy) = (location.variables, self.remedy);
            return Err(StoreError::Url(format!(
                "{url}: the environment has no credentials for it, which are variables {variables}* as the vendor's own tools use them; \
                 {remedy}"
            )));
        }
        let mut open = self.open.lock();
        if let Some(found) = open.get(url) {
            return Ok(found.clone());
        }
        let digest = ring::digest::digest(&ring::digest::SHA256, url.as_bytes());
        let copies = self.copies.join(hex::encode(&digest.as_ref()[..8]));
        let opened = Objects::connect_with(url, copies, self.limits)?;
        open.insert(url.to_owned(), opened.clone());
        Ok(opened)
    }

    /// Makes the content of a URI appear at a path, read-only, unless it is there. The path is below the folder of an attempt.
    ///
    /// # Errors
    /// The reason.
    pub(crate) async fn fetch(&self, uri: &str, target: &Path) -> Result<(), String> {
        if target.exists() {
            return Ok(());
        }
        let io = |error: std::io::Error| format!("creating {}: {error}", target.display());
        let folder = target.parent().ok_or("the place of the copy has no folder")?;
        tokio::fs::create_dir_all(folder).await.map_err(io)?;
        let temporary = folder.join(format!(".{}", slipway_core::ids::hex32()));
        if is_web(uri) {
            self.download(uri, &temporary).await?;
        } else {
            let location = Location::parse(uri).ok_or("it is not in a bucket")?;
            let bucket = self.bucket(&location).map_err(|error| error.to_string())?;
            let copy = bucket.local_path(location.key).await.map_err(|error| error.to_string())?;
            let linked = temporary.clone();
            let links = tokio::task::spawn_blocking(move || link(&copy, &linked));
            links.await.map_err(|error| error.to_string())?.map_err(io)?;
        }
        let (sealed, target) = (temporary.clone(), target.to_owned());
        let moved = tokio::task::spawn_blocking(move || {
            content::protect(&sealed);
            std::fs::rename(&sealed, &target)
        });
        moved.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// Downloads a file from a web server.
    async fn download(&self, url: &str, target: &Path) -> Result<(), String> {
        let tls = tls::client(Trust::System).map_err(|error| error.to_string())?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .map_err(|error| error.to_string())?;
        // A URL may contain a password, and the text of an error its URL.
        let failed = |error: reqwest::Error| error.without_url().to_string();
        let response = client.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
        let mut file = tokio::fs::File::create_new(target).await.map_err(|error| error.to_string())?;
        let mut chunks = response.bytes_stream();
        let mut size = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(failed)?;
            size += chunk.len() as u64;
            if size > self.limits.max_object_bytes {
                return Err(format!("it has more than {} bytes", self.limits.max_object_bytes));
            }
            file.write_all(&chunk).await.map_err(|error| error.to_string())?;
        }
        file.flush().await.map_err(|error| error.to_string())
    }

    /// Copies a file or folder to a URI. Does nothing if there is nothing at the path.
    ///
    /// # Errors
    /// The reason.
    pub(crate) async fn deliver(&self, path: &Path, uri: &str) -> Result<(), String> {
        if !path.exists() {
            return Ok(());
        }
        let location = Location::parse(uri).ok_or("it is not in a bucket")?;
        let bucket = self.bucket(&location).map_err(|error| error.to_string())?;
        let root = path.to_owned();
        let files = tokio::task::spawn_blocking(move || content::files(&root)).await;
        let files = files.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        for file in files {
            let key = match file.strip_prefix(path).ok().and_then(Path::to_str) {
                Some("") => location.key.to_owned(),
                Some(relative) => format!("{}/{relative}", location.key),
                None => return Err(format!("the name of {} is not UTF-8", file.display())),
            };
            let opened = tokio::fs::File::open(&file).await.map_err(|error| error.to_string())?;
            let pieces = content::pieces(opened).boxed();
            bucket.put(&key, pieces).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Whether there is an object at a URI, or below it.
    pub(crate) async fn has(&self, uri: &str) -> bool {
        let Some(location) = Location::parse(uri) else { return false };
        let Ok(bucket) = self.bucket(&location) else { return false };
        matches!(bucket.get(location.key).await, Ok(_) | Err(StoreError::IsFolder(_)))
    }

    /// The content of the object at a URI.
    ///
    /// # Errors
    /// [`Error::NotFound`], or an error of the store.
    pub(crate) async fn read(&self, uri: &str) -> Result<ArtifactStream, Error> {
        let missing = || Error::NotFound(format!("there is no file at {uri}"));
        let location = Location::parse(uri).ok_or_else(missing)?;
        let found = self.bucket(&location)?.get(location.key).await.map_err(|error| match error {
            StoreError::NotFound(_) | StoreError::IsFolder(_) => missing(),
            other => other.into(),
        })?;
        let size = found.size;
        let failed = |source| Error::Io { what: "reading an artifact".into(), source };
        Ok(found.stream(0, size).map(move |chunk| chunk.map_err(failed)).boxed())
    }
}

/// Makes a file or folder appear at a second path. Its files are linked, or copied where that is not possible.
fn link(from: &Path, to: &Path) -> std::io::Result<()> {
    if from.is_dir() {
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            link(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    match std::fs::hard_link(from, to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => std::fs::copy(from, to).map(drop),
        linked => linked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_recognized() {
        let location = Location::parse("minio://mlpipeline/v2/a b?region=x").unwrap();
        assert_eq!((location.bucket.as_str(), location.key), ("s3://mlpipeline", "v2/a b"));
        assert!(is_remote("https://host/x.csv") && !is_bucket("https://host/x.csv"));
        for other in ["/a", "file:///a", "oci://registry/image", "s3://", "s3:/a", "slipway-pipelines:/"] {
            assert!(!is_remote(other), "{other}");
        }
    }

    #[test]
    fn paths_are_below_a_root_without_its_query() {
        assert_eq!(
            below("minio://mlpipeline/v2/?endpoint=x:9000", "p/r").as_deref(),
            Some("minio://mlpipeline/v2/p/r")
        );
        assert_eq!(below("s3://models", "p/r").as_deref(), Some("s3://models/p/r"));
        assert_eq!(below("/srv/pipelines", "p/r"), None);
    }

    #[tokio::test]
    async fn copies_are_links_that_cannot_be_changed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("a/b/c"), "x").unwrap();
        link(&folder.path().join("a"), &folder.path().join("d")).unwrap();
        content::protect(&folder.path().join("d"));
        let copied = folder.path().join("d/b/c");
        assert_eq!(std::fs::read_to_string(&copied).unwrap(), "x");
        assert!(std::fs::metadata(folder.path().join("a/b/c")).unwrap().permissions().readonly());
    }
}
