#!/usr/bin/env python3
"""Tests objects of the kind Run in the Kubernetes API of `slipway up` with the real kubectl: the manifest of a cluster runs as a process.

    conformance/kube-api/runs.py --slipway target/release/slipway --kubectl kubectl [SUBSTRING ...] [--list] [--junit FILE]

Each test has a namespace of its own.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import run
from suite import Suite, eventually

SUITE = Suite("kube-api runs", limit=180)


def test(function=None, **settings):
    """Registers a test that gets kubectl in a namespace of its own, and a folder."""
    def register(function):
        name = function.__name__.replace("_", "-")[:63].strip("-")

        def in_own_folder(fixture):
            kubectl, folder = fixture(name)
            kubectl("create", "namespace", name)
            function(kubectl, folder)
        SUITE.add(function.__name__, in_own_folder, **settings)
    return register(function) if function else register


def manifest(name, command, metadata=None, **spec):
    """A manifest that is valid in a cluster too. The command is a list, or text for a shell."""
    spec = {"image": "registry.example/tool:1", "command": command if isinstance(command, list) else ["sh", "-c", command], "terminationGracePeriodSeconds": 1, **spec}
    return json.dumps({"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": {"name": name, **(metadata or {})}, "spec": spec})


def apply(kubectl, *arguments, **options):
    return kubectl("apply", "-f", "-", stdin=manifest(*arguments, **options))


def status(kubectl, name):
    return kubectl.get("run", name).get("status", {})


def wait(kubectl, name, condition):
    return kubectl("wait", f"run/{name}", f"--for=condition={condition}", "--timeout=60s")


def wait_for_phase(kubectl, name, phase):
    return eventually(lambda: (s := status(kubectl, name)).get("phase") == phase and s, timeout=60, message=f"run {name} is {phase}")


def marks(file):
    """How often a program that appends a line to a file was started."""
    return len(file.read_text().splitlines()) if file.exists() else 0


@test
def manifest_of_a_cluster_runs_as_a_process(kubectl, folder):
    command = "echo training with $LR; sleep 1; echo done"
    assert apply(kubectl, "train", command, env=[{"name": "LR", "value": "0.1"}], experiment="digits") == "run.slipway.dev/train created\n"
    assert wait(kubectl, "train", "Complete") == "run.slipway.dev/train condition met\n"
    assert kubectl("wait", "run/train", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=10s")
    table = kubectl("get", "runs").splitlines()
    assert table[0].split() == ["NAME", "PHASE", "REASON", "NODE", "AGE"], table
    assert table[1].split()[:3] == ["train", "Succeeded", "Completed"], table
    assert kubectl("get", "runs", "-o", "wide").splitlines()[0].split() == ["NAME", "PHASE", "REASON", "NODE", "QUEUE", "EXPERIMENT", "TRACKED", "AGE"]
    run = kubectl.get("run", "train")
    assert run["metadata"]["generation"] == 1 and run["status"]["conditions"][0]["type"] == "Complete", run
    pod = kubectl.get("pod", "train-1")
    assert pod["metadata"]["ownerReferences"][0]["uid"] == run["metadata"]["uid"] and pod["status"]["phase"] == "Succeeded", pod
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0, pod
    assert kubectl("get", "pods", "-l", "slipway.dev/run=train", "--no-headers").split()[:4] == ["train-1", "0/1", "Completed", "0"]
    assert kubectl("logs", "train-1") == "training with 0.1\ndone\n"
    # The manifest is applied again without a change, and the run is the tracked one.
    assert apply(kubectl, "train", command, env=[{"name": "LR", "value": "0.1"}], experiment="digits") == "run.slipway.dev/train unchanged\n"
    code, tracked = kubectl.server.call("GET", f"/api/2.0/mlflow/runs/get?run_id={run['status']['runId']}")
    assert code == 200 and tracked["run"]["info"]["status"] == "FINISHED", tracked
    assert run["status"]["runId"] == run["metadata"]["uid"].replace("-", "")


@test
def failed_run_is_described_with_its_events(kubectl, folder):
    apply(kubectl, "flaky", "exit 3", backoffLimit=1)
    wait(kubectl, "flaky", "Failed")
    found = status(kubectl, "flaky")
    assert [a["exitCode"] for a in found["attempts"]] == [3, 3] and found["failures"] == 2, found
    described = eventually(lambda: (d := kubectl("describe", "run", "flaky")).count("Created") == 2 and d, timeout=30, message="events")
    events = described.split("Events:")[1]
    assert "pod flaky-1" in events and "pod flaky-2" in events and "attempt 2 of 2 follows" in events, events
    assert "the program exited with code 3 in the last of 2 attempts" in events, events
    assert kubectl.get("pod", "flaky-2")["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "Error"
    assert "Exit Code:    3" in kubectl("describe", "pod", "flaky-1")


@test
def runs_that_cannot_start_fail_with_a_message(kubectl, folder):
    apply(kubectl, "unknown", ["no-such-program"])
    apply(kubectl, "gpus", "true", resources={"limits": {"nvidia.com/gpu": 64}})
    apply(kubectl, "folder", "true", workingDir="/no/such/folder")
    apply(kubectl, "field", "true", env=[{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}])
    for name, reason, text in [
        ("unknown", "StartError", "cannot start no-such-program"),
        ("gpus", "Unschedulable", "64 nvidia.com/gpu"),
        ("folder", "Invalid", "/no/such/folder is not a folder"),
        ("field", "Invalid", "the valueFrom of NODE needs a cluster"),
    ]:
        wait(kubectl, name, "Failed")
        found = status(kubectl, name)
        assert found["reason"] == reason and text in found["message"], found
        assert found["conditions"][0]["reason"] == reason and len(found["attempts"]) == 1, found
        event = eventually(lambda: kubectl("get", "events", "--field-selector", f"involvedObject.name={name},type=Warning", "--no-headers"),
                           timeout=30, message="a warning")
        assert text in event and len(event.splitlines()) == 1, event
    assert "exit" not in kubectl("get", "pods")


@test
def variables_come_from_secrets_and_config_maps(kubectl, folder):
    kubectl("create", "secret", "generic", "hub", "--from-literal=token=very-secret", "--from-literal=user=me")
    kubectl("create", "configmap", "rates", "--from-literal=LR=0.1")

    def of_key(variable, kind, name, key, **more):
        return {"name": variable, "valueFrom": {f"{kind}KeyRef": {"name": name, "key": key, **more}}}
    env = [of_key("TOKEN", "secret", "hub", "token"), of_key("RATE", "configMap", "rates", "LR"), {"name": "LR", "value": "own"},
           of_key("MISSING", "secret", "hub", "none", optional=True), of_key("ABSENT", "configMap", "none", "none", optional=True)]
    env_from = [{"prefix": "HUB_", "secretRef": {"name": "hub"}}, {"configMapRef": {"name": "rates"}}, {"secretRef": {"name": "none", "optional": True}}]
    apply(kubectl, "reader", "echo $TOKEN $RATE $LR $HUB_user ${MISSING-unset} ${ABSENT-unset}", env=env, envFrom=env_from)
    wait(kubectl, "reader", "Complete")
    assert kubectl("logs", "reader-1") == "very-secret 0.1 own me unset unset\n"
    # What does not exist yet is waited for, as by the kubelet.
    for name, source, message, created in [
        ("later", of_key("A", "secret", "late", "a"), 'secret "late" not found', ["secret", "generic", "late", "--from-literal=a=1"]),
        ("key", of_key("A", "configMap", "rates", "a"), f"couldn't find key a in ConfigMap {kubectl.namespace}/rates", None),
    ]:
        apply(kubectl, name, "echo $A", env=[source])
        found = eventually(lambda: (s := status(kubectl, name)).get("reason") == "CreateContainerConfigError" and s, timeout=30, message="the reason")
        assert (found["phase"], found["message"]) == ("Pending", message), found
        event = eventually(lambda: kubectl("get", "events", "--field-selector", f"involvedObject.name={name},type=Warning", "--no-headers"),
                           timeout=30, message="a warning")
        assert "CreateContainerConfigError" in event and message in event and len(event.splitlines()) == 1, event
        if created:
            kubectl("create", *created)
        else:
            kubectl("patch", "configmap", "rates", "-p", '{"data": {"a": "1"}}')
        wait(kubectl, name, "Complete")
        assert kubectl("logs", f"{name}-1") == "1\n"
    # Those of another namespace are not read.
    kubectl("create", "namespace", "variables-elsewhere")
    kubectl("create", "secret", "generic", "elsewhere", "--from-literal=a=1", "-n", "variables-elsewhere")
    apply(kubectl, "foreign", "true", env=[of_key("A", "secret", "elsewhere", "a")])
    eventually(lambda: status(kubectl, "foreign").get("message") == 'secret "elsewhere" not found', timeout=30, message="the reason")


@test
def queued_run_starts_when_there_is_capacity(kubectl, folder):
    processors = os.cpu_count()
    apply(kubectl, "first", "sleep 1000", resources={"requests": {"cpu": processors}})
    wait_for_phase(kubectl, "first", "Running")
    apply(kubectl, "second", "true", resources={"requests": {"cpu": processors}})
    found = eventually(lambda: (s := status(kubectl, "second")).get("reason") == "Queued" and s, timeout=30, message="the run is queued")
    assert f"waiting for {processors} processors" in found["message"], found
    assert "Queued" in kubectl("get", "run", "second")
    kubectl("delete", "run", "first", "--timeout=30s")
    wait(kubectl, "second", "Complete")


@test
def logs_are_followed_and_cut(kubectl, folder):
    go = folder / "go"
    apply(kubectl, "talk", f"echo one; echo two; until [ -e {go} ]; do sleep 0.1; done; sleep 1.1; echo three")
    eventually(lambda: kubectl("logs", "talk-1") == "one\ntwo\n", timeout=30, message="the first lines")
    following = subprocess.Popen(kubectl.arguments("logs", "-f", "talk-1"), stdout=subprocess.PIPE, text=True)
    assert [following.stdout.readline() for _ in range(2)] == ["one\n", "two\n"]
    assert kubectl.get("pod", "talk-1")["status"]["conditions"][3] == {
        "type": "Ready", "status": "True", "lastTransitionTime": kubectl.get("pod", "talk-1")["status"]["startTime"]}
    go.touch()
    assert following.communicate(timeout=60)[0] == "three\n" and following.returncode == 0
    wait(kubectl, "talk", "Complete")
    assert kubectl("logs", "talk-1", "--tail=1") == "three\n"
    assert kubectl("logs", "talk-1", "--limit-bytes=5") == "one\nt"
    assert kubectl("logs", "talk-1", "-c", "main", "--since=1h") == "one\ntwo\nthree\n"
    assert kubectl("logs", "-l", "slipway.dev/run=talk") == "one\ntwo\nthree\n"
    assert 'previous terminated container "main" in pod "talk-1" not found' in kubectl.fails("logs", "-p", "talk-1")
    assert "container other is not valid for pod talk-1" in kubectl.fails("logs", "talk-1", "-c", "other")
    stamped = [line.split(" ", 1) for line in kubectl("logs", "talk-1", "--timestamps").splitlines()]
    assert [text for _, text in stamped] == ["one", "two", "three"], stamped
    times = [time for time, _ in stamped]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", time) for time in times) and times == sorted(times), times
    assert times[1] < times[2], "three was written later"
    assert kubectl("logs", "talk-1", f"--since-time={times[2]}") == "three\n"
    assert kubectl("logs", "talk-1", "--tail=2", "--timestamps", "--follow") == f"{times[1]} two\n{times[2]} three\n"
    assert kubectl("logs", "talk-1", "--since-time=2100-01-01T00:00:00Z") == ""
    assert "NotFound" in kubectl.fails("logs", "talk-2")


@test
def deletion_stops_the_program(kubectl, folder):
    ended = folder / "ended"
    # The program needs a moment to end, in which the object still exists.
    stubborn = f"trap 'sleep 2; echo x > {ended}; exit 0' TERM; while :; do sleep 0.1; done"
    for name, policy in [("background", "background"), ("foreground", "foreground")]:
        apply(kubectl, name, stubborn, terminationGracePeriodSeconds=20)
        wait_for_phase(kubectl, name, "Running")
        eventually(lambda: kubectl("get", "pod", f"{name}-1", "--no-headers").split()[2] == "Running", timeout=30, message="the pod runs")
        kubectl("delete", "run", name, f"--cascade={policy}", "--wait=false")
        leaving = kubectl.get("run", name)
        assert leaving["metadata"]["deletionTimestamp"] and "slipway.dev/run" in leaving["metadata"]["finalizers"], leaving
        assert not ended.exists()
        kubectl("wait", f"run/{name}", "--for=delete", "--timeout=60s")
        assert ended.exists(), "the object was deleted before its program ended"
        eventually(lambda: kubectl("get", "pods", "-o", "name") == "", timeout=30, message="the pod is deleted")
        ended.unlink()
        assert "NotFound" in kubectl.fails("get", "run", name)
    # The name is free again.
    apply(kubectl, "background", "true")
    wait(kubectl, "background", "Complete")


@test
def definition_is_that_of_a_cluster(kubectl, folder):
    rows = [line.split() for line in kubectl("api-resources", "--no-headers").splitlines()]
    assert ["runs", "slipway.dev/v1", "true", "Run"] in rows and ["pods", "po", "v1", "true", "Pod"] in rows, rows
    explained = kubectl("explain", "run.spec")
    assert "backoffLimit" in explained and "<integer>" in explained and "Versions of data that the run needs" in explained, explained
    assert "Name of the experiment" in kubectl("explain", "run.spec.experiment")
    assert kubectl("get", "all") == ""
    missing = kubectl.fails("apply", "-f", "-", stdin=json.dumps({
        "apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": {"name": "a"}, "spec": {"command": ["true"]}}))
    assert 'The Run "a" is invalid: spec.image: Required value' in missing, missing
    unknown = kubectl.fails("apply", "-f", "-", stdin=manifest("a", "true", comand=[]))
    assert 'strict decoding error: unknown field "spec.comand"' in unknown, unknown
    kind = kubectl.fails("apply", "--validate=false", "-f", "-", stdin=manifest("a", "true", backoffLimit="two"))
    assert 'spec.backoffLimit: Invalid value: "string": spec.backoffLimit in body must be of type integer: "string"' in kind, kind
    long = kubectl.fails("apply", "-f", "-", stdin=manifest("a" * 57, "true"))
    assert "a run's name has at most 56 characters" in long, long
    apply(kubectl, "a", "sleep 1000")
    wait_for_phase(kubectl, "a", "Running")
    changed = kubectl.fails("patch", "run", "a", "--type=merge", "-p", '{"spec":{"image":"other"}}')
    assert "spec.image: Invalid value: \"other\": the image cannot be changed" in changed, changed
    assert "the body of the request was in an unknown format" in kubectl.fails("patch", "run", "a", "-p", '{"spec":{}}')
    kubectl("patch", "run", "a", "--type=merge", "-p", '{"spec":{"backoffLimit":3}}')
    kubectl("label", "run", "a", "team=red")
    assert kubectl.get("run", "a")["metadata"]["generation"] == 2
    # The status has a route of its own, and only the controller's status remains.
    kubectl("patch", "run", "a", "--subresource=status", "--type=merge", "-p", '{"status":{"message":"mine"}}')
    eventually(lambda: "message" not in status(kubectl, "a"), timeout=30, message="the status is the controller's")
    kubectl("patch", "run", "a", "--type=merge", "-p", '{"spec":{"cancel":true}}')
    assert wait_for_phase(kubectl, "a", "Cancelled")["conditions"][0]["type"] == "Failed"
    resumed = kubectl.fails("patch", "run", "a", "--type=merge", "-p", '{"spec":{"cancel":false}}')
    assert "a cancelled run cannot be resumed" in resumed, resumed


@test
def pods_cannot_be_changed(kubectl, folder):
    apply(kubectl, "a", "true")
    wait(kubectl, "a", "Complete")
    assert kubectl("auth", "can-i", "get", "pods") == "yes\n"
    assert "MethodNotAllowed" in kubectl.fails("delete", "pod", "a-1")
    assert "MethodNotAllowed" in kubectl.fails("label", "pod", "a-1", "x=y")
    assert "MethodNotAllowed" in kubectl.fails("run", "web", "--image=web")


@test
def one_run_has_one_identity_in_both_apis(kubectl, folder):
    server, namespace = kubectl.server, kubectl.namespace
    apply(kubectl, "object", "echo from an object")
    wait(kubectl, "object", "Complete")
    code, listed = server.call("GET", f"/api/v1/runs?namespace={namespace}")
    uid = kubectl.get("run", "object")["metadata"]["uid"]
    assert code == 200 and [(run["metadata"]["name"], run["metadata"]["uid"]) for run in listed] == [("object", uid)], listed
    assert "from an object" in server.command("run", "logs", "object", "-n", namespace).stdout
    # A run without an image, which a cluster needs, is an object as well.
    body = {"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": {"name": "posted"}, "spec": {"command": ["sleep", "1000"]}}
    code, posted = server.call("POST", f"/api/v1/runs?namespace={namespace}", body)
    assert code == 201, posted
    assert kubectl.get("run", "posted")["metadata"]["uid"] == posted["metadata"]["uid"]
    wait_for_phase(kubectl, "posted", "Running")
    assert kubectl.get("pod", "posted-1")["metadata"]["ownerReferences"][0]["name"] == "posted"
    taken = kubectl.fails("create", "-f", "-", stdin=manifest("posted", "true"))
    assert "already exists" in taken, taken
    server.command("run", "cancel", "posted", "-n", namespace)
    assert kubectl.get("run", "posted")["spec"]["cancel"] is True
    wait_for_phase(kubectl, "posted", "Cancelled")
    server.command("run", "rm", "posted", "-n", namespace, "--yes")
    assert "NotFound" in kubectl.fails("get", "run", "posted")
    kubectl("delete", "run", "object", "--timeout=30s")
    assert server.call("GET", f"/api/v1/runs/{namespace}/object")[0] == 404
    assert server.call("POST", "/api/v1/runs?namespace=nowhere", body)[0] == 404
    assert server.call("GET", f"/api/v1/runs/default/{namespace}.object")[0] == 404


@test
def finished_run_is_deleted_after_its_ttl(kubectl, folder):
    apply(kubectl, "brief", "true", ttlSecondsAfterFinished=1)
    kubectl("wait", "run/brief", "--for=delete", "--timeout=60s")
    eventually(lambda: kubectl("get", "pods", "-o", "name") == "", timeout=30, message="the pod is deleted")
    assert kubectl.server.call("GET", f"/api/v1/runs/{kubectl.namespace}/brief")[0] == 404


@test
def deleted_namespace_stops_its_runs(kubectl, folder):
    kubectl("create", "namespace", "short-lived-runs")
    kubectl("apply", "-n", "short-lived-runs", "-f", "-", stdin=manifest("a", f"trap 'echo x > {folder}/ended; exit 0' TERM; while :; do sleep 0.1; done",
                                                                       terminationGracePeriodSeconds=20))
    eventually(lambda: kubectl("get", "pods", "-n", "short-lived-runs", "--no-headers").split()[2] == "Running", timeout=30, message="the pod runs")
    kubectl("delete", "namespace", "short-lived-runs", "--timeout=60s")
    assert (folder / "ended").exists()


@test(serial=True)
def runs_go_on_when_the_server_is_killed(kubectl, folder):
    server, go = kubectl.server, folder / "go"
    script = "echo start >> {0}; until [ -e {1} ]; do sleep 0.1; done; echo ended"
    apply(kubectl, "running", script.format(folder / "running", go))
    wait_for_phase(kubectl, "running", "Running")
    apply(kubectl, "ended-meanwhile", f"echo start >> {folder}/ended-meanwhile; sleep 1; exit 4")
    wait_for_phase(kubectl, "ended-meanwhile", "Running")
    # Some are killed before they are submitted, some before their status is written.
    names = [f"new-{i}" for i in range(8)]
    for name in names:
        apply(kubectl, name, f"echo start >> {folder / name}", resources={"requests": {"cpu": "10m"}})
    server.process.kill()
    server.process.wait()
    eventually(lambda: marks(folder / "ended-meanwhile") == 1, timeout=30, message="the run ends without the server")
    server.start()
    kubectl("config", "set-cluster", "slipway", "--server", server.url.replace("://", f"://slipway:{server.token}@"))
    go.touch()
    wait(kubectl, "running", "Complete")
    wait(kubectl, "ended-meanwhile", "Failed")
    assert status(kubectl, "ended-meanwhile")["attempts"][0]["exitCode"] == 4
    for name in names:
        wait(kubectl, name, "Complete")
    for name in ["running", "ended-meanwhile", *names]:
        assert marks(folder / name) == 1, f"{name} was started {marks(folder / name)} times"
        assert len(status(kubectl, name)["attempts"]) == 1, status(kubectl, name)
    assert kubectl("logs", "running-1") == "ended\n"


@contextlib.contextmanager
def running(options):
    """A running server: a function that gives kubectl in a namespace of it, and a folder."""
    with tempfile.TemporaryDirectory() as folder, run.running(options) as in_namespace:
        def fixture(name):
            own = pathlib.Path(folder, name)
            own.mkdir()
            return in_namespace(name), own
        yield fixture


def main():
    options = run.options_of(SUITE, __doc__)
    return SUITE.main(options, lambda _: running(options))


if __name__ == "__main__":
    sys.exit(main())
