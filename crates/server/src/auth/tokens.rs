//! Tokens whose holders may do everything.

use std::path::Path;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use subtle::{Choice, ConstantTimeEq};

use crate::ServerError;

/// Characters a token has at least.
pub(super) const MIN_TOKEN: usize = 16;

/// The accepted tokens, as digests: digests have one length, so comparing them tells nothing about the length of a token. Cheap to clone.
#[derive(Clone)]
pub struct Tokens(Arc<[[u8; 32]]>);

fn digest_of(token: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    bytes
}

impl Tokens {
    /// Reads a file with one token a line; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`ServerError::TokenFile`] when it cannot be read, holds no token or one that is too short, or may be changed by other users.
    pub fn read(path: &Path) -> Result<Self, ServerError> {
        use std::os::unix::fs::MetadataExt;
        let wrong = |reason: String| ServerError::TokenFile { path: path.to_owned(), reason };
        let metadata = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?;
        if metadata.mode() & 0o022 != 0 {
            return Err(wrong(format!("other users may write to it (mode {:o})", metadata.mode() & 0o777)));
        }
        if metadata.mode() & 0o004 != 0 {
            // Not an error: a Secret that Kubernetes mounts has this mode in a file system that no other user sees.
            tracing::warn!(path = %path.display(), "the token file can be read by every user of this machine");
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        Self::from_lines(&text).map_err(wrong)
    }

    /// One token.
    pub(crate) fn one(token: &str) -> Self {
        Self([digest_of(token)].into())
    }

    pub(super) fn from_lines(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let tokens: Vec<&str> = lines.collect();
        if tokens.is_empty() {
            return Err("it holds no token".into());
        }
        if let Some(at) = tokens.iter().position(|t| t.len() < MIN_TOKEN) {
            return Err(format!("token {} is shorter than {MIN_TOKEN} characters", at + 1));
        }
        Ok(Self(tokens.into_iter().map(digest_of).collect()))
    }

    /// Whether a token is one of these. All are compared, each in constant time.
    pub(super) fn accepts(&self, token: &str) -> bool {
        let asked = digest_of(token);
        self.0.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&asked)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_tokens_and_nothing_else_is() {
        let tokens = Tokens::from_lines("# comment\n\n 0123456789abcdef \nfedcba9876543210\n").unwrap();
        assert!(tokens.accepts("0123456789abcdef") && tokens.accepts("fedcba9876543210"));
        for wrong in ["", "0123456789abcdeF", "0123456789abcdef ", "# comment", "0123456789abcdef\nfedcba9876543210"] {
            assert!(!tokens.accepts(wrong), "{wrong:?}");
        }
        assert!(Tokens::from_lines("# only a comment").is_err() && Tokens::from_lines("short").is_err());
    }
}
