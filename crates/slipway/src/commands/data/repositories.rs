//! `slipway data repositories`: the repositories that the server reads for its UI.

use serde_json::json;
use slipway_data::catalog::Registered;
use slipway_data::catalog::http::Repositories;

use super::super::Context;
use crate::Failure;
use crate::cli::data::repositories::{Repositories as Verb, Scope};
use crate::client::encode;
use crate::output::{Table, print, print_note};

/// The path of the repositories of a namespace on the server.
fn path(scope: &Scope) -> String {
    let namespace = scope.namespace.as_deref().map(|name| format!("/namespaces/{}", encode(name)));
    format!("/api/v1/data{}/repositories", namespace.unwrap_or_default())
}

pub(super) async fn run(context: &Context, verb: &Verb) -> Result<(), Failure> {
    let client = context.client().await?;
    match verb {
        Verb::Add { name, location, folder, scope } => {
            let new = json!({ "name": name, "location": location, "folder": folder });
            let added: Registered = client.post(&path(scope), &new).await?;
            if !context.global.quiet {
                print_note(format_args!("+ {} ({})", added.name, added.location));
                print_note(
                    "Try next: `slipway data repositories list`, or the tab Data of the UI (`slipway token --ui`).",
                );
            }
        }
        Verb::List { scope } => {
            let found: Repositories = client.get(&path(scope)).await?;
            print(context.global.output.format, &found.repositories, |repositories| {
                let mut table = Table::new(&["NAME", "LOCATION", "FOLDER", "ADDED"]);
                for repository in repositories {
                    table.row(vec![
                        repository.name.clone(),
                        repository.location.clone(),
                        repository.folder.clone(),
                        slipway_core::clock::rfc3339(repository.added),
                    ]);
                }
                table
            });
        }
        Verb::Remove { name, scope } => {
            client.delete(&format!("{}/{}", path(scope), encode(name))).await?;
            if !context.global.quiet {
                print_note(format_args!("- {name}"));
            }
        }
    }
    Ok(())
}
