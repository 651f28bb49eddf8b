//! Releases memory that the program needs only at startup, to reduce the resident memory of every node agent.
#![allow(unsafe_code)] // `madvise` on mappings of this program; see the SAFETY comment

use std::os::raw::c_void;
use std::time::Duration;

/// Time after which startup is complete: options are parsed and connections are established.
const STARTUP_TIME: Duration = Duration::from_secs(60);
/// Interval of later releases. Rarely used code, such as error handling, would otherwise stay resident.
const RELEASE_INTERVAL: Duration = Duration::from_secs(600);

/// Releases the relocation tables, which the dynamic linker reads once at startup: several megabytes that would stay resident.
pub(crate) fn release_relocations() {
    release(|permissions, offset| permissions == "r--p" && offset == 0);
}

/// Periodically releases code pages, such as those of the startup code. Code that is still in use is mapped again from the page cache on
/// its next access.
pub(crate) async fn release_unused_code() {
    tokio::time::sleep(STARTUP_TIME).await;
    loop {
        release(|permissions, _| permissions == "r-xp");
        tokio::time::sleep(RELEASE_INTERVAL).await;
    }
}

/// Releases the pages of the selected mappings of this program's file; on the next access the kernel reads them from the file again.
/// `selected` must accept only code and the first mapping: the dynamic linker has written to other read-only mappings before it
/// protected them (`PT_GNU_RELRO`), and the file does not contain these changes.
fn release(selected: impl Fn(&str, usize) -> bool) {
    for (start, length) in own_mappings(selected) {
        // SAFETY: the range is a private mapping of this program's file that was never written to, because it is code or starts with
        // the file's headers (see above). After MADV_DONTNEED the next access reads the same content from the file (madvise(2)).
        let result = unsafe { rustix::mm::madvise(start as *mut c_void, length, rustix::mm::Advice::LinuxDontNeed) };
        if let Err(error) = result {
            tracing::debug!(%error, "releasing pages of the program failed");
        }
    }
}

/// Start and length in bytes of the mappings of this program's file whose permissions and file offset are `selected`.
fn own_mappings(selected: impl Fn(&str, usize) -> bool) -> Vec<(usize, usize)> {
    let Ok(program) = std::fs::read_link("/proc/self/exe") else { return Vec::new() };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mapping = |line: &str| {
        // start-end permissions offset device inode path
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let (permissions, offset) = (words.next()?, usize::from_str_radix(words.next()?, 16).ok()?);
        let path = words.nth(2)?;
        let matches = selected(permissions, offset) && std::path::Path::new(path) == program;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        matches.then_some((start, end - start))
    };
    maps.lines().filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_still_works_after_release() {
        let first = own_mappings(|permissions, offset| permissions == "r--p" && offset == 0);
        // Other threads map memory at the same time, so a line may be read twice.
        assert!(first.first().is_some_and(|(_, length)| *length >= 4096), "{first:?}");
        release_relocations();
        assert!(
            own_mappings(|permissions, _| permissions == "r-xp").iter().map(|(_, length)| length).sum::<usize>()
                >= 4096
        );
        release(|permissions, _| permissions == "r-xp");
        // Unwinding reads tables in the released mapping.
        assert!(std::panic::catch_unwind(|| panic!("this panic is part of the test")).is_err());
    }
}
