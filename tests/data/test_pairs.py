"""Image and mask stay together: what shows where, whoever makes them, and what is refused."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from data.oracle import by_pillow, random_slot
from data.test_tensors import SIZES
from forked import run_ranks
from PIL import Image, ImageFilter
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import augments
from vision_tutorial.core.sources import ArraySource, Subset
from vision_tutorial.core.targets import IGNORE, VOID
from vision_tutorial.data import mix, pipeline, store
from vision_tutorial.data.augmentation.operation import Filter, Op, Operation, batched_op, operation
from vision_tutorial.data.augmentation.pairs import joint
from vision_tutorial.data.executors import tensors
from vision_tutorial.data.loader import AugmentedImages, EvalOrder, make_loader
from vision_tutorial.data.store import MOVING, carry_out_masks, of_masks
from vision_tutorial.recipe.grammar import Choice
from vision_tutorial.recipe.loading import load

CPU = torch.device("cpu")
LABELS = np.array([0, 3, 7, 200, 254], np.uint8)
SHAPES = [(37, 53), (64, 64), (5, 2), (1, 9)]


def blocks(seed, height, width, side=1):
    """A mask of squares of `side` pixels with random LABELS."""
    rng = np.random.default_rng(seed)
    few = rng.choice(LABELS, (-(-height // side), -(-width // side)))
    return few.repeat(side, 0).repeat(side, 1)[:height, :width]


def painted(mask):
    """An image that tells its mask: three values for each label, none a colour that fills."""
    return Image.fromarray(np.stack([mask, 255 - mask, mask ^ 0x55], -1))


def choice(name, **options):
    """An entry with its defaults, as a recipe would have it."""
    whole = augments.entries[name].__kwdefaults__ | options
    return Choice(name, {key: tuple(v) if isinstance(v, list) else v for key, v in whole.items()})


def made(chain, mask, index, seed=0):
    """Image (h, w, 3) and mask (h, w) after a chain."""
    image, target = joint(chain, seed)(painted(mask), mask, (0, index))
    return image.permute(1, 2, 0).numpy(), target


# --- moved together ------------------------------------------------------------------------------

NEAREST = {"interpolation": "nearest"}
GEOMETRY = {
    "hflip": [choice("hflip", p=1.0)],
    "vflip": [choice("vflip", p=1.0)],
    "rotate": [choice("rotate", limit=60, p=1.0, **NEAREST)],
    "random_scale": [choice("random_scale", **NEAREST)],
    "resize": [choice("resize", size=20, **NEAREST)],
    "resize to both sides": [choice("resize", size=(24, 17), **NEAREST)],
    "random_crop": [choice("random_crop", size=24, padding=5)],
    "random_crop, reflected": [choice("random_crop", size=24, padding=1, mode="reflect")],
    "center_crop": [choice("center_crop", size=30)],
    "random_resized_crop": [choice("random_resized_crop", size=16, **NEAREST)],
    "all": [
        choice("random_scale", scale=[0.4, 1.5], **NEAREST),
        choice("rotate", limit=180, fill=(1, 2, 3), **NEAREST),
        choice("hflip"),
        choice("random_crop", size=28, padding=0),
        choice("vflip"),
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


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", ["rotate", "random_scale", "resize", "random_resized_crop"])
def test_smooth_images_lie_on_their_masks(name, interpolation):
    """Away from edges a blend is of one colour: that of the label."""
    given = choice(name, **dict(GEOMETRY[name][0].options) | {"interpolation": interpolation})
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


@pytest.mark.parametrize("length", [20, 32, 40, 100, 150])
def test_an_edge_in_the_mask_is_where_the_image_crosses_the_middle(length):
    """Both are sampled at pixel centres: half a pixel apart, this would fail."""
    for edge in range(4, 60, 5):
        mask = np.where(np.arange(64) < edge, 0, 200).astype(np.uint8)[None].repeat(64, 0)
        given = [choice("resize", size=(length, length), interpolation="bilinear")]
        image, target = made(given, mask, 0)
        centres = (np.arange(length) + 0.5) * 64 / length
        clear = abs(centres - edge) > 0.01
        assert np.array_equal((image[..., 0] > 100)[:, clear], (target == 200)[:, clear])


def test_nothing_is_turned_or_moved_at_p_0():
    mask = blocks(2, 21, 34)
    chain = [choice(name, p=0.0) for name in ("hflip", "vflip", "rotate", "brightness_contrast")]
    image, target = made([*chain, choice("clahe", p=0.0), choice("grayscale", p=0.0)], mask, 3)
    assert np.array_equal(image, painted(mask)) and np.array_equal(target, mask)
    image, target = made([], mask, 3)
    assert np.array_equal(image, painted(mask)) and np.array_equal(target, mask)


COLOURS = {
    "color_jitter": {},
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
        image, target = made([choice(name.partition(",")[0], **COLOURS[name])], mask, index)
        assert np.array_equal(target, mask)
        assert image.shape == (37, 53, 3) and not np.array_equal(image, painted(mask))


def test_colour_entries_draw_for_each_image_and_place():
    mask, plain = blocks(3, 16, 16), choice("equalize_luma", p=0.5)
    unlike = [not np.array_equal(made([plain], mask, i)[0], painted(mask)) for i in range(200)]
    assert abs(np.mean(unlike) - 0.5) < 5 * np.sqrt(0.25 / 200)
    twice = [not np.array_equal(made([plain] * 2, mask, i)[0], painted(mask)) for i in range(200)]
    assert abs(np.mean(twice) - 0.75) < 5 * np.sqrt(0.1875 / 200)


@pytest.mark.parametrize("name", ["random_erasing", "cutout"])
def test_what_acts_on_the_normalised_image_is_left_to_it(name):
    mask = blocks(3, 37, 53)
    image, target = made([choice(name, p=1.0)], mask, 0)
    assert np.array_equal(image, painted(mask)) and np.array_equal(target, mask)


POLICIES = [
    choice("rand_augment", p=1.0),
    choice("auto_augment"),
    choice("auto_augment", policy="cifar10"),
    choice("trivial_augment"),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: str(len(policy.options)))
def test_masks_follow_learned_policies(policy):
    """Pillow, given the policy's movements alone, moves the mask as the joint path does."""
    mask, movements = blocks(4, 37, 53, side=5), 0
    program = pipeline.attempt(recipe("seed=0"), [policy])
    for index in range(60):
        _, target = made([policy], mask, index)
        slots = of_masks(program.ops(np.array([[0, index]]), (37, 53)))
        wanted = by_pillow(mask[None, ..., None].repeat(3, -1), slots)[0, ..., 0]
        assert np.array_equal(target, wanted)
        assert set(np.unique(target)) <= {*LABELS, VOID}
        movements += bool(slots)
    assert movements > 5


LONG = [
    choice("random_scale"),
    choice("rotate", p=0.9, interpolation="bicubic"),
    choice("rand_augment"),
    choice("random_crop", size=40),
    choice("clahe"),
    choice("random_resized_crop", size=25),
    choice("gaussian_blur"),
    choice("trivial_augment"),
    choice("cutout"),
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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", Op)
def test_masks_move_as_pillow_and_torch_move_them(op, size):
    """Operations of images, done to masks: by Pillow in colour, and by what a GPU would run."""
    rng = np.random.default_rng([op, *size])
    for _ in range(3):
        masks = rng.choice(LABELS, (20, *size))
        whole = [random_slot(op, rng, 20, *size)]
        slots = of_masks(whole)
        assert bool(slots) == (op in MOVING)
        found = carry_out_masks(masks, np.arange(20), whole)
        assert np.array_equal(found, by_pillow(masks[..., None].repeat(3, -1), slots)[..., 0])
        assert np.array_equal(found, tensors.apply(torch.from_numpy(masks)[:, None], slots)[:, 0])


def test_masks_agree_with_torchvision():
    mask = blocks(6, 60, 80, side=6)
    theirs = tv_tensors.Mask(torch.from_numpy(mask))
    assert np.array_equal(made([choice("hflip", p=1.0)], mask, 0)[1], v2.functional.hflip(theirs))
    crop = v2.functional.center_crop(theirs, [30, 30])
    assert np.array_equal(made([choice("center_crop", size=30)], mask, 0)[1], crop)
    for index in range(5):
        _, target = made([choice("rotate", limit=45, p=1.0)], mask, index)
        (drawn,) = pipeline.attempt(recipe("seed=0"), [choice("rotate", limit=45, p=1.0)]).ops(
            np.array([[0, index]]), (60, 80)
        )
        angle = np.degrees(np.arcsin(-drawn.args[0, 1]))
        there, back = (v2.functional.rotate(theirs, a, fill=VOID) for a in (angle, -angle))
        assert (there.numpy() == target).mean() > 0.97 > (back.numpy() == target).mean()


@pytest.mark.parametrize("size", [(16, 32), (128, 128), (60, 80)])
def test_resized_masks_are_torchs_nearest_exact(size):
    """At sizes where no centre falls between two pixels, which may go either way."""
    mask = blocks(7, 60, 80)
    whole = torch.from_numpy(mask)[None, None].float()
    wanted = F.interpolate(whole, size, mode="nearest-exact")[0, 0].numpy()
    assert np.array_equal(made([choice("resize", size=size)], mask, 0)[1], wanted)


def test_a_mask_takes_the_nearest_pixel_and_void_from_outside():
    shift = batched_op(1, Op.AFFINE, (2, 3), 1, 0, 1, 0, 1, 0, int(Filter.BICUBIC), fill=(9, 9, 9))
    found = carry_out_masks(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), [0], [shift])
    assert found.tolist() == [[[2, 3, VOID], [5, 6, VOID]]]


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


def batches(wanted, pairs, start=0, stop=6, mixing=mix.leave, **more):
    """Raw and finished batches."""
    data = pipeline_of(wanted, pairs, mixing=mixing, **more)
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


@pytest.mark.parametrize("chain", [CHAIN, FORMLESS])
def test_processes_together_make_what_one_would(chain):
    shares = run_ranks(
        2, lambda rank: by_item(batches(recipe(chain), source(), rank=rank, world=2))
    )
    assert not shares[0].keys() & shares[1].keys()
    assert shares[0] | shares[1] == by_item(batches(recipe(chain), source()))


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
        assert torch.equal(batch.target == IGNORE, raw.target == VOID)
        counts = batch.target != IGNORE
        assert torch.equal(batch.target[counts], raw.target[counts].long())
        assert counts.any() and not counts.all()


def test_pixels_are_the_images_before_they_were_normalised():
    wanted = recipe("data.path=timm")
    data = pipeline_of(wanted, source(), training=False)
    for raw, batch in zip(data.raw_evaluation(), data.evaluation(pixels=True), strict=True):
        assert batch.pixels.dtype == torch.uint8
        assert torch.equal(batch.pixels, raw.images)
        half = (batch.pixels.float() / 255 - 0.5) / 0.5  # the recipe's colours
        assert torch.allclose(batch.images, half, atol=1e-6)


def test_cutmix_pastes_labels_with_their_pixels():
    mixing = mix.mix(recipe("mix={cutmix: {p: 0.5}}").mix)
    geometry = recipe("augment=[{resize: {size: [20, 26], interpolation: nearest}}, hflip]")
    pasted = 0
    for raw, batch in batches(geometry, source(), mixing=mixing):
        data = pipeline_of(geometry, source(), mixing=mixing)
        again = data.preprocessor(raw, 0, pixels=True)
        labels = torch.where(again.pixels[:, 0] == VOID, IGNORE, again.pixels[:, 0].long())
        assert torch.equal(again.target, labels)
        pasted += not torch.equal(again.pixels, raw.images)
        assert batch.target.dtype == torch.int64
    assert pasted


def test_micro_batches_keep_masks_with_images():
    ((raw, _), *_) = batches(recipe(), source(), stop=1)
    for part in raw.parts(2):
        for image, mask, item in zip(part.images, part.target, part.items, strict=True):
            row = (raw.items == item).all(1).nonzero().item()
            assert torch.equal(mask, raw.target[row]) and torch.equal(image, raw.images[row])


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


def test_an_evaluation_too_large_to_remember_counts_its_masks(monkeypatch):
    monkeypatch.setattr(pipeline, "KEPT_BYTES", 24 * 16 * 18 * 3 + 1)  # the images alone would fit
    data = pipeline_of(recipe(), Files(source()), training=False)
    first, again = list(data.raw_evaluation()), list(data.raw_evaluation())
    assert not any(a is b for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a.target, b.target) for a, b in zip(first, again, strict=True))


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
    steady = ["resize", "center_crop", "equalize_luma"]
    assert not any(operation(choice(name)).random for name in steady)
    assert not operation(choice("clahe", p=1.0, clip=(2.0, 2.0))).random
    for lucky in (choice("clahe", p=1.0), choice("clahe", clip=(2.0, 2.0)), choice("rotate")):
        assert operation(lucky).random
    for name in ("brightness_contrast", "random_scale", "hflip", "cutout"):
        assert operation(choice(name)).random
    assert operation(choice("equalize_luma", p=0.5)).random


@pytest.mark.parametrize(
    "given", [choice("aug_mix"), choice("auto_augment", policy="3a")], ids=lambda c: c.name
)
def test_an_entry_without_a_form_for_masks_says_what_else_there_is(given):
    with pytest.raises(UserError, match=f"augment: {given.name} .* has no form for masks. Take"):
        joint([given], 0)


def test_entries_of_ones_own_say_that_they_move_nothing(monkeypatch):
    def dim(picture):
        return picture.point(lambda value: value // 2)

    monkeypatch.setitem(augments.entries, "dim", lambda: dim)
    with pytest.raises(UserError, match=r'augment: dim \(\) has no form .* stage = "colour"'):
        joint([Choice("dim")], 0)
    monkeypatch.setitem(augments.entries, "dim", lambda: Operation(partial(dim), "colour"))
    mask = blocks(8, 9, 11)
    image, target = made([Choice("dim"), choice("hflip", p=1.0)], mask, 0)
    assert np.array_equal(image, np.array(painted(mask))[:, ::-1] // 2)
    assert np.array_equal(target, mask[:, ::-1])


def test_copies_and_masks_do_not_go_together():
    with pytest.raises(UserError, match="loss: jsd compares copies of images"):
        pipeline.augmented_images(recipe(), source(), copies=2)


class Torn(Files):
    """A mask that has lost its last row; and images of two sizes."""

    def __getitem__(self, index):
        picture, mask = self.arrays[index]
        if index == 1:
            return picture, mask[:-1]
        return (picture, mask) if index else (picture.crop((0, 0, 9, 30)), mask[:, :9])


@pytest.mark.parametrize("workers", [0, 1])
def test_pairs_that_do_not_fit_are_one_line(workers):
    pairs = AugmentedImages(Torn(source(4)), joint([], 0))
    with pytest.raises(UserError, match="files, 1.png: 40x30 pixels, but its mask has 40x29;"):
        list(make_loader(pairs, EvalOrder(4, 1), workers, pin=False))
    with pytest.raises(UserError, match=r"different sizes in one batch \(9x30, 40x30"):
        list(
            make_loader(
                AugmentedImages(Torn(source(4)), joint([], 0)), Uneven(), workers, pin=False
            )
        )


class Uneven:
    """One batch of two sizes."""

    def __iter__(self):
        yield [(0, 0), (0, 2)]

    def __len__(self):
        return 1
