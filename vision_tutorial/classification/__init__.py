"""Classification track: datasets, networks, metrics."""

from . import airbench, datasets, metrics, models, tables  # noqa: F401  (importing them fills their registries)
