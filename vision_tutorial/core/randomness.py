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


def uniforms(key: int, items: np.ndarray, count: int, block: int | np.ndarray = 0) -> np.ndarray:
    """Draws for many pictures at once: uniform in [0, 1), steps of 2**-32; float64 (B, count).

    key: 64 bits, an `address`. items: whole numbers (B, 2), (epoch, index) of each picture, epoch
    below 2**32. block: one number or (B,), in units of four draws: where in each picture's stream
    to begin. A picture's draws depend on its item and on nothing else; they come from
    Philox4x32-10 (Salmon et al. 2011).
    """
    blocks = -(-count // 4)
    epoch, index = items.astype(np.uint64).T
    counters = np.empty((4, len(items), blocks), np.uint64)
    counters[0] = np.asarray(block).reshape(-1, 1) + np.arange(blocks)
    counters[1] = (index & WORD)[:, None]
    counters[2] = (index >> np.uint64(32))[:, None]
    counters[3] = epoch[:, None]
    words = philox(counters, key)
    return words.transpose(1, 2, 0).reshape(len(items), -1)[:, :count] * 2.0**-32


WORD = np.uint64(0xFFFFFFFF)


def philox(counters: np.ndarray, key: int) -> np.ndarray:
    """Philox4x32-10 of each counter. counters uint64 (4, …), 32 bits in each -> words likewise."""
    a, b, c, d = counters
    first, second = key & 0xFFFFFFFF, key >> 32
    half = np.uint64(32)
    for _ in range(10):
        left, right = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a = (right >> half) ^ b ^ np.uint64(first)
        c = (left >> half) ^ d ^ np.uint64(second)
        b, d = right & WORD, left & WORD
        first, second = (first + 0x9E3779B9) & 0xFFFFFFFF, (second + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([a, b, c, d])
