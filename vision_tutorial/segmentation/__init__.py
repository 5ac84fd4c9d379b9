"""Segmentation track: datasets, networks, task, refinement."""

from . import task  # noqa: F401  (importing it fills its shelf)
