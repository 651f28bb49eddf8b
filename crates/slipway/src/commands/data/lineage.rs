//! `slipway data lineage`: which runs, models and deployments used data. Everything is found by the digest, so it does not matter in which
//! repository, under which name, or from which folder a run used the bytes.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Value, json};
use slipway_data::DataError;
use slipway_data::project::Project;
use slipway_data::versions::digests_at;

use super::super::{Context, run, show};
use super::failure;
use crate::Failure;
use crate::cli::data::lineage::Lineage;
use crate::output::{Table, print, print_note};

/// Maximum number of runs that are shown.
const MAX_RUNS: i64 = 10_000;

/// A run that used the data.
#[derive(Debug, Serialize)]
struct Use {
    run_id: String,
    run_name: String,
    status: String,
    /// Name and digest of the dataset, and its origin if it is known.
    dataset: Value,
    /// Registered versions that the run created, as `NAME VERSION`.
    models: Vec<String>,
    /// Deployments that serve one of them.
    deployments: Vec<String>,
}

pub(super) async fn lineage(context: &Context, options: &Lineage) -> Result<(), Failure> {
    let digests = digests(options).map_err(|error| failure(&error, true))?;
    let client = context.client().await?;
    let quoted: Vec<String> = digests.iter().map(|digest| format!("'{digest}'")).collect();
    let filter = format!("dataset.digest IN ({})", quoted.join(", "));
    let runs = run::search(&client, None, &filter, &[], MAX_RUNS).await?;
    let ids: Vec<&str> = runs.iter().filter_map(|run| run["info"]["run_id"].as_str()).collect();
    let versions: HashMap<String, Vec<(String, i64)>> =
        client.post("/api/v1/run-versions", &json!({ "run_ids": ids })).await?;
    let deployments: Vec<Value> = client.get("/api/v1/deployments").await?;
    let uses: Vec<Use> = runs.iter().map(|run| describe(run, &digests, &versions, &deployments)).collect();
    print(context.global.output.format, &uses, |uses| {
        let mut table = Table::new(&["RUN", "NAME", "STATUS", "DATA", "COMMIT", "MODELS", "DEPLOYMENTS"]);
        for found in uses {
            let text = |key: &str| found.dataset[key].as_str().unwrap_or_default();
            table.row(vec![
                found.run_id.clone(),
                found.run_name.clone(),
                found.status.clone(),
                text("name").to_owned(),
                text("commit").chars().take(10).collect(),
                found.models.join(", "),
                found.deployments.join(", "),
            ]);
        }
        table
    });
    if uses.is_empty() && !context.global.quiet {
        let digest = digests.first().map(String::as_str).unwrap_or_default();
        print_note(format_args!("no run on this server has recorded that it used {digest}"));
    }
    Ok(())
}

/// The digests that a run which used the data has recorded.
fn digests(options: &Lineage) -> Result<Vec<String>, DataError> {
    let current = std::env::current_dir().map_err(|source| DataError::Io { path: ".".into(), source })?;
    let project = Project::open(&current, &|blocker| print_note(blocker))?;
    let digests = digests_at(&project, &options.path, options.rev.as_deref())?;
    Ok(digests.iter().map(ToString::to_string).collect())
}

fn describe(
    run: &Value,
    digests: &[String],
    versions: &HashMap<String, Vec<(String, i64)>>,
    deployments: &[Value],
) -> Use {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let run_id = text(&run["info"]["run_id"]);
    let inputs = run["inputs"]["dataset_inputs"].as_array().into_iter().flatten().map(|input| &input["dataset"]);
    let dataset = inputs.into_iter().find(|dataset| digests.iter().any(|digest| dataset["digest"] == digest.as_str()));
    let dataset = dataset.unwrap_or(&Value::Null);
    let mut shown = show::dvc_source(dataset).unwrap_or_else(|| json!({}));
    shown["name"] = dataset["name"].clone();
    shown["digest"] = dataset["digest"].clone();
    let created = versions.get(&run_id).map_or(&[][..], Vec::as_slice);
    let serves = |deployment: &Value| {
        let variants = deployment["variants"].as_array().into_iter().flatten();
        let mut models = variants.map(|variant| &variant["model"]);
        models.any(|model| {
            let is_version = |(name, version): &(String, i64)| {
                model["name"] == name.as_str() && model["version"] == version.to_string().as_str()
            };
            created.iter().any(is_version)
        })
    };
    Use {
        run_name: text(&run["info"]["run_name"]),
        status: text(&run["info"]["status"]),
        dataset: shown,
        models: created.iter().map(|(name, version)| format!("{name} {version}")).collect(),
        deployments: deployments.iter().filter(|d| serves(d)).map(|d| text(&d["name"])).collect(),
        run_id,
    }
}
