"""What each program remembers for itself, so that they cannot take turns: the objects of a remote, and the data of imports that is downloaded later."""

import json
import pathlib
import shutil
import subprocess
import tempfile

import hard


def objects_of_a_remote(context):
    options, slipway = context
    results = []
    for program in filter(None, (slipway, options.dvc)):
        with hard.project(program) as project:
            project.write("x", b"1")
            project.write("d/y", b"2")
            project.succeeds("add", "x", "d")
            project.succeeds("remote", "add", "-d", "store", str(project.root / "store"))
            shown = []

            def show(*arguments):
                done = project.data("data", "status", "--not-in-remote", "--json", *arguments)
                assert done.returncode == 0, done.stderr
                shown.append(sorted(json.loads(done.stdout).get("not_in_remote", [])))

            show("--no-remote-refresh")
            project.succeeds("push", "x")
            show("--no-remote-refresh")
            show()
            show("--no-remote-refresh")
            project.succeeds("push")
            show("--no-remote-refresh")
            show()
            shutil.rmtree(project.root / "store")
            show("--no-remote-refresh")
            show()
            results.append(shown)
    everything, folder = ["d/", "x"], ["d/"]
    # The second push has transferred something, after which both programs forget what the remote had.
    assert results[0] == [everything, everything, folder, folder, everything, [], [], everything], results[0]
    assert all(result == results[0] for result in results), results


def imports_that_are_downloaded_later(context):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder).resolve()
        source = root / "source"
        (source / "files/sub").mkdir(parents=True)
        (source / "files/a").write_text("a\n")
        (source / "files/sub/b").write_text("b\n")
        (source / "single").write_text("single\n")
        for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=n", "-c", "user.email=n@example.invalid", "commit", "-qm", "first"]):
            subprocess.run(["git", *command], cwd=source, check=True)
        project = hard.Project(root, context[1])
        project.succeeds("import", "--no-download", str(source), "files", "-o", "of_git")
        project.succeeds("import-url", "--no-download", str(source / "files"), "folder")
        project.succeeds("import-url", "--no-download", str(source / "single"), "file")
        records = {path: path.read_text() for path in project.work.glob("*.dvc") if path.is_file()}
        assert len(records) == 3
        project.fails("checkout", words=["file", "folder", "of_git"])
        assert not (project.work / "file").exists(), "nothing was fetched yet"
        project.succeeds("fetch")
        project.succeeds("checkout")
        expected = {"a": "a\n", "sub/b": "b\n"}
        for name in ("of_git", "folder"):
            files = {str(path.relative_to(project.work / name)): path.read_text() for path in (project.work / name).rglob("*") if path.is_file()}
            assert files == expected, (name, files)
        assert (project.work / "file").read_text() == "single\n"
        assert {path: path.read_text() for path in records} == records, "as with DVC, their files stay as they are"
        # The repository keeps the commit, the other source is what it is now.
        shutil.rmtree(project.work / ".dvc/cache")
        shutil.rmtree(project.work / "of_git")
        (source / "single").write_text("changed\n")
        project.succeeds("pull", "of_git.dvc")
        assert (project.work / "of_git/a").read_text() == "a\n"
        fetched = project.data("fetch", "file.dvc")
        assert fetched.returncode == 0 and "has changed since it was imported" in fetched.stderr and "update file.dvc" in fetched.stderr, fetched
        (project.work / "file").unlink()
        project.succeeds("update", "file.dvc")
        assert (project.work / "file").read_text() == "changed\n"
        project.succeeds("status")


TESTS = {
    "objects of a remote that are remembered": objects_of_a_remote,
    "imports that are downloaded later": imports_that_are_downloaded_later,
}
