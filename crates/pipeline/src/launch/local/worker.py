"""A warm worker: a process that has imported kfp and forks a supervisor and a program for each step.

Started as `python -I worker.py SOCKET IDLE_SECONDS [MODULE ...]` in the folder of the socket. Its standard input is a locked file, which
shows that it is alive. It writes one line to standard output when it accepts connections; the server that started it holds the other end
of that pipe as long as it runs, and without it the worker exits soon after its last step. A client sends one request, a line of JSON, and
the connection is closed when the end of the step is recorded, or if it was not started. The files of an attempt are those of
`slipway supervise` (slipway_exec::local::supervisor): `lock` is locked while the supervisor is alive, the creation of `started` claims the
start, `process.json` and `end.json` record the processes and the end. Between its start and `process.json`, the kernel ends the program
if its supervisor ends.

The processes of the next step, its supervisor and its program, are forked while no step waits for them. They have done nothing but wait, and
serve exactly one step.

Standard library only, and Python 3.7 or later.
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import importlib.machinery
import importlib.util
import json
import logging
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import types

MAX_REQUEST_BYTES = 64 << 20
REQUEST_TIMEOUT_SECONDS = 10
LOG_CHECK_SECONDS = 0.25
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
OOM_SCORE_OF_STEPS = "500"  # the kernel ends a step rather than the server
MAX_KILL_ROUNDS = 1000
ORPHAN_SECONDS = 3  # in which the next server can take over an idle worker
# The module that executes lightweight components.
EXECUTOR = "kfp.dsl.executor_main"
# What the SDK writes in front of the code of a lightweight component, and the smallest component.
REHEARSAL = """
import kfp
from kfp import dsl
from kfp.dsl import *
from typing import *

def rehearse(number: int) -> int:
    return number
"""
# CPython adapts code to the types that it meets after a few calls. What is adapted before the fork costs no step a copy of its memory.
REHEARSALS = 8

LIBC = ctypes.CDLL(None)
# Specifications and code of modules that are executed as programs.
CODES = {}


def main():
    path, idle = sys.argv[1], float(sys.argv[2])
    os.setsid()  # it outlives the server and its terminal
    os.environ["_KFP_RUNTIME"] = "true"
    for module in sys.argv[3:]:
        try:
            importlib.import_module(module)
        except BaseException as error:  # the step reports it, if it needs the module
            print(f"cannot import {module}: {error!r}", file=sys.stderr)
    try:
        rehearse()
    except BaseException as error:  # steps are executed as well, but slower
        print(f"the rehearsal failed: {error!r}", file=sys.stderr)
    listener = socket.socket(socket.AF_UNIX)
    if os.path.exists(path):
        os.unlink(path)
    listener.bind(path)
    listener.listen(1024)
    listener.setblocking(False)
    awake, wake = os.pipe()
    os.set_blocking(awake, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)
    server = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    # Objects that exist now are never collected, so that a collection in a step does not copy their memory.
    gc.collect()
    gc.freeze()

    poll = select.poll()
    poll.register(awake, select.POLLIN)
    poll.register(server, 0)  # reports only that the other end was closed
    spare = Spare(listener, null, (awake, wake, server))
    poll.register(spare.taken, select.POLLIN)
    steps = set()  # process ids of the supervisors of steps
    while True:
        ready = {descriptor for descriptor, _ in poll.poll(1000 * idle)}
        if server in ready:
            poll.unregister(server)
            idle = min(idle, ORPHAN_SECONDS)
            ready.discard(server)
            if not ready:
                continue
        if awake in ready:
            os.read(awake, 4096)
        is_idle = not ready and not steps
        if is_idle:
            spare.dismiss()
        if is_idle or spare.taken in ready:
            poll.unregister(spare.taken)
            if spare.is_taken():
                steps.add(spare.pid)
            elif not is_idle:
                sys.exit("the processes of the next step have ended")  # the client starts another worker
            elif not select.select([listener], [], [], 0)[0]:
                os.unlink(path)
                os._exit(0)
            spare = Spare(listener, null, (awake, wake, server))
            poll.register(spare.taken, select.POLLIN)
        steps = {pid for pid in steps if os.waitpid(pid, os.WNOHANG)[0] == 0}


def rehearse():
    """Executes the smallest component in this process, and restores what that changes."""
    output, arguments, path, modules = sys.stdout, sys.argv, list(sys.path), set(sys.modules)
    main_module = sys.modules["__main__"]
    handlers, level = list(logging.root.handlers), logging.root.level
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as null:
        with open(os.path.join(folder, "rehearsal.py"), "w") as file:
            file.write(REHEARSAL)
        outputs = {"parameters": {"Output": {"outputFile": f"{folder}/Output"}}, "outputFile": f"{folder}/executor_output.json"}
        executor_input = {"inputs": {"parameterValues": {"number": 1}}, "outputs": outputs}
        sys.stdout = null
        sys.argv = ["", "--component_module_path", f"{folder}/rehearsal.py", "--executor_input", json.dumps(executor_input),
                    "--function_to_execute", "rehearse"]
        try:
            for _ in range(REHEARSALS):
                execute_module(EXECUTOR)
        finally:
            sys.modules["__main__"] = main_module
            sys.stdout, sys.argv, sys.path[:] = output, arguments, path
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            sys.modules.pop("rehearsal", None)
            for known in [known for known in sys.path_importer_cache if known.startswith(folder)]:
                del sys.path_importer_cache[known]


class Spare:
    """The supervisor and the program of the next step."""

    def __init__(self, listener, null, inherited):
        self.taken, taken = os.pipe()  # its end of the pipe is closed when it ends
        kept, self.keep = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.set_wakeup_fd(-1)
            for descriptor in (self.taken, self.keep, *inherited):
                os.close(descriptor)
            os.dup2(null, 0)  # only the worker keeps the lock
            supervise(listener, taken, kept)
        os.close(taken)
        os.close(kept)

    def dismiss(self):
        """Lets it end, unless it has a step."""
        os.close(self.keep)
        self.keep = None

    def is_taken(self):
        """Whether it has a step. Waits until it has one, or has ended; called once."""
        is_taken = os.read(self.taken, 1) != b""
        os.close(self.taken)
        if self.keep is not None:
            os.close(self.keep)
        return is_taken


def supervise(listener, taken, kept):
    """Executes one step in a child process and records how it ended. Returns only in that child, by an exception or an exit."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    process_control(PR_SET_CHILD_SUBREAPER, 1)  # else processes that leave the group of the program outlive it
    start, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        for descriptor in (listener.detach(), taken, kept, go):
            os.close(descriptor)
        execute(start)
    os.close(start)
    born = start_ticks(pid)
    touch()
    connection = accept(listener, kept)
    if connection is None:
        os._exit(0)
    os.write(taken, b"t")
    for descriptor in (listener.detach(), taken, kept):
        os.close(descriptor)
    try:
        text = receive(connection)
        request = json.loads(text)
        os.chdir(request["attempt"])
        lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(os.open("started", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    except BaseException as error:
        print(f"a request was refused: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    since = now()
    if os.path.exists("stop"):
        record("end.json", {"since": None, "at": since, "how": "Stopped"})
        os._exit(0)
    try:
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        record("end.json", {"since": None, "at": now(), "how": {"NotStarted": f"cannot start the step: {error}"}})
        os._exit(0)
    # The program ends if this process ends before the whole request has been sent, and is killed if it ends later.
    with open(go, "wb", buffering=0) as file:
        while text:
            text = text[file.write(text):]
    record("process.json", {"supervisor": os.getpid(), "program": pid, "born": born, "since": since})
    how = wait(pid, log, request)
    kill_descendants(pid)
    shorten(log, request["log_limit"])
    record("end.json", {"since": since, "at": now(), "how": how})
    connection.close()  # now, because the end of this process takes a while
    os._exit(0)


def touch():
    """Uses what a step needs: the memory that is shared with the worker is copied when it is used, and no step waits for that now."""
    with open(os.devnull, "r+") as file:
        json.dump(json.loads('{"text": ["text", 1, null]}'), file)
        file.flush()
        file.read()


def accept(listener, kept):
    """The connection of a client; None if the worker has dismissed this process, or has ended."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(kept, 0)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if kept in ready:
            return None
        try:
            return listener.accept()[0]
        except OSError:  # the client has gone
            continue


def receive(connection):
    """A request: a line of JSON."""
    connection.settimeout(REQUEST_TIMEOUT_SECONDS)
    text = bytearray()
    while not text.endswith(b"\n"):
        part = connection.recv(1 << 20)
        if not part or len(text) > MAX_REQUEST_BYTES:
            raise ValueError("the request is incomplete or too large")
        text += part
    return text


def execute(start):
    """The program of a step: what `python3 -m MODULE ARGUMENTS` does in a new interpreter."""
    process_control(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGTERM})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write(OOM_SCORE_OF_STEPS)
    if "numpy" in sys.modules:  # otherwise all steps would draw the same random numbers
        sys.modules["numpy"].random.seed()
    last = list(sys.modules.values())[-1]
    os.environ.clear()
    sys.stdout.reconfigure(line_buffering=True)
    touch()
    with open(start) as file:
        text = file.read()
    if not text.endswith("\n"):
        os._exit(0)
    request = json.loads(text)
    log = os.open(os.path.join(request["attempt"], "log"), os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, 256)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    time.tzset()
    paths = request["environment"].get("PYTHONPATH", "")
    sys.path[:0] = [request["folder"]] + [path for path in paths.split(os.pathsep) if path]
    sys.argv = [request["module"]] + request["arguments"]
    code = 0
    keep_no_bytecode(request["attempt"])
    try:
        execute_module(request["module"])
    except SystemExit as exit:
        code = exit.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        # Without the frames of this file, the traceback is that of a new interpreter.
        error.with_traceback(error.__traceback__.tb_next.tb_next)
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    finish(code or 0, request["attempt"], last)


def execute_module(name):
    """Executes a module as the program, with the arguments in `sys.argv`. Its code is found and read once, before the first step."""
    if name not in CODES:
        found = importlib.util.find_spec(name)
        CODES[name] = (found, found.loader.get_code(name))
    spec, code = CODES[name]
    module = types.ModuleType("__main__")
    module.__spec__, module.__loader__, module.__package__, module.__file__ = spec, spec.loader, spec.parent, spec.origin
    module.__cached__ = spec.cached
    sys.modules["__main__"] = module
    sys.argv[0] = spec.origin
    exec(code, vars(module))


def keep_no_bytecode(folder):
    """Writes no bytecode of modules in a folder, which are imported only once."""
    loader = importlib.machinery.SourceFileLoader
    write = loader.set_data

    def set_data(self, path, data, **options):
        if not path.startswith(folder):
            write(self, path, data, **options)

    loader.set_data = set_data


def finish(code, attempt, last):
    """Ends the program as an interpreter does, but leaves the memory that it shares with the worker alone, which would be copied. `last` is
    the last module that was imported before the step."""
    threading._shutdown()
    atexit._run_exitfuncs()
    # Files that the component left open are written when their objects are deleted.
    for module in imported_after(last):
        if str(getattr(module, "__file__", "")).startswith(attempt):
            vars(module).clear()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code & 0xFF)


def imported_after(last):
    """The modules that were imported after one. The others are not touched."""
    names = sys.modules if hasattr(sys.modules, "__reversed__") else list(sys.modules)  # Python 3.7
    modules = []
    for name in reversed(names):
        module = sys.modules[name]
        if module is last:
            break
        modules.append(module)
    return modules


def wait(pid, log, request):
    """Waits for the end of the program, and stops it on SIGTERM or at its time limit. Returns how it ended."""
    limit = request["limit"]
    deadline = None if limit is None else time.monotonic() + limit / 1000
    stopped, killed_at = None, None
    while True:
        # Also reaps processes that the program started and left, which are children of this process.
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == pid:
            break
        if ended:
            continue
        received = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, LOG_CHECK_SECONDS)
        if stopped is None:
            if received is not None and received.si_signo == signal.SIGTERM:
                stopped = "Stopped"
            elif deadline is not None and time.monotonic() >= deadline:
                stopped = "TimedOut"
            if stopped is not None:
                killed_at = time.monotonic() + request["grace"] / 1000
                kill_group(pid, signal.SIGTERM)
        elif time.monotonic() >= killed_at:
            kill_group(pid, signal.SIGKILL)
        shorten(log, request["log_limit"])
    if stopped is not None:
        return stopped
    if os.WIFSIGNALED(status):
        return {"Signalled": os.WTERMSIG(status)}
    return {"Exited": os.WEXITSTATUS(status)}


def kill_descendants(pid):
    """Kills what the program left behind, also processes that left its group: they are children of this process now."""
    kill_group(pid, signal.SIGKILL)
    for _ in range(MAX_KILL_ROUNDS):
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            pids = [int(child) for child in children.read().split()]
        if not pids:
            return
        for child in pids:
            try:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            except OSError:
                pass


def kill_group(group, number):
    try:
        os.killpg(group, number)
    except OSError:  # it has ended
        pass


def process_control(option, value):
    """`prctl(2)`; nothing where the system has none."""
    try:
        LIBC.prctl(option, value, 0, 0, 0)
    except AttributeError:
        pass


def shorten(log, limit):
    if os.fstat(log).st_size > limit:
        os.ftruncate(log, limit)


def start_ticks(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[19]


def now():
    return int(time.time() * 1000)


def record(name, value):
    """Writes a file atomically. It is not flushed to disk: after a power failure the attempt counts as lost."""
    with open(name + ".new", "w") as file:
        json.dump(value, file)
    os.replace(name + ".new", name)


main()
