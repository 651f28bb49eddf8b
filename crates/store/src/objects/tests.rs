//! Tests that every kind of object store must pass.

use super::*;
use crate::testing;

fn chunks(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, String>> + Unpin + use<> {
    let parts: Vec<_> = parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect();
    futures_util::stream::iter(parts)
}

/// Runs `test` on a store of files, and also on S3 if `SLIPWAY_TEST_OBJECTS` is set (`testkit/services.py`).
async fn on_every_backend<F: Future<Output = ()>>(test: impl Fn(Objects) -> F) {
    on_every_backend_with(Limits::default(), test).await;
}

async fn on_every_backend_with<F: Future<Output = ()>>(limits: Limits, test: impl Fn(Objects) -> F) {
    let dir = testing::temp_folder("objects");
    test(Objects::open_with(dir.join("files"), limits).unwrap()).await;
    if let Some(url) = testing::service("SLIPWAY_TEST_OBJECTS") {
        let place = format!("{url}/{}", slipway_core::ids::hex32());
        test(Objects::connect_with(&place, dir.join("copies"), limits).unwrap()).await;
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// Checks that no unfinished upload is left, after waiting for cleanup in the background.
async fn assert_nothing_unfinished(objects: &Objects) {
    match &objects.0 {
        Kind::Files(files) => {
            let cleaned = async {
                while files.count_unfinished() > 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), cleaned).await.expect("an unfinished upload is left");
        }
        Kind::Remote(remote) => assert_eq!(remote.collect_abandoned(Duration::ZERO).await.unwrap(), 0),
    }
}

#[tokio::test]
async fn objects_round_trip() {
    on_every_backend(|objects| async move {
        assert_eq!(objects.put("a/b/c d#é.txt", chunks(&["hello ", "world"])).await.unwrap(), 11);
        assert_eq!(objects.put("a/empty", chunks(&[])).await.unwrap(), 0);
        assert_eq!(objects.get("a/b/c d#é.txt").await.unwrap().bytes().await.unwrap(), b"hello world");
        assert_eq!(objects.get("a/empty").await.unwrap().bytes().await.unwrap(), b"");
        let reader = objects.get("a/b/c d#é.txt").await.unwrap();
        let part: Vec<_> = reader.stream(6, 11).collect().await;
        assert_eq!(part[0].as_ref().unwrap().as_ref(), b"world");
        let names: Vec<_> = objects.list("a").await.unwrap().into_iter().map(|e| (e.name, e.is_dir)).collect();
        assert_eq!(names, [("b".to_owned(), true), ("empty".to_owned(), false)]);
        let below = objects.list("a/b").await.unwrap();
        assert_eq!((below[0].name.as_str(), below[0].size), ("c d#é.txt", 11));
        assert!(matches!(objects.get("a/b").await, Err(StoreError::IsFolder(_))));
        let local = objects.local_path("a").await.unwrap();
        assert_eq!(std::fs::read(local.join("b/c d#é.txt")).unwrap(), b"hello world");
        assert!(matches!(objects.local_path("nothing").await, Err(StoreError::NotFound(_))));
        objects.delete("a").await.unwrap();
        assert!(matches!(objects.get("a/empty").await, Err(StoreError::NotFound(_))));
        assert!(objects.list("a").await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn paths_outside_the_store_are_rejected() {
    on_every_backend(|objects| async move {
        for path in ["../x", "/etc/passwd", "a/../../x", "", ".", ".part/x", "a\0b"] {
            assert!(matches!(objects.get(path).await, Err(StoreError::BadPath(_))), "{path:?} was accepted");
        }
    })
    .await;
}

#[tokio::test]
async fn failing_stream_leaves_no_object() {
    on_every_backend(|objects| async move {
        // More than one part, so that some of it is already stored when the stream fails.
        let first_chunk = Bytes::from(vec![7; 24 << 20]);
        let failing = futures_util::stream::iter([Ok(first_chunk), Err("cut".to_owned())]);
        assert!(objects.put("x", failing).await.is_err());
        assert!(matches!(objects.get("x").await, Err(StoreError::NotFound(_))));
        assert!(objects.list("").await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn large_objects_round_trip() {
    on_every_backend(|objects| async move {
        let piece = |n: u8| Ok::<_, String>(Bytes::from(vec![n; 9 << 20]));
        let size = objects.put("large", futures_util::stream::iter((0..3).map(piece))).await.unwrap();
        assert_eq!(size, 27 << 20);
        let whole = objects.get("large").await.unwrap().bytes().await.unwrap();
        assert!((0..3u8).all(|n| whole[usize::from(n) * (9 << 20)..][..9 << 20].iter().all(|b| *b == n)));
    })
    .await;
}

#[tokio::test]
async fn parts_are_joined_in_order() {
    on_every_backend(|objects| async move {
        let id = objects.create_multipart().await.unwrap();
        objects.put_part(&id, 2, chunks(&["world"])).await.unwrap();
        objects.put_part(&id, 1, chunks(&["hello "])).await.unwrap();
        let missing = objects.complete_multipart(&id, vec![1, 2, 3], "m/whole").await;
        assert!(matches!(missing, Err(StoreError::NotFound(_))));
        assert!(matches!(objects.get("m/whole").await, Err(StoreError::NotFound(_))));
        objects.complete_multipart(&id, vec![1, 2], "m/whole").await.unwrap();
        assert_eq!(objects.get("m/whole").await.unwrap().bytes().await.unwrap(), b"hello world");
        assert!(matches!(objects.put_part(&id, 3, chunks(&["x"])).await, Err(StoreError::NotFound(_))));
        let aborted = objects.create_multipart().await.unwrap();
        objects.abort_multipart(&aborted).await.unwrap();
        assert!(matches!(objects.put_part(&aborted, 1, chunks(&["x"])).await, Err(StoreError::NotFound(_))));
    })
    .await;
}

#[tokio::test]
async fn oversized_object_is_rejected_and_leaves_nothing() {
    // The limit is larger than a part, so that some of it is already stored when the limit is reached.
    on_every_backend_with(Limits { max_object_bytes: 20 << 20, ..Limits::default() }, |objects| async move {
        let pieces =
            |n: usize| futures_util::stream::iter((0..n).map(|_| Ok::<_, String>(Bytes::from(vec![7; 1 << 20]))));
        assert_eq!(objects.put("fits", pieces(20)).await.unwrap(), 20 << 20);
        let rejected = objects.put("large", pieces(21)).await;
        assert!(matches!(rejected, Err(StoreError::TooLarge { limit, .. }) if limit == 20 << 20), "{rejected:?}");
        assert!(matches!(objects.get("large").await, Err(StoreError::NotFound(_))));
        // The existing object is kept.
        assert!(objects.put("fits", pieces(21)).await.is_err());
        assert_eq!(objects.get("fits").await.unwrap().size, 20 << 20);
        assert_nothing_unfinished(&objects).await;
        // The limit applies to the sum of all parts.
        let id = objects.create_multipart().await.unwrap();
        objects.put_part(&id, 1, pieces(15)).await.unwrap();
        objects.put_part(&id, 2, pieces(15)).await.unwrap();
        assert!(matches!(
            objects.complete_multipart(&id, vec![1, 2], "joined").await,
            Err(StoreError::TooLarge { .. })
        ));
        assert!(matches!(objects.get("joined").await, Err(StoreError::NotFound(_))));
        objects.abort_multipart(&id).await.unwrap();
        assert_nothing_unfinished(&objects).await;
    })
    .await;
}

#[tokio::test]
async fn part_numbers_part_sizes_and_open_uploads_are_limited() {
    on_every_backend_with(
        Limits { max_part_bytes: 5, max_open_uploads: 2, ..Limits::default() },
        |objects| async move {
            let id = objects.create_multipart().await.unwrap();
            for number in [0, 10_001, u32::MAX] {
                let rejected = objects.put_part(&id, number, chunks(&["x"])).await;
                assert!(matches!(rejected, Err(StoreError::BadPart { .. })), "{number}: {rejected:?}");
            }
            objects.put_part(&id, 10_000, chunks(&["12345"])).await.unwrap();
            let rejected = objects.put_part(&id, 1, chunks(&["123", "456"])).await;
            assert!(matches!(rejected, Err(StoreError::TooLarge { limit: 5, .. })), "{rejected:?}");
            let twice = objects.complete_multipart(&id, vec![10_000, 10_000], "x").await;
            assert!(matches!(twice, Err(StoreError::BadPart { number: 10_000, .. })));
            let second = objects.create_multipart().await.unwrap();
            assert!(matches!(objects.create_multipart().await, Err(StoreError::TooManyUploads { limit: 2 })));
            objects.abort_multipart(&second).await.unwrap();
            objects.create_multipart().await.unwrap();
        },
    )
    .await;
}

#[tokio::test]
async fn abandoned_uploads_are_removed() {
    on_every_backend(|objects| async move {
        let id = objects.create_multipart().await.unwrap();
        objects.put_part(&id, 1, chunks(&["hello"])).await.unwrap();
        objects.put("kept", chunks(&["kept"])).await.unwrap();
        assert_eq!(objects.collect_abandoned(Duration::from_secs(3600)).await.unwrap(), 0);
        objects.put_part(&id, 2, chunks(&["world"])).await.unwrap();
        assert_eq!(objects.collect_abandoned(Duration::ZERO).await.unwrap(), 1);
        assert!(matches!(objects.put_part(&id, 3, chunks(&["x"])).await, Err(StoreError::NotFound(_))));
        assert!(matches!(objects.complete_multipart(&id, vec![1, 2], "x").await, Err(StoreError::NotFound(_))));
        assert_eq!(objects.get("kept").await.unwrap().size, 4);
        assert_eq!(objects.collect_abandoned(Duration::ZERO).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn age_of_an_upload_counts_from_its_last_write() {
    let dir = testing::temp_folder("objects");
    let objects = Objects::open(&dir).unwrap();
    let (active, abandoned) = (objects.create_multipart().await.unwrap(), objects.create_multipart().await.unwrap());
    for id in [&active, &abandoned] {
        objects.put_part(id, 1, chunks(&["x"])).await.unwrap();
    }
    // Everything is two days old, except for one part of the active upload.
    let (day, partial) = (Duration::from_secs(24 * 3600), dir.join(PARTIAL_DIR));
    let old = std::time::SystemTime::now() - 2 * day;
    for place in
        [&active, &abandoned].map(|id| partial.join(id)).iter().flat_map(|folder| [folder.clone(), folder.join("1")])
    {
        std::fs::File::open(place).unwrap().set_modified(old).unwrap();
    }
    std::fs::File::open(partial.join(&active).join("1")).unwrap().set_modified(old + 2 * day).unwrap();
    let stray = partial.join("stray");
    std::fs::write(&stray, "x").unwrap();
    std::fs::File::open(&stray).unwrap().set_modified(old).unwrap();
    assert_eq!(objects.collect_abandoned(day).await.unwrap(), 2);
    assert!(!stray.exists());
    assert!(matches!(objects.put_part(&abandoned, 2, chunks(&["x"])).await, Err(StoreError::NotFound(_))));
    objects.complete_multipart(&active, vec![1], "whole").await.unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn disconnected_client_leaves_nothing() {
    on_every_backend(|objects| async move {
        let id = objects.create_multipart().await.unwrap();
        for part in [false, true] {
            // Send more than one part, then stall. Dropping the future is what a server does when the client disconnects.
            let (all_taken, mut is_taken) = tokio::sync::oneshot::channel();
            let mut all_taken = Some(all_taken);
            let sent = futures_util::stream::iter((0..24).map(|_| Ok::<_, String>(Bytes::from(vec![7; 1 << 20]))));
            let stalled = sent.chain(futures_util::stream::poll_fn(move |_| {
                all_taken.take().map(|taken| taken.send(()));
                std::task::Poll::Pending
            }));
            let putting =
                async { if part { objects.put_part(&id, 1, stalled).await } else { objects.put("x", stalled).await } };
            tokio::select! {
                done = putting => panic!("a stalled upload ended: {done:?}"),
                taken = &mut is_taken => taken.unwrap(),
            }
        }
        assert!(matches!(objects.get("x").await, Err(StoreError::NotFound(_))));
        assert!(matches!(objects.complete_multipart(&id, vec![1], "x").await, Err(StoreError::NotFound(_))));
        objects.abort_multipart(&id).await.unwrap();
        assert_nothing_unfinished(&objects).await;
    })
    .await;
}

#[tokio::test]
async fn nearly_full_disk_rejects_uploads() {
    let dir = testing::temp_folder("objects");
    let before = Objects::open(&dir).unwrap();
    let id = before.create_multipart().await.unwrap();
    before.put_part(&id, 1, chunks(&["x"])).await.unwrap();
    before.put("kept", chunks(&["kept"])).await.unwrap();
    let objects = Objects::open_with(&dir, Limits { min_free_bytes: u64::MAX, ..Limits::default() }).unwrap();
    let full = |done: Result<u64, StoreError>| matches!(done, Err(StoreError::OutOfSpace { .. }));
    assert!(full(objects.put("x", chunks(&["x"])).await));
    assert!(full(objects.put("kept", chunks(&["x"])).await));
    assert!(full(objects.put_part(&id, 2, chunks(&["x"])).await));
    assert!(full(objects.create_multipart().await.map(|_| 0)));
    assert!(full(objects.complete_multipart(&id, vec![1], "x").await.map(|()| 0)));
    // Existing objects can still be read and deleted.
    assert_eq!(objects.get("kept").await.unwrap().bytes().await.unwrap(), b"kept");
    objects.delete("kept").await.unwrap();
    objects.abort_multipart(&id).await.unwrap();
    assert_nothing_unfinished(&objects).await;
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn full_disk_rejects_uploads_until_there_is_space_again() {
    let Some(disk) = testing::SmallDisk::mount(4 << 20) else { return };
    let objects = Objects::open_with(disk.0.join("files"), Limits { min_free_bytes: 0, ..Limits::default() }).unwrap();
    let pieces = |n: usize| futures_util::stream::iter((0..n).map(|_| Ok::<_, String>(Bytes::from(vec![7; 1 << 20]))));
    let full = objects.put("large", pieces(5)).await;
    assert!(matches!(full, Err(StoreError::OutOfSpace { .. })), "{full:?}");
    assert_nothing_unfinished(&objects).await;
    let id = objects.create_multipart().await.unwrap();
    objects.put_part(&id, 1, pieces(2)).await.unwrap();
    assert!(matches!(objects.put_part(&id, 2, pieces(3)).await, Err(StoreError::OutOfSpace { .. })));
    // While the parts are joined, their data is on disk twice.
    objects.put("more", pieces(1)).await.unwrap();
    assert!(matches!(objects.complete_multipart(&id, vec![1], "joined").await, Err(StoreError::OutOfSpace { .. })));
    objects.delete("more").await.unwrap();
    objects.put("small", chunks(&["x"])).await.unwrap();
    objects.delete("small").await.unwrap();
    let one = objects.create_multipart().await.unwrap();
    objects.put_part(&one, 1, chunks(&["x"])).await.unwrap();
    objects.complete_multipart(&one, vec![1], "joined").await.unwrap();
    assert_eq!(objects.get("joined").await.unwrap().size, 1);
}

#[tokio::test]
async fn many_objects_are_stored_and_read_at_once() {
    let limits = Limits { max_object_bytes: 5, ..Limits::default() };
    on_every_backend_with(limits, |objects| async move {
        let object = |path: &str, content: &'static str| (path.to_owned(), Bytes::from(content));
        objects.put_many(vec![object("a/b/x", "hello"), object("a/y", "")]).await.unwrap();
        objects.put_many(vec![object("a/y", "new")]).await.unwrap();
        let paths = ["a/y", "a/b", "a/none", "a/b/x"].map(str::to_owned).to_vec();
        let found = objects.get_many(paths.clone(), 5).await.unwrap();
        assert_eq!(found, [Some(b"new".to_vec()), None, None, Some(b"hello".to_vec())]);
        assert_eq!(objects.get_many(paths, 4).await.unwrap()[3], None, "it is larger than requested");

        assert!(objects.put_many(vec![object("a/z", "x"), object("../z", "x")]).await.is_err());
        let error = objects.put_many(vec![object("a/w", "longer")]).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
        assert!(objects.get_many(vec!["../z".to_owned()], 5).await.is_err());
        assert_nothing_unfinished(&objects).await;
    })
    .await;
}
