"""Starts test hosts with SSH on this machine: containers with their own network namespace, an overlay of a Debian, and systemd as init.

    testkit/hosts/hosts.py up cp1 cp2 gpu1     # until Ctrl-C; prints their addresses and root's SSH key

Debian, systemd, sshd, sudo, apt with Debian's mirror, files, services and users are real. Only the distributions of Kubernetes are stand-ins
(`standins/`), because their images and the snap store are not available. Needs root. Everything is removed when the context ends.
"""

import contextlib
import email.utils
import fcntl
import hashlib
import io
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "conformance"))
from suite import StopWaiting, eventually, protected

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "slipway/hosts"
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
PACKAGES = ["ca-certificates", "dbus", "iproute2", "kmod", "openssh-server", "procps", "python3", "sudo", "systemd", "systemd-sysv"]
# Packages that tests install. They are downloaded in advance, so that the tests do not depend on the mirror.
CACHED = ["jq", "python3-apt"]

# systemd needs its own cgroup hierarchy: with cgroup v1 the one named `systemd`, with cgroup v2 the only one. Beside v1, systemd would also use
# v2 where the kernel has both; there all hosts would share one tree, and remove each other's cgroups while services start.
if os.path.isdir("/sys/fs/cgroup/systemd"):
    CGROUPS = pathlib.Path("/sys/fs/cgroup/systemd/slipway-hosts")
    MOUNT_CGROUPS = """mount -t tmpfs cgroup $R/sys/fs/cgroup
mkdir -p $R/sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup $R/sys/fs/cgroup/systemd"""
    CGROUP_OPTIONS = "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1"
else:
    CGROUPS = pathlib.Path("/sys/fs/cgroup/slipway-hosts")
    MOUNT_CGROUPS, CGROUP_OPTIONS = "mount -t cgroup2 cgroup $R/sys/fs/cgroup", ""


def run(*command, check=True, **options):
    """Runs a command and returns its stdout. Raises an error with its stderr if it fails and `check` is set."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


TOOLS = {"ip": "iproute2", "nft": "nftables", "ssh": "openssh-client", "debootstrap": "debootstrap"}


def install_tools():
    """Installs the missing programs of TOOLS."""
    if "/sbin" not in os.environ["PATH"].split(":"):
        os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [package for program, package in TOOLS.items() if not shutil.which(program)]
    if missing:
        print(f"installing with apt: {' '.join(missing)}", flush=True)
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-y", "-qq", "-o", "DPkg::Lock::Timeout=120", "--no-install-recommends", *missing)


def base():
    """Returns the folder of the Debian that all hosts share. The first call creates it; a lock serializes parallel calls."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return ensure_base()


def ensure_base():
    install_tools()
    key = hashlib.sha256(" ".join([SUITE, *PACKAGES, *CACHED]).encode()).hexdigest()[:12]
    folder = CACHE / f"{SUITE}-{key}"
    if not folder.exists():
        print(f"creating a Debian for the test hosts in {folder} (takes a minute, only once)", flush=True)
        new = pathlib.Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))
        run("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, new / "root", MIRROR)
        shutil.copyfile("/etc/resolv.conf", new / "root/etc/resolv.conf")
        run("chroot", new / "root", "apt-get", "update", "-qq")
        run("chroot", new / "root", "apt-get", "install", "-y", "-qq", "--no-install-recommends", "--download-only", *CACHED)
        # Each host generates its own SSH keys, and units that fail in a container are disabled.
        for path in (new / "root/etc/ssh").glob("ssh_host_*"):
            path.unlink()
        for unit in ("systemd-resolved", "systemd-networkd", "systemd-udevd", "systemd-udev-trigger", "systemd-logind", "getty.target", "console-getty",
                     "systemd-modules-load", "systemd-sysctl", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_reap"):
            name = unit if "." in unit else f"{unit}.service"
            link = new / "root/etc/systemd/system" / name
            link.unlink(missing_ok=True)
            link.symlink_to("/dev/null")
        (new / "root").rename(folder)
        new.rmdir()
    return folder


RKE2_UNIT = """[Unit]
Conflicts=rke2-{other}.service
[Service]
EnvironmentFile=-/etc/default/rke2-{kind}
KillMode=process
Restart=always
RestartSec=5s
ExecStart=/usr/local/bin/rke2 {kind}
[Install]
WantedBy=multi-user.target
"""


def rke2_archive(program):
    """An archive with the files of RKE2's releases (rancher/rke2, `bundle`)."""
    units = {f"lib/systemd/system/rke2-{kind}.service": RKE2_UNIT.format(kind=kind, other=other) for kind, other in (("server", "agent"), ("agent", "server"))}
    files = {"bin/rke2": program, "bin/rke2-killall.sh": "#!/bin/sh\n", "bin/rke2-uninstall.sh": "#!/bin/sh\n", **units,
             "lib/systemd/system/rke2-server.env": "HOME=/root\n", "share/rke2/rke2-cis-sysctl.conf": "vm.panic_on_oom=0\n"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            content = content if isinstance(content, bytes) else content.encode()
            entry.size, entry.mode = len(content), 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def standin(function, version):
    """A program that calls a function of the stand-ins of Kubernetes."""
    return f"#!/usr/bin/python3 -IS\nimport sys\n\nsys.path.insert(0, '/usr/lib/standins')\nimport kubernetes\n\nkubernetes.{function}('{version}')\n"


KUBELET_UNIT = "[Unit]\nWants=network-online.target\n[Service]\nExecStart=/usr/bin/kubelet\nRestart=always\nStartLimitInterval=0\nRestartSec=10\n[Install]\nWantedBy=multi-user.target\n"
KUBEADM_DROP_IN = """[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
"""
CONTAINERD_UNIT = "[Service]\nExecStart=/usr/bin/containerd\n[Install]\nWantedBy=multi-user.target\n"


def kubernetes_packages(version):
    """The packages of a version as name, version, dependencies and files, as kubernetes/release has them (`cmd/krel/templates/latest`)."""
    number = version[1:] + "-1.1"
    kubectl = "#!/bin/sh\n[ -r \"$2\" ] || { echo \"error: stat $2: no such file or directory\" >&2; exit 1; }\nshift 2\nexec /usr/lib/standins/microk8s kubectl \"$@\"\n"
    return [
        ("kubeadm", number, "cri-tools (>= 1.30.0)", {"usr/bin/kubeadm": standin("kubeadm", version), "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": KUBEADM_DROP_IN}),
        ("kubelet", number, "kubernetes-cni (>= 1.2.0)", {"usr/bin/kubelet": standin("kubelet", version), "usr/lib/systemd/system/kubelet.service": KUBELET_UNIT,
                                                          "etc/default/kubelet": "KUBELET_EXTRA_ARGS=\n", "etc/kubernetes/manifests/.kubelet-keep": "", "var/lib/kubelet/.kubelet-keep": ""}),
        ("kubectl", number, "", {"usr/bin/kubectl": kubectl}),
        ("cri-tools", "1.36.0-1.1", "", {"usr/bin/crictl": "#!/bin/sh\n"}),
        ("kubernetes-cni", "1.8.0-1.1", "", {"opt/cni/bin/loopback": "#!/bin/sh\n"}),
    ]


def write_package(folder, name, version, depends, files):
    """Writes a .deb to a folder."""
    with tempfile.TemporaryDirectory(prefix="slipway-package-") as root:
        control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: test\nDescription: stand-in\n" + f"Depends: {depends}\n" * bool(depends)
        configuration = "".join(f"/{path}\n" for path in files if path.startswith("etc/default"))
        for path, text in {"DEBIAN/control": control, **({"DEBIAN/conffiles": configuration} if configuration else {}), **files}.items():
            file = pathlib.Path(root, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if "/bin/" in path else 0o644)
        pathlib.Path(root).chmod(0o755)
        folder.mkdir(parents=True, exist_ok=True)
        run("dpkg-deb", "-Znone", "--build", "--root-owner-group", root, folder / f"{name}_{version}.deb")


def sign_repository(folder, home, key):
    """Writes the index of a folder with packages, and signs it with the key of a GnuPG home folder."""
    (folder / "Packages").write_text(run("dpkg-scanpackages", "--multiversion", ".", cwd=folder))
    content = (folder / "Packages").read_bytes()
    (folder / "Release").write_text(f"Origin: test\nDate: {email.utils.formatdate(usegmt=True)}\nSHA256:\n {hashlib.sha256(content).hexdigest()} {len(content)} Packages\n")
    run("gpg", "--homedir", home, "--batch", "--yes", "--clearsign", "-o", folder / "InRelease", folder / "Release")
    shutil.copyfile(key, folder / "Release.key")


class Host:
    # The file in which the fake NVML stores settings. A reboot empties its folder, as it makes a driver forget them.
    GPU_STATE = "/run/fake-nvml.json"

    def __init__(self, hosts, number, name):
        self.hosts, self.name, self.number = hosts, name, number
        self.folder = hosts.folder / name
        self.root = self.folder / "root"
        self.namespace, self.link = f"{hosts.bridge}-{name}", f"{hosts.bridge[-8:]}-{number}"
        self.cgroup = CGROUPS / f"{hosts.bridge}-{name}"
        self.process = None
        self.survives_reboot = True  # if false, a reboot powers the host off
        self.gpus = []  # PCI device ids

    @property
    def address(self):
        return self.hosts.address(self.number)

    def create(self):
        """Creates the root file system and the network of the host."""
        for part in ("upper", "work", "root"):
            (self.folder / part).mkdir(parents=True)
        run("mount", "-t", "overlay", f"slipway-{self.name}", "-o",
            f"lowerdir={self.hosts.base},upperdir={self.folder}/upper,workdir={self.folder}/work", self.root)
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        run("ip", "link", "set", self.link, "master", self.hosts.bridge, "up")
        self.configure_network()
        etc = self.root / "etc"
        (etc / "hostname").write_text(self.name + "\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        shutil.copyfile("/etc/resolv.conf", etc / "resolv.conf")
        fake_nvml = f"SLIPWAY_FAKE_NVML_FIXTURE=h100x8 SLIPWAY_FAKE_NVML_STATE={self.GPU_STATE}"
        self.write("/etc/ssh/sshd_config.d/test.conf", "UseDNS no\nMaxStartups 200\nMaxSessions 200\n"
                   # The fixture and the state of the fake NVML, for hosts with GPUs.
                   + f"SetEnv {fake_nvml}\n" * bool(self.gpus))
        if self.gpus:
            self.write("/etc/systemd/system.conf.d/test.conf", f"[Manager]\nDefaultEnvironment={fake_nvml}\n")
        run("chroot", self.root, "ssh-keygen", "-A")
        run("chroot", self.root, "useradd", "-m", "-s", "/bin/bash", "ops")
        for home in ("root", "home/ops"):
            self.write(f"/{home}/.ssh/authorized_keys", self.hosts.key.with_suffix(".pub").read_text())
        # The stand-ins are imported as modules, so that Python caches their bytecode. Their start takes much of the time of a probe.
        for name, program in (("snap", "/usr/bin/snap"), ("microk8s", "/usr/lib/standins/microk8s")):
            self.write(f"/usr/lib/standins/{name}.py", (HERE / f"standins/{name}.py").read_text())
            self.write(program, f"#!/usr/bin/python3 -IS\nimport sys\n\nsys.path.insert(0, '/usr/lib/standins')\nimport {name}\n", 0o755)
        for name in ("rancher", "kubernetes"):
            self.write(f"/usr/lib/standins/{name}.py", (HERE / f"standins/{name}.py").read_text())
        (self.root / "standin").mkdir()

    def simulate_gpus(self, library):
        """Installs the fake NVML library."""
        shutil.copy(library, self.root / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")

    def offer_releases(self, name, *versions):
        """Writes releases of the stand-in of K3s or RKE2 to /opt/NAME, which slipway can download with `source: file:///opt/NAME`."""
        for version in versions:
            program = f"#!/usr/bin/python3 -IS\nimport sys\n\nsys.path.insert(0, '/usr/lib/standins')\nimport rancher\n\nrancher.main('{name}', '{version}')\n".encode()
            archive = name if name == "k3s" else f"{name}.linux-amd64.tar.gz"
            path = self.root / f"opt/{name}/{version}/{archive}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(program if name == "k3s" else rke2_archive(program))
            self.write(f"/opt/{name}/{version}/sha256sum-amd64.txt", f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {archive}\n")

    def offer_kubernetes(self, *versions):
        """Offers packages of the stand-ins of Kubernetes in /opt/kubernetes, for `source: file:///opt/kubernetes`, and of containerd in
        /opt/site, both signed with the key /opt/key.asc. Helm is installed already."""
        shutil.copytree(self.hosts.kubernetes(versions), self.root / "opt", dirs_exist_ok=True)
        self.write("/usr/local/bin/helm", """#!/bin/sh
[ "$1" != version ] || { echo v3.19.0; exit; }
[ -r "$2" ] || { echo "Error: Kubernetes cluster unreachable: stat $2: no such file or directory" >&2; exit 1; }
shift 2
exec /usr/lib/standins/microk8s helm3 "$@"
""", 0o755)

    def become_rocky(self):
        """Makes the host look like Rocky Linux 9: with dnf, rpm, SELinux and firewalld, all of them stand-ins, and without apt and dpkg."""
        self.ssh("apt-get install -y -qq --no-install-recommends curl; rm -f /usr/bin/apt* /usr/bin/dpkg* /etc/os-release; mkdir -p /var/lib/standin /etc/dnf /etc/yum.repos.d")
        self.write("/etc/os-release", 'NAME="Rocky Linux"\nID=rocky\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.6"\n')
        self.write("/etc/dnf/dnf.conf", "[main]\ngpgcheck=1\n")
        self.write("/usr/lib/standins/dnf.py", (HERE / "standins/dnf.py").read_text())
        for name in ("dnf", "rpm"):
            self.write(f"/usr/bin/{name}", f"#!/usr/bin/python3 -IS\nimport sys\n\nsys.path.insert(0, '/usr/lib/standins')\nimport dnf\n\ndnf.{name}()\n", 0o755)
        for name in ("selinuxenabled", "restorecon"):
            self.write(f"/usr/sbin/{name}", "#!/bin/sh\n", 0o755)
        # Only ports are kept; the zones are files.
        self.write("/usr/bin/firewall-cmd", """#!/bin/sh
f=/var/lib/standin/ports; touch $f
for w in "$@"; do case $w in
--query-port=*) exec grep -qxF "${w#*=}" $f;; --add-port=*) echo "${w#*=}" >>$f;; --remove-port=*) sed -i "\\|^${w#*=}$|d" $f;; --reload) echo reload >>/var/lib/standin/log;; esac; done
""", 0o755)
        self.write("/etc/systemd/system/firewalld.service", "[Service]\nExecStart=sleep infinity\n")
        self.ssh("systemctl daemon-reload; systemctl start firewalld")

    def offer_driver(self, branch, version):
        """Adds an apt repository with a fake package of NVIDIA's driver, with open kernel modules. Once it is installed, the module appears as loaded after a reboot."""
        package = self.folder / "driver"
        for path, text, mode in (("DEBIAN/control", f"Package: nvidia-driver-{branch}-server-open\nVersion: {version}\nArchitecture: all\nMaintainer: test\nDescription: fake driver\n", 0o644),
                                 ("usr/share/standin-driver", version + "\n", 0o644),
                                 ("usr/local/bin/modinfo", f"#!/bin/sh\ncase \"$2 $3\" in 'version nvidia') echo {version};; 'license nvidia') echo Dual MIT/GPL;; *) exit 1;; esac\n", 0o755)):
            file = package / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(mode)
        (self.root / "opt/repository").mkdir(parents=True, exist_ok=True)
        archive = self.root / "opt/repository/driver.deb"
        run("dpkg-deb", "--build", "--root-owner-group", package, archive)
        bytes_ = archive.read_bytes()
        control = (package / "DEBIAN/control").read_text()
        self.write("/opt/repository/Packages", f"{control}Filename: ./driver.deb\nSize: {len(bytes_)}\nSHA256: {hashlib.sha256(bytes_).hexdigest()}\n")
        self.write("/etc/apt/sources.list.d/driver.list", "deb [trusted=yes] file:/opt/repository ./\n")
        self.ssh("apt-get update -qq -o Dir::Etc::sourcelist=sources.list.d/driver.list -o Dir::Etc::sourceparts=-")

    def configure_network(self):
        ip = lambda *words: run("ip", "-n", self.namespace, *words)
        ip("addr", "flush", "dev", "eth0")
        ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("link", "set", "eth0", "up")
        ip("link", "set", "lo", "up")
        ip("route", "add", "default", "via", f"{self.hosts.network}.1")

    def change_address(self):
        """Assigns a new address, as some cloud providers do after a power cycle."""
        self.number = self.hosts.next_number()
        self.configure_network()

    def add_address(self):
        """Assigns another address and returns it, so that one host can stand for several machines."""
        address = self.hosts.address(self.hosts.next_number())
        run("ip", "-n", self.namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        return address

    def write(self, path, text, mode=0o644):
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def read(self, path):
        return (self.root / path.lstrip("/")).read_text()

    def start(self):
        """Boots the host, without waiting until it accepts SSH connections."""
        cgroup = self.cgroup
        cgroup.mkdir(parents=True, exist_ok=True)
        script = f"""set -e
echo $$ >{cgroup}/cgroup.procs
exec nsenter --net=/run/netns/{self.namespace} unshare --mount --uts --ipc --pid --cgroup --fork --kill-child sh -c '
set -e
R={self.root}
mount --make-rprivate /
mount --bind {self.hosts.shared} $R/standin
mount -t proc proc $R/proc
cat /proc/sys/kernel/random/uuid >{self.folder}/boot_id
mount --bind {self.folder}/boot_id $R/proc/sys/kernel/random/boot_id
mount -t sysfs sys $R/sys
{self.mount_pci()}
if [ -e $R/usr/share/standin-driver ]; then
  mkdir -p {self.folder}/module/nvidia
  cp $R/usr/share/standin-driver {self.folder}/module/nvidia/version
  mount --bind {self.folder}/module $R/sys/module
fi
mount -t tmpfs tmp $R/run
mount -t tmpfs -o mode=755 dev $R/dev
for d in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m666 $R/dev/${{d%:*}} c 1 ${{d#*:}}; done
mknod -m666 $R/dev/tty c 5 0
mkdir $R/dev/pts $R/dev/shm
mount -t devpts -o newinstance,ptmxmode=666 pts $R/dev/pts
ln -s pts/ptmx $R/dev/ptmx
ln -s /proc/self/fd $R/dev/fd
{MOUNT_CGROUPS}
hostname {self.name}
exec env -i container=slipway PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot $R /lib/systemd/systemd --log-target=journal --show-status=0 systemd.unit=multi-user.target {CGROUP_OPTIONS}'
"""
        log = open(self.folder / "console.log", "ab")
        process = self.process = subprocess.Popen(["sh", "-c", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        threading.Thread(target=self.watch, args=(process,), daemon=True).start()

    def watch(self, process):
        """Boots the host again after a reboot, which ends the init process of a PID namespace with SIGHUP (reboot(2))."""
        process.wait()
        if self.process is process and process.returncode in (-signal.SIGHUP, 128 + signal.SIGHUP) and self.survives_reboot:
            self.start()

    def mount_pci(self):
        """The shell command that replaces the PCI bus with one that has the host's GPUs; empty if the host has none."""
        if not self.gpus:
            return ""
        tree = self.folder / "pci"
        for number, device in enumerate(self.gpus):
            folder = tree / f"0000:{number + 1:02x}:00.0"
            folder.mkdir(parents=True, exist_ok=True)
            for name, value in {"vendor": "0x10de", "device": device, "class": "0x030200"}.items():
                (folder / name).write_text(value + "\n")
        return f"mount --bind {tree} $R/sys/bus/pci/devices"

    def wait(self, seconds=60):
        """Waits until the host accepts SSH connections."""
        def accepts():
            if self.process.poll() not in (None, -signal.SIGHUP, 128 + signal.SIGHUP):
                raise StopWaiting(f"{self.name} ended: {(self.folder / 'console.log').read_text()[-2000:]}")
            return self.ssh("true", check=False).returncode == 0

        eventually(accepts, timeout=seconds, interval=0.1, message=f"{self.name} accepts SSH connections")

    def ssh(self, command, check=True, user="root"):
        done = subprocess.run(["ssh", "-q", "-F", "none", "-i", self.hosts.key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                               "-o", "ConnectTimeout=3", "-o", "BatchMode=yes", f"{user}@{self.address}", command], capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{self.name}: {command}: {done.stderr}{done.stdout}")
        return done

    def kill_at(self, text):
        """From now on, kills every program on the host that writes this text to its standard output. An empty text disables that."""
        library = self.root / "usr/lib/kill_at.so"
        if not library.exists():
            run("cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "kill_at.c")
            self.write("/etc/ld.so.preload", "/usr/lib/kill_at.so\n")
        self.write("/etc/kill-at", text)

    def stop(self):
        """Stops the host without a shutdown, as a power failure would."""
        if self.process is None:
            return
        # When the init process of the PID namespace is killed, the kernel kills all other processes of the namespace.
        process, pids = self.process, self.processes()
        self.process = None
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(120)
        # The processes do not end at once, and the host may still respond until they have ended.
        eventually(lambda: not any(file.read_text() for file in self.cgroup.rglob("cgroup.procs")), interval=0.01,
                   message=f"the processes of {self.name} have ended")

    def processes(self):
        """The ids of the process that holds the namespaces and of its children, among them the host's init."""
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(OSError):
            return [int(c) for c in children.read_text().split()] + [self.process.pid]
        return [self.process.pid]

    def remove(self):
        """Stops the host, and removes its network and its files."""
        self.hosts.all.pop(self.name, None)
        unmount = lambda: subprocess.run(["umount", "-R", self.root], capture_output=True).returncode == 0 or not os.path.ismount(self.root)
        try:
            self.stop()
            eventually(unmount, timeout=20, interval=0.1, message=f"the file systems of {self.name} are unmounted")
        finally:
            run("ip", "link", "del", self.link, check=False)
            run("ip", "netns", "del", self.namespace, check=False)
            shutil.rmtree(self.folder, ignore_errors=True)
            for folder, _, _ in os.walk(self.cgroup, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


class Hosts:
    """Test hosts on a common network; a context manager: `with Hosts(["cp1", "gpu1"]) as hosts: hosts["cp1"].ssh("true")`.

    `gpus` are the PCI device ids of the GPUs by host name.
    """

    def __init__(self, names, gpus=None):
        self.names, self.gpus, self.bridge, self.network = names, gpus or {}, None, None

    def kubernetes(self, versions):
        """The folder with the repositories of Kubernetes in these versions; see `Host.offer_kubernetes`."""
        folder = self.folder / "kubernetes"
        if not folder.exists():
            home = self.folder / "gnupg"
            home.mkdir(mode=0o700)
            gpg = lambda *words: run("gpg", "--homedir", home, "--batch", *words)
            gpg("--passphrase", "", "--quick-gen-key", "packages@example.org", "rsa2048", "sign", "never")
            folder.mkdir()
            key = folder / "key.asc"
            key.write_text(gpg("--armor", "--export"))
            for version in versions:
                repository = folder / f"kubernetes/{version.rpartition('.')[0]}/deb"
                for package in kubernetes_packages(version):
                    write_package(repository, *package)
                sign_repository(repository, home, key)
            site = folder / "site"
            containerd = {"usr/bin/containerd": "#!/bin/sh\nexec sleep infinity\n", "lib/systemd/system/containerd.service": CONTAINERD_UNIT}
            write_package(site, "containerd.io", "2.2.0-1", "", containerd)
            sign_repository(site, home, key)
            run("gpgconf", "--homedir", home, "--kill", "all", check=False)
        return folder

    def next_number(self):
        return next(self.numbers)

    def address(self, number):
        return f"{self.network}.{10 + number}"

    def create_network(self):
        """Creates a bridge with its own network, so that several sets of hosts can run at the same time."""
        for n in range(77, 120):
            # Network namespaces of a run that was killed remain.
            if any(pathlib.Path("/run/netns").glob(f"slipway-h{n}-*")):
                continue
            if subprocess.run(["ip", "link", "add", f"slipway-h{n}", "type", "bridge"], capture_output=True).returncode == 0:
                break
        else:
            raise RuntimeError("all networks of test hosts are in use")
        self.bridge, self.network = f"slipway-h{n}", f"10.{n}.0"
        run("ip", "addr", "add", f"{self.network}.1/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        # IP forwarding is not disabled at the end, because other test hosts may still need it.
        pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        run("nft", "-f", "-", input=f"table ip {self.bridge} {{ chain out {{ type nat hook postrouting priority 100; "
                                    f"ip saddr {self.network}.0/24 oifname != \"{self.bridge}\" masquerade; }} ; }}\n")

    def add(self, name, gpus=()):
        """Creates a host that is off."""
        host = self.all[name] = Host(self, self.next_number(), name)
        host.gpus = list(gpus)
        host.create()
        return host

    def __enter__(self):
        self.base = base()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="slipway-hosts-"))
        self.shared = self.folder / "shared"
        self.shared.mkdir()
        self.key = self.folder / "id"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        self.numbers, self.all = itertools.count(1), {}
        try:
            self.create_network()
            for name in self.names:
                self.add(name, self.gpus.get(name, [])).start()
            for host in self.all.values():
                host.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # A stack, so that a host that cannot be removed does not keep the rest from being removed.
        with protected(), contextlib.ExitStack() as stack:
            stack.callback(self.remove_network)
            for host in list(self.all.values()):
                stack.callback(host.remove)

    def remove_network(self):
        if self.bridge:
            run("ip", "link", "del", self.bridge, check=False)
            run("nft", "delete", "table", "ip", self.bridge, check=False)
        with contextlib.suppress(OSError):
            os.rmdir(CGROUPS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __getitem__(self, name):
        return self.all[name]


if __name__ == "__main__":
    if sys.argv[1:2] != ["up"]:
        raise SystemExit(__doc__)
    with Hosts(sys.argv[2:] or ["cp1"]) as hosts:
        print(f"key {hosts.key}")
        for host in hosts.all.values():
            print(f"{host.name}={host.address}")
        print("ready", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
