//! `slipway gpu fit`: the memory of a model, and the GPUs and layouts that it fits.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use slipway_core::units;
use slipway_gpu::fit::memory::Part;
use slipway_gpu::fit::{self, Estimate, Fit, Recompute, Request, Training};
use slipway_gpu::transformer::config;
use slipway_gpu::transformer::description::{Config, Description};
use slipway_gpu::{GpuError, sheet};

use super::Context;
use crate::Failure;
use crate::cli::Format;
use crate::cli::gpu as cli;
use crate::client::encode;
use crate::commands::cluster;
use crate::output::{Table, print, print_note, print_text};

/// The prefix of the URI of a model version in the registry.
const REGISTRY: &str = "models:/";
/// Where a model version has its configuration: MLflow's transformers flavor keeps it in a folder.
const CONFIG_PATHS: [&str; 3] = ["config.json", "model/config.json", "data/model/config.json"];

/// Reads a `config.json` from a file or its folder.
fn read(path: &str) -> Result<Config, GpuError> {
    let mut file = Path::new(path).to_owned();
    if file.is_dir() {
        file.push("config.json");
    }
    let source = file.display().to_string();
    let io = |e| GpuError::Io { what: source.clone(), source: e };
    let size = std::fs::metadata(&file).map_err(io)?.len();
    if size > config::MAX_BYTES {
        return Err(GpuError::Invalid(format!("{source} has {size} bytes and is no config.json")));
    }
    let text = std::fs::read_to_string(&file).map_err(io)?;
    Ok(Config { value: config::parse(&text, &source)?, source })
}

/// Reads the `config.json` of a model version in the registry: `models:/NAME/VERSION` or `models:/NAME@ALIAS`.
async fn of_registry(context: &Context, uri: &str) -> Result<Config, Failure> {
    let invalid = || {
        GpuError::Invalid(format!("'{uri}' is no model version: expected models:/NAME/VERSION or models:/NAME@ALIAS"))
    };
    let client = context.client().await?;
    let rest = uri.trim_start_matches(REGISTRY).trim_matches('/');
    let found: Value = if let Some((name, alias)) = rest.split_once('@') {
        let query = format!("name={}&alias={}", encode(name), encode(alias));
        client.get(&format!("/api/2.0/mlflow/registered-models/alias?{query}")).await?
    } else {
        let (name, version) = rest.split_once('/').ok_or_else(invalid)?;
        let query = format!("name={}&version={}", encode(name), encode(version));
        client.get(&format!("/api/2.0/mlflow/model-versions/get?{query}")).await?
    };
    let source = found["model_version"]["source"].as_str().ok_or_else(invalid)?;
    for path in CONFIG_PATHS {
        let request = match (source.strip_prefix(REGISTRY), source.split_once("mlflow-artifacts:")) {
            (Some(id), _) => {
                format!(
                    "/api/2.0/mlflow/logged-models/{}/artifacts/files?artifact_file_path={}",
                    encode(id),
                    encode(path)
                )
            }
            (None, Some((_, artifacts))) => {
                let folder = artifacts.trim_start_matches('/').split('/').map(encode).collect::<Vec<_>>().join("/");
                format!("/api/2.0/mlflow-artifacts/artifacts/{folder}/{path}")
            }
            (None, None) => break,
        };
        if let Ok(value) = client.get::<Value>(&request).await {
            return Ok(Config { source: format!("{path} of {uri}"), value });
        }
    }
    Err(GpuError::Invalid(format!("{uri} has no config.json among the artifacts at {source}")).into())
}

/// US dollars per GPU and hour by the name of the card: the lowest of the providers in a `cluster.yaml`. Sizes with GPUs that have no data
/// sheet are left out.
async fn prices(context: &Context, file: &Path) -> Result<BTreeMap<String, f64>, Failure> {
    let mut prices = BTreeMap::new();
    for size in cluster::gpu_prices(context, file).await? {
        let Some(card) = sheet::find(&size.model) else { continue };
        let price = prices.entry(card.name.to_owned()).or_insert(f64::INFINITY);
        *price = size.hourly_per_gpu().min(*price);
    }
    if prices.is_empty() {
        let file = file.display();
        return Err(GpuError::Invalid(format!(
            "the providers in {file} report no price of a machine with GPUs; name one with --price"
        ))
        .into());
    }
    Ok(prices)
}

/// The request of the options.
async fn request(context: &Context, o: &cli::Fit) -> Result<Request, Failure> {
    let config = match o.config.as_deref() {
        Some(uri) if uri.starts_with(REGISTRY) => Some(of_registry(context, uri).await?),
        Some(path) => Some(read(path)?),
        None => None,
    };
    let (sizes, t, m) = (&o.sizes, &o.training, &o.machines);
    let train = match t.train.as_deref() {
        Some(method) => Some(Training {
            method: method.parse()?,
            lora_rank: t.lora_rank,
            recompute: t.checkpointing.as_deref().map_or(Ok(Recompute::None), str::parse)?,
            gradients: t.grad_dtype.parse()?,
            master_weights: !t.no_master_weights,
            zero: t.zero,
            keep_scores: t.keep_scores,
        }),
        None if t.checkpointing.is_some() || t.zero.is_some() => {
            return Err(
                GpuError::Invalid("--checkpointing and --zero are for training: add --train adam".into()).into()
            );
        }
        None => None,
    };
    Ok(Request {
        model: Description {
            model: o.model.clone(),
            params: o.params.clone(),
            active: o.active.clone(),
            attention: o.attention.as_deref().map(str::parse).transpose()?,
            config,
            layers: sizes.layers,
            hidden: sizes.hidden,
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            intermediate: sizes.intermediate,
            vocab: sizes.vocab,
            experts: sizes.experts,
            experts_per_token: sizes.experts_per_token,
        },
        dtype: o.dtype.as_deref().map(str::parse).transpose()?,
        kv_dtype: o.kv_dtype.as_deref().map(str::parse).transpose()?,
        seq: o.seq,
        batch: o.batch,
        block: o.block_size,
        train,
        utilization: m.utilization,
        card: m.card.clone(),
        gpus: m.gpus,
        nodes: m.nodes,
        gpus_per_node: m.gpus_per_node,
        share: m.share,
        network: m.network,
        price: m.price,
        prices: match &m.prices {
            Some(file) => prices(context, file).await?,
            None => BTreeMap::new(),
        },
        tp: m.tp,
        pp: m.pp,
        cp: m.cp,
        dp: m.dp,
        ep: m.ep,
    })
}

pub(super) async fn fit(context: &Context, options: &cli::Fit) -> Result<(), Failure> {
    let estimate = fit::fit(&request(context, options).await?)?;
    let format = context.global.output.format;
    if format == Format::Table {
        print_text(&overview(&estimate, options.explain));
    }
    print(format, &estimate, table);
    for note in estimate.shape.notes.iter().chain(&estimate.assumptions) {
        print_note(note);
    }
    match &estimate.nearest {
        Some(why) => {
            print_note(format_args!("it fits on nothing that was considered; nearest is {why}"));
            Err(Failure::Findings)
        }
        None => Ok(()),
    }
}

fn size(bytes: f64) -> String {
    units::bytes(bytes as u64)
}

/// A number of parameters, such as `46.7b`.
fn count(parameters: f64) -> String {
    if parameters >= 1e9 { format!("{:.1}b", parameters / 1e9) } else { format!("{:.0}m", parameters / 1e6) }
}

/// The model and its memory on a single GPU; with `explain` also the numbers of each formula, and the parts of each layout.
fn overview(estimate: &Estimate, explain: bool) -> String {
    let shape = &estimate.shape;
    let active =
        if shape.has_experts() { format!(", {} active", count(shape.published_active())) } else { String::new() };
    let cache = if estimate.question.train.is_some() {
        String::new()
    } else {
        format!(", key-value cache in {}", estimate.formats.cache)
    };
    let mut text = format!(
        "{}: {} parameters{active}, weights in {}{cache}\nshape: {}\n\n",
        shape.name,
        count(estimate.parameters),
        estimate.formats.weights,
        shape.source
    );
    text.push_str(&parts("MEMORY FOR", &estimate.parts, estimate.bytes, explain));
    if explain {
        for fit in &estimate.fits {
            let head = format!("EACH OF {} x {} ({})", fit.count, fit.name, fit.layout_name);
            text.push_str(&parts(&head, &fit.parts, fit.bytes_per_gpu, true));
            for formula in fit.serving.iter().flat_map(|s| &s.formulas) {
                text.push_str(&format!("{formula}\n"));
            }
            text.push('\n');
        }
    }
    if !estimate.considered.is_empty() {
        let mut table = Table::new(&["LAYOUT", "PER GPU", "WHY NOT"]);
        for c in &estimate.considered {
            table.row(vec![
                c.layout_name.clone(),
                c.bytes_per_gpu.map_or("-".into(), size),
                c.reason.clone().unwrap_or_else(|| "fits".into()),
            ]);
        }
        text.push_str(&format!("{table}\n"));
    }
    text
}

fn parts(head: &str, parts: &[Part], total: f64, explain: bool) -> String {
    let mut table = Table::with_columns(vec![head.to_owned(), "BYTES".into(), "FORMULA".into()]);
    for part in parts {
        table.row(vec![part.what.into(), size(part.bytes), part.formula.clone()]);
        if explain {
            table.row(vec![String::new(), String::new(), format!("= {}", part.numbers)]);
        }
    }
    table.row(vec!["total on one GPU".into(), size(total), String::new()]);
    format!("{table}\n")
}

/// The targets that the model fits on.
fn table(estimate: &Estimate) -> Table {
    let is_priced = |f: &Fit| f.serving.as_ref().is_some_and(|s| s.dollars_per_hour.is_some());
    let cost = estimate.fits.iter().any(is_priced);
    let mut head = vec!["FITS ON", "COUNT", "LAYOUT", "PER GPU", "MEMORY"];
    if estimate.question.train.is_none() {
        head.extend(["TOKENS/S AT BEST", "FIRST TOKEN", "SEQUENCES", "RIDGE BATCH"]);
        if cost {
            head.extend(["$/H", "$/10^6 TOKENS"]);
        }
    }
    let mut table = Table::new(&head);
    for f in &estimate.fits {
        let count = if f.nodes > 1 { format!("{} in {} machines", f.count, f.nodes) } else { f.count.to_string() };
        let mut row = vec![f.name.clone(), count, f.layout_name.clone(), size(f.bytes_per_gpu), size(f.memory)];
        if estimate.question.train.is_none() {
            let serving = f.serving.as_ref();
            let cell = |text: Option<String>| text.unwrap_or_else(|| "-".into());
            row.extend([
                cell(serving.map(|s| format!("{:.0}", s.tokens_per_second))),
                cell(serving.map(|s| units::micros(s.seconds_to_first_token * 1e6))),
                cell(serving.map(|s| format!("{:.1}", s.concurrency))),
                cell(serving.map(|s| format!("{:.0}", s.ridge_batch))),
            ]);
            if cost {
                let dollars = |d: Option<f64>| cell(d.map(|d| format!("{d:.2}")));
                row.push(dollars(serving.and_then(|s| s.dollars_per_hour)));
                row.push(dollars(serving.and_then(|s| s.dollars_per_million_tokens)));
            }
        }
        table.row(row);
    }
    table
}
