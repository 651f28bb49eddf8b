//! Memory that a program needs once, at its start.
#![allow(unsafe_code)] // one system call on mappings of this program; the reason stands beside it

use std::os::raw::c_void;
use std::time::Duration;

/// How long a start takes at most: flags are read, the cluster is found, connections are made.
const START: Duration = Duration::from_secs(60);
/// Time between two looks after that. Code that is used rarely, such as that of an error, would otherwise stay for good.
const PERIOD: Duration = Duration::from_secs(600);

/// Gives back what the dynamic linker read to put addresses into the program: megabytes of relocations that nobody reads again, but
/// that count as this process's memory on every node.
pub(crate) fn give_back_relocations() {
    give_back(|rights, offset| rights == "r--p" && offset == 0);
}

/// Gives back, again and again, the code that is not in use, such as that of the start. Whatever is used comes back at once from the page
/// cache.
pub(crate) async fn give_back_unused_code() {
    tokio::time::sleep(START).await;
    loop {
        give_back(|rights, _| rights == "r-xp");
        tokio::time::sleep(PERIOD).await;
    }
}

/// Forgets the pages of the wanted mappings of this program's own file. Nothing is lost: should a page be needed, the kernel reads it anew
/// from the file. Only code and the first mapping may be wanted: other read-only mappings were written by the dynamic linker before they
/// were protected (`PT_GNU_RELRO`), and the file does not have what it wrote.
fn give_back(wanted: impl Fn(&str, usize) -> bool) {
    for (start, length) in own_mappings(wanted) {
        // SAFETY: the range is one mapping of this program's own file, private, and never written, as it is code or begins with the
        // file's headers (see above); so MADV_DONTNEED forgets pages that the next access reads again, the same (madvise(2)).
        let done = unsafe { rustix::mm::madvise(start as *mut c_void, length, rustix::mm::Advice::LinuxDontNeed) };
        if let Err(error) = done {
            tracing::debug!(%error, "pages of the program stay in memory");
        }
    }
}

/// Start and length of the wanted mappings of this program's file, chosen by their rights and their offset in the file.
fn own_mappings(wanted: impl Fn(&str, usize) -> bool) -> Vec<(usize, usize)> {
    let Ok(program) = std::fs::read_link("/proc/self/exe") else { return Vec::new() };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let one = |line: &str| {
        // start-end rights offset device inode path
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let (rights, offset) = (words.next()?, usize::from_str_radix(words.next()?, 16).ok()?);
        let path = words.nth(2)?;
        let ours = wanted(rights, offset) && std::path::Path::new(path) == program;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        ours.then_some((start, end - start))
    };
    maps.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_runs_on_without_them() {
        let first = own_mappings(|rights, offset| rights == "r--p" && offset == 0);
        // Other threads map memory meanwhile, so that a line may be read twice.
        assert!(first.first().is_some_and(|(_, length)| *length >= 4096), "{first:?}");
        give_back_relocations();
        assert!(own_mappings(|rights, _| rights == "r-xp").iter().map(|(_, length)| length).sum::<usize>() >= 4096);
        give_back(|rights, _| rights == "r-xp");
        // Unwinding reads tables of that very mapping.
        assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
    }
}
