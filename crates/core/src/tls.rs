//! TLS of clients: which authorities are trusted, and servers that are known by the fingerprint of their certificate.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use crate::Explain;

/// A TLS setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of certificates or of a key.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A text that is no fingerprint.
    #[error("'{0}' is not a SHA-256 fingerprint, which has 64 hexadecimal digits")]
    Fingerprint(String),
    /// The TLS library refuses the settings.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

impl Explain for TlsError {
    fn code(&self) -> &'static str {
        "tls.file"
    }
}

/// SHA-256 of a certificate in DER, as `openssl x509 -fingerprint -sha256` prints it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = TlsError;

    /// Takes digits of either case, with or without colons and a leading `sha256:`.
    fn from_str(text: &str) -> Result<Self, TlsError> {
        let wrong = || TlsError::Fingerprint(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let digits: Vec<u8> = lower.strip_prefix("sha256:").unwrap_or(&lower).bytes().filter(|b| *b != b':').collect();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl serde::Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a server is believed to be who it says.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// An authority of the system signed for its name (or of the file that `SSL_CERT_FILE` names). Mozilla's list is used on a system that
    /// has none, as a small container image.
    System,
    /// An authority of this file signed for its name, and no other authority counts.
    Only(&'a Path),
    /// An authority of the system or of this file signed for its name.
    SystemAnd(&'a Path),
    /// Its certificate is exactly this one. Neither its name nor its dates count.
    Pinned(Fingerprint),
}

/// The cryptography of all our TLS.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates of a PEM file.
///
/// # Errors
/// [`TlsError::File`] when it cannot be read or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = |reason: String| TlsError::File { path: path.to_owned(), reason };
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| unusable(e.to_string()))?.collect();
    let found = read.map_err(|e| unusable(e.to_string()))?;
    if found.is_empty() {
        return Err(unusable("there is no certificate in it".into()));
    }
    Ok(found)
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // Systems carry a few certificates that the library does not read; the others count.
    let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| TlsError::File { path: path.to_owned(), reason: e.to_string() })?;
    }
    Ok(())
}

/// Settings of a client. When it refuses a server's certificate, [`refused`] finds the reason in the error.
///
/// # Errors
/// [`TlsError`] for a file that cannot be used.
pub fn client(trust: Trust<'_>) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let roots = match trust {
        Trust::Pinned(fingerprint) => {
            let verifier = Arc::new(Verifier { expected: Expected::Fingerprint(fingerprint), provider });
            return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
        }
        Trust::System => system_roots(),
        Trust::Only(path) => {
            let mut roots = RootCertStore::empty();
            add_file(&mut roots, path)?;
            roots
        }
        Trust::SystemAnd(path) => {
            let mut roots = system_roots();
            add_file(&mut roots, path)?;
            roots
        }
    };
    let by_authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
    let by_authorities = by_authorities.map_err(|e| rustls::Error::General(e.to_string()))?;
    let verifier = Arc::new(Verifier { expected: Expected::SignedBy(by_authorities), provider });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// A server's certificate that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The fingerprint of what the server presented.
    pub presented: Fingerprint,
    /// Why it was refused, one sentence without a full stop.
    pub reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the certificate with the SHA-256 fingerprint {} is refused: {}", self.presented, self.reason)
    }
}

impl std::error::Error for Refused {}

/// The refused certificate behind an error of a connection, if that is what it is about.
pub fn refused(error: &(dyn std::error::Error + 'static)) -> Option<Refused> {
    match behind(error)? {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => {
            other.downcast_ref::<Refused>().cloned()
        }
        _ => None,
    }
}

/// Whether a connection failed since what the other side sent is no TLS at all.
pub fn is_not_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(behind(error), Some(rustls::Error::InvalidMessage(_)))
}

/// The TLS error that an error of a connection was made of.
fn behind<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An `io::Error` hides the error that it was made of from `source`.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

#[derive(Debug)]
enum Expected {
    SignedBy(Arc<WebPkiServerVerifier>),
    Fingerprint(Fingerprint),
}

/// Verifies a server's certificate, and says which one it refuses. That the server holds the key of its certificate is proved by the
/// handshake's signature, which is verified in either case.
#[derive(Debug)]
struct Verifier {
    expected: Expected,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = Fingerprint::of(end_entity);
        let reason = match &self.expected {
            Expected::Fingerprint(expected) if *expected == presented => return Ok(ServerCertVerified::assertion()),
            Expected::Fingerprint(expected) => format!("{expected} is expected"),
            Expected::SignedBy(authorities) => {
                let verified =
                    authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
                match verified {
                    Ok(verified) => return Ok(verified),
                    Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                        "no authority that is trusted here signed it".to_owned()
                    }
                    Err(rustls::Error::InvalidCertificate(why)) => why.to_string(),
                    Err(other) => return Err(other),
                }
            }
        };
        let refused: Arc<dyn std::error::Error + Send + Sync> = Arc::new(Refused { presented, reason });
        Err(CertificateError::Other(OtherError(refused)).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_they_are_printed_anywhere() {
        let fingerprint = Fingerprint::of(b"a certificate");
        let printed = fingerprint.to_string();
        assert_eq!(printed.parse::<Fingerprint>().unwrap(), fingerprint);
        let pairs: Vec<String> =
            printed.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).to_uppercase()).collect();
        assert_eq!(format!("SHA256:{}", pairs.join(":")).parse::<Fingerprint>().unwrap(), fingerprint);
        for wrong in ["", "sha256:", &printed[1..], &format!("{printed}00"), &printed.replace('a', "g"), "é"] {
            if wrong != printed {
                assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
            }
        }
    }

    #[test]
    fn a_refused_certificate_is_found_inside_an_error_of_a_connection() {
        let refused_one = Refused { presented: Fingerprint::of(b"it"), reason: "unknown".into() };
        let other: Arc<dyn std::error::Error + Send + Sync> = Arc::new(refused_one.clone());
        let tls = rustls::Error::from(CertificateError::Other(OtherError(other)));
        let wrapped = std::io::Error::other(std::io::Error::other(tls));
        assert_eq!(refused(&wrapped), Some(refused_one));
        assert_eq!(refused(&std::io::Error::other("connection reset")), None);
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let path = std::env::temp_dir().join(format!("slipway-tls-{}.pem", crate::ids::hex32()));
        std::fs::write(&path, "nothing").unwrap();
        for trust in [Trust::Only(&path), Trust::SystemAnd(&path)] {
            let error = client(trust).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()) && error.contains("no certificate"), "{error}");
        }
        std::fs::remove_file(path).unwrap();
    }
}
