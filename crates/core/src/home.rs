//! The state folder (`$SLIPWAY_HOME`), which holds all persistent state of slipway on one machine.

use std::path::{Path, PathBuf};

/// The state folder and the paths inside it.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// A state folder at `root`. Nothing is created on disk; see [`Self::create`].
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The default: `$XDG_DATA_HOME/slipway`, else `~/.local/share/slipway`, else `/var/lib/slipway`.
    ///
    /// Relative folders are ignored: the state folder names the server that receives the caller's token, so it must not depend on the
    /// current folder.
    pub fn default_path() -> PathBuf {
        let absolute = |path: PathBuf| path.is_absolute().then_some(path);
        std::env::var_os("XDG_DATA_HOME")
            .and_then(|dir| absolute(dir.into()))
            .or_else(|| std::env::home_dir().and_then(absolute).map(|home| home.join(".local/share")))
            .map_or_else(|| PathBuf::from("/var/lib/slipway"), |data| data.join("slipway"))
    }

    /// Creates the folder and its subfolders, readable only by the user (mode 0700).
    ///
    /// # Errors
    /// An I/O error if a folder cannot be created.
    pub fn create(&self) -> std::io::Result<()> {
        for dir in [self.root.clone(), self.objects(), self.work(), self.logs()] {
            std::fs::create_dir_all(dir)?;
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&self.root, std::fs::Permissions::from_mode(0o700))?;
        }
        Ok(())
    }

    /// The root of the state folder.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// The SQLite metadata database: `slipway.db`.
    pub fn database(&self) -> PathBuf {
        self.root.join("slipway.db")
    }
    /// The artifact store: `objects/`.
    pub fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }
    /// The working folders of local runs: `work/`.
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }
    /// The log files: `logs/`.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }
    /// The addresses and process id of the running server: `server.json`.
    pub fn server_file(&self) -> PathBuf {
        self.root.join("server.json")
    }
    /// The owner's token, mode 0600: `token`.
    pub fn token_file(&self) -> PathBuf {
        self.root.join("token")
    }
    /// The lock file, held by the one server that may use this folder: `lock`.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }
}
