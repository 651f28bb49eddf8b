//! How many descriptors a server may open, and that its runs do not inherit it: some programs use `select`, which knows the first 1024
//! only, and others close every descriptor up to the limit when they start.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit that this process had before it raised it; none if it was unlimited.
static AT_START: OnceLock<Option<u64>> = OnceLock::new();

/// Raises the soft limit of this process to the hard one. Runs get the limit that it had before.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    AT_START.get_or_init(|| limit.current);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// The soft limit for runs, if this process has raised its own.
pub(super) fn limit_of_runs() -> Option<u64> {
    AT_START.get().copied().flatten()
}

/// Sets the soft limit, which what this process starts inherits.
pub(super) fn set_limit(soft: u64) -> std::io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum.map_or(soft, |hard| hard.min(soft));
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum })?)
}
