"""The embedded shapes: the same on every machine, balanced, masked, too hard for a linear model."""

import hashlib

import numpy as np
import pytest
import torch

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import datasets
from vision_tutorial.data.shapes import OUTLINES, shapes


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]


@pytest.fixture(scope="module")
def train():
    return shapes("train", train=2000)


@pytest.fixture(scope="module")
def test():
    return shapes("test", test=500)


def test_the_images_are_the_same_on_every_machine():
    source = shapes("train", train=200)
    assert (sha256(source.images), sha256(source.masks)) == (
        "5ead62cd2b96673f",
        "65e48bdae9893ef1",
    )
    small = shapes("test", size=19, test=30, seed=5)
    assert (sha256(small.images), sha256(small.masks)) == (
        "391b8d87d32cf8b3",
        "811ae08bbbf2a061",
    )


def test_what_it_holds(train):
    assert train.images.shape == (2000, 32, 32, 3) and train.images.dtype == np.uint8
    assert train.masks.shape == (2000, 32, 32) and train.masks.dtype == np.uint8
    assert train.targets.dtype == np.int64
    assert (train.name, train.classes) == ("shapes", tuple(OUTLINES)) and len(OUTLINES) == 10
    image, target = train[3]
    assert image.mode == "RGB" and image.size == (32, 32) and target == 3


def test_classes_are_balanced(train, test):
    assert np.bincount(train.targets).tolist() == [200] * 10
    assert np.bincount(test.targets).tolist() == [50] * 10
    assert np.ptp(np.bincount(shapes("test", test=17).targets)) == 1


def test_a_image_depends_on_seed_split_and_index_alone(train):
    fewer = shapes("train", train=37, test=999)
    for name in ("images", "masks", "targets"):
        np.testing.assert_array_equal(getattr(fewer, name), getattr(train, name)[:37])
    other = shapes("train", train=37, seed=1)
    assert (other.images != fewer.images).any((1, 2, 3)).all()


def test_splits_are_disjoint(train, test):
    images = [image.tobytes() for image in (*train.images, *test.images)]
    assert len(set(images)) == len(images)


def test_masks_carry_the_class_and_nothing_else(train):
    for mask, target in zip(train.masks, train.targets, strict=True):
        assert set(np.unique(mask)) == {0, target + 1}


def test_masks_as_targets(train):
    dense = shapes("train", train=50, masks=True)
    assert dense.dense and dense.classes == ("background", *OUTLINES)
    np.testing.assert_array_equal(dense.images, train.images[:50])
    image, mask = dense[13]
    np.testing.assert_array_equal(mask, train.masks[13])
    assert set(np.unique(mask)) == {0, dense.targets[13]} == {0, train.targets[13] + 1}
    assert not train.dense and train[13][1] == train.targets[13]


def test_no_shape_is_cut_off_by_more_than_its_corners(train):
    """Each mask has the area of its outline, drawn alone on a fine grid."""
    grid = (np.arange(400) + 0.5) / 160 - 1.25
    for label, outline in enumerate(OUTLINES.values()):
        area = (outline(grid[None], grid[:, None]) < 0).mean() * 2.5**2  # in radii squared
        counts = (train.masks == label + 1).sum((1, 2))[train.targets == label]
        radii = np.sqrt(counts / area) / 32
        assert (
            0.245 < radii.min()
            and radii.max() < 0.435
            and radii.mean() == pytest.approx(0.34, abs=0.01)
        )


def test_masks_lie_on_the_shape_to_the_pixel(test):
    """Colour jumps where the mask does: moved by one pixel, it explains the image less well."""

    def spread(masks: np.ndarray) -> float:
        """Variance of colour that two colours, one inside and one outside, do not explain."""
        images = test.images.astype(np.float64)
        left = 0.0
        for side in (masks > 0, masks == 0):
            weight = side[..., None]
            mean = (images * weight).sum((1, 2)) / weight.sum((1, 2))
            left += ((images - mean[:, None, None]) ** 2 * weight).sum()
        return left

    there = spread(test.masks)
    for axis in (1, 2):
        for step in (-1, 1):
            assert spread(np.roll(test.masks, step, axis)) > 1.3 * there


def test_a_linear_model_fails(train, test):
    """Ridge regression on the pixels is near chance (0.1); 0.15 was measured on 4,000 images."""

    def features(source):
        flat = torch.from_numpy(source.images).flatten(1).float() / 127.5 - 1
        return torch.cat([flat, torch.ones(len(flat), 1)], 1)

    x, target = features(train), torch.from_numpy(train.targets)
    one_hot = torch.nn.functional.one_hot(target, 10).float()
    kernel = x @ x.T
    best = 0.0
    for ridge in (1e3, 1e5):
        weights = x.T @ torch.linalg.solve(kernel + ridge * torch.eye(len(x)), one_hot)
        hits = (features(test) @ weights).argmax(1) == torch.from_numpy(test.targets)
        best = max(best, hits.float().mean().item())
    assert best < 0.25


@pytest.mark.parametrize("size", [16, 24, 33, 64])
def test_any_size(size):
    source = shapes("test", size=size, test=10)
    assert source.images.shape == (10, size, size, 3)
    assert (source.masks.max((1, 2)) == np.arange(1, 11)).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 15}, "size is 15; use 16 to 256 pixels"),
        ({"size": 257}, "size is 257; use 16 to 256 pixels"),
        ({"train": 0}, "train is 0; use at least 1 image"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        shapes("train", **options)


def test_the_shelf_has_it_and_it_knows_two_splits():
    with pytest.raises(UserError, match="no split called 'validation'"):
        datasets.build("shapes", train=10)("validation")
