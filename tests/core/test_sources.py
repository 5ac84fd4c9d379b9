"""Sources: what they hold, their digests, and the seeded, stratified splits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vision_tutorial.core import folders
from vision_tutorial.core.errors import StorageError, UserError
from vision_tutorial.core.sources import ArraySource, FileSource, Subset, hold_out, take


def source_of(targets, classes=10) -> ArraySource:
    targets = np.asarray(targets, np.int64)
    images = np.arange(len(targets), dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    return ArraySource("toy", images, targets, tuple(map(str, range(classes))))


def test_array_digest_sees_pixels_targets_shape_and_masks():
    images = np.arange(96, dtype=np.uint8).reshape(2, 2, 8, 3)
    targets, masks = np.zeros(2, np.int64), np.zeros((2, 2, 8), np.uint8)
    source = ArraySource("a", images, targets, ("x",))
    variants = [
        source,
        replace(source, images=images + np.uint8(1)),
        replace(source, images=images.reshape(2, 4, 4, 3)),
        replace(source, targets=targets + 1),
        replace(source, masks=masks),
        replace(source, masks=masks + np.uint8(1)),
    ]
    assert len({source.digest() for source in variants}) == len(variants)
    # Where the bytes lie is not what they are.
    assert replace(source, images=np.asfortranarray(images)).digest() == source.digest()


def test_file_source_decodes_on_demand_and_digests_names_and_sizes(tmp_path: Path):
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for level, path in enumerate(paths):
        Image.new("L", (4, 3), 100 + level).save(path)
    source = FileSource("files", paths, np.array([0, 1]), ("x", "y"))
    image, target = source[1]
    assert (image.mode, image.size, image.getpixel((3, 2))) == ("RGB", (4, 3), (101,) * 3)
    assert target == 1 and type(target) is int and len(source) == 2
    before = source.digest()
    assert before != replace(source, targets=np.array([1, 1])).digest()
    paths[0].write_bytes(paths[0].read_bytes() + b"\0")
    assert source.digest() != before


def test_subset_follows_its_indices():
    source = source_of([5, 6, 7, 8])
    subset = Subset(source, np.array([3, 1]))
    assert (subset.name, subset.classes, len(subset)) == ("toy", source.classes, 2)
    assert subset.targets.tolist() == [8, 6] and [subset.key(i) for i in (0, 1)] == ["3", "1"]
    assert subset[0][1] == 8 and subset[0][0].getpixel((0, 0)) == (3, 3, 3)
    assert subset.digest() != Subset(source, np.array([1, 3])).digest() != source.digest()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.data())
def test_every_class_gets_its_share_within_one_and_parts_are_complete(targets, data):
    source = source_of(targets)
    n = data.draw(st.integers(1, len(targets)))
    subset = take(source, n, seed=0)
    assert len(subset) == n == len(set(subset.indices.tolist()))
    assert (np.diff(subset.indices) > 0).all()
    for label in set(targets):
        share = targets.count(label) * n / len(targets)
        assert abs((subset.targets == label).sum() - share) < 1
    train, held = hold_out(source, 0.4, seed=0)
    assert len(held) == round(0.4 * len(targets))
    assert sorted([*train.indices, *held.indices]) == list(range(len(targets)))


def test_the_seed_and_nothing_else_decides():
    source = source_of(np.arange(200) % 10)
    chosen = [tuple(hold_out(source, 0.3, seed)[1].indices) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] != tuple(take(source, 60, seed=1).indices)
    # Which items of a class are taken does not depend on the other classes.
    fewer = take(Subset(source, np.flatnonzero(source.targets < 5)), 30, seed=1)
    whole = take(source, 60, seed=1)
    assert fewer.source.indices[fewer.indices].tolist() == [
        index for index in whole.indices if source.targets[index] < 5
    ]
    # Places that are left do not favour the first classes.
    assert len({int(take(source, 1, seed).targets[0]) for seed in range(60)}) >= 8


def test_splits_are_the_same_on_every_machine():
    source = source_of(np.arange(40) % 4)
    assert take(source, 6, seed=0).indices.tolist() == [10, 13, 22, 23, 24, 25]
    assert hold_out(source, 0.1, seed=0)[1].indices.tolist() == [3, 9, 18, 28]


def test_parts_out_of_range():
    for part in (0, 11, 1.5, float("nan"), 0.01, 0.99):
        cut = hold_out if isinstance(part, float) else take
        with pytest.raises(UserError, match=f"cannot (hold out|take) {part} of 10 items; give"):
            cut(source_of(range(10)), part, seed=0)


@pytest.mark.parametrize("home", ["a file", None])
def test_who_has_no_home_keeps_things_in_a_temporary_folder(tmp_path, monkeypatch, caplog, home):
    (tmp_path / "a file").write_text("")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    # what an account that the system does not know gets
    monkeypatch.setenv("HOME", str(tmp_path / home) if home else "~")
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folders._spare.cache_clear()
    kept = folders.cache_folder()
    assert kept.parent == tmp_path and kept.stat().st_mode & 0o777 == 0o700
    assert f"cannot be written: what is kept between runs goes to {kept}" in caplog.text
    folders._spare.cache_clear()
    assert folders.cache_folder() == kept and not (tmp_path / "~").exists()
    folders._spare.cache_clear()
    kept.chmod(0o777)  # not ours alone: another account could put code there
    assert folders.cache_folder() not in (kept, kept.parent)
    folders._spare.cache_clear()
    monkeypatch.setattr(folders.tempfile, "tempdir", str(tmp_path / "a file"))
    with pytest.raises(StorageError, match="Set XDG_CACHE_HOME or TMPDIR"):
        folders.cache_folder()


def test_data_root_asks_recipe_then_environment_then_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VISION_TUTORIAL_DATA", "~/env")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert folders.data_root("~/option") == tmp_path / "option"
    assert folders.data_root() == tmp_path / "env"
    monkeypatch.delenv("VISION_TUTORIAL_DATA")
    assert folders.data_root() == tmp_path / ".cache" / "vision_tutorial"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folders.data_root() == tmp_path / "xdg" / "vision_tutorial"
