//! Encryption of objects at rest: AES-256-GCM with a random nonce for each state, authenticated together with the key of the object, so that
//! an attacker with access to the database can neither read a secret nor put it in the place of another.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::error::Error;
use crate::repo::Key;

/// The first byte of a sealed state; a plain one begins with `{`.
const FORMAT: u8 = 1;

/// Seals and opens states with one key.
pub struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

fn context(key: &Key) -> Aad<Vec<u8>> {
    Aad::from([&*key.resource, &*key.namespace, &*key.name].join("/").into_bytes())
}

impl Sealer {
    /// Creates a sealer with a key.
    pub fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has the 32 bytes that AES-256 needs");
        Self { key: LessSafeKey::new(key), random: SystemRandom::new() }
    }

    /// Encrypts a state of the object with this key.
    ///
    /// # Errors
    /// [`Error::Sealed`] if the operating system has no random numbers.
    pub fn seal(&self, key: &Key, plain: &[u8]) -> Result<Vec<u8>, Error> {
        let failed = |_| Error::Sealed("the state cannot be encrypted".into());
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(failed)?;
        let mut sealed = plain.to_vec();
        let nonce_value = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce_value, context(key), &mut sealed).map_err(failed)?;
        Ok([&[FORMAT][..], &nonce, &sealed].concat())
    }

    /// Decrypts a state of the object with this key.
    ///
    /// # Errors
    /// [`Error::Sealed`] if it was encrypted with another key or for another object.
    pub fn open(&self, key: &Key, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let failed =
            || Error::Sealed(format!("{} {:?} cannot be decrypted with this server's key", key.resource, key.name));
        let rest = sealed.strip_prefix(&[FORMAT]).ok_or_else(failed)?;
        let (nonce, data) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(failed)?;
        let mut data = data.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.key.open_in_place(nonce, context(key), &mut data).map_err(|_| failed())?;
        Ok(plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_states_are_bound_to_their_object_and_key() {
        let key = |name: &str| Key { resource: "secrets".into(), namespace: "default".into(), name: name.into() };
        let sealer = Sealer::new(&[7; 32]);
        let sealed = sealer.seal(&key("a"), b"hunter2").unwrap();
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        assert_ne!(sealed, sealer.seal(&key("a"), b"hunter2").unwrap());
        assert_eq!(sealer.open(&key("a"), &sealed).unwrap(), b"hunter2");
        assert!(sealer.open(&key("b"), &sealed).is_err());
        assert!(Sealer::new(&[8; 32]).open(&key("a"), &sealed).is_err());
        assert!(sealer.open(&key("a"), &sealed[..20]).is_err());
        assert!(sealer.open(&key("a"), b"").is_err());
    }
}
