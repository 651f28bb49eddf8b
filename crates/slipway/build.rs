//! Options of the linker for the release binary.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    // On this target, rustc links with its own LLD unless another linker is configured. LLD merges functions with identical code, which
    // generic code has many of, and makes the binary 3 % smaller. Function pointers that were different may become equal; code that
    // compares them (SQLite's destructors, vtables of wakers) compares functions with different instructions.
    if is("PROFILE", "release")
        && is("TARGET", "x86_64-unknown-linux-gnu")
        && std::env::var_os("RUSTC_LINKER").is_none()
    {
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    }
}
