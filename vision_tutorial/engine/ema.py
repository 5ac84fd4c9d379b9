"""Exponential moving average of a model's weights and buffers (Polyak & Juditsky 1992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..core.errors import UserError


def decay_at(step: int, decay: float, warmup: bool = False) -> float:
    """The decay of update number `step` (the first is 1): a function of the step, never state.

    The first update copies the weights (decay 0). With warm-up the decay climbs as
    1 - step^(-2/3) to `decay`, as in timm's ModelEmaV3 (after K. Crowson).
    """
    if step <= 1:
        return 0.0
    return min(1 - step ** -(2 / 3), decay) if warmup else decay


class Ema:
    """Keeps the average of everything in a model's state_dict; whole numbers are copied.

    Give it the bare model, not its DDP or compiled wrapping, so that names stay the model's own.
    Without a model it averages nothing.
    """

    def __init__(self, model: nn.Module | None = None):
        state = model.state_dict() if model else {}
        self.tensors = {name: t.detach().clone() for name, t in state.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """average <- decay * average + (1 - decay) * model, in one pass over all tensors."""
        if not self.tensors:
            return
        now = model.state_dict()
        floats = [name for name, t in self.tensors.items() if t.is_floating_point()]
        torch._foreach_lerp_([self.tensors[n] for n in floats], [now[n] for n in floats], 1 - decay)
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                tensor.copy_(now[name])

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a saved average. Raises UserError if its names are not the model's."""
        if tensors.keys() != self.tensors.keys():
            odd = sorted(tensors.keys() ^ self.tensors.keys())[0]
            raise UserError(f"the saved average is of another model: '{odd}' is only on one side.")
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Within it `model` has the averaged weights; afterwards its own again, bit for bit."""
        if not self.tensors:
            yield
            return
        own = {name: t.detach().clone() for name, t in model.state_dict().items()}
        model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            model.load_state_dict(own)
