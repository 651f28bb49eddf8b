//! `slipway up --kube` and `down --kube`: installs slipway in a Kubernetes cluster and removes it.

use std::time::Duration;

use slipway_operator::install::{self, Action, Step, Values};
use slipway_operator::{Api, Resource};

use super::Context;
use crate::Failure;
use crate::cli::{Format, Kube};
use crate::output::{Table, confirm, print, print_note, print_text};

const SECRET: Resource<'static> = Resource { group: "", version: "v1", kind: "Secret", plural: "secrets" };

/// Reads the values files and applies `--image`.
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

/// Prints the plan: the objects that change.
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
    print_note(format_args!("{} objects are up to date", steps.len() - changed.len()));
}

pub(super) async fn up(context: &Context, kube: Kube) -> Result<(), Failure> {
    let values = values(&kube)?;
    if context.global.dry_run && matches!(context.global.output.format, Format::Yaml | Format::Json) {
        // Print the objects themselves, for example for `kubectl diff`.
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
    if changes && !confirm(&context.global, "Apply?") {
        return Err(Failure::declined("kube.invalid"));
    }
    install::apply(&api, &values, false).await?;
    if values.server.enabled {
        tokens(&api, &values).await?;
    }
    install::ready(&api, &values.namespace, Duration::from_secs(kube.wait), |missing| {
        if !context.global.quiet {
            print_note(format_args!("waiting: {missing}"));
        }
    })
    .await?;
    print_note(format_args!("slipway {} is up in namespace {}", env!("CARGO_PKG_VERSION"), values.namespace));
    if values.server.enabled {
        print_note(format_args!("  kubectl -n {} port-forward service/slipway 7070", values.namespace));
        if values.runs.namespaces.is_empty() {
            let command = install::enable_namespace(&values.namespace, "NAMESPACE");
            print_note(format_args!(
                "  to allow runs in a namespace, add it to runs.namespaces in the values, or run: {command}"
            ));
        }
    }
    Ok(())
}

/// Creates the secret with the tokens if it does not exist. An existing secret belongs to the user and is never changed.
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
    print_note(format_args!(
        "  token: kubectl -n {namespace} get secret {name} -o jsonpath='{{.data.tokens}}' | base64 -d"
    ));
    Ok(())
}

pub(super) async fn down(context: &Context, kube: Kube) -> Result<(), Failure> {
    let api = Api::connect(kube.kubeconfig.as_deref(), kube.context.as_deref()).await?;
    let plan = install::remove(&api, &kube.namespace, true).await?;
    if plan.is_empty() {
        print_note(format_args!("slipway is not installed in namespace {}", kube.namespace));
        return Ok(());
    }
    if context.global.dry_run || !context.global.quiet {
        show(context, &plan);
    }
    if context.global.dry_run {
        return Ok(());
    }
    if !confirm(&context.global, "Remove these objects and the state on the volume?") {
        return Err(Failure::Error {
            message: "nothing was removed".into(),
            code: "kube.invalid",
            hint: Some("Pass -y to remove without a prompt.".into()),
            exit: 1,
        });
    }
    install::remove(&api, &kube.namespace, false).await?;
    print_note(format_args!("slipway was removed from namespace {}", kube.namespace));
    Ok(())
}
