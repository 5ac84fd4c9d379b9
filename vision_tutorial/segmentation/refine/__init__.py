"""What happens to probabilities after the network: dense CRF, ensembles, pseudo labels."""

from .dense_crf import dense_crf
from .ensembles import hard_vote, soft_vote
from .pseudo_labels import Ledger, Rule, class_pixels, pseudo_label, write_folder
from .twins import about_twins, twins

__all__ = [
    "Ledger",
    "Rule",
    "about_twins",
    "class_pixels",
    "dense_crf",
    "hard_vote",
    "pseudo_label",
    "soft_vote",
    "twins",
    "write_folder",
]
