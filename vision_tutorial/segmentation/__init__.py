"""Segmentation track: datasets, networks, metrics, refiners."""

from . import coco, datasets, dense_crf, metrics, models  # noqa: F401  (importing them fills their registries)
