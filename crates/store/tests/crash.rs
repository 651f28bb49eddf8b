//! A server that is killed keeps every change that it acknowledged.

#![allow(clippy::unwrap_used)] // Clippy knows tests by their attribute, not the functions that they share.

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
/// Tells the child where to write.
const FOLDER: &str = "SLIPWAY_TEST_CRASH_FOLDER";
/// Tells the child which number it may begin at.
const FIRST: &str = "SLIPWAY_TEST_CRASH_FIRST";
/// How often the same database is killed.
const ROUNDS: u64 = 12;
/// Tasks of the child that write at the same time, so that there are groups.
const WRITERS: u64 = 16;

fn database(folder: &Path) -> Database {
    Database::open(&folder.join("crash.db"), &[TABLES]).unwrap()
}

/// One change of two statements: after a crash both are there, or neither.
fn change(c: &Connection, id: u64) -> Result<(), StoreError> {
    let id = i64::try_from(id).unwrap_or(i64::MAX);
    c.execute("INSERT INTO whole VALUES (?1, ?2)", params![id, vec![7_u8; 700]])?;
    c.execute("INSERT INTO half VALUES (?1)", [id])?;
    Ok(())
}

/// What runs in the child: writes for ever, and says what was acknowledged.
async fn write_until_killed(folder: PathBuf, first: u64) {
    let db = database(&folder);
    let writers = (0..WRITERS).map(|writer| {
        let db = db.clone();
        tokio::spawn(async move {
            for id in (first + writer..).step_by(usize::try_from(WRITERS).unwrap()) {
                db.write(move |c| change(c, id)).await.unwrap();
                // One write to the pipe: a line is there as a whole, or not at all.
                std::io::stdout().write_all(format!("acknowledged {id}\n").as_bytes()).unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

/// A number from 0 up to `below`, another one in each run: the moments of the kills are to differ.
fn random(below: u64) -> u64 {
    u64::from_str_radix(&slipway_core::ids::hex32()[..8], 16).unwrap() % below
}

/// Runs this test again in a child and kills it after some lines; the numbers that were acknowledged.
fn killed(folder: &Path, first: u64) -> Vec<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "acknowledged_changes_survive_a_kill", "--nocapture"])
        .env(FOLDER, folder)
        .env(FIRST, first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let wanted = 1 + usize::try_from(random(400)).unwrap();
    let mut acknowledged = Vec::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        if let Some(id) = line.strip_prefix("acknowledged ").and_then(|l| l.strip_suffix('\n')) {
            acknowledged.push(id.parse().unwrap());
            if acknowledged.len() == wanted {
                // SIGKILL: nothing of the child runs any more. What it had said until then is still in the pipe.
                child.kill().unwrap();
            }
        }
        line.clear();
    }
    let ended = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9), "the child ended by itself: {ended}");
    assert!(acknowledged.len() >= wanted);
    acknowledged
}

fn ids(db: &Database, table: &str) -> BTreeSet<i64> {
    let sql = format!("SELECT id FROM {table}");
    db.read_now(|c| c.rows(&sql, params![], |row| row.get(0))).unwrap().into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_changes_survive_a_kill() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let first = std::env::var(FIRST).unwrap().parse().unwrap();
        return write_until_killed(folder.into(), first).await;
    }
    let folder = std::env::temp_dir().join(format!("slipway-crash-{}", slipway_core::ids::hex32()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..ROUNDS {
        acknowledged.extend(killed(&folder, round * 1_000_000).into_iter().map(|id| i64::try_from(id).unwrap()));
        let db = database(&folder);
        let (whole, half) = (ids(&db, "whole"), ids(&db, "half"));
        let lost: Vec<_> = acknowledged.difference(&whole).collect();
        assert!(lost.is_empty(), "round {round}: acknowledged and lost: {lost:?}");
        assert_eq!(whole, half, "round {round}: a change is there in part");
        assert_eq!(db.integrity().unwrap(), "ok");
        db.close();
    }
    std::fs::remove_dir_all(folder).unwrap();
}
