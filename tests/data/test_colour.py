"""Light and contrast: against Pillow, OpenCV and the formulas, worked out by hand."""

import hashlib
import pickle
from math import floor

import numpy as np
import pytest
from data.test_transforms import apply, build, drawn
from PIL import Image

from vision_tutorial.core.errors import UserError
from vision_tutorial.core.registry import augments
from vision_tutorial.data.augmentation import colour

MINE = ["brightness_contrast", "equalize_luma", "clahe"]


def noise(seed, height, width):
    """Grey levels about a middle, so that some bins overflow and others are empty."""
    levels = np.random.default_rng(seed).normal(100, 25, (height, width))
    return levels.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", MINE)
@pytest.mark.parametrize("size", [(70, 45), (1, 1), (3, 50)])
def test_every_entry(name, size):
    (transform,) = build(name, **{name: {"p": 0.5}})
    assert augments.entries[name]().stage == "colour"
    image, before = drawn(2, *size)[1], pickle.dumps(transform)
    results = [apply([transform], image, i) for i in range(40)]
    assert {(result.mode, result.size) for result in results} == {("RGB", size)}
    raw = [result.tobytes() for result in results]
    assert len(set(raw)) > 1 or size == (1, 1)
    again = pickle.loads(before)
    assert [apply([again], image, i).tobytes() for i in range(40)] == raw
    untouched = np.mean([found == image.tobytes() for found in raw])
    assert 0.2 < untouched < 0.8 or size == (1, 1)
    (never,) = build(name, **{name: {"p": 0.0}})
    assert all(apply([never], image, i).tobytes() == image.tobytes() for i in range(20))


def test_brightness_and_contrast_are_a_line():
    """Two pixels tell factor and shift; every other value must lie on that line."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    (transform,) = build("brightness_contrast", brightness_contrast={"limit": 0.2, "p": 1.0})
    seen = []
    for i in range(100):
        values = np.array(apply([transform], image, i)).reshape(256, 3)
        assert (values == values[:, :1]).all()
        inner = np.flatnonzero((values[:, 0] > 0) & (values[:, 0] < 255))
        factor, shift = np.polyfit(inner, values[inner, 0], 1)
        exact = factor * np.arange(256) + shift
        assert abs(values[:, 0] - exact.clip(0, 255)).max() < 0.6
        seen.append((factor, shift))
    factors, shifts = np.array(seen).T
    assert 0.8 < factors.min() < 0.82 and 1.18 < factors.max() < 1.2
    assert -51 < shifts.min() < -48 and 48 < shifts.max() < 51
    assert abs(np.corrcoef(factors, shifts)[0, 1]) < 0.3


def test_a_line_is_rounded_and_clipped():
    assert colour.linear(1, 0) == list(range(256))
    assert colour.linear(2, -10)[:7] == [0, 0, 0, 0, 0, 0, 2] and colour.linear(2, -10)[-1] == 255
    assert colour.linear(0.5, 0)[:5] == [0, 1, 1, 2, 2]  # half goes up


# --- equalisation --------------------------------------------------------------------------------


def spread(levels):
    """Pillow's equalisation of grey levels, written out: each value by how many are below it."""
    values, counts = np.unique(levels, return_counts=True)
    step = (levels.size - counts[-1]) // 255
    if not step:
        return levels
    table = {}
    below = step // 2
    for value, count in zip(values, counts, strict=True):
        table[value] = min(below // step, 255)
        below += count
    return np.vectorize(table.get, otypes=[np.uint8])(levels)


@pytest.mark.parametrize("size", [(64, 64), (41, 23), (3, 2), (1, 1)])
def test_equalize_luma_spreads_the_luma_and_keeps_the_chroma(size):
    (transform,) = build("equalize_luma")
    for image in drawn(6, *size):
        luma, blue, red = image.convert("YCbCr").split()
        spread_luma = Image.fromarray(spread(np.array(luma)))
        expected = Image.merge("YCbCr", (spread_luma, blue, red)).convert("RGB")
        assert apply([transform], image, 0).tobytes() == expected.tobytes()


def test_equalize_luma_is_not_by_channel():
    """An image of one hue keeps it; equalised by channel, this one would turn grey."""
    ramp = np.linspace(40, 110, 64 * 64).reshape(64, 64)
    image = Image.fromarray(np.stack([2 * ramp, ramp, ramp], -1).astype(np.uint8))
    (transform,) = build("equalize_luma")
    found = np.array(apply([transform], image, 0)).astype(int)
    middle = found[24:40]  # where nothing is clipped
    assert np.ptp(found[..., 1]) > 200 > 80 > np.ptp(np.array(image)[..., 1])
    assert abs(middle[..., 1] - middle[..., 2]).max() <= 2
    assert (middle[..., 0] - middle[..., 1]).min() > 20


# --- CLAHE -------------------------------------------------------------------------------------

# What OpenCV 5.0.0's createCLAHE(clip, (grid, grid)) makes of noise(seed, height, width).
OPENCV = {
    (0, 64, 64, 4.0, 8): "d14bdb1a59fa025b",
    (1, 45, 70, 2.5, 8): "e28baada963f9a71",
    (2, 37, 53, 1.0, 3): "5c38e2f5046d93c5",
    (3, 30, 40, 40.0, 5): "d256c21366867aaa",
    (4, 64, 50, 3.3, 4): "96a085b982efcbe9",
    (5, 5, 9, 2.0, 8): "642222d9f118172c",
    (6, 120, 200, 4.0, 1): "c185de4d31a35782",
}


@pytest.mark.parametrize("case", OPENCV, ids=str)
def test_clahe_is_opencvs(case):
    seed, height, width, clip, grid = case
    found = colour.equalized_in_tiles(noise(seed, height, width), clip, grid)
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == OPENCV[case]


def test_clahe_against_opencv_itself():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for i in range(60):
        height, width, grid = rng.integers(1, 90), rng.integers(1, 90), int(rng.integers(1, 10))
        clip = float(rng.uniform(0.2, 12))
        levels = noise(i, height, width)
        expected = cv2.createCLAHE(clip, (grid, grid)).apply(levels)
        assert np.array_equal(colour.equalized_in_tiles(levels, clip, grid), expected)


def test_one_tile_without_a_limit_is_plain_equalisation():
    levels = noise(0, 40, 30)
    below = np.array([(levels <= value).sum() for value in range(256)])
    table = np.array([floor(255 * count / levels.size + 0.5) for count in below])
    assert abs(colour.equalized_in_tiles(levels, 256.0, 1).astype(int) - table[levels]).max() <= 1


def test_clahe_of_a_image_changes_its_luma_by_a_limit_from_clip():
    image = drawn(2, 40, 40)[1]
    luma, blue, red = image.convert("YCbCr").split()

    def expected(limit):
        made = colour.equalized_in_tiles(np.array(luma), limit, 4)
        return Image.merge("YCbCr", (Image.fromarray(made), blue, red)).convert("RGB").tobytes()

    (fixed,) = build("clahe", clahe={"p": 1.0, "clip": [2.0, 2.0], "grid": 4})
    assert {apply([fixed], image, i).tobytes() for i in range(5)} == {expected(2.0)}
    (free,) = build("clahe", clahe={"p": 1.0, "clip": [1.0, 4.0], "grid": 1})
    assert len({apply([free], image, i).tobytes() for i in range(20)}) > 3


@pytest.mark.parametrize(
    ("entry", "options", "message"),
    [
        ("brightness_contrast", {"limit": 1.5}, "limit is 1.5; use 0 to 1"),
        ("brightness_contrast", {"p": -1}, "brightness_contrast: p is -1"),
        ("equalize_luma", {"p": 2}, "equalize_luma: p is 2"),
        ("clahe", {"clip": [0, 4]}, "clip is .* above 0 and up to 255"),
        ("clahe", {"clip": [4, 1]}, "smallest, largest"),
        ("clahe", {"grid": 0}, "grid is 0; use 1 to 64"),
        ("clahe", {"p": 1.1}, "clahe: p is 1.1"),
    ],
)
def test_bad_options_answer_in_one_line(entry, options, message):
    with pytest.raises(UserError, match=message) as caught:
        augments.build(entry, **options)()
    assert "\n" not in str(caught.value)
