//! Options of the linker for the release binary.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    // On this target, rustc links with its own LLD unless another linker is configured, as `make portable` does.
    if !is("PROFILE", "release")
        || !is("TARGET", "x86_64-unknown-linux-gnu")
        || std::env::var_os("RUSTC_LINKER").is_some()
    {
        return;
    }
    // LLD merges functions with identical code, which generic code has many of, and makes the binary 3 % smaller. Function pointers that
    // were different may become equal; code that compares them (SQLite's destructors, vtables of wakers) compares functions with different
    // instructions.
    println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    // Relative relocations take 2.4 MB, of the file and of the memory of every process. The packed form takes a hundredth; the loader of
    // glibc reads it from version 2.36 on (NEWS for 2.36, "DT_RELR").
    if glibc().is_some_and(|version| version >= (2, 36)) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this machine's glibc; `None` if it cannot be found out.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
