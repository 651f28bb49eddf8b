//! The volumes of a node: each is a mount of a version of data. A transfer goes on while the kubelet repeats its request, and each response
//! until then says how far it is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use slipway_core::Explain;
use slipway_core::data_volume::{ATTRIBUTES, DRIVER, SECRET_KEYS};
use slipway_data::versions::{Credentials, Depot, Fetched, Version};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

use super::Mounts;
use crate::kubelet::csi as api;

/// How long a request waits for a transfer; the kubelet gives up after two minutes.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(90);
/// Maximum characters of a volume's id, which is a file name here.
const MAX_ID_CHARS: usize = 200;

/// How far a transfer is.
#[derive(Debug, Clone)]
enum Progress {
    Going(String),
    Ended(Result<PathBuf, String>),
}

struct Transfer {
    progress: watch::Receiver<Progress>,
    task: JoinHandle<()>,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The gRPC services of the driver.
#[derive(Clone)]
pub(super) struct Volumes {
    node: String,
    depot: Arc<Depot>,
    mounts: Arc<dyn Mounts>,
    transfers: Arc<Mutex<HashMap<String, Transfer>>>,
}

/// The version that a pod needs, with the digest that it must have.
struct Wanted {
    version: Version,
    digest: String,
}

impl Wanted {
    fn new(request: &api::NodePublishVolumeRequest) -> Result<Self, Status> {
        let attribute = |name: &str| {
            let value = request.volume_context.get(name).filter(|value| !value.is_empty() && !value.starts_with('-'));
            value
                .cloned()
                .ok_or_else(|| Status::invalid_argument(format!("the volume has no valid attribute '{name}'")))
        };
        let [repo, rev, path, digest] = ATTRIBUTES;
        let [git, config] = SECRET_KEYS.map(|key| request.secrets.get(key).cloned());
        let credentials = Credentials { git, config };
        let version =
            Version { repo: attribute(repo)?, rev: Some(attribute(rev)?), path: attribute(path)?, credentials };
        Ok(Self { version, digest: attribute(digest)? })
    }
}

/// The error and its remedy, for an event of the pod.
fn explained(error: &slipway_data::DataError) -> String {
    let hint = error.hint().map_or(String::new(), |hint| format!(" ({hint})"));
    format!("{error}{hint}")
}

fn checked_id(id: &str) -> Result<&str, Status> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let valid = !id.is_empty() && id.len() <= MAX_ID_CHARS && !id.starts_with('.') && id.chars().all(is_valid);
    if valid {
        Ok(id)
    } else {
        Err(Status::invalid_argument(format!("'{}' is not the id of a volume", id.escape_debug())))
    }
}

impl Volumes {
    pub(super) fn new(node: String, depot: Arc<Depot>, mounts: Arc<dyn Mounts>) -> Self {
        Self { node, depot, mounts, transfers: Arc::default() }
    }

    /// The progress of the transfer for a volume, which is started if there is none.
    fn transfer(&self, id: &str, wanted: Wanted) -> watch::Receiver<Progress> {
        let mut transfers = self.transfers.lock();
        let start = || {
            let (sender, progress) = watch::channel(Progress::Going(String::new()));
            let sender = Arc::new(sender);
            let going = Arc::clone(&sender);
            let report = Box::new(move |text| drop(going.send_replace(Progress::Going(text))));
            let fetching = Arc::clone(&self.depot).fetch_in_background(wanted.version, id.to_owned(), report);
            let task = tokio::spawn(async move {
                let outcome = match fetching.await {
                    Ok(fetched) => location(fetched, &wanted.digest),
                    Err(error) => Err(explained(&error)),
                };
                sender.send_replace(Progress::Ended(outcome));
            });
            Transfer { progress, task }
        };
        transfers.entry(id.to_owned()).or_insert_with(start).progress.clone()
    }

    async fn publish(&self, request: api::NodePublishVolumeRequest) -> Result<(), Status> {
        let (id, target) = (checked_id(&request.volume_id)?.to_owned(), PathBuf::from(&request.target_path));
        let wanted = Wanted::new(&request)?;
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| Status::internal(format!("{what}: {error}"))
        };
        let is_mounted = tokio::task::block_in_place(|| self.mounts.is_mounted(&target));
        if is_mounted.map_err(failed("reading the mounts"))? {
            return Ok(());
        }
        let mut progress = self.transfer(&id, wanted);
        let ended = progress.wait_for(|progress| matches!(progress, Progress::Ended(_)));
        let ended = tokio::time::timeout(PUBLISH_TIMEOUT, ended).await.map(|ended| ended.map(|state| state.clone()));
        let outcome = match ended {
            Ok(Ok(Progress::Ended(outcome))) => outcome,
            Ok(_) => Err("the transfer was stopped".to_owned()),
            Err(_) => {
                let text = match &*progress.borrow() {
                    Progress::Going(text) => text.clone(),
                    Progress::Ended(_) => "the transfer has just ended".to_owned(),
                };
                return Err(Status::unavailable(format!("{text}; the transfer goes on")));
            }
        };
        // The next request begins anew.
        self.transfers.lock().remove(&id);
        let source = outcome.map_err(Status::failed_precondition)?;
        tokio::task::block_in_place(|| {
            std::fs::create_dir_all(&target).map_err(failed("creating the folder of the volume"))?;
            self.mounts.bind(&source, &target).map_err(failed("mounting the data"))
        })
    }

    fn unpublish(&self, request: &api::NodeUnpublishVolumeRequest) -> Result<(), Status> {
        let (id, target) = (checked_id(&request.volume_id)?, Path::new(&request.target_path));
        self.transfers.lock().remove(id);
        let failed = |error: std::io::Error| Status::internal(format!("removing the mount: {error}"));
        if self.mounts.is_mounted(target).map_err(failed)? {
            self.mounts.unbind(target).map_err(failed)?;
        }
        match std::fs::remove_dir(target) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        self.depot.release(id).map_err(|error| Status::internal(error.to_string()))
    }
}

/// The folder to mount: a file is in a folder of its own.
fn location(fetched: Fetched, digest: &str) -> Result<PathBuf, String> {
    let Fetched { path, commit, location, .. } = &fetched;
    if fetched.digest != digest {
        return Err(format!("'{path}' at commit {commit} has the digest {}, not {digest}", fetched.digest));
    }
    tracing::info!(path, commit, received = fetched.received, files = fetched.files, "data is ready");
    let folder = if location.is_dir() { Some(location.as_path()) } else { location.parent() };
    folder.map(Path::to_owned).ok_or_else(|| format!("{} is not in a folder", location.display()))
}

#[tonic::async_trait]
impl api::identity_server::Identity for Volumes {
    async fn get_plugin_info(
        &self,
        _: Request<api::GetPluginInfoRequest>,
    ) -> Result<Response<api::GetPluginInfoResponse>, Status> {
        let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(api::GetPluginInfoResponse { name: DRIVER.into(), vendor_version }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<api::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<api::GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(api::GetPluginCapabilitiesResponse {}))
    }

    async fn probe(&self, _: Request<api::ProbeRequest>) -> Result<Response<api::ProbeResponse>, Status> {
        Ok(Response::new(api::ProbeResponse {}))
    }
}

#[tonic::async_trait]
impl api::node_server::Node for Volumes {
    async fn node_publish_volume(
        &self,
        request: Request<api::NodePublishVolumeRequest>,
    ) -> Result<Response<api::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = request.volume_id.clone();
        self.publish(request).await.inspect_err(|status| {
            tracing::warn!(volume = id, reason = status.message(), "a volume is not ready");
        })?;
        Ok(Response::new(api::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<api::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<api::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        tokio::task::block_in_place(|| self.unpublish(&request))?;
        Ok(Response::new(api::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<api::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<api::NodeGetCapabilitiesResponse>, Status> {
        Ok(Response::new(api::NodeGetCapabilitiesResponse {}))
    }

    async fn node_get_info(
        &self,
        _: Request<api::NodeGetInfoRequest>,
    ) -> Result<Response<api::NodeGetInfoResponse>, Status> {
        Ok(Response::new(api::NodeGetInfoResponse { node_id: self.node.clone() }))
    }
}
