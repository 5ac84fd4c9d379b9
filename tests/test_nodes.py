"""Two nodes, rehearsed as two torchrun agents on this machine: the numbers of one node."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import free_port
from small_runs import SMALL, left, train

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


SRUN = """#!/usr/bin/env bash
# one task on each of the job's nodes, as srun starts them; each gets the signal
[ -z "$BROKEN" ] || exit 1
while [[ "$1" == --* ]]; do shift; done
trap 'kill $tasks' TERM
tasks=""
for node in $(seq "$SLURM_NNODES"); do
    SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=$SLURM_NNODES SLURM_PROCID=$((node - 1)) "$@" &
    tasks+=" $!"
done
echo $$ >"$JOB/step.pid"
code=0
for task in $tasks; do
    while kill -0 "$task" 2>/dev/null; do wait "$task" || code=$?; done
done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
    "show hostnames") echo 127.0.0.1 ;;
    "show job") echo "JobId=$3 JobState=$STATE Reason=None" ;;
    "requeue 7") echo "$2" >>"$JOB/requeued" ;;
    *) exit 1 ;;
esac
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_preempted_slurm_job_is_queued_again_and_ends_with_the_same_bits(
    tmp_path: Path, repository: Path
) -> None:
    bin_folder, runs = tmp_path / "bin", tmp_path / "runs"
    bin_folder.mkdir()
    python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": python}.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    path = f"{bin_folder}:{os.environ['PATH']}"
    env = os.environ | {"JOB": str(tmp_path), "PATH": path, "RUNS": str(runs), "STATE": "RUNNING"}
    env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_GPUS_ON_NODE": "1"}
    words = ["recipes/debug.yaml", *SMALL, "epochs=12", "wandb.mode=disabled", "shards=2"]
    run = runs / "debug" / "job-7"

    def job(nodes: int, stop: bool = False, **other: str) -> tuple[int, str]:
        script = ["bash", str(repository / "docs/cluster/slurm.sh"), *words]
        facts = env | {"SLURM_NNODES": str(nodes), "PORT": str(free_port())} | other
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started = subprocess.Popen(script, env=facts, cwd=repository, **pipes)
        while stop and not rows(run) and started.poll() is None:
            time.sleep(0.05)
        if stop and started.poll() is None:
            os.kill(int((tmp_path / "step.pid").read_text()), signal.SIGTERM)
        said = started.communicate(timeout=200)[0]
        return started.returncode, said

    code, said = job(2, stop=True)
    assert code == 0 and "preempted; queued again" in said, said
    assert json.loads((run / "status.json").read_text())["status"] == "preempted"
    assert (tmp_path / "requeued").read_text() == "7\n"
    code, said = job(1, STATE="CANCELLED", BROKEN="1")  # by a person, before it went on
    assert code == 1 and "queued again" not in said, said
    code, said = job(1)  # with as many shards, one process gives the same bits
    assert code == 0 and "queued again" not in said, said
    assert (tmp_path / "requeued").read_text() == "7\n"
    assert rows(run) == 12
    assert left(run) == left(train(tmp_path / "whole", *words))


def rows(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_accelerate_launch_starts_the_same_training(tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [sys.executable, *launch, *WORDS, "shards=2", "--runs", str(tmp_path / "launched")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    alone = train(tmp_path / "alone", *WORDS[2:-4], "shards=2")
    assert left(tmp_path / "launched/debug/run") == left(alone)


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
