//! `$SLIPWAY_HOME`: the folder that holds everything slipway keeps.

use std::path::{Path, PathBuf};

/// The state folder and the paths inside it.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The folder at `root`; nothing is created yet.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The default: `$XDG_DATA_HOME/slipway`, else `~/.local/share/slipway`, else `/var/lib/slipway`.
    ///
    /// Relative folders are not used: the state folder names the server that gets the caller's token, so it must not
    /// come with whatever folder a command is started in.
    pub fn default_path() -> PathBuf {
        let absolute = |path: PathBuf| path.is_absolute().then_some(path);
        std::env::var_os("XDG_DATA_HOME")
            .and_then(|dir| absolute(dir.into()))
            .or_else(|| std::env::home_dir().and_then(absolute).map(|home| home.join(".local/share")))
            .map_or_else(|| PathBuf::from("/var/lib/slipway"), |data| data.join("slipway"))
    }

    /// Creates the folder and its parts; private to the user.
    ///
    /// # Errors
    /// The operating system's, when a folder cannot be made.
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

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// Metadata: `slipway.db`.
    pub fn database(&self) -> PathBuf {
        self.root.join("slipway.db")
    }
    /// Artifacts: `objects/`.
    pub fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }
    /// Working folders of local processes: `work/`.
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }
    /// Logs: `logs/`.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }
    /// The running server's addresses and process id: `server.json`.
    pub fn server_file(&self) -> PathBuf {
        self.root.join("server.json")
    }
    /// The token of the owner, mode 0600: `token`.
    pub fn token_file(&self) -> PathBuf {
        self.root.join("token")
    }
    /// Held by the one server that may use this folder: `lock`.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }
}
