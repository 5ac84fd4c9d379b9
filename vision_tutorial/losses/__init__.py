"""Losses: the face of the pillar. Importing it fills the shelf; `blend` makes a criterion of it."""

from . import pixel
from .blend import blend, copies, without_copies

__all__ = ["blend", "copies", "pixel", "without_copies"]
