"""Scenarios with experiments. Commits and times are masked: they differ from run to run."""

import json

from scenarios import scenario


def project(player):
    player.write("dvc.yaml", "metrics:\n- metrics.json\nparams:\n- params.yaml\n")
    player.write("code.py", "print()\n")
    version(player, 1, 0.5)
    player.write("data.csv", "1\n")
    player.dvc("add", "data.csv")
    player.commit("first")


def version(player, lr, accuracy):
    player.write("params.yaml", f"lr: {lr}\nname: x\n")
    player.write("metrics.json", json.dumps({"acc": accuracy, "loss": {"val": 0.123456789}}))


def references(player):
    player.git("for-each-ref", "--format=%(refname) %(contents:subject)", "refs/exps", "refs/heads", text=True, masked=True)


@scenario
def experiments_are_saved_and_listed(player):
    project(player)
    version(player, 2, 0.75)
    player.write("data.csv", "2\n")
    player.dvc("exp", "save", "-n", "second", "-m", "a message", text=True)
    references(player)
    player.git("status", "--porcelain", text=True)
    player.dvc("exp", "list", text=True, masked=True)
    player.dvc("exp", "list", "--name-only", text=True)
    player.dvc("exp", "ls", "--sha-only", text=True, masked=True)
    player.dvc("exp", "save", "-n", "second")
    version(player, 3, 0.8)
    player.dvc("exp", "save", "-n", "second", "-f", "--json", json=True, masked=True)
    player.dvc("exp", "save", "-n", "in/valid")
    player.dvc("status", "--json", json=True)
    player.commit("third")
    player.dvc("exp", "list", text=True)
    player.dvc("exp", "list", "-A", text=True, masked=True)
    player.dvc("exp", "list", "--rev", "HEAD~1", text=True, masked=True)
    player.dvc("exp", "list", "-n", "2", text=True, masked=True)


@scenario
def untracked_files_belong_to_an_experiment_on_request(player):
    project(player)
    player.write("notes.txt", "x")
    player.write("other.txt", "y")
    player.dvc("exp", "save", "-n", "with-notes", "-I", "notes.txt", text=True)
    player.git("ls-tree", "-r", "--name-only", "refs/exps/exec/EXEC_HEAD", text=True)
    player.remove("notes.txt")
    player.dvc("exp", "apply", "with-notes", text=True)
    player.git("status", "--porcelain", text=True)


@scenario
def experiments_are_compared_in_a_table(player):
    project(player)
    version(player, 2, 0.75)
    player.write("data.csv", "2\n")
    player.dvc("exp", "save", "-n", "second")
    player.dvc("exp", "show", "--json", json=True, masked=True)
    player.dvc("exp", "show", "--md", "--drop", "Created", text=True, masked=True)
    player.dvc("exp", "show", "--csv", text=True, masked=True)
    player.dvc("exp", "show", "--csv", "--precision", "2", "--hide-workspace", text=True, masked=True)
    player.dvc("exp", "show", "--only-changed", "--md", "--drop", "Created", text=True, masked=True)
    player.dvc("exp", "show", "--only-changed", "--keep", "name", "--csv", text=True, masked=True)
    player.dvc("exp", "show", "--sha", "--json", json=True, masked=True)


@scenario
def experiments_are_sorted(player):
    project(player)
    for name, lr, accuracy in [("a", 2, 0.75), ("b", 3, 0.25), ("c", 4, 0.5)]:
        version(player, lr, accuracy)
        player.dvc("exp", "save", "-n", name)
    player.dvc("exp", "show", "--csv", "--sort-by", "acc", "--drop", "Created", text=True, masked=True)
    player.dvc("exp", "show", "--csv", "--sort-by", "params.yaml:lr", "--sort-order", "desc", "--drop", "Created", text=True, masked=True)
    player.dvc("exp", "list", "--name-only", text=True)


@scenario
def differences_of_experiments_are_shown(player):
    project(player)
    version(player, 2, 0.75)
    player.dvc("exp", "save", "-n", "second")
    version(player, "text", 0.9)
    player.dvc("exp", "diff", text=True)
    player.dvc("exp", "diff", "--json", json=True)
    player.dvc("exp", "diff", "second", text=True)
    player.dvc("exp", "diff", "HEAD", "second", "--all", "--md", text=True)
    player.dvc("exp", "diff", "second", "--no-path", "--precision", "2", text=True)
    player.dvc("exp", "diff", "nothing")
    player.dvc("metrics", "diff", "HEAD", "second", "--json", json=True)
    player.dvc("params", "diff", "second", "--json", json=True)


@scenario
def experiments_are_applied(player):
    project(player)
    version(player, 2, 0.75)
    player.write("data.csv", "2\n")
    player.write("code.py", "print(2)\n")
    player.dvc("exp", "save", "-n", "second")
    player.git("checkout", "-q", "--", ".")
    player.dvc("checkout", "-f")
    player.write("code.py", "print(3)\n")
    player.write("untracked.txt", "kept")
    player.dvc("exp", "apply", "second", text=True)
    player.git("status", "--porcelain", text=True)
    player.git("stash", "list", text=True)
    references(player)
    player.git("reset", "-q", "--hard")
    player.git("clean", "-qf")
    player.git("stash", "apply", "-q", "refs/exps/apply/stash")
    player.dvc("checkout", "-f")
    player.dvc("exp", "apply", "nothing")


@scenario
def experiments_become_branches(player):
    project(player)
    version(player, 2, 0.75)
    player.dvc("exp", "save", "-n", "second", "-m", "message")
    player.dvc("exp", "branch", "second")
    player.dvc("exp", "branch", "second", "other")
    player.dvc("exp", "branch", "second", "other")
    player.dvc("exp", "branch", "nothing")
    player.dvc("exp", "branch", "HEAD")
    references(player)


@scenario
def experiments_are_renamed_and_removed(player):
    project(player)
    for name, lr in [("a", 2), ("b", 3), ("c", 4), ("d", 5)]:
        version(player, lr, 0.5)
        player.dvc("exp", "save", "-n", name, "-m", name)
    player.dvc("exp", "rename", "a", "first", text=True)
    player.dvc("exp", "rename", "b", "first")
    player.dvc("exp", "rename", "nothing", "x")
    player.dvc("exp", "rename", "b", "in/valid")
    references(player)
    player.dvc("exp", "remove", "b", text=True)
    player.dvc("exp", "remove", "nothing")
    player.dvc("exp", "remove")
    references(player)
    player.dvc("exp", "remove", "c", "--keep", text=False)
    references(player)
    player.dvc("exp", "remove", "-A", text=True)
    player.dvc("exp", "remove", "-A", text=True)
    references(player)


@scenario
def experiments_are_shared(player):
    # What is in a folder `.git` is not compared.
    player.git("init", "-q", "--bare", "../origin/.git")
    player.git("remote", "add", "origin", "../origin")
    project(player)
    # DVC resolves a relative path in the configuration of a commit from the root of the file system, so the path is absolute.
    player.dvc("remote", "add", "--global", "-d", "store", str(player.sandbox / "remote"))
    player.git("push", "-q", "origin", "master")
    version(player, 2, 0.75)
    player.write("data.csv", "2\n")
    player.dvc("exp", "save", "-n", "second", "-m", "message")
    player.dvc("exp", "list", "origin", text=True)
    player.dvc("exp", "push", "origin", "second")
    player.git("ls-remote", "-q", "--refs", "origin", text=True, masked=True)
    player.dvc("exp", "list", "origin", text=True)
    player.dvc("exp", "push", "origin", "second")
    player.dvc("exp", "push", "origin", "nothing")
    player.dvc("exp", "remove", "second")
    player.dvc("exp", "pull", "origin", "second")
    player.dvc("exp", "pull", "origin")
    references(player)
    player.dvc("exp", "remove", "-g", "origin", "second")
    player.git("ls-remote", "-q", "--refs", "origin", text=True, masked=True)
