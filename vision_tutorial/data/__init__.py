"""From images to batches: sources, augmentation, mixing, order."""

# Importing them fills their registries, and the batched forms of their entries.
from . import loader, mix, shapes  # noqa: F401
from .augmentation import colour, erasing, geometry, policies  # noqa: F401
