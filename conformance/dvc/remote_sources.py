"""Tests of imports from machines with SSH, from WebDAV servers, and from buckets without versions."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse

import remote_services as services
from remote_projects import sandbox, tree

FILES = {"file.txt": "hello\n", "folder/a": "a\n", "folder/sub/b c": "b\n"}


def fill(data):
    """Writes the files with a time of an hour ago: a server that tells only whole seconds then shows that a file was changed."""
    hour_ago = time.time() - 3600
    for path, text in FILES.items():
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_text(text)
        os.utime(data / path, (hour_ago, hour_ago))
    (data / "folder/nothing").mkdir()
    if services.USER:
        subprocess.run(["chown", "-R", "-h", services.USER, data], check=True)


def records(project):
    return {path.name: path.read_text() for path in sorted(project.path.glob("*.dvc")) if path.is_file()}


def imported(project, command):
    """Imports a file and a folder, also without their data; lists and gets the folder."""
    command("import-url", "remote://r/file.txt")
    command("import-url", "remote://r/folder")
    command("import-url", "--no-download", "remote://r/file.txt", "later.txt")
    command("import-url", "--no-download", "remote://r/folder", "later")
    assert "does not exist" in command("import-url", "remote://r/missing", fails=True)
    listed = command("ls-url", "-R", "remote://r/folder").splitlines()
    assert sorted(listed) == sorted(path.removeprefix("folder/") for path in FILES if "/" in path), listed
    command("get-url", "remote://r/folder", "got")
    assert tree(project.path / "got") == tree(project.path / "folder")
    assert {path: (project.path / path).read_text() for path in FILES} == FILES


def updated(project, command, data):
    """The imports follow their source."""
    assert "didn't change" in command("update", "file.txt.dvc", "folder.dvc")
    (data / "file.txt").write_text("changed\n")
    (data / "folder/new").write_text("new\n")
    command("update", "file.txt.dvc", "folder.dvc", "later.txt.dvc")
    assert (project.path / "file.txt").read_text() == (project.path / "later.txt").read_text() == "changed\n"
    assert (project.path / "folder/new").read_text() == "new\n"


def life(place, program, url, data, **options):
    """Imports with one of the programs, and the .dvc files after the first imports and after an update."""
    for entry in data.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    fill(data)
    project = place.project(program)
    project.remote(url, **options)
    command = getattr(project, program)
    imported(project, command)
    first = records(project)
    updated(project, command, data)
    return first, records(project)


def ssh_is_a_source(programs):
    with sandbox(programs) as place, services.sshd() as sshd:
        place.knows(sshd)
        ours = life(place, "ours", sshd.url, sshd.data, keyfile=str(sshd.key))
        assert "deps:\n- md5: b1946ac92492d2347c6235b4d2611184\n  size: 6\n  hash: md5\n  path: remote://r/file.txt\n" in ours[0]["file.txt.dvc"], ours
        if programs.dvc:
            original = life(place, "original", sshd.url, sshd.data, keyfile=str(sshd.key))
            assert ours == original, (ours, original)
        # The original refuses links, and lists such a name below another folder.
        (sshd.data / "folder/#1 50%").write_text("odd\n")
        (sshd.data / "folder/link").symlink_to("a")
        (sshd.data / "folder/broken").symlink_to("nowhere")
        project = place.project("links")
        project.remote(sshd.url, keyfile=str(sshd.key))
        project.ours("import-url", "remote://r/folder")
        assert (project.path / "folder/link").read_text() == "a\n" and not (project.path / "folder/broken").exists()
        assert (project.path / "folder/#1 50%").read_text() == "odd\n"
        (sshd.data / "folder/circle").symlink_to(".")
        assert "link to a folder" in project.ours("update", "folder.dvc", fails=True)


def webdav_is_a_source(programs):
    """nginx has no tags of files, so that the times of their changes count; the original cannot import from it."""
    with sandbox(programs) as place, services.nginx() as nginx:
        first, second = life(place, "ours", f"webdav://{nginx.address}/dav", nginx.data, user="me", password="secret")
        assert re.search(r"deps:\n- etag: \S.* GMT\n  size: 6\n  hash: md5\n  path: remote://r/file.txt\n", first["file.txt.dvc"]), first
        assert first["folder.dvc"] != second["folder.dvc"]
        # The original refuses such a name.
        (nginx.data / "folder/#1 50%").write_text("odd\n")
        project = place.project("names")
        project.remote(f"webdav://{nginx.address}/dav", user="me", password="secret")
        project.ours("import-url", "remote://r/folder")
        assert (project.path / "folder/#1 50%").read_text() == "odd\n"
    if programs.dvc:
        with sandbox(programs) as place, services.wsgidav(programs.dvc) as server:
            fill(server.data)
            # The original cuts the names of folders in folders on WebDAV servers.
            shutil.rmtree(server.data / "folder/sub")
            for program in ["ours", "original"]:
                project = place.project(program)
                project.remote(server.url)
                command = getattr(project, program)
                # The original fails for the data of single files on this server.
                command("import-url", "remote://r/folder")
                command("import-url", "--no-download", "remote://r/file.txt")
                command("import-url", "--no-download", "remote://r/folder", "later")
                program == "ours" and (kept := records(project))
            assert records(project) == kept, (records(project), kept)


def bucket_is_a_source(programs):
    with sandbox(programs) as place, services.bucket() as bucket:
        for path, text in FILES.items():
            bucket.put(f"/slipway/{urllib.parse.quote(path)}", "", text.encode())
        kept = {}
        for program in ["ours", *(["original"] if programs.dvc else [])]:
            project = place.project(program)
            project.remote("s3://slipway", endpointurl=f"http://{bucket.address}:{bucket.port}", access_key_id=bucket.ACCESS,
                           secret_access_key=bucket.SECRET, region="us-east-1")
            imported(project, getattr(project, program))
            kept[program] = records(project)
        assert re.search(r"deps:\n- md5: [0-9a-f]{32}\.dir\n  size: 4\n  nfiles: 2\n", kept["ours"]["folder.dvc"]), kept
        assert len({json.dumps(found, sort_keys=True) for found in kept.values()}) == 1, kept


TESTS = {test.__name__: test for test in (ssh_is_a_source, webdav_is_a_source, bucket_is_a_source)}
