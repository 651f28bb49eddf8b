//! Tests that both SQLite and PostgreSQL must pass.

mod readers;

use std::sync::mpsc;

use futures_util::FutureExt;
use rusqlite::StatementStatus;

use super::*;
use crate::testing;

const TABLES: Migration = Migration {
    domain: "test",
    steps: &[
        "CREATE TABLE t (k TEXT PRIMARY KEY, v INTEGER, r REAL, b BLOB)",
        "CREATE TABLE n (id INTEGER PRIMARY KEY, v TEXT)",
    ],
};

/// A database that belongs to one test, which may open it several times.
#[derive(Clone)]
enum TestBackend {
    File(std::path::PathBuf),
    Server(String),
}

impl TestBackend {
    fn open(&self, migrations: &[Migration]) -> Result<Database, StoreError> {
        self.open_with(migrations, DatabaseOptions::default())
    }

    fn open_with(&self, migrations: &[Migration], options: DatabaseOptions) -> Result<Database, StoreError> {
        match self {
            Self::File(dir) => Database::open_with(&dir.join("t.db"), migrations, options),
            Self::Server(url) => Database::connect_with(url, migrations, options),
        }
    }

    /// The place of the database, for connections outside of the pool and the writer.
    fn place(&self) -> Place {
        match self {
            Self::File(dir) => Place::File(dir.join("t.db")),
            Self::Server(url) => Place::Server(Box::new(postgres::Server::from_url(url).unwrap())),
        }
    }

    fn is_server(&self) -> bool {
        matches!(self, Self::Server(_))
    }
}

/// Runs `test` on SQLite, and also on PostgreSQL if `SLIPWAY_TEST_DATABASE` is set (`testkit/services.py`), in a database that belongs
/// to the test: the writer's advisory lock belongs to a database, so tests that share one would wait for each other's writers.
async fn on_every_backend<F: Future<Output = ()>>(test: impl Fn(TestBackend) -> F) {
    let dir = testing::temp_folder("database");
    test(TestBackend::File(dir.clone())).await;
    std::fs::remove_dir_all(dir).unwrap();
    if let Some(url) = testing::service("SLIPWAY_TEST_DATABASE") {
        let name = format!("t{}", slipway_core::ids::hex32());
        let admin = Place::Server(Box::new(postgres::Server::from_url(&url).unwrap()));
        let session = admin.writer().unwrap();
        session.batch(&format!("CREATE DATABASE {name}")).unwrap();
        let (server, _) = url.rsplit_once('/').unwrap();
        test(TestBackend::Server(format!("{server}/{name}"))).await;
        session.batch(&format!("DROP DATABASE {name} WITH (FORCE)")).unwrap();
    }
}

#[test]
fn cached_statements_are_planned_once() {
    let dir = testing::temp_folder("plans");
    Database::open(&dir.join("t.db"), &[TABLES]).unwrap().close();
    let reader = Place::File(dir.join("t.db")).reader().unwrap();
    let sql::Kind::Sqlite(connection) = &reader.0 else { unreachable!("the database is a file") };
    let query = "SELECT k FROM t WHERE v = ?1";
    // SQLite plans differently for 0 and 1, if it may.
    for value in [0, 1, 2, 0] {
        assert!(reader.first(query, params![value], |r| r.get::<String>(0)).unwrap().is_none());
    }
    assert_eq!(connection.prepare_cached(query).unwrap().get_status(StatementStatus::RePrepare), 0);
    std::fs::remove_dir_all(dir).unwrap();
}

/// Blocks the writer until it is dropped, so that the changes queued meanwhile form one group.
struct HeldWriter {
    _release: mpsc::Sender<()>,
}

impl HeldWriter {
    async fn hold(db: &Database) -> Self {
        let (release, held) = mpsc::channel::<()>();
        let (entered, is_held) = oneshot::channel();
        let db = db.clone();
        tokio::spawn(async move {
            db.write(move |_| {
                entered.send(()).unwrap();
                let _ = held.recv(); // returns an error when `HeldWriter` is dropped, which is what this waits for
                Ok::<_, StoreError>(())
            })
            .await
        });
        is_held.await.unwrap();
        Self { _release: release }
    }
}

/// Queues a change while the writer is held; the returned future resolves after the commit.
fn queued<T: Send + 'static>(
    db: &Database,
    change: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
) -> std::pin::Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>> {
    let db = db.clone();
    let mut result = Box::pin(async move { db.write(change).await });
    assert!((&mut result).now_or_never().is_none(), "the writer is held, so no change can complete yet");
    result
}

fn put(c: &Connection, k: &str, v: i64) -> Result<(), StoreError> {
    c.execute("INSERT INTO t (k, v) VALUES (?1, ?2)", params![k, v])?;
    Ok(())
}

fn count(db: &Database) -> i64 {
    db.read_now(|c| c.first("SELECT count(*) FROM t", params![], |r| r.get(0))).unwrap().unwrap_or(-1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_change_rolls_back_only_itself() {
    on_every_backend(|backend| async move {
        let db = backend.open(&[TABLES]).unwrap();
        let mut tasks = Vec::new();
        for i in 0..50 {
            let db = db.clone();
            tasks.push(tokio::spawn(async move {
                db.write(move |c| {
                    put(c, &format!("k{i}"), i)?;
                    if i % 5 == 0 { Err(StoreError::NotFound("on purpose".into())) } else { Ok(()) }
                })
                .await
            }));
        }
        let mut failed = 0;
        for task in tasks {
            failed += i32::from(task.await.unwrap().is_err());
        }
        assert_eq!((failed, count(&db)), (10, 40));
        // Nor does a statement that the database rejects affect other changes.
        let rejected = db.write(|c| put(c, "k1", 1)).await.unwrap_err();
        assert!(rejected.is_duplicate(), "{rejected}");
        db.write(|c| put(c, "more", 1)).await.unwrap();
        assert_eq!(count(&db), 41);
        assert_eq!(db.integrity().unwrap(), "ok");
        db.close();
    })
    .await;
}

/// The first change of a group has no savepoint, so its failure rolls back the transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_change_of_a_group_fails_without_a_trace_and_without_the_others() {
    on_every_backend(|backend| async move {
        let db = backend.open(&[TABLES]).unwrap();
        for panics in [false, true] {
            let held = HeldWriter::hold(&db).await;
            let failing = queued(&db, move |c| {
                put(c, "lost", 1)?;
                assert!(!panics, "on purpose");
                Err::<(), _>(StoreError::NotFound("on purpose".into()))
            });
            let kept = queued(&db, move |c| put(c, &format!("kept-{panics}"), 1));
            drop(held);
            assert!(failing.await.is_err());
            kept.await.unwrap();
            // Nothing else is queued, so this change is the first of its group.
            let alone = db.write(move |c| {
                put(c, "lost", 1)?;
                assert!(!panics, "on purpose");
                Err::<(), _>(StoreError::NotFound("on purpose".into()))
            });
            let error = alone.await.unwrap_err();
            let expected = if panics {
                matches!(error, StoreError::Panicked(_))
            } else {
                matches!(error, StoreError::NotFound(_))
            };
            assert!(expected, "{error}");
        }
        assert_eq!(count(&db), 2);
        assert_eq!(db.integrity().unwrap(), "ok");
        db.close();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_round_trip() {
    on_every_backend(|backend| async move {
        let db = backend.open(&[TABLES]).unwrap();
        let numbers = db
            .write(|c| {
                let sql = "INSERT INTO t VALUES (?1, ?2, ?3, ?4)";
                c.execute(sql, params!["é'\\?", i64::MIN, 0.1, [0_u8, 255].as_slice()])?;
                c.execute(sql, params!["Z", Option::<i64>::None, f64::MAX, Option::<Vec<u8>>::None])?;
                c.execute(sql, params!["a", true, -0.0, b"".as_slice()])?;
                c.execute_each("INSERT INTO n (v) VALUES (?1)", (0..600).map(|i| [format!("v{i}")]))?;
                let next = "INSERT INTO n (v) VALUES (?1) RETURNING id";
                Ok::<_, StoreError>((
                    c.first(next, ["x"], |r| r.get::<i64>(0))?,
                    c.first(next, ["y"], |r| r.get::<i64>(0))?,
                ))
            })
            .await
            .unwrap();
        assert_eq!(numbers, (Some(601), Some(602)));
        let all = db
            .read_now(|c| {
                c.rows("SELECT k, v, r, b FROM t WHERE k <> ? ORDER BY k", ["?"], |r| {
                    Ok((r.get::<String>(0)?, r.get::<Option<i64>>(1)?, r.get::<f64>(2)?, r.get::<Option<Vec<u8>>>(3)?))
                })
            })
            .unwrap();
        // Sorted by bytes, independent of the server's locale.
        assert_eq!(
            all,
            [
                ("Z".into(), None, f64::MAX, None),
                ("a".into(), Some(1), 0.0, Some(vec![])),
                ("é'\\?".into(), Some(i64::MIN), 0.1, Some(vec![0, 255])),
            ]
        );
        let type_mismatch = db.read_now(|c| c.first("SELECT k FROM t", params![], |r| r.get::<i64>(0)));
        assert!(type_mismatch.is_err());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_database_rejects_writes_and_keeps_its_data() {
    on_every_backend(|backend| async move {
        let db = backend.open(&[TABLES]).unwrap();
        db.write(|c| put(c, "a", 1)).await.unwrap();
        db.close();
        assert!(matches!(db.write(|c| put(c, "b", 2)).await, Err(StoreError::Closed)));
        assert_eq!(count(&backend.open(&[TABLES]).unwrap()), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_schema_version_is_rejected() {
    on_every_backend(|backend| async move {
        backend.open(&[TABLES]).unwrap().close();
        let older = Migration { domain: "test", steps: &TABLES.steps[..1] };
        assert!(matches!(backend.open(&[older]), Err(StoreError::Newer { found: 2, known: 1, .. })));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_servers_that_share_a_database_are_serialised() {
    on_every_backend(|backend| async move {
        let TestBackend::Server(_) = backend else { return };
        // All servers start at once on an empty database: exactly one of them creates the tables.
        let opened: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn({
                    let backend = backend.clone();
                    move || backend.open(&[TABLES])
                })
            })
            .collect();
        let servers: Vec<_> = opened.into_iter().map(|t| t.join().unwrap().unwrap()).collect();
        servers[0].write(|c| put(c, "n", 0)).await.unwrap();
        let mut tasks = Vec::new();
        for db in &servers {
            let db = db.clone();
            tasks.push(tokio::spawn(async move {
                for _ in 0..100 {
                    // Read-modify-write: without serialised transactions some updates would be lost.
                    db.write(|c| {
                        let n: i64 = c.first("SELECT v FROM t WHERE k = 'n'", params![], |r| r.get(0))?.unwrap_or(0);
                        c.execute("UPDATE t SET v = ?1 WHERE k = 'n'", [n + 1])
                    })
                    .await
                    .unwrap();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let n = servers[3].read_now(|c| c.first("SELECT v FROM t WHERE k = 'n'", params![], |r| r.get::<i64>(0)));
        assert_eq!(n.unwrap(), Some(400));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panicking_change_rolls_back_only_itself_and_the_writer_survives() {
    on_every_backend(|backend| async move {
        let db = backend.open(&[TABLES]).unwrap();
        let held = HeldWriter::hold(&db).await;
        let before = queued(&db, |c| put(c, "before", 1));
        let broken = queued(&db, |c| -> Result<(), StoreError> {
            put(c, "broken", 1)?;
            panic!("on purpose")
        });
        let early = queued(&db, |_| -> Result<(), StoreError> { panic!("on purpose, before any statement") });
        let after = queued(&db, |c| put(c, "after", 1));
        drop(held);
        before.await.unwrap();
        assert!(matches!(broken.await, Err(StoreError::Panicked(_))));
        assert!(matches!(early.await, Err(StoreError::Panicked(_))));
        after.await.unwrap();
        db.ping_writer(Duration::from_secs(60)).await.unwrap();
        assert_eq!(count(&db), 2);
        assert_eq!(db.integrity().unwrap(), "ok");
    })
    .await;
}

/// A value whose `drop` panics. The writer must survive whatever the result type of a change does.
struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("on purpose, in drop");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_survives_results_and_panic_payloads_that_panic_on_drop() {
    on_every_backend(|backend| async move {
        let db = backend.open(&[TABLES]).unwrap();
        let held = HeldWriter::hold(&db).await;
        let abandoned = queued(&db, |_| Ok(PanicsWhenDropped));
        let payload = queued(&db, |_| -> Result<(), StoreError> { std::panic::panic_any(PanicsWhenDropped) });
        let after = queued(&db, |c| put(c, "after", 1));
        // No caller is left to receive the result, so the writer drops it.
        drop(abandoned);
        drop(held);
        assert!(matches!(payload.await, Err(StoreError::Panicked(_))));
        after.await.unwrap();
        db.ping_writer(Duration::from_secs(60)).await.unwrap();
        assert_eq!(count(&db), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statement_that_cannot_be_prepared_rolls_back_only_its_change() {
    on_every_backend(|backend| async move {
        let db = backend.open(&[TABLES]).unwrap();
        let held = HeldWriter::hold(&db).await;
        let before = queued(&db, |c| put(c, "before", 1));
        let broken = queued(&db, |c| c.execute("INSERT INTO no_such_table VALUES (1)", params![]));
        let after = queued(&db, |c| put(c, "after", 1));
        drop(held);
        // Acknowledged changes must be stored. PostgreSQL reports success for the COMMIT of an aborted transaction, but rolls it back.
        before.await.unwrap();
        assert!(broken.await.is_err());
        after.await.unwrap();
        assert_eq!(count(&db), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_that_ignores_a_failed_statement_is_acknowledged_only_if_its_other_statements_are_kept() {
    on_every_backend(|backend| async move {
        let db = backend.open(&[TABLES]).unwrap();
        db.write(|c| put(c, "taken", 1)).await.unwrap();
        let held = HeldWriter::hold(&db).await;
        let careless = queued(&db, |c| {
            put(c, "first", 1)?;
            assert!(put(c, "taken", 1).is_err());
            Ok(())
        });
        let after = queued(&db, |c| put(c, "after", 1));
        drop(held);
        let acknowledged = careless.await.is_ok();
        after.await.unwrap();
        assert_eq!(acknowledged, !backend.is_server());
        assert_eq!(count(&db), 2 + i64::from(acknowledged));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_commit_is_returned_to_the_whole_group_and_the_writer_survives() {
    on_every_backend(|backend| async move {
        // A deferred constraint, which is checked at the commit.
        let checked = Migration {
            domain: "test",
            steps: &[
                "CREATE TABLE t (k TEXT PRIMARY KEY, v INTEGER)",
                "CREATE TABLE child (k TEXT REFERENCES t (k) DEFERRABLE INITIALLY DEFERRED)",
            ],
        };
        let db = backend.open(&[checked]).unwrap();
        let held = HeldWriter::hold(&db).await;
        let before = queued(&db, |c| put(c, "before", 1));
        let orphan = queued(&db, |c| c.execute("INSERT INTO child VALUES ('nobody')", params![]));
        let failing = queued(&db, |_| -> Result<(), StoreError> { Err(StoreError::NotFound("its own".into())) });
        drop(held);
        assert!(matches!(before.await, Err(StoreError::Commit(_))));
        assert!(matches!(orphan.await, Err(StoreError::Commit(_))));
        assert!(matches!(failing.await, Err(StoreError::NotFound(_))), "a change that failed keeps its own error");
        db.write(|c| put(c, "after", 1)).await.unwrap();
        assert_eq!(count(&db), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_recovers_when_waiting_for_the_write_lock_is_cancelled() {
    on_every_backend(|backend| async move {
        let db = backend.open(&[TABLES]).unwrap();
        let TestBackend::Server(_) = backend else { return };
        let place = backend.place();
        let (other, admin) = (place.writer().unwrap(), place.writer().unwrap());
        // Another server holds the write lock, and PostgreSQL cancels this server's wait for it.
        other.begin_write().unwrap();
        let waiting = tokio::spawn({
            let db = db.clone();
            async move { db.write(|c| put(c, "cancelled", 1)).await }
        });
        let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_locks
                      WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        while !waiting.is_finished() {
            admin.first(cancel, params![], |r| r.get::<i64>(0)).unwrap();
        }
        assert!(waiting.await.unwrap().is_err());
        other.batch("ROLLBACK").unwrap();
        db.write(|c| put(c, "after", 1)).await.unwrap();
        assert_eq!(count(&db), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_fails_when_the_writer_is_blocked_or_closed() {
    on_every_backend(|backend| async move {
        let db = backend.open(&[TABLES]).unwrap();
        db.ping_writer(Duration::from_secs(60)).await.unwrap();
        let held = HeldWriter::hold(&db).await;
        assert!(matches!(db.ping_writer(Duration::from_millis(1)).await, Err(StoreError::Busy { .. })));
        drop(held);
        db.ping_writer(Duration::from_secs(60)).await.unwrap();
        db.close();
        assert!(matches!(db.ping_writer(Duration::from_secs(60)).await, Err(StoreError::Closed)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_database_rejects_writes_until_there_is_space_again() {
    let dir = testing::temp_folder("full");
    let db = Database::open(&dir.join("t.db"), &[TABLES]).unwrap();
    let pages: i64 = db.write(|c| c.first("PRAGMA page_count", params![], |r| r.get(0))).await.unwrap().unwrap();
    let limit = move |pages: i64| {
        move |c: &Connection| c.first(&format!("PRAGMA max_page_count={pages}"), params![], |r| r.get::<i64>(0))
    };
    db.write(limit(pages + 8)).await.unwrap();
    let acknowledged = fill(&db).await;
    assert!(acknowledged > 0);
    db.write(limit(1 << 30)).await.unwrap();
    db.write(|c| put(c, "after", 1)).await.unwrap();
    assert_eq!(count(&db), acknowledged + 1);
    assert_eq!(db.integrity().unwrap(), "ok");
    drop(db);
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_rejects_writes_until_there_is_space_again() {
    let Some(disk) = testing::SmallDisk::mount(2 << 20) else { return };
    let db = Database::open(&disk.0.join("t.db"), &[TABLES]).unwrap();
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let acknowledged = fill(&db).await;
    assert!(acknowledged > 0);
    db.ping_writer(Duration::from_secs(60)).await.unwrap();
    std::fs::remove_file(ballast).unwrap();
    db.write(|c| put(c, "after", 1)).await.unwrap();
    assert_eq!(count(&db), acknowledged + 1);
    assert_eq!(db.integrity().unwrap(), "ok");
    db.close();
}

/// Writes rows of 8 KiB until the database is full; returns the number of acknowledged rows.
async fn fill(db: &Database) -> i64 {
    for n in 0..10_000 {
        let row = move |c: &Connection| {
            c.execute("INSERT INTO t (k, b) VALUES (?1, ?2)", params![format!("fill{n}"), vec![7_u8; 8192]])
        };
        match db.write(row).await {
            Ok(_) => {}
            Err(StoreError::OutOfSpace { .. }) => return n,
            Err(other) => panic!("expected OutOfSpace for a full database, got: {other}"),
        }
    }
    panic!("the database never became full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_migration_is_rejected() {
    on_every_backend(|backend| async move {
        backend.open(&[TABLES]).unwrap().close();
        const CHANGED: Migration =
            Migration { domain: "test", steps: &[TABLES.steps[0], "CREATE TABLE n (id INTEGER PRIMARY KEY, v REAL)"] };
        let rejected = backend.open(&[CHANGED]);
        assert!(matches!(rejected, Err(StoreError::MigrationChanged { domain: "test", version: 2 })));
        // The same script with other line endings is accepted, and a script that follows it is applied.
        const FIRST: Migration = Migration { domain: "lines", steps: &["CREATE TABLE a (k TEXT,\n v TEXT)"] };
        const SECOND: Migration =
            Migration { domain: "lines", steps: &["CREATE TABLE a (k TEXT,\r\n v TEXT)", "CREATE TABLE b (k TEXT)"] };
        backend.open(&[FIRST]).unwrap().close();
        backend.open(&[SECOND]).unwrap().close();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_checksums_are_added() {
    on_every_backend(|backend| async move {
        backend.open(&[TABLES]).unwrap().close();
        let place = backend.place();
        let session = place.writer().unwrap();
        session.batch("DROP TABLE schema_checksum").unwrap();
        backend.open(&[TABLES]).unwrap().close();
        let recorded = session.first("SELECT count(*) FROM schema_checksum", params![], |r| r.get::<i64>(0));
        assert_eq!(recorded.unwrap(), Some(2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_may_own_the_last_handle_of_its_database() {
    /// Fields are dropped in this order: when the sender is dropped, the database already is.
    struct Owner {
        _db: Database,
        _dropped: mpsc::Sender<()>,
    }
    on_every_backend(|backend| async move {
        let db = backend.open(&[TABLES]).unwrap();
        let (dropped, is_dropped) = mpsc::channel();
        let owner = Owner { _db: db.clone(), _dropped: dropped };
        let held = HeldWriter::hold(&db).await;
        let result = queued(&db, move |c| {
            let _owner = owner;
            put(c, "a", 1)
        });
        drop((result, db));
        drop(held);
        let received = tokio::task::spawn_blocking(move || is_dropped.recv());
        assert!(received.await.unwrap().is_err(), "the sender was not dropped");
        assert_eq!(count(&backend.open(&[TABLES]).unwrap()), 1);
    })
    .await;
}
