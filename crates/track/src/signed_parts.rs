//! Signatures of the URLs under which parts of an upload are stored.

use ring::hmac;
use ring::rand::SecureRandom;
use slipway_store::{Database, StoreError};

use crate::{Error, ErrorCode, repo};

/// Signs URLs of parts with a key of this installation (HMAC with SHA-256, RFC 2104); cheap to clone.
#[derive(Clone)]
pub(crate) struct PartSigner(hmac::Key);

impl std::fmt::Debug for PartSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PartSigner")
    }
}

impl PartSigner {
    /// With the key in the database, which the first process makes: a part may be sent to another server than the one that
    /// signed its URL, and after a restart.
    ///
    /// # Errors
    /// The store's; [`ErrorCode::InternalError`] when the operating system gives no random numbers.
    pub(crate) async fn open(db: &Database) -> Result<Self, Error> {
        let no_randomness = |_| Error::new(ErrorCode::InternalError, "the operating system gives no random numbers");
        let mut fresh = [0; 32];
        ring::rand::SystemRandom::new().fill(&mut fresh).map_err(no_randomness)?;
        let key = db.write(move |c| repo::keys::find_or_insert(c, "upload-parts", &fresh)).await?;
        if key.len() < fresh.len() {
            return Err(StoreError::Commit("the key of uploads is damaged".into()).into());
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// What is signed. No field can hold a line break, so no two different parts are signed as the same text.
    fn message(upload_id: &str, number: &str, expires_ms: i64) -> String {
        format!("slipway part of an upload\n{upload_id}\n{number}\n{expires_ms}")
    }

    /// The signature for part `number` of an upload until `expires_ms` (milliseconds since the Unix epoch), as hexadecimal
    /// digits.
    pub(crate) fn sign(&self, upload_id: &str, number: &str, expires_ms: i64) -> String {
        let tag = hmac::sign(&self.0, Self::message(upload_id, number, expires_ms).as_bytes());
        tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether `signature` is the one of these values; takes equally long wherever it differs.
    pub(crate) fn verifies(&self, upload_id: &str, number: &str, expires_ms: i64, signature: &str) -> bool {
        let byte = |at: usize| u8::from_str_radix(signature.get(at..at + 2)?, 16).ok();
        let Some(tag) = (0..signature.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>() else { return false };
        !upload_id.contains('\n')
            && !number.contains('\n')
            && hmac::verify(&self.0, Self::message(upload_id, number, expires_ms).as_bytes(), &tag).is_ok()
    }
}
