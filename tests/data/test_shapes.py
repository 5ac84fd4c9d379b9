"""The embedded shapes: the same on every machine, balanced, masked."""

import hashlib

import numpy as np
import pytest

from vision_tutorial.core.errors import UserError
from vision_tutorial.data.shapes import OUTLINES, shapes


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]


def test_the_images_are_the_same_on_every_machine():
    train = shapes("train", train=200)
    first = sha256(train.images[:200]), sha256(train.masks[:200])  # of any number of images
    assert first == ("5ead62cd2b96673f", "65e48bdae9893ef1")
    small = shapes("test", size=19, test=30, seed=5)
    assert (sha256(small.images), sha256(small.masks)) == ("391b8d87d32cf8b3", "811ae08bbbf2a061")


def test_what_it_holds():
    train, test = shapes("train", train=2000), shapes("test", test=500)
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


def test_any_size_within_limits():
    source = shapes("test", size=64, test=10)
    assert source.images.shape == (10, 64, 64, 3)
    assert (source.masks.max((1, 2)) == np.arange(1, 11)).all()
    for options, message in (({"size": 15}, "size is 15; use 16"), ({"train": 0}, "train is 0")):
        with pytest.raises(UserError, match=message):
            shapes("train", **options)
    with pytest.raises(UserError, match="no split called 'validation'"):
        shapes("validation")
