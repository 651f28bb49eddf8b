//! Who a process is: its user, its command, its container or pod.

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

/// What `/proc` tells of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[schemars(rename = "GpuProcessOwner")]
pub struct Owner {
    /// User name, or number where it has none.
    pub user: String,
    /// Command.
    pub command: String,
    /// The container's id, first twelve digits.
    pub container: Option<String>,
    /// The Kubernetes pod's UID.
    pub pod: Option<String>,
}

/// The container and pod that a cgroup path names.
///
/// Kubelets write `kubepods...pod<uid>` with dashes or underscores, runtimes `<64 hex>` with a prefix of their own.
pub fn from_cgroup(text: &str) -> (Option<String>, Option<String>) {
    let hex = |t: &str, n: usize| t.len() >= n && t.bytes().all(|b| b.is_ascii_hexdigit());
    let (mut container, mut pod) = (None, None);
    for part in text.split(['/', '\n', ':']) {
        let name = part.trim_end_matches(".scope").trim_end_matches(".slice");
        if let Some(id) = name.rsplit('-').next().filter(|id| id.len() == 64 && hex(id, 64)) {
            container = Some(id[..12].to_owned());
        }
        if let Some((_, uid)) = name.rsplit_once("pod").filter(|(_, uid)| uid.len() == 36) {
            let uid = uid.replace('_', "-");
            if uid.split('-').all(|p| hex(p, 4)) {
                pod = Some(uid);
            }
        }
    }
    (container, pod)
}

/// The owner of a process; what cannot be read is empty.
pub fn owner(pid: u32) -> Owner {
    let folder = Path::new("/proc").join(pid.to_string());
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let status = read("status");
    let uid =
        status.lines().find_map(|l| l.strip_prefix("Uid:")).and_then(|l| l.split_whitespace().next()).unwrap_or("");
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = passwd.lines().find_map(|l| {
        let mut fields = l.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid && !uid.is_empty()).then(|| name.to_owned())
    });
    let (container, pod) = from_cgroup(&read("cgroup"));
    Owner { user: named.unwrap_or_else(|| uid.to_owned()), command: read("comm").trim().to_owned(), container, pod }
}

/// A process in a few words: `pid 42 (python, user ada, pod 3f…)`.
pub fn about(pid: u32) -> String {
    let owner = owner(pid);
    let mut words = Vec::new();
    if !owner.command.is_empty() {
        words.push(owner.command);
    }
    if !owner.user.is_empty() {
        words.push(format!("user {}", owner.user));
    }
    words.extend(owner.pod.map(|p| format!("pod {p}")));
    if words.is_empty() { format!("pid {pid}") } else { format!("pid {pid} ({})", words.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_name_pods_and_containers() {
        let id = "0123456789abcdef".repeat(4);
        let systemd = format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3f2a_1.slice\n0::/kubepods-pod12345678_1234_1234_1234_123456789abc.slice/cri-containerd-{id}.scope"
        );
        let (container, pod) = from_cgroup(&systemd);
        assert_eq!(container.as_deref(), Some("0123456789ab"));
        assert_eq!(pod.as_deref(), Some("12345678-1234-1234-1234-123456789abc"));
        assert_eq!(from_cgroup("0::/user.slice/user-1000.slice/session-3.scope"), (None, None));
    }

    #[test]
    fn this_process_has_an_owner() {
        assert!(!owner(std::process::id()).command.is_empty());
        assert_eq!(owner(0), Owner::default());
    }
}
