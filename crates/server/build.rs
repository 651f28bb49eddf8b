//! Creates `web/dist` if it is missing, so that the crate compiles without the web UI; such a binary has no UI.

use std::path::Path;

fn main() {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web/dist");
    println!("cargo:rerun-if-changed={}", pages.display());
    // The embedding macro requires the folder to exist.
    let _ = std::fs::create_dir_all(pages); // If this fails (a read-only source tree), the embedding macro fails the build.
}
