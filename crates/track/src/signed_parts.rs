//! Signatures of the URLs to which clients upload the parts of a multipart upload.

use ring::hmac;
use ring::rand::SecureRandom;
use slipway_store::{Database, StoreError};

use crate::{Error, ErrorCode, repo};

/// Signs part URLs with the secret key of this installation (HMAC-SHA-256, RFC 2104); cheap to clone.
#[derive(Clone)]
pub(crate) struct PartSigner(hmac::Key);

impl std::fmt::Debug for PartSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PartSigner")
    }
}

impl PartSigner {
    /// Loads the key from the database; the first process creates it. The key is shared, because a client may send a part after a
    /// restart, or to another server than the one that signed its URL.
    ///
    /// # Errors
    /// An error of the store; [`ErrorCode::InternalError`] when the operating system provides no random numbers.
    pub(crate) async fn open(db: &Database) -> Result<Self, Error> {
        let no_randomness = |_| Error::new(ErrorCode::InternalError, "the operating system provides no random numbers");
        let mut new_key = [0; 32];
        ring::rand::SystemRandom::new().fill(&mut new_key).map_err(no_randomness)?;
        let key = db.write(move |c| repo::keys::find_or_insert(c, "upload-parts", &new_key)).await?;
        if key.len() < new_key.len() {
            return Err(StoreError::Commit("the signing key for uploads is corrupt".into()).into());
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// The signed text. No field can contain a line break, so the texts of two different parts always differ.
    fn message(upload_id: &str, number: &str, expires_ms: i64) -> String {
        format!("slipway part of an upload\n{upload_id}\n{number}\n{expires_ms}")
    }

    /// Signs part `number` of an upload, valid until `expires_ms` (milliseconds since the Unix epoch). Returns the signature in
    /// hexadecimal.
    pub(crate) fn sign(&self, upload_id: &str, number: &str, expires_ms: i64) -> String {
        let tag = hmac::sign(&self.0, Self::message(upload_id, number, expires_ms).as_bytes());
        slipway_core::hex::encode(tag.as_ref())
    }

    /// Whether `signature` is valid for these values. The comparison takes constant time.
    pub(crate) fn verifies(&self, upload_id: &str, number: &str, expires_ms: i64, signature: &str) -> bool {
        let byte = |at: usize| u8::from_str_radix(signature.get(at..at + 2)?, 16).ok();
        let Some(tag) = (0..signature.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>() else { return false };
        !upload_id.contains('\n')
            && !number.contains('\n')
            && hmac::verify(&self.0, Self::message(upload_id, number, expires_ms).as_bytes(), &tag).is_ok()
    }
}
