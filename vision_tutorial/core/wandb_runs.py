"""Runs that wandb keeps, read through its public API."""

from typing import Any

from .errors import UserError
from .run import Run, number
from .tracking import settle_mode

PREFIX = "wandb:"
SECONDS = 20
STATES = {"finished": "done", "crashed": "killed"}


def project_runs(word: str) -> list[Run]:
    """The runs of `wandb:entity/project`, oldest first. UserError if they cannot be read."""
    path = word.removeprefix(PREFIX).strip("/")
    try:
        import wandb

        mode, reason = settle_mode("auto", wandb)
        if mode != "online":
            raise UserError(reason)
        return from_api(wandb.Api(timeout=SECONDS), path)
    except Exception as error:  # whatever wandb raises
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"{PREFIX}{path}: cannot be read ({reason}). Check the name, the key and the network, "
            "or name run folders."
        ) from error


def from_api(api: Any, path: str) -> list[Run]:
    """The runs that an `Api` of wandb's lists under entity/project."""
    return [_run(found) for found in api.runs(path, order="+created_at")]


def _run(found: Any) -> Run:
    recipe, summary = dict(found.config), dict(found.summary)
    status = STATES.get(found.state, found.state)
    points = {
        which: {part: number(summary.get(f"{which}/{part}")) for part in ("epoch", "value")}
        for which in ("best", "last")
    }
    return Run(
        name=str(recipe.get("name") or found.name),
        id=found.id,
        recipe=recipe,
        status=status,
        summary={
            "status": status,
            "metric": _metric(summary, points["last"]["value"]),
            "wall_seconds": number(summary.get("_runtime")),
            **points,
        },
        fingerprint={"created": found.created_at},
        link=found.url,
    )


def _metric(summary: dict[str, Any], last: float | None) -> str | None:
    """The headline's name, which the run does not tell: its last value is `last/value`."""
    names = [name for name in summary if name.startswith("val/")]
    return next((name for name in names if summary[name] == last), None)
