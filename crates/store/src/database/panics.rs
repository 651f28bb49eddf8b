//! What a panic may end: the work that panicked, or the whole process, but never a thread that others go on waiting for.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::StoreError;
use crate::error::Result;

/// Runs `work`; a panic becomes [`StoreError::Panicked`]. What `work` shares with the caller must be put right by the caller: a
/// transaction is rolled back, a connection closed.
pub(super) fn catching<R>(what: &'static str, work: impl FnOnce() -> R) -> Result<R> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        tracing::error!(panic = message(payload.as_ref()), "{what} panicked");
        // Dropping a panic's value may panic again, outside of anything that catches it.
        std::mem::forget(payload);
        StoreError::Panicked(what)
    })
}

/// Runs the body of a thread without which the process is of no use. A panic ends the process, which whoever supervises it starts
/// again; without this it would stay alive and answer every write with an error. Nothing that was acknowledged is lost by an abort.
pub(super) fn or_abort(what: &'static str, body: impl FnOnce()) {
    if let Err(StoreError::Panicked(_)) = catching(what, body) {
        tracing::error!("{what} cannot go on; the process ends");
        std::process::abort();
    }
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        assert_eq!(catching("work", || 7).unwrap(), 7);
        assert!(matches!(catching("work", || panic!("on purpose")), Err(StoreError::Panicked("work"))));
    }

    /// In a process of its own, this test again, which the abort ends.
    #[test]
    fn a_thread_that_must_live_takes_the_process_with_it() {
        const INSIDE: &str = "SLIPWAY_TEST_ABORT";
        if std::env::var_os(INSIDE).is_some() {
            let thread = std::thread::spawn(|| or_abort("the thread", || panic!("on purpose")));
            let _ = thread.join(); // never reached: the process ends first
            return;
        }
        let name = "database::panics::tests::a_thread_that_must_live_takes_the_process_with_it";
        let ended = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let aborted = std::os::unix::process::ExitStatusExt::signal(&ended.status);
        assert_eq!(aborted, Some(6), "it ended with {} instead of SIGABRT", ended.status);
    }
}
