"""How the global batch is dealt to processes and micro-batches."""

from ..core.errors import UserError
from .fields import Recipe

CPU_MICRO_BATCH = 128  # ResNet-50 with the CIFAR stem: about 6 GB; larger ones are no faster


def batch_parts(recipe: Recipe, world: int, on_gpu: bool) -> int:
    """Micro-batches a process takes a step (with shards: shards of the global batch).

    The fewest that keep within `micro_batch`; mixing needs an even number of images in each.
    """
    owners = recipe.shards or world
    share, rest = divmod(recipe.batch_size, owners)
    if owners % world or rest:
        dealt = f"{owners} shards on {world}" if recipe.shards else f"{world}"
        raise UserError(
            f"batch_size {recipe.batch_size} is global and does not divide over {dealt} processes; "
            f"choose a multiple of {owners}, and shards a multiple of the processes."
        )
    if (recipe.mix or recipe.shards) and share % 2 and owners > 1:
        raise UserError(
            f"images are dealt in pairs (mix, shards), and batch_size {recipe.batch_size} gives "
            f"each of {owners} parts an odd number, {share}; choose a multiple of {2 * owners}."
        )
    if recipe.shards:
        return owners
    most = recipe.micro_batch or (share if on_gpu else CPU_MICRO_BATCH)
    pairs = 2 if recipe.mix else 1
    sizes = [n for n in range(1, share + 1) if share % n == 0 and (n % pairs == 0 or n == share)]
    return share // max((n for n in sizes if n <= most), default=sizes[0])


def steps_per_epoch(recipe: Recipe, images: int) -> int:
    """Whole batches in the training set; what is left over is dropped, another one each epoch."""
    steps = images // recipe.batch_size
    if not steps:
        raise UserError(
            f"batch_size {recipe.batch_size} is more than the {images} training images; "
            "lower batch_size or raise subset."
        )
    return steps
