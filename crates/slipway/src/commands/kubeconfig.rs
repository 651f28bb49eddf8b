//! `slipway config kubeconfig`: a kubeconfig for the Kubernetes API of a server.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use slipway_core::config::Origin;
use slipway_core::home::Home;

use super::Context;
use crate::Failure;
use crate::credentials::{Access, ServerUrl, Sources};
use crate::output::{print_note, print_text};
use crate::running_server::running_server;

/// The name of the cluster, the user and the context in the kubeconfig.
const NAME: &str = "slipway";

/// Prints a kubeconfig for the configured server, or for the running server of the state folder; or saves it, readable only by the user.
pub(super) fn kubeconfig(context: &Context, save: Option<&Path>) -> Result<(), Failure> {
    let sources = Sources::from_config(&context.config, context.global.insecure)?;
    let (url, named_by) = match context.config.get("server") {
        Some(url) => (url.to_owned(), context.config.origin("server").unwrap_or(&Origin::Default)),
        None => {
            let home = Home::at(context.config.get("home").unwrap_or_default());
            let message = format!("no server is running for the state folder {}", home.root().display());
            let running = running_server(&home);
            let addresses = running.ok_or_else(|| Failure::with_code(message, "server.unreachable", 5))?;
            (addresses.control_url(), &Origin::Default)
        }
    };
    let url = ServerUrl::parse(&url)?;
    let access = Access::resolve(&url, named_by, &sources)?;
    let token = access.token.as_ref().map(|token| token.reveal().to_owned());
    let authority = certificate_authority(&url, &sources)?;
    let config = document(&url.origin(), token.as_deref(), authority.as_deref());
    let text = serde_saphyr::to_string(&config)
        .map_err(|error| Failure::with_code(error.to_string(), "output.unwritable", 1))?;
    // A file given by `-o` contains the token too, so it must be private as well.
    let Some(file) = save.or(context.global.output.file.as_deref()) else {
        print_text(&text);
        return Ok(());
    };
    slipway_core::files::replace_as(file, text.as_bytes(), 0o600)
        .map_err(|error| Failure::with_code(format!("{}: {error}", file.display()), "output.unwritable", 1))?;
    let path = file.display();
    print_note(format_args!("{path} was written; next: kubectl --kubeconfig {path} get namespaces"));
    Ok(())
}

/// The certificate that clients must trust in addition to the system's: that of `ca-file`, or the self-signed one of the own server.
fn certificate_authority(url: &ServerUrl, sources: &Sources) -> Result<Option<Vec<u8>>, Failure> {
    let own = running_server(&sources.home).filter(|addresses| url.matches(addresses) && addresses.tls);
    let self_signed = own.map(|_| sources.home.root().join("tls").join("certificate.pem")).filter(|file| file.exists());
    let Some(file) = sources.authorities.clone().or(self_signed) else { return Ok(None) };
    let read = slipway_core::files::read(&file);
    read.map(Some).map_err(|error| Failure::with_code(format!("{}: {error}", file.display()), "tls.file", 1))
}

/// The kubeconfig.
fn document(server: &str, token: Option<&str>, authority: Option<&[u8]>) -> Value {
    // kubectl sends no token of a user over http, but always the credentials of the URL. Both are written, because other clients read
    // only the token.
    let with_token = match (server.split_once("://"), token) {
        (Some(("http", rest)), Some(token)) => format!("http://{NAME}:{token}@{rest}"),
        _ => server.to_owned(),
    };
    let mut cluster = json!({"server": with_token});
    if let Some(authority) = authority {
        cluster["certificate-authority-data"] = json!(STANDARD.encode(authority));
    }
    let user = token.map_or_else(|| json!({}), |token| json!({"token": token}));
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NAME, "cluster": cluster}],
        "users": [{"name": NAME, "user": user}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME, "namespace": "default"}}],
        "current-context": NAME,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_in_the_url_only_without_tls() {
        let plain = document("http://127.0.0.1:7070", Some("secret"), None);
        assert_eq!(plain["clusters"][0]["cluster"]["server"], "http://slipway:secret@127.0.0.1:7070");
        let tls = document("https://host:7070", Some("secret"), Some(b"PEM"));
        assert_eq!(tls["clusters"][0]["cluster"]["server"], "https://host:7070");
        assert_eq!(tls["clusters"][0]["cluster"]["certificate-authority-data"], "UEVN");
        assert_eq!(tls["users"][0]["user"]["token"], "secret");
    }
}
