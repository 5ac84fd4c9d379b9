"""Segmentation track: datasets, networks, task, refiners."""

from . import coco, datasets, dense_crf, models, task  # noqa: F401  (importing them fills their registries)
