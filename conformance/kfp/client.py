"""Tests the pipelines' API with each method of the official `kfp.Client`.

    python client.py --slipway target/debug/slipway [SUBSTRING ...] [--list] [--junit FILE]

Run it with a Python that has `kfp`. Each test gets a fresh experiment on one server. Programs of steps are not needed here: the pipeline's
only step is a container, whose image this machine may lack, so the tests of runs do not depend on how it ends.
"""

import contextlib
import io
import json
import os
import pathlib
import sys
import tarfile
import tempfile
import uuid
import warnings
import zipfile

warnings.filterwarnings("ignore")
# The client keeps a namespace in the home folder; a test must neither see nor change the user's.
HOME = tempfile.TemporaryDirectory(prefix="slipway-kfp-")
os.environ["HOME"] = HOME.name
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import kfp
import kfp_server_api
from kfp import compiler, dsl
from lib import Slipway
from suite import Suite, eventually

SUITE = Suite("kfp client", limit=120)
test = SUITE.test

FINAL = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}


@dsl.container_component
def say(text: str):
    return dsl.ContainerSpec(image="slipway.invalid/none:1", command=["echo", text])


@dsl.pipeline(name="hello", description="says something")
def hello(text: str, count: int = 1):
    say(text=text)


class Fixture:
    """A client, a compiled pipeline, and names that no other test uses."""

    def __init__(self, server, folder):
        self.server = server
        self.client = kfp.Client(host=server.url, existing_token=server.token)
        self.package = str(pathlib.Path(folder, "hello.yaml"))
        compiler.Compiler().compile(hello, self.package)

    @staticmethod
    def name(prefix):
        return f"{prefix}-{uuid.uuid4().hex[:8]}"

    def experiment(self):
        return self.client.create_experiment(self.name("experiment"), description="for a test")

    def run(self, experiment=None, **options):
        experiment = experiment or self.experiment()
        return self.client.create_run_from_pipeline_package(
            self.package, arguments={"text": "hi"}, run_name=self.name("run"), experiment_name=experiment.display_name, **options,
        )

    def recurring(self, **options):
        settings = {
            "experiment_id": self.experiment().experiment_id, "job_name": self.name("job"), "params": {"text": "[[ScheduledTime]]"},
            "pipeline_package_path": self.package, "cron_expression": "0 0 0 1 1 ?", "enabled": False, **options,
        }
        return self.client.create_recurring_run(**settings)


def refused(status, reason, call, *arguments, **options):
    """Asserts that a call fails with this status and reason, in the form of Kubeflow's gateway."""
    try:
        call(*arguments, **options)
    except kfp_server_api.ApiException as error:
        assert error.status == status, (error.status, error.body)
        body = json.loads(error.body)
        message = body["details"][0]["message"] if "details" in body else body["error_message"]
        assert reason in message, body
        if "details" in body:
            assert body["code"] == body["details"][0]["code"], body
        return body
    raise AssertionError(f"{call.__name__} succeeded")


def all_pages(call, field, **options):
    """The objects on all pages of a list."""
    found, token = [], ""
    while True:
        page = call(page_token=token, page_size=2, **options)
        found += getattr(page, field) or []
        token = page.next_page_token
        if not token:
            return found


# The server --------------------------------------------------------------------------------------------------------------------------


@test
def healthz_tells_that_there_is_one_user(fixture):
    assert fixture.client.get_kfp_healthz().multi_user is False


@test
def the_address_may_end_with_the_path_of_the_ui(fixture):
    client = kfp.Client(host=fixture.server.url + "/pipeline", existing_token=fixture.server.token)
    assert client.get_kfp_healthz().multi_user is False
    assert client.list_experiments(page_size=1).total_size >= 1


@test
def a_request_without_a_token_is_refused(fixture):
    client = kfp.Client(host=fixture.server.url)
    try:
        client.list_runs()
    except kfp_server_api.ApiException as error:
        assert error.status == 401, error
    else:
        raise AssertionError("the list was returned")


@test
def the_namespace_of_the_client_is_kept_locally(fixture):
    try:
        fixture.client.set_user_namespace("team")
        assert fixture.client.get_user_namespace() == "team"
        # A server with one user ignores it.
        assert fixture.client.list_experiments(page_size=1).total_size >= 1
    finally:
        fixture.client.set_user_namespace("")


# Experiments -------------------------------------------------------------------------------------------------------------------------


@test
def experiments_are_created_once_and_found_by_name_and_id(fixture):
    client, name = fixture.client, fixture.name("e")
    created = client.create_experiment(name, description="d/ü")
    assert client.create_experiment(name).experiment_id == created.experiment_id
    by_name, by_id = client.get_experiment(experiment_name=name), client.get_experiment(created.experiment_id)
    assert by_name.experiment_id == by_id.experiment_id == created.experiment_id
    assert (by_id.display_name, by_id.description, by_id.storage_state) == (name, "d/ü", "AVAILABLE")
    assert by_id.created_at.year >= 2024
    refused(404, "not found", client.get_experiment, "none")
    try:
        client.get_experiment(experiment_name="none")
    except ValueError as error:
        assert "No experiment is found" in str(error)
    else:
        raise AssertionError("an experiment was found")


@test
def experiments_are_archived_with_their_runs_and_deleted(fixture):
    client, experiment = fixture.client, fixture.experiment()
    run = fixture.run(experiment).run_id
    client.archive_experiment(experiment.experiment_id)
    assert client.get_experiment(experiment.experiment_id).storage_state == "ARCHIVED"
    assert client.get_run(run).storage_state == "ARCHIVED"
    refused(400, "must be un-archived first", client.unarchive_run, run)
    client.unarchive_experiment(experiment.experiment_id)
    assert client.get_experiment(experiment.experiment_id).storage_state == "AVAILABLE"
    client.delete_experiment(experiment.experiment_id)
    refused(404, "not found", client.get_experiment, experiment.experiment_id)
    default = client.get_experiment(experiment_name="Default")
    refused(409, "default experiment cannot be deleted", client.delete_experiment, default.experiment_id)


@test
def experiments_are_listed_in_pages_sorted_and_filtered(fixture):
    client, prefix = fixture.client, fixture.name("listed")
    for n in range(5):
        client.create_experiment(f"{prefix}-{n}")
    only = json.dumps({"predicates": [{"operation": "IS_SUBSTRING", "key": "display_name", "stringValue": prefix}]})
    names = [e.display_name for e in all_pages(client.list_experiments, "experiments", sort_by="name desc", filter=only)]
    assert names == [f"{prefix}-{n}" for n in reversed(range(5))], names
    refused(400, "Invalid sorting field", client.list_experiments, sort_by="x")
    refused(400, "Invalid page token", client.list_experiments, page_token="x")
    refused(400, "unrecognized field", client.list_experiments,
            filter=json.dumps({"predicates": [{"operation": 1, "key": "x", "stringValue": "y"}]}))


# Pipelines ---------------------------------------------------------------------------------------------------------------------------


def packages(fixture, folder):
    """The compiled pipeline as each kind of package."""
    text = pathlib.Path(fixture.package).read_bytes()
    yield fixture.package
    with zipfile.ZipFile(pathlib.Path(folder, "p.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pipeline.yaml", text)
    yield archive.filename
    path = str(pathlib.Path(folder, "p.tar.gz"))
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("pipeline.yaml")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    yield path


@test
def pipelines_are_uploaded_in_every_kind_of_package(fixture):
    client = fixture.client
    with tempfile.TemporaryDirectory() as folder:
        for package in packages(fixture, folder):
            name = fixture.name("my pipeline")
            uploaded = client.upload_pipeline(package, pipeline_name=name, description="d/ü")
            assert (uploaded.display_name, uploaded.description) == (name, "d/ü"), uploaded
            assert client.get_pipeline_id(name) == uploaded.pipeline_id
            found = client.get_pipeline(uploaded.pipeline_id)
            assert (found.display_name, found.created_at) == (name, uploaded.created_at)
            versions = client.list_pipeline_versions(uploaded.pipeline_id)
            assert versions.total_size == 1 and versions.pipeline_versions[0].display_name == name
            spec = versions.pipeline_versions[0].pipeline_spec
            assert spec["pipelineInfo"]["name"] == "hello" and spec["schemaVersion"] == "2.1.0", spec
    assert client.get_pipeline_id("none") is None
    refused(404, "not found", client.get_pipeline, "none")


@test
def the_name_of_a_pipeline_is_unique(fixture):
    name = fixture.name("p")
    fixture.client.upload_pipeline(fixture.package, pipeline_name=name)
    refused(409, "", fixture.client.upload_pipeline, fixture.package, pipeline_name=name)


@test
def faulty_pipelines_are_refused(fixture):
    with tempfile.TemporaryDirectory() as folder:
        for name, text in [("a.yaml", "a: ["), ("b.yaml", "schemaVersion: 2.1.0\n"), ("c.zip", "PK"), ("d.txt", "text")]:
            path = pathlib.Path(folder, name)
            path.write_text(text)
            refused(400, "", fixture.client.upload_pipeline, str(path), pipeline_name=fixture.name("p"))


@test
def pipelines_are_uploaded_from_functions(fixture):
    client, name = fixture.client, fixture.name("f")
    pipeline = client.upload_pipeline_from_pipeline_func(hello, pipeline_name=name)
    version = client.upload_pipeline_version_from_pipeline_func(hello, "second", pipeline_name=name)
    assert version.pipeline_id == pipeline.pipeline_id and version.display_name == "second"


@test
def versions_are_uploaded_listed_and_deleted(fixture):
    client = fixture.client
    pipeline = client.upload_pipeline(fixture.package, pipeline_name=fixture.name("p")).pipeline_id
    for n in range(4):
        client.upload_pipeline_version(fixture.package, f"v{n}", pipeline_id=pipeline, description=f"number {n}")
    versions = all_pages(lambda **o: client.list_pipeline_versions(pipeline, **o), "pipeline_versions", sort_by="created_at desc")
    assert [v.display_name for v in versions][:4] == ["v3", "v2", "v1", "v0"]
    newest = client.get_pipeline_version(pipeline, versions[0].pipeline_version_id)
    assert (newest.description, newest.pipeline_id) == ("number 3", pipeline)
    client.delete_pipeline_version(pipeline, newest.pipeline_version_id)
    refused(404, "not found", client.get_pipeline_version, pipeline, newest.pipeline_version_id)
    refused(409, "already exist", client.upload_pipeline_version, fixture.package, "v1", pipeline_id=pipeline)
    refused(400, "existing pipeline versions", client.delete_pipeline, pipeline)
    for version in versions[1:]:
        client.delete_pipeline_version(pipeline, version.pipeline_version_id)
    client.delete_pipeline(pipeline)
    refused(404, "not found", client.get_pipeline, pipeline)


@test
def pipelines_are_listed_in_pages(fixture):
    prefix = fixture.name("listed")
    for n in range(5):
        fixture.client.upload_pipeline(fixture.package, pipeline_name=f"{prefix}-{n}")
    only = json.dumps({"predicates": [{"operation": "IS_SUBSTRING", "key": "name", "stringValue": prefix}]})
    pipelines = all_pages(fixture.client.list_pipelines, "pipelines", sort_by="name", filter=only)
    assert [p.display_name for p in pipelines] == [f"{prefix}-{n}" for n in range(5)]


@test
def pipelines_are_renamed_and_tagged(fixture):
    api = fixture.client._pipelines_api
    pipeline = fixture.client.upload_pipeline(fixture.package, pipeline_name=fixture.name("p"))
    change = kfp_server_api.V2beta1Pipeline(display_name="renamed", tags={"team": "a"})
    updated = api.pipeline_service_update_pipeline(pipeline.pipeline_id, change)
    assert (updated.display_name, updated.tags) == ("renamed", {"team": "a"})
    assert api.pipeline_service_get_pipeline_by_name(pipeline.name).display_name == "renamed"


# Runs --------------------------------------------------------------------------------------------------------------------------------


@test
def runs_are_created_from_packages_functions_and_versions(fixture):
    client, experiment = fixture.client, fixture.experiment()
    run = fixture.run(experiment, enable_caching=False, service_account="someone")
    found = client.get_run(run.run_id)
    assert found.experiment_id == experiment.experiment_id and found.service_account == "someone"
    assert found.runtime_config.parameters == {"text": "hi"}
    assert found.pipeline_spec["pipelineInfo"]["name"] == "hello"
    assert found.state_history[0].state == "PENDING" and found.storage_state == "AVAILABLE"

    run = client.create_run_from_pipeline_func(hello, arguments={"text": "a", "count": 2}, experiment_name=experiment.display_name)
    assert client.get_run(run.run_id).runtime_config.parameters == {"text": "a", "count": 2}

    pipeline = client.upload_pipeline(fixture.package, pipeline_name=fixture.name("p"))
    version = client.upload_pipeline_version(fixture.package, "two", pipeline_id=pipeline.pipeline_id)
    named = client.run_pipeline(experiment.experiment_id, "r", pipeline_id=pipeline.pipeline_id,
                                version_id=version.pipeline_version_id, params={"text": "a"})
    # The client insists on a version, the API does not: it takes the newest.
    newest = client._run_api.run_service_create_run(kfp_server_api.V2beta1Run(
        experiment_id=experiment.experiment_id, display_name="r", runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters={"text": "a"}),
        pipeline_version_reference=kfp_server_api.V2beta1PipelineVersionReference(pipeline_id=pipeline.pipeline_id),
    ))
    for run in (named, newest):
        reference = client.get_run(run.run_id).pipeline_version_reference
        assert reference.pipeline_version_id == version.pipeline_version_id


@test
def runs_without_an_experiment_are_in_the_default_one(fixture):
    run = fixture.client.create_run_from_pipeline_package(fixture.package, arguments={"text": "a"})
    default = fixture.client.get_experiment(experiment_name="Default")
    assert fixture.client.get_run(run.run_id).experiment_id == default.experiment_id


@test
def runs_with_wrong_parameters_are_refused(fixture):
    create = fixture.client.create_run_from_pipeline_package
    refused(400, "parameter text is not optional", create, fixture.package)
    refused(400, "requires type string", create, fixture.package, arguments={"text": 1})
    refused(400, "requires type double or integer", create, fixture.package, arguments={"text": "", "count": "1"})
    refused(400, "not required by pipeline: other", create, fixture.package, arguments={"text": "", "other": 1})


@test
def a_run_is_waited_for_and_its_tasks_are_shown(fixture):
    run = fixture.run()
    # The image cannot be had, so that the run fails, which ends the wait.
    finished = run.wait_for_run_completion(timeout=60)
    assert finished.state == "FAILED", finished.state
    finished = fixture.client.wait_for_run_completion(run.run_id, timeout=60, sleep_duration=1)
    details = finished.run_details.task_details
    say_details = [task for task in details if task.display_name == "say"]
    assert len(say_details) == 1 and say_details[0].state == "FAILED", details
    assert say_details[0].run_id == run.run_id and say_details[0].task_id and say_details[0].parent_task_id
    assert finished.state_history[-1].state == "FAILED" and finished.finished_at >= finished.created_at
    fixture.client._run_api.run_service_retry_run(run.run_id)
    assert fixture.client.wait_for_run_completion(run.run_id, timeout=60, sleep_duration=1).state == "FAILED"


@test
def a_run_is_terminated_once(fixture):
    client, run = fixture.client, fixture.run().run_id
    try:
        client.terminate_run(run)
    except kfp_server_api.ApiException as error:
        # It may have failed before.
        assert error.status == 400 and "Row not found" in error.body, error.body
    state = eventually(lambda: (found := client.get_run(run)).state in FINAL and found.state, message="the run has finished")
    assert state in {"CANCELED", "FAILED"}, state
    refused(400, "Row not found", client.terminate_run, run)


@test
def runs_are_archived_and_deleted(fixture):
    client, run = fixture.client, fixture.run().run_id
    client.archive_run(run)
    assert client.get_run(run).storage_state == "ARCHIVED"
    client.unarchive_run(run)
    assert client.get_run(run).storage_state == "AVAILABLE"
    client.delete_run(run)
    for call in (client.get_run, client.archive_run, client.unarchive_run, client.delete_run, client.terminate_run):
        refused(404, f"Run {run} not found", call, run)


@test
def runs_are_listed_in_pages_sorted_and_filtered(fixture):
    client, experiment = fixture.client, fixture.experiment()
    created = [fixture.run(experiment).run_id for _ in range(5)]
    listed = all_pages(client.list_runs, "runs", experiment_id=experiment.experiment_id, sort_by="created_at desc")
    assert [run.run_id for run in listed] == created[::-1]
    client.archive_run(created[0])
    archived = json.dumps({"predicates": [{"operation": "EQUALS", "key": "storage_state", "stringValue": "ARCHIVED"}]})
    listed = client.list_runs(experiment_id=experiment.experiment_id, filter=archived)
    assert [run.run_id for run in listed.runs] == created[:1] and listed.total_size == 1
    assert client.list_runs(namespace="anything", page_size=1).total_size >= 5


# Recurring runs ----------------------------------------------------------------------------------------------------------------------


@test
def recurring_runs_have_their_whole_life(fixture):
    client = fixture.client
    created = fixture.recurring(start_time="2030-01-01T00:00:00Z", max_concurrency=3, no_catchup=True, description="yearly")
    found = client.get_recurring_run(created.recurring_run_id)
    assert (found.display_name, found.status, found.max_concurrency, found.no_catchup) == (created.display_name, "DISABLED", "3", True)
    assert found.trigger.cron_schedule.cron == "0 0 0 1 1 ?" and found.trigger.cron_schedule.start_time.year == 2030
    assert found.pipeline_spec["pipelineInfo"]["name"] == "hello"
    client.enable_recurring_run(created.recurring_run_id)
    assert client.get_recurring_run(created.recurring_run_id).status == "ENABLED"
    client.disable_recurring_run(created.recurring_run_id)
    assert client.get_recurring_run(created.recurring_run_id).status == "DISABLED"
    client.enable_job(created.recurring_run_id)
    client.disable_job(created.recurring_run_id)
    client.delete_job(fixture.recurring().recurring_run_id)
    client.delete_recurring_run(created.recurring_run_id)
    refused(404, "not found", client.get_recurring_run, created.recurring_run_id)


@test
def recurring_runs_of_versions_start_runs(fixture):
    client, experiment = fixture.client, fixture.experiment()
    pipeline = client.upload_pipeline(fixture.package, pipeline_name=fixture.name("p")).pipeline_id
    version = client.list_pipeline_versions(pipeline).pipeline_versions[0].pipeline_version_id
    recurring = client.create_recurring_run(
        experiment.experiment_id, "each second", interval_second=1, pipeline_id=pipeline, version_id=version,
        params={"text": "[[Index]]"}, max_concurrency=1, no_catchup=True,
    )
    assert recurring.trigger.periodic_schedule.interval_second == "1"

    def first_run():
        return client.list_runs(experiment_id=experiment.experiment_id).runs

    run = eventually(first_run, message="a run was started")[0]
    client.disable_recurring_run(recurring.recurring_run_id)
    assert run.recurring_run_id == recurring.recurring_run_id
    assert run.pipeline_version_reference.pipeline_version_id == version
    assert run.runtime_config.parameters == {"text": "1"}
    client.delete_recurring_run(recurring.recurring_run_id)


@test
def recurring_runs_are_listed_in_pages(fixture):
    client, experiment = fixture.client, fixture.experiment().experiment_id
    created = [fixture.recurring(experiment_id=experiment).recurring_run_id for _ in range(5)]
    listed = all_pages(client.list_recurring_runs, "recurring_runs", experiment_id=experiment, sort_by="created_at")
    assert [run.recurring_run_id for run in listed] == created
    assert client.list_recurring_runs(page_size=1).total_size >= 5


@test
def faulty_recurring_runs_are_refused(fixture):
    refused(400, "Schedule cron is not a supported format", fixture.recurring, cron_expression="61 * * * * *")
    refused(400, "at least 1 and at most 10", fixture.recurring, max_concurrency=11)
    refused(400, "parameter text is not optional", fixture.recurring, params={})
    refused(400, "period schedule interval -1", fixture.recurring, cron_expression=None, interval_second=-1)
    refused(404, "not found", fixture.recurring, experiment_id="none")


@contextlib.contextmanager
def fixture(binary):
    with tempfile.TemporaryDirectory(prefix="slipway-kfp-") as folder, Slipway(binary) as server:
        yield Fixture(server, folder)


if __name__ == "__main__":
    options = SUITE.options(__doc__, slipway={"required": True, "metavar": "BIN", "help": "path of slipway"})
    sys.exit(SUITE.main(options, lambda _: fixture(options.slipway)))
