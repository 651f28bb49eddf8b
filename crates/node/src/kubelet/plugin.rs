//! Plugins of the kubelet: a socket with the plugin's services, and one in the registration folder through which the kubelet finds it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::server::Router;
use tonic::{Request, Response, Status};

use super::{bind, registration, serve};
use crate::NodeError;

/// What a plugin tells the kubelet about itself.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// The kind: `DRAPlugin` or `CSIPlugin`.
    pub kind: &'static str,
    /// The name of the driver.
    pub name: String,
    /// The versions of the kind's API.
    pub versions: Vec<String>,
    /// The socket with the services of the plugin.
    pub socket: PathBuf,
}

impl Plugin {
    /// Serves until a socket file is removed, which happens when the kubelet restarts. `kubelet` is the kubelet's folder.
    ///
    /// # Errors
    /// If a socket cannot be bound, or a server fails.
    pub async fn session(&self, kubelet: &Path, router: Router) -> Result<(), NodeError> {
        let (plugin, listener) = bind(&self.socket)?;
        let serving = serve(router, listener, std::future::pending());
        let (registered, listener) = bind(&self.registration_socket(kubelet))?;
        let registrar = registration::registration_server::RegistrationServer::new(self.clone());
        let registering =
            serve(tonic::transport::Server::builder().add_service(registrar), listener, std::future::pending());
        let removed = async {
            while plugin.exists() && registered.exists() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            ended = serving => ended,
            ended = registering => ended,
            () = removed => Ok(()),
        }
    }

    /// The kubelet sends the socket path as the HTTP/2 authority. A path is valid there only as the user part before an `@`, so the file
    /// name contains one.
    pub fn registration_socket(&self, kubelet: &Path) -> PathBuf {
        kubelet.join("plugins_registry").join(format!("{}@reg.sock", self.name))
    }
}

#[tonic::async_trait]
impl registration::registration_server::Registration for Plugin {
    async fn get_info(
        &self,
        _: Request<registration::InfoRequest>,
    ) -> Result<Response<registration::PluginInfo>, Status> {
        Ok(Response::new(registration::PluginInfo {
            r#type: self.kind.into(),
            name: self.name.clone(),
            endpoint: self.socket.display().to_string(),
            supported_versions: self.versions.clone(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<registration::RegistrationStatus>,
    ) -> Result<Response<registration::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!(driver = self.name, "registered with the kubelet");
        } else {
            tracing::error!(driver = self.name, error = status.error, "the kubelet rejected the driver");
        }
        Ok(Response::new(registration::RegistrationStatusResponse {}))
    }
}
