"""Optimizers, schedules, parameter groups, clipping. Importing the package fills the registries."""

from .optimizers import clip_gradients, parameter_groups, try_out
from .schedules import learning_rates

__all__ = ["clip_gradients", "learning_rates", "parameter_groups", "try_out"]
