"""What besides the recipe could change the numbers: versions, hardware, threads, commit, data."""

import datetime
import getpass
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from .redaction import redact

_PACKAGES = (
    "vision-tutorial torch torchvision timm accelerate safetensors numpy pillow pydantic pyyaml "
    "wandb"
).split()
_ENVIRONMENT = (
    "OMP_NUM_THREADS MKL_NUM_THREADS CUDA_VISIBLE_DEVICES WORLD_SIZE LOCAL_WORLD_SIZE "
    "CUBLAS_WORKSPACE_CONFIG PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF NVIDIA_TF32_OVERRIDE "
    "PYTHONHASHSEED WANDB_MODE VISION_TUTORIAL_DATA SLURM_JOB_ID"
).split()


def fingerprint() -> dict[str, Any]:
    """All of it. GPUs and torch's threads only if torch is imported; this never imports it."""
    return {
        "author": author(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": redact(shlex.join(sys.argv)),
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "host": platform.node(),
        "cpu": {
            "model": _cpu_model(),
            "cores": psutil.cpu_count(logical=False),
            "threads": psutil.cpu_count(),
            "usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        },
        "memory_bytes": psutil.virtual_memory().total,
        "environment": {n: redact(os.environ[n]) for n in _ENVIRONMENT if n in os.environ},
        "torch": _torch(),
        "git": _git(Path(__file__).parents[1]),
    }


def author() -> str:
    """Whose runs these are: VISION_TUTORIAL_AUTHOR, else git's user.name, else the account."""
    said = os.environ.get("VISION_TUTORIAL_AUTHOR") or output("git", "config", "user.name")
    with suppress(Exception):  # an account without a name
        said = said or getpass.getuser()
    return redact(" ".join((said or "unknown").split())[:60])


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _cpu_model() -> str:
    with suppress(OSError):
        if found := re.search(
            r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text("utf-8", "replace")
        ):
            return found[1]
    if sys.platform == "darwin":
        return output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return platform.processor()


def _torch() -> dict[str, Any] | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    gpus = range(torch.cuda.device_count())
    return {
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpus else None,
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
    }


def _git(package: Path) -> dict[str, Any] | None:
    git = ("git", "-C", str(package))
    if output(*git, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    changes = output(*git, "status", "--porcelain", "--untracked-files=no")
    return {"commit": output(*git, "rev-parse", "HEAD"), "dirty": bool(changes)}


def output(*command: str) -> str | None:
    """What a command prints; None if it is missing, fails or takes over half a minute."""
    # GIT_OPTIONAL_LOCKS: looking must not disturb a person who commits at this moment.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
            env=environment,
        )
        return done.stdout.strip() if done.returncode == 0 else None
    return None
