"""What a training writes into its run folder before its first step."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.atomic import write_json, write_text
from ..core.errors import StorageError, UserError
from ..recipe.fields import UNESSENTIAL, Recipe, changes, identity, to_plain, to_yaml
from ..recipe.loading import Loaded
from . import run_folder
from .fingerprint import fingerprint
from .redaction import redact

_DATA = {"data": "training", "val_data": "validation"}


def new_run(root: str, id: str | None, loaded: Loaded) -> Path:
    """A fresh run folder that holds the resolved recipe and the files it imports."""
    names = [path.name for path in loaded.imports]
    if len(set(names)) < len(names):
        raise UserError(f"imports: two files of one name ({', '.join(names)}); rename one.")
    try:
        run = run_folder.new_run(root, loaded.recipe.name, id)
    except StorageError as error:
        raise StorageError(f"{error} --runs DIR says where run folders go.") from error
    write_recipe(run, loaded)
    return run


def write_recipe(run: Path, loaded: Loaded) -> None:
    """The resolved recipe, beside the files it imports."""
    for path in loaded.imports:
        if path.parent.absolute() != run.absolute():
            shutil.copy(path, run / path.name)
    values = to_plain(loaded.recipe) | {"imports": [path.name for path in loaded.imports]}
    values["wandb"] = redact(values["wandb"])  # the one place for free text
    write_text(run / "recipe.yaml", to_yaml(values))


def first_identity(run: Path) -> list[str]:
    """The hash of the recipe with which the run began, as the version that began it defined it."""
    origin = run_folder.json_object(run / "fingerprint.json").get("recipe")
    found = origin.get("identity") if isinstance(origin, dict) else None
    return [found] if isinstance(found, str) else []


def start(
    run: Path,
    loaded: Loaded,
    recorded: Recipe | None,
    digests: Mapping[str, str],
    left_out: Mapping[str, Any],
    progress: Any,
) -> None:
    """recipe.yaml, fingerprint.json, status.json; metrics.jsonl as the checkpoint knows it.

    recorded: the recipe so far, of a run that goes on. digests: of the splits. left_out: images of
    each split that cannot be read. UserError if it is other data than the run began with.
    """
    file = run / "fingerprint.json"
    facts = run_folder.json_object(file) if file.exists() else fingerprint() | digests
    for key, which in _DATA.items():  # earlier versions did not know the validation data's
        if facts.get(key, digests[key]) != digests[key]:
            raise UserError(
                f"{run}: the {which} data is not what this run began with (its hash differs). "
                "Restore the data, or start a new run."
            )
    different = changes(loaded.recipe, recorded) if recorded and progress.step else {}
    different = {key: pair for key, pair in different.items() if key not in UNESSENTIAL}
    if different:
        past = facts.get("resumed")
        past = past if isinstance(past, list) else []
        facts["resumed"] = [*past, {"step": progress.step, "changes": different}]
    if not file.exists():
        if any(left_out.values()):
            facts["left_out"] = left_out
        facts["folder"] = os.getcwd()
        facts["recipe"] = {"file": loaded.path.name, "identity": identity(loaded.recipe)}
        if loaded.base:
            facts["recipe"] |= {"base": loaded.base_path.name}
            facts["recipe"] |= {"changes": redact(changes(loaded.recipe, loaded.base))}
    if different or not file.exists():
        write_json(file, facts)
    write_recipe(run, loaded)
    run_folder.write_rows(run / "metrics.jsonl", progress.rows)
    if progress.table:
        write_json(run / "classes.json", progress.table)
    run_folder.set_status(run, "running", pid=os.getpid())
