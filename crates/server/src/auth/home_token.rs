//! The token of the state folder. It identifies the owner: a caller that can read this file has full access to the server.
//!
//! Invariant: the file is private (mode 0600) and is written once, when the first server starts.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use ring::rand::SecureRandom;
use rustix::fs::OFlags;
use slipway_core::home::Home;

/// Random bytes in a token: 256 bits cannot be guessed.
const TOKEN_BYTES: usize = 32;
/// Maximum bytes read of a token file; the rest is ignored.
const MAX_TOKEN_FILE_BYTES: u64 = 4096;

/// The token of a state folder, if it has one.
///
/// # Errors
/// As [`home_token`], and [`ErrorKind::NotFound`] when no server has been started on the folder yet.
pub fn read_home_token(home: &Home) -> Result<String> {
    read(&home.token_file(), RequiredOwner::Any)
}

/// The token of a state folder. The first call creates it, with mode 0600.
///
/// # Errors
/// I/O errors; [`ErrorKind::PermissionDenied`] when users other than the owner may read or write the file, or when it belongs to another
/// user, because then the token protects nothing.
pub fn home_token(home: &Home) -> Result<String> {
    let path = home.token_file();
    match read(&path, RequiredOwner::CurrentUser) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        result => return result,
    }
    let mut bytes = [0; TOKEN_BYTES];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::other("the operating system has no random numbers"))?;
    let token = format!("slipway-{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes));
    // Write to a temporary file and link it into place, so that readers never see a partial token and concurrent first calls agree on one.
    let temporary = path.with_file_name(format!(".token.{}", slipway_core::ids::hex32()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(format!("{token}\n").as_bytes())?;
        file.sync_all()?;
        std::fs::hard_link(&temporary, &path)
    })();
    let _ = std::fs::remove_file(&temporary); // If this fails, a private file is left over in the state folder.
    match written {
        Ok(()) => Ok(token),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read(&path, RequiredOwner::CurrentUser),
        Err(error) => Err(error),
    }
}

/// The user that a secret file must belong to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RequiredOwner {
    /// The user of this process, so that a server does not trust a secret that another user placed in its state folder.
    CurrentUser,
    /// Any user, so that root can use another user's server.
    Any,
}

/// Opens a secret file. Rejects symbolic links (the target's content may be known to others), pipes (opening would block) and files that
/// other users may read or write.
pub(super) fn open_secret(path: &Path, owner: RequiredOwner) -> Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    let denied = |why: String| Err(Error::new(ErrorKind::PermissionDenied, format!("{} {why}", path.display())));
    if !metadata.is_file() {
        return denied("is not a regular file".into());
    }
    if metadata.mode() & 0o077 != 0 {
        return denied(format!(
            "is accessible to other users (mode {:o}); run chmod 600 on it",
            metadata.mode() & 0o777
        ));
    }
    if owner == RequiredOwner::CurrentUser && metadata.uid() != rustix::process::geteuid().as_raw() {
        return denied("belongs to another user, who knows its content; remove it so that a new one is created".into());
    }
    Ok(file)
}

fn read(path: &Path, owner: RequiredOwner) -> Result<String> {
    let file = open_secret(path, owner)?;
    let mut text = String::new();
    file.take(MAX_TOKEN_FILE_BYTES).read_to_string(&mut text)?;
    let token = text.trim();
    if token.len() < super::tokens::MIN_TOKEN_BYTES || !token.bytes().all(|b| b.is_ascii_graphic()) {
        let text = format!("{} does not contain a token; remove it so that a new one is created", path.display());
        return Err(Error::new(ErrorKind::InvalidData, text));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn token_is_created_once_and_is_private() {
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
        let files = std::fs::read_dir(home.root())
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().contains("token"));
        assert_eq!(files.count(), 1, "no temporary file is left over");

        std::fs::set_permissions(home.token_file(), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(home_token(&home).unwrap_err().kind(), ErrorKind::PermissionDenied);
        std::fs::set_permissions(home.token_file(), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(home.token_file(), "short").unwrap();
        assert_eq!(home_token(&home).unwrap_err().kind(), ErrorKind::InvalidData);
        std::fs::remove_dir_all(home.root()).unwrap();
    }

    #[test]
    fn planted_links_and_pipes_are_rejected() {
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
