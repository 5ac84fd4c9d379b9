"""Folders with one sub-folder per class: splits, links, what is damaged or left out."""

import errno
import json
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from vision_tutorial import train as training
from vision_tutorial.classification.datasets import cifar100, image_folder
from vision_tutorial.core import sources
from vision_tutorial.core.errors import StorageError, UserError


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


def test_image_folder_reads_what_torchvision_reads_but_nothing_hidden(pets: Path):
    (pets / "train/dog/notes.txt").write_text("not an image")
    (pets / "train/dog/z.png").symlink_to(pets / "train/dog/a.png")
    reference = torchvision.datasets.ImageFolder(pets / "train")
    (pets / "train/dog/._a.png").write_text("a resource fork")
    (pets / "train/.ipynb_checkpoints").mkdir()
    shutil.copytree(pets / "train/dog", pets / "train/cat/.hidden")
    shutil.copytree(pets / "train/dog", pets / "train/__MACOSX")
    source = image_folder("train", root=str(pets))
    samples = [(str(p), t) for p, t in zip(source.paths, source.targets, strict=True)]
    assert samples == reference.samples and source.targets.dtype == np.int64
    assert list(source.classes) == reference.classes == ["cat", "dog", "eel"]
    assert source[1][0].getpixel((0, 0)) == (10, 20, 30)


def test_other_usual_names_of_the_splits_are_found_and_others_are_named(pets: Path):
    for train, test in (("training", "validation"), ("Train", "VAL"), ("train", "valid")):
        next(pets.glob("[Tt]rain*")).rename(pets / train)
        next(pets.glob("[Vv][Aa][Ll]*")).rename(pets / test)
        sources = [image_folder(split, root=f" {pets} ") for split in ("train", "test")]
        assert [len(source) for source in sources] == [4, 2]
        assert sources[0].key(1) == "dog/a.png"
    (pets / "valid").rename(pets / "test")  # to choose on the test images is for a person to say
    with pytest.raises(UserError, match=r"no folder .*/val; there are test, train. Name one with"):
        image_folder("test", root=str(pets))
    with pytest.raises(UserError, match=f"/train, but {pets}/train. Set `root: {pets}`.$"):
        image_folder("train", root=str(pets.parent))  # unpacked a folder deeper
    with pytest.raises(UserError, match="cat, dog, eel. Name one .* the classes: `train: .`, and"):
        image_folder("train", root=str(pets / "train"))
    for entry in (image_folder, lambda *a, **k: cifar100("train", root="~nobody-here/x")):
        with pytest.raises(UserError, match="pest|~nobody-here/x"):
            entry("train", root="pest")


def test_links_lead_out_of_the_root_on_request_only(pets: Path):
    shutil.move(pets / "train/dog", pets.parent / "dog")
    (pets / "train/dog").symlink_to(pets.parent / "dog")
    (pets / "train/eel/more").symlink_to(pets / "val/eel")
    with pytest.raises(UserError, match="dog leads outside .*, or set follow_links: true"):
        image_folder("train", root=str(pets))
    source = image_folder("train", root=str(pets), follow_links=True)
    names = ["cat/deep/er/c.webp", "dog/a.png", "dog/b.JPG", "eel/d.bmp", "eel/more/y.ppm"]
    assert [source.key(i) for i in range(len(source))] == names and source.notices == ()
    shutil.copytree(pets / "train", pets.parent / "outside")
    with pytest.raises(UserError, match="outside leads outside"):  # by `..` never
        image_folder("train", root=str(pets), train="../outside", follow_links=True)
    (pets / "train/dog").unlink()
    (pets / "in").mkdir()
    shutil.move(pets.parent / "dog", pets / "in/dog")
    (pets / "train/dog").symlink_to("../in/dog")  # a linked class inside the root is one
    source = image_folder("train", root=str(pets))
    assert len(source) == 4
    line = "image_folder, train: 1 skipped, not read as images: 1 x linked folder"
    assert source.notices == (line,)


def test_links_to_folders_above_are_not_followed(pets: Path):
    options = {"root": str(pets), "follow_links": True}
    plain = image_folder("train", **options)
    (pets / "train/cat/all").symlink_to(pets)
    (pets / "train/cat/deep/here").symlink_to("..")
    source = image_folder("train", **options)
    assert source.digest() == plain.digest()
    (line,) = source.notices
    assert line.endswith(" 2 skipped, not read as images: 2 x link to a folder above or known")
    (pets / "train/up").symlink_to("..")
    with pytest.raises(UserError, match="up is a link to a folder above it; remove it."):
        image_folder("train", **options)


def test_all_damaged_images_are_listed_or_left_out(pets: Path, tmp_path: Path, monkeypatch):
    for name in "cdefg":
        Image.effect_noise((64, 64), 90).save(pets / f"train/eel/{name}.jpg")
        cut = pets / f"train/eel/{name}.jpg"
        cut.write_bytes(cut.read_bytes()[:1000])
    (pets / "train/dog/a.png").write_bytes(b"")
    (pets / "train/notes.md").touch()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(pets / "train/cat/moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(
        UserError, match="6 images cannot be used: .*dog/a.png: .*; 1 more"
    ) as caught:
        image_folder("train", root=str(pets))
    assert str(caught.value).endswith("or leave such images out: skip_unreadable: true.")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_SLOW", 0)
    source = image_folder("train", root=str(pets), skip_unreadable=True)
    assert [source.key(i) for i in range(len(source))] == [
        *("cat/deep/er/c.webp", "cat/moving.gif", "dog/b.JPG", "eel/d.bmp")
    ]
    assert source.targets.tolist() == [0, 0, 1, 2]
    assert source.left_out == ("dog/a.png", *(f"eel/{name}.jpg" for name in "cdefg"))
    assert source.notices == (
        "image_folder, train: 1 skipped, not read as images: 1 x beside the class folders",
        "image_folder, train: of 1 with several pages or frames, the first is taken",
        "image_folder, train: 6 of 10 left out, unreadable: dog/a.png, eel/c.jpg, eel/d.jpg, "
        "eel/e.jpg, eel/f.jpg, 1 more",
    )
    monkeypatch.setattr(sources, "failures", lambda *_: pytest.fail("decoded again"))
    again = image_folder("train", root=str(pets), skip_unreadable=True)
    assert (again.notices, again.left_out) == (source.notices, source.left_out)
    monkeypatch.undo()
    Image.new("RGB", (5, 4)).save(pets / "train/dog/a.png")
    assert len(image_folder("train", root=str(pets), skip_unreadable=True)) == 5


def test_what_the_disk_lacks_at_the_moment_is_no_damage(pets: Path, monkeypatch):
    """Nothing is left out, or remembered as damaged, because too many files were open."""

    def full(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(StorageError, match="cannot read .*: Too many open files"):
        image_folder("train", root=str(pets), skip_unreadable=True)


def test_the_test_split_counts_classes_as_the_training_split_does(pets: Path):
    (pets / "val").rename(pets / "held")
    source = image_folder("test", root=str(pets), test="held")
    assert source.classes == ("cat", "dog", "eel") and source.targets.tolist() == [1, 2]


def test_class_folders_with_composed_and_decomposed_letters_are_one_class(pets: Path):
    forms = [unicodedata.normalize(form, "고양이") for form in ("NFC", "NFD")]
    (pets / "train/dog").rename(pets / "train" / forms[1])
    (pets / "val/dog").rename(pets / "val" / forms[0])
    source = image_folder("test", root=str(pets))
    assert source.classes == ("cat", "eel", forms[0]) and source.targets.tolist() == [1, 2]
    shutil.copytree(pets / "val", pets / "train", dirs_exist_ok=True)
    with pytest.raises(UserError, match="has two folders '고양이', with composed and decomposed"):
        image_folder("train", root=str(pets))


@pytest.mark.parametrize(
    ("split", "edit", "words"),
    [
        ("test", "rm -r val", "no folder {root}/val; there are train. Name one with `test: …`"),
        ("train", "rm -r train/*; touch train/loose.png", "has no sub-folders; it needs one per"),
        ("train", "mkdir train/fox", "no images in {root}/train/fox; looked for .apng"),
        (
            "train",
            "mkdir train/fox; touch train/fox/a.txt",
            r"fox \(1 skipped, .* 1 x .txt\); look",
        ),
        ("test", "rm val/*/*", "no images in {root}/val"),
        ("test", "cp -r val/dog val/wolf", r"has the class 'wolf', which .* has not \(1 such\)"),
        ("test", "mv val/dog val/Dog", r"the class 'Dog', which .* has not, it has 'dog' \(1 such"),
        ("train", "mv train ../out; ln -s ../out train", "{root}/train leads outside"),
        ("train", "cp -r train/dog ..; ln -s ../../dog train/bee", "train/bee leads outside"),
        ("train", "cp train/dog/a.png ..; ln -s ../../../a.png train/dog/l.png", "l.png leads out"),
    ],
)
def test_folders_that_are_not_complete_or_leave_root_are_refused(pets: Path, split, edit, words):
    subprocess.run(edit, shell=True, check=True, cwd=pets)
    with pytest.raises(UserError, match=words.format(root=pets)):
        image_folder(split, root=str(pets))


def test_a_training_says_and_records_what_it_leaves_out(tmp_path: Path, capsys):
    """A broken image in each split, a file of another kind."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("bee", "cat"):
            folder = tmp_path / "in" / split / label
            folder.mkdir(parents=True)
            for number in range(8):
                pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:200])
        (folder / "notes.xyz").touch()
    words = ["recipes/debug.yaml", "--runs", str(tmp_path / "runs"), "--id", "a", "epochs=1"]
    words += ["warmup={}", "batch_size=8", "workers=0", "wandb={mode: disabled}"]
    options = f"root: {tmp_path / 'in'}"
    assert training.main([*words, f"dataset={{image_folder: {{{options}}}}}"]) == 2
    assert "2 images cannot be used: " in capsys.readouterr().err  # of both splits
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    options += ", skip_unreadable: true"
    assert training.main([*words, f"dataset={{image_folder: {{{options}}}}}"]) == 0
    printed = "".join(capsys.readouterr())
    for split in ("train", "val"):
        assert f"image_folder, {split}: 1 skipped, not read as images: 1 x .xyz" in printed
        assert f"{split}: 1 of 17 left out, unreadable: cat/broken.png" in printed
    facts = json.loads((tmp_path / "runs/debug/a/fingerprint.json").read_text())
    assert facts["left_out"] == {"train": ["cat/broken.png"], "val": ["cat/broken.png"]}
