"""Addresses, generators and orders: functions of their arguments, and nothing else."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from vision_tutorial.core.randomness import address, generator, order

PARTS = some.lists(some.one_of(some.integers(), some.text("abc1")), min_size=1, max_size=4)


def test_an_address_is_the_same_everywhere():
    # the definition, written out: a change here would change every run
    digest = hashlib.blake2b(b"42\x1f3\x1forder", digest_size=8).digest()
    assert address(42, 3, "order") == int.from_bytes(digest, "little") == 1990619244490669305


@given(PARTS, PARTS)
def test_addresses_differ_where_their_words_do(one, other):
    same = [str(part) for part in one] == [str(part) for part in other]
    assert (address(*one) == address(*other)) == same


def test_parts_are_kept_apart():
    assert len({address(1, 23), address(12, 3), address(123), address(1, 2, 3)}) == 4


def test_a_generator_starts_anew_at_its_address():
    first = generator(1, "x").random(5)
    assert np.array_equal(first, generator(1, "x").random(5))
    assert not np.array_equal(first, generator(2, "x").random(5))
    np.random.seed(0)  # noqa: NPY002 - the global generator is none of ours
    assert np.array_equal(first, generator(1, "x").random(5))


def test_the_stream_is_philox_and_stays_so():
    raw = generator(42, "stream").bit_generator.random_raw(2)
    assert raw.tolist() == [2715067874247759131, 2977647077610877346]


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_an_order_visits_everyone_once(n):
    for epoch in range(3):
        visited = order(42, epoch, n)
        assert visited.dtype == np.int64
        assert sorted(visited.tolist()) == list(range(n))


def test_orders_differ_by_epoch_and_seed():
    orders = {tuple(order(seed, epoch, 50).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_orders_are_uniform():
    # 6 permutations of 3 items over 6000 epochs: each 1000 +- 5 standard deviations (28.9)
    found = [tuple(order(0, epoch, 3).tolist()) for epoch in range(6000)]
    counts = [found.count(permutation) for permutation in set(found)]
    assert len(counts) == 6
    assert all(abs(count - 1000) < 145 for count in counts)
