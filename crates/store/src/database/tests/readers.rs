//! Tests of the pool of read connections: its limit, its timeout, and panicking queries.

use super::*;

/// Starts a query that holds a connection until the returned sender is dropped.
async fn held_reader(db: &Database) -> mpsc::Sender<()> {
    let (release, held) = mpsc::channel::<()>();
    let (entered, is_held) = oneshot::channel();
    let db = db.clone();
    tokio::spawn(async move {
        db.read(move |c| {
            c.first("SELECT 1", params![], |_| Ok(()))?;
            entered.send(()).unwrap();
            let _ = held.recv(); // returns an error when the sender is dropped, which is what this waits for
            Ok::<_, StoreError>(())
        })
        .await
    });
    is_held.await.unwrap();
    release
}

/// Waits until the statistics of the pool are `expected`.
async fn wait_for_pool(db: &Database, expected: PoolStats) {
    let reached = async {
        while db.pool_stats() != expected {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.expect("the pool never reached the expected state");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_connections_are_bounded_and_waiting_times_out() {
    on_every_backend(|backend| async move {
        let options = DatabaseOptions { max_readers: 2, reader_timeout: Duration::from_millis(50) };
        let db = backend.open_with(&[TABLES], options).unwrap();
        let held = (held_reader(&db).await, held_reader(&db).await);
        assert_eq!(db.pool_stats(), PoolStats { max: 2, open: 2, idle: 0, waiting: 0 });
        let mut third = Box::pin(db.read(|c| c.first("SELECT 1", params![], |_| Ok(()))));
        assert!((&mut third).now_or_never().is_none());
        assert_eq!(db.pool_stats().waiting, 1);
        assert!(matches!(third.await, Err(StoreError::Busy { .. })));
        let blocking = db.read_now(|c| c.first("SELECT 1", params![], |_| Ok(())));
        assert!(matches!(blocking, Err(StoreError::Busy { .. })));
        // A write needs no read connection.
        db.write(|c| put(c, "a", 1)).await.unwrap();
        drop(held);
        wait_for_pool(&db, PoolStats { max: 2, open: 2, idle: 2, waiting: 0 }).await;
        assert_eq!(count(&db), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn released_connection_goes_to_waiting_queries() {
    on_every_backend(|backend| async move {
        let options = DatabaseOptions { max_readers: 1, reader_timeout: Duration::from_secs(600) };
        let db = backend.open_with(&[TABLES], options).unwrap();
        let held = held_reader(&db).await;
        let mut waiting = Vec::new();
        for _ in 0..4 {
            let mut reader = Box::pin(db.read(|c| c.first("SELECT 1", params![], |r| r.get::<i64>(0))));
            assert!((&mut reader).now_or_never().is_none());
            waiting.push(reader);
        }
        // A thread outside of the runtime waits, too.
        let thread = std::thread::spawn({
            let db = db.clone();
            move || db.read_now(|c| c.first("SELECT 1", params![], |r| r.get::<i64>(0)))
        });
        wait_for_pool(&db, PoolStats { max: 1, open: 1, idle: 0, waiting: 5 }).await;
        drop(held);
        for reader in waiting {
            assert!(reader.await.unwrap().is_some());
        }
        assert!(tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap().unwrap().is_some());
        wait_for_pool(&db, PoolStats { max: 1, open: 1, idle: 1, waiting: 0 }).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_queries_open_at_most_max_readers_connections() {
    on_every_backend(|backend| async move {
        let TestBackend::Server(url) = backend else { return };
        let db = Database::connect(&format!("{url}?max_readers=3"), &[TABLES]).unwrap();
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
async fn panicking_query_returns_an_error_and_its_connection() {
    on_every_backend(|backend| async move {
        let options = DatabaseOptions { max_readers: 1, reader_timeout: Duration::from_secs(60) };
        let db = backend.open_with(&[TABLES], options).unwrap();
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
