#!/usr/bin/env python3
"""NVIDIA's own device plugin and feature discovery beside slipway's node agent: the same driver, the same file, the same answers.

    conformance/kube/plugin.py --slipway target/release/slipway --peers FOLDER

FOLDER holds `kubelet`, `nvidia-device-plugin` and `gpu-feature-discovery`, built from `plugin/go.mod`. Both agents read the same fake
NVML; `kubelet` asks both what the kubelet asks: options, devices, preferred allocations, allocations. Then a GPU becomes sick. Needs
root, for device nodes and a mount namespace: upstream's folder of sockets cannot be chosen.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "conformance"), str(ROOT / "conformance/gpu")]
from lib import free_port
from run import machine

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
    "MIG single, none made": ("h100x8", [], PLUGIN % ("single", "envvar", "uuid", "false")),
}


class Case:
    """A machine with a driver, and one agent after the other on it."""

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
        """What the kernel's driver tells of MIG: a minor number for every instance that could be. Of both agents' `/proc/driver`."""
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
        """The kubelet and an agent; yields what the agent answered, and a function that reads health after a time."""
        kubelet_folder = self.folder / agent
        sockets = kubelet_folder / "device-plugins"
        sockets.mkdir(parents=True)
        with open(self.folder / f"{agent}.log", "w+") as log, contextlib.ExitStack() as stack:
            kubelet = stack.enter_context(subprocess.Popen([self.peers / "kubelet", sockets, "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            stack.callback(kubelet.kill)
            assert json.loads(kubelet.stdout.readline()) == "ready"
            # Both have upstream's folder of sockets and the driver's part of /proc, which cannot be chosen.
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
        with self.kubelet("slipway", command) as answers:
            yield answers

    def labels(self):
        """Of feature discovery and of the agent that runs."""
        file = self.folder / "features"
        self.run(self.peers / "gpu-feature-discovery", "--oneshot", "--no-timestamp", "--use-node-feature-api=false", "--config-file", self.config, "--output-file", file,
                 "--driver-root-ctr-path", self.root, LD_LIBRARY_PATH=str(self.root / "usr/lib/x86_64-linux-gnu"))
        theirs = dict(line.split("=", 1) for line in file.read_text().splitlines())
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/node", timeout=10) as answer:
            return theirs, json.load(answer)["labels"]


def plain(answers):
    """Without what is each one's own name (the CDI kind, an annotation's key) and what upstream leaves to chance (orders, which replica, which MIG device)."""
    text = json.dumps(answers)
    text = re.sub(r"k8s\.device-plugin\.nvidia\.com/gpu=|slipway\.dev/gpu=", "KIND=", text)
    answers = json.loads(re.sub(r'"cdi\.k8s\.io/[^"]*"', '"ANNOTATION"', text))
    for resource in answers.values():
        for key, chosen in resource["preferred"].items():
            if any(id.startswith("MIG-") for id in chosen):
                resource["preferred"][key] = len(chosen)
            elif any("::" in id for id in chosen):
                counts = collections.Counter(id.split("::")[0] for id in chosen)
                resource["preferred"][key] = sorted(counts.values())
        for answer in resource["allocate"].values():
            if isinstance(answer, dict):
                for texts in (answer.get("envs", {}), answer.get("annotations", {})):
                    for key, text in texts.items():
                        texts[key] = sorted(text.split(","))
                for key in ("devices", "mounts", "cdi_devices"):
                    answer.get(key, []).sort(key=json.dumps)
    return answers


def differences(theirs, ours, path=""):
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            yield from differences(theirs.get(key), ours.get(key), f"{path}/{key}")
    elif theirs != ours:
        yield f"{path}\n       upstream {json.dumps(theirs)}\n       slipway  {json.dumps(ours)}"


def same_answers(arguments, fake, names):
    failed = 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix="slipway-plugin-") as folder:
            case = Case(name, folder, arguments.slipway, arguments.peers, fake)
            with case.upstream() as (theirs, _):
                pass
            with case.ours() as (ours, _):
                features, labels = case.labels()
        wrong = [*differences(plain(theirs), plain(ours)), *differences(features, labels, "labels")]
        failed += bool(wrong)
        offered = ", ".join(f"{len(answer['devices'])} {name}" for name, answer in sorted(theirs.items()))
        print(f"{'FAIL' if wrong else 'ok  '} {name}: {offered}; {len(features)} labels", flush=True)
        for line in wrong:
            print("    ", line)
    return failed


def sick(arguments, fake):
    """Upstream's two known defects: of the replicas of a sick GPU one is withdrawn, and none comes back. Here all are, and do."""
    def health(agent, case):
        with agent() as (_, read):
            case.control.write_text("xid 0 79\n")
            ill = read(2)
            case.control.write_text("")
            well = read(8)
        count = lambda now: sum(state == "Unhealthy" for state in now["nvidia.com/gpu"].values())
        return count(ill), count(well)

    with tempfile.TemporaryDirectory(prefix="slipway-plugin-") as folder:
        case = Case("time slices", folder, arguments.slipway, arguments.peers, fake)
        theirs = health(case.upstream, case)
        case.control.unlink()
        ours = health(case.ours, case)
    said = f"of 4 replicas of a GPU with XID 79, then without: upstream withdraws {theirs[0]}, later {theirs[1]}; slipway {ours[0]}, later {ours[1]}"
    right = ours == (4, 0)
    print(f"{'ok  ' if right else 'FAIL'} a sick GPU: {said}")
    return not right


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slipway", required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    if os.geteuid():
        print("skipped: device nodes and mounts need root")
        return 0
    arguments.slipway = os.path.abspath(arguments.slipway)
    fake = pathlib.Path(arguments.slipway).with_name("libslipway_fake_nvml.so")
    failed = same_answers(arguments, fake, arguments.names or list(CASES))
    if not arguments.names:
        failed += sick(arguments, fake)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
