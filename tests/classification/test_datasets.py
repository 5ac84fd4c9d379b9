"""CIFAR and image folders: what they read, what they refuse, and what they download."""

import hashlib
import io
import multiprocessing
import pickle
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vision_tutorial.classification import datasets as module
from vision_tutorial.classification.datasets import cifar10, cifar100
from vision_tutorial.core.errors import StorageError, UserError

KINDS = {"cifar10": (module.CIFAR10, cifar10), "cifar100": (module.CIFAR100, cifar100)}


def table(key: str, count: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3072), np.uint8)
    return pickle.dumps({"data": pixels, key: rng.integers(0, 3, count).tolist()})


def contents_of(name: str) -> dict[str, bytes]:
    """The files of a tiny data set in CIFAR's format."""
    meta = {"label_names": list("xyz"), "fine_label_names": list("xyz")}
    if name == "cifar10":
        batches = {f"data_batch_{i}": table("labels", 3, i) for i in range(1, 6)}
        return batches | {"test_batch": table("labels", 4, 9), "batches.meta": pickle.dumps(meta)}
    train, test = table("fine_labels", 7, 1), table("fine_labels", 4, 2)
    return {"train": train, "test": test, "meta": pickle.dumps(meta)}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def archive_of(folder: str, contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(params=KINDS)
def tiny(request, monkeypatch, tmp_path: Path):
    """A tiny data set that passes for the published one, not yet on disk."""
    kind, entry = KINDS[request.param]
    contents = contents_of(request.param)
    archive = archive_of(kind.base_folder, contents | {"../../escaped": b"", "extra": b""})
    for attribute in ("train_list", "test_list"):
        names = [part for part, _ in getattr(kind, attribute)]
        monkeypatch.setattr(kind, attribute, [[part, md5(contents[part])] for part in names])
    meta = kind.meta["filename"]
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(contents[meta])})
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    monkeypatch.setattr(kind, "url", "http://127.0.0.1:1/closed.tar.gz")
    monkeypatch.setattr(module, "MIRROR", "http://127.0.0.1:1/mirror")
    monkeypatch.setenv("no_proxy", "*")
    root = tmp_path / "root"
    return SimpleNamespace(
        name=request.param,
        read=lambda split, **options: entry(split, root=str(root), **options),
        kind=kind,
        contents=contents,
        archive=archive,
        root=root,
        folder=root / kind.base_folder,
    )


def put(tiny) -> None:
    tiny.folder.mkdir(parents=True)
    for name, content in tiny.contents.items():
        (tiny.folder / name).write_bytes(content)


class Handler(BaseHTTPRequestHandler):
    """Answers with the server's body, whose second half comes after its `stall` seconds."""

    def do_GET(self):
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        half = len(self.server.body) // 2
        self.wfile.write(self.server.body[:half])
        self.server.stopping.wait(self.server.stall)
        self.wfile.write(self.server.body[half:])

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    servers = []

    def start(tiny, body: bytes | None = None, stall: float = 0, mirror: bool = False):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.body, server.stall, server.requests = body or tiny.archive, stall, 0
        server.stopping = threading.Event()
        server.handle_error = lambda *_: None  # clients that hang up are what is tested
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        address = f"http://127.0.0.1:{server.server_port}"
        if mirror:
            monkeypatch.setattr(module, "MIRROR", address)
        else:
            monkeypatch.setattr(tiny.kind, "url", f"{address}/tiny.tar.gz")
        return server

    yield start
    for server in servers:
        server.stopping.set()
        server.shutdown()
        server.server_close()


def check_against_torchvision(source, kind, root: Path, train: bool) -> None:
    reference = kind(root, train=train)
    assert source.images.dtype == np.uint8 and source.images.flags.c_contiguous
    assert source.targets.dtype == np.int64
    np.testing.assert_array_equal(source.images, reference.data)
    assert source.targets.tolist() == reference.targets
    assert list(source.classes) == reference.classes


def test_cifar_reads_what_torchvision_reads(tiny, monkeypatch):
    put(tiny)
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(tiny.root))
    for split, source in (("train", tiny.read("train")), ("test", KINDS[tiny.name][1]("test"))):
        assert source.name == tiny.name
        check_against_torchvision(source, tiny.kind, tiny.root, split == "train")
    with pytest.raises(UserError, match="no split called 'val'"):
        tiny.read("val")


def test_the_real_cifar100(data_root):
    if not (data_root / "cifar-100-python").is_dir():
        pytest.skip("no CIFAR-100 under VISION_TUTORIAL_DATA")
    check_against_torchvision(cifar100("test"), module.CIFAR100, data_root, train=False)


class Bomb:
    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


def test_a_file_that_is_missing_or_damaged_is_named_and_never_unpickled(tiny, tmp_path: Path):
    with pytest.raises(UserError, match=f"{tiny.folder}.*`download: true`.*VISION_TUTORIAL_DATA"):
        tiny.read("train")
    put(tiny)
    victim = tmp_path / "executed"
    bomb = pickle.dumps(Bomb(victim))
    for path in tiny.folder.iterdir():
        path.write_bytes(bomb)
    name, expected = tiny.kind.train_list[0]
    with pytest.raises(UserError, match=f"{tiny.folder / name} .*{md5(bomb)}, .*{expected}"):
        tiny.read("train")
    assert not victim.exists()
    pickle.loads(bomb)
    assert victim.exists()  # so it would have shown


def test_download_replaces_damaged_files_and_keeps_no_others(tiny, serve, tmp_path: Path, capsys):
    put(tiny)
    (tiny.folder / tiny.kind.test_list[0][0]).write_bytes(b"damaged")
    server = serve(tiny)
    check_against_torchvision(tiny.read("train", download=True), tiny.kind, tiny.root, train=True)
    assert {path.name for path in tiny.folder.iterdir()} == set(tiny.contents)
    names = {tiny.folder.name, f"{tiny.folder.name}.lock"}
    assert {path.name for path in tiny.root.iterdir()} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    shown = capsys.readouterr()
    assert tiny.name in shown.err and not shown.out
    tiny.read("test", download=True)
    assert server.requests == 1


def test_of_several_processes_one_downloads(tiny, serve):
    server = serve(tiny, stall=0.3)
    fork = multiprocessing.get_context("fork")
    lengths = fork.Queue()
    load = lambda: lengths.put(len(tiny.read("test", download=True)))  # noqa: E731
    processes = [fork.Process(target=load) for _ in range(3)]
    for process in processes:
        process.start()
    assert [lengths.get(timeout=30) for _ in processes] == [4] * 3
    for process in processes:
        process.join()
    assert server.requests == 1


def test_a_download_that_fails_is_one_clear_line_and_leaves_nothing(tiny, serve, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    short = tiny.archive[:-10]
    for answer, said in (
        (None, "cannot download .*refused.*VISION_TUTORIAL_DATA"),  # nobody listens there
        ({"stall": 30}, "cannot download .*timed out"),
        ({"body": short}, f"it has not MD5 {tiny.kind.tgz_md5}.*Nothing was kept"),
    ):
        if answer:
            serve(tiny, **answer)
        with pytest.raises(UserError, match=said) as caught:
            tiny.read("train", download=True)
        assert "\n" not in str(caught.value) and tiny.kind.url in str(caught.value)
        assert f"nor {module.MIRROR}/{tiny.kind.filename} (" in str(caught.value)
        assert not tiny.folder.exists() and not list(tiny.root.glob(".download*"))
    shutil.rmtree(tiny.root)
    tiny.root.write_text("a file, not a folder")
    with pytest.raises(StorageError, match=f"cannot write {tiny.folder} .*VISION_TUTORIAL_DATA"):
        tiny.read("train", download=True)


def test_the_mirror_is_asked_where_the_first_address_fails(tiny, serve, caplog):
    for first in (None, {"body": tiny.archive[:-10]}, {}):  # closed, damaged, good
        shutil.rmtree(tiny.root, ignore_errors=True)
        servers = [serve(tiny, **first)] if first is not None else []
        mirror = serve(tiny, mirror=True)
        assert len(tiny.read("test", download=True)) == 4
        assert [server.requests for server in servers] == [1] * len(servers)
        assert mirror.requests == (first != {})
    assert "trying http://127.0.0.1" in caplog.text
    serve(tiny, tiny.archive[:-10])
    serve(tiny, b"something else", mirror=True)
    shutil.rmtree(tiny.root)
    with pytest.raises(UserError, match=f"(it has not MD5 {tiny.kind.tgz_md5}.*){{2}}"):
        tiny.read("train", download=True)
    assert not tiny.folder.exists() and not list(tiny.root.glob(".download*"))


def test_cifar_is_found_in_its_own_folder_and_at_home(tiny, monkeypatch):
    put(tiny)
    monkeypatch.setenv("HOME", str(tiny.root.parent))
    entry = KINDS[tiny.name][1]
    for root in (
        tiny.folder,
        f"{tiny.folder}/",
        f"{tiny.root} ",
        f"~/{tiny.root.name}",
        f"~/{tiny.root.name}/{tiny.folder.name}",
    ):
        assert len(entry("test", root=str(root))) == 4
