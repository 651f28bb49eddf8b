"""End-to-end tests of servers that share a database and execute pipelines as processes: every run has one owner."""

import pathlib
import tempfile

from suite import eventually

from shared import Shared

# A step writes its name into a file when it begins, and ends when there is a file with its name.
SCRIPT = "echo $0 >> $1/journal; while [ ! -e $1/go-$0 ]; do sleep 0.02; done"


def task(name, after):
    return {
        "componentRef": {"name": f"comp-{name}"}, "taskInfo": {"name": name}, "cachingOptions": {"enableCache": False},
        **({"dependentTasks": after} if after else {}),
    }


def pipeline(folder, names=["first", "second"]):
    """A chain of steps that wait for a file."""
    containers = {f"exec-{name}": {"container": {"image": "alpine", "command": ["sh", "-c", SCRIPT, name, str(folder)]}} for name in names}
    tasks = {name: task(name, names[:at][-1:]) for at, name in enumerate(names)}
    return {
        "pipelineInfo": {"name": "owned"}, "schemaVersion": "2.1.0", "sdkVersion": "kfp-2.17.3",
        "root": {"dag": {"tasks": tasks}},
        "components": {f"comp-{name}": {"executorLabel": f"exec-{name}"} for name in names},
        "deploymentSpec": {"executors": containers},
    }


def submit(server, folder):
    status, run = server.call("POST", "/apis/v2beta1/runs", {"display_name": "owned", "pipeline_spec": pipeline(folder)})
    assert status == 200, (status, run)
    return run["run_id"]


def journal(folder):
    file = pathlib.Path(folder, "journal")
    return file.read_text().split() if file.exists() else []


def state(server, run):
    status, found = server.call("GET", f"/apis/v2beta1/runs/{run}")
    assert status == 200, found
    return found["state"]


def go(folder, step):
    pathlib.Path(folder, f"go-{step}").touch()


def ends(server, run, expected):
    def ended():
        found = state(server, run)
        return found if found in ("SUCCEEDED", "FAILED", "CANCELED") else None

    found = eventually(ended, timeout=60, message="the run has ended")
    assert found == expected, found


def server_goes_on_with_its_own_runs_and_others_leave_them(binary):
    """A server that is killed and started again goes on at once; another one, which is started meanwhile, does not touch the run."""
    with Shared(binary, "owned") as shared, tempfile.TemporaryDirectory() as folder, shared.server() as one, shared.server() as two:
        run = submit(one, folder)
        eventually(lambda: journal(folder) == ["first"], message="the first step runs")
        one.stop(9)
        two.stop()
        two.start()
        one.start()
        go(folder, "first")
        eventually(lambda: journal(folder) == ["first", "second"], timeout=10, message="the second step runs")
        go(folder, "second")
        ends(two, run, "SUCCEEDED")
        assert journal(folder) == ["first", "second"], journal(folder)


def runs_of_a_dead_server_are_taken_over(binary):
    """Another server takes a run over when its owner has not reported for the time of a lease. What the owner records afterwards has no effect."""
    with Shared(binary, "orphaned") as shared, tempfile.TemporaryDirectory() as folder, shared.server() as one, shared.server() as two:
        run = submit(one, folder)
        eventually(lambda: journal(folder) == ["first"], message="the first step runs")
        one.stop(9)
        go(folder, "first")
        # The process of the first step has ended, so the other server executes the step again.
        eventually(lambda: journal(folder) == ["first", "first", "second"], timeout=60, message="the other server goes on")
        one.start()
        go(folder, "second")
        ends(one, run, "SUCCEEDED")
        assert journal(folder) == ["first", "first", "second"], journal(folder)


def runs_are_canceled_and_deleted_at_any_server(binary):
    """A request to a server that does not own the run reaches the owner within a second or so."""
    with Shared(binary, "elsewhere") as shared, tempfile.TemporaryDirectory() as folder, shared.server() as one, shared.server() as two:
        run = submit(one, folder)
        eventually(lambda: journal(folder) == ["first"], message="the first step runs")
        status, answer = two.call("POST", f"/apis/v2beta1/runs/{run}:terminate", {})
        assert status == 200, answer
        ends(two, run, "CANCELED")
        status, answer = two.call("POST", f"/apis/v2beta1/runs/{run}:retry", {})
        assert status == 200, answer
        eventually(lambda: journal(folder) == ["first", "first"], message="the step runs again, at the other server")
        status, answer = one.call("DELETE", f"/apis/v2beta1/runs/{run}")
        assert status == 200, answer
        folders = [server.home / "work/pipelines/runs" for server in (one, two)]
        eventually(lambda: not any(list(path.glob("*")) for path in folders if path.exists()), timeout=20,
                   message="the files of the deleted run are deleted at both servers")
        assert journal(folder) == ["first", "first"], journal(folder)


TESTS = [
    server_goes_on_with_its_own_runs_and_others_leave_them,
    runs_of_a_dead_server_are_taken_over,
    runs_are_canceled_and_deleted_at_any_server,
]
