"""Two nodes, rehearsed as two torchrun agents on this machine: the numbers of one node."""

import os
import subprocess
import sys
from pathlib import Path

from forked import free_port
from small_runs import SMALL, left

WORDS = ["-m", "vision_tutorial.train", "recipes/debug.yaml", *SMALL, "wandb.mode=disabled"]
WORDS += ["--quiet", "--resume", "--id", "run"]


def agent(folder: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *words, *WORDS, "--runs", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)


def ended(agents: list[subprocess.Popen]) -> None:
    said = [one.communicate(timeout=300)[0] for one in agents]
    assert [one.returncode for one in agents] == [0] * len(agents), "\n".join(said)


def test_two_agents_give_the_numbers_of_one(tmp_path: Path) -> None:
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    nodes = ["--nnodes", "2", "--nproc-per-node", "1", *meet, "--rdzv-id", "rehearsal"]
    ended([agent(tmp_path / "two", *nodes) for _ in range(2)])
    ended([agent(tmp_path / "one", "--standalone", "--nproc-per-node", "2")])
    (files, rows, name), other = (left(tmp_path / n / "debug" / "run") for n in ("two", "one"))
    assert rows == other[1] and name == other[2]
    assert files == other[0]
