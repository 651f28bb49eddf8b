//! Tokens that grant full access: the owner's and those of the token file.

use std::path::Path;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use subtle::{Choice, ConstantTimeEq};

use crate::ServerError;

/// Minimum length of a token, in bytes.
pub(super) const MIN_TOKEN_BYTES: usize = 16;

/// A set of accepted tokens, stored as digests of equal length, so that comparing them does not reveal the length of a token. Cheap to
/// clone.
#[derive(Clone)]
pub struct Tokens(Arc<[[u8; 32]]>);

fn digest_of(token: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    bytes
}

impl Tokens {
    /// Reads a file with one token per line; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`ServerError::TokenFile`] when the file cannot be read, has no token or one that is too short, or may be changed by other users.
    pub fn read(path: &Path) -> Result<Self, ServerError> {
        use std::os::unix::fs::MetadataExt;
        let invalid = |reason: String| ServerError::TokenFile { path: path.to_owned(), reason };
        let metadata = std::fs::metadata(path).map_err(|e| invalid(e.to_string()))?;
        if metadata.mode() & 0o022 != 0 {
            return Err(invalid(format!("other users may write to it (mode {:o})", metadata.mode() & 0o777)));
        }
        if metadata.mode() & 0o004 != 0 {
            // Only a warning: Kubernetes mounts secrets with this mode, in a file system that no other user can access.
            tracing::warn!(path = %path.display(), "the token file can be read by every user of this machine");
        }
        let text = std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
        Self::from_lines(&text).map_err(invalid)
    }

    /// A set with one token.
    pub(crate) fn single(token: &str) -> Self {
        Self([digest_of(token)].into())
    }

    pub(super) fn from_lines(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let tokens: Vec<&str> = lines.collect();
        if tokens.is_empty() {
            return Err("it contains no token".into());
        }
        if let Some(at) = tokens.iter().position(|t| t.len() < MIN_TOKEN_BYTES) {
            return Err(format!("token {} is shorter than {MIN_TOKEN_BYTES} characters", at + 1));
        }
        Ok(Self(tokens.into_iter().map(digest_of).collect()))
    }

    /// Whether a token is in the set. Compares with all tokens, each in constant time.
    pub(super) fn accepts(&self, token: &str) -> bool {
        let presented = digest_of(token);
        self.0.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&presented)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_are_tokens() {
        let tokens = Tokens::from_lines("# comment\n\n 0123456789abcdef \nfedcba9876543210\n").unwrap();
        assert!(tokens.accepts("0123456789abcdef") && tokens.accepts("fedcba9876543210"));
        for unknown in ["", "0123456789abcdeF", "0123456789abcdef ", "# comment", "0123456789abcdef\nfedcba9876543210"]
        {
            assert!(!tokens.accepts(unknown), "{unknown:?}");
        }
        assert!(Tokens::from_lines("# only a comment").is_err() && Tokens::from_lines("short").is_err());
    }
}
