use std::time::{Duration, Instant};

use serde_json::json;
use slipway_store::Database;
use slipway_store::sql::{Connection, params};

use super::*;
use crate::Error;
use crate::listing::{ListRequest, Listing};
use crate::model::{Artifact, Outputs, RunState, TaskPath, TaskState};
use crate::repo::runs::Scope;
use crate::repo::tasks::{NewTask, TaskRow};

fn open() -> (tempfile::TempDir, Database) {
    let folder = tempfile::tempdir().unwrap();
    let db = Database::open(&folder.path().join("t.db"), &[MIGRATION]).unwrap();
    (folder, db)
}

/// Inserts runs whose id and name end with a number.
fn insert_runs(c: &Connection, count: i64) -> Result<(), Error> {
    c.execute("INSERT INTO pipeline_specs VALUES ('s', '{}')", params![])?;
    let rows = (0..count).map(|n| [n]);
    c.execute_each(
        "INSERT INTO pipeline_runs (run_id, namespace, experiment_id, display_name, description, service_account, storage_state, state,
           created_at, scheduled_at, finished_at, pipeline_name, pipeline_id, version_id, spec, parameters, pipeline_root,
           recurring_run_id, history, error, task_changes)
         VALUES ('run-' || ?1, 'ns', 'e', 'name-' || ?1, '', '', 'AVAILABLE', 'SUCCEEDED', ?1, ?1, ?1, 'p', '', '', 's', '{}', '',
           '', '[]', '', 0)",
        rows,
    )?;
    Ok(())
}

#[tokio::test]
async fn a_page_of_many_runs_is_read_in_milliseconds() {
    let (_folder, db) = open();
    db.write(|c| insert_runs(c, 100_000)).await.unwrap();
    let mut token = String::new();
    let mut fastest = Duration::MAX;
    for n in 0..5 {
        let request = ListRequest { page_token: token, sort_by: "created_at desc".into(), ..ListRequest::default() };
        let listing = Listing::new(&runs::FIELDS, &request).unwrap();
        let started = Instant::now();
        let page = db.read_now(|c| runs::list(c, Scope::Namespace("ns"), &listing)).unwrap();
        fastest = fastest.min(started.elapsed());
        assert_eq!((page.total, page.items.len()), (100_000, 20));
        assert_eq!(page.items[0].created_at, 99_999 - n * 20);
        token = page.next_page_token;
    }
    // A scan without the index takes ten times as long even in an unoptimized build.
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}

#[tokio::test]
async fn tasks_are_written_in_batches_and_replaced() {
    let (_folder, db) = open();
    let new = |n: usize, state| NewTask::new(&TaskPath(format!("loop[{n}]")), state, &json!({"n": n}));
    let row =
        |n: usize, state| TaskRow { path: TaskPath(format!("loop[{n}]")), state, record: json!({"n": n}).to_string() };
    db.write(move |c| {
        insert_runs(c, 1)?;
        let rows: Vec<_> = (0..10_000).map(|n| new(n, TaskState::Running)).collect();
        tasks::upsert(c, runs::advance(c, "run-0", "")?.0, &rows)?;
        tasks::upsert(c, runs::advance(c, "run-0", "")?.0, &[new(7, TaskState::Failed)])?;
        let stored = tasks::list(c, "run-0")?;
        assert_eq!(stored.len(), 10_000);
        assert_eq!(
            (stored[7].row.clone(), stored[8].row.clone()),
            (row(7, TaskState::Failed), row(8, TaskState::Running))
        );
        assert_eq!(tasks::find(c, "run-0", &TaskPath("loop[9]".into()))?.unwrap().row, row(9, TaskState::Running));
        assert_eq!(tasks::find(c, "run-0", &TaskPath("loop".into()))?.map(|task| task.row), None);
        assert_eq!(runs::find(c, "run-0")?.task_changes, 2);
        assert!(matches!(runs::advance(c, "no", ""), Err(Error::NotFound(_))));
        Ok::<_, Error>(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_cache_finds_the_newest_outputs_that_are_fresh_enough() {
    let (_folder, db) = open();
    db.write(|c| {
        insert_runs(c, 2)?;
        let entry = |run: &str, created_at| cache::Entry {
            run_id: run.into(),
            task: TaskPath("t".into()),
            outputs: Outputs { parameters: [("x".to_owned(), json!(created_at))].into(), ..Outputs::default() },
            created_at,
        };
        cache::insert(c, "ns", "p", "f", &entry("run-0", 10))?;
        cache::insert(c, "ns", "p", "f", &entry("run-1", 20))?;
        let find = |fingerprint: &str, since| cache::find(c, "ns", "p", fingerprint, since);
        assert_eq!(find("f", 0)?, Some(entry("run-1", 20)));
        assert_eq!(find("f", 21)?, None);
        assert_eq!(find("g", 0)?, None);
        assert_eq!(cache::find(c, "other", "p", "f", 0)?, None);
        // A deleted run's outputs are deleted, so they cannot be reused.
        runs::delete(c, "run-1")?;
        assert_eq!(find("f", 0)?, Some(entry("run-0", 10)));
        cache::forget(c, "run-0", &TaskPath("t".into()))?;
        assert_eq!(find("f", 0)?, None);
        Ok::<_, Error>(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn artifacts_have_ids_and_are_found_by_their_content() {
    let (_folder, db) = open();
    db.write(|c| {
        insert_runs(c, 2)?;
        let imported = |n: i64| Artifact {
            schema_title: "system.Dataset".into(),
            uri: "s3://b/d".into(),
            metadata: json!({"n": n}).as_object().cloned().unwrap_or_default(),
            ..Artifact::default()
        };
        let task = TaskPath("t".into());
        for run in ["run-0", "run-1"] {
            let mut list = [imported(1), imported(2)];
            artifacts::insert(c, run, &task, "out", &mut list, 5)?;
            assert_eq!(artifacts::of_output(c, run, &task, "out")?, list);
        }
        // Another attempt replaces what the one before left.
        let mut again = [imported(3)];
        artifacts::insert(c, "run-1", &task, "out", &mut again, 6)?;
        assert_eq!(artifacts::of_output(c, "run-1", &task, "out")?, again);
        assert_eq!(artifacts::find(c, &again[0].id)?, Some(("ns".into(), again[0].clone())));
        assert_eq!(artifacts::find(c, "x")?, None);
        assert_eq!(artifacts::find_same(c, "ns", "p", &imported(3))?, Some(again[0].clone()));
        assert_eq!(artifacts::find_same(c, "ns", "other", &imported(3))?, None);
        assert_eq!(artifacts::find_same(c, "ns", "p", &imported(4))?, None);
        Ok::<_, Error>(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_state_changes_only_from_the_states_named() {
    let (_folder, db) = open();
    db.write(|c| {
        insert_runs(c, 1)?;
        let from = [RunState::Running];
        assert!(!runs::set_state(c, "run-0", &from, RunState::Failed, "why", 7)?);
        assert!(runs::set_state(c, "run-0", &[], RunState::Running, "", 7)?);
        assert!(!runs::set_state(c, "run-0", &[], RunState::Running, "", 8)?, "it is in that state");
        assert_eq!(runs::unfinished_of_owner(c, "")?, [("run-0".to_owned(), RunState::Running)]);
        assert!(runs::set_state(c, "run-0", &from, RunState::Failed, "why", 9)?);
        let run = runs::find(c, "run-0")?;
        assert_eq!((run.finished_at, run.error.as_str(), run.history.len()), (9, "why", 2));
        assert!(runs::unfinished_of_owner(c, "")?.is_empty());
        Ok::<_, Error>(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn runs_of_a_server_that_beats_no_more_are_taken_over_and_others_are_not() {
    let (_folder, db) = open();
    db.write(|c| {
        insert_runs(c, 3)?;
        for run in ["run-0", "run-1"] {
            runs::set_state(c, run, &[], RunState::Running, "", 7)?;
        }
        let owned = |owner: &str| {
            let runs = runs::unfinished_of_owner(c, owner)?;
            Ok::<_, Error>(runs.into_iter().map(|(run_id, _)| run_id).collect::<Vec<_>>())
        };
        owners::beat(c, "first")?;
        // Those of an earlier version have no owner.
        owners::adopt(c, "first")?;
        assert_eq!(owned("first")?, ["run-0", "run-1"]);
        owners::beat(c, "second")?;
        owners::adopt(c, "second")?;
        assert_eq!(owned("second")?, [""; 0], "the first server lives");
        let seen = owners::list(c)?.remove(0);
        owners::beat(c, "first")?;
        owners::take_over(c, &seen, "second")?;
        assert_eq!(owned("second")?, [""; 0], "the first server has beaten since it was seen");
        let seen = owners::list(c)?.remove(0);
        assert_eq!((seen.name.as_str(), seen.beats), ("first", 2));
        owners::take_over(c, &seen, "second")?;
        assert_eq!(owned("second")?, ["run-0", "run-1"]);
        assert_eq!(runs::owner(c, "run-2")?, "", "a run that has ended needs no other owner");
        // The first server returns: it records nothing of a run that it has lost.
        owners::beat(c, "first")?;
        assert!(matches!(runs::advance(c, "run-0", "first"), Err(Error::Conflict(_))));
        assert!(runs::advance(c, "run-0", "second").is_ok());
        owners::adopt(c, "first")?;
        assert_eq!(owned("first")?, [""; 0]);
        owners::adopt_all(c, "first")?;
        assert_eq!(owned("first")?, ["run-0", "run-1"], "a database of its own");
        Ok::<_, Error>(())
    })
    .await
    .unwrap();
}
