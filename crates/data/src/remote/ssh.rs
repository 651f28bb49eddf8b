//! Remotes on machines with SSH, `ssh://`, through the system's OpenSSH, whose configuration, keys, agents and known hosts apply. One
//! connection serves all transfers.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::backend::{Backend, Chunks, Entry, Failure, Reply, Source};
use super::options::Settings;
use super::sftp::{Attributes, BLOCK_BYTES, Handle, Sftp};
use crate::error::DataError;

/// Number of blocks of one file that are on their way at the same time.
const CONCURRENT_BLOCKS: usize = 32;
/// Number of links of a folder that are followed at the same time.
const CONCURRENT_LINKS: usize = 16;
/// Maximum bytes of the messages of `ssh` that are shown.
const MAX_MESSAGE_BYTES: u64 = 4 << 10;
/// Words in the messages of `ssh` for which another attempt makes sense.
const TEMPORARY: &[&str] =
    &["reset", "timed out", "refused", "kex_exchange_identification", "broken pipe", "closed by"];

/// A remote on a machine with SSH.
#[derive(Debug)]
pub(crate) struct Ssh {
    arguments: Vec<String>,
    root: String,
    connection: Mutex<Option<Connection>>,
}

/// A connection, which ends with its process.
#[derive(Debug)]
struct Connection {
    sftp: Arc<Sftp>,
    _process: Child,
}

impl Ssh {
    /// Opens the remote.
    pub(crate) fn open(settings: &Settings) -> Result<Self, DataError> {
        const KEYS: &str =
            "OpenSSH prompts for it, or use a key: set 'keyfile', or load it into the agent with ssh-add";
        settings.refuse(&[
            ("password", KEYS),
            ("ask_password", KEYS),
            ("passphrase", KEYS),
            ("ask_passphrase", KEYS),
        ])?;
        let invalid = |reason: &str| settings.invalid("url", reason);
        let url = url::Url::parse(&settings.url).map_err(|error| invalid(&error.to_string()))?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| invalid("it has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if url.password().is_some() {
            return Err(settings.unsupported("url with a password", KEYS));
        }
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        let user = settings.text("user").map(str::to_owned).or_else(|| Some(decoded(url.username())));
        let user = user.filter(|user| !user.is_empty());
        let starts_with_dash = |text: &str| text.starts_with('-');
        if starts_with_dash(host) || user.as_deref().is_some_and(starts_with_dash) {
            return Err(invalid("the host and user may not begin with '-'"));
        }
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |option: &str, value: Option<String>| {
            arguments.extend(value.into_iter().flat_map(|value| [option.to_owned(), value]));
        };
        add("-l", user);
        add("-p", settings.number::<u16>("port")?.or(url.port()).map(|port| port.to_string()));
        add("-i", settings.text("keyfile").map(str::to_owned));
        add("-o", settings.number::<u32>("timeout")?.map(|seconds| format!("ConnectTimeout={seconds}")));
        let yes_or_no = |option: &str| if settings.is_true(option) { "yes" } else { "no" };
        add("-o", settings.text("gss_auth").map(|_| format!("GSSAPIAuthentication={}", yes_or_no("gss_auth"))));
        let without_agent = settings.text("allow_agent").is_some_and(|_| !settings.is_true("allow_agent"));
        add("-o", without_agent.then(|| "IdentityAgent=none".to_owned()));
        add("-o", Some("ServerAliveInterval=15".into()));
        for fixed in ["-T", "-x", "-s", "--", host, "sftp"] {
            arguments.push(fixed.to_owned());
        }
        let root = decoded(url.path()).trim_end_matches('/').to_owned();
        Ok(Self { arguments, root, connection: Mutex::default() })
    }

    fn path(&self, path: &str) -> String {
        // The remote itself may be a file, whose path does not end with a slash.
        if path.is_empty() && !self.root.is_empty() { self.root.clone() } else { format!("{}/{path}", self.root) }
    }

    /// The connection, which is opened if there is none.
    async fn connect(&self) -> Result<Arc<Sftp>, Failure> {
        let mut connection = self.connection.lock().await;
        if let Some(open) = connection.as_ref().filter(|connection| connection.sftp.is_open()) {
            return Ok(Arc::clone(&open.sftp));
        }
        *connection = None;
        let program = |error: std::io::Error| Failure::Permanent(format!("ssh cannot be started: {error}"));
        let mut process = Command::new("ssh")
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(program)?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (process.stdin.take(), process.stdout.take(), process.stderr.take())
        else {
            return Err(Failure::Permanent("ssh has no streams".into()));
        };
        // Read to its end, so that ssh never waits for a reader.
        let messages = tokio::spawn(async move {
            let mut text = Vec::new();
            let mut stderr = stderr;
            let _ = (&mut stderr).take(MAX_MESSAGE_BYTES).read_to_end(&mut text).await; // What was read is shown.
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await; // Nobody waits for the rest.
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        match Sftp::start(stdout, stdin).await {
            Ok(sftp) => {
                let sftp = Arc::new(sftp);
                *connection = Some(Connection { sftp: Arc::clone(&sftp), _process: process });
                Ok(sftp)
            }
            Err(failure) => {
                let _ = process.kill().await; // It may have ended.
                let message = messages.await.unwrap_or_default();
                let message = if message.is_empty() { failure.reason() } else { message };
                let lower = message.to_lowercase();
                Err(match TEMPORARY.iter().any(|word| lower.contains(word)) {
                    true => Failure::Temporary(message),
                    false => Failure::Permanent(message),
                })
            }
        }
    }

    /// The entries of a folder from its listing. Links are followed; those to nothing are no entries.
    async fn entries_of(
        &self,
        sftp: &Sftp,
        folder: &str,
        listed: Vec<(String, Attributes)>,
    ) -> Result<Vec<Entry>, Failure> {
        let folder = self.path(folder);
        let followed = listed.into_iter().map(|(name, attributes)| {
            let path = format!("{folder}/{name}");
            async move {
                let found = if attributes.is_link() { sftp.stat(&path).await? } else { Some(attributes) };
                Ok(found.map(|found| Entry { is_link: attributes.is_link(), ..entry(name, found) }))
            }
        });
        let followed = futures_util::stream::iter(followed).buffered(CONCURRENT_LINKS);
        followed.try_filter_map(|entry| std::future::ready(Ok(entry))).try_collect().await
    }

    /// Creates the file at a path, and the folders above it.
    async fn create(&self, sftp: &Sftp, path: &str) -> Result<Handle, Failure> {
        match sftp.create_file(path).await {
            Err(Failure::NotFound) => {}
            created => return created,
        }
        let folders: Vec<usize> = path.char_indices().skip(1).filter(|(_, c)| *c == '/').map(|(at, _)| at).collect();
        // From the innermost folder outwards to one that exists, and back.
        let mut missing = folders.len();
        while missing > 0 && !sftp.exists(&path[..folders[missing - 1]]).await? {
            missing -= 1;
        }
        for at in &folders[missing..] {
            let folder = &path[..*at];
            if let Err(failure) = sftp.create_folder(folder).await
                && !sftp.exists(folder).await?
            {
                return Err(failure);
            }
        }
        sftp.create_file(path).await
    }

    /// Writes a file to an open one.
    async fn fill(sftp: &Sftp, handle: &Handle, source: &Path) -> Result<(), Failure> {
        let unreadable = |error: std::io::Error| Failure::Permanent(format!("{}: {error}", source.display()));
        let file = tokio::fs::File::open(source).await.map_err(unreadable)?;
        let blocks = futures_util::stream::try_unfold((file, 0_u64), |(mut file, from)| async move {
            let mut block = Vec::with_capacity(BLOCK_BYTES);
            (&mut file).take(BLOCK_BYTES as u64).read_to_end(&mut block).await?;
            let length = block.len() as u64;
            Ok::<_, std::io::Error>((length > 0).then(|| ((from, block), (file, from + length))))
        });
        let written =
            blocks.map_err(unreadable).map_ok(|(from, block)| async move { sftp.write(handle, from, &block).await });
        written.try_buffer_unordered(CONCURRENT_BLOCKS).try_collect::<Vec<()>>().await.map(drop)
    }
}

impl Source for Ssh {
    fn describe<'a>(&'a self, path: &'a str) -> Reply<'a, Option<Entry>> {
        Box::pin(async move {
            let found = self.connect().await?.stat(&self.path(path)).await?;
            Ok(found.map(|attributes| entry(String::new(), attributes)))
        })
    }
}

fn entry(name: String, attributes: Attributes) -> Entry {
    Entry { name, is_folder: attributes.is_folder(), size: attributes.size, ..Entry::default() }
}

/// Reads one block, with as many requests as the server needs; it is shorter only at the end of the file.
async fn read_block(sftp: &Sftp, handle: &Handle, from: u64) -> Result<Vec<u8>, Failure> {
    let mut block = Vec::new();
    while block.len() < BLOCK_BYTES {
        match sftp.read(handle, from + block.len() as u64, BLOCK_BYTES - block.len()).await? {
            Some(piece) if !piece.is_empty() => block.extend_from_slice(&piece),
            _ => break,
        }
    }
    Ok(block)
}

impl Backend for Ssh {
    fn exists<'a>(&'a self, path: &'a str) -> Reply<'a, bool> {
        Box::pin(async move { self.connect().await?.exists(&self.path(path)).await })
    }

    fn entries<'a>(&'a self, folder: &'a str) -> Reply<'a, Vec<Entry>> {
        Box::pin(async move {
            let sftp = self.connect().await?;
            match sftp.list(&self.path(folder)).await {
                Err(Failure::NotFound) => Ok(Vec::new()),
                listed => self.entries_of(&sftp, folder, listed?).await,
            }
        })
    }

    fn read<'a>(&'a self, path: &'a str, from: u64) -> Reply<'a, Chunks> {
        Box::pin(async move {
            let sftp = self.connect().await?;
            let handle = sftp.open_file(&self.path(path)).await?;
            // Most files are small, so that the first block is also the last one.
            let first = read_block(&sftp, &handle, from).await?;
            let next = from + first.len() as u64;
            let offsets = (0_u64..).map(move |number| next + number * BLOCK_BYTES as u64);
            let of_blocks = (Arc::clone(&sftp), handle.clone());
            let blocks = futures_util::stream::iter(offsets)
                .map(move |at| {
                    let (sftp, handle) = of_blocks.clone();
                    async move { read_block(&sftp, &handle, at).await }
                })
                .buffered(CONCURRENT_BLOCKS);
            // A block that is not full is the last one.
            let blocks = futures_util::stream::once(std::future::ready(Ok(first))).chain(blocks);
            let state = Some((blocks.boxed(), sftp, handle));
            let chunks = futures_util::stream::try_unfold(state, |state| async move {
                let Some((mut blocks, sftp, handle)) = state else { return Ok(None) };
                let block = blocks.try_next().await?.unwrap_or_default();
                if block.len() == BLOCK_BYTES {
                    return Ok(Some((Bytes::from(block), Some((blocks, sftp, handle)))));
                }
                drop(blocks);
                sftp.close(&handle).await?;
                Ok(Some((Bytes::from(block), None)))
            });
            Ok(chunks.boxed())
        })
    }

    fn write<'a>(&'a self, path: &'a str, source: &'a Path) -> Reply<'a, ()> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        Box::pin(async move {
            let sftp = self.connect().await?;
            let target = self.path(path);
            let (folder, _) = target.rsplit_once('/').unwrap_or_default();
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let temporary = format!("{folder}/.slipway-{}-{number}", slipway_core::ids::hex32());
            let handle = self.create(&sftp, &temporary).await?;
            let written = async {
                Self::fill(&sftp, &handle, source).await?;
                sftp.close(&handle).await?;
                sftp.rename(&temporary, &target).await
            };
            let written = written.await;
            if written.is_err() {
                let _ = sftp.remove(&temporary).await; // Best effort: the failure is the one to report.
            }
            written
        })
    }

    fn remove<'a>(&'a self, path: &'a str) -> Reply<'a, ()> {
        Box::pin(async move {
            match self.connect().await?.remove(&self.path(path)).await {
                Err(Failure::NotFound) => Ok(()),
                removed => removed,
            }
        })
    }

    fn list_from(&self) -> usize {
        // A listing takes a round trip for each of 256 folders, and so many queries are on their way at the same time.
        2000
    }
}
