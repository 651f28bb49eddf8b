#!/usr/bin/env python3
"""Checks that slipway's node agent offers GPUs of AMD as ROCm/k8s-device-plugin and its node labeller do, beside those of NVIDIA.

    conformance/kube/amd.py --slipway target/release/slipway --kubelet PATH [SUBSTRING ...] [--list] [--junit FILE]

The agent reads simulated GPUs; `kubelet` (see plugin.py) sends it the requests of a real kubelet. The expected names, counts and choices are
those of upstream's documentation ("Resource Naming Strategy", "Resource Allocation"), because the original needs a kernel with such cards.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "conformance"))
from lib import free_port
from suite import Suite

SUITE = Suite("amd", jobs=2)


class Agent:
    """An agent on a simulated machine, with what a kubelet got from it."""

    def __init__(self, options, folder, fixture, naming, stack):
        self.folder, self.port = pathlib.Path(folder), free_port()
        self.control = self.folder / "control"
        (self.folder / "device-plugins").mkdir()
        self.kubelet = stack.enter_context(subprocess.Popen(
            [options.kubelet, self.folder / "device-plugins", "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        stack.callback(self.kubelet.kill)
        assert json.loads(self.kubelet.stdout.readline()) == "ready"
        self.log = stack.enter_context(open(self.folder / "log", "w+"))
        agent = stack.enter_context(subprocess.Popen(
            [options.slipway, "node", "run", "--no-kube", "--home", self.folder / "home", "--kubelet-dir", self.folder, "--cdi-dir", self.folder / "cdi",
             "--listen", f"127.0.0.1:{self.port}", "--recover-after", "1", "--fixture", fixture, "--amd-naming", naming],
            env={**os.environ, "SLIPWAY_FAKE_AMD_CONTROL": str(self.control)}, stdout=self.log, stderr=self.log))
        stack.callback(agent.kill)
        self.responses = json.loads(self.kubelet.stdout.readline())

    def counts(self):
        return {name: len(resource["devices"]) for name, resource in self.responses.items()}

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
            return response.read().decode()

    def state(self):
        return json.loads(self.get("/api/v1/node"))

    def unhealthy(self, seconds):
        """The unhealthy devices of all resources, after a time."""
        self.kubelet.stdin.write(f"wait {seconds}\n")
        self.kubelet.stdin.flush()
        resources = json.loads(self.kubelet.stdout.readline())
        return sorted(id for devices in resources.values() for id, health in devices.items() if health == "Unhealthy")


@contextlib.contextmanager
def agent(options, fixture, naming="single"):
    with tempfile.TemporaryDirectory(prefix="slipway-amd-") as folder, contextlib.ExitStack() as stack:
        yield Agent(options, folder, fixture, naming, stack)


def paths(allocation):
    return [device["host_path"] for device in allocation["devices"]]


@SUITE.test
def whole_cards_are_one_resource(options):
    with agent(options, "mi300xx8") as node:
        assert node.counts() == {"amd.com/gpu": 8}, node.counts()
        gpu = node.responses["amd.com/gpu"]
        assert gpu["preferred"]["4, 0 given"] == [f"0000:{bus:02x}:00.0" for bus in (0x05, 0x25, 0x45, 0x65)], gpu["preferred"]
        assert gpu["preferred"]["2, 1 given"] == ["0000:85:00.0", "0000:e5:00.0"], "the second is at the same NUMA node as the given one"
        assert paths(gpu["allocate"]["one"]) == ["/dev/kfd", "/dev/dri/card0", "/dev/dri/renderD128"]
        assert len(paths(gpu["allocate"]["all"])) == 1 + 2 * 8
        assert "unknown device: GPU-none" in gpu["allocate"]["unknown"]
        labels = node.state()["labels"]
        for key, value in {"device-id": "74a1", "family": "AI", "vram": "192G", "cu-count": "304", "simd-count": "1216", "product-name": "AMD_Instinct_MI300X_OAM",
                           "driver-version": "6.12.12", "compute-memory-partition": "spx_nps1", "compute-partitioning-supported": "true"}.items():
            assert labels[f"amd.com/gpu.{key}"] == value, (key, labels)
        assert labels["beta.amd.com/gpu.vram.192G"] == "8", labels
        metrics = node.get("/metrics")
        assert 'gpu_package_power{gpu_id="2"' in metrics and "gpu_nodes_total" in metrics, metrics


@SUITE.test
def partitions_of_one_card_are_preferred(options):
    with agent(options, "mi300xx8-cpx") as node:
        assert node.counts() == {"amd.com/gpu": 64}, node.counts()
        chosen = node.responses["amd.com/gpu"]["preferred"]["4, 0 given"]
        assert chosen == ["0000:05:00.0", "amdgpu_xcp_0", "amdgpu_xcp_1", "amdgpu_xcp_2"], chosen
        assert node.state()["labels"]["amd.com/gpu.vram"] == "24G"


@SUITE.test
def mixed_naming_has_a_resource_for_each_kind_of_partition(options):
    with agent(options, "mi300xx8-mixed", "mixed") as node:
        assert node.counts() == {"amd.com/spx_nps1": 5, "amd.com/cpx_nps1": 24}, node.counts()
    with agent(options, "mi300xx8-mixed", "single") as node:
        assert node.counts() == {}, node.counts()
        assert "divided differently" in node.state()["problem"], node.state()
    with agent(options, "mi210x4", "mixed") as node:
        assert node.counts() == {"amd.com/gpu": 4}, node.counts()


@SUITE.test
def both_vendors_are_offered_on_one_node(options):
    with agent(options, "h100x8,rx7900xtxx2") as node:
        assert node.counts() == {"nvidia.com/gpu": 8, "amd.com/gpu": 2}, node.counts()
        labels = node.state()["labels"]
        assert labels["amd.com/gpu.family"] == "GC_11_0_0" and labels["amd.com/gpu.driver-version"] == "", labels


# The times are longer than the agent's poll interval with --recover-after 1, which is one second.
@SUITE.test
def unhealthy_and_lost_devices_are_withdrawn_until_they_recover(options):
    with agent(options, "mi300xx8-cpx") as node:
        node.control.write_text("errors 9 2\nlost 7\n")
        during = node.unhealthy(4)
        # GPU 9 is the second partition of the second card; each card before has seven further partitions.
        assert during[0] == "0000:e5:00.0" and "amdgpu_xcp_7" in during and len(during) == 9, during
        faults = {device["uuid"]: device["fault"] for device in node.state()["offers"][0]["devices"]}
        assert faults["amdgpu_xcp_7"] == "2 uncorrected memory errors", faults
        node.control.write_text("")
        assert node.unhealthy(5) == []


if __name__ == "__main__":
    options = SUITE.options(
        __doc__, slipway={"required": True}, kubelet={"required": True, "help": "the test program that sends a kubelet's requests"})
    options.slipway = os.path.abspath(options.slipway)
    sys.exit(SUITE.main(options, lambda _: contextlib.nullcontext(options)))
