//! The user's credentials for slipway servers that are remotes of a project.

use slipway_core::Explain;
use slipway_core::config::{Config, Origin};
use slipway_core::tls;
use slipway_data::DataError;
use slipway_data::access::{ServerAccess, Servers};

use crate::client_error::ClientError;
use crate::commands::Context;
use crate::credentials::{Access, ServerUrl, Sources};

/// Finds the credentials for the server of a remote, as for every other command.
pub(super) fn servers(context: &Context) -> Servers {
    let (config, insecure) = (context.config.clone(), context.global.insecure);
    Servers::new(move |server| {
        access(&config, insecure, server).map_err(|error| DataError::Access {
            message: error.to_string(),
            code: error.code(),
            hint: error.hint(),
        })
    })
}

fn access(config: &Config, insecure: bool, server: &str) -> Result<ServerAccess, ClientError> {
    let sources = Sources::from_config(config, insecure)?;
    let url = ServerUrl::parse(server)?;
    // A project's configuration may come from someone else. If the user names the same server, it gets the same token as for other commands.
    let named = config.get("server").and_then(|named| ServerUrl::parse(named).ok());
    let by_user = named.is_some_and(|named| named.origin() == url.origin());
    let of_project = Origin::Project(slipway_data::project::DVC_DIR.into());
    let named_by = config.origin("server").filter(|_| by_user).unwrap_or(&of_project);
    let access = Access::resolve(&url, named_by, &sources)?;
    let tls = tls::client(access.trust())?;
    Ok(ServerAccess { token: access.token.map(|token| token.reveal().to_owned()), tls })
}
