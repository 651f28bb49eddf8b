//! Remotes on WebDAV servers (RFC 4918), `webdav(s)://`. A file is uploaded under another name in the same folder and then moved, because
//! servers differ in what they leave of an upload that breaks off.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use quick_xml::Reader;
use quick_xml::events::Event;
use reqwest::header::AUTHORIZATION;
use reqwest::{Method, StatusCode};

use super::backend::{Backend, Chunks, Entry, Failure, Reply, Source};
use super::http::{Client, basic_header, checked, password_of, secret_header, size_of, tls_of};
use super::options::Settings;
use crate::error::DataError;

/// Maximum bytes of a listing.
const MAX_LISTING_BYTES: u64 = 256 << 20;
/// What a listing requests of each entry.
const PROPERTIES: &str = r#"<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/><getetag/><getlastmodified/></prop></propfind>"#;
/// Bytes of a path that are percent-encoded: all but those of RFC 3986, section 2.3, and the separator.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A remote on a WebDAV server.
#[derive(Debug)]
pub(crate) struct WebDav {
    client: Client,
    base: String,
    /// Folders that exist.
    folders: Mutex<HashSet<String>>,
}

impl WebDav {
    /// Opens the remote.
    pub(crate) fn open(settings: &Settings) -> Result<Self, DataError> {
        settings.refuse(&[("bearer_token_command", "set 'token', or 'custom_auth_header' and 'password'")])?;
        let user = settings.text("user");
        let password = password_of(settings)?;
        let authentication = match (settings.text("custom_auth_header"), settings.text("token"), user, password) {
            (Some(header), _, _, Some(password)) => secret_header(settings, header, &password)?,
            (Some(_), ..) => return Err(settings.invalid("custom_auth_header", "it needs 'password'")),
            (None, Some(token), ..) => secret_header(settings, AUTHORIZATION.as_str(), &format!("Bearer {token}"))?,
            (None, None, Some(user), password) => basic_header(settings, user, &password.unwrap_or_default())?,
            (None, None, None, Some(_)) => return Err(settings.invalid("password", "it needs 'user'")),
            (None, None, None, None) => None,
        };
        let timeout = settings.seconds("timeout")?;
        let client = Client::new(tls_of(settings)?, (timeout, timeout), authentication, &settings.reach)?;
        let (scheme, rest) = settings.url.split_once("://").unwrap_or(("webdav", &settings.url));
        let scheme = if scheme.eq_ignore_ascii_case("webdavs") { "https" } else { "http" };
        let base = format!("{scheme}://{}", rest.trim_end_matches('/'));
        Ok(Self { client, base, folders: Mutex::default() })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{}", self.base, utf8_percent_encode(path, ENCODED))
    }

    /// The URL of a file; the remote itself may be one, whose path is empty.
    fn file_url(&self, path: &str) -> String {
        self.url(path).trim_end_matches('/').to_owned()
    }

    /// The properties of what is at a URL, and with `depth` 1 of the entries of a folder. Each entry has its path on the server as its name.
    async fn properties(&self, url: &str, depth: &str) -> Result<Vec<Entry>, Failure> {
        let request = self.client.request(Self::method(b"PROPFIND"), url);
        let request = request.header("depth", depth).header("content-type", "application/xml").body(PROPERTIES);
        let mut response = checked(self.client.send(request).await?).await?;
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(super::http::broken)? {
            text.extend_from_slice(&chunk);
            if text.len() as u64 > MAX_LISTING_BYTES {
                return Err(Failure::Permanent("the listing of a folder is too large".into()));
            }
        }
        parse_properties(&text).map_err(|reason| Failure::Permanent(format!("the listing is invalid: {reason}")))
    }

    fn method(name: &'static [u8]) -> Method {
        Method::from_bytes(name).expect("the names are made of letters")
    }

    /// Creates the folders above a path, which exist afterwards.
    async fn create_parents(&self, path: &str) -> Result<(), Failure> {
        // The folder of the remote itself may be missing, too.
        let mut folder = String::new();
        for segment in std::iter::once("").chain(path.split('/')).take(path.split('/').count()) {
            folder.push_str(segment);
            folder.push_str(if segment.is_empty() { "" } else { "/" });
            if self.folders.lock().unwrap_or_else(PoisonError::into_inner).contains(&folder) {
                continue;
            }
            let request = self.client.request(Self::method(b"MKCOL"), &self.url(&folder));
            match self.client.send(request).await? {
                // The folder exists.
                response if response.status() == StatusCode::METHOD_NOT_ALLOWED => {}
                // A server may forbid to create the folder of the remote, which its administrator created.
                response if folder.is_empty() && response.status().is_client_error() => {}
                response => drop(checked(response).await?),
            }
            self.folders.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.clone());
        }
        Ok(())
    }
}

impl Backend for WebDav {
    fn exists<'a>(&'a self, path: &'a str) -> Reply<'a, bool> {
        Box::pin(async move { self.client.exists(&self.url(path)).await })
    }

    fn entries<'a>(&'a self, folder: &'a str) -> Reply<'a, Vec<Entry>> {
        Box::pin(async move {
            let slash = if folder.is_empty() { "" } else { "/" };
            match self.properties(&self.url(&format!("{folder}{slash}")), "1").await {
                Ok(found) => Ok(entries_of(found)),
                Err(Failure::NotFound) => Ok(Vec::new()),
                Err(failure) => Err(failure),
            }
        })
    }

    fn read<'a>(&'a self, path: &'a str, from: u64) -> Reply<'a, Chunks> {
        Box::pin(async move { self.client.read(&self.file_url(path), from).await })
    }

    fn write<'a>(&'a self, path: &'a str, source: &'a Path) -> Reply<'a, ()> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        Box::pin(async move {
            self.create_parents(path).await?;
            let (folder, _) = path.rsplit_once('/').unwrap_or_default();
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let temporary = self.url(&format!("{folder}/.slipway-{}-{number}", slipway_core::ids::hex32()));
            let moved = async {
                let put = self.client.request(Method::PUT, &temporary);
                checked(self.client.send_file(put, source, 0..size_of(source)?).await?).await?;
                let rename = self.client.request(Self::method(b"MOVE"), &temporary);
                let rename = rename.header("destination", self.url(path)).header("overwrite", "T");
                checked(self.client.send(rename).await?).await.map(drop)
            };
            let moved = moved.await;
            if moved.is_err() {
                let _ = self.client.delete(&temporary).await; // Best effort: the failure is the one to report.
            }
            moved
        })
    }

    fn remove<'a>(&'a self, path: &'a str) -> Reply<'a, ()> {
        Box::pin(async move { self.client.delete(&self.url(path)).await })
    }
}

impl Source for WebDav {
    fn describe<'a>(&'a self, path: &'a str) -> Reply<'a, Option<Entry>> {
        Box::pin(async move {
            let url = self.file_url(path);
            let found = match self.properties(&url, "0").await {
                // Some servers have folders only with a slash, and some respond that the method is not allowed without it.
                Err(Failure::NotFound | Failure::Permanent(_)) => self.properties(&format!("{url}/"), "0").await,
                found => found,
            };
            match found {
                Ok(entries) => Ok(entries.into_iter().next().map(|entry| Entry { name: String::new(), ..entry })),
                Err(Failure::NotFound) => Ok(None),
                Err(failure) => Err(failure),
            }
        })
    }
}

/// The entries of a folder from its listing, which also contains the folder itself.
fn entries_of(mut found: Vec<Entry>) -> Vec<Entry> {
    // The folder itself has the shortest path; its place among the others is not defined.
    let folders = found.iter().enumerate().filter(|(_, entry)| entry.is_folder);
    if let Some((own, _)) = folders.min_by_key(|(_, entry)| entry.name.len()) {
        found.remove(own);
    }
    for entry in &mut found {
        entry.name = entry.name.rsplit('/').next().unwrap_or_default().to_owned();
    }
    found
}

/// The entries of a response to a request for properties. Each has its path on the server as its name.
fn parse_properties(text: &[u8]) -> Result<Vec<Entry>, String> {
    let mut reader = Reader::from_reader(text);
    let mut found = Vec::new();
    let (mut entry, mut modified) = (Entry::default(), None);
    let mut value = String::new();
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Start(tag) | Event::Empty(tag) => {
                value.clear();
                match tag.local_name().as_ref() {
                    b"response" => (entry, modified) = (Entry::default(), None),
                    b"collection" => entry.is_folder = true,
                    _ => {}
                }
            }
            Event::Text(piece) => value.push_str(&piece.decode().map_err(|error| error.to_string())?),
            Event::GeneralRef(reference) => {
                let named = reference.decode().map_err(|error| error.to_string())?;
                let named =
                    quick_xml::escape::unescape(&format!("&{named};")).map_err(|error| error.to_string())?.into_owned();
                value.push_str(&named);
            }
            Event::End(tag) => match tag.local_name().as_ref() {
                b"href" => {
                    let path = percent_decode_str(value.trim().trim_end_matches('/')).decode_utf8_lossy();
                    entry.name = path.into_owned();
                }
                b"getcontentlength" => entry.size = value.trim().parse().ok(),
                b"getetag" => entry.tag = Some(unquoted(value.trim())).filter(|tag| !tag.is_empty()),
                b"getlastmodified" => modified = Some(value.trim().to_owned()).filter(|time| !time.is_empty()),
                b"response" => {
                    entry.tag = entry.tag.take().or(modified.take()).filter(|_| !entry.is_folder);
                    found.push(std::mem::take(&mut entry));
                }
                _ => {}
            },
            Event::Eof => break,
            _ => {}
        }
    }
    Ok(found)
}

/// An entity tag without its quotes, as DVC records it.
fn unquoted(tag: &str) -> String {
    tag.trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_of_servers_are_parsed() {
        // Of nginx, with a prefix of its own, and of a server that gives whole URLs.
        let text = br#"<?xml version="1.0" encoding="utf-8" ?>
<D:multistatus xmlns:D="DAV:">
<D:response><D:href>http://h/d/files/md5/ab/</D:href><D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype></D:prop></D:propstat></D:response>
<D:response><D:href>http://h/d/files/md5/ab/12%2e3</D:href><D:propstat><D:prop><D:resourcetype/></D:prop></D:propstat></D:response>
<D:response><D:href>http://h/d/files/md5/ab/cd/</D:href><D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype></D:prop></D:propstat></D:response>
</D:multistatus>"#;
        let entry = |name: &str, is_folder| Entry { name: name.into(), is_folder, ..Entry::default() };
        let listed = |text: &[u8]| parse_properties(text).map(entries_of);
        assert_eq!(listed(text).unwrap(), [entry("12.3", false), entry("cd", true)]);
        assert_eq!(listed(b"").unwrap(), []);
        assert!(listed(b"<a><b></a>").is_err());
    }

    #[test]
    fn sizes_and_tags_of_files_are_parsed() {
        let text = br#"<d:multistatus xmlns:d="DAV:">
<d:response><d:href>/a%20&amp;%20b</d:href><d:propstat><d:prop><d:resourcetype/><d:getcontentlength>6</d:getcontentlength>
<d:getlastmodified>Mon, 30 Nov 2026 10:00:00 GMT</d:getlastmodified><d:getetag>&quot;9-6&quot;</d:getetag></d:prop></d:propstat></d:response>
<d:response><d:href>/c</d:href><d:propstat><d:prop><d:getlastmodified>Mon, 30 Nov 2026 10:00:01 GMT</d:getlastmodified></d:prop></d:propstat></d:response>
<d:response><d:href>/d/</d:href><d:propstat><d:prop><d:resourcetype><d:collection/></d:resourcetype><d:getetag>x</d:getetag></d:prop></d:propstat></d:response>
</d:multistatus>"#;
        let file =
            |name: &str, size, tag: &str| Entry { name: name.into(), size, tag: Some(tag.into()), ..Entry::default() };
        let folder = Entry { name: "/d".into(), is_folder: true, ..Entry::default() };
        let expected = [file("/a & b", Some(6), "9-6"), file("/c", None, "Mon, 30 Nov 2026 10:00:01 GMT"), folder];
        assert_eq!(parse_properties(text).unwrap(), expected);
    }
}
