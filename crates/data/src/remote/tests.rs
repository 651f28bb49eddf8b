//! Transfers with a slipway server and with a server that breaks off.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use slipway_access::{Guard, Routes};
use slipway_core::byte_range;
use slipway_store::Objects;

use super::*;
use crate::config::Files;
use crate::service::{PART_BYTES, Service};

/// Serves a router on this machine, and returns its URL.
async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn open(folder: &Path, url: &str, options: &str) -> Result<Remote, DataError> {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config"), format!("['remote \"r\"']\n    url = {url}\n{options}")).unwrap();
    Remote::open(&Files::new(Some(folder.to_owned())).load().unwrap(), Some("r"), "push")
}

fn put(cache: &Cache, content: &[u8]) -> Digest {
    let mut hasher = Hasher::new(HashName::Md5);
    hasher.update(content);
    let digest = Digest::of_file(hasher.finish());
    cache.put(&digest, content).unwrap();
    digest
}

#[tokio::test]
async fn objects_travel_over_a_slipway_server() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::open(&Objects::open(folder.path().join("objects")).unwrap()).unwrap();
    let routes = Routes::new().nest("/api/v1/data", crate::http::routes(service.clone()));
    let url = serve(Guard::in_process().protect(routes)).await;
    let remote = open(&folder.path().join("dvc"), &format!("{url}/api/v1/data/remotes/team"), "").unwrap();
    let cache = |name: &str| Cache::new(&folder.path().join(name), HashName::Md5, false);
    let (first, second) = (cache("first"), cache("second"));
    let large = vec![7; usize::try_from(2 * PART_BYTES + 5).unwrap()];
    let digests = [put(&first, b""), put(&first, b"small"), put(&first, &large)];
    let ids: Vec<_> = digests.iter().map(|digest| (HashName::Md5, *digest)).collect();
    assert!(remote.existing(&ids, 4).await.unwrap().is_empty());

    // An earlier upload broke off after its second part.
    let place = crate::service::Place::new(None, "team").unwrap();
    let item = Item::Object(HashName::Md5, digests[2]);
    let part = Bytes::from(vec![7; usize::try_from(PART_BYTES).unwrap()]);
    let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>(part)]);
    service.put_part(&place, &item, 2, chunks).await.unwrap();
    for digest in &digests {
        remote.upload(&first, digest).await.unwrap();
    }
    assert_eq!(remote.existing(&ids, 4).await.unwrap().len(), 3);
    assert_eq!(remote.list(4).await.unwrap(), ids.iter().copied().collect());
    for digest in &digests {
        remote.download(&second, digest).await.unwrap();
        second.verify(digest).unwrap();
    }
    remote.remove(&ids[..2], 4).await.unwrap();
    assert_eq!(remote.list(4).await.unwrap(), ids[2..].iter().copied().collect());

    // A damaged object of the cache does not replace the one of the remote.
    let path = first.path(&digests[1]);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "other").unwrap();
    let error = remote.upload(&first, &digests[1]).await.unwrap_err().to_string();
    assert!(error.contains("422") && error.contains("nothing was stored"), "{error}");
    assert_eq!(remote.list(4).await.unwrap().len(), 1);
}

#[tokio::test]
async fn small_objects_travel_in_batches() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::open(&Objects::open(folder.path().join("objects")).unwrap()).unwrap();
    let routes = Routes::new().nest("/api/v1/data", crate::http::routes(service));
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let count = axum::middleware::from_fn(move |request: axum::extract::Request, next: axum::middleware::Next| {
        counter.fetch_add(1, Ordering::SeqCst);
        next.run(request)
    });
    let url = serve(Guard::in_process().protect(routes).layer(count)).await;
    let remote = open(&folder.path().join("dvc"), &format!("{url}/api/v1/data/remotes/team"), "").unwrap();
    let cache = |name: &str| Cache::new(&folder.path().join(name), HashName::Md5, false);
    let (first, second) = (cache("first"), cache("second"));
    let mut ids: Vec<_> = (0..50).map(|i| (HashName::Md5, put(&first, format!("small {i}").as_bytes()))).collect();
    let large = (HashName::Md5, put(&first, &[7; 100_000]));
    ids.push(large);

    let sent = remote.transfer_batches(|_| &first, &ids, 4, true).await;
    assert_eq!(requests.swap(0, Ordering::SeqCst), 1);
    assert!(sent.len() == 50 && sent.values().all(Result::is_ok) && !sent.contains_key(&large), "{sent:?}");
    remote.upload(&first, &large.1).await.unwrap();
    requests.store(0, Ordering::SeqCst);
    let received = remote.transfer_batches(|_| &second, &ids, 4, false).await;
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    assert!(received.len() == 50 && received.values().all(Result::is_ok), "{received:?}");
    ids[..50].iter().for_each(|id| second.verify(&id.1).unwrap());
    assert!(!second.contains(&large.1).unwrap(), "what is large is left to single transfers");

    // A damaged object of the cache is not stored, and neither are the others of its batch.
    remote.remove(&ids, 4).await.unwrap();
    std::fs::remove_file(first.path(&ids[7].1)).unwrap();
    std::fs::write(first.path(&ids[7].1), "other").unwrap();
    let failed = remote.transfer_batches(|_| &first, &ids, 4, true).await;
    let message = failed[&ids[0]].as_ref().unwrap_err().to_string();
    assert!(failed.len() == 50 && message.contains("422") && message.contains("nothing was stored"), "{message}");
    assert!(remote.list(4).await.unwrap().is_empty());
}

/// A server that answers every batch with one object of another content.
async fn damaged_batch(State(batch): State<Bytes>) -> Bytes {
    batch
}

#[tokio::test]
async fn batches_are_verified_and_older_servers_get_single_objects() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(&folder.path().join("cache"), HashName::Md5, false);
    let ids: Vec<_> = (0..9).map(|i| (HashName::Md5, Digest::of_file([i; 16]))).collect();
    let mut batch = Vec::new();
    crate::batch::append(&mut batch, &path_of(&ids[3]), b"evil");
    crate::batch::append(&mut batch, "files/md5/d4/1d8cd98f00b204e9800998ecf8427e", b"");
    let url = serve(Router::new().fallback(damaged_batch).with_state(batch.into())).await;
    let remote = open(&folder.path().join("dvc"), &format!("{url}/api/v1/data/remotes/team"), "").unwrap();
    let received = remote.transfer_batches(|_| &cache, &ids, 4, false).await;
    assert!(matches!(received[&ids[3]], Err(DataError::Corrupt { .. })) && received.len() == 1, "{received:?}");
    assert!(cache.list().unwrap().objects.is_empty(), "neither a damaged object nor one that was not requested");

    let old = async || (StatusCode::BAD_REQUEST, "'upload' is not the path of an object or run");
    let url = serve(Router::new().fallback(old)).await;
    let remote = open(&folder.path().join("dvc"), &format!("{url}/api/v1/data/remotes/team"), "").unwrap();
    for send in [false, true, false] {
        let ids: Vec<_> = (0..9_u8).map(|i| (HashName::Md5, put(&cache, &[i]))).collect();
        assert!(remote.transfer_batches(|_| &cache, &ids, 4, send).await.is_empty());
    }
}

#[tokio::test]
async fn runs_travel_once() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::open(&Objects::open(folder.path().join("objects")).unwrap()).unwrap();
    let routes = Routes::new().nest("/api/v1/data", crate::http::routes(service));
    let url = format!("{}/api/v1/data/remotes/team", serve(Guard::in_process().protect(routes)).await);
    let run = format!("runs/ab/{}/{}", "ab".repeat(32), "cd".repeat(32));
    for place in [url, folder.path().join("remote").display().to_string()] {
        let remote = open(&folder.path().join("dvc"), &place, "").unwrap();
        let sender = tempfile::tempdir().unwrap();
        let receiver = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(sender.path().join(&run).parent().unwrap()).unwrap();
        std::fs::write(sender.path().join(&run), "cmd: true\n").unwrap();
        std::fs::write(sender.path().join("runs/leftover"), "").unwrap();
        assert_eq!(remote.push_runs(sender.path(), 4).await.unwrap(), 1);
        assert_eq!(remote.push_runs(sender.path(), 4).await.unwrap(), 0);
        assert_eq!(remote.fetch_runs(receiver.path(), 4).await.unwrap(), 1);
        assert_eq!(std::fs::read_to_string(receiver.path().join(&run)).unwrap(), "cmd: true\n");
    }
}

/// What a server that breaks off has: the content, how many bytes it sends at most, and the number of requests so far.
type Broken = (Bytes, usize, Arc<AtomicUsize>);

/// The first request gets a status that is temporary, all others at most some bytes from where they ask for.
async fn break_off(State((content, at_most, requests)): State<Broken>, headers: HeaderMap) -> Response {
    if requests.fetch_add(1, Ordering::SeqCst) == 0 {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let size = content.len();
    let range = headers.get("range").and_then(|range| byte_range::parse(range.to_str().ok()?, size as u64));
    let from = range.map_or(0, |range| usize::try_from(range.unwrap().0).unwrap());
    let to = (from + at_most).min(size);
    let sent = content.slice(from..to);
    // The server sends what it has before it notices the error, because the error is not ready at once.
    let end = futures_util::stream::iter((to < size).then_some(())).then(async |()| {
        tokio::task::yield_now().await;
        Err(std::io::Error::other("broken off"))
    });
    let body = Body::from_stream(futures_util::stream::iter([Ok(sent)]).chain(end));
    let status = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    (status, [("content-length", (size - from).to_string())], body).into_response()
}

#[tokio::test]
async fn downloads_continue_where_they_broke_off() {
    let folder = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let requests = Arc::new(AtomicUsize::new(0));
    let state = (Bytes::from(content.clone()), 150_000, Arc::clone(&requests));
    let url = serve(Router::new().fallback(break_off).with_state(state)).await;
    let remote = open(&folder.path().join("dvc"), &url, "").unwrap();
    let digest = put(&Cache::new(&folder.path().join("source"), HashName::Md5, false), &content);
    let cache = Cache::new(&folder.path().join("cache"), HashName::Md5, false);
    remote.download(&cache, &digest).await.unwrap();
    cache.verify(&digest).unwrap();
    assert_eq!(requests.load(Ordering::SeqCst), 4, "one is refused, two break off, one ends");

    // Another content is never published, and leaves nothing.
    let other = Digest::of_file([1; 16]);
    let error = remote.download(&cache, &other).await.unwrap_err();
    assert!(matches!(error, DataError::Corrupt { .. }), "{error}");
    assert!(!cache.contains(&other).unwrap());
    assert!(cache.list().unwrap().leftovers.is_empty());
}

#[tokio::test]
async fn options_that_cannot_be_honoured_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    for (url, options, word) in [
        ("s3://b", "version_aware = true", "cloud versioned"),
        ("s3://b", "acl = private", "acl"),
        ("s3://b", "sse = none", "sse"),
        ("http://h", "auth = digest", "digest"),
        ("http://h", "auth = custom", "custom_auth_header"),
        ("http://h", "method = PATCH", "method"),
        ("webdav://h", "bearer_token_command = x", "bearer_token_command"),
        ("webdav://h", "password = x", "user"),
        ("ssh://h/p", "password = x", "keyfile"),
        ("ssh://-oProxyCommand=x/p", "", "url"),
        ("ssh://h/p", "user = -x", "url"),
        ("azure://c", "connection_string = Nonsense=1", "Nonsense"),
        ("oss://b", "", "oss"),
    ] {
        let error = open(&folder.path().join("dvc"), url, &format!("    {options}\n")).unwrap_err();
        assert!(matches!(&error, DataError::Config(message) if message.contains(word)), "{url} {options}: {error}");
    }
}
