#!/usr/bin/env python3
"""Compares slipway's node agent with NVIDIA's device plugin and feature discovery, on the same driver with the same configuration.

    conformance/kube/plugin.py --slipway target/release/slipway --peers FOLDER [SUBSTRING ...] [--list] [--junit FILE]

FOLDER has `kubelet`, `nvidia-device-plugin` and `gpu-feature-discovery`, built from `plugin/go.mod`. Both agents read the same fake
NVML; `kubelet` sends both the requests of a real kubelet: options, devices, preferred allocations, allocations. Then a GPU becomes unhealthy.
Needs root, for device nodes and a mount namespace, because upstream's folder of sockets is not configurable.
"""

import collections
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "conformance"), str(ROOT / "conformance/gpu")]
from lib import free_port
from run import machine
from suite import Skip, Suite

SUITE = Suite("plugin")
MIXED = ["2x1g.10gb + 1x2g.20gb + 1x3g.40gb on 0"]
SLICES = "sharing: {timeSlicing: {%sresources: [{name: nvidia.com/gpu, replicas: 4}]}}\n"
PLUGIN = "flags: {migStrategy: %s, plugin: {deviceListStrategy: %s, deviceIDStrategy: %s, passDeviceSpecs: %s}}\n"

# name: (fixture, MIG layouts, configuration)
CASES = {
    "one GPU": ("t4", [], PLUGIN % ("none", "envvar", "uuid", "false")),
    "eight GPUs": ("h100x8", [], PLUGIN % ("none", "envvar", "uuid", "false")),
    "by index": ("a100x8", [], PLUGIN % ("none", "envvar", "index", "false")),
    "as mounts": ("t4", [], PLUGIN % ("none", "volume-mounts", "uuid", "false")),
    "with device nodes": ("a100x8", [], PLUGIN % ("none", "envvar", "uuid", "true")),
    "CDI in annotations": ("t4", [], PLUGIN % ("none", "cdi-annotations", "uuid", "false")),
    "CDI in the CRI": ("a100x8", [], PLUGIN % ("none", "cdi-cri", "uuid", "false")),
    "time slices": ("a100x8", [], PLUGIN % ("none", "envvar", "uuid", "false") + SLICES % ""),
    "time slices, renamed": ("t4", [], PLUGIN % ("none", "envvar", "uuid", "false") + SLICES % "renameByDefault: true, "),
    "time slices, one only": ("t4", [], PLUGIN % ("none", "envvar", "uuid", "false") + SLICES % "failRequestsGreaterThanOne: true, "),
    "MIG mixed": ("a100x8", MIXED, PLUGIN % ("mixed", "envvar", "uuid", "false")),
    "MIG mixed, by index": ("a100x8", MIXED, PLUGIN % ("mixed", "envvar", "index", "false")),
    "MIG mixed, shared": ("a100x8", ["2x3g.40gb on 0"], PLUGIN % ("mixed", "envvar", "uuid", "false")
                          + "sharing: {timeSlicing: {resources: [{name: nvidia.com/mig-3g.40gb, replicas: 2}]}}\n"),
    "MIG single": ("a100x8", ["16x3g.40gb on 0-7"], PLUGIN % ("single", "envvar", "uuid", "false")),
    "MIG single, no instances": ("h100x8", [], PLUGIN % ("single", "envvar", "uuid", "false")),
}


class Case:
    """A simulated machine with a driver, on which one agent after the other runs."""

    def __init__(self, name, folder, slipway, peers, fake):
        self.fixture, layouts, config = CASES[name]
        self.folder, self.slipway, self.peers = pathlib.Path(folder), slipway, pathlib.Path(peers)
        self.root = machine(folder, fake)
        self.control = self.folder / "control"
        self.config = self.folder / "config.yaml"
        self.config.write_text("version: v1\n" + config)
        self.capabilities()
        self.environment = {**os.environ, "SLIPWAY_FAKE_NVML_FIXTURE": self.fixture, "SLIPWAY_FAKE_NVML_CONTROL": str(self.control),
                            "SLIPWAY_FAKE_NVML_STATE": str(self.folder / "mig.json")}
        for layout in layouts:
            layout, gpus = layout.split(" on ")
            self.run(slipway, "gpu", "mig", "apply", layout, "--gpus", gpus, "--yes", "--fixture", self.fixture)

    def capabilities(self):
        """Writes the driver's MIG capabilities into the `/proc/driver` of both agents: a minor number for every possible instance."""
        minors, lines = 3, ["config 1", "monitor 2"]
        for gpu in range(8):
            for instance in range(15):
                for path in (f"gpu{gpu}/gi{instance}/access", f"gpu{gpu}/gi{instance}/ci0/access"):
                    lines.append(f"{path} {minors}")
                    minors += 1
        file = self.folder / "proc/nvidia-caps/mig-minors"
        file.parent.mkdir(parents=True)
        file.write_text("\n".join(lines) + "\n")

    def run(self, *command, **environment):
        done = subprocess.run(command, env={**self.environment, **environment}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr[-2000:]}")

    @contextlib.contextmanager
    def kubelet(self, agent, command):
        """Runs the kubelet and an agent; yields the agent's responses, and a function that waits and then reads the devices' health."""
        kubelet_folder = self.folder / agent
        sockets = kubelet_folder / "device-plugins"
        sockets.mkdir(parents=True)
        with open(self.folder / f"{agent}.log", "w+") as log, contextlib.ExitStack() as stack:
            kubelet = stack.enter_context(subprocess.Popen([self.peers / "kubelet", sockets, "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            stack.callback(kubelet.kill)
            assert json.loads(kubelet.stdout.readline()) == "ready"
            # The paths of upstream's socket folder and of /proc/driver are fixed, so both are mounted in a namespace.
            script = ('mount -t tmpfs none /var/lib && mkdir /var/lib/kubelet && ln -s "$0/device-plugins" /var/lib/kubelet/device-plugins'
                      ' && mount --bind "$1" /proc/driver && shift && exec "$@"')
            namespace = ["unshare", "--mount", "sh", "-c", script, kubelet_folder, self.folder / "proc"]
            process = stack.enter_context(subprocess.Popen([*namespace, *command(kubelet_folder)], env=self.environment, stdout=log, stderr=log))
            stack.callback(process.kill)

            def health(seconds):
                kubelet.stdin.write(f"wait {seconds}\n")
                kubelet.stdin.flush()
                return json.loads(kubelet.stdout.readline())

            try:
                yield json.loads(kubelet.stdout.readline()), health
            except Exception:
                log.seek(0)
                print(log.read()[-4000:], file=sys.stderr)
                raise

    def upstream(self):
        return self.kubelet("upstream", lambda folder: [
            self.peers / "nvidia-device-plugin", "--config-file", self.config, "--driver-root", self.root, "--driver-root-ctr-path", self.root])

    @contextlib.contextmanager
    def ours(self):
        self.port = free_port()
        command = lambda folder: [
            self.slipway, "node", "run", "--no-kube", "--home", self.folder / "home", "--config-file", self.config, "--kubelet-dir", folder,
            "--cdi-dir", self.folder / "cdi", "--driver-root", self.root, "--listen", f"127.0.0.1:{self.port}", "--recover-after", "5",
            "--fixture", self.fixture]
        with self.kubelet("slipway", command) as responses:
            yield responses

    def labels(self):
        """The labels of feature discovery, and of the running agent."""
        file = self.folder / "features"
        self.run(self.peers / "gpu-feature-discovery", "--oneshot", "--no-timestamp", "--use-node-feature-api=false", "--config-file", self.config, "--output-file", file,
                 "--driver-root-ctr-path", self.root, LD_LIBRARY_PATH=str(self.root / "usr/lib/x86_64-linux-gnu"))
        theirs = dict(line.split("=", 1) for line in file.read_text().splitlines())
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/node", timeout=10) as response:
            return theirs, json.load(response)["labels"]


def normalize(responses):
    """Masks names that differ by design (the CDI kind, annotation keys) and random choices of upstream (orders, replicas, MIG devices)."""
    text = json.dumps(responses)
    text = re.sub(r"k8s\.device-plugin\.nvidia\.com/gpu=|slipway\.dev/gpu=", "KIND=", text)
    responses = json.loads(re.sub(r'"cdi\.k8s\.io/[^"]*"', '"ANNOTATION"', text))
    for resource in responses.values():
        for key, chosen in resource["preferred"].items():
            if any(id.startswith("MIG-") for id in chosen):
                resource["preferred"][key] = len(chosen)
            elif any("::" in id for id in chosen):
                counts = collections.Counter(id.split("::")[0] for id in chosen)
                resource["preferred"][key] = sorted(counts.values())
        for allocation in resource["allocate"].values():
            if isinstance(allocation, dict):
                for texts in (allocation.get("envs", {}), allocation.get("annotations", {})):
                    for key, text in texts.items():
                        texts[key] = sorted(text.split(","))
                for key in ("devices", "mounts", "cdi_devices"):
                    allocation.get(key, []).sort(key=json.dumps)
    return responses


def differences(theirs, ours, path=""):
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            yield from differences(theirs.get(key), ours.get(key), f"{path}/{key}")
    elif theirs != ours:
        yield f"{path}\n       upstream {json.dumps(theirs)}\n       slipway  {json.dumps(ours)}"


@contextlib.contextmanager
def case(name, options):
    with tempfile.TemporaryDirectory(prefix="slipway-plugin-") as folder:
        yield Case(name, folder, options.slipway, options.peers, pathlib.Path(options.slipway).with_name("libslipway_fake_nvml.so"))


def compare_responses(name, options):
    with case(name, options) as node:
        with node.upstream() as (theirs, _):
            pass
        with node.ours() as (ours, _):
            features, labels = node.labels()
    found = [*differences(normalize(theirs), normalize(ours)), *differences(features, labels, "labels")]
    assert not found, f"{len(found)} differences\n" + "\n".join(found)
    advertised = ", ".join(f"{len(response['devices'])} {name}" for name, response in sorted(theirs.items()))
    print(f"     {advertised}; {len(features)} labels")


for name in CASES:
    SUITE.add(name, lambda options, name=name: compare_responses(name, options))


@SUITE.test
def every_replica_of_an_unhealthy_gpu_is_withdrawn_until_it_recovers(options):
    """Two known defects of upstream: only one replica of an unhealthy GPU is withdrawn, and it never recovers. slipway handles both."""
    def health(agent, node):
        # Both get the same time, which cannot be a wait for a state: upstream never reaches it.
        with agent() as (_, read):
            node.control.write_text("xid 0 79\n")
            during = read(2)
            node.control.write_text("")
            after = read(8)
        count = lambda devices: sum(state == "Unhealthy" for state in devices["nvidia.com/gpu"].values())
        return count(during), count(after)

    with case("time slices", options) as node:
        theirs = health(node.upstream, node)
        node.control.unlink()
        ours = health(node.ours, node)
    print(f"     of 4 replicas of a GPU with XID 79, then without: upstream withdraws {theirs[0]}, later {theirs[1]}; slipway {ours[0]}, later {ours[1]}")
    assert ours == (4, 0), ours


def main():
    options = SUITE.options(__doc__, slipway={"required": True}, peers={"required": True})
    options.slipway = os.path.abspath(options.slipway)

    @contextlib.contextmanager
    def root(_):
        if os.geteuid():
            raise Skip("device nodes and mounts need root")
        yield options

    return SUITE.main(options, root)


if __name__ == "__main__":
    sys.exit(main())
