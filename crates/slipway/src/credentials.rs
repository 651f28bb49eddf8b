//! Chooses the token and the trusted certificate for each server, and stores the credentials of `slipway login`.
//!
//! A token is sent only to the server that it belongs to. `$SLIPWAY_TOKEN` belongs to the server that the user named explicitly, by
//! `--server` or `$SLIPWAY_SERVER`, or to the user's own server on this machine. A server that is named by a file only receives the token
//! that `slipway login` saved for it, because the file may come from someone else, for instance with a cloned repository.

use std::fmt;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use axum::http::Uri;
use axum::http::uri::Scheme;
use serde::{Deserialize, Serialize};
use slipway_core::config::{Config, Origin};
use slipway_core::home::Home;
use slipway_core::tls::{Fingerprint, Trust};
use slipway_core::{env, files};
use slipway_server::Addresses;

use crate::client_error::{ClientError, CredentialsError};
use crate::running_server::running_server;

/// Maximum size of the credentials file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A bearer token. Its `Debug` output hides the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token(String);

impl Token {
    /// Takes the first non-empty line of a text; `None` if there is none.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        text.lines().map(str::trim).find(|line| !line.is_empty()).map(|line| Self(line.to_owned()))
    }

    /// The secret.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The URL of a server from a flag, a variable or a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerUrl {
    /// The URL that request paths are appended to, without a trailing slash.
    pub(crate) base: String,
    pub(crate) is_https: bool,
    host: String,
    port: u16,
}

impl ServerUrl {
    /// Parses `http://HOST[:PORT]` or `https://HOST[:PORT]`, optionally with a path that a proxy strips.
    pub(crate) fn parse(text: &str) -> Result<Self, ClientError> {
        let invalid = || {
            // The URL may contain a password.
            let shown = text.rsplit_once('@').map_or(text, |(_, behind)| behind);
            ClientError::Url(shown.to_owned())
        };
        let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| invalid())?;
        let is_https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(invalid()),
        };
        let authority = uri.authority().filter(|a| !a.as_str().contains('@')).ok_or_else(invalid)?;
        let host = authority.host().to_ascii_lowercase();
        if host.is_empty() || uri.query().is_some() {
            return Err(invalid());
        }
        let port = authority.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let scheme = if is_https { "https" } else { "http" };
        let base = format!("{scheme}://{authority}{}", uri.path().trim_end_matches('/'));
        Ok(Self { base, is_https, host, port })
    }

    /// Scheme, host and port, which identify a server in the saved credentials.
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}:{}", if self.is_https { "https" } else { "http" }, self.host, self.port)
    }

    fn address(&self) -> Option<IpAddr> {
        self.host.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.address().is_some_and(|ip| ip.is_loopback())
    }

    /// Whether the host is an address of this machine, so that packets to it do not leave the machine.
    fn is_local_address(&self) -> bool {
        // A socket can be bound only to an address of this machine; no packet is sent.
        self.address().is_some_and(|ip| UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok())
    }

    /// Whether the server with these addresses listens at this URL.
    pub(crate) fn matches(&self, addresses: &Addresses) -> bool {
        if self.is_https != addresses.tls || self.port != addresses.control.port() {
            return false;
        }
        let listening = addresses.control.ip();
        let target = if self.host == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { self.address() };
        target.is_some_and(|ip| ip == listening || (listening.is_unspecified() && ip.is_loopback()))
    }
}

/// The sources of tokens and trust settings.
pub(crate) struct Sources {
    /// The state folder; its token is sent only to its own server.
    pub(crate) home: Home,
    /// The token in `$SLIPWAY_TOKEN`.
    pub(crate) token: Option<Token>,
    /// The path of the credentials file.
    pub(crate) saved: Option<PathBuf>,
    /// The fingerprint from `--tls-fingerprint`.
    pub(crate) fingerprint: Option<Fingerprint>,
    /// A PEM file of authorities that are trusted in addition to the system's.
    pub(crate) authorities: Option<PathBuf>,
    /// Whether `--insecure` is set.
    pub(crate) insecure: bool,
}

impl Sources {
    pub(crate) fn from_config(config: &Config, insecure: bool) -> Result<Self, ClientError> {
        Ok(Self {
            home: Home::at(config.get("home").unwrap_or_default()),
            token: env::value(env::TOKEN).as_deref().and_then(Token::from_text),
            saved: credentials_path().ok(),
            fingerprint: config.get("tls-fingerprint").map(str::parse).transpose()?,
            authorities: config.get("ca-file").map(PathBuf::from),
            insecure,
        })
    }
}

/// The token and the trust settings for one server.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) token: Option<Token>,
    fingerprint: Option<Fingerprint>,
    authorities: Option<PathBuf>,
}

impl Access {
    /// Chooses the token and the trust settings for the server at `url`. `named_by` is the configuration layer that named the server.
    pub(crate) fn resolve(url: &ServerUrl, named_by: &Origin, sources: &Sources) -> Result<Self, ClientError> {
        let own = running_server(&sources.home).filter(|addresses| url.matches(addresses));
        let is_explicit = matches!(named_by, Origin::Flag | Origin::Environment(_));
        let saved = match &sources.saved {
            Some(path) => load(path)?.into_iter().find(|saved| saved.server == url.origin()),
            None => None,
        };
        let (saved_token, saved_fingerprint) = saved.map(|s| (s.token, s.fingerprint)).unzip();
        let explicit_token = sources.token.clone().filter(|_| is_explicit || own.is_some());
        let tokens = [
            ("$SLIPWAY_TOKEN", explicit_token),
            ("saved credentials", saved_token),
            ("state folder", own.as_ref().and_then(|_| state_folder_token(&sources.home))),
        ];
        let token = tokens.into_iter().find_map(|(from, token)| token.map(|token| (from, token)));
        let server = url.origin();
        match &token {
            Some((from, _)) => tracing::debug!(server, named_by = %named_by, token_from = from, "a token is sent"),
            None => tracing::debug!(server, named_by = %named_by, "no token is sent"),
        }
        let is_local = url.is_loopback() || (own.is_some() && url.is_local_address());
        if token.is_some() && !url.is_https && !is_local && !sources.insecure {
            return Err(ClientError::Plaintext(server));
        }
        Ok(Self {
            token: token.map(|(_, token)| token),
            fingerprint: sources
                .fingerprint
                .filter(|_| is_explicit)
                .or(saved_fingerprint.flatten())
                .or(own.and_then(|own| own.fingerprint)),
            authorities: sources.authorities.clone(),
        })
    }

    /// The access of the run controller to the control plane of its own installation. Plain http is allowed within the cluster.
    pub(crate) fn for_controller(token: Token, authorities: Option<PathBuf>) -> Self {
        Self { token: Some(token), fingerprint: None, authorities }
    }

    /// How the server's certificate is verified.
    pub(crate) fn trust(&self) -> Trust<'_> {
        match (&self.fingerprint, &self.authorities) {
            (Some(fingerprint), _) => Trust::Pinned(*fingerprint),
            (None, Some(path)) => Trust::SystemAnd(path),
            (None, None) => Trust::System,
        }
    }
}

/// The token that `slipway up` created in the state folder.
fn state_folder_token(home: &Home) -> Option<Token> {
    Token::from_text(&slipway_server::auth::read_home_token(home).ok()?)
}

/// The credentials that `slipway login` saved for one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    /// The origin of the server, such as `https://slipway.example:7070`.
    pub(crate) server: String,
    pub(crate) token: Token,
    /// The fingerprint of the server's certificate, if it is pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fingerprint: Option<Fingerprint>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    servers: Vec<Saved>,
}

/// The path of the credentials file: `$XDG_CONFIG_HOME/slipway/credentials.yaml`.
pub(crate) fn credentials_path() -> Result<PathBuf, CredentialsError> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    Ok(base.ok_or(CredentialsError::NoConfigFolder)?.join("slipway/credentials.yaml"))
}

/// Loads the saved credentials of all servers; an empty list if the file does not exist.
pub(crate) fn load(path: &Path) -> Result<Vec<Saved>, CredentialsError> {
    let io = |source| CredentialsError::Io { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    // Check the open file, so that the checked file is the one that is read.
    let metadata = file.metadata().map_err(io)?;
    if metadata.mode() & 0o077 != 0 {
        return Err(CredentialsError::Exposed { path: path.to_owned(), mode: metadata.mode() & 0o777 });
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(CredentialsError::OtherOwner { path: path.to_owned() });
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(io)?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let read: Result<Credentials, _> = serde_saphyr::from_str(&text);
    read.map(|credentials| credentials.servers).map_err(|_| CredentialsError::Malformed { path: path.to_owned() })
}

fn store(path: &Path, servers: Vec<Saved>) -> Result<(), CredentialsError> {
    let io = |source| CredentialsError::Io { path: path.to_owned(), source };
    let text = serde_saphyr::to_string(&Credentials { servers }).map_err(|e| io(std::io::Error::other(e)))?;
    files::replace_as(path, text.as_bytes(), 0o600).map_err(io)
}

/// Saves the credentials of a server, replacing earlier ones.
pub(crate) fn save(path: &Path, new: Saved) -> Result<(), CredentialsError> {
    let mut servers = load(path)?;
    servers.retain(|saved| saved.server != new.server);
    servers.push(new);
    servers.sort_by(|a, b| a.server.cmp(&b.server));
    store(path, servers)
}

/// Removes the saved credentials of a server. Returns whether there were any.
pub(crate) fn remove(path: &Path, server: &str) -> Result<bool, CredentialsError> {
    let mut servers = load(path)?;
    let before = servers.len();
    servers.retain(|saved| saved.server != server);
    if servers.len() == before {
        return Ok(false);
    }
    store(path, servers)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use slipway_core::Explain;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let folder = std::env::temp_dir().join(format!("slipway-credentials-{}", slipway_core::ids::hex32()));
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn sources(&self) -> Sources {
            Sources {
                home: Home::at(self.0.join("home")),
                token: Token::from_text("of-the-environment"),
                saved: Some(self.0.join("credentials.yaml")),
                fingerprint: None,
                authorities: None,
                insecure: false,
            }
        }

        /// Writes the files of a running server at this address. The server counts as running while the returned lock file is open.
        fn simulate_server(&self, control: &str) -> std::fs::File {
            let home = Home::at(self.0.join("home"));
            home.create().unwrap();
            slipway_core::files::replace_as(&home.token_file(), b"of-the-state-folder\n", 0o600).unwrap();
            let addresses = Addresses {
                pid: std::process::id(),
                control: control.parse().unwrap(),
                inference: control.parse().unwrap(),
                grpc: control.parse().unwrap(),
                tls: false,
                fingerprint: None,
                version: "0".into(),
                started: 0,
            };
            std::fs::write(home.server_file(), serde_json::to_vec(&addresses).unwrap()).unwrap();
            std::fs::File::create(home.lock_file()).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0); // A leftover folder in /tmp must not fail the test.
        }
    }

    /// The token that is sent to the server at `url`.
    fn token_for(url: &str, named_by: &Origin, sources: &Sources) -> Result<Option<String>, ClientError> {
        let access = Access::resolve(&ServerUrl::parse(url).unwrap(), named_by, sources)?;
        Ok(access.token.map(|token| token.reveal().to_owned()))
    }

    #[test]
    fn server_named_by_a_file_receives_only_its_saved_token() {
        let folder = Folder::new();
        let sources = folder.sources();
        let files = [Origin::Project("/clone/slipway.yaml".into()), Origin::User("/home/u/config.yaml".into())];
        for file in &files {
            assert_eq!(token_for("https://other.example", file, &sources).unwrap(), None, "{file:?}");
        }
        let saved = |server: &str, token: &str| Saved {
            server: server.into(),
            token: Token::from_text(token).unwrap(),
            fingerprint: None,
        };
        let path = folder.0.join("credentials.yaml");
        save(&path, saved("https://mine.example:443", "of-mine")).unwrap();
        for file in &files {
            assert_eq!(token_for("https://MINE.example/", file, &sources).unwrap().as_deref(), Some("of-mine"));
            for other in ["https://mine.example:444", "https://mine.example.evil", "https://other.example"] {
                assert_eq!(token_for(other, file, &sources).unwrap(), None, "{other}");
            }
            // The same name without TLS counts as another server, because anyone on the network path could impersonate it.
            assert_eq!(token_for("http://mine.example", file, &sources).unwrap(), None);
        }
        for now in [Origin::Flag, Origin::Environment(env::SERVER)] {
            let token = token_for("https://other.example", &now, &sources).unwrap();
            assert_eq!(token.as_deref(), Some("of-the-environment"));
        }
        let without_token = Sources { token: None, ..folder.sources() };
        assert_eq!(
            token_for("https://mine.example", &Origin::Flag, &without_token).unwrap().as_deref(),
            Some("of-mine")
        );
    }

    #[test]
    fn own_server_receives_the_state_folder_token() {
        let folder = Folder::new();
        let _lock = folder.simulate_server("127.0.0.1:7070");
        let without_token = Sources { token: None, ..folder.sources() };
        for own in ["http://127.0.0.1:7070", "http://localhost:7070/"] {
            assert_eq!(
                token_for(own, &Origin::Default, &without_token).unwrap().as_deref(),
                Some("of-the-state-folder"),
                "{own}"
            );
        }
        for other in ["http://127.0.0.1:7071", "https://127.0.0.1:7070", "http://127.0.0.2:7070"] {
            assert_eq!(token_for(other, &Origin::Flag, &without_token).unwrap(), None, "{other}");
        }
        let own = "http://127.0.0.1:7070";
        assert_eq!(token_for(own, &Origin::Default, &folder.sources()).unwrap().as_deref(), Some("of-the-environment"));
    }

    #[test]
    fn tokens_are_not_sent_unencrypted_over_the_network() {
        let folder = Folder::new();
        let sources = folder.sources();
        for url in
            ["http://10.0.0.1:7070", "http://slipway.example", "http://localhost.example", "http://[2001:db8::1]"]
        {
            let refused = token_for(url, &Origin::Flag, &sources).unwrap_err();
            assert_eq!(refused.code(), "tls.plaintext", "{url}");
            assert!(!format!("{refused} {refused:?}").contains("of-the-environment"));
            let insecure = Sources { insecure: true, ..folder.sources() };
            assert!(token_for(url, &Origin::Flag, &insecure).unwrap().is_some(), "{url}");
            let without_token = Sources { token: None, ..folder.sources() };
            assert_eq!(
                token_for(url, &Origin::Flag, &without_token).unwrap(),
                None,
                "requests without a token are allowed: {url}"
            );
        }
        for url in ["http://127.0.0.1:7070", "http://[::1]:7070", "http://localhost", "https://slipway.example"] {
            assert!(token_for(url, &Origin::Flag, &sources).unwrap().is_some(), "{url}");
        }
    }

    #[test]
    fn server_urls_are_validated_and_normalized() {
        let url = ServerUrl::parse("https://Host.example:8443/proxied/").unwrap();
        assert_eq!(
            (url.base.as_str(), url.origin().as_str()),
            ("https://Host.example:8443/proxied", "https://host.example:8443")
        );
        assert_eq!(ServerUrl::parse("http://h").unwrap().origin(), "http://h:80");
        for invalid in ["", "host:7070", "ftp://h", "http://", "http://h?x=1", "https://user:secret@h", "file:///etc"] {
            let error = ServerUrl::parse(invalid).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn credentials_file_must_be_private() {
        let folder = Folder::new();
        let path = folder.0.join("slipway/credentials.yaml");
        assert_eq!(load(&path).unwrap(), []);
        let saved = Saved {
            server: "https://a.example:443".into(),
            token: Token::from_text("\n  secret-token  \n").unwrap(),
            fingerprint: Some(Fingerprint::from_der(b"a")),
        };
        save(&path, saved.clone()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(load(&path).unwrap(), std::slice::from_ref(&saved));
        assert_eq!(saved.token.reveal(), "secret-token");
        assert!(!format!("{saved:?}").contains("secret-token"));

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = load(&path).unwrap_err();
        assert!(error.to_string().contains("mode 640"), "{error}");
        assert!(
            save(&path, saved.clone()).is_err(),
            "the mode is not fixed silently, because another user may have read the file"
        );

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!remove(&path, "https://b.example:443").unwrap());
        assert!(remove(&path, "https://a.example:443").unwrap());
        assert_eq!(load(&path).unwrap(), []);

        std::fs::write(&path, "servers: [{server: x, token: secret-token, tokem: y}]").unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("slipway login") && !error.contains("secret-token"), "{error}");
    }
}
