#!/usr/bin/env python3
"""Compiled pipelines of Kubeflow, run by slipway with the official client, and compared with what the original gave for each step.

    corpus.py --slipway BIN [--corpus FOLDER] [--live] [NAMES...]

Needs kfp. The pipelines are not part of this project: they are read from FOLDER (default: ../shared/corpus/kubeflow/pipelines beside the
project), and the script says so and ends if that is absent. `recorded/steps.json` has what `kfp.local` gave for each (`original.py`);
`--live` runs the original again and writes it.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import kfp
import yaml
from original import pinned

from lib import Slipway
from suite import Skip, Suite

SUITE = Suite("pipelines of the corpus", limit=300)
RECORDED = HERE / "recorded" / "steps.json"
# Values for inputs that have no default, by their type.
VALUES = {"STRING": "text", "NUMBER_INTEGER": 3, "NUMBER_DOUBLE": 1.5, "BOOLEAN": True, "LIST": ["a", "b"], "STRUCT": {"a": 1}}
# Common beginning of the names in the corpus.
PREFIX = "test_data__sdk_compiled_pipelines__valid__"
# Pipelines whose outputs cannot be compared, with the reason.
INCOMPARABLE = {
    "pipeline_with_parallelfor_list_artifacts_GH-12033": "prints names of artifacts, which are empty in the original's local runner",
    "pipeline_with_parallelfor_pipeline_param": "the original's local runner gives the second loop its item in place of the prefix",
    "parallel_and_nested__nested_parallel_for_secret": "needs a secret, which the original's local runner leaves out",
    "critical__pipeline_with_workspace": "the original's local runner loses the workspace's file between the steps",
}
# Programs of pipelines whose outputs differ from run to run, so that they cannot be compared either.
RANDOM = "random."
# Pipelines whose steps need a GPU and four processors. On a machine without them they fail with that reason.
HARDWARE = {"gpu-scheduling__nvidia_gpu_scheduling_check", "pipeline_with_string_machine_fields_pipeline_input"}
# Pipelines that fail, with a part of the reason.
FAILS = {
    "component_with_metadata_fields": "the artifact is required",  # a run cannot be given artifacts
    "pipeline_with_various_io_types": "the artifact is required",  # likewise
    "components_with_optional_artifacts": "gs://ml-pipeline-playground",  # a bucket that needs Google's network
    "create_pod_metadata_complex": "Pod annotation is None",  # a step expects an empty variable that only its cluster sets
    "pipeline_with_task_using_ignore_upstream_failure": "fail-op",  # fails by design, as the next three
    "local_execution__local_execution_pipeline_with_ignore_upstream_failure": "fail-always",
    "failing__pipeline_with_exit_handler": "fail-op",
    "pipeline_with_task_final_status": "fail-op",
    "parallel_and_nested__nested_parallel_for_secret": "MY_SECRET_KEY",  # needs a secret
    "pipeline_with_importer": "gs://ml-pipeline-playground",  # a bucket that needs Google's network
    "pvc_mount": "there is no volume",  # needs a volume
    # Their last step expects lists of lists, and nested loops give one list, in the original's backend and local runner as well.
    "nested_with_parameters": "add: the program exited",
    "parameters_complex": "add-2: the program exited",
    "pipeline_producer_consumer": "add: the program exited",
}
# Pipelines that take minutes, mostly to install their packages.
LARGE = {
    "take_nap_compiled": "sleeps for more than five minutes",
    "integration__ray_integration_compiled": "installs codeflare-sdk and Ray, 1 GB",
    "xgboost_sample_pipeline": "installs xgboost 1.1.1, which has no wheel for current Pythons",
    "critical__notebook_component_simple": "installs Jupyter",
    "critical__pipeline_with_artifact_upload_download": "installs datasets with pyarrow",
}
# Seconds in which the original must have ended.
ORIGINAL_LIMIT = 240


def specification(path):
    """The pipeline in a file; None for a file that is not one document with a pipeline."""
    return next((d for d in yaml.safe_load_all(path.read_text()) if d and "root" in d), None)


def arguments(pipeline):
    """Values for the inputs that have none."""
    declared = pipeline["root"].get("inputDefinitions", {}).get("parameters", {})
    required = {n: d["parameterType"] for n, d in declared.items() if not d.get("isOptional") and "defaultValue" not in d}
    return {name: VALUES[kind] for name, kind in required.items()}


def original(path, pipeline):
    """What the original gives for each step of a pipeline."""
    environment = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [sys.executable, str(HERE / "original.py"), str(path), json.dumps(arguments(pipeline))]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=ORIGINAL_LIMIT).stdout
    return json.loads(output.splitlines()[-1])


def steps(tasks):
    """The output parameters of each step that executed something, by the step's name, as `original.py` gives them."""
    found = {}
    for task in tasks:
        if task["kind"] == "CONTAINER" and task["state"] in ("SUCCEEDED", "CACHED"):
            found.setdefault(plain_name(task["path"].rsplit("/", 1)[-1]), []).append(task["outputs"]["parameters"])
    return found


def plain_name(name):
    """The name of a step without its iteration and its number: the original numbers steps with the same name over the whole run."""
    return re.sub(r"(-\d+)?(\[\d+\])?$", "", name)


def is_path(value):
    return isinstance(value, str) and value.startswith("/")


def differences(expected, found):
    """What the original gave for a step and slipway did not. Outputs that a step wrote to a file are not in the original's record, and paths
    depend on the machine; iterations may be in any order."""
    by_name = {}
    for name, outputs in expected.items():
        by_name.setdefault(plain_name(name), []).extend(map(json.loads, outputs))
    for name, outputs in by_name.items():
        ours = list(found.get(name, []))
        for output in outputs:
            same = [o for o in ours if all(k in o and (o[k] == v or is_path(v)) for k, v in output.items())]
            if same:
                ours.remove(same[0])
            else:
                yield f"{name}: {output} is not among {found.get(name)}"


class Server:
    """A slipway and its official client."""

    def __init__(self, binary):
        self.slipway = Slipway(binary)

    def __enter__(self):
        self.slipway.__enter__()
        self.client = kfp.Client(host=self.slipway.url, existing_token=self.slipway.token)
        return self

    def __exit__(self, *exception):
        return self.slipway.__exit__(*exception)

    def run(self, text, parameters):
        """Runs a pipeline to its end; returns the run with its tasks."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            run = self.client.create_run_from_pipeline_package(file.name, arguments=parameters, enable_caching=None)
        ended = self.client.wait_for_run_completion(run.run_id, timeout=SUITE.limit, sleep_duration=0.1)
        status, run = self.slipway.call("GET", f"/api/v1/pipelines/runs/{ended.run_id}")
        assert status == 200, run
        return run


def add_test(path, expected):
    pipeline = specification(path)
    name = path.stem.removeprefix(PREFIX)

    def test(server):
        if name in LARGE:
            raise Skip(LARGE[name])
        text = path.read_text()
        run = server.run(pinned(text), arguments(pipeline))
        failures = [f"{t['path']}: {t['failure']}" for t in run["tasks"] if t.get("failure")]
        if name in HARDWARE and any("the step needs" in failure for failure in failures):
            return
        if name not in INCOMPARABLE and RANDOM not in text:
            missing = list(differences(expected["steps"], steps(run["tasks"])))
            assert not missing, (run["state"], failures, missing)
        if expected["error"] is None or name in FAILS:
            wanted = FAILS.get(name, "")
            assert run["state"] == ("FAILED" if wanted else "SUCCEEDED"), (run["state"], failures)
            assert any(wanted in failure for failure in failures) or not wanted, failures
        else:
            # The original cannot run it. A step that needs an image is refused by the image's name; everything else runs.
            assert run["state"] == "SUCCEEDED" or any("image" in f for f in failures), (run["state"], failures)

    SUITE.add(name, test)


def main():
    options = SUITE.options(
        __doc__,
        slipway={"required": True, "help": "path of slipway"},
        corpus={"type": pathlib.Path, "default": HERE.parents[2] / "shared/corpus/kubeflow/pipelines", "help": "folder of compiled pipelines"},
        live={"action": "store_true", "help": "run the original, and record what it gives"},
    )
    files = sorted(options.corpus.glob("*.yaml"))
    if not files:
        print(f"skipped: there are no compiled pipelines in {options.corpus}")
        return 0
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    for path in files:
        pipeline = specification(path)
        if options.live:
            recorded[path.stem] = original(path, pipeline)
        if path.stem in recorded:
            add_test(path, recorded[path.stem])
    if options.live:
        RECORDED.parent.mkdir(exist_ok=True)
        RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    return SUITE.main(options, lambda _: Server(options.slipway))


if __name__ == "__main__":
    sys.exit(main())
