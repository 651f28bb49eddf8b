"""The fixture of the cluster tests: test hosts, a cluster.yaml for them, and a slipway with its own home folder."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2] / folder) for folder in ("testkit/hosts", "conformance")]
from hosts import Hosts
from suite import Suite

SUITE = Suite("cluster", limit=600, jobs=int(os.environ.get("JOBS", "3")))
test = SUITE.test
FIVE_MACHINES = {"cp1": "control-plane", "cp2": "control-plane", "cp3": "control-plane", "gpu1": "worker, gpu", "gpu2": "worker, gpu"}
H100 = "0x2330"
PASSWORD = "correct-horse-battery-staple"


class Bench:
    """Hosts, a cluster.yaml for them, and slipway with its own home folder.

    `roles` are the roles of each host by name, `ssh_options` extra lines of `spec.ssh`, and `spec` extra lines of `spec`.
    """

    def __init__(self, binary, roles, ssh_options="", spec=""):
        self.binary, self.roles, self.ssh_options, self.spec = os.path.abspath(binary), roles, ssh_options, spec
        self.first = next(iter(roles), "cp-1")
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        self.folder = pathlib.Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="slipway-cluster-")))
        self.hosts = self.stack.enter_context(Hosts(list(self.roles), {n: [H100] * 2 for n, r in self.roles.items() if "gpu" in r}))
        self.file = self.folder / "cluster.yaml"
        for name, role in self.roles.items():
            if "gpu" in role:
                self.hosts[name].simulate_gpus(pathlib.Path(self.binary).parent / "libslipway_fake_nvml.so")
        self.write()
        return self

    def __exit__(self, *error):
        if error[0] and os.environ.get("KEEP"):
            input("the hosts are still running; press Enter to remove them ")
        self.stack.__exit__(*error)

    def write(self, user="root", channel="1.32/stable", addons="dns, rbac, metrics-server", ssh_options=None, driver="none", restart=60):
        """Writes cluster.yaml. `restart` is the timeout of a reboot in seconds."""
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
{self.ssh_options if ssh_options is None else ssh_options}
{"  machines:" if machines else ""}
{machines}
  system: {{packages: [jq], restartSeconds: {restart}, sysctl: {{net.ipv4.tcp_keepalive_time: "600"}}}}
  kubernetes: {{distribution: microk8s, channel: {channel}, addons: [{addons}], extraSans: [lab.example.org]}}
  gpu: {{driver: {driver!r}, driverSource: ubuntu, devicePlugin: nvidia}}
{self.spec}
""")

    def command(self, *words, **environment):
        """The arguments of `slipway cluster`, and its environment."""
        return [self.binary, "--home", self.folder / "home", "cluster", *words], {**os.environ, "HOME": str(self.folder), "SLIPWAY_CLUSTER_FILE": str(self.file),
                                                                                   "TMPDIR": str(self.folder), **environment}

    def run(self, *words, status=0, **environment):
        """Runs `slipway cluster`, checks its exit status unless it is None, and returns its stdout. Its stderr is in `self.stderr`."""
        command, environment = self.command(*words, **environment)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert status is None or done.returncode == status, f"{words}: {done.returncode}, not {status}\n{done.stdout}\n{done.stderr}"
        self.stderr = done.stderr
        return done.stdout

    def apply(self, *words, status=0, **environment):
        """Runs an apply, and returns its steps by id."""
        return self.run_steps("apply", *words, status=status, **environment)

    def run_steps(self, *words, status=0, **environment):
        """Runs a command that changes machines, and returns its steps by id."""
        text = self.run(*words, "--yes", "-o", "json", status=status, **environment)
        return {s["step"]: s for s in json.loads(text)["steps"]} if text.strip() else {}

    def plan(self, *words, status, **environment):
        """The plans of the machines by name."""
        return {m["name"]: m for m in json.loads(self.run("plan", "-o", "json", *words, status=status, **environment))["machines"]}

    def members(self):
        """The roles of the cluster's nodes by name, as the stand-in of MicroK8s has them."""
        state = json.loads((self.hosts.shared / "cluster.json").read_text())
        return {n: "worker" if m["worker"] else "control-plane" for n, m in state["members"].items() if m["cluster"] == self.first}

    def cluster(self):
        return json.loads((self.hosts.shared / "cluster.json").read_text())["clusters"][self.first]

    def leftovers(self):
        """Pods and volume claims that exist in the cluster."""
        return [*self.cluster()["pods"], *self.cluster()["claims"]]

    def cordoned(self):
        """Names of the cordoned nodes."""
        members = json.loads((self.hosts.shared / "cluster.json").read_text() or "{}").get("members", {})
        return [n for n, m in members.items() if m["cordoned"]]

    def faults(self, **faults):
        """Sets the faults of the stand-in of MicroK8s."""
        (self.hosts.shared / "faults.json").write_text(json.dumps(faults))

    def commands(self):
        """The commands that changed the stand-ins, on all hosts."""
        return [f"{n}: {line}" for n in self.roles for line in self.hosts[n].ssh("cat /var/lib/standin/log 2>/dev/null", check=False).stdout.splitlines()]


def assert_converged(bench):
    """Asserts that the nodes have the roles of the file, and that a plan finds no changes."""
    assert bench.members() == {n: "control-plane" if "control" in r else "worker" for n, r in bench.roles.items()}, bench.members()
    assert all(not m["changes"] for m in bench.plan(status=0).values())


def outcomes(steps, smoke=False):
    """The set of the outcomes of all steps except smoke tests, or of only the smoke tests."""
    return {s["outcome"] for i, s in steps.items() if ("/smoke-" in i) == smoke}
