//! XIDs in the kernel's log (`/dev/kmsg`), which keeps them from before slipway was started.
//!
//! Source of the record format: Linux, `Documentation/ABI/testing/dev-kmsg`; of the message: NVIDIA, "XID Errors", "Viewing Xid Error
//! Messages".

use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// An XID in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xid {
    /// PCI address of the device without its function, such as `0000:3b:00`.
    pub address: String,
    /// The number.
    pub number: u64,
}

/// Maximum number of records that are read; the kernel's buffer has fewer.
const MAX_RECORDS: usize = 200_000;
/// Maximum bytes of a record (`CONSOLE_EXT_LOG_MAX`).
const MAX_RECORD_BYTES: usize = 8192;

/// Reads the XIDs of the log of the machine under `root`, oldest first.
///
/// # Errors
/// An I/O error, usually that only root may read the log.
pub fn read(root: &Path) -> std::io::Result<Vec<Xid>> {
    let flags = OFlags::NONBLOCK.union(OFlags::NOCTTY).bits().cast_signed();
    let mut log = std::fs::File::options().read(true).custom_flags(flags).open(root.join("dev/kmsg"))?;
    let (mut found, mut record) = (Vec::new(), vec![0; MAX_RECORD_BYTES]);
    for _ in 0..MAX_RECORDS {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(bytes) => found.extend(String::from_utf8_lossy(&record[..bytes]).lines().filter_map(parse)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // EPIPE: the record was overwritten; the next call returns the oldest one that is left.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Parses a line such as `NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.`
pub(crate) fn parse(line: &str) -> Option<Xid> {
    let (_, rest) = line.split_once("NVRM: Xid (PCI:")?;
    let (address, rest) = rest.split_once("): ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some(Xid { address: address.to_ascii_lowercase(), number: digits.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xids_are_read_from_the_log() {
        let root = std::env::temp_dir().join(format!("slipway-kmsg-{}", slipway_core::ids::hex32()));
        std::fs::create_dir_all(root.join("dev")).unwrap();
        let log = "6,339,5140900,-;NET: Registered\n4,340,5690716,-;NVRM: Xid (PCI:0000:3B:00): 79, pid='<unknown>', GPU has fallen off the bus.\n4,341,5690717,-;NVRM: Xid (PCI:0000:3b:00): x\n";
        std::fs::write(root.join("dev/kmsg"), log).unwrap();
        assert_eq!(read(&root).unwrap(), [Xid { address: "0000:3b:00".into(), number: 79 }]);
        assert!(read(&root.join("none")).is_err());
        std::fs::remove_dir_all(root).unwrap();
    }
}
