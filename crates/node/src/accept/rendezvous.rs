//! Brings several machines into one NCCL group: machine 0 listens, the others connect, and each learns NCCL's unique id and its ranks.
//!
//! Both sides prove that they know a shared token before anything else is believed, with HMAC-SHA256 over fresh random numbers (RFC 2104;
//! challenge and response), so the token is never sent. All messages have a fixed size, and all steps a time limit.
//!
//! ```text
//! machine n -> 0   "slipway-accept-1", n, its GPUs (u32 each, little endian), 32 random bytes
//! machine 0 -> n   32 random bytes
//! machine n -> 0   HMAC of "client", both random numbers, and the first message
//! machine 0 -> n   NCCL's unique id, ranks of all machines, first rank of n (u32 each), HMAC of "server", both random numbers, and these
//! ```

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use ring::hmac::{HMAC_SHA256, Key, sign, verify};
use ring::rand::{SecureRandom, SystemRandom};
use slipway_gpu::accept::accelerator::{Group, UniqueId};

use crate::NodeError;

const MAGIC: &[u8; 16] = b"slipway-accept-1";
const NONCE_BYTES: usize = 32;
const TAG_BYTES: usize = 32;
const HELLO_BYTES: usize = MAGIC.len() + 8 + NONCE_BYTES;
const RESULT_BYTES: usize = 128 + 8;
/// Maximum number of machines of a group.
pub const MAX_MACHINES: usize = 4096;
/// Maximum number of GPUs of a machine.
const MAX_GPUS: u32 = 256;
/// Minimum length of the token.
pub const MIN_TOKEN_BYTES: usize = 16;
/// Time limit of one message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay between two attempts to connect or to accept.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// The machines of a group.
#[derive(Clone)]
pub struct Machines {
    /// Number of machines.
    pub count: usize,
    /// Number of this machine, from 0.
    pub number: usize,
    /// Address of machine 0, as `HOST:PORT`.
    pub address: String,
    /// The secret that all machines share.
    pub token: Vec<u8>,
    /// Time limit for all machines to join.
    pub timeout: Duration,
}

impl std::fmt::Debug for Machines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, number, address, timeout, .. } = self;
        write!(f, "machine {number} of {count} at {address}, {timeout:?}")
    }
}

/// A random number that is used once.
fn nonce() -> Result<[u8; NONCE_BYTES]> {
    let mut bytes = [0; NONCE_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::other("the system has no random numbers"))?;
    Ok(bytes)
}

fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_le_bytes)
}

fn to_bytes(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}

fn denied(what: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, what)
}

/// A connected machine that has proved that it knows the token.
struct Member {
    stream: TcpStream,
    gpus: usize,
    /// Both random numbers.
    nonces: Vec<u8>,
}

impl Machines {
    /// Joins the group with this number of GPUs. Machine 0 gets the id from `create`, as soon as it is called.
    ///
    /// # Errors
    /// [`NodeError::Invalid`] for invalid numbers or a short token; [`NodeError::Io`] if not all machines join within the timeout.
    pub fn join(
        &self,
        gpus: usize,
        create: impl FnOnce() -> std::result::Result<UniqueId, slipway_gpu::GpuError>,
    ) -> std::result::Result<Group, NodeError> {
        if !(2..=MAX_MACHINES).contains(&self.count) || self.number >= self.count {
            let message = format!(
                "machine {} of {} is not possible: the numbers start at 0, and 2 to {MAX_MACHINES} machines can join",
                self.number, self.count
            );
            return Err(NodeError::Invalid(message));
        }
        if self.token.len() < MIN_TOKEN_BYTES {
            return Err(NodeError::Invalid(format!("the token must have at least {MIN_TOKEN_BYTES} characters")));
        }
        let key = Key::new(HMAC_SHA256, &self.token);
        let deadline = Instant::now() + self.timeout;
        let io = NodeError::io(format!("joining the group at {}", self.address));
        if self.number == 0 {
            let id = create()?;
            let listener =
                TcpListener::bind(&self.address).map_err(NodeError::io(format!("listening on {}", self.address)))?;
            self.gather(&listener, &key, gpus, id, deadline).map_err(io)
        } else {
            self.connect(&key, gpus, deadline).map_err(io)
        }
    }

    /// Machine 0: waits for all others, then sends each its ranks.
    fn gather(&self, listener: &TcpListener, key: &Key, gpus: usize, id: UniqueId, deadline: Instant) -> Result<Group> {
        listener.set_nonblocking(true)?;
        let mut members: BTreeMap<usize, Member> = BTreeMap::new();
        while members.len() + 1 < self.count {
            if Instant::now() >= deadline {
                let missing: Vec<String> =
                    (1..self.count).filter(|n| !members.contains_key(n)).take(8).map(|n| n.to_string()).collect();
                let what = format!("machines {} did not join within {} s", missing.join(", "), self.timeout.as_secs());
                return Err(Error::new(ErrorKind::TimedOut, what));
            }
            match listener.accept() {
                Ok((stream, from)) => match self.admit(stream, key) {
                    // A machine that was started again replaces its earlier connection.
                    Ok((number, member)) => drop(members.insert(number, member)),
                    Err(error) => tracing::warn!(%from, %error, "a connection to the group was rejected"),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY_DELAY),
                Err(error) => return Err(error),
            }
        }
        let ranks = gpus + members.values().map(|m| m.gpus).sum::<usize>();
        let mut first = gpus;
        for member in members.values_mut() {
            let mut result = id.to_vec();
            result.extend(to_bytes(ranks));
            result.extend(to_bytes(first));
            let tag = sign(key, &[b"server", member.nonces.as_slice(), &result].concat());
            result.extend(tag.as_ref());
            member.stream.write_all(&result)?;
            first += member.gpus;
        }
        Ok(Group { id, ranks, first: 0, machines: self.count })
    }

    /// Checks that a client knows the token; returns the number of its machine.
    fn admit(&self, mut stream: TcpStream, key: &Key) -> Result<(usize, Member)> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
        stream.set_write_timeout(Some(MESSAGE_TIMEOUT))?;
        let mut hello = [0; HELLO_BYTES];
        stream.read_exact(&mut hello)?;
        let (magic, rest) = hello.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(denied("it is no slipway of this version"));
        }
        let ours = nonce()?;
        stream.write_all(&ours)?;
        let mut tag = [0; TAG_BYTES];
        stream.read_exact(&mut tag)?;
        let nonces = [&rest[8..], &ours].concat();
        let signed = [b"client", nonces.as_slice(), &hello].concat();
        verify(key, &signed, &tag).map_err(|_| denied("it has another token"))?;
        let (machine, gpus) = (number(&rest[..4]) as usize, number(&rest[4..8]));
        if machine == 0 || machine >= self.count || gpus == 0 || gpus > MAX_GPUS {
            return Err(denied("it has a number that is not in the group, or an impossible number of GPUs"));
        }
        Ok((machine, Member { stream, gpus: gpus as usize, nonces }))
    }

    /// The other machines: connect to machine 0 and wait for the ranks.
    fn connect(&self, key: &Key, gpus: usize, deadline: Instant) -> Result<Group> {
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut stream = loop {
            let addresses = self.address.to_socket_addrs()?;
            let connected = addresses.map(|a| TcpStream::connect_timeout(&a, MESSAGE_TIMEOUT)).find(|s| s.is_ok());
            match connected {
                Some(stream) => break stream?,
                // Machine 0 may start later.
                None if left() > RETRY_DELAY => std::thread::sleep(RETRY_DELAY),
                None => return Err(Error::new(ErrorKind::TimedOut, "machine 0 does not listen there")),
            }
        };
        stream.set_write_timeout(Some(MESSAGE_TIMEOUT))?;
        stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
        let ours = nonce()?;
        let hello = [&MAGIC[..], &to_bytes(self.number), &to_bytes(gpus), &ours].concat();
        stream.write_all(&hello)?;
        let mut theirs = [0; NONCE_BYTES];
        stream.read_exact(&mut theirs)?;
        let nonces = [ours, theirs].concat();
        stream.write_all(sign(key, &[b"client", nonces.as_slice(), &hello].concat()).as_ref())?;
        // Machine 0 answers when all machines have joined.
        stream.set_read_timeout(Some(left().max(MESSAGE_TIMEOUT)))?;
        let mut answer = [0; RESULT_BYTES + TAG_BYTES];
        stream.read_exact(&mut answer).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
                denied("machine 0 rejected the connection: is the token the same?")
            }
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::new(ErrorKind::TimedOut, "not all machines joined"),
            _ => error,
        })?;
        let (result, tag) = answer.split_at(RESULT_BYTES);
        verify(key, &[b"server", nonces.as_slice(), result].concat(), tag)
            .map_err(|_| denied("machine 0 has another token"))?;
        let id: UniqueId = result[..128].try_into().map_err(|_| denied("the id has a wrong size"))?;
        let (ranks, first) = (number(&result[128..132]) as usize, number(&result[132..]) as usize);
        Ok(Group { id, ranks, first, machines: self.count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machines(number: usize, address: &str, token: &str, seconds: u64) -> Machines {
        let timeout = Duration::from_secs(seconds);
        Machines { count: 3, number, address: address.into(), token: token.into(), timeout }
    }

    fn free_address() -> String {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
    }

    const TOKEN: &str = "0123456789abcdef";

    #[test]
    fn machines_get_consecutive_ranks_and_one_id() {
        let address = free_address();
        let join = |number: usize, gpus: usize| {
            let machines = machines(number, &address, TOKEN, 60);
            std::thread::spawn(move || machines.join(gpus, || Ok([9; 128])).unwrap())
        };
        let threads = [join(2, 2), join(0, 8), join(1, 4)];
        let groups: Vec<(usize, usize, UniqueId)> =
            threads.into_iter().map(|t| t.join().unwrap()).map(|g| (g.first, g.ranks, g.id)).collect();
        assert_eq!(groups, [(12, 14, [9; 128]), (0, 14, [9; 128]), (8, 14, [9; 128])]);
    }

    #[test]
    fn machines_with_another_token_are_rejected() {
        let address = free_address();
        let server = machines(0, &address, TOKEN, 3);
        let server = std::thread::spawn(move || server.join(1, || Ok([9; 128])));
        let error = machines(1, &address, "another-token-0123", 20).join(1, || Ok([0; 128])).unwrap_err().to_string();
        assert!(error.contains("is the token the same?"), "{error}");
        let error = server.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("machines 1, 2 did not join within 3 s"), "{error}");
    }

    #[test]
    fn machine_0_must_know_the_token_too() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let impostor = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; HELLO_BYTES]).unwrap();
            stream.write_all(&[1; NONCE_BYTES]).unwrap();
            stream.read_exact(&mut [0; TAG_BYTES]).unwrap();
            stream.write_all(&[0; RESULT_BYTES + TAG_BYTES]).unwrap();
        });
        let error = machines(1, &address, TOKEN, 20).join(1, || Ok([0; 128])).unwrap_err().to_string();
        assert!(error.contains("machine 0 has another token"), "{error}");
        impostor.join().unwrap();
    }

    #[test]
    fn impossible_groups_are_rejected() {
        let error = |machines: Machines| machines.join(1, || Ok([0; 128])).unwrap_err().to_string();
        assert!(error(machines(3, "127.0.0.1:1", TOKEN, 1)).contains("machine 3 of 3"));
        assert!(error(machines(1, "127.0.0.1:1", "short", 1)).contains("at least 16"));
    }
}
