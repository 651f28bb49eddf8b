"""A minimal test runner: tests are registered by a decorator and run one by one."""

import time
import traceback


class Suite(dict):
    """Tests by name, in the order of their definition."""

    def test(self, function):
        """Registers a test; for use as a decorator."""
        self[function.__name__] = function
        return function

    def passes(self, name, *arguments):
        """Runs one test, prints its result and any exception, and returns whether it passed."""
        started = time.monotonic()
        try:
            self[name](*arguments)
        except Exception:
            print(f"FAIL {name} ({time.monotonic() - started:.1f} s)\n{traceback.format_exc()}", flush=True)
            return False
        print(f"ok   {name} ({time.monotonic() - started:.1f} s)", flush=True)
        return True
