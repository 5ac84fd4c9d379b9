"""Data sets whose masks are files: CamVid, VOC, your own; and pseudo-labels beside any of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.atomic import read_json, regular
from ..core.errors import UserError, check_range, shown
from ..core.images import VOID, images_in, read_mask, split_folder, suffixes
from ..core.randomness import generator
from ..core.registry import datasets
from ..core.sources import Source, Subset, check_split, data_folder, data_root, typed_path
from ..recipe.grammar import parse
from ..recipe.signatures import static_signatures
from .mask_files import DenseFiles, Joined, MaskFiles, check_files, decoded

CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "bicyclist"),
)
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)

_Pair = tuple[Path, Path, str]  # an image, its mask, and its key


@datasets.register
def camvid(
    split: str,
    *,
    root: str | None = None,
    train: Literal["train", "trainval"] = "train",
    test: Literal["val", "test"] = "val",
    cache: Literal["auto", "memory", "disk", "none"] = "auto",
) -> Source:
    """CamVid: 367 + 101 + 233 street scenes of 480x360, 11 classes (Brostow et al. 2008).

    root/camvid/ has train/, val/, test/ of images, and train_masks/ … (or SegNet's trainannot/ …)
    of class ids, 11 where nothing counts. test: what stands for the test split, `val` to choose on.
    """
    check_split(split)
    base, pairs, skipped = data_root(root) / "camvid", [], Counter()
    chosen = train if split == "train" else test
    for part in ("train", "val") if chosen == "trainval" else (chosen,):
        ours, segnets = base / f"{part}_masks", base / f"{part}annot"
        masks = segnets if segnets.is_dir() and not ours.is_dir() else ours
        pairs += _pairs("camvid", base, base / part, masks, skipped)
    source = _source("camvid", pairs, CAMVID, void=11)
    return decoded(source.checked(chosen, skipped), cache)


@datasets.register
def voc(
    split: str,
    *,
    root: str | None = None,
    year: Literal[2007, 2008, 2009, 2010, 2011, 2012] = 2012,
    train: str = "train",
    test: str = "val",
    masks: str = "SegmentationClass",
    cache: Literal["auto", "memory", "disk", "none"] = "auto",
) -> Source:
    """PASCAL VOC: 20 classes and background; 1,464 + 1,449 images in 2012 (Everingham et al.).

    root/VOCdevkit/VOC2012/ has JPEGImages/, `masks`/, and ImageSets/Segmentation/NAME.txt, of which
    `train` and `test` are the names, such as trainval.
    """
    check_split(split)
    base = data_root(root) / "VOCdevkit" / f"VOC{year}"
    listed = base / "ImageSets" / "Segmentation" / f"{train if split == 'train' else test}.txt"
    try:
        names = regular(listed).read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"voc: cannot read {listed} ({error}). It is not downloaded: unpack VOCdevkit below "
            f"{data_root(root)}, or set `root` or VISION_TUTORIAL_DATA to the folder that has it."
        ) from error
    if not names:
        raise UserError(f"voc: {listed} names no images.")
    folder = base / "JPEGImages"
    pairs = [(folder / f"{n}.jpg", base / masks / f"{n}.png", Path(f"{n}.jpg").name) for n in names]
    paths = [path for *both, _ in pairs for path in both]
    check_files("voc", base, paths, f"{listed} names; unpack the set again")
    return decoded(_source("voc", pairs, VOC).checked(listed.stem, {}), cache)


@datasets.register
def mask_folder(
    split: str,
    *,
    root: str,
    train: str = "train",
    test: str = "val",
    train_masks: str | None = None,
    test_masks: str | None = None,
    classes: list[str] | None = None,
    void: int | None = None,
    skip_unreadable: bool = False,
    follow_links: bool = False,
    cache: Literal["auto", "memory", "disk", "none"] = "auto",
) -> Source:
    """Your own images and masks: root/train/*.jpg, root/train_masks/*.png, val, val_masks.

    root: a folder, or the name of one below VISION_TUTORIAL_DATA. A mask has its image's name,
    and class ids as pixels; `void` and 255 do not count. classes: their names in the order of the
    ids; else the lines of root/classes.txt; else numbers up to the highest in the training masks.
    skip_unreadable: leave damaged files out instead of stopping. follow_links: links may lead out
    of `root`, and to folders of images.
    """
    check_split(split)
    base, who = data_folder(root, "mask_folder"), "mask_folder"
    skipped: Counter[str] = Counter()
    folder = split_folder(who, base, "train", train)
    masks = base / (train_masks or f"{folder.name}_masks")
    pairs = _pairs(who, base, folder, masks, skipped, follow_links)
    names, listed = classes or [], base / "classes.txt"
    try:
        if not names and listed.exists():
            names = [line.strip() for line in regular(listed).read_text("utf-8").splitlines()]
            names = [name for name in names if name]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {listed} ({error}). Write one class a line.") from error
    if not names:
        found = (read_mask(path, VOID, void) for _, path, _ in pairs)
        most = max(int(np.where(mask == VOID, 0, mask).max()) for mask in found)
        names = [str(label) for label in range(most + 1)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"mask_folder: two classes called '{twice}'; rename one.")
    if split == "test":
        skipped = Counter()
        folder = split_folder(who, base, "test", test)
        masks = base / (test_masks or f"{folder.name}_masks")
        pairs = _pairs(who, base, folder, masks, skipped, follow_links)
    source = _source(who, pairs, tuple(names), void)
    return decoded(source.checked(folder.name, skipped, skip_unreadable), cache)


@datasets.register
def with_pseudo_labels(
    split: str,
    *,
    dataset: str,
    folder: str,
    options: dict | None = None,
    ratio: float | None = None,
    seed: int = 0,
    cache: Literal["auto", "memory", "disk", "none"] = "auto",
) -> Source:
    """A labelled set, and to train on a folder of pseudo-labelled images, too.

    dataset, options: as they would be chosen alone; its test split is the test split here. folder:
    images/, masks/*.png and ledger.json, as pseudo-labelling writes them. ratio: the share of
    pseudo-labelled images in an epoch, some left out or repeated to reach it, by `seed`; None
    takes each once. A hold-out would be drawn from both kinds: choose on the test split instead.
    """
    check_split(split)
    labelled = _chosen(dataset, options or {}, "none" if split == "train" else cache)(split)
    if not labelled.dense:
        raise UserError(f"with_pseudo_labels: {dataset} has no masks; name a set that has.")
    if split == "test":
        return labelled
    base = typed_path(folder)
    ledger = base / "ledger.json"
    if not ledger.is_file():
        raise UserError(f"with_pseudo_labels: no {ledger}; name a folder of pseudo-labels.")
    report = read_json(ledger)
    known = report.get("classes") if isinstance(report, dict) else None
    if known is not None and tuple(known) != labelled.classes:
        raise UserError(
            f"with_pseudo_labels: the labels in {base} are for the classes {shown(known)}, the "
            f"data set has {shown(labelled.classes)}. Make them with a model of this data set."
        )
    skipped: Counter[str] = Counter()
    pairs = _pairs("with_pseudo_labels", base, base / "images", base / "masks", skipped)
    extra = _source("with_pseudo_labels", pairs, labelled.classes).checked("images", skipped)
    rows = shared_rows(len(labelled), len(extra), ratio, seed)
    return decoded(Subset(Joined("with_pseudo_labels", labelled, extra), rows), cache)


def shared_rows(labelled: int, extra: int, ratio: float | None, seed: int) -> np.ndarray:
    """Rows of (labelled, extra) images, one behind the other, with `ratio` of the second kind:
    all of the first, and of the second each as often as another, give or take one; int64."""
    check_range("with_pseudo_labels", "[0, 1)", ratio=ratio or 0)
    rounds, rest = divmod(extra if ratio is None else round(labelled * ratio / (1 - ratio)), extra)
    some = np.sort(generator(seed, "pseudo-labels").permutation(extra)[:rest])
    taken = np.concatenate([np.tile(np.arange(extra), rounds), some])
    return np.concatenate([np.arange(labelled), labelled + taken]).astype(np.int64)


def _chosen(name: str, options: dict[str, Any], cache: str) -> Callable[[str], Source]:
    """The entry `name`, its options checked; `cache` where it has that option and is not told."""
    signatures = static_signatures()["datasets"]
    entry = signatures.find(name)
    if entry and "cache" in entry.options:
        options = {"cache": cache, **options}
    if entry or name not in datasets:  # else a student's own
        try:
            options = parse({name: options}, signatures, "choice").options
        except UserError as error:
            raise UserError(f"with_pseudo_labels: {error}") from error
    return datasets.build(name, **options)


def _source(
    name: str, pairs: Sequence[_Pair], classes: tuple[str, ...], void: int | None = None
) -> DenseFiles:
    images, masks, keys = zip(*pairs, strict=True)
    return DenseFiles(name, images, keys, classes, MaskFiles(masks, len(classes), void))


def _pairs(
    who: str,
    base: Path,
    folder: Path,
    masks: Path,
    skipped: Counter[str],
    follow_links: bool | None = None,
) -> list[_Pair]:
    """Every image at or below `folder`, in the order of their names, with its mask and its key.
    The rest as of `images_in`."""
    for needed in (folder, masks):
        if not needed.is_dir():
            raise UserError(
                f"{who}: no folder {needed}; images lie in one folder, their masks under the same "
                "names as .png in another. Nothing is downloaded: copy the set there, or say with "
                "options (`root`, …) or VISION_TUTORIAL_DATA where it is."
            )
    images = images_in(folder, base, who, skipped, follow_links)
    if not images:
        raise UserError(f"{who}: no images in {folder}; looked for {', '.join(suffixes())}.")
    keys = [path.relative_to(folder).as_posix() for path in images]
    found = [(masks / key).with_suffix(".png") for key in keys]
    twice = [mask for mask, count in Counter(found).items() if count > 1]
    if twice:
        one, other = [key for key, mask in zip(keys, found, strict=True) if mask == twice[0]][:2]
        raise UserError(
            f"{who}: {one} and {other} in {folder} would share the mask {twice[0]} ({len(twice):,} "
            "such); move one of the two away."
        )
    hint = "an image needs; add it, or move the image away"
    check_files(who, base, found, hint, follow_links)
    return list(zip(images, found, keys, strict=True))
