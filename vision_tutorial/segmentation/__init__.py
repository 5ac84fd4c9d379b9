"""Segmentation track: datasets, networks, task, refiners."""

from . import refine  # noqa: F401  (importing fills the shelves)
