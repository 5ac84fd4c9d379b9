"""What a bench says: JSON, the table for a terminal or Markdown, the sentence of what limits."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

from ..core.atomic import read_json
from ..core.errors import UserError
from ..runs.fingerprint import fingerprint
from .startup import Job
from .timed_pairs import Pair

WIDTH = 79
WORDS = {
    "data": "data",
    "step": "the step itself",
    "loop": "the loop's own work",
    "evaluation": "evaluation",
    "tracking": "checkpoint and logging",
}


def report(
    job: Job, pairs: Sequence[Pair], facts: Mapping[str, Any], took: float
) -> dict[str, Any]:
    """All that a bench found, on what machine, with which versions; took: seconds."""
    plain = [pair.plain() for pair in pairs]
    here, name = fingerprint(), job.load().recipe.name
    return {
        "recipe": name,
        "overrides": list(job.overrides),
        "machine": {k: here[k] for k in ("system", "cpu", "memory_bytes", "torch", "python")},
        **{k: here[k] for k in ("versions", "git", "created")},
        "rounds": job.rounds,
        "seconds": job.seconds,
        "took_seconds": round(took, 1),
        "pairs": plain,
        "facts": dict(facts),
        **verdict(name, plain, facts),
    }


def earlier(path: str) -> dict[str, Any]:
    """What an earlier bench printed with --json."""
    said = read_json(path)
    if not isinstance(said, dict) or "pairs" not in said:
        raise UserError(f"{path}: not what `bench --json` prints; name a recipe, or such a file.")
    return said


def shown(said: Mapping[str, Any], markdown: bool) -> Iterator[str]:
    """The whole answer of a bench, line by line."""
    head = f"{said['recipe']} {' '.join(said['overrides'])}".strip()
    sentences = [f"{head} on {machine(said)}", said["limits"], *notes(said["facts"])]
    first, *rest = ([text] if markdown else wrap(text, WIDTH) for text in sentences if text)
    yield from first
    yield ""
    yield from markdown_table(said["pairs"]) if markdown else table(said["pairs"])
    for lines in rest:
        yield ""
        yield from lines


def machine(said: Mapping[str, Any]) -> str:
    """Hardware and versions in a few words."""
    cpu, torch = said["machine"]["cpu"], said["machine"]["torch"] or {}
    cores = cpu["usable"] or cpu["threads"]
    hardware = [f"{cores} core{'s' * (cores != 1)} of {cpu['model']}", *torch.get("gpus", ())]
    versions = said["versions"]
    names = ", ".join(f"{n} {versions[n]}" for n in ("torch", "timm") if versions.get(n))
    return (
        f"{', '.join(hardware)}; {names}; rounds: {said['rounds']}, each side {said['seconds']:g} s"
    )


def table(pairs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For a terminal of 80 columns: a line for each pair."""
    yield row("", "ours", "beside", "", "ratio", "least-most", "n")
    for pair in pairs:
        ours, other = (amount(pair[side]["median"], pair["unit"]) for side in ("ours", "other"))
        yield row(pair["name"], ours, other, pair["other"]["what"], *ratio_cells(pair))


def row(name: str, ours: str, other: str, what: str, ratio: str, span: str, n: str) -> str:
    """A line of the table."""
    return f"{name:<18} {ours:>9} {other:>9} {what:<18} {ratio:>5} {span:>11} {n:>2}".rstrip()


def ratio_cells(pair: Mapping[str, Any]) -> tuple[str, str, str]:
    """The median, the least and the most, and how many."""
    ratio = pair["ratio"]
    span = f"{number(ratio['least'])}-{number(ratio['most'])}"
    return number(ratio["median"]), span, str(ratio["n"])


def markdown_table(pairs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For docs/performance.md."""
    yield "| what | ours | beside | ratio | least-most | n |"
    yield "|---|---|---|---|---|---|"
    for pair in pairs:
        sides = (pair[side] for side in ("ours", "other"))
        said = [f"{amount(side['median'], pair['unit'])} {side['what']}" for side in sides]
        yield f"| {' | '.join([pair['name'], *said, *ratio_cells(pair)])} |"


def amount(value: float, unit: str) -> str:
    """A value with its unit."""
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB"
    return digits(value) + {"s": " s", "images/s": "/s"}[unit]


def digits(value: float) -> str:
    """Three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def number(value: float) -> str:
    """A ratio: near 1, its third decimal matters."""
    return f"{value:.3f}" if value < 2 else digits(value)


def verdict(
    name: str, pairs: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Where the seconds of an epoch go, and the sentence that says what limits the recipe.

    Both are null unless step and evaluation were measured.
    """
    by_name = {pair["name"]: pair for pair in pairs}
    if not {"step", "evaluation"} <= by_name.keys():
        return {"epoch": None, "limits": None}
    step, evaluation = by_name["step"], by_name["evaluation"]
    training = facts["train_images"] / step["ours"]["median"]
    data = training * facts["data_share_of_step"]
    bare = min(facts["train_images"] / step["other"]["median"], training - data)
    seconds = {
        "data": data,
        "step": bare,
        "loop": training - data - bare,
        "evaluation": facts["val_images"] / evaluation["ours"]["median"],
        "tracking": facts["epoch_end_seconds"],
    }
    whole = sum(seconds.values())
    shares = {key: value / whole for key, value in seconds.items()}
    listed = ", ".join(f"{WORDS[key]} {share:.1%}" for key, share in shares.items())
    most = max(shares, key=shares.__getitem__)
    return {
        "epoch": {"seconds": whole, "parts": seconds, "shares": shares},
        "limits": f"{name} is limited by {WORDS[most]}. Of an epoch of {whole:.1f} s: {listed}.",
    }


def notes(facts: Mapping[str, Any]) -> list[str]:
    """What could not be measured, and why."""
    said = {
        "no_timm_loader": "timm's own loader was left out: it has no words for",
        "no_timm_train": "timm's train.py was left out: it has no words for",
        "no_scaling": "scaling was left out:",
    }
    return [f"{words} {facts[key]}." for key, words in said.items() if facts.get(key)]
