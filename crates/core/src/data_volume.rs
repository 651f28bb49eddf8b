//! Ephemeral volumes with a version of data: what the pods of runs and the driver on each node agree on.

/// The name of the CSI driver.
pub const DRIVER: &str = "data.slipway.dev";
/// The attributes of a volume: repository, commit, path, and digest.
pub const ATTRIBUTES: [&str; 4] = ["repo", "rev", "path", "digest"];
/// The name of a single file in its volume, which is always a folder.
pub const FILE: &str = "file";
/// Keys of the secret of a volume: lines for Git's credential store, and configuration as in a `.dvc/config.local`.
pub const SECRET_KEYS: [&str; 2] = ["git-credentials", "config"];
