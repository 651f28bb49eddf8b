//! A process that is killed with SIGKILL loses no acknowledged change.

#![allow(clippy::unwrap_used)] // Clippy allows `unwrap` in functions marked as tests, but not in the helpers that they share.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use slipway_store::sql::{Connection, params};
use slipway_store::{Database, Migration, StoreError};

const TABLES: Migration = Migration {
    domain: "crash",
    steps: &["CREATE TABLE whole (id INTEGER PRIMARY KEY, payload BLOB); CREATE TABLE half (id INTEGER PRIMARY KEY);"],
};
/// Environment variable for the child: the folder of the database.
const FOLDER_ENV: &str = "SLIPWAY_TEST_CRASH_FOLDER";
/// Environment variable for the child: the first id to write.
const FIRST_ENV: &str = "SLIPWAY_TEST_CRASH_FIRST";
/// Number of times that a process with the same database is killed.
const ROUNDS: u64 = 12;
/// Number of concurrent writer tasks in the child, so that changes are committed in groups.
const WRITERS: u64 = 16;

fn database(folder: &Path) -> Database {
    Database::open(&folder.join("crash.db"), &[TABLES]).unwrap()
}

/// A change of two statements: after a crash the database must contain both rows or neither.
fn change(c: &Connection, id: u64) -> Result<(), StoreError> {
    let id = i64::try_from(id).unwrap_or(i64::MAX);
    c.execute("INSERT INTO whole VALUES (?1, ?2)", params![id, vec![7_u8; 700]])?;
    c.execute("INSERT INTO half VALUES (?1)", [id])?;
    Ok(())
}

/// The body of the child process: writes for ever and prints the id of every acknowledged change.
async fn write_until_killed(folder: PathBuf, first: u64) {
    let db = database(&folder);
    let writers = (0..WRITERS).map(|writer| {
        let db = db.clone();
        tokio::spawn(async move {
            for id in (first + writer..).step_by(usize::try_from(WRITERS).unwrap()) {
                db.write(move |c| change(c, id)).await.unwrap();
                // A single write to the pipe, so that a line is never cut.
                std::io::stdout().write_all(format!("acknowledged {id}\n").as_bytes()).unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

/// A random number in `0..below`, so that the moment of the kill differs in each round.
fn random(below: u64) -> u64 {
    u64::from_str_radix(&slipway_core::ids::hex32()[..8], 16).unwrap() % below
}

/// Runs this test in a child process, kills it after a random number of lines, and returns the acknowledged ids.
fn run_and_kill(folder: &Path, first: u64) -> Vec<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "acknowledged_changes_survive_a_kill", "--nocapture"])
        .env(FOLDER_ENV, folder)
        .env(FIRST_ENV, first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let kill_after = 1 + usize::try_from(random(400)).unwrap();
    let mut acknowledged = Vec::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        if let Some(id) = line.strip_prefix("acknowledged ").and_then(|l| l.strip_suffix('\n')) {
            acknowledged.push(id.parse().unwrap());
            if acknowledged.len() == kill_after {
                // Sends SIGKILL. The output that the child wrote before is still in the pipe.
                child.kill().unwrap();
            }
        }
        line.clear();
    }
    let ended = child.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&ended),
        Some(9),
        "the child ended before it was killed: {ended}"
    );
    assert!(acknowledged.len() >= kill_after);
    acknowledged
}

fn ids(db: &Database, table: &str) -> BTreeSet<i64> {
    let sql = format!("SELECT id FROM {table}");
    db.read_now(|c| c.rows(&sql, params![], |row| row.get(0))).unwrap().into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_survive_a_kill() {
    if let Some(folder) = std::env::var_os(FOLDER_ENV) {
        let first = std::env::var(FIRST_ENV).unwrap().parse().unwrap();
        return write_until_killed(folder.into(), first).await;
    }
    let folder = std::env::temp_dir().join(format!("slipway-crash-{}", slipway_core::ids::hex32()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..ROUNDS {
        acknowledged.extend(run_and_kill(&folder, round * 1_000_000).into_iter().map(|id| i64::try_from(id).unwrap()));
        let db = database(&folder);
        let (whole, half) = (ids(&db, "whole"), ids(&db, "half"));
        let lost: Vec<_> = acknowledged.difference(&whole).collect();
        assert!(lost.is_empty(), "round {round}: acknowledged changes were lost: {lost:?}");
        assert_eq!(whole, half, "round {round}: a change was stored only in part");
        assert_eq!(db.integrity().unwrap(), "ok");
        db.close();
    }
    std::fs::remove_dir_all(folder).unwrap();
}
