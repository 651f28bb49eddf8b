"""Tests of the Ansible collection on test hosts, with ansible-core and ansible-lint from PyPI."""

import json
import os
import pathlib
import re
import subprocess

from bench import Bench, assert_converged, test

COLLECTION = pathlib.Path(__file__).resolve().parents[2] / "deploy/ansible"
ANSIBLE = pathlib.Path(os.environ.get("ANSIBLE", pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "slipway/peers/ansible/bin"))
ROLES = 11


class Playbook:
    """The collection, installed from its archive, and slipway as the inventory."""

    def __init__(self, bench):
        self.bench = bench
        self.home = bench.folder / "ansible"
        self.home.mkdir()
        inventory = self.home / "inventory.sh"
        inventory.write_text(f"#!/bin/sh\nexec {bench.binary} --home {bench.folder}/home cluster inventory \"$@\"\n")
        inventory.chmod(0o755)
        program = self.home / "slipway"
        program.write_text(f"#!/bin/sh\nexec {bench.binary} --home {bench.folder}/home \"$@\"\n")
        program.chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{ANSIBLE}:{os.environ['PATH']}", "HOME": str(bench.folder), "SLIPWAY_CLUSTER_FILE": str(bench.file),
                            "ANSIBLE_COLLECTIONS_PATH": str(self.home), "ANSIBLE_NOCOLOR": "1", "NO_COLOR": "1", "ANSIBLE_HOST_KEY_CHECKING": "False", "ANSIBLE_FORKS": "10",
                            "ANSIBLE_LOCAL_TEMP": str(self.home / "tmp"), "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=60 -o UserKnownHostsFile=/dev/null",
                            "ANSIBLE_SSH_CONTROL_PATH_DIR": "/tmp/.slipway-ansible"}
        self.command("ansible-galaxy", "collection", "build", COLLECTION, "--output-path", self.home)
        self.command("ansible-galaxy", "collection", "install", next(self.home.glob("slipway-cluster-*.tar.gz")), "-p", self.home)
        self.installed = self.home / "ansible_collections/slipway/cluster"

    def command(self, *words, status=0, folder=None):
        done = subprocess.run([str(w) for w in words], env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=folder or self.home, timeout=600)
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run(self, *words, status=0):
        """Runs the playbook. Returns its output, and the counts of its recap by host."""
        text = self.command("ansible-playbook", "-i", self.home / "inventory.sh", "slipway.cluster.site", "-e", f"slipway_program={self.bench.binary}", *words, status=status)
        recap = {m[1]: {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", m[2])} for m in re.finditer(r"^(\S+)\s+: (ok=.*)$", text, re.M)}
        return text, recap


@test(limit=1200)
def collection_converges_hosts_and_reports_changes_correctly(binary):
    with Bench(binary, {"cp1": "control-plane", "cp2": "control-plane", "gpu1": "worker, gpu"}) as bench:
        playbook = Playbook(bench)
        assert len(list((playbook.installed / "roles").iterdir())) == ROLES
        playbook.command("ansible-lint", "--offline", "--profile", "production", "--strict", folder=playbook.installed)

        # A check of bare machines shows all changes and leaves no files behind.
        text, recap = playbook.run("--check", "--diff", "--limit", "all", status=0)
        assert all(counts["changed"] >= 3 and counts["failed"] == 0 for counts in recap.values()), text
        assert "snap microk8s 1.32/stable, refreshes held" in text and "package jq" in text, text
        for name in bench.roles:
            assert not bench.hosts[name].ssh("ls -d /var/lib/slipway /snap 2>/dev/null; command -v jq", check=False).stdout, name

        text, recap = playbook.run()
        assert all(counts["changed"] >= 3 for counts in recap.values()), text
        assert_converged(bench)
        text, recap = playbook.run()
        assert all(counts["changed"] == 0 and counts["failed"] == 0 for counts in recap.values()), text
        text, recap = playbook.run("--check")
        assert all(counts["changed"] == 0 and counts["failed"] == 0 for counts in recap.values()), text

        # A manual edit is shown as a diff by a check, which keeps it, and reverted by a run.
        bench.hosts["cp2"].ssh("sed -i s/600/7200/ /etc/sysctl.d/90-slipway.conf")
        text, recap = playbook.run("--check", "--diff")
        assert recap["cp2"]["changed"] == 1 and recap["cp1"]["changed"] == 0 and "-net.ipv4.tcp_keepalive_time = 7200" in text, text
        assert "7200" in bench.hosts["cp2"].read("/etc/sysctl.d/90-slipway.conf")
        text, recap = playbook.run()
        assert (recap["cp2"]["changed"], recap["gpu1"]["changed"]) == (1, 0), text
        assert_converged(bench)

        # A label is set by the role of the layer `nodes`.
        bench.file.write_text(bench.file.read_text().replace("{name: gpu1,", "{name: gpu1, labels: {zone: a},"))
        text, recap = playbook.run("--check")
        assert (recap["cp1"]["changed"], recap["gpu1"]["changed"]) == (1, 0), text
        playbook.run()
        assert json.loads((bench.hosts.shared / "cluster.json").read_text())["members"]["gpu1"]["labels"] == {"zone": "a"}

        # A failed resource fails the play, with the reason.
        bench.write(channel="1.32/edge")
        text, recap = playbook.run("--limit", "gpu1", status=2)
        assert recap["gpu1"]["failed"] == 1 and "available to install on the following channels" in text, text
