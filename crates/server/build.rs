//! The UI is embedded from `web/dist`; without it (no Node.js, or only Rust is worked on) the binary has no UI.

use std::path::Path;

fn main() {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web/dist");
    println!("cargo:rerun-if-changed={}", pages.display());
    // The embedding macro needs the folder to be there. A read-only source tree that lacks it fails there, loudly.
    let _ = std::fs::create_dir_all(pages); // If it cannot be created, the macro that embeds the folder says so.
}
