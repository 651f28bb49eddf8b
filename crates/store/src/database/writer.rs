//! The writer thread: runs queued changes in groups, commits each group once, and then returns the results of its changes. So a
//! caller gets a success only after the commit.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::panics::catch_panic;
use super::place::Place;
use super::sql::Connection;
use crate::StoreError;
use crate::error::Result;

/// Maximum number of changes in one transaction, which bounds the latency of its first change.
const MAX_GROUP_SIZE: usize = 512;
/// Time after which a group is committed even if more changes are queued. In tests it is longer than any test, so that changes which
/// are queued together always form one group, also on a slow machine.
const MAX_GROUP_TIME: Duration = if cfg!(test) { Duration::from_secs(600) } else { Duration::from_millis(10) };
/// Subject of the error message after a panic.
const CHANGE: &str = "the change";

/// A queued change. The writer calls it with the connection of the open transaction, or with the error if none could be started.
pub(super) type Change = Box<dyn FnOnce(Result<&Connection>, Isolation) -> Uncommitted + Send>;

/// How a failed change is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isolation {
    /// With the transaction, in which no other change has run yet. This saves the savepoint, for which SQLite copies every page that the
    /// change modifies.
    Transaction,
    /// To a savepoint, so that the earlier changes of the group are kept.
    Savepoint,
}

/// A change that has run and is not committed yet.
pub(super) struct Uncommitted {
    /// Sends the result to the caller. The argument is the error of the commit, `None` if it succeeded.
    respond: Box<dyn FnOnce(Option<StoreError>) + Send>,
    /// Whether the transaction contains either all of the change or nothing of it.
    intact: bool,
}

/// Builds a change from `work`; its result is sent to `sender`.
pub(super) fn change<T, E>(
    sender: oneshot::Sender<std::result::Result<T, E>>,
    work: impl FnOnce(&Connection) -> std::result::Result<T, E> + Send + 'static,
) -> Change
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    Box::new(move |connection, isolation| {
        let (result, intact) = match (connection, isolation) {
            (Ok(connection), Isolation::Savepoint) => in_savepoint(connection, work),
            (Ok(connection), Isolation::Transaction) => {
                let result = run_change(connection, work);
                let intact = result.is_ok();
                (result, intact)
            }
            (Err(error), _) => (Err(error.into()), true),
        };
        let respond = move |commit_error: Option<StoreError>| {
            let result = match commit_error {
                Some(error) if result.is_ok() => Err(error.into()),
                _ => result,
            };
            let _ = sender.send(result); // The caller may have dropped its future; the change stays committed.
        };
        Uncommitted { respond: Box::new(respond), intact }
    })
}

/// Runs `work` in a savepoint, which is rolled back if `work` fails or panics. Returns the result and whether the surrounding
/// transaction is intact.
fn in_savepoint<T, E: From<StoreError>>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> std::result::Result<T, E>,
) -> (std::result::Result<T, E>, bool) {
    if let Err(error) = connection.batch_deferred("SAVEPOINT change") {
        return (Err(error.into()), false);
    }
    let result = run_change(connection, work);
    if result.is_err()
        && let Err(error) = connection.statement("ROLLBACK TO change")
    {
        tracing::error!(%error, "cannot roll back a failed change alone; its whole group is rolled back");
        return (result, false);
    }
    match connection.batch_deferred("RELEASE change") {
        Ok(()) => (result, true),
        Err(error) => (result.and_then(|_| Err(error.into())), false),
    }
}

/// Runs `work` and returns its result, or an error if it panics or ignores a failed statement.
fn run_change<T, E: From<StoreError>>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let result = catch_panic(CHANGE, || work(connection)).unwrap_or_else(|panicked| Err(panicked.into()));
    if result.is_ok() && connection.is_aborted() {
        return Err(StoreError::Commit("a statement failed and the change ignored its error".into()).into());
    }
    result
}

/// The writer's loop: runs changes from the queue until all senders are dropped.
pub(super) fn run(place: &Place, connection: Connection, queue: &mpsc::Receiver<Change>) {
    let mut open_connection = Some(connection);
    while let Ok(first) = queue.recv() {
        let started = Instant::now();
        let connection = match begin(place, &mut open_connection) {
            Ok(connection) => connection,
            Err(error) => {
                tracing::error!(%error, "cannot begin a transaction");
                // Nothing ran, so there is nothing to roll back if this panics.
                let _ = catch_panic(CHANGE, || (first(Err(error), Isolation::Savepoint).respond)(None));
                continue;
            }
        };
        let mut responders = Vec::new();
        let mut next = Some(first);
        let mut intact = true;
        // A PostgreSQL connection is replaced after a failed transaction, so there a savepoint is cheaper.
        let mut isolation = if connection.is_sqlite() { Isolation::Transaction } else { Isolation::Savepoint };
        while let Some(change) = next.take() {
            // `run_change` catches panics of the change itself; this catches panics while the caller's types are converted or dropped.
            match catch_panic(CHANGE, || change(Ok(connection), isolation)) {
                Ok(uncommitted) => {
                    intact = uncommitted.intact;
                    responders.push(uncommitted.respond);
                }
                Err(_) => intact = false,
            }
            // The first change failed alone: only its own work is rolled back, and its caller gets its own error.
            if !intact && isolation == Isolation::Transaction {
                break;
            }
            isolation = Isolation::Savepoint;
            if intact && responders.len() < MAX_GROUP_SIZE && started.elapsed() < MAX_GROUP_TIME {
                next = queue.try_recv().ok();
            }
        }
        let failed_alone = !intact && isolation == Isolation::Transaction;
        let committed = if intact && !connection.is_aborted() {
            connection.statement("COMMIT")
        } else {
            Err(StoreError::Commit("another change of the same group broke the transaction".into()))
        };
        if let Err(error) = &committed {
            if !failed_alone {
                tracing::error!(%error, changes = responders.len(), "commit failed; the group is rolled back");
            }
            if !connection.abandon() {
                open_connection = None;
            }
        }
        for respond in responders {
            let commit_error = committed.as_ref().err().map(commit_error_of_change);
            // A panic while the result is sent or dropped does not change the outcome.
            let _ = catch_panic(CHANGE, || respond(commit_error));
        }
    }
    if let Some(connection) = open_connection {
        connection.checkpoint();
    }
}

/// Begins a transaction, on a new connection if the old one is lost. Reconnecting is safe here, because no statement of the group
/// has run yet.
fn begin<'a>(place: &Place, open_connection: &'a mut Option<Connection>) -> Result<&'a Connection> {
    if let Some(connection) = open_connection.take().filter(|connection| !connection.is_closed()) {
        match connection.begin_write() {
            Ok(()) => return Ok(open_connection.insert(connection)),
            // On any error the connection is dropped, because it may be inside a transaction that rejects all statements.
            Err(StoreError::Unreachable(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let connection = place.writer()?;
    connection.begin_write()?;
    Ok(open_connection.insert(connection))
}

/// A copy of the commit error of a group for one of its changes, because [`StoreError`] is not `Clone`.
fn commit_error_of_change(error: &StoreError) -> StoreError {
    match error {
        StoreError::OutOfSpace { what, reason } => {
            StoreError::OutOfSpace { what: what.clone(), reason: reason.clone() }
        }
        StoreError::Commit(reason) => StoreError::Commit(reason.clone()),
        other => StoreError::Commit(other.to_string()),
    }
}
