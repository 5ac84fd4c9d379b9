"""What happens to probabilities after the network: dense CRF, pseudo labels."""

from .dense_crf import dense_crf
from .leakage import about_twins, twins
from .pseudo_labels import Ledger, Rule, class_pixels, pseudo_label, write_folder

__all__ = [
    "Ledger",
    "Rule",
    "about_twins",
    "class_pixels",
    "dense_crf",
    "pseudo_label",
    "twins",
    "write_folder",
]
