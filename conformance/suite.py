"""The runner of the tests that use slipway from outside, and `eventually`, with which they wait. Standard library only.

    SUITE = Suite("end to end", limit=60)

    @SUITE.test(limit=120)
    def server_starts(binary): ...

    if __name__ == "__main__":
        options = SUITE.options(__doc__, binary=True)
        sys.exit(SUITE.main(options, lambda _: contextlib.nullcontext(options.binary)))

Its one invariant: every call into test code runs in a thread of its own with a time limit, so no test can keep the runner from ending.
"""

import argparse
import collections
import contextlib
import ctypes
import dataclasses
import io
import math
import os
import pathlib
import queue
import re
import signal
import sys
import threading
import time
import traceback
import xml.etree.ElementTree

# Seconds for the fixture to be set up or torn down, and for the recovery after a failed test.
FIXTURE_LIMIT = 900
# Seconds in which a test that exceeded its limit may leave its `with` blocks. After that its thread is abandoned.
UNWIND_TIMEOUT = 60
PASSED, FAILED, SKIPPED = "ok", "FAIL", "skip"


class Skip(Exception):
    """Raised by a test that this machine cannot run, with the reason."""


class TimedOut(AssertionError):
    """A condition did not hold in time."""


class StopWaiting(AssertionError):
    """Raised by a condition that can no longer become true: `eventually` passes it on at once instead of waiting for the timeout."""


class LimitExceeded(BaseException):
    """Raised in the thread of a test that exceeds its limit or is interrupted with the runner, so that its `with` blocks clean up. Not an
    `Exception`, because tests and `eventually` catch those."""


def eventually(condition, timeout=120, interval=0.2, message=""):
    """Polls every `interval` seconds until the result of `condition` is true, and returns it. An exception counts as not yet true.

    Raises `TimedOut` after `timeout` seconds, with `message`, which names the awaited state, and the last result or exception.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            result, error = condition(), None
            if result:
                return result
            last = f"last result: {result!r}"
        except StopWaiting:
            raise
        except Exception as exception:
            error, last = exception, f"last error: {type(exception).__name__}: {exception}"
        if time.monotonic() >= deadline:
            name = message or getattr(condition, "__name__", condition)
            raise TimedOut(f"not within {timeout} s: {name}; {last}") from error
        time.sleep(interval)


@contextlib.contextmanager
def protected():
    """Protects a cleanup from an interruption: `LimitExceeded` is raised at its end instead. Without it, a test that fails shortly before its
    limit, or because its processes got the same signal as the runner, might be interrupted while it cleans up."""
    call = threading.current_thread()
    if not isinstance(call, Call) or call.protected:
        yield
        return
    try:
        with call.lock:
            call.protected = True
    except LimitExceeded:
        call.protected = call.deferred = True
    try:
        yield
    finally:
        with call.lock:
            call.protected = False
        if call.deferred:
            call.deferred = False
            raise LimitExceeded


@dataclasses.dataclass
class Test:
    name: str
    function: collections.abc.Callable
    limit: float  # seconds
    serial: bool = False  # whether no other test may run at the same time


class Suite:
    """Tests in the order of their definition. With `variants`, each test runs once with the fixture of each variant."""

    def __init__(self, name, limit=120, jobs=1, variants=(None,)):
        self.name, self.limit, self.jobs, self.variants = name, limit, jobs, variants
        self.tests, self.results = [], []

    def test(self, function=None, *, limit=None, serial=False):
        """Registers a test; for use as a decorator, with or without arguments. `limit` is in seconds, and the suite's by default."""
        def register(function):
            self.add(function.__name__, function, limit, serial)
            return function
        return register(function) if function else register

    def add(self, name, function, limit=None, serial=False):
        """Registers a test under any name, such as one of several cases of a table."""
        self.tests.append(Test(name, function, limit or self.limit, serial))

    def options(self, description, binary=False, **more):
        """Parses the command line: the options of every runner, with `binary` its path as the first argument, and `more` options by name
        with their settings for `argparse`."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        if binary:
            parser.add_argument("binary", help="path of slipway")
        for name, settings in more.items():
            parser.add_argument("--" + name.replace("_", "-"), **settings)
        parser.add_argument("names", nargs="*", metavar="SUBSTRING", help="run only the tests whose names contain one of these")
        parser.add_argument("--list", action="store_true", help="print the names of the tests, and run none")
        parser.add_argument("--junit", metavar="FILE", help="write the results as JUnit XML")
        return parser.parse_intermixed_args()

    def main(self, options, fixture, **settings):
        """Runs the selected tests as the command line says, and returns the exit status, for `sys.exit`."""
        selected = self.selected(options.names)
        if options.list:
            print("\n".join(test.name for _, tests in selected for test in tests))
            return 0
        if not selected:
            print(f"no test of {self.name} matches {' or '.join(options.names)}; --list prints the names", file=sys.stderr)
            return 2
        signal.signal(signal.SIGTERM, terminate)
        started, interrupted = time.monotonic(), None
        try:
            self.run(selected, fixture, **settings)
        except KeyboardInterrupt:
            interrupted = 130
        except SystemExit as exit:
            interrupted = exit.code
        count = collections.Counter(result.outcome for result in self.results)
        status = interrupted or (1 if count[FAILED] else 0)
        if options.junit:
            write_junit(options.junit, self.name, self.results)
        remainder = (f", {count[SKIPPED]} skipped" if count[SKIPPED] else "") + (", interrupted" if interrupted else "")
        print(f"{self.name}: {count[PASSED]} passed, {count[FAILED]} failed{remainder}, {time.monotonic() - started:.0f} s", flush=True)
        if threading.active_count() > 1:
            # Python would wait for threads that tests left behind.
            sys.stderr.flush()
            os._exit(status)
        return status

    def selected(self, names):
        """Pairs of a variant and its tests whose names contain one of `names`, or of all tests if there are none."""
        found = []
        for variant in self.variants:
            tests = [dataclasses.replace(t, name=f"{t.name} [{variant}]") if variant else t for t in self.tests]
            tests = [t for t in tests if not names or any(name in t.name for name in names)]
            found += [(variant, tests)] if tests else []
        return found

    def run(self, selected, fixture, after_failure=None, attended=False):
        """Runs tests and appends their results to `self.results`.

        `fixture(variant)` is a context manager whose value is the argument of the tests; if it raises `Skip`, they are skipped.
        `after_failure(argument)` reports and restores the fixture's state after a failed test; if it fails, the remaining tests fail without
        being run. With `attended`, tests run one by one, without limits, and their output is shown at once.
        """
        jobs = 1 if attended else self.jobs
        with contextlib.nullcontext() if attended else captured_output():
            for variant, tests in selected:
                label = f" [{variant}]" if variant else ""
                context = fixture(variant)
                setup = self.step(f"setup{label}", context.__enter__)
                if setup.outcome != PASSED:
                    self.give_up(tests, setup.outcome, "not run, because the setup failed" if setup.error else setup.summary)
                    continue
                try:
                    self.run_tests(tests, setup.value, after_failure, jobs, attended)
                finally:
                    self.step(f"teardown{label}", lambda: context.__exit__(None, None, None))

    def step(self, name, function):
        """Runs a function that is not a test. Only its failure is a result."""
        call = Call(Test(name, function, FIXTURE_LIMIT), (), queue.SimpleQueue())
        with self.interruptible(running := set()):
            call.start()
            running.add(call)
            supervise(running, call.ended)
        if call.outcome == FAILED:
            self.report(call)
        else:
            call.print_output()
        return call

    def run_tests(self, tests, argument, after_failure, jobs, attended):
        waiting, running, ended = collections.deque(tests), set(), queue.SimpleQueue()
        with self.interruptible(running):
            while waiting or running:
                while waiting and len(running) < jobs and not (running and (waiting[0].serial or any(c.test.serial for c in running))):
                    test = waiting.popleft()
                    call = Call(dataclasses.replace(test, limit=math.inf) if attended else test, (argument,), ended)
                    call.start()
                    running.add(call)
                call = supervise(running, ended)
                self.report(call)
                if call.outcome == FAILED and after_failure:
                    recovery = self.step(f"recovery after {call.test.name}", lambda: after_failure(argument))
                    if recovery.outcome == FAILED:
                        self.give_up(waiting, FAILED, "not run, because the recovery after a failed test failed")
                        waiting.clear()

    @contextlib.contextmanager
    def interruptible(self, running):
        """If the runner is interrupted, so are the running calls, which clean up and fail with their stacks."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            for call in running:
                call.interrupt("interrupted")
            for call in running:
                call.join(UNWIND_TIMEOUT)
                self.report(call)
            raise

    def give_up(self, tests, outcome, why):
        """Reports tests as failed or skipped that are not run."""
        for test in tests:
            call = Call(test, (), None)
            call.summary, call.error = why, why if outcome == FAILED else None
            self.report(call)

    def report(self, call):
        self.results.append(call)
        call.print_result()


def terminate(*_):
    # Whoever stops a process group may signal its members several times, which must not interrupt the cleanup. Not SIG_IGN, which the processes
    # that the cleanup starts would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    sys.exit(143)


def supervise(running, ended):
    """Waits until one of the running calls ends or is abandoned, and removes and returns it. Interrupts those that exceed their limits."""
    while True:
        with contextlib.suppress(queue.Empty):
            # `get` accepts no infinite timeout.
            call = ended.get(timeout=min(3600, max(0, min(c.deadline for c in running) - time.monotonic())))
            if call in running:
                running.remove(call)
                return call
            # Otherwise an abandoned call has ended after all.
        for call in [c for c in running if c.deadline <= time.monotonic()]:
            if call.interrupted:
                call.error += f"It did not end within {UNWIND_TIMEOUT} s after that, and is abandoned.\n"
                running.remove(call)
                return call
            call.interrupt(f"exceeded its limit of {call.test.limit:g} s")


class Call(threading.Thread):
    """One call into test code, in a thread that cannot keep the process alive; afterwards its result."""

    def __init__(self, test, arguments, ended):
        super().__init__(name=test.name, daemon=True)
        self.test, self.arguments, self.ended = test, arguments, ended
        # `error` is the whole error, and `summary` its first line, or the reason of a skipped test.
        self.output, self.error, self.summary, self.value = io.StringIO(), None, None, None
        self.lock, self.interruptible, self.interrupted = threading.Lock(), True, False
        # Whether the call is in `protected()`, and was interrupted there.
        self.protected, self.deferred = False, False
        self.began = self.finished = time.monotonic()
        self.deadline = self.began + test.limit

    @property
    def outcome(self):
        return FAILED if self.error else SKIPPED if self.summary else PASSED

    @property
    def seconds(self):
        return self.finished - self.began

    def run(self):
        try:
            try:
                self.value = self.test.function(*self.arguments)
            finally:
                # The exception of `interrupt` is raised before the end of this block, or not at all.
                with self.lock:
                    self.interruptible = False
        except Skip as reason:
            self.summary = self.summary or str(reason) or "skipped"
        except LimitExceeded:
            pass  # The error is the stack at the time of the interruption.
        except BaseException as error:
            if self.error:
                self.error += f"While it was cleaning up:\n{traceback.format_exc()}"
            else:
                self.error, self.summary = traceback.format_exc(), traceback.format_exception_only(error)[-1].splitlines()[0]
        finally:
            self.finished = time.monotonic()
            self.ended.put(self)

    def interrupt(self, why):
        """Records the stack as the error, raises `LimitExceeded` in the thread, and kills the processes that it started and may wait for. A call
        in `protected()` only gets `UNWIND_TIMEOUT` for the rest of its cleanup."""
        with self.lock:
            if not self.interruptible or self.interrupted:
                return
            self.interrupted = True
            stack = "".join(traceback.format_stack(sys._current_frames()[self.ident]))
            self.error, self.summary = f"{why}; its stack:\n{stack}", why
            self.finished = time.monotonic()
            self.deadline = self.finished + UNWIND_TIMEOUT
            if self.protected:
                self.deferred = True
                return
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(LimitExceeded))
        for pid in descendants(os.getpid(), self.native_id):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def print_result(self):
        """Prints the line of the result, then the output of the test, then the error."""
        note = f": {self.summary[:300]}" if self.summary else ""
        print(f"{self.outcome:4} {self.test.name} ({self.seconds:.1f} s){note}")
        self.print_output()
        if self.error and self.error != self.summary:
            print(self.error.rstrip())
        sys.stdout.flush()

    def print_output(self):
        if text := self.output.getvalue().rstrip():
            print(text, flush=True)


def descendants(pid, thread="*"):
    """The ids of all processes below a process, or below one thread of it (proc(5), /proc/pid/task/tid/children), the lowest first."""
    found = []
    for file in pathlib.Path(f"/proc/{pid}/task").glob(f"{thread}/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text().split()):
                found += [*descendants(child), child]
    return found


class Captured:
    """Replaces a standard stream: what a call's thread prints goes into its output, everything else to the stream."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        thread = threading.current_thread()
        return (thread.output if isinstance(thread, Call) else self.stream).write(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextlib.contextmanager
def captured_output():
    with contextlib.redirect_stdout(Captured(sys.stdout)), contextlib.redirect_stderr(Captured(sys.stderr)):
        yield


# Characters that XML 1.0 does not permit (section 2.2), and the carriage return, which parsers replace.
NOT_XML = re.compile("[^\t\n\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def write_junit(file, name, results):
    """Writes results as JUnit XML, with times in seconds. Characters that XML does not permit are written as Python escapes."""
    text = lambda value: NOT_XML.sub(lambda match: match[0].encode("unicode_escape").decode(), value)
    count = collections.Counter(result.outcome for result in results)
    suite = xml.etree.ElementTree.Element("testsuite", {
        "name": text(name), "tests": str(len(results)), "failures": str(count[FAILED]), "errors": "0", "skipped": str(count[SKIPPED]),
        "time": f"{sum(result.seconds for result in results):.3f}"})
    for result in results:
        case = xml.etree.ElementTree.SubElement(suite, "testcase", {
            "classname": text(name), "name": text(result.test.name), "time": f"{result.seconds:.3f}"})
        if result.outcome == FAILED:
            failure = xml.etree.ElementTree.SubElement(case, "failure", {"message": text(result.summary)})
            failure.text = text(result.error)
        elif result.outcome == SKIPPED:
            xml.etree.ElementTree.SubElement(case, "skipped", {"message": text(result.summary)})
        if output := result.output.getvalue():
            xml.etree.ElementTree.SubElement(case, "system-out").text = text(output)
    file = pathlib.Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    xml.etree.ElementTree.ElementTree(suite).write(file, encoding="utf-8", xml_declaration=True)
