"""Image and mask stay together: what shows where, whoever makes them, and what is refused."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from data.oracle import SIZES, by_pillow, entry, happens, random_slot
from forked import run_ranks
from PIL import Image, ImageFilter
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import augments
from vision_tutorial.core.sources import ArraySource, Subset
from vision_tutorial.core.task import IGNORE, VOID
from vision_tutorial.data import mix, pipeline, store
from vision_tutorial.data.augmentation.operation import (
    Op,
    Operation,
    batched_form,
    operation,
)
from vision_tutorial.data.augmentation.pairs import joint
from vision_tutorial.data.executors import tensors
from vision_tutorial.data.loader import AugmentedImages, EvalOrder, make_loader
from vision_tutorial.data.store import MOVING, carry_out_masks, of_masks
from vision_tutorial.recipe.grammar import Choice
from vision_tutorial.recipe.loading import load

CPU = torch.device("cpu")
LABELS = np.array([0, 3, 7, 200, 254], np.uint8)
SHAPES = [(37, 53), (5, 2), (1, 9)]


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
    image, target = joint(chain, seed)(painted(mask), mask, (0, index))
    return image.permute(1, 2, 0).numpy(), target


# --- moved together ------------------------------------------------------------------------------

NEAREST = {"interpolation": "nearest"}
GEOMETRY = {
    "hflip": [entry("hflip", p=1.0)],
    "vflip": [entry("vflip", p=1.0)],
    "rotate": [entry("rotate", limit=60, p=1.0, **NEAREST)],
    "random_scale": [entry("random_scale", **NEAREST)],
    "resize": [entry("resize", size=20, **NEAREST)],
    "resize to both sides": [entry("resize", size=(24, 17), **NEAREST)],
    "random_crop": [entry("random_crop", size=24, padding=5)],
    "random_crop, reflected": [entry("random_crop", size=24, padding=1, mode="reflect")],
    "center_crop": [entry("center_crop", size=30)],
    "random_resized_crop": [entry("random_resized_crop", size=16, **NEAREST)],
    "all": [
        entry("random_scale", scale=[0.4, 1.5], **NEAREST),
        entry("rotate", limit=180, fill=(1, 2, 3), **NEAREST),
        entry("hflip"),
        entry("random_crop", size=28, padding=0),
        entry("vflip"),
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


@pytest.mark.parametrize("name", ["rotate", "random_scale", "resize", "random_resized_crop"])
def test_smooth_images_lie_on_their_masks(name):
    """Away from edges a blend is of one colour: that of the label."""
    given = entry(name, **dict(GEOMETRY[name][0].options) | {"interpolation": "bicubic"})
    mask, seen = blocks(1, 75, 91, side=24), 0
    for index in range(12):
        image, target = made([given], mask, index)
        framed = Image.fromarray(np.pad(target, 3, constant_values=VOID))
        low, high = (
            np.array(framed.filter(kind(7)))[3:-3, 3:-3]
            for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
        )
        inside = (low == high) & (target != VOID)
        apart = image.astype(int) - np.array(painted(target)).astype(int)
        assert abs(apart[inside]).max(initial=0) <= 1
        seen += inside.sum()
    assert seen > 100


def test_an_edge_in_the_mask_is_where_the_image_crosses_the_middle():
    """Both are sampled at pixel centres: half a pixel apart, this would fail."""
    for length in (20, 32, 100):
        given = [entry("resize", size=(length, length), interpolation="bilinear")]
        for edge in range(4, 60, 5):
            mask = np.where(np.arange(64) < edge, 0, 200).astype(np.uint8)[None].repeat(64, 0)
            image, target = made(given, mask, 0)
            centres = (np.arange(length) + 0.5) * 64 / length
            clear = abs(centres - edge) > 0.01
            assert np.array_equal((image[..., 0] > 100)[:, clear], (target == 200)[:, clear])


def test_nothing_is_turned_or_moved_at_p_0_or_left_to_the_normalised_image():
    mask = blocks(2, 21, 34)
    names = ("hflip", "vflip", "rotate", "brightness_contrast", "clahe", "grayscale")
    late = [entry("random_erasing", p=1.0), entry("cutout")]
    for chain in ([entry(name, p=0.0) for name in names], late, []):
        image, target = made(chain, mask, 3)
        assert np.array_equal(image, painted(mask)) and np.array_equal(target, mask)


COLOURS = {
    "color_jitter, hue": {"strength": (0.1, 0.1, 0.1, 0.2)},
    "grayscale": {"p": 1.0},
    "gaussian_blur": {"p": 1.0, "sigma": (1.0, 2.0)},
    "brightness_contrast": {"p": 1.0},
    "equalize_luma": {"p": 1.0},
    "clahe": {"p": 1.0},
}


@pytest.mark.parametrize("name", COLOURS)
def test_colours_do_not_touch_the_mask(name):
    mask = blocks(3, 37, 53)
    for index in range(4):
        image, target = made([entry(name.partition(",")[0], **COLOURS[name])], mask, index)
        assert np.array_equal(target, mask)
        assert image.shape == (37, 53, 3) and not np.array_equal(image, painted(mask))


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


LONG = [
    entry("random_scale"),
    entry("rotate", p=0.9, interpolation="bicubic"),
    entry("rand_augment"),
    entry("random_crop", size=40),
    entry("clahe"),
    entry("random_resized_crop", size=25),
    *map(entry, ("gaussian_blur", "trivial_augment", "cutout")),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_no_label_is_invented(shape):
    mask = blocks(5, *shape)
    mask[0, :2] = VOID
    for index in range(30):
        image, target = made(LONG, mask, index)
        assert image.shape == (25, 25, 3) and target.shape == (25, 25)
        assert set(np.unique(target)) <= {*np.unique(mask), VOID}


# --- by others -----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", Op)
def test_masks_move_as_pillow_and_torch_move_them(op):
    """Operations of images, done to masks: by Pillow in colour, and by what a GPU would run."""
    for size in SIZES:
        rng = np.random.default_rng([op, *size])
        masks = rng.choice(LABELS, (40, *size))
        whole = [random_slot(op, rng, 40, *size)]
        slots = of_masks(whole)
        assert bool(slots) == (op in MOVING)
        found = carry_out_masks(masks, np.arange(40), whole)
        assert np.array_equal(found, by_pillow(masks[..., None].repeat(3, -1), slots)[..., 0])
        assert np.array_equal(found, tensors.apply(torch.from_numpy(masks)[:, None], slots)[:, 0])


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


# --- the whole path ------------------------------------------------------------------------------

CHAIN = (
    "augment=[{resize: {size: [20, 26]}}, hflip, {rotate: {p: 0.7}}, rand_augment, "
    "brightness_contrast, {random_crop: {size: 20, padding: 2}}, {cutout: {p: 0.5, size: 6}}]"
)
FORMLESS = CHAIN.replace("brightness_contrast", "{clahe: {grid: 2}}, {random_scale: {}}")
EVALUATED = "eval_augment=[{resize: {size: [16, 18]}}]"


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


def recipe(*more):
    words = [CHAIN, EVALUATED, "batch_size=8", "eval_batch_size=5", *more]
    return load("recipes/debug.yaml", words).recipe


def pipeline_of(wanted, pairs, training=True, mixing=mix.leave, **more):
    data = pipeline.DataPipeline(
        wanted, pairs, pipeline.WorkerContext(CPU, **more), training=training
    )
    data.preprocessor.mixing, data.preprocessor.classes = mixing, 255
    return data


def batches(wanted, pairs, start=0, stop=6, **more):
    """Raw and finished batches."""
    data = pipeline_of(wanted, pairs, **more)
    raws = data.raw_training(start, stop)
    return [(raw, data.preprocessor(raw, start + i)) for i, raw in enumerate(raws)]


def by_item(found):
    """(epoch, index) -> a checksum of what the network sees and is asked for."""
    return {
        tuple(item): hashlib.sha256(
            image.contiguous().numpy().tobytes() + ids.numpy().tobytes()
        ).hexdigest()
        for raw, batch in found
        for item, image, ids in zip(raw.items.tolist(), batch.images, batch.target, strict=True)
    }


def test_arrays_and_files_and_workers_make_the_same_pairs(monkeypatch):
    expected = by_item(batches(recipe(), source()))
    assert len(expected) == 48 and len(set(expected.values())) == 48
    for workers in (0, 2):
        assert by_item(batches(recipe(), Files(source()), workers=workers)) == expected
    for module in (pipeline, store):
        monkeypatch.setattr(module, "has_numba", lambda: False)
    assert by_item(batches(recipe(), source())) == expected
    assert by_item(batches(recipe(), Files(source()))) == expected


@pytest.mark.parametrize("chain", [CHAIN, FORMLESS])
@pytest.mark.parametrize("kind", [source, lambda: Files(source())], ids=["arrays", "files"])
def test_pairs_depend_on_nothing_but_their_address(chain, kind):
    wanted = by_item(batches(recipe(chain), kind()))
    assert by_item(batches(recipe(chain, "batch_size=4"), kind(), stop=12)) == wanted
    later = by_item(batches(recipe(chain), kind(), start=3))
    assert later.items() < wanted.items()
    assert not set(by_item(batches(recipe(chain, "seed=9"), kind())).values()) & {*wanted.values()}


def test_processes_together_make_what_one_would():
    shares = run_ranks(2, lambda rank: by_item(batches(recipe(), source(), rank=rank, world=2)))
    assert not shares[0].keys() & shares[1].keys()
    assert shares[0] | shares[1] == by_item(batches(recipe(), source()))


def test_subsets_have_the_masks_of_their_images():
    some = Subset(source(), np.array([20, 3, 3, 7, 11, 1, 0, 23]))
    plain = recipe("augment=[]")
    for raw, batch in batches(plain, some, stop=1):
        index = raw.items[:, 1].numpy()
        assert np.array_equal(raw.target, source().masks[some.indices[index]])
        red = raw.images[:, 0].long()
        assert torch.equal(batch.target, torch.where(raw.target == VOID, IGNORE, red))


def test_finished_masks_are_ids_on_which_nothing_counts_where_void():
    for raw, batch in batches(recipe(), source()):
        assert raw.target.dtype == torch.uint8 and raw.target.shape == (8, 20, 20)
        assert batch.target.dtype == torch.int64 and batch.pixels is None
        ids = torch.where(raw.target == VOID, IGNORE, raw.target.long())
        assert torch.equal(batch.target, ids) and 0 < (ids == IGNORE).sum() < ids.numel()


def test_pixels_are_the_images_before_they_were_normalised():
    wanted = recipe("data.path=timm")
    data = pipeline_of(wanted, source(), training=False)
    for raw, batch in zip(data.raw_evaluation(), data.evaluation(pixels=True), strict=True):
        assert batch.pixels.dtype == torch.uint8
        assert torch.equal(batch.pixels, raw.images)
        half = (batch.pixels.float() / 255 - 0.5) / 0.5  # the recipe's colours
        assert torch.allclose(batch.images, half, atol=1e-6)


def test_cutmix_pastes_labels_with_their_pixels():
    words = ["mix=cutmix", "augment=[{resize: {size: [20, 26], interpolation: nearest}}, hflip]"]
    data = pipeline_of(recipe(*words), source(), mixing=mix.mix(recipe(*words).mix))
    for step, raw in enumerate(data.raw_training(0, 3)):
        batch = data.preprocessor(raw, step, pixels=True)
        labels = torch.where(batch.pixels[:, 0] == VOID, IGNORE, batch.pixels[:, 0].long())
        assert torch.equal(batch.target, labels) and not torch.equal(batch.pixels, raw.images)


@pytest.mark.parametrize("kind", [source, lambda: Files(source())], ids=["arrays", "files"])
@pytest.mark.parametrize("more", [[], ["eval_augment=[{resize: {size: 16}}, equalize_luma]"]])
def test_evaluations_see_every_pair_once_and_remember_them(kind, more):
    seen = {}
    for rank in range(2):
        data = pipeline_of(recipe(*more), kind(), training=False, rank=rank, world=2)
        first, again = list(data.raw_evaluation()), list(data.raw_evaluation())
        assert all(a is b for a, b in zip(first, again, strict=True))
        for raw in first:
            assert raw.target.shape[1:] == raw.images.shape[2:]
            seen |= dict(zip(raw.items[:, 1].tolist(), raw.target, strict=True))
    assert sorted(seen) == list(range(24))
    size = tuple(seen[0].shape)
    for index, mask in seen.items():
        whole = Image.fromarray(source().masks[index])
        assert np.array_equal(mask, whole.resize(size[::-1], Image.Resampling.NEAREST))


def test_few_large_images_are_augmented_at_once(monkeypatch):
    monkeypatch.setattr(pipeline, "BYTES_AT_ONCE", 30 * 40 * 3 * 8)
    asked, call = [], store.Store.__call__
    monkeypatch.setattr(
        store.Store, "__call__", lambda *args: asked.append(len(args[2])) or call(*args)
    )
    few = by_item(batches(recipe("batch_size=4"), source(), stop=6))
    assert asked == [8, 8, 8]
    monkeypatch.undo()
    assert few == by_item(batches(recipe("batch_size=4"), source(), stop=6))


# --- which path, and what is refused -------------------------------------------------------------


def test_the_path_is_told():
    assert pipeline.describe_path(recipe(), dense=True).startswith("batched: ")
    formless = pipeline.describe_path(recipe(FORMLESS), dense=True)
    assert formless.startswith("joint: one image and its mask at a time (augment: clahe ")
    timm = pipeline.describe_path(recipe("data.path=timm"), dense=True)
    assert timm == "joint: one image and its mask at a time (as data.path says)"
    with pytest.raises(UserError, match="augment: clahe .* has no batched form"):
        batches(recipe(FORMLESS, "data.path=batched"), source())


def test_what_evaluation_may_do():
    steady = [*map(entry, ("resize", "center_crop", "equalize_luma"))]
    steady += [entry("clahe", p=1.0, clip=(2.0, 2.0))]
    lucky = [*map(entry, ("brightness_contrast", "random_scale", "hflip", "cutout", "rotate"))]
    lucky += [entry("clahe", p=1.0), entry("equalize_luma", p=0.5), entry("clahe", clip=(2.0, 2.0))]
    assert not any(operation(one).random for one in steady)
    assert all(operation(one).random for one in lucky)


def test_entries_of_ones_own_say_that_they_move_nothing(monkeypatch):
    def dim(image):
        return image.point(lambda value: value // 2)

    monkeypatch.setitem(augments.entries, "dim", lambda: dim)
    for given in (entry("aug_mix"), entry("auto_augment", policy="3a")):
        with pytest.raises(
            UserError, match=f"augment: {given.name} .* has no form for masks. Take"
        ):
            joint([given], 0)
    with pytest.raises(UserError, match=r'augment: dim \(\) has no form .* stage = "colour"'):
        joint([Choice("dim")], 0)
    monkeypatch.setitem(augments.entries, "dim", lambda: Operation(partial(dim), "colour"))
    mask = blocks(8, 9, 11)
    image, target = made([Choice("dim"), entry("hflip", p=1.0)], mask, 0)
    assert np.array_equal(image, np.array(painted(mask))[:, ::-1] // 2)
    assert np.array_equal(target, mask[:, ::-1])


def test_copies_and_masks_do_not_go_together():
    with pytest.raises(UserError, match="loss: jsd compares copies of images"):
        pipeline.augmented_images(recipe(), source(), copies=2)


class Torn(Files):
    """A mask that has lost its last row; and images of two sizes."""

    def __getitem__(self, index):
        image, mask = self.arrays[index]
        if index == 1:
            return image, mask[:-1]
        return (image, mask) if index else (image.crop((0, 0, 9, 30)), mask[:, :9])


@pytest.mark.parametrize("workers", [0, 1])
def test_pairs_that_do_not_fit_are_one_line(workers):
    pairs = AugmentedImages(Torn(source(4)), joint([], 0))
    with pytest.raises(UserError, match="files, 1.png: 40x30 pixels, but its mask has 40x29;"):
        list(make_loader(pairs, EvalOrder(4, 1), workers, pin=False))
    with pytest.raises(UserError, match=r"different sizes in one batch \(9x30, 40x30"):
        list(make_loader(pairs, Uneven(), workers, pin=False))


class Uneven(list):
    """One batch of two sizes."""

    def __init__(self):
        super().__init__([[(0, 0), (0, 2)]])
