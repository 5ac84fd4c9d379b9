"""What rank 0 does beside training: checkpoints, the run folder, the tracker, the display."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ..core.atomic import write_json
from ..core.errors import UserError
from ..recipe.fields import CheckpointPolicy
from ..runs import run_folder
from ..runs.time_breakdown import shares
from ..runs.wandb_logger import Tracker
from .checkpoint import Checkpoints, Damaged, Groups, put_weights, step_of
from .loop import Plan, Progress, Recorder
from .optimizer_state import pack, restore_optimizer
from .progress import Display
from .step import TrainingState

_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Seconds = Annotated[float, Field(ge=0, lt=2**53)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Progress(_Checked):
    """`Progress` in a file: counts from 0 up, a row for each epoch, a table of even columns."""

    step: _Count
    rows: list[dict[str, float | None]]
    sums: dict[str, float]
    items: _Count = 0
    skipped: _Count = 0
    skipped_in_row: _Count = 0
    seconds: _Seconds = 0
    seconds_data: _Seconds = 0
    seconds_overhead: _Seconds = 0
    table: dict[str, list[Any]] = {}
    total_seconds: _Seconds = 0

    @model_validator(mode="after")
    def _even(self) -> Self:
        if [row.get("epoch") for row in self.rows] != [n + 1 for n in range(len(self.rows))]:
            raise ValueError("its rows are not one for each epoch")
        if len({len(column) for column in self.table.values()}) > 1:
            raise ValueError("its table's columns differ in length")
        return self


class _Saved(_Checked):
    """The state of a checkpoint."""

    model_config = ConfigDict(extra="ignore")

    progress: _Progress
    optimizer: dict[str, Any]
    scaler: dict[str, float]


@dataclass
class RunRecorder(Recorder):
    """Saves first, then reports: what was reported is on disk, unless the disk itself failed.

    A thread writes while the training goes on, so an epoch is reported some steps after its end.
    """

    run: Path
    training: TrainingState
    checkpoints: Checkpoints
    policy: CheckpointPolicy
    tracker: Tracker
    display: Display
    saved: float = field(default_factory=time.monotonic)
    # the row and, of the best, the table of classes of an epoch whose checkpoint is being written
    ended: tuple[dict[str, Any], dict[str, list[Any]] | None] | None = None

    def save(self, progress: Progress, is_best: bool | None = None) -> None:
        self.catch_up()
        scaler = self.training.distributed.scaler
        optimizer: dict[str, Tensor] = {}
        state = {
            "progress": asdict(progress),
            "optimizer": pack(self.training.optimizer.state_dict(), optimizer),
            "scaler": scaler.state_dict() if scaler else {},
        }
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": self.training.model.state_dict(),
            "ema": self.training.ema.tensors,
            "criteria": self.training.blends.state_dict(),
            "optim": optimizer,
        }
        tensors = {name: group for name, group in tensors.items() if group}
        self.checkpoints.save(progress.step, tensors, state, bool(is_best))
        self.saved = time.monotonic()
        if is_best is not None:
            self.ended = (progress.rows[-1], progress.table if is_best else None)

    def due(self, progress: Progress) -> bool:
        steps, minutes = self.policy.every_steps, self.policy.every_minutes
        late = minutes is not None and time.monotonic() - self.saved > 60 * minutes
        return late or bool(steps and progress.step % steps == 0)

    def stepped(self, progress: Progress, loss: float | None, lr: float) -> None:
        if self.ended and not self.checkpoints.busy:
            self.catch_up()
        self.display.step(progress.step, loss, lr, progress.items / progress.seconds)

    def evaluating(self, done: int, total: int) -> None:
        self.display.evaluating(done, total)

    def catch_up(self) -> None:
        """Wait for the checkpoint; then metrics.jsonl, classes.json, tracker, display."""
        ended, self.ended = self.ended, None  # never reported if the save ends the training
        self.checkpoints.wait()
        if ended:
            row, table = ended
            run_folder.append_row(self.run / "metrics.jsonl", row)
            if table is not None:
                write_json(self.run / "classes.json", table)
            self.tracker.log(row)
            self.display.epoch(row, best=table is not None)

    def close(self) -> None:
        """Wait for the last checkpoint and report it. StorageError if it could not be saved."""
        self.catch_up()
        self.checkpoints.wait(last=True)


def restore(training: TrainingState, checkpoints: Checkpoints) -> Progress | None:
    """Put the newest whole checkpoint into `training`; None where there never was one."""
    loaded, distributed = checkpoints.load(partial(_put, training)), training.distributed
    name = loaded and loaded[0].name
    if distributed.any(name != distributed.broadcast_object(name)):
        raise UserError(
            f"{checkpoints.folder}: the processes found different checkpoints; all must see the "
            "same run folder. Use a shared disk, or one machine."
        )
    return loaded and loaded[2]


def _put(training: TrainingState, folder: Path, tensors: Groups, state: Any) -> Progress:
    """Load a checkpoint; raises whatever torch and pydantic do where it is none of a training."""
    saved = _Saved.model_validate(state)
    if saved.progress.step != step_of(folder):
        raise ValueError(f"it is of step {saved.progress.step}")
    put_weights(training.model, tensors["model"], folder)
    for name, average in training.ema.tensors.items():
        average.copy_(tensors["ema"][name])
    put_weights(training.blends, tensors.get("criteria", {}), folder)
    try:
        restore_optimizer(training.optimizer, tensors.get("optim", {}), saved.optimizer)
    except UserError as error:  # of this recipe, and yet of another optimizer
        raise Damaged(str(error)) from error
    if training.distributed.scaler and saved.scaler:
        training.distributed.scaler.load_state_dict(saved.scaler)
    return Progress(**state["progress"])


def summarise(
    plan: Plan, progress: Progress, status: str, expects: dict[str, Any], chosen_on: str
) -> dict[str, Any]:
    """summary.json: the best and the last evaluated epoch are different numbers, and named so."""
    name = plan.headline
    rows = [row for row in progress.rows if row.get(name) is not None]
    points = [{"epoch": row["epoch"], "value": row[name]} for row in rows]
    pick = max if plan.meter.higher_is_better else min
    return {
        "status": status,
        "metric": name,
        "chosen_on": chosen_on,
        "best": pick(points, key=lambda point: point["value"], default=None),
        "last": points[-1] if points else None,
        "epochs": len(progress.rows),
        "wall_seconds": round(progress.total_seconds, 3),
        "time": {name: round(part, 4) for name, part in shares(progress.rows).items()},
        "expects": expects,
    }
