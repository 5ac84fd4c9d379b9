"""Pseudo labels: predictions on unlabelled images that become masks to learn from (Lee 2013).

An image is kept if the network is confident on average, a pixel if it is confident there. The
report says what was kept, what was not and why, and how the classes have shifted: pseudo labels
repeat what the network believes already, so rare classes tend to get rarer.
"""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..core.atomic import new_folder, write_bytes, write_json
from ..core.errors import UserError, check_range, counted
from ..core.images import VOID, read_image
from .dense_crf import checked


def class_pixels(masks: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """Pixels of each class over masks uint8 (H, W), int64 (classes,), without the ignored ones."""
    counts = sum((np.bincount(mask.ravel(), minlength=256) for mask in masks), np.zeros(256, int))
    strange = np.flatnonzero(counts[classes:VOID]) + classes
    if strange.size:
        raise UserError(f"class id {strange[0]} in a mask; ids are 0 to {classes - 1}.")
    return counts[:classes]


def leaked_images(
    unlabelled: Iterable[tuple[str, np.ndarray]], evaluation: Iterable[tuple[str, np.ndarray]]
) -> list[dict[str, str]]:
    """Which unlabelled images (`name`) have the pixels of an `evaluation` image, or else its name:
    what is the `same`.

    Given are a file's name and an image uint8 (H, W, 3). Pixels are compared by SHA-256 after
    decoding, so that another file format hides nothing, but another size or JPEG quality does;
    names without folder and ending. One image at a time is held in memory.
    """

    def marks(name: str, image: np.ndarray) -> dict[str, str | bytes]:
        content = f"{image.shape}".encode() + image.tobytes()
        return {"pixels": hashlib.sha256(content).digest(), "name": PurePath(name).stem}

    known = {mark: name for name, image in evaluation for mark in marks(name, image).values()}
    found = []
    for name, image in unlabelled:
        shared = [(same, mark) for same, mark in marks(name, image).items() if mark in known]
        for same, mark in shared[:1]:
            found.append({"name": name, "evaluation": known[mark], "same": same})
    return found


@dataclass
class PseudoLabelReport:
    """What is kept, and the account of it. `runs` predicted; `labelled` are the pixels of each
    class in the labelled set, if known; `leaks` as `leaked_images` finds them. Confidence is the
    probability of the likeliest class."""

    classes: Sequence[str]
    runs: Sequence[str]
    min_confidence: float = 0.0  # the mean over an image
    pixel_threshold: float = 0.0  # a pixel below it is ignored
    labelled: Sequence[int] | None = None
    leaks: Sequence[dict[str, str]] = ()
    images: list[dict[str, Any]] = field(default_factory=list, init=False)

    def __post_init__(self):
        names = ("min_confidence", "pixel_threshold")
        self.rule = {name: getattr(self, name) for name in names}
        check_range("pseudo labels", "[0, 1]", **self.rule)
        self.before, self.after = np.zeros((2, len(self.classes)), np.int64)

    def enter(self, name: str, probabilities: Tensor) -> np.ndarray:
        """Take account of the image `name`: its mask uint8 (H, W), of probabilities (C, H, W), and
        in `images` why it is `dropped`. UserError if a mask cannot hold the classes."""
        probabilities = checked(probabilities)
        if len(probabilities) > VOID:
            raise UserError(f"{len(probabilities)} classes; a mask's file holds {VOID} at most.")
        confidences, ids = probabilities.max(0)
        predicted = ids.byte().cpu().numpy()
        sure = (confidences >= self.pixel_threshold).cpu().numpy()
        mask = np.where(sure, predicted, np.uint8(VOID))
        confidence, dropped = confidences.double().mean().item(), None
        if confidence < self.min_confidence:
            dropped = "mean confidence below min_confidence"
        elif not sure.any():
            dropped = "no pixel reaches pixel_threshold"
        self.before += class_pixels([predicted], len(self.classes))
        if not dropped:
            self.after += class_pixels([mask], len(self.classes))
        entry = {"name": name, "confidence": confidence, "ignored": float((mask == VOID).mean())}
        self.images.append(entry | {"dropped": dropped})
        return mask

    def plain(self) -> dict[str, Any]:
        """For JSON. Pixels of each class: `before` the rule in all images, `after` it in those
        kept; `shift`: total variation ½ Σ |p − q| between the class shares of the latter and the
        others, 0 for the same, 1 for disjoint, None if one is empty."""
        kept = [image for image in self.images if not image["dropped"]]
        pixels = {"before": self.before.tolist(), "after": self.after.tolist()}
        if self.labelled is not None:
            pixels["labelled"] = [int(n) for n in self.labelled]
        shares = {key: np.array(n) / sum(n) if sum(n) else None for key, n in pixels.items()}
        after = shares.pop("after")
        return {
            "runs": list(self.runs),
            "rule": self.rule,
            "unlabelled": len(self.images),
            "kept": len(kept),
            "dropped": Counter(p["dropped"] for p in self.images if p["dropped"]),
            "confidence": _mean(self.images, "confidence"),
            "confidence_kept": _mean(kept, "confidence"),
            "ignored_kept": _mean(kept, "ignored"),
            "classes": list(self.classes),
            "pixels": pixels,
            "shift": {
                key: None if after is None or share is None else float(abs(after - share).sum() / 2)
                for key, share in shares.items()
            },
            "twins": list(self.leaks),
            "images": self.images,
        }

    def messages(self) -> list[str]:
        """A line on how many were kept, why the others were not, how far the classes shifted; and
        one if there are leaks."""
        facts = self.plain()
        parts = [f"{facts['kept']} of {counted(facts['unlabelled'], 'image')} kept"]
        parts += [f"{count} dropped: {reason}" for reason, count in facts["dropped"].items()]
        against = {"before": "all predictions", "labelled": "the labelled set"}
        parts += [
            f"class shares {100 * shift:.1f} % off {against[key]} (total variation)"
            for key, shift in facts["shift"].items()
            if shift is not None
        ]
        found = ["; ".join(parts)]
        if self.leaks:
            pixels, first = sum(leak["same"] == "pixels" for leak in self.leaks), self.leaks[0]
            found.append(
                f"{len(self.leaks)} of the unlabelled images are among the evaluation images "
                f"({pixels} by their pixels, {len(self.leaks) - pixels} by name only), such as "
                f"{first['name']} ({first['evaluation']}); trained on them, scores there mean "
                "little. Leave them out."
            )
        return found


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    return sum(row[name] for row in rows) / len(rows) if rows else None


def write_folder(
    target: Path,
    predictions: Iterable[tuple[Path, Tensor]],
    report: PseudoLabelReport,
    root: Path | None = None,
) -> None:
    """Make the folder `target`: images/, masks/*.png and the report; whole or not at all.

    predictions: each unlabelled image and its probabilities (C, H, W), at the image's size. Images
    keep the sub-folders that they have below `root`.
    UserError if a size differs, if two images would share a mask, or if nothing is kept.
    """
    names = set()
    with new_folder(target) as folder:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        for path, probabilities in predictions:
            name = PurePath(os.path.relpath(path, root) if root else path.name)
            mask = report.enter(name.as_posix(), probabilities)
            width, height = read_image(path).size
            if mask.shape != (height, width):
                raise UserError(
                    f"{path} is {width}x{height}, its prediction {mask.shape[1]}x{mask.shape[0]}; "
                    "resize the probabilities to the image."
                )
            called = name.with_suffix("")
            if called in names:
                raise UserError(f"{path}: a second image called {called}; rename one.")
            names.add(called)
            if not report.images[-1]["dropped"]:
                png = io.BytesIO()
                Image.fromarray(mask).save(png, "PNG")
                file, mask_file = folder / "images" / name, folder / "masks" / name
                for made in (file, mask_file):
                    made.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(file, path.read_bytes())
                write_bytes(mask_file.with_suffix(".png"), png.getvalue())
        if not report.after.any():
            most = max((image["confidence"] for image in report.images), default=0)
            raise UserError(
                f"no pseudo label is kept: {report.messages()[0]}. The highest mean confidence is "
                f"{most:.4g}; choose lower thresholds ({report.rule})."
            )
        write_json(folder / "ledger.json", report.plain())
