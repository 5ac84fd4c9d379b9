"""Signals end a command wherever it is, with a verdict, its children and a limit of time."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from forked import Ranks
from small_runs import DEBUG, shapes

from vision_tutorial import build, checks, train
from vision_tutorial.benchmarking.child import in_child
from vision_tutorial.core import stopping
from vision_tutorial.core.atomic import read_json
from vision_tutorial.core.errors import ExitCode, run_main
from vision_tutorial.runs import loggers

FAST = [*DEBUG, shapes(), "epochs=2"]


def me(*numbers, apart=0.0):
    """Send signals to this process."""
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(apart)


def deaf():
    """Stay outside of Python for many seconds."""
    me(signal.SIGTERM)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 400_000_000)


def stopped_at(tmp_path, owner, name, *numbers, patch=None):
    """Exit code and status of a training that gets these signals where `owner.name` is called."""

    def trained(rank):
        real = getattr(owner, name)

        def with_signals(*args, **options):
            (patch or (lambda: me(*numbers)))()
            return real(*args, **options)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(owner, name, with_signals)
            return train.main([*FAST, "--runs", str(tmp_path), "--id", "run", "--quiet"])

    (code,) = Ranks(1, trained).join(60)
    file = tmp_path / "debug" / "run" / "status.json"
    return code, json.loads(file.read_text()) if file.exists() else None


@pytest.mark.parametrize(
    "owner, name, number, verdict",
    [
        (build, "data", signal.SIGTERM, "preempted"),
        (loggers, "make", signal.SIGINT, "preempted"),
        (checks, "try_out", signal.SIGHUP, "preempted"),
        (train, "_finish_records", signal.SIGTERM, "done"),
    ],
)
def test_a_signal_before_or_after_the_loop(tmp_path, owner, name, number, verdict, capfd):
    code, status = stopped_at(tmp_path, owner, name, number)
    assert "Traceback" not in capfd.readouterr().err
    run = tmp_path / "debug" / "run"
    if not run.exists():  # there was nothing to continue yet
        assert code == (130 if number == signal.SIGINT else 143)
        return
    assert (status["status"], code) == (verdict, 0 if verdict == "done" else 143)
    assert status["exit_code"] == code
    assert Ranks(1, lambda rank: train.main([str(run), "--quiet"])).join() == [0]
    assert read_json(run / "status.json")["status"] == "done"


@pytest.mark.parametrize("how", ["twice", "deaf"])
def test_a_second_signal_and_a_deaf_process_end_with_a_verdict_too(tmp_path, how, monkeypatch):
    """In the loop a second one does not wait for the step; before it, five seconds are the most."""
    if how == "twice":
        from vision_tutorial.engine import loop

        def slow():
            me(signal.SIGTERM, signal.SIGTERM, apart=1.2)
            time.sleep(60)

        code, status = stopped_at(tmp_path, loop, "take_step", patch=slow)
    else:
        monkeypatch.setattr(stopping, "DEAF", 1.0)
        code, status = stopped_at(tmp_path, loggers, "make", patch=deaf)
    assert code == 143 and status["status"] == "preempted" and status["exit_code"] == 143


def test_a_stopped_command_tidies_up_and_a_second_one_is_none_the_wiser(capfd):
    tidied = []

    def work():
        try:
            me(signal.SIGTERM)
            time.sleep(30)
        finally:
            me(signal.SIGTERM)  # at once again: this does not interrupt it
            tidied.append(True)

    assert run_main(work) == ExitCode.PREEMPTED and tidied == [True]
    assert run_main(lambda: 0) == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and signal.set_wakeup_fd(-1) == -1


IMPORTED = """
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)
except BaseException:  # as torch and numpy do around what may be missing
    pass
"""
DELETED = """
class Deleted:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
made = Deleted()
del made
"""


@pytest.mark.parametrize("text", [IMPORTED, DELETED])
def test_a_signal_where_nothing_can_be_raised_is_raised_after_it(tmp_path, monkeypatch, text):
    (tmp_path / "slow_module.py").write_text(f"import os, signal, time\n{text}\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    whole = []

    def work():
        import slow_module

        whole.append(slow_module.whole)
        time.sleep(20)

    began = time.monotonic()
    assert run_main(work) == ExitCode.PREEMPTED and whole == [True]
    assert time.monotonic() - began < 5
    sys.modules.pop("slow_module")


def test_a_forked_process_ends_at_a_signal_as_any_other():
    """In its parent's hands it would raise what its parent raises, wherever it is."""

    def state():
        handlers = [signal.getsignal(number) for number in stopping.SIGNALS]
        return handlers, signal.pthread_sigmask(signal.SIG_BLOCK, [])

    found = []
    assert run_main(lambda: found.append(in_child(state)) or found.append(state())) == 0
    (handlers, blocked), (_, ours) = found
    assert set(handlers) == {signal.SIG_DFL} and blocked == ours == set()


def test_a_process_ends_with_its_threads_and_exit_functions_and_no_more():
    program = (
        "import atexit, threading, time\n"
        "from vision_tutorial.core.errors import run_process\n"
        "class Module:\n    def __del__(self): print('taken apart')\n"
        "module = Module()\n"
        "atexit.register(print, 'exit function')\n"
        "threading.Timer(0.2, print, ['thread']).start()\n"
        "run_process(lambda: print('work') or 3)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split("\n")[:-1]) == (
        3,
        ["work", "thread", "exit function"],
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_benchs_children_end_with_it(tmp_path, number):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from vision_tutorial.core.errors import run_main\n"
        "from vision_tutorial.core.processes import run_command\n"
        "from vision_tutorial.benchmarking.child import in_child\n"
        "def busy():\n"
        "    code = 'import time; print(1, flush=True); time.sleep(60)'\n"
        f"    run_command([sys.executable, '-S', '-c', code], Path({str(tmp_path / 'log')!r}))\n"
        "sys.exit(run_main(lambda: in_child(busy)))"
    )
    bench = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not ((tmp_path / "log").exists() and (tmp_path / "log").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(bench.pid).children(recursive=True)
    assert len(family) == 2
    bench.send_signal(number)
    codes = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 143}
    assert bench.wait(20) == codes.get(number, -number)
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_who_was_started_by_torchrun_ends_when_it_is_gone(tmp_path, monkeypatch):
    """A process in between is killed, as a torchrun may be."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")

    def trained(rank):
        child = os.fork()
        if child == 0:
            run_main(lambda: time.sleep(60))
            (tmp_path / "ended").touch()
            os._exit(0)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    assert Ranks(1, trained).join(20) == [-signal.SIGKILL]
    deadline = time.monotonic() + 10
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
