//! The messages of the queue: files as Celery, the task queue that DVC uses, writes and reads them on a local file system. A message in `in` waits; a
//! worker takes it by renaming it into `processed`, which only one can do. The outcome of a task is a file in `result`.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Entry;
use super::records::{read, write};
use crate::error::DataError;

/// The task that runs an experiment.
pub(super) const TASK: &str = "dvc.repo.experiments.queue.tasks.run_exp";
/// The end of the names of messages in the queue of tasks. Others are for the control of workers.
const SUFFIX: &str = "celery.msg";

/// A message that asks for the execution of an experiment.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// The id of the task.
    pub(super) id: String,
    pub(super) entry: Entry,
    pub(super) copy_paths: Vec<String>,
    pub(super) message: Option<String>,
    /// The name of the file.
    file: String,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It ran to its end, whatever the result of the experiment is.
    Ended,
    /// It was killed.
    Killed,
}

#[derive(Deserialize)]
struct Envelope {
    body: String,
    headers: Headers,
}

#[derive(Deserialize)]
struct Headers {
    task: Option<String>,
    id: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Keywords {
    #[serde(default)]
    entry_dict: Option<Entry>,
    #[serde(default)]
    copy_paths: Option<Vec<String>>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct Meta {
    status: String,
}

/// The folder of messages and results.
#[derive(Debug, Clone)]
pub(super) struct Broker {
    folder: PathBuf,
}

impl Broker {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of the tables that say which queues a message goes to.
    pub(super) fn control(&self) -> PathBuf {
        self.folder.join("broker/control")
    }

    /// The folder of the messages that wait.
    pub(super) fn waiting(&self) -> PathBuf {
        self.folder.join("broker/in")
    }

    fn processed(&self) -> PathBuf {
        self.folder.join("broker/processed")
    }

    fn result(&self, id: &str) -> PathBuf {
        self.folder.join("result").join(format!("celery-task-meta-{id}"))
    }

    /// Creates the folders that are missing.
    pub(super) fn create_folders(&self) -> Result<(), DataError> {
        for folder in [self.waiting(), self.processed(), self.control(), self.folder.join("result")] {
            std::fs::create_dir_all(&folder).map_err(DataError::io(&folder))?;
        }
        Ok(())
    }

    /// Asks for the execution of an experiment.
    pub(super) fn put(&self, entry: &Entry, copy_paths: &[String], message: Option<&str>) -> Result<(), DataError> {
        let folder = self.waiting();
        self.create_folders()?;
        let keywords = json!({"copy_paths": copy_paths, "message": message});
        let embedded = json!({"callbacks": null, "errbacks": null, "chain": null, "chord": null});
        let body = json!([[entry], keywords, embedded]).to_string();
        let id = uuid();
        let short = entry.stash_rev.get(..7).unwrap_or_default();
        let envelope = json!({
            "body": STANDARD.encode(body),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py", "task": TASK, "id": id, "shadow": null, "eta": null, "expires": null, "group": null,
                "group_index": null, "retries": 0, "timelimit": [null, null], "root_id": id, "parent_id": null,
                "argsrepr": format!("('{short}',)"), "kwargsrepr": "{}", "origin": "slipway", "ignore_result": false,
                "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {},
            },
            "properties": {
                "correlation_id": id, "reply_to": uuid(), "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "celery"},
                "priority": 0, "body_encoding": "base64", "delivery_tag": uuid(),
            },
        });
        write(&folder.join(new_name(&folder, SUFFIX)?), &envelope)
    }

    /// The messages that wait, in their order.
    pub(super) fn queued(&self) -> Result<Vec<Message>, DataError> {
        self.messages(&self.waiting())
    }

    /// The messages that workers took.
    pub(super) fn taken(&self) -> Result<Vec<Message>, DataError> {
        self.messages(&self.processed())
    }

    fn messages(&self, folder: &Path) -> Result<Vec<Message>, DataError> {
        let mut messages = Vec::new();
        for file in entries(folder, SUFFIX)? {
            let path = folder.join(&file);
            // A message that was taken since is in the other folder.
            let Some(envelope) = read::<Envelope>(&path)? else { continue };
            if envelope.headers.task.as_deref() != Some(TASK) {
                continue;
            }
            let invalid = || DataError::file(&path, 0, "it is not a message of DVC's queue of experiments");
            let body = STANDARD.decode(&envelope.body).map_err(|_| invalid())?;
            let (arguments, keywords, _): (Vec<Value>, Keywords, Value) =
                serde_json::from_slice(&body).map_err(|_| invalid())?;
            let first = arguments.into_iter().next().map(serde_json::from_value::<Entry>);
            let entry = match (keywords.entry_dict, first) {
                (Some(entry), _) | (None, Some(Ok(entry))) => entry,
                _ => return Err(invalid()),
            };
            messages.push(Message {
                id: envelope.headers.id.ok_or_else(invalid)?,
                entry,
                copy_paths: keywords.copy_paths.unwrap_or_default(),
                message: keywords.message,
                file,
            });
        }
        Ok(messages)
    }

    /// Takes a message that waits. False if another worker did, or it was removed.
    pub(super) fn take(&self, message: &Message) -> Result<bool, DataError> {
        let from = self.waiting().join(&message.file);
        match std::fs::rename(&from, self.processed().join(&message.file)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(DataError::io(&from)(error)),
        }
    }

    /// Removes a message that waits. False if a worker took it.
    pub(super) fn reject(&self, message: &Message) -> Result<bool, DataError> {
        remove(&self.waiting().join(&message.file))
    }

    /// Removes a message that was taken, and its outcome.
    pub(super) fn purge(&self, message: &Message) -> Result<(), DataError> {
        remove(&self.result(&message.id))?;
        remove(&self.processed().join(&message.file)).map(drop)
    }

    /// How a task ended; `None` if it did not.
    pub(super) fn outcome(&self, id: &str) -> Result<Option<Outcome>, DataError> {
        let meta: Option<Meta> = read(&self.result(id))?;
        Ok(match meta.as_ref().map(|meta| meta.status.as_str()) {
            Some("SUCCESS") => Some(Outcome::Ended),
            Some("FAILURE" | "REVOKED") => Some(Outcome::Killed),
            _ => None,
        })
    }

    /// Records how a task ended.
    pub(super) fn finish(&self, id: &str, outcome: Outcome) -> Result<(), DataError> {
        let (status, result) = match outcome {
            Outcome::Ended => ("SUCCESS", Value::Null),
            Outcome::Killed => (
                "FAILURE",
                json!({"exc_type": "ChildProcessError", "exc_message": ["killed"], "exc_module": "builtins"}),
            ),
        };
        let done = slipway_core::clock::rfc3339(slipway_core::clock::now_ms()).replace('Z', "+00:00");
        let meta = json!({
            "status": status, "result": result, "traceback": null, "children": [], "date_done": done, "task_id": id,
        });
        write(&self.result(id), &meta)
    }

    /// Removes the messages for the control of workers that nobody took, such as late replies.
    pub(super) fn clean(&self) -> Result<(), DataError> {
        for folder in [self.waiting(), self.processed()] {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.ends_with(".celery.pidbox.msg") {
                    remove(&entry.path())?;
                }
            }
        }
        Ok(())
    }
}

/// The names of the messages in a folder that end with a dot and `suffix`, in their order.
pub(super) fn entries(folder: &Path, suffix: &str) -> Result<Vec<String>, DataError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(DataError::io(folder)(error)),
    };
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.split_once('.').is_some_and(|(_, rest)| rest == suffix));
    names.sort();
    Ok(names)
}

/// The name of a new message in a folder.
pub(super) fn new_name(folder: &Path, suffix: &str) -> Result<String, DataError> {
    Ok(format!("{}_{}.{suffix}", next_number(&entries(folder, suffix)?), uuid()))
}

/// The number at the beginning of a new message: milliseconds since the start of the machine, as Python's monotonic clock counts them on Linux, and
/// more than those of the messages that wait, which come first.
fn next_number(names: &[String]) -> u64 {
    let numbers = names.iter().filter_map(|name| name.split_once('_')?.0.parse::<u64>().ok());
    let after = numbers.max().map_or(0, |last| last.saturating_add(1));
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let hundredths = uptime.split(' ').next().and_then(|seconds| seconds.replace('.', "").parse::<u64>().ok());
    after.max(hundredths.unwrap_or(0) * 10)
}

pub(super) fn remove(path: &Path) -> Result<bool, DataError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DataError::io(path)(error)),
    }
}

pub(super) fn uuid() -> String {
    let hex = slipway_core::ids::hex32();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let broker = Broker::new(folder.path().to_owned());
        for name in ["a", "b", "c"] {
            let entry = Entry { stash_rev: name.repeat(40), name: Some(name.into()), ..Entry::default() };
            broker.put(&entry, &["data".into()], Some("text")).unwrap();
        }
        let queued = broker.queued().unwrap();
        let shown: Vec<&str> = queued.iter().map(|message| message.entry.name.as_deref().unwrap()).collect();
        assert_eq!(shown, ["a", "b", "c"]);
        assert_eq!(
            (queued[0].copy_paths.as_slice(), queued[0].message.as_deref()),
            (&["data".into()][..], Some("text"))
        );
        assert!(broker.take(&queued[0]).unwrap() && !broker.take(&queued[0]).unwrap());
        assert!(broker.reject(&queued[1]).unwrap() && !broker.reject(&queued[0]).unwrap());
        assert_eq!((broker.queued().unwrap().len(), broker.taken().unwrap().len()), (1, 1));
        assert_eq!(broker.outcome(&queued[0].id).unwrap(), None);
        broker.finish(&queued[0].id, Outcome::Killed).unwrap();
        assert_eq!(broker.outcome(&queued[0].id).unwrap(), Some(Outcome::Killed));
        broker.purge(&queued[0]).unwrap();
        assert_eq!((broker.taken().unwrap().len(), broker.outcome(&queued[0].id).unwrap()), (0, None));
    }
}
