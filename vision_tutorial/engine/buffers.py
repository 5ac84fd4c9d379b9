"""Buffers (running statistics): kept before a step, averaged, put back if it was bad."""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn


class Buffers:
    """Reads and writes all buffers of a type at once: a network has a hundred, each of a few bytes.

    They are looked up each time, since a network may put a new tensor in the place of an old one.
    """

    def __init__(self, *modules: nn.Module):
        self.modules = modules
        self.kept: list[Tensor] = []  # one flat copy for each type

    def all(self) -> Iterator[Tensor]:
        """Those of each module."""
        return chain.from_iterable(module.buffers() for module in self.modules)

    def groups(self) -> list[list[Tensor]]:
        """The buffers, those of one type together."""
        found: dict[tuple, list[Tensor]] = {}
        for buffer in self.all():
            found.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        return list(found.values())

    def floats(self) -> list[Tensor]:
        """Those that can be averaged."""
        return [buffer for buffer in self.all() if buffer.is_floating_point()]

    @torch.no_grad()
    def snapshot(self) -> None:
        """Remember them as they are before a step."""
        self.kept = [flat(group) for group in self.groups()]

    @torch.no_grad()
    def restore(self, bad: Tensor | None = None) -> None:
        """Undo what forward passes did to them; where `bad` is given, only if it is true.

        `bad` is read on its device, so nobody waits for it.
        """
        for kept, group in zip(self.kept, self.groups(), strict=True):
            put(kept if bad is None else torch.where(bad, kept, flat(group)), group)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """A copy of all, one behind the other."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@torch.no_grad()
def put(values: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write consecutive pieces of `values` into `tensors`; the inverse of `flat`."""
    pieces = values.split([tensor.numel() for tensor in tensors])
    shaped = [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]
    torch._foreach_copy_(list(tensors), shaped)
