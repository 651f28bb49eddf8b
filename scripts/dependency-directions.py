#!/usr/bin/env python3
"""Fails on a dependency between slipway's crates that does not point down to a lower layer (ARCHITECTURE.md describes the layers)."""

import json
import subprocess
import sys

LAYERS = [
    {"slipway-core", "slipway-mutations"},
    {"slipway-store", "slipway-exec", "slipway-access"},
    {"slipway-track", "slipway-serve", "slipway-gpu", "slipway-cluster"},
    {"slipway-server", "slipway-node", "slipway-fake-nvml"},
    {"slipway-operator"},
    {"slipway"},
]

metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--format-version=1", "--no-deps", "--locked"]))
level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
violations = []
for package in metadata["packages"]:
    name = package["name"]
    if name not in level:
        violations.append(f"{name} is in no layer; add it to scripts/dependency-directions.py and ARCHITECTURE.md")
        continue
    for dependency in package["dependencies"]:
        other = dependency["name"]
        if other in level and level[other] >= level[name]:
            violations.append(f"{name} -> {other}: does not point to a lower layer")
print("\n".join(violations) or "dependency directions: all edges point down")
sys.exit(1 if violations else 0)
