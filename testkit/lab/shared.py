"""Tests several control planes and separate gateways in the cluster, with one PostgreSQL and one bucket."""

import contextlib
import json
import pathlib
import sys
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from cluster import NAMESPACE, eventually
from onnx_model import MODEL
from runs import Server, leader, manifest, wait_until_finished
from services import services

# The address of this machine on the lab's network, reachable from pods.
ADDRESS = "172.30.0.1"
REPLICAS, GATEWAYS = 3, 2


@contextlib.contextmanager
def installed(lab, values):
    """Installs slipway with shared state, and afterwards with its default state again."""
    with services(ADDRESS) as (postgres, bucket):
        secret = lambda name, data: {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "stringData": data}
        lab.apply(secret("shared-db", {"url": postgres.create("lab")}), secret("shared-bucket", bucket.environment()))
        shared = {"server": {"replicas": REPLICAS, "database": {"secret": "shared-db"}, "objects": {"url": "s3://slipway/lab", "secret": "shared-bucket"}},
                  "gateway": {"enabled": True, "replicas": GATEWAYS}}
        try:
            lab.install(**values, **shared)
            yield postgres
        finally:
            lab.install(**values)
            lab.kubectl("-n", NAMESPACE, "delete", "secret", "shared-db", "shared-bucket")


def ready(lab, component, count):
    """Waits for `count` ready pods that are not terminating, and returns their names and addresses."""
    def poll():
        pods = [p for p in lab.get("pods", "-n", NAMESPACE, "-l", f"app.kubernetes.io/component={component}")["items"]
                if "deletionTimestamp" not in p["metadata"] and all(c["ready"] for c in p["status"].get("containerStatuses", [{"ready": False}]))]
        return len(pods) == count and [(p["metadata"]["name"], p["status"]["podIP"]) for p in pods]
    return eventually(poll, timeout=120, message=f"{count} pods of {component}")


def control_planes_and_gateways_share_their_state(lab, values):
    with installed(lab, values) as postgres, lab.namespace("shared", runs=True) as ns:
        token = Server.in_cluster(lab).token
        planes = [Server(f"http://{address}:7070", token) for _, address in ready(lab, "server", REPLICAS)]
        gateways = [Server(f"http://{address}:7071", token) for _, address in ready(lab, "gateway", GATEWAYS)]
        budgets = {b["metadata"]["name"] for b in lab.get("-n", NAMESPACE, "poddisruptionbudgets")["items"]}
        assert budgets == {"slipway", "slipway-gateway"}, budgets
        assert not lab.get("-n", NAMESPACE, "persistentvolumeclaims")["items"]

        # Data of one control plane is visible at another.
        code, created = planes[0].request("/api/2.0/mlflow/runs/create", {"experiment_id": "0"})
        assert code == 200, created
        run = created["run"]["info"]
        planes[1].tracked(run["run_id"])
        path = f"0/{run['run_id']}/artifacts/model/a.onnx"
        upload = urllib.request.Request(f"{planes[1].url}/api/2.0/mlflow-artifacts/artifacts/{path}", MODEL,
                                        {"authorization": f"Bearer {token}"}, method="PUT")
        urllib.request.urlopen(upload, timeout=30).close()
        for path, body in [("registered-models/create", {"name": "relu"}),
                           ("model-versions/create", {"name": "relu", "run_id": run["run_id"], "source": f"{run['artifact_uri']}/model"}),
                           ("registered-models/alias", {"name": "relu", "alias": "live", "version": "1"})]:
            code, response = planes[2].request(f"/api/2.0/mlflow/{path}", body)
            assert code == 200, (path, response)

        # A model that is deployed at one control plane is served by all gateways.
        deployment = {"apiVersion": "slipway.dev/v1", "kind": "Deployment", "metadata": {"name": "relu"},
                      "spec": {"models": [{"name": "live", "uri": "models:/relu@live"}]}}
        code, response = planes[0].request("/api/v1/deployments", deployment)
        assert code in (200, 201), response
        request = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [-1.0, 2.0]}]}
        for gateway in gateways:
            eventually(lambda: gateway.request("/v2/models/relu")[0] == 200, message="the gateway serves it")
            code, response = gateway.request("/v2/models/relu/infer", request)
            assert code == 200 and response["outputs"][0]["data"] == [0.0, 2.0] and response["model_version"] == "1", response
            # Gateways authenticate and authorize clients through the cluster.
            assert gateway.request("/v2/models/relu/infer", request, token="wrong")[0] == 401
            account = lab.token(ns, "default")
            assert gateway.request("/v2/models/relu/infer", request, token=account)[0] == 403
            # Gateways have no other API.
            assert Server(gateway.url.replace("7071", "7070"), token).request("/api/v1/runs")[0] == 404

        # Each run is executed once, by the controller or by its successor.
        code, response = planes[0].request(f"/api/v1/runs?namespace={ns}", manifest("first", "echo one"))
        assert code == 201, response
        wait_until_finished(lab, ns, "first", "Succeeded")
        first = leader(lab)
        lab.kubectl("-n", NAMESPACE, "delete", "pod", first, "--grace-period=0", "--force")
        survivor = planes[1]
        code, response = survivor.request(f"/api/v1/runs?namespace={ns}", manifest("second", "echo two"))
        assert code == 201, response
        status = wait_until_finished(lab, ns, "second", "Succeeded", 90)
        assert leader(lab) != first
        # The token of a run is issued by one control plane and accepted by all, so the run is tracked.
        assert survivor.tracked(status["runId"])["info"]["status"] == "FINISHED"

        # During an outage of the database, pods keep running and report that they are not ready.
        postgres.kill()
        assert survivor.request("/readyz")[0] == 503
        # Deployed models need no database.
        code, response = gateways[0].request("/v2/models/relu/infer", request)
        assert code == 200, response
        eventually(lambda: {plane.request("/readyz")[0] for plane in planes[1:]} == {503}, message="the other control plane reports it too")
        postgres.start()
        ready(lab, "server", REPLICAS)
        ready(lab, "gateway", GATEWAYS)
        # The outage may be shorter than the interval of the readiness probe, so the pods may never become unready.
        eventually(lambda: survivor.request("/api/2.0/mlflow/runs/create", {"experiment_id": "0"})[0] == 200, message="the database is used again")
        restarts = [c["restartCount"] for p in lab.get("pods", "-n", NAMESPACE)["items"] for c in p["status"]["containerStatuses"]
                    if p["metadata"]["labels"]["app.kubernetes.io/component"] != "node"]
        assert not any(restarts), restarts
        print(f"     {REPLICAS} control planes and {GATEWAYS} gateways; runs led by {first}, then by {leader(lab)}")
    # The default installation has its own volume again, and no gateways.
    assert not [d for d in lab.get("-n", NAMESPACE, "deployments")["items"] if d["metadata"]["name"] == "slipway-gateway"]
    assert json.loads(lab.kubectl("-n", NAMESPACE, "get", "deployment", "slipway", "-o", "json"))["spec"]["replicas"] == 1
