"""The dry run: the resolved recipe, what it changes, what it costs, and what may not be meant."""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from ..core.errors import UserError, run_main, short, shown
from ..recipe import advice_losses  # noqa: F401  (puts its lints on the list)
from ..recipe.advice import Advice, advice
from ..recipe.fields import Recipe, changes, to_plain, to_yaml
from ..recipe.loading import Loaded, load
from ..recipe.recipe_info import RecipeInfo, recipe_info, used
from ..recipe.schema import schema
from ..recipe.signatures import static_signatures

WIDTH = 79
INDENT = 12
BLOCKS = " ▁▂▃▄▅▆▇█"
TIED = "\N{NO-BREAK SPACE}"
MOST_RUNS = 24


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="vision-tutorial explain",
        description="What a recipe means, before anything runs: no data is read, nothing written.",
    )
    add = made.add_argument
    add("recipe", nargs="?", help="a recipe (file or name), or a run folder")
    add("overrides", nargs="*", metavar="key.sub=value", help="set one value of the recipe")
    add("--world", type=int, metavar="N", help="for N processes (default: as launched, or 1)")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--schema", action="store_true", help="print the JSON schema of recipes, for editors")
    add("--trust-imports", action="store_true", help="run the files that the recipe imports")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vision-tutorial explain`."""
    made = parser()
    args = made.parse_intermixed_args(argv)
    if not args.recipe and not args.schema:
        made.error("name a recipe, such as recipes/r4.yaml, or ask for --schema")
    if args.world is not None and args.world < 1:
        made.error(f"--world is {args.world}; a number of processes from 1 up is expected")
    return run_main(lambda: explain(args))


def explain(args: argparse.Namespace) -> int:
    """Print what can be said at once, then what needs the network."""
    loaded = None
    if args.recipe:
        path = Path(args.recipe)
        loaded = load(path / "recipe.yaml" if path.is_dir() else path, args.overrides)
    if args.schema:
        print(json.dumps(schema(static_signatures(loaded.imports if loaded else ())), indent=1))
        return 0
    # What this recipe was made from: the file as it stands, else the recipe that it extends.
    reference = load(loaded.path).recipe if args.overrides else loaded.base
    info = recipe_info(loaded.recipe, reference, args.world)
    if not args.json:
        print(*opening(loaded, info), sep="\n", flush=True)
    found, info, more = _built(loaded, info, args.trust_imports)
    said = [*more, *advice(loaded.recipe, info)]
    if args.json:
        print(json.dumps(_report(loaded, info, found, said), indent=1))
    else:
        print(*_closing(loaded.recipe, info, found, said), sep="\n")
    return 0


# -- finding out -----------------------------------------------------------------------------------


def _built(
    loaded: Loaded, info: RecipeInfo, trusted: bool
) -> tuple[dict[str, Any], RecipeInfo, list]:
    import torch
    from torch import nn

    from .. import build
    from ..engine.profiling import cost

    recipe, said = loaded.recipe, []
    build.import_files(loaded.imports, trusted)
    if info.images is None:
        info, said = _counted(recipe, info)
    network = build.check(recipe, info.classes or 10)
    parts = build.batch_parts(recipe, info.world, torch.cuda.is_available())
    whole = recipe.batch_size if recipe.shards else recipe.batch_size // info.world
    info = replace(
        info,
        gpu=torch.cuda.is_available(),
        micro_batch=whole // parts,
        batch_norm=any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()),
    )
    steps = info.steps_per_epoch or 1
    rate = build.learning_rates(recipe, steps)
    found = {
        "parts": parts,
        "data_path": build.data_path(recipe),
        "lr": [rate(epoch * steps, ()) for epoch in range(info.epochs)],
        "parameter_groups": [
            {
                "tensors": len(group["params"]),
                "parameters": sum(p.numel() for p in group["params"]),
                "weight_decay": group["weight_decay"],
                "lr_scale": group.get("lr_scale", 1.0),
            }
            for group in build.optimizer(recipe, network).param_groups
        ],
        "parameters": sum(p.numel() for p in network.parameters()),
        "macs": None,
    }
    if info.side:
        try:
            found["macs"] = cost(network, info.side)[1]
        except Exception as error:  # a network of anybody's, given a size it may not take
            what = f"{recipe.model.name} does not take images of {info.side} px"
            reason = short(str(error), 120).rstrip(".")
            why = f"trying it gave {type(error).__name__}: {reason}"
            todo = "another size in augment and eval_augment, or another model"
            said.append(Advice("model", what, why, todo))
    return found, info, said


def _counted(recipe: Recipe, info: RecipeInfo) -> tuple[RecipeInfo, list[Advice]]:
    from ..core import registry

    try:
        source = registry.datasets.build(recipe.dataset.name, **recipe.dataset.options)("train")
    except UserError as error:
        todo = "bring the data, or leave it: the rest is as it would be"
        return info, [Advice("dataset", "the data is not here", str(error), todo)]
    images = used(recipe, len(source))
    steps = images // recipe.batch_size
    more = {"images": images, "classes": len(source.classes), "steps_per_epoch": steps}
    return replace(info, **more), []


def _report(loaded: Loaded, info: RecipeInfo, found: dict[str, Any], said: list[Advice]) -> dict:
    recipe, base = loaded.recipe, loaded.base
    return {
        "recipe": to_plain(recipe),
        "path": str(loaded.path),
        "base": str(loaded.base_path) if base else None,
        "changes": changes(recipe, base) if base else {},
        "epochs": info.epochs,
        "images": info.images,
        "steps_per_epoch": info.steps_per_epoch,
        "steps": info.steps,
        "world": info.world,
        "batch_size": recipe.batch_size,
        "micro_batch": info.micro_batch,
        "image_size": info.side,
        **found,
        "advice": [item._asdict() for item in said],
    }


# -- saying it -------------------------------------------------------------------------------------


def opening(loaded: Loaded, info: RecipeInfo) -> Iterator[str]:
    """What is known without torch: the recipe, its changes, its claim, its length."""
    recipe = loaded.recipe
    yield f"# {loaded.path}, resolved"
    yield to_yaml(to_plain(recipe), compact=True)
    if loaded.base:
        different = changes(recipe, loaded.base)
        yield from _entry("changes", f"against {loaded.base_path.name}:" if different else "none")
        for key, (before, after) in different.items():
            yield from _entry("", f"{key}: {shown(before, 400)} -> {shown(after, 400)}")
    claims = [f"{k} {'unknown' if v is None else f'{v:g}'}" for k, v in recipe.expects.items()]
    yield from _entry("expects", ", ".join(claims) or "nothing")
    if info.steps_per_epoch is not None:
        yield from _length(recipe, info)


def _length(recipe: Recipe, info: RecipeInfo) -> list[str]:
    front = info.epochs - recipe.epochs - recipe.cooldown.epochs
    sums = [(front, "of warm-up"), (recipe.epochs, ""), (recipe.cooldown.epochs, "of cool-down")]
    parts = " + ".join(f"{n} {what}".strip() for n, what in sums if n)
    total = f"{parts} = {info.epochs} epochs" if "+" in parts else f"{info.epochs} epochs"
    if info.steps_per_epoch is None:
        return _entry("training", f"{total}; steps unknown, the data is not here")
    steps = f"{info.steps_per_epoch:,} steps = {info.steps:,} steps"
    images = f"{info.images:,} images of {recipe.dataset.name}"
    return _entry("training", f"{total} x {steps} ({images})")


def _closing(
    recipe: Recipe, info: RecipeInfo, found: dict[str, Any], said: list[Advice]
) -> Iterator[str]:
    if info.steps_per_epoch is None or recipe_info(recipe).images is None:
        yield from _length(recipe, info)
    yield from _entry("batch", _batch(recipe, info, found["parts"]))
    yield from _entry("data path", found["data_path"])
    yield from _entry("lr", "  ".join(runs(found["lr"])))
    if recipe.schedule.name == "plateau":
        yield from _entry("", "(where the metric never stalls; plateau lowers it where it does)")
    yield from plot(found["lr"], WIDTH - INDENT)
    for group in found["parameter_groups"]:
        scale = f", lr x {group['lr_scale']:.4g}" if group["lr_scale"] != 1 else ""
        decay = f"weight decay {group['weight_decay']:g}"
        numbers = f"{group['parameters']:>12,} in {group['tensors']:>3} tensors"
        yield from _entry("parameters", f"{numbers}: {decay}{scale}")
    cost = ""
    if found["macs"] is not None:
        cost = f", {found['macs'] / 1e9:.2f} GMAC an image of {info.side}x{info.side}"
    yield from _entry("network", f"{found['parameters'] / 1e6:.1f} M parameters{cost}")
    for item in said:
        yield ""
        yield from _entry("note", f"{item.key}: {item.what}.")
        yield from _entry("", f"Why: {item.why}.")
        yield from _entry("", f"Do: {item.do}.")


def _batch(recipe: Recipe, info: RecipeInfo, parts: int) -> str:
    if recipe.shards:
        return f"{recipe.batch_size} = {parts} shards x {info.micro_batch}"
    processes = "1 process" if info.world == 1 else f"{info.world} processes"
    micro = "1 micro-batch" if parts == 1 else f"{parts} micro-batches"
    words = f"{recipe.batch_size} = {processes} x {micro} x {info.micro_batch}"
    device = "a GPU each" if info.gpu else "CPU"
    return f"{words} images ({recipe.batch_size // info.world} a process, on {device})"


def _entry(title: str, words: str) -> list[str]:
    first, rest = f"{title:<{INDENT}}", " " * INDENT
    lines = textwrap.wrap(
        words, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
    return [line.replace(TIED, " ") for line in lines]


def runs(values: Sequence[float]) -> list[str]:
    """ "epoch: value" for each run of equal values; of many, the ends and some between."""
    spans, start = [], 0
    for value, run in groupby(values):
        length = len(list(run))
        last = f"-{start + length - 1}" if length > 1 else ""
        spans.append(f"{start}{last}:{TIED}{value:.6g}")
        start += length
    if len(spans) <= MOST_RUNS:
        return spans
    third = MOST_RUNS // 3
    middle = spans[third:-third]
    return [*spans[:third], "…", *middle[:: -(-len(middle) // third)], "…", *spans[-third:]]


def plot(values: Sequence[float], width: int, height: int = 6) -> Iterator[str]:
    """A small chart of `values` over their index, in letters that the terminal can show."""
    count, top = len(values), max(values)
    if top <= 0:
        return
    room = width - 10
    columns = count * (room // count) or room
    starts = [i * count // columns for i in range(columns + 1)]
    peaks = [max(values[a : max(b, a + 1)]) for a, b in pairwise(starts)]
    levels = [round(peak / top * height * 8) for peak in peaks]
    encoding = sys.stdout.encoding or "ascii"
    shown_as = BLOCKS.encode(encoding, errors="replace").decode(encoding)
    blocks = BLOCKS if shown_as == BLOCKS else " " + "#" * 8
    for row in range(height - 1, -1, -1):
        cells = "".join(blocks[min(max(level - 8 * row, 0), 8)] for level in levels)
        label = f"{top:.4g}" if row == height - 1 else "0" if row == 0 else ""
        yield f"{'':<{INDENT}}{label:>8} {cells}".rstrip()
    end = f"epoch {count - 1}"
    yield f"{'':<{INDENT}}{'':>8} 0{end:>{max(columns - 1, len(end) + 1)}}"


if __name__ == "__main__":
    sys.exit(main())
