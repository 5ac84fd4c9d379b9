"""timm's own loader and train.py, told to do what a recipe says: what our speed is held against.

Not every chain has words in timm. Where one has not, `translated` says so and nobody pretends.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.sources import Source, base, data_root
from ..recipe.fields import Recipe
from ..recipe.grammar import Term
from ..recipe.recipe_info import side_after
from .timed_pairs import Sample

# Our options' names for timm's flags, where train.py has one for them.
OPTIMIZER = {"lr": "--lr", "momentum": "--momentum", "weight_decay": "--weight-decay"}
POLICIES = ("original", "originalr", "v0", "v0r", "3a")
MOST_PICTURES = 2000  # written as files for train.py, where it cannot read the data set itself


class Untranslatable(Exception):
    """A recipe says something that timm's command line has no words for."""


# -- the chain of augmentations --------------------------------------------------------------------


def translated(recipe: Recipe, size: int) -> dict[str, Any]:
    """The arguments of timm's `create_loader` and `create_transform` for a recipe's `augment`.

    Raises Untranslatable.
    """
    if any(term.name == "jsd" for term in recipe.loss):
        raise Untranslatable("the copies that jsd compares")
    said: dict[str, Any] = {"hflip": 0.0, "color_jitter": None, "interpolation": "random"}
    place = -1
    for choice in recipe.augment:
        at = RANKS.get(choice.name, -1)
        if at <= place:
            raise Untranslatable(f"{choice.name} at its place in the chain")
        place = at
        said |= WORDS[choice.name](choice.options)
    if not recipe.augment or recipe.augment[0].name != "random_resized_crop":
        raise Untranslatable("a chain that does not begin with random_resized_crop")
    if said.get("auto_augment") and said["color_jitter"] and "3a" not in said["auto_augment"]:
        raise Untranslatable("colour jitter beside a policy")
    for choice in recipe.augment:
        own = choice.options.get("interpolation", said["interpolation"])
        if own != said["interpolation"]:
            raise Untranslatable(f"another interpolation in {choice.name}")
    return {"input_size": (3, size, size), **said}


def missing(recipe: Recipe) -> str:
    """What of the recipe's data path timm has no words for; empty if it has them all."""
    try:
        translated(recipe, 1)
        mixers(recipe.mix)
    except Untranslatable as error:
        return str(error)
    return ""


def crop(options: Mapping[str, Any]) -> dict[str, Any]:
    """random_resized_crop."""
    scale, ratio = tuple(options["scale"]), tuple(options["ratio"])
    return {"scale": scale, "ratio": ratio, "interpolation": options["interpolation"]}


def jitter(options: Mapping[str, Any]) -> dict[str, Any]:
    """color_jitter."""
    strength, p = options["strength"], options["p"]
    return {"color_jitter": strength, "color_jitter_prob": None if p == 1 else p}


def policy(options: Mapping[str, Any]) -> dict[str, Any]:
    """auto_augment."""
    if options["policy"] not in POLICIES:
        raise Untranslatable(f"the policy {options['policy']}")
    return {"auto_augment": options["policy"] + deviation(options["magnitude_std"], 0.0)}


def random_policy(options: Mapping[str, Any]) -> dict[str, Any]:
    """rand_augment."""
    if options["operations"] != "all":
        raise Untranslatable(f"rand_augment with operations {options['operations']}")
    words = f"rand-m{options['magnitude']:g}-n{options['num_ops']}-p{options['p']:g}"
    words += deviation(options["magnitude_std"], 0.0)
    words += f"-mmax{options['magnitude_max']}" if options["magnitude_max"] else ""
    return {"auto_augment": words + ("-inc1" if options["increasing"] else "")}


def deviation(spread: float | None, default: float) -> str:
    """timm's word for the spread of a magnitude; 101 and more is uniform."""
    return "" if spread == default else f"-mstd{101 if spread is None else spread:g}"


def erasing(options: Mapping[str, Any]) -> dict[str, Any]:
    """random_erasing."""
    if tuple(options["area"]) != (0.02, 1 / 3) or options["aspect"][0] != 0.3:
        raise Untranslatable("random_erasing with an area or aspect of its own")
    said = {"re_prob": options["p"], "re_mode": options["mode"]}
    return said | {"re_count": options["count"]}


WORDS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "random_resized_crop": crop,
    "hflip": lambda options: {"hflip": options["p"]},
    "vflip": lambda options: {"vflip": options["p"]},
    "auto_augment": policy,
    "rand_augment": random_policy,
    "color_jitter": jitter,
    "grayscale": lambda options: {"grayscale_prob": options["p"]},
    "random_erasing": erasing,
}
RANKS = {name: rank for rank, name in enumerate(WORDS)}  # the order in which timm applies them
RANKS["rand_augment"] = RANKS["auto_augment"]  # one or the other


def mixers(terms: Sequence[Term] | None) -> dict[str, Any]:
    """The arguments of timm's `Mixup` for a recipe's `mix`; empty for none."""
    terms = [term for term in terms or () if term.weight]
    by_name = {term.name: term for term in terms}
    if set(by_name) - {"cutmix", "mixup"} or len(by_name) < len(terms):
        raise Untranslatable("the mixers " + ", ".join(by_name))
    chances = {term.options["p"] for term in terms}
    if len(chances) > 1:
        raise Untranslatable("mixers of different p")
    if not terms:
        return {}
    cutmix = by_name["cutmix"].weight if "cutmix" in by_name else 0.0
    alphas = {f"{name}_alpha": term.options["alpha"] for name, term in by_name.items()}
    share = cutmix / sum(term.weight for term in terms)
    return {"mixup_alpha": 0.0, **alphas, "prob": chances.pop(), "switch_prob": share}


# -- timm's loader ---------------------------------------------------------------------------------


class Transformed:
    """A source as a data set of timm's: `transform` is put in by `create_loader`."""

    def __init__(self, source: Source):
        self.source, self.transform = source, None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.source[index]
        return self.transform(image), target


def timm_batches(
    recipe: Recipe,
    source: Source,
    device: Any,
    workers: int,
    prefetcher: bool,
) -> Iterator[int]:
    """timm's own loader, without end: how many images each batch has put on the device, normalised.

    prefetcher: normalise whole batches (train.py's default); else image by image. The colours
    are ImageNet's: another mean costs the same. Raises Untranslatable.
    """
    import torch
    from timm.data import FastCollateMixup, Mixup, create_loader

    size = source_size(recipe, source)
    said, mixing = translated(recipe, size), mixers(recipe.mix)
    mixing = mixing and {**mixing, "label_smoothing": 0.0, "num_classes": len(source.classes)}
    loader = create_loader(
        Transformed(source),
        batch_size=recipe.batch_size,
        is_training=True,
        num_workers=workers,
        collate_fn=FastCollateMixup(**mixing) if prefetcher and mixing else None,
        pin_memory=device.type == "cuda" and not prefetcher,
        device=device,
        use_prefetcher=prefetcher,
        **said,
    )
    mix = Mixup(**mixing) if mixing and not prefetcher else None
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    while True:
        for images, target in loader:
            images, target = images.to(device), target.to(device)
            if mix:
                images, target = mix(images, target)
            yield len(images.contiguous(memory_format=layout))


def source_size(recipe: Recipe, source: Source) -> int:
    """The side of a training image."""
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


# -- timm's train.py -------------------------------------------------------------------------------


def data_words(recipe: Recipe, source: Source, folder: Path) -> list[str]:
    """How train.py is told where the images are; some are written to `folder` where it must."""
    name, options = recipe.dataset.name, recipe.dataset.options
    if name in ("cifar10", "cifar100"):
        return ["--data-dir", str(data_root(options["root"])), "--dataset", f"torch/{name}"]
    if name == "image_folder" and (options["train"], options["test"]) == ("train", "val"):
        return ["--data-dir", options["root"]]
    for split in ("train", "val"):
        for index in range(min(len(source), MOST_PICTURES)):
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
    size, classes = source_size(recipe, source), len(source.classes)
    words = [
        sys.executable,
        str(script),
        "--model",
        recipe.model.name,
        "--num-classes",
        str(classes),
    ]
    words += ["--input-size", "3", str(size), str(size), "--device", device, "--seed", "42"]
    words += ["-b", str(recipe.batch_size // parts), "--grad-accum-steps", str(parts)]
    words += ["--workers", str(workers), "--log-interval", "1", "--epochs", "1000"]
    words += ["--opt", recipe.optimizer.name, "--sched", "cosine"]
    for option, flag in OPTIMIZER.items():
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
    return words + augment_words(translated(recipe, size)) + mix_words(recipe)


def augment_words(said: dict[str, Any]) -> list[str]:
    """The flags for what `translated` found."""
    flags = {
        "scale": "--scale",
        "ratio": "--ratio",
        "interpolation": "--train-interpolation",
        "hflip": "--hflip",
        "vflip": "--vflip",
        "color_jitter_prob": "--color-jitter-prob",
        "auto_augment": "--aa",
        "grayscale_prob": "--grayscale-prob",
        "re_prob": "--reprob",
        "re_mode": "--remode",
        "re_count": "--recount",
    }
    words = []
    for name, flag in flags.items():
        value = said.get(name)
        if value is not None:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    jitter = said["color_jitter"]
    if jitter is not None and not isinstance(jitter, int | float):
        raise Untranslatable("a list of strengths of color_jitter on train.py's command line")
    return [*words, "--color-jitter", str(jitter or 0.0)]


def mix_words(recipe: Recipe) -> list[str]:
    """The flags for `mix` and for the smoothing of labels."""
    flags = {
        "mixup_alpha": "--mixup",
        "cutmix_alpha": "--cutmix",
        "prob": "--mixup-prob",
        "switch_prob": "--mixup-switch-prob",
    }
    smoothing = max((t.options.get("label_smoothing", 0.0) for t in recipe.loss), default=0.0)
    said = mixers(recipe.mix)
    return [
        "--smoothing",
        str(smoothing),
        *(w for k, v in said.items() for w in (flags[k], str(v))),
    ]


LINE = re.compile(r"Train: (\d+) \[ *(\d+)/\d+ .*?\([\d.]+s, +([\d.]+)/s\)")


def rate_of_log(text: str, batch: int, skip: int = 1) -> Sample | None:
    """Images and seconds of the steps in train.py's log, without the first `skip` of each epoch.

    A line's last rate is the mean of the epoch so far, so the time so far is batch x steps / rate.
    None before there is a step to count.
    """
    epochs: dict[int, list[float]] = {}
    for epoch, update, rate in LINE.findall(text):
        seconds = batch * (int(update) + 1) / float(rate)
        epochs.setdefault(int(epoch), []).append(seconds)
    runs = [run[skip - 1 :] for run in epochs.values() if len(run) > skip]
    if not runs:
        return None
    images = batch * sum(len(run) - 1 for run in runs)
    return Sample(images, sum(run[-1] - run[0] for run in runs))
