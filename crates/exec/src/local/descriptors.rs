//! The limit of open file descriptors (`RLIMIT_NOFILE`). The server raises its own soft limit; runs get the original one, because some
//! programs use `select`, which supports descriptors below 1024 only, and others close every descriptor up to the limit at start.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit of this process before [`raise_limit`]; `None` if it was unlimited.
static ORIGINAL_SOFT_LIMIT: OnceLock<Option<u64>> = OnceLock::new();

/// Raises the soft limit of this process to the hard limit. Runs still get the original soft limit.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    ORIGINAL_SOFT_LIMIT.get_or_init(|| limit.current);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The soft limit for runs; `None` if this process did not raise its own limit, or had none.
pub fn limit_for_runs() -> Option<u64> {
    ORIGINAL_SOFT_LIMIT.get().copied().flatten()
}

/// Sets the soft limit of this process, which its child processes inherit.
pub(super) fn set_limit(soft: u64) -> std::io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum.map_or(soft, |hard| hard.min(soft));
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum })?)
}
