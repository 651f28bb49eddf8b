#!/usr/bin/env python3
"""`slipway cluster` on test hosts: real Debian, systemd, sshd, sudo and apt; only the snap store's programs are stand-ins.

    testkit/cluster/run.py target/release/slipway [NAME ...]

KEEP=1 waits before the hosts go, when a test failed.
"""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "hosts"))
from hosts import Hosts

TESTS = {}
FIVE = {"cp1": "control-plane", "cp2": "control-plane", "cp3": "control-plane", "gpu1": "worker, gpu", "gpu2": "worker, gpu"}
PASSWORD = "correct-horse-battery-staple"


def test(function):
    TESTS[function.__name__] = function
    return function


class Bench:
    """Hosts, a file that wants them to be a cluster, and slipway with a home of its own."""

    def __init__(self, binary, roles, more=""):
        self.binary, self.roles, self.more = os.path.abspath(binary), roles, more
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        self.folder = pathlib.Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="slipway-cluster-")))
        self.hosts = self.stack.enter_context(Hosts(list(self.roles)))
        self.file = self.folder / "cluster.yaml"
        self.write()
        return self

    def __exit__(self, *error):
        if error[0] and os.environ.get("KEEP"):
            input("the hosts are kept; Enter ends them ")
        self.stack.__exit__(*error)

    def write(self, user="root", channel="1.32/stable", addons="dns, rbac, metrics-server", more=None):
        machines = "".join(f"    - {{name: {n}, address: {self.hosts[n].address}, roles: [{r}]}}\n" for n, r in self.roles.items())
        self.file.write_text(f"""apiVersion: slipway.dev/v1
kind: Cluster
metadata: {{name: lab}}
spec:
  ssh:
    user: {user}
    identityFile: {self.hosts.key}
    knownHosts: {self.folder}/known_hosts
    acceptNewHostKeys: true
{self.more if more is None else more}
  machines:
{machines}
  system: {{packages: [jq], sysctl: {{net.ipv4.tcp_keepalive_time: "600"}}}}
  kubernetes: {{distribution: microk8s, channel: {channel}, addons: [{addons}], extraSans: [lab.example.org]}}
  gpu: {{driver: none}}
""")

    def command(self, *words, **environment):
        return [self.binary, "--home", self.folder / "home", "cluster", *words], {**os.environ, "HOME": str(self.folder), "SLIPWAY_CLUSTER_FILE": str(self.file),
                                                                                   "TMPDIR": str(self.folder), **environment}

    def run(self, *words, status=0, **environment):
        """stdout; the exit status is checked."""
        command, environment = self.command(*words, **environment)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == status, f"{words}: {done.returncode}, not {status}\n{done.stdout}\n{done.stderr}"
        self.said = done.stderr
        return done.stdout

    def apply(self, *words, status=0, **environment):
        """Steps by id."""
        text = self.run("apply", "--yes", "-o", "json", *words, status=status, **environment)
        return {s["step"]: s for s in json.loads(text)["steps"]} if text.strip() else {}

    def plan(self, *words, status):
        return {m["name"]: m for m in json.loads(self.run("plan", "-o", "json", *words, status=status))["machines"]}

    def members(self):
        state = json.loads((self.hosts.shared / "cluster.json").read_text())
        return {n: "worker" if m["worker"] else "control-plane" for n, m in state["members"].items() if m["cluster"] == "cp1"}

    def faults(self, **faults):
        (self.hosts.shared / "faults.json").write_text(json.dumps(faults))

    def commands(self):
        """What changed the stand-ins, on all hosts."""
        return [f"{n}: {line}" for n in self.roles for line in self.hosts[n].ssh("cat /var/lib/standin/log 2>/dev/null", check=False).stdout.splitlines()]


def converged(bench):
    assert bench.members() == {n: "control-plane" if "control" in r else "worker" for n, r in bench.roles.items()}, bench.members()
    assert all(not m["changes"] for m in bench.plan(status=0).values())


@test
def five_bare_machines_become_a_cluster_and_stay_as_they_are(binary):
    with Bench(binary, FIVE) as bench:
        plan = bench.plan(status=3)
        assert [c["resource"] for c in plan["cp1"]["changes"]][-3:] == ["addons/dns", "addons/rbac", "addons/metrics-server"], plan["cp1"]
        assert plan["gpu1"]["changes"][-1]["resource"] == "join" and not bench.commands(), "a plan changes nothing"
        began = time.monotonic()
        steps = bench.apply()
        print(f"     five machines: a cluster after {time.monotonic() - began:.1f} s")
        assert {s["outcome"] for s in steps.values()} == {"changed"}, steps
        assert list(steps).index("cp2/join") < list(steps).index("cp3/join") < list(steps).index("gpu1/join")
        converged(bench)
        assert "10.77.0.12 cp2" in bench.hosts["gpu1"].read("/etc/hosts")
        assert "enable_cdi = true" in bench.hosts["gpu1"].ssh("cat /var/snap/microk8s/current/args/containerd-template.toml").stdout
        assert "lab.example.org" in bench.hosts["cp1"].ssh("cat /var/snap/microk8s/common/.microk8s.yaml").stdout

        commands, files = bench.commands(), lambda: bench.hosts["gpu1"].ssh("find /etc /var/snap -newer /tmp/mark -type f").stdout
        bench.hosts["gpu1"].ssh("touch /tmp/mark")
        began = time.monotonic()
        steps = bench.apply()
        print(f"     once more: {time.monotonic() - began:.1f} s, nothing to do")
        assert {s["outcome"] for s in steps.values()} == {"unchanged"}, steps
        assert bench.commands() == commands and not files(), files()
        began = time.monotonic()
        bench.plan(status=0)
        print(f"     a plan of five: {time.monotonic() - began:.2f} s")

        # What somebody changed by hand is seen, shown, and put right; nothing else is touched.
        bench.hosts["cp2"].ssh("sed -i s/600/7200/ /etc/sysctl.d/90-slipway.conf && snap refresh --unhold microk8s")
        bench.hosts["gpu2"].ssh("apt-get remove -y -qq jq")
        drift = bench.run("status", "--drift", status=3)
        assert "-net.ipv4.tcp_keepalive_time = 7200" in drift and "refreshes held" in drift and "+ host-tools/package-jq" in drift, drift
        assert drift.count("as wanted") == 3, drift
        steps = bench.apply()
        assert {k: s["outcome"] for k, s in steps.items() if s["outcome"] != "unchanged"} == {"cp2/base": "changed", "gpu2/base": "changed"}, steps
        converged(bench)

        # An upgrade, taken back.
        bench.write(channel="1.33/stable")
        plan = bench.plan(status=3)
        assert plan["cp1"]["changes"][0]["changes"][0]["text"] == "snap microk8s 1.32/stable -> 1.33/stable", plan["cp1"]
        bench.apply("--hosts", "gpu1")
        assert "1.33/stable" in bench.hosts["gpu1"].ssh("snap list").stdout and "1.32/stable" in bench.hosts["cp1"].ssh("snap list").stdout
        bench.run("rollback", "--yes", "--hosts", "gpu1")
        assert "1.32/stable" in bench.hosts["gpu1"].ssh("snap list").stdout
        bench.write()
        converged(bench)

        inventory = json.loads(bench.run("inventory", "--list"))
        assert inventory["gpu"]["hosts"] == ["gpu1", "gpu2"] and inventory["_meta"]["hostvars"]["cp1"]["ansible_host"] == "10.77.0.11"
        assert bench.run("ssh", "gpu2", "--", "hostname") == "gpu2\n"
        assert "cp1/cluster ended" in bench.run("logs", "cp1")


@test
def killed_at_any_moment_it_goes_on(binary):
    with Bench(binary, {"cp1": "control-plane", "cp2": "control-plane", "gpu1": "worker, gpu"}) as bench:
        kills = 0
        for _ in range(30):
            command, environment = bench.command("apply", "--yes", "-o", "json")
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=random.uniform(0.3, 4))
                break
            # The controller, or the engine on one of the machines.
            if kills % 3 == 2:
                bench.hosts[random.choice(list(bench.roles))].ssh("pkill -9 -f 'node converge'", check=False)
                process.communicate(timeout=200)
                kills += 1
                if process.returncode == 0:
                    break
            else:
                process.kill()
                process.communicate()
                kills += 1
        else:
            bench.apply()
        print(f"     killed {kills} times")
        assert kills > 2
        bench.apply()
        converged(bench)
        assert bench.hosts["cp1"].ssh("ls /var/lib/slipway/converge/pending").stdout == ""
        assert not bench.hosts["gpu1"].ssh("find / -xdev -name '.*.slipway' 2>/dev/null", check=False).stdout
        for host in bench.roles:
            assert bench.hosts[host].ssh("dpkg --audit; dpkg -s jq | grep Status").stdout == "Status: install ok installed\n"


@test
def what_goes_wrong_is_told_and_mended_by_the_next_apply(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu", "gpu2": "worker, gpu"}) as bench:
        # A machine that is not there: the others are done, those that need it are not.
        bench.hosts["gpu2"].stop()
        steps = bench.apply(status=1)
        assert steps["gpu2/base"]["outcome"] == "failed" and "cannot be reached" in steps["gpu2/base"]["reason"], steps
        assert steps["gpu2/join"]["outcome"] == "skipped" and steps["gpu1/join"]["outcome"] == "changed", steps
        assert bench.plan(status=5)["gpu2"]["unreachable"]["code"] == "cluster.unreachable"
        bench.hosts["gpu2"].start()
        bench.hosts["gpu2"].wait()
        # Its token runs out before it is used: another is asked for.
        bench.faults(expire=1)
        steps = bench.apply()
        assert steps["gpu2/join"]["outcome"] == "changed" and steps["gpu1/base"]["outcome"] == "unchanged", steps
        converged(bench)
        log = bench.run("logs", "gpu2")
        assert "Invalid token" in log and "attempt 1 of 3" in log
        tokens = [t for c in json.loads((bench.hosts.shared / "cluster.json").read_text())["clusters"].values() for t in c["tokens"]]
        everything = subprocess.run(["grep", "-rlE", "|".join(tokens), bench.folder / "home"], capture_output=True, text=True).stdout
        assert len(tokens) >= 3 and not everything, everything

        # A channel that does not exist, an add-on that does not exist.
        bench.write(channel="9.99/stable")
        steps = bench.apply("--hosts", "gpu1", status=1)
        assert "available to install on the following channels" in bench.said, bench.said
        bench.write(addons="dns, rbac, metrics-server, nonsense")
        bench.apply(status=1)
        assert "nonsense was not found" in bench.said
        bench.write()

        # Somebody has apt's lock for a while.
        bench.hosts["gpu1"].ssh("apt-get remove -y -qq jq; systemd-run -q --unit=holder python3 -c 'import fcntl,time; f=open(\"/var/lib/dpkg/lock-frontend\",\"w\"); "
                                "fcntl.lockf(f,fcntl.LOCK_EX); time.sleep(6)'; sleep 1")
        began = time.monotonic()
        assert bench.apply("--hosts", "gpu1")["gpu1/base"]["outcome"] == "changed"
        assert time.monotonic() - began > 3, "it waited"

        # No room for a file: it stays as it was, and the machine is right once there is room.
        bench.hosts["gpu1"].ssh("mkdir -p /small && mount -t tmpfs -o size=64k none /small && cp /etc/apt/apt.conf.d/* /small && echo hand >>/small/99-slipway "
                                "&& mount --bind /small /etc/apt/apt.conf.d; dd if=/dev/zero of=/small/fill bs=1k 2>/dev/null", check=False)
        bench.apply("--hosts", "gpu1", status=1)
        assert "No space left" in bench.said and "system/held-updates" in bench.said, bench.said
        assert bench.hosts["gpu1"].ssh("tail -1 /etc/apt/apt.conf.d/99-slipway; ls -A /small | grep slipway").stdout == "hand\n99-slipway\n"
        bench.hosts["gpu1"].ssh("umount /etc/apt/apt.conf.d && umount /small")
        bench.apply("--hosts", "gpu1")
        converged(bench)

        # A machine with another key than before is somebody else's.
        bench.hosts["gpu1"].ssh("rm /etc/ssh/ssh_host_*; ssh-keygen -A; systemctl restart ssh")
        assert bench.plan(status=5)["gpu1"]["unreachable"]["code"] == "cluster.host_key"


@test
def root_by_sudo_with_a_password_that_nobody_sees(binary):
    with Bench(binary, {"cp1": "control-plane"}, more="    sudoPassword: {env: SUDO_PASSWORD}") as bench:
        bench.write(user="ops")
        host = bench.hosts["cp1"]
        host.ssh(f"echo ops:{PASSWORD} | chpasswd && usermod -aG sudo ops")
        bench.apply(status=1, SUDO_PASSWORD="wrong")
        assert "sudo refuses" in bench.said and "cluster.failed" in bench.said, bench.said
        bench.run("plan", status=1)
        assert "cluster.secret" in bench.said and "SUDO_PASSWORD" in bench.said
        bench.apply(SUDO_PASSWORD=PASSWORD)
        assert {s["outcome"] for s in bench.apply(SUDO_PASSWORD=PASSWORD).values()} == {"unchanged"}
        seen = subprocess.run(["grep", "-rlF", PASSWORD, bench.folder, host.folder / "upper"], capture_output=True, text=True).stdout
        assert not seen, seen
        # Without a password where sudo asks for none, and refused where it asks.
        bench.write(user="ops", more="")
        bench.apply(status=1)
        assert "password is required" in bench.said, bench.said
        host.ssh("echo 'ops ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ops")
        assert {s["outcome"] for s in bench.apply().values()} == {"unchanged"}


@test
def one_at_a_time(binary):
    with Bench(binary, {"cp1": "control-plane"}) as bench:
        command, environment = bench.command("apply", "--yes")
        first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.3)
        bench.run("apply", "--yes", status=1)
        assert "cluster.locked" in bench.said and f"process {first.pid}" in bench.said, bench.said
        assert first.wait(200) == 0
        # Another controller knows nothing of this one's lock; the machine does.
        host = bench.hosts["cp1"]
        host.ssh("systemd-run -q --unit=other flock /var/lib/slipway/converge/lock sleep 4; sleep 0.5")
        host.ssh("rm /etc/sysctl.d/90-slipway.conf")
        began = time.monotonic()
        bench.apply()
        assert time.monotonic() - began > 2, "it waited"
        converged(bench)


def main():
    binary, names = sys.argv[1], sys.argv[2:] or list(TESTS)
    failed = []
    for name in names:
        began = time.monotonic()
        try:
            TESTS[name](binary)
            print(f"ok   {name} ({time.monotonic() - began:.1f} s)", flush=True)
        except Exception:
            failed.append(name)
            print(f"FAIL {name} ({time.monotonic() - began:.1f} s)", flush=True)
            traceback.print_exc()
    print(f"cluster: {len(names) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
