"""What happens to probabilities after the network: dense CRF, pseudo labels."""

from .dense_crf import dense_crf
from .leakage import leak_warning, leaked_images
from .pseudo_labels import PseudoLabelReport, Rule, class_pixels, pseudo_label, write_folder

__all__ = [
    "PseudoLabelReport",
    "Rule",
    "leak_warning",
    "class_pixels",
    "dense_crf",
    "pseudo_label",
    "leaked_images",
    "write_folder",
]
