#!/usr/bin/env python3
"""Checks that the Helm chart and `slipway up --kube` produce the same objects: compares the output of `helm template` and of `--dry-run`.

    conformance/kube/chart.py --slipway target/release/slipway [--helm helm] [SUBSTRING ...] [--list] [--junit FILE]

With `--helm` the output of Helm is recorded anew in `recorded/chart`; without, the recordings are used. They are valid for the same chart.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "conformance"))
from recorded import Recordings, differences, module_version, normalized
from suite import Skip, Suite

SUITE = Suite("chart", limit=60)
CHART = ROOT / "deploy/helm/slipway"
# Kinds that are left out of the comparison, each with its reason.
ONLY_ONE_SIDE = {
    "Namespace": "Helm creates it itself (--create-namespace)",
    "Secret": "its token is random; slipway creates it if it is missing, the chart by a hook",
}
VALUES = {
    "defaults": {},
    "claims": {"node": {"offer": "dra", "draDriver": "gpu.nvidia.com"}},
    "compute domains": {"node": {"offer": "dra"}, "computeDomains": {"enabled": True, "nodeSelector": {"a": "b"}}},
    "compute domains on IMEX of the machines": {"node": {"offer": "dra", "privileged": False, "runtimeClassName": "nvidia"}, "server": {"enabled": False},
        "computeDomains": {"enabled": True, "imex": "host"}, "networkPolicy": False},
    "everything": {
        "image": {"repository": "registry.example/slipway", "tag": "1.2.3"}, "imagePullSecrets": [{"name": "pull"}],
        "server": {"storage": {"class": "fast", "size": "1Ti"}, "nodeSelector": {"a": "b"}, "tokenSecret": "mine"},
        "node": {"config": {"default": "version: v1\nflags: {}\n", "slices": "version: v1\n"}, "migConfig": "version: v1\nmig-configs: {}\n",
                 "env": {"A": "1", "B": "two"}, "privileged": False, "runtimeClassName": "nvidia", "nodeSelector": {"gpu": "true"}},
        "serviceMonitor": {"enabled": True, "interval": "10s"},
    },
    "minimal": {"server": {"enabled": False}, "networkPolicy": False, "deviceClasses": {"enabled": False}},
    "acceptance": {"node": {"accept": {"level": 3, "every": "7d", "limits": "memoryBandwidth: 0.8\n"}}},
    "acceptance without limits": {"node": {"accept": {"level": 1}}},
    "GPUs of AMD": {"node": {"amd": {"enabled": True, "naming": "mixed", "rocmDir": "/srv/rocm"}}},
    "resets after faults": {"node": {"resetOnFault": True}},
    "data": {"data": {"enabled": True, "limit": "1Ti", "nodeSelector": {"a": "b"}}, "node": {"kubeletDir": "/var/snap/kubelet"}},
    "GPU settings": {"node": {"gpuSettings": {"default": "gpus: []\n", "quiet": "gpus: []\n"}}},
    "server": {"node": {"enabled": False}, "server": {"storage": {"ephemeral": True}}},
    "shared": {"server": {"replicas": 3, "database": {"secret": "db"}, "objects": {"url": "s3://bucket/a", "secret": "bucket"}},
               "gateway": {"enabled": True, "nodeSelector": {"gpu": "true"}}},
    "tls": {"server": {"database": {"secret": "db"}, "objects": {"url": "s3://bucket/a"}, "tls": {"secret": "cert"}}, "gateway": {"enabled": True}},
    "tls of a public authority": {"server": {"tls": {"secret": "cert", "ca": ""}}},
    "runs": {"runs": {"namespaces": ["team-a", "team-b"], "nodeSelector": {"a": "b"}, "resources": {}}},
    "queues": {"runs": {"queue": {"name": "all", "system": "kueue", "namespaces": {"team-b": "", "team-a": "gpus"}}}},
    "database": {"server": {"database": {"secret": "db"}}},
    "hosts": {"server": {"hosts": ["ml.example.org", "slipway.ml.svc.corp.local"], "corsOrigins": ["https://app.example"], "database": {"secret": "db"}, "objects": {"url": "s3://bucket"}},
              "gateway": {"enabled": True}},
    "claim": {"server": {"storage": {"existingClaim": "there"}}, "deviceClasses": {"extendedResourceName": ""}},
}


def normalize(objects):
    """Objects by kind and name, without empty maps and lists, which mean the same to the API server as missing ones."""
    def strip(value):
        if isinstance(value, dict):
            kept = {k: strip(v) for k, v in value.items()}
            return {k: v for k, v in kept.items() if v not in ({}, [], None) or k in ("emptyDir", "podSelector")}
        if isinstance(value, list):
            return [strip(v) for v in value]
        return value

    name = lambda o: " ".join((o["kind"], *filter(None, (o["metadata"].get("namespace"), o["metadata"]["name"]))))
    return {name(o): strip(o) for o in objects if o and o["kind"] not in ONLY_ONE_SIDE}


ARGUMENTS = ["--namespace", "ml", "--kube-version", "1.36.0"]


def run(*words):
    done = subprocess.run(words, text=True, capture_output=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def chart_files():
    return {str(path.relative_to(CHART)): path.read_text() for path in CHART.rglob("*") if path.is_file()}


@SUITE.test
def helm_finds_no_fault_in_the_chart(options):
    lint = lambda: run(options.helm, "lint", "--strict", str(CHART)).strip().splitlines()[-1]
    print("    ", options.recordings.response("lint", chart_files(), lint))


def compare(options, name, values):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(values, file)
        file.flush()
        template = lambda: normalize(yaml.safe_load_all(run(options.helm, "template", "slipway", str(CHART), *ARGUMENTS, "-f", file.name)))
        original = options.recordings.response(name, [ARGUMENTS, values, chart_files()], template)
        printed = run(options.slipway, "up", "--kube", "-n", "ml", "--values", file.name, "--dry-run", "-o", "yaml")
    found = list(differences(original, normalized(normalize(yaml.safe_load_all(printed)))))
    assert not found, f"{len(found)} differences from {options.recordings}\n" + "\n".join(found[:20])


for name, values in VALUES.items():
    SUITE.add(name, lambda options, name=name, values=values: compare(options, name, values))


@SUITE.test
def every_recording_belongs_to_a_case(options):
    if options.names:
        raise Skip("not all cases were run")
    assert not (complaints := options.recordings.finish()), complaints


if __name__ == "__main__":
    options = SUITE.options(__doc__, slipway={"required": True}, helm={"help": "the original, which is then run and recorded anew"})
    version = module_version(ROOT / "conformance/originals.txt", "helm.sh/helm/v3/cmd/helm")
    options.recordings = Recordings(ROOT / "conformance/kube/recorded/chart", f"helm {version}", live=bool(options.helm))
    sys.exit(SUITE.main(options, lambda _: contextlib.nullcontext(options)))
