//! Background tasks that must live as long as the process.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;

/// Time between a panic of a task and its next start, so that a task that panics at once does not use a whole core.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Runs a task until it ends, and starts it again when it panics: whoever relies on it would otherwise wait for ever without a word in the
/// log. Dropping the future ends the task.
pub async fn restart_on_panic<F>(name: &'static str, start: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        // A set of one, because dropping it aborts the task.
        let mut task = JoinSet::new();
        task.spawn(start());
        match task.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(task = name, %error, "a background task panicked and is started again");
                tokio::time::sleep(RESTART_DELAY).await;
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_and_one_that_ends_is_not() {
        let starts = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&starts);
        restart_on_panic("test", move || {
            let number = counted.fetch_add(1, SeqCst);
            async move {
                if number < 2 {
                    std::panic::panic_any("a defect");
                }
            }
        })
        .await;
        assert_eq!(starts.load(SeqCst), 3);
    }

    #[tokio::test]
    async fn dropping_it_ends_the_task() {
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let held = std::sync::Mutex::new(Some(sender));
        let running = tokio::spawn(restart_on_panic("test", move || {
            let sender = held.lock().unwrap().take();
            async move {
                let _sender = sender;
                std::future::pending::<()>().await;
            }
        }));
        tokio::task::yield_now().await;
        running.abort();
        assert!(receiver.await.is_err(), "the task and what it held are gone");
    }
}
