//! Versions of data for the pods of a node: a CSI driver of ephemeral volumes with one content-addressed cache. The kubelet asks it to mount a
//! version before the containers of a pod start, shows its errors as events of the pod, and tells it when the pod has ended.
//!
//! Source: the Container Storage Interface, v1; Kubernetes, "CSI ephemeral volumes"; `pluginregistration/v1`.

mod mounts;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use slipway_core::data_volume::DRIVER;
use slipway_data::versions::Depot;

use crate::NodeError;
use crate::kubelet::Plugin;
use crate::kubelet::csi::identity_server::IdentityServer;
use crate::kubelet::csi::node_server::NodeServer;

pub use mounts::{HostMounts, Mounts};
use volumes::Volumes;

/// Options of the driver.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the node in the cluster.
    pub node: String,
    /// Folder of the kubelet, usually `/var/lib/kubelet`.
    pub kubelet: PathBuf,
    /// Folder of the cache. The trees in it are mounted into pods.
    pub folder: PathBuf,
    /// Maximum bytes of the cache, beyond what pods use; no limit if unset.
    pub limit: Option<u64>,
}

/// Runs the driver until `stop` completes.
///
/// # Errors
/// If the folder of the cache cannot be used.
pub async fn run(options: Options, mounts: Arc<dyn Mounts>, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
    let depot = Depot::open(&options.folder, options.limit).map_err(|error| NodeError::Invalid(error.to_string()))?;
    serve(&options, Arc::new(depot.only_remote()), mounts, stop).await
}

/// Serves volumes with the data of a depot until `stop` completes.
///
/// # Errors
/// None at present: what fails is logged and repeated, as for the agent's other plugins.
pub async fn serve(
    options: &Options,
    depot: Arc<Depot>,
    mounts: Arc<dyn Mounts>,
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    let volumes = Volumes::new(options.node.clone(), depot, mounts);
    let plugin = Plugin {
        kind: "CSIPlugin",
        name: DRIVER.into(),
        versions: vec!["1.0.0".into()],
        socket: options.kubelet.join("plugins").join(DRIVER).join("csi.sock"),
    };
    let serving = async {
        loop {
            let router = tonic::transport::Server::builder()
                .add_service(IdentityServer::new(volumes.clone()))
                .add_service(NodeServer::new(volumes.clone()));
            if let Err(error) = plugin.session(&options.kubelet, router).await {
                tracing::warn!(%error, "serving the data driver failed; retrying");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = serving => Ok(()),
        () = stop => Ok(()),
    }
}
