"""Stand-in for `dnf` and `rpm` on a host that looks like Rocky Linux. It stores which packages are installed, and prints the originals' messages.

Source: DNF, "Command Reference" (`install`, `remove`), DNF plugins, "versionlock" (`/etc/dnf/plugins/versionlock.list`); rpm(8) (`-q`, `--qf`).
"""

import json
import os
import sys

STATE, LOCKS, LOG = "/var/lib/standin/rpms.json", "/etc/dnf/plugins/versionlock.list", "/var/lib/standin/log"
AVAILABLE = {"jq": ["1.6-14.el9", "1.6-15.el9"], "curl": ["7.76.1-31.el9"], "k3s-selinux": ["1.6-1.el9"], "container-selinux": ["2.235.0-1.el9"]}
DEPENDS = {"k3s-selinux": ["container-selinux"]}


def read():
    try:
        with open(STATE) as file:
            return json.load(file)
    except OSError:
        return {}


def store(packages):
    with open(STATE, "w") as file:
        json.dump(packages, file)


def locks():
    try:
        with open(LOCKS) as file:
            return file.read().splitlines()
    except OSError:
        return []


def rpm():
    form = sys.argv[sys.argv.index("--qf") + 1] if "--qf" in sys.argv else "%{NAME}-%{VERSION}-%{RELEASE}\\n"
    name, packages = sys.argv[-1], read()
    if name not in packages:
        print(f"package {name} is not installed")
        sys.exit(1)
    version, release = packages[name].split("-")
    values = {"%{NAME}": name, "%{VERSION}": version, "%{RELEASE}": release, "\\n": "\n", "\\t": "\t"}
    for key, value in values.items():
        form = form.replace(key, value)
    sys.stdout.write(form)


def install(packages, word):
    name = next((n for n in AVAILABLE if word == n or word.startswith(n + "-") and word[len(n) + 1:] in AVAILABLE[n]), None)
    if name is None:
        sys.exit(f"No match for argument: {word}\nError: Unable to find a match: {word}")
    # Packages of Rancher are only known with its repository.
    if name.endswith("-selinux") and name != "container-selinux" and not os.path.exists(f"/etc/yum.repos.d/slipway-{name[:-8]}.repo"):
        sys.exit(f"No match for argument: {word}\nError: Unable to find a match: {word}")
    packages[name] = word[len(name) + 1:] or packages.get(name) or AVAILABLE[name][-1]
    for other in DEPENDS.get(name, []):
        packages.setdefault(other, AVAILABLE[other][-1])


def dnf():
    words, packages = [w for w in sys.argv[1:] if not w.startswith("-")], read()
    if words[0] == "versionlock":
        names = words[2:]
        entries = [l for l in locks() if not any(l.startswith(f"{n}-") for n in names)]
        if words[1] == "list":
            return print("\n".join(entries))
        os.makedirs(os.path.dirname(LOCKS), exist_ok=True)
        if words[1] == "add":
            entries += [f"{n}-0:{packages[n]}.*" for n in names]
        with open(LOCKS, "w") as file:
            file.write("".join(f"{e}\n" for e in entries))
        return None
    with open(LOG, "a") as log:
        log.write("dnf " + " ".join(sys.argv[1:]) + "\n")
    for word in words[1:]:
        if words[0] == "install":
            install(packages, word)
        elif words[0] == "remove":
            packages.pop(word, None)
    return store(packages)
