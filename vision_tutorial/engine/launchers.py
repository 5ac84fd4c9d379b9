"""Who started this process, and with how many others: torchrun, or a launcher that is refused."""

import os

from ..core.errors import UserError


def torchrun_environment() -> tuple[int, int, int]:
    """(rank, processes, processes on this machine) as torchrun set them; (0, 1, 1) without it.

    UserError where another launcher started several, each of which would train alone.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if all(value.isdecimal() for name, value in given.items() if name != "MASTER_ADDR"):
        rank, world = int(given.get("RANK", 0)), int(given.get("WORLD_SIZE", 1))
        local_world = int(given.get("LOCAL_WORLD_SIZE", world))
        if not {"RANK", "WORLD_SIZE"} <= given.keys() and (name := other_launcher()):
            raise UserError(
                f"{name}={os.environ[name]}: a launcher that is not torchrun started several "
                "processes, each of which would train alone. Start one on each machine, and these "
                "with torchrun: srun --ntasks-per-node=1 torchrun --nproc N "
                "-m vision_tutorial.train RECIPE."
            )
        possible = rank < world and int(given.get("LOCAL_RANK", 0)) < local_world <= world
        meets = {"RANK", "MASTER_PORT", "MASTER_ADDR"} <= given.keys()
        if possible and (world == 1 or meets and int(given["MASTER_PORT"]) < 2**16):
            return rank, world, local_world
    shown = " ".join(f"{name}={value}" for name, value in given.items())
    raise UserError(
        f"the environment says {shown}, which no launcher would set; unset these, or start with "
        "torchrun --nproc N."
    )


def other_launcher() -> str | None:
    """The variable by which srun or mpirun says that they started several processes, if one does.

    A batch script, and the shell of salloc, are one process of a job that may have many tasks.
    """
    names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_SIZE"]
    step = {"SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID"} & os.environ.keys()
    if "SLURM_STEP_NUM_TASKS" in step:
        names = ["SLURM_STEP_NUM_TASKS", *names]
    elif os.environ.get("SLURM_PROCID", "0") != "0" or step or "SLURM_JOB_ID" not in os.environ:
        names = ["SLURM_NTASKS", *names] if "SLURM_PROCID" in os.environ else names
    counts = ((name, os.environ.get(name, "")) for name in names)
    return next((name for name, count in counts if count.isdecimal() and int(count) > 1), None)


def ignore_accelerate() -> str | None:
    """Drop ACCELERATE_…, which another project or `accelerate launch` may have left in the
    environment; what to say if any of it would have changed the training."""
    found = {name for name in os.environ if name.startswith("ACCELERATE_")}
    values = {name: os.environ.pop(name) for name in sorted(found - {"ACCELERATE_LOG_LEVEL"})}
    idle = {"", "0", "no", "false", "default"}  # as `accelerate launch` sets them
    names = [name for name, value in values.items() if value.lower() not in idle]
    names = [name for name in names if (name[-5:], values[name]) != ("STEPS", "1")]
    if not names:
        return None
    return f"{', '.join(names)}: ignored; the recipe says how it is trained."
