"""CIFAR and image folders: what they read, what they refuse, and what they download."""

import hashlib
import io
import multiprocessing
import pickle
import shutil
import subprocess
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torchvision
from PIL import Image

from vision_tutorial.classification import datasets as module
from vision_tutorial.classification.datasets import cifar10, cifar100, image_folder
from vision_tutorial.core.errors import StorageError, UserError
from vision_tutorial.core.registry import datasets

KINDS = {"cifar10": module.CIFAR10, "cifar100": module.CIFAR100}
ENTRIES = {"cifar10": cifar10, "cifar100": cifar100}


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
    name = request.param
    kind, contents = KINDS[name], contents_of(name)
    archive = archive_of(kind.base_folder, contents | {"../../escaped": b"", "extra": b""})
    for attribute in ("train_list", "test_list"):
        names = [part for part, _ in getattr(kind, attribute)]
        monkeypatch.setattr(kind, attribute, [[part, md5(contents[part])] for part in names])
    meta = kind.meta["filename"]
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(contents[meta])})
    monkeypatch.setattr(kind, "tgz_md5", md5(archive))
    monkeypatch.setattr(kind, "url", "http://127.0.0.1:1/closed.tar.gz")
    monkeypatch.setenv("no_proxy", "*")
    root = tmp_path / "root"
    return SimpleNamespace(
        name=name,
        entry=ENTRIES[name],
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


class Server(ThreadingHTTPServer):
    """Answers every request with `body`, after `answer` was waited for; counts the requests."""

    def __init__(self, body: bytes, status: int = 200, stall: float = 0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.status, self.stall, self.requests = body, status, stall, 0
        self.stopping = threading.Event()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        self.send_response(self.server.status)
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

    def start(tiny, body: bytes | None = None, **options) -> Server:
        server = Server(tiny.archive if body is None else body, **options)
        server.handle_error = lambda *_: None  # clients that hang up are what is tested
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(tiny.kind, "url", f"http://127.0.0.1:{server.server_port}/tiny.tar.gz")
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


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar_reads_what_torchvision_reads(tiny, split):
    put(tiny)
    source = tiny.entry(split, root=str(tiny.root))
    assert source.name == tiny.name
    check_against_torchvision(source, tiny.kind, tiny.root, split == "train")


def test_the_real_cifar100(data_root):
    if not (data_root / "cifar-100-python").is_dir():
        pytest.skip("no CIFAR-100 under VISION_TUTORIAL_DATA")
    check_against_torchvision(cifar100("test"), module.CIFAR100, data_root, train=False)
    train = cifar100("train")
    assert train.images.shape == (50_000, 32, 32, 3)
    assert np.bincount(train.targets).tolist() == [500] * 100
    means = train.images[::10].reshape(-1, 3).mean(0) / 255
    np.testing.assert_allclose(means, (0.5071, 0.4865, 0.4409), atol=4e-3)  # as often quoted


def test_root_comes_from_the_environment_when_the_recipe_gives_none(tiny, monkeypatch):
    put(tiny)
    monkeypatch.setenv("VISION_TUTORIAL_DATA", str(tiny.root))
    assert len(tiny.entry("test")) == 4


def test_missing_data_says_where_it_looked_and_what_to_do(tiny):
    with pytest.raises(UserError) as caught:
        tiny.entry("train", root=str(tiny.root))
    message = str(caught.value)
    assert str(tiny.folder) in message and "\n" not in message
    assert "`download: true`" in message and "VISION_TUTORIAL_DATA" in message
    assert not tiny.root.exists()


class Bomb:
    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return Path.touch, (self.victim,)


def test_a_damaged_file_is_named_and_never_unpickled(tiny, tmp_path: Path):
    put(tiny)
    victim = tmp_path / "executed"
    for path in tiny.folder.iterdir():
        path.write_bytes(pickle.dumps(Bomb(victim)))
    name, expected = tiny.kind.train_list[0]
    found = md5((tiny.folder / name).read_bytes())
    with pytest.raises(UserError) as caught:
        tiny.entry("train", root=str(tiny.root))
    message = str(caught.value)
    assert str(tiny.folder / name) in message and "`download: true`" in message
    assert expected in message and found in message
    tiny.folder.joinpath(tiny.kind.train_list[0][0]).unlink()
    tiny.folder.joinpath(tiny.kind.train_list[0][0]).mkdir()
    with pytest.raises(UserError, match="cannot read"):
        tiny.entry("train", root=str(tiny.root))
    assert not victim.exists()
    pickle.loads(pickle.dumps(Bomb(victim)))
    assert victim.exists()  # so it would have shown


def test_download_replaces_damaged_files_and_keeps_no_others(tiny, serve, tmp_path: Path, capsys):
    put(tiny)
    damaged = tiny.folder / tiny.kind.test_list[0][0]
    damaged.write_bytes(b"damaged")
    server = serve(tiny)
    source = tiny.entry("train", root=str(tiny.root), download=True)
    check_against_torchvision(source, tiny.kind, tiny.root, train=True)
    assert {path.name for path in tiny.folder.iterdir()} == set(tiny.contents)
    names = {tiny.folder.name, f"{tiny.folder.name}.lock"}
    assert {path.name for path in tiny.root.iterdir()} <= names
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    shown = capsys.readouterr()
    assert tiny.name in shown.err and not shown.out
    tiny.entry("test", root=str(tiny.root), download=True)
    assert server.requests == 1


def test_of_several_processes_one_downloads(tiny, serve):
    server = serve(tiny, stall=0.3)
    fork = multiprocessing.get_context("fork")
    lengths = fork.Queue()

    def load():
        lengths.put(len(tiny.entry("test", root=str(tiny.root), download=True)))

    processes = [fork.Process(target=load) for _ in range(4)]
    for process in processes:
        process.start()
    assert [lengths.get(timeout=30) for _ in processes] == [4] * 4
    for process in processes:
        process.join()
    assert server.requests == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "refused"),  # nobody listens where `tiny` points
        ({"stall": 30}, "timed out"),
        ({"body": b"not here", "status": 404}, "Not Found"),
    ],
    ids=["refused", "timed out", "not found"],
)
def test_offline_is_one_clear_line(tiny, serve, monkeypatch, answer, reason):
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    if answer:
        serve(tiny, **answer)
    with pytest.raises(UserError) as caught:
        tiny.entry("train", root=str(tiny.root), download=True)
    message = str(caught.value)
    assert f"cannot download {tiny.kind.url}" in message and reason in message
    assert "VISION_TUTORIAL_DATA" in message and "\n" not in message
    assert not tiny.folder.exists() and not list(tiny.root.glob(".download*"))


def test_a_download_that_cannot_be_used_or_kept_is_removed(tiny, serve):
    short = tiny.archive[:-10]
    serve(tiny, short)
    with pytest.raises(UserError, match=f"has MD5 {md5(short)}, it should be {tiny.kind.tgz_md5}"):
        tiny.entry("train", root=str(tiny.root), download=True)
    assert not tiny.folder.exists() and not list(tiny.root.glob(".download*"))
    shutil.rmtree(tiny.root)
    tiny.root.write_text("a file, not a folder")
    with pytest.raises(StorageError, match=f"cannot write {tiny.folder} .*that can be written"):
        tiny.entry("train", root=str(tiny.root), download=True)


# Image folders


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Three classes in train, two of them in val."""
    root = tmp_path / "pets"
    for name in (
        *("train/dog/b.JPG", "train/dog/a.png", "train/cat/deep/er/c.webp", "train/eel/d.bmp"),
        *("val/dog/x.png", "val/eel/y.ppm"),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (10, 20, 30)).save(path)
    return root


def test_image_folder_reads_sorted_classes_and_images(pets: Path):
    (pets / "train/dog/notes.txt").write_text("not an image")
    (pets / "train/dog/._a.png").write_text("a resource fork")
    (pets / "train/.ipynb_checkpoints").mkdir()
    shutil.copytree(pets / "train/dog", pets / "train/cat/.hidden")
    source = image_folder("train", root=str(pets))
    assert source.classes == ("cat", "dog", "eel")
    assert [path.name for path in source.paths] == ["c.webp", "a.png", "b.JPG", "d.bmp"]
    assert source.targets.dtype == np.int64 and source.targets.tolist() == [0, 1, 1, 2]
    image, target = source[1]
    assert (image.getpixel((0, 0)), target) == ((10, 20, 30), 1)
    source.paths[1].write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"train/dog/a\.png: not a readable image"):
        source[1]


def test_image_folder_agrees_with_torchvision_on_links_within_root_too(pets: Path):
    (pets / "train/dog/z.png").symlink_to(pets / "train/dog/a.png")
    reference = torchvision.datasets.ImageFolder(pets / "train")
    source = image_folder("train", root=str(pets))
    assert [(str(p), t) for p, t in zip(source.paths, source.targets, strict=True)] == (
        reference.samples
    )
    assert list(source.classes) == reference.classes


def test_the_test_split_counts_classes_as_the_training_split_does(pets: Path):
    source = image_folder("test", root=str(pets))
    assert source.classes == ("cat", "dog", "eel") and source.targets.tolist() == [1, 2]
    renamed = pets.rename(pets.with_name("other"))
    (renamed / "val").rename(renamed / "held")
    assert len(image_folder("test", root=str(renamed), test="held")) == 2


@pytest.mark.parametrize(
    ("split", "edit", "words"),
    [
        ("train", "rm -r train", "no folder {root}/train; `root` needs 'train'"),
        ("test", "rm -r val", "no folder {root}/val; `root` needs 'val'"),
        ("train", "rm -r train/*; touch train/loose.png", "has no sub-folders; it needs one per"),
        ("train", "mkdir train/fox", "no images in {root}/train/fox; looked for .bmp"),
        ("test", "rm val/*/*", "no images in {root}/val"),
        ("test", "cp -r val/dog val/wolf", r"has the class 'wolf', which .* has not \(1 such\)"),
    ],
)
def test_folders_that_are_not_complete_are_refused(pets: Path, split, edit, words):
    subprocess.run(edit, shell=True, check=True, cwd=pets)
    with pytest.raises(UserError, match=words.format(root=pets)):
        image_folder(split, root=str(pets))


def test_a_folder_outside_root_is_refused(pets: Path):
    shutil.copytree(pets / "train", pets.parent / "outside")
    with pytest.raises(UserError, match="leads outside"):
        image_folder("train", root=str(pets), train="../outside")


@pytest.mark.parametrize("link", ["train", "train/bee", "train/dog/link.png"])
def test_links_out_of_root_are_refused(pets: Path, link):
    outside = pets.parent / "outside"
    shutil.copytree(pets / "train", outside)
    target = {"train": outside, "train/bee": outside / "dog"}.get(link, outside / "dog/a.png")
    if link == "train":
        shutil.rmtree(pets / "train")
    (pets / link).symlink_to(target)
    with pytest.raises(UserError, match=f"{pets / link} leads outside .*, to {target}; put it"):
        image_folder("train", root=str(pets))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "image_folder"])
def test_the_shelf_has_them_and_they_know_two_splits(name, tmp_path: Path):
    with pytest.raises(UserError, match="no split called 'val'"):
        datasets.build(name, root=str(tmp_path))("val")
