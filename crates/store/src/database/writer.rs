//! The writer thread: runs waiting changes in groups, commits a group once, then answers all of it.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::panics::catching;
use super::place::Place;
use super::sql::Connection;
use crate::StoreError;
use crate::error::Result;

/// Changes that may share one transaction, so that none waits long behind a crowd.
const GROUP_MAX: usize = 512;
/// Time after which a group is committed even if more changes wait. In tests it has no end that a slow machine could reach: what waits
/// at the same time is one group.
const GROUP_TIME: Duration = if cfg!(test) { Duration::from_secs(600) } else { Duration::from_millis(10) };
/// What panicked, in the words of an error's message.
const CHANGE: &str = "the change";

/// A change queued for the writer: runs inside the transaction, or learns that there is none.
pub(super) type Change = Box<dyn FnOnce(Result<&Connection>) -> Ran + Send>;

/// A change that was run and is not committed yet.
pub(super) struct Ran {
    /// Hands the result to the caller, once the commit has succeeded (`None`) or failed.
    answer: Box<dyn FnOnce(Option<StoreError>) + Send>,
    /// Whether the transaction around it is as it was without it, or with all of it.
    intact: bool,
}

/// Makes a change of `work`, whose result goes to `reply`.
pub(super) fn change<T, E>(
    reply: oneshot::Sender<std::result::Result<T, E>>,
    work: impl FnOnce(&Connection) -> std::result::Result<T, E> + Send + 'static,
) -> Change
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    Box::new(move |connection| {
        let (result, intact) = match connection {
            Ok(connection) => in_savepoint(connection, work),
            Err(error) => (Err(error.into()), true),
        };
        let answer = move |failed: Option<StoreError>| {
            let result = match failed {
                Some(error) if result.is_ok() => Err(error.into()),
                _ => result,
            };
            let _ = reply.send(result); // The caller may have gone away; the change stands all the same.
        };
        Ran { answer: Box::new(answer), intact }
    })
}

/// Runs `work` so that it is undone if it fails or panics; its result, and whether the transaction around it is intact.
fn in_savepoint<T, E: From<StoreError>>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> std::result::Result<T, E>,
) -> (std::result::Result<T, E>, bool) {
    if let Err(error) = connection.batch_later("SAVEPOINT change") {
        return (Err(error.into()), false);
    }
    let mut result = catching(CHANGE, || work(connection)).unwrap_or_else(|panicked| Err(panicked.into()));
    if result.is_ok() && connection.is_aborted() {
        result = Err(StoreError::Commit("a statement failed and the change went on as if it had not".into()).into());
    }
    if result.is_err()
        && let Err(error) = connection.batch("ROLLBACK TO change")
    {
        tracing::error!(%error, "a failed change cannot be undone alone; its group is rolled back");
        return (result, false);
    }
    match connection.batch_later("RELEASE change") {
        Ok(()) => (result, true),
        Err(error) => (result.and_then(|_| Err(error.into())), false),
    }
}

/// Takes changes from the queue until nobody can send any more.
pub(super) fn run(place: &Place, connection: Connection, queue: &mpsc::Receiver<Change>) {
    let mut kept = Some(connection);
    while let Ok(first) = queue.recv() {
        let started = Instant::now();
        let connection = match begin(place, &mut kept) {
            Ok(connection) => connection,
            Err(error) => {
                tracing::error!(%error, "cannot begin a transaction");
                // Nothing ran, so there is nothing to undo if this panics.
                let _ = catching(CHANGE, || (first(Err(error)).answer)(None));
                continue;
            }
        };
        let mut answers = Vec::new();
        let mut next = Some(first);
        let mut intact = true;
        while let Some(change) = next.take() {
            // The change catches its own panics; this catches those of the caller's types while they are converted or dropped.
            match catching(CHANGE, || change(Ok(connection))) {
                Ok(ran) => {
                    intact = ran.intact;
                    answers.push(ran.answer);
                }
                Err(_) => intact = false,
            }
            if intact && answers.len() < GROUP_MAX && started.elapsed() < GROUP_TIME {
                next = queue.try_recv().ok();
            }
        }
        let committed = if intact && !connection.is_aborted() {
            connection.batch("COMMIT")
        } else {
            Err(StoreError::Commit("another change of its group broke the transaction".into()))
        };
        if let Err(error) = &committed {
            tracing::error!(%error, changes = answers.len(), "commit failed; the group is rolled back");
            if !connection.abandon() {
                kept = None;
            }
        }
        for answer in answers {
            let failed = committed.as_ref().err().map(for_each);
            // The outcome stands, whatever the caller's types do while they are handed over.
            let _ = catching(CHANGE, || answer(failed));
        }
    }
    if let Some(connection) = kept {
        connection.checkpoint();
    }
}

/// Begins a transaction, on a new connection if the old one is lost: nothing was run yet that could be run twice.
fn begin<'a>(place: &Place, kept: &'a mut Option<Connection>) -> Result<&'a Connection> {
    if let Some(connection) = kept.take().filter(|connection| !connection.is_closed()) {
        match connection.begin_writing() {
            Ok(()) => return Ok(kept.insert(connection)),
            // It is closed either way: after another error it may be left inside a transaction that takes no statements.
            Err(StoreError::Unreachable(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let connection = place.writer()?;
    connection.begin_writing()?;
    Ok(kept.insert(connection))
}

/// The error of a group's commit, for one change of the group.
fn for_each(error: &StoreError) -> StoreError {
    match error {
        StoreError::OutOfSpace { what, reason } => {
            StoreError::OutOfSpace { what: what.clone(), reason: reason.clone() }
        }
        StoreError::Commit(reason) => StoreError::Commit(reason.clone()),
        other => StoreError::Commit(other.to_string()),
    }
}
