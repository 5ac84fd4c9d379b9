"""What a recipe can say: every key declared once, typed and frozen. No torch in here.

`explain --schema`, the docs and `recipe/loading.py` (YAML -> Recipe) all read this declaration.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from . import grammar
from .grammar import Choice, RegistryField, Term
from .yaml_lines import Loader

Positive = Annotated[int, Field(ge=1, le=10**9)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Words = Annotated[tuple[str, ...], Field(strict=False)]
Three = Annotated[tuple[float, float, float], Field(strict=False)]


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


class ParameterGroups(Frozen):
    """Who is spared weight decay, and how the lr falls towards the first layers."""

    no_decay_1d: bool = True
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None


class Clip(Frozen):
    """Gradient clipping, one of: global norm, value, adaptive (AGC, Brock et al. 2021)."""

    norm: Annotated[float, Field(gt=0)] | None = None
    value: Annotated[float, Field(gt=0)] | None = None
    agc: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Clip":
        if sum(v is not None for v in (self.norm, self.value, self.agc)) != 1:
            raise ValueError("exactly one of norm, value, agc")
        return self


class Ema(Frozen):
    """Exponential moving average of the weights, evaluated instead of them."""

    decay: Fraction = 0.9998
    warmup: bool = True


class Balance(Frozen):
    """The mean size of a term, which divides its weight: over so many first steps, or running.

    One of the two. `calibrate`: steps, after which the weights are frozen; `ema`: the decay.
    """

    calibrate: Positive | None = None
    ema: Fraction | None = None

    @model_validator(mode="after")
    def _one(self) -> "Balance":
        if (self.calibrate is None) == (self.ema is None):
            raise ValueError("exactly one of calibrate, ema")
        return self


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


class Wandb(Frozen):
    """Where metrics are mirrored; the run folder is the truth."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "vision-tutorial"
    group: str | None = None
    tags: Words = ()
    notes: str | None = None


class Recipe(Frozen):
    """All that a run depends on."""

    # not of dots alone: it becomes the name of a folder
    name: str = Field(
        "recipe",
        max_length=64,
        pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$",
        description="Of the run.",
    )
    expects: Annotated[dict[str, float | None], AfterValidator(grammar.Options)] = Field(
        default_factory=grammar.Options, description="The claim; null where unknown."
    )
    imports: Words = Field((), description="Python files whose entries join the registries.")
    task: Annotated[Choice, RegistryField("tasks")] = Choice("classification")

    dataset: Annotated[Choice, RegistryField("datasets")]
    holdout: Fraction = Field(0.0, description="Share of train kept for validation; 0: use test.")
    subset: Positive | None = Field(None, description="Train on this many images only.")
    augment: Annotated[tuple[Choice, ...], RegistryField("augments", "list")] = ()
    eval_augment: Annotated[tuple[Choice, ...], RegistryField("augments", "list")] = ()
    normalize: Literal["imagenet", "cifar10", "cifar100", "half", "none"] | Colours = "imagenet"
    mix: Annotated[tuple[Term, ...] | None, RegistryField("mixers", "weighted_sum")] = None
    data: DataPath = DataPath()
    workers: Annotated[int, Field(ge=0, le=256)] | None = Field(
        None, description="Loader workers a process; null: as many as cores allow."
    )

    model: Annotated[Choice, RegistryField("models")]
    loss: Annotated[tuple[Term, ...], RegistryField("losses", "weighted_sum")] = (
        Term("cross_entropy"),
    )
    aux_loss: Annotated[tuple[Term, ...] | None, RegistryField("losses", "weighted_sum")] = Field(
        None, description="Of the auxiliary head; null: none."
    )
    aux_weight: NotNegative = Field(0.4, description="Of aux_loss in the total.")
    balance: Literal["fixed", "calibrate", "ema"] | Balance = Field(
        "fixed", description="Whether weights of a weighted sum are divided by their terms' size."
    )

    epochs: Annotated[int, Field(ge=1, le=10**6)]
    batch_size: Annotated[int, Field(ge=1, le=2**20)] = Field(
        description="Global: over all processes and accumulation."
    )
    micro_batch: Positive | None = Field(
        None, description="Most images in one forward pass of one process; null: what fits."
    )
    optimizer: Annotated[Choice, RegistryField("optimizers")]
    parameter_groups: ParameterGroups = ParameterGroups()
    schedule: Annotated[Choice, RegistryField("schedules")] = Choice("constant")
    schedule_unit: Literal["epoch", "step"] = Field("epoch", description="How often lr changes.")
    warmup: Warmup = Warmup()
    cooldown: Cooldown = Cooldown()
    clip: Clip | None = None
    ema: Ema | None = None

    seed: Annotated[int, Field(ge=0, le=2**53)] = 42
    precision: Literal["fp32", "fp16", "bf16", "auto"] = "fp32"
    deterministic: bool = Field(
        True, description="Equal bits each time on a GPU too; false lets it take what is fastest."
    )
    channels_last: bool = True
    compile: bool | Literal["reduce-overhead", "max-autotune"] = Field(
        False, description="With torch.compile; the modes capture CUDA graphs."
    )
    sync_bn: bool = False
    shards: Positive | None = Field(
        None, description="Bit-equal for every number of processes that divides it; slower."
    )
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="CPU threads a process; null: cores/processes."
    )
    eval_every: Positive = Field(1, description="Epochs between evaluations.")
    eval_batch_size: Positive = 250
    refine: Annotated[tuple[Choice, ...], RegistryField("refiners", "list")] = Field(
        (), description="What `evaluate` and `predict` do to probabilities, such as dense_crf."
    )
    early_stopping: EarlyStopping | None = None
    checkpoint: CheckpointPolicy = CheckpointPolicy()
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
# A resumed run may differ in these and still be the same run.
RESUMABLE = {"name", "expects", "epochs", "workers", "threads", "wandb", "checkpoint", "imports"}
RESUMABLE |= {"early_stopping", "refine"}
# Keys that make no other experiment of a recipe. These do, though they may change at a resume.
UNESSENTIAL = RESUMABLE - {"epochs", "early_stopping", "refine"}


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain YAML values, every default filled in; `typed` takes it back."""
    dumped = recipe.model_dump(exclude=set(REGISTRY_FIELDS))
    values = {
        k: grammar.plain(getattr(recipe, k)) if k in REGISTRY_FIELDS else dumped[k]
        for k in Recipe.model_fields
    }
    return json.loads(json.dumps(values))


def written(value: Any) -> str:
    """A plain value on one line, as it is written behind `key=` on a command line."""
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, width=10**9, sort_keys=False)
    return text.strip()[1:-1]


def plain_default(key: str) -> Any:
    """What `to_plain` gives for a key that is not set; None if it must be."""
    declared = Recipe.model_fields[key]
    value = None if declared.is_required() else declared.get_default(call_default_factory=True)
    value = value.model_dump() if isinstance(value, BaseModel) else grammar.plain(value)
    return json.loads(json.dumps(value))


def to_yaml(values: dict[str, Any], compact: bool = False) -> str:
    """Plain values as YAML text that `load` reads back to the same; `compact` for a screen."""
    style = {"default_flow_style": None, "width": 62} if compact else {"width": 100}
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and what every YAML reader, 1.1 or 1.2, takes for the same."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _first, _pairs in Loader.yaml_implicit_resolvers.items():
    for _tag, _pattern in _pairs:  # a text that either version would take for a number is quoted
        _Dumper.add_implicit_resolver(_tag, _pattern, [_first])
_Dumper.add_representer(
    float, lambda dumper, x: dumper.represent_scalar("tag:yaml.org,2002:float", _number(x))
)


def _number(value: float) -> str:
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def changes(recipe: Recipe, base: Recipe) -> dict[str, tuple[Any, Any]]:
    """The keys in which `recipe` differs from `base`: {key: (before, after)}, as plain values."""
    before, after = to_plain(base), to_plain(recipe)
    skip = {"name", "expects"}
    return {k: (before[k], after[k]) for k in after if k not in skip and before[k] != after[k]}


def identity(recipe: Recipe) -> str:
    """A hash of all that must be equal for a checkpoint to be continued."""
    return digest(to_plain(recipe))


def digest(values: Mapping[str, Any], ignored: Collection[str] = RESUMABLE) -> str:
    """A hash of a recipe's plain values, from `to_plain` or from recipe.yaml: its `identity`.

    Of recipe.yaml it stays the same when a later version has more keys, as a recipe's does not.
    """
    kept = {key: value for key, value in values.items() if key not in ignored}
    if isinstance(kept.get("data"), dict):
        kept["data"] = {key: value for key, value in kept["data"].items() if key != "memory"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
