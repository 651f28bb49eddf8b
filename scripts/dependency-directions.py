#!/usr/bin/env python3
"""Fails on a dependency that does not point down (ARCHITECTURE.md describes the layers): between slipway's crates, and between the
modules of a crate, which must not form circles. With a folder of crates as argument, it checks the circles of those crates only."""

import collections
import json
import pathlib
import re
import subprocess
import sys

LAYERS = [
    {"slipway-core", "slipway-mutations"},
    {"slipway-store", "slipway-exec", "slipway-access"},
    {"slipway-objects"},
    {"slipway-track", "slipway-serve", "slipway-gpu", "slipway-cluster", "slipway-data", "slipway-pipeline"},
    {"slipway-server", "slipway-node", "slipway-operator", "slipway-fake-nvml", "slipway-fake-amd-smi"},
    {"slipway"},
]
# Support for tests may use everything.
TEST_MODULES = {"tests", "testing", "mock"}


def crate_violations():
    metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--format-version=1", "--no-deps", "--locked"]))
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    for package in metadata["packages"]:
        name = package["name"]
        if name not in level:
            yield f"{name} is in no layer; add it to scripts/dependency-directions.py and ARCHITECTURE.md"
            continue
        for dependency in package["dependencies"]:
            other = dependency["name"]
            if other in level and level[other] >= level[name]:
                yield f"{name} -> {other}: does not point to a lower layer"


def names_in_braces(text):
    """The first segments of the paths in `a::b, c, d::{e, f}`."""
    depth, path = 0, ""
    for character in text + ",":
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            yield path.strip().split("::")[0]
            path = ""
        else:
            path += character


def module_edges(source):
    """Top-level modules of a crate, each with the other top-level modules that it names."""
    edges = collections.defaultdict(set)
    for file in sorted(source.rglob("*.rs")):
        parts = list(file.relative_to(source).with_suffix("").parts)
        if parts[-1] == "mod":
            parts.pop()
        if TEST_MODULES & set(parts) or parts[0] in ("lib", "main"):
            continue
        code = re.split(r"#\[cfg\(test\)\]\s*(?:#\[[^]]*\]\s*)*(?:pub\(crate\) )?mod \w+ {", file.read_text())[0]
        code = re.sub(r"//.*", "", code)
        top = "super::" * len(parts)
        for prefix in ("crate::", top):
            edges[parts[0]] |= set(re.findall(rf"(?<![\w:]){prefix}(\w+)", code))
            for group in re.findall(rf"(?<![\w:]){prefix}{{(.*?)}};", code, re.DOTALL):
                edges[parts[0]] |= set(names_in_braces(group))
    return {module: {other for other in others if other in edges and other != module} for module, others in edges.items()}


def circles(edges):
    """The strongly connected components with more than one module (Tarjan's algorithm)."""
    index, lowest, stack, found = {}, {}, [], []

    def visit(module):
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in index:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], index[other])
        if lowest[module] == index[module]:
            at = stack.index(module)
            component = stack[at:]
            del stack[at:]
            if len(component) > 1:
                found.append(sorted(component))

    for module in sorted(edges):
        if module not in index:
            visit(module)
    return found


def circle_violations(folder):
    for crate in sorted(folder.iterdir()):
        edges = module_edges(crate / "src")
        for circle in circles(edges):
            arrows = [f"{a} -> {b}" for a in circle for b in sorted(edges[a] & set(circle))]
            yield f"the modules of {crate.name} form a circle: {', '.join(arrows)}"


if len(sys.argv) > 1:
    violations = list(circle_violations(pathlib.Path(sys.argv[1])))
else:
    violations = [*crate_violations(), *circle_violations(pathlib.Path("crates"))]
print("\n".join(violations) or "dependency directions: all edges point down, and no modules form a circle")
sys.exit(1 if violations else 0)
