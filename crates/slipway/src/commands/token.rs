//! `slipway token`: prints the token of this state folder's server.

use serde_json::json;
use slipway_core::home::Home;
use slipway_server::Addresses;
use slipway_server::auth::read_home_token;

use super::Context;
use crate::Failure;
use crate::cli::Format;
use crate::output::{Table, print, print_text};
use crate::running_server::running_server;

/// Prints the token, or with `ui` a link that opens the web UI signed in.
pub(super) fn token(context: &Context, ui: bool) -> Result<(), Failure> {
    let home = Home::at(context.config.get("home").unwrap_or_default());
    let failed = |e: std::io::Error| {
        let path = home.token_file();
        Failure::with_code(format!("{}: {e}", path.display()), "auth.no_token", 1)
    };
    let token = read_home_token(&home).map_err(failed)?;
    let (name, text) = if ui {
        let message = format!("no server is running for the state folder {}", home.root().display());
        let addresses = running_server(&home).ok_or_else(|| Failure::with_code(message, "server.unreachable", 5))?;
        ("link", ui_link(&addresses, &token))
    } else {
        ("token", token)
    };
    if let Some(file) = &context.global.output.file {
        // Create the output file with mode 0600; writing the output later keeps these permissions.
        slipway_core::files::replace_as(file, b"", 0o600)
            .map_err(|e| Failure::with_code(format!("{}: {e}", file.display()), "output.unwritable", 1))?;
    }
    match context.global.output.format {
        format @ (Format::Json | Format::Yaml) => print(format, &json!({ name: text }), |_| Table::new(&[])),
        _ => print_text(&format!("{text}\n")),
    }
    Ok(())
}

/// A link to the web UI with the token after `#`; browsers do not send that part to servers.
pub(super) fn ui_link(addresses: &Addresses, token: &str) -> String {
    format!("{}/#token={token}", addresses.control_url())
}
