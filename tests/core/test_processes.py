"""Children that answer, fail and die; commands that are watched and ended."""

import mmap
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.processes import (
    in_child,
    kill_family,
    peak_memory,
    run_command,
    usable_cores,
)


def add(a, b):
    print("not on stdout")
    return a + b, os.getpid()


def refuse():
    raise UserError("no such thing")


def fail():
    raise KeyError("missing")


def die():
    os._exit(7)


def grow():
    before = peak_memory()
    # straight from the system: what other tests gave back, malloc would hand out again
    with mmap.mmap(-1, 64 * 1024 * 1024) as block:
        for _ in range(64 * 1024):
            block.write(bytes(1024))
        return before, peak_memory(), len(block)


def test_a_child_answers_from_a_process_of_its_own(capfd):
    answer, process = in_child(add, 2, 3)
    assert answer == 5 and process != os.getpid()
    out, err = capfd.readouterr()
    assert out == "" and err == "not on stdout\n"


def test_errors_come_through():
    with pytest.raises(UserError, match="no such thing"):
        in_child(refuse)
    with pytest.raises(RuntimeError, match=r"KeyError: 'missing'"):
        in_child(fail)
    with pytest.raises(RuntimeError, match="ended with 7"):
        in_child(die)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_child_keeps_to_its_cores_and_the_parent_to_its_own():
    ours = usable_cores()
    assert in_child(usable_cores, cores=ours[-1:]) == ours[-1:]
    assert in_child(usable_cores) == usable_cores() == ours


def test_the_peak_is_the_childs_own():
    before, peak, size = in_child(grow)  # both from one child: the parent's own size may change
    assert 0.9 * size < peak - before < 1.5 * size


def test_a_command_is_watched(tmp_path):
    log = tmp_path / "log"
    program = "import time; print('go', flush=True); time.sleep(0.3); raise SystemExit(3)"
    words = [sys.executable, "-S", "-c", program]
    ended = run_command(words, log, lambda: "go" in log.read_text())
    assert ended.code == 3 and log.read_text() == "go\n"
    assert ended.seconds - ended.seen > 0.2
    assert run_command([sys.executable, "-S", "-c", "pass"], log).seen is None


def test_commands_keep_bytecode_where_the_environment_forbids_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "kept.py").write_text("print('kept')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = run_command([sys.executable, "-c", "import kept"], tmp_path / "log")
    assert ended.code == 0 and (tmp_path / "log").read_text() == "kept\n"
    assert list((tmp_path / "bytecode").rglob("kept*.pyc"))
    assert not list(tmp_path.glob("__pycache__"))


SLEEPER = """
import subprocess, sys, time
words = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
print(subprocess.Popen(words, start_new_session=True).pid, "there", flush=True)
time.sleep(60)
"""


def is_over(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_command_is_ended_with_all_that_it_started(tmp_path):
    log = tmp_path / "log"
    began = time.perf_counter()
    words = [sys.executable, "-S", "-c", SLEEPER]
    ended = run_command(words, log, lambda: "there" in log.read_text(), then_stop=True)
    assert ended.seen and time.perf_counter() - began < 30
    assert is_over(int(log.read_text().split()[0]))


def test_a_family_is_killed_whole():
    """Also who sits in a session of its own, as torchrun's workers do."""
    root = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, text=True)
    child = int(root.stdout.readline().split()[0])
    kill_family(root.pid)
    assert root.wait(10) == -signal.SIGKILL
    psutil.wait_procs([psutil.Process(child)] if not is_over(child) else [], timeout=10)
    assert is_over(child)
    kill_family(root.pid)  # there is nobody
