//! The probe: a read-only shell script that prints the state of a machine, and the parser of its output.
//!
//! The script only needs a POSIX shell and the programs that every Debian, Ubuntu and RHEL has, so that a plan works without installing anything.
//! Each line of the output is a fact: resource, field, and the value in base64, or in plain text after an equals sign.

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::layers::fabric::FIND_FABRIC;
use crate::resource::{PackageManager, Resource, ResourceKind};
use crate::shell::{FOLDER, quote};
use crate::spec::Distribution;

/// Maximum bytes read of a file. Slipway writes no larger files, so a larger file always differs from the desired one.
pub(crate) const MAX_FILE_BYTES: usize = 1 << 20;

/// The parsed output of a probe, by resource and field. Facts about the whole machine belong to the resource `@`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts(BTreeMap<(String, String), Vec<u8>>);

/// Shell functions that print facts: `p` prints its standard input in base64, `v` a plain value of the machine, `f` the mode and content of
/// a file, `c` the exit status of a command. They start few processes, because these take most of the probe's time.
const SHELL_FUNCTIONS: &str = r#"
p() { printf '%s\t%s\t' "$1" "$2"; base64 -w0; echo; }
v() { printf '@\t%s\t=%s\n' "$1" "$2"; }
f() {
  [ -e "$2" ] || return 0
  x=$(stat -Lc '%s=%a %F' "$2"); printf '%s\tstat\t%s\n%s\tcontent\t' "$1" "=${x#*=}" "$1"
  # One byte more than the maximum shows that the file is larger.
  if [ ! -f "$2" ]; then :; elif [ "${x%%=*}" -le MAX_BYTES ]; then base64 -w0 "$2"; else head -c $((MAX_BYTES + 1)) "$2" | base64 -w0; fi; echo
}
c() { (eval "$2") </dev/null >/dev/null 2>&1; printf '%s\tstatus\t=%s\n' "$1" $?; }
manager=; if command -v apt-get >/dev/null; then manager=apt; elif command -v dnf >/dev/null; then manager=dnf; fi; v manager "$manager"
"#;

/// Prints facts about the machine itself; see [`MachineInfo`].
const MACHINE_PROBE: &str = r#"
(. /etc/os-release; v os "$ID $VERSION_ID") 2>/dev/null
v kernel "$(uname -rm)"; v cpus "$(nproc)"; v clock "$(date +%s)"
while read -r key n rest; do [ "$key" = MemTotal: ] && v memory "$n" && break; done </proc/meminfo
x=$(stat -fc '%a * %S / 1024' /) && v disk "$(($x))"
read -r x </proc/sys/kernel/hostname && v hostname "$x"; read -r x </proc/sys/kernel/random/boot_id && v boot "$x"
gpus= names= ids=/usr/share/misc/pci.ids; [ -r $ids ] || ids=/usr/share/hwdata/pci.ids
for d in /sys/bus/pci/devices/*; do
  { read -r x <"$d/vendor"; } 2>/dev/null && [ "$x" = 0x10de ] || continue; read -r c <"$d/class"; read -r i <"$d/device"
  case $c in 0x0300*|0x0302*) gpus="$gpus${d##*/} $i;";; *) continue;; esac
  case ";$names" in *";$i "*) ;; *) names="$names$i $(sed -n "/^10de /,/^[0-9a-f]/s/^\t${i#0x}  //p" $ids 2>/dev/null);";; esac
done; v gpus "$gpus"; v gpunames "$names"
x=; { read -r x </sys/module/nvidia/version; } 2>/dev/null; [ -d /sys/module/nouveau ] && x=nouveau; v driver "$x"
[ -r /proc/driver/nvidia/version ] && p @ driverversion </proc/driver/nvidia/version
for f in /sys/firmware/efi/efivars/SecureBoot-*; do [ -e "$f" ] && v secureboot "$(od -An -t u1 -j4 -N1 "$f")"; done
"#;

/// A command that prints the names of the cluster's nodes; nothing if the cluster does not exist yet. A machine has one distribution.
fn nodes_probe() -> String {
    let get = |distribution: Distribution| format!("{} get nodes -o name", distribution.kubectl());
    let all = Distribution::ALL.map(get).join(" || ");
    format!("{{ {all}; }} </dev/null 2>/dev/null | p @ nodes\n")
}

/// Prints the facts for the doctor's checks ([`crate::doctor`]). It runs after [`FIND_FABRIC`].
const DOCTOR_PROBE: &str = r#"
v fabric "$fabric"; [ -n "$fabric" ] && v fabricmanager "$(systemctl is-active nvidia-fabricmanager 2>/dev/null) $(dpkg-query -W -f '${db:Status-Status} ${Version}\n' 'nvidia-fabricmanager*' 2>/dev/null | sed -n 's/^installed //p' | head -n 1)"
S=/var/snap/microk8s
[ -d $S ] && v microk8s yes
for x in k3s rke2; do [ -x /usr/local/bin/$x ] && v other $x; done; [ -e /etc/kubernetes/kubelet.conf ] && v other kubeadm
for f in /etc/kubernetes/pki/apiserver.crt /etc/kubernetes/pki/apiserver-kubelet-client.crt /etc/kubernetes/pki/etcd/server.crt /var/lib/rancher/*/server/tls/serving-kube-apiserver.crt $S/current/certs/server.crt; do
  [ -r "$f" ] && x=$(openssl x509 -noout -enddate -in "$f" 2>/dev/null) && x=$(date -d "${x#*=}" +%s) && printf '%s %s\n' "$x" "$f"
done | p @ certificates
if [ -L /var/lib/kubelet ]; then v kubelet "link $(readlink /var/lib/kubelet)"; elif [ -d /var/lib/kubelet ]; then
  v kubelet "folder $(ls -A /var/lib/kubelet | wc -l)"; else v kubelet none; fi
T=$S/current/args/containerd-template.toml; [ -e $T ] && grep -q 'default_runtime_name *= *"nvidia"' $T && v nvidia-runtime yes
command -v nvidia-container-runtime >/dev/null && v nvidia-toolkit yes
x=$(ldconfig -p 2>/dev/null | sed -n 's/.*libnvidia-ml\.so\.1 .*=> //p' | head -1); [ -n "$x" ] && x=$(readlink -f "$x") && v library "${x##*.so.}"
v inodes "$(df -Pi / | { read -r head; read -r a b c d n rest; echo "${n%\%}"; })"
command -v ss >/dev/null && ss -ltnH 2>/dev/null | sed -n 's/^[^ ]* *[^ ]* *[^ ]* *[^ ]*:\([0-9]*\) .*/\1/p' | sort -un | p @ listening
getent hosts registry.k8s.io >/dev/null 2>&1 && v dns yes || v dns no
"#;

/// Prints the packages `NAMES` with their states, as dpkg has them: name, `installed`, version, and `hold` for a held one.
const PACKAGES_PROBE: &str = r#"
case $manager in
dnf) for n in NAMES; do
    x=$(rpm -q --qf '%{NAME}\tinstalled\t%{VERSION}-%{RELEASE}\t' "$n" 2>/dev/null) || continue; w=install
    { grep -qsE "^$n-[0-9]+:" /etc/dnf/plugins/versionlock.list || grep -qsxF "name = \"$n\"" /etc/dnf/versionlock.toml; } && w=hold
    printf '%s%s\n' "$x" $w
  done;;
*) dpkg-query -W -f '${Package}\t${db:Status-Status}\t${Version}\t${db:Status-Want}\n' NAMES 2>/dev/null;;
esac | p @ packages
"#;

/// Flag of [`script`]: also print facts about the machine itself.
pub const ABOUT: u8 = 1;
/// Flag of [`script`]: also print the cluster's nodes.
pub const NODES: u8 = 2;
/// Flag of [`script`]: also print facts for the doctor's checks.
pub const DOCTOR: u8 = 4;

/// The script that prints the facts of these resources. `extra` is a combination of [`ABOUT`], [`NODES`] and [`DOCTOR`], or 0.
pub fn script(resources: &[Resource], extra: u8) -> String {
    let mut out = SHELL_FUNCTIONS.replace("MAX_BYTES", &MAX_FILE_BYTES.to_string());
    if extra & ABOUT != 0 {
        out += MACHINE_PROBE;
    }
    if extra & NODES != 0 {
        out += &nodes_probe();
    }
    if extra & DOCTOR != 0 {
        out += FIND_FABRIC;
        out += DOCTOR_PROBE;
    }
    let names = |pick: &dyn Fn(&ResourceKind) -> Option<String>| -> Vec<String> {
        resources.iter().filter_map(|r| pick(&r.what)).map(|n| quote(&n)).collect()
    };
    let packages = names(&|w| if let ResourceKind::Package { name, .. } = w { Some(name.clone()) } else { None });
    if !packages.is_empty() {
        out += &PACKAGES_PROBE.replace("NAMES", &packages.join(" "));
    }
    if resources.iter().any(|r| matches!(r.what, ResourceKind::Snap { .. })) {
        out += "snap list --unicode=never 2>/dev/null | p @ snaps\n";
    }
    let services = names(&|w| if let ResourceKind::Service { name } = w { Some(name.clone()) } else { None });
    if !services.is_empty() {
        let _ = writeln!(
            out,
            "systemctl show -p Id,LoadState,UnitFileState,ActiveState {} 2>/dev/null | p @ services",
            services.join(" ")
        );
    }
    for resource in resources {
        let id = &resource.id;
        match &resource.what {
            ResourceKind::File { path, .. } | ResourceKind::Edit { path, .. } => {
                let _ = writeln!(out, "f {id} {}", quote(path));
            }
            ResourceKind::Command { check: command, .. } | ResourceKind::Reboot { when: command, .. } => {
                // Checks of another family of operating systems are not run, because they may fail slowly.
                let only = resource.only_with.map(|m| format!("[ \"$manager\" != {} ] || ", m.name()));
                let _ = writeln!(out, "{}c {id} {}", only.unwrap_or_default(), quote(command));
            }
            ResourceKind::Package { .. } | ResourceKind::Snap { .. } | ResourceKind::Service { .. } => {}
        }
        if resource.then.is_some() {
            let _ = writeln!(out, "[ -e {} ] && printf '%s\\tpending\\t=1\\n' {id}", quote(&pending_file(id)));
        }
    }
    out += "v end end\n";
    out
}

/// The file that exists while the follow-up command of a changed resource has not succeeded yet.
pub(crate) fn pending_file(id: &str) -> String {
    format!("{FOLDER}/pending/{}", id.replace('/', "_"))
}

impl Facts {
    /// Parses the script's output.
    ///
    /// # Errors
    /// When the output is incomplete, or a line is not a fact.
    pub fn parse(output: &str) -> Result<Self, String> {
        let mut facts = BTreeMap::new();
        for line in output.lines() {
            let mut parts = line.splitn(3, '\t');
            let (Some(id), Some(field), Some(value)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(format!("unexpected output: {}", line.chars().take(120).collect::<String>()));
            };
            let value = match value.strip_prefix('=') {
                Some(plain) => plain.as_bytes().to_vec(),
                None => STANDARD.decode(value.trim()).map_err(|e| format!("{id} {field}: {e}"))?,
            };
            facts.insert((id.to_owned(), field.to_owned()), value);
        }
        let facts = Self(facts);
        if facts.machine("end").is_empty() {
            return Err("the output is incomplete".into());
        }
        Ok(facts)
    }

    /// The value of a resource's field, as bytes.
    pub(crate) fn bytes(&self, id: &str, field: &str) -> Option<&[u8]> {
        self.0.get(&(id.to_owned(), field.to_owned())).map(Vec::as_slice)
    }

    /// The value of a resource's field, as text.
    pub(crate) fn text(&self, id: &str, field: &str) -> Option<String> {
        self.bytes(id, field).map(|b| String::from_utf8_lossy(b).into_owned())
    }

    /// The trimmed value of a field of the whole machine; empty if there is no such fact.
    pub(crate) fn machine(&self, field: &str) -> String {
        self.text("@", field).unwrap_or_default().trim().to_owned()
    }

    /// The package manager of the machine; `None` if it has neither.
    pub(crate) fn package_manager(&self) -> Option<PackageManager> {
        let name = self.machine("manager");
        [PackageManager::Apt, PackageManager::Dnf].into_iter().find(|manager| manager.name() == name)
    }

    /// Whether the check command of a resource exited with 0.
    pub(crate) fn succeeded(&self, id: &str) -> bool {
        self.text(id, "status").is_some_and(|s| s.trim() == "0")
    }

    /// Whether the follow-up command of a resource has not succeeded yet.
    pub(crate) fn pending(&self, id: &str) -> bool {
        self.bytes(id, "pending").is_some()
    }

    /// Replaces all facts of the resources `ids` by those of `newer`. Facts about the machine are only overwritten, not removed.
    pub(crate) fn update(&mut self, newer: Self, ids: &[&str]) {
        self.0.retain(|(id, _), _| !ids.contains(&id.as_str()));
        self.0.extend(newer.0);
    }

    /// Hardware and operating system of the machine.
    pub fn about(&self) -> MachineInfo {
        let number = |field: &str| self.machine(field).parse::<u64>().unwrap_or(0);
        let (distribution, release) =
            self.machine("os").split_once(' ').map_or_else(Default::default, |(a, b)| (a.to_owned(), b.to_owned()));
        let (kernel, arch) =
            self.machine("kernel").split_once(' ').map_or_else(Default::default, |(a, b)| (a.to_owned(), b.to_owned()));
        MachineInfo {
            hostname: self.machine("hostname"),
            distribution,
            release,
            kernel,
            arch,
            cpus: number("cpus"),
            memory_mib: number("memory") >> 10,
            disk_free_mib: number("disk") >> 10,
            clock: number("clock"),
            boot: self.machine("boot"),
            gpus: self.machine("gpus").split_terminator(';').map(str::to_owned).collect(),
            driver: self.machine("driver"),
            secure_boot: self.machine("secureboot") == "1",
        }
    }
}

/// Hardware and operating system of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineInfo {
    /// The hostname that the machine has set.
    pub hostname: String,
    /// Id of the distribution: `ubuntu`, `debian`.
    pub distribution: String,
    /// Version of the distribution, such as `24.04`.
    pub release: String,
    /// Kernel release, such as `6.8.0-51-generic`.
    pub kernel: String,
    /// Processor architecture, such as `x86_64`.
    pub arch: String,
    /// Number of logical processors.
    pub cpus: u64,
    /// Total memory in MiB.
    pub memory_mib: u64,
    /// Free space of `/` in MiB.
    pub disk_free_mib: u64,
    /// Time of the machine's clock, in seconds since 1970.
    pub clock: u64,
    /// Boot identifier, a UUID that changes with every boot.
    pub boot: String,
    /// NVIDIA GPUs, each as PCI address and device id: `0000:01:00.0 0x2330`.
    pub gpus: Vec<String>,
    /// Version of the loaded NVIDIA driver, or `nouveau`; empty if neither is loaded.
    pub driver: String,
    /// Whether Secure Boot is on, so that the kernel loads only signed modules.
    pub secure_boot: bool,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Facts from a list of resource, field and value.
    pub(crate) fn facts(list: &[(&str, &str, &str)]) -> Facts {
        Facts(list.iter().map(|(i, f, v)| (((*i).to_owned(), (*f).to_owned()), v.as_bytes().to_vec())).collect())
    }

    #[test]
    fn probe_output_is_parsed_or_rejected() {
        let line = |id: &str, field: &str, value: &str| format!("{id}\t{field}\t{}\n", STANDARD.encode(value));
        let complete = line("@", "os", "debian 12") + &line("a/b", "status", "0\n") + &line("@", "end", "end");
        let facts = Facts::parse(&complete).unwrap();
        assert!(facts.succeeded("a/b") && !facts.succeeded("a/c"));
        assert_eq!(facts.about().distribution, "debian");
        assert!(Facts::parse(&line("@", "os", "debian 12")).unwrap_err().contains("incomplete"));
        assert!(Facts::parse("Welcome to Ubuntu\n").unwrap_err().contains("unexpected output"));
    }

    #[test]
    fn script_reports_this_machine() {
        let done = std::process::Command::new("sh").arg("-c").arg(script(&[], ABOUT | DOCTOR)).output().unwrap();
        let facts = Facts::parse(&String::from_utf8(done.stdout).unwrap()).unwrap();
        let about = facts.about();
        assert!(
            about.cpus > 0 && about.clock > 1_700_000_000 && about.memory_mib > 0 && about.disk_free_mib > 0,
            "{about:?}"
        );
        assert!(about.arch == std::env::consts::ARCH && about.boot.len() == 36, "{about:?}");
    }

    #[test]
    fn script_reports_files_and_exit_statuses() {
        let folder = std::env::temp_dir().join(slipway_core::ids::hex32());
        let path = |name: &str| folder.join(name).display().to_string();
        std::fs::create_dir(&folder).unwrap();
        for (name, bytes) in [("a file's", &b"a\tb\n"[..]), ("empty", b""), ("long", &[b'x'; MAX_FILE_BYTES + 9])] {
            std::fs::write(path(name), bytes).unwrap();
        }
        std::fs::create_dir(path("folder")).unwrap();
        let mut resources: Vec<Resource> = ["a file's", "empty", "long", "folder", "none"]
            .into_iter()
            .zip(["file", "empty", "long", "folder", "none"])
            .map(|(file, name)| {
                let content = crate::resource::Text { text: String::new(), secret: false };
                Resource::new(
                    crate::resource::Layer::System,
                    name,
                    ResourceKind::File { path: path(file), content, mode: "0644".into() },
                )
            })
            .collect();
        for (name, check) in
            [("yes", "[ 'a b' = \"a b\" ]"), ("three", "exit 3"), ("wrong", "if (; then"), ("input", "read -r x")]
        {
            let (check, run, missing) = (check.to_owned(), String::new(), String::new());
            resources.push(Resource::new(
                crate::resource::Layer::System,
                name,
                ResourceKind::Command { check, run, undo: None, missing },
            ));
        }
        let facts = crate::converge::probe_local(&resources).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let mode = |id: &str| facts.text(id, "stat").map(|s| s.split_once(' ').unwrap().1.to_owned());
        assert_eq!(mode("system/file").as_deref(), Some("regular file"));
        assert_eq!(mode("system/empty").as_deref(), Some("regular empty file"));
        assert_eq!((mode("system/folder").as_deref(), mode("system/none")), (Some("directory"), None));
        assert_eq!(facts.text("system/file", "content").as_deref(), Some("a\tb\n"));
        assert_eq!(facts.bytes("system/long", "content").map(<[u8]>::len), Some(MAX_FILE_BYTES + 1));
        assert!(["empty", "folder"].iter().all(|f| facts.bytes(&format!("system/{f}"), "content") == Some(b"")));
        let status = |id: &str| facts.text(id, "status").unwrap_or_default();
        assert_eq!((status("system/yes"), status("system/three")), ("0".into(), "3".into()));
        assert!(!facts.succeeded("system/wrong") && !facts.succeeded("system/input"));
    }

    #[test]
    fn quoted_text_is_literal_in_the_shell() {
        let text = "a'b $(touch x) \\ \"";
        let done =
            std::process::Command::new("sh").arg("-c").arg(format!("printf %s {}", quote(text))).output().unwrap();
        assert_eq!(String::from_utf8(done.stdout).unwrap(), text);
    }
}
