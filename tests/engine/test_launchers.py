"""What a launcher leaves in the environment: taken, refused, or ignored."""

import math
import os

import pytest
import torch

from vision_tutorial.core.errors import UserError
from vision_tutorial.engine.distributed import Distributed
from vision_tutorial.engine.launchers import torchrun_environment

TWO = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "MASTER_ADDR": "localhost"}


@pytest.mark.parametrize(
    "facts",
    [
        {"WORLD_SIZE": "abc"},
        {"WORLD_SIZE": "2"},
        {"RANK": "-1"},
        {"LOCAL_RANK": "1"},
        {"LOCAL_WORLD_SIZE": "0"},
        {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "2"},
        {name: TWO[name] for name in TWO if name != "MASTER_ADDR"},
        TWO | {"MASTER_PORT": "99999"},
    ],
)
def test_an_environment_that_no_launcher_sets(facts, monkeypatch):
    for name in (*TWO, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert torchrun_environment() == (0, 1, 1)
    for name, value in facts.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="start with torchrun --nproc N"):
        torchrun_environment()


SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("facts", "refused"),
    [
        (SLURM | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2"),
        (SLURM | {"SLURM_PROCID": "1"}, "SLURM_NTASKS=2"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, "SLURM_NTASKS=2"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE=2"),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "PMI_SIZE=4"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_SIZE=2"),
        ({"PMI_SIZE": "2", "RANK": "0"}, "PMI_SIZE=2"),
        (SLURM, None),  # a batch script, or a shell inside a job
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),  # salloc
        (SLURM | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, None),
        ({"PMI_SIZE": "1", "OMPI_COMM_WORLD_SIZE": "1"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2", "RANK": "0", "WORLD_SIZE": "1"}, None),  # torchrun
    ],
)
def test_processes_of_another_launcher_do_not_train_alone(facts, refused, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "PMI_", "OMPI_", "LOCAL_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in facts.items():
        monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(UserError, match=f"^{refused}: .*torchrun --nproc N"):
            torchrun_environment()
    else:
        assert torchrun_environment() == (0, 1, 1)


def test_what_accelerate_left_in_the_environment_changes_nothing(monkeypatch) -> None:
    left = {"USE_DEEPSPEED": "true", "USE_FSDP": "true", "MIXED_PRECISION": "bf16"}
    left |= {"DYNAMO_BACKEND": "INDUCTOR", "GRADIENT_ACCUMULATION_STEPS": "4", "USE_CPU": "no"}
    for name, value in left.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "nowhere.invalid"}
    for name, value in (alone | {"MASTER_PORT": "1"}).items():  # one process looks for nobody
        monkeypatch.setenv(name, value)
    distributed = Distributed(threads=1)
    try:
        state = distributed.accelerator.state
        assert (state.mixed_precision, state.deepspeed_plugin) == ("no", None)
        assert state.distributed_type.value == "NO" and state.dynamo_plugin.backend.value == "NO"
        assert distributed.accelerator.gradient_accumulation_steps == 1
        names = [name for name in sorted(left) if left[name] != "no"]
        assert distributed.notice == (
            ", ".join(f"ACCELERATE_{n}" for n in names)
            + ": ignored; the recipe says how it is trained."
        )
    finally:
        distributed.close()


def test_threads_with_shards_do_not_depend_on_the_number_of_processes(monkeypatch) -> None:
    monkeypatch.setattr("vision_tutorial.engine.distributed.usable_cores", lambda: list(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for shards, threads in ((4, 2), (None, 8), (16, 1)):
        made = Distributed(shards=shards)
        assert made.threads == torch.get_num_threads() == threads
        made.close()
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    limits = (("3", None, 3), ("3", 5, 5), ("16", None, 8), ("4,2", None, 4), ("x", None, 8))
    for given, asked, threads in (*limits, ("1", None, 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        made = Distributed(threads=asked)
        assert made.threads == threads, "a recipe's own number comes first"
        made.close()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made.local_world = 2  # torchrun sets 1 where nobody has set anything
    assert made._most_threads() == math.inf
    monkeypatch.undo()
    torch.set_num_threads(1)
