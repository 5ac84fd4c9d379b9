"""Losses. Importing the package fills the registry; `weighted_sum` makes a criterion of it."""

from . import pixel, region
from .weighted_sum import WeightedSum, copies, weighted_sum, without_copies

__all__ = ["WeightedSum", "copies", "pixel", "region", "weighted_sum", "without_copies"]
