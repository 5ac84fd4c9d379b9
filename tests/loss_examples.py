"""Logits and targets that the tests of losses share."""

import torch

from vision_tutorial.core.task import IGNORE


def example(shape=(6, 5, 4, 3), dtype=torch.float32, ignored=True):
    """Logits of `shape` and class ids, a third of them ignored."""
    generator = torch.Generator().manual_seed(sum(shape))
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    positions = (shape[0], *shape[2:])
    ids = torch.randint(shape[1], positions, generator=generator)
    if ignored:
        ids[torch.rand(positions, generator=generator) < 0.3] = IGNORE
        ids.view(-1)[0] = 1
    return logits.to(dtype).requires_grad_(), ids


def soft(shape=(6, 5, 4, 3), dtype=torch.float32):
    """A class map with a distribution at each position, one of them ignored."""
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(shape, generator=generator, dtype=torch.float64).softmax(1).to(dtype)
    shares[0, :, *[0] * (len(shape) - 2)] = 0
    return shares


def rows(tensor, keep):
    return tensor.movedim(1, -1)[keep]
