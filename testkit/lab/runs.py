"""Tests of runs as pods in the lab: the executor, its controller, and authorization."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request

import kueue
from cluster import NAMESPACE, RUN, Failed, eventually
from lib import Slipway
from suite import Suite

SUITE = Suite("runs", limit=300)
test = SUITE.test
GPU = "nvidia.com/gpu"
LEASE = "slipway-runs"


class Server:
    """A client of a control plane."""

    def __init__(self, url, token):
        self.url, self.token = url, token

    @classmethod
    def in_cluster(cls, lab):
        secret = lab.get("secret", "-n", NAMESPACE, "slipway-tokens")["data"]["tokens"]
        address = eventually(lambda: [
            p for p in lab.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=server")["items"]
            if "deletionTimestamp" not in p["metadata"] and all(c["ready"] for c in p["status"].get("containerStatuses", [{"ready": False}]))
        ][0]["status"]["podIP"], message="the control plane")
        return cls(f"http://{address}:7070", base64.b64decode(secret).decode().strip())

    def request(self, path, body=None, token=None, method=None, tries=1):
        """Sends a request and returns status and JSON; `token` defaults to the installation's."""
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.token if token is None else token}"}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                text = response.read().decode()
                return response.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            return error.code, json.loads(text) if text.startswith("{") else text

    def slipway(self, lab, *words, check=True):
        environment = {**os.environ, "SLIPWAY_TOKEN": self.token, "SLIPWAY_SERVER": self.url}
        # This installation has no TLS, and the client sends tokens without TLS only to loopback.
        done = subprocess.run([lab.binary, "--insecure", *words], text=True, capture_output=True, env=environment)
        if check and done.returncode:
            raise Failed(f"slipway {' '.join(words)}: {done.stderr}")
        return done

    def tracked(self, run_id):
        status, response = self.request(f"/api/2.0/mlflow/runs/get?run_id={run_id}")
        assert status == 200, response
        return response["run"]


def manifest(name, command, namespace=None, **spec):
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": metadata, "spec": {
        "image": "lab.local/tool:1", "imagePullPolicy": "Never", "command": ["sh", "-c", command], "terminationGracePeriodSeconds": 1, **spec}}


def status(lab, ns, name):
    return lab.get("-n", ns, "run", name).get("status", {})


def wait_until_finished(lab, ns, name, phase, timeout=60):
    found = eventually(lambda: (s := status(lab, ns, name)).get("phase") in ("Succeeded", "Failed", "Cancelled") and s, timeout,
                       message=f"run {name} is finished")
    assert found["phase"] == phase, found
    return found


def wait_for_reason(lab, ns, name, reason):
    return eventually(lambda: (s := status(lab, ns, name)).get("reason") == reason and s, message=f"run {name} waits with reason {reason}")


def run_pods(lab, ns):
    return {p["metadata"]["name"]: p for p in lab.get("-n", ns, "pods", "-l", "slipway.dev/run")["items"]}


@test
def run_is_executed_tracked_and_attributed(lab):
    """The manifest and the commands are the same as on a single machine."""
    server = Server.in_cluster(lab)
    lab.control("n1", *[f"utilization {gpu} 75" for gpu in range(8)])
    with lab.namespace("runs-tracked", runs=True) as ns:
        file = lab.folder / "train.json"
        # Logs like any client of MLflow, with the variables in the environment.
        command = ("echo training $LR on $(ls /dev | grep -c 'nvidia[0-9]') GPUs; "
                   "wget -q -O- --header \"authorization: Bearer $MLFLOW_TRACKING_TOKEN\" --header 'content-type: application/json' --post-data "
                   "\"{\\\"run_id\\\": \\\"$MLFLOW_RUN_ID\\\", \\\"key\\\": \\\"loss\\\", \\\"value\\\": 0.25, \\\"timestamp\\\": 1}\" "
                   "$MLFLOW_TRACKING_URI/api/2.0/mlflow/runs/log-metric && sleep 12 && echo done")
        file.write_text(json.dumps(manifest("train", command, experiment="digits", env=[{"name": "LR", "value": "0.1"}],
                                            resources={"limits": {GPU: 2}}, nodeSelector={"kubernetes.io/hostname": "n1"})))
        done = server.slipway(lab, "run", "submit", str(file), "-n", ns, "--follow")
        assert done.stdout.splitlines()[0] == "training 0.1 on 2 GPUs" and "done" in done.stdout, done
        found = status(lab, ns, "train")
        assert found["phase"] == "Succeeded" and found["node"] == "n1" and len(found["attempts"]) == 1, found
        found = eventually(lambda: (s := status(lab, ns, "train")).get("attributed") and s, message="GPU usage is attributed")
        gpus = found["attempts"][0]["gpus"]
        assert len({g["device"] for g in gpus}) == 2 and all(g["resource"] == GPU and g["joules"] > 100 for g in gpus), gpus
        run = server.tracked(found["runId"])
        metrics = {m["key"]: m["value"] for m in run["data"]["metrics"]}
        tags = {t["key"]: t["value"] for t in run["data"]["tags"]}
        assert run["info"]["status"] == "FINISHED" and metrics["loss"] == 0.25, run
        assert abs(metrics["system/gpu_energy_joules"] - sum(g["joules"] for g in gpus)) < 1e-6, metrics
        assert metrics["system/gpu_busy_seconds"] > metrics["system/gpu_idle_seconds"], metrics
        assert sorted(tags["slipway.gpus"].split()) == sorted(g["device"] for g in gpus) and tags["slipway.node"] == "n1", tags
        # kubectl shows columns, conditions and events.
        assert "Succeeded" in lab.kubectl("-n", ns, "get", "runs")
        lab.kubectl("-n", ns, "wait", "--for=condition=Complete", "run/train", "--timeout=5s")
        events = eventually(lambda: (e := lab.kubectl("-n", ns, "describe", "run", "train").split("Events:")[1]) and "Completed" in e and e,
                            message="events")
        assert "Created" in events, events
        assert "train" in server.slipway(lab, "run", "ls", "--submitted", "-n", ns).stdout
        assert "done" in server.slipway(lab, "run", "logs", "train", "-n", ns, "--tail", "1").stdout
        again = server.slipway(lab, "run", "submit", str(file), "-n", ns, check=False)
        assert again.returncode == 1 and "already exists" in again.stderr, again
        server.slipway(lab, "run", "rm", "train", "-n", ns, "--yes")
        eventually(lambda: not run_pods(lab, ns), message="the pod is deleted with the run")
        assert server.tracked(found["runId"])["info"]["status"] == "FINISHED", "the tracked run is retained"
    lab.control("n1")


@test
def outcomes_have_distinct_reasons(lab):
    server = Server.in_cluster(lab)
    with lab.namespace("runs-ends", runs=True) as ns:
        lab.apply(
            manifest("flaky", "echo attempt; exit 3", ns, backoffLimit=1),
            manifest("hungry", "x=$(head -c 300m /dev/zero | tr '\\0' a); echo unreachable", ns, resources={"limits": {"memory": "32Mi"}}),
            manifest("late", "sleep 1000", ns, activeDeadlineSeconds=3),
            {**manifest("wrong", "", ns), "spec": {**manifest("wrong", "")["spec"], "command": ["/no/such/program"]}},
            manifest("cancelled", "sleep 1000", ns),
            manifest("imageless", "true", ns, image="lab.local/missing:1"),
            manifest("wide", "true", ns, resources={"limits": {GPU: 9}}),
            manifest("invalid", "true", ns, volumeMounts=[{"name": "nowhere", "mountPath": "/x"}]),
            manifest("brief", "true", ns, ttlSecondsAfterFinished=1),
            manifest("leaving", "sleep 1000", ns),
        )
        found = wait_until_finished(lab, ns, "flaky", "Failed")
        assert found["failures"] == 2 and [a["exitCode"] for a in found["attempts"]] == [3, 3] and "2 attempts" in found["message"], found
        assert set(run_pods(lab, ns)) >= {"flaky-1", "flaky-2"}, "each attempt has its own pod and log"
        assert server.slipway(lab, "run", "logs", "flaky", "--attempt", "1", "-n", ns).stdout == "attempt\n"
        found = wait_until_finished(lab, ns, "hungry", "Failed")
        assert found["reason"] == "OOMKilled" and "32Mi" in found["message"], found
        found = wait_until_finished(lab, ns, "late", "Failed")
        assert found["reason"] == "DeadlineExceeded" and found["conditions"][0]["type"] == "Failed", found
        found = wait_until_finished(lab, ns, "wrong", "Failed")
        assert found["reason"] == "StartError" and "/no/such/program" in found["message"], found
        found = wait_until_finished(lab, ns, "invalid", "Failed")
        assert found["reason"] == "Invalid" and "nowhere" in found["message"], found
        assert wait_for_reason(lab, ns, "imageless", "ErrImageNeverPull")["phase"] == "Pending"
        assert "Insufficient nvidia.com/gpu" in wait_for_reason(lab, ns, "wide", "Unschedulable")["message"]
        eventually(lambda: status(lab, ns, "cancelled")["phase"] == "Running", message="the run is running")
        run_id = status(lab, ns, "cancelled")["runId"]
        server.slipway(lab, "run", "cancel", "cancelled", "-n", ns)
        found = wait_until_finished(lab, ns, "cancelled", "Cancelled")
        assert server.tracked(run_id)["info"]["status"] == "KILLED"
        for name in ["imageless", "wide"]:
            lab.kubectl("-n", ns, "patch", "run", name, "--type=merge", "-p", '{"spec":{"cancel":true}}')
            wait_until_finished(lab, ns, name, "Cancelled")
        eventually(lambda: status(lab, ns, "leaving")["phase"] == "Running", message="the run is running")
        lab.kubectl("-n", ns, "delete", "run", "leaving", "--cascade=foreground", "--timeout=30s")
        eventually(lambda: not [name for name in run_pods(lab, ns) if name.startswith("leaving-")], message="the pods are deleted")
        eventually(lambda: "brief" not in lab.kubectl("-n", ns, "get", "runs", "-o", "name"), message="the finished run is deleted after its TTL")
        error = subprocess.run([f"{lab.bin}/kubectl", "--kubeconfig", lab.kubeconfig, "-n", ns, "patch", "run", "wide", "--type=merge", "-p",
                                  '{"spec":{"image":"other"}}'], text=True, capture_output=True).stderr
        assert "the image cannot be changed" in error, error
        codes = {name: server.tracked(status(lab, ns, name)["runId"])["info"]["status"] for name in ["flaky", "hungry", "late", "wrong"]}
        assert set(codes.values()) == {"FAILED"}, codes


@test
def disrupted_runs_are_retried(lab):
    with lab.namespace("runs-moved", runs=True) as ns:
        work = "trap 'exit 1' TERM; for i in $(seq 1000); do sleep 0.1; [ -e /tmp/end ] && exit 0; done"
        lab.apply(manifest("moved", work, ns), manifest("deleted", work, ns, nodeSelector={"kubernetes.io/hostname": "n2"}))
        for name in ["moved", "deleted"]:
            eventually(lambda: status(lab, ns, name)["phase"] == "Running", message="the run is running")
        lab.kubectl("-n", ns, "delete", "pod", "deleted-1", "--wait=false")
        node = status(lab, ns, "moved")["node"]
        lab.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s",
                    f"--pod-selector=slipway.dev/run=moved")
        try:
            found = eventually(lambda: (s := status(lab, ns, "moved"))["phase"] == "Running" and s.get("disruptions") and s,
                               message="the run restarts on another node")
            assert found["node"] != node and "failures" not in found and found["attempts"][0]["reason"] == "EvictionByEvictionAPI", found
        finally:
            lab.kubectl("uncordon", node)
        found = eventually(lambda: (s := status(lab, ns, "deleted"))["phase"] == "Running" and s.get("disruptions") and s, message="the run restarts")
        assert found["disruptions"] == 1 and found["attempts"][0]["reason"] == "Deleted", found
        for name in ["moved", "deleted"]:
            lab.exec(ns, f"{name}-2", "touch /tmp/end")
            assert len(wait_until_finished(lab, ns, name, "Succeeded")["attempts"]) == 2


@test
def quotas_are_respected_and_explained(lab):
    with lab.namespace("runs-quota", runs=True) as ns:
        lab.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": ns},
                   "spec": {"hard": {f"requests.{GPU}": "1"}}})
        eventually(lambda: lab.get("-n", ns, "resourcequota", "few")["status"]["used"], message="the quota")
        one = {"resources": {"limits": {GPU: 1}}}
        lab.apply(manifest("first", "sleep 1000", ns, **one))
        eventually(lambda: status(lab, ns, "first")["phase"] == "Running", message="the run is running")
        lab.apply(manifest("second", "echo here", ns, **one))
        found = wait_for_reason(lab, ns, "second", "QuotaExceeded")
        assert "exceeded quota: few" in found["message"] and f"requests.{GPU}=1" in found["message"], found
        event = eventually(lambda: (t := lab.kubectl("-n", ns, "describe", "run", "second")) and "exceeded quota" in t and t, message="the event")
        assert "QuotaExceeded" in event
        lab.kubectl("-n", ns, "delete", "run", "first")
        assert len(wait_until_finished(lab, ns, "second", "Succeeded")["attempts"]) == 1


@test
def queued_run_waits_for_its_quota_and_for_its_turn_after_preemption(lab):
    server = Server.in_cluster(lab)
    with kueue.installed(lab), lab.namespace("runs-queue", runs=True) as ns:
        # The controller caches the API groups of the cluster for some seconds.
        lab.apply(manifest("train", "trap 'exit 1' TERM; sleep 1000 & wait", ns, queue="gpus"))
        eventually(lambda: "train-1" in run_pods(lab, ns), timeout=60, message="the pod is created")
        kueue.queue(lab, ns, "train-1", "insufficient unused quota for nvidia.com/gpu")
        found = eventually(lambda: (s := status(lab, ns, "train")).get("reason") == "Queued" and "insufficient" in s["message"] and s, timeout=60,
                           message="the run is queued")
        assert found["phase"] == "Pending" and found["queue"] == {"name": "gpus", "system": "kueue"}, found
        assert "in queue gpus of kueue" in server.slipway(lab, "run", "status", "train", "-n", ns).stdout
        kueue.admit(lab, ns, "train-1")
        eventually(lambda: status(lab, ns, "train")["phase"] == "Running", message="the run is running")
        kueue.stop(lab, ns, "train-1", "WorkloadEvictedDueToPreempted", "a workload of higher priority")
        found = eventually(lambda: (s := status(lab, ns, "train")).get("disruptions") == 1 and s, message="the preemption is recorded")
        assert found["attempts"][0]["reason"] == "Preempted" and "failures" not in found, found
        # The next attempt waits again. If its workload is deleted, the one after it waits.
        eventually(lambda: "train-2" in run_pods(lab, ns), message="the next pod is created")
        kueue.queue(lab, ns, "train-2", "insufficient")
        kueue.stop(lab, ns, "train-2", "WorkloadDeleted", "Workload is deleted")
        found = eventually(lambda: (s := status(lab, ns, "train")).get("disruptions") == 2 and s, message="the deletion is recorded")
        assert found["attempts"][1]["reason"] == "WorkloadDeleted", found
        eventually(lambda: "train-2" not in run_pods(lab, ns), message="the deleted pod is released")
        lab.kubectl("-n", ns, "patch", "run", "train", "--type=merge", "-p", '{"spec":{"cancel":true}}')
        wait_until_finished(lab, ns, "train", "Cancelled")


@test
def requests_are_authorized_by_the_cluster(lab):
    server = Server.in_cluster(lab)
    with lab.namespace("runs-mine", runs=True) as mine, lab.namespace("runs-yours", runs=True) as yours:
        lab.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ada", "namespace": mine}},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "ada", "namespace": mine},
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
             "subjects": [{"kind": "ServiceAccount", "name": "ada", "namespace": mine}]},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "guest", "namespace": mine}},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "guest", "namespace": mine},
             "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
             "subjects": [{"kind": "ServiceAccount", "name": "guest", "namespace": mine}]},
        )
        ada, guest = lab.token(mine, "ada"), lab.token(mine, "guest")
        # A token for the API server is not valid for slipway, so that users need not expose such a token.
        assert server.request(f"/api/v1/runs?namespace={mine}", token=lab.kubectl("-n", mine, "create", "token", "ada").strip())[0] == 401
        # The run must be active while its token is tested, because a token expires with its run.
        submit = lambda ns, token, name: server.request(f"/api/v1/runs?namespace={ns}", manifest(name, "sleep 300"), token)
        eventually(lambda: submit(mine, ada, "one")[0] in (201, 409), message="roles are aggregated")
        code, response = submit(yours, ada, "one")
        assert code == 403 and f'cannot create resource "runs" in API group "slipway.dev" in the namespace "{yours}"' in response["error"], response
        assert submit(mine, guest, "two")[0] == 403
        assert server.request(f"/api/v1/runs?namespace={mine}", token=guest)[0] == 200
        assert server.request(f"/api/v1/runs", token=guest)[0] == 403, "not in all namespaces"
        assert server.request(f"/api/v1/runs/{mine}/one", token=guest, method="DELETE")[0] == 403
        assert lab.get("-n", mine, "run", "one")["metadata"]["annotations"]["slipway.dev/submitted-by"] == f"system:serviceaccount:{mine}:ada"
        # Tracking belongs to the installation's namespace: a role there gives access to it.
        search = lambda token: server.request("/api/2.0/mlflow/experiments/search", {"max_results": 5}, token)[0]
        create = lambda token: server.request("/api/2.0/mlflow/runs/create", {"experiment_id": "0"}, token)[0]
        assert search(ada) == 403 and create(ada) == 403
        binding = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "ada", "namespace": NAMESPACE},
                   "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
                   "subjects": [{"kind": "ServiceAccount", "name": "ada", "namespace": mine}]}
        lab.apply(binding)
        eventually(lambda: search(ada) == 200, timeout=30, message="ada may read")
        assert create(ada) == 403, "ada may not write"
        lab.kubectl("-n", NAMESPACE, "delete", "rolebinding", "ada")
        eventually(lambda: search(ada) == 403, timeout=30, message="ada may no longer read")
        # Each attempt has its own token, which permits tracking of its run only.
        secrets = eventually(lambda: lab.get("-n", mine, "secrets", "-l", "slipway.dev/run=one")["items"], message="the secret of the run")
        assert len(secrets) == 1 and secrets[0]["immutable"] and secrets[0]["metadata"]["ownerReferences"][0]["name"] == "one", secrets
        run = base64.b64decode(secrets[0]["data"]["token"]).decode()
        own = {"run_id": eventually(lambda: status(lab, mine, "one")["runId"], message="the run id"), "key": "a", "value": "b"}
        assert server.request("/api/2.0/mlflow/runs/set-tag", own, run)[0] == 200 and submit(mine, run, "three")[0] == 403
        assert server.request("/api/v1/deployments", token=run)[0] == 403
        assert search("nobody") == 401 and search(run[:-1] + ("0" if run[-1] != "0" else "1")) == 401
        done = server.slipway(lab, "run", "ls", "--submitted", "-n", yours, check=False)
        assert done.returncode == 0
        server.token = ada
        done = server.slipway(lab, "run", "ls", "--submitted", "-n", yours, check=False)
        assert done.returncode == 4 and "cannot list" in done.stderr, done


@test
def runs_are_executed_only_in_enabled_namespaces(lab):
    """Tests the RBAC permissions of the accounts, runs in other namespaces, and the admission policies."""
    server = Server.in_cluster(lab)
    api, controller = (f"system:serviceaccount:{NAMESPACE}:{name}" for name in ["slipway", "slipway-controller"])

    def may(account, verb, resource, namespace):
        return lab.kubectl("auth", "can-i", verb, resource, "-n", namespace, f"--as={account}", check=False).strip() == "yes"

    with lab.namespace("runs-closed") as ns:
        for namespace in [ns, NAMESPACE, "kube-system", "default"]:
            for account in [api, controller]:
                assert not any(may(account, verb, "secrets", namespace) for verb in ["get", "list", "create", "update", "delete"]), (account, namespace)
                assert not may(account, "create", "pods", namespace) and not may(account, "create", "pods/exec", namespace), (account, namespace)
            assert not may(api, "delete", "pods", namespace) and not may(api, "patch", "pods", namespace), namespace
        code, response = server.request(f"/api/v1/runs?namespace={ns}", manifest("submitted", "true"))
        assert code == 403 and "create rolebinding slipway-runs" in response["error"], response
        lab.apply(manifest("applied", "true", ns))
        found = wait_for_reason(lab, ns, "applied", "NamespaceNotEnabled")
        commands = [c.split() for c in found["message"].split("this enables it: ")[1].split(" && ")]
        assert len(commands) == 2 and not run_pods(lab, ns), found
        for command in commands:
            lab.kubectl(*command[1:])
        wait_until_finished(lab, ns, "applied", "Succeeded")
        assert may(controller, "create", "pods", ns) and may(controller, "create", "secrets", ns) and not may(controller, "get", "secrets", ns)
        assert not any(may(api, "create", resource, ns) for resource in ["pods", "secrets"]) and not may(controller, "create", "pods", "kube-system")
        # Admission policies restrict the controller to pods of runs, and forbid changes of their containers.
        lab.pod(ns, "unrelated", {})
        lab.wait_running(ns, "unrelated")

        def rejected(*words, stdin=None):
            done = subprocess.run([f"{lab.bin}/kubectl", "--kubeconfig", lab.kubeconfig, f"--as={controller}", "-n", ns, *words],
                                  input=stdin, text=True, capture_output=True)
            assert done.returncode, (words, done.stdout)
            return done.stderr

        assert "pods of runs only" in rejected("delete", "pod", "unrelated")
        assert "pods of runs only" in rejected("label", "pod", "unrelated", "slipway.dev/run=mine")
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "planted", "namespace": ns}, "spec": {"containers": [{"name": "a", "image": "b"}]}}
        assert "pods of runs only" in rejected("create", "-f", "-", stdin=json.dumps(pod))
        patch = json.dumps([{"op": "replace", "path": "/spec/containers/0/image", "value": "other"}])
        assert "what a pod runs" in rejected("patch", "pod", "applied-1", "--type=json", "-p", patch)
        secret = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
                  "metadata": {"name": "slipway-run-x", "namespace": ns, "annotations": {"kubernetes.io/service-account.name": "default"}}}
        assert "secrets of runs only" in rejected("create", "-f", "-", stdin=json.dumps(secret))
        # Only the controller may request tracked runs and tokens.
        request_token = lambda token: server.request("/api/v1/controller/token", {"namespace": ns, "run_id": "0" * 32, "run": "a", "experiment": None, "attempt": 1, "expires_at": 1}, token)[0]
        assert request_token(lab.token(ns, "default")) == 403 and request_token("nobody") == 401 and request_token(lab.token(NAMESPACE, "slipway-controller")) == 200
        # After the namespace is disabled, active runs can still be cancelled, and the namespace can be deleted.
        lab.apply(manifest("last", "sleep 1000", ns))
        eventually(lambda: status(lab, ns, "last").get("phase") == "Running", message="the run is running")
        lab.kubectl("-n", ns, "delete", "rolebinding", "slipway-runs", "slipway-submit")
        lab.kubectl("-n", ns, "patch", "run", "last", "--type=merge", "-p", '{"spec":{"cancel":true}}')
        wait_until_finished(lab, ns, "last", "Cancelled")


TOKEN = "0123456789abcdef0123456789abcdef"


def contender(lab, name):
    """Another control plane on this machine, which executes runs while it is the leader."""
    tokens = lab.folder / "tokens"
    tokens.write_text(TOKEN + "\n")
    return Slipway(lab.binary, options=["--token-file", str(tokens)], environment={
        "KUBECONFIG": lab.kubeconfig, "SLIPWAY_NAMESPACE": NAMESPACE, "SLIPWAY_POD": name, "SLIPWAY_SERVICE_HOST": "127.0.0.1"})


def leader(lab):
    return lab.get("-n", NAMESPACE, "lease", LEASE)["spec"]["holderIdentity"].split("_")[0]


def metric(server, name):
    request = urllib.request.Request(f"{server.url}/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=5) as response:
        text = response.read().decode()
    return next((float(l.split()[1]) for l in text.splitlines() if l.startswith(name + " ")), 0.0)


@contextlib.contextmanager
def without_installed_controller(lab):
    """Scales the installed control plane and controller to zero, and restores them afterwards."""
    both = ["slipway", "slipway-controller"]
    lab.kubectl("-n", NAMESPACE, "scale", "deployment", *both, "--replicas=0")
    eventually(lambda: not lab.get("pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component in (server,controller)")["items"],
               message="the pods are deleted")
    try:
        yield
    finally:
        lab.kubectl("-n", NAMESPACE, "scale", "deployment", *both, "--replicas=1")
        Server.in_cluster(lab)


@test(limit=600)
def each_run_is_executed_once_when_leaders_change(lab):
    with lab.namespace("runs-fought", runs=True) as ns, without_installed_controller(lab):
        with contender(lab, "one") as one, contender(lab, "two") as two:
            both = {"one": one, "two": two}
            eventually(lambda: leader(lab) in both, timeout=40, message="one leads")
            first = leader(lab)
            names = [f"job-{n}" for n in range(24)]
            lab.apply(*[manifest(name, "sleep 4", ns) for name in names])
            eventually(lambda: sum(status(lab, ns, n).get("phase") == "Succeeded" for n in names[:6]) >= 2, message="some runs have succeeded")
            assert metric(both["one" if first == "two" else "two"], "slipway_controller_leading") == 0
            both[first].process.kill()
            eventually(lambda: leader(lab) in both and leader(lab) != first, timeout=40, message="the other leads")
            for name in names:
                found = wait_until_finished(lab, ns, name, "Succeeded", 120)
                assert len(found["attempts"]) == 1 and "disruptions" not in found, found
            assert len(run_pods(lab, ns)) == len(names), "no run has a second pod"
            eventually(lambda: not [p for p in run_pods(lab, ns).values() if p["metadata"].get("finalizers")],
                       message="the finalizers of all pods are removed")
            # A leader that was stopped by a signal must notice that it lost the lease.
            second = leader(lab)
            both[second].process.send_signal(signal.SIGSTOP)
            with contender(lab, "three") as three:
                eventually(lambda: leader(lab) == "three", timeout=40, message="a third leads")
                lab.apply(manifest("after", "true", ns))
                both[second].process.send_signal(signal.SIGCONT)
                wait_until_finished(lab, ns, "after", "Succeeded")
                eventually(lambda: metric(both[second], "slipway_controller_leading") == 0, timeout=30, message="the stopped leader has noticed")
                assert metric(three, "slipway_controller_leading") == 1


@test(limit=600)
def runs_survive_api_server_outages_and_expired_watches(lab):
    with lab.namespace("runs-away", runs=True) as ns, without_installed_controller(lab):
        with contender(lab, "witness") as witness:
            eventually(lambda: leader(lab) == "witness", timeout=40, message="the witness leads")
            lab.apply(*[manifest(f"short-{n}", "sleep 8", ns) for n in range(4)], manifest("long", "sleep 60", ns), manifest("failing", "sleep 8; exit 2", ns))
            for name in ["long", "failing", *[f"short-{n}" for n in range(4)]]:
                eventually(lambda: status(lab, ns, name)["phase"] == "Running", message="the run is running")
            lab.lab("do", "kill", "kube-apiserver")
            # The outage must outlast the pods, whose ends the controller then learns only afterwards, and the leader's lease.
            time.sleep(30)
            lab.lab("do", "kill", "etcd")
            lab.lab("do", "start", "etcd")
            lab.lab("do", "start", "kube-apiserver")
            eventually(lambda: lab.get("node", "n1"), timeout=90, message="the API server is back")
            for n in range(4):
                assert len(wait_until_finished(lab, ns, f"short-{n}", "Succeeded", 120)["attempts"]) == 1
            assert wait_until_finished(lab, ns, "failing", "Failed")["attempts"][0]["exitCode"] == 2
            # While the witness is stopped, its watches break, and their resource version is compacted away.
            witness.process.send_signal(signal.SIGSTOP)
            lab.apply(manifest("unseen", "sleep 1", ns))
            lab.kubectl("-n", ns, "delete", "run", "short-0", "--wait=false")
            for n in range(30):
                lab.kubectl("-n", ns, "annotate", "--overwrite", "run", "short-1", f"n={n}")
            compact(lab)
            lab.lab("do", "kill", "kube-apiserver")
            lab.lab("do", "start", "kube-apiserver")
            eventually(lambda: lab.get("node", "n1"), timeout=90, message="the API server is back")
            witness.process.send_signal(signal.SIGCONT)
            assert len(wait_until_finished(lab, ns, "unseen", "Succeeded", 120)["attempts"]) == 1
            eventually(lambda: "short-0-1" not in run_pods(lab, ns), message="the pod of the deleted run is deleted")
            wait_until_finished(lab, ns, "long", "Succeeded", 120)


def compact(lab):
    """Compacts etcd's history, which the API server also does every five minutes."""
    pki = RUN / "pki"
    send = lambda path, body: json.loads(subprocess.run(
        ["curl", "-sS", "--fail", "--cacert", f"{pki}/ca.crt", "--cert", f"{pki}/etcd.crt", "--key", f"{pki}/etcd.key",
         f"https://127.0.0.1:12379/v3/{path}", "-d", json.dumps(body)], check=True, text=True, capture_output=True).stdout)
    revision = send("kv/range", {"key": "AA=="})["header"]["revision"]
    send("kv/compaction", {"revision": revision, "physical": True})


@test
def runs_leave_nothing_behind(lab):
    """After all other tests, no pods, claims, device specifications or tokens remain."""
    remaining = lambda kind: lab.get(kind, "-A", "-l", "slipway.dev/run")["items"]
    eventually(lambda: not remaining("pods"), message="pods")
    assert not lab.get("runs", "-A")["items"]
    eventually(lambda: not remaining("secrets"), message="secrets")
    for node in ["n1", "n2"]:
        assert os.listdir(f"/run/slipway-lab/{node}/run-cdi") == ["slipway.dev-gpu.json"], node
        eventually(lambda: not json.loads(lab.http(node, "/api/v1/node"))["holders"], message="no holders")
