"""Scenarios with imports that are not complete: their data is fetched later, when their source may have changed.

DVC keeps such data in a folder of its own in the cache and slipway among the other objects, so the cache is not compared.
"""

from external import SOURCE, change_source, commit_source, in_source, source, write_source
from scenarios import scenario


def without_cache(player):
    player.not_compared.append("work/.dvc/cache")


def own_data(player):
    """Data that is in a remote and not in the cache."""
    player.write("own", "own")
    player.dvc("add", "own")
    player.dvc("remote", "add", "-d", "store", "../store")
    player.dvc("push")
    player.remove("own")
    player.remove(".dvc/cache")


@scenario
def a_changed_file_is_not_fetched_later(player):
    without_cache(player)
    player.write("../elsewhere/file.txt", "1")
    player.write("../elsewhere/other", "o")
    player.dvc("import-url", "--no-download", "../elsewhere/file.txt")
    player.dvc("import-url", "--no-download", "../elsewhere/other")
    own_data(player)
    player.write("../elsewhere/file.txt", "two")
    player.dvc("fetch")
    player.dvc("pull")
    player.dvc("pull", "own.dvc")
    player.dvc("pull", "--allow-missing")
    player.dvc("checkout")
    player.dvc("status", "file.txt.dvc", "--json", json=True)
    player.dvc("update", "file.txt.dvc")
    player.dvc("update", "other.dvc")
    player.dvc("pull")
    player.dvc("status", "--json", json=True)


@scenario
def a_deleted_file_is_not_fetched_later(player):
    without_cache(player)
    player.write("../elsewhere/file.txt", "1")
    player.dvc("import-url", "--no-download", "../elsewhere/file.txt")
    own_data(player)
    player.remove("../elsewhere")
    player.dvc("fetch")
    player.dvc("pull")
    player.dvc("update", "file.txt.dvc")


@scenario
def a_changed_file_that_was_fetched_stays(player):
    without_cache(player)
    player.write("../elsewhere/file.txt", "1")
    player.dvc("import-url", "--no-download", "../elsewhere/file.txt")
    player.dvc("checkout")
    player.dvc("pull")
    player.write("../elsewhere/file.txt", "two")
    player.remove(".dvc/cache")
    player.dvc("pull")
    player.dvc("checkout")


@scenario
def a_changed_folder_is_not_fetched_later(player):
    without_cache(player)
    player.write("../elsewhere/folder/x", "x")
    player.write("../elsewhere/folder/sub/y", "y")
    player.dvc("import-url", "--no-download", "../elsewhere/folder")
    player.write("../elsewhere/folder/x", "another")
    player.dvc("fetch")
    player.dvc("pull")
    player.dvc("update", "folder.dvc")
    player.dvc("status", "--json", json=True)


@scenario
def the_imported_commit_is_fetched_later(player):
    without_cache(player)
    source(player)
    player.dvc("import", SOURCE, "data/sub", "-o", "part", "--no-download")
    player.dvc("import", SOURCE, "data/a.csv", "--no-download")
    player.dvc("import", SOURCE, "code", "--no-download")
    change_source(player)
    player.dvc("fetch")
    player.dvc("pull")
    player.dvc("status", "part.dvc", "--json", json=True)
    player.dvc("update", "--no-download", "part.dvc")
    player.dvc("update", "--no-download", "a.csv.dvc")
    player.dvc("pull")
    player.dvc("update", "code.dvc", "a.csv.dvc", "part.dvc")
    player.dvc("status", "--json", json=True)


@scenario
def a_moved_tag_is_followed_by_parts_of_a_folder(player):
    without_cache(player)
    source(player)
    in_source(player, "git", "tag", "v1")
    player.dvc("import", SOURCE, "data/sub/b.csv", "--rev", "v1", "--no-download")
    player.dvc("import", SOURCE, "data/sub", "-o", "part", "--rev", "v1")
    change_source(player)
    in_source(player, "git", "tag", "-f", "v1")
    player.dvc("status", "part.dvc", "--json", json=True)
    player.remove("part")
    player.remove(".dvc/cache")
    player.dvc("pull")
    player.dvc("update", "b.csv.dvc", "part.dvc")
    write_source(player, "data/sub/b.csv", "moved\n")
    player.dvc("add", "data", folder=SOURCE)
    player.dvc("push", folder=SOURCE)
    commit_source(player, "three")
    in_source(player, "git", "tag", "-f", "v1")
    player.dvc("update", "--no-download", "b.csv.dvc")
    player.dvc("update", "part.dvc")
    player.dvc("fetch")
    player.dvc("pull")
    player.dvc("status", "--json", json=True)


@scenario
def an_import_that_was_not_executed_is_pulled(player):
    without_cache(player)
    source(player)
    player.write("../elsewhere/file.txt", "1")
    player.dvc("import-url", "--no-exec", "../elsewhere/file.txt")
    player.dvc("import", SOURCE, "data", "--no-exec")
    player.dvc("pull", "data.dvc")
    player.dvc("pull")
    player.dvc("checkout")


@scenario
def the_source_of_an_import_has_a_new_history(player):
    without_cache(player)
    source(player)
    player.dvc("import", SOURCE, "data/sub", "-o", "part", "--no-download")
    player.dvc("import", SOURCE, "model.bin")
    own_data(player)
    write_source(player, "data/sub/b.csv", "changed\n")
    player.dvc("add", "data", folder=SOURCE)
    player.dvc("push", folder=SOURCE)
    in_source(player, "git", "add", "-A")
    in_source(player, "git", "commit", "--amend", "-qm", "rewritten")
    in_source(player, "git", "reflog", "expire", "--expire=now", "--all")
    in_source(player, "git", "gc", "-q", "--prune=now")
    player.remove("model.bin")
    player.dvc("update", "part.dvc", "model.bin.dvc")
    player.dvc("pull")
    player.dvc("status", "--json", json=True)


@scenario
def a_file_becomes_a_folder_in_the_source(player):
    without_cache(player)
    source(player)
    player.dvc("import", SOURCE, "data/sub", "-o", "part")
    player.dvc("import", SOURCE, "code/train.py", "--no-download")
    player.dvc("import", SOURCE, "model.bin")
    player.remove(f"{SOURCE}/data/sub")
    write_source(player, "data/sub", "now a file")
    in_source(player, "git", "rm", "-q", "code/train.py")
    player.dvc("remove", "model.bin.dvc", folder=SOURCE)
    in_source(player, "rm", "-f", "model.bin")
    write_source(player, "model.bin/x", "now a folder")
    player.dvc("add", "data", "model.bin", folder=SOURCE)
    player.dvc("push", folder=SOURCE)
    commit_source(player, "two")
    player.dvc("pull")
    player.dvc("update", "part.dvc")
    player.dvc("update", "model.bin.dvc")
    player.dvc("update", "--no-download", "train.py.dvc")
    player.dvc("status", "--json", json=True)


@scenario
def a_lost_source_does_not_keep_others_from_being_pulled(player):
    without_cache(player)
    source(player)
    player.run(["mkdir", "../second"], ".")
    player.run(["git", "init", "-q", "-b", "master"], "../second")
    player.dvc("init", folder="../second")
    player.write("../second/table", "t")
    player.dvc("add", "table", folder="../second")
    player.run(["git", "add", "-A"], "../second")
    player.run(["git", "commit", "-qm", "one"], "../second")
    player.dvc("import", SOURCE, "model.bin")
    player.dvc("import", SOURCE, "data")
    player.dvc("import", "../second", "table")
    own_data(player)
    player.remove("../second")
    for path in ("model.bin", "table", "data"):
        player.remove(path)
    player.dvc("pull")
