"""Commands that are watched and ended."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from vision_tutorial.core import processes
from vision_tutorial.core.processes import kill_family, run_command


def test_a_command_is_watched(tmp_path):
    log = tmp_path / "log"
    program = "import time; print('go', flush=True); time.sleep(0.2); raise SystemExit(3)"
    words = [sys.executable, "-S", "-c", program]
    ended = run_command(words, log, lambda: "go" in log.read_text())
    assert ended.code == 3 and log.read_text() == "go\n"
    assert ended.seconds - ended.seen > 0.1
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
    root = subprocess.Popen(
        [sys.executable, "-S", "-c", SLEEPER], stdout=subprocess.PIPE, text=True
    )
    child = int(root.stdout.readline().split()[0])
    kill_family(root.pid)
    assert root.wait(10) == -signal.SIGKILL
    psutil.wait_procs([psutil.Process(child)] if not is_over(child) else [], timeout=10)
    assert is_over(child)
    kill_family(root.pid)  # there is nobody


@pytest.mark.parametrize(
    ("own", "files", "allowed"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),  # a container with cgroup 2
        ("0::/\n", {"cpu.max": "max 100000"}, 0),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/gone\n", {"cpu.max": "50000 100000"}, 0.5),
        (
            "4:memory:/x\n3:cpu,cpuacct:/docker/x\n",
            {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0),
        ("", {}, 0),
    ],
)
def test_the_cpu_quota_of_a_container(tmp_path, own, files, allowed, monkeypatch):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert processes.cpu_quota(tmp_path / "cgroup", tmp_path / "own") == allowed
    monkeypatch.setattr(processes, "cpu_quota", lambda: allowed)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: set(range(9)), raising=False)
    assert len(processes.usable_cores()) == (9 if not allowed else -int(-allowed // 1))
