"""Tests of one kind: kept by name, tried one by one."""

import time
import traceback


class Suite(dict):
    """Tests by name, in the order in which they are written."""

    def test(self, function):
        """A decorator."""
        self[function.__name__] = function
        return function

    def passes(self, name, *arguments):
        """Tries one. A line tells how it went, and what it raised comes after it."""
        began = time.monotonic()
        try:
            self[name](*arguments)
        except Exception:
            print(f"FAIL {name} ({time.monotonic() - began:.1f} s)\n{traceback.format_exc()}", flush=True)
            return False
        print(f"ok   {name} ({time.monotonic() - began:.1f} s)", flush=True)
        return True
