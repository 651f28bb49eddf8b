"""Benchmarks slipway's runs and Kubernetes' own jobs on the same API server and nodes: throughput, requests, CPU time and memory.

    python3 bench/operator/run.py --slipway target/release/slipway --hollow target/release/examples/hollow_nodes [--runs 10000] [--nodes 1000]

* The control plane is the lab's: upstream's etcd, kube-apiserver, scheduler and controller manager, on this machine.
* The nodes are hollow: each advertises 8 GPUs, and a pod runs for a second and succeeds. Each run and each job requests one GPU.
* The request limits of the scheduler and the controller manager are raised (their defaults are 50 and 20 per second), because the benchmark
  would otherwise measure the limit, not the job controller.
* slipway runs first, so that etcd still has its runs and remaining pods while jobs are measured.
* "requests" are those that the controller itself sends: slipway's own count, and `rest_client_requests_total` of the controller manager,
  which is started with only the job controllers.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import ssl
import subprocess
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "conformance"))
from lib import Slipway, cpu_seconds, peak_memory

RUN = pathlib.Path("/run/slipway-lab")
TOKEN = "0123456789abcdef0123456789abcdef"
NAMESPACE = "slipway-system"


class Cluster:
    """The lab's control plane with hollow nodes."""

    def __init__(self, slipway, hollow, nodes):
        self.slipway = slipway
        subprocess.run([slipway, "lab", "down"], check=True)
        self.kubeconfig = subprocess.run([slipway, "lab", "up", "--nodes", "0"], check=True, text=True, capture_output=True).stdout.strip()
        self.bin = json.loads((RUN / "lab.json").read_text())["bin"]
        pki = RUN / "pki"
        self.server = re.search(r"https://[^\"\s]+", pathlib.Path(self.kubeconfig).read_text())[0]
        self.tls = ssl.create_default_context(cafile=f"{pki}/ca.crt")
        self.tls.load_cert_chain(f"{pki}/admin.crt", f"{pki}/admin.key")
        self.started, self.replaced = [], {}
        self.restart("kube-scheduler", "--kube-api-qps=10000", "--kube-api-burst=10000")
        self.restart_manager()
        self.started.append(subprocess.Popen([hollow, self.kubeconfig, str(nodes), "1"], stdout=subprocess.PIPE, text=True))
        print(f"{self.started[-1].stdout.readline().strip()} with 8 GPUs each", flush=True)

    def restart(self, name, *more, drop=()):
        """Restarts a process of the lab with more arguments, and without those that begin with `drop`."""
        if name in self.replaced:
            self.replaced[name].kill()
            self.replaced[name].wait()
        else:
            subprocess.run([self.slipway, "lab", "do", "stop", name], check=True, capture_output=True)
        args = json.loads((RUN / "process" / f"{name}.json").read_text())["args"]
        kept = [a for a in args if not a.startswith(tuple(drop))] if drop else args
        log = open(RUN / "log" / f"{name}.log", "a")
        process = subprocess.Popen([*kept, *more], stdout=log, stderr=log)
        self.started.append(process)
        self.replaced[name] = process
        return process

    def restart_manager(self, *controllers):
        """Restarts the controller manager with only these controllers; without the node controller, hollow nodes need no heartbeats."""
        names = ",".join(controllers or ("serviceaccount-controller", "garbage-collector-controller", "namespace-controller"))
        return self.restart("kube-controller-manager", f"--controllers={names}", "--kube-api-qps=10000", "--kube-api-burst=10000",
                            "--concurrent-job-syncs=16", drop=("--node-monitor-grace-period",))

    def request(self, path, body=None, kind="application/json"):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.server + path, data, {"content-type": kind})
        with urllib.request.urlopen(request, context=self.tls, timeout=60) as response:
            return json.load(response)

    def kubectl(self, *words, given=None):
        return subprocess.run([f"{self.bin}/kubectl", "--kubeconfig", self.kubeconfig, *words], input=given, check=True, text=True, capture_output=True).stdout

    def down(self):
        for process in self.started:
            process.kill()
        subprocess.run([self.slipway, "lab", "down"], check=True)


def metric_total(text, name):
    """The sum of all series of a metric in the Prometheus text format."""
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))


def create_all(count, create):
    """Calls `create` with 0 to `count` - 1, sixteen at a time, and returns the seconds that it took."""
    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(create, range(count)))
    return time.perf_counter() - started


def wait_until_finished(cluster, path, done, count, limit):
    """Waits until all objects are finished; fails after `limit` seconds without progress."""
    deadline, last = time.monotonic() + limit, 0
    while time.monotonic() < deadline:
        found, token, finished = 0, "", 0
        while True:
            page = cluster.request(f"{path}?limit=2000&continue={token}")
            found += len(page["items"])
            finished += sum(1 for item in page["items"] if done(item))
            token = page["metadata"].get("continue", "")
            if not token:
                break
        if finished == count:
            return
        if finished > last:
            deadline, last = time.monotonic() + limit, finished
        time.sleep(2)
    raise SystemExit(f"{finished} of {count} are finished, without progress for {limit} s")


def runs(cluster, count):
    cluster.kubectl("create", "namespace", "runs")
    folder = pathlib.Path("/tmp")
    tokens = folder / "slipway-bench-tokens"
    tokens.write_text(TOKEN + "\n")
    cluster.kubectl("apply", "-f", str(pathlib.Path(__file__).parents[2] / "deploy/helm/slipway/files/runs.yaml"))
    cluster.kubectl("create", "namespace", NAMESPACE)
    environment = {"KUBECONFIG": cluster.kubeconfig, "SLIPWAY_NAMESPACE": NAMESPACE, "SLIPWAY_SERVICE_HOST": "127.0.0.1", "SLIPWAY_LOG": "error"}
    with Slipway(cluster.slipway, options=["--token-file", str(tokens)], environment=environment) as server:
        def metrics():
            request = urllib.request.Request(server.url + "/metrics", headers={"authorization": f"Bearer {TOKEN}"})
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.read().decode()

        while metric_total(metrics(), "slipway_controller_leading") < 1:
            time.sleep(0.5)
        before, cpu = metric_total(metrics(), "slipway_kube_requests_total"), cpu_seconds(server.process.pid)
        headers = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}

        def submit(number):
            body = {"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": {"name": f"run-{number}"}, "spec": {
                "image": "hollow", "experiment": "bench", "command": ["true"], "resources": {"limits": {"nvidia.com/gpu": 1}}}}
            request = urllib.request.Request(server.url + "/api/v1/runs?namespace=runs", json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=120) as response:
                assert response.status == 201

        started = time.perf_counter()
        submitting = create_all(count, submit)
        wait_until_finished(cluster, "/apis/slipway.dev/v1/namespaces/runs/runs", lambda r: r.get("status", {}).get("phase") == "Succeeded" and r["status"].get("attributed"), count, 120)
        took = time.perf_counter() - started
        while metric_total(metrics(), "slipway_controller_queue_depth") > 0:
            time.sleep(0.2)
        quiet = time.perf_counter() - started
        text = metrics()
        return {"objects per second": count / took, "submitting, s": submitting, "until quiet, s": quiet,
                "requests per object": (metric_total(text, "slipway_kube_requests_total") - before) / count,
                "reconciles per object": metric_total(text, "slipway_controller_reconciled_total") / count,
                "CPU time, s": cpu_seconds(server.process.pid) - cpu, "memory, MiB": peak_memory(server.process.pid)}


def jobs(cluster, count):
    manager = cluster.restart_manager("job-controller", "serviceaccount-controller")
    cluster.kubectl("create", "namespace", "jobs")
    time.sleep(5)

    def metrics():
        with urllib.request.urlopen(urllib.request.Request("https://127.0.0.1:10257/metrics"), context=unverified, timeout=30) as response:
            return response.read().decode()

    unverified = ssl._create_unverified_context()
    unverified.load_cert_chain(f"{RUN}/pki/admin.crt", f"{RUN}/pki/admin.key")
    before, cpu = metric_total(metrics(), "rest_client_requests_total"), cpu_seconds(manager.pid)

    def submit(number):
        cluster.request("/apis/batch/v1/namespaces/jobs/jobs", {
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"job-{number}"}, "spec": {"backoffLimit": 0, "template": {"spec": {
                "restartPolicy": "Never", "containers": [{"name": "main", "image": "hollow", "command": ["true"],
                                                          "resources": {"limits": {"nvidia.com/gpu": 1}}}]}}}})

    started = time.perf_counter()
    submitting = create_all(count, submit)
    wait_until_finished(cluster, "/apis/batch/v1/namespaces/jobs/jobs", lambda j: j.get("status", {}).get("succeeded") == 1 and j["status"].get("completionTime"), count, 120)
    took = time.perf_counter() - started
    return {"objects per second": count / took, "submitting, s": submitting, "until quiet, s": took,
            "requests per object": (metric_total(metrics(), "rest_client_requests_total") - before) / count,
            "CPU time, s": cpu_seconds(manager.pid) - cpu, "memory, MiB": peak_memory(manager.pid)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slipway", default="target/release/slipway")
    parser.add_argument("--hollow", default="target/release/examples/hollow_nodes")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=1_000)
    options = parser.parse_args()
    cluster = Cluster(os.path.abspath(options.slipway), os.path.abspath(options.hollow), options.nodes)
    try:
        ours = runs(cluster, options.runs)
        print(f"slipway: {ours}", flush=True)
        cluster.kubectl("delete", "namespace", "runs", "--wait=false")
        subprocess.run([f"{cluster.bin}/kubectl", "--kubeconfig", cluster.kubeconfig, "delete", "pods", "-n", "runs", "--all", "--force",
                        "--grace-period=0", "--wait=false"], capture_output=True)
        theirs = jobs(cluster, options.runs)
        print(f"jobs: {theirs}", flush=True)
    finally:
        cluster.down()
    print(f"\n| {options.runs:,} on {options.nodes:,} nodes | jobs (kube-controller-manager) | slipway | ratio |")
    print("|---|---:|---:|---:|")
    for name, value in ours.items():
        peer = theirs.get(name)
        ratio = "" if peer is None else f"{(value / peer if 'second' in name else peer / value):.2f}x"
        print(f"| {name} | {'' if peer is None else format(peer, ',.1f')} | {value:,.1f} | {ratio} |")


if __name__ == "__main__":
    main()
