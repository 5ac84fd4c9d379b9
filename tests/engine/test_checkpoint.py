"""A checkpoint is whole or absent, whatever kills its writer; nothing damaged is ever loaded."""

import math
import os
import resource
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors import torch as safetensors
from torch import nn

from vision_tutorial.core.errors import ExitCode, NonFiniteError, StorageError, UserError
from vision_tutorial.engine import checkpoint, checkpoint_folder
from vision_tutorial.engine.checkpoint import Checkpoints
from vision_tutorial.engine.weights import load_weights, put_weights, weights_path

HASH = "a1b2"


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """Waiting for the real disk proves nothing here, and takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def tensors(step):
    torch.manual_seed(step)
    model = {"fc.weight": torch.randn(3, 4), "bn.count": torch.tensor(step), "none": torch.ones(0)}
    ema = {name: t.clone() for name, t in model.items()} | {"fc.weight": torch.randn(3, 4)}
    return {"model": model, "ema": ema, "optim": {"0.momentum": torch.randn(3, 4)}}


def state(step):
    return {"epoch": step, "rows": [{"val/top1": 0.1 * step, "x": float("inf")}], "betas": (0.9, 1)}


def make(run, **options):
    options.setdefault("say", lambda line: pytest.fail(f"unexpected: {line}"))
    return Checkpoints(run, HASH, **options)


def saved(run, *steps, best=(), **options):
    """A run with these steps saved."""
    checkpoints = make(run, **options)
    for step in steps:
        checkpoints.save(step, tensors(step), state(step), is_best=step in best)
    checkpoints.finish()
    return checkpoints


def best(run):
    return weights_path(run, "best")


def names(run):
    return sorted(path.name for path in (run / "ckpt").iterdir())


def assert_is(loaded, step):
    assert loaded.step == step and loaded.state == state(step)
    assert loaded.tensors.keys() == tensors(step).keys()
    for group, named in tensors(step).items():
        assert loaded.tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            other = loaded.tensors[group][name]
            assert other.dtype == tensor.dtype and torch.equal(other, tensor)


# -- saving and loading ----------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path):
    other = make(tmp_path, write=False)  # another process's: it reads and never writes
    assert make(tmp_path).load() is None
    (tmp_path / "ckpt" / ".tmp-00000001-1").mkdir(parents=True)
    assert make(tmp_path).load() is None
    other.save(1, tensors(1), state(1))
    other.finish()
    assert other.load() is None and names(tmp_path) == [".tmp-00000001-1"]
    saved(tmp_path, 1, 2)
    assert_is(make(tmp_path).load(), 2)
    assert_is(other.load(), 2)
    assert best(tmp_path) == weights_path(tmp_path, "last") == tmp_path / "ckpt" / "step-00000002"


def test_training_may_go_on_while_it_writes(tmp_path, monkeypatch):
    write, order = checkpoint_folder.write_folder, []

    def slow(*arguments):
        gate.wait()
        write(*arguments)
        order.append("written")

    gate = threading.Event()
    monkeypatch.setattr(checkpoint_folder, "write_folder", slow)
    checkpoints, live = make(tmp_path), tensors(1)
    checkpoints.save(1, live, state(1))
    for named in live.values():
        for tensor in named.values():
            tensor.zero_()  # the next step changes the weights in place
    order.append("trained")
    gate.set()
    checkpoints.wait()
    assert order == ["trained", "written"]
    assert_is(checkpoints.load(), 1)


class Odd(nn.Module):
    """Tied, channels_last, half precision, whole numbers, scalars, slices."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.randn(3).bfloat16())
        self.register_buffer("slice", torch.arange(10)[1::3])


def test_odd_tensors_round_trip(tmp_path):
    model, other = Odd(), Odd()
    model.norm(torch.randn(2, 4, 3, 3))
    checkpoints = make(tmp_path)
    checkpoints.save(1, {"model": model.state_dict()}, {})
    other.load_state_dict(checkpoints.load().tensors["model"])
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
        assert other.state_dict()[name].dtype == tensor.dtype
    assert other.two.weight is other.one.weight
    assert other.conv.weight.stride() == model.conv.weight.stride()


# -- what is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "expected"), [(1, [2, 6]), (4, [2, 3, 4, 5, 6])])
def test_the_last_ones_and_the_best_are_kept(tmp_path, keep, expected):
    saved(tmp_path, 1, 2, 3, 4, 5, 6, best=[1, 2], keep=keep)
    assert names(tmp_path) == ["best.json", *(f"step-{step:08d}" for step in expected)]
    assert best(tmp_path).name == "step-00000002"


def test_the_source_of_a_resume_is_kept_and_a_step_saved_again_has_its_own_folder(tmp_path):
    saved(tmp_path, 1, 2, best=[2])
    checkpoints = saved(tmp_path, 2)
    assert_is(checkpoints.load(), 2)
    assert checkpoints.source == "step-00000002.1"
    for step in (3, 4, 5):
        checkpoints.save(step, tensors(step), state(step))
    checkpoints.finish()
    kept = ["step-00000002.1", "step-00000004", "step-00000005"]
    assert names(tmp_path)[1:] == kept


def test_leftovers_of_the_dead_are_swept_when_saving(tmp_path):
    pids = {2**30, os.getpid(), os.getppid()}  # none is 2**30: a process id is at most 2**22
    for name in {f".tmp-00000009-{pid}" for pid in pids} | {".tmp-x"}:
        (tmp_path / "ckpt" / name / "inner").mkdir(parents=True)
    make(tmp_path).load()
    assert len(names(tmp_path)) == 4
    saved(tmp_path, 1)
    assert names(tmp_path) == [f".tmp-00000009-{os.getppid()}", "step-00000001"]


# -- crashes ---------------------------------------------------------------------------------------


class Fault:
    """Ends the process at the k-th call to the system.

    power "on": killed, the system lives on. "lost", "kept": power fails; gone are bytes and names
    that were not synced, and renames that were not are lost, or kept: a disk may do either.
    """

    CALLS = ("mkdir", "open", "write", "fsync", "rename", "replace", "unlink", "rmdir")

    def __init__(self, k, power):
        self.left, self.power = k, power
        self.real = {name: getattr(os, name) for name in self.CALLS}
        self.bytes: set[str] = set()
        self.names: set[str] = set()
        self.moves: list[tuple[str, str, bytes | None]] = []
        for name in self.CALLS:
            setattr(os, name, lambda *a, name=name, **o: self.call(name, *a, **o))

    def call(self, name, *arguments, **options):
        self.left -= 1
        if self.left == 0:
            if name == "write":
                self.real["write"](arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            self.die(7)
        if name in ("rename", "replace"):
            self.move(*map(os.fspath, arguments[:2]))
        result = self.real[name](*arguments, **options)
        if name == "mkdir" or (name == "open" and arguments[1] & os.O_CREAT):
            self.names.add(os.fspath(arguments[0]))
        elif name in ("write", "fsync"):
            path = os.readlink(f"/proc/self/fd/{arguments[0]}")
            self.bytes.add(path) if name == "write" else self.sync(path)
        return result

    def sync(self, path):
        self.bytes.discard(path)
        self.names = {name for name in self.names if os.path.dirname(name) != path}
        self.moves = [move for move in self.moves if os.path.dirname(move[1]) != path]

    def move(self, source, target):
        old = Path(target).read_bytes() if os.path.isfile(target) else None
        self.moves.append((source, target, old))
        for paths in (self.bytes, self.names):
            for path in [path for path in paths if (path + "/").startswith(source + "/")]:
                paths.remove(path)
                if path != source:  # the new name of source itself is what `moves` is about
                    paths.add(target + path[len(source) :])
                elif paths is self.bytes:
                    paths.add(target)

    def die(self, code):
        for name, call in self.real.items():
            setattr(os, name, call)
        if self.power != "on":
            for path in filter(os.path.isfile, self.bytes):
                os.truncate(path, os.path.getsize(path) // 2)
            for path in self.names:
                shutil.rmtree(path) if os.path.isdir(path) else Path(path).unlink(missing_ok=True)
        if self.power == "lost":
            for source, target, old in reversed(self.moves):
                if os.path.exists(target):
                    os.rename(target, source)
                if old is not None:
                    Path(target).write_bytes(old)
        os._exit(code)


def in_fork(function):
    """The exit code of a forked process: what `function` returns, 99 where it raises."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = function()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def crash_at(run, k, power, keep, is_best):
    """Resume, save step 4 and die: at the k-th call (true), or after all of them (false)."""

    def save():
        checkpoints = make(run, keep=keep)
        checkpoints.load()
        checkpoints.source = None  # the hardest case: nothing but `keep` protects step 3
        fault = Fault(k, power)
        checkpoints.save(4, tensors(4), state(4), is_best=is_best)
        checkpoints.finish()
        fault.die(8)

    code = in_fork(save)
    assert code in (7, 8)
    return code == 7


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux for names")


@needs_proc
@pytest.mark.parametrize(
    ("power", "keep", "is_best"),
    [("on", 1, True), ("lost", 1, False), ("kept", 2, True)],
)
def test_a_crash_at_every_call_leaves_the_old_or_the_new(tmp_path, power, keep, is_best):
    (tmp_path / "before").mkdir()
    saved(tmp_path / "before", 1, 2, 3, best=[2], keep=keep)
    seen, k, crashed = [], 0, True
    while crashed:
        k, run = k + 1, tmp_path / str(k + 1)
        shutil.copytree(tmp_path / "before", run)
        crashed = crash_at(run, k, power, keep, is_best)

        named_best = checkpoint_folder.verify(best(run))["step"]  # also before anything is repaired
        checkpoints = make(run, keep=keep)
        loaded = checkpoints.load()
        assert_is(loaded, loaded.step)
        seen.append(loaded.step)
        right_best = 4 if is_best and loaded.step == 4 else 2
        assert named_best in (2, right_best)
        assert checkpoint_folder.verify(best(run))["step"] == right_best
        for path in checkpoint_folder.candidates(run / "ckpt") if power != "lost" else ():
            checkpoint_folder.verify(path)  # a deletion does not leave half a checkpoint either

        checkpoints.save(5, tensors(5), state(5))  # and it goes on from there
        checkpoints.finish()
        assert_is(make(run).load(), 5)
        assert not [name for name in names(run) if name.startswith(".")]
        shutil.rmtree(run)
    assert k > 25 and seen == sorted(seen) and set(seen) == {3, 4} and seen[-1] == 4


@needs_proc
def test_the_first_checkpoint_survives_a_crash_or_never_was(tmp_path):
    k, crashed, seen = 0, True, []
    while crashed:
        k += 1
        run = tmp_path / str(k)
        run.mkdir()
        crashed = crash_at(run, k, "lost", 2, False)
        loaded = make(run).load()
        seen.append(loaded.step if loaded else 0)
    assert seen == sorted(seen) and set(seen) == {0, 4}


# -- failures --------------------------------------------------------------------------------------


def limit(size):
    """Let no file become larger, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_does_not_stop_training_at_once(tmp_path):
    def save():
        lines = []
        checkpoints = make(tmp_path, say=lines.append)
        limit(200)
        checkpoints.save(2, tensors(2), state(2))
        checkpoints.save(3, tensors(3), state(3))
        assert "File too large" in lines[0] and "failure 1 of 3" in lines[0]
        checkpoints.wait()
        assert names(tmp_path) == ["step-00000001"]  # no half-written folder stays
        limit(resource.RLIM_INFINITY)
        checkpoints.save(4, tensors(4), state(4))
        checkpoints.finish()
        assert checkpoints.failures == 0 and len(lines) == 2
        limit(200)
        for step in (5, 6, 7):
            checkpoints.save(step, tensors(step), state(step))
        with pytest.raises(StorageError, match="could not be saved") as caught:
            checkpoints.save(8, tensors(8), state(8))
        assert caught.value.code == ExitCode.STORAGE
        return 0

    saved(tmp_path, 1)
    assert in_fork(save) == 0
    assert_is(make(tmp_path).load(), 4)


@pytest.mark.parametrize(
    "error, told",
    [(checkpoint.SafetensorError("y"), StorageError), (TypeError("a mistake of ours"), TypeError)],
)
def test_the_last_save_must_succeed(tmp_path, monkeypatch, error, told):
    def fail(tensors):
        raise error

    monkeypatch.setattr(safetensors, "save", fail)
    lines = []
    checkpoints = make(tmp_path, say=lines.append)
    checkpoints.save(1, tensors(1), state(1))
    with pytest.raises(told):
        checkpoints.finish()
    assert len(lines) == (told is StorageError) and names(tmp_path) == []


def test_room_is_asked_for_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    monkeypatch.setattr(checkpoint_folder, "write_folder", None)
    checkpoints = make(tmp_path, say=lambda line: None)
    checkpoints.save(1, tensors(1), state(1))
    with pytest.raises(StorageError, match="1 MiB are free"):
        checkpoints.finish()


@pytest.mark.parametrize("group, value", [("model", -math.inf), ("ema", math.nan)])
def test_what_is_not_finite_is_never_saved(tmp_path, group, value):
    bad = tensors(2)
    next(iter(bad[group].values()))[1, 2] = value
    checkpoints = saved(tmp_path, 1)
    checkpoints.save(2, bad, state(2))
    with pytest.raises(NonFiniteError, match=f"step 2: {group} '.*' holds NaN") as caught:
        checkpoints.wait()
    assert caught.value.code == ExitCode.NON_FINITE
    assert names(tmp_path) == ["step-00000001"]


# -- damage ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    run = tmp_path_factory.mktemp("two")
    saved(run, 1, 2)
    return run


@pytest.mark.parametrize("name", ["MANIFEST.json", "model.safetensors", "state.json"])
def test_damage_to_any_byte_is_noticed(two, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(two, run)
    path = run / "ckpt" / "step-00000002" / name
    whole = path.read_bytes()
    flips = ((whole[:i], whole[i] ^ 1 << i % 8, whole[i + 1 :]) for i in range(len(whole)))
    damaged = [before + bytes([byte]) + after for before, byte, after in flips]
    damaged += [b"", whole[:-1], whole + b" ", b"[" * 50_000]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(checkpoint_folder.Damaged, match=name):
            checkpoint_folder.verify(path.parent)
    lines = []
    assert_is(make(run, say=lines.append).load(), 1)
    assert len(lines) == 1 and "step-00000002 is damaged" in lines[0] and name in lines[0]
    (run / "ckpt" / "step-00000001" / name).unlink()  # never silently from scratch
    with pytest.raises(UserError, match="all 2 checkpoints are damaged") as caught:
        make(run, say=lines.append).load()
    assert caught.value.code == ExitCode.BAD_INPUT and "No such file" in lines[2]


def test_a_damaged_one_goes_once_its_step_is_reached_again(tmp_path):
    saved(tmp_path, 1, 2, 3)
    (tmp_path / "ckpt" / "step-00000003" / "state.json").write_text("{}")
    checkpoints = make(tmp_path, say=lambda line: None)
    assert_is(checkpoints.load(), 2)
    checkpoints.save(3, tensors(3), state(3))
    checkpoints.finish()
    assert names(tmp_path) == ["step-00000002", "step-00000003.1"]
    assert_is(make(tmp_path).load(), 3)


def test_another_recipe_or_model_is_refused(two):
    with pytest.raises(UserError, match="another recipe .a1b2, now c3d4.*epochs, workers"):
        Checkpoints(two, "c3d4").load()
    network = nn.ParameterDict({"a": torch.ones(3, 5)})
    with pytest.raises(UserError, match="x: not the weights of this recipe's model: .*3, 5"):
        put_weights(network, {"a": torch.ones(3, 4)}, Path("x"))


# -- weights for evaluation ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    saved(run, 1, 2, 3, best=[1])
    return run


def assert_weights(found, step, group="model"):
    assert found.keys() == tensors(step)[group].keys()
    assert all(torch.equal(found[k], t) for k, t in tensors(step)[group].items())


def test_weights_of_a_run_a_folder_and_a_file(run, two, tmp_path):
    assert_weights(load_weights(run), 1)  # its best
    assert_weights(load_weights(run, "ema"), 1, "ema")
    assert_weights(load_weights(str(two)), 2)  # none was named best
    folder = run / "ckpt" / "step-00000003"
    shutil.copytree(folder, tmp_path / "mine")
    shutil.copy(folder / "model.safetensors", tmp_path / "alone.safetensors")
    for path in (folder, folder / "model.safetensors", tmp_path / "mine"):
        assert_weights(load_weights(path), 3)
    assert_weights(load_weights(tmp_path / "alone.safetensors"), 3)
    for path, group, message in (
        (tmp_path, "model", "holds no checkpoint"),
        (run, "teacher", "there is no .*teacher.safetensors"),
        (tmp_path / "no.pt", "model", "there is no"),
    ):
        with pytest.raises(UserError, match=message):
            load_weights(path, group)


def test_damaged_weights_are_refused(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / "ckpt" / "step-00000001"
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    for path in (tmp_path / "run", folder, folder / "model.safetensors"):
        with pytest.raises(UserError, match="model.safetensors is not as it was written"):
            load_weights(path)
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 30)
    with pytest.raises(UserError, match="x.safetensors"):
        load_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", ["[]", '{"folder": "../../etc"}', "{"])
def test_a_damaged_best_is_refused(run, tmp_path, text):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "ckpt" / "best.json").write_text(text)
    with pytest.raises(UserError, match="best.json"):
        load_weights(tmp_path / "run")
    make(tmp_path / "run").load()  # it is repaired from the manifest
    assert best(tmp_path / "run").name == "step-00000001"


def test_foreign_files(tmp_path):
    weights = {f"module.{name}": tensor for name, tensor in tensors(1)["model"].items()}
    torch.save({"model": weights, "epoch": 3}, tmp_path / "x.pt")
    assert_weights(load_weights(tmp_path / "x.pt"), 1)
