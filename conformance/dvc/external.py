"""Scenarios with other repositories, data at paths, and commands about the project itself.

The other repository is the folder `source` beside the project, whose remote is the folder `upstream`.
"""

from scenarios import images, scenario

SOURCE = "../source"


def in_source(player, *arguments):
    done = player.run(list(arguments), SOURCE)
    assert done.returncode == 0, done.stderr


def write_source(player, path, content, mode=None):
    player.write(f"{SOURCE}/{path}", content, mode)


def commit_source(player, message):
    in_source(player, "git", "add", "-A")
    in_source(player, "git", "commit", "-qm", message)


def source(player):
    """A repository with a folder and a file that DVC tracks, and files that Git tracks."""
    (player.sandbox / "source").mkdir()
    in_source(player, "git", "init", "-q", "-b", "master")
    player.dvc("init", folder=SOURCE)
    write_source(player, "data/a.csv", "a\n")
    write_source(player, "data/sub/b.csv", "b\n")
    write_source(player, "model.bin", "weights 1")
    write_source(player, "code/train.py", "print()\n")
    write_source(player, "code/run.sh", "#!/bin/sh\n", mode=0o755)
    player.dvc("add", "data", "model.bin", folder=SOURCE)
    player.dvc("remote", "add", "-d", "upstream", "../upstream", folder=SOURCE)
    player.dvc("push", folder=SOURCE)
    commit_source(player, "one")


def change_source(player):
    write_source(player, "data/a.csv", "another a\n")
    write_source(player, "code/train.py", "print(2)\n")
    player.dvc("add", "data", folder=SOURCE)
    player.dvc("push", folder=SOURCE)
    commit_source(player, "two")


@scenario
def data_is_imported(player):
    source(player)
    player.dvc("import", SOURCE, "data")
    player.dvc("import", SOURCE, "model.bin", "-o", "best.bin")
    player.dvc("import", SOURCE, "code/train.py")
    player.dvc("import", SOURCE, "code", "-o", "scripts")
    player.dvc("import", SOURCE, "data/sub", "-o", "part")
    player.dvc("import", SOURCE, "data/a.csv", "--rev", "master")
    player.dvc("status", "--json", json=True)


@scenario
def imports_in_folders(player):
    source(player)
    player.write("deep/keep", "")
    player.dvc("import", SOURCE, "model.bin", "-o", "deep")
    player.dvc("import", SOURCE, "data", "-o", "deep/renamed")
    player.dvc("status", "--json", json=True)


@scenario
def imports_are_updated(player):
    source(player)
    player.dvc("import", SOURCE, "data")
    player.dvc("import", SOURCE, "model.bin", "--rev", "master")
    player.dvc("status", "--json", json=True)
    change_source(player)
    player.dvc("status", "--json", json=True)
    player.dvc("status", text=True)
    player.dvc("status", "--no-updates", "--json", json=True)
    player.dvc("update", "data.dvc", text=True)
    player.dvc("update", "model.bin.dvc", text=True)
    player.dvc("update", "data.dvc", text=True)
    player.dvc("status", "--json", json=True)


@scenario
def an_import_follows_another_revision(player):
    source(player)
    player.dvc("import", SOURCE, "data")
    change_source(player)
    player.dvc("update", "data.dvc")
    player.dvc("update", "--rev", "HEAD~1", "data.dvc")
    player.dvc("update", "--rev", "nothing", "data.dvc")
    player.dvc("update", "missing.dvc")
    player.dvc("status", "--no-updates", "--json", json=True)


@scenario
def imports_without_their_data(player):
    source(player)
    player.dvc("import", SOURCE, "data", "--no-exec")
    player.dvc("import", SOURCE, "model.bin", "--no-download")
    player.dvc("status", "--json", json=True)
    player.dvc("update", "data.dvc")
    player.dvc("update", "model.bin.dvc")
    player.dvc("status", "--json", json=True)


@scenario
def an_update_without_its_data(player):
    source(player)
    player.dvc("import", SOURCE, "code/train.py")
    change_source(player)
    player.dvc("update", "--no-download", "train.py.dvc")
    player.dvc("update", "train.py.dvc")
    player.dvc("status", "--json", json=True)


@scenario
def imports_are_received_from_their_source(player):
    source(player)
    player.dvc("import", SOURCE, "data/sub", "-o", "part")
    player.dvc("import", SOURCE, "model.bin")
    player.dvc("import", SOURCE, "code/train.py")
    change_source(player)
    for path in ("part", "model.bin", "train.py", ".dvc/cache"):
        player.remove(path)
    player.dvc("pull")
    player.dvc("status", "--no-updates", "--json", json=True)


@scenario
def imports_are_not_pushed(player):
    source(player)
    player.write("own", "own")
    player.dvc("add", "own")
    player.dvc("import", SOURCE, "data")
    player.dvc("remote", "add", "-d", "store", "../store")
    player.dvc("push")


@scenario
def an_import_replaces_what_is_there(player):
    source(player)
    player.write("model.bin", "mine")
    player.dvc("import", SOURCE, "model.bin")
    player.dvc("import", SOURCE, "model.bin", "-f")
    player.dvc("import", SOURCE, "data", "-f", "-o", "model.bin")
    player.dvc("status", "--json", json=True)


@scenario
def data_of_a_project_in_a_repository_is_imported(player):
    source(player)
    (player.sandbox / "source" / "inner").mkdir()
    player.dvc("init", "--subdir", folder=f"{SOURCE}/inner")
    write_source(player, "inner/table.csv", "1,2\n")
    player.dvc("add", "table.csv", folder=f"{SOURCE}/inner")
    commit_source(player, "inner")
    player.dvc("import", SOURCE, "inner/table.csv")
    player.dvc("ls", SOURCE, "inner", text=True)


@scenario
def data_at_a_path_is_imported(player):
    player.write("../elsewhere/file.txt", "1")
    player.write("../elsewhere/folder/x", "x")
    player.write("../elsewhere/folder/sub/y", "y")
    player.write("inside/z", "z")
    player.dvc("import-url", "../elsewhere/file.txt")
    player.dvc("import-url", "../elsewhere/folder", "copy")
    player.dvc("import-url", "inside/z")
    player.dvc("import-url", "../elsewhere/missing")
    player.dvc("status", "--json", json=True)
    player.write("../elsewhere/file.txt", "two")
    player.write("../elsewhere/folder/new", "new")
    player.dvc("update", "file.txt.dvc")
    player.dvc("update", "copy.dvc")
    player.dvc("update", "copy.dvc")
    player.dvc("status", "--json", json=True)


@scenario
def data_at_a_path_is_imported_later(player):
    player.write("../elsewhere/file.txt", "1")
    player.write("../elsewhere/folder/x", "x")
    player.dvc("import-url", "--no-exec", "../elsewhere/file.txt")
    player.dvc("import-url", "--no-download", "../elsewhere/folder")
    player.dvc("status", "--json", json=True)
    player.dvc("update", "file.txt.dvc")
    player.dvc("update", "folder.dvc")
    player.dvc("status", "--json", json=True)


@scenario
def data_is_sent_to_a_remote_directly(player):
    player.write("../elsewhere/file.txt", "1")
    player.write("../elsewhere/folder/x", "x")
    player.dvc("add", "--to-remote", "../elsewhere/file.txt")
    player.dvc("remote", "add", "-d", "store", "../store")
    player.dvc("import-url", "--to-remote", "../elsewhere/folder")
    player.dvc("add", "--to-remote", "../elsewhere/file.txt", "-o", "renamed.txt")
    player.dvc("pull")
    player.dvc("status", "--json", json=True)


@scenario
def data_from_elsewhere_is_added(player):
    player.write("../elsewhere/file.txt", "1")
    player.write("../elsewhere/folder/x", "x")
    player.dvc("add", "../elsewhere/file.txt", "-o", "file.txt")
    player.dvc("add", "../elsewhere/folder", "-o", "folder")
    player.dvc("add", "../elsewhere/file.txt", "-o", "file.txt")
    player.dvc("add", "-f", "../elsewhere/file.txt", "-o", "file.txt")
    player.dvc("status", "--json", json=True)


@scenario
def a_repository_is_listed(player):
    source(player)
    player.dvc("ls", SOURCE, text=True)
    player.dvc("ls", SOURCE, "--rev", "HEAD", "--json", json=True)
    player.dvc("ls", SOURCE, "-R", "--rev", "HEAD", "--json", json=True)
    player.dvc("ls", SOURCE, "-R", "--dvc-only", text=True)
    player.dvc("ls", SOURCE, "data", "--json", "--rev", "HEAD", json=True)
    player.dvc("ls", SOURCE, "--rev", "HEAD", "--size", "--show-hash", text=True)
    player.dvc("ls", SOURCE, "-T", text=True)
    player.dvc("ls", SOURCE, "-R", "-L", "2", text=True)
    player.dvc("ls", SOURCE, "model.bin", text=True)
    player.dvc("ls", SOURCE, "missing")
    player.dvc("ls", SOURCE, "--rev", "missing")
    player.dvc("ls", ".", text=True)


@scenario
def a_repository_is_cloned(player):
    source(player)
    url = f"file://{player.sandbox}/source"
    player.dvc("ls", url, text=True)
    player.dvc("get", url, "code/train.py")
    change_source(player)
    player.dvc("get", url, "code/train.py", "-o", "newer.py")
    player.dvc("get", url, "code", "--rev", "HEAD~1", "-o", "older")
    player.dvc("get", url, "code", "--rev", "missing", "-o", "nothing")


@scenario
def data_is_copied(player):
    source(player)
    player.dvc("get", SOURCE, "data")
    player.dvc("get", SOURCE, "model.bin", "-o", "best.bin")
    player.dvc("get", SOURCE, "code/run.sh")
    player.dvc("get", SOURCE, "data/sub", "-o", "part")
    player.dvc("get", SOURCE, "model.bin", "-o", "best.bin")
    player.dvc("get", SOURCE, "code/train.py", "-o", "best.bin", "-f")
    player.dvc("get", "--show-url", SOURCE, "data", text=True)
    player.dvc("get", "--show-url", SOURCE, "code")
    change_source(player)
    player.dvc("get", SOURCE, "data", "-o", "old", "--rev", "HEAD~1")


@scenario
def what_is_at_a_path_is_listed_and_copied(player):
    player.write("../elsewhere/file.txt", "1")
    player.write("../elsewhere/folder/x", "x" * 2000)
    player.dvc("ls-url", "../elsewhere", text=True)
    player.dvc("ls-url", "../elsewhere", "-R", text=True)
    player.dvc("ls-url", "../elsewhere/folder", "--size", text=True)
    player.dvc("get-url", "../elsewhere/file.txt")
    player.dvc("get-url", "../elsewhere/folder", "copy")
    player.dvc("get-url", "../elsewhere/file.txt")
    player.dvc("get-url", "../elsewhere/missing")


@scenario
def changes_are_reported(player):
    player.dvc("data", "status", text=True)
    images(player)
    player.write("x", "1")
    player.write("gone", "gone")
    player.write("old/file", "moved")
    player.dvc("add", "images", "x", "gone", "old")
    player.dvc("data", "status", text=True)
    player.commit("one")
    player.dvc("data", "status", text=True)
    player.dvc("data", "status", "--unchanged", "--granular", text=True)
    player.write("images/new.png", "new")
    player.remove("images/cat.png")
    player.write("x", "22")
    player.remove("gone")
    player.write("untracked/file", "u")
    player.dvc("data", "status", text=True)
    player.dvc("data", "status", "--granular", "--untracked-files", text=True)
    player.dvc("add", "images")
    player.dvc("move", "old", "renamed")
    player.dvc("data", "status", "--granular", "--unchanged", text=True)
    player.dvc("data", "status", "--json", "x", json=True)
    player.dvc("remote", "add", "-d", "store", "../store")
    player.dvc("push", "images")
    player.dvc("data", "status", "--not-in-remote", text=True)


@scenario
def rules_of_dvcignore_are_explained(player):
    player.write(".dvcignore", "# rules\n*.tmp\n!keep.tmp\nbuild/\n")
    player.write("sub/.dvcignore", "x\n")
    for path in ["sub/x", "a.tmp", "keep.tmp", "build/y"]:
        player.write(path, path)
    player.dvc("check-ignore", "a.tmp", "keep.tmp", "z", "build", "build/y", "sub/x", text=True)
    player.dvc("check-ignore", "-d", "a.tmp", "keep.tmp", "z", "build", "build/y", "sub/x", "sub/a.tmp", text=True)
    player.dvc("check-ignore", "-d", "-n", "z", text=True)
    player.dvc("check-ignore", "z", text=True)
    player.dvc("check-ignore", "keep.tmp", text=True)
    player.dvc("check-ignore", "x", "../a.tmp", folder="sub", text=True)


@scenario
def hooks_are_installed_and_run(player):
    images(player)
    player.dvc("add", "images")
    player.commit("one")
    player.dvc("install")
    player.git("config", "merge.dvc.driver", text=True)
    player.dvc("install")
    player.dvc("git-hook", "pre-commit", text=True)
    player.remove("images")
    player.dvc("git-hook", "post-checkout", "HEAD", "HEAD", "0")
    player.dvc("git-hook", "post-checkout", "HEAD", "HEAD", "1")


@scenario
def folders_are_merged(player):
    images(player)
    player.dvc("add", "images")
    player.commit("one")
    player.git("checkout", "-q", "-b", "other")
    player.write("images/theirs.png", "theirs")
    player.dvc("add", "images")
    player.commit("theirs")
    player.git("checkout", "-q", "master")
    player.dvc("checkout")
    player.write("images/ours.png", "ours")
    player.remove("images/cat.png")
    player.dvc("add", "images")
    player.commit("ours")
    for name, commit in [("ancestor", "HEAD~1"), ("our", "HEAD"), ("their", "other")]:
        text = player.run(["git", "show", f"{commit}:images.dvc"], ".").stdout
        player.write(f".merge_{name}", text)
    player.dvc("git-hook", "merge-driver", "--ancestor", ".merge_ancestor", "--our", ".merge_our", "--their", ".merge_their")


@scenario
def a_project_is_destroyed(player):
    images(player)
    player.write("x", "1")
    player.dvc("config", "cache.type", "symlink")
    player.dvc("add", "images", "x")
    player.dvc("destroy")
    player.dvc("destroy", "-f")
    player.dvc("destroy", "-f")


@scenario
def an_artifact_is_copied(player):
    source(player)
    write_source(player, "dvc.yaml", "artifacts:\n  classifier:\n    path: model.bin\n    type: model\n")
    commit_source(player, "artifact")
    in_source(player, "git", "tag", "-a", "classifier@v1.0.0", "-m", "one")
    write_source(player, "model.bin", "weights 2")
    player.dvc("add", "model.bin", folder=SOURCE)
    player.dvc("push", folder=SOURCE)
    commit_source(player, "two")
    in_source(player, "git", "tag", "-a", "classifier@v1.1.0", "-m", "two")
    in_source(player, "git", "tag", "-a", "classifier#prod#1", "-m", "prod", "HEAD~1")
    player.dvc("artifacts", "get", SOURCE, "classifier", "-o", "newest.bin", text=True)
    player.dvc("artifacts", "get", SOURCE, "classifier", "--rev", "v1.0.0", "-o", "first.bin", text=True)
    player.dvc("artifacts", "get", SOURCE, "classifier", "--stage", "prod", "-o", "prod.bin", text=True)
    player.dvc("artifacts", "get", SOURCE, "classifier", "--rev", "v9.0.0", "-o", "none.bin")
    player.dvc("artifacts", "get", SOURCE, "other", "-o", "none.bin")
