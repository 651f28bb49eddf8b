"""Shared by the tests on a real Kubernetes: starts the lab, installs slipway, and works with pods and nodes. Standard library only."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "conformance"))
from suite import eventually

RUN = pathlib.Path("/run/slipway-lab")
NAMESPACE = "slipway-system"


class Failed(AssertionError):
    pass


class Lab:
    """Upstream's Kubernetes on this machine, whose nodes have a fake driver."""

    def __init__(self, binary, fixtures):
        self.binary = os.path.abspath(binary)
        self.fixtures = fixtures
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="slipway-lab-test-"))

    def lab(self, *words, **options):
        return subprocess.run([self.binary, "lab", *words], check=True, text=True, capture_output=True, **options).stdout

    def up(self):
        subprocess.run([self.binary, "lab", "down"], check=True)
        started = time.monotonic()
        self.kubeconfig = self.lab("up", "--nodes", str(len(self.fixtures)), "--gpus", ",".join(self.fixtures.values())).strip()
        self.bin = json.loads((RUN / "lab.json").read_text())["bin"]
        print(f"     the lab started in {time.monotonic() - started:.1f} s")

    def down(self):
        self.lab("down")
        shutil.rmtree(self.folder, ignore_errors=True)

    def driver(self, node):
        return RUN / node / "nvidia" / "driver"

    def control(self, node, *lines):
        """Replaces the lines of a node's control file for the fake NVML (testkit/fake-nvml/src/control.rs)."""
        file = self.driver(node) / "control"
        new = file.with_suffix(".new")
        new.write_text("".join(line + "\n" for line in lines))
        new.rename(file)

    def kubectl(self, *words, stdin=None, check=True):
        command = [f"{self.bin}/kubectl", "--kubeconfig", self.kubeconfig, *words]
        done = subprocess.run(command, input=stdin, text=True, capture_output=True)
        if check and done.returncode:
            raise Failed(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *words):
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, *objects):
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def slipway(self, *words, check=True):
        command = [self.binary, *words, "--kubeconfig", self.kubeconfig]
        done = subprocess.run(command, text=True, capture_output=True)
        if check and done.returncode:
            raise Failed(f"slipway {' '.join(words)}: {done.stderr}")
        return done

    def install(self, **more):
        """Installs slipway like a user, with additional values, and returns the output."""
        file = self.folder / "values.json"
        file.write_text(json.dumps(more))
        values = ["--values", str(RUN / "values.yaml"), "--values", str(file)]
        try:
            return self.slipway("up", "--kube", "--yes", "--wait", "120", *values).stderr
        except Failed as failure:
            raise Failed(f"{failure}\n{self.state()}")

    def state(self):
        """What a person would look at when pods do not become ready: the nodes' taints, the pods, and the latest events."""
        taints = "custom-columns=NODE:.metadata.name,TAINTS:.spec.taints[*].key,CONDITIONS:.status.conditions[?(@.status=='True')].type"
        return "\n".join(self.kubectl(*words, check=False)[-4000:] for words in (
            ("get", "nodes", "-o", taints), ("get", "pods", "-n", NAMESPACE, "-o", "wide"),
            ("get", "events", "-n", NAMESPACE, "--sort-by=.metadata.creationTimestamp", "-o", "custom-columns=:.involvedObject.name,:.reason,:.message")))

    def node(self, name):
        return self.get("node", name)

    def allocatable(self, node):
        """The node's allocatable GPU resources, without zeros: the kubelet keeps the names of removed resources."""
        found = self.node(node)["status"]["allocatable"]
        return {k: int(v) for k, v in found.items() if k.startswith("nvidia.com/") and v != "0"}

    def labels(self, node):
        return {k: v for k, v in self.node(node)["metadata"]["labels"].items() if k.startswith("nvidia.com/")}

    def label(self, node, **labels):
        words = [f"{k.replace('__', '/')}={v}" if v is not None else f"{k.replace('__', '/')}-" for k, v in labels.items()]
        self.kubectl("label", "--overwrite", "node", node, *words)

    def set_label(self, node, key, value):
        self.kubectl("label", "--overwrite", "node", node, f"{key}={value}" if value else f"{key}-")

    def agent(self, node):
        pods = self.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=node",
                        "--field-selector", f"spec.nodeName={node}")["items"]
        return [p for p in pods if "deletionTimestamp" not in p["metadata"]][0]

    def agent_pid(self, node):
        """The process id of the agent in the machine's process namespace."""
        uid = self.agent(node)["metadata"]["uid"]
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    command = pathlib.Path("/proc", entry, "cmdline").read_bytes()
                    if command.startswith(b"/usr/bin/slipway\0node\0") and uid in pathlib.Path("/proc", entry, "cgroup").read_text():
                        return int(entry)
        raise Failed(f"no agent runs on {node}")

    def http(self, node, path):
        """Sends a request to a node's agent, with a token like that of the control plane."""
        address = self.agent(node)["status"]["podIP"]
        import urllib.request
        token = self.kubectl("create", "token", "slipway-node-reader", "-n", NAMESPACE, "--audience", "slipway-node").strip()
        request = urllib.request.Request(f"http://{address}:9400{path}", headers={"x-slipway-node-token": token})
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.read().decode()

    @contextlib.contextmanager
    def namespace(self, name, runs=False):
        """Creates a namespace, optionally enabled for runs, and deletes it with its pods afterwards."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        eventually(lambda: self.get("-n", name, "serviceaccount", "default"), message="the namespace's account")
        if runs:
            self.enable(name)
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=true", "--timeout=60s")

    def enable(self, namespace):
        """Enables a namespace for runs, with the commands of the documentation."""
        for binding, account in [("slipway-runs", "slipway-controller"), ("slipway-submit", "slipway")]:
            self.kubectl("-n", namespace, "create", "rolebinding", binding, f"--clusterrole={binding}-{NAMESPACE}",
                         f"--serviceaccount={NAMESPACE}:{account}")

    def token(self, namespace, account):
        """Creates a token of a service account for slipway's audience."""
        return self.kubectl("-n", namespace, "create", "token", account, "--audience", "slipway").strip()

    def pod(self, namespace, name, resources, node=None, command="sleep 10000", claims=None, restart="Never", **spec):
        """Creates a pod with one container."""
        container = {"name": "main", "image": "lab.local/tool:1", "imagePullPolicy": "Never", "command": ["sh", "-c", command],
                     "resources": {"limits": resources}}
        if claims:
            container["resources"]["claims"] = [{"name": c["name"]} for c in claims]
            spec["resourceClaims"] = claims
        if node:
            spec["nodeSelector"] = {"kubernetes.io/hostname": node}
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
                    "spec": {"restartPolicy": restart, "terminationGracePeriodSeconds": 0, "containers": [container], **spec}})

    def phase(self, namespace, name):
        return self.get("-n", namespace, "pod", name)["status"].get("phase")

    def wait_running(self, namespace, *names):
        for name in names:
            try:
                eventually(lambda: self.phase(namespace, name) == "Running", message=f"pod {name} is running")
            except AssertionError:
                print(self.kubectl("-n", namespace, "describe", "pod", name, check=False)[-1800:], file=sys.stderr)
                raise

    def delete(self, namespace, *names):
        self.kubectl("-n", namespace, "delete", "pod", *names, "--wait=true", "--timeout=60s", "--grace-period=0", "--force")

    def exec(self, namespace, pod, command):
        return self.kubectl("-n", namespace, "exec", pod, "--", "sh", "-c", command)

    def visible_gpus(self, namespace, pod):
        """The numbers of the GPU device nodes in a container."""
        names = self.exec(namespace, pod, "ls /dev").split()
        return sorted(int(n.removeprefix("nvidia")) for n in names if n.removeprefix("nvidia").isdigit())

    def visible_mig_caps(self, namespace, pod):
        """The MIG capability devices in a container."""
        return sorted(self.exec(namespace, pod, "ls /dev/nvidia-caps").split())
