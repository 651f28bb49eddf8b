//! How many queries run at the same time, and what ends them.

use super::*;

/// A query that holds a connection until the sender is dropped.
async fn held_reader(db: &Database) -> mpsc::Sender<()> {
    let (release, held) = mpsc::channel::<()>();
    let (entered, is_held) = oneshot::channel();
    let db = db.clone();
    tokio::spawn(async move {
        db.read(move |c| {
            c.first("SELECT 1", params![], |_| Ok(()))?;
            entered.send(()).unwrap();
            let _ = held.recv(); // ends with an error when the other side is dropped, which is what is waited for
            Ok::<_, StoreError>(())
        })
        .await
    });
    is_held.await.unwrap();
    release
}

/// Waits until the pool is as it should be.
async fn pool_becomes(db: &Database, expected: PoolStats) {
    let became = async {
        while db.pool_stats() != expected {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), became).await.expect("the pool stays otherwise");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_are_bounded_and_waiting_has_an_end() {
    everywhere(|own| async move {
        let options = DatabaseOptions { max_readers: 2, reader_wait: Duration::from_millis(50) };
        let db = own.open_with(&[TABLES], options).unwrap();
        let held = (held_reader(&db).await, held_reader(&db).await);
        assert_eq!(db.pool_stats(), PoolStats { max: 2, open: 2, idle: 0, waiting: 0 });
        let mut third = Box::pin(db.read(|c| c.first("SELECT 1", params![], |_| Ok(()))));
        assert!((&mut third).now_or_never().is_none());
        assert_eq!(db.pool_stats().waiting, 1);
        assert!(matches!(third.await, Err(StoreError::Busy { .. })));
        let at_once = db.read_now(|c| c.first("SELECT 1", params![], |_| Ok(())));
        assert!(matches!(at_once, Err(StoreError::Busy { .. })));
        // Writing needs none of them.
        db.write(|c| put(c, "a", 1)).await.unwrap();
        drop(held);
        pool_becomes(&db, PoolStats { max: 2, open: 2, idle: 2, waiting: 0 }).await;
        assert_eq!(count(&db), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_becomes_free_goes_to_those_who_wait() {
    everywhere(|own| async move {
        let options = DatabaseOptions { max_readers: 1, reader_wait: Duration::from_secs(600) };
        let db = own.open_with(&[TABLES], options).unwrap();
        let held = held_reader(&db).await;
        let mut waiting = Vec::new();
        for _ in 0..4 {
            let mut reader = Box::pin(db.read(|c| c.first("SELECT 1", params![], |r| r.get::<i64>(0))));
            assert!((&mut reader).now_or_never().is_none());
            waiting.push(reader);
        }
        // A thread without a runtime waits as well.
        let thread = std::thread::spawn({
            let db = db.clone();
            move || db.read_now(|c| c.first("SELECT 1", params![], |r| r.get::<i64>(0)))
        });
        pool_becomes(&db, PoolStats { max: 1, open: 1, idle: 0, waiting: 5 }).await;
        drop(held);
        for reader in waiting {
            assert!(reader.await.unwrap().is_some());
        }
        assert!(tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap().unwrap().is_some());
        pool_becomes(&db, PoolStats { max: 1, open: 1, idle: 1, waiting: 0 }).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_queries_opens_no_more_connections_than_allowed() {
    everywhere(|own| async move {
        let Own::Server(url) = own else { return };
        let db = Database::connect(&format!("{url}&max_readers=3"), &[TABLES]).unwrap();
        let reads = (0..60).map(|_| {
            let db = db.clone();
            tokio::spawn(async move {
                db.read(|c| c.first("SELECT pg_backend_pid(), pg_sleep(0.005)", params![], |r| r.get::<i64>(0))).await
            })
        });
        let mut backends = std::collections::HashSet::new();
        for read in reads.collect::<Vec<_>>() {
            backends.insert(read.await.unwrap().unwrap());
        }
        assert!((1..=3).contains(&backends.len()), "{} connections", backends.len());
        assert_eq!(db.pool_stats().max, 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panicking_query_is_an_error_and_gives_its_connection_back() {
    everywhere(|own| async move {
        let options = DatabaseOptions { max_readers: 1, reader_wait: Duration::from_secs(60) };
        let db = own.open_with(&[TABLES], options).unwrap();
        for _ in 0..3 {
            let broken = db.read(|c| -> Result<(), StoreError> {
                c.first("SELECT 1", params![], |_| -> crate::error::Result<()> { panic!("on purpose") })?;
                Ok(())
            });
            assert!(matches!(broken.await, Err(StoreError::Panicked(_))));
            let broken = db.read_now(|_| -> Result<(), StoreError> { panic!("on purpose") });
            assert!(matches!(broken, Err(StoreError::Panicked(_))));
            assert_eq!(count(&db), 0);
        }
        assert_eq!(db.pool_stats(), PoolStats { max: 1, open: 1, idle: 1, waiting: 0 });
    })
    .await;
}
