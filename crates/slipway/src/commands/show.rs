//! `slipway show REQUEST --lineage`: the lineage of an inference request.

use serde_json::Value;

use super::Context;
use crate::Failure;
use crate::cli::Show;
use crate::client::encode;
use crate::output::{Table, print};

/// The lineage of a request as table rows: kind, id and description.
pub(super) fn chain(found: &Value) -> Vec<[String; 3]> {
    let text = |v: &Value| v.as_str().unwrap_or("-").to_owned();
    let request = &found["request"];
    let mut steps = vec![
        [
            "request".into(),
            text(&request["id"]),
            format!("to {}, {} µs", text(&request["deployment"]), request["took_us"]),
        ],
        [
            "model version".into(),
            format!("{} {}", text(&request["model"]["name"]), text(&request["model"]["version"])),
            text(&request["variant"]),
        ],
    ];
    let lineage = &found["lineage"];
    if !lineage["run"].is_null() {
        steps.push(["run".into(), text(&lineage["run"]["run_id"]), text(&lineage["run"]["run_name"])]);
    }
    for input in lineage["datasets"].as_array().into_iter().flatten() {
        let dataset = &input["dataset"];
        steps.push(["dataset".into(), text(&dataset["digest"]), text(&dataset["name"])]);
        steps.extend(origin(dataset));
    }
    steps
}

/// Where a dataset of a DVC repository comes from: the file that tracks it, and the commit.
fn origin(dataset: &Value) -> Vec<[String; 3]> {
    let Some(source) = dvc_source(dataset) else { return Vec::new() };
    let text = |key: &str| source[key].as_str().unwrap_or_default().to_owned();
    let file = Some(text("file")).filter(|file| !file.is_empty()).unwrap_or_else(|| text("path"));
    vec![["data file".into(), file, text("path")], ["commit".into(), text("commit"), text("repo")]]
}

/// The source of a dataset that a DVC repository tracks: `repo`, `commit`, `path` and `file`.
pub(super) fn dvc_source(dataset: &Value) -> Option<Value> {
    let source = dataset["source"].as_str().filter(|_| dataset["source_type"] == "dvc")?;
    serde_json::from_str(source).ok().filter(Value::is_object)
}

pub(super) async fn show(context: &Context, options: Show) -> Result<(), Failure> {
    let client = context.client().await?;
    let found: Value = client.get(&format!("/api/v1/requests/{}/lineage", encode(&options.request))).await?;
    let shown = if options.lineage { found } else { serde_json::json!({ "request": found["request"] }) };
    print(context.global.output.format, &shown, |found| {
        let mut table = Table::new(&["STEP", "ID", "DETAILS"]);
        chain(found).into_iter().for_each(|step| table.row(step.to_vec()));
        table
    });
    Ok(())
}
