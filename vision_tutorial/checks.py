"""What is wrong with a recipe, found before it trains: its parts on tiny tensors, then the network
and an evaluation on images of the data."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import nn

from . import build, losses, optim
from .core import registry
from .core.errors import UserError, counted, trying
from .core.images import image_size
from .core.processes import usable_cores
from .core.sources import Source, origins
from .data import loader, mix
from .data.augmentation.operation import operation
from .data.loader import augmented_images
from .data.pipeline import sizes_differ
from .engine import Plan, evaluating
from .engine.device_errors import is_lost_peer, is_out_of_memory, machine_error
from .engine.optimizer_state import pack
from .recipe.fields import Ddp, Recipe
from .recipe.grammar import Term
from .segmentation.models.backbones import BatchNorm

TRIED = 16  # images in files, of which the sizes are compared before a training


def check(recipe: Recipe, classes: int = 10) -> nn.Module:
    """Build every part that needs no data, weightless, and try each on tiny tensors; what an entry
    refuses is an error here, in one line that begins with the recipe's key.

    Returns the network on the meta device.
    """
    for key in ("augment", "eval_augment"):
        for choice in getattr(recipe, key):
            with trying(f"{key}.{choice.name}"):
                operation(choice)
    loader.chain(recipe.augment)
    random = ", ".join(sorted({c.name for c in recipe.eval_augment if operation(c).random}))
    mix.Mix(recipe.mix)
    copies, name = losses.copies(recipe.loss), recipe.model.name
    loader.batched_plan(recipe, copies)
    if random:
        raise UserError(f"eval_augment: {random} would make scores random; remove it here.")
    if recipe.shards and recipe.sync_bn:
        raise UserError("shards and sync_bn exclude each other; set sync_bn: false.")
    if recipe.shards and recipe.ddp != Ddp():
        raise UserError("shards add their gradients without DDP; take `ddp` out of the recipe.")
    if recipe.refine and not build.task(recipe, ()).dense:
        raise UserError("refine: there are no masks to refine in classification; take it out.")
    if any(term.name == "jsd" for term in recipe.aux_loss or ()):
        raise UserError("aux_loss: jsd is a loss of the main head; choose another one here.")
    if bool(recipe.aux_loss) != bool(recipe.model.options.get("auxiliary")):
        raise UserError(
            f"aux_loss: it and an auxiliary head of model {name} need each other; set both "
            f"(aux_loss, model.{name}.auxiliary: true where it has one) or none."
        )
    if copies and recipe.mix:
        raise UserError("loss: jsd compares copies of one image; take `mix` out of the recipe.")
    build.criteria(recipe)
    _try_on_pixels(recipe)
    _try_losses(recipe)
    with trying(f"model.{name}"), torch.device("meta"):
        network = build.model(recipe, classes, weights=False)
    with trying(f"optimizer.{recipe.optimizer.name}"):
        build.optimizer(recipe, network)
        options = dict(recipe.optimizer.options)
        if torch.cuda.is_available():  # what only a GPU can do is not for tensors of the CPU
            options.pop("capturable", None)
        tried = optim.try_out(registry.optimizers.build(recipe.optimizer.name, **options))
        json.dumps(pack(tried.state_dict(), {}), allow_nan=False)  # as a checkpoint will hold it
    with trying(f"schedule.{recipe.schedule.name}"):
        build.learning_rates(recipe, 1)
    return network


def _try_on_pixels(recipe: Recipe) -> None:
    """Each mixer and refiner once."""
    pixels, items = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.long)
    target = torch.zeros(2, *[4, 4] * build.task(recipe, ()).dense, dtype=torch.long)
    for term in recipe.mix or ():
        with trying(f"mix.{term.name}"):
            mix.Mix([term])(pixels, target, 2, recipe.seed, 0, items)
    for choice in recipe.refine:
        with trying(f"refine.{choice.name}"):
            refiner = registry.refiners.build(choice.name, **choice.options)
            refiner(pixels[0].permute(1, 2, 0).numpy(), torch.full((2, 4, 4), 0.5))


def _try_losses(recipe: Recipe, classes: int | None = None) -> None:
    """Each loss once; of `classes`, or of as many as its options name."""
    dense = build.task(recipe, ()).dense
    target = torch.zeros(2, *[4, 4] * dense, dtype=torch.long)
    for key, terms in (("loss", recipe.loss), ("aux_loss", recipe.aux_loss or ())):
        for term in terms:
            listed = [len(value) for value in term.options.values() if isinstance(value, tuple)]
            given = target.repeat(1 + losses.copies([term]), *[1, 1] * dense)
            shape = (len(given), classes or max(listed, default=2), *target.shape[1:])
            logits = torch.zeros(shape, requires_grad=True)
            if recipe.mix and not dense:
                given = torch.full(shape, 1 / shape[1])
            with trying(f"{key}.{term.name}"):
                total, _ = losses.WeightedSum([Term(term.name, 1.0, term.options)])(logits, given)
                total.backward()
                if not (total.isfinite() and logits.grad.isfinite().all()):
                    raise UserError(f"its options {dict(term.options)} give no finite loss.")


def try_out(recipe: Recipe, source: Source, network: nn.Module, count: int = 2) -> None:
    """One blank image of the recipe's size through the network: do they fit each other?

    count: how many a training step passes forward at once; BatchNorm needs two values a channel.
    """
    _try_losses(recipe, len(source.classes))
    height, width = _size(recipe, source)
    blank = torch.zeros(1, 3, height, width, device=next(network.parameters()).device)
    lone: list[str] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: lone.append(name) if given[0][0, 0].numel() == 1 else None
        )
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and not isinstance(module, BatchNorm)  # ours takes its running statistics then
        and count == 1
    ]
    try:
        with evaluating(network), torch.inference_mode():
            said = f"{tuple(network(blank).shape)}"
    except Exception as error:  # networks say "does not fit" in every way there is
        if is_out_of_memory(error) or machine_error(error) or "CUDA error" in str(error):
            raise
        said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    finally:
        for hook in hooks:
            hook.remove()
    if lone:
        raise UserError(
            f"micro_batch: one image of {width}x{height} at a time gives {lone[0]} of model "
            f"{recipe.model.name} one value a channel, of which BatchNorm has no variance. Take 2 "
            "or more, or larger images (stem: cifar keeps small ones large)."
        )
    if said != f"{(1, len(source.classes), *((height, width) if source.dense else ()))}":
        raise UserError(
            f"model {recipe.model.name} does not fit images of {width}x{height} and "
            f"{counted(len(source.classes), 'class')}: {said}. Change the size that `augment` "
            "crops to, or the model's options (such as img_size)."
        )


def _size(recipe: Recipe, source: Source) -> tuple[int, int]:
    """(height, width) of the augmented training images. UserError if some from all over the source
    have another or, where `augment` does not make one size of two, one of each size in files."""
    images = augmented_images(recipe, source, copies=losses.copies(recipe.loss))

    def size(index: int) -> tuple[int, int]:
        sample = images[0, index]
        if isinstance(sample, UserError):
            raise sample
        return tuple(sample[0].shape[-2:])

    def blank(height: int, width: int) -> tuple[int, int]:
        mask = [np.zeros((height, width), np.uint8)] * source.dense
        made = images.augment(Image.new("RGB", (width, height)), (0, 0), *mask)
        return tuple((made[0] if source.dense else made).shape[-2:])

    files = [getattr(leaf, "paths", ())[at : at + 1] for leaf, at in origins(source)]
    count = min(len(source), TRIED) if any(files) else 1
    tried = np.linspace(0, len(source) - 1, count).astype(int).tolist()
    if any(files) and blank(61, 83) != blank(83, 61):
        with ThreadPoolExecutor(len(usable_cores())) as pool:
            heads = list(pool.map(lambda file: file and image_size(*file), files))
        tried += [heads.index(head) for head in list(dict.fromkeys(heads))[: 4 * TRIED]]
    found = list(dict.fromkeys(map(size, tried)))
    if len(found) > 1:
        raise sizes_differ(found)
    return found[0]


def try_evaluation(plan: Plan) -> None:
    """Evaluate the first batch of each process; what would fail does so before the first step."""
    try:
        plan.evaluate(only_first=True)
    except Exception as error:
        known = (is_out_of_memory, is_lost_peer, machine_error)
        if isinstance(error, UserError) or any(is_known(error) for is_known in known):
            raise
        said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise UserError(
            f"the first batch of validation images cannot be evaluated: {said}. Look at "
            "eval_augment, the masks, and the model's options."
        ) from error
