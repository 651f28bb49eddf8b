//! `slipway model`: the model registry.

use serde_json::{Value, json};

use super::Context;
use crate::Failure;
use crate::cli::Model;
use crate::client::{Client, encode};
use crate::output::{Table, print, print_note};

/// Sets an alias of a model to a version.
pub(super) async fn promote(client: &Client, name: &str, version: &str, alias: &str) -> Result<(), Failure> {
    let body = json!({ "name": name, "alias": alias, "version": version });
    client.post::<Value>("/api/2.0/mlflow/registered-models/alias", &body).await?;
    Ok(())
}

/// All versions of a model, latest first.
pub(super) async fn versions(client: &Client, name: &str) -> Result<Vec<Value>, Failure> {
    let filter = encode(&format!("name = '{}'", name.replace('\'', "")));
    let path =
        format!("/api/2.0/mlflow/model-versions/search?filter={filter}&order_by={}", encode("version_number DESC"));
    let found: Value = client.get(&path).await?;
    Ok(found["model_versions"].as_array().cloned().unwrap_or_default())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(super) async fn run(context: &Context, verb: Model) -> Result<(), Failure> {
    let client = context.client().await?;
    match verb {
        Model::Ls => {
            let found: Value = client.get("/api/2.0/mlflow/registered-models/search?max_results=1000").await?;
            let models = found["registered_models"].as_array().cloned().unwrap_or_default();
            print(context.global.output.format, &models, |models| {
                let mut table = Table::new(&["NAME", "LATEST", "ALIASES"]);
                for m in models {
                    let versions = m["latest_versions"].as_array().into_iter().flatten();
                    let latest = versions.filter_map(|v| v["version"].as_str()?.parse::<u64>().ok()).max();
                    let aliases = m["aliases"].as_array().into_iter().flatten();
                    let aliases = aliases.map(|a| format!("{}={}", text(&a["alias"]), text(&a["version"])));
                    table.row(vec![
                        text(&m["name"]),
                        latest.map_or_else(|| "-".into(), |v| v.to_string()),
                        aliases.collect::<Vec<_>>().join(" "),
                    ]);
                }
                table
            });
        }
        Model::Show { name } => {
            let found: Value =
                client.get(&format!("/api/2.0/mlflow/registered-models/get?name={}", encode(&name))).await?;
            let model = found["registered_model"].clone();
            let versions = versions(&client, &name).await?;
            let data = json!({ "model": model, "versions": versions });
            print(context.global.output.format, &data, |d| {
                let mut table = Table::new(&["VERSION", "ALIASES", "STAGE", "RUN", "SOURCE"]);
                for v in d["versions"].as_array().into_iter().flatten() {
                    let aliases = d["model"]["aliases"].as_array().into_iter().flatten();
                    let matching = aliases.filter(|a| a["version"] == v["version"]).map(|a| text(&a["alias"]));
                    table.row(vec![
                        text(&v["version"]),
                        matching.collect::<Vec<_>>().join(" "),
                        text(&v["current_stage"]),
                        text(&v["run_id"]),
                        text(&v["source"]),
                    ]);
                }
                table
            });
        }
        Model::Register { name, run, path } => {
            let found: Value = client.get(&format!("/api/2.0/mlflow/runs/get?run_id={}", encode(&run))).await?;
            let source = format!("{}/{path}", text(&found["run"]["info"]["artifact_uri"]));
            if context.global.dry_run {
                print_note(format_args!("+ a version of {name} from {source}"));
                return Ok(());
            }
            // Usually the model already exists. Any other error also fails the next request, which reports it.
            let created =
                client.post::<Value>("/api/2.0/mlflow/registered-models/create", &json!({ "name": name })).await;
            if let Err(error) = created {
                tracing::debug!(%error, "the registered model was not created");
            }
            let body = json!({ "name": name, "source": source, "run_id": run });
            let created: Value = client.post("/api/2.0/mlflow/model-versions/create", &body).await?;
            let version = text(&created["model_version"]["version"]);
            print_note(format_args!(
                "registered {name} version {version}; next: slipway model promote {name} {version} champion"
            ));
            print(context.global.output.format, &created, |_| {
                let mut table = Table::new(&["VERSION"]);
                table.row(vec![version.clone()]);
                table
            });
        }
        Model::Promote { name, version, alias } => {
            if context.global.dry_run {
                print_note(format_args!("~ {name}@{alias} -> version {version}"));
                return Ok(());
            }
            promote(&client, &name, &version, &alias).await?;
            print_note(format_args!(
                "{name}@{alias} is version {version}; deployments with this alias switch to it immediately"
            ));
        }
    }
    Ok(())
}
