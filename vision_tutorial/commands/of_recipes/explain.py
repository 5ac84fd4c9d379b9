"""What a recipe means, before anything runs; of your own data, what is in it."""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from ...core.cli_types import loading, positive_count
from ...core.errors import UserError, counted, short, shown
from ...recipe.advice import Advice, advice
from ...recipe.command_line import Parser, add_overrides
from ...recipe.fields import Recipe, changes, to_plain, to_yaml
from ...recipe.loading import Loaded, load
from ...recipe.recipe_info import RecipeInfo, recipe_info
from ...recipe.schema import schema
from ...recipe.signatures import static_signatures
from ...runs.run_folder import recipe_file
from ...tables.table import Column, Table, terminal
from .. import entry_point

WIDTH, INDENT = 79, 12
BLOCKS = " ▁▂▃▄▅▆▇█"
MOST_SPANS = 24


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="vision-tutorial explain", description=__doc__)
    add, flag = made.add_argument, partial(made.add_argument, action="store_true")
    add("recipe", nargs="?", help="a recipe (file or name), or a run folder")
    add_overrides(made)
    add("--world", type=positive_count, metavar="N", help="processes (default: as launched, or 1)")
    flag("--layers", help="the network's layers too: shapes, parameters, multiply-adds")
    flag("--json", help="print one JSON object and nothing else")
    flag("--schema", help="print the JSON schema of recipes, for editors")
    flag("--trust-imports", help="run the files that the recipe imports")
    return made


@entry_point(parser)
def main(args: argparse.Namespace) -> int:
    """Print what can be said at once, then what needs the network."""
    loaded = None
    if args.recipe:
        path = Path(args.recipe)
        loaded = load(recipe_file(path) if path.is_dir() else path, args.overrides)
    if args.schema:
        print(json.dumps(schema(static_signatures(loaded.imports if loaded else ())), indent=1))
        return 0
    if loaded is None:
        raise UserError("name a recipe, such as recipes/r4.yaml, or ask for --schema.")
    # What this recipe was made from: the file as it stands, else the recipe that it extends.
    reference = load(loaded.path).recipe if args.overrides else loaded.base
    info = recipe_info(loaded.recipe, reference, args.world)
    if not args.json:
        print_recipe(loaded)
    facts, info, items = _built(loaded, info, args.trust_imports)
    items += advice(loaded.recipe, info)
    if args.layers and not facts["layers"]:
        raise UserError("--layers: the size of an image is not known; see the notes without it.")
    if not args.layers:
        del facts["layers"]
    if args.json:
        print(json.dumps(facts | {"advice": [item._asdict() for item in items]}, indent=1))
        return 0
    _print_facts(loaded.recipe, info, facts)
    if args.layers:
        print()
        terminal(_layer_table(facts["layers"]), sys.stdout)
    for item in items:
        print()
        _entry("note", f"{item.key}: {item.what}.")
        _entry("", f"Why: {item.why}.")
        _entry("", f"Do: {item.do}.")
    return 0


def _built(
    loaded: Loaded, info: RecipeInfo, trusted: bool
) -> tuple[dict[str, Any], RecipeInfo, list[Advice]]:
    """The facts as `--json` prints them."""
    with loading():
        import torch
        from torch.nn.modules.batchnorm import _BatchNorm

        from ... import build, checks
        from ...data.loader import describe_path
        from ...engine.profiling import layers
        from ...losses import copies

    recipe, items, gpu, macs = loaded.recipe, [], torch.cuda.is_available(), None
    rows: list[Any] = []
    seen: list[str] = []
    build.import_files(loaded.imports, trusted)
    if info.images is None:
        info, seen, items = _read(recipe, info)
    network = checks.check(recipe, info.classes or 10)
    parts = build.batch_parts(recipe, info.world, gpu)
    share = recipe.batch_size if recipe.shards else recipe.batch_size // info.world
    norm = any(isinstance(module, _BatchNorm) for module in network.modules())
    info = replace(info, gpu=gpu, micro_batch=share // parts, batch_norm=norm)
    if info.side:
        try:
            rows = layers(network, info.side)
            macs = sum(row.macs for row in rows)
        except Exception as error:  # a network of anybody's, given a size it may not take
            what = f"{recipe.model.name} does not take images of {info.side} px"
            why = f"{type(error).__name__}: {short(str(error), 120).rstrip('.')}"
            todo = "another size in augment and eval_augment, or another model"
            items.append(Advice("model", what, why, todo))
    steps = info.steps_per_epoch or 1
    rate = build.learning_rates(recipe, steps)
    groups = [
        {"tensors": len(group["params"]), "parameters": _count(group["params"])}
        | {"weight_decay": group["weight_decay"], "lr_scale": group.get("lr_scale", 1.0)}
        for group in build.optimizer(recipe, network).param_groups
    ]
    facts = {
        "recipe": to_plain(recipe),
        "path": str(loaded.path),
        "base": str(loaded.base_path) if loaded.base else None,
        "changes": changes(recipe, loaded.base) if loaded.base else {},
        **{key: getattr(info, key) for key in ("epochs", "images", "steps_per_epoch", "steps")},
        "world": info.world,
        "batch_size": recipe.batch_size,
        "micro_batch": info.micro_batch,
        "image_size": info.side,
        "parts": parts,
        "data": seen,
        "data_path": describe_path(recipe, copies(recipe.loss), build.task(recipe, ()).dense),
        "lr": [rate(epoch * steps, ()) for epoch in range(info.epochs)],
        "parameter_groups": groups,
        "parameters": _count(network.parameters()),
        "macs": macs,
        "layers": [row._asdict() for row in rows],
    }
    return facts, info, items


def _read(recipe: Recipe, info: RecipeInfo) -> tuple[RecipeInfo, list[str], list[Advice]]:
    """What the data says: the number of images, its classes; or why it cannot be trained on."""
    from ... import build

    try:
        both = build.data(recipe)
        info = recipe_info(recipe, info.reference, info.world, both.train)
        return info, build.look(recipe, both), []
    except UserError as error:
        why, todo = str(error).rstrip("."), "mend it before training; the rest is as it would be"
        return info, [], [Advice("dataset", "the data cannot be trained on", why, todo)]


def _count(parameters: Iterable[Any]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def print_recipe(loaded: Loaded) -> None:
    """What is known without torch: the recipe, its changes, its claim."""
    print(f"# {loaded.path}, resolved\n{to_yaml(to_plain(loaded.recipe), compact=True)}")
    if loaded.base:
        different = changes(loaded.recipe, loaded.base)
        _entry("changes", f"against {loaded.base_path.name}:" if different else "none")
        for key, (before, after) in different.items():
            _entry("", f"{key}: {shown(before, 400)} -> {shown(after, 400)}")
    claims = loaded.recipe.expects.items()
    texts = [f"{key} {'unknown' if value is None else f'{value:g}'}" for key, value in claims]
    _entry("expects", ", ".join(texts) or "nothing")


def _print_facts(recipe: Recipe, info: RecipeInfo, facts: dict[str, Any]) -> None:
    cooldown, batch, parts = recipe.cooldown.epochs, recipe.batch_size, facts["parts"]
    front = info.epochs - recipe.epochs - cooldown
    sums = ((front, " of warm-up"), (recipe.epochs, ""), (cooldown, " of cool-down"))
    text = " + ".join(f"{count}{what}" for count, what in sums if count)
    whole = counted(info.epochs, "epoch")
    text = f"{text} = {whole}" if "+" in text else whole
    if info.steps is None:
        text += "; steps unknown, since the data cannot be read"
    else:
        text += f" x {counted(info.steps_per_epoch, 'step')} = {counted(info.steps, 'step')}"
        text += f" ({counted(info.images, 'image')} of {recipe.dataset.name})"
    _entry("training", text)
    text = f"{batch} = {counted(parts, 'shard')} x {info.micro_batch}"
    if not recipe.shards:
        text = f"{batch} = {counted(info.world, 'process')} x "
        text += f"{counted(parts, 'micro-batch')} x {counted(info.micro_batch, 'image')} "
        text += f"({batch // info.world} a process, on {'a GPU each' if info.gpu else 'CPU'})"
    _entry("batch", text)
    title = "data"
    for line in facts["data"]:
        _entry(title, line)
        title = ""
    _entry("data path", facts["data_path"])
    _entry("lr", "  ".join(spans(facts["lr"])))
    if recipe.schedule.name == "plateau":
        _entry("", "(where the metric never stalls; plateau lowers it where it does)")
    print(*plot(facts["lr"], WIDTH - INDENT - 10), sep="\n")
    for group in facts["parameter_groups"]:
        scale = f", lr x {group['lr_scale']:.4g}" if group["lr_scale"] != 1 else ""
        numbers = f"{group['parameters']:>12,} in {counted(group['tensors'], 'tensor'):>11}"
        _entry("parameters", f"{numbers}: weight decay {group['weight_decay']:g}{scale}")
    text = f"{facts['parameters'] / 1e6:.1f} M parameters"
    if facts["macs"] is not None:
        text += f", {facts['macs'] / 1e9:.2f} GMAC an image of {info.side}x{info.side}"
    _entry("network", text)


def _layer_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Each layer; the sums stand in the last row."""
    cells = [
        (row["name"] or "(network)", row["kind"], " x ".join(map(str, row["shape"] or ("-",))))
        + (f"{row['parameters']:,}", f"{row['macs']:,}")
        for row in rows
    ]
    sums = (f"{sum(row[key] for row in rows):,}" for key in ("parameters", "macs"))
    titles = {"layer": "text", "kind": "text", "output": "text"}
    titles |= {"parameters": "number", "MACs": "number"}
    columns = tuple(Column(title, title, kind) for title, kind in titles.items())
    return Table(columns, (*cells, ("sum", "", "", *sums)))


def _entry(title: str, text: str) -> None:
    for line in textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False) or [""]:
        # no-break spaces have held together what is not to be wrapped
        print(f"{title:<{INDENT}}{line}".replace("\xa0", " "), flush=True)
        title = ""


def spans(values: Sequence[float]) -> list[str]:
    """ "epoch: value" for each run of equal values; of many, the ends and some between."""
    found, start = [], 0
    for value, run in groupby(values):
        end = start + len(list(run)) - 1
        found.append(f"{start}{f'-{end}' * (end > start)}:\xa0{value:.6g}")
        start = end + 1
    if len(found) <= MOST_SPANS:
        return found
    third = MOST_SPANS // 3
    middle = found[third:-third]
    return [*found[:third], "…", *middle[:: -(-len(middle) // third)], "…", *found[-third:]]


def plot(values: Sequence[float], width: int, height: int = 6) -> Iterator[str]:
    """A small chart of `values` over their index, in letters that the terminal can show."""
    count, top = len(values), max(values)
    if top <= 0:
        return
    edges = [column * count // width for column in range(width + 1)]
    peaks = [max(values[a : max(b, a + 1)]) for a, b in pairwise(edges)]
    levels = [round(peak / top * height * 8) for peak in peaks]
    blocks = BLOCKS if (sys.stdout.encoding or "").lower().startswith("utf") else " " + "#" * 8
    for row in reversed(range(height)):
        cells = "".join(blocks[min(max(level - 8 * row, 0), 8)] for level in levels)
        label = {height - 1: f"{top:.4g}", 0: "0"}.get(row, "")
        yield f"{'':<{INDENT}}{label:>8} {cells}".rstrip()
    yield f"{'':<{INDENT}}{'':>8} 0{f'epoch {count - 1}':>{width - 1}}"
