"""What a recipe can say: every key declared once, typed and frozen. No torch in here.

`explain --schema`, the docs and `recipe/loading.py` (YAML -> Recipe) all read this declaration.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from ..core.errors import UserError, short
from ..core.names import LONGEST, PATTERN, checked_name
from . import grammar
from .grammar import Choice, RegistryField, Term
from .yaml_lines import SCALARS

Positive = Annotated[int, Field(ge=1, le=10**9)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Words = Annotated[tuple[str, ...], Field(strict=False)]
BatchSize = Annotated[int, Field(ge=1, le=2**20)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Workers = Annotated[int, Field(ge=0, le=256)]
Augments = Annotated[tuple[Choice, ...], RegistryField("augments", "list")]
Losses = Annotated[tuple[Term, ...], RegistryField("losses", "weighted_sum")]
Name = Annotated[
    str,
    AfterValidator(checked_name),
    WithJsonSchema({"type": "string", "maxLength": LONGEST, "pattern": PATTERN}),
]
Three = Annotated[tuple[float, float, float], Field(strict=False)]


def _key(default: Any, text: str) -> Any:
    """A key of a recipe with its description; `...`: it must be given."""
    return Field(default, description=text)


class Frozen(BaseModel):
    """Strict (a text is no number, a number is no boolean), finite, closed and unchangeable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Warmup(Frozen):
    """Linear rise from `lr`. `overlap` lies on top of the schedule (timm), `front` before it."""

    epochs: Annotated[int, Field(ge=0, le=10**6)] = 0
    lr: NotNegative = 0.0
    mode: Literal["overlap", "front"] = "overlap"


class Cooldown(Frozen):
    """Extra epochs at a constant lr; null is the schedule's last."""

    epochs: Annotated[int, Field(ge=0, le=10**6)] = 0
    lr: NotNegative | None = None


class Ddp(Frozen):
    """How several processes average their gradients; one process, or `shards`, has no use for it.

    static_graph: DDP takes the order of the first step for that of all; not with accumulation.
    gradients: fp16 and bf16 send half as many bytes; numbers then change with the processes.
    """

    static_graph: bool = False
    gradients: Literal["fp32", "fp16", "bf16"] = "fp32"


class ParameterGroups(Frozen):
    """Who is spared weight decay, and how the lr falls towards the first layers."""

    no_decay_1d: bool = True
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None


class _OneOf(Frozen):
    """Exactly one of its keys is given."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for _, value in self) != 1:
            raise ValueError(f"exactly one of {', '.join(type(self).model_fields)}")
        return self


class Clip(_OneOf):
    """Gradient clipping, one of: global norm, value, adaptive (AGC, Brock et al. 2021)."""

    norm: Annotated[float, Field(gt=0)] | None = None
    value: Annotated[float, Field(gt=0)] | None = None
    agc: Annotated[float, Field(gt=0)] | None = None


class Ema(Frozen):
    """Exponential moving average of the weights, evaluated instead of them."""

    decay: Fraction = 0.9998
    warmup: bool = True


class Balance(_OneOf):
    """The mean size of a term, which divides its weight: over so many first steps, or running.

    One of the two. `calibrate`: steps, after which the weights are frozen; `ema`: the decay.
    """

    calibrate: Positive | None = None
    ema: Fraction | None = None


BALANCES = {"fixed": None, "calibrate": Balance(calibrate=100), "ema": Balance(ema=0.99)}


class Colours(Frozen):
    """What is subtracted from and divides pixels in 0 … 1, per channel."""

    mean: Three
    std: Three


class DataPath(Frozen):
    """How images come: `batched` augments whole batches, `timm` one image at a time.

    path: `auto` is batched wherever that gives the pixels that Pillow would, bit for bit; an image
    then depends on (seed, epoch, index) alone. memory: where images lie; `auto` is the GPU, if
    there is one and they take no more than a quarter of its free memory.
    """

    path: Literal["auto", "batched", "timm"] = "auto"
    memory: Literal["auto", "device", "host"] = "auto"


class EarlyStopping(Frozen):
    """End when `metric` has not got better by more than `min_delta` for `patience` evaluations.

    metric: `headline` is the task's own (top1, miou); `loss` the validation loss.
    """

    patience: Positive
    metric: Literal["headline", "loss"] = "headline"
    min_delta: NotNegative = 0.0


class CheckpointPolicy(Frozen):
    """How often training can be resumed from, beside every end of an epoch."""

    every_minutes: Annotated[float, Field(gt=0)] | None = 10.0
    every_steps: Positive | None = None
    keep: Positive = 2


def _project(name: str) -> str:
    """What wandb takes."""
    if not 1 <= len(name) <= 128 or set(name) & set("/\\#?%:"):
        raise ValueError("1 to 128 letters, none of them / \\ # ? % :")
    return name


class Wandb(Frozen):
    """Where metrics are mirrored; the run folder is the truth.

    group: the recipe's name, if it is not given. name: recipe and run folder, if not given.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    entity: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    project: Annotated[str, AfterValidator(_project)] = "vision-tutorial"
    group: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    name: Annotated[str, Field(min_length=1)] | None = None
    tags: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(strict=False)
    ] = ()
    notes: str | None = None


class Recipe(Frozen):
    """All that a run depends on."""

    # not of dots alone: it becomes the name of a folder
    name: Name = _key("recipe", "Name of the run, and of its folder.")
    expects: Annotated[dict[str, float | None], AfterValidator(grammar.Options)] = Field(
        default_factory=grammar.Options, description="The result it claims; null: unknown."
    )
    imports: Words = _key((), "Python files whose entries join the registries.")
    task: Annotated[Choice, RegistryField("tasks")] = _key(
        Choice("classification"), "What is predicted: a label for an image, or for each pixel."
    )

    dataset: Annotated[Choice, RegistryField("datasets")] = _key(..., "Images and their labels.")
    holdout: Fraction = _key(0.0, "Share of train kept for validation; 0: use test.")
    subset: Positive | None = _key(None, "Train on this many images only.")
    augment: Augments = _key((), "What is done to a training image, in this order.")
    eval_augment: Augments = _key((), "The same for an image that is evaluated.")
    normalize: Literal["imagenet", "cifar10", "cifar100", "half", "none"] | Colours = _key(
        "imagenet", "Mean and deviation of each channel; half: 0.5 for all."
    )
    mix: Annotated[tuple[Term, ...] | None, RegistryField("mixers", "weighted_sum")] = _key(
        None, "Mixes pairs of training images and their labels; weights say how often each."
    )
    data: DataPath = DataPath()
    workers: Workers | None = _key(None, "Loader workers a process; null: as cores allow.")

    model: Annotated[Choice, RegistryField("models")] = _key(..., "The network.")
    loss: Losses = _key((Term("cross_entropy"),), "What training makes small.")
    aux_loss: Annotated[tuple[Term, ...] | None, RegistryField("losses", "weighted_sum")] = _key(
        None, "Of the auxiliary head; null: none."
    )
    aux_weight: NotNegative = _key(0.4, "Of aux_loss in the total.")
    balance: Literal["fixed", "calibrate", "ema"] | Balance = _key(
        "fixed", "Whether weights of a weighted sum are divided by their terms' size."
    )

    epochs: Annotated[int, Field(ge=1, le=10**6)] = _key(..., "Times that each image is seen.")
    batch_size: BatchSize = _key(..., "Global: over all processes and accumulation.")
    micro_batch: Positive | None = _key(None, "Most images in a forward pass; null: what fits.")
    optimizer: Annotated[Choice, RegistryField("optimizers")] = _key(..., "With lr and decay.")
    parameter_groups: ParameterGroups = ParameterGroups()
    schedule: Annotated[Choice, RegistryField("schedules")] = _key(
        Choice("constant"), "How lr changes after the warm-up."
    )
    schedule_unit: Literal["epoch", "step"] = _key("epoch", "How often lr changes.")
    warmup: Warmup = Warmup()
    cooldown: Cooldown = Cooldown()
    clip: Clip | None = None
    ema: Ema | None = None

    seed: Annotated[int, Field(ge=0, le=2**53)] = _key(42, "Of weights, order and augmentation.")
    precision: Literal["fp32", "fp16", "bf16", "auto"] = _key(
        "fp32", "Of the forward pass; auto: 16 bits where the device is made for them."
    )
    deterministic: bool = _key(True, "Equal bits each time on a GPU too; false takes the fastest.")
    channels_last: bool = _key(True, "The order of an image in memory; faster on most devices.")
    compile: bool | Literal["reduce-overhead", "max-autotune"] = _key(
        False, "With torch.compile; the modes capture CUDA graphs."
    )
    sync_bn: bool = _key(False, "BatchNorm over the images of all processes.")
    ddp: Ddp = Ddp()
    shards: Positive | None = _key(None, "Bit-equal on any number of processes that divides it.")
    threads: Threads | None = _key(
        None,
        "A process; null: cores/processes or cores/shards, at most OMP_NUM_THREADS.",
    )
    eval_every: Positive = _key(1, "Epochs between evaluations.")
    eval_batch_size: Positive = _key(250, "Images in a forward pass of an evaluation.")
    refine: Annotated[tuple[Choice, ...], RegistryField("refiners", "list")] = _key(
        (), "What `evaluate` and `predict` do to probabilities, such as dense_crf."
    )
    early_stopping: EarlyStopping | None = None
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    artifacts: bool = _key(True, "Draw curves, a batch, predictions into the run's folder.")
    loggers: Annotated[tuple[Literal["wandb", "tensorboard"], ...], Field(strict=False)] = _key(
        ("wandb",), "Where metrics go beside the run folder."
    )
    wandb: Wandb = Wandb()

    @property
    def balancing(self) -> Balance | None:
        """What `balance` means; None where weights stay as they are given."""
        return BALANCES[self.balance] if isinstance(self.balance, str) else self.balance

    @property
    def total_epochs(self) -> int:
        """With the warm-up in front, if it is there, and the cool-down."""
        front = self.warmup.epochs if self.warmup.mode == "front" else 0
        return front + self.epochs + self.cooldown.epochs


REGISTRY_FIELDS: dict[str, RegistryField] = {
    name: mark
    for name, declared in Recipe.model_fields.items()
    for mark in declared.metadata
    if isinstance(mark, RegistryField)
}
# Keys that make no other experiment of a recipe.
UNESSENTIAL = {"name", "expects", "imports", "workers", "threads", "wandb", "checkpoint"}
UNESSENTIAL |= {"eval_batch_size", "artifacts", "loggers"}
# A resumed run may differ in these and still be the same run.
RESUMABLE = UNESSENTIAL | {"epochs", "early_stopping", "refine", "eval_every"}


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain YAML values, every default filled in; `typed` takes it back."""
    return recipe.model_dump(mode="json")


def plain_defaults() -> dict[str, Any]:
    """What `to_plain` gives for keys that are not set; None if they must be."""
    return dict.fromkeys(Recipe.model_fields) | Recipe.model_construct().model_dump(mode="json")


def written(value: Any) -> str:
    """A plain value on one line, as it is written behind `key=` on a command line."""
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, width=10**9, sort_keys=False)
    return text.strip()[1:-1]


def to_yaml(values: dict[str, Any], compact: bool = False) -> str:
    """Plain values as YAML text that `load` reads back to the same; `compact` for a screen."""
    style = {"default_flow_style": None, "width": 62} if compact else {"width": 100}
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and what every YAML reader, 1.1 or 1.2, takes for the same."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, (_pattern, _) in SCALARS.items():
    # a text that either version would take for a number is quoted
    _whole = re.compile(rf"(?:{_pattern})\Z")
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _whole, None)


def changes(recipe: Recipe, base: Recipe) -> dict[str, tuple[Any, Any]]:
    """The keys in which `recipe` differs from `base`: {key: (before, after)}, as plain values."""
    before, after = to_plain(base), to_plain(recipe)
    skip = {"name", "expects"}
    return {k: (before[k], after[k]) for k in after if k not in skip and before[k] != after[k]}


# Keys and options that came when there were runs already, and what those did without them.
LATER = {"invalid": "refuse", "map": None, "image_suffix": "", "mask_suffix": ".png"}
LATER |= {"skip_unreadable": False, "follow_links": False, "ddp": Ddp().model_dump()}
LATER |= {"artifacts": True, "loggers": ["wandb"]}


def differing(before: Any, after: Any, key: str = "") -> list[str]:
    """Where two plain recipes differ and may not on a resume: `key before -> after`, by the
    deepest key that both have."""
    if before == after:
        return []
    deeper = isinstance(before, dict) and isinstance(after, dict)
    if not deeper or not before.keys() & after.keys():  # or other entries of a registry
        return [f"{key} {' -> '.join(short(written(value), 40) for value in (before, after))}"]
    names = [name for name in before | after if key or name not in RESUMABLE]
    dotted = ((name, f"{key}.{name}" if key else name) for name in names)
    pairs = [(full, differing(before.get(name), after.get(name), full)) for name, full in dotted]
    # where the data lies is no part of what it is, which is compared by its hash
    same = re.compile(r"data\.memory|dataset\.\w+\.root")
    return [text for full, found in pairs if not same.fullmatch(full) for text in found]


def other_recipe(where: Path, found: Sequence[str]) -> UserError:
    """The error of a resume with another recipe, which differs in `found`."""
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return UserError(
        f"{where} was made by another recipe: {', '.join(found[:5])}{more}. On resume only epochs, "
        "early_stopping, eval_every, eval_batch_size, refine, workers, threads, checkpoint, wandb, "
        "the data's root and the number of processes may change; start a new run for the rest."
    )


def identity(recipe: Recipe) -> str:
    """A hash of all that must be equal for a checkpoint to be continued."""
    return digest(to_plain(recipe))


def identities(values: Mapping[str, Any]) -> set[str]:
    """The `identity` of plain values, as this version and 0.1 define it."""
    return {digest(values), digest(values, RESUMABLE - {"eval_every", "eval_batch_size"})}


def digest(values: Mapping[str, Any], ignored: Collection[str] = RESUMABLE) -> str:
    """A hash of a recipe's plain values, from `to_plain` or from recipe.yaml: its `identity`.

    Of recipe.yaml it stays the same when a later version has more keys, as a recipe's does not.
    """
    kept = {k: v for k, v in values.items() if k not in ignored and LATER.get(k, ...) != v}
    if isinstance(kept.get("data"), dict):
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "memory"}
    if isinstance(kept.get("dataset"), dict):
        kept["dataset"] = {
            name: {k: v for k, v in (options or {}).items() if LATER.get(k, ...) != v}
            for name, options in kept["dataset"].items()
        }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
