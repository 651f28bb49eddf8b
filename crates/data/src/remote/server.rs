//! Remotes on a slipway server. One request finds what is missing, and a large upload continues after a broken connection.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use reqwest::header::AUTHORIZATION;
use reqwest::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::backend::{Backend, Chunks, Entry, Failure, Part, Reply, retried};
use super::http::{Client, authentication_of, checked, secret_header, size_of, tls_of};
use super::options::{Settings, Verification};
use crate::access::ServerAccess;
use crate::batch::MAX_DOWNLOAD_BYTES;
use crate::error::DataError;
use crate::layout::Item;
use crate::model::HashName;
use crate::service::PART_BYTES;
use crate::wire::{Complete, Items, Parts};

/// Maximum number of items of a request; the server limits its bytes.
const ITEMS_PER_REQUEST: usize = 200_000;
/// Number of parts of one file that are sent at the same time.
const CONCURRENT_PARTS: usize = 4;

/// A remote on a slipway server.
#[derive(Debug)]
pub(crate) struct Server {
    client: Client,
    base: String,
    /// Set when the server proves to be older than batches.
    lacks_batches: AtomicBool,
}

impl Server {
    /// Opens the remote with the credentials in its options, or with those that the user has for this server.
    pub(crate) fn open(settings: &Settings, access: Option<ServerAccess>) -> Result<Self, DataError> {
        let authentication = match access.as_ref().and_then(|access| access.token.as_ref()) {
            Some(token) => secret_header(settings, AUTHORIZATION.as_str(), &format!("Bearer {token}"))?,
            None => authentication_of(settings)?,
        };
        let tls = match access {
            Some(access) if settings.verification() == Verification::System => access.tls,
            _ => tls_of(settings)?,
        };
        let timeouts = (settings.seconds("connect_timeout")?, settings.seconds("read_timeout")?);
        let client = Client::new(tls, timeouts, authentication, &settings.reach)?;
        Ok(Self { client, base: settings.url.trim_end_matches('/').to_owned(), lacks_batches: AtomicBool::new(false) })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    /// Sends a request and reads the response.
    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let broken = |error: serde_json::Error| Failure::Permanent(format!("the response is invalid: {error}"));
        let mut request = self.client.request(method.clone(), &self.url(path));
        if method == Method::POST {
            let body = serde_json::to_vec(body).map_err(broken)?;
            request = request.header("content-type", "application/json").body(body);
        }
        let response = checked(self.client.send(request).await?).await?;
        let bytes = response.bytes().await.map_err(super::http::broken)?;
        serde_json::from_slice(if bytes.is_empty() { b"null" } else { &bytes }).map_err(broken)
    }

    /// Posts a request about a batch; `None` if the server is older than batches, and takes the last part of the URL for an object's name, or
    /// if a proxy rejects its size.
    async fn post_batch(&self, path: &str, kind: &str, body: Bytes) -> Result<Option<Response>, Failure> {
        let request = self.client.request(Method::POST, &self.url(path)).header("content-type", kind).body(body);
        let response = self.client.send(request).await?;
        match response.status() {
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::PAYLOAD_TOO_LARGE => {
                self.lacks_batches.store(true, Ordering::Relaxed);
                Ok(None)
            }
            _ => checked(response).await.map(Some),
        }
    }

    /// Sends the parts of a large file that the server lacks.
    async fn write_parts(&self, path: &str, source: &Path, size: u64) -> Result<(), Failure> {
        let upload = format!("uploads/{path}");
        let arrived: Parts = self.call(Method::GET, &upload, &()).await?;
        let count = u32::try_from(size.div_ceil(PART_BYTES))
            .map_err(|_| Failure::Permanent("the file is too large for this remote".into()))?;
        let range = |number: u32| {
            let from = u64::from(number - 1) * PART_BYTES;
            from..(from + PART_BYTES).min(size)
        };
        let is_lacking = |number: &u32| {
            let bytes = range(*number).end - range(*number).start;
            !arrived.parts.iter().any(|part| part.number == *number && part.size == bytes)
        };
        let send = async |number: u32| {
            let url = self.url(&format!("parts/{number}/{path}"));
            let request = || -> Reply<'_, ()> {
                Box::pin(async {
                    let request = self.client.request(Method::PUT, &url);
                    checked(self.client.send_file(request, source, range(number)).await?).await.map(drop)
                })
            };
            retried(request).await
        };
        let lacking = futures_util::stream::iter((1..=count).filter(is_lacking));
        lacking.map(send).buffer_unordered(CONCURRENT_PARTS).try_collect::<Vec<()>>().await?;
        self.call(Method::POST, &upload, &Complete { parts: count }).await
    }
}

impl Backend for Server {
    fn exists<'a>(&'a self, path: &'a str) -> Reply<'a, bool> {
        Box::pin(async move { self.client.exists(&self.url(path)).await })
    }

    fn entries<'a>(&'a self, _: &'a str) -> Reply<'a, Vec<Entry>> {
        Box::pin(std::future::ready(Err(Failure::Permanent("a server has no folders".into()))))
    }

    fn read<'a>(&'a self, path: &'a str, from: u64) -> Reply<'a, Chunks> {
        Box::pin(async move { self.client.read(&self.url(path), from).await })
    }

    fn write<'a>(&'a self, path: &'a str, source: &'a Path) -> Reply<'a, ()> {
        Box::pin(async move {
            let size = size_of(source)?;
            if size > PART_BYTES {
                return self.write_parts(path, source, size).await;
            }
            self.client.write(Method::PUT, &self.url(path), source).await
        })
    }

    fn takes_batches(&self) -> bool {
        !self.lacks_batches.load(Ordering::Relaxed)
    }

    fn write_batch(&self, batch: Bytes) -> Reply<'_, bool> {
        Box::pin(async move {
            let sent = self.takes_batches().then(|| self.post_batch("upload", "application/octet-stream", batch));
            Ok(match sent {
                Some(sent) => sent.await?.is_some(),
                None => false,
            })
        })
    }

    fn read_batch<'a>(&'a self, paths: &'a [String]) -> Reply<'a, Option<Bytes>> {
        Box::pin(async move {
            let items = serde_json::to_vec(&Items { items: paths.to_vec() });
            let items = items.map_err(|error| Failure::Permanent(error.to_string()))?;
            if !self.takes_batches() {
                return Ok(None);
            }
            match self.post_batch("download", "application/json", items.into()).await? {
                Some(response) => self.client.body(response, MAX_DOWNLOAD_BYTES).await.map(Some),
                None => Ok(None),
            }
        })
    }

    fn remove<'a>(&'a self, path: &'a str) -> Reply<'a, ()> {
        Box::pin(async move { self.client.delete(&self.url(path)).await })
    }

    fn list_from(&self) -> usize {
        usize::MAX
    }

    fn existing<'a>(&'a self, paths: &'a [String], _: usize) -> Reply<'a, HashSet<String>> {
        Box::pin(async move {
            let mut found: HashSet<String> = paths.iter().cloned().collect();
            for items in paths.chunks(ITEMS_PER_REQUEST).map(|chunk| Items { items: chunk.to_vec() }) {
                let missing: Items = retried(|| Box::pin(self.call(Method::POST, "missing", &items))).await?;
                for path in &missing.items {
                    found.remove(path);
                }
            }
            Ok(found)
        })
    }

    fn list(&self, part: Part, _: usize) -> Reply<'_, Vec<String>> {
        Box::pin(async move {
            let all: Items = retried(|| Box::pin(self.call(Method::GET, "items", &()))).await?;
            let is_wanted = |path: &String| match Item::parse(path) {
                Some(Item::Object(HashName::Md5, _)) => part == Part::Objects(HashName::Md5),
                Some(Item::Object(HashName::Dos2Unix, _)) => part == Part::Objects(HashName::Dos2Unix),
                Some(Item::Run { .. }) => part == Part::Runs,
                None => false,
            };
            Ok(all.items.into_iter().filter(is_wanted).collect())
        })
    }

    fn remove_all<'a>(&'a self, paths: &'a [String], _: usize) -> Reply<'a, ()> {
        Box::pin(async move {
            for items in paths.chunks(ITEMS_PER_REQUEST).map(|chunk| Items { items: chunk.to_vec() }) {
                retried(|| Box::pin(self.call::<()>(Method::POST, "remove", &items))).await?;
            }
            Ok(())
        })
    }
}
