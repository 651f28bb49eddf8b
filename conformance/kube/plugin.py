#!/usr/bin/env python3
"""Compares slipway's node agent with NVIDIA's device plugin and feature discovery, on the same driver with the same configuration.

    conformance/kube/plugin.py --slipway target/release/slipway --kubelet PATH [--upstream FOLDER] [SUBSTRING ...] [--list] [--junit FILE]

With `--upstream` the originals run, `nvidia-device-plugin` and `gpu-feature-discovery` in that folder, and their responses are recorded
anew in `recorded/plugin`; without, the recordings are used. All programs are built from `plugin/go.mod`. Both agents read the same fake
NVML; `kubelet` sends both the requests of a real kubelet: options, devices, preferred allocations, allocations. Then a GPU becomes
unhealthy. Needs root, for device nodes and a mount namespace, because upstream's folder of sockets is not configurable.
"""

import collections
import contextlib
import inspect
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
from recorded import Recordings, differences, module_version, normalized
from run import fixture_file, machine
from suite import Skip, Suite

# The agents mostly wait for each other, so some cases run at the same time.
SUITE = Suite("plugin", jobs=4)
PLUGIN_FOLDER = ROOT / "conformance/kube/plugin"

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

    def __init__(self, name, folder, arguments, fake):
        self.fixture, layouts, config = CASES[name]
        self.folder, self.slipway, self.programs = pathlib.Path(folder), arguments.slipway, arguments
        self.root = machine(folder, fake)
        self.control = self.folder / "control"
        self.config = self.folder / "config.yaml"
        self.config.write_text("version: v1\n" + config)
        self.capabilities()
        self.environment = {**os.environ, "SLIPWAY_FAKE_NVML_FIXTURE": self.fixture, "SLIPWAY_FAKE_NVML_CONTROL": str(self.control),
                            "SLIPWAY_FAKE_NVML_STATE": str(self.folder / "mig.json")}
        for layout in layouts:
            layout, gpus = layout.split(" on ")
            self.run(self.slipway, "gpu", "mig", "apply", layout, "--gpus", gpus, "--yes", "--fixture", self.fixture)

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
            kubelet = stack.enter_context(subprocess.Popen([self.programs.kubelet, sockets, "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
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
            self.programs.upstream / "nvidia-device-plugin", "--config-file", self.config, "--driver-root", self.root, "--driver-root-ctr-path", self.root])

    @contextlib.contextmanager
    def ours(self):
        self.port = free_port()
        command = lambda folder: [
            self.slipway, "node", "run", "--no-kube", "--home", self.folder / "home", "--config-file", self.config, "--kubelet-dir", folder,
            "--cdi-dir", self.folder / "cdi", "--driver-root", self.root, "--listen", f"127.0.0.1:{self.port}", "--recover-after", "5",
            "--fixture", self.fixture]
        with self.kubelet("slipway", command) as responses:
            yield responses

    def features(self):
        """The labels of feature discovery."""
        file = self.folder / "features"
        self.run(self.programs.upstream / "gpu-feature-discovery", "--oneshot", "--no-timestamp", "--use-node-feature-api=false", "--config-file", self.config, "--output-file", file,
                 "--driver-root-ctr-path", self.root, LD_LIBRARY_PATH=str(self.root / "usr/lib/x86_64-linux-gnu"))
        return dict(line.split("=", 1) for line in file.read_text().splitlines())

    def labels(self):
        """The labels of slipway's running agent."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/node", timeout=10) as response:
            return json.load(response)["labels"]


def mask_host(labels):
    """Masks the label with the vendor's name of this machine, if it is right: it is the only one that does not come from the fixture."""
    try:
        product = pathlib.Path("/sys/class/dmi/id/product_name").read_text().strip().replace(" ", "-")
    except OSError:
        product = "unknown"
    return {key: "<machine>" if key == "nvidia.com/gpu.machine" and value == product else value for key, value in labels.items()}


def normalize(responses, case):
    """Masks the case's folder, names that differ by design (the CDI kind, annotation keys), and random choices of upstream (orders, replicas,
    MIG devices)."""
    text = json.dumps(responses).replace(str(case.folder), "<folder>")
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


def request_of(name):
    """All that the originals' responses depend on, except for themselves."""
    return [CASES[name], fixture_file(CASES[name][0]), inspect.getsource(machine), inspect.getsource(Case.capabilities), (PLUGIN_FOLDER / "kubelet/main.go").read_text()]


@contextlib.contextmanager
def simulated(name, options):
    with tempfile.TemporaryDirectory(prefix="slipway-plugin-") as folder:
        yield Case(name, folder, options, pathlib.Path(options.slipway).with_name("libslipway_fake_nvml.so"))


def compare_responses(options, name):
    """Compares both agents in one case."""
    with simulated(name, options) as case:
        def upstream():
            with case.upstream() as (responses, _):
                assert responses, "upstream has registered no resource in time"
                return {"responses": normalize(responses, case), "labels": mask_host(case.features())}

        theirs = options.recordings.response(name, request_of(name), upstream)
        with case.ours() as (responses, _):
            ours = {"responses": normalize(responses, case), "labels": mask_host(case.labels())}
    advertised = ", ".join(f"{len(response['devices'])} {resource}" for resource, response in sorted(theirs["responses"].items()))
    print(f"     {advertised}; {len(theirs['labels'])} labels")
    found = list(differences(theirs, normalized(ours)))
    assert not found, f"{len(found)} differences from {options.recordings}\n" + "\n".join(found)


for name in CASES:
    SUITE.add(name, lambda options, name=name: compare_responses(options, name))


# The times are fixed instead of waits for a state, because upstream never reaches it.
def unhealthy_devices(agent, case):
    """The numbers of unhealthy devices while a GPU has XID 79, and later."""
    with agent() as (_, read):
        case.control.write_text("xid 0 79\n")
        during = read(2)
        case.control.write_text("")
        after = read(8)
    return [sum(state == "Unhealthy" for state in devices["nvidia.com/gpu"].values()) for devices in (during, after)]


@SUITE.test
def every_replica_of_an_unhealthy_gpu_is_withdrawn_until_it_recovers(options):
    """Two known defects of upstream: only one replica of an unhealthy GPU is withdrawn, and it never recovers. slipway handles both."""
    name = "time slices"
    with simulated(name, options) as case:
        request = [request_of(name), inspect.getsource(unhealthy_devices)]
        theirs = options.recordings.response("unhealthy GPU", request, lambda: unhealthy_devices(case.upstream, case))
        case.control.unlink(missing_ok=True)
        ours = unhealthy_devices(case.ours, case)
    print(f"     of 4 replicas of a GPU with XID 79, then without: upstream withdraws {theirs[0]}, later {theirs[1]}; slipway {ours[0]}, later {ours[1]}")
    assert ours == [4, 0], ours


@SUITE.test(serial=True)
def every_recording_belongs_to_a_case(options):
    if options.names:
        raise Skip("not all cases were run")
    assert not (complaints := options.recordings.finish()), complaints


def main():
    options = SUITE.options(
        __doc__, slipway={"required": True}, kubelet={"required": True, "help": "the test program that sends a kubelet's requests"},
        upstream={"type": pathlib.Path, "help": "the folder of the originals, which are then run and recorded anew"})
    options.slipway = os.path.abspath(options.slipway)
    version = module_version(PLUGIN_FOLDER / "go.mod", "github.com/NVIDIA/k8s-device-plugin")
    options.recordings = Recordings(ROOT / "conformance/kube/recorded/plugin", f"k8s-device-plugin {version}", live=bool(options.upstream))

    @contextlib.contextmanager
    def root(_):
        if os.geteuid():
            raise Skip("device nodes and mounts need root")
        yield options

    return SUITE.main(options, root)


if __name__ == "__main__":
    sys.exit(main())
