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
from torch import nn

from vision_tutorial.core.errors import ExitCode, NonFiniteError, StorageError, UserError
from vision_tutorial.engine import Checkpoints, checkpoint, load_weights, put_weights, weights_path


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """Waiting for the real disk proves nothing here, and takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def tensors(step):
    """Whole numbers, scalars, empty, tied, half precision, and two that are not contiguous."""
    torch.manual_seed(step)
    model = {"fc.weight": torch.randn(3, 4), "bn.count": torch.tensor(step), "none": torch.ones(0)}
    model |= {"tied": model["fc.weight"], "half": torch.randn(3).bfloat16()}
    model |= {"slice": torch.arange(10)[1::3], "conv": torch.randn(2, 3, 2, 2).mT}
    ema = {name: t.clone() for name, t in model.items()} | {"fc.weight": torch.randn(3, 4)}
    return {"model": model, "ema": ema}


def state(step):
    return {"epoch": step, "rows": [{"val/top1": 0.1 * step, "x": float("inf")}], "betas": (0.9, 1)}


def make(run, **options):
    options.setdefault("say", lambda line: pytest.fail(f"unexpected: {line}"))
    return Checkpoints(run, "a1b2", **options)


def saved(run, *steps, best=(), **options):
    """A run with these steps saved."""
    run.mkdir(exist_ok=True)
    checkpoints = make(run, **options)
    for step in steps:
        checkpoints.save(step, tensors(step), state(step), is_best=step in best)
    checkpoints.wait(last=True)
    return checkpoints


def names(run):
    return sorted(path.name for path in (run / "ckpt").iterdir())


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def assert_is(loaded, step):
    _, groups, found = loaded
    assert found == state(step) and groups.keys() == tensors(step).keys()
    for group, named in tensors(step).items():
        assert_same(groups[group], named)


def test_what_is_saved_is_loaded(tmp_path):
    other = make(tmp_path, write=False)  # another process's: it reads and never writes
    assert make(tmp_path).load() is None
    for name in (".step-00000001-half", ".tmp-00000001-9"):
        (tmp_path / "ckpt" / name / "inner").mkdir(parents=True)
    assert make(tmp_path).load() is None
    other.save(1, tensors(1), state(1))
    other.wait(last=True)
    assert other.load() is None and len(names(tmp_path)) == 2
    saved(tmp_path, 1, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"], "what the dead left is swept"
    assert_is(make(tmp_path).load(), 2)
    assert_is(other.load(), 2)
    assert (
        weights_path(tmp_path, "best")
        == weights_path(tmp_path, "last")
        == tmp_path / "ckpt" / "step-00000002"
    )


def test_training_may_go_on_while_it_writes(tmp_path, monkeypatch):
    write, gate = checkpoint.write_bytes, threading.Event()
    monkeypatch.setattr(checkpoint, "write_bytes", lambda *given: gate.wait() and write(*given))
    checkpoints, live = make(tmp_path), tensors(1)
    checkpoints.save(1, live, state(1))
    for named in live.values():
        for tensor in named.values():
            tensor.zero_()  # the next step changes the weights in place
    assert checkpoints.busy
    gate.set()
    assert_is(checkpoints.load(), 1)
    assert not checkpoints.busy


@pytest.mark.parametrize(("keep", "expected"), [(1, [2, 6]), (4, [2, 3, 4, 5, 6])])
def test_the_last_ones_and_the_best_are_kept(tmp_path, keep, expected):
    saved(tmp_path, 1, 2, 3, 4, 5, 6, best=[1, 2], keep=keep)
    assert names(tmp_path) == ["best.json", *(f"step-{step:08d}" for step in expected)]
    assert weights_path(tmp_path, "best").name == "step-00000002"


def test_the_source_of_a_resume_is_kept_and_a_step_saved_again_has_its_own_folder(tmp_path):
    saved(tmp_path, 1, 2, best=[2])
    checkpoints = saved(tmp_path, 2)
    assert_is(checkpoints.load(), 2)
    assert checkpoints.source == "step-00000002.1"
    for step in (3, 4, 5):
        checkpoints.save(step, tensors(step), state(step))
    checkpoints.wait(last=True)
    assert names(tmp_path)[1:] == ["step-00000002.1", "step-00000004", "step-00000005"]


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
        try:
            os._exit(function())
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux for names")
@pytest.mark.parametrize(
    "power, keep, is_best, before",
    [("on", 1, True, 3), ("lost", 1, False, 3), ("kept", 2, True, 3), ("lost", 2, True, 0)],
)
def test_a_crash_at_every_call_leaves_the_old_or_the_new(tmp_path, power, keep, is_best, before):
    saved(tmp_path / "before", *range(1, before + 1), best=[2], keep=keep)
    seen, code = [], 7

    def save_and_die():
        """At the k-th call (7), or after all of them (8)."""
        checkpoints = make(run, keep=keep)
        checkpoints.load()
        checkpoints.source = None  # the hardest case: nothing but `keep` protects step 3
        fault = Fault(len(seen) + 1, power)
        checkpoints.save(4, tensors(4), state(4), is_best=is_best)
        checkpoints.wait(last=True)
        fault.die(8)

    while code == 7:
        run = tmp_path / str(len(seen))
        shutil.copytree(tmp_path / "before", run)
        code = in_fork(save_and_die)
        named_best = checkpoint.verify(weights_path(run, "best"))["step"] if before else 4
        checkpoints = make(run, keep=keep)
        loaded = checkpoints.load()  # which repairs the name of the best
        seen.append(loaded[2]["epoch"] if loaded else 0)
        if loaded:
            assert_is(loaded, seen[-1])
            right_best = 4 if is_best and seen[-1] == 4 else 2
            assert named_best in (2, right_best)
            assert checkpoint.verify(weights_path(run, "best"))["step"] == right_best
        for path in checkpoint.candidates(run / "ckpt") if power != "lost" else ():
            checkpoint.verify(path)  # a deletion does not leave half a checkpoint either

        checkpoints.save(5, tensors(5), state(5))  # and it goes on from there
        checkpoints.wait(last=True)
        assert_is(make(run).load(), 5)
        assert not [name for name in names(run) if name.startswith(".")]
    assert code == 8 and len(seen) > 20 and seen == sorted(seen) and set(seen) == {before, 4}


def test_a_full_disk_does_not_stop_training_at_once(tmp_path):
    def limit(size):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

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
        checkpoints.wait(last=True)
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


def test_room_is_asked_for_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "free_space", lambda path: 2**20)
    monkeypatch.setattr(checkpoint, "new_folder", None)
    with pytest.raises(StorageError, match="1 MiB are free"):
        saved(tmp_path, 1, say=lambda line: None)


def test_what_is_not_finite_is_never_saved(tmp_path):
    checkpoints = saved(tmp_path, 1)
    for group, value in (("model", -math.inf), ("ema", math.nan)):
        bad = tensors(2)
        bad[group]["fc.weight"][1, 2] = value
        checkpoints.save(2, bad, state(2))
        with pytest.raises(NonFiniteError, match=f"step 2: {group} 'fc.weight'") as caught:
            checkpoints.wait()
        assert caught.value.code == ExitCode.NON_FINITE
    assert names(tmp_path) == ["step-00000001"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    saved(run, 1, 2, 3, best=[1])
    return run


@pytest.mark.parametrize("name", ["MANIFEST.json", "model.safetensors", "state.json"])
def test_damage_to_any_byte_is_noticed(run, tmp_path, name):
    run = shutil.copytree(run, tmp_path / "run")
    path = run / "ckpt" / "step-00000003" / name
    whole = path.read_bytes()
    flips = ((whole[:i], whole[i] ^ 1 << i % 8, whole[i + 1 :]) for i in range(len(whole)))
    damaged = [before + bytes([byte]) + after for before, byte, after in flips]
    damaged += [b"", whole[:-1], whole + b" ", b"[" * 50_000]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(checkpoint.Damaged, match=name):
            checkpoint.verify(path.parent)
    lines = []
    checkpoints = make(run, say=lines.append)
    assert_is(checkpoints.load(), 2)
    assert len(lines) == 1 and "step-00000003 is damaged" in lines[0] and name in lines[0]
    checkpoints.save(3, tensors(3), state(3))
    checkpoints.wait(last=True)  # once its step is reached again, the damaged one goes
    assert names(run)[1:] == ["step-00000001", "step-00000002", "step-00000003.1"]
    for path in (run / "ckpt").glob("step-*"):
        (path / name).unlink()  # never silently from scratch
    with pytest.raises(UserError, match="no checkpoint of 3 is whole") as caught:
        make(run, say=lines.append).load()
    assert caught.value.code == ExitCode.BAD_INPUT and "No such file" in lines[2]


def test_another_recipe_or_model_is_refused(run):
    with pytest.raises(UserError, match="another recipe: a1b2, now c3d4.*epochs, .*workers"):
        Checkpoints(run, "c3d4").load()
    network = nn.ParameterDict({"a": torch.ones(3, 5)})
    with pytest.raises(UserError, match="x: not the weights of this recipe's model: .*3, 5"):
        put_weights(network, {"a": torch.ones(3, 4)}, Path("x"))


def test_weights_of_a_run_a_folder_and_a_file(run, tmp_path):
    assert_same(load_weights(run), tensors(1)["model"])  # its best
    assert_same(load_weights(run, "ema"), tensors(1)["ema"])
    saved(tmp_path / "plain", 1, 2)
    assert_same(load_weights(str(tmp_path / "plain")), tensors(2)["model"])  # none was named best
    folder = run / "ckpt" / "step-00000003"
    shutil.copytree(folder, tmp_path / "mine")
    shutil.copy(folder / "model.safetensors", tmp_path / "alone.safetensors")
    for path in (folder, folder / "model.safetensors", tmp_path / "mine"):
        assert_same(load_weights(path), tensors(3)["model"])
    assert_same(load_weights(tmp_path / "alone.safetensors"), tensors(3)["model"])
    foreign = {f"module.{name}": tensor for name, tensor in tensors(1)["model"].items()}
    torch.save({"model": foreign, "epoch": 3}, tmp_path / "x.pt")
    assert_same(load_weights(tmp_path / "x.pt"), tensors(1)["model"])
    for path, group, message in (
        (tmp_path, "model", "holds no checkpoint"),
        (run, "teacher", "there is no .*teacher.safetensors"),
        (tmp_path / "no.pt", "model", "there is no"),
    ):
        with pytest.raises(UserError, match=message):
            load_weights(path, group)


def test_damaged_weights_are_refused(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run") / "ckpt" / "step-00000001"
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for place in (tmp_path / "run", folder, path):
        with pytest.raises(UserError, match="model.safetensors is not as it was written"):
            load_weights(place)
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 30)
    with pytest.raises(UserError, match="x.safetensors"):
        load_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", ["[]", '{"folder": "../../etc"}', "{"])
def test_a_damaged_best_is_refused(run, tmp_path, text):
    mine = shutil.copytree(run, tmp_path / "run")
    (mine / "ckpt" / "best.json").write_text(text)
    with pytest.raises(UserError, match="best.json"):
        load_weights(mine)
    make(mine).load()  # it is repaired from the manifest
    assert weights_path(mine, "best").name == "step-00000001"
