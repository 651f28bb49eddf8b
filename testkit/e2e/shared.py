"""End-to-end tests of servers that share PostgreSQL and S3 (`testkit/services.py`)."""

import pathlib
import sys
import threading

from lib import Slipway
from suite import eventually

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from onnx_model import MODEL
from services import services


def manifest(name, script, **spec):
    return {"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": {"name": name}, "spec": {"command": ["sh", "-c", script], **spec}}


def submit(server, *arguments):
    status, response = server.call("POST", "/api/v1/runs", manifest(*arguments[:2], **(arguments[2] if len(arguments) > 2 else {})))
    assert status == 201, (status, response)
    return response


def wait_until_finished(server, name, phase):
    def finished():
        status, run = server.call("GET", f"/api/v1/runs/default/{name}")
        assert status == 200, (status, run)
        return run["status"]["phase"] in ("Succeeded", "Failed", "Cancelled") and run["status"].get("attributed") and run["status"]

    found = eventually(finished, message=f"{name} is finished")
    assert found["phase"] == phase, found


class Shared:
    """PostgreSQL and S3, and servers that use them; each test has its own database."""

    def __init__(self, binary, name):
        self.binary, self.name = binary, name

    def __enter__(self):
        self.running = services()
        self.postgres, self.bucket = self.running.__enter__()
        self.environment = {"SLIPWAY_DATABASE": self.postgres.create(self.name)}
        self.environment |= self.bucket.environment() | {"SLIPWAY_OBJECTS": f"s3://slipway/{self.name}"}
        return self

    def __exit__(self, *error):
        self.running.__exit__(*error)

    def server(self, *options):
        return Slipway(self.binary, options=options, environment=self.environment)


def create_run(server):
    status, created = server.call("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "0"})
    assert status == 200, (status, created)
    return created["run"]["info"]["run_id"]


def log(server, run, step):
    body = {"run_id": run, "key": "m", "value": step, "timestamp": step, "step": step}
    return server.call("POST", "/api/2.0/mlflow/runs/log-metric", body)


def steps(server, run):
    status, history = server.call("GET", f"/api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=m")
    assert status == 200, history
    return {m["step"] for m in history["metrics"]}


def servers_share_runs_artifacts_aliases_and_deployments(binary):
    """Changes at one server are visible at all others at once or within a second, also while one server is down."""
    with Shared(binary, "several") as shared, shared.server() as one, shared.server() as two:
        run = create_run(one)
        threads = [threading.Thread(target=lambda s=s, at=at: [log(s, run, at + i) for i in range(100)]) for at, s in ((0, one), (1000, two))]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert steps(one, run) == steps(two, run) == {*range(100), *range(1000, 1100)}

        assert one.call("PUT", f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/model/a.onnx", MODEL)[0] == 200
        status, listed = two.call("GET", f"/api/2.0/mlflow-artifacts/artifacts?path=0/{run}/artifacts/model")
        assert [f["path"] for f in listed["files"]] == ["a.onnx"], listed
        for number in (1, 2):
            server = (one, two)[number - 1]
            if number == 1:
                assert server.call("POST", "/api/2.0/mlflow/registered-models/create", {"name": "square"})[0] == 200
            version = {"name": "square", "run_id": run, "source": f"mlflow-artifacts:/0/{run}/artifacts/model"}
            status, created = server.call("POST", "/api/2.0/mlflow/model-versions/create", version)
            assert status == 200 and created["model_version"]["version"] == str(number), created
        alias = {"name": "square", "alias": "live", "version": "1"}
        assert one.call("POST", "/api/2.0/mlflow/registered-models/alias", alias)[0] == 200

        manifest = {"apiVersion": "slipway.dev/v1", "kind": "Deployment", "metadata": {"name": "square"},
                    "spec": {"models": [{"name": "live", "uri": "models:/square@live"}]}}
        status, applied = one.call("POST", "/api/v1/deployments", manifest)
        assert status in (200, 201) and applied["ready"], applied

        def version(server):
            status, shown = server.call("GET", "/v2/models/square", base=server.inference)
            return status == 200 and shown["versions"]

        # Runs do not get the server's credentials for the stores.
        submit(one, "curious", "env")
        wait_until_finished(one, "curious", "Succeeded")
        status, printed = one.call("GET", "/api/v1/runs/default/curious/log")
        assert status == 200 and "MLFLOW_RUN_ID=" in printed, (status, printed)
        assert shared.postgres.PASSWORD not in printed and shared.bucket.SECRET not in printed, printed

        with shared.server("--gateway-only") as gateway:
            for server in (one, two, gateway):
                eventually(lambda: version(server) == ["1"], message="the model is served by all")
            assert gateway.call("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0")[0] == 404, "a gateway has no tracking API"
            assert gateway.call("GET", "/readyz")[0] == 200
            # Move the alias at one server.
            assert two.call("POST", "/api/2.0/mlflow/registered-models/alias", alias | {"version": "2"})[0] == 200
            for server in (one, two, gateway):
                eventually(lambda: version(server) == ["2"], message="the alias is followed")
            # While one server is down, the others work; after its restart it has their changes.
            one.stop(9)
            assert log(two, run, 5000)[0] == 200
            assert version(gateway) == ["2"]
            assert two.call("DELETE", "/api/v1/deployments/square")[0] in (200, 204)
            eventually(lambda: version(gateway) is False, message="the deployment is deleted at the gateway")
            one.start()
            assert 5000 in steps(one, run)
            assert version(one) is False


def server_survives_database_outage(binary):
    """While PostgreSQL is down, requests are rejected with 503 and a reason. Afterwards the same server continues, without loss of
    acknowledged writes."""
    with Shared(binary, "away") as shared, shared.server() as server:
        run = create_run(server)
        acknowledged, rejected, stop = set(), {}, threading.Event()

        def client():
            step = 0
            while not stop.is_set():
                status, response = log(server, run, step)
                if status == 200:
                    acknowledged.add(step)
                else:
                    rejected[status] = response
                step += 1

        thread = threading.Thread(target=client)
        thread.start()
        for _ in range(3):
            before = len(acknowledged)
            eventually(lambda: len(acknowledged) > before + 20, message="writes succeed")
            shared.postgres.kill()
            eventually(lambda: server.call("GET", "/readyz")[0] == 503, timeout=5, message="the server notices the outage")
            status, response = server.call("GET", f"/api/2.0/mlflow/runs/get?run_id={run}")
            assert (status, response["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE"), (status, response)
            assert server.call("GET", "/healthz")[0] == 200
            shared.postgres.start()
        before = len(acknowledged)
        eventually(lambda: len(acknowledged) > before + 20, message="writes succeed")
        stop.set()
        thread.join()
        lost = acknowledged - steps(server, run)
        assert not lost, f"{len(lost)} of {len(acknowledged)} points are lost"
        # 500 if the connection broke during a commit, whose outcome is then unknown.
        assert set(rejected) <= {500, 503} and 503 in rejected, rejected
        print(f"     {len(acknowledged)} acknowledged points survived three crashes of PostgreSQL")


def acknowledged_writes_survive_kills_with_postgres(binary):
    """The server is killed while clients log; PostgreSQL has all acknowledged writes."""
    with Shared(binary, "kill") as shared, shared.server() as server:
        run, acknowledged = create_run(server), set()
        for round in range(10):
            before, stop = len(acknowledged), threading.Event()

            def client():
                step = round * 100_000
                while not stop.is_set():
                    try:
                        if log(server, run, step)[0] == 200:
                            acknowledged.add(step)
                    except (OSError, ValueError):
                        return
                    step += 1

            thread = threading.Thread(target=client)
            thread.start()
            eventually(lambda: len(acknowledged) > before + 20, interval=0.02, message="writes succeed")
            server.stop(9)
            stop.set()
            thread.join()
            server.start()
        lost = acknowledged - steps(server, run)
        assert acknowledged and not lost, f"{len(lost)} of {len(acknowledged)} points are lost"


TESTS = [
    servers_share_runs_artifacts_aliases_and_deployments,
    server_survives_database_outage,
    acknowledged_writes_survive_kills_with_postgres,
]
