"""Whether a run was reproduced: what differs around two runs, and whether their numbers agree.

Bit-identical: every column of metrics.jsonl that does not time is equal in every epoch compared,
and so are the weights of every step of which both runs hold a checkpoint.

Within noise: not so, but something that may change numbers differs (versions, hardware, threads,
code), or a GPU was used; and the headline's best values differ by no more than two runs with other
seeds do at 95 %: t · s · √2, with s the spread of this recipe's runs over their seeds.

Not reproduced: anything else. So a run whose recipe was edited, one on other data, and one that
differs though nothing around it does, are never within noise. Where nobody knows the spread, the
answer is that it is not reproduced, and what would tell.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from ..core.errors import UserError
from ..recipe.fields import digest
from ..recipe.yaml_lines import read_document
from . import reader
from .run import Run, json_object
from .run_folder import TIMED
from .seed_statistics import Sample, Spread, confidence_interval, pooled

# Facts of a fingerprint that change no number, or that others say better (threads, GPUs, data).
_HARMLESS = re.compile(
    r"created|command|host|memory_bytes|recipe\b|versions\.wandb"
    r"|environment\.(SLURM_|VISION_TUTORIAL_DATA|WANDB_|OMP_|MKL_|CUDA_VISIBLE)"
)
_ABSENT = object()


class _Difference(NamedTuple):
    """A fact of a fingerprint that is not the same in two runs."""

    fact: str
    there: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.fact}: {_said(self.there)} there, {_said(self.here)} here"


class Verdict(NamedTuple):
    """What came of it, and why."""

    word: Literal["bit-identical", "within noise", "not reproduced"]
    why: str

    @property
    def reproduced(self) -> bool:
        """Whether the claim stands."""
        return self.word != "not reproduced"


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[_Difference]:
    """The facts of two fingerprints that differ and may change numbers.

    A part that one of them does not know (what torch says, before it is imported) is left out.
    """
    one, other = dict(_facts(there)), dict(_facts(here))
    unknown = {part for part in ("torch", "data") if None in (there.get(part), here.get(part))}
    facts = sorted(one.keys() | other.keys())
    found = [_Difference(x, one.get(x, _ABSENT), other.get(x, _ABSENT)) for x in facts]
    return [x for x in found if x.there != x.here and x.fact.partition(".")[0] not in unknown]


def _facts(fingerprint: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in fingerprint.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{prefix}{key}.")
        elif not _HARMLESS.match(f"{prefix}{key}"):
            yield f"{prefix}{key}", value


def _said(value: Any) -> str:
    return "unset" if value is _ABSENT else str(value)


def _explained(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """What may make two runs of one recipe differ, in words; None where they must be equal."""
    found = [difference.fact for difference in differences(one, other)]
    if any((facts.get("git") or {}).get("dirty") for facts in (one, other)):
        found.append("uncommitted code")
    if any((facts.get("torch") or {}).get("gpus") for facts in (one, other)):
        found.append("a GPU, which sums in any order")
    return ", ".join(found) or None


def edited(run: Run) -> str | None:
    """A line if recipe.yaml is not what the run was trained with, as its own records tell."""
    values = read_document(run.folder / "recipe.yaml").values
    recorded = [(run.fingerprint.get("recipe") or {}).get("identity")]
    recorded += [manifest.get("recipe_hash") for manifest in _manifests(run).values()]
    recorded = [text for text in recorded if isinstance(text, str)]
    now = digest(values) if isinstance(values.get("data"), dict) else "damaged"
    if not recorded or now in recorded:
        return None
    return f"recipe.yaml was edited: it is {now}, and the run was trained with {recorded[-1]}"


def first_difference(there: Run, here: Run, epochs: int) -> str | None:
    """Where the metrics of the first `epochs` epochs differ first; None if they are equal."""
    for number in range(epochs):
        if number >= len(here.rows):
            return f"epoch {number + 1} is missing"
        one, other = there.rows[number], here.rows[number]
        for column, value in one.items():
            found = other.get(column, _ABSENT)
            same = type(value) is type(found) and value == found
            if column not in TIMED and not same:
                return f"epoch {number + 1}: {column} is {value} there, {_said(found)} here"
    return None


def weights(there: Run, here: Run) -> dict[str, bool]:
    """Whether the weights are equal, by checkpoint, of the checkpoints that both runs hold."""

    def tensors(manifest: Mapping[str, Any]) -> dict[str, Any]:
        files = manifest.get("files") or {}
        return {name: files[name] for name in files if name.endswith(".safetensors")}

    one, other = _manifests(there), _manifests(here)
    return {name: tensors(one[name]) == tensors(other[name]) for name in one if name in other}


def _manifests(run: Run) -> dict[str, dict[str, Any]]:
    found = {}
    for folder in sorted((run.folder / "ckpt").glob("step-*")):
        with suppress(UserError):  # a damaged checkpoint tells nothing
            found[folder.name] = json_object(folder / "MANIFEST.json")
    return {name: manifest for name, manifest in found.items() if manifest}


def _headline(run: Run, epochs: int) -> float | None:
    pick = max if run.higher_is_better else min
    return pick((p.value for p in run.points if p.epoch <= epochs), default=None)


def _spread_of(run: Run, epochs: int) -> Spread | None:
    """The spread of `headline` over the seeds with which this recipe ran, in folders beside it."""
    others, _ = reader.collect([run.folder.absolute().parent])
    values: dict[Any, float] = {}
    for other in (run, *others):
        value = _headline(other, epochs)
        alike = other.experiment == run.experiment and len(other.rows) >= epochs
        if alike and value is not None:
            values.setdefault(other.seed, value)
    return pooled([Sample(tuple(values.values()))]) if values else None


def judge(there: Run, here: Run, epochs: int, spread: float | None = None) -> Verdict:
    """The verdict on `here`, a second run of the recipe of `there`, over the first `epochs` epochs.

    spread: a standard deviation of the headline between seeds, where no runs tell.
    """
    if reason := edited(there) or edited(here):
        return Verdict("not reproduced", reason)
    if digest(there.recipe) != digest(here.recipe):
        return Verdict("not reproduced", "the two runs are of different recipes")
    data = [run.fingerprint.get("data") for run in (there, here)]
    if None not in data and data[0] != data[1]:
        return Verdict("not reproduced", "the training data is not the same (its hash differs)")
    differs = first_difference(there, here, epochs)
    held = weights(there, here)
    if differs is None and all(held.values()):
        also = f", and weights at {', '.join(held)}" if held else ""
        return Verdict("bit-identical", f"all metrics of {_epochs(epochs)}{also}")
    differs = differs or f"the weights differ at {next(n for n, same in held.items() if not same)}"
    if len(here.rows) < epochs:
        reason = f"{here.status} after {_epochs(len(here.rows))} of {epochs}"
        return Verdict("not reproduced", reason)
    because = _explained(there.fingerprint, here.fingerprint)
    if because is None:
        return Verdict("not reproduced", f"{differs}; and nothing around it differs")
    return _by_noise(there, here, epochs, spread, f"{differs} (may be due to {because})")


def _by_noise(there: Run, here: Run, epochs: int, given: float | None, why: str) -> Verdict:
    values = _headline(there, epochs), _headline(here, epochs)
    if None in values:
        return Verdict("not reproduced", f"{why}; there is no headline metric to compare")
    known = _spread_of(there, epochs) or (Spread(given) if given else None)
    widest = confidence_interval(Sample(values[:1]), Sample(values[1:]), known)
    apart = abs(values[0] - values[1])
    text = f"{why}; best {there.metric} {values[0]:.2f} there, {values[1]:.2f} here"
    if widest is None:
        text += "; the spread between seeds is unknown: train this recipe with other seeds beside"
        return Verdict("not reproduced", f"{text} it, or say it with --spread")
    seeds = "as given" if known.freedom == math.inf else f"from {int(known.freedom) + 1} seeds"
    rule = f"runs of other seeds lie up to {widest:.2f} apart (spread {known.value:.2f}, {seeds})"
    word = "within noise" if apart <= widest else "not reproduced"
    return Verdict(word, f"{text}; {rule}")


def _epochs(number: int) -> str:
    return f"{number} epoch{'s' * (number != 1)}"
