"""End-to-end tests of runs as processes: taken in, queued, tried again, followed, and found again after a kill."""

import json
import os
import pathlib
import signal
import time

from lib import Slipway


def manifest(name, script, **spec):
    return {"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": {"name": name}, "spec": {"command": ["sh", "-c", script], **spec}}


def submit(server, *arguments):
    status, answer = server.call("POST", "/api/v1/runs", manifest(*arguments[:2], **(arguments[2] if len(arguments) > 2 else {})))
    assert status == 201, (status, answer)
    return answer


def ended(server, name, phase, limit=30):
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        status, run = server.call("GET", f"/api/v1/runs/default/{name}")
        assert status == 200, (status, run)
        if run["status"]["phase"] in ("Succeeded", "Failed", "Cancelled") and run["status"].get("attributed"):
            assert run["status"]["phase"] == phase, run["status"]
            return run["status"]
        time.sleep(0.05)
    raise AssertionError(f"{name} is not over after {limit} s: {run['status']}")


def until(what, ask, limit=30):
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if found := ask():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {limit} s")


def phase(server, name):
    return server.call("GET", f"/api/v1/runs/default/{name}")[1]["status"]["phase"]


def processes(word):
    """Process ids of command lines with this word, supervisors aside."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                line = pathlib.Path("/proc", entry, "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if word in line and "supervise" not in line:
                found.append(int(entry))
    return found


def a_run_is_followed_tracked_and_told_as_it_ends(binary):
    with Slipway(binary) as server:
        folder = pathlib.Path(server.folder.name)
        (folder / "train.json").write_text(json.dumps(manifest(
            "train", "cat here.txt; echo $LR $MLFLOW_TRACKING_URI; sleep 0.3; echo end", experiment="digits", image="any:1", env=[{"name": "LR", "value": "0.1"}])))
        (folder / "here.txt").write_text("beside the file\n")
        done = server.command("run", "submit", str(folder / "train.json"), "--follow")
        assert done.stdout == f"beside the file\n0.1 {server.url}\nend\n" and "without image" in done.stderr, done
        run = ended(server, "train", "Succeeded")
        _, answer = server.call("GET", f"/api/2.0/mlflow/runs/get?run_id={run['runId']}")
        info = answer["run"]["info"]
        _, experiment = server.call("GET", "/api/2.0/mlflow/experiments/get-by-name?experiment_name=digits")
        assert info["status"] == "FINISHED" and info["run_name"] == "train" and info["experiment_id"] == experiment["experiment"]["experiment_id"], info
        failed = server.command("run", "submit", "--name", "failing", "--wait", "--", "sh", "-c", "echo why >&2; exit 7", check=False)
        assert failed.returncode == 1 and "code 7" in failed.stderr, failed
        assert server.command("run", "logs", "failing").stdout == "why\n"
        assert "failing" in server.command("run", "queue").stdout and "code 7" in server.command("run", "status", "failing").stdout
        missing = server.command("run", "status", "nobody", check=False)
        assert missing.returncode == 1 and "there is no run 'nobody'" in missing.stderr, missing
        server.command("run", "rm", "train", "--yes")
        assert server.call("GET", "/api/v1/runs/default/train")[0] == 404
        assert not (server.home / "work/runs/train").exists()


def failures_deadlines_and_cancellation(binary):
    with Slipway(binary) as server:
        submit(server, "flaky", "echo try; [ -e again ] || { touch again; exit 3; }", {"backoffLimit": 1, "workingDir": server.folder.name})
        run = ended(server, "flaky", "Succeeded")
        assert [a["exitCode"] for a in run["attempts"]] == [3, 0] and run["failures"] == 1, run
        submit(server, "late", "sleep 1000 & sleep 1000", {"activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 1})
        assert ended(server, "late", "Failed")["reason"] == "DeadlineExceeded"
        submit(server, "deaf", "trap '' TERM; while :; do sleep 0.1; done # deaf-to-it", {"terminationGracePeriodSeconds": 1})
        until("it runs", lambda: phase(server, "deaf") == "Running")
        server.command("run", "cancel", "deaf")
        ended(server, "deaf", "Cancelled")
        assert not processes("deaf-to-it") and not processes("sleep 1000"), "what it started ended with it"
        submit(server, "missing", "true")
        status, answer = server.call("POST", "/api/v1/runs", manifest("missing", "true"))
        assert status == 409 and answer["code"] == "exec.exists", answer
        submit(server, "nothere", "true", {"command": ["/no/such/program"]})
        assert ended(server, "nothere", "Failed")["reason"] == "StartError"
        for wrong, code in [({"spec": {}}, "exec.manifest"), (manifest("Bad_Name", "true"), "exec.manifest"),
                            (manifest("big", "true", resources={"requests": {"cpu": 9999}}), "exec.too_large"),
                            (manifest("far", "true", workingDir="/no/such/folder"), "exec.manifest"),
                            (manifest("odd", "true", nonsense=1), "exec.manifest")]:
            status, answer = server.call("POST", "/api/v1/runs", wrong)
            assert status == 400 and answer["code"] == code, (wrong, answer)


def runs_outlive_a_server_that_is_killed(binary):
    """The server is killed again and again while runs begin, run and end; each is carried out once, and its end is known."""
    with Slipway(binary) as server:
        count = 12
        work = pathlib.Path(server.folder.name, "marks")
        work.mkdir()
        for n in range(count):
            submit(server, f"job-{n}", f"echo begun >> {work}/{n}; sleep 0.{n % 7 + 1}; echo line {n}; exit {n % 3}", {"resources": {"requests": {"cpu": "100m"}}})
        for _ in range(8):
            time.sleep(0.15)
            server.stop(signal.SIGKILL)
            server.start()
        for n in range(count):
            run = ended(server, f"job-{n}", "Failed" if n % 3 else "Succeeded")
            assert len(run["attempts"]) == 1 and run["attempts"][0]["exitCode"] == n % 3, run
            assert (work / str(n)).read_text() == "begun\n", "it was started twice"
            assert server.call("GET", f"/api/v1/runs/default/job-{n}/log")[1] == f"line {n}\n"
            _, answer = server.call("GET", f"/api/2.0/mlflow/runs/get?run_id={run['runId']}")
            assert answer["run"]["info"]["status"] == ("FAILED" if n % 3 else "FINISHED"), answer
        # One whose supervisor is killed too is started again, and what was left of it is ended.
        submit(server, "lost", "sleep 3 # lost-and-found")
        until("it runs", lambda: phase(server, "lost") == "Running")
        process = json.loads((server.home / "work/runs/lost/1/process.json").read_text())
        os.kill(process["supervisor"], signal.SIGKILL)
        run = ended(server, "lost", "Succeeded")
        assert run["disruptions"] == 1 and run["attempts"][0]["reason"] == "Lost" and "failures" not in run, run


def gpus_are_leased_in_the_order_of_arrival(binary):
    with Slipway(binary, environment={"SLIPWAY_GPU_FIXTURE": "a100x8"}) as server:
        gpus = lambda n: {"resources": {"limits": {"nvidia.com/gpu": n}, "requests": {"cpu": "10m"}}}
        show = "echo $CUDA_VISIBLE_DEVICES; sleep "
        submit(server, "five", show + "3", gpus(5))
        until("it runs", lambda: phase(server, "five") == "Running")
        submit(server, "six", show + "0", gpus(6))
        submit(server, "one", show + "0", gpus(1))
        submit(server, "none", "echo $NVIDIA_VISIBLE_DEVICES", gpus(0))
        ended(server, "none", "Succeeded")
        run = server.call("GET", "/api/v1/runs/default/six")[1]["status"]
        assert run["reason"] == "Queued" and "6 nvidia.com/gpu of 3" in run["message"], run
        # A GPU is free, and kept for the one that came first.
        assert phase(server, "one") == "Pending"
        five = ended(server, "five", "Succeeded")
        for name in ["six", "one"]:
            ended(server, name, "Succeeded")
        seen = {name: server.call("GET", f"/api/v1/runs/default/{name}/log")[1].strip() for name in ["five", "six", "one", "none"]}
        assert [len(set(seen[n].split(","))) for n in ["five", "six", "one"]] == [5, 6, 1] and seen["none"] == "void", seen
        assert len(five["attempts"][0]["gpus"]) == 5 and all(g["joules"] > 0 for g in five["attempts"][0]["gpus"]), five
        _, answer = server.call("GET", f"/api/2.0/mlflow/runs/get?run_id={five['runId']}")
        metrics = {m["key"]: m["value"] for m in answer["run"]["data"]["metrics"]}
        assert metrics["system/gpu_energy_joules"] > 0, metrics
        # Between two tries it holds nothing, and is charged for nothing.
        submit(server, "twice", "sleep 0.5; exit 1", {**gpus(1), "backoffLimit": 1})
        for attempt in ended(server, "twice", "Failed")["attempts"]:
            charged = attempt["gpus"][0]["busySeconds"] + attempt["gpus"][0]["idleSeconds"]
            assert 0.2 < charged < 2, attempt
        status, answer = server.call("POST", "/api/v1/runs", manifest("nine", "true", **gpus(9)))
        assert status == 400 and "9 nvidia.com/gpu of 8" in answer["error"], answer


def secrets_come_from_files_and_stay_there(binary):
    with Slipway(binary) as server:
        place = server.home / "secrets/hub"
        place.mkdir(parents=True)
        (place / "token").write_text("very-secret\n")
        secret = {"env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]}
        submit(server, "reader", "test \"$TOKEN\" = very-$(echo secret)", secret)
        ended(server, "reader", "Succeeded")
        for file in (server.home / "work/runs/reader").rglob("*"):
            assert not file.is_file() or b"very-secret" not in file.read_bytes(), file
        for key in ["missing", "../../run-tokens.key"]:
            wrong = {"env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": key}}}]}
            status, answer = server.call("POST", "/api/v1/runs", manifest("wrong", "true", **wrong))
            assert status == 400 and "TOKEN" in answer["error"], answer


def a_server_with_tokens_gives_runs_one_of_their_own(binary):
    tokens = pathlib.Path("/tmp", f"slipway-e2e-tokens-{os.getpid()}")
    tokens.write_text("0123456789abcdef0123456789abcdef\n")
    try:
        with Slipway(binary, options=["--token-file", str(tokens)]) as server:
            ask = "curl -s -o /dev/null -w '%{http_code}\\n' -H \"authorization: Bearer $MLFLOW_TRACKING_TOKEN\" -H 'content-type: application/json' "
            script = (f"{ask} -d '{{\"experiment_id\":\"0\"}}' $MLFLOW_TRACKING_URI/api/2.0/mlflow/runs/create; "
                      f"{ask} $MLFLOW_TRACKING_URI/api/v1/runs; {ask} $MLFLOW_TRACKING_URI/api/v1/deployments; echo $MLFLOW_TRACKING_TOKEN | cut -c1-12")
            headers = {"authorization": "Bearer 0123456789abcdef0123456789abcdef"}
            status, answer = server.call("POST", "/api/v1/runs", manifest("asker", script), headers=headers)
            assert status == 201, answer
            until("it is over", lambda: server.call("GET", "/api/v1/runs/default/asker", headers=headers)[1]["status"]["phase"] == "Succeeded")
            assert server.call("GET", "/api/v1/runs/default/asker/log", headers=headers)[1].split() == ["200", "403", "403", "slipway-run."]
    finally:
        tokens.unlink()


TESTS = [a_run_is_followed_tracked_and_told_as_it_ends, failures_deadlines_and_cancellation, runs_outlive_a_server_that_is_killed,
         gpus_are_leased_in_the_order_of_arrival, secrets_come_from_files_and_stay_there, a_server_with_tokens_gives_runs_one_of_their_own]
