"""Segmentation track: datasets, networks, task, refiners."""

from . import coco, datasets, models, refine, task  # noqa: F401  (importing them fills their registries)
