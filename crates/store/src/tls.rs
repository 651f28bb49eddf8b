//! TLS to databases and buckets: rustls, with the system's authorities.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::StoreError;

/// Settings that trust the authorities in a file; the system's where none is named (or `SSL_CERT_FILE`'s), and Mozilla's list on a
/// system that has none, as a small container image.
///
/// # Errors
/// [`StoreError::Url`] for a file that cannot be used.
pub fn client(authorities: Option<&Path>) -> Result<rustls::ClientConfig, StoreError> {
    let mut roots = rustls::RootCertStore::empty();
    match authorities {
        Some(file) => {
            let unusable = |e: String| StoreError::Url(format!("sslrootcert {}: {e}", file.display()));
            for certificate in CertificateDer::pem_file_iter(file).map_err(|e| unusable(e.to_string()))? {
                let certificate = certificate.map_err(|e| unusable(e.to_string()))?;
                roots.add(certificate).map_err(|e| unusable(e.to_string()))?;
            }
        }
        None => {
            // Certificates that cannot be read are left out, as every TLS client does: each system has a few.
            let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| StoreError::Url(e.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
