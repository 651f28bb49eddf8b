//! Tokens of a file: who holds one may do everything.

use std::path::Path;
use std::sync::Arc;

use crate::ServerError;

/// Characters a token has at least.
const MIN_TOKEN: usize = 16;

/// The accepted tokens; cheap to clone.
#[derive(Clone)]
pub struct Tokens(Arc<[String]>);

impl Tokens {
    /// Reads a file with one token a line; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`ServerError::TokenFile`] when it cannot be read, holds no token, or holds one that is too short.
    pub fn read(path: &Path) -> Result<Self, ServerError> {
        let wrong = |reason: String| ServerError::TokenFile { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        Self::from_lines(&text).map_err(wrong)
    }

    pub(super) fn from_lines(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let tokens: Vec<String> = lines.map(str::to_owned).collect();
        if tokens.is_empty() {
            return Err("it holds no token".into());
        }
        if let Some(at) = tokens.iter().position(|t| t.len() < MIN_TOKEN) {
            return Err(format!("token {} is shorter than {MIN_TOKEN} characters", at + 1));
        }
        Ok(Self(tokens.into()))
    }

    pub(super) fn accepts(&self, token: &str) -> bool {
        // Every token is compared, each in constant time, so that the time tells nothing.
        self.0.iter().fold(false, |found, known| found | same(known.as_bytes(), token.as_bytes()))
    }
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}
