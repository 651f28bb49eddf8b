//! Digests of the content of files. MD5 cannot be computed by more than one core, so for a large file a second thread takes everything else off
//! that core: it reads, and writes the copy if there is to be one.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::mpsc::sync_channel;

use md5::{Digest as _, Md5};

use crate::error::DataError;
use crate::model::HashName;
use crate::walk::open;

/// Bytes that are read at once.
pub(crate) const BUFFER_BYTES: usize = 1 << 20;
/// Bytes of a piece. All pieces together fit into the processor cache that cores share.
const PIECE_BYTES: usize = 256 << 10;
/// Number of pieces on their way between the threads.
const PIECES: usize = 4;
/// Bytes at the start of a file that decide whether it is a text.
const TEXT_BYTES: usize = 512;

/// Computes the MD5 of a stream of bytes in the sense of a [`HashName`].
pub(crate) struct Hasher {
    name: HashName,
    md5: Md5,
    /// Bytes that are not hashed yet, because they do not fill a piece.
    pending: Vec<u8>,
}

impl Hasher {
    pub(crate) fn new(name: HashName) -> Self {
        Self { name, md5: Md5::new(), pending: Vec::new() }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        if self.name == HashName::Md5 {
            return self.md5.update(bytes);
        }
        // DVC 2 reads pieces of this size, and decides for each of them whether it is a text.
        while self.pending.len() + bytes.len() >= BUFFER_BYTES {
            let (piece, rest) = bytes.split_at(BUFFER_BYTES - self.pending.len());
            self.pending.extend_from_slice(piece);
            self.hash_piece();
            bytes = rest;
        }
        self.pending.extend_from_slice(bytes);
    }

    fn hash_piece(&mut self) {
        if is_text(&self.pending[..self.pending.len().min(TEXT_BYTES)]) {
            update_with_unix_breaks(&mut self.md5, &self.pending);
        } else {
            self.md5.update(&self.pending);
        }
        self.pending.clear();
    }

    pub(crate) fn finish(mut self) -> [u8; 16] {
        self.hash_piece();
        self.md5.finalize().into()
    }
}

/// The MD5 of a file in the sense of `name`.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn hash_file(path: &Path, name: HashName) -> Result<[u8; 16], DataError> {
    let mut file = open(path)?;
    let mut hasher = Hasher::new(name);
    let hashed = with_buffer(|buffer| {
        let length = fill(&mut file, buffer)?;
        hasher.update(&buffer[..length]);
        if length == buffer.len() { hash_rest(&mut file, None, &mut hasher) } else { Ok(()) }
    });
    hashed.map_err(DataError::io(path))?;
    Ok(hasher.finish())
}

/// Adds the rest of a file to a digest, and appends it to `target` if there is one. What is written are the bytes that are hashed, also if the file
/// changes in the meantime.
///
/// # Errors
/// If the file cannot be read or the target cannot be written.
pub(crate) fn hash_rest(file: &mut File, target: Option<&File>, hasher: &mut Hasher) -> std::io::Result<()> {
    let (to_hasher, filled) = sync_channel::<(Vec<u8>, usize)>(PIECES);
    let (to_reader, hashed) = sync_channel::<Vec<u8>>(PIECES);
    for _ in 0..PIECES {
        let _ = to_reader.send(vec![0; PIECE_BYTES]); // The receiver exists.
    }
    std::thread::scope(|scope| {
        let transfer = scope.spawn(move || {
            for mut piece in hashed {
                let length = fill(file, &mut piece)?;
                if let Some(mut target) = target {
                    target.write_all(&piece[..length])?;
                }
                let is_last = length < piece.len();
                if to_hasher.send((piece, length)).is_err() || is_last {
                    break;
                }
            }
            Ok(())
        });
        for (piece, length) in filled {
            hasher.update(&piece[..length]);
            let _ = to_reader.send(piece); // After the last piece, the other thread has finished.
        }
        transfer.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread that reads panicked")))
    })
}

/// Reads until the buffer is full or the file ends.
pub(crate) fn fill(file: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Calls `f` with this thread's buffer of [`BUFFER_BYTES`].
pub(crate) fn with_buffer<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) => {
            buffer.resize(BUFFER_BYTES, 0);
            f(&mut buffer)
        }
        Err(_) => f(&mut vec![0; BUFFER_BYTES]), // The caller is itself in such a call.
    })
}

/// The heuristics of DVC 2: no NUL, and at most 30 % of the bytes are not part of texts.
fn is_text(start: &[u8]) -> bool {
    let text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t' | 0x0c | 0x08);
    let other = start.iter().filter(|byte| !text(byte)).count();
    start.is_empty() || (!start.contains(&0) && other * 10 <= start.len() * 3)
}

/// Adds a chunk with CRLF replaced by LF.
fn update_with_unix_breaks(hasher: &mut Md5, chunk: &[u8]) {
    let mut rest = chunk;
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        hasher.update(&rest[..at]);
        rest = &rest[at + 1..];
    }
    hasher.update(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;

    #[test]
    fn line_breaks_are_converted_in_texts_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        let hash = |content: &[u8], name| {
            std::fs::write(&file, content).unwrap();
            hash_file(&file, name).unwrap()
        };
        assert_eq!(hash(b"a\r\nb\rc\r", HashName::Dos2Unix), hash(b"a\nb\rc\r", HashName::Md5));
        assert_eq!(hash(b"a\r\n\0", HashName::Dos2Unix), hash(b"a\r\n\0", HashName::Md5));
        assert_ne!(hash(b"a\r\n", HashName::Md5), hash(b"a\n", HashName::Md5));
    }

    #[test]
    fn streams_are_hashed_as_files_of_any_chunk_size() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        let content: Vec<u8> = b"line\r\n".iter().copied().cycle().take(2 * BUFFER_BYTES + 7).collect();
        std::fs::write(&file, &content).unwrap();
        for name in [HashName::Md5, HashName::Dos2Unix] {
            let expected = hash_file(&file, name).unwrap();
            for chunk in [1000, BUFFER_BYTES, 3 * BUFFER_BYTES] {
                let mut hasher = Hasher::new(name);
                content.chunks(chunk).for_each(|chunk| hasher.update(chunk));
                assert_eq!(hasher.finish(), expected, "{name:?} in chunks of {chunk}");
            }
        }
    }

    #[test]
    fn the_copy_and_the_digest_are_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("source"), folder.path().join("target"));
        for length in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, (2 * PIECES + 1) * PIECE_BYTES + 7] {
            let content: Vec<u8> = (0..length).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
            std::fs::write(&source, &content).unwrap();
            let mut hasher = Hasher::new(HashName::Md5);
            let mut file = File::open(&source).unwrap();
            hash_rest(&mut file, Some(&File::create(&target).unwrap()), &mut hasher).unwrap();
            assert!(std::fs::read(&target).unwrap() == content, "{length}");
            let mut expected = Hasher::new(HashName::Md5);
            expected.update(&content);
            let md5 = hasher.finish();
            assert_eq!((md5, hash_file(&source, HashName::Md5).unwrap()), (expected.finish(), md5), "{length}");
        }
    }

    #[test]
    fn a_digest_continues_where_the_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, vec![b'x'; 3 * PIECE_BYTES]).unwrap();
        let mut file = File::open(&path).unwrap();
        let mut start = vec![0; 1000];
        file.read_exact(&mut start).unwrap();
        let mut hasher = Hasher::new(HashName::Md5);
        hasher.update(&start);
        hash_rest(&mut file, None, &mut hasher).unwrap();
        assert_eq!(hasher.finish(), hash_file(&path, HashName::Md5).unwrap());
        assert_eq!(file.stream_position().unwrap(), 3 * PIECE_BYTES as u64);
    }

    #[test]
    fn a_failed_copy_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, vec![b'x'; 20 * PIECE_BYTES]).unwrap();
        let read_only = File::open(&path).unwrap();
        let mut hasher = Hasher::new(HashName::Md5);
        assert!(hash_rest(&mut File::open(&path).unwrap(), Some(&read_only), &mut hasher).is_err());
    }
}
