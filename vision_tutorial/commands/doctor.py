"""Is this machine ready? A line for everything a training needs, and what to do where it fails."""

import argparse
import ctypes
import importlib.metadata
import json
import os
import shutil
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from ..core.errors import UserError, run_main
from ..core.processes import usable_cores

GIGA = 2**30
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
WANDB_SERVER = "https://api.wandb.ai"
PATIENCE = 2.5  # seconds: the probe's own two, and some for a name that does not resolve


class Check(NamedTuple):
    """One line of the report. `warn` slows or limits a training, `fail` stops it."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial doctor",
        description="Checks what a training needs of this machine.",
        epilog="Exit codes: 0 ready (warnings included), 1 something would stop a training.",
    )
    made.add_argument("--nproc", type=int, default=1, metavar="N", help="processes you will start")
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial doctor` and `python -m vision_tutorial.doctor`."""
    args = parser().parse_args(argv)
    return run_main(lambda: _report(args))


def _report(args: argparse.Namespace) -> int:
    if args.nproc < 1:
        raise UserError(f"--nproc {args.nproc}: give 1 or more.")
    checks = list(examine(args.nproc))
    ready = all(check.state != "fail" for check in checks)
    if args.json:
        print(json.dumps({"ready": ready, "checks": [c._asdict() for c in checks]}, indent=2))
    else:
        _show(checks, ready)
    return 0 if ready else 1


def _show(checks: Sequence[Check], ready: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        remedy = f"\n-> {check.remedy}" if check.remedy else ""
        state = Text(check.state, style=COLOURS[check.state])
        table.add_row(state, check.name, Text(check.found + remedy))
    console = Console(highlight=False)
    console.print(table)
    console.print("ready" if ready else "not ready: see the lines that say fail")


def examine(nproc: int) -> Iterator[Check]:
    """Every check in order, the light ones first. A check that breaks is itself a line."""
    light = (_python, _packages, partial(_cores, nproc), _memory, _disk, _shared_memory)
    heavy = (_open_files, _data, _launcher, _torch_and_torchvision, partial(_gpus, nproc), _wandb)
    for step in (*light, *heavy):
        try:
            for check in step():
                yield check if check.state != "ok" else check._replace(remedy="")
        except Exception as error:
            name = getattr(step, "func", step).__name__.replace("_", " ").strip()
            remedy = "repair what it names: pip install -e . in a fresh environment"
            yield Check(name, "fail", f"cannot be checked: {error!r}", remedy)


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    state = "ok" if sys.version_info >= (3, 11) else "fail"
    yield Check("python", state, version, "install Python 3.11 or newer")


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("vision-tutorial") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", "warn", "the package is not installed", "pip install -e .")
        path = Path(__file__).parents[2] / "pyproject.toml"
        text = path.read_text(encoding="utf-8") if path.is_file() else "project.dependencies = []"
        lines = tomllib.loads(text)["project"]["dependencies"]
    good = []
    for need in map(Requirement, lines):
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if version and need.specifier.contains(version, prereleases=True):
            good.append(f"{need.name} {version}")
        else:
            yield Check(need.name, "fail", version or "missing", f'pip install "{need}"')
    if good:
        yield Check("packages", "ok", ", ".join(good))


def _cores(nproc: int) -> Iterator[Check]:
    usable = len(usable_cores())
    threads = os.environ.get("OMP_NUM_THREADS", "")
    found = f"{usable} for {nproc} process{'es' * (nproc > 1)}"
    found += f", OMP_NUM_THREADS={threads}" if threads else ""
    crowded = threads.isdecimal() and int(threads) * nproc > usable or nproc > usable
    remedy = f"OMP_NUM_THREADS={max(1, usable // nproc)}, and at most {usable} processes"
    yield Check("cpu cores", "warn" if crowded else "ok", found, remedy)


def _memory() -> Iterator[Check]:
    import psutil

    free = psutil.virtual_memory().available / GIGA
    state = "ok" if free > 2 else "warn"
    yield Check("memory", state, f"{free:.1f} GB available", "close programs; set workers: 0")


def _disk() -> Iterator[Check]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free / GIGA
    writable = os.access(here, os.W_OK)
    state = "fail" if free < 0.5 or not writable else "warn" if free < 5 else "ok"
    found = f"{free:.1f} GB free in {here}" + ("" if writable else ", which is read-only")
    # four checkpoints of ResNet-50 with its momentum and EMA
    yield Check("disk", state, found, "runs need up to 2 GB: start elsewhere, or use --runs DIR")


def _shared_memory() -> Iterator[Check]:
    place = Path("/dev/shm")
    if sys.platform == "linux":
        free = shutil.disk_usage(place).free / GIGA if place.is_dir() else 0.0
        remedy = "docker run --shm-size=8g (or --ipc=host), or set workers=0"
        state = "ok" if free >= 1 else "warn"
        yield Check("shared memory", state, f"{free:.2f} GB free in /dev/shm", remedy)


def _open_files() -> Iterator[Check]:
    if os.name != "posix":
        return
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= limit < 1024
    shown = "unlimited" if limit == resource.RLIM_INFINITY else f"at most {limit}"
    yield Check("open files", "warn" if few else "ok", shown, "ulimit -n 4096")


def _data() -> Iterator[Check]:
    from ..core.sources import data_root

    root = data_root()
    for name, folder, downloads in (
        ("cifar10", "cifar-10-batches-py", True),
        ("cifar100", "cifar-100-python", True),
        ("camvid", "camvid", False),
        ("voc", "VOCdevkit", False),
    ):
        remedy = f"set VISION_TUTORIAL_DATA to the folder of {folder}"
        remedy += f", or dataset.{name}.download=true" if downloads else "; it is not downloaded"
        there = (root / folder).is_dir()
        found = f"{root / folder}" if there else f"no {folder} in {root}"
        yield Check(name, "ok" if there else "warn", found, remedy)


def _launcher() -> Iterator[Check]:
    hooks = importlib.metadata.entry_points(group="torch.backends")
    hooked = any(hook.name == "vision_tutorial" for hook in hooks)
    off = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") != "1"
    found = "torchrun --nproc N works" if hooked else "hook not installed"
    found = "switched off by TORCH_DEVICE_BACKEND_AUTOLOAD" if hooked and off else found
    remedy = "pip install -e . and unset TORCH_DEVICE_BACKEND_AUTOLOAD, or use ./torchrun.sh"
    yield Check("torchrun", "ok" if hooked and not off else "warn", found, remedy)


def _torch_and_torchvision() -> Iterator[Check]:
    import torch

    try:
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
        works = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.6]), 0.5).tolist() == [1]
        found = f"torchvision {torchvision.__version__} with torch {torch.__version__}"
    except Exception as error:
        works, found = False, f"torch {torch.__version__}: {' '.join(str(error).split())}"
    remedy = "reinstall both together: pip install --force-reinstall torch torchvision"
    yield Check("operators", "ok" if works else "fail", found, remedy)


def _gpus(nproc: int) -> Iterator[Check]:
    import torch

    if torch.backends.mps.is_available():
        yield Check("gpu", "ok", "Apple's, for one process; several train on the CPU")
        return
    yield _driver(torch.version.cuda, _cuda_of_driver(), torch.cuda.is_available())
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(count):
        yield _gpu(i)
    if count:
        state = "ok" if nproc <= count else "fail"
        found = f"{nproc} for {count} GPU{'s' * (count > 1)}"
        yield Check("processes", state, found, f"start with --nproc {count} at most")


def _driver(built: str | None, driven: int | None, works: bool) -> Check:
    has = "no NVIDIA driver"  # driven: 13020 is CUDA 13.2
    if driven:
        has = f"driver for CUDA {driven // 1000}.{driven % 1000 // 10}"
    found = f"{has}, torch {f'for CUDA {built}' if built else 'without CUDA'}"
    if works or not driven and not built:
        return Check("cuda", "ok", found)
    if not driven:
        return Check("cuda", "warn", found, "trains on the CPU; for a GPU, install its driver")
    if not built:
        return Check("cuda", "warn", found, "trains on the CPU; for the GPU, a torch with CUDA")
    if driven // 1000 < int(built.split(".")[0]):
        remedy = f"update the driver, or install a torch for CUDA {driven // 1000}"
        return Check("cuda", "fail", found, remedy)
    remedy = "does nvidia-smi list a GPU, or does CUDA_VISIBLE_DEVICES hide it?"
    return Check("cuda", "fail", f"{found}, yet torch finds no GPU", remedy)


def _cuda_of_driver() -> int | None:
    version = ctypes.c_int(0)
    try:
        library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value or None


def _gpu(index: int) -> Check:
    import torch

    name = f"gpu {index}"
    properties = torch.cuda.get_device_properties(index)
    found = f"{properties.name}, capability {properties.major}.{properties.minor}"
    try:
        worked = (torch.ones(2, device=f"cuda:{index}") + 1).sum().item() == 4
        free, total = (n / GIGA for n in torch.cuda.mem_get_info(index))
    except RuntimeError as error:
        worked, free, total = False, 0.0, properties.total_memory / GIGA
        found += f": {str(error).splitlines()[0]}"
    found += f", {free:.1f} of {total:.1f} GB free"
    if not worked:
        remedy = "install a torch built for this GPU, or hide it with CUDA_VISIBLE_DEVICES"
        return Check(name, "fail", found, remedy)
    remedy = "another program holds its memory (nvidia-smi names it); lower micro_batch"
    return Check(name, "ok" if free > total / 2 else "warn", found, remedy)


def _wandb() -> Iterator[Check]:
    from ..runs.wandb_logger import answers, has_key

    url = os.environ.get("WANDB_BASE_URL", WANDB_SERVER)
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled"):
        yield Check("wandb", "ok", f"WANDB_MODE={mode}")
    elif not has_key(url, "api.wandb.ai"):
        remedy = "wandb login; until then runs are kept on disk, to be sent with wandb sync"
        yield Check("wandb", "warn", "no key", remedy)
    elif not _within(PATIENCE, lambda: answers(url)):
        remedy = "check the network; until then runs are kept on disk, to be sent with wandb sync"
        yield Check("wandb", "warn", f"key found, but {url} does not answer", remedy)
    else:
        yield Check("wandb", "ok", f"key found, {url} answers")


def _within(seconds: float, ask: Callable[[], bool]) -> bool:
    answer: list[bool] = []  # in a thread: resolving a name has no time limit
    thread = threading.Thread(target=lambda: answer.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answer and answer[0])


if __name__ == "__main__":
    sys.exit(main())
