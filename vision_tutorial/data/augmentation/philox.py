"""Random numbers for whole batches, as functions of each image's epoch and index."""

from collections.abc import Sequence

import numpy as np

Word = int | np.ndarray
WORD = 0xFFFFFFFF


def uniforms(key: int, items: np.ndarray, count: int, block: int | np.ndarray = 0) -> np.ndarray:
    """Draws for many images at once: uniform in [0, 1), steps of 2**-32; float64 (B, count).

    key: 64 bits, an `address`. items: whole numbers (B, 2), (epoch, index) of each image, epoch
    below 2**32. block: one number or (B,), in units of four draws: where in each image's stream
    to begin. An image's draws depend on its item and on nothing else; they come from
    Philox4x32-10 (Salmon et al. 2011).
    """
    blocks = -(-count // 4)
    if len(items) == 1:  # in Python's own numbers, ten times as fast as arrays of one
        ((epoch, index),) = items.tolist()
        first, index = int(np.ravel(block)[0]), (index & WORD, index >> 32)
        words = [philox((first + i, *index, epoch), key) for i in range(blocks)]
        return np.array(words).reshape(1, -1)[:, :count] * 2.0**-32
    epoch, index = items.astype(np.uint64).T
    counters = np.empty((4, len(items), blocks), np.uint64)
    counters[0] = np.asarray(block).reshape(-1, 1) + np.arange(blocks)
    counters[1] = (index & WORD)[:, None]
    counters[2] = (index >> 32)[:, None]
    counters[3] = epoch[:, None]
    words = np.stack(philox(counters, key))
    return words.transpose(1, 2, 0).reshape(len(items), -1)[:, :count] * 2.0**-32


def philox(counters: Sequence[Word], key: int) -> tuple[Word, Word, Word, Word]:
    """Philox4x32-10 of each counter: four whole numbers of 32 bits, or arrays uint64 of them."""
    a, b, c, d = counters
    first, second = key & WORD, key >> 32
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, c = (right >> 32) ^ b ^ first, (left >> 32) ^ d ^ second
        b, d = right & WORD, left & WORD
        first, second = (first + 0x9E3779B9) & WORD, (second + 0xBB67AE85) & WORD
    return a, b, c, d
