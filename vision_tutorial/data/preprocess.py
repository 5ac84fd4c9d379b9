"""The last steps of the data path, on the device and by batch: mix, normalise, erase."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..core import targets
from ..core.randomness import address
from ..core.task import Batch
from .loader import RawBatch, chosen, part, seed_generators
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
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """`normalize` of some rows by a table of its 256 results a channel: the same bits, in one
    pass."""
    from .executors import compiled

    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    table = normalize(levels, colours).reshape(3, 256).numpy()

    def scale(images: Tensor, rows: Tensor | None) -> Tensor:
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        some = np.arange(len(pixels)) if rows is None else rows.numpy()
        made = torch.from_numpy(compiled.normalize(pixels, some, table, channels_last, threads))
        return made.permute(0, 3, 1, 2) if channels_last else made

    return scale


def erase_per_image(
    transforms: Sequence[Callable], seed: int, images: Tensor, items: Tensor
) -> Tensor:
    """Apply the per-image tensor transforms (random erasing) to normalised images, by address."""
    for row, (epoch, index) in enumerate(items.tolist() if transforms else ()):
        seed_generators(address(seed, epoch, index, "erase"))
        for transform in transforms:
            images[row] = transform(images[row])
    return images


class Preprocessor:
    """Raw batch -> Batch on `device`: mixed, normalised, erased.

    A batch (B, V, 3, H, W) of V versions becomes (V·B, 3, H, W), all first versions first. Masks
    become class ids. threads: for compiled code on the CPU; 0 does without it.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        colours: tuple[Sequence[float], Sequence[float]],
        channels_last: bool,
        mixing: Mix = leave,
        erase: Callable[[Tensor, Tensor], Tensor] | None = None,
        threads: int = 0,
        classes: int = 0,
        seed: int = 0,
    ):
        self.device, self.colours, self.mixing, self.erase = device, colours, mixing, erase
        self.classes, self.seed = classes, seed
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.compiled = compiled_normalize(colours, channels_last, threads) if threads else None

    def __call__(self, raw: RawBatch, step: int = 0, pixels: bool = False) -> Batch:
        """The complete batch. pixels: whether it keeps its images as they were, too."""
        (batch,) = self.parts(raw, step, 1, pixels)
        return batch

    def parts(self, raw: RawBatch, step: int, count: int, pixels: bool = False) -> Iterator[Batch]:
        """`count` micro-batches that keep mirror pairs together, of a batch that is mixed whole."""
        images = raw.images.to(self.device, non_blocking=True)
        target = raw.target.to(self.device, non_blocking=True)
        if target.dtype == torch.uint8:
            target = targets.from_masks(target)
        items = raw.items
        images, target = self.mixing(images, target, self.classes, self.seed, step, items)
        for index in range(count):
            rows = torch.from_numpy(part(len(raw), index, count)) if count > 1 else None
            mine = (chosen(tensor, rows) for tensor in (target, items))
            yield self.normalized(images, *mine, rows, pixels)

    def normalized(
        self, images: Tensor, target: Tensor, items: Tensor, rows: Tensor | None, pixels: bool
    ) -> Batch:
        """The images `rows` (None: all) of a mixed batch, and what belongs to these."""
        versions = images.shape[1] if images.dim() == 5 else 1
        if images.dim() == 5:
            images, rows = chosen(images, rows).transpose(0, 1).flatten(0, 1), None
            target = target.repeat(versions)
            items = torch.cat([items + items.new_tensor([0, v << 40]) for v in range(versions)])
        if self.compiled:
            made = self.compiled(images, rows)
        else:
            made = normalize(chosen(images, rows), self.colours)
        made = self.erase(made, items) if self.erase else made
        kept = chosen(images, rows) if pixels else None
        return Batch(made.contiguous(memory_format=self.layout), target, kept, versions)
