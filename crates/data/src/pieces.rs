//! Hashing of large files. MD5 cannot be computed by more than one core, so a second thread takes everything else off that core: it reads the
//! file, and writes the copy if there is to be one. What is written are the bytes that are hashed, also if the file changes in the meantime.

use std::fs::File;
use std::io::Write;
use std::sync::mpsc::sync_channel;

use crate::hash::{Hasher, fill};

/// Bytes of a piece. All pieces together fit into the processor cache that cores share.
const PIECE_BYTES: usize = 256 << 10;
/// Number of pieces on their way between the threads.
const PIECES: usize = 4;

/// Adds the rest of a file to a digest, and appends it to `target` if there is one.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hash_file;
    use crate::model::HashName;
    use std::io::{Read, Seek};

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
