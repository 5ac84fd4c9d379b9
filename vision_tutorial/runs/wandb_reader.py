"""Runs that wandb keeps, read through its public API."""

import inspect
from typing import Any

from ..core.errors import UserError
from .reader import Run
from .wandb_logger import decide_mode

PREFIX = "wandb:"
_STATES = {"finished": "done", "crashed": "killed"}


def project_runs(word: str) -> list[Run]:
    """The runs of `wandb:entity/project`, oldest first. UserError if they cannot be read."""
    path = word.removeprefix(PREFIX).strip("/")
    try:
        import wandb

        mode, reason = decide_mode("auto", wandb)
        if mode != "online":
            raise UserError(reason)
        api = wandb.Api(timeout=20)  # seconds
        # without it newer versions fetch each run by itself
        whole = {"lazy": False} if "lazy" in inspect.signature(api.runs).parameters else {}
        return [_run(found) for found in api.runs(path, order="+created_at", **whole)]
    except Exception as error:  # whatever wandb raises
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"{PREFIX}{path}: cannot be read ({reason}). Check the name, the key and the network, "
            "or name run folders."
        ) from error


def _run(found: Any) -> Run:
    recipe, summary = dict(found.config), dict(found.summary)
    person = recipe.pop("author", None)
    if not person and hasattr(found, "user"):  # whose key it was; a class may share one
        person = getattr(found.user, "name", None)
    status = _STATES.get(found.state, found.state)
    if status == "done":  # also of a run that was paused
        status = str(summary.get("status") or status)
    kept = {key: summary.get(key) for key in ("metric", "chosen_on")}
    for which in ("best", "last"):
        kept[which] = {part: summary.get(f"{which}/{part}") for part in ("epoch", "value")}
    return Run(
        name=str(recipe.get("name") or found.name),
        id=found.id,
        recipe=recipe,
        status=status,
        summary=kept | {"status": status, "wall_seconds": summary.get("_runtime")},
        fingerprint={"created": found.created_at, "author": person},
        link=found.url,
    )
