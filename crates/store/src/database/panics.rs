//! Handling of panics. A panic ends either only the work that panicked, or the whole process. It never silently ends a thread whose
//! callers would then wait for ever.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::StoreError;
use crate::error::Result;

/// Runs `work` and converts a panic into [`StoreError::Panicked`]. The caller must restore the state that it shares with `work`: roll
/// back the transaction, or close the connection.
pub(super) fn catch_panic<R>(what: &'static str, work: impl FnOnce() -> R) -> Result<R> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        tracing::error!(panic = message(payload.as_ref()), "{what} panicked");
        // Leak the payload: its `drop` may panic again, outside of `catch_unwind`.
        std::mem::forget(payload);
        StoreError::Panicked(what)
    })
}

/// Runs the body of a thread that the process cannot work without, and aborts the process if it panics. The service manager then
/// restarts the process, which would otherwise keep running and fail every write. No acknowledged write is lost.
pub(super) fn abort_on_panic(what: &'static str, body: impl FnOnce()) {
    if let Err(StoreError::Panicked(_)) = catch_panic(what, body) {
        tracing::error!("{what} cannot continue; aborting the process");
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
        assert_eq!(catch_panic("work", || 7).unwrap(), 7);
        assert!(matches!(catch_panic("work", || panic!("on purpose")), Err(StoreError::Panicked("work"))));
    }

    /// Runs itself again in a child process, which must end with SIGABRT.
    #[test]
    fn panic_of_a_required_thread_aborts_the_process() {
        const IN_CHILD: &str = "SLIPWAY_TEST_ABORT";
        if std::env::var_os(IN_CHILD).is_some() {
            let thread = std::thread::spawn(|| abort_on_panic("the thread", || panic!("on purpose")));
            let _ = thread.join(); // not reached: the process aborts first
            return;
        }
        let name = "database::panics::tests::panic_of_a_required_thread_aborts_the_process";
        let ended = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(IN_CHILD, "1")
            .output()
            .unwrap();
        let aborted = std::os::unix::process::ExitStatusExt::signal(&ended.status);
        assert_eq!(aborted, Some(6), "the child ended with {} instead of SIGABRT", ended.status);
    }
}
