#!/usr/bin/env python3
"""Fails on an edge between our crates that ARCHITECTURE.md does not allow: never up, never sideways."""

import json
import subprocess
import sys

LAYERS = [
    {"slipway-core"},
    {"slipway-store", "slipway-exec", "slipway-access"},
    {"slipway-track", "slipway-serve", "slipway-gpu", "slipway-cluster"},
    {"slipway-server", "slipway-node", "slipway-fake-nvml"},
    {"slipway-operator"},
    {"slipway"},
]

metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--format-version=1", "--no-deps", "--locked"]))
level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
wrong = []
for package in metadata["packages"]:
    name = package["name"]
    if name not in level:
        wrong.append(f"{name} is in no layer; add it to scripts/dependency-directions.py and ARCHITECTURE.md")
        continue
    for dependency in package["dependencies"]:
        other = dependency["name"]
        if other in level and level[other] >= level[name]:
            wrong.append(f"{name} -> {other}: not downwards")
print("\n".join(wrong) or "dependency directions: all edges point down")
sys.exit(1 if wrong else 0)
