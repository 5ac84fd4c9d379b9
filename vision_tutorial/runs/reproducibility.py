"""Whether a run was reproduced: bit-identical, within noise, or not. docs/rerun.md: when."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from ..core.errors import UserError, counted
from ..recipe.fields import digest, identities
from ..recipe.yaml_lines import read_document
from . import reader
from .reader import Run
from .run_folder import TIMED, json_object
from .seed_statistics import Sample, Spread, confidence_interval, pooled

# Facts of a fingerprint that change no number, or that others say better (threads, GPUs, data).
_HARMLESS = re.compile(
    r"created|command|folder\b|host|left_out|memory_bytes|recipe\b|resumed|versions\.wandb"
    r"|environment\.(SLURM_|VISION_TUTORIAL_DATA|WANDB_|OMP_|MKL_|CUDA_VISIBLE)"
)
_UNSET = "unset"


class Verdict(NamedTuple):
    """What came of it, and why."""

    word: Literal["bit-identical", "within noise", "not reproduced"]
    why: str


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """The facts of two fingerprints that differ and may change numbers, and their two values.

    A part that one of them does not know (what torch says, before it is imported) is left out.
    """
    parts = ("torch", "data", "val_data")
    unknown = {part for part in parts if None in (there.get(part), here.get(part))}
    one, other = facts(there), facts(here)
    found = {}
    for fact in sorted(one.keys() | other.keys()):
        pair = one.get(fact, _UNSET), other.get(fact, _UNSET)
        if pair[0] != pair[1] and not (_HARMLESS.match(fact) or fact.split(".")[0] in unknown):
            found[fact] = f"{pair[0]} there, {pair[1]} here"
    return found


def facts(fingerprint: Mapping[str, Any], depth: int = 4) -> dict[str, Any]:
    """What a fingerprint holds, a flat mapping: {"cpu.model": …}."""
    found = {}
    for key, value in fingerprint.items():
        if isinstance(value, Mapping) and depth:
            found |= {f"{key}.{name}": item for name, item in facts(value, depth - 1).items()}
        else:
            found[str(key)] = value
    return found


def _explanation(there: Run, here: Run) -> str:
    """What may make two runs of one recipe differ, in words; "" where they must be equal."""
    both = (there.fingerprint, here.fingerprint)
    found = [*differences(*both)]
    if any((x.get("git") or {}).get("dirty") for x in both):
        found.append("uncommitted code")
    if any((x.get("torch") or {}).get("gpus") for x in both):
        found.append("a GPU, which sums in any order")
    return ", ".join(found)


def edited(run: Run) -> str | None:
    """A line if recipe.yaml is not what the run was trained with, as its own records tell."""
    values = read_document(run.folder / "recipe.yaml").values
    recorded = [run.origin.get("identity")]
    recorded += [manifest.get("recipe_hash") for manifest in _manifests(run).values()]
    recorded = [text for text in recorded if isinstance(text, str)]
    now = identities(values) if isinstance(values.get("data"), dict) else {"damaged"}
    if not recorded or now & {*recorded}:
        return None
    return f"recipe.yaml was edited: it is {min(now)}, and the run was trained with {recorded[-1]}"


def first_difference(there: Run, here: Run, epochs: int) -> str | None:
    """Where the metrics of the first `epochs` epochs differ first; None if they are equal."""
    for number in range(epochs):
        if number >= len(here.rows):
            return f"epoch {number + 1} is missing"
        for column, value in there.rows[number].items():
            found = here.rows[number].get(column, _UNSET)
            same = type(value) is type(found) and value == found
            if column not in TIMED and not same:
                return f"epoch {number + 1}: {column} is {value} there, {found} here"
    return None


def _equal_weights(there: Run, here: Run) -> dict[str, bool]:
    """Whether the weights are equal, by checkpoint, of the checkpoints that both runs hold."""

    def digests(manifest: Mapping[str, Any]) -> dict[str, Any]:
        files = manifest.get("files") or {}
        return {name: files[name] for name in files if name.endswith(".safetensors")}

    one, other = _manifests(there), _manifests(here)
    return {name: digests(one[name]) == digests(other[name]) for name in one if name in other}


def _manifests(run: Run) -> dict[str, dict[str, Any]]:
    found = {}
    for folder in sorted((run.folder / "ckpt").glob("step-*")):
        with suppress(UserError):  # a damaged checkpoint tells nothing
            found[folder.name] = json_object(folder / "MANIFEST.json")
    return {name: manifest for name, manifest in found.items() if manifest}


def judge(there: Run, here: Run, epochs: int, spread: float | None = None) -> Verdict:
    """The verdict on `here`, a second run of the recipe of `there`, over the first `epochs` epochs.

    spread: a standard deviation of the headline between seeds, where no runs tell.
    """
    data = [run.fingerprint.get("data") for run in (there, here)]
    weights = _equal_weights(there, here)
    differs = first_difference(there, here, epochs)
    if not differs and not all(weights.values()):
        differs = f"the weights differ at {next(name for name in weights if not weights[name])}"
    why = edited(there) or edited(here)
    if why:
        pass
    elif digest(there.recipe) != digest(here.recipe):
        why = "the two runs are of different recipes"
    elif None not in data and data[0] != data[1]:
        why = "the training data is not the same (its hash differs)"
    elif not differs:
        also = f", and weights at {', '.join(weights)}" if weights else ""
        return Verdict("bit-identical", f"all metrics of {_epochs(epochs)}{also}")
    elif len(here.rows) < epochs:
        why = f"{here.status} after {_epochs(len(here.rows))} of {epochs}"
    elif because := _explanation(there, here):
        return _by_noise(there, here, epochs, spread, f"{differs} (may be due to {because})")
    else:
        why = f"{differs}; and nothing around it differs"
    return Verdict("not reproduced", why)


def _by_noise(there: Run, here: Run, epochs: int, given: float | None, why: str) -> Verdict:
    one, two = there.best_row(epochs), here.best_row(epochs)
    if one is None or two is None:
        return Verdict("not reproduced", f"{why}; there is no headline metric to compare")
    known = _spread(there, epochs) or (Spread(given) if given else None)
    widest = confidence_interval(Sample((one.value,)), Sample((two.value,)), known)
    why += f"; best {there.metric} {one.value:.2f} there, {two.value:.2f} here; "
    if widest is None:
        why += "the spread between seeds is unknown: train this recipe with other seeds beside it, "
        return Verdict("not reproduced", why + "or say it with --spread")
    seeds = (
        "as given"
        if known.freedom == math.inf
        else f"from {counted(int(known.freedom) + 1, 'seed')}"
    )
    why += f"runs of other seeds lie up to {widest:.2f} apart (spread {known.value:.2f}, {seeds})"
    within = abs(one.value - two.value) <= widest
    return Verdict("within noise" if within else "not reproduced", why)


def _spread(run: Run, epochs: int) -> Spread | None:
    """The spread of the best over the seeds with which this recipe ran, in folders beside it."""
    others, _ = reader.collect([run.folder.absolute().parent])
    values: dict[Any, float] = {}
    for other in (run, *others):
        best = other.best_row(epochs)
        if best and other.experiment == run.experiment and len(other.rows) >= epochs:
            values.setdefault(other.recipe.get("seed"), best.value)
    return pooled([Sample(tuple(values.values()))]) if values else None


def _epochs(number: int) -> str:
    return counted(number, "epoch")
