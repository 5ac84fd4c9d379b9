"""Classification track: datasets, networks, metrics."""

from . import airbench, datasets, metrics, models  # noqa: F401  (importing them fills their registries)
