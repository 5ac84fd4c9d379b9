"""Image and mask stay together: what shows where, whoever makes them, and what is refused."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from data.oracle import SIZES, by_pillow, entry, happens, random_slot
from data.test_pipeline import batches, by_item
from PIL import Image
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import augments
from vision_tutorial.core.sources import ArraySource
from vision_tutorial.core.task import IGNORE, VOID
from vision_tutorial.data import pipeline
from vision_tutorial.data.augmentation.operation import Op, Operation, batched_form, operation
from vision_tutorial.data.executors import cpu, tensors
from vision_tutorial.data.executors.cpu import MOVING, of_masks
from vision_tutorial.data.loader import (
    AugmentedImages,
    augmented_images,
    describe_path,
    joint,
    make_loader,
)
from vision_tutorial.data.pipeline import Store, eval_order
from vision_tutorial.recipe.grammar import Choice
from vision_tutorial.recipe.loading import load

CPU = torch.device("cpu")
LABELS = np.array([0, 3, 7, 200, 254], np.uint8)
SHAPES = [(37, 53), (1, 9)]


def blocks(seed, height, width, side=1):
    """A mask of squares of `side` pixels with random LABELS."""
    rng = np.random.default_rng(seed)
    few = rng.choice(LABELS, (-(-height // side), -(-width // side)))
    return few.repeat(side, 0).repeat(side, 1)[:height, :width]


def painted(mask):
    """An image that tells its mask: three values for each label, none a colour that fills."""
    return Image.fromarray(np.stack([mask, 255 - mask, mask ^ 0x55], -1))


def made(chain, mask, index, seed=0):
    """Image (h, w, 3) and mask (h, w) after a chain."""
    image, target = joint(chain, seed)(painted(mask), (0, index), mask)
    return image.permute(1, 2, 0).numpy(), target


# --- moved together ------------------------------------------------------------------------------

NEAREST = {"interpolation": "nearest"}
GEOMETRY = {
    "vflip": [entry("vflip", p=1.0)],
    "rotate": [entry("rotate", limit=60, p=1.0, **NEAREST)],
    "random_scale": [entry("random_scale", **NEAREST)],
    "resize": [entry("resize", size=20, **NEAREST)],
    "random_crop, reflected": [entry("random_crop", size=24, padding=1, mode="reflect")],
    "center_crop": [entry("center_crop", size=30)],
    "random_resized_crop": [entry("random_resized_crop", size=16, **NEAREST)],
    "all": [
        entry("random_scale", scale=[0.4, 1.5], **NEAREST),
        entry("rotate", limit=180, fill=(1, 2, 3), **NEAREST),
        entry("hflip"),
        entry("random_crop", size=28, padding=0),
    ],
}
FILLS = [(124, 116, 104), (0, 0, 0), (1, 2, 3)]


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pixel_keeps_its_label(name, shape):
    """With the nearest pixel for both, the image says exactly what the mask must be."""
    mask, moved = blocks(0, *shape), 0
    for index in range(12):
        image, target = made(GEOMETRY[name], mask, index)
        assert target.dtype == np.uint8 and target.shape == image.shape[:2]
        void = target == VOID
        assert np.array_equal(image[~void], np.array(painted(target))[~void])
        assert all(tuple(colour) in FILLS for colour in image[void].tolist())
        assert void.mean() < 0.9 or 1 in shape or 2 in shape
        moved += not np.array_equal(target, mask)
    assert moved or mask.size < 12


def test_nothing_is_turned_or_moved_at_p_0_or_left_to_the_normalised_image():
    mask = blocks(2, 21, 34)
    names = ("hflip", "vflip", "rotate", "brightness_contrast", "clahe", "grayscale")
    late = [entry("random_erasing", p=1.0), entry("cutout")]
    for chain in ([entry(name, p=0.0) for name in names], late, []):
        image, target = made(chain, mask, 3)
        assert np.array_equal(image, painted(mask)) and np.array_equal(target, mask)


def test_colour_entries_draw_for_each_image_and_place():
    mask, plain = blocks(3, 16, 16), entry("equalize_luma", p=0.5)
    for times, p in ((1, 0.5), (2, 0.75)):
        made_ = [made([plain] * times, mask, i)[0] for i in range(200)]
        assert happens([not np.array_equal(image, painted(mask)) for image in made_], p)


POLICIES = [entry("rand_augment", p=1.0), entry("auto_augment"), entry("trivial_augment")]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_masks_follow_learned_policies(policy):
    """Pillow, given the policy's movements alone, moves the mask as the joint path does."""
    mask, movements = blocks(4, 37, 53, side=5), 0
    program = batched_form([policy], 0)
    for index in range(40):
        _, target = made([policy], mask, index)
        slots = of_masks(program.ops(np.array([[0, index]]), (37, 53)))
        wanted = by_pillow(mask[None, ..., None].repeat(3, -1), slots)[0, ..., 0]
        assert np.array_equal(target, wanted)
        assert set(np.unique(target)) <= {*LABELS, VOID}
        movements += bool(slots)
    assert movements > 5


# --- by others -----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", Op)
def test_masks_move_as_pillow_and_torch_move_them(op):
    """Operations of images, done to masks: by Pillow in colour, and by what a GPU would run."""
    for size in SIZES[::2]:
        rng = np.random.default_rng([op, *size])
        masks = rng.choice(LABELS, (40, *size))
        whole = [random_slot(op, rng, 40, *size)]
        slots = of_masks(whole)
        assert bool(slots) == (op in MOVING)
        found = cpu.apply_to_masks(masks, np.arange(40), whole)
        assert np.array_equal(found, by_pillow(masks[..., None].repeat(3, -1), slots)[..., 0])
        assert np.array_equal(found, tensors.apply(torch.from_numpy(masks)[:, None], slots)[:, 0])


# --- the whole path ------------------------------------------------------------------------------


def test_scales_are_spread_over_their_range():
    sides = [len(made([entry("random_scale")], blocks(0, 50, 50), i)[1]) for i in range(60)]
    assert 25 <= min(sides) < 32 and 85 < max(sides) <= 100
    assert 55 < np.mean(sides) < 70  # of a factor uniform from 0.5 to 2


def test_masks_agree_with_torchvision():
    mask = blocks(6, 60, 80, side=6)
    theirs = tv_tensors.Mask(torch.from_numpy(mask))
    assert np.array_equal(made([entry("hflip", p=1.0)], mask, 0)[1], v2.functional.hflip(theirs))
    for index in range(5):
        turn = entry("rotate", limit=45, p=1.0)
        _, target = made([turn], mask, index)
        (drawn,) = batched_form([turn], 0).ops(np.array([[0, index]]), (60, 80))
        angle = np.degrees(np.arcsin(-drawn.args[0, 1]))
        there, back = (v2.functional.rotate(theirs, a, fill=VOID) for a in (angle, -angle))
        assert (there.numpy() == target).mean() > 0.97 > (back.numpy() == target).mean()
    for size in [(16, 32), (128, 128), (60, 80)]:  # where no centre falls between two pixels
        wanted = F.interpolate(
            torch.from_numpy(mask)[None, None].float(), size, mode="nearest-exact"
        )
        assert np.array_equal(made([entry("resize", size=size)], mask, 0)[1], wanted[0, 0])


CHAIN = (
    "augment=[{resize: {size: [20, 26]}}, hflip, {rotate: {p: 0.7}}, rand_augment, "
    "brightness_contrast, {random_crop: {size: 20, padding: 2}}, {cutout: {p: 0.5, size: 6}}]"
)
FORMLESS = CHAIN.replace("brightness_contrast", "{clahe: {grid: 2}}, {random_scale: {}}")


def source(count=24):
    masks = np.stack([blocks(i, 30, 40, side=4) for i in range(count)])
    masks[:, 0, :5] = VOID
    images = np.stack([np.array(painted(mask)) for mask in masks])
    targets, classes = np.arange(count) % 3, tuple(map(str, range(255)))
    return ArraySource("blocks", images, targets, classes, masks, dense=True)


@dataclass(frozen=True)
class Files:
    """The same pairs, one at a time, as files would give them."""

    arrays: ArraySource
    name: str = "files"
    dense: ClassVar[bool] = True
    classes: ClassVar[tuple[str, ...]] = tuple(map(str, range(255)))

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        return self.arrays[index]

    def key(self, index):
        return f"{index}.png"


KINDS = [source, lambda: Files(source())]


def recipe(*more):
    return load(
        "recipes/debug.yaml", [CHAIN, EVALUATED, "batch_size=8", "eval_batch_size=5", *more]
    ).recipe


EVALUATED = "eval_augment=[{resize: {size: [16, 18]}}]"


def test_arrays_and_files_and_workers_make_the_same_pairs(monkeypatch):
    expected = by_item(batches(recipe(), source()))
    assert len(expected) == 48 and len(set(expected.values())) == 48
    for workers in (0, 2):
        assert by_item(batches(recipe(), Files(source()), workers=workers)) == expected
    monkeypatch.setattr(cpu, "has_numba", lambda: False)
    assert by_item(batches(recipe(), source())) == expected
    assert by_item(batches(recipe(), Files(source()))) == expected


@pytest.mark.parametrize("chain", [CHAIN, FORMLESS])
@pytest.mark.parametrize("kind", KINDS, ids=["arrays", "files"])
def test_pairs_depend_on_nothing_but_their_address(chain, kind):
    wanted = by_item(batches(recipe(chain), kind()))
    assert by_item(batches(recipe(chain, "batch_size=4"), kind(), stop=12)) == wanted
    later = by_item(batches(recipe(chain), kind(), start=3))
    assert later.items() < wanted.items()
    assert not set(by_item(batches(recipe(chain, "seed=9"), kind())).values()) & {*wanted.values()}


def test_few_large_images_are_augmented_at_once(monkeypatch):
    monkeypatch.setattr(pipeline, "BYTES_AT_ONCE", 30 * 40 * 3 * 8)
    asked, call = [], Store.__call__
    monkeypatch.setattr(Store, "__call__", lambda *args: asked.append(len(args[2])) or call(*args))
    few = by_item(batches(recipe("batch_size=4"), source(), stop=6))
    assert asked == [8, 8, 8]
    monkeypatch.undo()
    assert few == by_item(batches(recipe("batch_size=4"), source(), stop=6))


def test_cutmix_pastes_labels_with_their_pixels():
    words = ["mix=cutmix", "augment=[{resize: {size: [20, 26], interpolation: nearest}}, hflip]"]
    data = pipeline.DataPipeline(
        recipe(*words), source(), pipeline.WorkerContext(CPU), training=True
    )
    for step, raw in enumerate(data.raw_training(0, 3)):
        (batch,) = data.preprocess(raw, step, pixels=True)
        labels = torch.where(batch.pixels[:, 0] == VOID, IGNORE, batch.pixels[:, 0].long())
        assert torch.equal(batch.target, labels) and not torch.equal(batch.pixels, raw.images)


@pytest.mark.parametrize("kind", KINDS, ids=["arrays", "files"])
@pytest.mark.parametrize("more", [[], ["eval_augment=[{resize: {size: 16}}, equalize_luma]"]])
def test_evaluations_see_every_pair_once_and_remember_them(kind, more):
    seen = {}
    for rank in range(2):
        data = pipeline.DataPipeline(
            recipe(*more), kind(), pipeline.WorkerContext(CPU, rank, 2), training=False
        )
        first, again = list(data.raw_evaluation()), list(data.raw_evaluation())
        assert all(a is b for a, b in zip(first, again, strict=True))
        for (raw,) in first:
            assert raw.target.shape[1:] == raw.images.shape[2:]
            seen |= dict(zip(raw.items[:, 1].tolist(), raw.target, strict=True))
    assert sorted(seen) == list(range(24))
    size = tuple(seen[0].shape)
    for index, mask in seen.items():
        whole = Image.fromarray(source().masks[index])
        assert np.array_equal(mask, whole.resize(size[::-1], Image.Resampling.NEAREST))


# --- which path, and what is refused -------------------------------------------------------------


def test_the_path_is_told_or_refused():
    assert describe_path(recipe(), dense=True).startswith("batched: ")
    formless = describe_path(recipe(FORMLESS), dense=True)
    assert formless.startswith("joint: one image and its mask at a time (augment: clahe ")
    timm = describe_path(recipe("data.path=timm"), dense=True)
    assert timm == "joint: one image and its mask at a time (as data.path says)"
    with pytest.raises(UserError, match="augment: clahe .* has no batched form"):
        batches(recipe(FORMLESS, "data.path=batched"), source())
    with pytest.raises(UserError, match="loss: jsd compares copies of images"):
        augmented_images(recipe(), source(), copies=2)


def test_what_evaluation_may_do():
    steady = [*map(entry, ("resize", "center_crop", "equalize_luma"))]
    steady += [entry("clahe", p=1.0, clip=(2.0, 2.0))]
    lucky = [*map(entry, ("random_scale", "hflip", "cutout")), entry("clahe", p=1.0)]
    lucky += [entry("equalize_luma", p=0.5), entry("clahe", clip=(2.0, 2.0))]
    assert not any(operation(one).random for one in steady)
    assert all(operation(one).random for one in lucky)


def test_entries_of_ones_own_say_that_they_move_nothing(monkeypatch):
    def dim(image):
        return image.point(lambda value: value // 2)

    monkeypatch.setitem(augments.entries, "dim", lambda: dim)
    with pytest.raises(UserError, match="augment: aug_mix .* has no form for masks. Take"):
        joint([entry("aug_mix")], 0)
    with pytest.raises(UserError, match=r'augment: dim \(\) has no form .* stage = "colour"'):
        joint([Choice("dim")], 0)
    monkeypatch.setitem(augments.entries, "dim", lambda: Operation(partial(dim), "colour"))
    mask = blocks(8, 9, 11)
    image, target = made([Choice("dim"), entry("hflip", p=1.0)], mask, 0)
    assert np.array_equal(image, np.array(painted(mask))[:, ::-1] // 2)
    assert np.array_equal(target, mask[:, ::-1])


class Torn(Files):
    """A mask that has lost its last row; and images of two sizes."""

    def __getitem__(self, index):
        image, mask = self.arrays[index]
        if index == 1:
            return image, mask[:-1]
        return (image, mask) if index else (image.crop((0, 0, 9, 30)), mask[:, :9])


def test_pairs_that_do_not_fit_are_one_line():
    pairs = AugmentedImages(Torn(source(4)), partial(joint, [], 0))
    with pytest.raises(UserError, match="files, 1.png: 40x30 pixels, but its mask has 40x29;"):
        list(make_loader(pairs, eval_order(4, 1), 1, pin=False))
    # of two sizes a batch each, which only training refuses
    (raws,) = make_loader(pairs, [np.array([[0, 0], [0, 2], [0, 3]])], 0, pin=False)
    assert [tuple(raw.target.shape) for raw in raws] == [(1, 30, 9), (2, 30, 40)]
    assert [raw.items[:, 1].tolist() for raw in raws] == [[0], [2, 3]]
    with pytest.raises(UserError, match=r"different sizes in one batch \(9x30, 40x30\)"):
        pipeline.one_size(raws)
