//! Which of NVIDIA's kernel drivers a GPU needs, and which packages install it. The diagnosis of one machine (`slipway gpu stack`) and the
//! plan of a cluster use this module, so they recommend the same.
//!
//! NVIDIA ships each driver branch with two kinds of kernel modules. Source of the rules: NVIDIA, "NVIDIA Transitions Fully Towards
//! Open-Source GPU Kernel Modules" and "Driver Installation Guide": Grace Hopper and Blackwell need the open modules; they are recommended
//! from Turing on; Maxwell, Pascal and Volta need the proprietary modules, and 580 is the last branch that supports them. Source of the PCI
//! device ids: pci.ids, and the table of compatible GPUs in the README of NVIDIA/open-gpu-kernel-modules.

use std::fmt;

/// The last branch that supports Maxwell, Pascal and Volta (NVIDIA, "Driver Installation Guide", branch 590).
pub const LAST_LEGACY_BRANCH: u32 = 580;
/// The first branch that supports Blackwell (NVIDIA, "Fabric Manager User Guide", minimum driver versions).
pub const FIRST_BLACKWELL_BRANCH: u32 = 570;
/// PCI device ids of Maxwell (GM107) and later; smaller ids are Kepler and older.
const FIRST_MAXWELL: u16 = 0x1340;
/// PCI device ids of Turing (TU102) and later.
const FIRST_TURING: u16 = 0x1e00;
/// PCI device ids of Blackwell (GB100) and later.
const FIRST_BLACKWELL: u16 = 0x2900;
/// PCI device ids of Grace Hopper (GH200).
const GRACE_HOPPER: std::ops::RangeInclusive<u16> = 0x2342..=0x2348;

/// A kind of kernel modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modules {
    /// The open modules, licensed under MIT and GPL.
    Open,
    /// The proprietary modules.
    Proprietary,
}

impl fmt::Display for Modules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Proprietary => "proprietary",
        })
    }
}

/// GPUs that have the same requirements on the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// Kepler and older, which no supported branch drives.
    Unsupported,
    /// Maxwell, Pascal and Volta: only the proprietary modules, up to [`LAST_LEGACY_BRANCH`].
    Legacy,
    /// Turing, Ampere, Ada and Hopper: both kinds work, and the open modules are recommended.
    Turing,
    /// Hopper on a Grace processor: only the open modules.
    GraceHopper,
    /// Blackwell and later: only the open modules, from [`FIRST_BLACKWELL_BRANCH`] on.
    Blackwell,
}

impl Generation {
    /// The generation of a GPU by its PCI device id, such as `0x2330` for an H100.
    pub fn of(device: u16) -> Self {
        match device {
            id if id >= FIRST_BLACKWELL => Self::Blackwell,
            id if GRACE_HOPPER.contains(&id) => Self::GraceHopper,
            id if id >= FIRST_TURING => Self::Turing,
            id if id >= FIRST_MAXWELL => Self::Legacy,
            _ => Self::Unsupported,
        }
    }

    /// The names of its architectures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsupported => "Kepler or older",
            Self::Legacy => "Maxwell, Pascal or Volta",
            Self::Turing => "Turing, Ampere, Ada or Hopper",
            Self::GraceHopper => "Grace Hopper",
            Self::Blackwell => "Blackwell or later",
        }
    }

    /// Why modules of this kind do not drive the GPU; `None` if they do.
    pub fn refuses(self, modules: Modules) -> Option<&'static str> {
        match (self, modules) {
            (Self::GraceHopper | Self::Blackwell, Modules::Proprietary) => Some("it needs the open kernel modules"),
            (Self::Legacy, Modules::Open) => Some("the open kernel modules do not support it"),
            (Self::Unsupported, _) => Some("it is older than every supported driver branch"),
            _ => None,
        }
    }
}

/// The desired driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The driver is not managed.
    None,
    /// The newest branch that the source offers for the machine's GPUs.
    Recommended,
    /// A branch.
    Branch {
        /// Number of the branch, such as 580.
        number: u32,
        /// Kind of its modules; `None` for the kind that the machine's GPUs need.
        modules: Option<Modules>,
    },
}

impl std::str::FromStr for Choice {
    type Err = String;

    /// Parses `none`, `recommended`, or a branch with an optional kind: `580`, `580-open`, `580-proprietary`. The suffixes of Ubuntu's
    /// package names are understood too: `580-server-open` has open modules, `580-server` proprietary ones.
    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || {
            format!(
                "'{text}' is no driver: use a branch such as 580, 580-open or 580-proprietary, or recommended, or none"
            )
        };
        let (number, kind) = match text {
            "none" => return Ok(Self::None),
            "recommended" => return Ok(Self::Recommended),
            _ => text.split_once('-').map_or((text, None), |(number, kind)| (number, Some(kind))),
        };
        let modules = match kind {
            None => None,
            Some("open" | "server-open") => Some(Modules::Open),
            Some("proprietary" | "server") => Some(Modules::Proprietary),
            Some(_) => return Err(invalid()),
        };
        // Branches have three digits; anything else is a version or a typing error.
        let plain = number.len() == 3 && number.bytes().all(|b| b.is_ascii_digit());
        let number = number.parse().ok().filter(|_| plain).ok_or_else(invalid)?;
        Ok(Self::Branch { number, modules })
    }
}

impl Choice {
    /// Why this driver cannot run a GPU with this PCI device id; `None` if it can.
    pub fn refusal(self, device: u16) -> Option<String> {
        let generation = Generation::of(device);
        if self == Self::None {
            return None;
        }
        let Self::Branch { number, modules } = self else {
            return generation
                .refuses(Modules::Open)
                .filter(|_| generation == Generation::Unsupported)
                .map(str::to_owned);
        };
        let modules =
            modules.unwrap_or(if generation == Generation::Legacy { Modules::Proprietary } else { Modules::Open });
        if let Some(reason) = generation.refuses(modules) {
            return Some(reason.to_owned());
        }
        match generation {
            Generation::Legacy if number > LAST_LEGACY_BRANCH => {
                Some(format!("{LAST_LEGACY_BRANCH} is the last branch that supports it"))
            }
            Generation::Blackwell if number < FIRST_BLACKWELL_BRANCH => {
                Some(format!("{FIRST_BLACKWELL_BRANCH} is the first branch that supports it"))
            }
            _ => None,
        }
    }
}

/// Where the driver's packages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Ubuntu's archive.
    Ubuntu,
    /// Debian's archive, components `contrib`, `non-free` and `non-free-firmware`.
    Debian,
    /// NVIDIA's CUDA repository.
    Nvidia,
}

/// Shell code that finds the machine's NVIDIA GPUs: `old` and `new` are set to the device id of one that needs the proprietary and of one
/// that needs the open modules. `$SLIPWAY_ROOT` replaces the root folder in tests.
const FIND_GPUS: &str = r#"
old= new= blackwell=
for d in "$SLIPWAY_ROOT"/sys/bus/pci/devices/*; do
  { read -r x <"$d/vendor"; } 2>/dev/null && [ "$x" = 0x10de ] || continue
  read -r x <"$d/class"; case $x in 0x0300*|0x0302*) ;; *) continue;; esac
  read -r x <"$d/device"; n=$((x))
  if [ $n -lt FIRST_TURING ]; then old=$x; elif [ $n -ge FIRST_BLACKWELL ]; then new=$x blackwell=$x; elif [ $n -ge GRACE_FIRST ] && [ $n -le GRACE_LAST ]; then new=$x; fi
done
"#;

/// Shell code that sets `kind` to the kind of the modules, and fails if they or the branch do not run the machine's GPUs. It runs after
/// [`FIND_GPUS`].
const CHOOSE_KIND: &str = r#"
fail() { echo "$*" >&2; exit 1; }
[ -z "$old" ] || [ -z "$new" ] || fail "GPU 10de:${old#0x} needs the proprietary and GPU 10de:${new#0x} the open kernel modules; no driver runs both"
if [ -z "$kind" ]; then kind=open; [ -z "$old" ] || kind=proprietary; fi
[ $kind = open ] || [ -z "$new" ] || fail "GPU 10de:${new#0x} needs the open kernel modules"
[ $kind = proprietary ] || [ -z "$old" ] || fail "the open kernel modules do not support GPU 10de:${old#0x}"
[ -z "$old" ] || [ "${branch:-0}" -le LAST_LEGACY ] || fail "LAST_LEGACY is the last branch that supports GPU 10de:${old#0x}"
[ -z "$blackwell" ] || [ "${branch:-999}" -ge FIRST_BRANCH ] || fail "FIRST_BRANCH is the first branch that supports GPU 10de:${blackwell#0x}"
"#;

/// Shell code that chooses the packages of the driver; see [`find_packages`]. It runs after [`CHOOSE_KIND`].
const FIND_PACKAGES: &str = r#"
known() { apt-cache show --no-all-versions "$1" >/dev/null 2>&1; }
newest() { apt-cache pkgnames "$1" | sed -n "s/^$1\([0-9][0-9][0-9]\)$2\$/\1/p" | { [ -z "$old" ] && cat || awk '$1 <= LAST_LEGACY'; } | sort -n | tail -n 1; }
if [ -z "$source" ]; then
  source=$(. "$SLIPWAY_ROOT/etc/os-release" 2>/dev/null; echo "$ID")
  case $source in ubuntu|debian) ;; *) fail "the distribution '$source' has no packages that slipway knows";; esac
fi
packages=
case $source in
  ubuntu)
    suffix=; [ $kind = proprietary ] || suffix=-open
    [ -n "$branch" ] || branch=$(newest nvidia-driver- "-server$suffix")
    [ -n "$branch" ] || fail "no driver is recommended for this machine: run apt-get update, or name a branch"
    for p in "nvidia-driver-$branch-server$suffix" "nvidia-driver-$branch$suffix"; do [ -n "$packages" ] || ! known "$p" || packages=$p; done;;
  debian)
    v=$(LC_ALL=C apt-cache policy nvidia-driver 2>/dev/null | sed -n 's/^ *Candidate: *//p'); v=${v#*:}; found=${v%%.*}
    case $found in [0-9]*) ;; *) fail "apt has no nvidia-driver: enable Debian's components contrib, non-free and non-free-firmware";; esac
    [ -z "$branch" ] || [ "$branch" = "$found" ] || fail "Debian's archive has branch $found, not $branch: use NVIDIA's repository (driverSource: nvidia)"
    [ -z "$blackwell" ] || [ "$found" -ge FIRST_BRANCH ] || fail "Debian's archive has branch $found, which is too old for GPU 10de:${blackwell#0x}: use NVIDIA's repository (driverSource: nvidia)"
    branch=$found packages="nvidia-driver nvidia-kernel-dkms"; [ $kind = proprietary ] || packages="nvidia-driver nvidia-open-kernel-dkms firmware-nvidia-gsp";;
  nvidia)
    name=cuda-drivers; [ $kind = proprietary ] || name=nvidia-open
    [ -n "$branch" ] || branch=$(newest nvidia-driver-pinning- ""); [ -n "$branch" ] || branch=$(newest "$name-" "")
    [ -n "$branch" ] || fail "NVIDIA's repository offers no driver: is it configured, and was apt-get update run?"
    if known "$name-$branch"; then packages="$name-$branch"; elif known "nvidia-driver-pinning-$branch"; then packages="nvidia-driver-pinning-$branch $name"; fi;;
esac
[ -n "$packages" ] || fail "apt has no $kind driver of branch $branch: run apt-get update, or choose another branch or source"
"#;

/// Shell code that exits with 0 if the installed module is of the desired branch, and of a kind that runs the machine's GPUs. The license
/// tells the kinds apart: `Dual MIT/GPL` is that of the open modules. It runs after [`FIND_GPUS`].
const CHECK_INSTALLED: &str = r#"
case $(modinfo -F version nvidia 2>/dev/null) in BRANCH.*) ;; *) exit 1;; esac
case $(modinfo -F license nvidia 2>/dev/null) in *GPL*) installed=open;; *) installed=proprietary;; esac
[ "${kind:-$installed}" = $installed ] && { [ -z "$new" ] || [ $installed = open ]; } && { [ -z "$old" ] || [ $installed = proprietary ]; }
"#;

/// Replaces the constants of the shell code by their values.
fn with_constants(code: &str) -> String {
    code.replace("LAST_LEGACY", &LAST_LEGACY_BRANCH.to_string())
        .replace("FIRST_BRANCH", &FIRST_BLACKWELL_BRANCH.to_string())
        .replace("FIRST_TURING", &FIRST_TURING.to_string())
        .replace("FIRST_BLACKWELL", &FIRST_BLACKWELL.to_string())
        .replace("GRACE_FIRST", &GRACE_HOPPER.start().to_string())
        .replace("GRACE_LAST", &GRACE_HOPPER.end().to_string())
}

/// The number of the branch and the kind of a choice, as values of shell variables; empty if they follow from the machine.
fn shell_values(choice: Choice) -> (String, String) {
    match choice {
        Choice::Branch { number, modules } => (number.to_string(), modules.map(|m| m.to_string()).unwrap_or_default()),
        Choice::None | Choice::Recommended => (String::new(), String::new()),
    }
}

/// Shell code that sets `packages` to the packages of the driver, and `source`, `kind` and `branch` to what they were chosen by. After an
/// error it prints the reason and exits with 1. Without a `source`, it is the distribution's archive. It needs apt.
///
/// Branches of NVIDIA's repository from 590 on have no branch in their names; a package that pins the branch precedes the driver in the list
/// and must be installed first (NVIDIA, "Driver Installation Guide", version locking).
pub fn find_packages(choice: Choice, source: Option<Source>) -> String {
    let (branch, kind) = shell_values(choice);
    let source = match source {
        None => "",
        Some(Source::Ubuntu) => "ubuntu",
        Some(Source::Debian) => "debian",
        Some(Source::Nvidia) => "nvidia",
    };
    format!(
        "branch={branch} kind={kind} source={source}{}",
        with_constants(&[FIND_GPUS, CHOOSE_KIND, FIND_PACKAGES].concat())
    )
}

/// Shell code that chooses the driver of NVIDIA's CUDA repository for RHEL and Fedora; see [`find_rpm_packages`]. It runs after
/// [`CHOOSE_KIND`].
const FIND_RPM_PACKAGES: &str = r#"
release=$(. "$SLIPWAY_ROOT/etc/os-release" 2>/dev/null; [ "$ID" = fedora ] || echo "${VERSION_ID%%.*}")
[ -z "$old" ] || branch=${branch:-LAST_LEGACY}
packages=nvidia-open; [ $kind = open ] || packages=cuda-drivers
stream= lock=
case $release in
  8|9)
    stream=open-dkms; [ $kind = open ] || stream=latest-dkms
    if [ -n "$branch" ]; then stream=$branch-open; [ $kind = open ] || stream=$branch-dkms; fi
    stream=nvidia-driver:$stream;;
  *) [ -z "$branch" ] || lock="*nvidia*$branch*";;
esac
"#;

/// Shell code that sets `packages` to the packages of the driver in NVIDIA's CUDA repository for RHEL and Fedora, `stream` to the module stream
/// to enable before (RHEL 8 and 9), and `lock` to the packages to lock at the branch before (later releases); the latter two may be empty.
/// After an error it prints the reason and exits with 1.
///
/// Source: NVIDIA, "Driver Installation Guide", "Kernel Modules" (tables of open and proprietary modules).
pub fn find_rpm_packages(choice: Choice) -> String {
    let (branch, kind) = shell_values(choice);
    format!("branch={branch} kind={kind}{}", with_constants(&[FIND_GPUS, CHOOSE_KIND, FIND_RPM_PACKAGES].concat()))
}

/// Shell code that exits with 0 if the chosen driver is installed for the running kernel, from whichever source.
pub fn check_installed(choice: Choice) -> String {
    let (branch, kind) = shell_values(choice);
    let branch = if branch.is_empty() { "[0-9]*".to_owned() } else { branch };
    format!("kind={kind}{}", with_constants(&[FIND_GPUS, CHECK_INSTALLED].concat()).replace("BRANCH", &branch))
}

/// The kind of the modules in the text of `/proc/driver/nvidia/version`; `None` if the text is not that file's.
pub fn loaded_modules(version: &str) -> Option<Modules> {
    let line = version.lines().find(|l| l.starts_with("NVRM version:"))?;
    Some(if line.contains("Open Kernel Module") { Modules::Open } else { Modules::Proprietary })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn generation_follows_the_device_id() {
        use Generation as G;
        for (device, generation) in [
            (0x102d, G::Unsupported), // Tesla K80
            (0x17fd, G::Legacy),      // Tesla M40
            (0x1b38, G::Legacy),      // Tesla P40
            (0x1db1, G::Legacy),      // Tesla V100-SXM2-16GB
            (0x1df6, G::Legacy),      // Tesla V100S
            (0x1e04, G::Turing),      // GeForce RTX 2080 Ti
            (0x1eb8, G::Turing),      // Tesla T4
            (0x20b2, G::Turing),      // A100-SXM4-80GB
            (0x2330, G::Turing),      // H100 SXM5
            (0x2335, G::Turing),      // H200 SXM
            (0x2342, G::GraceHopper), // GH200 480GB
            (0x2348, G::GraceHopper), // GH200 144G
            (0x26b9, G::Turing),      // L40S
            (0x2901, G::Blackwell),   // B200
            (0x2941, G::Blackwell),   // GB200
            (0x2bb5, G::Blackwell),   // RTX PRO 6000 Blackwell Server Edition
            (0x2e12, G::Blackwell),   // GB10
            (0x3182, G::Blackwell),   // B300
            (0x31c2, G::Blackwell),   // GB300
        ] {
            assert_eq!(Generation::of(device), generation, "{device:#x}");
        }
    }

    #[test]
    fn driver_names_are_parsed() {
        let branch = |number, modules| Ok(Choice::Branch { number, modules });
        assert_eq!("580".parse(), branch(580, None));
        assert_eq!("580-open".parse(), branch(580, Some(Modules::Open)));
        assert_eq!("580-server-open".parse(), branch(580, Some(Modules::Open)));
        assert_eq!("580-proprietary".parse(), branch(580, Some(Modules::Proprietary)));
        assert_eq!("none".parse(), Ok(Choice::None));
        for text in ["", "580-x", "580.95.05", "latest", "58", "+58", "580-open; reboot", "-open", "99999999999"] {
            assert!(text.parse::<Choice>().unwrap_err().contains("580-open"), "{text}");
        }
    }

    #[test]
    fn driver_that_cannot_run_the_gpu_is_refused() {
        let refusal = |driver: &str, device| driver.parse::<Choice>().unwrap().refusal(device).unwrap_or_default();
        assert!(refusal("580-proprietary", 0x2901).contains("needs the open"));
        assert!(refusal("580-server", 0x2e12).contains("needs the open"));
        assert!(refusal("570-proprietary", 0x2342).contains("needs the open"));
        assert!(refusal("550", 0x2901).contains("570 is the first"));
        assert!(refusal("580-open", 0x1db1).contains("do not support"));
        assert!(refusal("590", 0x1db1).contains("580 is the last"));
        assert!(refusal("recommended", 0x102d).contains("older"));
        for (driver, device) in
            [("580", 0x2901), ("580", 0x1db1), ("580-proprietary", 0x2330), ("recommended", 0x1db1), ("none", 0x102d)]
        {
            assert_eq!(refusal(driver, device), "", "{driver} {device:#x}");
        }
    }

    #[test]
    fn kind_of_loaded_modules_is_read() {
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version: 13\n";
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\n";
        assert_eq!((loaded_modules(open), loaded_modules(closed)), (Some(Modules::Open), Some(Modules::Proprietary)));
        assert_eq!(loaded_modules(""), None);
    }

    /// Runs shell code on a machine with these GPUs, and with these programs before those of `PATH`.
    fn run(script: &str, os: &str, gpus: &[&str], programs: &[(&str, &str)]) -> Result<String, String> {
        let root = std::env::temp_dir().join(format!("slipway-driver-{}", crate::ids::hex32()));
        for (n, device) in gpus.iter().enumerate() {
            let folder = root.join(format!("sys/bus/pci/devices/0000:0{n}:00.0"));
            std::fs::create_dir_all(&folder).unwrap();
            for (file, text) in [("vendor", "0x10de"), ("device", device), ("class", "0x030200")] {
                std::fs::write(folder.join(file), format!("{text}\n")).unwrap();
            }
        }
        for folder in ["etc", "bin"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("etc/os-release"), format!("ID={os}\n")).unwrap();
        for (name, text) in programs {
            let file = root.join("bin").join(name);
            std::fs::write(&file, format!("#!/bin/sh\n{text}")).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:{}", root.join("bin").display(), std::env::var("PATH").unwrap());
        let done = std::process::Command::new("sh")
            .args(["-c", script])
            .env("PATH", path)
            .env("SLIPWAY_ROOT", &root)
            .output()
            .unwrap();
        std::fs::remove_dir_all(root).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
    }

    /// The packages for a machine with these GPUs, whose apt knows these packages, each with or without a version.
    fn packages(
        choice: &str,
        source: Option<Source>,
        os: &str,
        gpus: &[&str],
        known: &[&str],
    ) -> Result<String, String> {
        let apt = format!(
            "known='{}'\ncase $1 in\npkgnames) for p in $known; do case $p in \"$2\"*) echo \"${{p%=*}}\";; esac; done;;\n\
             show) for p in $known; do [ \"${{p%=*}}\" != \"$3\" ] || exit 0; done; exit 100;;\n\
             policy) for p in $known; do [ \"${{p%=*}}\" != \"$2\" ] || echo \"  Candidate: ${{p#*=}}\"; done;;\nesac\n",
            known.join(" ")
        );
        let script = find_packages(choice.parse().unwrap(), source) + "echo $packages";
        run(&script, os, gpus, &[("apt-cache", &apt)])
    }

    #[test]
    fn installed_module_must_run_the_gpus() {
        let installed = |choice: &str, gpus: &[&str], version: &str, license: &str| {
            let modinfo = format!("[ $2 = version ] && echo {version} || echo '{license}'");
            run(&check_installed(choice.parse().unwrap()), "ubuntu", gpus, &[("modinfo", &modinfo)]).is_ok()
        };
        let (open, closed) = ("Dual MIT/GPL", "NVIDIA");
        let (b200, h100, v100) = ("0x2901", "0x2330", "0x1db1");
        assert!(installed("580", &[b200], "580.95.05", open) && !installed("580", &[b200], "580.95.05", closed));
        assert!(installed("recommended", &[v100], "580.95.05", closed));
        assert!(!installed("recommended", &[v100], "580.95.05", open) && !installed("recommended", &[h100], "", open));
        assert!(installed("580", &[h100], "580.95.05", closed), "both kinds run it");
        assert!(!installed("580-open", &[h100], "580.95.05", closed) && !installed("570", &[h100], "580.95.05", open));
    }

    #[test]
    fn rpm_packages_come_from_a_module_stream_or_are_locked() {
        let on = |choice: &str, os: &str, gpu: &str| {
            let script = find_rpm_packages(choice.parse().unwrap()) + "echo \"$packages|$stream|$lock\"";
            run(&script, os, &[gpu], &[])
        };
        let (rocky, rhel10, h100, v100) = ("rocky\nVERSION_ID=9.6", "rhel\nVERSION_ID=10.0", "0x2330", "0x1db1");
        assert_eq!(on("recommended", rocky, h100).unwrap(), "nvidia-open|nvidia-driver:open-dkms|");
        assert_eq!(on("580", rocky, h100).unwrap(), "nvidia-open|nvidia-driver:580-open|");
        assert_eq!(on("580-proprietary", rocky, h100).unwrap(), "cuda-drivers|nvidia-driver:580-dkms|");
        assert_eq!(on("recommended", rocky, v100).unwrap(), "cuda-drivers|nvidia-driver:580-dkms|");
        assert_eq!(on("580", rhel10, h100).unwrap(), "nvidia-open||*nvidia*580*");
        assert_eq!(on("recommended", "fedora\nVERSION_ID=44", h100).unwrap(), "nvidia-open||");
        assert!(on("580-open", rocky, v100).unwrap_err().contains("do not support GPU 10de:1db1"));
    }

    #[test]
    fn ubuntu_packages_have_the_modules_that_the_gpus_need() {
        let known = [
            "nvidia-driver-570-server",
            "nvidia-driver-570-server-open",
            "nvidia-driver-580",
            "nvidia-driver-580-server",
            "nvidia-driver-580-server-open",
            "nvidia-driver-590-server",
            "nvidia-driver-590-server-open",
            "nvidia-driver-595-open",
        ];
        let on = |choice: &str, gpus: &[&str]| packages(choice, None, "ubuntu", gpus, &known);
        let (b200, h100, v100) = ("0x2901", "0x2330", "0x1db1");
        assert_eq!(on("580", &[b200, b200]).unwrap(), "nvidia-driver-580-server-open");
        assert_eq!(on("580", &[h100]).unwrap(), "nvidia-driver-580-server-open");
        assert_eq!(on("580-proprietary", &[h100]).unwrap(), "nvidia-driver-580-server");
        assert_eq!(on("580", &[v100]).unwrap(), "nvidia-driver-580-server");
        assert_eq!(on("580", &[v100, h100]).unwrap(), "nvidia-driver-580-server", "proprietary modules run both");
        assert_eq!(on("recommended", &[h100]).unwrap(), "nvidia-driver-590-server-open");
        assert_eq!(on("recommended", &[v100]).unwrap(), "nvidia-driver-580-server");
        assert_eq!(on("recommended", &[]).unwrap(), "nvidia-driver-590-server-open");
        assert_eq!(on("595", &[h100]).unwrap(), "nvidia-driver-595-open", "a branch without server packages");
        assert!(on("535", &[h100]).unwrap_err().contains("branch 535"), "unknown to apt");
        assert!(on("580", &[v100, b200]).unwrap_err().contains("10de:1db1"));
        assert!(on("580-proprietary", &[b200]).unwrap_err().contains("10de:2901 needs the open"));
        assert!(on("580-open", &[v100]).unwrap_err().contains("do not support"));
        assert!(on("590", &[v100]).unwrap_err().contains("580 is the last"));
        assert!(on("550", &[b200]).unwrap_err().contains("570 is the first"));
        assert!(packages("recommended", None, "ubuntu", &[h100], &[]).unwrap_err().contains("apt-get update"));
        assert!(packages("580", None, "fedora", &[h100], &known).unwrap_err().contains("'fedora'"));
    }

    #[test]
    fn debian_has_one_branch() {
        let known = ["nvidia-driver=535.247.01-1~deb12u1", "nvidia-kernel-dkms=535", "nvidia-open-kernel-dkms=535"];
        let on = |choice: &str, gpus: &[&str]| packages(choice, None, "debian", gpus, &known);
        assert_eq!(
            on("recommended", &["0x2330"]).unwrap(),
            "nvidia-driver nvidia-open-kernel-dkms firmware-nvidia-gsp"
        );
        assert_eq!(on("535", &["0x1db1"]).unwrap(), "nvidia-driver nvidia-kernel-dkms");
        assert!(on("580", &["0x2330"]).unwrap_err().contains("has branch 535, not 580"));
        assert!(on("recommended", &["0x2901"]).unwrap_err().contains("too old for GPU 10de:2901"));
        assert!(packages("recommended", None, "debian", &["0x2330"], &[]).unwrap_err().contains("non-free"));
    }

    #[test]
    fn nvidia_repository_pins_newer_branches() {
        let known = [
            "nvidia-driver-pinning-580",
            "nvidia-driver-pinning-580.95.05",
            "nvidia-driver-pinning-590",
            "nvidia-open",
            "nvidia-open-580",
            "cuda-drivers",
            "cuda-drivers-580",
        ];
        let on = |choice: &str, gpus: &[&str]| packages(choice, Some(Source::Nvidia), "debian", gpus, &known);
        assert_eq!(on("580", &["0x2901"]).unwrap(), "nvidia-open-580");
        assert_eq!(on("580-proprietary", &["0x2330"]).unwrap(), "cuda-drivers-580");
        assert_eq!(on("recommended", &["0x2901"]).unwrap(), "nvidia-driver-pinning-590 nvidia-open");
        assert_eq!(on("recommended", &["0x1db1"]).unwrap(), "cuda-drivers-580");
    }
}
