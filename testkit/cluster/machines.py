"""Machines that are there: made a cluster, killed, broken, upgraded, given up."""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import time

from bench import FIVE, PASSWORD, Bench, converged, outcomes, test

OFFICE = """  storage: {classes: [{name: office, share: {smb: {source: //files.example.org/data, user: ops, password: {env: SUDO_PASSWORD}}}}]}"""
STORAGE = """  storage: {classes: [{name: shared, default: true, share: {nfs: {server: files.example.org, path: /export}}}]}"""


@test
def five_bare_machines_become_a_cluster_and_stay_as_they_are(binary):
    with Bench(binary, FIVE, spec=STORAGE) as bench:
        # One of them has never fetched apt's lists, nor anything from the mirror.
        bench.hosts["cp3"].ssh("rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb")
        plan = bench.plan(status=3)
        assert [c["resource"] for c in plan["cp1"]["changes"]][-3:] == ["storage/class-shared", "device-plugin/nvidia-device-plugin-values", "device-plugin/nvidia-device-plugin"], plan["cp1"]
        assert plan["gpu1"]["changes"][-1]["resource"] == "join" and not bench.commands(), "a plan changes nothing"
        began = time.monotonic()
        steps = bench.apply()
        print(f"     five machines: a cluster after {time.monotonic() - began:.1f} s")
        assert outcomes(steps) == {"changed"} and outcomes(steps, tries=True) == {"passed"}, steps
        assert steps["gpu2/smoke-gpu"]["saw"] == "gpu2: GPU 0: NVIDIA H100 80GB HBM3" and steps["cp1/smoke-storage-shared"]["saw"] == "written on cp1, read on gpu2"
        assert bench.leftovers() == [], bench.leftovers()
        page = bench.run("status", "-o", "html")
        if os.environ.get("REPORT"):
            pathlib.Path(os.environ["REPORT"]).with_suffix(".html").write_text(page)
            shutil.copy(bench.folder / "home/clusters/lab/report.json", os.environ["REPORT"])
        assert "Smoke tests" in page and page.count("<rect") == len(steps)
        assert list(steps).index("cp2/join") < list(steps).index("cp3/join") < list(steps).index("gpu1/join")
        converged(bench)
        assert f"{bench.hosts['cp2'].address} cp2" in bench.hosts["gpu1"].read("/etc/hosts")
        assert "enable_cdi = true" in bench.hosts["gpu1"].ssh("cat /var/snap/microk8s/current/args/containerd-template.toml").stdout
        assert "lab.example.org" in bench.hosts["cp1"].ssh("cat /var/snap/microk8s/common/.microk8s.yaml").stdout

        commands, files = bench.commands(), lambda: bench.hosts["gpu1"].ssh("find /etc /var/snap -newer /tmp/mark -type f").stdout
        bench.hosts["gpu1"].ssh("touch /tmp/mark")
        began = time.monotonic()
        steps = bench.apply()
        print(f"     once more: {time.monotonic() - began:.1f} s, nothing to do")
        assert outcomes(steps) == {"unchanged"} and outcomes(steps, tries=True) == {"passed"}, steps
        assert bench.said.splitlines()[-1].startswith("0 changes in"), bench.said
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
        kept = bench.folder / "plan.json"
        assert bench.run("plan", "-o", kept, status=3) == "" and [m["name"] for m in json.loads(kept.read_text())["machines"] if m["changes"]] == ["cp2", "gpu2"]
        steps = bench.apply()
        assert {k: s["outcome"] for k, s in steps.items() if s["outcome"] not in ("unchanged", "passed")} == {"cp2/base": "changed", "gpu2/base": "changed"}, steps
        converged(bench)

        # What takes no drain goes back and forth on one machine.
        bench.hosts["gpu1"].ssh("rm /etc/sysctl.d/90-slipway.conf")
        bench.apply("--hosts", "gpu1", "--only", "system")
        bench.run("rollback", "--yes", "--hosts", "gpu1")
        assert "90-slipway" not in bench.hosts["gpu1"].ssh("ls /etc/sysctl.d").stdout
        bench.apply("--from", "gpu1/base")
        converged(bench)

        idle = json.loads(bench.run("cost", "-o", "json"))["idleGpus"]
        assert sorted(idle) == ["gpu1", "gpu2"] and all("H100" in gpu for gpu in idle["gpu1"]) and len(idle["gpu1"]) < 8, idle

        inventory = json.loads(bench.run("inventory", "--list"))
        assert inventory["gpu"]["hosts"] == ["gpu1", "gpu2"] and inventory["_meta"]["hostvars"]["cp1"]["ansible_host"] == bench.hosts["cp1"].address
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
                process.communicate(timeout=random.uniform(0.3, 1.2 + kills / 8))  # Three of these are less than it takes.
                break
            # The engine on one of the machines, where one is at work, or the controller.
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
        bench.write(channel="1.32/nightly")
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

        # A machine with another key than before is somebody else's. A connection to the one before would have ended with it.
        bench.hosts["gpu1"].ssh("rm /etc/ssh/ssh_host_*; ssh-keygen -A; systemctl restart ssh; pkill -f '^sshd: .*@'", check=False)
        assert bench.plan(status=5)["gpu1"]["unreachable"]["code"] == "cluster.host_key"


@test
def root_by_sudo_with_a_password_that_nobody_sees(binary):
    with Bench(binary, {"cp1": "control-plane"}, more="    sudoPassword: {env: SUDO_PASSWORD}", spec=OFFICE) as bench:
        bench.write(user="ops")
        host = bench.hosts["cp1"]
        host.ssh(f"echo ops:{PASSWORD} | chpasswd && usermod -aG sudo ops")
        bench.apply(status=1, SUDO_PASSWORD="wrong")
        assert "sudo refuses" in bench.said and "cluster.failed" in bench.said, bench.said
        bench.run("plan", status=1)
        assert "cluster.secret" in bench.said and "SUDO_PASSWORD" in bench.said
        bench.apply(SUDO_PASSWORD=PASSWORD)
        assert outcomes(bench.apply(SUDO_PASSWORD=PASSWORD)) == {"unchanged"}
        seen = subprocess.run(["grep", "-rlF", PASSWORD, bench.folder, host.folder / "upper"], capture_output=True, text=True).stdout
        # The document of the storage class holds its own; nobody but root reads it.
        document = host.root / "var/lib/slipway/wanted/class-office.json"
        assert seen.split() == [str(host.folder / "upper/var/lib/slipway/wanted/class-office.json")] and document.stat().st_mode & 0o777 == 0o600, seen
        # Without a password where sudo asks for none, and refused where it asks.
        bench.spec = ""
        bench.write(user="ops", more="")
        bench.apply(status=1)
        assert "password is required" in bench.said, bench.said
        host.ssh("echo 'ops ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ops")
        assert outcomes(bench.apply()) == {"unchanged"}


OWN = """  system:
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
def what_people_want_of_their_machines_themselves(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu"}) as bench:
        host, key = bench.hosts["gpu1"], pathlib.Path(f"{bench.hosts.key}.pub").read_text().strip()
        host.write("/etc/agent.yaml", "# the agent\nserver:\n  port: 80 # changed by many\n")
        system = re.compile("^  system: .*\n", re.M)
        ring = host.root / "etc/apt/trusted.gpg.d/debian-archive-bookworm-automatic.asc"
        bench.file.write_text(system.sub(lambda _: OWN % (ring, key), bench.file.read_text()))
        secret = {"REGISTRY_TOKEN": PASSWORD}
        bench.apply("--only", "system,host-tools", **secret)
        assert outcomes(bench.apply("--only", "system,host-tools", **secret)) == {"unchanged"}
        assert host.read("/etc/motd") == "gpu1 of lab\n" and host.read("/etc/registry-token") == PASSWORD + "\n"
        assert host.read("/etc/agent.yaml") == "# the agent\nserver:\n  port: 8080 # changed by many\n  tags: [\"a\",\"b\"]\n" == host.read("/etc/agent.seen")
        assert host.read("/etc/agent.toml") == '[plugins."a.b"]\non = true\n' and "\nUMASK 027\n" in host.read("/etc/login.defs")
        assert "microk8s" in host.ssh("id -Gn ada").stdout and host.ssh("findmnt -no SOURCE,FSTYPE,SIZE /srv/model-data").stdout.split() == ["scratch", "tmpfs", "1M"]
        assert "bookworm-updates" in host.ssh("apt-cache policy").stdout and not bench.hosts["cp1"].ssh("findmnt /srv/model-data", check=False).stdout
        # She logs in with her key.
        login = subprocess.run(["ssh", "-F", "none", "-i", bench.hosts.key, "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", f"ada@{host.address}", "id -un"],
                               capture_output=True, text=True)
        assert login.stdout == "ada\n", login
        # A file system of another size is mounted anew; a value changed by hand is seen, and what stands around it stays.
        bench.file.write_text(bench.file.read_text().replace("size=1m", "size=2m"))
        host.ssh("sed -i 's/8080 #/9090 # mine,/' /etc/agent.yaml")
        changes = {c["resource"]: c for c in bench.plan("--only", "system,host-tools", status=3, **secret)["gpu1"]["changes"]}
        assert set(changes) == {"system/mount.srv.model-data-unit", "system/file.etc.agent.yaml"} and "+  port: 8080 # mine, changed" in str(changes), changes
        bench.apply("--only", "system,host-tools", **secret)
        assert host.ssh("findmnt -no SIZE /srv/model-data").stdout.strip() == "2M"
        seen = subprocess.run(["grep", "-rlF", PASSWORD, bench.folder, host.folder / "upper"], capture_output=True, text=True).stdout
        assert seen.split() == [str(host.folder / "upper/etc/registry-token")], seen
        # Root writes nowhere through a link of hers.
        host.ssh("install -m 600 /dev/null /root/only && ln -sf /root/only /home/ada/.ssh/authorized_keys")
        bench.apply("--only", "system,host-tools", status=1, **secret)
        assert "Permission denied" in bench.said and host.read("/root/only") == "" and host.ssh("stat -c %U /root/only").stdout == "root\n", bench.said
        host.ssh("rm /home/ada/.ssh/authorized_keys")
        bench.apply("--only", "system,host-tools", **secret)
        assert host.ssh("stat -c '%U %a' /home/ada/.ssh/authorized_keys").stdout == "ada 600\n"
        # All of it is taken back, change by change, and the hand's with what stands around it.
        for port in ("8080", "8080", "9090", "80"):
            bench.run("rollback", "--yes", "--hosts", "gpu1", **secret)
            assert f"port: {port} #" in host.read("/etc/agent.yaml")
        assert not host.ssh("getent passwd ada; findmnt /srv/model-data; ls /etc/agent.toml /etc/apt/sources.list.d/updates.sources", check=False).stdout


@test
def one_at_a_time(binary):
    with Bench(binary, {"cp1": "control-plane"}) as bench:
        command, environment = bench.command("apply", "--yes")
        first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lock = bench.folder / "home/clusters/lab/lock"
        until = time.monotonic() + 20
        while not (lock.exists() and str(first.pid) in lock.read_text()) and time.monotonic() < until:
            time.sleep(0.01)
        bench.run("apply", "--yes", status=1)
        assert "cluster.locked" in bench.said and f"process {first.pid}" in bench.said, bench.said
        assert first.wait(200) == 0
        # Another controller knows nothing of this one's lock; the machine does.
        host = bench.hosts["cp1"]
        host.ssh("systemd-run -q --unit=other flock /var/lib/slipway/converge/lock sleep 8; sleep 0.5")
        host.ssh("rm /etc/sysctl.d/90-slipway.conf")
        began = time.monotonic()
        bench.apply()
        assert time.monotonic() - began > 2, "it waited"
        converged(bench)


def versions(bench):
    return {n: bench.hosts[n].ssh("snap list microk8s | tail -1").stdout.split()[3] for n in bench.roles}


@test
def an_upgrade_goes_node_by_node_and_one_minor_version_at_a_time(binary):
    with Bench(binary, {"cp1": "control-plane", "cp2": "control-plane", "gpu1": "worker, gpu"}) as bench:
        bench.apply()
        # An apply does not do it, whatever the file says.
        bench.write(channel="1.33/stable")
        assert bench.plan(status=3)["cp1"]["changes"][0]["changes"][0]["text"] == "snap microk8s 1.32/stable -> 1.33/stable"
        steps = bench.apply(status=1)
        assert "slipway cluster upgrade" in subprocess.run([binary, "explain", "cluster.upgrade"], capture_output=True, text=True).stdout and "which is an upgrade" in steps["cp1/base"]["reason"], steps
        assert set(versions(bench).values()) == {"1.32/stable"}
        bench.write()
        # Two at once, and back: refused before anything is done.
        bench.run("upgrade", "--yes", "--to", "1.34/stable", status=1)
        assert "one minor version at a time" in bench.said, bench.said
        bench.run("upgrade", "--yes", "--to", "1.31/stable", status=1)
        assert "cannot go back" in bench.said and "channel: 1.32/stable" in bench.file.read_text()
        # A budget that allows no drain: the node is left as it was, and so are those after it.
        bench.faults(budget="cp2")
        steps = bench.verb("upgrade", "--to", "1.33/stable", status=1)
        assert steps["cp1/upgrade"]["outcome"] == "changed" and "disruption budget" in steps["cp2/upgrade"]["reason"] and steps["gpu1/upgrade"]["outcome"] == "skipped", steps
        assert versions(bench) == {"cp1": "1.33/stable", "cp2": "1.32/stable", "gpu1": "1.32/stable"} and not bench.closed()
        assert "channel: 1.33/stable" in bench.file.read_text()
        bench.faults()
        # Killed while it is at it: the next goes on, and every node takes pods again.
        command, environment = bench.command("upgrade", "--yes")
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not bench.closed() and time.monotonic() < until:
            time.sleep(0.05)
        process.kill()
        process.wait()
        assert bench.closed() == ["cp2"], "it was killed while a node was drained"
        assert "drained from here" in bench.run("doctor", status=None)
        steps = bench.verb("upgrade")
        assert steps["cp1/upgrade"]["outcome"] == "unchanged" and steps["gpu1/upgrade"]["outcome"] == "changed", steps
        assert set(versions(bench).values()) == {"1.33/stable"} and not bench.closed()
        order = [line for line in bench.commands() if "kubectl drain" in line]
        assert [line.split(" drain ")[1].split()[0] for line in sorted(order)] and len(order) >= 3
        converged(bench)


@test
def it_is_stopped_started_and_given_up(binary):
    with Bench(binary, {"cp1": "control-plane", "cp2": "control-plane", "gpu1": "worker, gpu"}) as bench:
        before = {n: bench.hosts[n].ssh("find /etc -type f | sort | xargs md5sum; dpkg -l | tail -n +6").stdout for n in bench.roles}
        bench.apply()
        config = bench.run("kubeconfig", "--server", "lab.example.org")
        assert "server: https://lab.example.org:16443" in config and "current-context: lab" in config, config
        for option, file in (("--save", "kube/config"), ("-o", "kube/config.yaml")):
            bench.run("kubeconfig", option, bench.folder / file)
            assert (bench.folder / file).stat().st_mode & 0o777 == 0o600
        steps = bench.verb("stop")
        assert list(steps) == ["gpu1/stop", "cp2/stop", "cp1/stop"] and outcomes(steps) == {"changed"}, steps
        assert outcomes(bench.verb("stop")) == {"unchanged"}
        steps = bench.verb("start")
        assert {steps[f"{n}/start"]["outcome"] for n in bench.roles} == {"changed"} and not bench.closed(), steps
        assert {s["outcome"] for i, s in bench.verb("start").items() if i.endswith("/start")} == {"unchanged"}
        # One leaves.
        bench.run("destroy", "--yes", "--hosts", "gpu1", status=1)
        assert "nothing was changed" in bench.said and "gpu1" in bench.members()
        steps = bench.verb("destroy", "--hosts", "gpu1", "--name", "lab")
        assert list(steps) == ["gpu1/leave", "gpu1/erase"] and "gpu1" not in bench.members(), steps
        assert not bench.hosts["gpu1"].ssh("command -v microk8s; ls -d /var/lib/slipway/converge", check=False).stdout
        bench.apply()
        converged(bench)
        # All of it: the machines are as they were.
        steps = bench.verb("destroy", "--name", "lab")
        assert outcomes(steps) == {"changed"}, steps
        for name, text in before.items():
            now = bench.hosts[name].ssh("find /etc -type f | sort | xargs md5sum; dpkg -l | tail -n +6").stdout
            # What a package brought with it stays; `apt autoremove` knows it.
            new = {line for line in now.splitlines() if line not in text.splitlines()}
            assert not [line for line in new if "slipway" in line or " jq " in line or "/etc/hosts" in line], new


@test
def known_troubles_are_found(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu"}) as bench:
        bench.apply()
        bench.run("doctor")
        bench.hosts["gpu1"].ssh("mkdir -p /var/lib/kubelet/pods && hostname other && sed -i '1i [x]\\ndefault_runtime_name = \"nvidia\"' /var/snap/microk8s/current/args/containerd-template.toml")
        stuck = {"metadata": {"namespace": "kube-system", "name": "calico-node-x", "creationTimestamp": "2026-01-01T00:00:00Z"},
                 "status": {"phase": "Pending", "initContainerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}}
        bench.faults(pods=[stuck])
        found = json.loads(bench.run("doctor", "-o", "json", status=3))
        words = " | ".join(f"{f['machine']}: {f['what']}" for f in found if f["severity"] == "error")
        for expected in ("gpu1: its own name is other", "gpu1: /var/lib/kubelet is a folder", "gpu1: containerd's template names NVIDIA's runtime", "lab: pod kube-system/calico-node-x waits: Init: PodInitializing"):
            assert expected in words, (expected, words)
        bench.hosts["gpu1"].stop()
        found = bench.run("doctor", status=3)
        assert "cannot be reached" in found, found


@test
def a_machine_goes_on_after_a_new_start(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu"}) as bench:
        host = bench.hosts["gpu1"]
        wanted = {"resources": [
            {"id": "system/first", "layer": "system", "what": {"file": {"path": "/etc/first", "content": {"text": "1\n"}, "mode": "0644"}}, "timeout": 60},
            {"id": "system/anew", "layer": "system", "what": {"reboot": {"when": "[ ! -e /run/standin-is-new ] && [ ! -e /etc/anew ]", "reason": "a test"}}, "timeout": 60},
            {"id": "system/last", "layer": "system", "what": {"file": {"path": "/etc/last", "content": {"text": "2\n"}, "mode": "0644"}}, "timeout": 60}]}
        # By the machine alone: who asked for it is gone before it is back.
        bench.apply("--hosts", "gpu1", "--only", "host-tools")
        host.write("/root/wanted.json", json.dumps(wanted))
        program = host.ssh("ls /var/lib/slipway/bin/slipway-*").stdout.strip()
        boot = host.ssh("cat /proc/sys/kernel/random/boot_id").stdout
        said = host.ssh(f"{program} node converge /root/wanted.json").stdout
        assert "must start anew" in said and host.read("/etc/first") == "1\n", said
        host.write("/etc/anew", "")
        host.ssh("systemctl reboot", check=False)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            done = host.ssh("cat /etc/last; cat /proc/sys/kernel/random/boot_id", check=False).stdout
            if done.startswith("2\n") and boot.strip() not in done:
                break
            time.sleep(0.3)
        else:
            raise AssertionError("it did not go on: " + host.ssh("systemctl status slipway-converge", check=False).stdout)
        until = time.monotonic() + 20
        while "slipway-converge" in host.ssh("ls /etc/systemd/system").stdout and time.monotonic() < until:
            time.sleep(0.3)
        assert "slipway-converge" not in host.ssh("ls /etc/systemd/system; ls /etc/systemd/system/multi-user.target.wants").stdout
        assert not host.ssh("ls /var/lib/slipway/converge/continue.json", check=False).stdout


@test
def a_driver_takes_a_new_start_and_a_machine_that_does_not_return_is_told_of(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu", "gpu2": "worker, gpu"}) as bench:
        bench.write(driver="570", restart=12)
        for name in ("gpu1", "gpu2"):
            bench.hosts[name].offer_driver("570", "570.86.15")
        plan = {c["resource"]: c for c in bench.plan("--hosts", "gpu1", status=3)["gpu1"]["changes"]}
        assert "a new start" in plan["gpu/driver"]["effects"][0], plan
        boot = bench.hosts["gpu1"].ssh("cat /proc/sys/kernel/random/boot_id").stdout
        bench.hosts["gpu2"].returns = False
        began = time.monotonic()
        steps = bench.apply(status=1)
        assert "did not come back within 12 s" in steps["gpu2/base"]["reason"] and time.monotonic() - began < 90, steps
        assert steps["gpu2/join"]["outcome"] == "skipped" and steps["gpu1/join"]["outcome"] == "changed", steps
        assert bench.hosts["gpu1"].ssh("cat /proc/sys/kernel/random/boot_id").stdout != boot
        assert bench.hosts["gpu1"].ssh("cat /sys/module/nvidia/version; apt-mark showhold").stdout == "570.86.15\nmicrok8s\n".replace("microk8s", "nvidia-driver-570-server")
        # Somebody presses its button: it has gone on by itself, and the next apply finishes.
        bench.hosts["gpu2"].returns = True
        bench.hosts["gpu2"].start()
        bench.hosts["gpu2"].wait()
        bench.apply()
        converged(bench)


def watched(bench, words, mark, then=lambda process: None):
    """Runs an apply, and does something as soon as it says this. Whether it said it, and its exit status."""
    command, environment = bench.command("apply", "--yes", "-o", "json", *words)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = False
    for line in process.stderr:
        if line.startswith(mark) and not said:
            said = True
            then(process)
    return said, process.wait()


@test
def killed_at_each_step_on_either_side_it_goes_on(binary):
    with Bench(binary, {"cp1": "control-plane", "cp2": "control-plane", "gpu1": "worker, gpu"}) as bench:
        killed = []
        # The engine, at each change that it makes of a machine. Who joins is the controller's, and the stand-in is ready at once.
        changes = [c["resource"] for c in bench.plan(status=3)["gpu1"]["changes"] if c["resource"] not in ("join", "kubernetes/ready")]
        assert len(changes) >= 8, changes
        for resource in changes:
            bench.hosts["gpu1"].kill_at(f'"event":"changing","resource":"{resource}"')
            said, status = watched(bench, ["--hosts", "gpu1", "--only", "system,host-tools,kubernetes,gpu"], f"gpu1/base: ~ {resource}:")
            killed += [resource] * (said and status != 0)
        bench.hosts["gpu1"].kill_at("")
        # The controller, when each step begins, and again while it is at it. Machines first only at once: what begins after them is still to come.
        machines, rest = ("cp1/base", "cp2/base"), ("cp2/join", "gpu1/join", "cp1/cluster", "cp1/smoke-dns")
        for step, pause in [(m, 0) for m in machines] + [(s, pause) for s in rest for pause in (0, 0.4)] + [(m, 0.4) for m in machines]:
            said, _ = watched(bench, [], f"{step}: begins", lambda process: (time.sleep(pause), process.kill()))
            killed += [step] * said
        print(f"     killed {len(killed)} times: {', '.join(dict.fromkeys(killed))}")
        assert {*changes, *machines, *rest} <= set(killed), (changes, killed)
        bench.apply()
        converged(bench)
        assert outcomes(bench.apply()) == {"unchanged"} and bench.leftovers() == []
        for host in bench.roles:
            assert bench.hosts[host].ssh("ls /var/lib/slipway/converge/pending; dpkg --audit").stdout == ""


@test
def a_machine_that_goes_away_in_the_middle_is_told_of_and_found_again(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu"}) as bench:
        began = time.monotonic()
        said, status = watched(bench, [], "gpu1/base: ~ kubernetes/microk8s", lambda _: bench.hosts["gpu1"].stop())
        report = json.loads(bench.run("status", "-o", "json"))
        steps = {s["step"]: s for s in report["steps"]}
        assert said and status == 1 and "gpu1 cannot be reached" in steps["gpu1/base"]["reason"], steps
        assert steps["cp1/base"]["outcome"] == "changed" and steps["gpu1/join"]["outcome"] == "skipped" and time.monotonic() - began < 60, steps
        bench.hosts["gpu1"].start()
        bench.hosts["gpu1"].wait()
        bench.apply()
        converged(bench)
