//! The server's TLS certificate: read from files or made here, and replaced while connections go on.

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
/// How long a certificate that is made here is valid. Long, since every client that has its fingerprint needs the new one after it.
const VALIDITY: Duration = Duration::from_secs(5 * 365 * DAY.as_secs());
/// What is left of its validity when it is replaced.
const RENEWAL: Duration = Duration::from_secs(30 * DAY.as_secs());
/// Clocks of clients that are slow by less find it valid from the beginning.
const SLOW_CLOCKS: Duration = DAY;

/// Where the server's certificate comes from.
#[derive(Debug, Clone)]
pub enum CertificateSource {
    /// PEM files, which may be replaced at any time.
    Files {
        /// The certificate, followed by those of the authorities between it and a root.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
    /// Made here, and kept in the state folder.
    SelfSigned,
}

/// The certificate in use.
#[derive(Debug)]
pub(crate) struct Certificates {
    certificate: PathBuf,
    key: PathBuf,
    /// The names of one that is made here; none for files of somebody else.
    own_names: Option<Vec<String>>,
    current: Arc<Current>,
    /// The files that were read last, whether they could be used or not.
    seen: Mutex<[Option<Version>; 2]>,
}

/// What tells one file from another under the same name. It is looked up through links, as Kubernetes replaces them in a mounted Secret.
type Version = (u64, u64, u64, i64, i64, i64, i64);

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read()))
    }
}

impl Certificates {
    /// Reads the certificate, or makes it in `folder` for these names and addresses.
    ///
    /// # Errors
    /// [`TlsError::File`] for a file that cannot be read or written, and for a key that is not the certificate's.
    pub(crate) fn open(source: &CertificateSource, folder: &Path, names: Vec<String>) -> Result<Self, TlsError> {
        let (certificate, key, own_names) = match source {
            CertificateSource::Files { certificate, key } => (certificate.clone(), key.clone(), None),
            CertificateSource::SelfSigned => (folder.join("certificate.pem"), folder.join("key.pem"), Some(names)),
        };
        if let Some(names) = &own_names
            && !is_good_for(&certificate, &key, names, SystemTime::now() + RENEWAL)
        {
            make(&certificate, &key, names)?;
        }
        let seen = [version(&certificate), version(&key)];
        let loaded = load(&certificate, &key)?;
        warn_of_expiry(&certificate, &loaded);
        let current = Arc::new(Current(RwLock::new(Arc::new(loaded))));
        Ok(Self { certificate, key, own_names, current, seen: Mutex::new(seen) })
    }

    /// The file of the certificate, if it was made here: who trusts it as an authority trusts this server.
    pub(crate) fn own_file(&self) -> Option<&Path> {
        self.own_names.as_ref().map(|_| self.certificate.as_path())
    }

    /// Names and addresses that the certificate is for.
    pub(crate) fn names(&self) -> Vec<String> {
        self.current.0.read().cert.first().and_then(|der| describe(der)).map(|d| d.names).unwrap_or_default()
    }

    /// The fingerprint of the certificate.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        self.current.0.read().cert.first().map(|der| Fingerprint::of(der))
    }

    /// What secures connections with the certificate in use, also after it was replaced.
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

    /// Takes new files into use, and makes a new certificate before its own one expires. Files that cannot be used are logged once, and
    /// the certificate that is in use stays. Says whether it was replaced. Reads files, so it may block for a moment.
    pub(crate) fn refresh(&self) -> bool {
        if let Some(names) = &self.own_names
            && !is_good_for(&self.certificate, &self.key, names, SystemTime::now() + RENEWAL)
            && let Err(error) = make(&self.certificate, &self.key, names)
        {
            tracing::error!(%error, "the TLS certificate was not renewed");
        }
        // Looked up before they are read: a change in between is noticed the next time.
        let now = [version(&self.certificate), version(&self.key)];
        if std::mem::replace(&mut *self.seen.lock(), now) == now {
            return false;
        }
        match load(&self.certificate, &self.key) {
            Ok(new) => {
                warn_of_expiry(&self.certificate, &new);
                let fingerprint = new.cert.first().map(|der| Fingerprint::of(der).to_string()).unwrap_or_default();
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

fn version(path: &Path) -> Option<Version> {
    let m = std::fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
}

fn load(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = tls::certificates(certificate)?;
    let unusable = |reason: String| TlsError::File { path: key.to_owned(), reason };
    // What is inside of the file of a key does not go into a message, so the error says only that there is none.
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
        rustls::pki_types::pem::Error::Io(error) => unusable(error.to_string()),
        _ => unusable("there is no private key in PEM in it".into()),
    })?;
    CertifiedKey::from_der(chain, private, &tls::provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => unusable(format!("it is not the key of {}", certificate.display())),
        other => unusable(other.to_string()),
    })
}

/// What a certificate says of itself.
struct Description {
    names: Vec<String>,
    not_after: SystemTime,
}

fn describe(der: &[u8]) -> Option<Description> {
    let certificate = x509_cert::Certificate::from_der(der).ok()?.tbs_certificate;
    let address = |bytes: &[u8]| {
        let four = <[u8; 4]>::try_from(bytes).map(std::net::IpAddr::from);
        four.or_else(|_| <[u8; 16]>::try_from(bytes).map(std::net::IpAddr::from)).ok().map(|ip| ip.to_string())
    };
    let names = certificate.get::<SubjectAltName>().ok().flatten().map(|(_, names)| names.0).unwrap_or_default();
    let names = names.iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_owned()),
        GeneralName::IpAddress(bytes) => address(bytes.as_bytes()),
        _ => None,
    });
    Some(Description { names: names.collect(), not_after: certificate.validity.not_after.to_system_time() })
}

fn warn_of_expiry(path: &Path, key: &CertifiedKey) {
    let described = key.cert.first().and_then(|der| describe(der));
    if described.is_some_and(|d| d.not_after <= SystemTime::now()) {
        tracing::warn!(path = %path.display(), "the TLS certificate has expired; clients will refuse it");
    }
}

/// Whether the files can be used, for all of these names, and beyond that time.
fn is_good_for(certificate: &Path, key: &Path, names: &[String], until: SystemTime) -> bool {
    let Ok(loaded) = load(certificate, key) else { return false };
    let Some(described) = loaded.cert.first().and_then(|der| describe(der)) else { return false };
    described.not_after > until && names.iter().all(|name| described.names.contains(name))
}

/// Makes a key and a certificate that it signs itself.
fn make(certificate: &Path, key: &Path, names: &[String]) -> Result<(), TlsError> {
    let failed = |path: &Path, reason: String| TlsError::File { path: path.to_owned(), reason };
    let unmade = |error: rcgen::Error| failed(certificate, error.to_string());
    let pair = KeyPair::generate().map_err(unmade)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(unmade)?;
    let now = SystemTime::now();
    params.not_before = (now - SLOW_CLOCKS).into();
    params.not_after = (now + VALIDITY).into();
    params.distinguished_name.push(DnType::CommonName, "slipway");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let made = params.self_signed(&pair).map_err(unmade)?;
    // The key first: a certificate without its key is noticed, and both are made again.
    files::replace_as(key, pair.serialize_pem().as_bytes(), 0o600).map_err(|e| failed(key, e.to_string()))?;
    files::replace_as(certificate, made.pem().as_bytes(), 0o600).map_err(|e| failed(certificate, e.to_string()))
}

/// Names and addresses under which a server that listens there is reached from its own machine and, as far as it knows, from others.
/// `others` are names that it was told of; what is no name of a host is left out.
pub(crate) fn names_of(addresses: &[std::net::SocketAddr], others: &[String]) -> Vec<String> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let is_name =
        |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    names.extend(others.iter().chain([&host]).map(|name| name.to_ascii_lowercase()).filter(is_name));
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
    fn a_certificate_that_is_made_here_is_private_and_kept() {
        let folder = folder();
        let open = |addresses: &[&str]| {
            let addresses: Vec<_> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            Certificates::open(
                &CertificateSource::SelfSigned,
                &folder.join("tls"),
                names_of(&addresses, &["Slipway.example".into(), "not a name".into()]),
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
        assert_eq!(open(&["127.0.0.1:7070"]).fingerprint(), first.fingerprint(), "it is kept over restarts");
        assert!(!first.refresh(), "nothing changed");

        let second = open(&["127.0.0.2:7070"]);
        assert_ne!(second.fingerprint(), first.fingerprint(), "the first one is not for 127.0.0.2");
        assert!(second.names().iter().any(|n| n == "127.0.0.2"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_certificate_that_is_made_here_is_renewed_before_it_expires() {
        let folder = folder();
        let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
        let pair = KeyPair::generate().unwrap();
        let names = names_of(&[], &[]);
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.not_after = (SystemTime::now() + RENEWAL - DAY).into();
        let old = params.self_signed(&pair).unwrap();
        std::fs::write(&certificate, old.pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        let renewed = Certificates::open(&CertificateSource::SelfSigned, &folder, names.clone()).unwrap();
        assert_ne!(renewed.fingerprint(), Some(Fingerprint::of(old.der())));
        // The same while it runs.
        std::fs::write(&certificate, old.pem()).unwrap();
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        assert!(renewed.refresh());
        assert_ne!(renewed.fingerprint(), Some(Fingerprint::of(old.der())));
        assert!(is_good_for(&certificate, &key, &names, SystemTime::now() + VALIDITY - DAY));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn files_that_cannot_be_used_are_named_and_show_no_key() {
        let folder = folder();
        let open = |certificate: &str, key: &str| {
            let source = CertificateSource::Files { certificate: folder.join(certificate), key: folder.join(key) };
            Certificates::open(&source, &folder, Vec::new()).unwrap_err().to_string()
        };
        make(&folder.join("a.pem"), &folder.join("a.key"), &["localhost".into()]).unwrap();
        make(&folder.join("b.pem"), &folder.join("b.key"), &["localhost".into()]).unwrap();
        std::fs::write(folder.join("broken.key"), "-----BEGIN PRIVATE KEY-----\nc2VjcmV0!\n").unwrap();
        assert!(open("none.pem", "a.key").contains("none.pem"));
        assert!(open("a.pem", "none.key").contains("none.key"));
        assert!(open("a.pem", "b.key").contains("it is not the key of"));
        let broken = open("a.pem", "broken.key");
        assert!(broken.contains("no private key") && !broken.contains("c2VjcmV0"), "{broken}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
