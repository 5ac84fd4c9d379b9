"""Recipe -> what `fit` needs. The only file that knows every pillar; read it for an overview.

Importing the pillars' faces here is what fills the registries.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from . import classification, losses, optim, segmentation  # noqa: F401  (importing fills the registries)
from .core import registry
from .core.errors import UserError, all_at_once
from .core.folders import cache_folder
from .core.processes import usable_cores
from .core.randomness import address
from .core.sources import Source, hold_out, notices, take
from .core.task import Batch, Task, sampled
from .data import class_counts
from .data.pipeline import DataPipeline, WorkerContext
from .engine import Distributed, Evaluation, ModelEma, Plan, TrainingState, evaluate, profiling
from .recipe.fields import Recipe
from .recipe.loading import import_files as import_files
from .recipe.recipe_info import batch_parts, refuse_parts, steps_per_epoch


@dataclass(frozen=True)
class Splits:
    """The images to learn from and those to choose by; `chosen_on` names the latter."""

    train: Source
    val: Source
    chosen_on: str


def data(recipe: Recipe, distributed: Distributed | None = None) -> Splits:
    """Read the data set; split off what is held out."""
    found, errors = dict[str, Source](), []
    for name in ("train",) if recipe.holdout else ("train", "test"):
        try:
            found[name] = dataset(recipe, name, distributed)
        except UserError as error:
            if not error.problems:
                raise
            errors.append(error)
    if errors:  # of both splits
        problems = [text for error in errors for text in error.problems]
        both = all_at_once(problems, errors[0].things)
        both.said = errors[0].said
        raise both
    train, val = found["train"], found.get("test")
    if recipe.holdout:
        train, val = hold_out(train, recipe.holdout, recipe.seed)
    if recipe.subset:
        train = take(train, recipe.subset, recipe.seed)
    return Splits(train, val, "holdout" if recipe.holdout else "test")


def look(recipe: Recipe, both: Splits, distributed: Distributed | None = None) -> list[str]:
    """What is in the data, a line each, on the first process. UserError, on all: what cannot be
    meant, such as masks of one class."""

    def looked() -> list[str]:
        seen = class_counts.look(both.train, both.val, recipe.dataset)
        return [*notices(both.train, both.val), *seen]

    if not distributed:
        return looked()
    return distributed.run_together(looked if distributed.main else list)


def dataset(recipe: Recipe, name: str, distributed: Distributed | None) -> Source:
    """All of the data set's train or test; of several processes on a machine, one reads it."""
    make = registry.datasets.build(recipe.dataset.name, **recipe.dataset.options)
    made = distributed.share_dataset(lambda: make(name)) if distributed else make(name)
    if made.dense != task(recipe, made.classes).dense:
        has, other = ("masks", "segmentation") if made.dense else ("no masks", "classification")
        raise UserError(
            f"task {recipe.task.name} and data set {recipe.dataset.name} do not fit: it has {has}. "
            f"Set task: {other}, or choose another data set."
        )
    return made


def split(recipe: Recipe, name: str, distributed: Distributed | None = None) -> Source:
    """One split by name: train, val (what the best epoch is chosen on), or test."""
    if name == "test":
        return dataset(recipe, "test", distributed)
    both = data(recipe, distributed)
    return both.train if name == "train" else both.val


def criteria(recipe: Recipe, device: torch.device | str = "cpu") -> dict[str, Callable]:
    """The criterion of each head; the auxiliary head's has its share of the total in it."""
    found = {"loss": losses.WeightedSum(recipe.loss, recipe.balancing)}
    if recipe.aux_loss:
        found["aux_loss"] = losses.WeightedSum(recipe.aux_loss, recipe.balancing, recipe.aux_weight)
    return {name: criterion.to(device) for name, criterion in found.items()}


def weighs_classes(recipe: Recipe) -> bool:
    """Whether a loss counts some classes more than others."""
    terms = (*recipe.loss, *(recipe.aux_loss or ()))
    return any(term.options.get("class_weights") is not None for term in terms)


def model(recipe: Recipe, classes: int, weights: bool = True) -> nn.Module:
    """The network. Its first weights are a function of the seed alone."""
    options = recipe.model.options
    if not weights and options.get("pretrained"):
        options = {**options, "pretrained": False}
    torch.manual_seed(address(recipe.seed, "init"))
    return registry.models.build(recipe.model.name, **options)(classes)


def task(recipe: Recipe, classes: Sequence[str]) -> Task:
    """What the engine needs to know of the track."""
    return registry.tasks.build(recipe.task.name, **recipe.task.options)(classes)


def place_model(recipe: Recipe, network: nn.Module, distributed: Distributed) -> nn.Module:
    """On the device, in the memory layout and compiled as the recipe says."""
    network = network.to(distributed.device)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if recipe.compile:
        # kept between runs: a second start is warm
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
        from torch._inductor import config  # takes seconds

        if hasattr(config, "deterministic"):  # of newer versions
            config.deterministic = recipe.deterministic
        network.compile(mode=None if recipe.compile is True else recipe.compile)
    return network


def optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the recipe's parameter groups."""
    options, kinds = recipe.optimizer.options, recipe.parameter_groups.model_dump()
    decay = options.get("weight_decay", 0.0)
    groups = optim.parameter_groups(network, weight_decay=decay, **kinds)
    return registry.optimizers.build(recipe.optimizer.name, **options)(groups)


def learning_rates(recipe: Recipe, steps_per_epoch: int) -> Callable[[int, Sequence[float]], float]:
    """lr as a function of the step (and, for plateau, of the metrics so far)."""
    return optim.learning_rates(
        registry.schedules.build(recipe.schedule.name, **recipe.schedule.options),
        lr=recipe.optimizer.options["lr"],
        epochs=recipe.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=recipe.warmup.epochs,
        warmup_lr=recipe.warmup.lr,
        warmup=recipe.warmup.mode,
        cooldown_epochs=recipe.cooldown.epochs,
        cooldown_lr=recipe.cooldown.lr,
        unit=recipe.schedule_unit,
    )


def training_state(
    recipe: Recipe, source: Source, distributed: Distributed, weights: bool = True
) -> TrainingState:
    """The network with all that teaches it. weights: pretrained ones, if the recipe has them."""
    parts = batch_parts(recipe, distributed.world, distributed.device.type == "cuda")
    network = place_model(recipe, model(recipe, len(source.classes), weights), distributed)
    ema = recipe.ema
    return TrainingState(
        distributed=distributed,
        model=network,
        ddp_model=distributed.wrap(network, recipe.sync_bn, replicate=not recipe.shards),
        task=task(recipe, source.classes),
        criteria=criteria(recipe, distributed.device),
        optimizer=optimizer(recipe, network),
        clip=partial(optim.clip_gradients, recipe.clip) if recipe.clip else None,
        ema=ModelEma(network, ema.decay, ema.warmup) if ema else ModelEma(),
        seed=recipe.seed,
        accumulation_steps=parts // distributed.world if recipe.shards else parts,
        shards=recipe.shards,
        uneven=source.dense or weighs_classes(recipe),
    )


def train_pipeline(
    recipe: Recipe, source: Source, distributed: Distributed, training: bool = True
) -> DataPipeline:
    """What makes this process's share of the batches; its loader processes run beside it."""
    spare = len(usable_cores()) // distributed.local_world - 1
    workers = max(0, min(spare, 8)) if recipe.workers is None else recipe.workers
    process = (distributed.rank, distributed.world, distributed.threads)
    worker = WorkerContext(distributed.device, *process, workers)
    copies = losses.copies(recipe.loss) if training else 0
    return DataPipeline(recipe, source, worker, training=training, copies=copies)


eval_pipeline = partial(train_pipeline, training=False)


def evaluation(
    recipe: Recipe,
    source: Source,
    network: nn.Module,
    task: Task,
    distributed: Distributed,
    answer: Callable[[Batch], torch.Tensor] | None = None,
    data: DataPipeline | None = None,
    refine: Callable | None = None,
    size: int | None = None,
    only_first: bool = False,
    **callbacks: Any,
) -> Evaluation:
    """All metrics of `network` on `source`.

    answer: what is called instead of the network (it seen several times, say). data:
    `eval_pipeline` of before, to use again. refine: `refining`'s, for the probabilities.
    size: masks are compared at size x size pixels, as those of a submission are. only_first: the
    first batch of each process stands for all.
    """
    data = data or eval_pipeline(recipe, source, distributed)

    def forward(batch: Batch) -> torch.Tensor:
        output = answer(batch) if answer else network(batch.images)
        output = refine(output, batch.pixels) if refine else output
        return sampled(output, size, size) if size else output

    def batches() -> Iterator[list[Batch]]:
        of_all = data.evaluation(pixels=refine is not None)
        for some in [data.first_evaluation()] if only_first else of_all:
            if size:
                some = [replace(one, target=sampled(one.target, size, size)) for one in some]
            yield some

    count = 1 if only_first else math.ceil(len(source) / recipe.eval_batch_size)
    rounds = math.ceil(count / distributed.world)  # of the busiest process
    criterion = losses.WeightedSum(losses.without_copies(recipe.loss))
    return evaluate(forward, network, batches(), rounds, task, criterion, distributed, **callbacks)


def fit_memory(recipe: Recipe, training: TrainingState, plan: Plan) -> str | None:
    """`engine.fit_memory`; UserError where the recipe cannot have a step in the parts it takes."""
    notice = profiling.fit_memory(training, plan)
    if notice:
        place = training.distributed
        refuse_parts(recipe, place.world, place.device.type == "cuda")
    return notice


def plan(recipe: Recipe, both: Splits, training: TrainingState, distributed: Distributed) -> Plan:
    """What is to be done, step by step."""
    steps = steps_per_epoch(recipe, len(both.train))
    val = eval_pipeline(recipe, both.val, distributed)

    def evaluated(*callbacks: Callable, only_first: bool = False) -> Evaluation:
        calls = dict(zip(("stop", "progress"), callbacks, strict=False))
        given = (recipe, both.val, training.model, training.task, distributed)
        with training.ema.applied_to(training.model):
            return evaluation(*given, data=val, only_first=only_first, **calls)

    return Plan(
        steps_per_epoch=steps,
        epochs=recipe.total_epochs,
        lr=learning_rates(recipe, steps),
        batches=train_pipeline(recipe, both.train, distributed).train,
        batch_size=recipe.batch_size,
        evaluate=evaluated,
        meter=training.task.meter(),
        eval_every=recipe.eval_every,
        early_stopping=recipe.early_stopping,
    )
