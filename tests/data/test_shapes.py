"""The embedded shapes: the same on every machine, balanced, masked, too hard for a linear model."""

import hashlib

import numpy as np
import pytest
import torch

from vision_tutorial.core.errors import UserError
from vision_tutorial.data.shapes import OUTLINES, shapes


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]


@pytest.fixture(scope="module")
def train():
    return shapes("train", train=2000)


@pytest.fixture(scope="module")
def test():
    return shapes("test", test=500)


def test_the_images_are_the_same_on_every_machine(train):
    first = sha256(train.images[:200]), sha256(train.masks[:200])  # of any number of images
    assert first == ("5ead62cd2b96673f", "65e48bdae9893ef1")
    small = shapes("test", size=19, test=30, seed=5)
    assert (sha256(small.images), sha256(small.masks)) == ("391b8d87d32cf8b3", "811ae08bbbf2a061")


def test_what_it_holds(train, test):
    assert train.targets.dtype == np.int64 and train.classes == tuple(OUTLINES)
    assert np.bincount(train.targets).tolist() == [200] * 10
    assert np.ptp(np.bincount(shapes("test", test=17).targets)) == 1
    assert len({image.tobytes() for image in (*train.images, *test.images)}) == 2500
    for mask, target in zip(train.masks, train.targets, strict=True):
        assert set(np.unique(mask)) == {0, target + 1}
    dense = shapes("train", train=50, masks=True)
    assert dense.dense and dense.classes == ("background", *OUTLINES)
    image, mask = dense[13]
    assert np.array_equal(image, train.images[13]) and np.array_equal(mask, train.masks[13])
    assert dense.targets[13] == train.targets[13] + 1
    assert not train.dense and train[13][1] == train.targets[13]


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

    for axis, step in ((1, -1), (2, 1)):
        assert spread(np.roll(test.masks, step, axis)) > 1.3 * spread(test.masks)


def test_a_linear_model_fails(train, test):
    """Ridge regression on the pixels is near chance (0.1); 0.15 was measured on 4,000 images."""

    def features(source):
        flat = torch.from_numpy(source.images).flatten(1).float() / 127.5 - 1
        return torch.cat([flat, torch.ones(len(flat), 1)], 1)

    x, target = features(train), torch.from_numpy(train.targets)
    one_hot = torch.nn.functional.one_hot(target, 10).float()
    kernel = x @ x.T
    weights = x.T @ torch.linalg.solve(kernel + 1e4 * torch.eye(len(x)), one_hot)
    hits = (features(test) @ weights).argmax(1) == torch.from_numpy(test.targets)
    assert hits.float().mean() < 0.25


def test_any_size_within_limits():
    source = shapes("test", size=64, test=10)
    assert source.images.shape == (10, 64, 64, 3)
    assert (source.masks.max((1, 2)) == np.arange(1, 11)).all()
    for options, message in (({"size": 15}, "size is 15; use 16"), ({"train": 0}, "train is 0")):
        with pytest.raises(UserError, match=message):
            shapes("train", **options)
    with pytest.raises(UserError, match="no split called 'validation'"):
        shapes("validation")
