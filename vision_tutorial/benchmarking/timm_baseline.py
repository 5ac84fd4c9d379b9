"""timm's own loader and train.py with the settings of a recipe: what our speed is compared with.

timm cannot do every recipe. Where it cannot, a function here raises Untranslatable.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import FastCollateMixup, Mixup, create_loader

from ..core.folders import data_root
from ..core.sources import Source, base
from ..engine.distributed import Distributed
from ..recipe.fields import Recipe
from ..recipe.grammar import Term
from ..recipe.recipe_info import side_after
from .timed_pairs import Measurement

_MOST_IMAGES = 2000  # written as files for train.py, where it cannot read the data set itself
# The arguments of create_loader, and our options for them; in the order in which timm applies them.
_OPERATIONS = {
    "random_resized_crop": {x: x for x in ("scale", "ratio", "interpolation")},
    "hflip": {"hflip": "p"},
    "vflip": {"vflip": "p"},
    "auto_augment": {"auto_augment": "policy"},
    "rand_augment": {},
    "color_jitter": {"color_jitter": "strength", "color_jitter_prob": "p"},
    "grayscale": {"grayscale_prob": "p"},
    "random_erasing": {"re_prob": "p", "re_mode": "mode", "re_count": "count"},
}
_ALLOWED = {  # the only values of our options that timm has
    "policy": ("original", "originalr", "v0", "v0r", "3a"),
    "operations": ("all",),
    "area": ((0.02, 1 / 3),),
    "aspect": ((0.3, 1 / 0.3),),
}
# The flags of train.py that have other names than the arguments of create_loader and Mixup.
_FLAGS = {"interpolation": "train_interpolation", "auto_augment": "aa", "prob": "mixup_prob"}
_FLAGS |= {f"re_{name}": f"re{name}" for name in ("prob", "mode", "count")}
_FLAGS |= {f"{name}_alpha": name for name in ("mixup", "cutmix")}
_FLAGS |= {"switch_prob": "mixup_switch_prob"}
_HALF = {"bf16": "bfloat16", "fp16": "float16"}
_LINE = re.compile(r"Train: (\d+) \[ *(\d+)/\d+ .*?\([\d.]+s, +([\d.]+)/s\)")


class Untranslatable(Exception):
    """timm has no option for something in the recipe."""


def translated(recipe: Recipe) -> dict[str, Any]:
    """The arguments of timm's `create_loader` for a recipe's `augment`. Raises Untranslatable."""
    if any(term.name == "jsd" for term in recipe.loss):
        raise Untranslatable("the copies that jsd compares")
    names = [choice.name for choice in recipe.augment]
    in_order = [name for name in _OPERATIONS if name in names]
    if names != in_order or "random_resized_crop" not in names:
        raise Untranslatable(f"the chain of {', '.join(names) or 'no augmentations'}")
    allowed = _ALLOWED | {"interpolation": (recipe.augment[0].options["interpolation"],)}
    side = side_after(recipe.augment, None)
    made: dict[str, Any] = {"input_size": (3, side, side), "hflip": 0.0, "color_jitter": None}
    for choice in recipe.augment:
        for option, value in choice.options.items():
            if option in allowed and value not in allowed[option]:
                raise Untranslatable(f"{choice.name} with {option} {value}")
        made |= {key: choice.options[name] for key, name in _OPERATIONS[choice.name].items()}
        if choice.name in ("auto_augment", "rand_augment"):
            made["auto_augment"] = _policy(choice.options)
    if made.get("color_jitter_prob") == 1:
        made["color_jitter_prob"] = None  # else timm draws whether to apply it
    colours = [name for name in names if name in ("auto_augment", "rand_augment", "color_jitter")]
    if len(colours) > 1 and not (made["auto_augment"][:2] == "3a" and "rand_augment" not in names):
        raise Untranslatable(f"{' and '.join(colours)} in one chain")
    return made


def _policy(options: Mapping[str, Any]) -> str:
    std = options["magnitude_std"]  # for timm 101 and more is uniform
    deviation = "" if std == 0 else f"-mstd{101 if std is None else std:g}"
    if "policy" in options:
        return options["policy"] + deviation
    most = f"-mmax{options['magnitude_max']}" if options["magnitude_max"] else ""
    words = f"rand-m{options['magnitude']:g}-n{options['num_ops']}-p{options['p']:g}"
    return words + deviation + most + "-inc1" * options["increasing"]


def mixers(terms: Sequence[Term] | None) -> dict[str, Any]:
    """The arguments of timm's `Mixup` for a recipe's `mix`; empty for none. May raise
    Untranslatable."""
    terms = [term for term in terms or () if term.weight]
    weights = {term.name: term.weight for term in terms}
    probabilities = {term.options["p"] for term in terms}
    if weights.keys() - {"cutmix", "mixup"} or len(weights) < len(terms) or len(probabilities) > 1:
        raise Untranslatable(f"the mixers {', '.join(term.name for term in terms)}, or different p")
    if not terms:
        return {}
    alphas = {f"{term.name}_alpha": term.options["alpha"] for term in terms}
    switch = weights.get("cutmix", 0.0) / sum(weights.values())
    return {"mixup_alpha": 0.0, **alphas, "prob": probabilities.pop(), "switch_prob": switch}


def missing(recipe: Recipe) -> str:
    """What of the recipe's data path timm has no options for; empty if it has them all."""
    try:
        translated(recipe)
        mixers(recipe.mix)
    except Untranslatable as error:
        return str(error)
    return ""


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
    recipe: Recipe, source: Source, device: torch.device, workers: int, prefetcher: bool
) -> Iterator[int]:
    """timm's own loader, without end: how many images each batch has put on the device, normalised.

    prefetcher: normalise whole batches (train.py's default); else image by image. The colours
    are ImageNet's: another mean costs the same. Raises Untranslatable.
    """
    mixing = mixers(recipe.mix)
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
        **translated(recipe),
    )
    mix = Mixup(**mixing) if mixing and not prefetcher else lambda *batch: batch
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    while True:
        for images, target in loader:
            images, target = mix(images.to(device), target.to(device))
            yield len(images.contiguous(memory_format=layout))


def held(sources: Sequence[Source]) -> int:
    """Bytes that the arrays under these sources take, each counted once; files take none."""
    names = ("images", "targets", "masks")
    arrays = [getattr(base(source), name, None) for source in sources for name in names]
    return sum({id(array): array.nbytes for array in arrays if array is not None}.values())


def data_words(recipe: Recipe, source: Source, folder: Path) -> list[str]:
    """The options of train.py for the images; some are written to `folder` where it cannot read."""
    name, options = recipe.dataset.name, recipe.dataset.options
    if name in ("cifar10", "cifar100"):
        return ["--data-dir", str(data_root(options["root"])), "--dataset", f"torch/{name}"]
    if name == "image_folder" and (options["train"], options["test"]) == ("train", "val"):
        return ["--data-dir", options["root"]]
    for index in range(min(len(source), _MOST_IMAGES)):
        image, target = source[index]
        for split in ("train", "val"):
            path = folder / split / f"{target:05d}" / f"{index:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return ["--data-dir", str(folder)]


def train_words(
    recipe: Recipe, source: Source, place: Distributed, parts: int, workers: int
) -> list[str]:
    """The options of timm's train.py for the recipe, but for the images.

    source: the training images. parts: micro-batches a step. Raises Untranslatable.
    """
    given = translated(recipe) | mixers(recipe.mix)
    given["color_jitter"] = given["color_jitter"] or 0.0  # train.py has a default
    if isinstance(given["color_jitter"], Sequence):
        raise Untranslatable("a list of strengths of color_jitter on train.py's command line")
    given |= {k: recipe.optimizer.options.get(k) for k in ("lr", "momentum", "weight_decay")}
    smoothing = max((term.options.get("label_smoothing", 0.0) for term in recipe.loss), default=0)
    words = (
        f"--model {recipe.model.name} --num-classes {len(source.classes)} --seed 42 "
        f"--device {place.device.type} -b {recipe.batch_size // parts} "
        f"--grad-accum-steps {parts} --workers {workers} --log-interval 1 --epochs 1000 "
        f"--opt {recipe.optimizer.name} --sched cosine --smoothing {smoothing}"
    )
    words += " --channels-last" * recipe.channels_last + " --torchcompile" * bool(recipe.compile)
    if isinstance(recipe.compile, str):
        words += f" --torchcompile-mode {recipe.compile}"
    if place.precision != "fp32":
        words += f" --amp --amp-dtype {_HALF[place.precision]}"
    if recipe.ema:
        words += f" --model-ema --model-ema-decay {recipe.ema.decay}"
    for mode, value in (recipe.clip.model_dump(exclude_none=True) if recipe.clip else {}).items():
        words += f" --clip-mode {mode} --clip-grad {value}"
    for name, value in given.items():
        values = value if isinstance(value, list | tuple) else [value]
        if value is not None:
            words += f" --{_FLAGS.get(name, name).replace('_', '-')} {' '.join(map(str, values))}"
    return words.split()


def rate_of_log(text: str, batch: int) -> Measurement:
    """Images and seconds of the steps in train.py's log, without the first of each epoch.

    A line's last rate is the mean of the epoch so far, so the time so far is batch x steps / rate.
    """
    epochs: dict[str, list[float]] = {}
    for epoch, update, rate in _LINE.findall(text):
        epochs.setdefault(epoch, []).append(batch * (int(update) + 1) / float(rate))
    images = batch * sum(len(times) - 1 for times in epochs.values())
    return Measurement(images, sum(times[-1] - times[0] for times in epochs.values()))
