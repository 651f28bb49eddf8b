//! Runs a trial container to verify that a CDI device is usable inside a container.
//!
//! The OCI bundle (runtime-spec 1.0) contains only this program and its shared libraries, with the edits of the CDI
//! specification applied, and runs with runc. Inside, the program opens every device node and checks every mount.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cdi::{Edits, Hook, Spec};
use crate::GpuError;

/// Timeout for the whole run of the trial container.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// The result of checking one path inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathCheck {
    /// The path inside the container.
    pub path: String,
    /// Why the path is unusable; `None` if it is usable.
    pub wrong: Option<String>,
}

/// Checks paths from inside the container: devices must open, other files must exist.
pub fn check_paths(paths: &[String]) -> Vec<PathCheck> {
    let check = |path: &String| {
        let wrong = match std::fs::metadata(path) {
            Err(e) => Some(e.to_string()),
            Ok(m) if m.mode() & 0o170_000 == 0o020_000 => std::fs::File::open(path).err().map(|e| e.to_string()),
            Ok(_) => None,
        };
        PathCheck { path: path.clone(), wrong }
    };
    paths.iter().map(check).collect()
}

/// Converts a CDI hook to an OCI hook, with its stage.
fn hook(h: &Hook) -> (String, Value) {
    (h.hook_name.clone(), json!({ "path": h.path, "args": h.args, "env": h.env, "timeout": h.timeout }))
}

/// Creates a bundle in `folder` whose process is `program` with `arguments` and the paths to check. Returns these paths.
fn bundle(folder: &Path, edits: &[&Edits], program: &Path, arguments: &[String]) -> Result<Vec<String>, GpuError> {
    let root = folder.join("rootfs");
    let io = |path: &Path| GpuError::io(path.display().to_string());
    let copy = |from: &Path, to: PathBuf| {
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(io(parent))?;
        }
        std::fs::copy(from, &to).map_err(io(from)).map(drop)
    };
    for name in ["proc", "dev", "tmp"] {
        std::fs::create_dir_all(root.join(name)).map_err(io(&root))?;
    }
    copy(program, root.join("slipway"))?;
    // The shared libraries of this process, including the dynamic loader.
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(io(Path::new("/proc/self/maps")))?;
    let mut libraries: Vec<&str> =
        maps.lines().filter_map(|l| l.split_whitespace().nth(5)).filter(|p| p.contains(".so")).collect();
    libraries.sort_unstable();
    libraries.dedup();
    let mut search: Vec<String> = Vec::new();
    for library in libraries {
        let path = Path::new(library);
        copy(path, root.join(library.trim_start_matches('/')))?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("ld-linux") {
            copy(path, root.join("lib64").join(&name))?;
            copy(path, root.join("lib").join(&name))?;
        }
        search.extend(path.parent().map(|p| p.display().to_string()));
    }
    search.dedup();

    let mut env = vec![format!("LD_LIBRARY_PATH={}", search.join(":")), "PATH=/usr/bin:/bin".to_owned()];
    let (mut devices, mut rules, mut mounts, mut expected) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut hooks = serde_json::Map::new();
    rules.push(json!({ "allow": false, "access": "rwm" }));
    for edit in edits {
        env.extend(edit.env.iter().cloned());
        for node in &edit.device_nodes {
            let host = Path::new(node.host_path.as_ref().unwrap_or(&node.path));
            let number = std::fs::metadata(host).map_err(io(host))?.rdev();
            let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
            devices.push(json!({ "path": node.path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0 }));
            let access = node.permissions.as_deref().unwrap_or("rwm");
            rules.push(json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": access }));
            expected.push(node.path.clone());
        }
        for m in &edit.mounts {
            mounts.push(json!({ "source": m.host_path, "destination": m.container_path, "type": m.r#type.as_deref().unwrap_or("bind"), "options": m.options }));
            expected.push(m.container_path.clone());
        }
        for (stage, value) in edit.hooks.iter().map(hook) {
            if let Some(list) = hooks.entry(stage).or_insert_with(|| json!([])).as_array_mut() {
                list.push(value);
            }
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    devices.retain(|d| seen.insert(d["path"].to_string()));
    let mut all = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
    ];
    all.extend(mounts);
    let mut args = vec!["/slipway".to_owned()];
    args.extend(arguments.iter().cloned());
    args.extend(expected.iter().cloned());
    let namespaces: Vec<Value> =
        ["pid", "ipc", "uts", "mount", "network"].iter().map(|n| json!({ "type": n })).collect();
    let config = json!({
        "ociVersion": "1.0.2",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": args, "env": env, "cwd": "/", "noNewPrivileges": true },
        "root": { "path": "rootfs" },
        "mounts": all,
        "hooks": hooks,
        "linux": { "devices": devices, "resources": { "devices": rules }, "namespaces": namespaces },
    });
    let file = folder.join("config.json");
    std::fs::write(&file, config.to_string()).map_err(io(&file))?;
    Ok(expected)
}

/// Runs a trial container with a device of a specification, and returns the checks made inside.
///
/// # Errors
/// [`GpuError::Invalid`] for an unknown device or an error of the runtime; [`GpuError::Io`] if the bundle cannot be created.
pub fn run(
    spec: &Spec,
    device: &str,
    runc: &Path,
    program: &Path,
    arguments: &[String],
) -> Result<Vec<PathCheck>, GpuError> {
    let name = device.strip_prefix(&format!("{}=", spec.kind)).unwrap_or(device);
    let found = spec.devices.iter().find(|d| d.name == name).ok_or_else(|| {
        let names = spec.devices.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
        GpuError::Invalid(format!("the specification has no device '{name}'; it has {names}"))
    })?;
    let id = format!("slipway-trial-{}", std::process::id());
    let folder = std::env::temp_dir().join(&id);
    let result = trial(&folder, &id, &[&spec.container_edits, &found.container_edits], runc, program, arguments);
    // Remove the remains of a container that was stopped early; usually there are none.
    let _ = Command::new(runc).args(["delete", "--force", &id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn trial(
    folder: &Path,
    id: &str,
    edits: &[&Edits],
    runc: &Path,
    program: &Path,
    arguments: &[String],
) -> Result<Vec<PathCheck>, GpuError> {
    let expected = bundle(folder, edits, program, arguments)?;
    let out = folder.join("out");
    let file = |path: &Path| std::fs::File::create(path).map_err(GpuError::io(path.display().to_string()));
    let mut child = Command::new(runc)
        .args(["run", "--bundle"])
        .arg(folder)
        .arg(id)
        .stdin(Stdio::null())
        .stdout(file(&out)?)
        .stderr(file(&folder.join("err"))?)
        .spawn()
        .map_err(GpuError::io(runc.display().to_string()))?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(GpuError::io("waiting for runc"))? {
            break status;
        }
        if started.elapsed() > RUN_TIMEOUT {
            let _ = child.kill();
            let _ = child.wait();
            return Err(GpuError::Invalid(format!("the container did not end within {} s", RUN_TIMEOUT.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = std::fs::read_to_string(&out).unwrap_or_default();
    let checks: Option<Vec<PathCheck>> = serde_json::from_str(&text).ok();
    match checks.filter(|c| c.len() == expected.len()) {
        Some(checks) => Ok(checks),
        None => {
            let stderr = std::fs::read_to_string(folder.join("err")).unwrap_or_default();
            Err(GpuError::Invalid(format!("the container did not run ({status}): {}", stderr.trim())))
        }
    }
}
