"""Remotes of `slipway data` on real services: a slipway server, S3, Azure, Google Cloud Storage, sshd, WebDAV and a web
server, with the official DVC in turn where it can.

    python remotes.py --slipway target/release/slipway [--dvc PATH] [SUBSTRING ...] [--list] [--junit FILE]

With `--dvc`, the program of the original, it uses one remote in turn with slipway. Services are started here and end with their tests.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys

import remote_clouds
import remote_services as services
import remote_sources
import remote_versions
from remote_projects import LARGE, ROOT, Programs, block, in_turn, objects, round_trip, sandbox, tree

sys.path.insert(0, str(ROOT / "conformance"))
from lib import Slipway
from suite import Suite, eventually

SUITE = Suite("remotes of data", limit=300)


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
def server_shows_metrics_that_only_dvc_tracks(programs):
    """Of a repository that is registered by its URL; the files are in its remote."""
    # The bucket is on this machine, which a repository reaches only if an administrator says so.
    hosts = {"SLIPWAY_DATA_HOSTS": "127.0.0.1"}
    with sandbox(programs) as place, services.bucket() as bucket, Slipway(programs.slipway, environment=hosts) as server:
        project = place.project("p")
        project.remote("s3://slipway/metrics", endpointurl=f"http://{bucket.address}:{bucket.port}", access_key_id=bucket.ACCESS,
                       secret_access_key=bucket.SECRET, region="us-east-1")
        (project.path / "dvc.yaml").write_text(
            "stages:\n  train:\n    cmd: 'echo {\\\"accuracy\\\":0.5} > m.json; printf \"step,loss\\n1,2\\n2,1\\n\" > curve.csv'\n"
            "    metrics: [m.json]\n    plots: [curve.csv]\n")
        project.ours("repro")
        project.ours("push")
        project.run("git", "add", "-A")
        project.run("git", "commit", "-qm", "trained")
        place.environment["SLIPWAY_HOME"] = str(server.home)
        project.run(programs.slipway, "data", "repositories", "add", "r", f"file://{project.path}")
        read = lambda what: server.call("GET", f"/api/v1/data/repositories/r/{what}?revs=HEAD")[1]
        found = read("values")
        assert [[row["file"], row["name"], row["values"]] for row in found["metrics"]] == [["m.json", "accuracy", ["0.5"]]], found
        assert len(read("plots")["plots"]) == 1
        # Without the remote, the report says what is missing.
        bucket.stop()
        assert "m.json" in " ".join(read("values")["failures"]), read("values")


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


@SUITE.test
def ssh_is_a_remote(programs):
    with sandbox(programs) as place, services.sshd() as sshd:
        place.knows(sshd)
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


for name, test in {**remote_sources.TESTS, **remote_versions.TESTS, **remote_clouds.TESTS}.items():
    # The first run of some builds their services, which takes minutes on a busy machine.
    SUITE.add(name, test, limit=900)


def main():
    options = SUITE.options(__doc__, slipway={"required": True}, dvc={"metavar": "PATH"})
    programs = Programs(options.slipway, options.dvc)
    sys.exit(SUITE.main(options, lambda _: contextlib.nullcontext(programs)))


if __name__ == "__main__":
    main()
