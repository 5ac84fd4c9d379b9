"""Pseudo labels: predictions on unlabelled images that become masks to learn from (Lee 2013).

An image is kept if the network is confident on average, a pixel if it is confident there. The
report says what was kept, what was not and why, and how the classes have shifted: pseudo labels
repeat what the network believes already, so rare classes tend to get rarer.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..core.atomic import new_folder, write_bytes, write_json
from ..core.errors import UserError, check_range
from ..core.images import VOID, read_image
from .dense_crf import checked


@dataclass(frozen=True)
class Rule:
    """What is kept. Confidence is the probability of the likeliest class."""

    min_confidence: float = 0.0  # the mean over an image
    pixel_threshold: float = 0.0  # a pixel below it is ignored

    def __post_init__(self):
        check_range("pseudo labels", "[0, 1]", **asdict(self))


class PseudoLabel(NamedTuple):
    """A pseudo label: class ids uint8 (H, W) before the rule (`predicted`) and after (`mask`)."""

    predicted: np.ndarray
    mask: np.ndarray
    confidence: float  # mean over the image
    dropped: str | None  # why the image is not kept


def pseudo_label(probabilities: Tensor, rule: Rule) -> PseudoLabel:
    """What `rule` makes of probabilities (C, H, W). UserError if a mask cannot hold the classes."""
    probabilities = checked(probabilities)
    if len(probabilities) > VOID:
        raise UserError(f"{len(probabilities)} classes; a mask's file holds {VOID} at most.")
    confidences, ids = probabilities.max(0)
    predicted = ids.byte().cpu().numpy()
    sure = (confidences >= rule.pixel_threshold).cpu().numpy()
    confidence = confidences.double().mean().item()
    dropped = None
    if confidence < rule.min_confidence:
        dropped = "mean confidence below min_confidence"
    elif not sure.any():
        dropped = "no pixel reaches pixel_threshold"
    return PseudoLabel(predicted, np.where(sure, predicted, np.uint8(VOID)), confidence, dropped)


def class_pixels(masks: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """Pixels of each class over masks uint8 (H, W), int64 (classes,), without the ignored ones."""
    counts = sum((np.bincount(mask.ravel(), minlength=256) for mask in masks), np.zeros(256, int))
    strange = np.flatnonzero(counts[classes:VOID]) + classes
    if strange.size:
        raise UserError(f"class id {strange[0]} in a mask; there are only {classes} classes.")
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
    """Account of what was kept. `runs` predicted; `labelled` are the pixels of each class in the
    labelled set, if known; `leaks` as `leaked_images` finds them."""

    classes: Sequence[str]
    rule: Rule
    runs: Sequence[str]
    labelled: Sequence[int] | None = None
    leaks: Sequence[dict[str, str]] = ()
    images: list[dict[str, Any]] = field(default_factory=list, init=False)

    def __post_init__(self):
        self.before, self.after = np.zeros((2, len(self.classes)), np.int64)

    def enter(self, name: str, made: PseudoLabel) -> None:
        """Take account of the image `name`."""
        self.before += class_pixels([made.predicted], len(self.classes))
        if not made.dropped:
            self.after += class_pixels([made.mask], len(self.classes))
        ignored = float((made.mask == VOID).mean())
        entry = {"name": name, "confidence": made.confidence, "ignored": ignored}
        self.images.append(entry | {"dropped": made.dropped})

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
            "rule": asdict(self.rule),
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

    def summary(self) -> str:
        """One line: how many were kept, why the others were not, how far the classes shifted."""
        facts = self.plain()
        parts = [f"{facts['kept']} of {facts['unlabelled']} images kept"]
        parts += [f"{count} dropped: {reason}" for reason, count in facts["dropped"].items()]
        against = {"before": "all predictions", "labelled": "the labelled set"}
        parts += [
            f"class shares {100 * shift:.1f} % off {against[key]} (total variation)"
            for key, shift in facts["shift"].items()
            if shift is not None
        ]
        return "; ".join(parts)

    def leak_warning(self) -> str | None:
        """One line if there are leaks."""
        if not self.leaks:
            return None
        pixels, first = sum(leak["same"] == "pixels" for leak in self.leaks), self.leaks[0]
        return (
            f"{len(self.leaks)} of the unlabelled images are among the evaluation images ({pixels} "
            f"by their pixels, {len(self.leaks) - pixels} by name only), such as {first['name']} "
            f"({first['evaluation']}); trained on them, scores there mean little. Leave them out."
        )


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    return sum(row[name] for row in rows) / len(rows) if rows else None


def write_folder(
    target: Path, predictions: Iterable[tuple[Path, Tensor]], report: PseudoLabelReport
) -> None:
    """Make the folder `target`: images/, masks/*.png and the report; whole or not at all.

    predictions: each unlabelled image and its probabilities (C, H, W), at the image's size.
    Each is judged by the report's rule and entered. UserError if a size differs, if two images
    would share a mask, or if nothing is kept.
    """
    names = set()
    with new_folder(target) as folder:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        for path, probabilities in predictions:
            made = pseudo_label(probabilities, report.rule)
            width, height = read_image(path).size
            if made.mask.shape != (height, width):
                raise UserError(
                    f"{path} is {width}x{height}, its prediction {made.mask.shape[1]}x"
                    f"{made.mask.shape[0]}; resize the probabilities to the image."
                )
            if path.stem in names:
                raise UserError(f"{path}: a second image called {path.stem}; rename one.")
            names.add(path.stem)
            report.enter(path.name, made)
            if not made.dropped:
                write_bytes(folder / "images" / path.name, path.read_bytes())
                png = io.BytesIO()
                Image.fromarray(made.mask).save(png, "PNG")
                write_bytes(folder / "masks" / f"{path.stem}.png", png.getvalue())
        if not report.after.any():
            most = max((image["confidence"] for image in report.images), default=0)
            raise UserError(
                f"no pseudo label is kept: {report.summary()}. The highest mean confidence is "
                f"{most:.4g}; choose lower thresholds ({asdict(report.rule)})."
            )
        write_json(folder / "ledger.json", report.plain())
