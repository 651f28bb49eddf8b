//! Identifies the owner of a process from `/proc`: user, command, container and pod.

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;

/// The owner of a process, as read from `/proc`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[schemars(rename = "GpuProcessOwner")]
pub struct Owner {
    /// User name, or the user id if it has no name.
    pub user: String,
    /// Command name without arguments, such as `python`.
    pub command: String,
    /// First twelve digits of the container id.
    pub container: Option<String>,
    /// UID of the Kubernetes pod.
    pub pod: Option<String>,
}

/// Extracts container id and pod UID from the text of `/proc/PID/cgroup`.
///
/// The kubelet writes `kubepods...pod<uid>` with dashes or underscores; runtimes write 64 hex digits after their own prefix.
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

/// Reads the owner of a process. Fields that cannot be read stay empty.
pub fn owner(pid: u32) -> Owner {
    let folder = Path::new("/proc").join(pid.to_string());
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let status = read("status");
    let uid =
        status.lines().find_map(|l| l.strip_prefix("Uid:")).and_then(|l| l.split_whitespace().next()).unwrap_or("");
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|l| {
        let mut fields = l.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid && !uid.is_empty()).then(|| name.to_owned())
    });
    let (container, pod) = from_cgroup(&read("cgroup"));
    Owner { user: name.unwrap_or_else(|| uid.to_owned()), command: read("comm").trim().to_owned(), container, pod }
}

/// Describes a process for messages, such as `pid 42 (python, user ada, pod 3f…)`.
pub fn describe(pid: u32) -> String {
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
    fn container_and_pod_are_parsed_from_cgroup() {
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
    fn current_process_has_an_owner() {
        assert!(!owner(std::process::id()).command.is_empty());
        assert_eq!(owner(0), Owner::default());
    }
}
