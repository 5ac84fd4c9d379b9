"""Who sees which image when: order, shares, mirror pairs, readable errors."""

import errno
import multiprocessing
import os
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vision_tutorial.core import registry
from vision_tutorial.core.errors import UserError
from vision_tutorial.core.sources import ArraySource, FileSource
from vision_tutorial.data import loader
from vision_tutorial.data.loader import (
    AugmentedImages,
    augmented_images,
    by_references,
    make_loader,
)
from vision_tutorial.data.pipeline import eval_order, part, train_order
from vision_tutorial.recipe import loading


def noise(n: int = 24) -> ArraySource:
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return ArraySource("noise", images, np.arange(n), tuple(map(str, range(n))))


def jitter(image: Image.Image) -> Image.Image:
    """Adds a draw of each of the three generators that timm's transforms use."""
    draws = random.random(), np.random.rand(), torch.rand(()).item()
    return image.point(lambda x: (x + int(1000 * sum(draws))) % 256)


def tuples(batches) -> list[list[tuple[int, int]]]:
    return [list(map(tuple, items.tolist())) for items in batches]


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_parts_share_a_batch_and_keep_mirror_pairs(half: int, outer: int, inner: int) -> None:
    n = 2 * half * outer * inner
    shares = [part(n, i, outer) for i in range(outer)]
    assert sorted(np.concatenate(shares)) == list(range(n))
    for i, share in enumerate(shares):
        assert (share[::-1] == n - 1 - share).all()
        for j in range(inner):  # parts of parts are parts
            of_part = share[part(len(share), j, inner)]
            assert of_part.tolist() == part(n, i * inner + j, outer * inner).tolist()


def test_every_epoch_is_a_new_order_of_all_and_drops_the_rest() -> None:
    order = tuples(train_order(n=10, batch_size=4, seed=1, start=0, stop=4))
    epochs = [[i for batch in order[e : e + 2] for _, i in batch] for e in (0, 2)]
    assert all(len(set(seen)) == 8 and set(seen) <= set(range(10)) for seen in epochs)
    assert epochs[0] != epochs[1]
    assert [e for batch in order for e, _ in batch] == [0] * 8 + [1] * 8


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_evaluation_sees_each_item_once_in_the_same_batches(n: int, size: int, world: int) -> None:
    whole = tuples(eval_order(n, size))
    shares = [tuples(eval_order(n, size, rank, world)) for rank in range(world)]
    assert sorted(batch for share in shares for batch in share) == whole
    assert [i for batch in whole for _, i in batch] == list(range(n))


def test_images_depend_on_their_address_and_not_on_workers() -> None:
    images = AugmentedImages(noise(), partial(partial, by_references, [jitter], 5))
    one, two = (
        [
            raw.images
            for (raw,) in make_loader(images, train_order(24, 8, 3, 0, 6), workers, pin=False)
        ]
        for workers in (0, 2)
    )
    assert len(one) == 6 and all(map(torch.equal, one, two))
    once, again = images[2, 7][0], images[2, 7][0]
    assert torch.equal(once, again) and not torch.equal(once, images[3, 7][0])


@pytest.mark.parametrize("lacking", ["locks", "room"])
def test_without_shared_memory_the_same_batches_come(lacking, monkeypatch, caplog) -> None:
    """Workers need it for their locks (without: no workers) and batches (without: a pipe)."""

    def full(*_):
        raise (
            RuntimeError("unable to allocate shared memory")
            if lacking == "room"
            else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        )

    images = AugmentedImages(noise(), partial(partial, by_references, [jitter], 5))
    order = list(train_order(24, 8, 3, 0, 6))
    expected = [raw.images for (raw,) in make_loader(images, order, 0, pin=False)]
    if lacking == "room":
        monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    else:
        monkeypatch.setattr(multiprocessing, "Queue", full)
    found = [raw.images for (raw,) in make_loader(images, order, 2, pin=False)]
    assert len(found) == 6 and all(map(torch.equal, expected, found))
    assert ("--shm-size" in caplog.text) == (lacking == "locks")


PLUGIN = """
from dataclasses import dataclass, field
import numpy as np
from PIL import Image
from vision_tutorial.core.registry import augments, datasets

@dataclass(frozen=True)
class Squares:
    name: str = "squares"
    classes: tuple[str, ...] = ("a", "b")
    dense: bool = False
    targets: np.ndarray = field(default_factory=lambda: np.zeros(8, np.int64))

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return Image.new("RGB", (12, 12), (index, 2 * index, 100)), index % 2

@datasets.register
def squares(split: str, *, open: bool = True):
    if open:
        return Squares()
    class Hidden(Squares): pass
    return Hidden()

@augments.register
def darker(*, by: int = 10):
    return lambda image: image.point(lambda value: max(value - by, 0))
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_images_are_the_same_however_workers_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Entries of the recipe's own imports, too: a source, and a function inside a function."""
    for kind in (registry.augments, registry.datasets):
        monkeypatch.setattr(kind, "entries", dict(kind.entries))
    monkeypatch.setattr(loading, "IMPORTED", imported := {})
    monkeypatch.setattr(loader, "IMPORTED", imported)
    (tmp_path / "own.py").write_text(f"{PLUGIN}# {method}")  # a file runs once
    (tmp_path / "own.yaml").write_text(
        "imports: [own.py]\ndataset: squares\nmodel: test_resnet\nepochs: 1\nbatch_size: 4\n"
        "optimizer: {sgd: {lr: 0.1}}\n"
        "augment: [{random_resized_crop: {size: 8}}, darker, color_jitter]\n"
    )
    loaded = loading.load(tmp_path / "own.yaml")
    loading.import_files(loaded.imports, trusted=True)
    (tmp_path / "own.py").write_text("changed since: the workers get what ran here")
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        images = augmented_images(loaded.recipe, registry.datasets.build("squares")("train"))
        here, there = (
            [
                raw.images
                for (raw,) in make_loader(images, train_order(8, 4, 3, 0, 4), workers, False)
            ]
            for workers in (0, 1)
        )
        assert len(here) == 4 and all(map(torch.equal, here, there))
        hidden = registry.datasets.build("squares", open=False)("train")
        bad = augmented_images(loaded.recipe, hidden)
        if method != "fork":
            with pytest.raises(UserError, match="squares: cannot be sent to .*top level of their"):
                next(make_loader(bad, eval_order(8, 4), 1, pin=False))
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(b"half")
    source = FileSource("mine", [path], np.zeros(1), ("a",))
    images = AugmentedImages(source, partial(partial, by_references, [], 0))
    with pytest.raises(UserError, match=r"mine, image 0: .*half\.jpg") as caught:
        list(make_loader(images, eval_order(1, 1), workers, pin=False))
    assert "Traceback" not in str(caught.value)


def test_copies_share_the_frame_and_differ_in_the_rest() -> None:
    one = noise()[3][0]
    images = by_references([ImageOps.mirror], 5, one, (0, 3), 2, [jitter])
    assert torch.equal(images[0], by_references([ImageOps.mirror], 5, one, (0, 3)))
    shifts = [(images[k].int() - images[0].int()).remainder(256).unique().tolist() for k in (1, 2)]
    assert shifts[0] != shifts[1] and all(len(shift) == 1 for shift in shifts)
