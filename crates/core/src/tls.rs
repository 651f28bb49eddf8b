//! TLS for clients: which certificate authorities a client trusts, and servers that are pinned by certificate fingerprint.

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
    /// A certificate or key file cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// Why the file cannot be used.
        reason: String,
    },
    /// The text is not a SHA-256 fingerprint.
    #[error("'{0}' is not a SHA-256 fingerprint, which has 64 hexadecimal digits")]
    Fingerprint(String),
    /// The TLS library rejected the settings.
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
    /// Computes the fingerprint of a certificate in DER.
    pub fn from_der(certificate: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::hex::encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = TlsError;

    /// Parses digits of either case, with or without colons and a leading `sha256:`.
    fn from_str(text: &str) -> Result<Self, TlsError> {
        let invalid = || TlsError::Fingerprint(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let digits: Vec<u8> = lower.strip_prefix("sha256:").unwrap_or(&lower).bytes().filter(|b| *b != b':').collect();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| invalid())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
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

/// How a client verifies a server's certificate.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// An authority of the system (or of the file in `SSL_CERT_FILE`) must have signed it. Systems without authorities, such as small
    /// container images, use Mozilla's list.
    System,
    /// An authority in this file must have signed it; the system's authorities are not trusted.
    Only(&'a Path),
    /// An authority of the system or in this file must have signed it.
    SystemAnd(&'a Path),
    /// It must have this fingerprint. Its names and validity dates are not checked.
    Pinned(Fingerprint),
    /// Any certificate is accepted, because the user configured that for this server. An attacker on the network path can read everything.
    Unverified,
}

/// The cryptography provider for all TLS connections of slipway.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads the certificates of a PEM file.
///
/// # Errors
/// [`TlsError::File`] if the file cannot be read or contains no certificate.
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
    // System stores contain a few certificates that the library cannot parse; the others are used.
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

/// The TLS configuration of a client. If it rejects a server's certificate, [`refused`] finds the reason in the connection error.
///
/// # Errors
/// [`TlsError`] if a certificate file cannot be used.
pub fn client(trust: Trust<'_>) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let roots = match trust {
        Trust::Pinned(fingerprint) => {
            let verifier = Arc::new(Verifier { expected: Expected::Fingerprint(fingerprint), provider });
            return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
        }
        Trust::Unverified => {
            let verifier = Arc::new(Verifier { expected: Expected::Any, provider });
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

/// Lets a client authenticate itself with the certificate and key in two PEM files, which may be the same file.
///
/// # Errors
/// [`TlsError`] if a file cannot be used, or the key does not belong to the certificate.
pub fn with_identity(mut client: ClientConfig, certificate: &Path, key: &Path) -> Result<ClientConfig, TlsError> {
    let chain = certificates(certificate)?;
    let unusable = |reason: String| TlsError::File { path: key.to_owned(), reason };
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(e.to_string()))?;
    let identity = rustls::sign::CertifiedKey::from_der(chain, key, &provider())?;
    client.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(identity));
    Ok(client)
}

/// A server certificate that the client rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The fingerprint of the certificate that the server presented.
    pub presented: Fingerprint,
    /// Why it was rejected: one sentence without a full stop.
    pub reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the certificate with the SHA-256 fingerprint {} is rejected: {}", self.presented, self.reason)
    }
}

impl std::error::Error for Refused {}

/// The rejected certificate that caused a connection error, if a certificate did.
pub fn refused(error: &(dyn std::error::Error + 'static)) -> Option<Refused> {
    match rustls_error(error)? {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => {
            other.downcast_ref::<Refused>().cloned()
        }
        _ => None,
    }
}

/// Whether a connection failed because the server does not speak TLS.
pub fn is_not_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(rustls_error(error), Some(rustls::Error::InvalidMessage(_)))
}

/// The TLS error in the source chain of a connection error.
fn rustls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // `io::Error::source` skips the error that the `io::Error` wraps, so it is taken from `get_ref`.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

#[derive(Debug)]
enum Expected {
    SignedBy(Arc<WebPkiServerVerifier>),
    Fingerprint(Fingerprint),
    Any,
}

/// Verifies a server's certificate and reports a rejected one as [`Refused`]. The signature of the handshake, which proves that the server
/// holds the certificate's key, is always verified.
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
        let presented = Fingerprint::from_der(end_entity);
        let reason = match &self.expected {
            Expected::Any => return Ok(ServerCertVerified::assertion()),
            Expected::Fingerprint(expected) if *expected == presented => return Ok(ServerCertVerified::assertion()),
            Expected::Fingerprint(expected) => format!("{expected} was expected"),
            Expected::SignedBy(authorities) => {
                let verified =
                    authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
                match verified {
                    Ok(verified) => return Ok(verified),
                    Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                        "it was not signed by a trusted authority".to_owned()
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
    fn fingerprints_are_parsed_in_all_common_formats() {
        let fingerprint = Fingerprint::from_der(b"a certificate");
        let printed = fingerprint.to_string();
        assert_eq!(printed.parse::<Fingerprint>().unwrap(), fingerprint);
        let pairs: Vec<String> =
            printed.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).to_uppercase()).collect();
        assert_eq!(format!("SHA256:{}", pairs.join(":")).parse::<Fingerprint>().unwrap(), fingerprint);
        for invalid in ["", "sha256:", &printed[1..], &format!("{printed}00"), &printed.replace('a', "g"), "é"] {
            if invalid != printed {
                assert!(invalid.parse::<Fingerprint>().is_err(), "{invalid}");
            }
        }
    }

    #[test]
    fn refused_certificate_is_found_in_the_source_chain() {
        let expected = Refused { presented: Fingerprint::from_der(b"a certificate"), reason: "unknown".into() };
        let other: Arc<dyn std::error::Error + Send + Sync> = Arc::new(expected.clone());
        let tls = rustls::Error::from(CertificateError::Other(OtherError(other)));
        let wrapped = std::io::Error::other(std::io::Error::other(tls));
        assert_eq!(refused(&wrapped), Some(expected));
        assert_eq!(refused(&std::io::Error::other("connection reset")), None);
    }

    #[test]
    fn error_names_the_file_without_certificates() {
        let path = std::env::temp_dir().join(format!("slipway-tls-{}.pem", crate::ids::hex32()));
        std::fs::write(&path, "nothing").unwrap();
        for trust in [Trust::Only(&path), Trust::SystemAnd(&path)] {
            let error = client(trust).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()) && error.contains("no certificate"), "{error}");
        }
        std::fs::remove_file(path).unwrap();
    }
}
