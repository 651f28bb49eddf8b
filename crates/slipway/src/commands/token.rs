//! `token`: the credential of this state folder's server.

use std::fs::File;
use std::io::Read;

use serde_json::json;
use slipway_core::home::Home;

use super::Context;
use crate::Failure;
use crate::cli::Format;
use crate::client::running;
use crate::output::{Table, print, print_text};

/// Most bytes of a token file; a token has 64.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Prints the token, or with `ui` a link that opens the web UI signed in.
pub(super) fn token(context: &Context, ui: bool) -> Result<(), Failure> {
    let home = Home::at(context.config.get("home").unwrap_or_default());
    let token = home_token(&home)?;
    let (name, text) = if ui {
        let place = format!("no server runs on {}", home.root().display());
        let addresses = running(&home).ok_or_else(|| Failure::known(place, "server.unreachable", 5))?;
        ("link", ui_link(&addresses.control, &token))
    } else {
        ("token", token)
    };
    if let Some(file) = &context.global.output.file {
        // What is printed goes into this file, which nobody else may read; it keeps its permissions then.
        slipway_core::files::replace_as(file, b"", 0o600)
            .map_err(|e| Failure::known(format!("{}: {e}", file.display()), "output.unwritable", 1))?;
    }
    match context.global.output.format {
        format @ (Format::Json | Format::Yaml) => print(format, &json!({ name: text }), |_| Table::new(&[])),
        _ => print_text(&format!("{text}\n")),
    }
    Ok(())
}

/// A link to the web UI with the token behind `#`: browsers send that part to no server.
pub(super) fn ui_link(control: &std::net::SocketAddr, token: &str) -> String {
    format!("http://{control}/#token={token}")
}

/// The token in the state folder.
fn home_token(home: &Home) -> Result<String, Failure> {
    let path = home.token_file();
    let failed = |why: String| Failure::known(format!("{}: {why}", path.display()), "auth.no_token", 1);
    let mut text = String::new();
    let file = File::open(&path).map_err(|e| failed(e.to_string()))?;
    file.take(MAX_TOKEN_BYTES).read_to_string(&mut text).map_err(|e| failed(e.to_string()))?;
    match text.trim() {
        token if !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()) => Ok(token.to_owned()),
        _ => Err(failed("it holds no token".into())),
    }
}
