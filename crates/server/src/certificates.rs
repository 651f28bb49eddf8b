//! The server's TLS certificate: read from files, or self-signed and kept in the state folder.
//!
//! It is reloaded or renewed while the server runs. Invariant: a certificate that cannot be used never replaces a working one.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use slipway_core::files;
use slipway_core::tls::{self, Fingerprint, TlsError};
use tokio_rustls::TlsAcceptor;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Validity of a self-signed certificate. Long, because every client that pins its fingerprint needs the new one after a renewal.
const VALIDITY: Duration = Duration::from_secs(5 * 365 * DAY.as_secs());
/// Remaining validity at which a self-signed certificate is renewed.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * DAY.as_secs());
/// A self-signed certificate is backdated by this much, so that clients with slow clocks accept it immediately.
const CLOCK_SKEW: Duration = DAY;

/// Where the server's certificate comes from.
#[derive(Debug, Clone)]
pub enum CertificateSource {
    /// PEM files. They are reloaded when they change.
    Files {
        /// The certificate, followed by the intermediate certificates.
        certificate: PathBuf,
        /// The certificate's private key.
        key: PathBuf,
    },
    /// A self-signed certificate, created by the server and kept in the state folder.
    SelfSigned,
}

/// The certificate in use.
#[derive(Debug)]
pub(crate) struct Certificates {
    certificate: PathBuf,
    key: PathBuf,
    /// Host names of the self-signed certificate; `None` for certificate files of the user.
    self_signed_names: Option<Vec<String>>,
    current: Arc<Current>,
    /// Versions of the two files when they were last read, whether they could be used or not.
    read_versions: Mutex<[Option<FileVersion>; 2]>,
}

/// Detects that a file was replaced: device, inode, size, mtime and ctime. Symbolic links are followed, because Kubernetes updates a
/// mounted secret by replacing a link.
type FileVersion = (u64, u64, u64, i64, i64, i64, i64);

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

impl Certificates {
    /// Reads the certificate, or creates a self-signed one in `folder` for these names and addresses.
    ///
    /// # Errors
    /// [`TlsError::File`] for a file that cannot be read or written, and for a key that does not match the certificate.
    pub(crate) fn open(source: &CertificateSource, folder: &Path, names: Vec<String>) -> Result<Self, TlsError> {
        let (certificate, key, self_signed_names) = match source {
            CertificateSource::Files { certificate, key } => (certificate.clone(), key.clone(), None),
            CertificateSource::SelfSigned => (folder.join("certificate.pem"), folder.join("key.pem"), Some(names)),
        };
        if let Some(names) = &self_signed_names
            && !is_valid_for(&certificate, &key, names, SystemTime::now() + RENEW_BEFORE)
        {
            create_self_signed(&certificate, &key, names)?;
        }
        let read_versions = [file_version(&certificate), file_version(&key)];
        let loaded = load(&certificate, &key)?;
        warn_if_expired(&certificate, &loaded);
        let current = Arc::new(Current(RwLock::new(Arc::new(loaded))));
        Ok(Self { certificate, key, self_signed_names, current, read_versions: Mutex::new(read_versions) })
    }

    /// The file of the certificate if it is self-signed. Clients can use it as their CA file to trust this server.
    pub(crate) fn self_signed_file(&self) -> Option<&Path> {
        self.self_signed_names.as_ref().map(|_| self.certificate.as_path())
    }

    /// Host names and IP addresses that the certificate is valid for.
    pub(crate) fn names(&self) -> Vec<String> {
        self.current.0.read().cert.first().and_then(|der| describe(der)).map(|d| d.names).unwrap_or_default()
    }

    /// SHA-256 fingerprint of the certificate in use.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        self.current.0.read().cert.first().map(|der| Fingerprint::from_der(der))
    }

    /// An acceptor that always uses the current certificate, also after a replacement.
    ///
    /// # Errors
    /// [`TlsError::Setup`].
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let resolver: Arc<dyn ResolvesServerCert> = self.current.clone();
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Reloads changed files, and renews a self-signed certificate before it expires. Unusable files are logged once, and the current
    /// certificate stays in use. Returns whether the certificate was replaced. Reads files, so it may block briefly.
    pub(crate) fn refresh(&self) -> bool {
        if let Some(names) = &self.self_signed_names
            && !is_valid_for(&self.certificate, &self.key, names, SystemTime::now() + RENEW_BEFORE)
            && let Err(error) = create_self_signed(&self.certificate, &self.key, names)
        {
            tracing::error!(%error, "the TLS certificate was not renewed");
        }
        // Get the versions before reading the files, so that a change in between is detected by the next refresh.
        let versions = [file_version(&self.certificate), file_version(&self.key)];
        if std::mem::replace(&mut *self.read_versions.lock(), versions) == versions {
            return false;
        }
        match load(&self.certificate, &self.key) {
            Ok(new) => {
                warn_if_expired(&self.certificate, &new);
                let fingerprint =
                    new.cert.first().map(|der| Fingerprint::from_der(der).to_string()).unwrap_or_default();
                *self.current.0.write() = Arc::new(new);
                tracing::info!(fingerprint, "a new TLS certificate is in use");
                true
            }
            Err(error) => {
                tracing::error!(%error, "the new TLS certificate cannot be used; the old one stays in use");
                false
            }
        }
    }
}

fn file_version(path: &Path) -> Option<FileVersion> {
    let m = std::fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
}

fn load(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = tls::certificates(certificate)?;
    let unusable = |reason: String| TlsError::File { path: key.to_owned(), reason };
    // The parser's error is dropped, because it may quote the content of the key file.
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
        rustls::pki_types::pem::Error::Io(error) => unusable(error.to_string()),
        _ => unusable("it contains no private key in PEM format".into()),
    })?;
    CertifiedKey::from_der(chain, private, &tls::provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            unusable(format!("it does not match the certificate {}", certificate.display()))
        }
        other => unusable(other.to_string()),
    })
}

/// The parts of a certificate that this module uses.
struct Description {
    names: Vec<String>,
    not_after: SystemTime,
}

fn describe(der: &[u8]) -> Option<Description> {
    let certificate = x509_cert::Certificate::from_der(der).ok()?.tbs_certificate;
    let address = |bytes: &[u8]| {
        let v4 = <[u8; 4]>::try_from(bytes).map(std::net::IpAddr::from);
        v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(std::net::IpAddr::from)).ok().map(|ip| ip.to_string())
    };
    let names = certificate.get::<SubjectAltName>().ok().flatten().map(|(_, names)| names.0).unwrap_or_default();
    let names = names.iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_owned()),
        GeneralName::IpAddress(bytes) => address(bytes.as_bytes()),
        _ => None,
    });
    Some(Description { names: names.collect(), not_after: certificate.validity.not_after.to_system_time() })
}

fn warn_if_expired(path: &Path, key: &CertifiedKey) {
    let described = key.cert.first().and_then(|der| describe(der));
    if described.is_some_and(|d| d.not_after <= SystemTime::now()) {
        tracing::warn!(path = %path.display(), "the TLS certificate has expired; clients will refuse it");
    }
}

/// Whether the files are usable, and the certificate covers all `names` and is valid beyond `until`.
fn is_valid_for(certificate: &Path, key: &Path, names: &[String], until: SystemTime) -> bool {
    let Ok(loaded) = load(certificate, key) else { return false };
    let Some(described) = loaded.cert.first().and_then(|der| describe(der)) else { return false };
    described.not_after > until && names.iter().all(|name| described.names.contains(name))
}

/// Creates a key and a self-signed certificate.
fn create_self_signed(certificate: &Path, key: &Path, names: &[String]) -> Result<(), TlsError> {
    let failed = |path: &Path, reason: String| TlsError::File { path: path.to_owned(), reason };
    let not_created = |error: rcgen::Error| failed(certificate, error.to_string());
    let pair = KeyPair::generate().map_err(not_created)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(not_created)?;
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + VALIDITY).into();
    params.distinguished_name.push(DnType::CommonName, "slipway");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let signed = params.self_signed(&pair).map_err(not_created)?;
    // Write the key first: after a crash in between, the old certificate does not match the new key, and both are created again.
    files::replace_as(key, pair.serialize_pem().as_bytes(), 0o600).map_err(|e| failed(key, e.to_string()))?;
    files::replace_as(certificate, signed.pem().as_bytes(), 0o600).map_err(|e| failed(certificate, e.to_string()))
}

/// Host names and IP addresses for the self-signed certificate of a server that listens on `addresses`: loopback, the machine's host name,
/// `configured` names, and the addresses themselves. Invalid host names are left out.
pub(crate) fn server_names(addresses: &[std::net::SocketAddr], configured: &[String]) -> Vec<String> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let is_name =
        |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    names.extend(configured.iter().chain([&host]).map(|name| name.to_ascii_lowercase()).filter(is_name));
    names.extend(addresses.iter().filter(|a| !a.ip().is_unspecified()).map(|a| a.ip().to_string()));
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("slipway-certificates-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn self_signed_certificate_is_private_and_reused() {
        let folder = folder();
        let open = |addresses: &[&str]| {
            let addresses: Vec<_> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            Certificates::open(
                &CertificateSource::SelfSigned,
                &folder.join("tls"),
                server_names(&addresses, &["Slipway.example".into(), "not a name".into()]),
            )
            .unwrap()
        };
        let first = open(&["127.0.0.1:7070", "0.0.0.0:7071"]);
        for name in ["localhost", "127.0.0.1", "::1", "slipway.example"] {
            assert!(first.names().iter().any(|n| n == name), "{:?}", first.names());
        }
        assert!(!first.names().iter().any(|n| n == "0.0.0.0"));
        for file in ["key.pem", "certificate.pem"] {
            let mode = std::fs::metadata(folder.join("tls").join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        assert_eq!(open(&["127.0.0.1:7070"]).fingerprint(), first.fingerprint(), "a restart reuses the certificate");
        assert!(!first.refresh(), "nothing changed");

        let second = open(&["127.0.0.2:7070"]);
        assert_ne!(second.fingerprint(), first.fingerprint(), "the first certificate is not valid for 127.0.0.2");
        assert!(second.names().iter().any(|n| n == "127.0.0.2"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn self_signed_certificate_is_renewed_before_expiry() {
        let folder = folder();
        let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
        let pair = KeyPair::generate().unwrap();
        let names = server_names(&[], &[]);
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.not_after = (SystemTime::now() + RENEW_BEFORE - DAY).into();
        let old = params.self_signed(&pair).unwrap();
        std::fs::write(&certificate, old.pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        let renewed = Certificates::open(&CertificateSource::SelfSigned, &folder, names.clone()).unwrap();
        assert_ne!(renewed.fingerprint(), Some(Fingerprint::from_der(old.der())));
        // Also while the server runs.
        std::fs::write(&certificate, old.pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        assert!(renewed.refresh());
        assert_ne!(renewed.fingerprint(), Some(Fingerprint::from_der(old.der())));
        assert!(is_valid_for(&certificate, &key, &names, SystemTime::now() + VALIDITY - DAY));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn unusable_files_are_named_without_key_material() {
        let folder = folder();
        let open = |certificate: &str, key: &str| {
            let source = CertificateSource::Files { certificate: folder.join(certificate), key: folder.join(key) };
            Certificates::open(&source, &folder, Vec::new()).unwrap_err().to_string()
        };
        create_self_signed(&folder.join("a.pem"), &folder.join("a.key"), &["localhost".into()]).unwrap();
        create_self_signed(&folder.join("b.pem"), &folder.join("b.key"), &["localhost".into()]).unwrap();
        std::fs::write(folder.join("broken.key"), "-----BEGIN PRIVATE KEY-----\nc2VjcmV0!\n").unwrap();
        assert!(open("none.pem", "a.key").contains("none.pem"));
        assert!(open("a.pem", "none.key").contains("none.key"));
        assert!(open("a.pem", "b.key").contains("does not match the certificate"));
        let broken = open("a.pem", "broken.key");
        assert!(broken.contains("no private key") && !broken.contains("c2VjcmV0"), "{broken}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
