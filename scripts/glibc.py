#!/usr/bin/env python3
"""Fails when a program needs a newer glibc than the given version.

    scripts/glibc.py PROGRAM 2.28
"""

import re
import subprocess
import sys

program, max_version = sys.argv[1:]
parse = lambda version: tuple(map(int, version.split(".")))
symbols = subprocess.run(["objdump", "-T", program], check=True, capture_output=True, text=True).stdout
newer = sorted({m[0] for m in re.finditer(r"GLIBC_([0-9.]+)\)?\s+\S+", symbols) if parse(m[1]) > parse(max_version)})
needed = max((parse(v) for v in re.findall(r"GLIBC_([0-9.]+)", symbols)), default=(0,))
print("\n".join(newer) or f"{program} runs with glibc {'.'.join(map(str, needed))} and newer")
sys.exit(1 if newer else 0)
