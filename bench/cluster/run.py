#!/usr/bin/env python3
"""Benchmarks Ansible and slipway with the same tasks on the same kind of machines: a first run, and a second run without changes.

    bench/cluster/run.py --slipway target/release/slipway --ansible VENV/bin/ansible-playbook [--hosts 1 3 10 30]

The test hosts have a real sshd, systemd and apt; snaps are stand-ins. Ansible uses pipelining, and as many forks as hosts. Both systems get fresh
hosts, with apt's package lists fetched and jq's package cached. Both keep connections for a minute, which is their default. CPU time is that of the
whole machine, client and hosts, so no other programs should run. Needs root.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "testkit/hosts"))
from hosts import Hosts


def busy():
    """CPU seconds of all cores since boot, without idle time."""
    fields = [int(f) for f in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def timed(command, environment):
    wall, processors = time.perf_counter(), busy()
    done = subprocess.run([str(c) for c in command], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return {"wall": time.perf_counter() - wall, "cpu": busy() - processors, "output": done.stdout}


def prepared_hosts(names):
    hosts = Hosts(names)
    hosts.__enter__()
    # Ansible's apt module requires python3-apt, which is part of Ubuntu but not of these Debian hosts.
    for name in names:
        hosts[name].ssh("apt-get install -y -qq --no-install-recommends python3-apt")
    return hosts


def ansible(playbook, names):
    hosts = prepared_hosts(names)
    try:
        with tempfile.TemporaryDirectory() as folder:
            inventory = pathlib.Path(folder, "hosts")
            inventory.write_text("".join(f"{n} ansible_host={hosts[n].address} ansible_user=root ansible_python_interpreter=/usr/bin/python3\n" for n in names))
            environment = {**os.environ, "HOME": folder, "ANSIBLE_PIPELINING": "1", "ANSIBLE_FORKS": str(len(names)), "ANSIBLE_HOST_KEY_CHECKING": "0",
                           "ANSIBLE_PRIVATE_KEY_FILE": str(hosts.key), "ANSIBLE_LOCALHOST_WARNING": "0"}
            command = [playbook, "-i", inventory, HERE / "play.yaml"]
            first, again = timed(command, environment), timed(command, environment)
            assert "changed=0" in again["output"] and "failed=0" in again["output"], again["output"]
            return first, again
    finally:
        hosts.__exit__()


def slipway(binary, names):
    hosts = prepared_hosts(names)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "cluster.yaml")
            machines = "".join(f"    - {{name: {n}, address: {hosts[n].address}, roles: [control-plane]}}\n" for n in names)
            file.write_text("apiVersion: slipway.dev/v1\nkind: Cluster\nmetadata: {name: bench}\nspec:\n"
                            f"  ssh: {{user: root, identityFile: {hosts.key}, knownHosts: {folder}/known, acceptNewHostKeys: true}}\n  machines:\n{machines}"
                            "  system: {packages: [ca-certificates, jq]}\n  kubernetes: {distribution: microk8s, channel: 1.32/stable}\n")
            environment = {**os.environ, "HOME": folder}
            base = [binary, "--home", f"{folder}/home", "cluster"]
            only = ["--only", "system,host-tools,kubernetes", "-f", file]
            apply = [*base, "apply", "--yes", "-q", "-o", "json", *only]
            first, again = timed(apply, environment), timed(apply, environment)
            assert {s["outcome"] for s in json.loads(again["output"])["steps"]} == {"unchanged"}, again["output"]
            plan = timed([*base, "plan", *only], environment)
            # A new TMPDIR has no control sockets of ssh, so this plan opens new connections.
            (fresh := pathlib.Path(folder, "fresh")).mkdir()
            return first, again, plan, timed([*base, "plan", *only], {**environment, "TMPDIR": str(fresh)})
    finally:
        hosts.__exit__()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slipway", required=True)
    parser.add_argument("--ansible", required=True)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 3, 10, 30])
    arguments = parser.parse_args()
    print("hosts | what | ansible s (cpu s) | slipway s (cpu s) | wall | cpu")
    for count in arguments.hosts:
        names = [f"h{n}" for n in range(count)]
        theirs = ansible(arguments.ansible, names)
        *ours, plan, cold = slipway(os.path.abspath(arguments.slipway), names)
        for what, a, b in zip(("first run", "no-op"), theirs, ours):
            print(f"{count} | {what} | {a['wall']:.1f} ({a['cpu']:.1f}) | {b['wall']:.2f} ({b['cpu']:.2f}) | {a['wall'] / b['wall']:.1f}x | {a['cpu'] / b['cpu']:.1f}x", flush=True)
        for what, run in (("plan", plan), ("plan, new connections", cold)):
            print(f"{count} | {what} | | {run['wall']:.2f} ({run['cpu']:.2f}) | |", flush=True)


if __name__ == "__main__":
    main()
