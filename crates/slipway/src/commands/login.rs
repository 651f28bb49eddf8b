//! `login`, `logout`: tokens that are saved for servers.

use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};
use slipway_core::config::Origin;
use slipway_core::env;

use super::Context;
use crate::Failure;
use crate::cli::Login;
use crate::client::Client;
use crate::credentials::{self, Access, Saved, ServerUrl, Sources, Token};
use crate::output::{Table, print, say};

/// Bytes of a token file.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;

pub(super) async fn login(context: &Context, options: Login) -> Result<(), Failure> {
    if options.list {
        return list(context);
    }
    let url = ServerUrl::parse(options.url.as_deref().unwrap_or_default())?;
    let token = token(options.token_file.as_deref())?;
    let mut sources = Sources::of(&context.config, context.global.insecure)?;
    // The token that is tried is the one that is saved, not one of earlier.
    sources.token = Some(token.clone());
    let fingerprint = sources.fingerprint;
    if fingerprint.is_some() && !url.is_https {
        let message = format!("{} has no certificate, since it is not https", url.origin());
        return Err(Failure::known(message, "tls.file", 2));
    }
    if fingerprint.is_none() {
        // A certificate that is not trusted any more would otherwise be so by its earlier fingerprint.
        sources.saved = None;
    }
    let access = Access::to(&url, &Origin::Flag, &sources)?;
    let _: Value = Client::to(&url, access)?.get("/api/v1/status").await?;
    let path = credentials::file()?;
    credentials::save(&path, Saved { server: url.origin(), token, fingerprint })?;
    if !context.global.quiet {
        say(format_args!("the token for {} is saved in {}", url.origin(), path.display()));
        say(format_args!("Try next: slipway status --server {}", url.base));
    }
    Ok(())
}

pub(super) fn logout(context: &Context, url: &str) -> Result<(), Failure> {
    let server = ServerUrl::parse(url)?.origin();
    let was_saved = credentials::forget(&credentials::file()?, &server)?;
    if !context.global.quiet {
        say(if was_saved {
            "the token is forgotten; it stays valid until the server forgets it, too"
        } else {
            "no token was saved"
        });
    }
    Ok(())
}

fn list(context: &Context) -> Result<(), Failure> {
    let saved = credentials::load(&credentials::file()?)?;
    // Shown without the tokens.
    let shown: Vec<Value> = saved.iter().map(|s| json!({ "server": s.server, "fingerprint": s.fingerprint })).collect();
    print(context.global.output.format, &shown, |shown| {
        let mut table = Table::new(&["SERVER", "FINGERPRINT"]);
        for server in shown {
            let text = |key: &str| server[key].as_str().unwrap_or("-").to_owned();
            table.row(vec![text("server"), text("fingerprint")]);
        }
        table
    });
    Ok(())
}

fn token(file: Option<&Path>) -> Result<Token, Failure> {
    let failed = |path: &Path, reason: String| {
        Failure::known(format!("no token in {}: {reason}", path.display()), "auth.token_file", 2)
    };
    let Some(path) = file else {
        return env::value(env::TOKEN).as_deref().and_then(Token::from_text).ok_or_else(|| Failure::Error {
            message: "there is no token to log in with".into(),
            code: "auth.required",
            hint: Some("Name a file with `--token-file FILE` (- is standard input), or set SLIPWAY_TOKEN.".into()),
            exit: 2,
        });
    };
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_TOKEN_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
    };
    read.map_err(|e| failed(path, e.to_string()))?;
    Token::from_text(&text).ok_or_else(|| failed(path, "it is empty".into()))
}
