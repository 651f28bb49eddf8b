#!/usr/bin/env python3
"""Runs one compiled pipeline with the original, `kfp.local` with its SubprocessRunner, and prints what each step gave as JSON.

    original.py PIPELINE.yaml ARGUMENTS.json

Needs kfp. Every step runs with this Python: pins of kfp itself are replaced by the installed version, so that no step changes it.
"""

import json
import os
import pathlib
import re
import sys
import tempfile

import kfp
import yaml
from kfp import components, local


def pinned(text):
    """The pipeline with each pin of kfp replaced by the installed version, and without pip's own update check."""
    return re.sub(r"'kfp==[^']*'", f"'kfp=={kfp.__version__}'", text)


def steps(folder):
    """The outputs of each step that ran, by the step's name. Steps of a loop have one name, so their outputs are sorted."""
    found = {}
    for path in sorted(folder.rglob("executor_output.json")):
        output = json.loads(path.read_text() or "{}")
        found.setdefault(path.parent.name, []).append(json.dumps(output.get("parameterValues", {}), sort_keys=True))
    return {name: sorted(outputs) for name, outputs in found.items()}


def plain(value):
    """An output as JSON: artifacts by their type and content."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, kfp.dsl.Artifact):
        path = pathlib.Path(value.path)
        metadata = {key: item for key, item in value.metadata.items() if key != "display_name"}
        return {"type": value.schema_title, "metadata": metadata, "content": path.read_text(errors="replace") if path.is_file() else None}
    return value


def main():
    pipeline, arguments = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        root = pathlib.Path(folder, "outputs")
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=False)
        documents = list(yaml.safe_load_all(pinned(pipeline.read_text())))
        specification = next(d for d in documents if "root" in d)
        result = {"steps": {}, "outputs": {}, "error": None}
        try:
            task = components.load_component_from_text(yaml.safe_dump(specification))(**arguments)
            result["outputs"] = {name: plain(value) for name, value in (task.outputs or {}).items()}
        except Exception as error:
            result["error"] = f"{type(error).__name__}: {error}"
        result["steps"] = steps(root)
        # Paths depend on the machine.
        print("\n" + json.dumps(result, sort_keys=True).replace(folder, "/path"))


if __name__ == "__main__":
    main()
