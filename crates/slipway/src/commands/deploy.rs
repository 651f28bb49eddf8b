//! `slipway deploy`: deployments of models behind the inference gateway.

use std::io::Read;

use serde_json::{Value, json};
use slipway_core::units;
use slipway_serve::manifest::Manifest;

use super::Context;
use crate::Failure;
use crate::cli::Deploy;
use crate::client::{Client, encode};
use crate::output::{Table, print, print_note, prompt_line};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn variants_table<'a>(deployments: impl Iterator<Item = &'a Value>) -> Table {
    let mut table = Table::new(&["NAME", "MODEL", "VERSION", "WEIGHT", "STATE", "REQUESTS", "ERRORS", "P50", "P99"]);
    for d in deployments {
        for v in d["variants"].as_array().into_iter().flatten() {
            let us = |key: &str| units::micros(v["stats"][key].as_f64().unwrap_or(0.0));
            let state = match v["reason"].as_str() {
                Some(reason) => format!("{} ({reason})", text(&v["state"])),
                None => text(&v["state"]),
            };
            table.row(vec![
                text(&d["name"]),
                text(&v["name"]),
                text(&v["model"]["version"]),
                format!("{}%", v["weight"]),
                state,
                v["stats"]["requests"].to_string(),
                v["stats"]["errors"].to_string(),
                us("p50_us"),
                us("p99_us"),
            ]);
        }
    }
    table
}

/// The plan of a change, one line per model: `+` added, `~` changed, `-` removed. Empty if nothing changes.
fn plan(before: Option<&Value>, after: &Manifest) -> Vec<String> {
    let old = before.and_then(|b| serde_json::from_value::<Manifest>(b["manifest"].clone()).ok());
    let old_models = old.as_ref().map(|m| m.spec.models.clone()).unwrap_or_default();
    let mut lines = Vec::new();
    for model in &after.spec.models {
        match old_models.iter().find(|m| m.name == model.name) {
            None => lines.push(format!("+ {} {} {}%", model.name, model.uri, model.weight)),
            Some(m) if m != model => {
                lines.push(format!("~ {} {} {}% -> {} {}%", model.name, m.uri, m.weight, model.uri, model.weight));
            }
            Some(_) => {}
        }
    }
    for removed in old_models.iter().filter(|m| after.spec.models.iter().all(|n| n.name != m.name)) {
        lines.push(format!("- {} {} {}%", removed.name, removed.uri, removed.weight));
    }
    if let Some(old) = old
        && (old.spec.split != after.spec.split
            || old.spec.batching != after.spec.batching
            || old.spec.limits != after.spec.limits)
    {
        lines.push("~ settings (split, batching, limits)".into());
    }
    lines
}

/// Prints the plan of a manifest and applies it. Returns the new status, or `None` if nothing changed or for a dry run.
pub(super) async fn apply(client: &Client, manifest_text: String, dry_run: bool) -> Result<Option<Value>, Failure> {
    let manifest = Manifest::parse(&manifest_text)?;
    let name = &manifest.metadata.name;
    let all: Vec<Value> = client.get("/api/v1/deployments").await?;
    let before = all.iter().find(|d| d["name"] == *name);
    let lines = plan(before, &manifest);
    if lines.is_empty() && before.is_some_and(|b| b["ready"] == true) {
        print_note(format_args!("{name}: no changes"));
        return Ok(None);
    }
    print_note(format_args!("{name}:"));
    lines.iter().for_each(|line| print_note(format_args!("  {line}")));
    if dry_run {
        return Ok(None);
    }
    Ok(Some(client.post_text("/api/v1/deployments", manifest_text).await?))
}

pub(super) async fn run(context: &Context, verb: Deploy) -> Result<(), Failure> {
    let client = context.client().await?;
    let format = context.global.output.format;
    match verb {
        Deploy::Apply { file } => {
            let read = if file.as_os_str() == "-" {
                let mut all = String::new();
                std::io::stdin().read_to_string(&mut all).map(|_| all)
            } else {
                std::fs::read_to_string(&file)
            };
            let manifest =
                read.map_err(|e| slipway_serve::Error::Manifest(format!("cannot read {}: {e}", file.display())))?;
            if let Some(status) = apply(&client, manifest, context.global.dry_run).await? {
                print(format, &status, |s| variants_table(std::iter::once(s)));
                let name = text(&status["name"]);
                print_note(format_args!("revision {} is active; next: slipway deploy test {name}", status["revision"]));
            }
        }
        Deploy::Ls => {
            let all: Vec<Value> = client.get("/api/v1/deployments").await?;
            print(format, &all, |all| variants_table(all.iter()));
        }
        Deploy::Show { name } => {
            let status: Value = client.get(&format!("/api/v1/deployments/{}", encode(&name))).await?;
            let history: Value = client.get(&format!("/api/v1/deployments/{}/history", encode(&name))).await?;
            print(format, &json!({ "deployment": status, "history": history }), |d| {
                variants_table(std::iter::once(&d["deployment"]))
            });
            for r in history.as_array().into_iter().flatten() {
                print_note(format_args!("  revision {} ({})", r["revision"], text(&r["reason"])));
            }
        }
        Deploy::Split { name, weights } => {
            let mut shares = serde_json::Map::new();
            for pair in &weights {
                let (key, value) = pair
                    .split_once('=')
                    .and_then(|(k, v)| Some((k, v.trim_end_matches('%').parse::<u32>().ok()?)))
                    .ok_or_else(|| slipway_serve::Error::Manifest(format!("'{pair}' is not NAME=PERCENT")))?;
                shares.insert(key.to_owned(), value.into());
            }
            if context.global.dry_run {
                print_note(format_args!("~ {name}: {}", weights.join(" ")));
                return Ok(());
            }
            let path = format!("/api/v1/deployments/{}/split", encode(&name));
            let status: Value = client.post(&path, &json!({ "weights": shares })).await?;
            print(format, &status, |s| variants_table(std::iter::once(s)));
            print_note(format_args!(
                "revision {} is active; to undo: slipway deploy rollback {name}",
                status["revision"]
            ));
        }
        Deploy::Rollback { name, to } => {
            let path = format!("/api/v1/deployments/{}/rollback", encode(&name));
            let status: Value = client.post(&path, &json!({ "to": to })).await?;
            print(format, &status, |s| variants_table(std::iter::once(s)));
            print_note(format_args!("revision {} is active", status["revision"]));
        }
        Deploy::Test { name, input } => {
            let body = match input {
                Some(file) => std::fs::read_to_string(&file)
                    .map_err(|e| slipway_serve::Error::Invalid(format!("cannot read {}: {e}", file.display())))?,
                None => zero_request(&client, &name).await?,
            };
            let response: Value =
                client.post_text(&format!("/api/v1/deployments/{}/infer", encode(&name)), body).await?;
            print(format, &response, |a| {
                let mut table = Table::new(&["OUTPUT", "TYPE", "SHAPE", "DATA"]);
                for o in a["outputs"].as_array().into_iter().flatten() {
                    table.row(vec![
                        text(&o["name"]),
                        text(&o["datatype"]),
                        o["shape"].to_string(),
                        o["data"].to_string(),
                    ]);
                }
                table
            });
            let (version, id) = (text(&response["model_version"]), text(&response["id"]));
            print_note(format_args!("response of version {version}; next: slipway show {id} --lineage"));
        }
        Deploy::Rm { name } => {
            if context.global.dry_run {
                print_note(format_args!("- {name}"));
                return Ok(());
            }
            if !context.global.yes && !confirm_by_name(&name) {
                print_note("nothing was changed");
                return Ok(());
            }
            client.delete(&format!("/api/v1/deployments/{}", encode(&name))).await?;
            print_note(format_args!("{name} was removed"));
        }
    }
    Ok(())
}

/// Asks the user to type the name of the deployment. Without a terminal, the removal is declined.
fn confirm_by_name(name: &str) -> bool {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() {
        print_note(format_args!("pass -y to remove '{name}' without a prompt"));
        return false;
    }
    prompt_line(&format!("Type the name to remove '{name}': ")).is_ok_and(|line| line == name)
}

/// Builds an inference request with all inputs zero, from the model metadata of the gateway.
async fn zero_request(client: &Client, name: &str) -> Result<String, Failure> {
    let meta: Value = client.get(&format!("/api/v1/deployments/{}/metadata", encode(name))).await?;
    let inputs = meta["inputs"].as_array().cloned().unwrap_or_default();
    let inputs: Vec<Value> = inputs
        .iter()
        .map(|i| {
            let shape = i["shape"].as_array().into_iter().flatten();
            let shape: Vec<i64> = shape.map(|d| d.as_i64().filter(|d| *d > 0).unwrap_or(1)).collect();
            let count: i64 = shape.iter().product();
            let zero = match i["datatype"].as_str() {
                Some("BYTES") => json!(""),
                Some("BOOL") => json!(false),
                _ => json!(0),
            };
            json!({
                "name": i["name"], "datatype": i["datatype"], "shape": shape,
                "data": vec![zero; usize::try_from(count).unwrap_or(0)],
            })
        })
        .collect();
    Ok(json!({ "inputs": inputs }).to_string())
}
