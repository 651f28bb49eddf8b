#!/usr/bin/env python3
"""Checks that the Helm chart and `slipway up --kube` produce the same objects: compares the output of `helm template` and of `--dry-run`.

    conformance/kube/chart.py --slipway target/release/slipway --helm helm [SUBSTRING ...] [--list] [--junit FILE]
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from suite import Suite

SUITE = Suite("chart", limit=60)
CHART = pathlib.Path(__file__).resolve().parents[2] / "deploy/helm/slipway"
# Kinds that are left out of the comparison, each with its reason.
ONLY_ONE_SIDE = {
    "Namespace": "Helm creates it itself (--create-namespace)",
    "Secret": "its token is random; slipway creates it if it is missing, the chart by a hook",
}
VALUES = {
    "defaults": {},
    "claims": {"node": {"offer": "dra", "draDriver": "gpu.nvidia.com"}},
    "everything": {
        "image": {"repository": "registry.example/slipway", "tag": "1.2.3"}, "imagePullSecrets": [{"name": "pull"}],
        "server": {"storage": {"class": "fast", "size": "1Ti"}, "nodeSelector": {"a": "b"}, "tokenSecret": "mine"},
        "node": {"config": {"default": "version: v1\nflags: {}\n", "slices": "version: v1\n"}, "migConfig": "version: v1\nmig-configs: {}\n",
                 "env": {"A": "1", "B": "two"}, "privileged": False, "runtimeClassName": "nvidia", "nodeSelector": {"gpu": "true"}},
        "serviceMonitor": {"enabled": True, "interval": "10s"},
    },
    "minimal": {"server": {"enabled": False}, "networkPolicy": False, "deviceClasses": {"enabled": False}},
    "server": {"node": {"enabled": False}, "server": {"storage": {"ephemeral": True}}},
    "shared": {"server": {"replicas": 3, "database": {"secret": "db"}, "objects": {"url": "s3://bucket/a", "secret": "bucket"}},
               "gateway": {"enabled": True, "nodeSelector": {"gpu": "true"}}},
    "tls": {"server": {"database": {"secret": "db"}, "objects": {"url": "s3://bucket/a"}, "tls": {"secret": "cert"}}, "gateway": {"enabled": True}},
    "tls of a public authority": {"server": {"tls": {"secret": "cert", "ca": ""}}},
    "runs": {"runs": {"namespaces": ["team-a", "team-b"], "nodeSelector": {"a": "b"}, "resources": {}}},
    "database": {"server": {"database": {"secret": "db"}}},
    "hosts": {"server": {"hosts": ["ml.example.org", "slipway.ml.svc.corp.local"], "database": {"secret": "db"}, "objects": {"url": "s3://bucket"}},
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

    return {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]): strip(o) for o in objects if o and o["kind"] not in ONLY_ONE_SIDE}


def differences(a, b, path=""):
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}, key=str):
            yield from differences(a.get(key), b.get(key), f"{path}/{key}")
    elif a != b:
        yield f"{path}: chart {json.dumps(a)}, slipway {json.dumps(b)}"


def run(*words):
    done = subprocess.run(words, text=True, capture_output=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


@SUITE.test
def helm_finds_no_fault_in_the_chart(options):
    print("    ", run(options.helm, "lint", "--strict", str(CHART)).strip().splitlines()[-1])


def compare(options, values):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(values, file)
        file.flush()
        rendered = run(options.helm, "template", "slipway", str(CHART), "--namespace", "ml", "--kube-version", "1.36.0", "-f", file.name)
        printed = run(options.slipway, "up", "--kube", "-n", "ml", "--values", file.name, "--dry-run", "-o", "yaml")
    found = list(differences(normalize(yaml.safe_load_all(rendered)), normalize(yaml.safe_load_all(printed))))
    assert not found, f"{len(found)} differences\n" + "\n".join(found[:20])


for name, values in VALUES.items():
    SUITE.add(name, lambda options, values=values: compare(options, values))


if __name__ == "__main__":
    options = SUITE.options(__doc__, slipway={"required": True}, helm={"required": True})
    sys.exit(SUITE.main(options, lambda _: contextlib.nullcontext(options)))
