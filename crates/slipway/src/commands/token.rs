//! `token`: the credential of this state folder's server.

use serde_json::json;
use slipway_core::home::Home;
use slipway_server::Addresses;
use slipway_server::auth::read_home_token;

use super::Context;
use crate::Failure;
use crate::cli::Format;
use crate::client::running;
use crate::output::{Table, print, print_text};

/// Prints the token, or with `ui` a link that opens the web UI signed in.
pub(super) fn token(context: &Context, ui: bool) -> Result<(), Failure> {
    let home = Home::at(context.config.get("home").unwrap_or_default());
    let failed = |e: std::io::Error| {
        let path = home.token_file();
        Failure::known(format!("{}: {e}", path.display()), "auth.no_token", 1)
    };
    let token = read_home_token(&home).map_err(failed)?;
    let (name, text) = if ui {
        let place = format!("no server runs on {}", home.root().display());
        let addresses = running(&home).ok_or_else(|| Failure::known(place, "server.unreachable", 5))?;
        ("link", ui_link(&addresses, &token))
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
pub(super) fn ui_link(addresses: &Addresses, token: &str) -> String {
    format!("{}/#token={token}", addresses.control_url())
}
