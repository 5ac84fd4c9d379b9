"""Images and masks as they lie in files: ids kept as they are, every other kind of file refused."""

import os
import struct
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vision_tutorial.core import images
from vision_tutorial.core.errors import UserError
from vision_tutorial.core.images import (
    check_ids,
    image_size,
    images_in,
    pages,
    read_image,
    read_mask,
)

IDS = np.array([[0, 1, 2], [2, 11, 255]], np.uint8)


def palette(ids: np.ndarray) -> Image.Image:
    """A palette image whose colours say nothing about the ids."""
    made = Image.fromarray(ids).convert("P")
    made.putdata(ids.ravel().tolist())
    made.putpalette([value for i in range(256) for value in (255 - i, 7 * i % 256, 0)])
    return made


@pytest.mark.parametrize("kind", [Image.fromarray, palette])
def test_ids_are_what_the_file_says(tmp_path: Path, kind):
    path = tmp_path / "mask.png"
    kind(IDS).save(path)
    mask = read_mask(path)
    assert mask.dtype == np.uint8 and mask.flags.writeable
    assert mask.tolist() == IDS.tolist()
    Image.fromarray(IDS > 1).save(path)  # one bit
    assert read_mask(path).dtype == np.uint8 and read_mask(path).tolist() == (IDS > 1).tolist()
    with pytest.raises(UserError, match=r"mask.png: class id 11 in 1 places; there are 11 classes"):
        check_ids(IDS, 11, "mask.png")


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + zlib.crc32(kind + data).to_bytes(4)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_would_be_other_numbers(tmp_path: Path, bits: int):
    head = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)  # two pixels, 1 and 0
    body = zlib.compress(bytes([0, 1 << (8 - bits)]))
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(UserError, match="a palette, or grey with 1 or 8 bits"):
        read_mask(tmp_path / "mask.png")


def test_what_is_no_mask(tmp_path: Path):
    for image, name, said in (
        (Image.new("RGB", (3, 2)), "mask.png", "PNG, RGB"),
        (Image.fromarray(IDS.astype(np.uint16)), "mask.png", "PNG, I;16"),
        (Image.fromarray(IDS), "mask.jpg", "JPEG, L"),
    ):
        image.save(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: {said}; a mask is a PNG whose pixels are"):
            read_mask(tmp_path / name)


def test_damaged_and_huge_images_are_refused_by_name(tmp_path: Path, monkeypatch):
    half, huge = tmp_path / "half.jpg", tmp_path / "huge.png"
    Image.effect_noise((64, 64), 90).save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    with Image.open(half) as image:
        image.verify()  # which is why `verify` is not what read_image uses
    with pytest.raises(UserError, match=r"half\.jpg: not a readable image .*Replace or remove"):
        read_image(half)
    assert image_size(half) == (64, 64), "its head is whole"
    for start, said in (
        (b"version https://git-lfs.github.com/spec/v1\noid x", "text that begins 'version https:"),
        (b"\x00\x01", "none of JPEG, PNG"),
        (b"", "an empty file"),
    ):
        huge.write_bytes(start)
        with pytest.raises(UserError, match=f"not a readable image .{said}"):
            read_image(huge)
    Image.new("RGB", (50, 21)).save(huge)
    monkeypatch.setattr(images, "MAX_PIXELS", 1050)
    assert read_image(huge).size == (50, 21)
    monkeypatch.setattr(images, "MAX_PIXELS", 1049)
    with pytest.raises(UserError, match=r"huge\.png: .*50x21 pixels, over the 1,049 that"):
        read_image(huge)


# -- pixels as a viewer shows them -----------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "late.png"])
def test_images_are_upright_and_masks_as_stored(tmp_path: Path, suffix: str, orientation: int):
    path = tmp_path / f"image.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    if suffix == "late.png":  # some programs write EXIF behind the pixels
        Image.fromarray(pixels).save(path)
        content = path.read_bytes()
        late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        path.write_bytes(content[:-12] + late + content[-12:])
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    made = read_image(path)
    assert made.size == image_size(path) == upright.size == ((6, 4), (4, 6))[orientation >= 5]
    assert np.array_equal(made, upright)
    if path.suffix == ".png":
        Image.fromarray(pixels[..., 0] % 3).save(path, exif=exif)
        assert np.array_equal(read_mask(path), pixels[..., 0] % 3)


def test_damaged_exif_is_no_reason_to_refuse_an_image(tmp_path: Path):
    path = tmp_path / "image.jpg"
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as the package does; pytest forgets it
    Image.new("RGB", (6, 4)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert read_image(path).size == image_size(path) == (6, 4)


def of_12_bits(path: Path) -> None:
    """A TIFF of the grey values 16 and 4095."""
    tags = ((256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1))
    tags += ((279, 3),)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    pixels = bytes([0x01, 0x0F, 0xFF, 0])
    file = b"II*\0" + struct.pack("<I", 12) + pixels + struct.pack("<H", len(tags)) + entries
    path.write_bytes(file + bytes(4))


GREY16 = np.array([[0, 256, 32768, 65535]], np.uint16)
BYTES16 = [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("name", "image", "grey"),
    [
        ("a.png", GREY16, BYTES16),
        ("a.tif", GREY16, BYTES16),
        ("a.tif", GREY16.astype(">u2"), BYTES16),
        ("a.pgm", GREY16, BYTES16),
        ("a.jp2", np.tile(GREY16, (8, 1)), BYTES16),
        ("a.tif", of_12_bits, [1, 255]),
        ("a.tif", np.array([[0, 0.2, 0.5, 1]], np.float32), [0, 51, 128, 255]),
        ("a.png", np.array([[False, True]]), [0, 255]),
        ("a.tif", np.array([[0, 2]], np.float32), "float values from 0 to 2, not within 0 to 1"),
        ("a.tif", np.array([[0, np.nan]], np.float32), "float values from nan to nan"),
        (
            "a.tif",
            np.array([[0, 70_000]], np.int32),
            "integers of 32 bits, or signed, not of 8 or 16",
        ),
        (
            "a.tif",
            np.array([[-5, 700]], np.int32),
            "integers of 32 bits, or signed, not of 8 or 16",
        ),
    ],
)
def test_values_are_scaled_by_their_range_or_refused(tmp_path: Path, name: str, image, grey):
    path = tmp_path / name
    image(path) if callable(image) else Image.fromarray(image).save(path)
    if isinstance(grey, str):
        with pytest.raises(UserError, match=rf"{name}: not a readable image \({grey}"):
            read_image(path)
    else:
        made = np.asarray(read_image(path))
        assert made[0].tolist() == [[value] * 3 for value in grey]


def test_colours_of_16_bits_keep_their_high_ones(tmp_path: Path):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HHH", 256, 32768, 65535)))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b""))
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (1, 128, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_is_transparent_lies_on_white(tmp_path: Path, mode: str):
    """Noise under alpha 0 does not show; the rest is as it was."""
    noise = np.random.default_rng(0).integers(0, 250, (8, 8, 3), np.uint8)
    if mode in ("LA", "P", "L"):
        noise[..., 1:] = noise[..., :1]
    if mode in ("RGBA", "LA"):
        hidden = np.arange(64).reshape(8, 8) % 3 == 0
        alpha = np.where(hidden, 0, 255).astype(np.uint8)
        colours = noise if mode == "RGBA" else noise[..., 0]
        image, more = Image.fromarray(np.dstack([colours, alpha]), mode), {}
    else:  # one colour is transparent
        hidden, key = (noise == noise[0, 0]).all(-1), noise[0, 0].tolist()
        image = Image.fromarray(noise if mode == "RGB" else noise[..., 0]).convert(mode)
        more = {"transparency": tuple(key) if mode == "RGB" else key[0]}
    image.save(tmp_path / "a.png", **more)
    shown = np.where(hidden[..., None], 255, noise)
    assert np.array_equal(read_image(tmp_path / "a.png"), shown)


@pytest.mark.parametrize("suffix", ["avif", "bmp", "gif", "ico", "jp2", "pcx", "ppm", "qoi", "tga"])
def test_every_format_is_read(tmp_path: Path, suffix: str):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (48, 32), (250, 10, 20)).save(path)
    made = read_image(path)
    assert made.size == image_size(path) and made.mode == "RGB" and not pages(path)
    middle = np.array(made)[made.height // 2, made.width // 2].astype(int)
    assert abs(middle - [250, 10, 20]).max() < 8, "AVIF is not exact"


def test_the_first_of_several_pages_is_read(tmp_path: Path):
    first, second = (Image.new("RGB", (4, 3), colour) for colour in ("red", "blue"))
    for suffix in ("gif", "tif", "png", "webp"):
        path = tmp_path / f"a.{suffix}"
        first.save(path)
        assert not pages(path)
        lossless = {"lossless": True} if suffix == "webp" else {}
        first.save(path, save_all=True, append_images=[second], **lossless)
        assert pages(path) and read_image(path).getpixel((0, 0)) == first.getpixel((0, 0))


def test_only_regular_files_are_read(tmp_path: Path):
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    for read in (read_image, image_size, read_mask):
        with pytest.raises(UserError, match=r"pipe\.png is a FIFO; a file is expected"):
            read(path)
    skipped = Counter()
    assert images_in(tmp_path, tmp_path, "test", skipped) == [] and skipped["no regular file"] == 1


# -- folders ---------------------------------------------------------------------------------------


def test_what_lies_in_a_folder_is_read_or_counted(tmp_path: Path):
    folder = tmp_path / "root"
    names = "b.GIF a.jfif sub/c.jp2 sub/deep/d.tga e.avif"
    junk = "__MACOSX/x.jpg .DS_Store Thumbs.db desktop.ini sub/.ipynb_checkpoints/y.png ._a.jfif"
    for name in f"{names} {junk} notes.txt f.txt g.heic h.xyz noending".split():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.png").touch()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder)
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    skipped = Counter()
    found = images_in(folder, folder, "test", skipped)
    assert [str(path.relative_to(folder)) for path in found] == sorted(names.split())
    others = {".txt": 2, ".xyz": 1, "no suffix": 1, "linked folder": 2, "no regular file": 1}
    heif = {} if "HEIF" in images.formats() else {".heic": 1}
    assert skipped == others | heif
    (line,) = images.said_of(skipped, "test")
    assert line.startswith(f"test: {sum(skipped.values())} skipped, not read as images: 2 x .txt, ")
    followed = images_in(folder, folder, "test", Counter(), follow_links=True)
    assert {*followed} - {*found} == {folder / "linked" / "z.png"}
    assert images.said_of({}, "test") == ()


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path):
    path = tmp_path / "a.heic"
    if "HEIF" not in images.formats():
        path.touch()
        with pytest.raises(UserError, match=r"HEIC needs pip install 'vision-tutorial\[heif\]'"):
            read_image(path)
        return
    Image.new("RGB", (64, 48), "red").save(path)
    assert read_image(path).size == image_size(path) == (64, 48) and not pages(path)
