"""Optimizers, schedules, parameter groups. Importing the package fills the registries."""

from . import optimizers, schedules
from .clipping import clipping
from .groups import parameter_groups
from .schedules import learning_rates

__all__ = ["clipping", "learning_rates", "optimizers", "parameter_groups", "schedules"]
