"""Recorded responses of the originals, which comparisons use instead of the originals themselves.

A recording is a JSON file with the version of the original, a fingerprint of the request, and the normalized response. Without `live`
the response comes from the file. With `live` (`make conformance LIVE=1`) the original responds, and the file is rewritten, so that
`git diff` shows what changed. Invariant: a response is never taken from a recording of another version or of another request.
"""

import hashlib
import importlib.metadata
import json
import pathlib
import re

HINT = "`make conformance LIVE=1` records it anew"


class Stale(Exception):
    """A recording that is missing, or was recorded from another version or for another request."""


class Recordings:
    """The recordings in one folder, all of one original such as `helm v3.21.4`."""

    def __init__(self, folder, original, live):
        self.folder, self.original, self.live, self.used = pathlib.Path(folder), original, live, set()

    def response(self, name, request, respond):
        """The response of the original to `request` (any JSON): from the recording called `name`, or live the result of `respond()`."""
        path = self.folder / (re.sub(r"[^\w.]+", "-", name) + ".json")
        self.used.add(path)
        request = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
        if self.live:
            recording = {"original": self.original, "request": request, "response": respond()}
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(recording, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
        elif not path.exists():
            raise Stale(f"there is no recording of {name}; {HINT}")
        recording = json.loads(path.read_text("utf-8"))
        if recording["original"] != self.original:
            raise Stale(f"{name} was recorded from {recording['original']}, but {self.original} is required; {HINT}")
        if recording["request"] != request:
            raise Stale(f"the request of {name} has changed since it was recorded; {HINT}")
        return recording["response"]

    def finish(self):
        """Called after all cases: recordings without a case are deleted live, and otherwise returned as complaints."""
        unused = sorted({*self.folder.glob("*.json")} - self.used)
        if not self.live:
            return [f"the recording {path.name} belongs to no case; `make conformance LIVE=1` deletes it" for path in unused]
        for path in unused:
            path.unlink()
        return []

    def __str__(self):
        return f"{self.original}, {'live' if self.live else 'recorded'}"


def normalized(value):
    """The value as it is after a round trip through JSON, so that tuples and sorted keys compare as in a recording."""
    return json.loads(json.dumps(value, sort_keys=True))


def differences(original, slipway, path=""):
    """Yields a line for each place at which two JSON values differ. Types count: 1, 1.0 and true are different."""
    if isinstance(original, dict) and isinstance(slipway, dict):
        for key in sorted({*original, *slipway}):
            if key not in slipway:
                yield f"{path}/{key}: only from the original: {json.dumps(original[key])}"
            elif key not in original:
                yield f"{path}/{key}: only from slipway: {json.dumps(slipway[key])}"
            else:
                yield from differences(original[key], slipway[key], f"{path}/{key}")
    elif isinstance(original, list) and isinstance(slipway, list) and len(original) == len(slipway):
        for index, pair in enumerate(zip(original, slipway)):
            yield from differences(*pair, f"{path}/{index}")
    elif type(original) is not type(slipway) or original != slipway:
        yield f"{path}: the original {json.dumps(original)}, slipway {json.dumps(slipway)}"


def pinned(requirements):
    """The packages that a requirements file pins with `==`, and their versions."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", pathlib.Path(requirements).read_text(), re.M))


def require_installed(packages):
    """Exits if this Python has other versions of the packages: they would respond, or format responses, differently from what is recorded."""
    for package, version in packages.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != version:
            raise SystemExit(f"{package} {version} is pinned, but {found} is installed; install the requirements again")


def module_version(file, module):
    """The version of a Go module that a file pins, in the form `MODULE@VERSION` or as in a `go.mod`."""
    found = re.search(re.escape(module) + r"[@ ](v\S+)", pathlib.Path(file).read_text())
    if not found:
        raise SystemExit(f"{file} pins no version of {module}")
    return found.group(1)
