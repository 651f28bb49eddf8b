//! The kubelet's gRPC interfaces: generated types, and helpers to serve and connect over Unix sockets.

#[allow(missing_docs, unreachable_pub, clippy::all)] // generated from ../../proto
#[rustfmt::skip]
mod generated {
    #[path = "csi.rs"]
    pub mod csi;
    #[path = "deviceplugin.rs"]
    pub mod device_plugin;
    #[path = "dra.rs"]
    pub mod dra;
    #[path = "dra_health.rs"]
    pub mod dra_health;
    #[path = "podresources.rs"]
    pub mod pod_resources;
    #[path = "registration.rs"]
    pub mod registration;
}
mod plugin;

pub use generated::{csi, device_plugin, dra, dra_health, pod_resources, registration};
pub use plugin::Plugin;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::Router;
use tonic::transport::{Channel, Endpoint};

use crate::NodeError;

/// A socket file that is removed when dropped. A file left by a killed agent is replaced by the next [`bind`].
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

/// Identifies a file across replacements under the same name: its inode and change time. `None` if the file does not exist.
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    let ctime = metadata.ctime().unsigned_abs().wrapping_mul(1_000_000_000) + metadata.ctime_nsec().unsigned_abs();
    Some((metadata.ino(), ctime))
}

impl Socket {
    /// Whether the file still exists and was not replaced. The kubelet empties its folders when it starts.
    pub fn exists(&self) -> bool {
        self.identity.is_some() && identity(&self.path) == self.identity
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.exists() {
            let _ = std::fs::remove_file(&self.path); // a remaining file is replaced at the next start
        }
    }
}

/// Listens on a Unix socket and replaces an existing file.
///
/// # Errors
/// [`NodeError::Io`] if the folder cannot be created or the socket cannot be bound.
pub fn bind(path: &Path) -> Result<(Socket, UnixListenerStream), NodeError> {
    let what = path.display().to_string();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(NodeError::io(folder.display().to_string()))?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(NodeError::io(what)(e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(NodeError::io(what))?;
    Ok((Socket { path: path.to_owned(), identity: identity(path) }, UnixListenerStream::new(listener)))
}

/// Serves on a socket until `stop` completes.
///
/// # Errors
/// [`NodeError::Invalid`] if the server fails.
pub async fn serve(
    router: Router,
    listener: UnixListenerStream,
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    // Streams to the kubelet never end, so a graceful shutdown would wait forever. The kubelet reconnects.
    tokio::select! {
        outcome = router.serve_with_incoming(listener) => outcome.map_err(|e| NodeError::Invalid(e.to_string())),
        () = stop => Ok(()),
    }
}

/// Connects to a server on a Unix socket.
///
/// # Errors
/// [`NodeError::Kubelet`] if the connection fails.
pub async fn connect(path: &Path) -> Result<Channel, NodeError> {
    let failed = |reason: String| NodeError::Kubelet { path: path.display().to_string(), reason };
    let target = path.to_owned();
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let target = target.clone();
        async move { UnixStream::connect(target).await.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(10))
        .connect_with_connector(connector)
        .await
        .map_err(|e| failed(std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string)))
}
