"""A lab with slipway in it: what every test on a real Kubernetes needs. Nothing but Python's standard library."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

RUN = pathlib.Path("/run/slipway-lab")
NAMESPACE = "slipway-system"


class Failed(AssertionError):
    pass


def eventually(what, ask, limit=60, every=0.3):
    """Asks until the answer is true; the last answer or error is in the failure."""
    deadline, last = time.monotonic() + limit, None
    while time.monotonic() < deadline:
        try:
            last = ask()
            if last:
                return last
        except (Failed, KeyError, IndexError, ValueError, OSError) as error:
            last = error
        time.sleep(every)
    raise Failed(f"{what}: not within {limit} s; last: {last}")


class Lab:
    """Upstream's Kubernetes on this machine, with nodes that have a fake driver."""

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
        print(f"     the lab is up after {time.monotonic() - started:.1f} s")

    def down(self):
        self.lab("down")
        shutil.rmtree(self.folder, ignore_errors=True)

    def driver(self, node):
        return RUN / node / "nvidia" / "driver"

    def control(self, node, *lines):
        """What happens to a node's GPUs, in the words of the fake NVML's control file."""
        file = self.driver(node) / "control"
        new = file.with_suffix(".new")
        new.write_text("".join(line + "\n" for line in lines))
        new.rename(file)

    def kubectl(self, *words, given=None, check=True):
        command = [f"{self.bin}/kubectl", "--kubeconfig", self.kubeconfig, *words]
        done = subprocess.run(command, input=given, text=True, capture_output=True)
        if check and done.returncode:
            raise Failed(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *words):
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, *objects):
        self.kubectl("apply", "--server-side", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def slipway(self, *words, check=True):
        command = [self.binary, *words, "--kubeconfig", self.kubeconfig]
        done = subprocess.run(command, text=True, capture_output=True)
        if check and done.returncode:
            raise Failed(f"slipway {' '.join(words)}: {done.stderr}")
        return done

    def install(self, **more):
        """Puts slipway into the cluster as a user would; answers what it said."""
        file = self.folder / "values.json"
        file.write_text(json.dumps(more))
        values = ["--values", str(RUN / "values.yaml"), "--values", str(file)]
        return self.slipway("up", "--kube", "--yes", "--wait", "120", *values).stderr

    def node(self, name):
        return self.get("node", name)

    def allocatable(self, node):
        """What the node offers of GPUs; zeros are left out, as the kubelet keeps names of what was."""
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
        """The agent's process, seen from the machine."""
        uid = self.agent(node)["metadata"]["uid"]
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    command = pathlib.Path("/proc", entry, "cmdline").read_bytes()
                    if command.startswith(b"/usr/bin/slipway\0node\0") and uid in pathlib.Path("/proc", entry, "cgroup").read_text():
                        return int(entry)
        raise Failed(f"no agent runs on {node}")

    def http(self, node, path):
        """Asks a node's agent, with a token as the control plane has one."""
        address = self.agent(node)["status"]["podIP"]
        import urllib.request
        token = self.kubectl("create", "token", "slipway-node-reader", "-n", NAMESPACE, "--audience", "slipway-node").strip()
        request = urllib.request.Request(f"http://{address}:9400{path}", headers={"x-slipway-node-token": token})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()

    @contextlib.contextmanager
    def namespace(self, name, runs=False):
        """A namespace of its own, enabled for runs or not; afterwards it is gone, pods and all."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        eventually("the namespace's account", lambda: self.get("-n", name, "serviceaccount", "default"))
        if runs:
            self.enable(name)
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=true", "--timeout=60s")

    def enable(self, namespace):
        """Lets runs be carried out in a namespace, as the documentation says."""
        for binding, account in [("slipway-runs", "slipway-controller"), ("slipway-submit", "slipway")]:
            self.kubectl("-n", namespace, "create", "rolebinding", binding, f"--clusterrole={binding}-{NAMESPACE}",
                         f"--serviceaccount={NAMESPACE}:{account}")

    def token(self, namespace, account):
        """A service account's token that was made for slipway."""
        return self.kubectl("-n", namespace, "create", "token", account, "--audience", "slipway").strip()

    def pod(self, namespace, name, resources, node=None, command="sleep 10000", claims=None, restart="Never", **spec):
        """Starts a pod with one container."""
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

    def running(self, namespace, *names, limit=60):
        for name in names:
            try:
                eventually(f"pod {name} runs", lambda: self.phase(namespace, name) == "Running", limit)
            except Failed:
                print(self.kubectl("-n", namespace, "describe", "pod", name, check=False)[-1800:], file=sys.stderr)
                raise

    def delete(self, namespace, *names):
        self.kubectl("-n", namespace, "delete", "pod", *names, "--wait=true", "--timeout=60s", "--grace-period=0", "--force")

    def inside(self, namespace, pod, command):
        return self.kubectl("-n", namespace, "exec", pod, "--", "sh", "-c", command)

    def gpus_inside(self, namespace, pod):
        """Numbers of the GPUs' device nodes in a container."""
        names = self.inside(namespace, pod, "ls /dev").split()
        return sorted(int(n.removeprefix("nvidia")) for n in names if n.removeprefix("nvidia").isdigit())

    def caps_inside(self, namespace, pod):
        """MIG capabilities in a container."""
        return sorted(self.inside(namespace, pod, "ls /dev/nvidia-caps").split())
