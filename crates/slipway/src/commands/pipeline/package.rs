//! `slipway pipeline upload` and `export`: compiled pipelines on the server, and as manifests for Kubernetes.

use serde_json::{Value, json};
use slipway_pipeline::{export, ir};

use super::super::Context;
use super::{document, each, failure, parameters, text};
use crate::Failure;
use crate::cli::pipeline::{Export, Upload};
use crate::client::{Client, encode};
use crate::output::{Table, print, print_note, print_text};

const PIPELINES: &str = "/apis/v2beta1/pipelines";

/// The id of the pipeline with this name, if there is one.
async fn find_pipeline(client: &Client, name: &str, namespace: &str) -> Result<Option<String>, Failure> {
    let found = first(client, &format!("{PIPELINES}?namespace={}", encode(namespace)), "pipelines", name).await?;
    Ok(found.map(|found| text(&found["pipeline_id"])))
}

/// The first object of a list with this name.
async fn first(client: &Client, list: &str, field: &str, name: &str) -> Result<Option<Value>, Failure> {
    let mut found = None;
    let is_other = |object: Value| {
        let is_wanted = object["display_name"] == name || object["name"] == name;
        found = is_wanted.then_some(object);
        !is_wanted
    };
    each(client, list, field, is_other).await?;
    Ok(found)
}

/// The id of the pipeline with this name.
pub(super) async fn pipeline_id(client: &Client, name: &str, namespace: &str) -> Result<String, Failure> {
    let found = find_pipeline(client, name, namespace).await?;
    found.ok_or_else(|| failure(format!("there is no pipeline '{name}'"), "pipeline.not_found"))
}

/// The id of the version with this name, or of the newest one.
pub(super) async fn version_id(client: &Client, pipeline: &str, name: Option<&str>) -> Result<String, Failure> {
    let list = format!("{PIPELINES}/{}/versions", encode(pipeline));
    let found = match name {
        Some(name) => first(client, &list, "pipeline_versions", name).await?,
        None => {
            let sort = encode("created_at desc");
            let mut page: Value = client.get(&format!("{list}?page_size=1&sort_by={sort}")).await?;
            Some(page["pipeline_versions"][0].take()).filter(|version| !version.is_null())
        }
    };
    let missing = || {
        let text =
            name.map_or_else(|| "the pipeline has no version".into(), |name| format!("there is no version '{name}'"));
        failure(text, "pipeline.not_found")
    };
    found.map(|found| text(&found["pipeline_version_id"])).ok_or_else(missing)
}

/// Uploads a pipeline, or a version of one that exists.
pub(super) async fn upload(context: &Context, options: Upload) -> Result<(), Failure> {
    let document = document(&options.file)?;
    let own_name = document.spec.pipeline_info.as_ref().map(|info| info.name.clone());
    let name = options.name.or(own_name).unwrap_or_else(|| "pipeline".into());
    let client = context.client().await?;
    let namespace = &options.namespace.namespace;
    let existing = find_pipeline(&client, &name, namespace).await?;
    let version = options.version_name.unwrap_or_else(|| match existing {
        Some(_) => format!("{name} {}", slipway_core::clock::rfc3339(slipway_core::clock::now_ms())),
        None => name.clone(),
    });
    let content = serde_json::to_string(&ir::to_json(&document))
        .map_err(|error| failure(error.to_string(), "pipeline.specification"))?;
    let path = match &existing {
        Some(id) => format!(
            "{PIPELINES}/upload_version?pipelineid={}&name={}&display_name={}",
            encode(id),
            encode(&version),
            encode(&version)
        ),
        None => format!(
            "{PIPELINES}/upload?name={}&display_name={}&namespace={}",
            encode(&name),
            encode(&name),
            encode(namespace)
        ),
    };
    let uploaded: Value = client.post_file(&path, "uploadfile", "upload.json", content.as_bytes()).await?;
    let id = existing.unwrap_or_else(|| text(&uploaded["pipeline_id"]));
    let version_id = version_id(&client, &id, None).await?;
    let result = json!({ "pipelineId": id, "versionId": version_id, "name": name, "version": version });
    print(context.global.output.format, &result, |result| {
        let mut table = Table::new(&["PIPELINE", "VERSION", "ID", "VERSION ID"]);
        table.row(["name", "version", "pipelineId", "versionId"].map(|field| text(&result[field])).to_vec());
        table
    });
    Ok(())
}

/// Prints a pipeline as manifests for Kubernetes.
pub(super) fn export(options: &Export) -> Result<(), Failure> {
    let document = document(&options.file)?;
    let parameters = parameters(&options.parameters, &document)?.into_iter().collect();
    let made = export::manifests(document, parameters, &options.storage)
        .map_err(|error| failure(format!("{}: {error}", options.file.display()), "pipeline.specification"))?;
    for object in &made.objects {
        let yaml = serde_saphyr::to_string(object).map_err(|e| failure(e.to_string(), "pipeline.specification"))?;
        print_text(&format!("---\n{yaml}"));
    }
    print_note(format!(
        "{} Jobs in {} stages; create those of a stage when the stage before is complete: \
         kubectl apply -l slipway.dev/stage=1 -f FILE, kubectl wait --for=condition=complete job -l slipway.dev/stage=1 --timeout=-1s",
        made.objects.len() - 1,
        made.stages
    ));
    Ok(())
}
