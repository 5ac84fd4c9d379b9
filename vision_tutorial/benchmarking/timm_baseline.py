"""timm's own loader and train.py with the settings of a recipe: what our speed is compared with.

timm cannot do every recipe. Where it cannot, `translated` raises Untranslatable.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.sources import Source, base, data_root
from ..recipe.fields import Recipe
from ..recipe.grammar import Term
from ..recipe.recipe_info import side_after
from .timed_pairs import Sample

# Our options' names for timm's flags, where train.py has one for them.
_OPTIMIZER = {"lr": "--lr", "momentum": "--momentum", "weight_decay": "--weight-decay"}
_MIXING = {"mixup_alpha": "--mixup", "cutmix_alpha": "--cutmix", "prob": "--mixup-prob"}
_MIXING |= {"switch_prob": "--mixup-switch-prob"}
_POLICIES = ("original", "originalr", "v0", "v0r", "3a")
# The order in which timm applies augmentations; only one of the two policies.
_ORDER = {"random_resized_crop": 0, "hflip": 1, "vflip": 2, "auto_augment": 3, "rand_augment": 3}
_ORDER |= {"color_jitter": 4, "grayscale": 5, "random_erasing": 6}
_MOST_IMAGES = 2000  # written as files for train.py, where it cannot read the data set itself


class Untranslatable(Exception):
    """timm has no option for something in the recipe."""


def translated(recipe: Recipe, size: int) -> dict[str, Any]:
    """The arguments of timm's `create_loader` and `create_transform` for a recipe's `augment`.

    Raises Untranslatable.
    """
    if any(term.name == "jsd" for term in recipe.loss):
        raise Untranslatable("the copies that jsd compares")
    arguments: dict[str, Any] = {"hflip": 0.0, "color_jitter": None, "interpolation": "random"}
    rank = -1
    for choice in recipe.augment:
        if _ORDER.get(choice.name, -1) <= rank:
            raise Untranslatable(f"{choice.name} at its place in the chain")
        rank = _ORDER[choice.name]
        arguments |= _arguments(choice.name, choice.options)
    if not recipe.augment or recipe.augment[0].name != "random_resized_crop":
        raise Untranslatable("a chain that does not begin with random_resized_crop")
    policy = arguments.get("auto_augment")
    if policy and arguments["color_jitter"] and "3a" not in policy:
        raise Untranslatable("colour jitter beside a policy")
    for choice in recipe.augment:
        interpolation = choice.options.get("interpolation", arguments["interpolation"])
        if interpolation != arguments["interpolation"]:
            raise Untranslatable(f"another interpolation in {choice.name}")
    return {"input_size": (3, size, size), **arguments}


def _arguments(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    match name:
        case "random_resized_crop":
            ranges = {key: tuple(options[key]) for key in ("scale", "ratio")}
            return ranges | {"interpolation": options["interpolation"]}
        case "hflip" | "vflip":
            return {name: options["p"]}
        case "grayscale":
            return {"grayscale_prob": options["p"]}
        case "color_jitter":
            p = None if options["p"] == 1 else options["p"]
            return {"color_jitter": options["strength"], "color_jitter_prob": p}
        case "auto_augment":
            if options["policy"] not in _POLICIES:
                raise Untranslatable(f"the policy {options['policy']}")
            return {"auto_augment": options["policy"] + _deviation(options["magnitude_std"])}
        case "rand_augment":
            if options["operations"] != "all":
                raise Untranslatable(f"rand_augment with operations {options['operations']}")
            words = f"rand-m{options['magnitude']:g}-n{options['num_ops']}-p{options['p']:g}"
            words += _deviation(options["magnitude_std"])
            words += f"-mmax{options['magnitude_max']}" if options["magnitude_max"] else ""
            return {"auto_augment": words + ("-inc1" if options["increasing"] else "")}
        case _:  # random_erasing
            if tuple(options["area"]) != (0.02, 1 / 3) or options["aspect"][0] != 0.3:
                raise Untranslatable("random_erasing with an area or aspect of its own")
            names = {"prob": "p", "mode": "mode", "count": "count"}
            return {f"re_{theirs}": options[ours] for theirs, ours in names.items()}


def _deviation(spread: float | None) -> str:
    """timm's word for the spread of a magnitude; 101 and more is uniform."""
    return "" if spread == 0 else f"-mstd{101 if spread is None else spread:g}"


def missing(recipe: Recipe) -> str:
    """What of the recipe's data path timm has no options for; empty if it has them all."""
    try:
        translated(recipe, 1)
        mixers(recipe.mix)
    except Untranslatable as error:
        return str(error)
    return ""


def mixers(terms: Sequence[Term] | None) -> dict[str, Any]:
    """The arguments of timm's `Mixup` for a recipe's `mix`; empty for none."""
    terms = [term for term in terms or () if term.weight]
    by_name = {term.name: term for term in terms}
    if set(by_name) - {"cutmix", "mixup"} or len(by_name) < len(terms):
        raise Untranslatable("the mixers " + ", ".join(by_name))
    probabilities = {term.options["p"] for term in terms}
    if len(probabilities) > 1:
        raise Untranslatable("mixers of different p")
    if not terms:
        return {}
    cutmix = by_name["cutmix"].weight if "cutmix" in by_name else 0.0
    alphas = {f"{name}_alpha": term.options["alpha"] for name, term in by_name.items()}
    switch = cutmix / sum(term.weight for term in terms)
    return {"mixup_alpha": 0.0, **alphas, "prob": probabilities.pop(), "switch_prob": switch}


class _TimmDataset:
    """A source as a data set of timm's; `create_loader` sets `transform`."""

    def __init__(self, source: Source):
        self.source, self.transform = source, None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.source[index]
        return self.transform(image), target


def timm_batches(
    recipe: Recipe, source: Source, device: Any, workers: int, prefetcher: bool
) -> Iterator[int]:
    """timm's own loader, without end: how many images each batch has put on the device, normalised.

    prefetcher: normalise whole batches (train.py's default); else image by image. The colours
    are ImageNet's: another mean costs the same. Raises Untranslatable.
    """
    import torch
    from timm.data import FastCollateMixup, Mixup, create_loader

    size = _source_size(recipe, source)
    arguments, mixing = translated(recipe, size), mixers(recipe.mix)
    mixing = mixing and {**mixing, "label_smoothing": 0.0, "num_classes": len(source.classes)}
    loader = create_loader(
        _TimmDataset(source),
        batch_size=recipe.batch_size,
        is_training=True,
        num_workers=workers,
        collate_fn=FastCollateMixup(**mixing) if prefetcher and mixing else None,
        pin_memory=device.type == "cuda" and not prefetcher,
        device=device,
        use_prefetcher=prefetcher,
        **arguments,
    )
    mix = Mixup(**mixing) if mixing and not prefetcher else None
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    while True:
        for images, target in loader:
            images, target = images.to(device), target.to(device)
            if mix:
                images, target = mix(images, target)
            yield len(images.contiguous(memory_format=layout))


def _source_size(recipe: Recipe, source: Source) -> int:
    return side_after(recipe.augment, None) or source[0][0].width


def held(sources: Sequence[Source]) -> int:
    """Bytes that the arrays under these sources take, each counted once; files take none."""
    arrays = {}
    for source in map(base, sources):
        for name in ("images", "targets", "masks"):
            array = getattr(source, name, None)
            if array is not None:
                arrays[id(array)] = array.nbytes
    return sum(arrays.values())


def data_words(recipe: Recipe, source: Source, folder: Path) -> list[str]:
    """The options of train.py for the images; some are written to `folder` where it cannot read."""
    name, options = recipe.dataset.name, recipe.dataset.options
    if name in ("cifar10", "cifar100"):
        return ["--data-dir", str(data_root(options["root"])), "--dataset", f"torch/{name}"]
    if name == "image_folder" and (options["train"], options["test"]) == ("train", "val"):
        return ["--data-dir", options["root"]]
    for split in ("train", "val"):
        for index in range(min(len(source), _MOST_IMAGES)):
            image, target = source[index]
            path = folder / split / f"{target:05d}" / f"{index:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return ["--data-dir", str(folder)]


def train_words(
    recipe: Recipe,
    script: Path,
    source: Source,
    precision: str,
    device: str,
    workers: int,
    parts: int,
) -> list[str]:
    """timm's train.py on the recipe's model, batch, optimizer, augmentation and precision.

    source: the training images. parts: micro-batches a step. Raises Untranslatable.
    """
    size, classes = _source_size(recipe, source), len(source.classes)
    words = [sys.executable, str(script), "--model", recipe.model.name]
    words += ["--num-classes", str(classes)]
    words += ["--input-size", "3", str(size), str(size), "--device", device, "--seed", "42"]
    words += ["-b", str(recipe.batch_size // parts), "--grad-accum-steps", str(parts)]
    words += ["--workers", str(workers), "--log-interval", "1", "--epochs", "1000"]
    words += ["--opt", recipe.optimizer.name, "--sched", "cosine"]
    for option, flag in _OPTIMIZER.items():
        if option in recipe.optimizer.options:
            words += [flag, str(recipe.optimizer.options[option])]
    words += ["--channels-last"] if recipe.channels_last else []
    words += ["--torchcompile"] if recipe.compile else []
    words += ["--torchcompile-mode", recipe.compile] if isinstance(recipe.compile, str) else []
    if precision != "fp32":
        words += ["--amp", "--amp-dtype", {"bf16": "bfloat16", "fp16": "float16"}[precision]]
    if recipe.ema:
        words += ["--model-ema", "--model-ema-decay", str(recipe.ema.decay)]
    if recipe.clip:
        mode, value = next((k, v) for k, v in recipe.clip.model_dump().items() if v is not None)
        words += ["--clip-grad", str(value), "--clip-mode", mode]
    smoothing = max((t.options.get("label_smoothing", 0.0) for t in recipe.loss), default=0.0)
    words += [*_augment_words(translated(recipe, size)), "--smoothing", str(smoothing)]
    for name, value in mixers(recipe.mix).items():
        words += [_MIXING[name], str(value)]
    return words


def _augment_words(arguments: Mapping[str, Any]) -> list[str]:
    renamed = {"interpolation": "train_interpolation", "auto_augment": "aa"}
    renamed |= {f"re_{name}": f"re{name}" for name in ("prob", "mode", "count")}
    words = []
    for name, value in arguments.items():
        if name not in ("input_size", "color_jitter") and value is not None:
            words.append("--" + renamed.get(name, name).replace("_", "-"))
            words += map(str, value if isinstance(value, tuple) else (value,))
    jitter = arguments["color_jitter"]
    if jitter is not None and not isinstance(jitter, int | float):
        raise Untranslatable("a list of strengths of color_jitter on train.py's command line")
    return [*words, "--color-jitter", str(jitter or 0.0)]


_LINE = re.compile(r"Train: (\d+) \[ *(\d+)/\d+ .*?\([\d.]+s, +([\d.]+)/s\)")


def rate_of_log(text: str, batch: int, skip: int = 1) -> Sample | None:
    """Images and seconds of the steps in train.py's log, without the first `skip` of each epoch.

    A line's last rate is the mean of the epoch so far, so the time so far is batch x steps / rate.
    None before there is a step to count.
    """
    epochs: dict[int, list[float]] = {}
    for epoch, update, rate in _LINE.findall(text):
        seconds = batch * (int(update) + 1) / float(rate)
        epochs.setdefault(int(epoch), []).append(seconds)
    runs = [run[skip - 1 :] for run in epochs.values() if len(run) > skip]
    if not runs:
        return None
    images = batch * sum(len(run) - 1 for run in runs)
    return Sample(images, sum(run[-1] - run[0] for run in runs))
