//! Takes the compiled pipeline out of a package: a YAML or JSON file, or one in a ZIP or gzipped tar archive.

use std::io::Read;

use flate2::read::{DeflateDecoder, GzDecoder};

use crate::Error;

/// Maximum bytes of a package, and of the file in it.
pub const MAX_PACKAGE: usize = 32 << 20;
/// Bytes of a block of a tar archive.
const TAR_BLOCK: usize = 512;

/// Why a package cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PackageError(String);

impl From<PackageError> for Error {
    fn from(error: PackageError) -> Self {
        Self::Invalid(error.0)
    }
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, PackageError> {
    Err(PackageError(reason.into()))
}

fn is_yaml(name: &str) -> bool {
    name.ends_with(".yaml") || name.ends_with(".yml")
}

/// The text of the compiled pipeline in a package with this file name.
///
/// # Errors
/// The file has another format, is damaged, or is too large.
pub fn read_package(name: &str, content: Vec<u8>) -> Result<String, PackageError> {
    if content.len() > MAX_PACKAGE {
        return refuse(format!(
            "File size too large ({} bytes). Maximum supported size: {MAX_PACKAGE}. Consider moving large embedded artifacts or notebooks \
             or Python code into a container image or object store.",
            content.len()
        ));
    }
    let content = if is_yaml(name) || name.ends_with(".json") {
        content
    } else if content.starts_with(b"PK") {
        from_zip(&content)?
    } else if content.starts_with(&[0x1f, 0x8b]) {
        from_tarball(&content)?
    } else {
        return refuse("Unexpected pipeline file format. Support .zip, .tar.gz, .json or YAML");
    };
    String::from_utf8(content).or_else(|_| refuse("the pipeline file is not UTF-8 text"))
}

/// Reads all of a compressed stream, up to the limit.
fn inflate(stream: impl Read, what: &str) -> Result<Vec<u8>, PackageError> {
    let mut out = Vec::new();
    let limit = u64::try_from(MAX_PACKAGE).unwrap_or(u64::MAX);
    if let Err(error) = stream.take(limit + 1).read_to_end(&mut out) {
        return refuse(format!("Error extracting pipeline from the {what} file. Not a valid {what} file: {error}"));
    }
    if out.len() > MAX_PACKAGE {
        return refuse(format!("the {what} file has more than {MAX_PACKAGE} bytes of content"));
    }
    Ok(out)
}

/// The file `pipeline.yaml`, else the first file, which must be YAML.
fn choose(files: Vec<(String, &[u8])>, what: &str) -> Result<Vec<u8>, PackageError> {
    let found = files.iter().find(|(name, _)| name == "pipeline.yaml").or_else(|| files.first());
    match found {
        None => refuse(format!("Error extracting pipeline from the {what} file. Empty {what} file")),
        Some((name, _)) if !is_yaml(name) => refuse(format!(
            "Error extracting pipeline from the {what} file. Expecting a pipeline.yaml file inside the {what}. Got: {name}"
        )),
        Some((_, content)) => Ok(content.to_vec()),
    }
}

fn from_tarball(content: &[u8]) -> Result<Vec<u8>, PackageError> {
    let tar = inflate(GzDecoder::new(content), "tarball")?;
    let damaged = || PackageError("Error extracting pipeline from the tarball file. Not a valid tarball file".into());
    let mut files = Vec::new();
    let mut rest = tar.as_slice();
    // Two blocks of zeros end an archive; some writers leave them out.
    while let Some((header, after)) =
        rest.split_at_checked(TAR_BLOCK).filter(|(header, _)| header.iter().any(|b| *b != 0))
    {
        let text = |range: std::ops::Range<usize>| {
            let field = &header[range];
            let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).trim().to_owned()
        };
        let size = usize::from_str_radix(&text(124..136), 8).map_err(|_| damaged())?;
        let data = after.get(..size).ok_or_else(damaged)?;
        // A file is of type 0, or NUL in old archives; others are folders, links and extended headers.
        if matches!(header[156], b'0' | 0) {
            files.push((text(0..100).trim_start_matches("./").to_owned(), data));
        }
        rest = after.get(size.next_multiple_of(TAR_BLOCK)..).unwrap_or_default();
    }
    choose(files, "tarball")
}

/// A little-endian number in a ZIP file.
fn number(bytes: &[u8], at: usize, width: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(width)?)?;
    Some(field.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

fn from_zip(content: &[u8]) -> Result<Vec<u8>, PackageError> {
    let damaged = || PackageError("Error extracting pipeline from the zip file. Not a valid zip file".into());
    let entries = zip_entries(content).ok_or_else(damaged)?;
    let names = entries.iter().map(|entry| (entry.name.clone(), &[][..])).collect();
    choose(names, "zip")?;
    let chosen = entries.iter().find(|entry| entry.name == "pipeline.yaml").or_else(|| entries.first());
    let Some(entry) = chosen else { return Err(damaged()) };
    match entry.method {
        0 if entry.data.len() <= MAX_PACKAGE => Ok(entry.data.to_vec()),
        8 => inflate(DeflateDecoder::new(entry.data), "zip"),
        method => refuse(format!("the zip file uses the compression method {method}, which is not supported")),
    }
}

struct ZipEntry<'a> {
    name: String,
    method: usize,
    data: &'a [u8],
}

/// The files that the central directory lists; `None` for a damaged file.
fn zip_entries(zip: &[u8]) -> Option<Vec<ZipEntry<'_>>> {
    // The end record is the last thing in the file, in front of a comment of at most 64 KiB.
    let from = zip.len().saturating_sub(22 + 0xffff);
    let end = from + zip.get(from..)?.windows(4).rposition(|window| window == b"PK\x05\x06")?;
    let (count, mut at) = (number(zip, end + 10, 2)?, number(zip, end + 16, 4)?);
    let mut entries = Vec::new();
    for _ in 0..count {
        if zip.get(at..at.checked_add(4)?)? != b"PK\x01\x02" {
            return None;
        }
        let (method, size) = (number(zip, at + 10, 2)?, number(zip, at + 20, 4)?);
        let (name, extra, comment) = (number(zip, at + 28, 2)?, number(zip, at + 30, 2)?, number(zip, at + 32, 2)?);
        let local = number(zip, at + 42, 4)?;
        let text = String::from_utf8_lossy(zip.get(at + 46..at + 46 + name)?).into_owned();
        at += 46 + name + extra + comment;
        if text.ends_with('/') {
            continue;
        }
        let start = local + 30 + number(zip, local + 26, 2)? + number(zip, local + 28, 2)?;
        entries.push(ZipEntry { name: text, method, data: zip.get(start..start.checked_add(size)?)? });
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder};

    use super::*;

    /// A tar archive, compressed.
    fn tarball(files: &[(&str, &str)]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (name, content) in files {
            let mut header = [0_u8; TAR_BLOCK];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
            header[156] = if name.ends_with('/') { b'5' } else { b'0' };
            tar.extend(header);
            tar.extend(content.as_bytes());
            tar.resize(tar.len().next_multiple_of(TAR_BLOCK), 0);
        }
        tar.resize(tar.len() + 2 * TAR_BLOCK, 0);
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(&tar).unwrap();
        out.finish().unwrap()
    }

    fn zip(files: &[(&str, &str)]) -> Vec<u8> {
        let (mut out, mut directory) = (Vec::new(), Vec::new());
        let put = |to: &mut Vec<u8>, number: usize, width: usize| to.extend(&number.to_le_bytes()[..width]);
        for (name, content) in files {
            let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
            deflate.write_all(content.as_bytes()).unwrap();
            let data = deflate.finish().unwrap();
            let offset = out.len();
            out.extend(b"PK\x03\x04");
            out.resize(out.len() + 22, 0);
            put(&mut out, name.len(), 2);
            put(&mut out, 0, 2);
            out.extend(name.as_bytes());
            out.extend(&data);
            directory.extend(b"PK\x01\x02");
            for (number, width) in
                [(0, 6), (8, 2), (0, 8), (data.len(), 4), (content.len(), 4), (name.len(), 2), (0, 12), (offset, 4)]
            {
                let width_now = std::cmp::min(width, 8);
                put(&mut directory, number, width_now);
                directory.resize(directory.len() + width - width_now, 0);
            }
            directory.extend(name.as_bytes());
        }
        let at = out.len();
        out.extend(&directory);
        out.extend(b"PK\x05\x06");
        for (number, width) in [(0, 4), (files.len(), 2), (files.len(), 2), (directory.len(), 4), (at, 4), (0, 2)] {
            put(&mut out, number, width);
        }
        out
    }

    #[test]
    fn the_pipeline_is_found_in_every_kind_of_package() {
        for pack in [tarball, zip] {
            let many = pack(&[("folder/", ""), ("a.txt", "no"), ("pipeline.yaml", "yes")]);
            assert_eq!(read_package("x", many).unwrap(), "yes");
            assert_eq!(read_package("x", pack(&[("other.yml", "first"), ("b", "")])).unwrap(), "first");
            let error = read_package("x", pack(&[("other.txt", "first")])).unwrap_err().to_string();
            assert!(error.contains("Expecting a pipeline.yaml file inside the"), "{error}");
            assert!(read_package("x", pack(&[])).unwrap_err().to_string().contains("Empty"));
        }
        assert_eq!(read_package("a.json", b"{}".to_vec()).unwrap(), "{}");
        let unknown = read_package("a.txt", b"text".to_vec()).unwrap_err().to_string();
        assert_eq!(unknown, "Unexpected pipeline file format. Support .zip, .tar.gz, .json or YAML");
    }

    #[test]
    fn damaged_packages_are_refused_without_a_panic() {
        for whole in [tarball(&[("pipeline.yaml", "some text that is long")]), zip(&[("pipeline.yaml", "some text")])] {
            for end in 2..whole.len() {
                let _ = read_package("x", whole[..end].to_vec());
            }
            for at in 2..whole.len() {
                let mut changed = whole.clone();
                changed[at] = changed[at].wrapping_add(0x7f);
                let _ = read_package("x", changed);
            }
        }
    }

    #[test]
    fn a_package_that_unpacks_to_too_much_is_refused() {
        let bomb = tarball(&[("pipeline.yaml", &" ".repeat(MAX_PACKAGE + 1))]);
        assert!(bomb.len() < MAX_PACKAGE / 10);
        assert!(read_package("x", bomb).unwrap_err().to_string().contains("more than"));
        let large = read_package("x.yaml", vec![b' '; MAX_PACKAGE + 1]).unwrap_err().to_string();
        assert!(large.starts_with("File size too large"), "{large}");
    }
}
