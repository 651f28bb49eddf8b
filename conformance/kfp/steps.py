#!/usr/bin/env python3
"""What steps on one machine find and leave: their tracked run, artifacts in buckets and on web servers, limits, and mapped images.

    steps.py --slipway BIN [SUBSTRING ...] [--list] [--junit FILE]

Needs kfp and kfp-kubernetes, and for the tests of buckets the S3 service of testkit/services.py. The server requires authentication.
"""

import contextlib
import http.server
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "dvc"), str(HERE.parent.parent / "testkit")]

import kfp
from kfp import compiler, dsl, kubernetes
from kfp.dsl import Artifact, Dataset, Input, Output

import cloud_services
import services
from lib import Slipway
from suite import Skip, Suite, eventually, protected

SUITE = Suite("kfp steps", limit=600)
test = SUITE.test
MLFLOW = "mlflow-skinny==3.17.2"


class Fixture:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary, pathlib.Path(folder)

    @contextlib.contextmanager
    def server(self, **environment):
        with Slipway(self.binary, home=self.folder, environment=environment) as server:
            yield Client(server, self.folder)


class Client:
    """Runs pipelines on a server, and reads what they left."""

    def __init__(self, server, folder):
        self.server, self.folder = server, folder
        self.kfp = kfp.Client(host=server.url, existing_token=server.token)

    def start(self, pipeline, pipeline_root=None, **arguments):
        package = str(self.folder / "pipeline.yaml")
        compiler.Compiler().compile(pipeline, package)
        return self.kfp.create_run_from_pipeline_package(package, arguments=arguments, pipeline_root=pipeline_root, enable_caching=False).run_id

    def run(self, pipeline, **options):
        run_id = self.start(pipeline, **options)
        ended = self.kfp.wait_for_run_completion(run_id, timeout=500, sleep_duration=0.2)
        return ended.state, self.get(f"/api/v1/pipelines/runs/{run_id}")

    def succeed(self, pipeline, **options):
        state, run = self.run(pipeline, **options)
        assert state == "SUCCEEDED", [(task["path"], task.get("failure")) for task in run["tasks"]]
        return {task["path"]: task for task in run["tasks"]}

    def failure(self, pipeline, task, **options):
        state, run = self.run(pipeline, **options)
        assert state == "FAILED", state
        return next(found["failure"] for found in run["tasks"] if found["path"] == task)

    def get(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.server.url + path, data, {**self.server.authorization, "content-type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return json.load(response)


# Tracking ----------------------------------------------------------------------------------------------------------------------------


@dsl.component(packages_to_install=[MLFLOW])
def log(rate: float) -> str:
    import os

    import mlflow

    mlflow.log_param("own", "parameter")
    mlflow.log_metric("loss", 0.25)
    return os.environ["MLFLOW_TRACKING_TOKEN"]


@test
def a_step_logs_to_its_tracked_run_with_a_token_that_ends_with_it(fixture):
    @dsl.pipeline(name="logs")
    def logs(rate: float = 0.1):
        log(rate=rate)

    with fixture.server() as client:
        token = client.succeed(logs)["log"]["outputs"]["parameters"]["Output"]
        found = client.get("/api/2.0/mlflow/runs/search", {"experiment_ids": ["0"], "filter": "metrics.loss = 0.25"})["runs"]
        assert len(found) == 1, found
        data = found[0]["data"]
        parameters = {parameter["key"]: parameter["value"] for parameter in data["params"]}
        assert parameters == {"own": "parameter", "rate": "0.1"}, parameters
        tags = {tag["key"]: tag["value"] for tag in data["tags"]}
        assert tags["slipway.pipeline.task"] == "log" and tags["mlflow.parentRunId"], tags
        assert found[0]["info"]["status"] == "FINISHED", found
        # Here a step has given its token away. It is worthless now.
        run_id = found[0]["info"]["run_id"]
        request = urllib.request.Request(client.server.url + f"/api/2.0/mlflow/runs/get?run_id={run_id}", headers={"authorization": f"Bearer {token}"})

        def is_refused():
            try:
                urllib.request.urlopen(request).close()
            except urllib.error.HTTPError as error:
                return error.code == 401

        # The server caches the state of a run for a second.
        eventually(is_refused, timeout=30, message="the token of a step that has ended is invalid")


# Buckets and web servers -------------------------------------------------------------------------------------------------------------


@dsl.component
def write(table: Output[Dataset], folder: Output[Artifact]):
    import os

    with open(table.path, "w") as file:
        file.write("1,2\n")
    table.metadata["rows"] = 1
    os.makedirs(folder.path + "/a/b")
    for name in ("x", "a/y", "a/b/z"):
        with open(f"{folder.path}/{name}", "w") as file:
            file.write(name)


@dsl.component
def read(table: Input[Dataset], folder: Input[Artifact]) -> str:
    import os

    names = sorted(os.path.relpath(os.path.join(at, name), folder.path) for at, _, files in os.walk(folder.path) for name in files)
    return open(table.path).read().strip() + " " + " ".join(names)


@dsl.component
def first_line(data: Input[Dataset]) -> str:
    return open(data.path).readline().strip()


@contextlib.contextmanager
def bucket():
    try:
        with tempfile.TemporaryDirectory() as folder:
            service = services.Bucket(pathlib.Path(folder, "s3"), "127.0.0.1")
            try:
                yield service.environment()
            finally:
                service.stop()
    except (FileNotFoundError, SystemExit) as error:
        raise Skip(f"the S3 service cannot be started: {error}") from None


@contextlib.contextmanager
def azure():
    with cloud_services.azure() as account:
        environment = {"AZURE_STORAGE_ACCOUNT_NAME": account.ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": account.KEY,
                       "AZURE_STORAGE_ENDPOINT": account.endpoint, "AZURE_ALLOW_HTTP": "true"}
        yield environment


@contextlib.contextmanager
def google():
    with cloud_services.google() as service:
        account = {"gcs_base_url": service.endpoint, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        yield {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account), "GOOGLE_ALLOW_HTTP": "true"}


@dsl.pipeline(name="bucket")
def through_a_bucket():
    made = write()
    read(table=made.outputs["table"], folder=made.outputs["folder"])


@dsl.pipeline(name="imports")
def importing(uri: str):
    found = dsl.importer(artifact_uri=uri, artifact_class=Dataset)
    first_line(data=found.output)


def keeps_artifacts(fixture, environment, root):
    with fixture.server(**environment) as client:
        tasks = client.succeed(through_a_bucket, pipeline_root=root)
        table = tasks["write"]["outputs"]["artifacts"]["table"][0]
        assert table["uri"].startswith(root + "/bucket/") and table["digest"].startswith("sha256:"), table
        assert table["metadata"] == {"rows": 1}, table
        assert tasks["read"]["outputs"]["parameters"]["Output"] == "1,2 a/b/z a/y x", tasks["read"]

        tasks = client.succeed(importing, uri=table["uri"])
        assert tasks["first-line"]["outputs"]["parameters"]["Output"] == "1,2", tasks
        reason = client.failure(importing, "first-line", uri=root + "/none")
        assert "fetching the input artifact 'data'" in reason and "/none" in reason, reason


@test
def artifacts_are_kept_in_a_bucket_of_s3(fixture):
    with bucket() as environment:
        keeps_artifacts(fixture, environment, "s3://slipway/pipelines")


@test
def artifacts_are_kept_in_a_container_of_azure(fixture):
    with azure() as environment:
        keeps_artifacts(fixture, environment, f"az://{cloud_services.CONTAINER}/pipelines")


@test
def artifacts_are_kept_in_a_bucket_of_google(fixture):
    with google() as environment:
        keeps_artifacts(fixture, environment, f"gs://{cloud_services.BUCKET}/pipelines")


@dsl.component
def append(data: Input[Dataset]) -> str:
    with open(data.path, "a") as file:
        file.write("3,4\n")
    return data.path


@dsl.component
def all_lines(data: Input[Dataset], space: str) -> str:
    assert data.path.startswith(space), (data.path, space)
    return " ".join(open(data.path).read().split())


@test
def an_imported_artifact_is_copied_into_the_workspace_once(fixture):
    @dsl.pipeline(name="space", pipeline_config=dsl.PipelineConfig(workspace=dsl.WorkspaceConfig(size="1Gi")))
    def pipeline(uri: str):
        found = dsl.importer(artifact_uri=uri, artifact_class=Dataset, download_to_workspace=True)
        changed = append(data=found.output)
        all_lines(data=found.output, space=dsl.WORKSPACE_PATH_PLACEHOLDER).after(changed)

    with bucket() as environment, fixture.server(**environment) as client, tempfile.TemporaryDirectory() as folder:
        tasks = client.succeed(write_only, pipeline_root="s3://slipway/pipelines")
        table = tasks["write"]["outputs"]["artifacts"]["table"][0]["uri"]
        own = pathlib.Path(folder, "table")
        own.write_text("1,2\n")
        for uri in (table, str(own)):
            tasks = client.succeed(pipeline, uri=uri)
            assert tasks["append"]["outputs"]["parameters"]["Output"].endswith("/workspace/.artifacts/" + uri.replace("://", "/").lstrip("/")), tasks
            assert tasks["all-lines"]["outputs"]["parameters"]["Output"] == "1,2 3,4", tasks
        assert own.read_text() == "1,2\n"


@dsl.pipeline(name="write")
def write_only():
    write()


@test
def an_artifact_is_imported_from_a_web_server(fixture):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = b"a,b\n1,2\n"
            self.send_response(200 if self.path == "/data/table.csv" else 404)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    @dsl.pipeline(name="web")
    def pipeline(uri: str):
        found = dsl.importer(artifact_uri=uri, artifact_class=Dataset)
        first_line(data=found.output)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, fixture.server() as client:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}/data"
        assert client.succeed(pipeline, uri=f"{base}/table.csv")["first-line"]["outputs"]["parameters"]["Output"] == "a,b"
        assert "404" in client.failure(pipeline, "first-line", uri=f"{base}/none.csv")
        server.shutdown()


# Limits, configuration and images ----------------------------------------------------------------------------------------------------


@dsl.component
def nothing():
    pass


@test
def a_step_that_needs_more_than_the_machine_has_fails_with_the_reason(fixture):
    def limited(change):
        @dsl.pipeline(name="limits")
        def pipeline():
            change(nothing())

        return pipeline

    with fixture.server() as client:
        client.succeed(limited(lambda task: task.set_cpu_limit("1").set_memory_limit("100M")))
        for change, reason in [
            (lambda task: task.set_cpu_limit("4000"), "4000 processors ("),
            (lambda task: task.set_memory_limit("900000G"), "818.5 TiB of memory ("),
            (lambda task: task.set_accelerator_type("amd.com/gpu").set_accelerator_limit(1), "1 amd.com/gpu (0 available)"),
        ]:
            message = client.failure(limited(change), "nothing")
            assert reason in message, message


@dsl.component
def variable() -> str:
    import os

    return os.environ["FROM_MAP"]


@test
def config_maps_are_folders(fixture):
    @dsl.pipeline(name="maps")
    def pipeline():
        kubernetes.use_config_map_as_env(variable(), "settings", {"key": "FROM_MAP"})

    with fixture.server() as client:
        assert "config-maps" in client.failure(pipeline, "variable")
        folder = client.server.home / "config-maps/settings"
        folder.mkdir(parents=True)
        (folder / "key").write_text("value\n")
        assert client.succeed(pipeline)["variable"]["outputs"]["parameters"]["Output"] == "value"


@dsl.container_component
def tool(out: dsl.OutputPath(str)):
    return dsl.ContainerSpec(image="registry.invalid/team/tool:1", command=["sh", "-c", 'mkdir -p "$(dirname $0)" && tool > $0', out])


@test
def an_image_is_mapped_to_an_environment(fixture):
    @dsl.pipeline(name="images")
    def pipeline():
        tool()

    programs = fixture.folder / "tool/bin"
    programs.mkdir(parents=True)
    (programs / "tool").write_text("#!/bin/sh\necho mapped\n")
    (programs / "tool").chmod(0o755)
    with fixture.server(SLIPWAY_PIPELINE_IMAGES=f"registry.invalid/team/*={programs.parent}") as client:
        assert client.succeed(pipeline)["tool"]["outputs"]["parameters"]["out"].strip() == "mapped"


@dsl.container_component
def contained(rows: Input[Dataset], table: Output[Dataset], out: dsl.OutputPath(str)):
    script = 'echo in the container; mkdir -p "$(dirname $0)" "$(dirname $1)"; cat $2 /etc/marked > $1; echo -n "$MARK $(id -u)" > $0'
    return dsl.ContainerSpec(image="localhost/slipway/box:1", command=["sh", "-c", script], args=[out, table.path, rows.path])


@dsl.container_component
def endless():
    return dsl.ContainerSpec(image="localhost/slipway/box:1", command=["sh", "-c", "trap '' TERM; while true; do sleep 0.1; done"])


@test
def images_are_run_by_a_container_engine(fixture):
    @dsl.pipeline(name="containers")
    def pipeline(uri: str):
        found = dsl.importer(artifact_uri=uri, artifact_class=Dataset)
        contained(rows=found.output).set_env_variable("MARK", "marked")

    @dsl.pipeline(name="endless")
    def unending():
        endless()

    with podman(fixture.folder) as (engine, path):
        (fixture.folder / "rows").write_text("1,2\n")
        with fixture.server(PATH=path) as client:
            task = client.succeed(pipeline, uri=str(fixture.folder / "rows"))["contained"]
            assert task["outputs"]["parameters"]["out"] == "marked 0", task
            table = pathlib.Path(task["outputs"]["artifacts"]["table"][0]["uri"])
            assert table.read_text() == "1,2\nfrom the image\n", table.read_text()
            assert not engine("ps", "--all", "--quiet")

            # One that ignores the signal to end is killed after the grace period, and one whose processes are killed goes on without them.
            for kill in (None, "supervisor"):
                run_id = client.start(unending)
                container = eventually(lambda: engine("ps", "--quiet"), timeout=60, message="the container runs")
                if kill:
                    files = list(client.server.home.glob("**/process.json"))
                    process = json.loads(max(files, key=lambda file: file.stat().st_mtime).read_text())
                    for name in ("supervisor", "program"):
                        os.kill(process[name], signal.SIGKILL)
                else:
                    client.kfp.terminate_run(run_id)
                eventually(lambda: not engine("ps", "--all", "--quiet"), timeout=90, message=f"the container {container} is removed")
                state = eventually(lambda: (s := client.get(f"/api/v1/pipelines/runs/{run_id}")["state"]) in ("FAILED", "CANCELED") and s)
                assert state == ("FAILED" if kill else "CANCELED"), state


@contextlib.contextmanager
def podman(folder):
    """Podman from Debian's packages, with a storage of its own and an image `localhost/slipway/box:1`: a function that calls it, and a
    `PATH` on which it is found."""
    packages = services.extracted("podman", ["podman", "conmon", "runc", "catatonit", "libdevmapper1.02.1", "libgpgme11", "libassuan0", "libsubid4", "busybox-static"])
    home = folder / "podman"
    (home / "bin").mkdir(parents=True)
    libraries = ":".join(str(path) for path in [*packages.glob("lib/*-linux-gnu*"), *packages.glob("usr/lib/*-linux-gnu*")])
    # As in a container itself: no limits are raised, and no networks are made.
    (home / "containers.conf").write_text(f"""[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
init_path = "{packages}/usr/bin/catatonit"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
conmon_path = ["{packages}/usr/bin/conmon"]
[engine.runtimes]
runc = ["{packages}/usr/sbin/runc"]
""")
    (home / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    program = home / "bin/podman"
    program.write_text(f"""#!/bin/sh
export LD_LIBRARY_PATH={libraries} CONTAINERS_CONF={home}/containers.conf
exec {packages}/usr/bin/podman --storage-driver vfs --root {home}/storage --runroot {home}/run --tmpdir {home}/tmp "$@"
""")
    program.chmod(0o755)

    def call(*words):
        done = subprocess.run([program, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    image = home / "image"
    (image / "bin").mkdir(parents=True)
    (image / "etc").mkdir()
    (image / "etc/marked").write_text("from the image\n")
    shutil.copy(packages / "bin/busybox", image / "bin/busybox")
    for name in ("sh", "cat", "echo", "mkdir", "dirname", "id", "sleep"):
        (image / "bin" / name).symlink_to("busybox")
    archive = shutil.make_archive(home / "image", "tar", image)
    try:
        call("import", archive, "localhost/slipway/box:1")
        try:
            call("run", "--rm", "--init", "--network", "host", "localhost/slipway/box:1", "sh", "-c", "true")
        except AssertionError as error:
            raise Skip(f"this machine does not let podman start containers: {error}") from None
        yield call, f"{program.parent}:{os.environ['PATH']}"
    finally:
        with protected():
            subprocess.run([program, "rm", "--all", "--force"], capture_output=True)
            shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def fixture(binary):
    with tempfile.TemporaryDirectory(prefix="slipway-steps-") as folder:
        yield Fixture(binary, folder)


if __name__ == "__main__":
    options = SUITE.options(__doc__, slipway={"required": True, "metavar": "BIN", "help": "path of slipway"})
    sys.exit(SUITE.main(options, lambda _: fixture(options.slipway)))
