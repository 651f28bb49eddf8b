//! Volumes as folders of this machine: claims, secrets, config maps and empty folders, and what makes them appear at the paths of a step.

use std::path::{Path, PathBuf};

use serde_json::Value;
use slipway_exec::RunSpec;

use super::programs;
use crate::launch::claims::{self, Request};
use crate::model::{Failure, Launch, Outputs};

/// Shared memory, which every machine has.
const SHARED_MEMORY: &str = "/dev/shm";

/// A folder, and the absolute path at which a step finds it.
pub(super) type Mount = (PathBuf, String);

/// Where volumes are on this machine.
#[derive(Debug)]
pub(super) struct Folders<'a> {
    /// Claims of the run's namespace.
    pub(super) claims: PathBuf,
    /// Secrets.
    pub(super) secrets: &'a Path,
    /// Config maps.
    pub(super) config_maps: &'a Path,
    /// Volumes of this attempt alone.
    pub(super) attempt: PathBuf,
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('.') && !text.contains(['/', '\0'])
}

/// The folders of a step's volumes; missing ones of its own are created.
///
/// # Errors
/// A volume does not exist or is not supported on one machine.
pub(super) fn mounts(spec: &RunSpec, folders: &Folders<'_>) -> Result<Vec<Mount>, String> {
    let needed = spec.volume_mounts.iter().filter(|mount| mount.mount_path != SHARED_MEMORY);
    needed
        .map(|mount| {
            let volume = spec.volumes.iter().find(|volume| volume["name"] == mount.name.as_str());
            let volume = volume.ok_or_else(|| format!("there is no volume '{}'", mount.name))?;
            let mut folder = folder(volume, folders)?;
            if let Some(sub_path) = mount.other.get("subPath").and_then(Value::as_str) {
                if !sub_path.split('/').all(is_name) {
                    return Err(format!("the path '{sub_path}' in volume '{}' is invalid", mount.name));
                }
                folder.push(sub_path);
                create(&folder)?;
            }
            Ok((folder, mount.mount_path.clone()))
        })
        .collect()
}

fn folder(volume: &Value, folders: &Folders<'_>) -> Result<PathBuf, String> {
    let named = |root: &Path, name: &Value| match name.as_str().filter(|name| is_name(name)) {
        Some(name) => Ok(root.join(name)),
        None => Err(format!("the name {name} of a volume is invalid")),
    };
    if let Some(claim) = volume.get("persistentVolumeClaim") {
        let folder = named(&folders.claims, &claim["claimName"])?;
        return if folder.is_dir() {
            Ok(folder)
        } else {
            Err(format!(
                "there is no volume at {}; create it with CreatePVC in the pipeline, or with mkdir",
                folder.display()
            ))
        };
    }
    let named_content =
        [("secret", "secretName", "secret", folders.secrets), ("configMap", "name", "config map", folders.config_maps)];
    let content =
        named_content.into_iter().find_map(|(kind, name, text, root)| Some((volume.get(kind)?, name, text, root)));
    if let Some((source, name, text, root)) = content {
        let folder = named(root, &source[name])?;
        if folder.is_dir() {
            return Ok(folder);
        }
        if source["optional"] != true {
            return Err(format!("there is no {text} at {}", folder.display()));
        }
    } else if volume.get("emptyDir").is_none() && volume.get("ephemeral").is_none() {
        return Err(format!(
            "volume {} needs a cluster; one machine supports claims, secrets, config maps and empty folders",
            volume["name"]
        ));
    }
    let folder = named(&folders.attempt, &volume["name"])?;
    create(&folder)?;
    Ok(folder)
}

fn create(folder: &Path) -> Result<(), String> {
    std::fs::create_dir_all(folder).map_err(|error| format!("creating {}: {error}", folder.display()))
}

/// Words that execute a command with folders mounted, without a container; `None` if this machine has no program for that.
pub(super) fn wrapped(mounts: &[Mount], command: Vec<String>) -> Option<Vec<String>> {
    if mounts.is_empty() {
        return Some(command);
    }
    if programs::find("bwrap").is_some() {
        let mut words: Vec<String> = ["bwrap", "--dev-bind", "/", "/"].map(str::to_owned).to_vec();
        for (folder, path) in mounts {
            words.extend(["--bind".to_owned(), folder.display().to_string(), path.clone()]);
        }
        words.push("--".to_owned());
        words.extend(command);
        return Some(words);
    }
    programs::find("unshare")?;
    // Bind mounts in a mount namespace of the step's own. Without root, a user namespace permits them.
    let script = "count=$1; shift; while [ \"$count\" -gt 0 ]; do mkdir -p \"$2\" && mount --bind \"$1\" \"$2\" || exit 125; \
                  shift 2; count=$((count - 1)); done; exec \"$@\"";
    let mut words: Vec<String> = vec!["unshare".into(), "--mount".into()];
    if !rustix::process::geteuid().is_root() {
        words.extend(["--user".into(), "--map-root-user".into()]);
    }
    words.extend(["sh".into(), "-c".into(), script.into(), "sh".into(), mounts.len().to_string()]);
    for (folder, path) in mounts {
        words.extend([folder.display().to_string(), path.clone()]);
    }
    words.extend(command);
    Some(words)
}

/// Executes the steps that create and delete claims, which have no program; `None` for any other image.
pub(super) fn execute(image: &str, launch: &Launch, claims: &Path) -> Option<Result<Outputs, Failure>> {
    let done = claims::request(image, launch)?.and_then(|request| {
        match &request {
            Request::Create(claim) => create(&named_claim(claims, &claim.name)?)?,
            Request::Delete(name) => delete(&named_claim(claims, name)?)?,
        }
        Ok(request.outputs())
    });
    Some(done.map_err(|message| Failure { message, exit_code: None, is_permanent: true }))
}

fn named_claim(claims: &Path, name: &str) -> Result<PathBuf, String> {
    if is_name(name) { Ok(claims.join(name)) } else { Err(format!("'{name}' cannot be the name of a volume")) }
}

/// Deletes a claim, whether or not it still exists, so that a repeated attempt succeeds.
fn delete(claim: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(claim) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("deleting the volume {}: {error}", claim.display()))
        }
        _ => Ok(()),
    }
}
