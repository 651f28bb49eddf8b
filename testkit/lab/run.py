#!/usr/bin/env python3
"""Tests of slipway on a real Kubernetes: upstream's own kubelet and API server, with a fake driver on the nodes.

    testkit/lab/run.py target/release/slipway [SUBSTRING ...] [--list] [--junit FILE]

The tests share one lab, so they run one by one. KEEP=1 leaves the lab up.
"""

import base64
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import clusterfile
import data
import pipelines
import runs
import shared
from cluster import NAMESPACE, Lab, eventually
from suite import Suite

SUITE = Suite("lab", limit=300)
test = SUITE.test
GPU, SHARED = "nvidia.com/gpu", "nvidia.com/gpu.shared"
STATE, MIG, CONFIG = "nvidia.com/mig.config.state", "nvidia.com/mig.config", "nvidia.com/device-plugin.config"

# Based on the examples in NVIDIA's documentation.
CONFIGS = {
    "default": "version: v1\nflags: {migStrategy: mixed}\n",
    "slices": "version: v1\nsharing: {timeSlicing: {renameByDefault: true, failRequestsGreaterThanOne: true, "
              "resources: [{name: nvidia.com/gpu, replicas: 4}]}}\n",
    "envvar": "version: v1\nflags: {migStrategy: none, plugin: {deviceListStrategy: envvar, deviceIDStrategy: uuid}}\n"
              "sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 2}]}}\n",
    "mps": "version: v1\nsharing: {mps: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}\n",
    "single": "version: v1\nflags: {migStrategy: single}\n",
    "broken": "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: -4}]}}\n",
}
MIG_CONFIG = """version: v1
mig-configs:
  all-disabled:
    - {devices: all, mig-enabled: false}
  all-enabled:
    - {devices: all, mig-enabled: true, mig-devices: {}}
  some:
    - {devices: [0], mig-enabled: true, mig-devices: {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}}
    - {devices: [1, 2, 3, 4, 5, 6, 7], mig-enabled: false}
  others:
    - {devices: [0], mig-enabled: true, mig-devices: {"1g.10gb": 2, "2g.20gb": 2}}
    - {devices: [1, 2, 3, 4, 5, 6, 7], mig-enabled: false}
  alike:
    - {devices: all, mig-enabled: true, mig-devices: {"3g.40gb": 2}}
  impossible:
    - {devices: [0], mig-enabled: true, mig-devices: {"3g.40gb": 3}}
"""


VALUES = {"node": {"config": CONFIGS, "migConfig": MIG_CONFIG}}


def wait_allocatable(lab, node, resources, timeout=60):
    eventually(lambda: lab.allocatable(node) == resources, timeout, message=f"{node} advertises {resources}")


def configure(lab, node, name):
    lab.set_label(node, CONFIG, name)


@test
def pods_get_the_number_of_gpus_that_they_request(lab):
    wait_allocatable(lab, "n1", {GPU: 8})
    with lab.namespace("whole") as ns:
        lab.pod(ns, "two", {GPU: 2}, "n1", command="env; sleep 10000")
        lab.pod(ns, "five", {GPU: 5}, "n1")
        lab.pod(ns, "none", {}, "n1")
        lab.wait_running(ns, "two", "five", "none")
        two, five = lab.visible_gpus(ns, "two"), lab.visible_gpus(ns, "five")
        assert len(two) == 2 and len(five) == 5 and not set(two) & set(five), (two, five)
        assert lab.visible_gpus(ns, "none") == []
        # The CDI specification hides the GPUs from NVIDIA's own runtime, and mounts the driver's libraries.
        assert "NVIDIA_VISIBLE_DEVICES=void" in lab.kubectl("-n", ns, "logs", "two")
        assert "libcuda.so.580.95.05" in lab.exec(ns, "two", "ls /usr/lib/x86_64-linux-gnu")
        # The agent prefers two GPUs of the same socket, because they are closer.
        assert len({gpu // 4 for gpu in two}) == 1, two
        lab.pod(ns, "late", {GPU: 2}, "n1")
        eventually(lambda: "Insufficient nvidia.com/gpu" in lab.kubectl("-n", ns, "describe", "pod", "late"), message="the scheduler has no GPU left")
        assert lab.phase(ns, "late") == "Pending"
        lab.delete(ns, "two")
        lab.wait_running(ns, "late")
        assert set(lab.visible_gpus(ns, "late")) <= set(range(8)) - set(five)


@test
def labels_describe_the_gpus(lab):
    labels = lab.labels("n1")
    expected = {
        "gpu.product": "NVIDIA-A100-SXM4-80GB", "gpu.count": "8", "gpu.memory": "81920", "gpu.family": "ampere",
        "gpu.compute.major": "8", "gpu.compute.minor": "0", "gpu.replicas": "1", "mig.capable": "true", "mig.strategy": "mixed",
        "gpu.sharing-strategy": "none", "cuda.driver-version.full": "580.95.05", "cuda.driver.major": "580",
        "cuda.runtime-version.major": "13", "mps.capable": "false", "vgpu.present": "false",
    }
    different = {k: (v, labels.get(f"nvidia.com/{k}")) for k, v in expected.items() if labels.get(f"nvidia.com/{k}") != v}
    assert not different, different
    condition = [c for c in lab.node("n1")["status"]["conditions"] if c["type"] == "slipway.dev/GPUReady"][0]
    assert condition["status"] == "True" and "8 GPUs" in condition["message"], condition


@test
def time_slicing_changes_while_pods_run(lab):
    with lab.namespace("slices") as ns:
        lab.pod(ns, "before", {GPU: 1}, "n2")
        lab.wait_running(ns, "before")
        held = lab.visible_gpus(ns, "before")
        configure(lab, "n2", "slices")
        wait_allocatable(lab, "n2", {SHARED: 4})
        lab.pod(ns, "a", {SHARED: 1}, "n2")
        lab.pod(ns, "b", {SHARED: 1}, "n2")
        lab.wait_running(ns, "a", "b")
        assert lab.visible_gpus(ns, "a") == lab.visible_gpus(ns, "b") == held == [0]
        eventually(lambda: lab.labels("n2")["nvidia.com/gpu.replicas"] == "4", message="labels")
        assert lab.labels("n2")["nvidia.com/gpu.sharing-strategy"] == "time-slicing"
        lab.pod(ns, "greedy", {SHARED: 2}, "n2")
        rejected = eventually(lambda: (s := lab.get("-n", ns, "pod", "greedy")["status"]).get("phase") == "Failed" and s,
                              message="the greedy pod is rejected")
        assert "maximum request size for shared resources is 1" in rejected["message"], rejected
        # An invalid file keeps the last valid configuration in use.
        configure(lab, "n2", "broken")
        eventually(lambda: "must be from 2 to 65536" in lab.kubectl("-n", NAMESPACE, "logs", lab.agent("n2")["metadata"]["name"]),
                   message="the agent reports the invalid file")
        assert lab.allocatable("n2") == {SHARED: 4}
        configure(lab, "n2", "envvar")
        wait_allocatable(lab, "n2", {GPU: 2})
        assert lab.labels("n2")["nvidia.com/gpu.product"] == "Tesla-T4-SHARED", lab.labels("n2")
        lab.delete(ns, "before", "a", "b")
        lab.pod(ns, "env", {GPU: 1}, "n2", command="env; sleep 10000")
        lab.wait_running(ns, "env")
        found = re.search(r"NVIDIA_VISIBLE_DEVICES=(\S+)", lab.kubectl("-n", ns, "logs", "env"))
        assert found and re.fullmatch(r"GPU-[0-9a-f-]{36}", found[1]), found
    configure(lab, "n2", None)
    wait_allocatable(lab, "n2", {GPU: 1})


@test
def mps_starts_a_daemon_and_configures_clients(lab):
    configure(lab, "n2", "mps")
    wait_allocatable(lab, "n2", {GPU: 4})
    logs = lab.driver("n2").parent / "mps/nvidia.com/gpu/log"
    with lab.namespace("mps") as ns:
        lab.pod(ns, "client", {GPU: 1}, "n2", command="env; sleep 10000")
        lab.wait_running(ns, "client")
        assert "CUDA_MPS_PIPE_DIRECTORY=/mps/nvidia.com/gpu/pipe" in lab.kubectl("-n", ns, "logs", "client")
        lab.exec(ns, "client", "ls /mps/nvidia.com/gpu/pipe")
        orders = eventually(lambda: (logs / "orders").read_text(), message="commands to the daemon")
        assert "set_default_active_thread_percentage 25" in orders and "set_default_device_pinned_mem_limit 0 3840M" in orders, orders
        assert "-f" in (logs / "calls").read_text()
    configure(lab, "n2", None)
    wait_allocatable(lab, "n2", {GPU: 1})


@test(limit=600)
def mig_layout_changes_keep_pods_on_common_instances(lab):
    lab.set_label("n1", MIG, "some")
    eventually(lambda: lab.labels("n1").get(STATE) == "success", message="MIG is configured")
    wait_allocatable(lab, "n1", {GPU: 7, "nvidia.com/mig-1g.10gb": 2, "nvidia.com/mig-2g.20gb": 1, "nvidia.com/mig-3g.40gb": 1})
    labels = lab.labels("n1")
    assert labels["nvidia.com/mig-1g.10gb.product"] == "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", labels
    assert labels["nvidia.com/mig-3g.40gb.count"] == "1" and labels["nvidia.com/gpu.count"] == "8", labels
    with lab.namespace("mig") as ns:
        lab.pod(ns, "small", {"nvidia.com/mig-1g.10gb": 1}, "n1")
        lab.pod(ns, "large", {"nvidia.com/mig-3g.40gb": 1}, "n1")
        lab.wait_running(ns, "small", "large")
        small = lab.visible_mig_caps(ns, "small")
        assert len(small) == 2 and lab.visible_gpus(ns, "small") == [0], small
        assert not set(small) & set(lab.visible_mig_caps(ns, "large"))
        eventually(lambda: len(json.loads(lab.http("n1", "/api/v1/node"))["holders"]) == 2, message="the agent reports both holders")
        lab.set_label("n1", MIG, "impossible")
        eventually(lambda: lab.labels("n1").get(STATE) == "failed", message="the impossible layout fails")
        assert lab.phase(ns, "large") == "Running", "no pod is evicted for an impossible layout"
        lab.set_label("n1", MIG, "others")
        eventually(lambda: lab.labels("n1").get(STATE) == "success", timeout=90, message="the second layout is applied")
        wait_allocatable(lab, "n1", {GPU: 7, "nvidia.com/mig-1g.10gb": 2, "nvidia.com/mig-2g.20gb": 2})
        # The small pod's instance is in both layouts, so the pod keeps running. The large pod's instance is deleted, and the pod evicted.
        assert lab.phase(ns, "small") == "Running" and lab.visible_mig_caps(ns, "small") == small
        assert "large" not in [p["metadata"]["name"] for p in lab.get("-n", ns, "pods")["items"]]
    eventually(lambda: not json.loads(lab.http("n1", "/api/v1/node"))["holders"], message="no holders remain")
    lab.set_label("n1", MIG, "alike")
    eventually(lambda: lab.labels("n1").get(STATE) == "success" and lab.allocatable("n1") == {"nvidia.com/mig-3g.40gb": 16}, timeout=90,
               message="all GPUs have the same layout")
    configure(lab, "n1", "single")
    wait_allocatable(lab, "n1", {GPU: 16})
    assert lab.labels("n1")["nvidia.com/gpu.product"] == "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb"
    configure(lab, "n1", None)
    lab.set_label("n1", MIG, "all-disabled")
    wait_allocatable(lab, "n1", {GPU: 8}, 90)
    assert not [k for k in lab.labels("n1") if k.startswith("nvidia.com/mig-")], "labels of removed instances are removed"


@test
def unhealthy_gpu_withdraws_every_replica_and_recovers(lab):
    configure(lab, "n1", "slices")
    wait_allocatable(lab, "n1", {SHARED: 32})
    lab.control("n1", "xid 3 31")
    # Nothing may change, which cannot be waited for: the agent gets the time in which it notices other faults.
    time.sleep(2)
    assert lab.allocatable("n1") == {SHARED: 32}, "an application error does not make the GPU unhealthy"
    lab.control("n1", "xid 3 31", "xid 3 94", "action 3 1")
    # Upstream withdraws only one of four replicas, because its map from devices to replicas has one entry per device.
    wait_allocatable(lab, "n1", {SHARED: 28}, 20)
    condition = [c for c in lab.node("n1")["status"]["conditions"] if c["type"] == "slipway.dev/GPUReady"][0]
    assert condition["status"] == "False" and "XID 94" in condition["message"], condition
    # Upstream never marks the GPU as healthy again.
    lab.control("n1", "xid 3 31", "xid 3 94")
    wait_allocatable(lab, "n1", {SHARED: 32}, 30)
    lab.control("n1", "xid 3 31", "xid 3 94", "lost 5")
    wait_allocatable(lab, "n1", {SHARED: 28}, 30)
    assert 'DCGM_FI_DEV_XID_ERRORS{gpu="3"' in lab.http("n1", "/metrics")
    lab.control("n1", "xid 3 31", "xid 3 94", "action 2 1")
    eventually(lambda: [d["index"] for d in json.loads(lab.http("n1", "/api/v1/node"))["offers"][0]["devices"] if d["fault"]] == ["2"],
               timeout=30, message="GPU 5 has recovered and GPU 2 waits for a reset")
    lab.control("n1", "xid 3 31", "xid 3 94")
    wait_allocatable(lab, "n1", {SHARED: 32}, 30)
    configure(lab, "n1", None)
    wait_allocatable(lab, "n1", {GPU: 8})


@test
def agent_waits_for_an_unloaded_driver(lab):
    with lab.namespace("unloaded") as ns:
        lab.pod(ns, "holder", {GPU: 1}, "n2")
        lab.wait_running(ns, "holder")
        lab.control("n2", "unloaded")
        wait_allocatable(lab, "n2", {}, 30)
        reason = lambda: [c for c in lab.node("n2")["status"]["conditions"] if c["type"] == "slipway.dev/GPUReady"][0]["reason"]
        eventually(lambda: reason() == "DriverMissing", message="the condition reports it")
        assert "slipway_gpu_driver_up 0" in lab.http("n2", "/metrics")
        lab.control("n2")
        wait_allocatable(lab, "n2", {GPU: 1}, 30)
        assert lab.phase(ns, "holder") == "Running" and reason() == "Ready"


@test
def metrics_name_the_pods(lab):
    with lab.namespace("metrics") as ns:
        lab.control("n1", *[f"utilization {gpu} 60" for gpu in range(8)])
        lab.pod(ns, "trainer", {GPU: 1}, "n1")
        lab.wait_running(ns, "trainer")
        gpu = lab.visible_gpus(ns, "trainer")[0]
        labels = f'container="main",namespace="{ns}",pod="trainer"'
        line = eventually(lambda: next(
            (l for l in lab.http("n1", "/metrics").splitlines() if l.startswith("DCGM_FI_DEV_GPU_UTIL") and labels in l and l.endswith(" 60")), None),
                          message="metrics have the pod's name")
        assert f'gpu="{gpu}",UUID="GPU-' in line and f'device="nvidia{gpu}"' in line, line
        assert 'modelName="NVIDIA A100-SXM4-80GB",Hostname="n1",DCGM_FI_DRIVER_VERSION="580.95.05"' in line, line

        def used(*names):
            """Values of one scrape, so that they can be compared with each other."""
            metrics = lab.http("n1", "/metrics")
            found = [re.search(rf'{name}{{[^}}]*pod="trainer"[^}}]*}} (\S+)', metrics) for name in names]
            return [float(value[1]) if value else 0 for value in found]

        eventually(lambda: used("slipway_gpu_pod_energy_joules_total")[0] > 100, timeout=30, message="energy is counted")
        # The first samples can be older than the utilization that was set above.
        compared = lambda: used("slipway_gpu_pod_busy_seconds_total", "slipway_gpu_pod_idle_seconds_total")
        eventually(lambda: (values := compared())[0] > values[1] > 0, timeout=60, message="the GPU is more busy than idle")
        board = (pathlib.Path(__file__).parents[2] / "deploy/grafana/gpus.json").read_text()
        served = set(re.findall(r"^# TYPE (\S+)", lab.http("n1", "/metrics"), re.M))
        queried = set(re.findall(r"\b(?:DCGM_FI|slipway_gpu)_\w+", board)) - {"DCGM_FI_DRIVER_VERSION"}
        assert len(queried) > 8 and queried <= served, queried - served
        lab.delete(ns, "trainer")
        eventually(lambda: next(
            l for l in json.loads(lab.http("n1", "/api/v1/node/leases"))["leases"] if l["pod"] == "trainer")["ended"], message="the lease ends")
        lease = next(l for l in json.loads(lab.http("n1", "/api/v1/node/leases"))["leases"] if l["pod"] == "trainer")
        assert lease["ended"] >= lease["began"] and lease["joules"] > 100 and lease["device"].startswith("GPU-"), lease
    lab.control("n1")


@test(limit=600)
def leases_and_devices_survive_kills_of_kubelet_and_agent(lab):
    with lab.namespace("killed") as ns:
        lab.pod(ns, "holder", {GPU: 3}, "n1")
        lab.wait_running(ns, "holder")
        held = lab.visible_gpus(ns, "holder")
        # Reading the log fails while there is no kubelet.
        registrations = lambda: lab.kubectl("-n", NAMESPACE, "logs", lab.agent("n1")["metadata"]["name"]).count("registered with the kubelet")
        before = registrations()
        # Both commands wait, the first until the process has ended.
        lab.lab("do", "kill", "kubelet-n1")
        lab.lab("do", "start", "kubelet-n1")
        eventually(lambda: registrations() > before, message="the plugin is registered again")
        wait_allocatable(lab, "n1", {GPU: 8})
        began = next(l for l in json.loads(lab.http("n1", "/api/v1/node/leases"))["leases"] if l["pod"] == "holder")["began"]
        for round in range(3):
            old = lab.agent_pid("n1")
            os.kill(old, signal.SIGKILL)
            # A pod that is created while no agent runs waits for the next agent.
            lab.pod(ns, f"late-{round}", {GPU: 1}, "n1", restart="Always")
            eventually(lambda: lab.agent_pid("n1") != old, timeout=90, message="a new agent runs")
        wait_allocatable(lab, "n1", {GPU: 8}, 120)
        late = []
        for round in range(3):
            name = f"late-{round}"
            phase = eventually(lambda: (p := lab.phase(ns, name)) in ("Running", "Failed") and p, timeout=90, message="the pod is running or has failed")
            if phase == "Failed":
                # The kubelet rejects a pod whose plugin does not respond; a controller would create another pod.
                lab.delete(ns, name)
                lab.pod(ns, name, {GPU: 1}, "n1")
                lab.wait_running(ns, name)
            late += lab.visible_gpus(ns, name)
        assert lab.visible_gpus(ns, "holder") == held and len(set(late + held)) == 6, (late, held)
        eventually(lambda: next(
            l for l in json.loads(lab.http("n1", "/api/v1/node/leases"))["leases"] if l["pod"] == "holder"), message="the lease continues")
        lease = next(l for l in json.loads(lab.http("n1", "/api/v1/node/leases"))["leases"] if l["pod"] == "holder")
        assert lease["began"] == began and lease["ended"] is None, lease
    sockets = [f for f in os.listdir("/run/slipway-lab/n1/kubelet/device-plugins") if f.startswith("slipway-")]
    assert sockets == ["slipway-nvidia.com-gpu.sock"], sockets
    assert [f for f in os.listdir("/run/slipway-lab/n1/run-cdi")] == ["slipway.dev-gpu.json"]


@test
def agent_killed_during_allocate_leaves_no_lease_or_device(lab):
    """strace delays the agent's write of the response to Allocate; the agent is killed during the delay."""
    cdi = lambda: sorted(os.listdir("/run/slipway-lab/n1/run-cdi"))
    before = cdi()
    with lab.namespace("inside") as ns, tempfile.TemporaryDirectory() as folder:
        trace = pathlib.Path(folder, "trace")
        trace.touch()
        old = lab.agent_pid("n1")
        calls = "write,writev,sendto,sendmsg"
        strace = subprocess.Popen(["strace", "-f", "-qq", "-s", "2000", "-o", trace, "-e", f"trace={calls}", "-e", f"inject={calls}:delay_enter=1s",
                                   "-p", str(old)], stderr=subprocess.DEVNULL)
        try:
            threads = pathlib.Path(f"/proc/{old}/task")
            eventually(lambda: all(re.search(r"^TracerPid:\t[1-9]", file.read_text(), re.M) for file in threads.glob("*/status")),
                       message="strace is attached to all threads of the agent")
            lab.pod(ns, "unlucky", {GPU: 1}, "n1")
            # Only the response to Allocate contains a CDI device; the preferred allocation before it contains just the GPU's id.
            eventually(lambda: "slipway.dev/gpu=GPU-" in trace.read_text(errors="replace"), message="the response is about to be written")
            os.kill(old, signal.SIGKILL)
        finally:
            strace.kill()
            strace.wait()
        # The kubelet rejects a pod when the connection to its plugin breaks; such a pod holds no GPU.
        eventually(lambda: lab.phase(ns, "unlucky") == "Failed", timeout=90, message="the pod has failed")
        eventually(lambda: lab.agent_pid("n1") != old, timeout=90, message="a new agent runs")
        wait_allocatable(lab, "n1", {GPU: 8}, 120)
        lab.pod(ns, "all", {GPU: 8}, "n1")
        lab.wait_running(ns, "all")
        assert len(set(lab.visible_gpus(ns, "all"))) == 8
        leases = json.loads(lab.http("n1", "/api/v1/node/leases"))["leases"]
        assert not [l for l in leases if l["pod"] == "unlucky"], leases
    assert cdi() == before, (before, cdi())


@test
def agent_survives_an_outage_of_the_api_server(lab):
    with lab.namespace("away") as ns:
        lab.pod(ns, "holder", {GPU: 1}, "n1")
        lab.wait_running(ns, "holder")
        lab.lab("do", "kill", "kube-apiserver")
        lab.control("n1", "lost 7")
        # The outage must outlast the agent's timeouts and its first attempts to reconnect.
        time.sleep(30)
        lab.lab("do", "kill", "etcd")
        lab.lab("do", "start", "etcd")
        lab.lab("do", "start", "kube-apiserver")
        eventually(lambda: lab.get("node", "n1"), message="the API server is back")
        wait_allocatable(lab, "n1", {GPU: 7}, 60)
        reason = lambda: [c for c in lab.node("n1")["status"]["conditions"] if c["type"] == "slipway.dev/GPUReady"][0]["reason"]
        eventually(lambda: reason() == "Unhealthy", message="the fault during the outage is reported")
        lab.control("n1")
        eventually(lambda: reason() == "Ready", message="the recovery is reported")
        # The timeout is long because the watch restarts with an increased backoff.
        configure(lab, "n1", "slices")
        wait_allocatable(lab, "n1", {SHARED: 32}, 120)
        configure(lab, "n1", None)
        wait_allocatable(lab, "n1", {GPU: 8})
        assert lab.phase(ns, "holder") == "Running"
        assert lab.agent("n1")["status"]["containerStatuses"][0]["restartCount"] <= 4


@test
def control_plane_meets_the_restricted_pod_security_standard(lab):
    warnings = subprocess.run([f"{lab.bin}/kubectl", "--kubeconfig", lab.kubeconfig, "label", "--dry-run=server", "--overwrite", "namespace",
                             NAMESPACE, "pod-security.kubernetes.io/enforce=restricted"], text=True, capture_output=True).stderr
    assert "slipway-node" in warnings and not re.search(r"slipway-(controller-)?[0-9a-f]{6,}-", warnings), warnings
    pod = [p for p in lab.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=server")["items"]][0]
    secret = lab.get("secret", "-n", NAMESPACE, "slipway-tokens")["data"]["tokens"]
    token = base64.b64decode(secret).decode().strip()

    def send(path, headers, body=None):
        request = urllib.request.Request(f"http://{pod['status']['podIP']}:7070{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return json.load(response) if body is None else response.status
        except urllib.error.HTTPError as error:
            return error.code

    body = json.dumps({"experiment_id": "0"}).encode()
    headers = {"content-type": "application/json"}
    assert send("/api/2.0/mlflow/runs/create", headers, body) == 401
    headers["authorization"] = f"Bearer {token}"
    assert send("/api/2.0/mlflow/runs/create", headers, body) == 200
    # The server reports the nodes, their GPUs and holders; so does the command line from outside the cluster.
    with lab.namespace("shown") as ns:
        lab.pod(ns, "holder", {GPU: 1}, "n1")
        lab.wait_running(ns, "holder")
        holders = lambda nodes: [h["holder"]["pod"] for n in nodes if n["node"] == "n1" for h in n["holders"]]
        eventually(lambda: holders(send("/api/v1/cluster", headers)["nodes"]) == ["holder"], message="the server shows the holder")
        nodes = json.loads(lab.slipway("node", "ls", "-o", "json").stdout)
        assert [n["node"] for n in nodes] == ["n1", "n2"] and holders(nodes) == ["holder"] and len(nodes[0]["gpus"]) == 8, nodes
        assert f"{ns}/holder" in lab.slipway("node", "ls").stdout
        assert f"{ns}/holder" in lab.slipway("node", "leases", "n1").stdout


@test
def agent_may_change_only_its_own_node(lab):
    name = lab.agent("n1")["metadata"]["name"]
    token = lab.kubectl("-n", NAMESPACE, "exec", name, "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")

    def patch(node, body):
        done = subprocess.run([f"{lab.bin}/kubectl", "--server", "https://172.30.0.1:6443", "--insecure-skip-tls-verify", "--token", token,
                               "--kubeconfig", "/dev/null", "patch", "node", node, "--type=merge", "-p", json.dumps(body)],
                              text=True, capture_output=True)
        return done.stderr if done.returncode else ""

    assert patch("n1", {"metadata": {"labels": {"nvidia.com/test": "1"}}}) == ""
    assert patch("n1", {"metadata": {"labels": {"nvidia.com/test": None}}}) == ""
    assert "own node only" in patch("n2", {"metadata": {"labels": {"nvidia.com/test": "1"}}})
    assert "its own labels only" in patch("n1", {"metadata": {"labels": {"team": "mine"}}})
    assert "its own labels only" in patch("n1", {"metadata": {"labels": {"kubernetes.io/arch": None}}})
    assert "spec" in patch("n1", {"spec": {"unschedulable": True}})
    taint = lambda key, effect="NoSchedule": {"spec": {"taints": [{"key": key, "value": "pending", "effect": effect}]}}
    assert "no taint but" in patch("n1", taint("team"))
    assert "NoSchedule" in patch("n1", taint("slipway.dev/not-accepted", "NoExecute"))
    assert "own node only" in patch("n2", taint("slipway.dev/not-accepted"))
    assert patch("n1", taint("slipway.dev/not-accepted")) == ""
    assert patch("n1", {"spec": {"taints": None}}) == ""


@test(limit=600)
def node_takes_work_only_after_acceptance(lab):
    """Nodes get the taint, pass the checks on simulated GPUs, and lose it. A pod that holds a GPU delays the checks."""
    taints = lambda name: [t["value"] for t in lab.node(name)["spec"].get("taints", []) if t["key"] == "slipway.dev/not-accepted"]
    label = lambda name: lab.node(name)["metadata"]["labels"].get("slipway.dev/accepted")
    with lab.namespace("accept") as ns:
        lab.pod(ns, "holder", {GPU: 1}, "n1")
        lab.wait_running(ns, "holder")
        lab.install(node={**VALUES["node"], "accept": {"level": 1}})
        try:
            eventually(lambda: label("n2") == "1" and not taints("n2"), timeout=120, message="n2 is accepted")
            eventually(lambda: taints("n1") == ["pending"], timeout=120, message="n1 waits")
            lab.kubectl("-n", ns, "delete", "pod", "holder", "--now")
            eventually(lambda: label("n1") == "1" and not taints("n1"), timeout=120, message="n1 is accepted")
            conditions = {c["type"]: c for c in lab.node("n1")["status"]["conditions"]}
            assert conditions["slipway.dev/Accepted"]["status"] == "True", conditions
        finally:
            lab.install(**VALUES)
    eventually(lambda: label("n1") is None, timeout=120, message="the label is removed with the setting")


@test(limit=600)
def claims_get_gpus_and_partitions(lab):
    """The same nodes, with their GPUs as devices for claims."""
    lab.set_label("n1", MIG, "all-disabled")
    lab.install(node={**VALUES["node"], "offer": "dra"})
    try:
        claims(lab)
    except BaseException:
        # The agent is restarted below, so the log of this one is printed now.
        print(lab.kubectl("-n", NAMESPACE, "logs", "--tail=50", lab.agent("n1")["metadata"]["name"], check=False))
        raise
    finally:
        lab.control("n1")
        lab.set_label("n1", MIG, "all-disabled")
        eventually(lambda: lab.labels("n1").get(STATE) == "success" and any(
            d["name"] == "gpu-7" for s in lab.get("resourceslices")["items"] for d in s["spec"].get("devices", [])), timeout=90, message="MIG is off")
        lab.install(**VALUES)
    wait_allocatable(lab, "n1", {GPU: 8}, 90)


def claims(lab):
    slices = eventually(lambda: [s for s in lab.get("resourceslices")["items"] if s["spec"]["nodeName"] == "n1"], message="slices")
    devices = [d for s in slices for d in s["spec"].get("devices", [])]
    first = next(d for d in devices if d["name"] == "gpu-0")
    assert first["attributes"]["productName"] == {"string": "NVIDIA A100-SXM4-80GB"}, first
    assert first["attributes"]["driverVersion"] == {"version": "580.95.5"} and first["capacity"]["memory"] == {"value": "80Gi"}, first
    wait_allocatable(lab, "n1", {})
    # The scheduler's cache lags behind, and cannot be observed. Until it is updated, the old pod is scheduled for the device plugin's GPU, and
    # the kubelet rejects it.
    time.sleep(2)
    with lab.namespace("claims") as ns:
        template = lambda name, cls, count=1, selector=None: {
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": {"name": name, "namespace": ns},
            "spec": {"spec": {"devices": {"requests": [{"name": "gpu", "exactly": {
                "deviceClassName": cls, "count": count, **({"selectors": [{"cel": {"expression": selector}}]} if selector else {})}}]}}}}
        ours = "device.attributes['gpu.slipway.dev']"
        lab.apply(template("two", "gpu.slipway.dev", 2, f"{ours}.architecture == 'Ampere'"),
                  template("slice", "mig.slipway.dev", 1, f"{ours}.profile == '3g.40gb'"))
        claim = lambda name: [{"name": "gpu", "resourceClaimTemplateName": name}]
        lab.pod(ns, "two", {}, claims=claim("two"))
        # A manifest without claims, which requests the extended resource.
        lab.pod(ns, "old", {GPU: 1}, "n1")
        lab.wait_running(ns, "two", "old")
        two, old = lab.visible_gpus(ns, "two"), lab.visible_gpus(ns, "old")
        assert len(two) == 2 and len(old) == 1 and not set(two) & set(old), (two, old)
        eventually(lambda: {h["holder"]["pod"] for h in json.loads(lab.http("n1", "/api/v1/node"))["holders"]} == {"two", "old"}, message="holders")
        # The instance of a partition is created and deleted with the pod.
        lab.delete(ns, "two", "old")
        lab.set_label("n1", MIG, "all-enabled")
        eventually(lambda: any(
            d["name"] == "gpu-0-mig-3g40gb-4" for s in lab.get("resourceslices")["items"] for d in s["spec"].get("devices", [])),
            message="partitions are advertised")
        for name in ["a", "b", "c"]:
            lab.pod(ns, name, {}, "n1", claims=claim("slice"))
        lab.wait_running(ns, "a", "b", "c")
        caps = [lab.visible_mig_caps(ns, n) for n in "abc"]
        assert all(len(c) == 2 for c in caps) and len({c for two in caps for c in two}) == 6, caps
        instances = lambda: sum(len(g["mig"]["devices"]) for g in json.loads(lab.http("n1", "/api/v1/node"))["gpus"])
        assert instances() == 3
        os.kill(lab.agent_pid("n1"), signal.SIGKILL)
        lab.delete(ns, "a")
        eventually(lambda: instances() == 2, timeout=120, message="the instance is deleted with its pod although the agent was killed")
        lab.delete(ns, "b", "c")
        eventually(lambda: instances() == 0, message="the other instances are deleted")
        # An unhealthy GPU is tainted, so that no claim gets it.
        lab.control("n1", "lost 0")
        tainted = lambda: [d["name"] for s in lab.get("resourceslices")["items"] if s["spec"]["nodeName"] == "n1"
                           for d in s["spec"].get("devices", []) if d.get("taints")]
        eventually(lambda: tainted() and all(n.startswith("gpu-0") for n in tainted()), message="taints")
        lab.control("n1")
        eventually(lambda: not tainted(), message="no taints")
        assert not lab.get("-n", ns, "resourceclaims")["items"], "claims are deleted with their pods"


@test
def compute_domains_gather_the_nodes_of_a_workload(lab):
    """The nodes have no NVLink domain, so they become ready without IMEX, and claims get no device node; everything else is as on NVL72."""
    lab.install(node={**VALUES["node"], "offer": "dra"}, computeDomains={"enabled": True, "imex": "host"})
    try:
        domains(lab)
    finally:
        lab.install(**VALUES)
    assert "computedomains" not in lab.kubectl("get", "crd", "-o", "name")
    wait_allocatable(lab, "n1", {GPU: 8}, 90)


def domains(lab):
    label = "resource.nvidia.com/computeDomain"
    domain = lambda name, ns, **spec: {
        "apiVersion": "resource.nvidia.com/v1beta1", "kind": "ComputeDomain", "metadata": {"name": name, "namespace": ns},
        "spec": {"channel": {"resourceClaimTemplate": {"name": f"{name}-channel"}}, **spec}}
    claim = lambda name: [{"name": "channel", "resourceClaimTemplateName": f"{name}-channel"}]
    status = lambda ns, name: lab.get("-n", ns, "computedomain", name).get("status", {})
    node_label = lambda node: lab.node(node)["metadata"]["labels"].get(label)
    nodes = list(lab.fixtures)[:2]
    with lab.namespace("domains") as ns, lab.namespace("others") as other:
        lab.apply(domain("pair", ns, numNodes=2))
        eventually(lambda: "pair-channel" in lab.kubectl("-n", ns, "get", "resourceclaimtemplates", "-o", "name"), message="the template")
        eventually(lambda: status(ns, "pair").get("status") == "NotReady", message="the status")
        for node in nodes:
            lab.pod(ns, node, {}, node, claims=claim("pair"))
        lab.wait_running(ns, *nodes)
        eventually(lambda: status(ns, "pair")["status"] == "Ready", message="the domain is ready")
        assert [n["name"] for n in status(ns, "pair")["nodes"]] == sorted(nodes), status(ns, "pair")
        uid = lab.get("-n", ns, "computedomain", "pair")["metadata"]["uid"]
        assert {node_label(n) for n in nodes} == {uid}
        lab.kubectl("-n", ns, "patch", "computedomain", "pair", "--type=merge", "-p", '{"spec": {"numNodes": 3}}', check=False)
        assert lab.get("-n", ns, "computedomain", "pair")["spec"]["numNodes"] == 2, "the spec is immutable"
        # A claim of another namespace cannot join the domain.
        lab.apply({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": {"name": "foreign-channel", "namespace": other},
                   "spec": lab.get("-n", ns, "resourceclaimtemplate", "pair-channel")["spec"]})
        lab.delete(ns, nodes[1])
        eventually(lambda: node_label(nodes[1]) is None, message="the node has left")
        lab.pod(other, "foreign", {}, nodes[1], claims=claim("foreign"))
        eventually(lambda: "another namespace" in lab.kubectl("-n", other, "describe", "pod", "foreign"), timeout=90, message="the claim is refused")
        lab.delete(other, "foreign")
        # Killing an agent and the controller loses nothing.
        os.kill(lab.agent_pid(nodes[0]), signal.SIGKILL)
        lab.kubectl("-n", NAMESPACE, "delete", "pod", "-l", "app.kubernetes.io/component=domains", "--grace-period=0", "--force")
        lab.pod(ns, "again", {}, nodes[1], claims=claim("pair"))
        lab.wait_running(ns, "again")
        eventually(lambda: status(ns, "pair")["status"] == "Ready", timeout=90, message="the domain is ready again")
        lab.delete(ns, nodes[0], "again")
        lab.kubectl("-n", ns, "delete", "computedomain", "pair", "--timeout=90s")
        eventually(lambda: not any(node_label(n) for n in nodes), message="labels are removed")
        eventually(lambda: not lab.get("-n", ns, "resourceclaimtemplates")["items"], message="the template is deleted")
        # Disabling deletes the remaining domains, although no controller is left.
        lab.apply(domain("left", ns))


SUITE.tests += runs.SUITE.tests
SUITE.tests += pipelines.SUITE.tests


@test(limit=600)
def runs_on_a_node_share_the_cache_of_their_data(lab):
    data.runs_on_a_node_share_its_cache(lab, VALUES)


@test
def stages_of_a_pipeline_run_as_pods(lab):
    data.stages_of_a_pipeline_run_as_pods(lab)


@test(limit=900)
def control_planes_and_gateways_share_their_state(lab):
    shared.control_planes_and_gateways_share_their_state(lab, VALUES)


@test(limit=900)
def cluster_file_installs_the_platform_and_smoke_tests_every_gpu_node(lab):
    clusterfile.cluster_file_installs_the_platform_and_smoke_tests_every_gpu_node(lab, VALUES)
    lab.install(**VALUES)


@test
def second_install_changes_nothing_and_removal_leaves_nothing(lab):
    output = lab.install(**VALUES)
    assert "0 objects" not in output and "~" not in output and "+ " not in output, output
    memory = dict(line.split(":") for line in open(f"/proc/{lab.agent_pid('n1')}/status") if line.startswith(("VmRSS", "RssAnon")))
    resident, own = (int(memory[name].split()[0]) for name in ("VmRSS", "RssAnon"))
    print(f"     the agent's memory: {resident} kB, {own} kB of it anonymous")
    # The limit of the rest is higher than what the agent touches: ext4 of recent kernels maps the program by large folios of the page cache.
    assert own < 8 * 1024 and resident < 40 * 1024, memory
    lab.set_label("n1", MIG, None)
    done = lab.slipway("down", "--kube", "--yes")
    eventually(lambda: not [l for l in lab.kubectl(
        "get", "daemonset,clusterrole,clusterrolebinding,resourceslices,deviceclasses,validatingadmissionpolicies,namespaces",
        "-A", "-o", "name").split() if "slipway" in l], message="all objects are deleted")
    assert lab.labels("n1") == {} and lab.labels("n2") == {}, (lab.labels("n1"), done.stderr)
    assert not [c for c in lab.node("n1")["status"]["conditions"] if "slipway" in c["type"]]


def reset(lab):
    """Prints the agents' logs after a failed test, and restores the initial state, so that the next test is independent of it."""
    for node in lab.fixtures:
        try:
            print(lab.kubectl("-n", NAMESPACE, "logs", "--tail=15", lab.agent(node)["metadata"]["name"], check=False))
        except (AssertionError, LookupError) as error:
            print(f"{node}: no log of the agent: {error!r}")
    for node in lab.fixtures:
        lab.control(node)
        configure(lab, node, None)
    lab.set_label("n1", MIG, "all-disabled")
    lab.install(**VALUES)


def main():
    options = SUITE.options(__doc__, binary=True)

    @contextlib.contextmanager
    def installed(_):
        lab = Lab(options.binary, {"n1": "a100x8", "n2": "t4"})
        try:
            lab.up()
            print(lab.install(**VALUES).strip().splitlines()[-1])
            yield lab
        finally:
            if not os.environ.get("KEEP"):
                lab.down()

    return SUITE.main(options, installed, after_failure=reset)


if __name__ == "__main__":
    sys.exit(main())
