"""Order and randomness as functions of an address, not as state.

Every random draw is named by where it is used: (seed, epoch, index, purpose) for a sample,
(seed, step, purpose) for a batch. Workers, ranks and resumes change nothing, because nothing is
carried from one draw to the next.
"""

import hashlib

import numpy as np


def address(*parts: int | str) -> int:
    """A 64-bit number that depends on every part; the same on every machine and Python."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def generator(*parts: int | str) -> np.random.Generator:
    """A counter-based generator (Philox) for the draws at this address."""
    return np.random.Generator(np.random.Philox(key=address(*parts)))


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The permutation of 0 … n-1 in which `epoch` visits its samples; int64, shape (n,)."""
    return generator(seed, epoch, "order").permutation(n)
