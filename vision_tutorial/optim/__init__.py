"""Optimizers, schedules, parameter groups: the pillar's face. Importing it fills the registries."""

from . import optimizers, schedules
from .clipping import clipping
from .groups import parameter_groups, set_lr
from .schedules import Now, learning_rates

__all__ = [
    "Now",
    "clipping",
    "learning_rates",
    "optimizers",
    "parameter_groups",
    "schedules",
    "set_lr",
]
