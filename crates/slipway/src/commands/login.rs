//! `slipway login` and `logout`: saved tokens of servers.

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
use crate::output::{Table, print, print_note};

/// Maximum size of a token file.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;

pub(super) async fn login(context: &Context, options: Login) -> Result<(), Failure> {
    if options.list {
        return list(context);
    }
    let url = ServerUrl::parse(options.url.as_deref().unwrap_or_default())?;
    let token = token(options.token_file.as_deref())?;
    let mut sources = Sources::from_config(&context.config, context.global.insecure)?;
    // Verify the new token, not an earlier one.
    sources.token = Some(token.clone());
    let fingerprint = sources.fingerprint;
    if fingerprint.is_some() && !url.is_https {
        let message = format!("--tls-fingerprint needs an https URL; {} has no certificate", url.origin());
        return Err(Failure::with_code(message, "tls.file", 2));
    }
    if fingerprint.is_none() {
        // Ignore the saved fingerprint; otherwise a certificate that was pinned earlier would still be trusted.
        sources.saved = None;
    }
    let access = Access::resolve(&url, &Origin::Flag, &sources)?;
    let _: Value = Client::new(&url, access)?.get("/api/v1/status").await?;
    let path = credentials::credentials_path()?;
    credentials::save(&path, Saved { server: url.origin(), token, fingerprint })?;
    if !context.global.quiet {
        print_note(format_args!("the token for {} is saved in {}", url.origin(), path.display()));
        print_note(format_args!("Try next: slipway status --server {}", url.base));
    }
    Ok(())
}

pub(super) fn logout(context: &Context, url: &str) -> Result<(), Failure> {
    let server = ServerUrl::parse(url)?.origin();
    let existed = credentials::remove(&credentials::credentials_path()?, &server)?;
    if !context.global.quiet {
        print_note(if existed {
            "the saved token was removed; it stays valid on the server"
        } else {
            "no token was saved"
        });
    }
    Ok(())
}

fn list(context: &Context) -> Result<(), Failure> {
    let saved = credentials::load(&credentials::credentials_path()?)?;
    // The tokens are not printed.
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

/// Reads the token to save from a file, from standard input (`-`) or from `$SLIPWAY_TOKEN`.
fn token(file: Option<&Path>) -> Result<Token, Failure> {
    let failed = |path: &Path, reason: String| {
        Failure::with_code(format!("no token in {}: {reason}", path.display()), "auth.token_file", 2)
    };
    let Some(path) = file else {
        return env::value(env::TOKEN).as_deref().and_then(Token::from_text).ok_or_else(|| Failure::Error {
            message: "no token was given to log in with".into(),
            code: "auth.required",
            hint: Some("Pass `--token-file FILE` (- for standard input), or set SLIPWAY_TOKEN.".into()),
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
    Token::from_text(&text).ok_or_else(|| failed(path, "the file is empty".into()))
}
