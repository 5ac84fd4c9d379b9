"""Segmentation track: datasets, networks, task, refiners."""

from . import models, task  # noqa: F401  (importing them fills their shelves)
