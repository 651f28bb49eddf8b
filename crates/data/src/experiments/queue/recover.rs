//! What a killed process left open is closed: a result that was complete is collected, anything else counts as failed.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::broker::Outcome;
use super::execute::{collect, remove_place};
use super::records::{Records, status};
use super::{Message, Queue};
use crate::error::DataError;
use crate::revision::QUEUE;

/// The time that killed commands have to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The exit code of a process that was killed.
const KILLED: i32 = -9;

impl Queue {
    /// Closes the executions whose processes do not live any more.
    ///
    /// # Errors
    /// If a file or reference cannot be changed.
    pub fn recover(&self) -> Result<(), DataError> {
        for message in self.broker.taken()? {
            let records = self.records(&message.entry);
            if records.is_own() && self.is_open(&message, &records)? {
                self.close(&message, &records)?;
            }
        }
        Ok(())
    }

    /// Whether something of an execution is not recorded or not removed.
    fn is_open(&self, message: &Message, records: &Records) -> Result<bool, DataError> {
        let has_place = records.info()?.is_some_and(|info| std::path::Path::new(&info.root_dir).exists());
        let is_running = records.process()?.is_some_and(|process| process.returncode.is_none());
        Ok(has_place || is_running || self.broker.outcome(&message.id)?.is_none())
    }

    /// Closes an execution, unless it runs.
    pub(super) fn close(&self, message: &Message, records: &Records) -> Result<(), DataError> {
        // While this holds the lock, nobody else closes it.
        let Some(_lock) = lock_of_dead(records)? else { return Ok(()) };
        let outcome = match self.broker.outcome(&message.id)? {
            Some(_) => None,
            None => Some(self.settle(message, records)?),
        };
        if let Some(mut process) = records.process()?
            && process.returncode.is_none()
        {
            process.returncode = Some(KILLED);
            records.set_process(&process)?;
        }
        let removed = records.info()?.map_or(Ok(()), |info| remove_place(self, &info));
        // The outcome comes last, because commands that wait for it expect that nothing else is left to do.
        if let Some(outcome) = outcome {
            self.broker.finish(&message.id, outcome)?;
        }
        removed
    }

    /// Collects the result of an execution without an outcome, or marks it as failed, and returns what its outcome is.
    fn settle(&self, message: &Message, records: &Records) -> Result<Outcome, DataError> {
        let mut info = records.info()?;
        let is_collected = info.as_ref().is_some_and(|info| match info.status {
            status::FINISHED => true,
            status::SUCCESS => collect(&self.git, info).is_ok(),
            _ => false,
        });
        if let Some(info) = &mut info {
            info.status = if is_collected { status::FINISHED } else { status::FAILED };
            if !is_collected {
                (info.result_hash, info.result_ref) = (None, None);
            }
            records.set_info(info)?;
        }
        if is_collected {
            self.drop_stashed(&message.entry, &[QUEUE])?;
            Ok(Outcome::Ended)
        } else {
            self.stash_failed(&message.entry)?;
            Ok(Outcome::Killed)
        }
    }
}

/// Takes the lock of an execution whose process is dead; `None` if it runs. The commands that it started hold the lock, too: if they outlived the
/// process, they are killed, because nobody would record what they do, and git could create the folder of the execution after its removal.
fn lock_of_dead(records: &Records) -> Result<Option<File>, DataError> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        if let Some(lock) = records.lock()? {
            return Ok(Some(lock));
        }
        let Some(process) = records.process()? else { return Ok(None) };
        // While a process of the group lives, the system gives its number to no other.
        if process.is_alive() || process.returncode.is_some() || Instant::now() > deadline {
            return Ok(None);
        }
        process.signal_group(Signal::KILL);
        std::thread::sleep(POLL_INTERVAL);
    }
}
