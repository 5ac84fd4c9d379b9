"""The images of the pages: `python docs/images.py [NAME …]` draws them.

They are made by the package's own code, on the embedded shapes. Nothing is trained, nothing is
downloaded. tests/test_docs.py draws them again and compares.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import curves
import strips
from drawing import Block, svg

FOLDER = Path(__file__).parent / "images"
IMAGES: dict[str, tuple[Callable[[], Block], str]] = {
    "momentum": (curves.momentum, "Distance to the minimum by step, for momentum 0, 0.4 and 0.9"),
    "weight-decay": (
        curves.weight_decay,
        "What weight decay leaves of a weight that gets no gradient",
    ),
    "warmup-cosine": (curves.warmup_cosine, "Learning rate by epoch: warm-up, cosine, cool-down"),
    "label-smoothing": (curves.label_smoothing, "Label smoothing: loss over the right probability"),
    "ddp": (strips.ddp, "How three batches of eight images are divided among 1, 2 and 4 processes"),
    "colour-jitter": (strips.colour_jitter, "A star under colour jitter of strength 0.2 and 0.5"),
    "auto-augment": (
        strips.auto_augment,
        "A star under each of AutoAugment's 25 pairs of operations",
    ),
    "cutmix": (strips.cutmix, "A star and a ring, mixed by CutMix"),
    "mixup": (strips.mixup, "A star and a ring, mixed by Mixup, and the Beta distribution"),
    "pixel-losses": (curves.pixel_losses, "Losses of single positions over the right probability"),
    "hard-positions": (
        curves.hard_positions,
        "Losses as more positions are hard; jsd over disagreement",
    ),
    "region-losses": (curves.region_losses, "Region losses of a shifted and of a grown square"),
    "balance": (
        curves.balance,
        "Terms of a weighted sum of focal and dice, and the share of focal by balance",
    ),
    "iou": (curves.iou, "IoU and boundary IoU of discs whose rim is three pixels off"),
    "dense-crf": (strips.refined, "A coarse mask before and after a dense CRF"),
    "pseudo-labels": (strips.pseudo_labels, "Which pixels of an answer a threshold keeps"),
    "stem": (strips.stem, "Sizes of a ResNet-50's maps with three stems"),
    "few-batches": (curves.few_batches, "The same loss averaged over 3 and over 97 batches"),
}


def drawn(name: str) -> str:
    """The text of one image's file."""
    make, about = IMAGES[name]
    return svg(make(), about)


def main() -> int:
    """Write the images that are named, or all."""
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or IMAGES:
        (FOLDER / f"{name}.svg").write_text(drawn(name), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
