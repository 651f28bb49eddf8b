"""Tests of buckets that keep all versions of their files, as remotes and as sources of imports."""

import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys

import remote_services as services
from remote_projects import LARGE, ROOT, block, sandbox, tree

sys.path.insert(0, str(ROOT / "conformance"))
from lib import Slipway


def records(project):
    """The .dvc files and dvc.lock, with the ids of versions numbered in the order of their appearance, since every push makes new ones."""
    texts = {str(path.relative_to(project.path)): path.read_text() for path in sorted(project.path.rglob("*.dvc")) if path.is_file()}
    lock = project.path / "dvc.lock"
    if lock.exists():
        texts["dvc.lock"] = lock.read_text()
    known = {}
    number = lambda found: f"version_id: {known.setdefault(found[1], len(known))}"
    # The digest of an import covers the ids.
    texts = {name: re.sub(r"^md5: .*", "md5: $STAGE", text) for name, text in texts.items()}
    return {name: re.sub(r"version_id: (\S+)", number, text) for name, text in texts.items()}


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


def imports(programs):
    """`import-url --version-aware`: the records are those of DVC, and exactly the recorded versions are received."""
    with sandbox(programs) as place, services.bucket(versions=True) as bucket:
        options = {"endpointurl": f"http://{bucket.address}:{bucket.port}", "access_key_id": bucket.ACCESS,
                   "secret_access_key": bucket.SECRET, "region": "us-east-1"}

        def life(name, programs_in_turn):
            """The same commands, each by the next of the programs. Returns the records after the import and after the update."""
            for path, text in {"a": "one", "d/x": "x one", "d/sub/y": "y"}.items():
                bucket.put(f"/slipway/{name}/{path}", "", text.encode())
            project = place.project(name)
            project.remote(f"s3://slipway/{name}", **options)
            turn = itertools.cycle(programs_in_turn)
            command = lambda *words, **how: getattr(project, next(turn))(*words, **how)
            command("import-url", "--version-aware", "remote://r/a")
            command("import-url", "--version-aware", "remote://r/d")
            command("import-url", "--version-aware", "--no-download", "remote://r/d/x", "later")
            # The option of the remote has the same effect as that of the command.
            project.ours("remote", "modify", "r", "version_aware", "true")
            command("import-url", "remote://r/d", "same")
            first = records(project)
            bucket.put(f"/slipway/{name}/a", "", b"two")
            bucket.put(f"/slipway/{name}/d/x", "", b"x two")
            bucket.put(f"/slipway/{name}/d/new", "", b"new")
            changes = json.loads(command("status", "--json"))
            assert changes["a.dvc"] == [{"changed deps": {"remote://r/a": "update available"}}], changes
            assert changes["d.dvc"] == [{"changed deps": {"remote://r/d": "modified"}}], changes
            for target in ("a.dvc", "d.dvc", "later.dvc"):
                command("update", target)
            assert (project.path / "a").read_text() == "two" and (project.path / "d/new").exists()
            assert "didn't change" in command("update", "a.dvc")
            return project, first, records(project)

        project, *ours = life("ours", ["ours"])
        assert ours[0]["d.dvc"].count("version_id") == 2 and ours[1]["d.dvc"].count("version_id") == 3, ours
        if programs.dvc:
            for name, turns in {"theirs": ["original"], "both": ["ours", "original"], "swapped": ["original", "ours", "ours"]}.items():
                _, *others = life(name, turns)
                assert others == ours, (name, others, ours)
        # A project with the old record gets the old versions, though the bucket has newer ones.
        versions = {path.name: re.findall(r"version_id: (\S+)", path.read_text()) for path in project.path.glob("?*.dvc") if path.is_file()}
        old = place.project("old")
        old.remote("s3://slipway/ours", **options)
        for name, path, count in [("a", "a", 1), ("same", "d", 2)]:
            assert len(versions[f"{name}.dvc"]) == count
            shutil.copy(project.path / f"{name}.dvc", old.path)
        assert "3 files fetched" in old.ours("fetch")
        old.ours("checkout")
        assert tree(old.path / "same") == {"x": md5("x one"), "sub/y": md5("y")} and (old.path / "a").read_text() == "two"
        assert "Everything is up to date" in old.ours("push"), "the bucket is their only place"
        # One version of a file by its id; a folder has none.
        bucket.put("/slipway/ours/a", "", b"three")
        old.ours("update", "a.dvc")
        assert (old.path / "a").read_text() == "three"
        old.ours("update", "a.dvc", "--rev", versions["a.dvc"][0])
        assert (old.path / "a").read_text() == "two" and versions["a.dvc"][0] in (old.path / "a.dvc").read_text()
        assert "--rev" in old.ours("update", "same.dvc", "--rev", versions["a.dvc"][0], fails=True)
        # What the record says and what the bucket has must agree.
        record = old.path / "a.dvc"
        record.write_text(record.read_text().replace(versions["a.dvc"][0], versions["same.dvc"][0]))
        shutil.rmtree(old.path / ".dvc/cache")
        (old.path / "a").unlink()
        assert not (old.path / "a").exists() and old.ours("pull", "a.dvc", fails=True)
        assert "cannot be" in old.ours("import-url", "--version-aware", "--to-remote", "remote://r/a", "b", fails=True)
        assert "s3:// only" in old.ours("import-url", "--version-aware", "http://127.0.0.1:1/x", "b", fails=True)


def buckets_without_versions_are_not_pinned(programs):
    with sandbox(programs) as place, services.bucket() as bucket:
        project = place.project("p")
        project.remote("s3://slipway/p", endpointurl=f"http://{bucket.address}:{bucket.port}", access_key_id=bucket.ACCESS,
                       secret_access_key=bucket.SECRET, region="us-east-1")
        bucket.put("/slipway/p/a", "", b"a")
        message = project.ours("import-url", "--version-aware", "remote://r/a", fails=True)
        assert "does not keep versions" in message, message
        assert not (project.path / "a.dvc").exists()


def repositories_whose_remote_keeps_versions(programs):
    """`import`, `get` and the data of runs from a repository whose remote is such a bucket."""
    with sandbox(programs) as place, services.bucket(versions=True) as bucket:
        source = place.project("source")
        source.remote("s3://slipway/source", endpointurl=f"http://{bucket.address}:{bucket.port}", access_key_id=bucket.ACCESS,
                      secret_access_key=bucket.SECRET, region="us-east-1", version_aware="true")
        commit = lambda message: (source.run("git", "add", "-A"), source.run("git", "commit", "-qm", message))
        (source.path / "data/sub").mkdir(parents=True)
        for path, text in {"data/a": "first", "data/sub/b": "b", "file": "file one"}.items():
            (source.path / path).write_text(text)
        source.ours("add", "data", "file")
        source.ours("push")
        commit("first")
        source.run("git", "tag", "v1")
        (source.path / "data/a").write_text("second")
        source.ours("add", "data")
        source.ours("push")
        commit("second")
        shutil.rmtree(source.path / ".dvc/cache")
        shutil.rmtree(source.path / "data")
        user = place.project("user")
        url = f"file://{source.path}"
        user.ours("import", url, "data", "--rev", "v1")
        user.ours("import", url, "file")
        assert tree(user.path / "data") == {"a": md5("first"), "sub/b": md5("b")} and (user.path / "file").read_text() == "file one"
        user.ours("update", "data.dvc", "--rev", "master")
        assert (user.path / "data/a").read_text() == "second"
        user.ours("get", url, "data/sub", "-o", "part")
        assert tree(user.path / "part") == {"b": md5("b")}
        shutil.rmtree(user.path / ".dvc/cache")
        shutil.rmtree(user.path / "data")
        user.ours("pull")
        assert (user.path / "data/a").read_text() == "second"
        runs_use_versions(place, programs, source, url)
        if programs.dvc:
            other = place.project("other")
            other.original("import", url, "data", "--rev", "v1")
            other.ours("import", url, "data", "--rev", "v1", "-o", "ours")
            records = [(other.path / f"{name}.dvc").read_text().replace("path: ours", "path: data") for name in ("data", "ours")]
            without = [re.sub("^md5: .*", "", record) for record in records]
            assert without[0] == without[1], records


def runs_use_versions(place, programs, source, url):
    """`spec.data` of runs: the versions of two commits, from the bucket alone."""
    shutil.rmtree(source.path / ".dvc/cache", ignore_errors=True)
    work = place.folder / "runs"
    work.mkdir()
    with Slipway(programs.slipway) as server:
        environment = place.environment | {"SLIPWAY_HOME": str(server.home)}
        for name, rev, path, expected in (("old", "v1", "data", "first"), ("new", "HEAD", "data", "second"), ("part", "v1", "data/sub", "b")):
            command = "cat mounted/* 2>/dev/null; cat mounted/a/* 2>/dev/null; true"
            spec = {"apiVersion": "slipway.dev/v1", "kind": "Run", "metadata": {"name": name}, "spec": {
                "command": ["sh", "-c", command], "data": [{"repo": url, "rev": rev, "path": path, "mountPath": "mounted"}]}}
            manifest = work / f"{name}.yaml"
            manifest.write_text(json.dumps(spec))
            done = subprocess.run([programs.slipway, "run", "submit", manifest, "--follow"], cwd=work, env=environment,
                                  capture_output=True, text=True, timeout=120)
            assert done.returncode == 0 and expected in done.stdout, (name, done.stdout, done.stderr)


def md5(text):
    return hashlib.md5(text.encode()).hexdigest()


TESTS = {
    test.__name__: test
    for test in (buckets_with_versions_have_the_files_of_the_workspace, a_changed_file_gets_a_new_version_and_the_old_one_stays)
} | {
    "imports_from_buckets_with_versions_are_pinned": imports,
    "buckets_without_versions_are_not_pinned": buckets_without_versions_are_not_pinned,
    "repositories_whose_remote_keeps_versions_are_sources": repositories_whose_remote_keeps_versions,
}
