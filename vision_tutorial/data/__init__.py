"""From pictures to batches: sources, augmentation, mixing, order."""

from . import augment, mix, shapes  # noqa: F401  (importing them fills their shelves)
