"""Tests `slipway cluster` with the lab's API server, through a test host whose `microk8s kubectl` is upstream's kubectl."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "hosts"))
from cluster import NAMESPACE, eventually
from hosts import Hosts

CREDENTIALS = "/var/snap/microk8s/current/credentials/client.config"
# Only the commands of the snap are simulated; kubectl, API server and kubelets are real.
MICROK8S = f"""#!/bin/sh
case $1 in
  kubectl) shift; exec /opt/kubectl --kubeconfig {CREDENTIALS} "$@";;
  status) echo "microk8s is running";;
  stop) echo Stopped.;;
  *) echo "'$1' is not a valid MicroK8s subcommand."; exit 1;;
esac
"""


class ClusterFile:
    """A cluster.yaml for the lab, and commands that use it through the host `cp1`."""

    def __init__(self, lab, stack):
        self.lab = lab
        self.folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slipway-file-")))
        hosts = stack.enter_context(Hosts(["cp1"]))
        self.host = hosts["cp1"]
        self.host.write("/snap/bin/microk8s", MICROK8S, 0o755)
        self.host.write(CREDENTIALS, lab.kubectl("config", "view", "--flatten", "--raw"))
        (self.host.root / "opt").mkdir(exist_ok=True)
        shutil.copy(f"{lab.bin}/kubectl", self.host.root / "opt/kubectl")
        self.address, self.key = self.host.address, hosts.key
        # The kubelets of the nodes are started by the lab; over SSH one host stands for all of them.
        self.addresses = {node: self.host.add_address() for node in lab.fixtures}

    def write(self, more):
        file = self.folder / "cluster.yaml"
        machines = "".join(f"    - {{name: {n}, address: {a}, roles: [worker, gpu]}}\n" for n, a in self.addresses.items())
        file.write_text(f"""apiVersion: slipway.dev/v1
kind: Cluster
metadata: {{name: lab}}
spec:
  ssh: {{user: root, identityFile: {self.key}, knownHosts: {self.folder}/known, acceptNewHostKeys: true}}
  machines:
    - {{name: cp1, address: {self.address}, roles: [control-plane]}}
{machines}
  kubernetes: {{distribution: microk8s, channel: 1.36/stable}}
{more}
""")

    def command(self, *words):
        return [self.lab.binary, "--home", self.folder / "home", "cluster", *words], {**os.environ, "SLIPWAY_CLUSTER_FILE": str(self.folder / "cluster.yaml"), "TMPDIR": "/tmp"}

    def apply(self, *words, status=0, verb="apply"):
        command, environment = self.command(verb, "--yes", "-o", "json", *words)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return {s["step"]: s for s in json.loads(done.stdout)["steps"]}


def smoke_pods(lab):
    return [p["metadata"]["name"] for p in lab.get("pods", "-l", "slipway.dev/smoke")["items"] if not p["metadata"].get("deletionTimestamp")]


# The lab's own values (`lab/gpus.go`), and settings that replace MicroK8s' defaults.
PLATFORM = {
    "image": {"pullPolicy": "Never"},
    "server": {"storage": {"ephemeral": True}},
    "node": {"privileged": False, "driverRoot": "/run/nvidia/driver", "cdiDir": "/run/cdi", "recoverAfter": 3, "kubeletDir": "/var/lib/kubelet",
             "env": {"SLIPWAY_GPU_FIXTURE": "/host/driver/fixture.yaml",
                     "SLIPWAY_FAKE_NVML_CONTROL": "/host/driver/control", "SLIPWAY_FAKE_NVML_STATE": "/var/lib/slipway/fake-nvml.json"}},
}


def cluster_file_installs_the_platform_and_smoke_tests_every_gpu_node(lab, values):
    with contextlib.ExitStack() as stack:
        file = ClusterFile(lab, stack)
        platform = {"image": "lab.local/slipway:1", "values": {**PLATFORM, "node": {**PLATFORM["node"], **values["node"]}}}
        smoke = {"image": "lab.local/tool:1", "cudaImage": "lab.local/tool:1", "cudaCommand": ["sh", "-c", "ls /dev/nvidia[0-9]* && echo GPU 0: simulated"], "timeoutSeconds": 30}
        write = lambda **more: file.write(f"  platform: {json.dumps(platform)}\n  smoke: {json.dumps({**smoke, **more})}")
        write()
        steps = file.apply("--only", "platform")
        assert steps["cp1/cluster"]["outcome"] == "changed", steps
        assert file.apply("--only", "platform")["cp1/cluster"]["outcome"] == "unchanged"
        # Simulate a change by hand.
        lab.kubectl("-n", NAMESPACE, "set", "image", "deployment/slipway", "*=lab.local/other:1")
        assert file.apply("--only", "platform")["cp1/cluster"]["outcome"] == "changed"
        eventually(lambda: all(lab.allocatable(n) for n in lab.fixtures), message="both nodes advertise GPUs")

        steps = file.apply("--only", "smoke")
        assert {s["outcome"] for s in steps.values()} == {"passed"} and len(steps) == 2, steps
        assert steps["n1/smoke-gpu"]["saw"] == "n1: GPU 0: simulated" and smoke_pods(lab) == [], steps

        # Kill an apply while its smoke test pods run: the next apply deletes them.
        write(cudaCommand=["sh", "-c", "sleep 600"])
        command, environment = file.command("apply", "--yes", "--only", "smoke")
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        orphans = eventually(lambda: smoke_pods(lab), message="pods of the smoke tests")
        process.kill()
        process.wait()
        # A failed smoke test reports the error message of the scheduler or the pod, and leaves no pods.
        with lab.namespace("full") as ns:
            write(cudaCommand=["sh", "-c", "echo no CUDA-capable device is detected; exit 1"], timeoutSeconds=15)
            lab.pod(ns, "all", {"nvidia.com/gpu": 8}, "n1")
            eventually(lambda: lab.phase(ns, "all") == "Running" or (file.apply("--only", "smoke", status=1) and False),
                       message="the orphaned pods are deleted, and n1's GPUs are in use")
            steps = file.apply("--only", "smoke", status=1)
            assert "Insufficient nvidia.com/gpu" in steps["n1/smoke-gpu"]["reason"] and "did not finish within 15 s" in steps["n1/smoke-gpu"]["reason"], steps
            assert "no CUDA-capable device is detected" in steps["n2/smoke-gpu"]["reason"], steps
        eventually(lambda: smoke_pods(lab) == [], message="no pods of the smoke tests remain")
        assert orphans

        # Drain a real node. A pod without a controller stops the drain, and the node is schedulable again.
        with lab.namespace("drained") as ns:
            lab.pod(ns, "alone", {}, "n2")
            lab.wait_running(ns, "alone")
            steps = file.apply("--hosts", "n2", verb="stop", status=1)
            assert "declare no controller" in steps["n2/stop"]["reason"] and "unschedulable" not in lab.node("n2")["spec"], steps
            lab.delete(ns, "alone")
            container = {"name": "main", "image": "lab.local/tool:1", "imagePullPolicy": "Never", "command": ["sh", "-c", "sleep 10000"]}
            template = {"metadata": {"labels": {"app": "web"}}, "spec": {"nodeSelector": {"kubernetes.io/hostname": "n2"}, "terminationGracePeriodSeconds": 0,
                                                                        "containers": [container], "volumes": [{"name": "scratch", "emptyDir": {}}]}}
            lab.apply({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web", "namespace": ns},
                       "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}})
            pods = lambda phase: [p for p in lab.get("-n", ns, "pods")["items"] if p["status"]["phase"] == phase]
            eventually(lambda: pods("Running"), message="the pod runs")
            steps = file.apply("--hosts", "n2", verb="stop")
            node = lab.node("n2")
            assert steps["n2/stop"]["outcome"] == "changed" and node["spec"]["unschedulable"] and node["metadata"]["annotations"]["slipway.dev/closed"] == "true", (steps, node)
            eventually(lambda: pods("Pending") and not pods("Running"), message="the new pod is pending")
            file.apply("--hosts", "n2", verb="start")
            node = lab.node("n2")
            assert "unschedulable" not in node["spec"] and "slipway.dev/closed" not in node["metadata"]["annotations"], node
            eventually(lambda: pods("Running"), message="the pod runs again")

        # The doctor checks the cluster through the host, whose name is not a node, and finds no pods of smoke tests.
        command, environment = file.command("doctor", "-o", "json")
        found = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True).stdout)
        assert not [f for f in found if "is waiting" in f["what"]], found
