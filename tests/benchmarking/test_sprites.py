"""Sprites: there and back bit for bit, in any order of parts, and no damage goes unnoticed."""

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vision_tutorial.benchmarking import sprites
from vision_tutorial.core import arrays
from vision_tutorial.core.errors import StorageError, UserError
from vision_tutorial.core.registry import datasets
from vision_tutorial.core.sources import ArraySource
from vision_tutorial.data import shapes  # noqa: F401  (fills the registry)

BUDGET = 300_000  # bytes a part: two parts


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """root/set as an arrays folder, root/out with its two parts."""
    root = tmp_path_factory.mktemp("packed")
    make = datasets.build("shapes", size=16, train=530, test=30)
    arrays.write(root / "set", "shapes", {split: make(split) for split in ("train", "test")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sprites, "PICTURES", 250)  # several sheets of few images
        made = sprites.pack(root / "set", root / "out", BUDGET, 2)
    assert len(made) == 2
    for folder, size in made:
        assert size == sum(f.stat().st_size for f in folder.iterdir()) <= BUDGET
    return root


def test_masks_stay_the_targets(tmp_path: Path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 9, 8, 3), np.uint8)
    masks = rng.choice(np.array([0, 1, 255], np.uint8), (6, 9, 8))
    keys = tuple(f"batch/{i}.jpg" for i in range(6))
    source = ArraySource(
        "d", images, np.zeros(6, np.int64), ("a", "b"), masks, dense=True, keys=keys
    )
    arrays.write(tmp_path / "set", "d", {"train": source})
    ((part, _),) = sprites.pack(tmp_path / "set", tmp_path / "out", BUDGET, 1)
    sprites.unpack([part], tmp_path / "again", 1)
    found = arrays.load(tmp_path / "again", "train")
    assert (found.dense, found.keys) == (True, keys) and (found.masks == masks).all()
    assert (found.images == images).all()


def parts_of(packed: Path) -> list[Path]:
    return sorted((packed / "out").iterdir())


@pytest.fixture
def part(packed: Path, tmp_path: Path) -> Path:
    """A copy of the first part, to be spoilt."""
    folder = tmp_path / parts_of(packed)[0].name
    folder.mkdir()
    for file in parts_of(packed)[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change(folder: Path, edit) -> None:
    path = folder / sprites.PART
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    files = [sorted(p.relative_to(r) for p in r.rglob("*") if p.is_file()) for r in (one, other)]
    return files[0] == files[1] and all(
        (one / f).read_bytes() == (other / f).read_bytes() for f in files[0]
    )


def refused(folders: list[Path], target: Path) -> str:
    with pytest.raises(UserError) as caught:
        sprites.unpack(folders, target, 1)
    message = str(caught.value)
    assert "\n" not in message and not target.exists()
    return message


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("calls", [1, 2])
def test_there_and_back_bit_for_bit(packed: Path, tmp_path: Path, order, calls: int):
    folders = [parts_of(packed)[index] for index in order]
    target = tmp_path / "deep" / "again"
    if calls == 2:
        for _ in range(2):  # the same part twice is no harm
            _, missing = sprites.unpack(folders[:1], target, 2)
            assert missing == [folders[1].name] and not target.exists()
        folders = folders[1:]
    whole, missing = sprites.unpack(folders, target, 2)
    assert not missing and same(target, packed / "set")
    assert whole.splits["train"].masks is not None
    assert [path.name for path in target.parent.iterdir()] == ["again"], "nothing beside it"
    assert sprites.unpack(folders, target, 2)[1] == [], "what is there already is no error"
    arrays.load(target, "train", verify=True)


def test_a_slice_of_cifar100(data_root: Path, tmp_path: Path):
    from vision_tutorial.classification.datasets import cifar100

    source = cifar100("test", root=str(data_root))
    few = ArraySource("cifar100", source.images[:1500], source.targets[:1500], source.classes)
    arrays.write(tmp_path / "set", "cifar100", {"test": few})
    ((folder, size),) = sprites.pack(tmp_path / "set", tmp_path / "out", 60 << 20, 2)
    assert size < 0.57 * few.images.nbytes and len(list(folder.glob("*.webp"))) == 2
    assert sprites.unpack([folder], tmp_path / "again", 2)[1] == []
    assert same(tmp_path / "again", tmp_path / "set")
    assert arrays.load(tmp_path / "again", "test").digest() == few.digest()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 9), st.integers(1, 25))
def test_a_sheet_gives_back_its_images(n: int, height: int, width: int, columns: int):
    rows = np.random.default_rng(n).integers(0, 256, (n, height, width, 3), np.uint8)
    grid = sprites.sheet(rows, columns)
    assert grid.shape[1::-1] == sprites.sheet_size(n, columns, height, width)
    np.testing.assert_array_equal(sprites.images(grid, n, columns, height, width), rows)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(100, 1000))
def test_parts_are_few_in_order_and_within_their_limit(costs: list[int], most: int):
    groups = sprites.shared_out(costs, most)
    assert [index for group in groups for index in group] == list(range(len(costs)))
    assert all(sum(costs[i] for i in group) <= most for group in groups)
    assert len(groups) <= 2 * -(-sum(costs) // most)


def test_a_part_too_small_for_one_sprite(packed: Path, tmp_path: Path):
    with pytest.raises(UserError, match="one sprite has .* MiB, more than a part may have"):
        sprites.pack(packed / "set", tmp_path / "out", 20_000, 1)
    assert not list(tmp_path.iterdir())


def test_images_too_large_for_a_sheet(tmp_path: Path):
    images = np.zeros((1, 2, sprites.LONGEST + 1, 3), np.uint8)
    source = ArraySource("wide", images, np.zeros(1, np.int64), ("x",))
    arrays.write(tmp_path / "set", "wide", {"train": source})
    with pytest.raises(UserError, match="images of 16384x2 are too large"):
        sprites.pack(tmp_path / "set", tmp_path / "out", 1 << 20, 1)


def test_a_damaged_set_is_not_packed(packed: Path, tmp_path: Path):
    arrays.write(tmp_path / "set", "shapes", {"test": arrays.load(packed / "set", "test")})
    path = tmp_path / "set" / "test" / "images.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="damaged"):
        sprites.pack(tmp_path / "set", tmp_path / "out", BUDGET, 1)


# -- damage on the way -----------------------------------------------------------------------------


def test_parts_of_two_packings(packed: Path, part: Path, tmp_path: Path):
    change(part, lambda values: values["whole"].update(name="other"))
    message = refused([part, parts_of(packed)[1]], tmp_path / "again")
    assert "are not parts of one packing" in message
    sprites.unpack([parts_of(packed)[1]], tmp_path / "again", 1)
    assert "holds parts of another packing; remove it" in refused([part], tmp_path / "again")


def test_another_set_under_the_same_name(packed: Path, part: Path, tmp_path: Path):
    sprites.unpack(parts_of(packed), tmp_path / "again", 2)
    change(part, lambda values: values["whole"].update(name="other"))
    with pytest.raises(UserError, match="holds another data set"):
        sprites.unpack([part], tmp_path / "again", 1)
    assert same(tmp_path / "again", packed / "set")


@pytest.mark.parametrize("damage", [bytes, lambda c: c[:-1], lambda c: c + b"\0", lambda c: None])
def test_a_sprite_that_is_missing_or_other(part: Path, tmp_path: Path, damage):
    path = sorted(part.glob("*.webp"))[0]
    content = damage(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content if content else b"")
    if damage is bytes:
        path.write_bytes(b"\0" * 100)
    message = refused([part], tmp_path / "again")
    assert str(path) in message and ("cannot read" in message or "digest differs" in message)


def forged(part: Path, content: bytes) -> None:
    """Put other bytes into the first sprite, and a manifest that agrees with them."""
    first = json.loads((part / sprites.PART).read_text())["sprites"][0]
    (part / sprites.Sprite(**{**first, "targets": tuple(first["targets"])}).file).write_bytes(
        content
    )
    told = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(part, lambda values: values["sprites"][0].update(told))


def webp(mode: str, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 7 if mode == "L" else (7,) * len(mode)).save(
        buffer, "WEBP", lossless=True
    )
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, said",
    [
        (b"no image", "not a readable sprite"),
        (webp("RGB", (400, 160))[:-20], "not a readable sprite"),
        (webp("RGB", (160, 400)), "160x400 RGB, it should be 400x160 RGB"),
        (webp("RGBA", (400, 160))[:0] + b"RIFF", "not a readable sprite"),
    ],
)
def test_a_forged_sprite(part: Path, tmp_path: Path, content: bytes, said: str):
    forged(part, content)
    assert said in refused([part], tmp_path / "again")


def test_pixels_that_are_not_those_that_were_packed(packed: Path, part: Path, tmp_path: Path):
    forged(part, webp("RGB", (400, 160)))
    target = tmp_path / "again"
    assert "damaged: its SHA-256" in refused([part, parts_of(packed)[1]], target)
    assert sprites.unpack(parts_of(packed), target, 1)[1] == [], "and the next attempt is clean"


@pytest.mark.parametrize(
    "edit, said",
    [
        (lambda v: v.update(part=3), "part 3 of 2"),
        (lambda v: v.update(of=10**6), "of: Input should be less than"),
        (lambda v: v.update(sprites=[]), "sprites"),
        (lambda v: v["sprites"][0].update(file="../../up"), "sprites.0.file: Extra inputs"),
        (lambda v: v["sprites"][0].update(first=10**6), "has no place in the data set"),
        (lambda v: v["sprites"][0].update(first=-1), "sprites.0.first"),
        (lambda v: v["sprites"][0].update(array="targets"), "sprites.0.array"),
        (lambda v: v["sprites"][0].update(columns=0), "sprites.0.columns"),
        (lambda v: v["sprites"][0].update(bytes=1 << 40), "sprites.0.bytes"),
        (lambda v: v["sprites"][0]["targets"].pop(), "class ids"),
        (lambda v: v["sprites"][0]["targets"].append("x"), "sprites.0.targets"),
        (lambda v: v["whole"].update(classes=[]), "whole.classes"),
        (
            lambda v: [
                v["whole"]["splits"]["train"][name].update(shape=[530, 4000, 4000, *rest])
                for name, rest in (("images", [3]), ("masks", []))
            ],
            "would have",
        ),
    ],
)
def test_a_part_that_contradicts_itself(part: Path, tmp_path: Path, edit, said: str):
    change(part, edit)
    message = refused([part], tmp_path / "again")
    assert said in message and str(part / sprites.PART) in message


def test_class_ids_beyond_64_bits_are_no_traceback(part: Path, tmp_path: Path):
    change(part, lambda v: v["sprites"][0]["targets"].__setitem__(0, 10**30))
    assert "targets" in refused([part], tmp_path / "again")


def test_a_kill_in_the_middle_of_a_part_costs_that_part(packed: Path, tmp_path: Path, monkeypatch):
    target, (one, two) = tmp_path / "again", parts_of(packed)
    sprites.unpack([one], target, 1)

    def killed(*_):
        raise KeyboardInterrupt

    real = sprites.write_text
    monkeypatch.setattr(sprites, "write_text", killed)  # pixels are in place, the mark is not
    with pytest.raises(KeyboardInterrupt):
        sprites.unpack([two], target, 1)
    monkeypatch.setattr(sprites, "write_text", real)
    monkeypatch.setattr(sprites, "write_json", killed)  # all is there, the name is not
    with pytest.raises(KeyboardInterrupt):
        sprites.unpack([two], target, 1)
    monkeypatch.undo()
    assert sprites.unpack([one], target, 1)[1] == []
    assert same(target, packed / "set")


def test_a_full_disk_is_one_line(packed: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(arrays, "free_space", lambda path: 10)
    with pytest.raises(StorageError, match="MiB are needed, fewer are free"):
        sprites.unpack(parts_of(packed), tmp_path / "again", 1)
    assert not list(tmp_path.iterdir())


def test_pillow_without_webp_is_told(packed: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sprites.features, "check", lambda name: False)
    for work in (
        lambda: sprites.pack(packed / "set", tmp_path / "out", BUDGET, 1),
        lambda: sprites.unpack(parts_of(packed), tmp_path / "again", 1),
    ):
        with pytest.raises(UserError, match="this Pillow has no WebP"):
            work()
    assert not list(tmp_path.iterdir()) and os.path.isdir(packed / "out")
