"""Each option of each entry at its boundaries, on a tiny training: it trains, or it is refused in
one line. No traceback.

A sample here. VISION_TUTORIAL_ALL_OPTIONS=0/1 tries all and prints the counts, 0/4 each fourth.
"""

import contextlib
import gc
import io
import itertools
import json
import os
import random
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_runs import DEBUG
from timm.optim import get_optimizer_info, list_optimizers

from vision_tutorial import train
from vision_tutorial.core import errors
from vision_tutorial.recipe.fields import plain_defaults
from vision_tutorial.recipe.signatures import REQUIRED, Entry, static_signatures

ALL = os.environ.get("VISION_TUTORIAL_ALL_OPTIONS")
SAMPLE = 60
LONGEST = 5.0  # seconds of one try; what takes longer is slow, not wrong
NUMBERS = [0, 1, -1, 3, 0.5, -0.5, 1e-8, 1e-320, 1e300, -1e300, 10**9, -(10**9), 2**63]
OTHERS = [None, True, False, "", "x", "1", [], [0], [1, 2, 3], [0.5, 1e300], [0.0, 0.0], {}, ["x"]]
VALUES = [*NUMBERS, *OTHERS]
GIVEN = {  # what an entry needs
    "lr": 0.1, "milestones": [1], "gamma": 0.5, "size": 8, "limit": 10.0, "width": 2,
    "scale": [0.5, 1.0], "backbone": "test_resnet", "encoder": "resnet18", "p": 0.5,
}  # fmt: skip
SHAPES = {"train": 8, "test": 4, "size": 16}
MASKS = {"dataset": {"shapes": {**SHAPES, "masks": True}}, "task": "segmentation"}
MASKS |= {"model": {"fcn": {"backbone": "test_resnet"}}, "batch_size": 2}


class Slow(BaseException):
    """A try takes too long."""


def words(changes: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def base(registry: str) -> dict[str, Any]:
    """The tiny recipe in which an entry of a registry is tried."""
    plain = {"dataset": {"shapes": SHAPES}, "augment": [], "mix": None, "loss": "cross_entropy"}
    plain |= {"batch_size": 4, "eval_batch_size": 4, "epochs": 1, "warmup": {}, "threads": 1}
    plain |= {"model": {"test_resnet": {"stem": "cifar"}}, "expects": {}}
    return plain | (MASKS if registry == "refiners" else {})


def entries() -> Iterator[tuple[str, str, Entry]]:
    """Registry, name, entry; of timm's optimizers one of each class that is here."""
    for registry, known in static_signatures().items():
        for name, entry in known.entries.items():
            yield registry, name, entry
        names = ["test_resnet", "test_vit"] if registry == "models" else []
        if registry == "optimizers":
            classes = {get_optimizer_info(n).opt_class: n for n in list_optimizers()}
            names = [name for kind, name in classes.items() if not isinstance(kind, str)]
        for name in names:
            yield registry, name, known.find(name)


def tries(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A title, and what is changed in the tiny recipe."""
    keys = {"losses": "loss", "augments": "augment", "mixers": "mix", "refiners": "refine"}
    for registry, name, entry in entries():
        key = keys.get(registry, registry.removesuffix("s"))
        form = {"augment": lambda given: [given], "refine": lambda given: [given]}.get(key, dict)
        needed = {
            k: GIVEN[k] for k, (_, d) in entry.options.items() if d is REQUIRED and k in GIVEN
        }
        if registry == "datasets" and "root" in entry.options:
            needed["root"] = str(folder)
        more = base(registry)
        if registry == "models" and entry.prefix != "":
            more |= MASKS
            needed |= {"backbone": "test_resnet"} if "backbone" in entry.options else {}
        for option, value in itertools.product(entry.options, VALUES):
            changed = {**needed, option: value}
            if registry == "datasets" and name != "shapes" and option == "root":
                changed |= {"root": value}
            yield f"{key}.{name}.{option}={value!r}", more | {key: form({name: changed})}
    for key, default in plain_defaults().items():
        inner = default if isinstance(default, dict) else {}
        for option, value in itertools.product([None, *inner], VALUES):
            changed = value if option is None else {**inner, option: value}
            yield f"{key}.{option}={value!r}", base("") | {key: changed}


def outcome(changes: dict[str, Any], runs: Path, heard: list[str] | None = None) -> str:
    """`exit N`, `slow`, or a traceback's last lines; of what is refused, one printable line, which
    `heard` gets."""

    def late(*_: Any) -> None:
        raise Slow

    signal.signal(signal.SIGALRM, late)
    out, err = io.StringIO(), io.StringIO()
    try:
        signal.setitimer(signal.ITIMER_REAL, LONGEST, LONGEST)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = train.main([DEBUG[0], *words(changes), "--runs", str(runs), "--steps", "3"])
    except Slow:
        return "slow"
    except BaseException as error:
        return "TRACEBACK " + "".join(traceback.format_exception(error)[-3:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        shutil.rmtree(runs, ignore_errors=True)
    said = [] if heard is None else heard
    said += [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    if code and (len(said) != 1 or not said[0].isprintable() or len(said[0]) > 1500):
        return f"UNCLEAR {err.getvalue()!r}"
    return f"exit {code}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a few image files."""
    made = tmp_path_factory.mktemp("images")
    for split, label in itertools.product(("train", "test", "val"), "ab"):
        (made / split / label).mkdir(parents=True)
        for n in range(4):
            image = Image.new("RGB", (16, 16), (60 * n, 0, 255 * (label == "a")))
            image.save(made / split / label / f"{n}.png")
    return made


def test_every_option_trains_or_is_refused(folder, tmp_path, monkeypatch, repository):
    monkeypatch.chdir(repository)
    found = list(tries(folder))
    if ALL:
        part, parts = map(int, ALL.split("/"))
        found = found[part::parts]
    else:
        found = random.Random(12).sample(found, SAMPLE)
    gc.freeze()  # of which each training collects anew
    counts, bad = Counter[str](), []
    for title, changes in found:
        began = time.monotonic()
        with torch.compiler.set_stance("force_eager"):  # Kron would compile for a minute
            said = outcome(changes, tmp_path / "runs")
        counts[said.split(" ", 1)[0] if said[0] in "TU" else said] += 1
        if said[0] in "TU":
            bad.append(f"{title}: {said}")
        if ALL and (said[0] in "TUs" or time.monotonic() - began > 3):
            print(f"{title}: {said} ({time.monotonic() - began:.1f} s)", flush=True)
    print(len(found), dict(counts))
    gc.unfreeze()
    assert not bad, f"{len(bad)} of {len(found)}:\n" + "\n".join(bad[:20])


@pytest.mark.parametrize(
    "key, given, message",
    [
        ("optimizer", {"adahessian": {"lr": 0.1, "n_samples": 10**6}}, "not done after 1.5 s of"),
        ("optimizer", {"muon": {"lr": 0.1, "ns_steps": 10**9}}, "ns_steps is 1000000000; a number"),
        ("model", {"test_vit": {"depth": 10**5}}, "not done after 1.5 s of computing"),
        ("model", {"test_vit": {"depth": 10**9}}, "depth is 1000000000; a number in [-1000000,"),
    ],
)
def test_what_would_never_end_is_refused(key, given, message, tmp_path, monkeypatch, repository):
    monkeypatch.chdir(repository)
    monkeypatch.setattr(errors, "LONGEST_TRY", 1.5)
    monkeypatch.setitem(globals(), "LONGEST", 60.0)  # by the clock, on a busy machine
    said = outcome(base("") | {key: given}, tmp_path / "runs", heard := [])
    assert said == "exit 2" and f"error: {key}.{next(iter(given))}: {message}" in heard[0]


def test_the_limit_outlives_a_callback_that_swallows_it(monkeypatch, capfd):
    def busy(*_: Any) -> None:  # a callback of the garbage collector, as torch has one
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass

    monkeypatch.setattr(errors, "LONGEST_TRY", 0.1)
    gc.callbacks.append(busy)
    try:
        with (
            pytest.raises(errors.UserError, match="not done after 0.1 s"),
            errors.trying("model.x"),
        ):
            gc.collect()
            while True:
                pass
    finally:
        gc.callbacks.remove(busy)
    assert capfd.readouterr().err == ""
