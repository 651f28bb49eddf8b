//! Supervision of background tasks that must run as long as the process does.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;

/// Delay between a panic of a task and its restart, so that a task that panics at once does not use a whole core.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Runs a task until it ends and restarts it when it panics. Without the restart, its clients would wait forever and the log would not say
/// why. Dropping the future aborts the task.
pub async fn restart_on_panic<F>(name: &'static str, start: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        // A `JoinSet` of one task, because dropping the set aborts the task.
        let mut task = JoinSet::new();
        task.spawn(start());
        match task.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(task = name, %error, "a background task panicked and is restarted");
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
    async fn panicking_task_is_restarted_until_it_ends_normally() {
        let starts = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&starts);
        restart_on_panic("test", move || {
            let number = counter.fetch_add(1, SeqCst);
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
    async fn dropping_the_future_aborts_the_task() {
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
        assert!(receiver.await.is_err(), "the task and its captured values are dropped");
    }
}
