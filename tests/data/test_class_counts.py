"""The look at the data before training: what is refused, what is said, in both tracks."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from forked import Ranks
from PIL import Image

from vision_tutorial import train
from vision_tutorial.commands.of_recipes import explain
from vision_tutorial.core.errors import UserError, all_at_once
from vision_tutorial.core.sources import ArraySource, FileSource, Source, Subset
from vision_tutorial.data import class_counts
from vision_tutorial.recipe.grammar import Choice
from vision_tutorial.segmentation import datasets
from vision_tutorial.segmentation.mask_files import Joined

NAMES = ("ground", "cat", "dog")


def labels(ids: str, names=NAMES[:2]) -> ArraySource:
    """Images of these class ids."""
    images = np.zeros((len(ids), 2, 2, 3), np.uint8)
    return ArraySource("mine", images, np.array(list(ids), np.int64), names)


def masks(*rows: str, names=NAMES) -> ArraySource:
    """Images of 1x4 pixels of these class ids; `v` is void."""
    ids = np.array([[255 if x == "v" else int(x) for x in row] for row in rows], np.uint8)
    images = np.zeros((len(rows), 1, 4, 3), np.uint8)
    nothing = np.zeros(len(rows), np.int64)
    return ArraySource("mine", images, nothing, names, ids[:, None], dense=True)


def said(train_: Source, val: Source, **options) -> list[str]:
    return class_counts.look(train_, val, Choice("mine", options))


@pytest.mark.parametrize(
    ("split", "val", "message"),
    [
        (labels("000"), labels("01"), "mine, train: every image that counts is of one class, 'gr"),
        (
            labels("00", NAMES[:1]),
            labels("0", NAMES[:1]),
            "so there is nothing to learn. Give a fo",
        ),
        (
            masks("000v", "0vvv"),
            masks("012v"),
            "one class, 'ground', so .* (50.0 % are void). Mask",
        ),
        (labels("0120"), labels("01"), "mine: labels from 0 to 2, for 2 classes. Number them"),
        (masks("1vv1"), masks("012v"), "void: write another id in the files."),
        (
            masks("1111"),
            masks("012v"),
            "of one class, 'cat', .*, such as an object and its background.",
        ),
        (masks("0v", names=NAMES[:1]), masks("0v", names=NAMES[:1]), "one class, 'ground'"),
        (masks("vvvv", "vvvv"), masks("012v"), "mine, train: all pixels are void"),
        (masks("012v"), masks("vvvv"), "mine, val: all pixels are void .*: holdout=0.1"),
        (
            masks("0123"),
            masks("0124", "5555"),
            "3 images .*: 0: class id 3 in 1 places; 0: class id",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(split: Source, val: Source, message: str):
    with pytest.raises(UserError) as caught:
        said(split, val)
    start, *rest = message.split(".*")
    text = str(caught.value)
    assert start in text and all(part in text for part in rest) and "\n" not in text


def test_binary_masks_are_told_how_to_be_mapped():
    with pytest.raises(UserError, match=r"dataset.mine.map=\{255: 1\} makes it class 1\.$"):
        said(masks("0v00"), masks("0v00"), map=None, void=None)
    with pytest.raises(UserError, match=r"map=\{255: 0\} makes it class 0\.$"):
        said(masks("1v11"), masks("1v11"), map=None, void=None)
    with pytest.raises(UserError, match="class 0, dataset.mine.void=null gives id 0 back"):
        said(masks("1v11"), masks("1v11"), map=None, void=0)


@pytest.mark.parametrize(
    ("split", "val", "warnings"),
    [
        (labels("0011"), labels("01"), []),
        (labels("0011", ("a", "A")), labels("01", ("a", "A")), ["but for its case: a (0), A (1)"]),
        (
            labels("0001"),
            labels("00"),
            ["in val, which are not scored: cat (1)", "cat (1)", "only"],
        ),
        (labels("0011", NAMES), labels("012", NAMES), ["in train, which cannot be learned: dog"]),
        (labels("0011", NAMES), labels("01", NAMES), ["an image in train or val: dog (2)"]),
        (masks("0012", "0012"), masks("012v"), []),
        (masks("0012", "0010"), masks("0122"), ["in one image of train only: dog (2)"]),
        (masks("0011", "0011"), masks("0122"), ["a pixel in train, which cannot be learned: dog"]),
        (masks("1122", "1122"), masks("12v1"), ["in train or val (void is 0): ground (0)"]),
        (
            masks("vvvv", "0012", "0012"),
            masks("vvvv", "vvvv", "0012"),
            ["images that are void as a whole, from which nothing is learned: 1 of train and 2 of"],
        ),
    ],
)
def test_what_is_odd_is_said(split: Source, val: Source, warnings: list[str]):
    dead = {"void": 0} if "void is 0" in str(warnings) else {}
    lines = said(split, val, **dead)
    assert [line.partition(":")[0] for line in lines[:2]] == ["train", "val"]
    assert len(lines) == 2 + len(warnings)
    for line, warning in zip(lines[2:], warnings, strict=True):
        assert line.startswith("warning: ") and warning in line


@pytest.mark.parametrize("decoded", [False, True])
def test_images_of_val_that_are_in_train_are_named(tmp_path: Path, decoded: bool):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), np.uint8)
    pixels[5] = pixels[1]
    pixels[4, 4:] = pixels[1, 4:]  # the upper half alone is another
    paths = [tmp_path / f"{n}.ppm" for n in range(6)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)

    def made(rows: slice) -> Source:
        ids, names = np.arange(6)[rows] % 2, [path.name for path in paths[rows]]
        if decoded:
            return ArraySource("mine", pixels[rows], ids, NAMES[:2], keys=names)
        return FileSource("mine", paths[rows], ids, NAMES[:2])

    joined = Subset(made(slice(0, 4)), np.array([3, 2, 1, 0]))
    *_, line = said(joined, made(slice(4, 6)))
    assert line == (
        "warning: 1 of 2 images of val are in train, too, where they can be learned by heart: 5.ppm"
    )


def test_shares():
    lines = said(masks("0012", "001v"), masks("0122"))
    assert lines[0] == (
        "train: 3 classes, from 14.3 % ('dog') to 57.1 % ('ground') of the pixels that count; "
        "12.5 % void"
    )
    assert said(labels("00011"), labels("01"))[:2] == [
        "train: 2 classes, from 2 images ('cat') to 3 images ('ground')",
        "val: 2 classes, 1 image each",
    ]


def test_subsets_and_joints_are_counted_by_their_items():
    joined = Joined("mine", masks("0000", "1111"), masks("2222", "vvvv"))
    counts, problems = class_counts.count(Subset(joined, np.array([1, 2, 2])))
    assert counts.pixels.tolist() == [0, 4, 8] and counts.images.tolist() == [0, 1, 2]
    assert (counts.void, counts.void_images, problems) == (0, 0, [])


# -- where a person meets it -----------------------------------------------------------------------


def folder(root: Path, ids=(0, 1, 2), sizes=((16, 16),), count: int = 4) -> Path:
    """root/train, root/val with a mask each, of squares of the ids."""
    count = max(count, len(sizes))
    for part in ("train", "val"):
        for kind in (part, f"{part}_masks"):
            (root / kind).mkdir(parents=True)
        for i in range(count):
            height, width = sizes[i % len(sizes)]
            mask = np.zeros((height, width), np.uint8)
            for n, label in enumerate(ids):
                mask[n * 4 : n * 4 + 4] = label
            Image.fromarray(mask).save(root / f"{part}_masks" / f"{i}.png")
            Image.fromarray(mask).convert("RGB").save(root / part / f"{i}.jpg")
    return root


def words(root: Path) -> list[str]:
    """A small training on such a folder."""
    head = {"backbone": "test_resnet", "output_stride": 16}
    model = f"model={{deeplabv3plus: {head}}}".replace("'", "")
    data = f"dataset={{mask_folder: {{root: {root}}}}}"
    plain = [
        "augment=[hflip]",
        "loss=cross_entropy",
        "batch_size=4",
        "epochs=1",
        "workers=0",
        "threads=1",
    ]
    return ["recipes/segmentation/quickstart.yaml", "normalize=half", model, data, *plain]


@pytest.mark.parametrize(
    ("ids", "sizes", "more", "message"),
    [
        ((0, 255), ((16, 16),), [], "dataset.mask_folder.map={255: 1} makes"),
        (
            (0, 255),
            ((16, 16), (24, 16)),
            ["eval_batch_size=1"],
            "every pixel that counts is of one class",
        ),
        ((0, 1, 2), ((16, 16),), ["classes=[a, b]"], "8 images cannot be used: .*; 3 more. There "),
        ((0, 1, 2), ((16, 16), (24, 16)), ["classes=[a, b]"], "8 images cannot be used: "),
        ((0, 1, 2), ((16, 16), (24, 16)), [], "different sizes in one batch (16x16, 16x24); end"),
        # one that is not among the 16 from all over the set
        (
            (0, 1, 2),
            (*[(16, 16)] * 22, (24, 16)),
            [],
            "different sizes in one batch (16x16, 16x24); end",
        ),
    ],
)
def test_train_stops_before_the_first_step(tmp_path, capsys, ids, sizes, more, message):
    root = folder(tmp_path / "data", ids, sizes)
    more = [f"dataset.mask_folder.{x}" if x.startswith("classes") else x for x in more]
    assert train.main([*words(root), *more, "--runs", str(tmp_path / "runs"), "--id", "r"]) == 2
    captured = capsys.readouterr()
    assert all(part in captured.err for part in message.split(".*"))
    assert captured.err.count("\n") == 1 + captured.err.count("compiling")
    assert not list(tmp_path.glob("runs/*/r/metrics.jsonl"))


@pytest.mark.parametrize(("ids", "said"), [((0, 255), "of one class"), ((0, 1, 3), "8 images")])
def test_of_two_processes_one_says_it(tmp_path, capfd, ids, said):
    root, classes = folder(tmp_path / "data", ids), "dataset.mask_folder.classes=[a, b]"
    given = [*words(root), classes, "--runs", str(tmp_path / "runs"), "--id", "r"]
    assert Ranks(2, lambda rank: train.main(given)).join() == [2, 2]
    found = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    assert len(found) == 1 and said in found[0]


def test_explain_shows_what_is_in_the_data(tmp_path, capsys):
    root = folder(tmp_path / "data")
    assert explain.main(words(root)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "data train: 3 classes, from 25 % ('1') to 50 % ('0') of the pixels that count" in shown
    for path in root.glob("val_masks/*"):
        Image.fromarray(np.full((16, 16), 255, np.uint8)).save(path)
    assert explain.main(words(root)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the data cannot be trained on. Why: mask_folder, val: all pixels are void" in shown
    assert "x 1 step = 1 step (4 images of mask_folder)" in shown


def test_long_counting_is_kept_until_a_mask_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(class_counts, "MOMENT", 0)
    root = folder(tmp_path / "data", count=12)

    def counted() -> list[int]:
        source = datasets.mask_folder("train", root=str(root), classes=list(NAMES), cache="none")
        return class_counts.count(source)[0].pixels.tolist()

    before = counted()
    (file,) = (tmp_path / "cache" / "vision_tutorial" / "class_counts").iterdir()
    table = np.load(io.BytesIO(file.read_bytes()))
    np.save(file, table * 2)
    assert counted() == [2 * n for n in before], "read, not counted"
    file.write_bytes(b"damaged")
    assert counted() == before
    path = root / "train_masks" / "3.png"
    content = path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    file.unlink()
    assert counted() == before and len(list(file.parent.iterdir())) == 1
    assert not file.exists(), "another time of a file is another name"


def test_many_problems_are_one_line():
    problems = [f"a b. c/{n}.png: {n + 1}x2 pixels; so wrong. Mend it." for n in range(7)]
    text = str(all_at_once(problems, "images"))
    assert text.startswith("7 images cannot be used: a b. c/0.png: 1x2 pixels; a b. c/1.png: 2x2")
    assert text.endswith("a b. c/4.png: 5x2 pixels; 2 more. So wrong. Mend it.")
    assert str(all_at_once(problems[:1], "images")) == problems[0]
