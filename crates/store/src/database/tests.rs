//! What both databases have to do.

use super::*;

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
        match self {
            Self::File(dir) => Database::open(&dir.join("t.db"), migrations),
            Self::Server(url) => Database::connect(url, migrations),
        }
    }
}

/// What every database has to do. SQLite always; PostgreSQL where `SLIPWAY_TEST_DATABASE` names one (`testkit/services.py`),
/// in a schema of its own.
async fn everywhere<F: Future<Output = ()>>(test: impl Fn(Own) -> F) {
    let name = format!("t{}", slipway_core::ids::hex32());
    let dir = std::env::temp_dir().join(&name);
    std::fs::create_dir_all(&dir).unwrap();
    test(Own::File(dir.clone())).await;
    std::fs::remove_dir_all(dir).unwrap();
    if let Ok(url) = std::env::var("SLIPWAY_TEST_DATABASE") {
        let admin = Place::Server(Box::new(postgres::Server::of_url(&url).unwrap()));
        let session = admin.writer().unwrap();
        session.batch(&format!("CREATE SCHEMA {name}")).unwrap();
        test(Own::Server(format!("{url}?options=-csearch_path%3D{name}"))).await;
        session.batch(&format!("DROP SCHEMA {name} CASCADE")).unwrap();
    }
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
                    Ok((
                        r.get::<String>(0)?,
                        r.get::<Option<i64>>(1)?,
                        r.get::<f64>(2)?,
                        r.get::<Option<Vec<u8>>>(3)?,
                    ))
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
                        let n: i64 =
                            c.first("SELECT v FROM t WHERE k = 'n'", params![], |r| r.get(0))?.unwrap_or(0);
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
