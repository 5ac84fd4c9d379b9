"""Segmentation track: datasets, networks, task, refiners."""

from . import models  # noqa: F401  (importing it fills its shelf)
