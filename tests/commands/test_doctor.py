"""Every line of the doctor in the states that it tells apart; that it is quick and shows no key."""

import importlib.metadata
import json
import shutil
import socket
import sys
import threading
from collections import namedtuple

import psutil
import pytest
import torch
import torchvision

from vision_tutorial.commands import doctor
from vision_tutorial.commands.doctor import Check

Usage = namedtuple("Usage", "total used free")
SECRET = "0123456789abcdef" * 2


def only(checks) -> Check:
    (check,) = checks
    return check


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # discard: refuses at once
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.delenv("WANDB_MODE", raising=False)


# -- the command -----------------------------------------------------------------------------------


def test_json_and_table_tell_the_same_and_no_secret(capsys):
    code = doctor.main(["--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == (0 if told["ready"] else 1)
    names = [check["name"] for check in told["checks"]]
    for name in "python|cpu cores|memory|disk|cifar100|torchrun|operators|wandb".split("|"):
        assert names.count(name) == 1
    for check in told["checks"]:
        assert (check["remedy"] == "") == (check["state"] == "ok")
    assert doctor.main([]) == code
    table = capsys.readouterr().out
    assert all(name in table for name in names)
    assert "\nready" in table if code == 0 else "not ready: see the lines" in table
    assert SECRET not in json.dumps(told) and SECRET not in table


def test_a_failure_makes_the_exit_code_1(capsys, monkeypatch):
    checks = [Check("a", "ok", "fine"), Check("b", "warn", "slow", "mend b")]
    monkeypatch.setattr(doctor, "examine", lambda nproc: checks)
    assert doctor.main([]) == 0
    assert "-> mend b" in capsys.readouterr().out
    checks.append(Check("c", "fail", "broken", "mend c"))
    assert doctor.main([]) == 1
    assert doctor.main(["--json"]) == 1


def test_a_check_that_breaks_is_a_line(monkeypatch):
    def broken(*_):
        raise ImportError("no psutil")

    monkeypatch.setattr(psutil, "virtual_memory", broken)
    check = {c.name: c for c in doctor.examine(1)}["memory"]
    assert check.state == "fail" and "no psutil" in check.found


def test_nproc_must_count(capsys):
    assert doctor.main(["--nproc", "0"]) == 2
    assert capsys.readouterr().err == "error: --nproc 0: give 1 or more.\n"


# -- software --------------------------------------------------------------------------------------


def test_packages_missing_and_too_old(monkeypatch):
    lines = ["torch>=2.11", "rich>=999", "absent-package", 'ruff>=999; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    checks = {c.name: c for c in doctor._packages()}
    assert checks.keys() == {"rich", "absent-package", "packages"}
    assert checks["rich"].state == "fail" and checks["rich"].remedy == 'pip install "rich>=999"'
    assert checks["absent-package"].found == "missing"
    assert checks["packages"].found == f"torch {importlib.metadata.version('torch')}"


def test_not_installed(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    first, last = doctor._packages()
    assert first.state == "warn" and first.found == "the package is not installed"
    assert last.state == "ok" and "pydantic " in last.found, "what its pyproject.toml asks for"
    monkeypatch.setattr(doctor.Path, "is_file", lambda path: False)
    assert [check.state for check in doctor._packages()] == ["warn"]


def test_torchvision_of_another_torch(monkeypatch):
    assert only(doctor._torch_and_torchvision()).state == "ok"

    def mismatched(*_):
        raise RuntimeError("Couldn't load custom C++ ops.\nThis can happen")

    monkeypatch.setattr(torchvision.ops, "nms", mismatched)
    check = only(doctor._torch_and_torchvision())
    assert check.state == "fail" and "\n" not in check.found


def test_torchrun_hook(monkeypatch):
    monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD", raising=False)
    hook = importlib.metadata.EntryPoint("vision_tutorial", "x:y", "torch.backends")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [hook])
    assert only(doctor._launcher()).state == "ok"
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    assert "switched off" in only(doctor._launcher()).found
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    check = only(doctor._launcher())
    assert check.state == "warn" and "./torchrun.sh" in check.remedy


# -- the machine -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "nproc", "threads", "state"),
    [(8, 2, "4", "ok"), (8, 2, "8", "warn"), (2, 4, "", "warn"), (8, 1, "4,2", "ok")],
)
def test_cores_and_threads(monkeypatch, cores, nproc, threads, state):
    monkeypatch.setattr(
        doctor.os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False
    )
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert only(doctor._cores(nproc)).state == state


@pytest.mark.parametrize(("gigabytes", "state"), [(0.1, "fail"), (2, "warn"), (50, "ok")])
def test_disk(monkeypatch, gigabytes, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, gigabytes * 2**30))
    assert only(doctor._disk()).state == state
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    check = only(doctor._disk())
    assert check.state == "fail" and "read-only" in check.found


@pytest.mark.parametrize(("gigabytes", "state"), [(0.0625, "warn"), (8, "ok")])
def test_shared_memory(monkeypatch, gigabytes, state):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(doctor.Path, "is_dir", lambda path: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, gigabytes * 2**30))
    check = only(doctor._shared_memory())
    assert check.state == state and "--shm-size" in check.remedy
    monkeypatch.setattr(sys, "platform", "darwin")
    assert list(doctor._shared_memory()) == []


def test_data(monkeypatch, tmp_path):
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(tmp_path))
    (tmp_path / "cifar-100-python").mkdir()
    checks = {c.name: c for c in doctor._data()}
    assert (checks["cifar10"].state, checks["cifar100"].state) == ("warn", "ok")
    assert "dataset.cifar10.download=true" in checks["cifar10"].remedy
    assert checks["camvid"].remedy.endswith("to the folder of camvid; it is not downloaded")


# -- GPUs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("built", "driven", "works", "state", "said"),
    [
        ("13.2", 13020, True, "ok", "driver for CUDA 13.2, torch for CUDA 13.2"),
        (None, None, False, "ok", "no NVIDIA driver, torch without CUDA"),
        ("13.2", None, False, "warn", "trains on the CPU"),
        (None, 12040, False, "warn", "a torch with CUDA"),
        ("13.2", 12040, False, "fail", "install a torch for CUDA 12"),
        ("12.6", 13000, False, "fail", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_driver(built, driven, works, state, said):
    check = doctor._driver(built, driven, works)
    assert check.state == state and said in check.found + check.remedy


def pretend(monkeypatch, count: int, free: float, compute) -> None:
    """A machine with `count` GPUs of 24 GB."""
    properties = namedtuple("P", "name major minor total_memory")("RTX", 8, 6, 24 * 2**30)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (free * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch, "ones", compute)


@pytest.mark.parametrize(("nproc", "state"), [(1, "ok"), (2, "ok"), (4, "fail")])
def test_processes_against_gpus(monkeypatch, nproc, state):
    pretend(monkeypatch, 2, 23.5, lambda n, device: torch.full((n,), 1.0))
    checks = {c.name: c for c in doctor._gpus(nproc)}
    assert list(checks) == ["cuda", "gpu 0", "gpu 1", "processes"]
    assert checks["gpu 1"][1:3] == ("ok", "RTX, capability 8.6, 23.5 of 24.0 GB free")
    assert checks["processes"].state == state and "--nproc 2" in checks["processes"].remedy


def test_gpu_in_use_and_gpu_without_code(monkeypatch):
    pretend(monkeypatch, 1, 1.0, lambda n, device: torch.full((n,), 1.0))
    assert doctor._gpu(0).state == "warn"

    def no_image(n, device):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with TORCH_USE")

    pretend(monkeypatch, 1, 23.0, no_image)
    check = doctor._gpu(0)
    assert check.state == "fail" and "no kernel image is available, 0.0 of 24.0" in check.found


# -- wandb -----------------------------------------------------------------------------------------


def test_wandb_with_and_without_key_and_server(monkeypatch, tmp_path):
    check = only(doctor._wandb())
    assert check.state == "warn" and "does not answer" in check.found
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert only(doctor._wandb()).state == "ok"
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    check = only(doctor._wandb())
    assert check[1:3] == ("warn", "no key") and "wandb login" in check.remedy
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert only(doctor._wandb()).state == "ok"


def test_a_name_that_does_not_resolve_does_not_hang(monkeypatch):
    answer = threading.Event()
    assert doctor._within(0.05, answer.wait) is False
    answer.set()
    assert doctor._within(30, lambda: True) is True
