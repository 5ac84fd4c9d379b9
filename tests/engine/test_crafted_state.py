"""A checkpoint with right digests whose state no training saved is passed over; no traceback."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs

from vision_tutorial import train
from vision_tutorial.engine import checkpoint

LAST = "step-00000004"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with a checkpoint of each."""
    words = [*small_runs.DEBUG, small_runs.shapes(32), "epochs=2", "optimizer={adamw: {lr: 0.01}}"]
    return small_runs.train(tmp_path_factory.mktemp("runs"), *words)


def crafted(run: Path, file: str, content: bytes) -> None:
    """Write a file of the last checkpoint, and a manifest that vouches for it."""
    folder = run / "ckpt" / LAST
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    del manifest["sha256"]
    if file == checkpoint.MANIFEST:
        manifest |= json.loads(content)
        manifest = {key: value for key, value in manifest.items() if value != "gone"}
    else:
        (folder / file).write_bytes(content)
        manifest["files"][file] = {"bytes": 1, "sha256": hashlib.sha256(content).hexdigest()}
    (folder / checkpoint.MANIFEST).write_bytes(checkpoint._seal(manifest))


def at(*path: Any, value: Any) -> Callable[[dict], Any]:
    """A change of the state: `value` under `path`; `...` takes the key away."""

    def change(state: dict) -> dict:
        inner = state
        for key in path[:-1]:
            inner = inner[key]
        if value is ...:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        return state

    return change


def entries(state: dict) -> list:
    """[index of a parameter, {name: tensor}] of each; packed twice, so with a `$dict` around."""
    return state["optimizer"]["state"]["$dict"][0][1]


def tensor(name: str, *stride: int) -> dict:
    return {"$dict": [["$tensor", name], ["stride", {"$tuple": stride}]]}


P = "progress"
STATES = {
    "a list": lambda state: [],
    "text": lambda state: "x",
    "nothing": lambda state: {},
    "no progress": at(P, value=...),
    "progress is a number": at(P, value=3),
    "a key too many": at(P, "more", value=1),
    "a key is missing": at(P, "step", value=...),
    "step is text": at(P, "step", value="4"),
    "step is negative": at(P, "step", value=-4),
    "step is huge": at(P, "step", value=10**40),
    "step of another checkpoint": at(P, "step", value=3),
    "rows are none": at(P, "rows", value=[1, "x", None]),
    "rows of no epoch": at(P, "rows", 0, value={"epoch": 7}),
    "a cell is a list": at(P, "rows", 0, "val/top1", value=[1]),
    "uneven table": at(P, "table", value={"class": ["a"], "top1": [1.0, 2.0]}),
    "seconds are not a number": at(P, "seconds", value={"$float": "nan"}),
    "no optimizer": at("optimizer", value=None),
    "an empty optimizer": at("optimizer", value={}),
    "no such tensor": lambda s: (entries(s)[0][1].update(exp_avg=tensor("x", 1)), s)[1],
    "a number for a tensor": lambda s: (entries(s)[0][1].update(exp_avg=5), s)[1],
    "a moment is missing": lambda s: (entries(s)[0][1].pop("exp_avg_sq"), s)[1],
    "a key is a list": lambda s: (entries(s)[0].__setitem__(0, [1]), s)[1],
    "pairs of three": lambda s: (entries(s)[0].append(1), s)[1],
    "no dtype": at("optimizer", "x", value={"$dtype": "save"}),
    "groups are text": at("optimizer", "param_groups", value="x"),
    "an empty group": at("optimizer", "param_groups", value=[{}]),
    "a scaler of text": at("scaler", value={"scale": "x"}),
}
BYTES = {
    "deep": b"[" * 100_000,
    "no JSON": b"\xff",
    "too many digits": b"1" * 5000,
    "another shape": None,
    "strides of a terabyte": None,
}
MANIFESTS = {
    "no step": b'{"step": "gone"}',
    "a file elsewhere": b'{"files": {"../../recipe.yaml": {"sha256": "0"}}}',
    "no state": b'{"files": {}}',
    "best elsewhere": b'{"best": "../.."}',
    "no hash": b'{"recipe_hash": "gone"}',
}


def content_of(name: str, state: dict) -> bytes:
    first, last = entries(state)[0][1], entries(state)[-1][1]
    if name == "another shape":  # those of another parameter
        first["exp_avg"] = last["exp_avg"]
    elif name == "strides of a terabyte":
        size = len(last["exp_avg"]["$dict"][1][1]["$tuple"])
        last["exp_avg"] = tensor(f"state.{entries(state)[-1][0]}.exp_avg", *[2**38] * size)
    made = STATES[name](state) if name in STATES else state
    return BYTES.get(name) or json.dumps(made).encode()


@pytest.mark.parametrize("name", [*STATES, *BYTES, *MANIFESTS])
def test_a_crafted_checkpoint_is_passed_over(finished, tmp_path, capsys, name):
    run = Path(shutil.copytree(finished, tmp_path / "debug" / "run"))
    file = checkpoint.MANIFEST if name in MANIFESTS else checkpoint.STATE
    state = json.loads((run / "ckpt" / LAST / checkpoint.STATE).read_text())
    crafted(run, file, MANIFESTS[name] if name in MANIFESTS else content_of(name, state))
    assert train.main([str(run)]) == 0
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if "is damaged" in line)
    assert LAST in line and line.isprintable() and len(line) < 500
    assert "continuing at step 2 of 4" in said
    last = max(json.loads(x)["epoch"] for x in (run / "metrics.jsonl").read_text().splitlines())
    assert last == 2 and json.loads((run / "status.json").read_text())["status"] == "done"
