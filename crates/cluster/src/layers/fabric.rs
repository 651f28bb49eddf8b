//! The services of an NVLink fabric: fabric manager on boards with NVSwitches, NVLink 5's subnet manager, and IMEX for domains that span
//! machines. Source: NVIDIA, "Fabric Manager User Guide" (bare metal mode) and "IMEX User Guide".
//!
//! Whether a machine has NVSwitches is known only on the machine, so the commands look for them first, and do nothing without them.

use super::packages::FUNCTIONS;
use super::{command, file};
use crate::resource::{Layer, Resource, ResourceKind};

/// Shell code that sets `fabric` to `nvswitch` on a machine whose NVSwitches are PCI devices (HGX A100 to H200), to `nvlink5` on one whose
/// NVSwitches are reached through a ConnectX bridge (HGX B200 and B300; the bridge has `SW_MNG` in its vital product data), and else to
/// nothing. `$SLIPWAY_ROOT` replaces the root folder in tests. Vital product data is slow to read, so it is read only beside a Blackwell GPU.
pub(crate) const FIND_FABRIC: &str = r#"
fabric= bridges= blackwell=
for d in "$SLIPWAY_ROOT"/sys/bus/pci/devices/*; do
  { read -r x <"$d/vendor" && read -r c <"$d/class"; } 2>/dev/null || continue
  case $x:$c in
    0x10de:0x0680*) fabric=nvswitch;;
    0x10de:0x030[02]*) read -r x <"$d/device"; [ $((x)) -lt $((0x2900)) ] || blackwell=$x;;
    0x15b3:0x0207*) bridges="$bridges $d/vpd";;
  esac
done
if [ -z "$fabric" ] && [ -n "$blackwell" ] && [ -n "$bridges" ] && grep -qas SW_MNG $bridges; then fabric=nvlink5; fi
"#;

/// Shell code with functions about packages of the driver's version. It runs after [`FUNCTIONS`]. `v` is set to the version of the installed
/// driver. NVIDIA's repositories have a package for each branch and one without it in its name, and some for dnf have their own spelling.
const EXACT_VERSION: &str = r#"
fail() { echo "$*" >&2; exit 1; }
v=$(modinfo -F version nvidia 2>/dev/null)
names() { echo "$1-${v%%.*} $1"; [ "$1" != nvidia-fabricmanager ] || echo nvidia-fabric-manager; }
is_exact() { case ${1#*:} in "$v"|"$v"-*) [ -n "$v" ];; *) false;; esac; }
installed() { for p in $(names "$1"); do ! is_exact "$(version_of "$p")" || return 0; done; return 1; }
versions() {
  if [ -n "$apt" ]; then apt-cache madison "$1" 2>/dev/null | awk -F'|' '{gsub(/ /,"")} {print $2}'
  else dnf -q repoquery --qf '%{version}-%{release}\n' "$1" 2>/dev/null; fi
}
exact() { for p in $(names "$1"); do for x in $(versions "$p"); do ! is_exact "$x" || { echo "$p=$x"; return; }; done; done; }
need() {
  hint="the driver and $1 must come from NVIDIA's repository"; [ -z "$apt" ] || hint="run apt-get update, or set spec.gpu.driverSource to nvidia"
  x=$(exact "$1"); [ -n "$x" ] || fail "there is no package $1 of the driver's exact version $v: $hint"
  echo "$x"
}
hold() {
  if [ -n "$apt" ]; then apt-mark hold "$@" >/dev/null; return; fi
  dnf -q versionlock list >/dev/null 2>&1 || get python3-dnf-plugin-versionlock || return
  dnf -q versionlock delete '*nvidia*' >/dev/null 2>&1
  dnf -q -y versionlock add "*nvidia*$v*" "$@" >/dev/null
}
"#;

/// Fabric manager, in exactly the driver's version, because it refuses to start with another one. With dnf the driver is held at its version
/// too, because a module stream only keeps it in its branch (NVIDIA, "Driver Installation Guide", "Version locking").
pub(super) fn manager() -> Resource {
    let check = format!(
        "{FUNCTIONS}{FIND_FABRIC}{EXACT_VERSION}[ -n \"$fabric\" ] || exit 0\n\
         installed nvidia-fabricmanager && systemctl is-enabled -q nvidia-fabricmanager && systemctl is-active -q nvidia-fabricmanager && \
         {{ [ $fabric = nvswitch ] || [ -n \"$(version_of nvlsm)\" ]; }}"
    );
    let run = format!(
        "{FUNCTIONS}{FIND_FABRIC}{EXACT_VERSION}\
         [ -n \"$v\" ] || fail 'the driver is not installed'\n\
         packages=$(need nvidia-fabricmanager) || exit\n\
         if [ $fabric = nvlink5 ]; then\n\
           known nvlsm || fail 'NVLink 5 needs the package nvlsm of NVIDIA'\\''s repository: set spec.gpu.driverSource to nvidia'\n\
           x=$(need libnvsdm) || exit\n\
           umad=libibumad; [ -z \"$apt\" ] || umad=libibumad3\n\
           packages=\"$packages $x nvlsm $umad infiniband-diags\"\n\
           echo ib_umad >/etc/modules-load.d/slipway-nvlink.conf; modprobe ib_umad || exit\n\
         fi\n\
         get $packages || exit\n\
         held=; for p in $packages; do held=\"$held ${{p%%=*}}\"; done\n\
         hold $held || exit\n\
         systemctl daemon-reload; systemctl enable --quiet nvidia-fabricmanager && systemctl restart nvidia-fabricmanager"
    );
    command(Layer::Gpu, "fabric-manager", &check, &run, "fabric manager of the driver's version, enabled and running")
        .with_timeout(900)
        .needs(&["gpu/driver"])
        .effect("restarts fabric manager; running CUDA programs lose peer-to-peer access")
}

/// Makes the driver create the first IMEX channel whenever it is loaded.
pub(super) fn imex_channel() -> Resource {
    file(Layer::Gpu, "imex-channel", "/etc/modprobe.d/slipway-imex.conf", "options nvidia NVreg_CreateImexChannel0=1\n")
}

/// IMEX on a machine whose GPUs share memory with those of other machines. `peers` are the addresses of all machines of the domain. The list
/// must be the same on all of them.
pub(super) fn imex(peers: &[&str]) -> [Resource; 3] {
    let check = format!("{FUNCTIONS}{EXACT_VERSION}installed nvidia-imex");
    let run = format!(
        "{FUNCTIONS}{EXACT_VERSION}\
         [ -n \"$v\" ] || fail 'the driver is not installed'\n\
         x=$(need nvidia-imex) && get \"$x\" && hold \"${{x%%=*}}\" || exit\n\
         f=/dev/nvidia-caps-imex-channels/channel0; major=$(awk '$2 == \"nvidia-caps-imex-channels\" {{print $1}}' /proc/devices)\n\
         [ -e $f ] || [ -z \"$major\" ] || {{ mkdir -p ${{f%/*}} && mknod -m 0666 $f c $major 0; }}"
    );
    let nodes: String = peers.iter().map(|p| format!("{p}\n")).collect();
    [
        command(Layer::Gpu, "imex-package", &check, &run, "IMEX of the driver's version").needs(&["gpu/driver"]),
        // The package has its own list, so the file is written after it.
        file(Layer::Gpu, "imex-nodes", "/etc/nvidia-imex/nodes_config.cfg", nodes)
            .then("systemctl try-restart nvidia-imex")
            .needs(&["gpu/imex-package"])
            .effect("restarts IMEX; running programs lose access to the memory of other nodes"),
        Resource::new(Layer::Gpu, "imex", ResourceKind::Service { name: "nvidia-imex".into() })
            .needs(&["gpu/imex-nodes"]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::process::Command;

    /// A machine with PCI devices, each as vendor, device, class and vital product data, and with programs that log their arguments.
    struct Machine(PathBuf);

    impl Machine {
        fn new(devices: &[(&str, &str, &str, &str)], programs: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("slipway-fabric-{}", slipway_core::ids::hex32()));
            for (n, (vendor, device, class, vpd)) in devices.iter().enumerate() {
                let folder = root.join(format!("sys/bus/pci/devices/0000:{n:02x}:00.0"));
                std::fs::create_dir_all(&folder).unwrap();
                for (file, text) in [("vendor", vendor), ("device", device), ("class", class), ("vpd", vpd)] {
                    std::fs::write(folder.join(file), format!("{text}\n")).unwrap();
                }
            }
            std::fs::create_dir_all(root.join("bin")).unwrap();
            for (name, text) in programs {
                let file = root.join("bin").join(name);
                std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            Self(root)
        }

        fn run(&self, script: &str) -> (bool, String) {
            let path = format!("{}:{}", self.0.join("bin").display(), std::env::var("PATH").unwrap());
            let done = Command::new("sh")
                .args(["-c", script])
                .env("PATH", path)
                .env("SLIPWAY_ROOT", &self.0)
                .output()
                .unwrap();
            let text = [done.stdout, done.stderr].concat();
            (done.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const H100: (&str, &str, &str, &str) = ("0x10de", "0x2330", "0x030200", "");
    const NVSWITCH: (&str, &str, &str, &str) = ("0x10de", "0x22a3", "0x068000", "");
    const B200: (&str, &str, &str, &str) = ("0x10de", "0x2901", "0x030200", "");
    const BRIDGE: (&str, &str, &str, &str) = ("0x15b3", "0x1021", "0x020700", "ConnectX-7 SW_MNG");
    const NIC: (&str, &str, &str, &str) = ("0x15b3", "0x1021", "0x020700", "ConnectX-7");

    fn parts(resource: Resource) -> (String, String) {
        match resource.what {
            ResourceKind::Command { check, run, .. } => (check, run),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn fabric_is_found_on_the_pci_bus() {
        let fabric = |devices: &[_]| Machine::new(devices, &[]).run(&format!("{FIND_FABRIC}echo $fabric")).1;
        assert_eq!(fabric(&[H100, NVSWITCH]), "nvswitch");
        assert_eq!(fabric(&[B200, NIC, BRIDGE]), "nvlink5");
        assert_eq!(fabric(&[B200, NIC]), "", "GB200 and PCIe cards have no switches that the machine manages");
        assert_eq!(fabric(&[H100, BRIDGE]), "");
        assert_eq!(fabric(&[]), "");
    }

    const APT_CACHE: &str = "case \"$1 $2\" in\n'madison nvidia-fabricmanager-580') echo ' nvidia-fabricmanager-580 | 580.105.08-0ubuntu1 | http://x noble/main'; \
        echo ' nvidia-fabricmanager-580 | 580.95.05-0ubuntu0.24.04.1 | http://x noble/main';;\n\
        'madison libnvsdm') echo ' libnvsdm | 1:580.95.05-1 | http://x';;\nshow*) [ -e $SLIPWAY_ROOT/nvlsm ];;\nesac";
    const PROGRAMS: [(&str, &str); 6] = [
        ("modinfo", "echo 580.95.05"),
        ("apt-cache", APT_CACHE),
        ("apt-get", "echo apt-get $*"),
        ("apt-mark", "echo $* >&2"),
        ("modprobe", "exit 1"),
        ("systemctl", "echo systemctl $*"),
    ];

    #[test]
    fn fabric_manager_has_the_exact_version_of_the_driver() {
        let (_, run) = parts(manager());
        let (ok, output) = Machine::new(&[H100, NVSWITCH], &PROGRAMS).run(&run);
        assert!(ok && output.contains("install nvidia-fabricmanager-580=580.95.05-0ubuntu0.24.04.1"), "{output}");
        assert!(output.lines().any(|line| line == "hold nvidia-fabricmanager-580"), "{output}");
        assert!(output.contains("systemctl restart nvidia-fabricmanager"));
        let mut other = PROGRAMS;
        other[0].1 = "echo 580.65.06";
        let (ok, output) = Machine::new(&[H100, NVSWITCH], &other).run(&run);
        assert!(!ok && output.contains("exact version 580.65.06"), "{output}");
        let (ok, output) = Machine::new(&[B200, BRIDGE], &PROGRAMS).run(&run);
        assert!(!ok && output.contains("nvlsm"), "{output}");
    }

    #[test]
    fn machine_without_switches_needs_no_fabric_manager() {
        let (check, _) = parts(manager());
        assert!(Machine::new(&[H100], &PROGRAMS).run(&check).0);
        let with = |package: &str, dpkg: &str| {
            let mut programs = PROGRAMS.to_vec();
            let dpkg = format!("[ \"$4\" != {package} ] || {dpkg}");
            programs.push(("dpkg-query", &dpkg));
            Machine::new(&[H100, NVSWITCH], &programs).run(&check).0
        };
        assert!(with("nvidia-fabricmanager-580", "echo installed 580.95.05-0ubuntu0.24.04.1"));
        assert!(with("nvidia-fabricmanager", "echo installed 1:580.95.05-1"));
        assert!(!with("nvidia-imex", "echo installed 1:580.95.05-1"));
        assert!(!with("nvidia-fabricmanager-580", "echo installed 580.105.08-0ubuntu1"), "another version");
        assert!(!with("nvidia-fabricmanager-580", "echo config-files 580.95.05-0ubuntu0.24.04.1"));
        assert!(!with("nvidia-fabricmanager-580", "exit 1"));
    }

    /// Runs a script on a machine with dnf and without apt. `PATH` has only the stand-ins and what the scripts need.
    fn on_rhel(devices: &[(&str, &str, &str, &str)], script: &str) -> (bool, String) {
        const DNF: &str = "case \"$*\" in\n\
            *'repoquery --qf '*' nvidia-fabric-manager') echo 580.105.08-1.el9; echo 580.95.05-1.el9;;\n\
            *'repoquery --qf '*' nvidia-imex'|*'repoquery --qf '*' libnvsdm-580') echo 580.95.05-1.el9;;\n\
            *repoquery*) ;;\n'-q versionlock list') exit 1;;\n*) echo dnf $*; echo dnf $* >>$SLIPWAY_ROOT/log;;\nesac";
        let programs = [
            ("modinfo", "echo 580.95.05"),
            ("dnf", DNF),
            (
                "rpm",
                "[ -e $SLIPWAY_ROOT/installed ] && case \"$4\" in nvidia-fabric-manager|nvlsm) echo 580.95.05-1.el9;; *) echo package $4 is not installed; exit 1;; esac",
            ),
            ("modprobe", ""),
            ("systemctl", "echo systemctl $*"),
        ];
        let machine = Machine::new(devices, &programs);
        for tool in ["sh", "sed", "grep", "awk", "echo", "touch", "cat"] {
            let found =
                ["/usr/bin", "/bin"].map(|folder| PathBuf::from(folder).join(tool)).into_iter().find(|p| p.exists());
            std::os::unix::fs::symlink(found.unwrap(), machine.0.join("bin").join(tool)).unwrap();
        }
        let path = machine.0.join("bin").display().to_string();
        let script = script.replace("/etc/modules-load.d", &machine.0.display().to_string());
        machine.run(&format!("PATH={path}; {script}"))
    }

    #[test]
    fn machine_with_dnf_gets_the_packages_of_the_driver_and_holds_both() {
        let (check, run) = parts(manager());
        let (ok, output) = on_rhel(&[H100, NVSWITCH], &run);
        assert!(ok && output.contains("dnf -q -y install nvidia-fabric-manager-580.95.05-1.el9\n"), "{output}");
        assert!(output.contains("dnf -q -y install python3-dnf-plugin-versionlock\n"), "{output}");
        assert!(output.ends_with("systemctl restart nvidia-fabricmanager"), "{output}");
        let (ok, output) = on_rhel(&[B200, BRIDGE], &format!("{run}\ncat $SLIPWAY_ROOT/log"));
        let install = "install nvidia-fabric-manager-580.95.05-1.el9 libnvsdm-580-580.95.05-1.el9 nvlsm libibumad infiniband-diags\n";
        assert!(ok && output.contains(install), "{output}");
        assert!(
            output.contains("versionlock add *nvidia*580.95.05* nvidia-fabric-manager libnvsdm-580 nvlsm"),
            "{output}"
        );
        assert!(on_rhel(&[H100, NVSWITCH], &format!("touch $SLIPWAY_ROOT/installed; {check}")).0);
        assert!(!on_rhel(&[H100, NVSWITCH], &check).0);
        let [package, ..] = imex(&["10.0.0.1"]);
        let (ok, output) = on_rhel(&[B200], &parts(package).1);
        assert!(ok && output.contains("install nvidia-imex-580.95.05-1.el9"), "{output}");
    }

    #[test]
    fn imex_lists_all_machines_of_the_domain() {
        let [package, nodes, service] = imex(&["10.0.0.1", "10.0.0.2"]);
        assert!(parts(package).1.contains("nvidia-imex"));
        let ResourceKind::File { content, path, .. } = nodes.what else { panic!("a file") };
        assert_eq!(
            (path.as_str(), content.text.as_str()),
            ("/etc/nvidia-imex/nodes_config.cfg", "10.0.0.1\n10.0.0.2\n")
        );
        assert_eq!(service.what, ResourceKind::Service { name: "nvidia-imex".into() });
    }
}
