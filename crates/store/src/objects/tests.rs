//! What every store has to do.

use super::*;
use crate::testing;

fn chunks(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, String>> + Unpin + use<> {
    let parts: Vec<_> = parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect();
    futures_util::stream::iter(parts)
}

/// What every store has to do. Files always; S3 where `SLIPWAY_TEST_OBJECTS` names one (`testkit/services.py`).
async fn everywhere<F: Future<Output = ()>>(test: impl Fn(Objects) -> F) {
    within(Limits::default(), test).await;
}

async fn within<F: Future<Output = ()>>(limits: Limits, test: impl Fn(Objects) -> F) {
    let dir = testing::folder("objects");
    test(Objects::open_with(dir.join("files"), limits).unwrap()).await;
    if let Some(url) = testing::service("SLIPWAY_TEST_OBJECTS") {
        let place = format!("{url}/{}", slipway_core::ids::hex32());
        test(Objects::connect_with(&place, dir.join("copies"), limits).unwrap()).await;
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// Checks that nothing of an unfinished upload is left, once what runs in the background has ended.
async fn nothing_unfinished(objects: &Objects) {
    match &objects.0 {
        Kind::Files(files) => {
            let gone = async {
                while files.count_unfinished() > 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), gone).await.expect("an unfinished upload stays");
        }
        Kind::Remote(remote) => assert_eq!(remote.collect_abandoned(Duration::ZERO).await.unwrap(), 0),
    }
}

#[tokio::test]
async fn objects_go_in_and_come_out() {
    everywhere(|objects| async move {
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
        let local = objects.local("a").await.unwrap();
        assert_eq!(std::fs::read(local.join("b/c d#é.txt")).unwrap(), b"hello world");
        assert!(matches!(objects.local("nothing").await, Err(StoreError::NotFound(_))));
        objects.delete("a").await.unwrap();
        assert!(matches!(objects.get("a/empty").await, Err(StoreError::NotFound(_))));
        assert!(objects.list("a").await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn paths_stay_inside() {
    everywhere(|objects| async move {
        for path in ["../x", "/etc/passwd", "a/../../x", "", ".", ".part/x", "a\0b"] {
            assert!(matches!(objects.get(path).await, Err(StoreError::BadPath(_))), "{path:?} was let through");
        }
    })
    .await;
}

#[tokio::test]
async fn a_broken_stream_leaves_nothing() {
    everywhere(|objects| async move {
        // More than a store takes at once, so that some of it is there already when the stream breaks.
        let much = Bytes::from(vec![7; 24 << 20]);
        let broken = futures_util::stream::iter([Ok(much), Err("cut".to_owned())]);
        assert!(objects.put("x", broken).await.is_err());
        assert!(matches!(objects.get("x").await, Err(StoreError::NotFound(_))));
        assert!(objects.list("").await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn large_objects_come_back_whole() {
    everywhere(|objects| async move {
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
    everywhere(|objects| async move {
        let id = objects.begin_parts().await.unwrap();
        objects.put_part(&id, 2, chunks(&["world"])).await.unwrap();
        objects.put_part(&id, 1, chunks(&["hello "])).await.unwrap();
        let missing = objects.complete_parts(&id, vec![1, 2, 3], "m/whole").await;
        assert!(matches!(missing, Err(StoreError::NotFound(_))));
        assert!(matches!(objects.get("m/whole").await, Err(StoreError::NotFound(_))));
        objects.complete_parts(&id, vec![1, 2], "m/whole").await.unwrap();
        assert_eq!(objects.get("m/whole").await.unwrap().bytes().await.unwrap(), b"hello world");
        assert!(matches!(objects.put_part(&id, 3, chunks(&["x"])).await, Err(StoreError::NotFound(_))));
        let gone = objects.begin_parts().await.unwrap();
        objects.abort_parts(&gone).await.unwrap();
        assert!(matches!(objects.put_part(&gone, 1, chunks(&["x"])).await, Err(StoreError::NotFound(_))));
    })
    .await;
}

#[tokio::test]
async fn an_object_that_is_too_large_is_refused_and_leaves_nothing() {
    // More than a bucket takes at once, so that some of it is there already when the limit is reached.
    within(Limits { max_object_bytes: 20 << 20, ..Limits::default() }, |objects| async move {
        let pieces =
            |n: usize| futures_util::stream::iter((0..n).map(|_| Ok::<_, String>(Bytes::from(vec![7; 1 << 20]))));
        assert_eq!(objects.put("fits", pieces(20)).await.unwrap(), 20 << 20);
        let refused = objects.put("large", pieces(21)).await;
        assert!(matches!(refused, Err(StoreError::TooLarge { limit, .. }) if limit == 20 << 20), "{refused:?}");
        assert!(matches!(objects.get("large").await, Err(StoreError::NotFound(_))));
        // What was there before stays.
        assert!(objects.put("fits", pieces(21)).await.is_err());
        assert_eq!(objects.get("fits").await.unwrap().size, 20 << 20);
        nothing_unfinished(&objects).await;
        // The parts of an upload are counted together.
        let id = objects.begin_parts().await.unwrap();
        objects.put_part(&id, 1, pieces(15)).await.unwrap();
        objects.put_part(&id, 2, pieces(15)).await.unwrap();
        assert!(matches!(objects.complete_parts(&id, vec![1, 2], "joined").await, Err(StoreError::TooLarge { .. })));
        assert!(matches!(objects.get("joined").await, Err(StoreError::NotFound(_))));
        objects.abort_parts(&id).await.unwrap();
        nothing_unfinished(&objects).await;
    })
    .await;
}

#[tokio::test]
async fn parts_have_limits() {
    within(Limits { max_part_bytes: 5, max_open_uploads: 2, ..Limits::default() }, |objects| async move {
        let id = objects.begin_parts().await.unwrap();
        for number in [0, 10_001, u32::MAX] {
            let refused = objects.put_part(&id, number, chunks(&["x"])).await;
            assert!(matches!(refused, Err(StoreError::BadPart { .. })), "{number}: {refused:?}");
        }
        objects.put_part(&id, 10_000, chunks(&["12345"])).await.unwrap();
        let refused = objects.put_part(&id, 1, chunks(&["123", "456"])).await;
        assert!(matches!(refused, Err(StoreError::TooLarge { limit: 5, .. })), "{refused:?}");
        let twice = objects.complete_parts(&id, vec![10_000, 10_000], "x").await;
        assert!(matches!(twice, Err(StoreError::BadPart { number: 10_000, .. })));
        let second = objects.begin_parts().await.unwrap();
        assert!(matches!(objects.begin_parts().await, Err(StoreError::TooManyUploads { limit: 2 })));
        objects.abort_parts(&second).await.unwrap();
        objects.begin_parts().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn abandoned_uploads_are_collected() {
    everywhere(|objects| async move {
        let id = objects.begin_parts().await.unwrap();
        objects.put_part(&id, 1, chunks(&["hello"])).await.unwrap();
        objects.put("kept", chunks(&["kept"])).await.unwrap();
        assert_eq!(objects.collect_abandoned(Duration::from_secs(3600)).await.unwrap(), 0);
        objects.put_part(&id, 2, chunks(&["world"])).await.unwrap();
        assert_eq!(objects.collect_abandoned(Duration::ZERO).await.unwrap(), 1);
        assert!(matches!(objects.put_part(&id, 3, chunks(&["x"])).await, Err(StoreError::NotFound(_))));
        assert!(matches!(objects.complete_parts(&id, vec![1, 2], "x").await, Err(StoreError::NotFound(_))));
        assert_eq!(objects.get("kept").await.unwrap().size, 4);
        assert_eq!(objects.collect_abandoned(Duration::ZERO).await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn the_last_write_tells_whether_an_upload_is_abandoned() {
    let dir = testing::folder("objects");
    let objects = Objects::open(&dir).unwrap();
    let (active, abandoned) = (objects.begin_parts().await.unwrap(), objects.begin_parts().await.unwrap());
    for id in [&active, &abandoned] {
        objects.put_part(id, 1, chunks(&["x"])).await.unwrap();
    }
    // All of it two days old, but for one part of one of them.
    let (day, partial) = (Duration::from_secs(24 * 3600), dir.join(PARTIAL));
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
    objects.complete_parts(&active, vec![1], "whole").await.unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing() {
    everywhere(|objects| async move {
        let id = objects.begin_parts().await.unwrap();
        for part in [false, true] {
            // More than a bucket takes at once, then nothing for ever: the future is dropped, as a server does with the request of
            // a client that is gone.
            let (all_taken, mut is_taken) = tokio::sync::oneshot::channel();
            let mut all_taken = Some(all_taken);
            let begun = futures_util::stream::iter((0..24).map(|_| Ok::<_, String>(Bytes::from(vec![7; 1 << 20]))));
            let endless = begun.chain(futures_util::stream::poll_fn(move |_| {
                all_taken.take().map(|taken| taken.send(()));
                std::task::Poll::Pending
            }));
            let putting =
                async { if part { objects.put_part(&id, 1, endless).await } else { objects.put("x", endless).await } };
            tokio::select! {
                done = putting => panic!("it cannot end: {done:?}"),
                taken = &mut is_taken => taken.unwrap(),
            }
        }
        assert!(matches!(objects.get("x").await, Err(StoreError::NotFound(_))));
        assert!(matches!(objects.complete_parts(&id, vec![1], "x").await, Err(StoreError::NotFound(_))));
        objects.abort_parts(&id).await.unwrap();
        nothing_unfinished(&objects).await;
    })
    .await;
}

#[tokio::test]
async fn a_nearly_full_disk_takes_no_uploads() {
    let dir = testing::folder("objects");
    let before = Objects::open(&dir).unwrap();
    let id = before.begin_parts().await.unwrap();
    before.put_part(&id, 1, chunks(&["x"])).await.unwrap();
    before.put("kept", chunks(&["kept"])).await.unwrap();
    let objects = Objects::open_with(&dir, Limits { min_free_bytes: u64::MAX, ..Limits::default() }).unwrap();
    let full = |done: Result<u64, StoreError>| matches!(done, Err(StoreError::OutOfSpace { .. }));
    assert!(full(objects.put("x", chunks(&["x"])).await));
    assert!(full(objects.put("kept", chunks(&["x"])).await));
    assert!(full(objects.put_part(&id, 2, chunks(&["x"])).await));
    assert!(full(objects.begin_parts().await.map(|_| 0)));
    assert!(full(objects.complete_parts(&id, vec![1], "x").await.map(|()| 0)));
    // What is there can be read and removed.
    assert_eq!(objects.get("kept").await.unwrap().bytes().await.unwrap(), b"kept");
    objects.delete("kept").await.unwrap();
    objects.abort_parts(&id).await.unwrap();
    nothing_unfinished(&objects).await;
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn a_disk_that_becomes_full_refuses_and_goes_on_when_there_is_space_again() {
    let Some(disk) = testing::SmallDisk::mount(4 << 20) else { return };
    let objects = Objects::open_with(disk.0.join("files"), Limits { min_free_bytes: 0, ..Limits::default() }).unwrap();
    let pieces = |n: usize| futures_util::stream::iter((0..n).map(|_| Ok::<_, String>(Bytes::from(vec![7; 1 << 20]))));
    let full = objects.put("large", pieces(5)).await;
    assert!(matches!(full, Err(StoreError::OutOfSpace { .. })), "{full:?}");
    nothing_unfinished(&objects).await;
    let id = objects.begin_parts().await.unwrap();
    objects.put_part(&id, 1, pieces(2)).await.unwrap();
    assert!(matches!(objects.put_part(&id, 2, pieces(3)).await, Err(StoreError::OutOfSpace { .. })));
    // Joined it would be there twice for a moment.
    objects.put("more", pieces(1)).await.unwrap();
    assert!(matches!(objects.complete_parts(&id, vec![1], "joined").await, Err(StoreError::OutOfSpace { .. })));
    objects.delete("more").await.unwrap();
    objects.put("small", chunks(&["x"])).await.unwrap();
    objects.delete("small").await.unwrap();
    let one = objects.begin_parts().await.unwrap();
    objects.put_part(&one, 1, chunks(&["x"])).await.unwrap();
    objects.complete_parts(&one, vec![1], "joined").await.unwrap();
    assert_eq!(objects.get("joined").await.unwrap().size, 1);
}
