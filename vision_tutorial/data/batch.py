"""The last steps of the data path, on the device and by batch: mix, normalise, erase."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core import targets
from ..core.randomness import address
from ..core.task import Batch
from .loader import Raw, seed_generators
from .mix import Mix, leave

# Per-channel mean and standard deviation of pixels in 0 … 1.
COLOURS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def normalize(images: Tensor, colours: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """uint8 (B, 3, H, W) -> float32, (x/255 - mean) / std per channel, as timm's loader does it."""
    mean, std = (
        torch.tensor([255 * x for x in values], device=images.device).view(3, 1, 1)
        for values in colours
    )
    return images.float().sub_(mean).div_(std)


def compiled_normalize(
    colours: tuple[Sequence[float], Sequence[float]], channels_last: bool, threads: int
) -> Callable[[Tensor], Tensor]:
    """`normalize` by a table of its 256 results a channel: the same bits, in one pass."""
    from . import compiled

    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    table = normalize(levels, colours).reshape(3, 256).numpy()

    def scale(images: Tensor) -> Tensor:
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        made = torch.from_numpy(compiled.normalize(pixels, table, channels_last, threads))
        return made.permute(0, 3, 1, 2) if channels_last else made

    return scale


def erase_singly(
    transforms: Sequence[Callable], seed: int, images: Tensor, items: Tensor
) -> Tensor:
    """Apply the per-picture tensor transforms (random erasing) to normalised images, by address."""
    for row, (epoch, index) in enumerate(items.tolist() if transforms else ()):
        seed_generators(address(seed, epoch, index, "erase"))
        for transform in transforms:
            images[row] = transform(images[row])
    return images


def finisher(
    *,
    device: torch.device,
    colours: tuple[Sequence[float], Sequence[float]],
    channels_last: bool,
    mixing: Mix = leave,
    erase: Callable[[Tensor, Tensor], Tensor] = lambda images, items: images,
    threads: int = 0,
    classes: int = 0,
    seed: int = 0,
    pixels: bool = False,
) -> Callable[[Raw, int], Batch]:
    """A function (raw batch, step) -> Batch on `device`; no mixing and no erasing evaluates.

    A batch (B, V, 3, H, W) of V versions becomes (V·B, 3, H, W), all first versions first. Masks
    become class ids. threads: for compiled code on the CPU; 0 does without it. pixels: whether the
    batch also keeps its pictures as they were before normalising.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    scale = compiled_normalize(colours, channels_last, threads) if threads else None

    def finish(raw: Raw, step: int = 0) -> Batch:
        images = raw.images.to(device, non_blocking=True)
        target = raw.target.to(device, non_blocking=True)
        items = raw.items
        if target.dtype == torch.uint8:
            target = targets.from_masks(target)
        if images.dim() == 5:
            versions = images.shape[1]
            images = images.transpose(0, 1).flatten(0, 1)
            target = target.repeat(versions)
            items = torch.cat([items + items.new_tensor([0, v << 40]) for v in range(versions)])
        images, target = mixing(images, target, classes, seed, step, items)
        made = scale(images) if scale else normalize(images, colours)
        made = erase(made, items).contiguous(memory_format=layout)
        return Batch(made, target, images if pixels else None)

    return finish
