"""How fast a recipe runs on this machine. The two sides of each comparison take turns in one run;
printed are the median of their ratio, its least and its most.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..core.atomic import read_json
from ..core.cli_types import loading, positive, positive_count
from ..core.errors import UserError, unknown
from ..recipe.command_line import Parser, add_overrides
from ..recipe.loading import load
from ..runs.fingerprint import fingerprint
from ..tables.table import Column, Table, markdown, terminal
from . import entry_point

STAGES = {
    "data": "the data path beside timm's loader and beside our own image by image",
    "step": "the trainer beside the bare loop",
    "eval": "an evaluation beside the bare forward pass",
    "timm": "the trainer beside timm's train.py (needs --timm-train)",
    "startup": "from the command to the first step, beside importing torch and timm",
    "memory": "the peak beside the bare loop's and the data set",
    "scaling": "two processes beside one",
}
WORDS = {  # the parts of an epoch
    "data": "data",
    "step": "the step itself",
    "loop": "the loop's own work",
    "evaluation": "evaluation",
    "tracking": "checkpoint and logging",
}
_UNITS = {"images/s": (1, "/s"), "s": (1, " s"), "bytes": (2**30, " GiB")}
_REASONS = {
    "no_timm_loader": "timm's own loader was left out: it has no option for",
    "no_timm_train": "timm's train.py was left out: it has no option for",
    "no_scaling": "scaling was left out:",
}


def parser() -> Parser:
    """The command line."""
    listed = "; ".join(f"{name}: {what}" for name, what in STAGES.items())
    epilog = f"Measurements: {listed}. Leave the machine alone meanwhile, or it shows."
    made = Parser("vision-tutorial bench", description=__doc__, epilog=epilog)
    add, flag = made.add_argument, partial(made.add_argument, action="store_true")
    add("recipe", help="a recipe (file or name), or the JSON of an earlier bench")
    add_overrides(made)
    add("--only", metavar="LIST", help=f"some of {','.join(STAGES)} (default: all)")
    add("--rounds", type=positive_count, default=5, metavar="N", help="pairs (default: 5)")
    add("--seconds", type=positive, default=2.0, metavar="S", help="for each side (default: 2)")
    add("--timm-train", type=Path, metavar="PATH", help="timm's train.py, to measure beside it")
    flag("--json", help="print one JSON object and nothing else")
    flag("--markdown", help="print the table as Markdown")
    flag("--trust-imports", help="run the files that the recipe imports")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Measure, or show an earlier result."""
    if args.recipe.endswith(".json"):
        result = read_json(args.recipe)
        if not isinstance(result, dict) or "pairs" not in result:
            raise UserError(f"{args.recipe}: not what `bench --json` prints; or name a recipe.")
    else:
        result = _measured(args)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result, args.markdown)
    return 0


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    stages = _stages(args)
    recipe = load(args.recipe, args.overrides).recipe  # a mistake is reported before torch loads
    # asking whether there is a GPU must not start CUDA here: children could not share it
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    print("bench: importing torch and timm", file=sys.stderr, flush=True)
    import torch

    with loading():
        from .. import checks
    from ..benchmarking import measurements

    torch.set_num_threads(1)  # the threads of a pool would be missing in the children, forked
    began = time.perf_counter()
    pairs: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vision-tutorial-bench-") as folder:
        job = measurements.Bench(args, Path(folder))
        checks.check(job.recipe())
        for stage in stages:
            measured, more = getattr(measurements, f"measure_{stage}")(job)
            pairs += measured
            facts |= more
    here = fingerprint()
    return {
        "recipe": recipe.name,
        "overrides": args.overrides,
        "machine": {k: here[k] for k in ("system", "cpu", "memory_bytes", "torch", "python")},
        **{k: here[k] for k in ("versions", "git", "created")},
        "rounds": args.rounds,
        "seconds": args.seconds,
        "took_seconds": round(time.perf_counter() - began, 1),
        "pairs": pairs,
        "facts": facts,
        **verdict(recipe.name, pairs, facts),
    }


def _stages(args: argparse.Namespace) -> list[str]:
    script = args.timm_train
    asked = [name for name in (args.only or "").split(",") if name]
    for name in asked:
        if name not in STAGES:
            raise UserError(f"--only: {unknown('measurement', name, STAGES)}")
    if not script.is_file() if script else "timm" in asked:
        given = f"{script}, which is no file" if script else "nothing"
        raise UserError(f"given {given}; name timm's train.py: --timm-train PATH.")
    return [name for name in STAGES if name in asked or not asked and (name != "timm" or script)]


def verdict(
    name: str, pairs: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Where the seconds of an epoch go, and the sentence that says what limits the recipe.

    Both are null unless step and evaluation were measured.
    """
    rates = {p["name"]: (p["ours"]["median"], p["other"]["median"]) for p in pairs}
    if not {"step", "evaluation"} <= rates.keys():
        return {"epoch": None, "limits": None}
    training, bare = (facts["train_images"] / rate for rate in rates["step"])
    data = training * facts["data_share_of_step"]
    bare = min(bare, training - data)
    seconds = {"data": data, "step": bare, "loop": training - data - bare}
    seconds["evaluation"] = facts["val_images"] / rates["evaluation"][0]
    seconds["tracking"] = facts["epoch_end_seconds"]
    total = sum(seconds.values())
    shares = {key: value / total for key, value in seconds.items()}
    listed = ", ".join(f"{WORDS[key]} {share:.1%}" for key, share in shares.items())
    most = WORDS[max(shares, key=shares.__getitem__)]
    return {
        "epoch": {"seconds": total, "parts": seconds, "shares": shares},
        "limits": f"{name} is limited by {most}. Of an epoch of {total:.1f} s: {listed}.",
    }


def _print(result: Mapping[str, Any], as_markdown: bool) -> None:
    """The machine, the table, what limits the recipe, and what could not be measured."""
    rows = []
    for pair in result["pairs"]:
        scale, unit = _UNITS[pair["unit"]]
        ours, other = (_digits(pair[side]["median"] / scale) + unit for side in ("ours", "other"))
        median, least, most = (_digits(pair["ratio"][key]) for key in ("median", "least", "most"))
        beside = f"{other} {pair['other']['what']}"
        rows.append((pair["name"], ours, beside, median, f"{least}-{most}", pair["ratio"]["n"]))
    titles = ("what", "ours", "beside", "ratio", "least-most")
    columns = (*(Column(title, title) for title in titles), Column("n", "n", "number"))
    facts, versions, cpu = result["facts"], result["versions"], result["machine"]["cpu"]
    reasons = [f"{words} {facts[key]}." for key, words in _REASONS.items() if facts.get(key)]
    table = Table(columns, tuple(rows), tuple(filter(None, [result["limits"], *reasons])))
    gpus = "".join(f", {gpu}" for gpu in (result["machine"]["torch"] or {}).get("gpus", ()))
    print(
        f"{' '.join([result['recipe'], *result['overrides']])} on "
        f"{cpu['usable'] or cpu['threads']} x {cpu['model']}{gpus}; torch {versions['torch']}, "
        f"timm {versions['timm']}; rounds: {result['rounds']}, each side {result['seconds']:g} s\n"
    )
    if as_markdown:
        print(markdown(table), end="")
    else:
        terminal(table, sys.stdout)


def _digits(value: float) -> str:
    return f"{value:,.{(value < 100) + (value < 10) + (value < 2)}f}"
