//! The control of workers by Celery's messages, with which DVC lists and stops them. A worker has a mailbox: a line in a table of the broker, for
//! which each request is a file beside the messages of the queue. So `dvc queue stop`, `status` and `start` see the workers of slipway as their own.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::FlockOperation;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Message;
use super::broker::{Broker, TASK, entries, new_name, remove, uuid};
use super::records::{read, write};
use crate::error::DataError;

/// The exchange for requests to all workers.
const EXCHANGE: &str = "celery.pidbox";
/// Maximum bytes of the table of mailboxes.
const MAX_TABLE: u64 = 1 << 20;

#[derive(Deserialize)]
struct Envelope {
    body: String,
}

#[derive(Deserialize)]
struct Body {
    method: String,
    #[serde(default)]
    destination: Option<Vec<String>>,
    #[serde(default)]
    ticket: Option<String>,
    #[serde(default)]
    reply_to: Option<Address>,
}

#[derive(Deserialize)]
struct Address {
    exchange: String,
    routing_key: String,
}

/// The mailbox of a worker, as long as this exists.
#[derive(Debug)]
pub(super) struct Mailbox {
    broker: Broker,
    node: String,
}

impl Mailbox {
    /// Opens the mailbox of the worker with a number. Requests to a former worker with this number are removed.
    ///
    /// # Errors
    /// If a file of the broker cannot be read or changed.
    pub(super) fn open(broker: &Broker, number: usize) -> Result<Self, DataError> {
        let folder = broker.folder().to_string_lossy();
        let digest = ring::digest::digest(&ring::digest::SHA256, folder.as_bytes());
        let short: String = digest.as_ref().iter().take(3).map(|byte| format!("{byte:02x}")).collect();
        let mailbox = Self { broker: broker.clone(), node: format!("dvc-exp-{short}-{number}@localhost") };
        broker.create_folders()?;
        mailbox.bind(true)?;
        for name in mailbox.names()? {
            remove(&broker.waiting().join(name))?;
        }
        Ok(mailbox)
    }

    fn queue(&self) -> String {
        format!("{}.{EXCHANGE}", self.node)
    }

    /// Adds the mailbox to the table, or removes it. The table is locked and changed in place, as Celery's library does.
    fn bind(&self, is_bound: bool) -> Result<(), DataError> {
        let path = self.broker.control().join(format!("{EXCHANGE}.exchange"));
        let own = self.queue();
        let change = |mut file: File| -> std::io::Result<()> {
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            let mut text = String::new();
            (&mut file).take(MAX_TABLE).read_to_string(&mut text)?;
            let parsed = if text.is_empty() { Ok(Vec::new()) } else { serde_json::from_str(&text) };
            let mut table: Vec<(String, String, String)> = match parsed {
                Ok(table) => table,
                // The mailboxes of others are not lost for the sake of this one.
                Err(error) => return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, error)),
            };
            table.retain(|(.., queue)| *queue != own);
            if is_bound {
                table.insert(0, (String::new(), String::new(), own));
            }
            let text = json!(table).to_string();
            file.seek(SeekFrom::Start(0))?;
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)
        };
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        opened.and_then(change).map_err(DataError::io(&path))
    }

    fn names(&self) -> Result<Vec<String>, DataError> {
        entries(&self.broker.waiting(), &format!("{}.msg", self.queue()))
    }

    /// Serves the requests that wait, while the worker executes `running`. True if one is to stop.
    ///
    /// # Errors
    /// If a file of the broker cannot be read or changed.
    pub(super) fn serve(&self, running: Option<&Message>) -> Result<bool, DataError> {
        let mut is_ending = false;
        for name in self.names()? {
            let path = self.broker.waiting().join(name);
            // An empty file is being written.
            let Some(envelope) = read::<Envelope>(&path)? else { continue };
            remove(&path)?;
            let body = STANDARD.decode(&envelope.body).ok().and_then(|body| serde_json::from_slice::<Body>(&body).ok());
            let Some(body) = body else { continue };
            if body.destination.as_ref().is_some_and(|nodes| !nodes.contains(&self.node)) {
                continue;
            }
            is_ending |= body.method == "shutdown";
            if let Some(address) = &body.reply_to {
                self.reply(address, body.ticket.as_deref(), &response(&body.method, running))?;
            }
        }
        Ok(is_ending)
    }

    fn reply(&self, to: &Address, ticket: Option<&str>, response: &Value) -> Result<(), DataError> {
        let queue = format!("{}.{}", to.routing_key, to.exchange);
        send(&self.broker, &queue, to, &json!({"ticket": ticket, "clock": 1}), &json!({&self.node: response}))
    }
}

/// Requests the workers with mailboxes, those of DVC included, to end after their present experiments, as `dvc queue stop` does. A signal to a
/// worker of DVC would not do: it would still execute the experiment that it has taken from the queue in advance.
///
/// # Errors
/// If a file of the broker cannot be read or written.
pub(super) fn shut_down(broker: &Broker) -> Result<(), DataError> {
    let path = broker.control().join(format!("{EXCHANGE}.exchange"));
    let table: Vec<(String, String, String)> = read(&path)?.unwrap_or_default();
    let to = Address { exchange: EXCHANGE.into(), routing_key: String::new() };
    let body = json!({"method": "shutdown", "arguments": {}, "destination": null, "pattern": null, "matcher": null});
    for (.., queue) in table {
        send(broker, &queue, &to, &json!({"clock": 1, "expires": null}), &body)?;
    }
    Ok(())
}

/// Writes a message in Celery's form.
fn send(broker: &Broker, queue: &str, to: &Address, headers: &Value, body: &Value) -> Result<(), DataError> {
    // It becomes the name of a file.
    if !queue.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@')) {
        return Ok(());
    }
    let envelope = json!({
        "body": STANDARD.encode(body.to_string()),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": {
            "delivery_mode": 1,
            "delivery_info": {"exchange": to.exchange, "routing_key": to.routing_key},
            "priority": 0, "body_encoding": "base64", "delivery_tag": uuid(),
        },
    });
    let folder = broker.waiting();
    write(&folder.join(new_name(&folder, &format!("{queue}.msg"))?), &envelope)
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let _ = self.bind(false); // Best effort: a mailbox of a worker that is gone is emptied by the next one.
    }
}

/// The response to a request, in Celery's form.
fn response(method: &str, running: Option<&Message>) -> Value {
    match method {
        "ping" => json!({"ok": "pong"}),
        "active" => match running {
            Some(message) => json!([{"id": message.id, "name": TASK, "args": [message.entry], "kwargs": {}}]),
            None => json!([]),
        },
        "scheduled" | "reserved" => json!([]),
        "shutdown" => Value::Null,
        _ => json!({"error": format!("slipway does not know the method {method}")}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(broker: &Broker, node: &str, body: &Value) {
        let name = new_name(&broker.waiting(), &format!("{node}.{EXCHANGE}.msg")).unwrap();
        write(&broker.waiting().join(name), &json!({"body": STANDARD.encode(body.to_string())})).unwrap();
    }

    #[test]
    fn a_worker_replies_and_stops_on_request() {
        let folder = tempfile::tempdir().unwrap();
        let broker = Broker::new(folder.path().to_owned());
        let mailbox = Mailbox::open(&broker, 1).unwrap();
        let node = mailbox.node.clone();
        let table = broker.control().join("celery.pidbox.exchange");
        assert!(std::fs::read_to_string(&table).unwrap().contains(&node));
        request(&broker, &node, &json!({"method": "shutdown", "destination": ["another@localhost"]}));
        let to = json!({"exchange": "reply.celery.pidbox", "routing_key": "r"});
        request(&broker, &node, &json!({"method": "ping", "ticket": "t", "reply_to": to}));
        let outside = json!({"exchange": "/../../x", "routing_key": "r"});
        request(&broker, &node, &json!({"method": "ping", "ticket": "t", "reply_to": outside}));
        assert!(!mailbox.serve(None).unwrap());
        assert!(mailbox.names().unwrap().is_empty());
        let replies = entries(&broker.waiting(), "r.reply.celery.pidbox.msg").unwrap();
        assert_eq!(replies.len(), 1);
        let reply: Value = read(&broker.waiting().join(&replies[0])).unwrap().unwrap();
        assert_eq!(reply["headers"]["ticket"], "t");
        let body = STANDARD.decode(reply["body"].as_str().unwrap()).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), json!({&node: {"ok": "pong"}}));
        request(&broker, &node, &json!({"method": "shutdown", "destination": null}));
        // What was sent to a former worker does not stop the next one.
        let next = Mailbox::open(&broker, 1).unwrap();
        assert!(!next.serve(None).unwrap());
        request(&broker, &node, &json!({"method": "shutdown"}));
        assert!(next.serve(None).unwrap());
        // A request to all of them.
        shut_down(&broker).unwrap();
        assert!(next.serve(None).unwrap());
        drop(mailbox);
        assert!(!std::fs::read_to_string(&table).unwrap().contains(&node));
    }
}
