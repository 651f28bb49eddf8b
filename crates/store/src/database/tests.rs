//! What both databases have to do.

mod readers;

use std::sync::mpsc;

use futures_util::FutureExt;

use super::*;
use crate::testing;

const TABLES: Migration = Migration {
    domain: "test",
    steps: &[
        "CREATE TABLE t (k TEXT PRIMARY KEY, v INTEGER, r REAL, b BLOB)",
        "CREATE TABLE n (id INTEGER PRIMARY KEY, v TEXT)",
    ],
};

/// A database of a test's own, opened as often as it likes.
#[derive(Clone)]
enum Own {
    File(std::path::PathBuf),
    Server(String),
}

impl Own {
    fn open(&self, migrations: &[Migration]) -> Result<Database, StoreError> {
        self.open_with(migrations, DatabaseOptions::default())
    }

    fn open_with(&self, migrations: &[Migration], options: DatabaseOptions) -> Result<Database, StoreError> {
        match self {
            Self::File(dir) => Database::open_with(&dir.join("t.db"), migrations, options),
            Self::Server(url) => Database::connect_with(url, migrations, options),
        }
    }

    /// The place itself, for connections past the pool and the writer.
    fn place(&self) -> Place {
        match self {
            Self::File(dir) => Place::File(dir.join("t.db")),
            Self::Server(url) => Place::Server(Box::new(postgres::Server::of_url(url).unwrap())),
        }
    }

    fn is_server(&self) -> bool {
        matches!(self, Self::Server(_))
    }
}

/// What every database has to do. SQLite always; PostgreSQL where `SLIPWAY_TEST_DATABASE` names one (`testkit/services.py`),
/// in a schema of its own.
async fn everywhere<F: Future<Output = ()>>(test: impl Fn(Own) -> F) {
    let dir = testing::folder("database");
    test(Own::File(dir.clone())).await;
    std::fs::remove_dir_all(dir).unwrap();
    if let Some(url) = testing::service("SLIPWAY_TEST_DATABASE") {
        let name = format!("t{}", slipway_core::ids::hex32());
        let admin = Place::Server(Box::new(postgres::Server::of_url(&url).unwrap()));
        let session = admin.writer().unwrap();
        session.batch(&format!("CREATE SCHEMA {name}")).unwrap();
        test(Own::Server(format!("{url}?options=-csearch_path%3D{name}"))).await;
        session.batch(&format!("DROP SCHEMA {name} CASCADE")).unwrap();
    }
}

/// Holds the writer until it is dropped, so that the changes queued meanwhile become one group.
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
                let _ = held.recv(); // ends with an error when the other side is dropped, which is what is waited for
                Ok::<_, StoreError>(())
            })
            .await
        });
        is_held.await.unwrap();
        Self { _release: release }
    }
}

/// A change that is queued, not yet answered.
fn queued<T: Send + 'static>(
    db: &Database,
    change: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
) -> std::pin::Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>> {
    let db = db.clone();
    let mut answer = Box::pin(async move { db.write(change).await });
    assert!((&mut answer).now_or_never().is_none(), "the writer is held, so nothing can be answered yet");
    answer
}

fn put(c: &Connection, k: &str, v: i64) -> Result<(), StoreError> {
    c.execute("INSERT INTO t (k, v) VALUES (?1, ?2)", params![k, v])?;
    Ok(())
}

fn count(db: &Database) -> i64 {
    db.read_now(|c| c.first("SELECT count(*) FROM t", params![], |r| r.get(0))).unwrap().unwrap_or(-1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_change_undoes_only_itself() {
    everywhere(|own| async move {
        let db = own.open(&[TABLES]).unwrap();
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
        // A statement that the database refuses spoils no other change either.
        let refused = db.write(|c| put(c, "k1", 1)).await.unwrap_err();
        assert!(refused.is_duplicate(), "{refused}");
        db.write(|c| put(c, "more", 1)).await.unwrap();
        assert_eq!(count(&db), 41);
        assert_eq!(db.integrity().unwrap(), "ok");
        db.close();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_come_back_as_they_went_in() {
    everywhere(|own| async move {
        let db = own.open(&[TABLES]).unwrap();
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
        // Sorted by bytes, whatever the server's language is.
        assert_eq!(
            all,
            [
                ("Z".into(), None, f64::MAX, None),
                ("a".into(), Some(1), 0.0, Some(vec![])),
                ("é'\\?".into(), Some(i64::MIN), 0.1, Some(vec![0, 255])),
            ]
        );
        let wrong = db.read_now(|c| c.first("SELECT k FROM t", params![], |r| r.get::<i64>(0)));
        assert!(wrong.is_err());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_store_refuses_and_keeps_what_it_had() {
    everywhere(|own| async move {
        let db = own.open(&[TABLES]).unwrap();
        db.write(|c| put(c, "a", 1)).await.unwrap();
        db.close();
        assert!(matches!(db.write(|c| put(c, "b", 2)).await, Err(StoreError::Closed)));
        assert_eq!(count(&own.open(&[TABLES]).unwrap()), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_a_newer_version_are_refused() {
    everywhere(|own| async move {
        own.open(&[TABLES]).unwrap().close();
        let older = Migration { domain: "test", steps: &TABLES.steps[..1] };
        assert!(matches!(own.open(&[older]), Err(StoreError::Newer { found: 2, known: 1, .. })));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_share_a_database_take_turns() {
    everywhere(|own| async move {
        let Own::Server(_) = own else { return };
        // All at once, the first time too: one of them makes the tables.
        let opened: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn({
                    let own = own.clone();
                    move || own.open(&[TABLES])
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
                    // Read, then write: without turns some of these would be lost.
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
async fn a_panicking_change_undoes_only_itself_and_the_writer_lives_on() {
    everywhere(|own| async move {
        let db = own.open(&[TABLES]).unwrap();
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

/// A value whose end is a panic: nothing that a change's type does may reach the writer.
struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("on purpose, while dropped");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panics_of_results_and_of_panics_do_not_reach_the_writer() {
    everywhere(|own| async move {
        let db = own.open(&[TABLES]).unwrap();
        let held = HeldWriter::hold(&db).await;
        let gone = queued(&db, |_| Ok(PanicsWhenDropped));
        let payload = queued(&db, |_| -> Result<(), StoreError> { std::panic::panic_any(PanicsWhenDropped) });
        let after = queued(&db, |c| put(c, "after", 1));
        // The result has nobody left who takes it, so the writer drops it.
        drop(gone);
        drop(held);
        assert!(matches!(payload.await, Err(StoreError::Panicked(_))));
        after.await.unwrap();
        db.ping_writer(Duration::from_secs(60)).await.unwrap();
        assert_eq!(count(&db), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_cannot_be_prepared_undoes_only_its_change() {
    everywhere(|own| async move {
        let db = own.open(&[TABLES]).unwrap();
        let held = HeldWriter::hold(&db).await;
        let before = queued(&db, |c| put(c, "before", 1));
        let broken = queued(&db, |c| c.execute("INSERT INTO no_such_table VALUES (1)", params![]));
        let after = queued(&db, |c| put(c, "after", 1));
        drop(held);
        // What was acknowledged is there: PostgreSQL would answer COMMIT with success and roll back.
        before.await.unwrap();
        assert!(broken.await.is_err());
        after.await.unwrap();
        assert_eq!(count(&db), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_statement_that_its_change_ignores_is_not_acknowledged_where_it_undid_the_rest() {
    everywhere(|own| async move {
        let db = own.open(&[TABLES]).unwrap();
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
        assert_eq!(acknowledged, !own.is_server());
        assert_eq!(count(&db), 2 + i64::from(acknowledged));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_commit_is_told_to_its_whole_group_and_the_writer_lives_on() {
    everywhere(|own| async move {
        // A constraint that is checked at the commit.
        let checked = Migration {
            domain: "test",
            steps: &[
                "CREATE TABLE t (k TEXT PRIMARY KEY, v INTEGER)",
                "CREATE TABLE child (k TEXT REFERENCES t (k) DEFERRABLE INITIALLY DEFERRED)",
            ],
        };
        let db = own.open(&[checked]).unwrap();
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
async fn a_writer_that_was_refused_its_turn_begins_anew() {
    everywhere(|own| async move {
        let db = own.open(&[TABLES]).unwrap();
        let Own::Server(_) = own else { return };
        let place = own.place();
        let (other, admin) = (place.writer().unwrap(), place.writer().unwrap());
        // Another server has its turn, and this one's wait for it is ended by the server.
        other.begin_writing().unwrap();
        let waiting = tokio::spawn({
            let db = db.clone();
            async move { db.write(|c| put(c, "refused", 1)).await }
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
async fn the_writer_answers_a_ping_or_the_caller_is_told() {
    everywhere(|own| async move {
        let db = own.open(&[TABLES]).unwrap();
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
async fn a_full_database_refuses_and_goes_on_when_there_is_space_again() {
    let dir = testing::folder("full");
    let db = Database::open(&dir.join("t.db"), &[TABLES]).unwrap();
    let pages: i64 = db.write(|c| c.first("PRAGMA page_count", params![], |r| r.get(0))).await.unwrap().unwrap();
    let limit = move |pages: i64| {
        move |c: &Connection| c.first(&format!("PRAGMA max_page_count={pages}"), params![], |r| r.get::<i64>(0))
    };
    db.write(limit(pages + 8)).await.unwrap();
    let kept = fill(&db).await;
    assert!(kept > 0);
    db.write(limit(1 << 30)).await.unwrap();
    db.write(|c| put(c, "after", 1)).await.unwrap();
    assert_eq!(count(&db), kept + 1);
    assert_eq!(db.integrity().unwrap(), "ok");
    drop(db);
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_and_the_writer_goes_on_when_there_is_space_again() {
    let Some(disk) = testing::SmallDisk::mount(2 << 20) else { return };
    let db = Database::open(&disk.0.join("t.db"), &[TABLES]).unwrap();
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let kept = fill(&db).await;
    assert!(kept > 0);
    db.ping_writer(Duration::from_secs(60)).await.unwrap();
    std::fs::remove_file(ballast).unwrap();
    db.write(|c| put(c, "after", 1)).await.unwrap();
    assert_eq!(count(&db), kept + 1);
    assert_eq!(db.integrity().unwrap(), "ok");
    db.close();
}

/// Writes rows of 8 KiB until there is no more space; how many were acknowledged.
async fn fill(db: &Database) -> i64 {
    for n in 0..10_000 {
        let row = move |c: &Connection| {
            c.execute("INSERT INTO t (k, b) VALUES (?1, ?2)", params![format!("fill{n}"), vec![7_u8; 8192]])
        };
        match db.write(row).await {
            Ok(_) => {}
            Err(StoreError::OutOfSpace { .. }) => return n,
            Err(other) => panic!("a full database is told as such, not as: {other}"),
        }
    }
    panic!("the database never became full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_migration_is_refused() {
    everywhere(|own| async move {
        own.open(&[TABLES]).unwrap().close();
        const CHANGED: Migration =
            Migration { domain: "test", steps: &[TABLES.steps[0], "CREATE TABLE n (id INTEGER PRIMARY KEY, v REAL)"] };
        let refused = own.open(&[CHANGED]);
        assert!(matches!(refused, Err(StoreError::MigrationChanged { domain: "test", version: 2 })));
        // The same text with another system's line ends is the same script, and a new one is added to it.
        const FIRST: Migration = Migration { domain: "lines", steps: &["CREATE TABLE a (k TEXT,\n v TEXT)"] };
        const SECOND: Migration =
            Migration { domain: "lines", steps: &["CREATE TABLE a (k TEXT,\r\n v TEXT)", "CREATE TABLE b (k TEXT)"] };
        own.open(&[FIRST]).unwrap().close();
        own.open(&[SECOND]).unwrap().close();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_checksums_gets_them() {
    everywhere(|own| async move {
        own.open(&[TABLES]).unwrap().close();
        let place = own.place();
        let session = place.writer().unwrap();
        session.batch("DROP TABLE schema_checksum").unwrap();
        own.open(&[TABLES]).unwrap().close();
        let known = session.first("SELECT count(*) FROM schema_checksum", params![], |r| r.get::<i64>(0));
        assert_eq!(known.unwrap(), Some(2));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_may_own_the_last_handle_of_its_database() {
    /// Dropped in this order: when the sender is gone, the database is.
    struct Owner {
        _db: Database,
        _dropped: mpsc::Sender<()>,
    }
    everywhere(|own| async move {
        let db = own.open(&[TABLES]).unwrap();
        let (dropped, is_dropped) = mpsc::channel();
        let owner = Owner { _db: db.clone(), _dropped: dropped };
        let held = HeldWriter::hold(&db).await;
        let answer = queued(&db, move |c| {
            let _owner = owner;
            put(c, "a", 1)
        });
        drop((answer, db));
        drop(held);
        let gone = tokio::task::spawn_blocking(move || is_dropped.recv());
        assert!(gone.await.unwrap().is_err(), "nobody sends anything");
        assert_eq!(count(&own.open(&[TABLES]).unwrap()), 1);
    })
    .await;
}
