"""Classification track: datasets, networks, task."""

from . import datasets, models, task  # noqa: F401  (importing them fills their registries)
