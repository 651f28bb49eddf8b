//! Generates and validates Container Device Interface (CDI) specifications for GPUs and MIG devices.
//!
//! Source: Container Device Interface 0.6.0, SPEC.md. The content for NVIDIA GPUs follows `nvidia-ctk cdi generate`:
//! device nodes, the driver's libraries, programs, firmware and sockets, and hooks that refresh the container's library
//! cache.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::inventory::{Inventory, MigDevice};
use crate::{GpuError, pci};

/// The CDI version of generated specifications. 0.6.0 is supported by containerd 1.7, CRI-O 1.28, Docker 25 and newer.
pub const VERSION: &str = "0.6.0";
/// The CDI kind of NVIDIA's devices.
pub const KIND: &str = "nvidia.com/gpu";

/// A CDI specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Spec {
    /// CDI version, such as `0.6.0`.
    pub cdi_version: String,
    /// `vendor/class`, such as `nvidia.com/gpu`.
    pub kind: String,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
    /// The devices; names are unique.
    pub devices: Vec<Device>,
    /// Edits for every container that uses any device of this specification.
    #[serde(default, skip_serializing_if = "Edits::is_empty")]
    pub container_edits: Edits,
}

/// A CDI device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Device {
    /// Device name: GPU index (`0`), GPU and MIG index (`0:1`), UUID, or `all`.
    pub name: String,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Edits for containers that use the device.
    pub container_edits: Edits,
}

/// Container edits: environment, device nodes, mounts and hooks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(missing_docs)] // the names are those of the CDI specification
pub struct Edits {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<DeviceNode>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "additionalGIDs")]
    pub additional_gids: Vec<u32>,
}

impl Edits {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A device node in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(missing_docs)] // the names are those of the CDI specification
pub struct DeviceNode {
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

impl DeviceNode {
    /// The node with this path below `root`. The host path is set only if it differs from the container path.
    fn at(path: &str, root: &Path) -> Self {
        let host = root.join(path.trim_start_matches('/')).display().to_string();
        Self {
            host_path: Some(host).filter(|h| h != path),
            path: path.into(),
            r#type: None,
            major: None,
            minor: None,
            file_mode: None,
            permissions: None,
            uid: None,
            gid: None,
        }
    }
}

/// A hook program that the container runtime executes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(missing_docs)] // the names are those of the CDI specification
pub struct Hook {
    pub hook_name: String,
    pub path: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(missing_docs)] // the names are those of the CDI specification
pub struct Mount {
    pub host_path: String,
    pub container_path: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
}

/// Library directories of common distributions, below the root.
const LIBRARY_FOLDERS: [&str; 5] =
    ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib", "usr/lib/wsl/lib"];
/// Programs of the driver that are useful in a container.
const PROGRAMS: [&str; 5] =
    ["nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"];
/// Sockets of NVIDIA's daemons, below the root.
const SOCKETS: [&str; 3] = ["run/nvidia-persistenced/socket", "run/nvidia-fabricmanager/socket", "tmp/nvidia-mps"];
/// Device nodes that every GPU container needs.
const CONTROL_NODES: [&str; 4] = ["dev/nvidia-modeset", "dev/nvidia-uvm", "dev/nvidia-uvm-tools", "dev/nvidiactl"];

/// A bind mount of a file below `root` to the same path in the container.
fn bind(host: &Path, root: &Path, options: &[&str]) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: inside(host, root),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        r#type: None,
    }
}

/// The path in the container of a path below `root`.
fn inside(path: &Path, root: &Path) -> String {
    format!("/{}", path.strip_prefix(root).unwrap_or(path).display())
}

/// Looks up the minor number of a MIG capability in the text of [`MIG_MINORS`], whose lines look like `gpu0/gi1/ci0/access 13`.
fn capability(minors: &str, path: &str) -> Option<u32> {
    minors.lines().find_map(|l| l.strip_prefix(path)?.trim().parse().ok())
}

/// The driver's list of MIG capabilities and their minor numbers, below the root.
const MIG_MINORS: &str = "proc/driver/nvidia-caps/mig-minors";

/// The capability device nodes of a MIG device: of its GPU instance, and of its compute instance. `root` contains `/proc`, and
/// `minor` is the minor number of the GPU.
///
/// # Errors
/// [`GpuError::Invalid`] if the driver does not list the capabilities.
pub fn capability_nodes(root: &Path, minor: u32, device: &MigDevice) -> Result<[String; 2], GpuError> {
    // A root that contains only the driver's files has no /proc; fall back to the one of this process.
    let read = |root: &Path| std::fs::read_to_string(root.join(MIG_MINORS));
    let minors = read(root).or_else(|_| read(Path::new("/"))).unwrap_or_default();
    let instance = format!("gpu{minor}/gi{}", device.gpu_instance);
    let node = |path: String| {
        capability(&minors, &path)
            .map(|number| format!("/dev/nvidia-caps/nvidia-cap{number}"))
            .ok_or_else(|| GpuError::Invalid(format!("/{MIG_MINORS} does not list {path}")))
    };
    Ok([node(format!("{instance}/access"))?, node(format!("{instance}/ci{}/access", device.compute_instance))?])
}

/// The hook program of NVIDIA's container toolkit, if installed.
pub fn find_hook() -> Option<&'static Path> {
    ["/usr/bin/nvidia-cdi-hook", "/usr/bin/nvidia-ctk"].into_iter().map(Path::new).find(|p| p.exists())
}

/// Generates the specification of a machine whose driver is installed under `root` (usually `/`). `hook` is the toolkit's hook
/// program on the host; without it the libraries are mounted under their sonames instead of linked.
///
/// # Errors
/// [`GpuError::Invalid`] if the driver's libraries are missing, [`GpuError::Io`] if `root` does not exist.
pub fn generate(inventory: &Inventory, root: &Path, hook: Option<&Path>) -> Result<Spec, GpuError> {
    // A specification may contain only absolute paths.
    let root = &std::fs::canonicalize(root).map_err(GpuError::io(root.display().to_string()))?;
    let exists = |path: &str| root.join(path).exists();
    let node = |path: &str| DeviceNode::at(path, root);
    let libraries = libraries(root, &inventory.driver);
    let cuda = libraries.iter().find(|l| l.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libcuda.so")));
    let Some(cuda_folder) = cuda.and_then(|l| l.parent()) else {
        return Err(GpuError::Invalid(format!(
            "libcuda.so.{} was not found under {}; is the driver installed there?",
            inventory.driver,
            root.display()
        )));
    };
    let mut edits = Edits {
        env: vec![
            format!("NVIDIA_CTK_LIBCUDA_DIR={}", inside(cuda_folder, root)),
            "NVIDIA_VISIBLE_DEVICES=void".into(),
        ],
        device_nodes: CONTROL_NODES.iter().filter(|p| exists(p)).map(|p| node(&format!("/{p}"))).collect(),
        ..Edits::default()
    };
    let read_only = ["ro", "nosuid", "nodev", "rbind", "rprivate"];
    edits.mounts.extend(libraries.iter().map(|l| bind(l, root, &read_only)));
    let programs = PROGRAMS.iter().map(|p| root.join("usr/bin").join(p)).filter(|p| p.exists());
    edits.mounts.extend(programs.map(|p| bind(&p, root, &read_only)));
    let firmware = root.join("lib/firmware/nvidia").join(&inventory.driver);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(firmware).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    edits.mounts.extend(files.iter().map(|f| bind(f, root, &read_only)));
    for socket in SOCKETS.iter().filter(|s| exists(s)) {
        edits.mounts.push(bind(&root.join(socket), root, &["ro", "nosuid", "nodev", "rbind", "rprivate", "noexec"]));
    }
    let mut folders: Vec<String> = libraries.iter().filter_map(|l| l.parent()).map(|f| inside(f, root)).collect();
    folders.sort();
    folders.dedup();
    if let Some(program) = hook {
        edits.hooks = hooks(program, &inside(cuda_folder, root), &folders, &inventory.driver);
    } else {
        let with_soname = libraries.iter().filter_map(|l| Some((l, soname(l)?)));
        let mounts: Vec<Mount> = with_soname
            .map(|(l, name)| Mount {
                container_path: inside(&l.with_file_name(name), root),
                ..bind(l, root, &read_only)
            })
            .collect();
        edits.mounts.extend(mounts);
    }

    let (mut devices, mut all) = (Vec::new(), Vec::<DeviceNode>::new());
    for gpu in &inventory.gpus {
        let Some(minor) = gpu.minor else { continue };
        let mut nodes = vec![node(&format!("/dev/nvidia{minor}"))];
        nodes.extend(dri_nodes(root, &gpu.bus_id).iter().map(|p| node(p)));
        match gpu.mig.as_ref().filter(|m| m.enabled) {
            None => {
                for name in [gpu.index.to_string(), gpu.uuid.clone()] {
                    devices.push(device(name, nodes.clone()));
                }
                all.extend(nodes);
            }
            Some(mig) => {
                for (index, mig_device) in mig.devices.iter().enumerate() {
                    let mut nodes = nodes.clone();
                    nodes.extend(capability_nodes(root, minor, mig_device)?.iter().map(|path| node(path)));
                    for name in [format!("{}:{index}", gpu.index), mig_device.uuid.clone()] {
                        devices.push(device(name, nodes.clone()));
                    }
                    all.extend(nodes);
                }
            }
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|n| seen.insert(n.path.clone()));
    devices.push(device("all".into(), all));
    Ok(Spec {
        cdi_version: VERSION.into(),
        kind: KIND.into(),
        annotations: std::collections::BTreeMap::new(),
        devices,
        container_edits: edits,
    })
}

fn device(name: String, device_nodes: Vec<DeviceNode>) -> Device {
    let container_edits = Edits { device_nodes, ..Edits::default() };
    Device { name, annotations: std::collections::BTreeMap::new(), container_edits }
}

/// Paths of the driver's libraries: those whose names end in the driver version.
fn libraries(root: &Path, version: &str) -> Vec<PathBuf> {
    let ending = format!(".so.{version}");
    let mut found = Vec::new();
    for folder in LIBRARY_FOLDERS {
        for below in ["", "vdpau"] {
            let entries = std::fs::read_dir(root.join(folder).join(below)).into_iter().flatten().flatten();
            found.extend(entries.map(|e| e.path()).filter(|p| {
                let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                name.starts_with("lib") && name.ends_with(&ending)
            }));
        }
    }
    found.sort();
    found
}

/// The soname under which programs load a driver library; most end in `.so.1`.
fn soname(library: &Path) -> Option<String> {
    let name = library.file_name()?.to_string_lossy().into_owned();
    let (stem, _) = name.split_once(".so.")?;
    Some(format!("{stem}.so.1"))
}

/// The hooks that the toolkit runs in a new container, as generated by `nvidia-ctk` 1.20.
fn hooks(program: &Path, cuda_folder: &str, folders: &[String], version: &str) -> Vec<Hook> {
    let path = program.display().to_string();
    let name = path.rsplit('/').next().unwrap_or_default();
    let hook = |verb: &str, rest: Vec<String>| {
        let mut args = vec![name.to_owned()];
        if name == "nvidia-ctk" {
            args.push("hook".into());
        }
        args.push(verb.into());
        args.extend(rest);
        let env = vec!["NVIDIA_CTK_DEBUG=false".into()];
        Hook { hook_name: "createContainer".into(), path: path.clone(), args, env, timeout: None }
    };
    let link = format!("libcuda.so.1::{cuda_folder}/libcuda.so");
    let caches = folders.iter().flat_map(|f| ["--folder".to_owned(), f.clone()]);
    vec![
        hook("create-symlinks", vec!["--link".into(), link]),
        hook("enable-cuda-compat", vec![format!("--host-driver-version={version}")]),
        hook("update-ldcache", caches.collect()),
        hook("disable-device-node-modification", Vec::new()),
    ]
}

/// The `/dev/dri` nodes of a GPU, found through the links in `by-path`.
fn dri_nodes(root: &Path, bus_id: &str) -> Vec<String> {
    let address = pci::kernel_address(bus_id);
    let mut found = Vec::new();
    for kind in ["card", "render"] {
        let link = root.join(format!("dev/dri/by-path/pci-{address}-{kind}"));
        if let Some(name) =
            std::fs::read_link(link).ok().and_then(|t| t.file_name().map(|n| n.to_string_lossy().into_owned()))
        {
            found.push(format!("/dev/dri/{name}"));
        }
    }
    found
}

/// Validates a specification and returns the problems: invalid values, and host paths that do not exist.
///
/// # Errors
/// [`GpuError::Invalid`] if the text cannot be parsed as a specification.
pub fn check(text: &str) -> Result<Vec<String>, GpuError> {
    let spec: Spec =
        serde_saphyr::from_str(text).map_err(|e| GpuError::Invalid(format!("not a CDI specification: {e}")))?;
    let mut problems = Vec::new();
    let is_word = |t: &str, more: &str| {
        t.bytes().all(|b| b.is_ascii_alphanumeric() || more.as_bytes().contains(&b))
            && t.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            && t.as_bytes().last().is_some_and(u8::is_ascii_alphanumeric)
    };
    let known = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
    if !known.contains(&spec.cdi_version.as_str()) {
        problems.push(format!("unknown cdiVersion '{}': expected one of {}", spec.cdi_version, known.join(", ")));
    }
    match spec.kind.split_once('/') {
        Some((vendor, class)) if is_word(vendor, ".-_") && is_word(class, "-_.") => {}
        _ => problems.push(format!("kind '{}' is not VENDOR/CLASS", spec.kind)),
    }
    if spec.devices.is_empty() {
        problems.push("the specification has no devices".into());
    }
    let mut names = std::collections::BTreeSet::new();
    for device in &spec.devices {
        if !is_word(&device.name, "-_.:") {
            problems.push(format!("device name '{}' has characters other than letters, digits and -_.:", device.name));
        }
        if !names.insert(&device.name) {
            problems.push(format!("duplicate device '{}'", device.name));
        }
        if device.container_edits.is_empty() {
            problems.push(format!("device '{}' has no container edits", device.name));
        }
    }
    let edits = spec.devices.iter().map(|d| &d.container_edits).chain([&spec.container_edits]);
    let mut missing = std::collections::BTreeSet::new();
    for edit in edits {
        for env in edit.env.iter().filter(|e| e.find('=').is_none_or(|at| at == 0)) {
            problems.push(format!("env '{env}' is not NAME=VALUE"));
        }
        let nodes = edit.device_nodes.iter().map(|n| n.host_path.as_ref().unwrap_or(&n.path));
        let paths = nodes.chain(edit.mounts.iter().map(|m| &m.host_path)).chain(edit.hooks.iter().map(|h| &h.path));
        for path in paths {
            if !path.starts_with('/') {
                problems.push(format!("'{path}' is not an absolute path"));
            } else if !Path::new(path).exists() {
                missing.insert(path.clone());
            }
        }
        let stages = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
        for hook in edit.hooks.iter().filter(|h| !stages.contains(&h.hook_name.as_str())) {
            problems.push(format!("unknown hook '{}': expected one of {}", hook.hook_name, stages.join(", ")));
        }
    }
    problems.extend(
        missing.into_iter().map(|p| format!("{p} does not exist on this machine; generate the specification again")),
    );
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_name_the_invalid_value() {
        let good = "cdiVersion: 0.6.0\nkind: nvidia.com/gpu\ndevices: [{name: \"0\", containerEdits: {deviceNodes: [{path: /dev/null}]}}]\n";
        assert_eq!(check(good).unwrap(), Vec::<String>::new());
        let problem = |from: &str, to: &str| check(&good.replace(from, to)).unwrap().join("; ");
        assert!(problem("0.6.0", "9.0.0").contains("unknown cdiVersion '9.0.0'"));
        assert!(problem("nvidia.com/gpu", "gpu").contains("VENDOR/CLASS"));
        assert!(problem("/dev/null", "/dev/nvidia99").contains("/dev/nvidia99 does not exist on this machine"));
        assert!(problem("/dev/null", "dev/null").contains("not an absolute path"));
        assert!(problem("name: \"0\"", "name: \"a b\"").contains("device name 'a b'"));
        assert!(check("devices: 3").is_err());
        assert!(check(&good.replace("deviceNodes", "devicenodes")).is_err());
    }

    #[test]
    fn mig_capabilities_are_parsed() {
        let minors = "config 1\nmonitor 2\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\n";
        assert_eq!(capability(minors, "gpu0/gi1/access"), Some(12));
        assert_eq!(capability(minors, "gpu0/gi1/ci0/access"), Some(13));
        assert_eq!(capability(minors, "gpu0/gi2/access"), None);
    }
}
