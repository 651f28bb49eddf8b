//! `slipway up --kube` and `down --kube`: slipway in a cluster.

use std::time::Duration;

use slipway_operator::install::{self, Action, Step, Values};
use slipway_operator::{Api, Resource};

use super::Context;
use crate::Failure;
use crate::cli::{Format, Kube};
use crate::output::{Table, agreed, print, print_text, say};

const SECRET: Resource<'static> = Resource { group: "", version: "v1", kind: "Secret", plural: "secrets" };

fn values(kube: &Kube) -> Result<Values, Failure> {
    let mut texts = Vec::new();
    for path in &kube.values {
        texts.push(std::fs::read_to_string(path).map_err(|e| Failure::Error {
            message: format!("{}: {e}", path.display()),
            code: "kube.invalid",
            hint: None,
            exit: 2,
        })?);
    }
    let mut values = Values::read(&kube.namespace, &texts)?;
    if let Some((repository, tag)) = kube.image.as_deref().map(|i| i.rsplit_once(':').unwrap_or((i, "latest"))) {
        values.image.repository = repository.into();
        values.image.tag = tag.into();
    }
    Ok(values)
}

fn show(context: &Context, steps: &[Step]) {
    let changed: Vec<Step> = steps.iter().filter(|s| s.action != Action::Keep).cloned().collect();
    print(context.global.output.format, &changed, |changed| {
        let mut table = Table::new(&["OBJECT", "NAMESPACE"]);
        for step in changed {
            let sign = match step.action {
                Action::Create => "+",
                Action::Change => "~",
                Action::Keep => "=",
                Action::Delete => "-",
            };
            let namespace = step.namespace.clone().unwrap_or_default();
            table.row(vec![format!("{sign} {}/{}", step.kind, step.name), namespace]);
        }
        table
    });
    say(format_args!("{} objects are as they should be", steps.len() - changed.len()));
}

pub(super) async fn up(context: &Context, kube: Kube) -> Result<(), Failure> {
    let values = values(&kube)?;
    if context.global.dry_run && matches!(context.global.output.format, Format::Yaml | Format::Json) {
        // The objects themselves, for `kubectl diff` and for reading.
        for object in install::objects(&values) {
            let text = match context.global.output.format {
                Format::Json => object.to_string(),
                _ => format!("---\n{}", serde_saphyr::to_string(&object).unwrap_or_default()),
            };
            print_text(&text);
        }
        return Ok(());
    }
    let api = Api::connect(kube.kubeconfig.as_deref(), kube.context.as_deref()).await?;
    let plan = install::apply(&api, &values, true).await?;
    let changes = plan.iter().any(|s| s.action != Action::Keep);
    if context.global.dry_run || (changes && !context.global.quiet) {
        show(context, &plan);
    }
    if context.global.dry_run {
        return Ok(());
    }
    if changes && !agreed(&context.global, "Apply?") {
        return Err(Failure::declined("kube.invalid"));
    }
    install::apply(&api, &values, false).await?;
    if values.server.enabled {
        tokens(&api, &values).await?;
    }
    install::ready(&api, &values.namespace, Duration::from_secs(kube.wait), |missing| {
        if !context.global.quiet {
            say(format_args!("waiting: {missing}"));
        }
    })
    .await?;
    say(format_args!("slipway {} is up in namespace {}", env!("CARGO_PKG_VERSION"), values.namespace));
    if values.server.enabled {
        say(format_args!("  kubectl -n {} port-forward service/slipway 7070", values.namespace));
        if values.runs.namespaces.is_empty() {
            let command = install::enable_namespace(&values.namespace, "NAMESPACE");
            say(format_args!("  a namespace is enabled for runs by runs.namespaces in the values, or by: {command}"));
        }
    }
    Ok(())
}

/// Creates the secret with the tokens if it is missing. It belongs to the user and is never changed.
async fn tokens(api: &Api, values: &Values) -> Result<(), Failure> {
    let (namespace, name) = (values.namespace.as_str(), values.server.token_secret.as_str());
    if api.get(&SECRET, Some(namespace), name).await?.is_some() {
        return Ok(());
    }
    let token = slipway_core::ids::hex32() + &slipway_core::ids::hex32();
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
        "stringData": {"tokens": format!("{token}\n")},
    });
    api.apply(&SECRET, Some(namespace), name, "slipway", false, &secret, false).await?;
    say(format_args!("  token: kubectl -n {namespace} get secret {name} -o jsonpath='{{.data.tokens}}' | base64 -d"));
    Ok(())
}

pub(super) async fn down(context: &Context, kube: Kube) -> Result<(), Failure> {
    let api = Api::connect(kube.kubeconfig.as_deref(), kube.context.as_deref()).await?;
    let plan = install::remove(&api, &kube.namespace, true).await?;
    if plan.is_empty() {
        say(format_args!("there is nothing of slipway in namespace {}", kube.namespace));
        return Ok(());
    }
    if context.global.dry_run || !context.global.quiet {
        show(context, &plan);
    }
    if context.global.dry_run {
        return Ok(());
    }
    if !agreed(&context.global, "Remove all of this, with the state on its volume?") {
        return Err(Failure::Error {
            message: "nothing was removed".into(),
            code: "kube.invalid",
            hint: Some("Say -y to remove without being asked.".into()),
            exit: 1,
        });
    }
    install::remove(&api, &kube.namespace, false).await?;
    say(format_args!("slipway is gone from namespace {}", kube.namespace));
    Ok(())
}
