"""Tests of several control planes and of gateways apart, in the cluster, on one PostgreSQL and one bucket."""

import contextlib
import json
import pathlib
import sys
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from cluster import NAMESPACE, eventually
from onnx_model import MODEL
from runs import Server, ended, leader, manifest
from services import services

# The machine's address on the lab's network, which pods reach.
ADDRESS = "172.30.0.1"
REPLICAS, GATEWAYS = 3, 2


@contextlib.contextmanager
def installed(lab, values):
    """slipway with shared state; afterwards with its own again."""
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
    """Addresses of that many pods, ready and not on their way out."""
    def ask():
        pods = [p for p in lab.get("pods", "-n", NAMESPACE, "-l", f"app.kubernetes.io/component={component}")["items"]
                if "deletionTimestamp" not in p["metadata"] and all(c["ready"] for c in p["status"].get("containerStatuses", [{"ready": False}]))]
        return len(pods) == count and [(p["metadata"]["name"], p["status"]["podIP"]) for p in pods]
    return eventually(f"{count} pods of {component}", ask, 120)


def control_planes_and_gateways_share_their_state(lab, values):
    with installed(lab, values) as postgres, lab.namespace("shared", runs=True) as ns:
        token = Server.in_cluster(lab).token
        planes = [Server(f"http://{address}:7070", token) for _, address in ready(lab, "server", REPLICAS)]
        gateways = [Server(f"http://{address}:7071", token) for _, address in ready(lab, "gateway", GATEWAYS)]
        budgets = {b["metadata"]["name"] for b in lab.get("-n", NAMESPACE, "poddisruptionbudgets")["items"]}
        assert budgets == {"slipway", "slipway-gateway"}, budgets
        assert not lab.get("-n", NAMESPACE, "persistentvolumeclaims")["items"]

        # What one control plane keeps, another knows.
        code, made = planes[0].ask("/api/2.0/mlflow/runs/create", {"experiment_id": "0"})
        assert code == 200, made
        run = made["run"]["info"]
        planes[1].tracked(run["run_id"])
        path = f"0/{run['run_id']}/artifacts/model/a.onnx"
        upload = urllib.request.Request(f"{planes[1].url}/api/2.0/mlflow-artifacts/artifacts/{path}", MODEL,
                                        {"authorization": f"Bearer {token}"}, method="PUT")
        urllib.request.urlopen(upload, timeout=30).close()
        for path, body in [("registered-models/create", {"name": "relu"}),
                           ("model-versions/create", {"name": "relu", "run_id": run["run_id"], "source": f"{run['artifact_uri']}/model"}),
                           ("registered-models/alias", {"name": "relu", "alias": "live", "version": "1"})]:
            code, answer = planes[2].ask(f"/api/2.0/mlflow/{path}", body)
            assert code == 200, (path, answer)

        # It is deployed at one, and answered by the gateways.
        deployment = {"apiVersion": "slipway.dev/v1", "kind": "Deployment", "metadata": {"name": "relu"},
                      "spec": {"models": [{"name": "live", "uri": "models:/relu@live"}]}}
        code, answer = planes[0].ask("/api/v1/deployments", deployment)
        assert code in (200, 201), answer
        question = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [-1.0, 2.0]}]}
        for gateway in gateways:
            eventually("the gateway has it", lambda: gateway.ask("/v2/models/relu")[0] == 200)
            code, answer = gateway.ask("/v2/models/relu/infer", question)
            assert code == 200 and answer["outputs"][0]["data"] == [0.0, 2.0] and answer["model_version"] == "1", answer
            # They ask the cluster who somebody is.
            assert gateway.ask("/v2/models/relu/infer", question, token="wrong")[0] == 401
            account = lab.token(ns, "default")
            assert gateway.ask("/v2/models/relu/infer", question, token=account)[0] == 403
            # And they do nothing else.
            assert Server(gateway.url.replace("7071", "7070"), token).ask("/api/v1/runs")[0] == 404

        # Runs are carried out once, by the controller, and by its successor when it is gone.
        code, answer = planes[0].ask(f"/api/v1/runs?namespace={ns}", manifest("first", "echo one"))
        assert code == 201, answer
        ended(lab, ns, "first", "Succeeded")
        first = leader(lab)
        lab.kubectl("-n", NAMESPACE, "delete", "pod", first, "--grace-period=0", "--force")
        survivor = planes[1]
        code, answer = survivor.ask(f"/api/v1/runs?namespace={ns}", manifest("second", "echo two"))
        assert code == 201, answer
        status = ended(lab, ns, "second", "Succeeded", 90)
        assert leader(lab) != first
        # The run's own token, made by whichever control plane the controller reached, is known to all: it is tracked.
        assert survivor.tracked(status["runId"])["info"]["status"] == "FINISHED"

        # The database goes and comes: the pods stay, and say that they cannot be used meanwhile.
        postgres.kill()
        assert survivor.ask("/readyz")[0] == 503
        # What is deployed needs no database.
        code, answer = gateways[0].ask("/v2/models/relu/infer", question)
        assert code == 200, answer
        time.sleep(1)
        postgres.start()
        ready(lab, "server", REPLICAS)
        ready(lab, "gateway", GATEWAYS)
        # The pods may never have been seen unready: the outage was shorter than what lies between two probes.
        eventually("the database is used again", lambda: survivor.ask("/api/2.0/mlflow/runs/create", {"experiment_id": "0"})[0] == 200)
        restarts = [c["restartCount"] for p in lab.get("pods", "-n", NAMESPACE)["items"] for c in p["status"]["containerStatuses"]
                    if p["metadata"]["labels"]["app.kubernetes.io/component"] != "node"]
        assert not any(restarts), restarts
        print(f"     {REPLICAS} control planes and {GATEWAYS} gateways; runs led by {first}, then by {leader(lab)}")
    # With a volume of its own again: what was shared is taken away.
    assert not [d for d in lab.get("-n", NAMESPACE, "deployments")["items"] if d["metadata"]["name"] == "slipway-gateway"]
    assert json.loads(lab.kubectl("-n", NAMESPACE, "get", "deployment", "slipway", "-o", "json"))["spec"]["replicas"] == 1
