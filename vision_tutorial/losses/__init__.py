"""Losses. Importing the package fills the registry; `WeightedSum` makes a criterion of it."""

from . import pixel, region
from .weighted_sum import WeightedSum, copies, without_copies

__all__ = ["WeightedSum", "copies", "pixel", "region", "without_copies"]
