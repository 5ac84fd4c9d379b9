"""Polygons and run lengths are drawn as pycocotools draws them, to the pixel."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_tutorial.core.errors import UserError
from vision_tutorial.segmentation.coco_regions import Drawn, region

WIDTH, HEIGHT = 8, 6
# pycocotools 2.0.11 has not heard of NumPy's newest wish
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def box(left: int, top: int, right: int, bottom: int) -> list[float]:
    """A polygon that covers the pixels left … right - 1, top … bottom - 1."""
    return [left, top, right, top, right, bottom, left, bottom]


def pixels(segmentation: Any, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    made = region(1, segmentation, height, width)
    mask = Drawn(((height, width),), ((made,),))[0]
    assert mask.sum() == made.area
    return mask


def filled(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def test_polygons_by_hand():
    np.testing.assert_array_equal(pixels([box(1, 2, 5, 4)]), filled(1, 2, 5, 4))
    np.testing.assert_array_equal(pixels([box(-3, -2, 12, 9)]), filled(0, 0, 8, 6))
    both = pixels([box(0, 0, 2, 2), box(1, 1, 4, 3)])
    np.testing.assert_array_equal(both, filled(0, 0, 2, 2) | filled(1, 1, 4, 3))
    triangle = pixels([[0, 0, 6, 0, 0, 6]])
    assert triangle[:5, 0].all() and triangle[0, :5].all() and not triangle[4:, 4:].any()
    assert not pixels([[1, 1, 1, 1, 1, 1]]).any() and not pixels([[-8, 0, -4, 0, -4, 6]]).any()


corner = st.one_of(st.floats(-12, 24), st.integers(-24, 48).map(lambda n: n / 2))


@given(
    st.lists(st.lists(corner, min_size=6, max_size=14), min_size=1, max_size=3),
    st.integers(12, 30),
    st.integers(12, 30),
)
@settings(max_examples=150, deadline=None)
def test_polygons_as_pycocotools_draws_them(polygons: list, height: int, width: int):
    coco = pytest.importorskip("pycocotools.mask")
    polygons = [p[: len(p) // 2 * 2] for p in polygons]
    wanted = coco.decode(coco.merge(coco.frPyObjects(polygons, height, width)))
    np.testing.assert_array_equal(pixels(polygons, height, width), wanted)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Counts of 0, 1, 0, … down the columns, by a plain loop."""
    counts, current = [0], 0
    for value in mask.T.ravel().tolist():
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    return counts


def as_text(counts: list[int]) -> str:
    """COCO's text of run lengths: each less the one two before it (from the fourth on), five bits a
    letter, the lowest first."""
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            done = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if done else 32))
            if done:
                break
    return text


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_run_lengths_in_both_forms(seed: int, height: int, width: int, share: float):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    counts = run_lengths(mask)
    for form in (counts, as_text(counts), [float(count) for count in counts]):
        found = pixels({"size": [height, width], "counts": form}, height, width)
        np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize(
    "segmentation, said",
    [
        ([1, 2, 3, 4, 5, 6], "a polygon is 1; 3 or more points"),
        ([[1, 2, "3", 4, 5, 6]], "a polygon is [1, 2"),
        ([[0, 0, 3, 0, 3, 3, 1]], "3 or more points [x, y, …] are expected"),
        ([[0, 0, float("nan"), 0, 3, 3]], "far outside 8x6 pixels"),
        ([[0, 0, 17, 0, 3, 3]], "a polygon from 0 to 17 is far outside"),
        ([[0, 0, 10**400, 0, 3, 3]], "a polygon from 0 to 1000"),
        ({"size": [8, 6], "counts": [48]}, "are of [8, 6], 48 pixels, not [6, 8]"),
        ({"size": [6, 8], "counts": [50, -2]}, "run lengths are [50, -2]; numbers from 0 up"),
        ({"size": [6, 8], "counts": [47.5, 0.5]}, "run lengths are [47.5, 0.5]"),
        ({"size": [6, 8], "counts": as_text([40, 7])}, "are of [6, 8], 47 pixels"),
        ({"size": [6, 8], "counts": as_text([48]) + "o"}, "run lengths are"),
        ({"size": [6, 8], "counts": "oooooooooo0"}, 'run lengths are "oooooooooo0"'),
    ],
)
def test_a_bad_segmentation(segmentation: Any, said: str):
    with pytest.raises(UserError) as caught:
        pixels(segmentation)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_run_lengths_or_refused(text: str):
    with contextlib.suppress(UserError):
        made = region(1, {"size": [HEIGHT, WIDTH], "counts": text}, HEIGHT, WIDTH)
        assert np.frombuffer(made.counts, "<u4").sum() == HEIGHT * WIDTH
