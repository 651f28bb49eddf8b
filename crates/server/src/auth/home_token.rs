//! The token of the state folder: whoever can read it owns the server of this machine.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use ring::rand::SecureRandom;
use rustix::fs::OFlags;
use slipway_core::home::Home;

/// Random bytes of a token: 256 bits cannot be guessed.
const TOKEN_BYTES: usize = 32;
/// Larger files are not read as a token.
const MAX_TOKEN_FILE_BYTES: u64 = 4096;

/// The token of a state folder, if it has one.
///
/// # Errors
/// As [`home_token`], and [`ErrorKind::NotFound`] when no server was started on the folder yet.
pub fn read_home_token(home: &Home) -> Result<String> {
    read(&home.token_file(), Owned::ByAnyone)
}

/// The token of a state folder, which is created on the first call with mode 0600.
///
/// # Errors
/// The operating system's; [`ErrorKind::PermissionDenied`] when others than its owner may read or write the file, or when it belongs to
/// another user, because then the token protects nothing.
pub fn home_token(home: &Home) -> Result<String> {
    let path = home.token_file();
    match read(&path, Owned::ByThisUser) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        found => return found,
    }
    let mut bytes = [0; TOKEN_BYTES];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::other("the operating system has no random numbers"))?;
    let token = format!("slipway-{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes));
    // Written beside and linked into place, so that no reader finds half a token and of two first calls one wins.
    let fresh = path.with_file_name(format!(".token.{}", slipway_core::ids::hex32()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(format!("{token}\n").as_bytes())?;
        file.sync_all()?;
        std::fs::hard_link(&fresh, &path)
    })();
    let _ = std::fs::remove_file(&fresh); // The link is what counts; if this fails the home has a stray private file.
    match written {
        Ok(()) => Ok(token),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read(&path, Owned::ByThisUser),
        Err(error) => Err(error),
    }
}

/// Whose a secret may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Owned {
    /// The user of this process: a server does not trust a secret that somebody else put into its state folder.
    ByThisUser,
    /// Anybody: root may use a user's server.
    ByAnyone,
}

/// Opens the file of a secret: no link, which could lead to a file whose content others know, no pipe, which would wait for a writer, and
/// nothing that others may read or write.
pub(super) fn open_secret(path: &Path, owned: Owned) -> Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    let denied = |why: String| Err(Error::new(ErrorKind::PermissionDenied, format!("{} {why}", path.display())));
    if !metadata.is_file() {
        return denied("is not a regular file".into());
    }
    if metadata.mode() & 0o077 != 0 {
        return denied(format!("is open to other users (mode {:o}); run chmod 600 on it", metadata.mode() & 0o777));
    }
    if owned == Owned::ByThisUser && metadata.uid() != rustix::process::geteuid().as_raw() {
        return denied("belongs to another user, who knows what is in it; remove it to have a new one made".into());
    }
    Ok(file)
}

fn read(path: &Path, owned: Owned) -> Result<String> {
    let file = open_secret(path, owned)?;
    let mut text = String::new();
    file.take(MAX_TOKEN_FILE_BYTES).read_to_string(&mut text)?;
    let token = text.trim();
    if token.len() < super::tokens::MIN_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) {
        let text = format!("{} holds no token; remove it to have a new one made", path.display());
        return Err(Error::new(ErrorKind::InvalidData, text));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_made_once_and_is_private() {
        let home = Home::at(std::env::temp_dir().join(slipway_core::ids::hex32()));
        home.create().unwrap();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let home = home.clone();
                std::thread::spawn(move || home_token(&home).unwrap())
            })
            .collect();
        let tokens: Vec<String> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert!(tokens.iter().all(|t| *t == tokens[0] && t.len() == "slipway-".len() + 43), "{tokens:?}");
        assert_eq!(std::fs::metadata(home.token_file()).unwrap().mode() & 0o777, 0o600);
        let left = std::fs::read_dir(home.root())
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().contains("token"));
        assert_eq!(left.count(), 1, "nothing is left beside it");

        std::fs::set_permissions(home.token_file(), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(home_token(&home).unwrap_err().kind(), ErrorKind::PermissionDenied);
        std::fs::set_permissions(home.token_file(), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(home.token_file(), "short").unwrap();
        assert_eq!(home_token(&home).unwrap_err().kind(), ErrorKind::InvalidData);
        std::fs::remove_dir_all(home.root()).unwrap();
    }

    #[test]
    fn planted_links_and_pipes_are_no_tokens() {
        let home = Home::at(std::env::temp_dir().join(slipway_core::ids::hex32()));
        home.create().unwrap();
        let known = home.root().join("known-to-others");
        std::fs::write(&known, "known-to-others-0123456789").unwrap();
        std::fs::set_permissions(&known, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&known, home.token_file()).unwrap();
        assert!(home_token(&home).is_err() && read_home_token(&home).is_err());
        std::fs::remove_file(home.token_file()).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, home.token_file(), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(home_token(&home).unwrap_err().kind(), ErrorKind::PermissionDenied);
        std::fs::remove_dir_all(home.root()).unwrap();
    }
}
