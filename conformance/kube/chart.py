#!/usr/bin/env python3
"""Checks that the Helm chart and `slipway up --kube` produce the same objects: compares the output of `helm template` and of `--dry-run`.

    conformance/kube/chart.py --slipway target/release/slipway [--helm helm]

With `--helm` the output of Helm is recorded anew in `recorded/chart`; without, the recordings are used. They are valid for the same chart.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "conformance"))
from recorded import Recordings, Stale, differences, module_version, normalized

CHART = ROOT / "deploy/helm/slipway"
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

    name = lambda o: " ".join((o["kind"], *filter(None, (o["metadata"].get("namespace"), o["metadata"]["name"]))))
    return {name(o): strip(o) for o in objects if o and o["kind"] not in ONLY_ONE_SIDE}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--slipway", required=True)
    parser.add_argument("--helm", help="the original, which is then run and recorded anew")
    options = parser.parse_args()
    version = module_version(ROOT / "conformance/originals.txt", "helm.sh/helm/v3/cmd/helm")
    recordings = Recordings(ROOT / "conformance/kube/recorded/chart", f"helm {version}", live=bool(options.helm))
    chart = {str(path.relative_to(CHART)): path.read_text() for path in CHART.rglob("*") if path.is_file()}

    def run(*words):
        done = subprocess.run(words, text=True, capture_output=True)
        if done.returncode:
            sys.exit(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    arguments = ["--namespace", "ml", "--kube-version", "1.36.0"]

    def compare(name, values):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            json.dump(values, file)
            file.flush()
            template = lambda: normalize(yaml.safe_load_all(run(options.helm, "template", "slipway", str(CHART), *arguments, "-f", file.name)))
            original = recordings.response(name, [arguments, values, chart], template)
            printed = run(options.slipway, "up", "--kube", "-n", "ml", "--values", file.name, "--dry-run", "-o", "yaml")
        return list(differences(original, normalized(normalize(yaml.safe_load_all(printed)))))

    failed = 0
    try:
        print(recordings.response("lint", chart, lambda: run(options.helm, "lint", "--strict", str(CHART)).strip().splitlines()[-1]))
    except Stale as e:
        print(f"FAIL {e}")
        failed += 1
    for name, values in VALUES.items():
        try:
            found = compare(name, values)
        except Stale as e:
            found = [str(e)]
        print(f"{'FAIL' if found else 'ok  '} chart: {name}")
        for line in found[:20]:
            print("     " + line)
        failed += bool(found)
    for complaint in recordings.finish():
        print(f"FAIL {complaint}")
        failed += 1
    print(f"chart ({recordings}): {len(VALUES)} sets of values, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
