"""Run folders as `train` leaves them, made in a millisecond, for tests of what reads them."""

import json
from pathlib import Path
from typing import Any

from vision_tutorial.core.atomic import write_json
from vision_tutorial.recipe.fields import changes, to_plain, to_yaml
from vision_tutorial.recipe.loading import load
from vision_tutorial.runs import run_folder

RECIPES = Path(__file__).parent.parent / "recipes"


def make_run(
    root: Path,
    recipe: Path | str = "debug",
    *overrides: str,
    id: str = "1",
    values: list[float] | None = None,
    status: str = "done",
    metric: str = "val/top1",
    seconds: float = 60.0,
    name: str | None = None,
    **facts: Any,
) -> Path:
    """`root/<recipe>/<id>` of a training whose epochs reached `values` (default 50, 60, 55).

    recipe: a file, or the name of one of ours. seconds: of an epoch. facts: more of fingerprint.
    """
    values = [50.0, 60.0, 55.0] if values is None else values
    path = Path(recipe) if str(recipe).endswith(".yaml") else RECIPES / f"{recipe}.yaml"
    loaded = load(path, overrides)
    plain = to_plain(loaded.recipe) | ({} if name is None else {"name": name})
    folder = root / loaded.recipe.name / id
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(to_yaml(plain))
    origin = {"file": path.name}
    if loaded.base:
        origin |= {"base": loaded.base_path.name, "changes": changes(loaded.recipe, loaded.base)}
    made = {"created": "2026-11-25T22:29:54+00:00", "data": "d1", "recipe": origin}
    write_json(folder / "fingerprint.json", made | facts)
    rows = [
        {"epoch": n, "step": 10 * n, "train/loss": 1.0, metric: v, "val/top5": v + 10, "lr": 0.1}
        | {"seconds": seconds - 1, "seconds_eval": 1.0}
        for n, v in enumerate(values, start=1)
    ]
    run_folder.write_rows(folder / "metrics.jsonl", rows)
    run_folder.set_status(folder, status, exit_code=0)
    if status in ("done", "paused"):
        best = max(rows, key=lambda row: row[metric], default=None)
        write_json(
            folder / "summary.json",
            {
                "status": status,
                "metric": metric,
                "chosen_on": "test",
                "best": best and {"epoch": best["epoch"], "value": best[metric]},
                "last": best and {"epoch": rows[-1]["epoch"], "value": rows[-1][metric]},
                "epochs": len(rows),
                "wall_seconds": seconds * len(rows),
                "expects": plain["expects"],
            },
        )
    return folder


def edit(path: Path, **values: Any) -> None:
    """Change values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
