"""Is this machine ready? A line for everything a training needs, and what to do where it fails."""

import argparse
import ctypes
import json
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from ..core.cli_types import positive_count
from ..core.errors import counted
from ..core.processes import usable_cores
from ..recipe.command_line import Parser
from . import entry_point

_GIGA = 2**30
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_DATA = {  # folders, and what else helps where they are missing
    "cifar10": ("cifar-10-batches-py", ", or dataset.cifar10.download=true"),
    "cifar100": ("cifar-100-python", ", or dataset.cifar100.download=true"),
    "camvid": ("camvid", "; it is not downloaded"),
    "voc": ("VOCdevkit", "; it is not downloaded"),
}


class Check(NamedTuple):
    """One line of the report. `warn` slows or limits a training, `fail` stops it."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="vision-tutorial doctor",
        description="Checks what a training needs of this machine.",
        epilog="Exit codes: 0 ready (warnings included), 1 something would stop a training.",
    )
    add = made.add_argument
    add("--nproc", type=positive_count, default=1, metavar="N", help="processes you will start")
    add("--json", action="store_true", help="print JSON instead of a table")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Print every check; 1 if one fails."""
    checks = list(examine(args.nproc))
    ready = all(check.state != "fail" for check in checks)
    if args.json:
        print(json.dumps({"ready": ready, "checks": [c._asdict() for c in checks]}, indent=2))
        return int(not ready)
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        remedy = f"\n-> {check.remedy}" if check.remedy else ""
        state = Text(check.state, _COLOURS[check.state])
        table.add_row(state, check.name, Text(check.found + remedy))
    console = Console(highlight=False)
    console.print(table)
    console.print("ready" if ready else "not ready: see the lines that say fail")
    return int(not ready)


def examine(nproc: int) -> Iterator[Check]:
    """Every check in order, the light ones first. One that breaks is itself a line."""
    for part in (_software, _machine, _data, _operators, _gpus, _wandb):
        try:
            yield from part(nproc)
        except Exception as error:
            remedy = "repair what it names: pip install -e . in a fresh environment"
            yield Check(part.__name__[1:], "fail", f"cannot be checked: {error!r}", remedy)


def _check(name: str, good: bool, found: str, remedy: str, bad: str = "warn") -> Check:
    return Check(name, "ok", found) if good else Check(name, bad, found, remedy)


def _software(nproc: int) -> Iterator[Check]:
    from packaging.requirements import Requirement

    good = sys.version_info >= (3, 11)
    yield _check("python", good, platform.python_version(), "install Python 3.11 or newer", "fail")
    try:
        lines = metadata.requires("vision-tutorial") or []
    except metadata.PackageNotFoundError:
        yield Check("packages", "warn", "the package is not installed", "pip install -e .")
        path = Path(__file__).parents[2] / "pyproject.toml"
        text = path.read_text(encoding="utf-8") if path.is_file() else "project.dependencies = []"
        lines = tomllib.loads(text)["project"]["dependencies"]
    installed = []
    for need in map(Requirement, lines):
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        version = next((found.version for found in metadata.distributions(name=need.name)), "")
        if version and need.specifier.contains(version, prereleases=True):
            installed.append(f"{need.name} {version}")
        else:
            yield Check(need.name, "fail", version or "missing", f'pip install "{need}"')
    if installed:
        yield Check("packages", "ok", ", ".join(installed))
    hooked = metadata.entry_points(group="torch.backends", name="vision_tutorial")
    on = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") == "1"
    found = "works" if hooked and on else "hook not installed, or TORCH_DEVICE_BACKEND_AUTOLOAD off"
    remedy = "pip install -e . and unset TORCH_DEVICE_BACKEND_AUTOLOAD, or use ./torchrun.sh"
    yield _check("torchrun", bool(hooked) and on, f"torchrun --nproc N: {found}", remedy)


def _machine(nproc: int) -> Iterator[Check]:
    usable = len(usable_cores())
    threads = os.environ.get("OMP_NUM_THREADS", "")
    each = max(1, int(threads)) if threads.isdecimal() else 1
    found = f"{usable} for {counted(nproc, 'process')}"
    found += f", OMP_NUM_THREADS={threads}" * bool(threads)
    remedy = f"OMP_NUM_THREADS={max(1, usable // nproc)}, and at most {counted(usable, 'process')}"
    yield _check("cpu cores", nproc * each <= usable, found, remedy)

    free = psutil.virtual_memory().available / _GIGA
    yield _check("memory", free > 2, f"{free:.1f} GB available", "close programs; set workers: 0")

    here = Path.cwd()
    free, writable = shutil.disk_usage(here).free / _GIGA, os.access(here, os.W_OK)
    found = f"{free:.1f} GB free in {here}" + ", which is read-only" * (not writable)
    # four checkpoints of ResNet-50 with its momentum and EMA
    remedy = "runs need up to 2 GB: start elsewhere, or use --runs DIR"
    bad = "fail" if free < 0.5 or not writable else "warn"
    yield _check("disk", writable and free >= 5, found, remedy, bad)

    if sys.platform == "linux":
        place = Path("/dev/shm")
        free = shutil.disk_usage(place).free / _GIGA if place.is_dir() else 0.0
        remedy = "docker run --shm-size=8g (or --ipc=host), or set workers=0"
        yield _check("shared memory", free >= 1, f"{free:.2f} GB free in /dev/shm", remedy)
    if os.name == "posix":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = limit == resource.RLIM_INFINITY
        found = "unlimited" if unlimited else f"at most {limit}"
        yield _check("open files", unlimited or limit >= 1024, found, "ulimit -n 4096")


def _data(nproc: int) -> Iterator[Check]:
    from ..core.folders import data_root

    root = data_root()
    for name, (folder, download) in _DATA.items():
        there = (root / folder).is_dir()
        found = f"{root / folder}" if there else f"no {folder} in {root}"
        remedy = f"set VISION_TUTORIAL_DATA to the folder of {folder}{download}"
        yield _check(name, there, found, remedy)


def _operators(nproc: int) -> Iterator[Check]:
    import torch

    try:
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
        works = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.6]), 0.5).tolist() == [1]
        found = f"torchvision {torchvision.__version__} with torch {torch.__version__}"
    except Exception as error:
        works, found = False, f"torch {torch.__version__}: {' '.join(str(error).split())}"
    remedy = "reinstall both together: pip install --force-reinstall torch torchvision"
    yield _check("operators", works, found, remedy, "fail")


def _gpus(nproc: int) -> Iterator[Check]:
    import torch

    if torch.backends.mps.is_available():
        yield Check("gpu", "ok", "Apple's, for one process; several train on the CPU")
        return
    works = torch.cuda.is_available()
    version = ctypes.c_int(0)
    try:
        library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        pass  # there is no driver
    yield _driver(torch.version.cuda, version.value, works)
    count = torch.cuda.device_count() if works else 0
    for index in range(count):
        about = torch.cuda.get_device_properties(index)
        found = f"{about.name}, capability {about.major}.{about.minor}"
        try:
            (torch.ones(2, device=f"cuda:{index}") + 1).sum().item()
            free, total = (n / _GIGA for n in torch.cuda.mem_get_info(index))
        except RuntimeError as error:
            found += f": {str(error).splitlines()[0]}"
            remedy = "install a torch built for this GPU, or hide it with CUDA_VISIBLE_DEVICES"
            yield Check(f"gpu {index}", "fail", found, remedy)
            continue
        found += f", {free:.1f} of {total:.1f} GB free"
        remedy = "another program holds its memory (nvidia-smi names it); lower micro_batch"
        yield _check(f"gpu {index}", free > total / 2, found, remedy)
    if count:
        found = f"{nproc} for {counted(count, 'GPU')}"
        yield _check("processes", nproc <= count, found, f"start with --nproc {count}", "fail")


def _driver(built: str | None, driven: int, works: bool) -> Check:
    """built: torch's CUDA, such as 13.2; driven: the driver's, such as 13020; 0 without one."""
    major, minor = divmod(driven, 1000)
    found = f"driver for CUDA {major}.{minor // 10}" if driven else "no NVIDIA driver"
    found += f", torch {f'for CUDA {built}' if built else 'without CUDA'}"
    if not driven or not built:
        remedy = "trains on the CPU; a GPU needs its driver and a torch with CUDA"
        return _check("cuda", works or not driven and not built, found, remedy)
    remedy = "does nvidia-smi list a GPU, or does CUDA_VISIBLE_DEVICES hide it?"
    if major < int(built.split(".")[0]):
        remedy = f"update the driver, or install a torch for CUDA {major}"
    return _check("cuda", works, found + ", yet torch finds no GPU" * (not works), remedy, "fail")


def _wandb(nproc: int) -> Iterator[Check]:
    from ..runs.wandb_logger import has_key, serves

    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    mode = os.environ.get("WANDB_MODE", "")
    remedy = "until then runs are kept on disk, to be sent with wandb sync"
    if mode in ("offline", "disabled"):
        yield Check("wandb", "ok", f"WANDB_MODE={mode}")
    elif not has_key(url, "api.wandb.ai"):
        yield Check("wandb", "warn", "no key", f"wandb login; {remedy}")
    else:
        answers = serves(url)
        found = f"key found, {url} {'answers' if answers else 'does not answer'}"
        yield _check("wandb", answers, found, f"check the network; {remedy}")
