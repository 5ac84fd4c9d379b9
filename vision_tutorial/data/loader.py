"""Images one at a time: which way a recipe augments them, and torch's loader of them.

What an image becomes is a function of the seed and its (epoch, index), so workers and resumes
change nothing.
"""

import logging
import multiprocessing
import multiprocessing.queues
import os
import pickle
import random
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision import transforms as tv

from ..core import arrays as folder
from ..core.errors import UserError
from ..core.folders import data_folder
from ..core.processes import follow_parent
from ..core.randomness import address
from ..core.registry import datasets
from ..core.sources import ArraySource, Source, check_split
from ..core.stopping import SIGNALS
from ..recipe.fields import Recipe
from ..recipe.grammar import Choice
from ..recipe.loading import IMPORTED, run_file
from .augmentation.operation import AugmentationPlan, batched_form, in_words, keyed, operation
from .executors import cpu

logger = logging.getLogger(__name__)

Item = Sequence[int]  # epoch, index
PATIENCE = 600  # seconds without a batch that end a training: a disk that does not answer
ALONE = np.zeros(1, np.int64)  # the rows of a batch of one


class RawBatch(NamedTuple):
    """A batch as it leaves the loader: images uint8 (B, 3, H, W), or (B, V, 3, H, W) in V versions;
    target ids (B,) or masks uint8 (B, H, W); items (B, 2), (epoch, index) of each, on the CPU."""

    images: Tensor
    target: Tensor
    items: Tensor


@datasets.register
def arrays(split: str, *, root: str, verify: bool | Literal["auto"] = "auto") -> ArraySource:
    """A folder that `vision-tutorial pack` made: mapped, so it may be larger than the memory."""
    check_split(split)
    return folder.load(data_folder(root, "arrays"), split, verify)


# -- which way images are augmented ----------------------------------------------------------------


def plan_or_reason(
    recipe: Recipe, copies: int = 0, training: bool = True
) -> AugmentationPlan | str:
    """The batched form of the images' augmentation, or why they go one by one.

    UserError where `data.path` insists on it for training, and an entry has none.
    """
    if recipe.data.path == "timm":
        return "as data.path says"
    try:
        if copies:
            raise UserError("loss: jsd needs copies of images; data.path=batched has none.")
        return batched_form(recipe.augment if training else recipe.eval_augment, recipe.seed)
    except UserError as error:
        if training and recipe.data.path == "batched":
            raise
        return str(error).partition(". ")[0].rstrip(".")


def batched_plan(recipe: Recipe, copies: int = 0, training: bool = True) -> AugmentationPlan | None:
    """`plan_or_reason`, or None."""
    made = plan_or_reason(recipe, copies, training)
    return made if isinstance(made, AugmentationPlan) else None


def describe_path(recipe: Recipe, copies: int = 0, dense: bool = False) -> str:
    """In words: which path training images take, and why not the faster one."""
    made = plan_or_reason(recipe, copies)
    if isinstance(made, AugmentationPlan):
        return "batched: whole batches at once, the pixels that Pillow would give"
    per_image = "joint: one image and its mask" if dense else "timm: one image"
    return f"{per_image} at a time ({made})"


def chain(choices: Sequence[Choice]) -> tuple[list[Callable], list[Callable]]:
    """References of the operations on images, and on normalised tensors, in order."""
    made = [operation(choice) for choice in choices]
    late = [one for one in made if one.stage == "tensor"]
    if late and made[-len(late) :] != late:
        raise UserError(
            "augment: random_erasing and cutout act after normalising; put them last in the list."
        )
    references = [one.reference for one in made]
    first = len(made) - len(late)
    return references[:first], references[first:]


def augmented_images(
    recipe: Recipe, source: Source, training: bool = True, copies: int = 0
) -> "AugmentedImages":
    """Augmented images by (epoch, index), one at a time."""
    choices, seed = recipe.augment if training else recipe.eval_augment, recipe.seed
    if source.dense and copies:
        raise UserError("loss: jsd compares copies of images; there are none with masks.")
    if source.dense or batched_plan(recipe, copies, training):
        return AugmentedImages(source, partial(joint, choices, seed))
    return AugmentedImages(source, partial(one_by_one, choices, seed, copies))


def one_by_one(choices: Sequence[Choice], seed: int, copies: int = 0) -> Callable[..., Tensor]:
    """The operations' references as a function of (image, item), as `by_references` has it."""
    if not copies:
        return partial(by_references, chain(choices)[0], seed)
    made = [one for one in map(operation, choices) if one.stage != "tensor"]
    framing, others = (
        [one.reference for one in made if one.framing == which] for which in (True, False)
    )
    return partial(by_references, framing, seed, copies=copies, of_copies=others)


# -- one image -------------------------------------------------------------------------------------


def seed_generators(number: int) -> None:
    """Seed the global generators of Python, NumPy and torch (CPU): timm's transforms use them."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)


def by_references(
    transforms: Sequence[Callable],
    seed: int,
    image: Image.Image,
    item: Item,
    copies: int = 0,
    of_copies: Sequence[Callable] = (),
) -> Tensor:
    """An image through transforms that draw from the global generators, timm's way; they are seeded
    by its address. -> uint8 (3, H, W); or (1 + copies, 3, H, W), copies with `of_copies` as well.
    """
    seed_generators(address(seed, *item, "augment"))
    image = tv.Compose(transforms)(image)
    versions = [image, *(tv.Compose(of_copies)(image) for _ in range(copies))]
    made = [torch.from_numpy(np.array(one, np.uint8)).permute(2, 0, 1) for one in versions]
    return torch.stack(made) if copies else made[0]


def joint(chain: Sequence[Choice], seed: int) -> Callable[..., Any]:
    """The chain, but for what acts on the normalised image, for an image and its mask, if any.

    Operations with a batched form draw batched ops: the image takes them all, the mask those that
    move pixels. Others touch the image alone and must leave its pixels in their places: UserError
    names an entry that would not. The result takes an image, its (epoch, index) and its mask uint8
    (H, W) or None, and makes the image uint8 (3, h, w), or image and mask (h, w).
    """
    steps = []
    for key, choice, made in keyed(chain, seed):
        if made.stage == "image" and not made.sample:
            raise UserError(
                f"{in_words(choice)} has no form for masks. Take rotate, random_scale, "
                "hflip and color_jitter, or rand_augment or trivial_augment; an entry of your own "
                'that moves no pixel says so with stage = "colour".'
            )
        if made.stage != "tensor":
            steps.append((key, made))
    parts: list[AugmentationPlan | tuple[int, Callable]] = []
    for sampled, group in groupby(steps, lambda step: bool(step[1].sample)):
        if sampled:
            parts.append(AugmentationPlan(tuple((key, made.sample) for key, made in group)))
        else:
            parts += [(key, made.reference) for key, made in group]

    def augment(image: Image.Image, item: Item, mask: np.ndarray | None = None) -> Any:
        pixels = np.array(image)
        for part in parts:
            if isinstance(part, AugmentationPlan):
                ops = part.ops(np.array([item]), pixels.shape[:2])
                pixels = cpu.apply(pixels[None], ALONE, ops)[0]
                if mask is not None:
                    mask = cpu.apply_to_masks(mask[None], ALONE, ops)[0]
            else:
                key, transform = part
                seed_generators(address(key, *item))
                pixels = np.array(transform(Image.fromarray(pixels)))
        made = torch.from_numpy(pixels).permute(2, 0, 1)
        return made if mask is None else (made, mask)

    return augment


def erase_per_image(
    transforms: Sequence[Callable], seed: int, images: Tensor, items: Tensor
) -> Tensor:
    """Apply the per-image tensor transforms (random erasing) to normalised images, by address."""
    for row, (epoch, index) in enumerate(items.tolist() if transforms else ()):
        seed_generators(address(seed, epoch, index, "erase"))
        for transform in transforms:
            images[row] = transform(images[row])
    return images


# -- torch's loader --------------------------------------------------------------------------------


class AugmentedImages(Dataset):
    """(epoch, index) -> image tensor, target, item; every draw is addressed, nothing is remembered.

    `make` gives what takes (image, item), for a dense source (image, item, mask), and returns both
    then. It is made in each process again: the source and `make` are all that is sent to a worker.
    """

    def __init__(self, source: Source, make: Callable[[], Callable]):
        self.source, self.make = source, make
        self.augment = make()

    def __reduce__(self) -> tuple:
        # Files run before anything is unpickled that may be of a class of theirs.
        return _after_imports, (dict(IMPORTED),), (self.source, self.make)

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)

    def __getitem__(self, item: Item) -> tuple[Tensor, Any, Item] | UserError:
        _, index = item
        try:
            image, target = self.source[index]
        except UserError as error:
            # raised here, a worker would wrap it in a page of traceback
            return UserError(f"{self.source.name}, image {index}: {error}")
        if not self.source.dense:
            return self.augment(image, item), target, item
        if target.shape != (image.height, image.width):
            height, width = target.shape
            return UserError(
                f"{self.source.name}, {self.source.key(index)}: {image.width}x{image.height} "
                f"pixels, but its mask has {width}x{height}; they must be alike."
            )
        return *self.augment(image, item, target), item


def _after_imports(imported: dict[Path, bytes]) -> AugmentedImages:
    """An empty one, in a process where these files have run."""
    for path, text in imported.items():
        run_file(path, text)
    return AugmentedImages.__new__(AugmentedImages)


def collate(samples: list[Any]) -> list[RawBatch] | UserError:
    """Samples -> a batch of each size of images; the first unreadable image speaks for all."""
    sizes: dict[tuple[int, ...], list[Any]] = {}
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        sizes.setdefault(tuple(sample[0].shape), []).append(sample)
    made = []
    for some in sizes.values():
        images, targets, items = zip(*some, strict=True)
        # They lie as (H, W, 3), and stay so: whole blocks are copied then.
        batch = torch.stack([image.movedim(-3, -1) for image in images]).movedim(-1, -3)
        parts = batch, torch.as_tensor(np.array(targets)), torch.tensor(items)
        made.append(RawBatch(*(map(_passed_on, parts) if get_worker_info() else parts)))
    return made


def _passed_on(part: Tensor) -> Tensor | np.ndarray:
    """In shared memory, or, where that is full, an array, which goes through a pipe.

    Left to the loader, a thread of the worker would fail at it, and the training wait for ever.
    """
    try:
        return part.share_memory_()
    except RuntimeError:
        return part.numpy()


def make_loader(
    images: AugmentedImages, batches: Iterable[np.ndarray], workers: int, pin: bool
) -> Iterator[list[RawBatch]]:
    """Batches in the given order, each a list of one for each size. UserError names an image that
    cannot be read."""
    multiprocessing.set_forkserver_preload([__name__])  # else each worker imports it: seconds
    loader = DataLoader(
        images,
        batch_sampler=(items.tolist() for items in batches),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=_worker_started,
        prefetch_factor=4 if workers else None,
        timeout=PATIENCE if workers else 0,
    )
    try:
        # The locks that workers need; a loader that lacks one ends in pages of traceback.
        locks = [multiprocessing.Queue() for _ in range(workers and 2 * workers + 1)]
        del locks
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # said better below
            made = iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"{images.source.name}: cannot be sent to loader processes ({error}). Define its "
            "classes and functions at the top level of their file, or set workers=0."
        ) from error
    except OSError as error:  # no room for a queue's locks, no rights, no more processes
        logger.warning(
            "data loading: no loader processes here (%s); images are read in the training process. "
            "In a container, start it with --shm-size=8g.",
            error.strerror or error,
        )
        yield from make_loader(images, batches, 0, pin)
        return
    for batch in made:
        if isinstance(batch, UserError):
            raise batch
        yield [RawBatch(*map(torch.as_tensor, part)) for part in batch]


def _worker_started(_: int) -> None:
    """A worker leaves signals to its parent, dies with it or if it cannot answer, and computes on
    one thread."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_cannot_answer)
    torch.set_num_threads(1)
    follow_parent(os.getppid(), signal.SIGKILL)


def _cannot_answer(error: Exception, answer: Any) -> None:
    """End this worker, since its parent would wait for ever. The exit code says why."""
    os._exit(getattr(error, "errno", None) or 1)
