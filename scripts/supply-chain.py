#!/usr/bin/env python3
"""Checks the dependencies of slipway against deny.toml, and lists them as a CycloneDX SBOM. Standard library only.

    scripts/supply-chain.py check            licences, sources, banned crates, duplicates, advisories
    scripts/supply-chain.py sbom -o FILE     all packages in the binary and its web pages (CycloneDX 1.6, JSON)

The policy is deny.toml, in the format of cargo-deny, which can be run on the same file. Advisories come from a copy of
https://github.com/RustSec/advisory-db: --advisory-db DIR, else $ADVISORY_DB, else the copies of cargo-deny and cargo-audit, else a new clone
by git. Without any copy a notice is printed; with --require-advisories that is a failure. Exit code 3: there are errors.
"""

import argparse
import base64
import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"
ADVISORY_DB = "https://github.com/RustSec/advisory-db"
TARGETS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"]


# --- packages

def crates():
    """Packages of the `slipway` binary on all targets, by (name, version), and the dependencies of each; without dev-dependencies."""
    # `cargo metadata` has the licences but also lists unused optional dependencies; `cargo tree` lists exactly what is compiled.
    known, edges = {}, {}
    for target in TARGETS:
        metadata = ["cargo", "metadata", "--format-version=1", "--locked", f"--filter-platform={target}"]
        for package in json.loads(subprocess.check_output(metadata, cwd=ROOT))["packages"]:
            known[(package["name"], package["version"])] = package
        tree = ["cargo", "tree", "--locked", "--package=slipway", "--edges=normal,build", "--prefix=depth"]
        tree.append(f"--target={target}")
        path = []
        for line in subprocess.check_output(tree, cwd=ROOT, text=True).splitlines():
            depth, name, version = re.match(r"(\d+)(\S+) v(\S+)", line).groups()
            package = (name, version)
            del path[int(depth):]
            edges.setdefault(package, set())
            if path:
                edges[path[-1]].add(package)
            path.append(package)
    return {package: known[package] for package in edges}, edges


def npm_packages():
    """Packages that build the web pages, as (name, version, entry of the lock file)."""
    lock = json.loads((ROOT / "web/package-lock.json").read_text())
    for path, entry in sorted(lock["packages"].items()):
        if path:
            yield entry.get("name", path.rpartition("node_modules/")[2]), entry["version"], entry


# --- licences: SPDX expressions (specification 2.3, annex D)

def is_allowed(expression, allowed):
    """Whether some alternative of the expression has allowed licences only."""
    # Old crates write "/" for OR.
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def peek():
        return words[position].upper() if position < len(words) else None

    def take():
        nonlocal position
        position += 1
        return words[position - 1]

    def licence():
        if peek() is None:
            raise ValueError(expression)
        word = take()
        if word == "(":
            result = disjunction()
            if peek() != ")":
                raise ValueError(expression)
            take()
            return result
        if peek() == "WITH":
            take()
            word += " WITH " + take()
        return word in allowed

    def conjunction():
        result = licence()
        while peek() == "AND":
            take()
            result = licence() and result
        return result

    def disjunction():
        result = conjunction()
        while peek() == "OR":
            take()
            result = conjunction() or result
        return result

    try:
        result = disjunction()
    except (ValueError, IndexError):
        return False
    return result and position == len(words)


# --- versions: requirements as Cargo interprets them

def version_key(text):
    """Orders versions (Semantic Versioning 2.0.0, section 11)."""
    text = text.split("+")[0]
    numbers, _, before = text.partition("-")
    numbers = tuple(int(n) for n in numbers.split("."))
    numbers += (0,) * (3 - len(numbers))
    identifiers = tuple((0, int(i), "") if i.isdigit() else (1, 0, i) for i in before.split(".")) if before else ()
    return numbers, not before, identifiers


def matches(version, requirement):
    return all(matches_one(version, part.strip()) for part in requirement.split(",") if part.strip())


def matches_one(version, part):
    if part == "*":
        return True
    operator, text = re.fullmatch(r"(>=|<=|>|<|=|\^|~)?\s*(\S+)", part).groups()
    have, want = version_key(version), version_key(text)
    given = text.split("-")[0].split("+")[0].split(".")
    if operator == ">=":
        return have >= want
    if operator == "<=":
        return have <= want
    if operator == ">":
        return have > want
    if operator == "<":
        return have < want
    if operator == "=":
        return have[0][: len(given)] == want[0][: len(given)] and have[1:] == want[1:]
    # ^ and ~ allow versions below the next incompatible one.
    upper = list(want[0])
    if operator == "~":
        kept = min(len(given), 2)
    else:
        kept = next((i + 1 for i, n in enumerate(want[0]) if n), len(given))
    upper = upper[: kept - 1] + [upper[kept - 1] + 1] + [0] * (3 - kept)
    return want <= have and have[0] < tuple(upper)


# --- advisories (https://github.com/RustSec/advisory-db, README, "Advisory Format")

def database(named):
    """The folder of a copy of the advisory database, or None."""
    candidates = [named or os.environ.get("ADVISORY_DB")]
    if not candidates[0]:
        cargo = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))
        candidates = [*cargo.glob("advisory-dbs/*"), cargo / "advisory-db"]
    for candidate in candidates:
        if candidate and (pathlib.Path(candidate) / "crates").is_dir():
            return pathlib.Path(candidate)
    if named or os.environ.get("ADVISORY_DB"):
        return None
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "slipway/advisory-db"
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    command = ["git", "clone", "--quiet", "--depth=1", ADVISORY_DB, str(cache)]
    if (cache / "crates").is_dir():
        command = ["git", "-C", str(cache), "pull", "--quiet", "--ff-only"]
    try:
        done = subprocess.run(command, env=environment, timeout=120, stdin=subprocess.DEVNULL, capture_output=True)
        return cache if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def advisories(folder, packages):
    """Advisories about these packages, as (package, advisory)."""
    for package in packages:
        for file in sorted((folder / "crates" / package["name"]).glob("RUSTSEC-*.md")):
            front = re.match(r"```toml\n(.*?)```", file.read_text(), re.DOTALL)
            if not front:
                raise SystemExit(f"{file}: not an advisory in a known format")
            advisory = tomllib.loads(front.group(1))
            systems = advisory.get("affected", {}).get("os", [])
            versions = advisory.get("versions", {})
            unaffected = versions.get("patched", []) + versions.get("unaffected", [])
            if advisory["advisory"].get("withdrawn") or (systems and "linux" not in systems):
                continue
            if not any(matches(package["version"], requirement) for requirement in unaffected):
                yield package, advisory["advisory"]


# --- commands

def check(arguments):
    policy = tomllib.loads(pathlib.Path(arguments.policy).read_text())
    packages, edges = crates()
    errors, warnings = [], []
    foreign = {i: p for i, p in packages.items() if p["source"]}

    allowed = set(policy["licenses"]["allow"])
    for p in foreign.values():
        license = p["license"] or ""
        if not is_allowed(license, allowed):
            errors.append(f"{p['name']} {p['version']}: licence '{license}' is not allowed")
        if p["source"] != CRATES_IO:
            errors.append(f"{p['name']} {p['version']}: comes from the unknown source {p['source']}")
    for name, version, entry in npm_packages():
        if not is_allowed(entry.get("license", ""), allowed):
            errors.append(f"{name} {version} (npm): licence '{entry.get('license', '')}' is not allowed")
        if not entry.get("resolved", "https://registry.npmjs.org/").startswith("https://registry.npmjs.org/"):
            errors.append(f"{name} {version} (npm): comes from the unknown source {entry['resolved']}")
        if not entry.get("integrity"):
            errors.append(f"{name} {version} (npm): the lock file has no integrity hash")

    banned = {b["crate"]: b.get("reason", "") for b in policy["bans"].get("deny", [])}
    versions = {}
    for p in packages.values():
        if p["name"] in banned:
            errors.append(f"{p['name']} {p['version']}: banned: {banned[p['name']]}")
        versions.setdefault(p["name"], set()).add(p["version"])
        if not p["source"]:
            for d in p["dependencies"]:
                if d["req"] == "*" and not d.get("path"):
                    errors.append(f"{p['name']}: the version of {d['name']} is a wildcard")
    several = {name: sorted(v, key=version_key) for name, v in versions.items() if len(v) > 1}
    warnings += [f"{name}: {len(v)} versions: {', '.join(v)}" for name, v in sorted(several.items())]

    ignored = {i if isinstance(i, str) else i["id"] for i in policy["advisories"].get("ignore", [])}
    direct = {d for i, used in edges.items() if not packages[i]["source"] for d in used}
    folder = database(arguments.advisory_db)
    for p, advisory in advisories(folder, foreign.values()) if folder else []:
        finding = f"{p['name']} {p['version']}: {advisory['id']} {advisory.get('informational', 'vulnerability')}"
        finding += f", {advisory.get('url', '')}".rstrip(", ")
        # As with `unmaintained = "workspace"` of cargo-deny: only direct dependencies fail, because only they can be replaced here.
        is_warning = advisory.get("informational") in ("unmaintained", "notice") and (p["name"], p["version"]) not in direct
        (warnings if is_warning or advisory["id"] in ignored else errors).append(finding)

    for warning in warnings:
        print(f"warning: {warning}")
    for error in errors:
        print(f"error: {error}")
    print(f"supply chain: {len(foreign)} crates, {len(list(npm_packages()))} npm packages, {len(errors)} errors")
    if folder:
        print(f"advisories: checked with {folder}")
        return 3 if errors else 0
    print("*" * 100)
    print("ADVISORIES WERE NOT CHECKED: there is no copy of the database, and it could not be fetched.")
    print(f"Clone {ADVISORY_DB} on a machine that reaches it, and pass the copy with --advisory-db or ADVISORY_DB.")
    print("*" * 100)
    return 3 if errors or arguments.require_advisories else 0


def sbom(arguments):
    packages, edges = crates()
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in locked}
    url = {(name, version): f"pkg:cargo/{name}@{version}" for name, version in packages}
    main = next(i for i in packages if i[0] == "slipway")
    components = []
    for i, p in packages.items():
        component = {"type": "library", "bom-ref": url[i], "name": p["name"], "version": p["version"], "purl": url[i]}
        if p["license"]:
            component["licenses"] = [{"expression": p["license"].replace("/", " OR ")}]
        if checksum := checksums.get(i):
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        if i == main:
            application = {**component, "type": "application"}
        else:
            components.append(component)
    web = []
    for name, version, entry in npm_packages():
        reference = f"pkg:npm/{name.replace('@', '%40')}@{version}"
        if reference in web:
            continue
        web.append(reference)
        component = {"type": "library", "bom-ref": reference, "name": name, "version": version, "purl": reference}
        if license := entry.get("license"):
            component["licenses"] = [{"expression": license}]
        algorithm, _, digest = entry.get("integrity", "").partition("-")
        if algorithm == "sha512":
            component["hashes"] = [{"alg": "SHA-512", "content": base64.b64decode(digest).hex()}]
        components.append(component)
    components.sort(key=lambda c: c["purl"])
    depends = [{"ref": url[i], "dependsOn": sorted({url[u] for u in used} | (set(web) if i == main else set()))}
               for i, used in edges.items()]
    # The same inputs give the same file, so that two builds can be compared.
    digest = hashlib.sha256((ROOT / "Cargo.lock").read_bytes() + (ROOT / "web/package-lock.json").read_bytes())
    metadata = {"component": application}
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        timestamp = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc)
        metadata["timestamp"] = timestamp.strftime("%Y-%m-%dT%H:%M:%SZ")
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest.hexdigest())}",
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": sorted(depends, key=lambda d: d["ref"]),
    }
    text = json.dumps(document, indent=1) + "\n"
    if arguments.output == "-":
        sys.stdout.write(text)
    else:
        pathlib.Path(arguments.output).write_text(text)
        print(f"{arguments.output}: {len(components)} components")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check")
    checking.add_argument("--advisory-db", metavar="DIR")
    checking.add_argument("--policy", metavar="FILE", default=ROOT / "deny.toml")
    checking.add_argument("--require-advisories", action="store_true")
    commands.add_parser("sbom").add_argument("-o", "--output", default="-", metavar="FILE")
    arguments = parser.parse_args()
    return check(arguments) if arguments.command == "check" else sbom(arguments)


if __name__ == "__main__":
    sys.exit(main())
