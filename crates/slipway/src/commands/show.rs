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
    }
    steps
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
