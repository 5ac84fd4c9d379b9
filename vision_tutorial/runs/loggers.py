"""Where rows, tables and images of a run go beside its folder: wandb, TensorBoard, or both."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..recipe.fields import Recipe
from ..recipe.notation import number
from . import wandb_logger
from .fingerprint import author


class TensorBoard:
    """Rows and images as TensorBoard's event files, in RUN/tensorboard.

    They are written anew at each start, since all rows are sent again at a resume.
    """

    def __init__(self, run: Path):
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink(missing_ok=True)
        self.writer, self.step = SummaryWriter(str(folder)), 0

    def log(self, row: Mapping[str, Any]) -> None:
        self.step = row["step"]
        for name, value in row.items():
            if (plain := number(value)) is not None and name != "step":
                self.writer.add_scalar(name, plain, self.step)
        self.writer.flush()

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = [f"| {' | '.join(map(str, row))} |" for row in (columns, *rows)]
        lines.insert(1, "|---" * len(columns) + "|")
        self.writer.add_text(name, "\n".join(lines), self.step)

    def image(self, name: str, pixels: Any) -> None:
        self.writer.add_image(name, pixels, self.step, dataformats="HWC")

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        self.writer.close()


class Loggers:
    """Several loggers as one."""

    def __init__(self, each: Sequence[Any]):
        self.each = each

    def log(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl; those of before are sent again at a resume."""
        for logger in self.each:
            logger.log(row)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Such as every class and its accuracy."""
        for logger in self.each:
            logger.table(name, columns, rows)

    def image(self, name: str, pixels: Any) -> None:
        """uint8 (H, W, 3)."""
        for logger in self.each:
            logger.image(name, pixels)

    def finish(self, summary: Mapping[str, Any], exit_code: int = 0) -> None:
        """Wait until all has arrived."""
        for logger in self.each:
            logger.finish(summary, exit_code)


def check(recipe: Recipe) -> None:
    """UserError where a logger of the recipe is not installed."""
    if "tensorboard" in recipe.loggers and not importlib.util.find_spec("tensorboard"):
        raise UserError("loggers: tensorboard is not installed: pip install tensorboard.")


def make(run: Path, recipe: Recipe, config: dict[str, Any], say: Callable[[str], None]) -> Loggers:
    """The loggers that the recipe names. config: the recipe, free of secrets."""
    made: list[Any] = []
    if "wandb" in recipe.loggers:
        given = recipe.wandb.model_dump() | {"group": recipe.wandb.group or recipe.name}
        name = f"{recipe.name}-{run.name}"
        given |= {"name": wandb_logger.fitted(recipe.wandb.name or name)}
        given |= {"id": wandb_logger.run_id(run, name), "config": config | {"author": author()}}
        made.append(wandb_logger.make_tracker(**given, folder=run, say=say))
    if "tensorboard" in recipe.loggers:
        made.append(TensorBoard(run))
    return Loggers(made)
