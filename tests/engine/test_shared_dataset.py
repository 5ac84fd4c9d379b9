"""A data set exists once on a machine: equal pixels, one memory, errors on all, nothing left."""

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Ranks, run_ranks

from vision_tutorial import train
from vision_tutorial.core import arrays
from vision_tutorial.core.errors import PeerLost, UserError
from vision_tutorial.core.sources import ArraySource, FileSource
from vision_tutorial.engine import Distributed
from vision_tutorial.engine import distributed as distributed_module

SMALL = "dataset={shapes: {train: 64, test: 30, size: 16}}"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A temporary folder of the test's own, in which nothing is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir())


def toy() -> ArraySource:
    rng = np.random.default_rng(os.getpid())  # whoever reads, reads something else
    images = rng.integers(0, 256, (50, 8, 8, 3), np.uint8)
    masks = rng.integers(0, 3, (50, 8, 8), np.uint8)
    keys = tuple(f"{i}.jpg" for i in range(50))
    targets, classes = np.arange(50) % 5, tuple("abcde")
    return ArraySource("toy", images, targets, classes, masks, dense=True, keys=keys)


def share(rank: int) -> tuple[ArraySource, Distributed, int]:
    """What a process is given, and how often it read."""
    distributed, reads = Distributed(), []
    source = distributed.share_dataset(lambda: reads.append(1) or toy())
    distributed.sum(torch.ones(1))  # nobody leaves before all have attached
    return source, distributed, len(reads)


def test_one_memory_and_equal_pixels() -> None:
    world, machine = 4, 2

    def rank_of(rank: int) -> tuple:
        os.environ |= {"LOCAL_RANK": str(rank % machine), "LOCAL_WORLD_SIZE": str(machine)}
        os.environ["OMP_NUM_THREADS"] = "4,2"  # for nested loops; accelerate reads one number
        source, distributed, reads = share(rank)
        assert source.classes == tuple("abcde") and source.dense and source.key(7) == "7.jpg"
        assert np.array_equal(source[7][1], source.masks[7]) and distributed.notice is None
        assert source.targets.flags.writeable and not source.images.flags.writeable
        assert isinstance(source.images, np.memmap) and isinstance(source.masks, np.memmap)
        return source.digest(), source.images.filename, source.masks.filename, reads

    found = run_ranks(world, rank_of)
    for first in range(0, world, machine):
        here = found[first : first + machine]
        assert len({row[:3] for row in here}) == 1, "one digest, one file"
        assert [row[3] for row in here] == [1, 0], "only the first reads"
    assert len({row[:3] for row in found}) == world // machine


def test_what_lies_in_files_is_read_by_each(tmp_path: Path) -> None:
    arrays.write(tmp_path / "set", "toy", {"train": toy()})

    def rank_of(rank: int) -> str:
        source = Distributed().share_dataset(lambda: arrays.load(tmp_path / "set", "train"))
        return str(source.images.filename)

    assert set(run_ranks(2, rank_of)) == {str(tmp_path / "set" / "train" / "images.npy")}


def test_without_room_each_has_its_own_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)

    def rank_of(rank: int) -> tuple:
        source, distributed, reads = share(rank)
        return type(source.images) is np.ndarray and reads == 1, distributed.notice

    for own, notice in run_ranks(2, rank_of):
        assert own and "each process holds its own copy of the data set (0 MiB)" in notice
        assert "No space left" in notice and "TMPDIR" in notice


def test_a_process_that_cannot_see_the_folder_reads_for_itself() -> None:
    def rank_of(rank: int) -> bool:
        if rank == 1:
            np.memmap.__new__ = missing
        return isinstance(share(rank)[0].images, np.memmap)

    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("no such folder here")

    assert run_ranks(3, rank_of) == [True, False, True]


@pytest.mark.parametrize(
    "wrong, error, told",  # the first process, or a later one that reads for itself
    [
        (1, UserError("no such data"), "no such data"),
        (0, ZeroDivisionError("a bug"), "process 0 failed: ZeroDivisionError: a bug"),
    ],
)
def test_an_error_of_one_is_everybodys(wrong: int, error: Exception, told: str) -> None:
    def rank_of(rank: int) -> tuple:
        def read() -> FileSource:
            if rank == wrong:
                raise error
            return FileSource("files", [Path("x.png")], np.zeros(1, np.int64), ("x",))

        try:
            Distributed().share_dataset(read)
        except Exception as caught:
            return type(caught), str(caught), getattr(caught, "said", False)

    found = run_ranks(2, rank_of)
    kind = type(error) if type(error) is UserError else PeerLost
    assert found[wrong] == (type(error), str(error), False)
    assert found[1 - wrong] == (kind, told, True)


def test_reading_may_outlast_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed_module, "PATIENCE", 0.05)
    real = Distributed.any

    def rank_of(rank: int) -> str:
        signs: list[bool] = []
        monkeypatch.setattr(Distributed, "any", lambda *given: signs.append(1) or real(*given))
        source = Distributed().share_dataset(lambda: time.sleep(0.5) or toy())
        assert len(signs) > 5, "the others were told that it goes on"
        return source.digest()

    assert len(set(run_ranks(2, rank_of))) == 1


def test_a_missing_data_set_is_one_line_in_all(tmp_path: Path, capfd: Any) -> None:
    words = ["recipes/debug.yaml", f"dataset={{cifar10: {{root: {tmp_path}}}}}", "threads=1"]
    words += ["--runs", str(tmp_path / "runs")]
    assert Ranks(2, lambda rank: train.main(words)).join() == [2, 2]
    _, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: cifar10: no "), err
    assert not (tmp_path / "runs").exists()
