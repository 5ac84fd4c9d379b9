"""What rank 0 does beside training: checkpoints, the run folder, the tracker, the display."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..core.atomic import write_json
from ..core.errors import UserError
from ..recipe.fields import CheckpointPolicy
from ..runs import run_folder
from ..runs.time_breakdown import shares
from ..runs.wandb_logger import Tracker
from .checkpoint import Checkpoints
from .distributed import Distributed
from .loop import Plan, Progress, Recorder
from .optimizer_state import flatten_optimizer, restore_optimizer
from .progress import Display
from .step import TrainingState


class EpochResult(NamedTuple):
    """What is reported of an epoch once its checkpoint is on disk."""

    row: dict[str, Any]
    table: dict[str, list[Any]]  # of classes
    is_best: bool


@dataclass
class RunRecorder(Recorder):
    """Saves first, then reports: what was reported is on disk, unless the disk itself failed.

    A thread writes while the training goes on, so an epoch is reported some steps after its end.
    """

    run: Path
    training: TrainingState
    distributed: Distributed
    checkpoints: Checkpoints
    policy: CheckpointPolicy
    tracker: Tracker
    display: Display
    saved: float = field(default_factory=time.monotonic)
    is_best: bool = False
    result: EpochResult | None = None  # of an epoch whose checkpoint is being written

    def save(self, progress: Progress, is_best: bool) -> None:
        """Write a checkpoint, on a thread, when the one before is written and reported."""
        self.catch_up()
        tensors, state = _training_state_dict(self.training, self.distributed, progress)
        self.checkpoints.save(progress.step, tensors, state, is_best)
        self.saved, self.is_best = time.monotonic(), is_best

    def due(self, progress: Progress) -> bool:
        steps, minutes = self.policy.every_steps, self.policy.every_minutes
        if steps and progress.step % steps == 0:
            return True
        return minutes is not None and time.monotonic() - self.saved > 60 * minutes

    def stepped(self, progress: Progress, loss: float | None, lr: float, items: int) -> None:
        """Move the bar; report the last epoch if its checkpoint is there by now."""
        if self.result and not self.checkpoints.busy:
            self.catch_up()
        self.display.step(progress.step, loss, lr, items)

    def evaluating(self, done: int, total: int) -> None:
        self.display.evaluating(done, total)

    def finished_epoch(self, progress: Progress) -> None:
        """Report it as soon as the checkpoint is on disk."""
        self.display.pause()
        self.result = EpochResult(progress.rows[-1], progress.table, self.is_best)

    def catch_up(self) -> None:
        """Wait for the checkpoint; then metrics.jsonl, classes.json, tracker, display."""
        result, self.result = self.result, None  # never reported if the save ends the training
        self.checkpoints.wait()
        if result:
            run_folder.append_row(self.run / "metrics.jsonl", result.row)
            if result.is_best:
                write_json(self.run / "classes.json", result.table)
            self.tracker.log(result.row)
            self.display.epoch(result.row, best=result.is_best)

    def close(self) -> None:
        """Wait for the last checkpoint and report it. StorageError if it could not be saved."""
        self.catch_up()
        self.checkpoints.finish()


def _training_state_dict(
    training: TrainingState, distributed: Distributed, progress: Progress
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """All that training depends on from here: tensors by file, and JSON."""
    optimizer, packed = flatten_optimizer(training.optimizer.state_dict())
    tensors = _tensors_by_file(training) | {"optim": optimizer}
    state = {
        "progress": asdict(progress),
        "optimizer": packed,
        "scaler": distributed.scaler.state_dict() if distributed.scaler else {},
    }
    return {name: group for name, group in tensors.items() if group}, state


def _tensors_by_file(training: TrainingState) -> dict[str, Mapping[str, Tensor]]:
    return {
        "model": training.model.state_dict(),
        "ema": training.ema.tensors,
        "criteria": training.blends.state_dict(),
    }


def restore(
    training: TrainingState, distributed: Distributed, checkpoints: Checkpoints
) -> Progress | None:
    """Put the newest whole checkpoint into `training`; None where there never was one."""
    loaded = checkpoints.load(
        {name: group for name, group in _tensors_by_file(training).items() if group}
    )
    step = -1 if loaded is None else loaded.step
    if distributed.any(step != distributed.broadcast_object(step)):
        raise UserError(
            f"{checkpoints.folder}: the processes found different checkpoints; all must see the "
            "same run folder. Use a shared disk, or one machine."
        )
    if loaded is None:
        return None
    training.model.load_state_dict(loaded.tensors["model"])
    training.ema.load(loaded.tensors.get("ema", {}))
    training.blends.load_state_dict(loaded.tensors.get("criteria", {}))
    restore_optimizer(
        training.optimizer, loaded.tensors.get("optim", {}), loaded.state["optimizer"]
    )
    if distributed.scaler and loaded.state["scaler"]:
        distributed.scaler.load_state_dict(loaded.state["scaler"])
    return Progress(**loaded.state["progress"])


def summarise(
    plan: Plan, progress: Progress, status: str, expects: dict[str, Any], chosen_on: str
) -> dict[str, Any]:
    """summary.json: the best and the last evaluated epoch are different numbers, and named so."""
    name = f"val/{plan.headline}"
    rows = [row for row in progress.rows if row.get(name) is not None]
    pick = max if plan.higher_is_better else min
    best = pick(rows, key=lambda row: row[name], default=None)

    def point(row: dict[str, Any] | None) -> dict[str, Any] | None:
        return row and {"epoch": row["epoch"], "value": row[name]}

    return {
        "status": status,
        "metric": name,
        "chosen_on": chosen_on,
        "best": point(best),
        "last": point(rows[-1] if rows else None),
        "epochs": len(progress.rows),
        "wall_seconds": round(progress.total_seconds, 3),
        "time": {name: round(part, 4) for name, part in shares(progress.rows).items()},
        "expects": expects,
    }
