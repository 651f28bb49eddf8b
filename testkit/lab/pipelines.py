"""Tests of pipelines as pods in the lab: one pod for each step, what steps pass on, kills, retries, evictions, volumes and secrets."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from cluster import NAMESPACE, eventually
from runs import GPU, Server
from services import CACHE, Bucket
from shared import ADDRESS
from suite import Skip, Suite

SUITE = Suite("pipelines", limit=300)
test = SUITE.test
IMAGE = "lab.local/tool:1"
KFP = CACHE / "kfp/bin/python"
STEP = "slipway.dev/pipeline-run"
FINAL = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


class Step:
    """A step of a pipeline: a shell script in a container, or an importer. Inputs are constants or (producer, output) pairs."""

    def __init__(self, name, script, inputs=None, artifacts=None, outputs=(), makes=(), after=(), **more):
        self.name, self.script, self.inputs, self.artifacts = name, script, inputs or {}, artifacts or {}
        self.outputs, self.makes, self.after, self.more = outputs, makes, after, more

    def component(self):
        component = {"executorLabel": f"exec-{self.name}"}
        kinds = {"artifactType": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}}
        inputs = {"parameters": {n: {"parameterType": "STRING"} for n in self.inputs}, "artifacts": {n: kinds for n in self.artifacts}}
        outputs = {"parameters": {n: {"parameterType": "STRING"} for n in self.outputs}, "artifacts": {n: kinds for n in self.makes}}
        for key, definitions in [("inputDefinitions", inputs), ("outputDefinitions", outputs)]:
            definitions = {kind: found for kind, found in definitions.items() if found}
            if definitions:
                component[key] = definitions
        return component

    def executor(self):
        """Placeholders become the arguments `$0`, `$1` and so on of the script."""
        if "imports" in self.more:
            importer = {"artifactUri": {"constant": self.more["imports"]}, "typeSchema": {"schemaTitle": "system.Dataset"}}
            return {"importer": {**importer, "downloadToWorkspace": self.more.get("in_workspace", False)}}
        words = []
        script = re.sub(r"\{\{.*?\}\}", lambda m: (words.append(m[0]), f'"${{{len(words) - 1}}}"')[1], self.script)
        container = {"image": self.more.get("image", IMAGE), "command": ["sh", "-ec", script], "args": words}
        for key in ("resources", "env"):
            if key in self.more:
                container[key] = self.more[key]
        return {"container": container}

    def task(self):
        task = {"taskInfo": {"name": self.name}, "componentRef": {"name": f"comp-{self.name}"}, "cachingOptions": {}}
        parameters, artifacts = {}, {}
        for name, value in self.inputs.items():
            parameters[name] = {"taskOutputParameter": {"producerTask": value[0], "outputParameterKey": value[1]}} if isinstance(value, tuple) \
                else {"runtimeValue": {"constant": value}}
        for name, (producer, output) in self.artifacts.items():
            artifacts[name] = {"taskOutputArtifact": {"producerTask": producer, "outputArtifactKey": output}}
        inputs = {key: value for key, value in [("parameters", parameters), ("artifacts", artifacts)] if value}
        if inputs:
            task["inputs"] = inputs
        producers = [v[0] for v in [*self.inputs.values(), *self.artifacts.values()] if isinstance(v, tuple)]
        if after := sorted({*producers, *self.after}):
            task["dependentTasks"] = after
        if "retries" in self.more:
            task["retryPolicy"] = {"maxRetryCount": self.more["retries"], "backoffDuration": "0s"}
        return task


def pipeline(name, *steps, config=None):
    """A compiled pipeline of these steps; `config` is its own for Kubernetes."""
    spec = {
        "pipelineInfo": {"name": name}, "schemaVersion": "2.1.0", "sdkVersion": "kfp-2.17.3",
        "components": {f"comp-{s.name}": s.component() for s in steps},
        "deploymentSpec": {"executors": {f"exec-{s.name}": s.executor() for s in steps}},
        "root": {"dag": {"tasks": {s.name: s.task() for s in steps}}},
    }
    settings = {f"exec-{s.name}": {"imagePullPolicy": "Never", **s.more.get("kubernetes", {})} for s in steps if "imports" not in s.more}
    kubernetes = {"deploymentSpec": {"executors": settings}, **({"pipelineConfig": config} if config else {})}
    return {"pipeline_spec": spec, "platform_spec": {"platforms": {"kubernetes": kubernetes}}}


class Run:
    """A run of a pipeline."""

    def __init__(self, lab, ns, compiled, root=None):
        self.lab, self.ns = lab, ns
        file = lab.folder / "pipeline.json"
        file.write_text(json.dumps(compiled["pipeline_spec"]) if not compiled.get("platform_spec") else json.dumps(compiled))
        self.server = Server.in_cluster(lab)
        code, experiment = self.server.request("/apis/v2beta1/experiments", {"display_name": f"e{time.monotonic_ns()}", "namespace": ns})
        assert code == 200, experiment
        body = {"display_name": "run", "experiment_id": experiment["experiment_id"], "pipeline_spec": compiled}
        if root:
            body["runtime_config"] = {"pipeline_root": root}
        code, created = self.server.request("/apis/v2beta1/runs", body)
        assert code == 200, created
        self.id = created["run_id"]

    def show(self):
        """The run with its tasks; `None` while the control plane is away."""
        with contextlib.suppress(OSError):
            code, run = self.server.request(f"/api/v1/pipelines/runs/{self.id}")
            if code == 200:
                return run
        return None

    def task(self, path):
        run = self.show()
        return next((t for t in run["tasks"] if t["path"] == path), None) if run else None

    def wait(self, state="SUCCEEDED", timeout=120):
        run = eventually(lambda: (r := self.show()) and r["state"] in FINAL and r, timeout, message=f"the run is finished: {self.show()}")
        assert run["state"] == state, run
        return run

    def wait_task(self, path, condition, message):
        return eventually(lambda: (t := self.task(path)) and condition(t) and t, timeout=60, message=f"{message}: {self.show()}")

    def pods(self):
        return self.lab.get("-n", self.ns, "pods", "-l", f"{STEP}={self.id}")["items"]

    def pod(self, step):
        """The newest pod of a step, once its program runs."""
        def find():
            found = [p for p in self.pods() if p["metadata"]["name"].startswith(f"{step}-") and p["status"].get("phase") == "Running"
                     and "deletionTimestamp" not in p["metadata"]]
            return found and found[-1]["metadata"]["name"]
        return eventually(find, timeout=60, message=f"a pod of {step} runs: {self.show()}")


def server_pid(lab):
    """The process id of the control plane in the machine's process namespace."""
    pods = lab.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=server")["items"]
    uid = next(p["metadata"]["uid"] for p in pods if "deletionTimestamp" not in p["metadata"])
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = open(f"/proc/{entry}/cmdline", "rb").read()
            if command.startswith(b"/usr/bin/slipway\0up\0") and uid in open(f"/proc/{entry}/cgroup").read():
                return int(entry)
    raise AssertionError("no control plane runs")


MAKE = Step("make", "echo 'three rows' > {{$.outputs.artifacts['data'].path}}; echo -n 7 > {{$.outputs.parameters['count'].output_file}}; "
            "mkdir -p /tmp/x; echo made", outputs=["count"], makes=["data"])
USE = Step("use", "test \"$(cat {{$.inputs.artifacts['data'].path}})\" = 'three rows'; "
           "echo -n got-{{$.inputs.parameters['count']}} > {{$.outputs.parameters['seen'].output_file}}",
           inputs={"count": ("make", "count")}, artifacts={"data": ("make", "data")}, outputs=["seen"])


@test
def steps_pass_parameters_and_artifacts_on_with_one_pod_each(lab):
    with lab.namespace("pipe-pass", runs=True) as ns:
        folder = Step("folder", "mkdir -p {{$.outputs.artifacts['model'].path}}/a; echo 1 > {{$.outputs.artifacts['model'].path}}/a/b; "
                      "echo 2 > {{$.outputs.artifacts['model'].path}}/c", makes=["model"])
        read = Step("read", "cat {{$.inputs.artifacts['model'].path}}/a/b {{$.inputs.artifacts['model'].path}}/c "
                    "> {{$.outputs.parameters['all'].output_file}}", artifacts={"model": ("folder", "model")}, outputs=["all"])
        started = time.monotonic()
        run = Run(lab, ns, pipeline("pass", MAKE, USE, folder, read))
        shown = run.wait()
        print(f"     four steps took {time.monotonic() - started:.1f} s")
        tasks = {t["path"]: t for t in shown["tasks"]}
        assert tasks["use"]["outputs"]["parameters"] == {"seen": "got-7"} and tasks["read"]["outputs"]["parameters"]["all"] == "1\n2\n", tasks
        data = tasks["make"]["outputs"]["artifacts"]["data"][0]
        assert data["digest"].startswith("sha256:") and data["uri"].startswith(f"slipway-pipelines:/{ns}/{run.id}/"), data
        pods = run.pods()
        assert len(pods) == 4, [p["metadata"]["name"] for p in pods]
        assert "made" in run.server.slipway(lab, "pipeline", "logs", run.id, "make", "-n", ns).stdout
        # Each step is tracked once, below the run of the pipeline and in its experiment.
        def tracked():
            query = {"experiment_ids": experiments, "filter": f"tags.`mlflow.parentRunId` = '{run.id.replace('-', '')}'"}
            return run.server.request("/api/2.0/mlflow/runs/search", query)[1]["runs"]
        code, found = run.server.request("/api/2.0/mlflow/experiments/search", {"max_results": 1000})
        experiments = [e["experiment_id"] for e in found["experiments"]]
        children = eventually(lambda: (r := tracked()) and all(c["info"]["status"] == "FINISHED" for c in r) and r, message=f"the end: {tracked()}")
        assert sorted(c["info"]["run_name"] for c in children) == ["folder", "make", "read", "use"], children
        parent = run.server.tracked(run.id.replace("-", ""))
        assert {c["info"]["experiment_id"] for c in children} == {parent["info"]["experiment_id"]} != {"0"}, (parent, children)
        # The content is served to those who may read the run.
        code, _ = run.server.request(f"/apis/v2beta1/runs/{run.id}")
        assert code == 200
        # The same steps with the same inputs are taken from the cache, without pods.
        cached = pipeline("pass", MAKE, USE)
        for task in cached["pipeline_spec"]["root"]["dag"]["tasks"].values():
            task["cachingOptions"] = {"enableCache": True}
        Run(lab, ns, cached).wait()
        again = Run(lab, ns, cached)
        assert {t["state"] for t in again.wait()["tasks"] if t["path"]} == {"CACHED"} and not again.pods()
        code, _ = again.server.request(f"/apis/v2beta1/runs/{run.id}", method="DELETE")
        assert code == 200
        eventually(lambda: not run.pods(), timeout=60, message="the pods are deleted with the run")


@test
def failures_are_retried_and_explained(lab):
    with lab.namespace("pipe-fails", runs=True) as ns:
        flaky = Step("flaky", "echo trying; test -e /shared/once && exit 0; touch /shared/once; echo no luck; exit 3", retries=2)
        broken = Step("broken", "echo the reason; exit 4", after=["flaky"])
        with claim(lab, ns, "shared"):
            flaky.more["kubernetes"] = {"pvcMount": [{"constant": "shared", "mountPath": "/shared"}]}
            run = Run(lab, ns, pipeline("fails", flaky, broken))
            shown = run.wait("FAILED")
            tasks = {t["path"]: t for t in shown["tasks"]}
            assert tasks["flaky"]["state"] == "SUCCEEDED" and tasks["flaky"]["attempt"] == 2, tasks["flaky"]
            assert "exited with code 4" in tasks["broken"]["failure"] and "the reason" in tasks["broken"]["failure"], tasks["broken"]
            assert len(run.pods()) == 3


@contextlib.contextmanager
def volume(lab, ns, name, folder=None):
    """A volume of class `name`-`ns`, with a folder of the machine that is writable for everybody unless it is given. Yields the folder."""
    if not folder:
        folder = f"/run/slipway-lab/{ns}-{name}"
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, 0o777)
    lab.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{ns}-{name}"}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce", "ReadWriteMany"], "storageClassName": f"{ns}-{name}",
        "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": folder}}})
    try:
        yield folder
    finally:
        lab.kubectl("delete", "pv", f"{ns}-{name}", "--wait=false")


@contextlib.contextmanager
def claim(lab, ns, name, folder=None):
    """A volume of a folder of the machine, and its claim."""
    with volume(lab, ns, name, folder):
        lab.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": ns}, "spec": {
            "accessModes": ["ReadWriteMany"], "storageClassName": f"{ns}-{name}", "resources": {"requests": {"storage": "1Gi"}}}})
        yield


@test
def workspace_is_shared_and_inputs_come_from_buckets(lab):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slipway-services-"))
    bucket = Bucket(folder / "s3", ADDRESS)
    try:
        with lab.namespace("pipe-shared", runs=True) as ns, volume(lab, ns, "space"):
            bucket.put("/slipway/rows.csv", "", b"three rows\n")
            secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "slipway-buckets", "namespace": ns}}
            lab.apply({**secret, "stringData": bucket.environment()})
            rows = Step("rows", "", imports="s3://slipway/rows.csv", makes=["artifact"])
            shared = Step("shared", "", imports="s3://slipway/rows.csv", makes=["artifact"], in_workspace=True)
            space = {"space": "{{$.workspace_path}}/found"}
            write = Step("write", "mkdir {{$.inputs.parameters['space']}}; cat {{$.inputs.artifacts['data'].path}} > "
                         "{{$.inputs.parameters['space']}}/rows; test -z \"$(ls /kfp-workspace | grep -v found)\"",
                         inputs=space, artifacts={"data": ("rows", "artifact")})
            read = Step("read", "cat {{$.inputs.parameters['space']}}/rows > {{$.outputs.parameters['all'].output_file}}",
                        inputs=space, after=["write"], outputs=["all"])
            # One that is imported into the workspace is copied there once.
            change = Step("change", "test {{$.inputs.artifacts['data'].path}} = /kfp-workspace/.artifacts/s3/slipway/rows.csv; "
                          "echo changed >> {{$.inputs.artifacts['data'].path}}", artifacts={"data": ("shared", "artifact")}, after=["write"])
            changed = Step("changed", "cat {{$.inputs.artifacts['data'].path}} > {{$.outputs.parameters['all'].output_file}}",
                           artifacts={"data": ("shared", "artifact")}, after=["change"], outputs=["all"])
            patch = {"accessModes": ["ReadWriteMany"], "storageClassName": f"{ns}-space"}
            config = {"workspace": {"size": "1Gi", "kubernetes": {"pvcSpecPatch": patch}}}
            run = Run(lab, ns, pipeline("shared", rows, shared, write, read, change, changed, config=config))
            tasks = {t["path"]: t for t in run.wait()["tasks"]}
            assert tasks["read"]["outputs"]["parameters"] == {"all": "three rows\n"}, tasks
            assert tasks["changed"]["outputs"]["parameters"] == {"all": "three rows\nchanged\n"}, tasks
            claim = f"{run.id}-kfp-workspace"
            # Kubernetes keeps a deleted claim until the last pod that mounted it is deleted.
            eventually(lambda: "deletionTimestamp" in lab.get("-n", ns, "pvc", claim)["metadata"], message="the workspace is deleted")

            # A root in a bucket of the tenant: the outputs do not go through the control plane.
            make = Step("make", "echo model > {{$.outputs.artifacts['model'].path}}", makes=["model"])
            use = Step("use", "cat {{$.inputs.artifacts['model'].path}} > {{$.outputs.parameters['all'].output_file}}",
                       artifacts={"model": ("make", "model")}, outputs=["all"])
            run = Run(lab, ns, pipeline("roots", make, use), root="s3://slipway/team-a")
            tasks = {t["path"]: t for t in run.wait()["tasks"]}
            assert tasks["use"]["outputs"]["parameters"] == {"all": "model\n"}, tasks
            uri = tasks["make"]["outputs"]["artifacts"]["model"][0]["uri"]
            assert uri.startswith("s3://slipway/team-a/roots/"), uri
            assert (bucket.folder / uri.removeprefix("s3://")).read_bytes() == b"model\n"
    finally:
        bucket.stop()
        shutil.rmtree(folder, ignore_errors=True)


@test
def volumes_secrets_and_gpus_reach_the_pods(lab):
    with lab.namespace("pipe-pods", runs=True) as ns, volume(lab, ns, "work"):
        lab.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "access", "namespace": ns}, "stringData": {"word": "open"}})
        create = Step("create", "", image="argostub/createpvc", outputs=["name"],
                      inputs={"pvc_name": "work", "size": "1Gi", "storage_class_name": f"{ns}-work"})
        mount = {"pvcMount": [{"taskOutputParameter": {"producerTask": "create", "outputParameterKey": "name"}, "mountPath": "/work"}]}
        write = Step("write", "echo $WORD > /work/word", after=["create"], kubernetes={
            **mount, "secretAsEnv": [{"secretName": "access", "keyToEnv": [{"secretKey": "word", "envVar": "WORD"}]}],
            "podMetadata": {"labels": {"team": "vision"}, "annotations": {"example.com/note": "here"}}})
        read = Step("read", "cat /work/word > {{$.outputs.parameters['word'].output_file}}; ls /dev | grep -c 'nvidia[0-9]' "
                    "> {{$.outputs.parameters['gpus'].output_file}}", after=["write"], outputs=["word", "gpus"],
                    resources={"cpuLimit": 0.5, "accelerator": {"resourceType": GPU, "resourceCount": "2"}},
                    kubernetes={**mount, "nodeSelector": {"labels": {"kubernetes.io/hostname": "n1"}}})
        delete = Step("delete", "", image="argostub/deletepvc", inputs={"pvc_name": ("create", "name")}, after=["read"])
        compiled = pipeline("pods", create, write, read, delete)
        for name in ("create", "delete"):
            compiled["pipeline_spec"]["deploymentSpec"]["executors"][f"exec-{name}"]["container"].pop("command")
            compiled["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"].pop(f"exec-{name}")
        run = Run(lab, ns, compiled)
        tasks = {t["path"]: t for t in run.wait()["tasks"]}
        assert tasks["read"]["outputs"]["parameters"] == {"word": "open\n", "gpus": "2\n"}, tasks
        pods = {p["metadata"].get("annotations", {}).get("example.com/note"): p for p in run.pods()}
        assert len(run.pods()) == 2 and pods["here"]["metadata"]["labels"]["team"] == "vision", pods
        assert pods[None]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "500m", GPU: "2"}, pods[None]["spec"]
        # Kubernetes keeps a deleted claim until the last pod that mounted it is deleted.
        assert all("deletionTimestamp" in c["metadata"] for c in lab.get("-n", ns, "pvc")["items"])
        run.server.request(f"/apis/v2beta1/runs/{run.id}", method="DELETE")
        eventually(lambda: not lab.get("-n", ns, "pvc")["items"], timeout=60, message="the claim is deleted with the pods")


# Appends a line for each execution, so that a second one is noticed.
COUNTED = "echo run >> /shared/{name}; until test -e /shared/end; do sleep 0.1; done; echo -n done > {{{{$.outputs.parameters['o'].output_file}}}}"


@test(limit=600)
def runs_survive_kills_of_control_plane_and_controller(lab):
    with lab.namespace("pipe-kills", runs=True) as ns, claim(lab, ns, "shared"):
        mount = {"pvcMount": [{"constant": "shared", "mountPath": "/shared"}]}
        counted = lambda name, **more: Step(name, COUNTED.format(name=name), outputs=["o"], kubernetes=mount, **more)
        run = Run(lab, ns, pipeline("kills", counted("first"), counted("other"), counted("second", inputs={"x": ("first", "o")})))
        run.pod("first"), run.pod("other")
        old = server_pid(lab)
        os.kill(old, signal.SIGKILL)
        # The programs end while there is no control plane; their pods deliver once it is back.
        shared = f"/run/slipway-lab/{ns}-shared"
        open(f"{shared}/end", "w").close()
        eventually(lambda: server_pid(lab) != old, timeout=90, message="a new control plane runs")
        run.wait_task("second", lambda t: t["state"] in ("RUNNING", "SUCCEEDED"), "the next step starts")
        lab.kubectl("-n", NAMESPACE, "delete", "pod", "-l", "app.kubernetes.io/component=controller", "--grace-period=0", "--force")
        run.wait(timeout=180)
        for name in ("first", "other", "second"):
            assert open(f"{shared}/{name}").read() == "run\n", name
        assert len(run.pods()) == 3


@test(limit=600)
def disruptions_use_no_retry_and_cancellation_deletes_the_pods(lab):
    with lab.namespace("pipe-moves", runs=True) as ns:
        step = lambda name: Step(name, "trap 'exit 1' TERM; for i in $(seq 3000); do sleep 0.1; [ -e /tmp/end ] && exit 0; done")
        run = Run(lab, ns, pipeline("moves", step("evicted"), step("deleted")))
        evicted, deleted = run.pod("evicted"), run.pod("deleted")
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": evicted, "namespace": ns}}
        lab.kubectl("create", "--raw", f"/api/v1/namespaces/{ns}/pods/{evicted}/eviction", "-f", "-", stdin=json.dumps(eviction))
        lab.kubectl("-n", ns, "delete", "pod", deleted, "--wait=false")
        for name, old in [("evicted", evicted), ("deleted", deleted)]:
            new = eventually(lambda: (p := run.pod(name)) != old and p, timeout=60, message="another pod runs")
            lab.exec(ns, new, "touch /tmp/end")
        tasks = {t["path"]: t for t in run.wait()["tasks"]}
        assert {t["attempt"] for path, t in tasks.items() if path} == {1}, tasks

        run = Run(lab, ns, pipeline("cancelled", step("long")))
        run.pod("long")
        started = time.monotonic()
        run.server.slipway(lab, "pipeline", "cancel", run.id, "-n", ns)
        run.wait("CANCELED", timeout=30)
        state = time.monotonic() - started
        eventually(lambda: not [p for p in run.pods() if p["status"].get("phase") == "Running"], timeout=60, message="the pod is stopped")
        print(f"     cancelled after {state:.1f} s, and the pod had ended after {time.monotonic() - started:.1f} s")


@test(limit=600)
def run_goes_on_after_an_outage_of_the_api_server(lab):
    with lab.namespace("pipe-away", runs=True) as ns:
        wait = Step("wait", "until test -e /tmp/end; do sleep 0.1; done; echo -n a > {{$.outputs.parameters['o'].output_file}}", outputs=["o"])
        run = Run(lab, ns, pipeline("away", wait, Step("next", "true", inputs={"o": ("wait", "o")})))
        pod = run.pod("wait")
        lab.exec(ns, pod, "(sleep 3; touch /tmp/end) > /dev/null 2>&1 &")
        lab.lab("do", "kill", "kube-apiserver")
        # The program ends, and the next step is due, during the outage.
        time.sleep(10)
        lab.lab("do", "start", "kube-apiserver")
        run.wait(timeout=180)
        assert len(run.pods()) == 2


@test
def small_tasks_share_workers_which_are_replaced_when_they_are_lost(lab):
    with lab.namespace("pipe-workers", runs=True) as ns, claim(lab, ns, "shared"):
        settings = {"podMetadata": {"annotations": {"slipway.dev/workers": "2"}},
                    "pvcMount": [{"constant": "shared", "mountPath": "/shared"}]}
        # What a step leaves behind would be found by the next one.
        small = [Step(f"small-{n}", f"echo says {n}; test ! -e $TMPDIR/left; touch $TMPDIR/left; "
                      f"if grep -qsx sleep /proc/[0-9]*/comm; then exit 5; fi; (sleep 1000 &); echo -n {n} > {{{{$.outputs.parameters['o'].output_file}}}}",
                      outputs=["o"], kubernetes=settings) for n in range(8)]
        run = Run(lab, ns, pipeline("small", *small))
        started = time.monotonic()
        tasks = {t["path"]: t for t in run.wait()["tasks"]}
        assert all(tasks[f"small-{n}"]["outputs"]["parameters"]["o"] == str(n) for n in range(8)), tasks
        print(f"     eight steps of two workers took {time.monotonic() - started:.1f} s")
        workers = lambda: [p for p in lab.get("-n", ns, "pods", "-l", "app.kubernetes.io/managed-by=slipway")["items"] if "deletionTimestamp" not in p["metadata"]]
        assert not run.pods() and len(workers()) <= 2, [p["metadata"]["name"] for p in workers()]
        assert run.server.slipway(lab, "pipeline", "logs", run.id, "small-3", "-n", ns).stdout.strip() == "says 3"

        started = time.monotonic()
        again = Run(lab, ns, pipeline("warm", *small))
        again.wait()
        print(f"     and {time.monotonic() - started:.1f} s once they were warm")

        long = Step("long", "echo run >> /shared/runs; until test -e /shared/end; do sleep 0.1; done; "
                    "cat /shared/runs > {{$.outputs.parameters['o'].output_file}}", outputs=["o"], kubernetes=settings)
        run = Run(lab, ns, pipeline("long", long))
        runs = f"/run/slipway-lab/{ns}-shared/runs"
        eventually(lambda: os.path.exists(runs), message="a worker executes the step")
        lab.kubectl("-n", ns, "delete", "pod", *[p["metadata"]["name"] for p in workers()], "--grace-period=0", "--force")
        eventually(lambda: open(runs).read() == "run\nrun\n", timeout=90, message="another worker executes it")
        open(f"/run/slipway-lab/{ns}-shared/end", "w").close()
        task = next(t for t in run.wait()["tasks"] if t["path"])
        assert task["attempt"] == 1 and task["outputs"]["parameters"]["o"] == "run\nrun\n", task

        cancelled = Run(lab, ns, pipeline("cancelled", Step("endless", "sleep 1000", kubernetes=settings)))
        cancelled.wait_task("endless", lambda t: t["state"] == "RUNNING", "the step runs")
        run.server.slipway(lab, "pipeline", "cancel", cancelled.id, "-n", ns)
        cancelled.wait("CANCELED", timeout=30)


@test(limit=600)
def loss_of_a_node_uses_no_retry(lab):
    with lab.namespace("pipe-lost", runs=True) as ns, claim(lab, ns, "shared"):
        # Not the node of the control plane, whose state is on a volume of one node.
        server = lab.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=server")["items"]
        lost = "n1" if server[0]["spec"]["nodeName"] == "n2" else "n2"
        # Preferred, so that the second pod can run elsewhere.
        prefers = {"nodeAffinity": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [lost]}], "weight": 100}]}
        step = Step("lost", "echo run >> /shared/runs; until test -e /shared/end; do sleep 0.1; done; "
                    "cat /shared/runs > {{$.outputs.parameters['o'].output_file}}", outputs=["o"],
                    kubernetes={"pvcMount": [{"constant": "shared", "mountPath": "/shared"}], **prefers})
        run = Run(lab, ns, pipeline("lost", step))
        old = run.pod("lost")
        assert lab.get("-n", ns, "pod", old)["spec"]["nodeName"] == lost
        taint = "node.kubernetes.io/out-of-service"
        lab.lab("do", "kill", f"kubelet-{lost}")
        try:
            # What an administrator does with a node that does not come back.
            lab.kubectl("taint", "node", lost, f"{taint}=nodeshutdown:NoExecute")
            new = eventually(lambda: (p := run.pod("lost")) != old and p, timeout=150, message="another pod runs")
            assert lab.get("-n", ns, "pod", new)["spec"]["nodeName"] != lost
            open(f"/run/slipway-lab/{ns}-shared/end", "w").close()
            task = next(t for t in run.wait()["tasks"] if t["path"])
        finally:
            lab.kubectl("taint", "node", lost, f"{taint}-")
            lab.lab("do", "start", f"kubelet-{lost}")
        assert task["attempt"] == 1 and task["outputs"]["parameters"]["o"] == "run\nrun\n", task
        eventually(lambda: any(c["type"] == "Ready" and c["status"] == "True" for c in lab.node(lost)["status"]["conditions"]),
                   message="the node is back")


@test
def python_components_run_with_the_official_client(lab):
    if not KFP.exists():
        raise Skip("needs kfp; `make test-lab` installs it")
    interpreter = KFP.resolve().parents[1]
    folders = ["/usr", "/lib", "/lib64", str(KFP.parents[1]), *([] if interpreter == pathlib.Path("/usr") else [str(interpreter)])]
    with lab.namespace("pipe-python", runs=True) as ns, claim(lab, ns, "machine", "/"):
        server = Server.in_cluster(lab)
        words = [KFP, pathlib.Path(__file__).parent / "kfp_steps.py", server.url, ns, IMAGE, "machine", *folders]
        started = time.monotonic()
        done = subprocess.run(words, text=True, capture_output=True, env={**os.environ, "TOKEN": server.token})
        assert done.returncode == 0, done.stderr
        print(f"     four Python steps, two of them in parallel, took {time.monotonic() - started:.1f} s")
        run = json.loads(done.stdout.splitlines()[-1])
        _, shown = server.request(f"/api/v1/pipelines/runs/{run['id']}")
        assert run["state"] == "SUCCEEDED", shown
        tasks = {t["path"]: t for t in shown["tasks"]}
        assert tasks["largest"]["outputs"]["parameters"] == {"Output": 30}, tasks["largest"]
        assert tasks["make"]["outputs"]["artifacts"]["data"][0]["metadata"]["rows"] == 5, tasks["make"]
        assert len(lab.get("-n", ns, "pods", "-l", f"{STEP}={run['id']}")["items"]) == 4


@test
def pipelines_of_tenants_are_separate_and_refusals_have_reasons(lab):
    with lab.namespace("pipe-mine", runs=True) as mine, lab.namespace("pipe-closed") as closed:
        entrypoint = pipeline("entrypoint", Step("none", ""))
        entrypoint["pipeline_spec"]["deploymentSpec"]["executors"]["exec-none"]["container"] = {"image": IMAGE}
        shown = Run(lab, mine, entrypoint).wait("FAILED")
        assert "has no command" in next(t for t in shown["tasks"] if t["path"])["failure"], shown
        shown = Run(lab, closed, pipeline("closed", Step("a", "true"))).wait("FAILED")
        assert "is not enabled for runs" in next(t for t in shown["tasks"] if t["path"])["failure"], shown
        run = Run(lab, mine, pipeline("mine", Step("a", "true")))
        run.wait()
        # The token of a step reaches nothing but this step, and nothing after its end.
        assert run.server.request("/api/v1/pipelines/step")[0] == 403, "the administrator has no step"
        account = lab.token(closed, "default")
        assert run.server.request(f"/api/v1/pipelines/runs/{run.id}", token=account)[0] == 403
