"""Addresses, generators and orders: functions of their arguments, and nothing else."""

import hashlib

import numpy as np

from vision_tutorial.core.randomness import address, generator, order


def test_an_address_is_the_same_everywhere_and_depends_on_every_word():
    # the definition, written out: a change here would change every run
    digest = hashlib.blake2b(b"42\x1f3\x1forder", digest_size=8).digest()
    assert address(42, 3, "order") == int.from_bytes(digest, "little") == 1990619244490669305
    others = [address(*parts) for parts in ((42, 3), (3, 42, "order"), (423, "order"), ("42", 3))]
    assert len({address(42, 3, "order"), *others}) == 4 and others[0] == others[-1]


def test_a_generator_starts_anew_at_its_address_and_is_philox():
    first = generator(1, "x").random(5)
    np.random.seed(0)  # noqa: NPY002 - the global generator is none of ours
    assert np.array_equal(first, generator(1, "x").random(5))
    assert not np.array_equal(first, generator(2, "x").random(5))
    raw = generator(42, "stream").bit_generator.random_raw(2)
    assert raw.tolist() == [2715067874247759131, 2977647077610877346]


def test_orders_visit_everyone_once_and_are_uniform():
    for n in (0, 1, 1000):
        visited = order(42, 2, n)
        assert visited.dtype == np.int64 and sorted(visited.tolist()) == list(range(n))
    orders = {tuple(order(seed, epoch, 50).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    # 6 permutations of 3 items over 1200 epochs: each 200 +- 5 standard deviations (12.9)
    found = [tuple(order(0, epoch, 3).tolist()) for epoch in range(1200)]
    counts = [found.count(permutation) for permutation in set(found)]
    assert len(counts) == 6
    assert all(abs(count - 200) < 65 for count in counts)
