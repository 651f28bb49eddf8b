"""Tests of clusters on existing machines: apply, interruption, failures, upgrade, reboot and destroy."""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import time

from bench import FIVE_MACHINES, PASSWORD, Bench, assert_converged, outcomes, test
from suite import eventually

OFFICE = """  storage: {classes: [{name: office, share: {smb: {source: //files.example.org/data, user: ops, password: {env: SUDO_PASSWORD}}}}]}"""
STORAGE = """  storage: {classes: [{name: shared, default: true, share: {nfs: {server: files.example.org, path: /export}}}]}"""


@test(limit=900)
def five_bare_machines_become_a_cluster_and_apply_is_idempotent(binary):
    with Bench(binary, FIVE_MACHINES, spec=STORAGE) as bench:
        # One machine has no apt lists and no cached packages.
        bench.hosts["cp3"].ssh("rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb")
        plan = bench.plan(status=3)
        assert [c["resource"] for c in plan["cp1"]["changes"]][-3:] == ["storage/class-shared", "device-plugin/nvidia-device-plugin-values", "device-plugin/nvidia-device-plugin"], plan["cp1"]
        assert plan["gpu1"]["changes"][-1]["resource"] == "join" and not bench.commands(), "a plan changes nothing"
        began = time.monotonic()
        steps = bench.apply()
        print(f"     five machines: a cluster after {time.monotonic() - began:.1f} s")
        assert outcomes(steps) == {"changed"} and outcomes(steps, smoke=True) == {"passed"}, steps
        assert steps["gpu2/smoke-gpu"]["saw"] == "gpu2: GPU 0: NVIDIA H100 80GB HBM3" and steps["cp1/smoke-storage-shared"]["saw"] == "written on cp1, read on gpu2"
        assert bench.leftovers() == [], bench.leftovers()
        page = bench.run("status", "-o", "html")
        if os.environ.get("REPORT"):
            pathlib.Path(os.environ["REPORT"]).with_suffix(".html").write_text(page)
            shutil.copy(bench.folder / "home/clusters/lab/report.json", os.environ["REPORT"])
        assert "Smoke tests" in page and page.count("<rect") == len(steps)
        assert list(steps).index("cp2/join") < list(steps).index("cp3/join") < list(steps).index("gpu1/join")
        assert_converged(bench)
        assert f"{bench.hosts['cp2'].address} cp2" in bench.hosts["gpu1"].read("/etc/hosts")
        assert "enable_cdi = true" in bench.hosts["gpu1"].ssh("cat /var/snap/microk8s/current/args/containerd-template.toml").stdout
        assert "lab.example.org" in bench.hosts["cp1"].ssh("cat /var/snap/microk8s/common/.microk8s.yaml").stdout

        commands, files = bench.commands(), lambda: bench.hosts["gpu1"].ssh("find /etc /var/snap -newer /tmp/mark -type f").stdout
        bench.hosts["gpu1"].ssh("touch /tmp/mark")
        began = time.monotonic()
        steps = bench.apply()
        print(f"     second apply: {time.monotonic() - began:.1f} s, no changes")
        assert outcomes(steps) == {"unchanged"} and outcomes(steps, smoke=True) == {"passed"}, steps
        assert bench.stderr.splitlines()[-1].startswith("0 changes in"), bench.stderr
        assert bench.commands() == commands and not files(), files()
        began = time.monotonic()
        bench.plan(status=0)
        print(f"     plan of five machines: {time.monotonic() - began:.2f} s")

        # Manual changes are detected, shown and reverted, and nothing else is changed.
        bench.hosts["cp2"].ssh("sed -i s/600/7200/ /etc/sysctl.d/90-slipway.conf && snap refresh --unhold microk8s")
        bench.hosts["gpu2"].ssh("apt-get remove -y -qq jq")
        drift = bench.run("status", "--drift", status=3)
        assert "-net.ipv4.tcp_keepalive_time = 7200" in drift and "refreshes held" in drift and "+ host-tools/package-jq" in drift, drift
        assert drift.count("no changes") == 3, drift
        kept = bench.folder / "plan.json"
        assert bench.run("plan", "-o", kept, status=3) == "" and [m["name"] for m in json.loads(kept.read_text())["machines"] if m["changes"]] == ["cp2", "gpu2"]
        steps = bench.apply()
        assert {k: s["outcome"] for k, s in steps.items() if s["outcome"] not in ("unchanged", "passed")} == {"cp2/base": "changed", "gpu2/base": "changed"}, steps
        assert_converged(bench)

        # A change that needs no drain is applied and rolled back on one machine.
        bench.hosts["gpu1"].ssh("rm /etc/sysctl.d/90-slipway.conf")
        bench.apply("--hosts", "gpu1", "--only", "system")
        bench.run("rollback", "--yes", "--hosts", "gpu1")
        assert "90-slipway" not in bench.hosts["gpu1"].ssh("ls /etc/sysctl.d").stdout
        bench.apply("--from", "gpu1/base")
        assert_converged(bench)

        idle = json.loads(bench.run("cost", "-o", "json"))["idleGpus"]
        assert sorted(idle) == ["gpu1", "gpu2"] and all("H100" in gpu for gpu in idle["gpu1"]) and len(idle["gpu1"]) < 8, idle

        inventory = json.loads(bench.run("inventory", "--list"))
        assert inventory["gpu"]["hosts"] == ["gpu1", "gpu2"] and inventory["_meta"]["hostvars"]["cp1"]["ansible_host"] == bench.hosts["cp1"].address
        assert bench.run("ssh", "gpu2", "--", "hostname") == "gpu2\n"
        assert "cp1/cluster ended" in bench.run("logs", "cp1")


@test(limit=1200)
def apply_killed_at_random_times_continues(binary):
    with Bench(binary, {"cp1": "control-plane", "cp2": "control-plane", "gpu1": "worker, gpu"}) as bench:
        kills = 0
        for _ in range(30):
            command, environment = bench.command("apply", "--yes", "-o", "json")
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=random.uniform(0.3, 1.2 + kills / 8))  # The first timeouts are too short for an apply.
                break
            # Kill the engine on one of the machines if it is running there, and otherwise the controller.
            engine = kills % 3 == 2 and bench.hosts[random.choice(list(bench.roles))].ssh("pkill -9 -f 'node converge'", check=False).returncode == 0
            if not engine:
                process.kill()
            process.communicate(timeout=200)
            kills += 1
            if process.returncode == 0:
                break
        else:
            bench.apply()
        print(f"     killed {kills} times")
        assert kills > 2
        bench.apply()
        assert_converged(bench)
        assert bench.hosts["cp1"].ssh("ls /var/lib/slipway/converge/pending").stdout == ""
        assert not bench.hosts["gpu1"].ssh("find / -xdev -name '.*.slipway' 2>/dev/null", check=False).stdout
        for host in bench.roles:
            assert bench.hosts[host].ssh("dpkg --audit; dpkg -s jq | grep Status").stdout == "Status: install ok installed\n"


@test(limit=900)
def failures_are_reported_and_fixed_by_the_next_apply(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu", "gpu2": "worker, gpu"}) as bench:
        # A machine is down: its steps fail and their dependents are skipped, and all other steps succeed.
        bench.hosts["gpu2"].stop()
        steps = bench.apply(status=1)
        assert steps["gpu2/base"]["outcome"] == "failed" and "cannot be reached" in steps["gpu2/base"]["reason"], steps
        assert steps["gpu2/join"]["outcome"] == "skipped" and steps["gpu1/join"]["outcome"] == "changed", steps
        assert bench.plan(status=5)["gpu2"]["unreachable"]["code"] == "cluster.unreachable"
        bench.hosts["gpu2"].start()
        bench.hosts["gpu2"].wait()
        # The join token expires before it is used: slipway requests another token.
        bench.faults(expire=1)
        steps = bench.apply()
        assert steps["gpu2/join"]["outcome"] == "changed" and steps["gpu1/base"]["outcome"] == "unchanged", steps
        assert_converged(bench)
        log = bench.run("logs", "gpu2")
        assert "Invalid token" in log and "attempt 1 of 3" in log
        tokens = [t for c in json.loads((bench.hosts.shared / "cluster.json").read_text())["clusters"].values() for t in c["tokens"]]
        files_with_token = subprocess.run(["grep", "-rlE", "|".join(tokens), bench.folder / "home"], capture_output=True, text=True).stdout
        assert len(tokens) >= 3 and not files_with_token, files_with_token

        # A channel and an add-on that do not exist.
        bench.write(channel="1.32/edge")
        steps = bench.apply("--hosts", "gpu1", status=1)
        assert "available to install on the following channels" in bench.stderr, bench.stderr
        bench.write(addons="dns, rbac, metrics-server, nonsense")
        bench.apply(status=1)
        assert "nonsense was not found" in bench.stderr
        bench.write()

        # Another process holds apt's lock for a while.
        bench.hosts["gpu1"].ssh("apt-get remove -y -qq jq; systemd-run -q --unit=holder python3 -c 'import fcntl,time; f=open(\"/var/lib/dpkg/lock-frontend\",\"w\"); "
                                "fcntl.lockf(f,fcntl.LOCK_EX); time.sleep(6)'")
        eventually(lambda: bench.hosts["gpu1"].ssh("python3 -c 'import fcntl; fcntl.lockf(open(\"/var/lib/dpkg/lock-frontend\",\"w\"), "
                                                   "fcntl.LOCK_EX | fcntl.LOCK_NB)'", check=False).returncode == 1, message="apt's lock is held")
        began = time.monotonic()
        assert bench.apply("--hosts", "gpu1")["gpu1/base"]["outcome"] == "changed"
        assert time.monotonic() - began > 3, "it waited"

        # The disk is full: the file keeps its content, and the next apply succeeds once there is space.
        bench.hosts["gpu1"].ssh("mkdir -p /small && mount -t tmpfs -o size=64k none /small && cp /etc/apt/apt.conf.d/* /small && echo hand >>/small/99-slipway "
                                "&& mount --bind /small /etc/apt/apt.conf.d; dd if=/dev/zero of=/small/fill bs=1k 2>/dev/null", check=False)
        bench.apply("--hosts", "gpu1", status=1)
        assert "No space left" in bench.stderr and "system/held-updates" in bench.stderr, bench.stderr
        assert bench.hosts["gpu1"].ssh("tail -1 /etc/apt/apt.conf.d/99-slipway; ls -A /small | grep slipway").stdout == "hand\n99-slipway\n"
        bench.hosts["gpu1"].ssh("umount /etc/apt/apt.conf.d && umount /small")
        bench.apply("--hosts", "gpu1")
        assert_converged(bench)

        # A machine with a changed host key is rejected. The open SSH connections are killed, because they would still be used.
        bench.hosts["gpu1"].ssh("rm /etc/ssh/ssh_host_*; ssh-keygen -A; systemctl restart ssh; pkill -f '^sshd: .*@'", check=False)
        assert bench.plan(status=5)["gpu1"]["unreachable"]["code"] == "cluster.host_key"


@test
def sudo_password_works_and_is_never_stored(binary):
    with Bench(binary, {"cp1": "control-plane"}, ssh_options="    sudoPassword: {env: SUDO_PASSWORD}", spec=OFFICE) as bench:
        bench.write(user="ops")
        host = bench.hosts["cp1"]
        host.ssh(f"echo ops:{PASSWORD} | chpasswd && usermod -aG sudo ops")
        bench.apply(status=1, SUDO_PASSWORD="wrong")
        assert "sudo failed" in bench.stderr and "cluster.failed" in bench.stderr, bench.stderr
        bench.run("plan", status=1)
        assert "cluster.secret" in bench.stderr and "SUDO_PASSWORD" in bench.stderr
        bench.apply(SUDO_PASSWORD=PASSWORD)
        assert outcomes(bench.apply(SUDO_PASSWORD=PASSWORD)) == {"unchanged"}
        files_with_password = subprocess.run(["grep", "-rlF", PASSWORD, bench.folder, host.folder / "upper"], capture_output=True, text=True).stdout
        # Only the manifest of the storage class contains the password, for its SMB share. Only root can read it.
        document = host.root / "var/lib/slipway/wanted/class-office.json"
        assert files_with_password.split() == [str(host.folder / "upper/var/lib/slipway/wanted/class-office.json")] and document.stat().st_mode & 0o777 == 0o600, files_with_password
        # Without a password, slipway fails if sudo needs one, and succeeds if sudo does not.
        bench.spec = ""
        bench.write(user="ops", ssh_options="")
        bench.apply(status=1)
        assert "password is required" in bench.stderr, bench.stderr
        host.ssh("echo 'ops ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ops")
        assert outcomes(bench.apply()) == {"unchanged"}


CUSTOM_SYSTEM = """  system:
    packages: [jq, tree]
    repositories: [{name: updates, uri: 'http://deb.debian.org/debian', suites: [bookworm-updates], components: [main], key: {file: %s}}]
    modules: [tcp_cubic]
    users: [{name: ada, groups: [microk8s, adm], authorizedKeys: ['%s']}]
    mounts: [{what: scratch, where: /srv/model-data, type: tmpfs, options: [size=1m], roles: [gpu]}]
    files:
      - {path: /etc/motd, template: "{{machine}} of {{cluster}}\\n"}
      - {path: /etc/registry-token, secret: {env: REGISTRY_TOKEN}}
      - {path: /etc/agent.yaml, yaml: {server.port: 8080, server.tags: [a, b]}, then: "cat /etc/agent.yaml >>/etc/agent.seen"}
      - {path: /etc/agent.toml, toml: {'plugins."a.b".on': true}}
      - {path: /etc/login.defs, lines: [{line: UMASK 027, begins: UMASK}], block: "# ours"}
"""


@test
def custom_files_users_and_mounts_are_applied_and_rolled_back(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu"}) as bench:
        host, key = bench.hosts["gpu1"], pathlib.Path(f"{bench.hosts.key}.pub").read_text().strip()
        host.write("/etc/agent.yaml", "# the agent\nserver:\n  port: 80 # changed by many\n")
        system = re.compile("^  system: .*\n", re.M)
        ring = host.root / "etc/apt/trusted.gpg.d/debian-archive-bookworm-automatic.asc"
        bench.file.write_text(system.sub(lambda _: CUSTOM_SYSTEM % (ring, key), bench.file.read_text()))
        secret = {"REGISTRY_TOKEN": PASSWORD}
        bench.apply("--only", "system,host-tools", **secret)
        assert outcomes(bench.apply("--only", "system,host-tools", **secret)) == {"unchanged"}
        assert host.read("/etc/motd") == "gpu1 of lab\n" and host.read("/etc/registry-token") == PASSWORD + "\n"
        assert host.read("/etc/agent.yaml") == "# the agent\nserver:\n  port: 8080 # changed by many\n  tags: [\"a\",\"b\"]\n" == host.read("/etc/agent.seen")
        assert host.read("/etc/agent.toml") == '[plugins."a.b"]\non = true\n' and "\nUMASK 027\n" in host.read("/etc/login.defs")
        assert "microk8s" in host.ssh("id -Gn ada").stdout and host.ssh("findmnt -no SOURCE,FSTYPE,SIZE /srv/model-data").stdout.split() == ["scratch", "tmpfs", "1M"]
        assert "bookworm-updates" in host.ssh("apt-cache policy").stdout and not bench.hosts["cp1"].ssh("findmnt /srv/model-data", check=False).stdout
        # The user can log in with the key.
        login = subprocess.run(["ssh", "-F", "none", "-i", bench.hosts.key, "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", f"ada@{host.address}", "id -un"],
                               capture_output=True, text=True)
        assert login.stdout == "ada\n", login
        # A file system with a changed size is remounted. A manually changed value is detected, and the text around it is kept.
        bench.file.write_text(bench.file.read_text().replace("size=1m", "size=2m"))
        host.ssh("sed -i 's/8080 #/9090 # mine,/' /etc/agent.yaml")
        changes = {c["resource"]: c for c in bench.plan("--only", "system,host-tools", status=3, **secret)["gpu1"]["changes"]}
        assert set(changes) == {"system/mount.srv.model-data-unit", "system/file.etc.agent.yaml"} and "+  port: 8080 # mine, changed" in str(changes), changes
        bench.apply("--only", "system,host-tools", **secret)
        assert host.ssh("findmnt -no SIZE /srv/model-data").stdout.strip() == "2M"
        files_with_secret = subprocess.run(["grep", "-rlF", PASSWORD, bench.folder, host.folder / "upper"], capture_output=True, text=True).stdout
        assert files_with_secret.split() == [str(host.folder / "upper/etc/registry-token")], files_with_secret
        # Root does not write through a link that the user created.
        host.ssh("install -m 600 /dev/null /root/only && ln -sf /root/only /home/ada/.ssh/authorized_keys")
        bench.apply("--only", "system,host-tools", status=1, **secret)
        assert "Permission denied" in bench.stderr and host.read("/root/only") == "" and host.ssh("stat -c %U /root/only").stdout == "root\n", bench.stderr
        host.ssh("rm /home/ada/.ssh/authorized_keys")
        bench.apply("--only", "system,host-tools", **secret)
        assert host.ssh("stat -c '%U %a' /home/ada/.ssh/authorized_keys").stdout == "ada 600\n"
        # All changes are rolled back one by one; the manually changed value is restored in between.
        for port in ("8080", "8080", "9090", "80"):
            bench.run("rollback", "--yes", "--hosts", "gpu1", **secret)
            assert f"port: {port} #" in host.read("/etc/agent.yaml")
        assert not host.ssh("getent passwd ada; findmnt /srv/model-data; ls /etc/agent.toml /etc/apt/sources.list.d/updates.sources", check=False).stdout


@test
def locks_serialize_applies(binary):
    with Bench(binary, {"cp1": "control-plane"}) as bench:
        command, environment = bench.command("apply", "--yes")
        first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lock = bench.folder / "home/clusters/lab/lock"
        eventually(lambda: str(first.pid) in lock.read_text(), timeout=20, interval=0.01, message="the first apply holds the lock")
        bench.run("apply", "--yes", status=1)
        assert "cluster.locked" in bench.stderr and f"process {first.pid}" in bench.stderr, bench.stderr
        assert first.wait(200) == 0
        # Another controller does not see the lock of this one, but the engine on the machine has its own lock.
        host = bench.hosts["cp1"]
        host.ssh("systemd-run -q --unit=other flock /var/lib/slipway/converge/lock sleep 8")
        eventually(lambda: host.ssh("flock -n /var/lib/slipway/converge/lock true", check=False).returncode == 1, message="the lock is held")
        host.ssh("rm /etc/sysctl.d/90-slipway.conf")
        began = time.monotonic()
        bench.apply()
        assert time.monotonic() - began > 2, "it waited"
        assert_converged(bench)


def versions(bench):
    """The installed channel of MicroK8s by host."""
    return {n: bench.hosts[n].ssh("snap list microk8s | tail -1").stdout.split()[3] for n in bench.roles}


@test(limit=900)
def upgrade_proceeds_node_by_node_and_one_minor_version_at_a_time(binary):
    with Bench(binary, {"cp1": "control-plane", "cp2": "control-plane", "gpu1": "worker, gpu"}) as bench:
        bench.apply()
        # An apply does not upgrade, even if the file has a new channel.
        bench.write(channel="1.33/stable")
        assert bench.plan(status=3)["cp1"]["changes"][0]["changes"][0]["text"] == "snap microk8s 1.32/stable -> 1.33/stable"
        steps = bench.apply(status=1)
        assert "slipway cluster upgrade" in subprocess.run([binary, "explain", "cluster.upgrade"], capture_output=True, text=True).stdout and "which is an upgrade" in steps["cp1/base"]["reason"], steps
        assert set(versions(bench).values()) == {"1.32/stable"}
        bench.write()
        # Two minor versions at once, and a downgrade, are rejected before anything changes.
        bench.run("upgrade", "--yes", "--to", "1.34/stable", status=1)
        assert "one minor version at a time" in bench.stderr, bench.stderr
        bench.run("upgrade", "--yes", "--to", "1.31/stable", status=1)
        assert "cannot be downgraded" in bench.stderr and "channel: 1.32/stable" in bench.file.read_text()
        # A disruption budget blocks the drain: the node is uncordoned again, and later nodes are skipped.
        bench.faults(budget="cp2")
        steps = bench.run_steps("upgrade", "--to", "1.33/stable", status=1)
        assert steps["cp1/upgrade"]["outcome"] == "changed" and "disruption budget" in steps["cp2/upgrade"]["reason"] and steps["gpu1/upgrade"]["outcome"] == "skipped", steps
        assert versions(bench) == {"cp1": "1.33/stable", "cp2": "1.32/stable", "gpu1": "1.32/stable"} and not bench.cordoned()
        assert "channel: 1.33/stable" in bench.file.read_text()
        bench.faults()
        # The upgrade is killed during a drain: the next upgrade continues, and all nodes are schedulable at the end.
        command, environment = bench.command("upgrade", "--yes")
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(bench.cordoned, interval=0.05, message="a node is cordoned")
        process.kill()
        process.wait()
        assert bench.cordoned() == ["cp2"], "it was killed while a node was drained"
        assert "slipway drained the node" in bench.run("doctor", status=None)
        steps = bench.run_steps("upgrade")
        assert steps["cp1/upgrade"]["outcome"] == "unchanged" and steps["gpu1/upgrade"]["outcome"] == "changed", steps
        assert set(versions(bench).values()) == {"1.33/stable"} and not bench.cordoned()
        order = [line for line in bench.commands() if "kubectl drain" in line]
        assert [line.split(" drain ")[1].split()[0] for line in sorted(order)] and len(order) >= 3
        assert_converged(bench)


@test
def cluster_is_stopped_started_and_destroyed(binary):
    with Bench(binary, {"cp1": "control-plane", "cp2": "control-plane", "gpu1": "worker, gpu"}) as bench:
        before = {n: bench.hosts[n].ssh("find /etc -type f | sort | xargs md5sum; dpkg -l | tail -n +6").stdout for n in bench.roles}
        bench.apply()
        config = bench.run("kubeconfig", "--server", "lab.example.org")
        assert "server: https://lab.example.org:16443" in config and "current-context: lab" in config, config
        for option, file in (("--save", "kube/config"), ("-o", "kube/config.yaml")):
            bench.run("kubeconfig", option, bench.folder / file)
            assert (bench.folder / file).stat().st_mode & 0o777 == 0o600
        steps = bench.run_steps("stop")
        assert list(steps) == ["gpu1/stop", "cp2/stop", "cp1/stop"] and outcomes(steps) == {"changed"}, steps
        assert outcomes(bench.run_steps("stop")) == {"unchanged"}
        steps = bench.run_steps("start")
        assert {steps[f"{n}/start"]["outcome"] for n in bench.roles} == {"changed"} and not bench.cordoned(), steps
        assert {s["outcome"] for i, s in bench.run_steps("start").items() if i.endswith("/start")} == {"unchanged"}
        # One machine leaves the cluster.
        bench.run("destroy", "--yes", "--hosts", "gpu1", status=1)
        assert "nothing was changed" in bench.stderr and "gpu1" in bench.members()
        steps = bench.run_steps("destroy", "--hosts", "gpu1", "--name", "lab")
        assert list(steps) == ["gpu1/leave", "gpu1/erase"] and "gpu1" not in bench.members(), steps
        assert not bench.hosts["gpu1"].ssh("command -v microk8s; ls -d /var/lib/slipway/converge", check=False).stdout
        bench.apply()
        assert_converged(bench)
        # The whole cluster is destroyed, and the changes of the machines are rolled back.
        steps = bench.run_steps("destroy", "--name", "lab")
        assert outcomes(steps) == {"changed"}, steps
        for name, text in before.items():
            now = bench.hosts[name].ssh("find /etc -type f | sort | xargs md5sum; dpkg -l | tail -n +6").stdout
            # Dependencies of packages stay installed; `apt autoremove` would remove them.
            new = {line for line in now.splitlines() if line not in text.splitlines()}
            assert not [line for line in new if "slipway" in line or " jq " in line or "/etc/hosts" in line], new


@test
def doctor_finds_known_problems(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu"}) as bench:
        bench.apply()
        bench.run("doctor")
        bench.hosts["gpu1"].ssh("mkdir -p /var/lib/kubelet/pods && hostname other && sed -i '1i [x]\\ndefault_runtime_name = \"nvidia\"' /var/snap/microk8s/current/args/containerd-template.toml")
        stuck = {"metadata": {"namespace": "kube-system", "name": "calico-node-x", "creationTimestamp": "2026-01-01T00:00:00Z"},
                 "status": {"phase": "Pending", "initContainerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}}
        bench.faults(pods=[stuck])
        found = json.loads(bench.run("doctor", "-o", "json", status=3))
        words = " | ".join(f"{f['machine']}: {f['what']}" for f in found if f["severity"] == "error")
        for expected in ("gpu1: its hostname is other", "gpu1: /var/lib/kubelet is a folder", "gpu1: containerd's template names NVIDIA's runtime", "lab: pod kube-system/calico-node-x is waiting: Init: PodInitializing"):
            assert expected in words, (expected, words)
        bench.hosts["gpu1"].stop()
        found = bench.run("doctor", status=3)
        assert "cannot be reached" in found, found


@test
def machine_continues_by_itself_after_a_reboot(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu"}) as bench:
        host = bench.hosts["gpu1"]
        desired = {"resources": [
            {"id": "system/first", "layer": "system", "what": {"file": {"path": "/etc/first", "content": {"text": "1\n"}, "mode": "0644"}}, "timeout": 60},
            {"id": "system/reboot", "layer": "system", "what": {"reboot": {"when": "[ ! -e /run/never-exists ] && [ ! -e /etc/rebooted ]", "reason": "a test"}}, "timeout": 60},
            {"id": "system/last", "layer": "system", "what": {"file": {"path": "/etc/last", "content": {"text": "2\n"}, "mode": "0644"}}, "timeout": 60}]}
        # The engine is run on the machine itself, so no controller waits for the reboot.
        bench.apply("--hosts", "gpu1", "--only", "host-tools")
        host.write("/root/desired.json", json.dumps(desired))
        program = host.ssh("ls /var/lib/slipway/bin/slipway-*").stdout.strip()
        boot = host.ssh("cat /proc/sys/kernel/random/boot_id").stdout
        output = host.ssh(f"{program} node converge /root/desired.json").stdout
        assert "must reboot" in output and host.read("/etc/first") == "1\n", output
        host.write("/etc/rebooted", "")
        host.ssh("systemctl reboot", check=False)

        def continued():
            done = host.ssh("cat /etc/last; cat /proc/sys/kernel/random/boot_id", check=False).stdout
            return done.startswith("2\n") and boot.strip() not in done

        try:
            eventually(continued, message="the machine continues after the reboot")
        except AssertionError:
            print(host.ssh("systemctl status slipway-converge", check=False).stdout)
            raise
        units = "ls /etc/systemd/system /etc/systemd/system/multi-user.target.wants"
        eventually(lambda: "slipway-converge" not in host.ssh(units).stdout, timeout=20, message="the unit is removed")
        assert not host.ssh("ls /var/lib/slipway/converge/continue.json", check=False).stdout


@test
def driver_installation_reboots_and_a_lost_machine_is_reported(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu", "gpu2": "worker, gpu"}) as bench:
        bench.write(driver="570", restart=12)
        for name in ("gpu1", "gpu2"):
            bench.hosts[name].offer_driver("570", "570.86.15")
        plan = {c["resource"]: c for c in bench.plan("--hosts", "gpu1", status=3)["gpu1"]["changes"]}
        assert "then the machine reboots" in plan["gpu/driver"]["effects"][0], plan
        boot = bench.hosts["gpu1"].ssh("cat /proc/sys/kernel/random/boot_id").stdout
        bench.hosts["gpu2"].survives_reboot = False
        began = time.monotonic()
        steps = bench.apply(status=1)
        assert "did not come back within 12 s" in steps["gpu2/base"]["reason"] and time.monotonic() - began < 90, steps
        assert steps["gpu2/join"]["outcome"] == "skipped" and steps["gpu1/join"]["outcome"] == "changed", steps
        assert bench.hosts["gpu1"].ssh("cat /proc/sys/kernel/random/boot_id").stdout != boot
        assert bench.hosts["gpu1"].ssh("cat /sys/module/nvidia/version; apt-mark showhold").stdout == "570.86.15\nnvidia-driver-570-server-open\n"
        # The machine is powered on by hand and continues by itself, and the next apply completes the rest.
        bench.hosts["gpu2"].survives_reboot = True
        bench.hosts["gpu2"].start()
        bench.hosts["gpu2"].wait()
        bench.apply()
        assert_converged(bench)


def apply_with_trigger(bench, words, prefix, action=lambda process: None):
    """Runs an apply, and calls `action` at the first line of its stderr with this prefix. Returns whether there was one, and the exit status."""
    command, environment = bench.command("apply", "--yes", "-o", "json", *words)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    triggered = False
    for line in process.stderr:
        if line.startswith(prefix) and not triggered:
            triggered = True
            action(process)
    return triggered, process.wait()


@test(limit=1200)
def apply_continues_after_a_kill_at_each_step(binary):
    with Bench(binary, {"cp1": "control-plane", "cp2": "control-plane", "gpu1": "worker, gpu"}) as bench:
        killed = []
        # Kill the engine at each change of a machine. The controller does the join, and the stand-in of MicroK8s is always ready at once.
        changes = [c["resource"] for c in bench.plan(status=3)["gpu1"]["changes"] if c["resource"] not in ("join", "kubernetes/ready")]
        assert len(changes) >= 8, changes
        for resource in changes:
            bench.hosts["gpu1"].kill_at(f'"event":"changing","resource":"{resource}"')
            triggered, status = apply_with_trigger(bench, ["--hosts", "gpu1", "--only", "system,host-tools,kubernetes,gpu"], f"gpu1/base: ~ {resource}:")
            killed += [resource] * (triggered and status != 0)
        bench.hosts["gpu1"].kill_at("")
        # Kill the controller at the begin of each step, and while the step runs. The machine steps are first killed only at their begin, because
        # they must not be complete before the later steps are killed.
        machines, rest = ("cp1/base", "cp2/base"), ("cp2/join", "gpu1/join", "cp1/cluster", "cp1/smoke-dns")
        for step, delay in [(m, 0) for m in machines] + [(s, delay) for s in rest for delay in (0, 0.4)] + [(m, 0.4) for m in machines]:
            triggered, _ = apply_with_trigger(bench, [], f"{step}: begins", lambda process: (time.sleep(delay), process.kill()))
            killed += [step] * triggered
        print(f"     killed {len(killed)} times: {', '.join(dict.fromkeys(killed))}")
        assert {*changes, *machines, *rest} <= set(killed), (changes, killed)
        bench.apply()
        assert_converged(bench)
        assert outcomes(bench.apply()) == {"unchanged"} and bench.leftovers() == []
        for host in bench.roles:
            assert bench.hosts[host].ssh("ls /var/lib/slipway/converge/pending; dpkg --audit").stdout == ""


@test
def machine_lost_during_apply_is_reported_and_recovered(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu"}) as bench:
        began = time.monotonic()
        triggered, status = apply_with_trigger(bench, [], "gpu1/base: ~ kubernetes/microk8s", lambda _: bench.hosts["gpu1"].stop())
        report = json.loads(bench.run("status", "-o", "json"))
        steps = {s["step"]: s for s in report["steps"]}
        assert triggered and status == 1 and "gpu1 cannot be reached" in steps["gpu1/base"]["reason"], steps
        assert steps["cp1/base"]["outcome"] == "changed" and steps["gpu1/join"]["outcome"] == "skipped" and time.monotonic() - began < 60, steps
        bench.hosts["gpu1"].start()
        bench.hosts["gpu1"].wait()
        bench.apply()
        assert_converged(bench)
