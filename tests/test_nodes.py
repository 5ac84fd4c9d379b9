"""Two nodes, rehearsed as two torchrun agents on this machine: the numbers of one node."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
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


@pytest.mark.skipif(not shutil.which("flock"), reason="no flock here")
def test_a_gpu_of_a_shared_machine_is_one_person_s(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "docs" / "cluster" / "one_gpu.sh"
    note = 'echo "$CUDA_VISIBLE_DEVICES $$ {}" >> diary'
    job = f"{note.format('in')}; sleep 0.3; {note.format('out')}"
    given = os.environ | {"GPUS": "2", "LOCKS": str(tmp_path / "locks"), "WAIT": "0.05"}
    jobs = [
        subprocess.Popen(["bash", str(script), "bash", "-c", job], cwd=tmp_path, env=given)
        for _ in range(5)
    ]
    assert [one.wait(timeout=60) for one in jobs] == [0] * 5
    held: dict[str, str | None] = {}
    lines = [line.split() for line in (tmp_path / "diary").read_text().splitlines()]
    for gpu, job, word in lines:
        assert held.get(gpu) == (None if word == "in" else job)
        held[gpu] = job if word == "in" else None
    assert {gpu for gpu, *_ in lines} == {"0", "1"} and len(lines) == 10
