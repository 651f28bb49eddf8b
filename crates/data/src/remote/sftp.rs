//! A client of the SSH file transfer protocol, version 3 (draft-ietf-secsh-filexfer-02), which OpenSSH and other servers speak. Any number of
//! requests are on their way at the same time over one connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use super::backend::Failure;

/// Bytes that are read or written by one request; all servers accept this number.
pub(crate) const BLOCK_BYTES: usize = 32 << 10;
/// Maximum bytes of a packet.
const MAX_PACKET_BYTES: usize = 1 << 20;
/// Requests that wait to be sent.
const QUEUE: usize = 64;

const INIT: u8 = 1;
const VERSION: u8 = 2;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const STAT: u8 = 17;
const RENAME: u8 = 18;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRIBUTES: u8 = 105;
const EXTENDED: u8 = 200;

/// `SSH_FXF_READ`
const FOR_READING: u32 = 1;
/// `SSH_FXF_WRITE | SSH_FXF_CREAT | SSH_FXF_TRUNC`
const FOR_WRITING: u32 = 0x1a;
/// The bits of permissions that are the type of a file.
const TYPE: u32 = 0o170_000;
/// The type of a folder.
const FOLDER: u32 = 0o040_000;
/// The type of a symbolic link.
const LINK: u32 = 0o120_000;
/// The rename of OpenSSH, which replaces an existing file atomically.
const POSIX_RENAME: &str = "posix-rename@openssh.com";

type Pending = Arc<Mutex<HashMap<u32, oneshot::Sender<Vec<u8>>>>>;

/// A connection.
#[derive(Debug)]
pub(crate) struct Sftp {
    requests: mpsc::Sender<Vec<u8>>,
    pending: Pending,
    next: AtomicU32,
    is_open: Arc<AtomicBool>,
    replaces: bool,
}

/// What the server reports about a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Attributes {
    /// Bytes.
    pub(crate) size: Option<u64>,
    /// The permissions, with the type.
    permissions: Option<u32>,
}

impl Attributes {
    fn is(self, kind: u32) -> bool {
        self.permissions.is_some_and(|permissions| permissions & TYPE == kind)
    }

    pub(crate) fn is_folder(self) -> bool {
        self.is(FOLDER)
    }

    pub(crate) fn is_link(self) -> bool {
        self.is(LINK)
    }
}

/// An open file or folder on the server.
#[derive(Debug, Clone)]
pub(crate) struct Handle(Vec<u8>);

impl Sftp {
    /// Agrees on the version with the server at the other end of the streams.
    pub(crate) async fn start(
        mut reader: impl AsyncRead + Unpin + Send + 'static,
        mut writer: impl AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Self, Failure> {
        let mut init = Packet::new(INIT);
        init.number(3);
        writer.write_all(&init.finish()).await.map_err(broken)?;
        writer.flush().await.map_err(broken)?;
        let hello = read_packet(&mut reader).await.map_err(broken)?;
        let mut fields = Fields(&hello);
        if fields.byte()? != VERSION || fields.number()? < 3 {
            return Err(Failure::Permanent("the server does not speak version 3 of SFTP".into()));
        }
        let mut replaces = false;
        while !fields.0.is_empty() {
            replaces |= fields.bytes()? == POSIX_RENAME.as_bytes();
            fields.bytes()?;
        }
        let pending: Pending = Arc::default();
        let is_open = Arc::new(AtomicBool::new(true));
        let (requests, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
        tokio::spawn(async move {
            while let Some(request) = queue.recv().await {
                let sent = async {
                    writer.write_all(&request).await?;
                    if queue.is_empty() { writer.flush().await } else { Ok(()) }
                };
                if sent.await.is_err() {
                    return; // The other task notices that the connection is closed.
                }
            }
        });
        let (responses, open) = (Arc::clone(&pending), Arc::clone(&is_open));
        tokio::spawn(async move {
            while let Ok(packet) = read_packet(&mut reader).await {
                let id = packet.get(1..5).and_then(|id| id.try_into().ok()).map(u32::from_be_bytes);
                let waiting = id.and_then(|id| lock(&responses).remove(&id));
                if let Some(waiting) = waiting {
                    let _ = waiting.send(packet); // The request may have been cancelled.
                }
            }
            open.store(false, Ordering::Release);
            lock(&responses).clear(); // Whoever waits learns that there will be no response.
        });
        Ok(Self { requests, pending, next: AtomicU32::new(1), is_open, replaces })
    }

    /// Whether the connection still exists.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Sends a request, and returns the response with its type.
    async fn call(&self, kind: u8, fill: impl FnOnce(&mut Packet)) -> Result<(u8, Vec<u8>), Failure> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut packet = Packet::new(kind);
        packet.number(id);
        fill(&mut packet);
        let (sender, receiver) = oneshot::channel();
        lock(&self.pending).insert(id, sender);
        let closed = || Failure::Temporary("the connection was closed".into());
        if !self.is_open() || self.requests.send(packet.finish()).await.is_err() {
            lock(&self.pending).remove(&id);
            return Err(closed());
        }
        let mut response = receiver.await.map_err(|_| closed())?;
        let kind = response.first().copied().unwrap_or_default();
        let body = response.split_off(response.len().min(5));
        if kind == STATUS { status(&body).map(|()| (kind, body)) } else { Ok((kind, body)) }
    }

    async fn open(&self, path: &str, flags: u32) -> Result<Handle, Failure> {
        let (kind, body) = self
            .call(OPEN, |packet| {
                packet.bytes(path.as_bytes());
                packet.number(flags);
                packet.number(0);
            })
            .await?;
        expect(kind, HANDLE)?;
        Ok(Handle(Fields(&body).bytes()?.to_vec()))
    }

    /// Opens a file for reading.
    pub(crate) async fn open_file(&self, path: &str) -> Result<Handle, Failure> {
        self.open(path, FOR_READING).await
    }

    /// Creates a file, or empties an existing one.
    pub(crate) async fn create_file(&self, path: &str) -> Result<Handle, Failure> {
        self.open(path, FOR_WRITING).await
    }

    /// Closes a file or folder.
    pub(crate) async fn close(&self, handle: &Handle) -> Result<(), Failure> {
        self.call(CLOSE, |packet| packet.bytes(&handle.0)).await.map(drop)
    }

    /// Reads a block; `None` at the end of the file. It may be shorter than requested.
    pub(crate) async fn read(&self, handle: &Handle, from: u64, length: usize) -> Result<Option<Vec<u8>>, Failure> {
        let response = self
            .call(READ, |packet| {
                packet.bytes(&handle.0);
                packet.long(from);
                packet.number(u32::try_from(length).unwrap_or(u32::MAX));
            })
            .await;
        match response {
            Ok((kind, body)) => {
                expect(kind, DATA)?;
                Ok(Some(Fields(&body).bytes()?.to_vec()))
            }
            Err(Failure::Permanent(reason)) if reason == END_OF_FILE => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Writes a block.
    pub(crate) async fn write(&self, handle: &Handle, from: u64, block: &[u8]) -> Result<(), Failure> {
        let request = |packet: &mut Packet| {
            packet.bytes(&handle.0);
            packet.long(from);
            packet.bytes(block);
        };
        self.call(WRITE, request).await.map(drop)
    }

    /// What is at a path, behind links; `None` if there is nothing.
    pub(crate) async fn stat(&self, path: &str) -> Result<Option<Attributes>, Failure> {
        match self.call(STAT, |packet| packet.bytes(path.as_bytes())).await {
            Ok((kind, body)) => {
                expect(kind, ATTRIBUTES)?;
                Fields(&body).attributes().map(Some)
            }
            Err(Failure::NotFound) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Whether a path exists.
    pub(crate) async fn exists(&self, path: &str) -> Result<bool, Failure> {
        Ok(self.stat(path).await?.is_some())
    }

    /// The names in a folder, with the attributes of links themselves.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<(String, Attributes)>, Failure> {
        let (kind, body) = self.call(OPENDIR, |packet| packet.bytes(path.as_bytes())).await?;
        expect(kind, HANDLE)?;
        let handle = Handle(Fields(&body).bytes()?.to_vec());
        let mut entries = Vec::new();
        loop {
            match self.call(READDIR, |packet| packet.bytes(&handle.0)).await {
                Ok((kind, body)) => {
                    expect(kind, NAME)?;
                    let mut fields = Fields(&body);
                    for _ in 0..fields.number()? {
                        let name = String::from_utf8_lossy(fields.bytes()?).into_owned();
                        fields.bytes()?; // The line of `ls -l`.
                        let attributes = fields.attributes()?;
                        if name != "." && name != ".." {
                            entries.push((name, attributes));
                        }
                    }
                }
                Err(Failure::Permanent(reason)) if reason == END_OF_FILE => break,
                Err(failure) => return Err(failure),
            }
        }
        self.close(&handle).await?;
        Ok(entries)
    }

    /// Removes a file.
    pub(crate) async fn remove(&self, path: &str) -> Result<(), Failure> {
        self.call(REMOVE, |packet| packet.bytes(path.as_bytes())).await.map(drop)
    }

    /// Creates a folder, whose parent exists.
    pub(crate) async fn create_folder(&self, path: &str) -> Result<(), Failure> {
        let request = |packet: &mut Packet| {
            packet.bytes(path.as_bytes());
            packet.number(0);
        };
        self.call(MKDIR, request).await.map(drop)
    }

    /// Renames a file; an existing one is replaced.
    pub(crate) async fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        if self.replaces {
            let request = |packet: &mut Packet| {
                packet.bytes(POSIX_RENAME.as_bytes());
                packet.bytes(from.as_bytes());
                packet.bytes(to.as_bytes());
            };
            return self.call(EXTENDED, request).await.map(drop);
        }
        let request = || {
            self.call(RENAME, |packet| {
                packet.bytes(from.as_bytes());
                packet.bytes(to.as_bytes());
            })
        };
        match request().await {
            Err(Failure::Permanent(_)) if self.exists(to).await? => {
                self.remove(to).await?;
                request().await.map(drop)
            }
            renamed => renamed.map(drop),
        }
    }
}

/// The reason of the status at the end of a file or folder.
const END_OF_FILE: &str = "end of file";

/// The failure that a status means.
fn status(body: &[u8]) -> Result<(), Failure> {
    let mut fields = Fields(body);
    match fields.number()? {
        0 => Ok(()),
        1 => Err(Failure::Permanent(END_OF_FILE.into())),
        2 => Err(Failure::NotFound),
        _ => Err(Failure::Permanent(String::from_utf8_lossy(fields.bytes().unwrap_or_default()).into_owned())),
    }
}

fn expect(kind: u8, expected: u8) -> Result<(), Failure> {
    if kind == expected { Ok(()) } else { Err(Failure::Permanent(format!("unexpected response of type {kind}"))) }
}

fn broken(error: std::io::Error) -> Failure {
    Failure::Temporary(error.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_packet(reader: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let length = reader.read_u32().await? as usize;
    if length == 0 || length > MAX_PACKET_BYTES {
        return Err(std::io::Error::other(format!(
            "a packet of {length} bytes; does the server's shell print a text?"
        )));
    }
    let mut packet = vec![0; length];
    reader.read_exact(&mut packet).await?;
    Ok(packet)
}

/// A packet that is written: its length, its type and its fields.
struct Packet(Vec<u8>);

impl Packet {
    fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    fn number(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn long(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn bytes(&mut self, value: &[u8]) {
        self.number(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(value);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

/// The fields of a packet that are not read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Failure> {
        let invalid = || Failure::Permanent("a response of the server is too short".into());
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(invalid)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Failure> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u32, Failure> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn long(&mut self) -> Result<u64, Failure> {
        Ok(u64::from(self.number()?) << 32 | u64::from(self.number()?))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Failure> {
        let length = self.number()?;
        self.take(length as usize)
    }

    /// The attributes of a file.
    fn attributes(&mut self) -> Result<Attributes, Failure> {
        let flags = self.number()?;
        let mut attributes = Attributes::default();
        if flags & 1 != 0 {
            attributes.size = Some(self.long()?);
        }
        if flags & 2 != 0 {
            self.take(8)?; // The owner and group.
        }
        if flags & 4 != 0 {
            attributes.permissions = Some(self.number()?);
        }
        if flags & 8 != 0 {
            self.take(8)?; // The times.
        }
        if flags & 0x8000_0000 != 0 {
            for _ in 0..self.number()? {
                self.bytes()?;
                self.bytes()?;
            }
        }
        Ok(attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends these packets, each when it has received one.
    async fn connect(packets: Vec<Vec<u8>>) -> Result<Sftp, Failure> {
        let (client, mut server) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            for packet in packets {
                if read_packet(&mut server).await.is_err() {
                    return;
                }
                let length = u32::try_from(packet.len()).unwrap();
                server.write_all(&length.to_be_bytes()).await.unwrap();
                server.write_all(&packet).await.unwrap();
            }
        });
        let (reader, writer) = tokio::io::split(client);
        Sftp::start(reader, writer).await
    }

    const HELLO: [u8; 5] = [VERSION, 0, 0, 0, 3];

    #[tokio::test]
    async fn malformed_and_missing_responses_are_errors() {
        assert!(connect(vec![vec![VERSION, 0, 0, 0, 2]]).await.is_err());
        assert!(connect(vec![b"Welcome to the machine!".to_vec()]).await.is_err());
        for invalid in [
            vec![HANDLE, 0, 0, 0, 1],
            vec![HANDLE, 0, 0, 0, 1, 0, 0, 0, 9, b'x'],
            vec![STATUS, 0, 0, 0, 1],
            vec![DATA, 0, 0, 0, 1, 0, 0, 0, 0],
        ] {
            let server = connect(vec![HELLO.to_vec(), invalid.clone()]).await.unwrap();
            assert!(matches!(server.open_file("/x").await, Err(Failure::Permanent(_))), "{invalid:?}");
        }
        let server = connect(vec![HELLO.to_vec(), vec![STATUS, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0]]).await.unwrap();
        assert_eq!(server.open_file("/x").await.unwrap_err(), Failure::NotFound);
        // The server has closed the connection.
        assert!(matches!(server.open_file("/x").await, Err(Failure::Temporary(_))));
    }
}
