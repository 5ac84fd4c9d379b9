"""Philox against its authors' words; the draws of an image are its own, and uniform."""

import numpy as np
import pytest

from vision_tutorial.data.augmentation.operation import philox, uniforms

# the known answers that its authors publish (Random123, philox4x32-10): counter, key, words
KNOWN = [
    ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        0x299F31D0A4093822,
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(counter, key, words):
    counters = np.array(counter, np.uint64)[:, None].repeat(3, 1)
    assert np.array(philox(counters, key)).T.tolist() == [words] * 3


def test_the_draws_of_an_image_depend_on_its_item_alone():
    items = np.array([[0, 5], [3, 5], [3, 6], [3, 5 + 2**40]])
    whole = uniforms(7, items, 11)
    assert len({tuple(row) for row in whole}) == 4  # an index beyond 32 bits is another one
    for i in (3, 1):
        assert np.array_equal(uniforms(7, items[[i]], 11)[0], whole[i])
    assert np.array_equal(uniforms(7, items, 3, block=2), whole[:, 8:])
    later = uniforms(7, items, 4, block=np.array([1, 0, 1, 0]))
    assert np.array_equal(later[0], whole[0, 4:8]) and np.array_equal(later[1], whole[1, :4])
    alone = uniforms(7, items[:1], 4, block=np.array([1]))
    assert np.array_equal(alone[0], whole[0, 4:8]) and alone.dtype == whole.dtype
    assert not np.array_equal(uniforms(8, items, 11), whole)


def test_draws_are_uniform_and_unrelated():
    u = uniforms(1, np.stack([np.zeros(20_000, int), np.arange(20_000)], 1), 8)
    assert u.min() >= 0 and u.max() < 1
    counts = np.stack([np.histogram(column, 50, (0, 1))[0] for column in u.T])
    chi2 = ((counts - 400) ** 2 / 400).sum(1)  # 49 degrees of freedom: mean 49, deviation 9.9
    assert (abs(chi2 - 49) < 5 * 9.9).all()
    correlation = np.corrcoef(np.concatenate([u, np.roll(u, 1, axis=0)], 1).T)
    assert np.abs(correlation - np.eye(16)).max() < 5 / np.sqrt(20_000)
