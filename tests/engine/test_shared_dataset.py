"""A data set exists once on a machine: equal pixels, one memory, errors on all, nothing left."""

import errno
import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import Ranks, run_ranks

from vision_tutorial import build, train
from vision_tutorial.commands import evaluate
from vision_tutorial.core.errors import PeerLost, UserError
from vision_tutorial.core.sources import ArraySource, FileSource
from vision_tutorial.engine import Distributed
from vision_tutorial.recipe.loading import load

SMALL = "dataset={shapes: {train: 64, test: 30, size: 16}}"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, to see what is left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def toy() -> ArraySource:
    rng = np.random.default_rng(os.getpid())  # whoever reads, reads something else
    images = rng.integers(0, 256, (50, 8, 8, 3), np.uint8)
    masks = rng.integers(0, 3, (50, 8, 8), np.uint8)
    return ArraySource("toy", images, np.arange(50) % 5, tuple("abcde"), masks)


def mapping(array: np.ndarray) -> tuple[str, str]:
    """(device, inode) of the file behind an array, and whether others see what is written there."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, _, device, inode = line.split()[:5]
        low, high = (int(word, 16) for word in span.split("-"))
        if low <= address < high:
            assert permissions == "r--s", permissions
            return device, inode
    raise AssertionError("not mapped")


def on_machine(rank: int, size: int) -> None:
    """Say that ranks are dealt to machines of `size` processes."""
    os.environ |= {"LOCAL_RANK": str(rank % size), "LOCAL_WORLD_SIZE": str(size)}


@pytest.mark.parametrize("world, machine", [(2, 2), (4, 2)])
def test_one_memory_and_equal_pixels(world: int, machine: int, temporary: Path) -> None:
    def rank_of(rank: int) -> tuple:
        on_machine(rank, machine)
        distributed = Distributed()
        reads: list[int] = []
        source = distributed.share_dataset(lambda: reads.append(1) or toy())
        distributed.sum(np_ones())  # nobody leaves before all have looked
        assert source.name == "toy" and source.classes == tuple("abcde")
        assert source.targets.flags.writeable and not source.images.flags.writeable
        found = (source.digest(), mapping(source.images), mapping(source.masks), len(reads))
        assert distributed.notice is None
        distributed.sum(np_ones())
        return found

    found = run_ranks(world, rank_of)
    for first in range(0, world, machine):
        here = found[first : first + machine]
        assert len({row[:3] for row in here}) == 1, "one digest, one file"
        assert [row[3] for row in here] == [1] + [0] * (machine - 1), "only the first reads"
    assert len({row[:3] for row in found}) == world // machine
    assert not list(temporary.iterdir())


def np_ones() -> Any:
    import torch

    return torch.ones(1)


def test_masks_stay_the_targets() -> None:
    def rank_of(rank: int) -> tuple:
        source = replace(toy(), dense=True, keys=tuple(f"{i}.jpg" for i in range(50)))
        distributed = Distributed()
        mine = distributed.share_dataset(lambda: source)
        image, mask = mine[7]
        distributed.sum(np_ones())
        return mine.dense, mine.key(7), mask.tobytes(), mapping(mine.masks)

    one, two = run_ranks(2, rank_of)
    assert one == two and one[:2] == (True, "7.jpg")


def test_what_lies_in_files_is_read_by_each(tmp_path: Path, temporary: Path) -> None:
    from vision_tutorial.core import arrays

    arrays.write(tmp_path / "set", "toy", {"train": toy()})

    def rank_of(rank: int) -> tuple:
        distributed = Distributed()
        files = distributed.share_dataset(
            lambda: FileSource("files", [Path(f"{rank}.png")], np.zeros(1, np.int64), ("x",))
        )
        mapped = distributed.share_dataset(lambda: arrays.load(tmp_path / "set", "train"))
        inode = mapping(mapped.images)
        distributed.sum(np_ones())
        return str(files.paths[0]), inode

    (one, here), (two, there) = run_ranks(2, rank_of)
    assert (one, two) == ("0.png", "1.png") and here == there
    assert not list(temporary.iterdir())


def test_without_room_each_has_its_own_and_says_so(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)

    def rank_of(rank: int) -> tuple:
        distributed = Distributed()
        source = distributed.share_dataset(toy)
        return type(source.images) is np.ndarray, distributed.notice

    for own, notice in run_ranks(2, rank_of):
        assert own and "each process holds its own copy of the data set (0 MiB)" in notice
        assert "No space left" in notice and "TMPDIR" in notice
    assert not list(temporary.iterdir())


def test_a_process_that_cannot_see_the_folder_reads_for_itself(temporary: Path) -> None:
    def rank_of(rank: int) -> bool:
        if rank == 1:
            np.load = lambda path, **_: missing(path)
        source = Distributed().share_dataset(toy)
        return isinstance(source.images, np.memmap)

    def missing(path: Path) -> None:
        raise FileNotFoundError(f"no {path}")

    assert run_ranks(3, rank_of) == [True, False, True]
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("world, machine", [(4, 2)])
@pytest.mark.parametrize("wrong", [0, 1])
def test_an_error_of_one_is_everybodys(world: int, machine: int, wrong: int) -> None:
    """`wrong`: the first process of the first machine, or a later one that reads for itself."""

    def rank_of(rank: int) -> tuple:
        on_machine(rank, machine)
        distributed = Distributed()

        def read() -> FileSource:
            if rank == wrong:
                raise UserError(f"rank {rank}: no such data")
            return FileSource("files", [], np.zeros(0, np.int64), ("x",))

        try:
            distributed.share_dataset(read)
        except UserError as error:
            return type(error), str(error), error.said
        raise AssertionError("no error")

    for rank, (kind, text, said) in enumerate(run_ranks(world, rank_of)):
        assert kind is UserError and text == f"rank {wrong}: no such data"
        assert said == (rank != wrong)


def test_a_bug_of_the_first_is_a_lost_peer_for_the_others() -> None:
    def rank_of(rank: int) -> str:
        def read() -> ArraySource:
            raise ZeroDivisionError("a student's own data set")

        try:
            Distributed().share_dataset(read)
        except PeerLost as error:
            return str(error)
        except ZeroDivisionError:
            return "its own"
        return "none"

    said = "process 0 failed: ZeroDivisionError: a student's own data set"
    assert run_ranks(2, rank_of) == ["its own", said]


def test_reading_may_outlast_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from vision_tutorial.engine import distributed as module

    monkeypatch.setattr(module, "PATIENCE", 0.05)

    def rank_of(rank: int) -> str:
        signs: list[bool] = []
        distributed = Distributed()
        real = distributed.any
        distributed.any = lambda flag: signs.append(flag) or real(flag)
        source = distributed.share_dataset(lambda: time.sleep(0.5) or toy())
        assert len(signs) > 5, "the others were told that it goes on"
        return source.digest()

    assert len(set(run_ranks(2, rank_of))) == 1


def test_a_kill_after_the_start_leaves_nothing(temporary: Path) -> None:
    import time

    def rank_of(rank: int) -> None:
        Distributed().share_dataset(toy)
        (temporary.parent / f"ready-{rank}").touch()
        time.sleep(60)

    ranks = Ranks(2, rank_of, quiet=True)
    end = time.monotonic() + 60
    while len(list(temporary.parent.glob("ready-*"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    ranks.kill(signal.SIGKILL)
    assert ranks.join() == [-signal.SIGKILL] * 2
    assert len(list(temporary.parent.glob("ready-*"))) == 2 and not list(temporary.iterdir())


# -- through the commands --------------------------------------------------------------------------


def test_every_split_is_shared(temporary: Path) -> None:
    recipe = load("recipes/debug.yaml", [SMALL, "holdout=0.25", "subset=20"]).recipe

    def rank_of(rank: int) -> tuple:
        distributed = Distributed()
        both = build.data(recipe, distributed)
        test = build.split(recipe, "test", distributed)
        bases = (both.train.source.source, both.val.source, test)
        found = [both.train.digest(), both.val.digest(), test.digest()]
        found += [mapping(source.images) for source in bases]
        distributed.sum(np_ones())
        return tuple(found)

    one, two = run_ranks(2, rank_of)
    assert one == two
    both = build.data(recipe)
    assert one[:2] == (both.train.digest(), both.val.digest())
    assert not list(temporary.iterdir())


def test_a_missing_data_set_is_one_line_in_all(tmp_path: Path, capfd: Any) -> None:
    words = ["recipes/debug.yaml", f"dataset={{cifar10: {{root: {tmp_path}}}}}", "threads=1"]
    words += ["--runs", str(tmp_path / "runs")]
    assert Ranks(2, lambda rank: train.main(words)).join() == [2, 2]
    _, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: cifar10: no "), err
    (status,) = tmp_path.glob("runs/debug/*/status.json")
    assert '"exit_code": 2' in status.read_text() and "cifar10: no" in status.read_text()


def test_training_and_evaluation_share(tmp_path: Path, temporary: Path, capfd: Any) -> None:
    words = ["recipes/debug.yaml", SMALL, "threads=1", "epochs=1", "batch_size=16"]
    words += ["--runs", str(tmp_path / "runs")]
    assert Ranks(2, lambda rank: train.main(words)).join() == [0, 0], capfd.readouterr().err
    (run,) = tmp_path.glob("runs/debug/*")
    assert Ranks(2, lambda rank: evaluate.main([str(run), "--json"])).join() == [0, 0]
    assert not [path for path in temporary.iterdir() if path.name.startswith("vision-tutorial")]
