//! A controller's part in a leader election, as a task of this process.

use parking_lot::Mutex;
use slipway_core::task::restart_on_panic;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::leader::Election;

/// The task of an election. Dropping it stops the task like [`Participant::stop`], but without waiting.
pub(crate) struct Participant {
    leading: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    /// The task; `None` after `stop`.
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Participant {
    /// Starts the election and, while this process leads, the work. `name` is that of the controller in the log.
    pub(crate) fn start<W: Future<Output = ()> + Send + 'static>(
        name: &'static str,
        election: Election,
        work: impl Fn() -> W + Clone + Send + Sync + 'static,
    ) -> Self {
        let (sender, leading) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        // Restarting after a panic is safe: the work starts by listing all objects, and the same participant continues to renew the lease.
        // If the lease expires meanwhile, another participant leads.
        let task = tokio::spawn(restart_on_panic(name, move || {
            let mut stopped = stopped.clone();
            sender.send_replace(false);
            let stopped = async move {
                let _ = stopped.wait_for(|s| *s).await; // an error means that the sender was dropped, so stop as well
            };
            election.clone().run(sender.clone(), stopped, work.clone())
        }));
        Self { leading, stop, task: Mutex::new(Some(task)) }
    }

    /// Whether this process leads.
    pub(crate) fn leads(&self) -> bool {
        *self.leading.borrow()
    }

    /// Stops the work and releases the lease, so that another participant can lead at once.
    pub(crate) async fn stop(&self) {
        let Some(task) = self.task.lock().take() else { return };
        self.stop.send_replace(true);
        if let Err(error) = task.await {
            tracing::warn!(%error, "the task of the leader election failed");
        }
    }
}
