"""Light and contrast: against Pillow, OpenCV and the formulas, worked out by hand."""

import hashlib

import numpy as np
import pytest
from data.test_transforms import apply, build, drawn
from PIL import Image

from vision_tutorial.data.augmentation.colour import equalized_in_tiles, linear


def noise(seed, height, width):
    """Grey levels about a middle, so that some bins overflow and others are empty."""
    levels = np.random.default_rng(seed).normal(100, 25, (height, width))
    return levels.clip(0, 255).astype(np.uint8)


def with_luma(image, change):
    """The image with its luma, an array, changed."""
    luma, blue, red = image.convert("YCbCr").split()
    changed = Image.fromarray(change(np.array(luma)))
    return Image.merge("YCbCr", (changed, blue, red)).convert("RGB").tobytes()


def test_brightness_and_contrast_are_a_line():
    """Two pixels tell factor and shift; every other value must lie on that line."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    (transform,) = build("brightness_contrast", brightness_contrast={"limit": 0.2, "p": 1.0})
    lines = []
    for i in range(100):
        values = np.array(apply([transform], image, i)).reshape(256, 3)
        inner = np.flatnonzero((values[:, 0] > 0) & (values[:, 0] < 255))
        factor, shift = np.polyfit(inner, values[inner, 0], 1)
        exact = factor * np.arange(256) + shift
        assert abs(values - exact.clip(0, 255)[:, None]).max() < 0.6
        lines.append((factor, shift))
    factors, shifts = np.array(lines).T
    assert 0.8 < factors.min() < 0.82 and 1.18 < factors.max() < 1.2
    assert -51 < shifts.min() < -48 and 48 < shifts.max() < 51
    assert linear(0.5, 0)[:5] == [0, 1, 1, 2, 2]  # half goes up


def spread(levels):
    """Pillow's equalisation of grey levels, written out: each value by how many are below it."""
    values, counts = np.unique(levels, return_counts=True)
    step = (levels.size - counts[-1]) // 255
    if not step:
        return levels
    below = step // 2 + np.cumsum(counts) - counts
    table = dict(zip(values, np.minimum(below // step, 255), strict=True))
    return np.vectorize(table.get, otypes=[np.uint8])(levels)


@pytest.mark.parametrize("size", [(64, 64), (41, 23), (3, 2), (1, 1)])
def test_equalize_luma_spreads_the_luma_and_keeps_the_chroma(size):
    (transform,) = build("equalize_luma")
    for image in drawn(6, *size):
        assert apply([transform], image, 0).tobytes() == with_luma(image, spread)


# What OpenCV 5.0.0's createCLAHE(clip, (grid, grid)) makes of noise(seed, height, width).
OPENCV = {
    (1, 45, 70, 2.5, 8): "e28baada963f9a71",
    (3, 30, 40, 40.0, 5): "d256c21366867aaa",
    (5, 5, 9, 2.0, 8): "642222d9f118172c",
}


@pytest.mark.parametrize("case", OPENCV, ids=str)
def test_clahe_is_opencvs(case):
    seed, height, width, clip, grid = case
    found = equalized_in_tiles(noise(seed, height, width), clip, grid)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == OPENCV[case]


def test_clahe_of_an_image_changes_its_luma_by_a_limit_from_clip():
    image = drawn(2, 40, 40)[1]
    (fixed,) = build("clahe", clahe={"p": 1.0, "clip": [2.0, 2.0], "grid": 4})
    wanted = with_luma(image, lambda luma: equalized_in_tiles(luma, 2.0, 4))
    assert {apply([fixed], image, i).tobytes() for i in range(5)} == {wanted}
    (free,) = build("clahe", clahe={"p": 1.0, "clip": [1.0, 4.0], "grid": 1})
    assert len({apply([free], image, i).tobytes() for i in range(20)}) > 3
