"""Every line of the doctor in the states that it tells apart; it is quick and shows no key."""

import importlib.metadata
import json
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch
import torchvision

from vision_tutorial.commands import doctor
from vision_tutorial.runs import wandb_logger

Usage = namedtuple("Usage", "total used free")
SECRET = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # discard: refuses at once
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.delenv("WANDB_MODE", raising=False)


def examined(nproc=1):
    return {check.name: check for check in doctor.examine(nproc)}


def test_json_and_table_tell_the_same_and_no_secret(capsys):
    code = doctor.main(["--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == (0 if told["ready"] else 1)
    names = [check["name"] for check in told["checks"]]
    lines = "python|cpu cores|memory|disk|open files|cifar10|cifar100|camvid|voc|torchrun"
    for name in f"{lines}|operators|wandb".split("|"):
        assert names.count(name) == 1
    for check in told["checks"]:
        assert (check["remedy"] == "") == (check["state"] == "ok")
    assert doctor.main([]) == code
    table = capsys.readouterr().out
    assert all(name in table for name in names)
    assert "\nready" in table if code == 0 else "not ready: see the lines" in table
    assert SECRET not in json.dumps(told) and SECRET not in table


def test_a_part_that_breaks_is_a_line_and_exit_code_1(monkeypatch, capsys):
    def broken(*_):
        raise ImportError("no psutil")

    monkeypatch.setattr(psutil, "virtual_memory", broken)
    checks = examined()
    assert checks["machine"].state == "fail" and "no psutil" in checks["machine"].found
    assert "operators" in checks, "the others go on"
    assert doctor.main([]) == 1
    assert "-> repair" in capsys.readouterr().out


def test_software(monkeypatch):
    lines = ["torch>=2.11", "rich>=999", "absent-package", 'ruff>=999; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    checks = examined()
    assert checks["rich"].state == "fail" and checks["rich"].remedy == 'pip install "rich>=999"'
    assert checks["absent-package"].found == "missing" and "ruff" not in checks
    assert checks["packages"].found == f"torch {importlib.metadata.version('torch')}"

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    _, first, last, _ = doctor._software(1)
    assert first.state == "warn" and first.found == "the package is not installed"
    assert last.state == "ok" and "pydantic " in last.found, "what its pyproject.toml asks for"


def test_torchrun_hook_and_torchvision_of_another_torch(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ["hook"])
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "1")
    assert examined()["torchrun"].state == "ok"
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

    def mismatched(*_):
        raise RuntimeError("Couldn't load custom C++ ops.\nThis can happen")

    monkeypatch.setattr(torchvision.ops, "nms", mismatched)
    checks = examined()
    assert checks["torchrun"].state == "warn" and "./torchrun.sh" in checks["torchrun"].remedy
    assert checks["operators"].state == "fail" and "\n" not in checks["operators"].found


def test_cores_and_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    cases = ((2, "4", "ok"), (2, "8", "warn"), (9, "", "warn"), (1, "4,2", "ok"))
    for nproc, threads, state in cases:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        (check,) = (check for check in doctor._machine(nproc) if check.name == "cpu cores")
        assert check.state == state


def test_disk_and_shared_memory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the checkout may be read-only
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    for gigabytes, disk, shared in ((0.1, "fail", "warn"), (2, "warn", "ok"), (50, "ok", "ok")):
        usage = Usage(0, 0, gigabytes * 2**30)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        checks = {check.name: check.state for check in doctor._machine(1)}
        assert (checks["disk"], checks["shared memory"]) == (disk, shared)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check = examined()["disk"]
    assert check.state == "fail" and "read-only" in check.found


def test_data(monkeypatch, tmp_path):
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(tmp_path))
    (tmp_path / "cifar-100-python").mkdir()
    checks = examined()
    assert (checks["cifar10"].state, checks["cifar100"].state) == ("warn", "ok")
    assert "dataset.cifar10.download=true" in checks["cifar10"].remedy
    assert checks["camvid"].remedy.endswith("to the folder of camvid; it is not downloaded")


@pytest.mark.parametrize(
    ("built", "driven", "works", "state", "said"),
    [
        ("13.2", 13020, True, "ok", "driver for CUDA 13.2, torch for CUDA 13.2"),
        (None, 0, False, "ok", "no NVIDIA driver, torch without CUDA"),
        ("13.2", 0, False, "warn", "trains on the CPU"),
        (None, 12040, False, "warn", "driver for CUDA 12.4, torch without CUDA"),
        ("13.2", 12040, False, "fail", "install a torch for CUDA 12"),
        ("13.2", 13000, False, "fail", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_driver(built, driven, works, state, said):
    check = doctor._driver(built, driven, works)
    assert check.state == state and said in check.found + check.remedy


def test_gpus(monkeypatch):
    properties = namedtuple("P", "name major minor")("RTX", 8, 6)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties)
    free = [23.5, 1.0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (free[i] * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch, "ones", lambda n, device: torch.full((n,), 1.0))
    checks = list(doctor._gpus(2))
    assert [c.name for c in checks] == ["cuda", "gpu 0", "gpu 1", "processes"]
    assert checks[1][1:3] == ("ok", "RTX, capability 8.6, 23.5 of 24.0 GB free")
    assert checks[2].state == "warn" and checks[3].state == "ok"

    def no_image(n, device):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with TORCH_USE")

    monkeypatch.setattr(torch, "ones", no_image)
    _, check, _, processes = doctor._gpus(3)
    assert check.state == "fail" and check.found.endswith("no kernel image is available")
    assert processes.state == "fail" and "--nproc 2" in processes.remedy


def test_wandb_with_and_without_key_and_server(monkeypatch, tmp_path):
    for url in ("http://127.0.0.1:9", "no address"):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        check = examined()["wandb"]
        assert check.state == "warn" and f"{url} does not answer" in check.found
    with monkeypatch.context() as patch:
        patch.setattr(wandb_logger, "serves", lambda url: True)
        assert examined()["wandb"].state == "ok"
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    check = examined()["wandb"]
    assert check[1:3] == ("warn", "no key") and "wandb login" in check.remedy
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert examined()["wandb"].state == "ok"
