"""What users do with DVC, as functions of a `Player`, which runs each command with one of the two programs.

`player.dvc(...)` runs a command and records its exit code; with `json=True` also its output as JSON, with `text=True` its lines, in any order,
because DVC's order of stages is that of a set. `player.write` and `player.git` prepare the workspace.
"""

SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


def images(player):
    player.write("images/cat.png", "cat" * 100)
    player.write("images/dogs/one.png", "one")
    player.write("images/dogs/two.png", "two")


@scenario
def files_and_folders_are_added(player):
    images(player)
    player.write("labels.csv", "a,b\n")
    player.write("empty", "")
    player.write("run.sh", "#!/bin/sh\n", mode=0o755)
    player.dvc("add", "images", "labels.csv", "empty", "run.sh")
    player.dvc("status", text=True)
    player.dvc("status", "--json", json=True)


@scenario
def names_are_quoted_and_escaped(player):
    for name in ["a b", "a: b", "- x", "true", "12", "1e5", "it's", 'say "x"', "[x]", "x*y", "ä", "日本", "!bang", "~", "null", "a,b", "%p", "@at", "x" * 90,
                 "word " * 20 + "end", "d\u00e9j\u00e0 vu", "-lead", "a\tb", "`tick`", "=", "yes", "{a}", "&x", "?q"]:
        player.write(name, name)
    player.write("dir/é\"\\\u2028.txt", "x")
    player.write("dir/😀", "y")
    player.dvc("add", "--", "a b", "a: b", "- x", "true", "12", "1e5", "it's", 'say "x"', "[x]", "x*y", "ä", "日本")
    player.dvc("add", "--", "!bang", "~", "null", "a,b", "%p", "@at", "x" * 90, "word " * 20 + "end", "d\u00e9j\u00e0 vu", "-lead")
    player.dvc("add", "--", "a\tb", "`tick`", "=", "yes", "{a}", "&x", "?q", "dir")


@scenario
def files_in_subfolders_have_their_own_gitignore(player):
    player.write("deep/er/data.bin", "1")
    player.write("deep/other", "2")
    player.dvc("add", "deep/er/data.bin")
    player.dvc("add", "other", folder="deep")
    player.dvc("status", text=True, folder="deep")


@scenario
def patterns_are_expanded(player):
    for name in ["a.csv", "b.csv", "c.txt", "sub/d.csv", ".hidden.csv"]:
        player.write(name, name)
    player.dvc("add", "--glob", "*.csv")
    player.dvc("add", "--glob", "nothing*")
    player.dvc("add", "--glob", "sub/**/*.csv")


@scenario
def files_are_added_to_a_tracked_folder(player):
    images(player)
    player.dvc("add", "images")
    player.write("images/dogs/three.png", "three")
    player.dvc("add", "images/dogs/three.png")
    player.write("images/cat.png", "another cat")
    player.dvc("add", "images/cat.png")
    player.write("images/birds/a", "a")
    player.write("images/birds/b", "b")
    player.dvc("add", "images/birds")
    player.remove("images/dogs/one.png")
    player.dvc("add", "images/dogs/one.png")
    player.dvc("status", text=True)


@scenario
def data_is_added_without_the_cache(player):
    images(player)
    player.dvc("add", "--no-commit", "images")
    player.dvc("status", "--json", json=True)
    player.dvc("commit", "images.dvc")
    player.dvc("status", "--json", json=True)


@scenario
def data_is_added_again(player):
    images(player)
    player.write("x", "1")
    player.dvc("add", "images", "x")
    player.write("x", "22")
    player.write("images/new", "new")
    player.dvc("status", "--json", json=True)
    player.dvc("add", "images", "x")
    player.dvc("add", "images", "x")
    player.dvc("status", "--json", json=True)


@scenario
def overlaps_and_invalid_targets_are_rejected(player):
    images(player)
    player.dvc("add", "images/cat.png")
    player.dvc("add", "images")
    player.dvc("add", "missing")
    player.dvc("add", "images/cat.png.dvc")
    player.write("tracked", "x")
    player.git("add", "tracked")
    player.dvc("add", "tracked")
    player.write(".gitignore", "*.dvc\n")
    player.write("y", "y")
    player.dvc("add", "y")


@scenario
def changes_are_committed(player):
    images(player)
    player.write("x", "1")
    player.dvc("add", "images", "x")
    player.write("x", "2")
    player.remove("images/dogs/two.png")
    player.dvc("commit", "-f", "x.dvc")
    player.dvc("status", "--json", json=True)
    player.dvc("commit", "-f")
    player.dvc("status", "--json", json=True)


@scenario
def a_missing_output_cannot_be_committed(player):
    player.write("x", "1")
    player.dvc("add", "x")
    player.remove("x")
    player.dvc("status", text=True)
    player.dvc("commit", "-f")
    player.dvc("checkout", "x.dvc")
    player.dvc("status", text=True)


@scenario
def the_workspace_is_restored(player):
    images(player)
    player.write("x", "1")
    player.write("run.sh", "#!/bin/sh\n", mode=0o755)
    player.dvc("add", "images", "x", "run.sh")
    player.remove("images")
    player.remove("x")
    player.remove("run.sh")
    player.dvc("checkout", text=True)
    player.dvc("checkout", text=True)
    player.dvc("checkout", "--summary", text=True)


@scenario
def unsaved_changes_are_not_lost(player):
    images(player)
    player.dvc("add", "images")
    player.write("images/cat.png", "not saved")
    player.write("images/unsaved", "not saved either")
    player.dvc("checkout")
    player.dvc("checkout", "--force", text=True)
    player.dvc("status", text=True)


@scenario
def parts_of_folders_are_restored(player):
    images(player)
    player.dvc("add", "images")
    player.remove("images")
    player.dvc("checkout", "images/dogs")
    player.dvc("checkout", "images/cat.png")
    player.dvc("status", text=True)


@scenario
def the_cache_lacks_data(player):
    images(player)
    player.write("x", "1")
    player.dvc("add", "images", "x")
    player.remove("images")
    player.remove("x")
    player.remove(".dvc/cache")
    player.dvc("status", "--json", json=True)
    player.dvc("checkout")
    player.dvc("checkout", "--allow-missing")


@scenario
def versions_are_switched_with_git(player):
    images(player)
    player.dvc("add", "images")
    player.commit("one")
    player.write("images/cat.png", "two cats")
    player.write("images/new", "new")
    player.remove("images/dogs")
    player.dvc("add", "images")
    player.commit("two")
    player.git("checkout", "-q", "HEAD~1")
    player.dvc("status", "--json", json=True)
    player.dvc("checkout", text=True)
    player.dvc("diff", "HEAD", "master", "--json", json=True)
    player.git("checkout", "-q", "master")
    player.dvc("checkout", text=True)
    player.dvc("status", text=True)


@scenario
def differences_are_shown(player):
    images(player)
    player.write("x", "1")
    player.write("gone", "gone")
    player.dvc("add", "images", "x", "gone")
    player.commit("one")
    player.dvc("diff", "--json", json=True)
    player.write("x", "2")
    player.write("images/new", "new")
    player.rename("images/cat.png", "images/lion.png")
    player.remove("gone")
    player.write("fresh", "fresh")
    player.dvc("add", "fresh")
    player.dvc("diff", "--json", json=True)
    player.dvc("diff", "--json", "--show-hash", json=True)
    player.dvc("diff", text=True)
    player.dvc("diff", "--md", text=True)
    player.dvc("diff", "--json", "--targets", "images/new", json=True)
    player.dvc("diff", "nonsense")


@scenario
def tracking_is_stopped(player):
    images(player)
    player.write("x", "1")
    player.write("y", "1")
    player.dvc("add", "images", "x", "y")
    player.dvc("remove", "x.dvc")
    player.dvc("remove", "x")
    player.dvc("remove", "images.dvc", "--outs")
    player.dvc("remove", "y")
    player.dvc("remove", "y.dvc")
    player.dvc("status", text=True)


@scenario
def data_is_moved(player):
    images(player)
    player.write("x", "1")
    player.write("folder/keep", "keep")
    player.dvc("add", "images", "x")
    player.dvc("move", "x", "y")
    player.dvc("move", "y", "folder")
    player.dvc("move", "images", "pictures")
    player.dvc("move", "images", "other")
    player.dvc("status", text=True)


@scenario
def links_are_made_as_configured(player):
    images(player)
    player.write("empty", "")
    player.write("run.sh", "#!/bin/sh\n", mode=0o755)
    player.dvc("config", "cache.type", "symlink")
    player.dvc("add", "images", "empty", "run.sh")
    player.dvc("unprotect", "images")
    player.dvc("status", text=True)
    # DVC leaves an executable file a symbolic link here, although hard links are configured.
    player.dvc("remove", "run.sh.dvc", "--outs")
    player.dvc("config", "cache.type", "hardlink,copy")
    player.dvc("checkout", "--relink", text=True)
    player.dvc("status", text=True)
    player.dvc("unprotect", "empty")
    player.dvc("unprotect", "nothing")


@scenario
def unused_data_is_removed(player):
    images(player)
    player.write("x", "1")
    player.dvc("add", "images", "x")
    player.commit("one")
    player.git("tag", "v1")
    player.write("x", "2")
    player.dvc("add", "x")
    player.commit("two")
    player.write("x", "3")
    player.dvc("add", "x")
    player.dvc("gc", "-f")
    player.dvc("gc", "-w", "--dry")
    player.dvc("gc", "-A", "-f")
    player.dvc("gc", "-T", "-f")
    player.dvc("gc", "-w", "-f")
    player.dvc("status", text=True)


@scenario
def a_project_is_created_without_git(player):
    player.write("plain/data", "x")
    player.dvc("init", folder="plain")
    player.dvc("init", "--subdir", folder="plain")
    player.dvc("init", "--no-scm", "--subdir", folder="plain")
    player.remove("plain/.dvc")
    player.dvc("init", "--no-scm", folder="plain")
    player.dvc("init", "--no-scm", folder="plain")
    player.dvc("add", "data", folder="plain")
    player.dvc("status", text=True, folder="plain")
    player.dvc("root", text=True, folder="plain")


@scenario
def the_configuration_is_changed(player):
    player.write("sub/x", "x")
    player.dvc("config", "core.autostage", "true")
    player.dvc("config", "core.autostage", text=True)
    player.dvc("config", "cache.type", "reflink,copy")
    player.dvc("config", "--local", "cache.dir", "../elsewhere", folder="sub")
    player.dvc("config", "core.nonsense", "1")
    player.dvc("config", "core.autostage", "perhaps")
    player.dvc("config", "nonsense", "1")
    player.dvc("config", "core.remote", text=True)
    player.dvc("config", "--project", "core.remote")
    player.dvc("config", "--list", text=True)
    player.dvc("config", "-u", "cache.type")
    player.dvc("config", "-u", "cache.type")
    player.dvc("cache", "dir", "../cache")
    player.dvc("cache", "dir", "--local", "--unset")
    player.dvc("config", "--list", "--show-origin", text=True)


@scenario
def remotes_are_managed(player):
    player.dvc("remote", "default")
    player.dvc("remote", "add", "-d", "Store", "s3://bucket/prefix")
    player.dvc("remote", "add", "disk", "../disk")
    player.dvc("remote", "add", "disk", "../other")
    player.dvc("remote", "add", "-f", "disk", "../a/./b")
    player.dvc("remote", "modify", "store", "endpointurl", "http://127.0.0.1:1")
    player.dvc("remote", "modify", "--local", "store", "secret_access_key", "a, b # c")
    player.dvc("remote", "modify", "nothing", "jobs", "1")
    player.dvc("remote", "list", text=True)
    player.dvc("remote", "default", text=True)
    player.dvc("remote", "default", "disk")
    player.dvc("remote", "rename", "disk", "home")
    player.dvc("remote", "default", text=True)
    player.dvc("remote", "modify", "--local", "--unset", "store", "secret_access_key")
    player.dvc("remote", "remove", "store")
    player.dvc("remote", "remove", "store")
    player.dvc("remote", "default", "--unset")
    player.dvc("config", "remote.home.jobs", "4")
    player.dvc("config", "remote.home.jobs", text=True)


@scenario
def a_file_of_a_person_keeps_its_comments(player):
    player.write("x", "1")
    player.write("x.dvc", "# the data\nmeta:\n  source: us   # kept\nouts:\n# before\n- path: x  # the path\n  md5: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n  size: 999999\n  hash: md5\n  desc: text # beside\ndesc: a description\n")
    player.dvc("status", "--json", json=True)
    player.dvc("commit", "-f", "x.dvc")
    player.dvc("status", "--json", json=True)
    player.write("x", "22")
    player.dvc("add", "x")


@scenario
def data_of_dvc_2_is_read(player):
    player.write("x", "a\r\nb\n")
    player.write("x.dvc", "outs:\n- md5: dd8c6a395b5dd36c56d23275028f526c\n  size: 5\n  path: x\n")
    player.dvc("status", "--json", json=True)
    player.write("x", "changed\n")
    player.dvc("commit", "-f")
    player.dvc("status", "--json", json=True)


@scenario
def rules_of_dvcignore_are_honoured(player):
    images(player)
    player.write("images/skip.tmp", "x")
    player.write("images/cache/y", "y")
    player.write("images/keep.tmp", "z")
    player.write(".dvcignore", "# rules\n*.tmp\n!keep.tmp\ncache/\n/ignored\n")
    player.write("ignored", "x")
    player.dvc("add", "images")
    player.dvc("add", "ignored")
    player.dvc("status", text=True)
    player.write("images/.dvcignore", "x\n")
    player.dvc("add", "images")


@scenario
def outputs_are_not_in_folders_of_git_and_dvc(player):
    player.write("a", "a")
    player.dvc("add", "a")
    for path in [".git/hooks/post-checkout", "sub/.git/config", ".dvc/config.local"]:
        player.write("b.dvc", f"outs:\n- md5: 0cc175b9c0f1b6a831c399e269772661\n  size: 1\n  hash: md5\n  path: {path}\n")
        player.dvc("checkout")
        player.dvc("status")
        player.dvc("push")
    player.remove("b.dvc")
    player.write("dvc.yaml", "stages:\n  s:\n    cmd: echo x\n    outs: [.git/hooks/post-checkout]\n")
    player.dvc("repro")
    player.dvc("status")


@scenario
def data_is_shared_through_a_folder(player):
    images(player)
    player.write("x", "1")
    player.dvc("add", "images", "x")
    player.dvc("push")
    player.dvc("remote", "add", "-d", "disk", "../disk")
    player.dvc("status", "-c", text=True)
    player.dvc("push", text=True)
    player.dvc("push", text=True)
    player.dvc("status", "-c", "--json", json=True)
    player.remove(".dvc/cache")
    player.remove("images")
    player.remove("x")
    player.dvc("status", "-c", text=True)
    player.dvc("fetch", "x.dvc", text=True)
    player.dvc("pull", text=True)
    player.dvc("pull", text=True)
    player.dvc("status", text=True)


@scenario
def a_remote_lacks_data(player):
    images(player)
    player.write("x", "1")
    player.dvc("add", "images", "x")
    player.dvc("remote", "add", "-d", "disk", "../disk")
    player.dvc("push", "images", text=True)
    player.remove(".dvc/cache")
    player.remove("x")
    player.dvc("fetch")
    player.dvc("pull")
    player.dvc("push")
    player.dvc("status", "-c", text=True)


@scenario
def a_remote_is_cleaned(player):
    player.write("x", "1")
    player.write("y", "y")
    player.dvc("add", "x", "y")
    player.dvc("remote", "add", "-d", "disk", "../disk")
    player.dvc("push", "-j", "2")
    player.write("x", "2")
    player.dvc("add", "x")
    player.dvc("push", "-r", "disk")
    player.dvc("gc", "-w", "-c", "-f")
    player.dvc("gc", "-w", "-f", "--not-in-remote")


@scenario
def links_in_the_workspace(player):
    player.write("target", "content")
    player.link("link", "target")
    player.write("folder/x", "x")
    player.link("folder/y", "x")
    player.link("other", "folder")
    player.dvc("add", "link")
    player.dvc("add", "folder")
    player.dvc("add", "other/x")
    player.dvc("add", "other")
    player.dvc("status", text=True)


@scenario
def changes_are_staged(player):
    player.dvc("config", "core.autostage", "true")
    player.write("x", "1")
    player.dvc("add", "x")
    player.git("status", "--short", text=True)
    player.dvc("move", "x", "y")
    player.git("status", "--short", text=True)


@scenario
def there_is_no_project(player):
    player.write("../outside/x", "x")
    player.dvc("status", folder="../outside")
    player.dvc("add", "x", folder="../outside")
    player.dvc("root", folder="../outside")
    player.dvc("nonsense")
    player.dvc("add")
    player.dvc("status", "--nonsense")
