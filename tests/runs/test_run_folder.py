"""The run folder: whole files, one owner, strict JSON, no secrets."""

import errno
import itertools
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_tutorial.core.atomic import read_json, storage, write_json
from vision_tutorial.core.errors import ExitCode, StorageError, UserError
from vision_tutorial.runs import fingerprint, run_folder
from vision_tutorial.runs.redaction import REDACTED, redact, secrets

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """Waiting for the real disk proves nothing here, and takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def in_child(work, *, expect=0):
    """Run `work` in a forked process, which ends without pytest's ways out."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(99)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == expect


def test_json_is_strict_and_round_trips(tmp_path):
    value = {"a": 1, 2: [math.nan, math.inf, 0.1], "n": np.float32(0.5), "i": np.int64(7)}
    write_json(tmp_path / "x.json", {**value, "p": Path("a/b"), "t": (True, None)})
    text = (tmp_path / "x.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    expected = {"a": 1, "2": [None, None, 0.1], "n": 0.5, "i": 7, "p": "a/b", "t": [True, None]}
    assert read_json(tmp_path / "x.json") == expected
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_crash_at_any_call_leaves_the_old_text_or_the_new(tmp_path):
    path, calls, seen = tmp_path / "x.json", itertools.count(1), set()

    def write(k):
        def counted(call, *arguments, **options):
            if next(calls) == k:
                os._exit(7)
            return call(*arguments, **options)

        for name in ("write", "fsync", "replace", "open", "close"):
            setattr(os, name, partial(counted, getattr(os, name)))
        run_folder.write_text(path, "new")
        os._exit(8)

    for k in range(1, 20):
        run_folder.write_text(path, "old")
        child = os.fork()
        if child == 0:
            write(k)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seen.add(path.read_text())
        if code == 8:
            break
    assert code == 8 and k > 7 and seen == {"old", "new"}


def test_a_full_disk_keeps_the_old_file_and_leaves_no_half_row(tmp_path):
    rows = tmp_path / "metrics.jsonl"
    run_folder.write_text(tmp_path / "x", "old")
    run_folder.append_row(rows, {"epoch": 1})

    def full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
        with pytest.raises(StorageError, match=r"x: File too large. Choose") as caught:
            run_folder.write_text(tmp_path / "x", "n" * 200)
        assert caught.value.code == ExitCode.STORAGE
        with pytest.raises(StorageError):
            run_folder.append_row(rows, {"epoch": 2, "text": "x" * 100})

    in_child(full_disk)
    run_folder.append_row(rows, {"epoch": 3})
    assert [row["epoch"] for row in run_folder.read_rows(rows)] == [1, 3]
    assert (tmp_path / "x").read_text() == "old" and len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize(
    "number, said",
    [
        (errno.ENOSPC, r"No space left on device \([\d.]+ GiB free there\). Make room, or choose"),
        (errno.EDQUOT, r"Disk quota exceeded \([\d.]+ GiB free there\). Make room, or choose"),
        (errno.ELOOP, "Too many levels of symbolic links. Choose another folder."),
        (errno.EROFS, "Read-only file system. Choose another folder."),
    ],
)
def test_room_is_asked_for_where_room_is_what_lacks(number, said, tmp_path):
    with pytest.raises(StorageError, match=said), storage(tmp_path / "x"):
        raise OSError(number, os.strerror(number))


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ROWS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=4)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(0, 100))
def test_rows_round_trip_and_a_torn_end_costs_the_last_row_only(tmp_path_factory, rows, cut):
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    rows = [{k: None if v in (math.inf, -math.inf) else v for k, v in r.items()} for r in rows]
    half = len(rows) // 2
    run_folder.write_rows(path, rows[:half])
    for row in rows[half:]:
        run_folder.append_row(path, row)
    assert run_folder.read_rows(path) == rows
    assert run_folder.read_rows(path.with_name("none")) == []
    if rows:
        whole = path.read_bytes()
        path.write_bytes(whole[: -1 - cut % len(whole.split(b"\n")[-2] + b"\n")])
        assert run_folder.read_rows(path) == rows[:-1]
    path.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        run_folder.read_rows(path)


def test_ids_sort_by_time_and_are_unique_in_a_race(tmp_path, monkeypatch):
    class Stopped(run_folder.datetime.datetime):
        ticks = iter(range(1000))

        @classmethod
        def now(cls, zone=None):  # every moment is seen three times
            return cls(2026, 1, 1, microsecond=next(cls.ticks) // 3, tzinfo=zone)

    monkeypatch.setattr(run_folder.datetime, "datetime", Stopped)
    made = [run_folder.new_run(tmp_path, "r4") for _ in range(9)]
    assert made == sorted(set(made)) and all(run.is_dir() for run in made)


def test_names_stay_inside_the_root_and_a_taken_id_is_refused(tmp_path):
    for name in ("..", "a/b", "a\n", "x" * 65):
        with pytest.raises(UserError, match="cannot be the name of a recipe"):
            run_folder.new_run(tmp_path, name)
        with pytest.raises(UserError, match="cannot be the name of a run"):
            run_folder.new_run(tmp_path / "r", "r4", name)
    assert not os.listdir(tmp_path)
    assert run_folder.new_run(tmp_path, "r4", id="seed-1") == tmp_path / "r4" / "seed-1"
    assert run_folder.new_run(tmp_path, "r4", id="seed-1")  # nothing was written there
    (tmp_path / "r4" / "seed-1" / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match="already"):
        run_folder.new_run(tmp_path, "r4", id="seed-1")
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="is a file; a folder is expected"):
        run_folder.new_run(tmp_path / "runs", "r4")


def test_two_processes_cannot_hold_one_run(tmp_path):
    ready, ready_w = os.pipe()
    holder = os.fork()
    if holder == 0:
        with run_folder.lock(tmp_path):
            worker = os.fork()
            if worker:
                os.write(ready_w, str(worker).encode())
            signal.pause()
    worker = int(os.read(ready, 20))
    try:
        with pytest.raises(UserError, match=f"in use by process {holder} on .* since"):
            with run_folder.lock(tmp_path):
                pytest.fail("two hold it")
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        with run_folder.lock(tmp_path):  # released by death, though its loader worker lives
            assert f"process {os.getpid()} " in (tmp_path / "LOCK").read_text()
    finally:
        for process in (worker, holder):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def take():
        with run_folder.lock(tmp_path):
            pass

    in_child(take)  # released by the end of the block


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.lockf", MagicMock(side_effect=OSError(38, "not implemented")))
    with pytest.warns(UserWarning, match="one training at a time"), run_folder.lock(tmp_path):
        pass


def test_fingerprint_holds_no_secret_and_needs_no_torch():
    script = (
        "import json, sys; from vision_tutorial.runs import fingerprint as runs;"
        "print(json.dumps(runs.fingerprint(), allow_nan=False));"
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "WANDB_API_KEY": SECRET, "OMP_NUM_THREADS": "1", "MY_VAR": "mine"}
    environment["PYTHONPATH"] = str(Path(run_folder.__file__).parents[2])
    command = [sys.executable, "-c", script, "--api-key", "hush", f"x={SECRET}", "a b"]
    text = subprocess.check_output(command, env=environment, text=True)
    found = json.loads(text)
    assert SECRET not in text and "hush" not in text and "MY_VAR" not in text
    assert found["command"] == "-c --api-key [redacted] x=[redacted] 'a b'"
    assert found["environment"]["OMP_NUM_THREADS"] == "1"
    assert re.match(r"\d+\.\d+", found["versions"]["torch"]) and found["torch"] is None
    assert found["cpu"]["model"] and found["cpu"]["threads"] >= found["cpu"]["cores"] >= 1


def test_git_commit_and_changes(tmp_path, monkeypatch):
    def git(*arguments):
        names = ("-c", "user.name=t", "-c", "user.email=t")
        subprocess.run(["git", "-C", tmp_path, *names, *arguments], check=True, capture_output=True)

    (tmp_path / "__init__.py").write_text("")
    git("init")
    assert fingerprint._git(tmp_path) is None  # inside somebody's checkout, not part of it
    git("add", ".")
    git("commit", "-m", "x")
    clean = fingerprint._git(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", clean["commit"]) and clean["dirty"] is False
    (tmp_path / "__init__.py").write_text("x = 1")
    assert fingerprint._git(tmp_path) == {**clean, "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fingerprint._git(tmp_path) is None  # no git at all


def test_secrets_in_text():
    for text in (
        "WANDB_API_KEY=hunter2-x",
        "--wandb_token 'hunter2-x'",
        '{"password": "hunter2-x"}',
        "s3://key:p@hunter2-x@host",
        "https://host/?a=1&token=hunter2-x&b=2",
        "curl -H 'bearer hunter2-x'",
        *("ghp_hunter2-" + "a1" * 9, "hf_hunter2" + "a1" * 9, "sk-hunter2" + "a1" * 9),
    ):
        assert "hunter2" not in redact(text) and REDACTED in redact(text), text
    assert redact(f"see {'AKIA' + 'A1' * 8} there") == "see [redacted] there"
    for text in (
        "model.class_token=true",
        "tokens=5 tokenizer=bpe",
        "https://host/@user/x",
        "author: the secretary; passwords; key=3 monkey=4 basic recipe",
    ):
        assert redact(text) == text


def test_what_is_surely_a_secret():
    for text in (
        *("s3://key:hunter2@host/x", "https://host/x?token=hunter2", "/data/api_key=hunter2/x"),
        *("/data/hf_" + "aB" * 17, "/x/ghp_" + "a1" * 18, "sk-proj-" + "aB1" * 16),
    ):
        assert list(secrets({"dataset": {"x": [text]}})) == ["dataset.x.0"], text
    for text in (
        "/data/hf_datasets_cache_0123456789abcdef",
        "/data/hf_d41d8cd98f00b204e9800998ecf8427e",
        "/data/sk-learn-images-of-2024-large-and-small",
        "/data/my_token images/train",
        "/home/student/a-rather-long-name-of-a-folder/0123456789abcdef0123456789abcdef/x.pt",
    ):
        assert not list(secrets({"root": text})), text


def test_secrets_in_mappings_and_lists():
    value = {
        "wandb": {"api_key": "abc", "mode": "auto", "APIKey": ["a", "b"]},
        "vit": {"class_token": True, "token": None, "reg_tokens": 4},
        "argv": ["--token", "abc", "--token=abc", "--token", "-x", 3],
        "password": 1234,
    }
    assert redact(value) == {
        "wandb": {"api_key": REDACTED, "mode": "auto", "APIKey": REDACTED},
        "vit": {"class_token": True, "token": None, "reg_tokens": 4},
        "argv": ["--token", REDACTED, f"--token={REDACTED}", "--token", REDACTED, 3],
        "password": REDACTED,
    }


@settings(max_examples=30, deadline=None)
@given(st.text(), st.text(), st.text())
def test_the_environments_secrets_never_pass(before, after, key):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", SECRET)
        leaked = redact({key: [before + SECRET + after, {"x": SECRET}]})
        assert SECRET not in json.dumps(leaked)


@pytest.mark.parametrize("hostile", ["a=" * 30_000, "://" * 20_000, "token" * 12_000])
def test_redaction_is_quick_on_hostile_text(hostile):
    redact(hostile)  # quadratic patterns would hang here
