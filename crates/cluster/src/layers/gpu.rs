//! The GPU layer of a machine: NVIDIA's driver, the services of its NVLink fabric, and CDI support in containerd.

use slipway_core::gpu_driver::{self, Choice};

use super::{command, edit, fabric, file};
use crate::resource::{Edit, Layer, PackageManager, Resource, ResourceKind};
use crate::spec::gpu::DriverSource;
use crate::spec::{Cluster, Distribution, Machine};

/// MicroK8s generates containerd's configuration from this template at every start.
const CONTAINERD_TEMPLATE: &str = "/var/snap/microk8s/current/args/containerd-template.toml";

/// Shell function that installs packages without questions and holds them at their versions. A driver of another kind or branch is replaced
/// even though it is held.
const INSTALL: &str = "install() { DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 --allow-change-held-packages install \"$@\"; }\n";

/// Configures NVIDIA's CUDA repository as its keyring package does (NVIDIA, "Driver Installation Guide", network repository).
const ADD_NVIDIA_REPOSITORY: &str = r#"set -e
. /etc/os-release; case $ID in ubuntu) name=ubuntu$(echo "$VERSION_ID" | tr -d .);; debian) name=debian${VERSION_ID%%.*};; *) echo "NVIDIA has no apt repository for $ID"; exit 1;; esac
case $(dpkg --print-architecture) in amd64) arch=x86_64;; arm64) arch=sbsa;; *) echo "NVIDIA has no repository for this processor architecture"; exit 1;; esac
f=$(mktemp --suffix=.deb); trap 'rm -f "$f"' EXIT
curl -fsSL --retry 3 -o "$f" "https://developer.download.nvidia.com/compute/cuda/repos/$name/$arch/cuda-keyring_1.1-1_all.deb"
dpkg -i "$f"
apt-get -qq -o DPkg::Lock::Timeout=300 update"#;

/// Configures the components of Debian's archive that the driver belongs to. On other distributions it is not needed.
const ADD_DEBIAN_COMPONENTS: &str = r#"set -e
. /etc/os-release
cat >/etc/apt/sources.list.d/slipway-non-free.sources <<END
Types: deb
URIs: http://deb.debian.org/debian
Suites: $VERSION_CODENAME $VERSION_CODENAME-updates
Components: contrib non-free non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
apt-get -qq -o DPkg::Lock::Timeout=300 update"#;

/// Installs the driver from NVIDIA's CUDA repository for RHEL and Fedora, with the kernel's headers and with dkms of EPEL, which its packages
/// need (NVIDIA, "Driver Installation Guide", "Red Hat Enterprise Linux"). It runs after [`gpu_driver::find_rpm_packages`]. A version of the driver
/// that is locked beside fabric manager's is unlocked first.
const INSTALL_RPM: &str = r#"
. /etc/os-release
case $ID in fedora) name=fedora$VERSION_ID;; *) name=rhel${VERSION_ID%%.*};; esac
case $(uname -m) in x86_64) arch=x86_64;; aarch64) arch=sbsa;; *) fail "NVIDIA has no repository for $(uname -m)";; esac
[ -s "/etc/yum.repos.d/cuda-$name.repo" ] || curl -fsSL --retry 3 -o "/etc/yum.repos.d/cuda-$name.repo" "https://developer.download.nvidia.com/compute/cuda/repos/$name/$arch/cuda-$name.repo" || exit
install() { dnf -q -y install "$@"; }
if [ "$ID" != fedora ] && ! rpm -q epel-release >/dev/null; then install epel-release || install "https://dl.fedoraproject.org/pub/epel/epel-release-latest-${VERSION_ID%%.*}.noarch.rpm" || exit; fi
install "kernel-devel-$(uname -r)" "kernel-headers" || fail "the headers of the running kernel $(uname -r) are not available: update the kernel and reboot"
! dnf -q versionlock list 2>/dev/null | grep -q nvidia || dnf -q versionlock delete '*nvidia*' >/dev/null || exit
if [ -n "$stream" ]; then dnf -q -y module reset nvidia-driver && dnf -q -y module enable "$stream" || exit; fi
if [ -n "$lock" ]; then dnf -q -y versionlock add "$lock" || exit; fi
install $packages
"#;

pub(super) fn resources(cluster: &Cluster, machine: &Machine) -> Vec<Resource> {
    let (gpu, layer) = (&cluster.spec.gpu, Layer::Gpu);
    let mut out = Vec::new();
    let choice = gpu.driver_choice().unwrap_or(Choice::None);
    if choice != Choice::None {
        out.push(
            file(
                layer,
                "nouveau",
                "/etc/modprobe.d/slipway-nouveau.conf",
                "blacklist nouveau\noptions nouveau modeset=0\n",
            )
            // A machine without an initramfs cannot load nouveau from one, so nothing needs an update.
            .then("! command -v update-initramfs >/dev/null || update-initramfs -u"),
        );
        out.extend(driver_source(gpu.driver_source).map(|r| r.only_with(PackageManager::Apt)));
        let install = gpu_driver::find_packages(choice, gpu.driver_source.map(Into::into))
            + INSTALL
            + "headers=linux-headers-$(uname -r); known \"$headers\" || headers=\n\
               case $packages in nvidia-driver-pinning-*) install ${packages%% *} || exit;; esac\n\
               install $headers $packages && apt-mark hold $packages >/dev/null";
        out.push(
            command(
                layer,
                "driver",
                &gpu_driver::check_installed(choice),
                &format!(
                    "if command -v apt-get >/dev/null; then\n{install}\nelse\n{}{INSTALL_RPM}fi",
                    gpu_driver::find_rpm_packages(choice)
                ),
                &format!("driver {}", gpu.driver),
            )
            .with_timeout(1800)
            .effect("installs a kernel module: takes minutes, then the machine reboots"),
        );
        let peers = gpu.nvlink_peers(cluster, machine);
        out.extend(peers.iter().map(|_| fabric::imex_channel()));
        out.push(Resource::new(
            layer,
            "driver-loaded",
            ResourceKind::Reboot {
                // The loaded module has another version or is of another kind than the installed one, or NVIDIA's module is not loaded.
                when: "[ \"$(cat /sys/module/nvidia/version 2>/dev/null)\" != \"$(modinfo -F version nvidia 2>/dev/null)\" ] || \
                       { [ -r /proc/driver/nvidia/version ] && \
                         [ \"$(grep -c 'Open Kernel Module' /proc/driver/nvidia/version)\" != \"$(modinfo -F license nvidia 2>/dev/null | grep -c GPL)\" ]; }"
                    .into(),
                reason: "the installed driver is not the loaded one".into(),
            },
        ));
        out.push(fabric::manager());
        out.extend(peers.iter().flat_map(|peers| fabric::imex(peers)));
    }
    // The containerd of K3s and RKE2 has CDI enabled by default, as all of containerd 2.
    if gpu.cdi && cluster.spec.kubernetes.distribution == Distribution::Microk8s {
        let cri = ["plugins", "io.containerd.grpc.v1.cri", "enable_cdi"].map(String::from).to_vec();
        out.push(
            edit(layer, "containerd-cdi", CONTAINERD_TEMPLATE, Edit::Toml { path: cri, value: "true".into() })
                .then("snap restart microk8s.daemon-containerd")
                .needs(&["kubernetes/microk8s"])
                .effect("restarts containerd; pods keep running"),
        );
    }
    out
}

/// The resource that makes the driver's packages available; none for Ubuntu's archive, which every Ubuntu has.
fn driver_source(source: Option<DriverSource>) -> Option<Resource> {
    let available = "LC_ALL=C apt-cache policy nvidia-driver | grep -q 'Candidate: [0-9]'";
    let (check, run, undo, missing) = match source {
        Some(DriverSource::Ubuntu) => return None,
        Some(DriverSource::Nvidia) => (
            "dpkg-query -W -f '${db:Status-Status}' cuda-keyring 2>/dev/null | grep -qx installed".to_owned(),
            ADD_NVIDIA_REPOSITORY,
            "apt-get -qq -y purge cuda-keyring && apt-get -qq update",
            "NVIDIA's package repository",
        ),
        // Without a source, the distribution decides, which is known only on the machine.
        None | Some(DriverSource::Debian) => (
            format!(". /etc/os-release; [ \"$ID\" != debian ] || {available}"),
            ADD_DEBIAN_COMPONENTS,
            "rm -f /etc/apt/sources.list.d/slipway-non-free.sources && apt-get -qq update",
            "Debian's components contrib, non-free and non-free-firmware",
        ),
    };
    let mut resource = command(Layer::Gpu, "driver-source", &check, run, missing);
    if let ResourceKind::Command { undo: how, .. } = &mut resource.what {
        *how = Some(undo.into());
    }
    Some(resource)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::FILE;

    fn of_gpu1(gpu: &str) -> Vec<Resource> {
        let cluster = Cluster::parse(&FILE.replace("kubernetes:", &format!("gpu: {{{gpu}}}\n  kubernetes:"))).unwrap();
        resources(&cluster, &cluster.spec.machines[2])
    }

    fn ids(gpu: &str) -> Vec<String> {
        of_gpu1(gpu).into_iter().map(|r| r.id.trim_start_matches("gpu/").to_owned()).collect()
    }

    #[test]
    fn fabric_services_start_after_the_driver_was_loaded() {
        assert_eq!(ids("driver: none, cdi: false"), Vec::<String>::new());
        assert_eq!(
            ids("driver: '580', driverSource: ubuntu, cdi: false"),
            ["nouveau", "driver", "driver-loaded", "fabric-manager"]
        );
        assert_eq!(
            ids("driver: 580-open, driverSource: nvidia, nvlinkDomains: [[gpu1]]"),
            [
                "nouveau",
                "driver-source",
                "driver",
                "imex-channel",
                "driver-loaded",
                "fabric-manager",
                "imex-package",
                "imex-nodes",
                "imex",
                "containerd-cdi"
            ]
        );
    }

    #[test]
    fn commands_are_valid_shell() {
        for gpu in ["driver: recommended", "driver: '580', driverSource: nvidia, nvlinkDomains: [[gpu1]]"] {
            for resource in of_gpu1(gpu) {
                let scripts = match resource.what {
                    ResourceKind::Command { check, run, undo, .. } => vec![check, run, undo.unwrap_or_default()],
                    ResourceKind::Reboot { when, .. } => vec![when],
                    _ => continue,
                };
                for script in scripts {
                    let done = std::process::Command::new("sh").args(["-n", "-c", &script]).output().unwrap();
                    assert!(done.status.success(), "{}: {}", resource.id, String::from_utf8_lossy(&done.stderr));
                }
            }
        }
    }
}
