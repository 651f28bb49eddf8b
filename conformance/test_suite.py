#!/usr/bin/env python3
"""Tests of the test runner: a sample suite is run as a process, like every runner.

    python3 -m unittest discover conformance
"""

import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from suite import StopWaiting, TimedOut, eventually

SAMPLE = r'''
import concurrent.futures, contextlib, pathlib, subprocess, sys, threading, time
sys.path.insert(0, %(conformance)r)
import suite
from suite import Skip, Suite

suite.UNWIND_TIMEOUT = 1
FOLDER = pathlib.Path(__file__).parent
SUITE = Suite("sample", limit=30, jobs=2)

@SUITE.test
def passes(folder):
    print("a note with \x1b[1m, \x00 and <&>")

@SUITE.test
def fails(folder):
    assert 1 == 2, "one is <not> two\x07"

@SUITE.test
def is_skipped(folder):
    raise Skip("this machine has no GPU")

@SUITE.test(limit=1)
def hangs_in_python(folder):
    try:
        while True:
            time.sleep(0.01)
    finally:
        (folder / "cleaned").touch()

@SUITE.test(limit=1)
def hangs_in_its_cleanup(folder):
    with suite.protected():
        time.sleep(1.5)
        (folder / "completed").touch()
    (folder / "went-on").touch()

@SUITE.test(limit=1)
def hangs_in_a_process(folder):
    subprocess.run(["sh", "-c", "echo $$ >" + str(folder / "pid") + "; sleep 1000; true"], capture_output=True)

@SUITE.test(limit=1)
def hangs_in_a_call(folder):
    time.sleep(1000)

@SUITE.test
def waits_for_a_process(folder):
    try:
        subprocess.run(["sh", "-c", "echo $$ >" + str(folder / "pid") + "; sleep 1000; true"], capture_output=True)
    finally:
        (folder / "cleaned").touch()

@SUITE.test
def leaves_threads(folder):
    threading.Thread(target=time.sleep, args=(1000,), daemon=False).start()
    concurrent.futures.ThreadPoolExecutor().submit(time.sleep, 1000)

def overlaps(name):
    def test(folder):
        mark = folder / "serial"
        if name == "alone":
            mark.touch()
            time.sleep(0.6)
            mark.unlink()
        else:
            assert not mark.exists(), "a serial test is running"
            time.sleep(0.3)
            assert not mark.exists(), "a serial test was started"
    SUITE.add("overlap_" + name, test, serial=name == "alone")

for name in ("one", "alone", "two", "three"):
    overlaps(name)

@contextlib.contextmanager
def fixture(_):
    match (FOLDER / "setup").read_text():
        case "skips": raise Skip("this needs root")
        case "fails": raise RuntimeError("no lab")
    yield FOLDER
    (FOLDER / "torn-down").touch()

def recover(folder):
    with (folder / "recovered").open("a") as file:
        file.write("x")
    assert (folder / "setup").read_text() != "recovery fails"

options = SUITE.options(__doc__, binary=True)
sys.exit(SUITE.main(options, fixture, after_failure=recover))
'''


class Runner(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="slipway-suite-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.program = self.folder / "run.py"
        (self.folder / "setup").write_text("succeeds")
        self.program.write_text(SAMPLE % {"conformance": str(pathlib.Path(__file__).resolve().parent)})

    def run_sample(self, *words, status):
        done = subprocess.run([sys.executable, self.program, "slipway", *words], capture_output=True, text=True, timeout=60, cwd="/")
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done.stdout

    def test_passing_suite_ends_with_status_0(self):
        lines = self.run_sample("passes", status=0).splitlines()
        self.assertRegex(lines[0], r"^ok   passes \(\d\.\d s\)$")
        self.assertIn("a note with", lines[1])
        self.assertRegex(lines[-1], r"^sample: 1 passed, 0 failed, \d s$")
        self.assertTrue((self.folder / "torn-down").exists())
        self.assertFalse((self.folder / "recovered").exists())

    def test_failure_has_its_error_in_its_line_and_its_traceback_below(self):
        output = self.run_sample("fails", "is_skipped", status=1)
        self.assertRegex(output, r"(?m)^FAIL fails \(\d\.\d s\): AssertionError: one is <not> two")
        self.assertIn("Traceback", output)
        self.assertRegex(output, r"(?m)^skip is_skipped \(\d\.\d s\): this machine has no GPU$")
        self.assertRegex(output, r"sample: 0 passed, 1 failed, 1 skipped, \d s\n$")
        self.assertEqual((self.folder / "recovered").read_text(), "x")

    def test_hanging_tests_fail_with_their_stack_and_the_others_go_on(self):
        began = time.monotonic()
        output = self.run_sample("hangs", "passes", status=1)
        self.assertLess(time.monotonic() - began, 20)
        for name in ("hangs_in_python", "hangs_in_its_cleanup", "hangs_in_a_process", "hangs_in_a_call"):
            self.assertRegex(output, rf"(?m)^FAIL {name} \([12]\.\d s\): exceeded its limit of 1 s$")
            self.assertRegex(output, rf"line \d+, in {name}\n")
        self.assertRegex(output, r"(?m)^ok   passes ")
        self.assertEqual(output.count("is abandoned"), 1, "only a sleep cannot be interrupted")
        self.assertRegex(output, r"sample: 1 passed, 4 failed, \d s\n$")
        self.assertTrue((self.folder / "completed").exists() and not (self.folder / "went-on").exists(), "the cleanup was protected")
        self.assertTrue((self.folder / "cleaned").exists(), "the test's own cleanup ran")
        self.assertTrue((self.folder / "torn-down").exists())
        pid = (self.folder / "pid").read_text().strip()
        self.assertFalse(pathlib.Path("/proc", pid).exists(), "the test's process was killed")

    def test_fixture_decides_whether_tests_run(self):
        (self.folder / "setup").write_text("skips")
        output = self.run_sample("passes", "fails", status=0)
        self.assertRegex(output, r"^skip passes \(0.0 s\): this needs root\nskip fails .*\nsample: 0 passed, 0 failed, 2 skipped, \d s\n$")
        (self.folder / "setup").write_text("fails")
        output = self.run_sample("passes", "is_skipped", status=1)
        self.assertRegex(output, r"(?m)^FAIL setup \(\d\.\d s\): RuntimeError: no lab$")
        self.assertRegex(output, r"FAIL passes .*: not run, because the setup failed\nFAIL is_skipped .*\nsample: 0 passed, 3 failed, \d s\n$")
        (self.folder / "setup").write_text("recovery fails")
        output = self.run_sample("fails", "overlap", status=1)
        self.assertRegex(output, r"(?m)^FAIL recovery after fails ")
        self.assertRegex(output, r"(?m)^FAIL overlap_three .*: not run, because the recovery after a failed test failed$")

    def test_threads_of_tests_do_not_keep_the_runner_alive(self):
        self.run_sample("leaves_threads", status=0)

    def test_serial_tests_run_alone(self):
        self.assertIn("4 passed, 0 failed", self.run_sample("overlap", status=0))

    def test_filter_and_list(self):
        self.assertEqual(self.run_sample("fail", "pass", "--list", status=0).split(), ["passes", "fails"])
        self.assertIn("hangs_in_a_call", self.run_sample("--list", status=0))
        self.assertEqual(self.run_sample("no such test", status=2), "")

    def test_junit_output_can_be_parsed(self):
        file = self.folder / "reports/sample.xml"
        self.run_sample("passes", "--junit", str(file), "fails", "is_skipped", "hangs_in_a_process", status=1)
        suite = xml.etree.ElementTree.parse(file).getroot()
        self.assertEqual({k: suite.get(k) for k in ("name", "tests", "failures", "skipped")},
                         {"name": "sample", "tests": "4", "failures": "2", "skipped": "1"})
        cases = {case.get("name"): case for case in suite.iter("testcase")}
        self.assertEqual(cases["passes"].find("system-out").text, "a note with \\x1b[1m, \\x00 and <&>\n")
        self.assertIsNone(cases["passes"].find("failure"))
        self.assertEqual(cases["fails"].find("failure").get("message"), "AssertionError: one is <not> two\\x07")
        self.assertIn("Traceback", cases["fails"].find("failure").text)
        self.assertEqual(cases["is_skipped"].find("skipped").get("message"), "this machine has no GPU")
        self.assertEqual(cases["hangs_in_a_process"].find("failure").get("message"), "exceeded its limit of 1 s")
        self.assertGreaterEqual(float(cases["hangs_in_a_process"].get("time")), 1)
        self.assertGreaterEqual(float(suite.get("time")), 1)

    def test_terminated_runner_cleans_up(self):
        with subprocess.Popen([sys.executable, self.program, "slipway", "waits"], stdout=subprocess.PIPE, text=True) as process:
            eventually((self.folder / "pid").exists, timeout=20, message="the test runs")
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=20)
        self.assertEqual(process.returncode, 143, output)
        self.assertTrue((self.folder / "cleaned").exists())
        self.assertTrue((self.folder / "torn-down").exists())
        self.assertRegex(output, r"(?m)^FAIL waits_for_a_process \(\d+\.\d s\): interrupted$")
        self.assertRegex(output, r"line \d+, in waits_for_a_process\n")
        self.assertRegex(output, r"sample: 0 passed, 1 failed, interrupted, \d s\n$")


class Eventually(unittest.TestCase):
    def test_returns_the_first_true_value(self):
        values = iter([None, 0, "", "value"])
        self.assertEqual(eventually(lambda: next(values), timeout=5, interval=0.001), "value")

    def test_failure_has_the_message_and_the_last_result(self):
        with self.assertRaisesRegex(TimedOut, r"^not within 0.05 s: the pod runs; last result: \[\]$"):
            eventually(lambda: [], timeout=0.05, interval=0.01, message="the pod runs")

    def test_failure_has_the_message_and_the_last_error(self):
        with self.assertRaisesRegex(TimedOut, "the lease exists; last error: KeyError: 'lease'") as caught:
            eventually(lambda: {}["lease"], timeout=0.05, interval=0.01, message="the lease exists")
        self.assertIsInstance(caught.exception.__cause__, KeyError)

    def test_condition_can_give_up(self):
        def condition():
            raise StopWaiting("the server exited with 1")

        began = time.monotonic()
        with self.assertRaisesRegex(StopWaiting, "exited with 1"):
            eventually(condition, timeout=60)
        self.assertLess(time.monotonic() - began, 5)


if __name__ == "__main__":
    unittest.main()
