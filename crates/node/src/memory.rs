//! Memory that a program needs once, at its start.
#![allow(unsafe_code)] // one system call on a mapping of this program; the reason stands beside it

use std::os::raw::c_void;

/// Gives back what the dynamic linker read to put addresses into the program: megabytes of relocations that nobody reads again, but
/// that count as this process's memory on every node. Nothing is lost: should a page be wanted, the kernel reads it anew from the
/// program's file.
pub(crate) fn give_back_relocations() {
    let Some((start, length)) = first_mapping() else { return };
    // SAFETY: the range is one mapping of this program's own file, private and not writable, so no page of it can differ from the file;
    // MADV_DONTNEED on such a mapping forgets pages that the next access reads again (madvise(2)).
    let done = unsafe { rustix::mm::madvise(start as *mut c_void, length, rustix::mm::Advice::LinuxDontNeed) };
    if let Err(error) = done {
        tracing::debug!(%error, "relocations stay in memory");
    }
}

/// The part of this program's file that begins with its headers and relocations: read-only, at offset 0.
fn first_mapping() -> Option<(usize, usize)> {
    let program = std::fs::read_link("/proc/self/exe").ok()?;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        // start-end rights offset device inode path
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let (rights, offset) = (words.next()?, words.next()?);
        let path = words.nth(2)?;
        let ours = rights == "r--p" && offset.chars().all(|c| c == '0') && std::path::Path::new(path) == program;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        ours.then_some((start, end - start))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_program_runs_on_without_them() {
        let (start, length) = super::first_mapping().unwrap();
        assert!(start > 0 && length >= 4096);
        super::give_back_relocations();
        // Unwinding reads tables of that very mapping.
        assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
    }
}
