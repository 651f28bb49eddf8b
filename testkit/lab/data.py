"""Tests the data of runs in the lab: the driver on each node, its mounts, its cache, and the words with which it fails."""

import base64
import contextlib
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from cluster import NAMESPACE, eventually
from runs import Server, manifest, status, wait_until_finished
from services import free_port

# The address of this machine on the lab's network. The driver runs in the network of its pod.
ADDRESS = "172.30.0.1"
USER, PASSWORD = "reader", "test-password-of-no-value"
SECRET = "data-access"
FILES = {f"{number:03}.txt": f"image {number}\n" for number in range(40)}
DRIVER = "data.slipway.dev"
COMPONENT = "app.kubernetes.io/component=data"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves Git repositories (`git http-backend`) and files to one user, and records what is requested."""

    def handle_any(self):
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("authorization") != expected:
            # Git sends its password only when the server asks for it.
            self.send_response(401)
            self.send_header("www-authenticate", 'Basic realm="data"')
            self.send_header("content-length", "0")
            self.end_headers()
            return
        self.server.requests.append(self.path)
        if ".git/" in self.path:
            self.git()
        else:
            super().do_GET() if self.command == "GET" else super().do_HEAD()

    do_GET = do_HEAD = do_POST = handle_any

    def git(self):
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        environment = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": self.directory, "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": urllib.parse.unquote(path),
            "QUERY_STRING": query, "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)), "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""), "REMOTE_USER": USER, "REMOTE_ADDR": self.client_address[0],
        }
        output = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=True).stdout
        head, _, content = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Repository:
    """A repository with a tracked folder and a tracked file on a web server, and its remote beside it."""

    def __init__(self, lab, folder):
        self.folder, self.served, self.work = folder, folder / "served", folder / "work"
        self.lab = lab
        self.served.mkdir()
        (self.work / "images").mkdir(parents=True)
        for name, content in FILES.items():
            (self.work / "images" / name).write_text(content)
        (self.work / "labels.csv").write_text("cat,dog\n")
        self.git("init", "-q")
        self.data("init", "-q")
        self.data("add", "images", "labels.csv")
        self.data("remote", "add", "-d", "store", str(self.served / "store"))
        self.data("push")
        handler = lambda *words: Handler(*words, directory=str(self.served))
        self.server = http.server.ThreadingHTTPServer((ADDRESS, free_port(ADDRESS)), handler)
        self.server.requests = []
        self.host = f"{ADDRESS}:{self.server.server_port}"
        # Readers have no folder of this machine, but the web server.
        self.data("remote", "modify", "store", "url", f"http://{self.host}/store")
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "Data")
        subprocess.run(["git", "clone", "-q", "--bare", self.work, self.served / "team.git"], check=True)
        self.url, self.commit = f"http://{self.host}/team.git", self.git("rev-parse", "HEAD").strip()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def run(self, *command):
        me = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in [("NAME", "me"), ("EMAIL", "me@example.invalid")]}
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "SLIPWAY_HOME": str(self.folder / "state"), **me}
        done = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done
        return done.stdout

    def git(self, *words):
        return self.run("git", *words)

    def data(self, *words):
        return self.run(self.lab.binary, "data", *words)

    def digest(self, path):
        """The digest that a `.dvc` file records."""
        lines = (self.work / f"{path}.dvc").read_text().splitlines()
        return next(line.split("md5: ")[1] for line in lines if "md5: " in line)

    def volume(self, path, mount, **more):
        return {"repo": self.url, "rev": self.commit, "path": path, "mountPath": mount, "digest": self.digest(path), "secretName": SECRET, **more}

    def secret(self, namespace, password=PASSWORD, name=SECRET):
        config = f"['remote \"store\"']\n    auth = basic\n    user = {USER}\n    password = {password}\n"
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace},
                "stringData": {"git-credentials": f"http://{USER}:{password}@{self.host}\n", "config": config}}

    def received(self):
        """The paths that were requested since the last call."""
        received, self.server.requests[:] = list(self.server.requests), []
        return received


@contextlib.contextmanager
def repository(lab):
    with tempfile.TemporaryDirectory(prefix="slipway-lab-data-") as folder:
        served = Repository(lab, pathlib.Path(folder))
        try:
            yield served
        finally:
            served.server.shutdown()
            served.server.server_close()


@contextlib.contextmanager
def installed(lab, values):
    """Installs the driver with a cache in the node's own folder, and afterwards the default again."""
    lab.install(**values, data={"enabled": True, "cacheDir": "/var/lib/slipway/data"})
    try:
        registered = lambda node: any(d["name"] == DRIVER for d in lab.get("csinode", node)["spec"]["drivers"] or [])
        eventually(lambda: all(map(registered, lab.fixtures)), message="the kubelets know the driver")
        yield
    finally:
        lab.install(**values)


def driver(lab, node):
    pods = lab.get("pods", "-n", NAMESPACE, "-l", COMPONENT, "--field-selector", f"spec.nodeName={node}")["items"]
    return [p["metadata"]["name"] for p in pods if "deletionTimestamp" not in p["metadata"]][0]


def mounts(lab, node):
    """The driver's mounts in the namespace of the node's kubelet."""
    table = lab.lab("do", "exec", node, "cat", "/proc/self/mountinfo")
    return [line for line in table.splitlines() if "slipway-data-0/mount " in line]


def events(lab, ns):
    return [f"{e['reason']} {e.get('message', '')}" for e in lab.get("-n", ns, "events")["items"]]


def runs_on_a_node_share_its_cache(lab, values):
    script = ("cd /images && cat * && ls -i 000.txt && cat /labels.csv; echo x > new; echo x > 000.txt; echo x > /labels.csv; "
              "echo data $SLIPWAY_DATA; sleep ")
    with repository(lab) as data, installed(lab, values), lab.namespace("data", runs=True) as ns:
        lab.apply(data.secret(ns), data.secret(ns, "wrong", "wrong"))
        on = lambda node: {"nodeSelector": {"kubernetes.io/hostname": node}}
        volumes = [data.volume("images", "/images"), data.volume("labels.csv", "/labels.csv")]
        lab.apply(manifest("first", script + "1000", ns, data=volumes, **on("n1")))

        def output(name):
            text = lab.kubectl("-n", ns, "logs", "-l", f"slipway.dev/run={name}", "--tail=-1")
            # Standard output and error are two streams, whose lines come in any order.
            return "data /images:/labels.csv" in text and sorted(text.splitlines())

        first = eventually(lambda: output("first"), message="the first run has its data")
        assert {line.strip() for line in FILES.values()} | {"cat,dog"} < set(first), first
        assert len([line for line in first if "Read-only file system" in line]) == 3, first
        requested = data.received()
        objects = {path for path in requested if path.startswith("/store/files/md5/")}
        assert len(objects) == len(FILES) + 2 and any(".git/" in path for path in requested), requested
        assert len(mounts(lab, "n1")) == 1, mounts(lab, "n1")

        # A second pod on the node gets the same files, without a single request.
        lab.apply(manifest("second", script + "1000", ns, data=volumes, **on("n1")))
        second = eventually(lambda: output("second"), message="the second run has its data")
        assert second == first, (first, second)
        assert data.received() == [], "the second pod on a node needs no transfer"
        used = status(lab, ns, "second")
        assert [d["digest"] for d in used["data"]] == [data.digest("images"), data.digest("labels.csv")], used
        # The other node has a cache of its own.
        lab.apply(manifest("elsewhere", script + "0", ns, data=volumes, **on("n2")))
        wait_until_finished(lab, ns, "elsewhere", "Succeeded")
        assert len({path for path in data.received() if path.startswith("/store/files/md5/")}) == len(FILES) + 2

        # Pods keep their data while the driver is killed, and its successor serves and removes volumes.
        lab.kubectl("-n", NAMESPACE, "delete", "pod", driver(lab, "n1"), "--grace-period=0", "--force")
        pod = lab.get("-n", ns, "pods", "-l", "slipway.dev/run=second")["items"][0]["metadata"]["name"]
        assert lab.exec(ns, pod, "cat /images/007.txt") == FILES["007.txt"]
        lab.apply(manifest("third", script + "0", ns, data=volumes, **on("n1")))
        wait_until_finished(lab, ns, "third", "Succeeded")
        assert data.received() == []
        for name in ("first", "second", "third"):
            lab.kubectl("-n", ns, "delete", "run", name)
        eventually(lambda: not mounts(lab, "n1"), message="the mounts are removed with the pods")

        # Failures are events of the pod that name the cause and the remedy, and never a secret.
        other = "0" * 32
        failures = {
            "digest": ({"digest": other}, f"has the digest {data.digest('labels.csv')}, not {other}"),
            "path": ({"path": "pictures"}, "pictures"),
            "password": ({"secretName": "wrong", "path": "labels.csv"}, "Authentication failed"),
            "secret": ({"secretName": "none"}, 'secrets "none" not found'),
        }
        for name, (change, _) in failures.items():
            lab.apply(manifest(name, "true", ns, data=[{**data.volume("labels.csv", "/labels.csv"), **change}], **on("n2")))
        for name, (_, message) in failures.items():
            eventually(lambda: [e for e in events(lab, ns) if e.startswith("FailedMount") and message in e], timeout=90,
                       message=f"an event of run {name} says {message!r}: {events(lab, ns)}")
        # Data that the remote has lost, and that arrives while the pod waits.
        (data.work / "late.txt").write_text("late\n")
        data.data("add", "late.txt")
        data.git("add", "-A")
        data.git("commit", "-q", "-m", "More")
        data.git("push", "-q", str(data.served / "team.git"), "HEAD")
        commit, digest = data.git("rev-parse", "HEAD").strip(), data.digest("late.txt")
        lab.apply(manifest("late", "cat /late.txt", ns, data=[data.volume("late.txt", "/late.txt", rev=commit)], **on("n2")))
        missing = eventually(lambda: [e for e in events(lab, ns) if e.startswith("FailedMount") and digest in e], timeout=90,
                             message="an event names the missing digest")
        print(f"     the event of missing data: {missing[0]}")
        target = data.served / "store/files/md5" / digest[:2] / digest[2:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((data.work / "late.txt").read_bytes())
        wait_until_finished(lab, ns, "late", "Succeeded", timeout=150)
        logs = lab.kubectl("-n", NAMESPACE, "logs", driver(lab, "n2"))
        assert PASSWORD not in logs + "".join(events(lab, ns)), "no secret is logged"
    assert DRIVER not in lab.kubectl("get", "csidrivers", "-o", "name")


PIPELINE = """stages:
  clean:
    cmd: while read line; do echo "$line!"; done < raw > clean
    deps: [raw]
    outs: [clean]
    meta: {slipway: {resources: {limits: {cpu: 200m}}}}
  count:
    cmd: 'echo "{\\"width\\": 2}" > count.json'
    deps: [clean]
    params: [width]
    metrics: [{count.json: {cache: false}}]
    meta: {slipway: {nodeSelector: {kubernetes.io/hostname: n2}}}
  parts:
    cmd: mkdir parts; read line < clean; echo "$line" > parts/a; echo b > parts/b
    deps: [clean]
    outs: [parts]
  all:
    cmd: cat parts/a parts/b count.json > all
    deps: [parts, count.json]
    outs: [all]
"""


def stages_of_a_pipeline_run_as_pods(lab):
    """The repository is on a web server, the remote is the control plane in the cluster."""
    with repository(lab) as data, lab.namespace("stages", runs=True) as ns:
        server = Server.in_cluster(lab)
        (data.work / "dvc.yaml").write_text(PIPELINE)
        (data.work / "params.yaml").write_text("width: 1\n")
        (data.work / "raw").write_text("one\ntwo\n")
        data.data("add", "raw")
        data.data("remote", "add", "-d", "team", f"{server.url}/api/v1/data/remotes/team")
        config = f"['remote \"team\"']\n    auth = custom\n    custom_auth_header = Authorization\n    password = Bearer {server.token}\n"
        (data.work / ".dvc/config.local").write_text(config)
        data.git("add", "-A")
        data.git("commit", "-q", "-m", "Pipeline")
        data.git("config", "user.name", "me")
        data.git("config", "user.email", "me@example.invalid")
        data.git("remote", "add", "origin", f"http://{USER}@{data.host}/team.git")
        data.git("config", "credential.helper", f"!printf 'username={USER}\\npassword={PASSWORD}\\n' #")
        secret = data.secret(ns)
        secret["stringData"]["config"] = config
        lab.apply(secret)
        # A change that is not in a commit.
        (data.work / "params.yaml").write_text("width: 2\n")
        words = ["data", "repro", "--submit", "--namespace", ns, "--image", "lab.local/slipway:1", "--secret", SECRET]

        def repro():
            environment = {"PATH": os.environ["PATH"], "HOME": str(data.folder), "SLIPWAY_HOME": str(data.folder / "state"),
                           "SLIPWAY_TOKEN": server.token, "SLIPWAY_SERVER": server.url}
            done = subprocess.run([lab.binary, "--insecure", *words], cwd=data.work, env=environment, text=True, capture_output=True)
            assert done.returncode == 0, done
            return done.stdout

        shown = repro()
        assert "Submitting stage 'clean'" in shown and "[parts] > mkdir parts" in shown, shown
        assert (data.work / "all").read_text() == "one!\nb\n{\"width\": 2}\n"
        runs = lab.get("-n", ns, "runs")["items"]
        assert len(runs) == 4 and all(run["status"]["phase"] == "Succeeded" for run in runs), runs
        of = {run["metadata"]["annotations"]["slipway.dev/stage"]: run for run in runs}
        assert of["clean"]["spec"]["resources"] == {"limits": {"cpu": "200m"}} and of["count"]["status"]["node"] == "n2", of
        lock = (data.work / "dvc.lock").read_text()
        assert "refs/slipway" not in subprocess.run(["git", "for-each-ref"], cwd=data.served / "team.git", text=True, capture_output=True).stdout
        assert PASSWORD not in json.dumps(runs) and server.token not in json.dumps(runs)
        # A run of the stages here leaves the same records, from the same parameters.
        for name in ("clean", "all", "count.json", "dvc.lock"):
            (data.work / name).unlink()
        data.data("repro", "--force")
        assert (data.work / "dvc.lock").read_text() == lock
        # Another user gets all results from the run cache of the remote.
        for path in (data.work / ".dvc/cache", data.work / "parts"):
            shutil.rmtree(path)
        for name in ("clean", "all", "count.json", "dvc.lock"):
            (data.work / name).unlink()
        assert "Submitting" not in repro()
        assert (data.work / "dvc.lock").read_text() == lock and (data.work / "all").read_text() == "one!\nb\n{\"width\": 2}\n"
