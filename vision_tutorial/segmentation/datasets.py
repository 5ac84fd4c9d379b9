"""Data sets whose masks are files: CamVid, VOC, your own; and pseudo-labels beside any of them."""

import glob
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.atomic import read_json, regular
from ..core.errors import UserError, check_range, shown, some
from ..core.folders import data_folder, data_root, typed_path
from ..core.images import VOID, images_in, no_images, split_folder, stored, visible
from ..core.randomness import generator
from ..core.registry import datasets
from ..core.sources import Source, Subset, check_split
from ..recipe.grammar import parse
from ..recipe.signatures import static_signatures
from .mask_files import DenseFiles, Joined, MaskFiles, check_files, check_palettes, decoded

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
        names = regular(listed).read_text(encoding="utf-8-sig").split()
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
    image_suffix: str = "",
    mask_suffix: str = ".png",
    classes: list[str] | None = None,
    map: dict | None = None,
    void: int | None = None,
    skip_unreadable: bool = False,
    follow_links: bool = False,
    cache: Literal["auto", "memory", "disk", "none"] = "auto",
) -> Source:
    """Your own images and masks: root/train/*.jpg, root/train_masks/*.png, val, val_masks.

    root: a folder, or the name of one below VISION_TUTORIAL_DATA. A mask has its image's name,
    and class ids as pixels; `void` and 255 do not count. map: {255: 1} makes 255 class 1, and
    {7: 255} what does not count. classes: their names in the order of the ids; else the lines of
    root/classes.txt; else numbers up to the highest in the training masks. image_suffix,
    mask_suffix: what an image's name ends with where its mask's ends otherwise, such as
    _leftImg8bit and _gtFine_labelTrainIds; other images are not taken.
    skip_unreadable: leave damaged files out instead of stopping. follow_links: links may lead out
    of `root`, and to folders of images.
    """
    check_split(split)
    base, who, ids = data_folder(root, "mask_folder"), "mask_folder", _ids(map or {})

    def part(split: str, name: str, masks: str | None) -> tuple[str, list[_Pair], Counter[str]]:
        folder, skipped = split_folder(who, base, split, name), Counter()
        place = base / masks if masks else folder.with_name(f"{folder.name}_masks")
        suffixes = (image_suffix, mask_suffix)
        return (
            folder.name,
            _pairs(who, base, folder, place, skipped, follow_links, suffixes),
            skipped,
        )

    chosen, learned = part("train", train, train_masks), []
    names = classes or _listed(base / "classes.txt")
    if not names:
        names = _numbers(MaskFiles([path for _, path, _ in chosen[1]], VOID, void, ids))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"mask_folder: two classes called '{twice}'; rename one.")
    if split == "test":
        learned, chosen = [path for _, path, _ in chosen[1]], part("test", test, test_masks)
    folder, pairs, skipped = chosen
    source = _source(who, pairs, tuple(names), void, ids, learned)
    return decoded(source.checked(folder, skipped, skip_unreadable), cache)


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


def _listed(path: Path) -> list[str]:
    """The classes that a file names, one a line; none where there is no file."""
    try:
        text = regular(path).read_text(encoding="utf-8-sig") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}). Write one class a line.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _ids(map: dict) -> dict[int, int]:
    """The option `map`, whose keys YAML has as text."""
    found = {}
    for id, label in map.items():
        id = int(id) if str(id).isdecimal() else -1
        if not (0 <= id <= VOID and type(label) is int and 0 <= label <= VOID):
            raise UserError(
                f"mask_folder: map is {shown(map)}; class ids 0 to 255 are expected, such as "
                "{255: 1}, which makes what is 255 in the files class 1."
            )
        found[id] = label
    return found


def _numbers(masks: MaskFiles) -> list[str]:
    """Names of classes for masks that come without: their numbers, up to the highest."""
    there = {0}
    for index in range(len(masks.paths)):
        with suppress(UserError):  # said with all others that cannot be read, or left out
            there.update(np.unique(masks[index]).tolist())
    ids = sorted(there - {VOID})
    also = f" (255 is void; to have it as a class, add 255: {len(ids)})" * (VOID in there)
    if ids[-1] + 1 > 2 * len(ids):
        options = {id: label for label, id in enumerate(ids) if id != label}
        raise UserError(
            f"mask_folder: the training masks have the ids {some([str(id) for id in ids])}, so "
            f"{ids[-1] + 1 - len(ids)} of {ids[-1] + 1} classes would have no pixel. If they are "
            f"grey levels, map them: map={shown(options)}{also}. If not, name all `classes`."
        )
    return [str(label) for label in range(ids[-1] + 1)]


def _source(
    name: str,
    pairs: Sequence[_Pair],
    classes: tuple[str, ...],
    void: int | None = None,
    ids: dict[int, int] | None = None,
    learned: Sequence[Path] = (),
) -> DenseFiles:
    images, masks, keys = zip(*pairs, strict=True)
    check_palettes(name, [*learned, *masks])  # of both splits: each may agree with itself alone
    return DenseFiles(name, images, keys, classes, MaskFiles(masks, len(classes), void, ids))


def _pairs(
    who: str,
    base: Path,
    folder: Path,
    masks: Path,
    skipped: Counter[str],
    follow_links: bool | None = None,
    suffixes: tuple[str, str] = ("", ".png"),
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
    suffix, ending = suffixes
    ending += "" if Path(f"x{ending}").suffix else ".png"
    together = folder.resolve() == masks.resolve()
    if together and suffix in ("", ending):
        raise UserError(
            f"{who}: images and masks lie in one folder, {folder}, where masks would be taken for "
            "images; say which are images: image_suffix=.jpg (and mask_suffix, if not .png)."
        )
    images = images_in(folder, base, who, skipped, follow_links)
    if not together:  # masks may lie below the images
        images = [path for path in images if not path.is_relative_to(masks)]
    images = [path for path in images if _without(suffix, path) is not None]
    if not images:
        raise no_images(folder, who, skipped)
    keys = [path.relative_to(folder).as_posix() for path in images]
    names = [Path(key).with_name(f"{_without(suffix, Path(key))}{ending}") for key in keys]
    found = [stored(masks, str(name)) for name in names]
    twice = [mask for mask, count in Counter(found).items() if count > 1]
    if twice:
        one, other = [key for key, mask in zip(keys, found, strict=True) if mask == twice[0]][:2]
        raise UserError(
            f"{who}: {one} and {other} in {folder} would share the mask {twice[0]} ({len(twice):,} "
            "such); move one of the two away."
        )
    hint = "an image needs; add it, or move the image away"
    if who == "mask_folder":
        hint += ", or say what names end with: image_suffix, mask_suffix"
    check_files(who, base, found, hint, follow_links)
    if not folder.is_relative_to(masks):
        there = {path for path in masks.rglob(f"*{glob.escape(ending)}") if visible(path.name)}
        skipped["masks without an image"] += len(there - set(found))
    return list(zip(images, found, keys, strict=True))


def _without(suffix: str, path: Path) -> str | None:
    """The name before `suffix`, which may have the file's ending or not; None if it is another."""
    for name in (path.stem, path.name):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return None
