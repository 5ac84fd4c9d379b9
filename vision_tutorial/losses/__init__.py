"""Losses: the face of the pillar. Importing it fills the shelf; `blend` makes a criterion of it."""

from . import pixel
from .blend import blend

__all__ = ["blend", "pixel"]
