"""Losses: the face of the pillar. Importing it fills the shelf; `blend` makes a criterion of it."""

from . import pixel, region
from .weighted_sum import Blend, blend, copies, without_copies

__all__ = ["Blend", "blend", "copies", "pixel", "region", "without_copies"]
