"""From pictures to batches: sources, augmentation, mixing, order."""

# Importing them fills their shelves, and the batched forms of their entries.
from . import arrays, augment, erasing, mix, policies, shapes, tone  # noqa: F401
