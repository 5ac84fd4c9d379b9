"""The result of a bench: JSON, a table, and the sentence about what limits the recipe."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from ..core.atomic import read_json
from ..core.errors import UserError
from ..runs.fingerprint import fingerprint
from ..tables.table import Column, Table, plain_text
from ..tables.table import markdown as render_markdown
from .startup import Job
from .timed_pairs import Pair

_WIDTH = 79
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


def read_result(path: str) -> dict[str, Any]:
    """What an earlier bench printed with --json."""
    result = read_json(path)
    if not isinstance(result, dict) or "pairs" not in result:
        raise UserError(f"{path}: not what `bench --json` prints; name a recipe, or such a file.")
    return result


def print_result(result: Mapping[str, Any], markdown: bool) -> None:
    """Print the machine, the table, what limits the recipe, and what could not be measured."""
    head = f"{result['recipe']} {' '.join(result['overrides'])}".strip()
    rows = []
    for pair in result["pairs"]:
        ours, other = (_amount(pair[side]["median"], pair["unit"]) for side in ("ours", "other"))
        ratio = pair["ratio"]
        span = f"{_ratio(ratio['least'])}-{_ratio(ratio['most'])}"
        beside = f"{other} {pair['other']['what']}"
        rows.append((pair["name"], ours, beside, _ratio(ratio["median"]), span, ratio["n"]))
    titles = ("what", "ours", "beside", "ratio", "least-most")
    columns = (*(Column(title, title) for title in titles), Column("n", "n", "number"))
    table = Table(columns, tuple(rows))
    first, *rest = [f"{head} on {_machine(result)}", result["limits"], *_notes(result["facts"])]
    print(first if markdown else fill(first, _WIDTH), end="\n\n")
    print((render_markdown if markdown else plain_text)(table), end="")
    for text in filter(None, rest):
        print("\n" + (text if markdown else fill(text, _WIDTH)))


def _machine(result: Mapping[str, Any]) -> str:
    cpu, torch = result["machine"]["cpu"], result["machine"]["torch"] or {}
    cores = cpu["usable"] or cpu["threads"]
    hardware = [f"{cores} core{'s' * (cores != 1)} of {cpu['model']}", *torch.get("gpus", ())]
    versions = result["versions"]
    names = ", ".join(f"{n} {versions[n]}" for n in ("torch", "timm") if versions.get(n))
    rounds = f"rounds: {result['rounds']}, each side {result['seconds']:g} s"
    return f"{', '.join(hardware)}; {names}; {rounds}"


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB"
    return _digits(value) + {"s": " s", "images/s": "/s"}[unit]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 2 else _digits(value)


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


def _notes(facts: Mapping[str, Any]) -> list[str]:
    reasons = {
        "no_timm_loader": "timm's own loader was left out: it has no option for",
        "no_timm_train": "timm's train.py was left out: it has no option for",
        "no_scaling": "scaling was left out:",
    }
    return [f"{words} {facts[key]}." for key, words in reasons.items() if facts.get(key)]
