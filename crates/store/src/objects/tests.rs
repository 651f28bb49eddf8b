//! What every store has to do.

use super::*;

fn chunks(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, String>> + Unpin + use<> {
    let parts: Vec<_> = parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect();
    futures_util::stream::iter(parts)
}

/// What every store has to do. Files always; S3 where `SLIPWAY_TEST_OBJECTS` names one (`testkit/services.py`).
async fn everywhere<F: Future<Output = ()>>(test: impl Fn(Objects) -> F) {
    let dir = std::env::temp_dir().join(format!("slipway-objects-{}", slipway_core::ids::hex32()));
    test(Objects::open(dir.join("files")).unwrap()).await;
    if let Ok(url) = std::env::var("SLIPWAY_TEST_OBJECTS") {
        let place = format!("{url}/{}", slipway_core::ids::hex32());
        test(Objects::connect(&place, dir.join("copies")).unwrap()).await;
    }
    std::fs::remove_dir_all(dir).unwrap();
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
