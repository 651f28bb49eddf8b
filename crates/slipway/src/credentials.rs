//! Which token goes to which server, and which certificate the server has to show for it.
//!
//! A token goes only to the server it was meant for. `$SLIPWAY_TOKEN` is meant for the server that the same person named just now, by
//! `--server` or `$SLIPWAY_SERVER`, or for their own server on this machine. A server that a file names gets what `slipway login` saved
//! for it, and nothing else: the file may be somebody else's, as in a cloned repository.

use std::fmt;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use axum::http::Uri;
use axum::http::uri::Scheme;
use serde::{Deserialize, Serialize};
use slipway_core::Explain;
use slipway_core::config::{Config, Origin};
use slipway_core::home::Home;
use slipway_core::tls::{Fingerprint, Trust};
use slipway_core::{env, files};
use slipway_server::Addresses;

use crate::client::{ClientError, running};

/// Bytes of a file of tokens; longer ones are no such file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A secret that does not show itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token(String);

impl Token {
    /// The first line that is not empty.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        text.lines().map(str::trim).find(|line| !line.is_empty()).map(|line| Self(line.to_owned()))
    }

    /// The secret itself, to be sent.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Saved credentials that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("{} can be read by others (mode {mode:03o}), so the tokens in it are not used", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} belongs to another user, so the tokens in it are not used", path.display())]
    Foreign { path: PathBuf },
    #[error("{} cannot be used: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    // What a parser says may quote the file, and with it a token.
    #[error("{} is not as `slipway login` writes it", path.display())]
    Malformed { path: PathBuf },
    #[error("there is no folder for credentials: neither XDG_CONFIG_HOME nor HOME is set")]
    Homeless,
}

impl Explain for CredentialsError {
    fn code(&self) -> &'static str {
        "auth.credentials"
    }
}

/// The address of a server, as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerUrl {
    /// What paths are appended to.
    pub(crate) base: String,
    pub(crate) is_https: bool,
    host: String,
    port: u16,
}

impl ServerUrl {
    /// Reads `http://HOST[:PORT]` or `https://HOST[:PORT]`, perhaps with a path that a proxy takes away.
    pub(crate) fn parse(text: &str) -> Result<Self, ClientError> {
        let wrong = || {
            // Somebody may have put a password into it.
            let shown = text.rsplit_once('@').map_or(text, |(_, behind)| behind);
            ClientError::Url(shown.to_owned())
        };
        let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| wrong())?;
        let is_https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|a| !a.as_str().contains('@')).ok_or_else(wrong)?;
        let host = authority.host().to_ascii_lowercase();
        if host.is_empty() || uri.query().is_some() {
            return Err(wrong());
        }
        let port = authority.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let scheme = if is_https { "https" } else { "http" };
        let base = format!("{scheme}://{authority}{}", uri.path().trim_end_matches('/'));
        Ok(Self { base, is_https, host, port })
    }

    /// Scheme, host and port: what a token is saved for.
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}:{}", if self.is_https { "https" } else { "http" }, self.host, self.port)
    }

    fn address(&self) -> Option<IpAddr> {
        self.host.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.address().is_some_and(|ip| ip.is_loopback())
    }

    /// Whether its host is an address of this machine, to which packets do not leave it.
    fn is_of_this_machine(&self) -> bool {
        // Only an address of this machine can be bound to; nothing is sent.
        self.address().is_some_and(|ip| UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok())
    }

    /// Whether this is where that server listens.
    fn is_of(&self, addresses: &Addresses) -> bool {
        if self.is_https != addresses.tls || self.port != addresses.control.port() {
            return false;
        }
        let listens = addresses.control.ip();
        let here = if self.host == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { self.address() };
        here.is_some_and(|ip| ip == listens || (listens.is_unspecified() && ip.is_loopback()))
    }
}

/// What decides about tokens and trust, beside the server's URL.
pub(crate) struct Sources {
    /// The state folder, whose own server's token may be used.
    pub(crate) home: Home,
    /// `$SLIPWAY_TOKEN`.
    pub(crate) token: Option<Token>,
    /// The file of saved credentials.
    pub(crate) saved: Option<PathBuf>,
    /// `--tls-fingerprint`.
    pub(crate) fingerprint: Option<Fingerprint>,
    /// Authorities beside the system's.
    pub(crate) authorities: Option<PathBuf>,
    /// `--insecure`.
    pub(crate) insecure: bool,
}

impl Sources {
    pub(crate) fn of(config: &Config, insecure: bool) -> Result<Self, ClientError> {
        Ok(Self {
            home: Home::at(config.get("home").unwrap_or_default()),
            token: env::value(env::TOKEN).as_deref().and_then(Token::from_text),
            saved: file().ok(),
            fingerprint: config.get("tls-fingerprint").map(str::parse).transpose()?,
            authorities: config.get("ca-file").map(PathBuf::from),
            insecure,
        })
    }
}

/// How a server is spoken to.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) token: Option<Token>,
    fingerprint: Option<Fingerprint>,
    authorities: Option<PathBuf>,
}

impl Access {
    /// What goes to the server at `url`, which somebody or something named.
    pub(crate) fn to(url: &ServerUrl, named_by: &Origin, sources: &Sources) -> Result<Self, ClientError> {
        let own = running(&sources.home).filter(|addresses| url.is_of(addresses));
        let is_named_now = matches!(named_by, Origin::Flag | Origin::Environment(_));
        let saved = match &sources.saved {
            Some(path) => load(path)?.into_iter().find(|saved| saved.server == url.origin()),
            None => None,
        };
        let (saved_token, saved_fingerprint) = saved.map(|s| (s.token, s.fingerprint)).unzip();
        let given = sources.token.clone().filter(|_| is_named_now || own.is_some());
        let tokens = [
            ("$SLIPWAY_TOKEN", given),
            ("saved credentials", saved_token),
            ("state folder", own.as_ref().and_then(|_| own_token(&sources.home))),
        ];
        let token = tokens.into_iter().find_map(|(from, token)| token.map(|token| (from, token)));
        let server = url.origin();
        match &token {
            Some((from, _)) => tracing::debug!(server, named_by = %named_by, token_from = from, "a token is sent"),
            None => tracing::debug!(server, named_by = %named_by, "no token is sent"),
        }
        let stays_here = url.is_loopback() || (own.is_some() && url.is_of_this_machine());
        if token.is_some() && !url.is_https && !stays_here && !sources.insecure {
            return Err(ClientError::Plaintext(server));
        }
        Ok(Self {
            token: token.map(|(_, token)| token),
            fingerprint: sources
                .fingerprint
                .filter(|_| is_named_now)
                .or(saved_fingerprint.flatten())
                .or(own.and_then(|own| own.fingerprint)),
            authorities: sources.authorities.clone(),
        })
    }

    /// What the controller of runs sends to the control plane of its own installation, whose network decides whether it is encrypted.
    pub(crate) fn of_controller(token: Token, authorities: Option<PathBuf>) -> Self {
        Self { token: Some(token), fingerprint: None, authorities }
    }

    /// Why the server is believed to be who it says.
    pub(crate) fn trust(&self) -> Trust<'_> {
        match (&self.fingerprint, &self.authorities) {
            (Some(fingerprint), _) => Trust::Pinned(*fingerprint),
            (None, Some(path)) => Trust::SystemAnd(path),
            (None, None) => Trust::System,
        }
    }
}

/// The token that `slipway up` made for the users of this state folder.
fn own_token(home: &Home) -> Option<Token> {
    Token::from_text(&slipway_server::auth::read_home_token(home).ok()?)
}

/// A server that was logged in to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    /// Its origin.
    pub(crate) server: String,
    pub(crate) token: Token,
    /// Its certificate, if no authority stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fingerprint: Option<Fingerprint>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    servers: Vec<Saved>,
}

/// Where credentials are saved: `$XDG_CONFIG_HOME/slipway/credentials.yaml`.
pub(crate) fn file() -> Result<PathBuf, CredentialsError> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    Ok(base.ok_or(CredentialsError::Homeless)?.join("slipway/credentials.yaml"))
}

/// All saved credentials; none where there is no file.
pub(crate) fn load(path: &Path) -> Result<Vec<Saved>, CredentialsError> {
    let io = |source| CredentialsError::Io { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    // Of the open file, so that what is checked is what is read.
    let metadata = file.metadata().map_err(io)?;
    if metadata.mode() & 0o077 != 0 {
        return Err(CredentialsError::Exposed { path: path.to_owned(), mode: metadata.mode() & 0o777 });
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(CredentialsError::Foreign { path: path.to_owned() });
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

/// Saves credentials in place of earlier ones for the same server.
pub(crate) fn save(path: &Path, new: Saved) -> Result<(), CredentialsError> {
    let mut servers = load(path)?;
    servers.retain(|saved| saved.server != new.server);
    servers.push(new);
    servers.sort_by(|a, b| a.server.cmp(&b.server));
    store(path, servers)
}

/// Forgets a server's credentials; whether there were any.
pub(crate) fn forget(path: &Path, server: &str) -> Result<bool, CredentialsError> {
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

        /// As if a server of this state folder were running there.
        fn runs_at(&self, control: &str) -> std::fs::File {
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
            let _ = std::fs::remove_dir_all(&self.0); // A folder that is left behind in /tmp fails no test.
        }
    }

    fn sent(url: &str, named_by: &Origin, sources: &Sources) -> Result<Option<String>, ClientError> {
        let access = Access::to(&ServerUrl::parse(url).unwrap(), named_by, sources)?;
        Ok(access.token.map(|token| token.reveal().to_owned()))
    }

    #[test]
    fn a_server_that_a_file_names_gets_only_what_was_saved_for_it() {
        let folder = Folder::new();
        let sources = folder.sources();
        let files = [Origin::Project("/clone/slipway.yaml".into()), Origin::User("/home/u/config.yaml".into())];
        for file in &files {
            assert_eq!(sent("https://other.example", file, &sources).unwrap(), None, "{file:?}");
        }
        let saved = |server: &str, token: &str| Saved {
            server: server.into(),
            token: Token::from_text(token).unwrap(),
            fingerprint: None,
        };
        let path = folder.0.join("credentials.yaml");
        save(&path, saved("https://mine.example:443", "of-mine")).unwrap();
        for file in &files {
            assert_eq!(sent("https://MINE.example/", file, &sources).unwrap().as_deref(), Some("of-mine"));
            for other in ["https://mine.example:444", "https://mine.example.evil", "https://other.example"] {
                assert_eq!(sent(other, file, &sources).unwrap(), None, "{other}");
            }
            // The same name without TLS is another server: anybody on the way could answer for it.
            assert_eq!(sent("http://mine.example", file, &sources).unwrap(), None);
        }
        for now in [Origin::Flag, Origin::Environment(env::SERVER)] {
            let token = sent("https://other.example", &now, &sources).unwrap();
            assert_eq!(token.as_deref(), Some("of-the-environment"));
        }
        let quiet = Sources { token: None, ..folder.sources() };
        assert_eq!(sent("https://mine.example", &Origin::Flag, &quiet).unwrap().as_deref(), Some("of-mine"));
    }

    #[test]
    fn the_own_server_gets_the_token_of_its_state_folder() {
        let folder = Folder::new();
        let _lock = folder.runs_at("127.0.0.1:7070");
        let quiet = Sources { token: None, ..folder.sources() };
        for own in ["http://127.0.0.1:7070", "http://localhost:7070/"] {
            assert_eq!(sent(own, &Origin::Default, &quiet).unwrap().as_deref(), Some("of-the-state-folder"), "{own}");
        }
        for other in ["http://127.0.0.1:7071", "https://127.0.0.1:7070", "http://127.0.0.2:7070"] {
            assert_eq!(sent(other, &Origin::Flag, &quiet).unwrap(), None, "{other}");
        }
        let own = "http://127.0.0.1:7070";
        assert_eq!(sent(own, &Origin::Default, &folder.sources()).unwrap().as_deref(), Some("of-the-environment"));
    }

    #[test]
    fn no_token_crosses_a_network_in_plain() {
        let folder = Folder::new();
        let sources = folder.sources();
        for url in
            ["http://10.0.0.1:7070", "http://slipway.example", "http://localhost.example", "http://[2001:db8::1]"]
        {
            let refused = sent(url, &Origin::Flag, &sources).unwrap_err();
            assert_eq!(refused.code(), "tls.plaintext", "{url}");
            assert!(!format!("{refused} {refused:?}").contains("of-the-environment"));
            let insecure = Sources { insecure: true, ..folder.sources() };
            assert!(sent(url, &Origin::Flag, &insecure).unwrap().is_some(), "{url}");
            let quiet = Sources { token: None, ..folder.sources() };
            assert_eq!(sent(url, &Origin::Flag, &quiet).unwrap(), None, "without a token nothing is refused: {url}");
        }
        for url in ["http://127.0.0.1:7070", "http://[::1]:7070", "http://localhost", "https://slipway.example"] {
            assert!(sent(url, &Origin::Flag, &sources).unwrap().is_some(), "{url}");
        }
    }

    #[test]
    fn urls_are_read_with_care() {
        let url = ServerUrl::parse("https://Host.example:8443/proxied/").unwrap();
        assert_eq!(
            (url.base.as_str(), url.origin().as_str()),
            ("https://Host.example:8443/proxied", "https://host.example:8443")
        );
        assert_eq!(ServerUrl::parse("http://h").unwrap().origin(), "http://h:80");
        for wrong in ["", "host:7070", "ftp://h", "http://", "http://h?x=1", "https://user:secret@h", "file:///etc"] {
            let error = ServerUrl::parse(wrong).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn saved_credentials_are_private_and_are_refused_when_they_are_not() {
        let folder = Folder::new();
        let path = folder.0.join("slipway/credentials.yaml");
        assert_eq!(load(&path).unwrap(), []);
        let saved = Saved {
            server: "https://a.example:443".into(),
            token: Token::from_text("\n  secret-token  \n").unwrap(),
            fingerprint: Some(Fingerprint::of(b"a")),
        };
        save(&path, saved.clone()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(load(&path).unwrap(), std::slice::from_ref(&saved));
        assert_eq!(saved.token.reveal(), "secret-token");
        assert!(!format!("{saved:?}").contains("secret-token"));

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = load(&path).unwrap_err();
        assert!(error.to_string().contains("mode 640"), "{error}");
        assert!(save(&path, saved.clone()).is_err(), "it is not mended silently: somebody may have read it");

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!forget(&path, "https://b.example:443").unwrap());
        assert!(forget(&path, "https://a.example:443").unwrap());
        assert_eq!(load(&path).unwrap(), []);

        std::fs::write(&path, "servers: [{server: x, token: secret-token, tokem: y}]").unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("slipway login") && !error.contains("secret-token"), "{error}");
    }
}
