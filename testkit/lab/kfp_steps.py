"""A pipeline of Python components, which the official `kfp.Client` submits to the control plane in the lab.

    python kfp_steps.py ADDRESS NAMESPACE IMAGE CLAIM FOLDER...

The token is in the environment variable TOKEN. The image of the lab has no Python, so the folders of this machine's own are mounted from the
claim, which holds its root folder. Prints the state of the run, and the outputs of its tasks, as JSON.
"""

import json
import os
import sys

import kfp
from kfp import dsl, kubernetes
from kfp.dsl import Dataset, Input, Metrics, Output

ADDRESS, NAMESPACE, IMAGE, CLAIM, *FOLDERS = sys.argv[1:]


def component(function):
    # The packages are mounted, so nothing is installed.
    return dsl.component(function, base_image=IMAGE, install_kfp_package=False)


@component
def make(rows: int, data: Output[Dataset]) -> str:
    with open(data.path, "w") as file:
        file.writelines(f"{row}\n" for row in range(rows))
    data.metadata["rows"] = rows
    return f"{rows} rows"


@component
def scale(factor: int, data: Input[Dataset], measured: Output[Metrics]) -> int:
    total = factor * sum(int(line) for line in open(data.path))
    measured.log_metric("total", total)
    return total


@component
def largest(totals: list) -> int:
    return max(totals)


def on_this_machine(task):
    """The settings with which a task finds the Python of this machine."""
    for folder in FOLDERS:
        kubernetes.mount_pvc(task, CLAIM, folder, sub_path=os.path.realpath(folder).lstrip("/"))
    kubernetes.set_image_pull_policy(task, "Never")
    task.set_env_variable("PATH", os.pathsep.join([os.path.dirname(sys.executable), "/usr/bin", "/bin"]))
    return task.set_caching_options(False)


@dsl.pipeline(name="python-steps")
def pipeline(rows: int = 4) -> int:
    made = on_this_machine(make(rows=rows))
    with dsl.ParallelFor([1, 3]) as factor:
        scaled = on_this_machine(scale(factor=factor, data=made.outputs["data"]))
    return on_this_machine(largest(totals=dsl.Collected(scaled.outputs["Output"]))).output


def main():
    client = kfp.Client(host=ADDRESS, existing_token=os.environ["TOKEN"], namespace=NAMESPACE)
    run = client.create_run_from_pipeline_func(pipeline, arguments={"rows": 5}, namespace=NAMESPACE, experiment_name="python")
    done = client.wait_for_run_completion(run.run_id, timeout=180, sleep_duration=1)
    print(json.dumps({"id": run.run_id, "state": done.state, "error": str(done.error)}))


main()
