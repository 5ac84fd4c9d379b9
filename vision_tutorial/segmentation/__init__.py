"""Segmentation track: datasets, networks, task, refiners."""

from . import coco, datasets  # noqa: F401  (importing them fills their shelves)
