#!/usr/bin/env python3
"""Checks the book: every chapter in the table of contents exists, and every `bash` block runs without error.

    scripts/book.py target/release/slipway [SUBSTRING ...] [--list] [--junit FILE]

All blocks of a chapter run in order in one shell, against a server that is started for that chapter. Where `mdbook` is installed, the pages
are built too.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "conformance"))
from lib import Slipway
from suite import Skip, Suite

SUITE = Suite("book", limit=900)
PIPELINES = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "slipway/peers/kfp")
# The model y = a + b on two numbers, encoded as ONNX with the field numbers of onnx.proto, so that no package is needed.


def field(number, payload):
    if isinstance(payload, int):
        return bytes([number << 3]) + varint(payload)
    payload = payload.encode() if isinstance(payload, str) else payload
    return bytes([number << 3 | 2]) + varint(len(payload)) + payload


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def addition():
    def value(name):
        shape = field(1, field(1, 1)) + field(1, field(1, 2))
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))

    node = field(1, "a") + field(1, "b") + field(2, "y") + field(4, "Add")
    graph = field(1, node) + field(2, "addition") + field(11, value("a")) + field(11, value("b")) + field(12, value("y"))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))


def run_blocks(chapter, binary):
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "book/src" / chapter).read_text(), re.S)
    path = f"{binary.parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder, Slipway(binary, environment={"PATH": path}) as server:
        model = pathlib.Path(folder, "addition.onnx")
        model.write_bytes(addition())
        script = "set -euo pipefail\nset -x\n" + "\n".join(blocks)
        data = pathlib.Path(folder, ".data")
        # The demo in chapter 2 uses the Python environment of an earlier `make demo`, to save its installation. It has a folder of its own,
        # because the tests of the UI may have a demo running at the same time.
        venv = ROOT / ".slipway-demo/venv"
        if (venv / "slipway-requirements.txt").exists():
            demo = pathlib.Path(folder, "demo").resolve()
            demo.mkdir(mode=0o700)
            os.symlink(venv, demo / "venv")
            # A demo uses only a folder that a demo of the same user has made, which both of these files say.
            identifier = uuid.uuid4().hex
            (demo / ".slipway-demo").write_text(identifier)
            records = data / "slipway/demos"
            records.mkdir(mode=0o700, parents=True)
            (records / identifier).write_text(str(demo))
        # Chapter 9 needs kfp, which the conformance tests may have installed already.
        if PIPELINES.exists():
            os.symlink(PIPELINES, pathlib.Path(folder, "kfp"))
        environment = {**os.environ, "PATH": path, "SLIPWAY": server.url, "SOURCE": str(ROOT), "MODEL": str(model),
                       "SLIPWAY_HOME": str(server.home), "XDG_DATA_HOME": str(data)}
        done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"a command failed\n{done.stdout}\n{done.stderr}"
    print(f"     {len(blocks)} blocks of commands")


for chapter in filter(None, re.findall(r"\]\((.*?)\)", (ROOT / "book/src/SUMMARY.md").read_text())):
    SUITE.add(chapter, lambda binary, chapter=chapter: run_blocks(chapter, binary))


@SUITE.test
def pages_are_built(_):
    if not shutil.which("mdbook"):
        raise Skip("mdbook is not installed")
    subprocess.run(["mdbook", "build", ROOT / "book", "-d", ROOT / "target/book"], check=True)


if __name__ == "__main__":
    options = SUITE.options(__doc__, binary=True)
    sys.exit(SUITE.main(options, lambda _: contextlib.nullcontext(pathlib.Path(options.binary).absolute())))
