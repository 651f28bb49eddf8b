"""Remotes of `slipway data` on real services: a slipway server, S3, sshd, WebDAV and a web server, with the official DVC in turn where it can.

    python remotes.py --slipway target/release/slipway [--dvc PATH] [SUBSTRING ...] [--list] [--junit FILE]

With `--dvc`, the program of the original, it uses one remote in turn with slipway. Services are started here and end with their tests.
"""

import contextlib
import hashlib
import itertools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import remote_services as services
from remote_services import ROOT

sys.path.insert(0, str(ROOT / "conformance"))
from lib import Slipway
from suite import Skip, Suite, eventually

SUITE = Suite("remotes of data", limit=300)
LARGE = 40 << 20


class Programs:
    def __init__(self, slipway, dvc):
        self.slipway, self.dvc = os.path.abspath(slipway), dvc and os.path.abspath(dvc)


class Sandbox:
    """A folder for projects, with a home of its own, so that no configuration of the user matters."""

    def __init__(self, programs, folder):
        self.programs, self.folder = programs, pathlib.Path(folder)
        (self.folder / "bin").mkdir()
        (self.folder / "bin/dvc").symlink_to(programs.slipway)
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8", "DVC_NO_ANALYTICS": "1",
            "GIT_AUTHOR_NAME": "me", "GIT_AUTHOR_EMAIL": "me@example.invalid", "GIT_COMMITTER_NAME": "me",
            "GIT_COMMITTER_EMAIL": "me@example.invalid", "SLIPWAY_HOME": str(self.folder / "state"),
        }

    def project(self, name):
        project = Project(self, self.folder / name)
        project.path.mkdir()
        subprocess.run(["git", "init", "-q"], cwd=project.path, check=True)
        project.ours("init", "-q")
        return project


class Project:
    def __init__(self, sandbox, path):
        self.sandbox, self.path = sandbox, path

    def run(self, program, *arguments, fails=False):
        done = subprocess.run([str(program), *map(str, arguments)], cwd=self.path, env=self.sandbox.environment,
                              capture_output=True, text=True)
        if (done.returncode != 0) != fails:
            raise AssertionError(f"{' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def ours(self, *arguments, fails=False):
        return self.run(self.sandbox.folder / "bin/dvc", *arguments, fails=fails)

    def original(self, *arguments, fails=False):
        if not self.sandbox.programs.dvc:
            raise Skip("needs DVC (--dvc)")
        return self.run(self.sandbox.programs.dvc, *arguments, fails=fails)

    def remote(self, url, **options):
        self.ours("remote", "add", "-f", "-d", "r", url)
        for name, value in options.items():
            self.ours("remote", "modify", "r", name, value)

    def fill(self, seed):
        """A folder with many small files, and a large one."""
        data = self.path / "data"
        data.mkdir(exist_ok=True)
        for number in range(60):
            (data / f"{number}.txt").write_text(f"{seed} {number}\n")
        (data / "empty").write_text("")
        (data / "large.bin").write_bytes(block(seed, LARGE))

    def clone(self, name):
        """A project with the same tracked files and configuration, and an empty cache."""
        other = Project(self.sandbox, self.sandbox.folder / name)
        shutil.copytree(self.path, other.path, ignore=shutil.ignore_patterns("data", "cache", "tmp"))
        return other


def block(seed, size):
    piece = hashlib.sha256(seed.encode()).digest() * 1024
    return (piece * (size // len(piece) + 1))[:size]


def tree(folder):
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def objects(project):
    cache = project.path / ".dvc/cache"
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()) if cache.exists() else []


@contextlib.contextmanager
def sandbox(programs):
    with tempfile.TemporaryDirectory(prefix="slipway-remotes-") as folder:
        yield Sandbox(programs, folder)


def round_trip(sandbox, url, lists=True, **options):
    """Everything that a remote of our own program needs."""
    first = sandbox.project("first")
    first.remote(url, **options)
    first.fill("first")
    first.ours("add", "data")
    pushed = first.ours("push")
    assert "64 files pushed" in pushed or "63 files pushed" in pushed, pushed
    assert "up to date" in first.ours("push")
    assert "in sync" in first.ours("status", "-c")
    second = first.clone("second")
    second.ours("pull")
    assert tree(second.path / "data") == tree(first.path / "data")
    # A second version, of which only the new files are sent.
    (first.path / "data/0.txt").write_text("changed\n")
    first.ours("add", "data")
    assert "new" in first.ours("status", "-c")
    assert "2 files pushed" in first.ours("push")
    if lists:
        runs = first.path / ".dvc/cache/runs/ab" / ("ab" * 32)
        runs.mkdir(parents=True)
        (runs / ("cd" * 32)).write_text("cmd: true\n")
        assert "1 file pushed" in first.ours("push", "--run-cache")
        assert "up to date" in first.ours("push", "--run-cache")
        second.ours("fetch", "--run-cache")
        assert (second.path / ".dvc/cache" / runs.relative_to(first.path / ".dvc/cache") / ("cd" * 32)).read_text() == "cmd: true\n"
        first.ours("gc", "-w", "-c", "-f")
        assert "in sync" in first.ours("status", "-c")
        third = first.clone("third")
        third.ours("pull")
        assert tree(third.path / "data") == tree(first.path / "data")
        assert "deleted" not in second.ours("status", "-c")
    return first


def in_turn(sandbox, url, **options):
    """slipway and DVC use one remote in turn."""
    first = sandbox.project("ours")
    first.remote(url, **options)
    first.fill("first")
    first.ours("add", "data")
    first.ours("push")
    assert "in sync" in first.original("status", "-c")
    second = first.clone("original")
    second.original("pull")
    assert tree(second.path / "data") == tree(first.path / "data")
    second.fill("second")
    second.original("add", "data")
    second.original("push")
    assert "in sync" in second.ours("status", "-c")
    third = second.clone("again")
    third.ours("pull")
    assert tree(third.path / "data") == tree(second.path / "data")
    return first


def server_options(server):
    return {"auth": "custom", "custom_auth_header": "Authorization", "password": f"Bearer {server.token}"}


@SUITE.test
def slipway_server_is_a_remote(programs):
    with sandbox(programs) as place, Slipway(programs.slipway) as server:
        round_trip(place, f"{server.url}/api/v1/data/remotes/team", **server_options(server))


@SUITE.test
def slipway_server_uses_the_saved_credentials(programs):
    with sandbox(programs) as place, Slipway(programs.slipway) as server:
        place.environment["SLIPWAY_HOME"] = str(server.home)
        first = round_trip(place, f"{server.url}/api/v1/data/namespaces/team-a/remotes/team")
        place.environment["SLIPWAY_HOME"] = str(place.folder / "state")
        refused = first.ours("push", fails=True)
        assert "401" in refused, refused


@SUITE.test
def dvc_and_slipway_use_a_server_in_turn(programs):
    with sandbox(programs) as place, Slipway(programs.slipway) as server:
        project = in_turn(place, f"{server.url}/api/v1/data/remotes/team", **server_options(server))
        # Basic authentication: the token is the password.
        for name, value in {"auth": "basic", "user": "me", "password": server.token}.items():
            project.ours("remote", "modify", "r", name, value)
        assert "in sync" in project.original("status", "-c")
        project.ours("remote", "modify", "r", "password", "wrong")
        assert "401" in project.ours("status", "-c", fails=True)


@SUITE.test
def server_rejects_damaged_objects(programs):
    with sandbox(programs) as place, Slipway(programs.slipway) as server:
        project = place.project("p")
        project.remote(f"{server.url}/api/v1/data/remotes/team", **server_options(server))
        (project.path / "x").write_text("good")
        project.ours("add", "x")
        [name] = objects(project)
        path = project.path / ".dvc/cache" / name
        path.chmod(0o644)
        path.write_text("evil")
        path.chmod(0o444)
        message = project.ours("push", fails=True)
        assert "422" in message and "digest" in message, message
        if programs.dvc:
            project.original("push", fails=True)
        path.chmod(0o644)
        path.write_text("good")
        path.chmod(0o444)
        assert "1 file pushed" in project.ours("push")


@SUITE.test
def broken_connections_continue(programs):
    with sandbox(programs) as place, Slipway(programs.slipway) as server:
        target = server.url.removeprefix("http://")
        project = place.project("p")
        options = server_options(server)
        project.remote(f"{server.url}/api/v1/data/remotes/team", **options)
        project.fill("x")
        project.ours("add", "data")
        project.ours("push")
        with services.breaking(target, after=9 << 20) as proxy:
            other = project.clone("other")
            other.ours("remote", "modify", "r", "url", f"http://{proxy.address}/api/v1/data/remotes/team")
            proxy.refuse = 3
            other.ours("pull", "-j", "4")
            assert proxy.broken >= 3, proxy.broken
            assert tree(other.path / "data") == tree(project.path / "data")


@SUITE.test
def killed_pull_continues(programs):
    with sandbox(programs) as place, Slipway(programs.slipway) as server:
        project = place.project("p")
        project.remote(f"{server.url}/api/v1/data/remotes/team", **server_options(server))
        (project.path / "large").write_bytes(block("large", 200 << 20))
        project.ours("add", "large")
        project.ours("push")
        other = project.clone("other")
        (other.path / "large").unlink()
        process = subprocess.Popen([place.folder / "bin/dvc", "pull"], cwd=other.path, env=place.environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        parts = lambda: [path for path in (other.path / ".dvc/cache").rglob("*.part") if path.stat().st_size > 4 << 20]
        eventually(lambda: parts() or process.poll() is not None, timeout=60, interval=0.001, message="a part of the file is there")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (other.path / "large").exists()
        other.ours("pull")
        assert tree(other.path)["large"] == tree(project.path)["large"]
        assert not parts()


@SUITE.test
def s3_is_a_remote(programs):
    with sandbox(programs) as place, services.bucket() as bucket:
        url = f"http://{bucket.address}:{bucket.port}"
        options = {"endpointurl": url, "access_key_id": bucket.ACCESS, "secret_access_key": bucket.SECRET, "region": "us-east-1"}
        round_trip(place, "s3://slipway/ours", **options)
        shutil.rmtree(place.folder / "first"), shutil.rmtree(place.folder / "second"), shutil.rmtree(place.folder / "third")
        # The credentials of a profile.
        (place.folder / "keys").write_text(f"[team]\naws_access_key_id = {bucket.ACCESS}\naws_secret_access_key = {bucket.SECRET}\n")
        (place.folder / "settings").write_text("[profile team]\nregion = us-east-1\n")
        options = {"endpointurl": url, "profile": "team", "credentialpath": str(place.folder / "keys"), "configpath": str(place.folder / "settings")}
        first = round_trip(place, "s3://slipway/profile", **options)
        first.ours("remote", "modify", "r", "profile", "nobody")
        assert "profile" in first.ours("push", fails=True)


@SUITE.test
def dvc_and_slipway_use_s3_in_turn(programs):
    with sandbox(programs) as place, services.bucket() as bucket:
        in_turn(place, "s3://slipway/turn", endpointurl=f"http://{bucket.address}:{bucket.port}", access_key_id=bucket.ACCESS,
                secret_access_key=bucket.SECRET, region="us-east-1")


def records(project):
    """The .dvc files and dvc.lock, with the ids of versions numbered in the order of their appearance, since every push makes new ones."""
    texts = {str(path.relative_to(project.path)): path.read_text() for path in sorted(project.path.rglob("*.dvc")) if path.is_file()}
    texts["dvc.lock"] = (project.path / "dvc.lock").read_text()
    known = {}
    number = lambda found: f"version_id: {known.setdefault(found[1], len(known))}"
    return {name: re.sub(r"version_id: (\S+)", number, text) for name, text in texts.items()}


@SUITE.test
def buckets_with_versions_have_the_files_of_the_workspace(programs):
    pipeline = "stages:\n  s:\n    cmd: mkdir -p out && cat data/a > out/x && wc -c < foo > size\n    deps: [data/a, foo]\n    outs: [out, size]\n"
    with sandbox(programs) as place, services.bucket(versions=True) as bucket:
        def life(name, programs_in_turn):
            """The same commands, each by the next of the programs. Returns the project and its records."""
            project = place.project(name)
            project.remote(f"s3://slipway/{name}", endpointurl=f"http://{bucket.address}:{bucket.port}", access_key_id=bucket.ACCESS,
                           secret_access_key=bucket.SECRET, region="us-east-1", version_aware="true")
            turn = itertools.cycle(programs_in_turn)
            command = lambda *words, **how: getattr(project, next(turn))(*words, **how)
            (project.path / "data/sub").mkdir(parents=True)
            for path, text in {"data/a": "a", "data/sub/b": "b", "data/same": "a", "foo": "foo"}.items():
                (project.path / path).write_text(text)
            (project.path / "foo").chmod(0o755)
            (project.path / "dvc.yaml").write_text(pipeline)
            command("add", "data", "foo")
            command("repro")
            pushed = command("push")
            assert "6 files pushed" in pushed, pushed
            assert "up to date" in command("push")
            assert "unsupported for cloud versioned remotes" in command("status", "-c", fails=True)
            assert "unsupported" in command("push", "-a", fails=True)
            assert "unsupported" in command("gc", "-w", "-c", "-f", fails=True)
            other = project.clone(f"{name}-copy")
            clear(other)
            getattr(other, next(turn))("pull")
            assert same(project, other)
            return project, records(project)

        def clear(project):
            for path in ("foo", "out", "size"):
                target = project.path / path
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)

        def same(project, other):
            return all(tree(project.path / path) == tree(other.path / path) for path in ("data", "out")) and \
                all((project.path / path).read_text() == (other.path / path).read_text() for path in ("foo", "size"))

        project, ours = life("ours", ["ours"])
        assert ours["data.dvc"].count("version_id") == 3, ours
        if programs.dvc:
            _, original = life("theirs", ["original"])
            assert ours == original, (ours, original)
            assert life("both", ["ours", "original"])[1] == original
            assert life("swapped", ["original", "ours", "ours"])[1] == original
        # The second push of DVC 3.67 on this service loses the records of what it sends, so it is not compared.
        old = {path: path.read_text() for path in [*project.path.glob("?*.dvc"), project.path / "dvc.lock"]}
        (project.path / "foo").unlink()
        (project.path / "foo").write_text("changed")
        project.ours("add", "foo")
        project.ours("repro")
        pushed = project.ours("push")
        assert "3 files pushed" in pushed, "as with DVC, a stage that runs gets new versions"
        for name, records_of in (("newer", {}), ("older", old)):
            other = project.clone(name)
            clear(other)
            for path, text in records_of.items():
                (other.path / path.name).write_text(text)
            other.ours("pull")
            assert (other.path / "foo").read_text() == ("foo" if records_of else "changed")
            assert (other.path / "size").read_text().strip() == ("3" if records_of else "7")


@SUITE.test
def a_changed_file_gets_a_new_version_and_the_old_one_stays(programs):
    with sandbox(programs) as place, services.bucket(versions=True) as bucket:
        project = place.project("p")
        options = {"endpointurl": f"http://{bucket.address}:{bucket.port}", "access_key_id": bucket.ACCESS,
                   "secret_access_key": bucket.SECRET, "region": "us-east-1"}
        project.remote("s3://slipway/files", **options, worktree="true")
        project.fill("first")
        project.ours("add", "data")
        project.ours("push")
        first = (project.path / "data.dvc").read_text()
        (project.path / "data/7.txt").write_text("changed\n")
        (project.path / "data/8.txt").unlink()
        project.ours("add", "data")
        changed = (project.path / "data.dvc").read_text()
        assert changed.count("version_id") == first.count("version_id") - 2, "unchanged files keep their versions"
        assert "1 file pushed" in project.ours("push")
        second = (project.path / "data.dvc").read_text()
        assert second.count("version_id") == second.count("relpath") == 61
        for text, name in ((first, "old"), (second, "new")):
            copy = project.clone(name)
            (copy.path / "data.dvc").write_text(text)
            copy.ours("pull")
            assert (copy.path / "data/7.txt").read_text() == ("first 7\n" if name == "old" else "changed\n")
            assert (copy.path / "data/8.txt").exists() == (name == "old")
            assert hashlib.md5((copy.path / "data/large.bin").read_bytes()).hexdigest() == hashlib.md5(block("first", LARGE)).hexdigest()
        lost = project.clone("lost")
        (lost.path / "data.dvc").write_text(re.sub(r"version_id: \S+", "version_id: 01ARZ3NDEKTSV4RRFFQ69G5FAV", second))
        message = lost.ours("pull", fails=True)
        assert "fetched" in message or "do not exist" in message, message
        # Others change files in the bucket; `update` brings them here.
        bucket.put("/slipway/files/data/0.txt", "", b"from elsewhere\n")
        bucket.put("/slipway/files/data/added", "", b"added\n")
        project.ours("update", "data.dvc")
        assert (project.path / "data/0.txt").read_text() == "from elsewhere\n" and (project.path / "data/added").exists()
        third = (project.path / "data.dvc").read_text()
        assert third.count("version_id") == third.count("relpath") == 63, third
        assert "in sync" in project.ours("status") or "up to date" in project.ours("status")
        assert "up to date" in project.ours("push")
        project.ours("remote", "modify", "r", "version_aware", "false")
        assert "require version_aware" in project.ours("push", fails=True)


@SUITE.test
def ssh_is_a_remote(programs):
    with sandbox(programs) as place, services.sshd() as sshd:
        # OpenSSH reads the configuration of the account, not of $HOME, so a wrapper names the known hosts.
        wrapper = place.folder / "bin/ssh"
        wrapper.write_text(f"#!/bin/sh\nexec {shutil.which('ssh')} -F none -o UserKnownHostsFile={sshd.config} \"$@\"\n")
        wrapper.chmod(0o755)
        place.environment["PATH"] = f"{place.folder}/bin:{os.environ['PATH']}"
        first = round_trip(place, f"{sshd.url}/remote", keyfile=str(sshd.key))
        assert not list(sshd.data.rglob(".slipway-*"))
        first.ours("remote", "modify", "r", "password", "x")
        message = first.ours("push", fails=True)
        assert "password" in message and "keyfile" in message, message
        first.ours("remote", "modify", "-u", "r", "password")
        first.ours("remote", "modify", "r", "keyfile", "/nonexistent")
        assert "ermission denied" in first.ours("push", fails=True)


@SUITE.test
def webdav_and_plain_http_are_remotes(programs):
    with sandbox(programs) as place, services.nginx() as nginx:
        first = round_trip(place, f"webdav://{nginx.address}/dav/below", user="me", password="secret")
        assert not list(nginx.data.rglob(".slipway-*"))
        first.ours("remote", "modify", "r", "password", "wrong")
        assert "401" in first.ours("push", fails=True)
        # The same files, for reading.
        reader = first.clone("reader")
        reader.ours("remote", "remove", "r")
        reader.remote(f"http://{nginx.address}/plain/below")
        reader.ours("pull")
        assert tree(reader.path / "data") == tree(first.path / "data")
        (reader.path / "data/new").write_text("new")
        reader.ours("add", "data")
        message = reader.ours("push", fails=True)
        assert "does not accept uploads" in message, message
        if programs.dvc:
            original = first.clone("original")
            original.ours("remote", "remove", "r")
            original.remote(f"http://{nginx.address}/plain/below")
            original.original("pull")
            assert tree(original.path / "data") == tree(first.path / "data")


@SUITE.test
def damaged_objects_of_a_remote_are_not_received(programs):
    with sandbox(programs) as place, services.nginx() as nginx:
        project = place.project("p")
        project.remote(f"webdav://{nginx.address}/dav", user="me", password="secret")
        (project.path / "x").write_text("good")
        project.ours("add", "x")
        project.ours("push")
        [stored] = [path for path in nginx.data.rglob("*") if path.is_file()]
        stored.write_text("evil")
        other = project.clone("other")
        (other.path / "x").unlink()
        message = other.ours("pull", fails=True)
        assert "does not have the content" in message, message
        assert not objects(other) and not (other.path / "x").exists()


@SUITE.test
def unsupported_options_are_errors(programs):
    with sandbox(programs) as place:
        project = place.project("p")
        for url, name, value, words in [
            ("gs://b", "version_aware", "true", "version_aware"),
            ("azure://c", "worktree", "true", "s3:// only"),
            ("s3://b", "acl", "private", "acl"),
            ("s3://b", "use_ssl", "false", "endpointurl"),
            ("http://127.0.0.1:1", "auth", "digest", "digest"),
            ("http://127.0.0.1:1", "method", "PATCH", "method"),
            ("webdav://127.0.0.1:1", "bearer_token_command", "true", "bearer_token_command"),
            ("ssh://127.0.0.1:1/x", "ask_passphrase", "true", "ssh-add"),
            ("azure://c", "connection_string", "Nonsense=1", "Nonsense"),
            ("oss://b", "oss_key_id", "x", "oss"),
        ]:
            project.remote(url)
            project.ours("remote", "modify", "r", name, value)
            (project.path / "x").write_text("x")
            project.ours("add", "-q", "x")
            message = project.ours("push", fails=True)
            assert words in message, (url, name, message)
        for name, value in [("jobs", "0"), ("nonsense", "1"), ("ssl_verify_all", "true")]:
            before = (project.path / ".dvc/config").read_text()
            assert name in project.ours("remote", "modify", "r", name, value, fails=True)
            assert (project.path / ".dvc/config").read_text() == before


def main():
    options = SUITE.options(__doc__, slipway={"required": True}, dvc={"metavar": "PATH"})
    programs = Programs(options.slipway, options.dvc)
    sys.exit(SUITE.main(options, lambda _: contextlib.nullcontext(programs)))


if __name__ == "__main__":
    main()
