#!/usr/bin/env python3
"""End-to-end tests of the binary, with nothing but Python's standard library.

    testkit/e2e/run.py target/release/slipway [NAME ...]
"""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "conformance"))
import runs
import shared
from lib import Slipway
from suite import Suite

BINARY = sys.argv[1] if len(sys.argv) > 1 else "target/release/slipway"
SUITE = Suite()
test = SUITE.test
ROUNDS = int(os.environ.get("KILL_ROUNDS", "50"))


def log_metric(server, run, step):
    body = {"run_id": run, "key": "m", "value": step, "timestamp": step, "step": step}
    return server.call("POST", "/api/2.0/mlflow/runs/log-metric", body)[0] == 200


@test
def nothing_acknowledged_is_lost_by_kill_9():
    """Clients log without pause; the server is killed at random times. All that was acknowledged is there afterwards."""
    with Slipway(BINARY) as server:
        _, made = server.call("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "0"})
        run = made["run"]["info"]["run_id"]
        acknowledged = {"m": set(), "runs": set(), "files": set()}
        next_step = 0
        for round in range(ROUNDS):
            stop = threading.Event()

            def client(kind, start):
                step = start
                while not stop.is_set():
                    try:
                        if kind == "m":
                            ok, token = log_metric(server, run, step), step
                        elif kind == "runs":
                            status, made = server.call("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "0", "run_name": "r"})
                            ok, token = status == 200, made["run"]["info"]["run_id"] if status == 200 else None
                        else:
                            token = f"{round}-{step}"
                            ok = server.call("PUT", f"/api/2.0/mlflow-artifacts/artifacts/kill/{token}", token.encode() * 50)[0] == 200
                        if ok:
                            acknowledged[kind].add(token)
                    except (OSError, ValueError, KeyError):
                        return
                    step += 1

            threads = [threading.Thread(target=client, args=(kind, next_step)) for kind in acknowledged]
            [t.start() for t in threads]
            time.sleep(random.uniform(0.02, 0.25))
            server.stop(signal.SIGKILL)
            stop.set()
            [t.join() for t in threads]
            next_step += 100_000
            server.start()
        _, history = server.call("GET", f"/api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=m")
        kept = {m["step"] for m in history["metrics"]}
        assert acknowledged["m"] <= kept, f"{len(acknowledged['m'] - kept)} of {len(acknowledged['m'])} metrics are lost"
        for id in acknowledged["runs"]:
            assert server.call("GET", f"/api/2.0/mlflow/runs/get?run_id={id}")[0] == 200, f"run {id} is lost"
        for name in acknowledged["files"]:
            status, text = server.call("GET", f"/api/2.0/mlflow-artifacts/artifacts/kill/{name}")
            assert (status, text) == (200, name * 50), f"file {name} is lost"
        assert server.call("GET", "/api/v1/integrity")[1] == {"result": "ok"}
        counts = {k: len(v) for k, v in acknowledged.items()}
        assert all(n > ROUNDS for n in counts.values()), counts
        print(f"     {ROUNDS} kills, acknowledged and kept: {counts}")


@test
def starts_quickly_idles_small_and_stops_cleanly():
    with Slipway(BINARY) as server:
        assert server.memory_mb() < 50, server.memory_mb()
        first = server.stop()
        again = min((server.start(), server.stop())[0] for _ in range(5))
        server.start()
        assert first == 0 and again < 0.3, again
        print(f"     start {again * 1000:.0f} ms, idle {server.memory_mb():.0f} MB")


@test
def a_request_in_flight_is_answered_before_the_stop():
    with Slipway(BINARY) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as s:
            body = b"x" * 100_000
            s.sendall(b"PUT /api/2.0/mlflow-artifacts/artifacts/slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100000\r\n\r\n" + body[:50_000])
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            s.sendall(body[50_000:])
            assert s.recv(100).startswith(b"HTTP/1.1 200"), "the upload was cut off"
        assert server.process.wait(15) == 0
        server.start()
        assert server.call("GET", "/api/2.0/mlflow-artifacts/artifacts/slow")[1] == "x" * 100_000


@test
def an_upload_that_breaks_off_leaves_nothing():
    with Slipway(BINARY) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as s:
            s.sendall(b"PUT /api/2.0/mlflow-artifacts/artifacts/half HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nhalf")
        time.sleep(0.3)
        assert server.call("GET", "/api/2.0/mlflow-artifacts/artifacts/half")[0] == 404
        assert list((server.home / "objects/.part").iterdir()) == []


@test
def listening_beyond_loopback_needs_tokens():
    with Slipway(BINARY) as server:
        server.stop()
        refused = server.command("up", "--listen", "0.0.0.0:0", check=False)
        assert refused.returncode == 1 and "listen.unauthenticated" in refused.stderr and "--token-file" in refused.stderr, refused.stderr
        tokens = server.home / "tokens"
        tokens.write_text("short\n")
        assert "shorter than 16" in server.command("up", "--token-file", str(tokens), check=False).stderr
        tokens.write_text("# mine\n0123456789abcdef\n")
        server.options = ["--token-file", str(tokens)]
        server.start()
        search = ("POST", "/api/2.0/mlflow/experiments/search", {"max_results": 1})
        assert server.call(*search)[0] == 401
        assert server.call(*search, headers={"authorization": "Bearer 0123456789abcdeX"})[0] == 401
        assert server.call(*search, headers={"authorization": "Bearer 0123456789abcdef"})[0] == 200
        assert server.call("GET", "/v2/models/x", base=server.inference)[0] == 401
        assert server.call("GET", "/healthz")[0] == 200 and server.call("GET", "/metrics")[0] == 401
        server.log.seek(0)
        assert "0123456789abcdef" not in server.log.read(), "a token stands in the log"
        assert server.command("status", check=False).returncode == 4
        server.environment["SLIPWAY_TOKEN"] = "0123456789abcdef"
        assert server.command("status", check=False).returncode == 0


@test
def other_sites_change_nothing():
    with Slipway(BINARY) as server:
        evil = {"origin": "https://evil.example", "content-type": "text/plain"}
        manifest = b"apiVersion: slipway.dev/v1"
        assert server.call("POST", "/api/v1/deployments", manifest, headers=evil)[0] == 403
        assert server.call("POST", "/v2/repository/models/x/load", b"", base=server.inference, headers=evil)[0] == 403
        assert server.call("POST", "/api/v1/deployments", manifest, headers={"origin": server.url})[0] == 400


@test
def one_server_a_home():
    with Slipway(BINARY) as server:
        second = server.command("up", "--listen", "127.0.0.1:0", check=False)
        assert second.returncode == 1 and "home.locked" in second.stderr and str(server.process.pid) in second.stderr, second.stderr


@test
def a_taken_port_is_named():
    with Slipway(BINARY) as server, Slipway(BINARY) as other:
        other.stop()
        port = server.url.split(":")[-1]
        refused = other.command("up", "--listen", f"127.0.0.1:{port}", check=False)
        assert refused.returncode == 1 and "listen.in_use" in refused.stderr and port in refused.stderr, refused.stderr


@test
def commands_work_with_and_without_a_server():
    with Slipway(BINARY) as server:
        _, made = server.call("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "0", "run_name": "cli-run"})
        run = made["run"]["info"]["run_id"]
        server.call("POST", "/api/2.0/mlflow/runs/log-parameter", {"run_id": run, "key": "p", "value": "a,\"b\""})
        with_server = server.command("run", "ls", "-o", "json").stdout
        assert json.loads(with_server)[0]["info"]["run_name"] == "cli-run"
        assert server.command("run", "ls", "-o", "name").stdout.strip() == run
        server.stop()
        assert json.loads(server.command("run", "ls", "-o", "json").stdout) == json.loads(with_server)
        assert "cli-run" in server.command("run", "show", run).stdout
        assert '"a,""b"""' in server.command("run", "export").stdout
        missing = server.command("run", "show", "0" * 32, check=False)
        assert missing.returncode == 1 and "not found" in missing.stderr
        server.command("model", "register", "m", "--run", run)
        server.command("model", "promote", "m", "1", "champion")
        assert "champion=1" in server.command("model", "ls").stdout


@test
def exit_codes_and_help():
    run = lambda *a, **k: subprocess.run([BINARY, *a], capture_output=True, text=True, **k)
    assert run("nothing").returncode == 2
    assert run("status", "--server", "http://127.0.0.1:9").returncode == 5
    assert "slipway up" in run("status", "--server", "http://127.0.0.1:9").stderr
    assert run("explain", "store.sql").returncode == 0 and run("explain", "no.code").returncode == 2
    for command in ["top", "up", "down", "status", "doctor", "demo", "show", "explain", "completions", "man"]:
        assert "Example:" in run(command, "--help").stdout, command
    for noun, verbs in {"run": ["ls", "show", "compare", "export"], "model": ["ls", "show", "register", "promote"],
                        "deploy": ["apply", "ls", "show", "split", "rollback", "test", "rm"], "config": ["show"],
                        "gpu": ["ls", "show", "topology", "stack", "watch", "spec", "bench", "roofline", "fit"]}.items():
        for verb in verbs:
            assert "Example:" in run(noun, verb, "--help").stdout, (noun, verb)
    for noun, verbs in {"mig": ["ls", "profiles", "plan", "apply", "export"], "share": ["plan"], "cdi": ["generate", "ls", "check"],
                        "container": ["configure", "test"]}.items():
        for verb in verbs:
            assert "Example:" in run("gpu", noun, verb, "--help").stdout, (noun, verb)
    assert "complete" in run("completions", "bash").stdout


def gpu(*arguments, fixture=None, stdin=None, **environment):
    """Runs `slipway gpu`: exit code, standard output, standard error."""
    options = ["--fixture", fixture] if fixture else []
    done = subprocess.run([BINARY, "gpu", *arguments, *options], capture_output=True, text=True, stdin=stdin,
                          env={**os.environ, **environment}, timeout=120)
    return done.returncode, done.stdout, done.stderr


@test
def gpus_are_seen_and_judged():
    status, out, talk = gpu("ls", "-o", "json", fixture="h100x8")
    machine = json.loads(out)
    assert status == 0 and machine["simulated"] and len(machine["gpus"]) == 8 and "SIMULATED" in talk
    assert machine["gpus"][0]["processes"][0]["pid"] == 70001
    status, out, _ = gpu("show", "2", fixture="broken")
    assert status == 0 and "3 uncorrected memory errors" in out, out
    assert gpu("show", "9", fixture="t4")[0] == 1
    assert "NV18" in gpu("topology", fixture="h100x8")[1]
    assert gpu("topology", "-o", "svg", fixture="l40sx4")[1].startswith("<svg")
    status, out, _ = gpu("watch", "--seconds", "1", fixture="broken")
    assert status == 3 and out.count("XID 48: double-bit ECC error") == 1 and "XID 79" not in out, out
    assert "48 SM x 128 cores x 2 operations x 1.560 GHz = 19.2 TFLOP/s" in gpu("spec", "A4000")[1]
    assert gpu("ls", fixture="no-such")[0] == 1
    top = subprocess.run([BINARY, "top", "--fixture", "h100x8", "--once"], capture_output=True, text=True).stdout
    assert "SIMULATED" in top and "H100" in top and "python3" in top, top


@test
def mig_survives_between_commands_and_is_changed_with_care():
    with tempfile.TemporaryDirectory() as folder:
        state = {"SLIPWAY_FAKE_NVML_STATE": os.path.join(folder, "mig.json")}
        run = lambda *a, stdin=None: gpu(*a, fixture="a100x8", stdin=stdin, **state)
        assert run("mig", "plan", "3x1g.10gb + 1x3g.40gb", "--gpus", "0")[0] == 3
        assert run("mig", "apply", "3x1g.10gb + 1x3g.40gb", "--gpus", "0")[0] == 3, "nobody agreed"
        assert run("mig", "apply", "3x1g.10gb + 1x3g.40gb", "--gpus", "0", "--dry-run", "--yes")[0] == 3
        # What goes into a file is seen by who is asked to agree to it.
        person, terminal = os.openpty()
        os.write(person, b"n\n")
        file = os.path.join(folder, "plan.json")
        status, out, talk = run("mig", "apply", "3x1g.10gb + 1x3g.40gb", "--gpus", "0", "-o", file, stdin=terminal)
        assert (status, out) == (3, "") and "1g.10gb" in talk and "Change the layout? [y/N]" in talk and json.loads(pathlib.Path(file).read_text()), talk
        assert json.loads(run("mig", "ls", "-o", "json")[1])[0]["enabled"] is False, "neither a dry run nor a no changes anything"
        assert run("mig", "apply", "3x1g.10gb + 1x3g.40gb", "--gpus", "0", "--yes")[0] == 0
        before = json.loads(run("ls", "-o", "json")[1])["gpus"][0]["mig"]["devices"]
        assert sorted(d["profile"] for d in before) == ["1g.10gb"] * 3 + ["3g.40gb"]
        assert run("mig", "apply", "4x1g.10gb + 1x3g.40gb", "--gpus", "0", "--yes")[0] == 0
        after = json.loads(run("ls", "-o", "json")[1])["gpus"][0]["mig"]["devices"]
        assert {d["uuid"] for d in before} < {d["uuid"] for d in after}, "what both have stays"
        file = os.path.join(folder, "config.yaml")
        pathlib.Path(file).write_text(run("mig", "export")[1])
        assert run("mig", "plan", "--config", file)[0] == 0, "what was exported is what is there"
        status, _, error = run("mig", "apply", "2x4g.40gb", "--gpus", "0", "--yes")
        assert status == 1 and "the nearest that fits is 1x4g.40gb" in " ".join(error.split()), error
        status, _, error = gpu("mig", "apply", "1g.10gb", "--gpus", "0", "--yes", fixture="h100x8")
        assert status == 1 and "in use by pid 70001" in " ".join(error.split()), error


@test
def benchmarks_are_kept_and_compared():
    with Slipway(BINARY) as server:
        run = lambda *a: server.command("gpu", "bench", "--cpu", "--quick", "-o", "json", *a, check=False)
        first = json.loads(run().stdout)
        assert {f["what"] for f in first["figures"]} >= {"fma", "gemm", "DRAM triad"}
        report = os.path.join(server.folder.name, "report.html")
        assert run("--compare", "--report", report).returncode in (0, 3)
        assert "<svg" in pathlib.Path(report).read_text()
        status, kept = server.call("GET", "/api/v1/gpu/benchmarks")
        assert status == 200 and [k["number"] for k in kept] == [2, 1]
        # Against a report that claims twice the speed everything is slower.
        twice = {**kept[0], "figures": [{**f, "median": f["median"] * (0.5 if f["unit"] == "us" else 2), "range": [f["range"][0] * 2, f["range"][1] * 2]} for f in kept[0]["figures"]]}
        twice.pop("number")
        assert server.call("POST", "/api/v1/gpu/benchmarks", twice)[0] == 200
        slower = run("--compare", "3")
        assert slower.returncode == 3, slower.stdout
        assert server.call("POST", "/api/v1/gpu/benchmarks", {"nothing": 1})[0] == 400
        nothing = {**twice, "figures": [{**twice["figures"][0], "median": 0}]}
        assert server.call("POST", "/api/v1/gpu/benchmarks", nothing)[0] == 400
        assert gpu("bench", fixture="h100x8")[0] == 1, "a fixture has no speed"


def runc_works():
    """Whether a container of runc's own making starts here: it needs root, namespaces and control groups."""
    if os.geteuid() != 0 or not shutil.which("runc"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["runc", "spec"], cwd=folder, check=True)
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
        config["process"].update(terminal=False, args=["/bin/true"])
        config["mounts"] = [m for m in config["mounts"] if m["destination"] in ("/proc", "/dev")]
        for place in ("/usr", "/bin", "/lib", "/lib64"):
            config["mounts"].append({"destination": place, "source": place, "type": "bind", "options": ["rbind", "ro"]})
            pathlib.Path(folder, "rootfs" + place).mkdir(parents=True)
        pathlib.Path(folder, "config.json").write_text(json.dumps(config))
        try:
            os.mknod(os.path.join(folder, "null"), 0o666 | 0o020000, os.makedev(1, 3))
        except OSError:
            return False
        done = subprocess.run(["runc", "run", f"slipway-e2e-{os.getpid()}"], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        return done.returncode == 0


@test
def sharing_fitting_and_containers():
    with tempfile.TemporaryDirectory() as folder:
        place = lambda name, text: pathlib.Path(folder, name).write_text(text) and os.path.join(folder, name)
        jobs = place("jobs.yaml", "workloads:\n  - {name: tenant, count: 9, memory_gib: 9, compute: 0.1, isolation: full}\n")
        status, out, _ = gpu("share", "plan", jobs, "--family", "a100-80gb", "-o", "json")
        plan = json.loads(out)
        assert status == 0 and plan["recommended"] == "mig" and plan["outcomes"][0]["gpus"] == 2, plan
        assert gpu("mig", "plan", "--from-workloads", jobs, "--family", "h100-80gb")[0] == 0
        assert gpu("share", "plan", jobs, "--family", "T4")[0] == 3, "no way serves"
        assert gpu("share", "plan", place("bad.yaml", "workloads: 3"), "--family", "a100")[0] == 1
        status, out, _ = gpu("fit", "--params", "7b", "-o", "json")
        assert status == 0 and abs(json.loads(out)["parts"][0]["bytes"] - 14e9) < 1
        status, out, _ = gpu("roofline", "--card", "H100 80GB", "--op", "decode:model=7b,batch=1", "-o", "json")
        assert json.loads(out)["work"][0]["bound"] == "memory"
        assert gpu("roofline", "--card", "H100 80GB", "--op", "gemm:1,2")[0] == 1

        root = pathlib.Path(folder, "root")
        for path in ["dev/nvidiactl", "dev/nvidia-uvm", "dev/nvidia0", "usr/bin/nvidia-smi",
                     "usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05", "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05",
                     "lib/firmware/nvidia/580.95.05/gsp_tu10x.bin"]:
            root.joinpath(path).parent.mkdir(parents=True, exist_ok=True)
            root.joinpath(path).touch()
        spec = os.path.join(folder, "cdi/nvidia.yaml")
        assert gpu("cdi", "generate", "--root", str(root), "--write", spec, fixture="t4")[0] == 0
        assert "nvidia.com/gpu=all" in gpu("cdi", "ls", "--dir", os.path.join(folder, "cdi"))[1]
        status, out, _ = gpu("cdi", "check", spec)
        assert status == 0, out
        if runc_works():
            # Real character devices stand in for the GPU's, as only their numbers differ.
            for name in ["nvidiactl", "nvidia-uvm", "nvidia0"]:
                root.joinpath("dev", name).unlink()
                os.mknod(root / "dev" / name, 0o666 | 0o020000, os.makedev(1, 3))
            status, out, error = gpu("container", "test", "nvidia.com/gpu=0", "--spec", spec, "-o", "json")
            seen = json.loads(out)
            assert status == 0 and "/dev/nvidia0" in [s["path"] for s in seen] and len(seen) > 5, (out, error)
            assert gpu("container", "test", "nvidia.com/gpu=9", "--spec", spec)[0] == 1
        else:
            print("     no container is run: this machine lets runc start none")
        root.joinpath("dev/nvidia0").unlink()
        status, out, _ = gpu("cdi", "check", spec)
        assert status == 3 and "dev/nvidia0 is not on this machine" in out
        assert gpu("cdi", "generate", "--root", folder, fixture="t4")[0] == 1, "no driver there"

        config = place("config.toml", "version = 2 # ours\n")
        configure = lambda *a: gpu("container", "configure", "--runtime", "containerd", "--config", config, *a)
        status, out, _ = configure("--dry-run", "--nvidia-runtime")
        assert status == 0 and "+" in out and pathlib.Path(config).read_text() == "version = 2 # ours\n"
        assert configure("--yes", "--nvidia-runtime")[0] == 0 and "nvidia" in pathlib.Path(config).read_text()
        assert "as it should be" in configure("--yes", "--nvidia-runtime")[2]
        assert configure("--undo", "--yes")[0] == 0 and pathlib.Path(config).read_text() == "version = 2 # ours\n"


@test
def doctor_finds_what_is_wrong():
    with Slipway(BINARY) as server:
        none = server.command("doctor", check=False)
        if "no NVIDIA GPU in this machine" in none.stdout:
            assert none.returncode == 3, none.stdout
        server.environment["SLIPWAY_GPU_FIXTURE"] = "h100x8"
        well = server.command("doctor", "-o", "json", check=False)
        assert well.returncode == 0, well.stdout
        assert "SIMULATED" in well.stdout
        server.environment["SLIPWAY_GPU_FIXTURE"] = "broken"
        found = server.command("doctor", check=False)
        assert found.returncode == 3 and "fallen off the bus" in found.stdout, found.stdout
        server.environment["SLIPWAY_GPU_FIXTURE"] = "h100x8"
        server.stop()
        server.environment["SLIPWAY_RUNTIME"] = "ort"
        server.environment["SLIPWAY_ONNXRUNTIME"] = "/no/such/lib.so"
        sick = server.command("doctor", check=False)
        assert sick.returncode == 3 and "WRONG" in sick.stdout, sick.stdout


@test
def a_file_is_printed_into_as_it_ends():
    with tempfile.TemporaryDirectory() as folder:
        run = lambda *words: subprocess.run([os.path.abspath(BINARY), "--home", f"{folder}/home", *words], capture_output=True, text=True, cwd=folder)
        file = pathlib.Path(folder, "new/topics.json")
        done = run("explain", "-o", str(file))
        assert (done.returncode, done.stdout) == (0, "") and len(json.loads(file.read_text())) > 20, done
        assert run("explain", "-o", "topics.yaml").returncode == 0 and "code" in pathlib.Path(folder, "topics.yaml").read_text()
        # A command that fails leaves what is there; a file that cannot be written is an error; another ending is none.
        before = file.read_bytes()
        assert run("explain", "no.code", "-o", str(file)).returncode == 2 and file.read_bytes() == before
        done = run("explain", "-o", "/proc/nowhere/x.json")
        assert done.returncode == 1 and "output.unwritable" in done.stderr and "/proc/nowhere/x.json" in done.stderr, done
        done = run("explain", "-o", "x.txt")
        assert done.returncode == 2 and "table, json, yaml" in done.stderr and not pathlib.Path(folder, "x.txt").exists(), done


@test
def config_origin_is_shown():
    with Slipway(BINARY) as server:
        server.environment["SLIPWAY_LISTEN"] = "127.0.0.1:1"
        shown = server.command("config", "show", "--origin").stdout
        assert "$SLIPWAY_LISTEN" in shown and "flag" in shown and "default" in shown, shown


@test
def bad_requests_never_crash_the_server():
    with Slipway(BINARY) as server:
        generator = random.Random(7)
        paths = ["runs/create", "runs/log-batch", "runs/search", "experiments/search", "model-versions/create", "runs/log-inputs", "logged-models/search"]
        pieces = [None, True, -1, 1e308, "x", "\u0000", [], {}, [[]], {"key": None}, "9" * 400, 2**70, ["a", 1], {"a": {"b": []}}]
        keys = ["run_id", "experiment_id", "experiment_ids", "filter", "order_by", "metrics", "params", "tags", "max_results", "page_token", "name", "source", "datasets", "models"]
        for _ in range(600):
            body = {k: generator.choice(pieces) for k in generator.sample(keys, 5)}
            status, answer = server.call("POST", f"/api/2.0/mlflow/{generator.choice(paths)}", body)
            assert status < 500 or status == 501, (status, body, answer)
        for path in ["/api/2.0/mlflow/runs/get?run_id=%00%ff", "/api/2.0/mlflow-artifacts/artifacts/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
                     "/api/2.0/mlflow-artifacts/artifacts?path=../..", "/get-artifact?run_id=x&path=../../etc/passwd", "/api/v1/deployments/%ff/infer"]:
            status, answer = server.call("GET", path)
            assert 400 <= status < 500, (path, status, answer)
        assert server.call("GET", "/readyz")[0] == 200


@test
def later_endpoints_say_not_implemented():
    with Slipway(BINARY) as server:
        for path in ["/api/3.0/mlflow/traces/search", "/api/2.0/mlflow/webhooks", "/api/3.0/mlflow/scorers/list"]:
            status, answer = server.call("POST", path, {})
            assert status == 501 and answer["error_code"] == "NOT_IMPLEMENTED", (path, status, answer)


@test
def metrics_and_openapi():
    with Slipway(BINARY) as server:
        text = server.call("GET", "/metrics")[1]
        assert "slipway_http_requests_total{class=\"2xx\"}" in text and "process_resident_memory_bytes" in text
        assert server.call("GET", "/openapi.json")[1]["openapi"].startswith("3.1")


for scenario in [*runs.TESTS, *shared.TESTS]:
    SUITE[scenario.__name__] = lambda scenario=scenario: scenario(BINARY)


def main():
    names = sys.argv[2:] or list(SUITE)
    failed = sum(not SUITE.passes(name) for name in names)
    print(f"end to end: {len(names)} tests, {failed} failed")
    sys.exit(1 if failed else 0)


main()
