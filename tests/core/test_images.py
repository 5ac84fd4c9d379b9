"""Masks as they lie in files: ids kept as they are, and every other kind of file refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_tutorial.core import images
from vision_tutorial.core.errors import UserError
from vision_tutorial.core.images import read_mask

IDS = np.array([[0, 1, 2], [2, 11, 255]], np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "mask.png") -> Path:
    image.save(folder / name)
    return folder / name


def palette(ids: np.ndarray) -> Image.Image:
    """A palette image whose colours say nothing about the ids."""
    made = Image.fromarray(ids).convert("P")
    made.putdata(ids.ravel().tolist())
    made.putpalette([value for i in range(256) for value in (255 - i, 7 * i % 256, 0)])
    return made


@pytest.mark.parametrize("kind", [Image.fromarray, palette])
def test_ids_are_what_the_file_says(tmp_path: Path, kind):
    mask = read_mask(saved(tmp_path, kind(IDS)), 12)
    assert mask.dtype == np.uint8 and mask.flags.writeable
    assert mask.tolist() == IDS.tolist()
    void = read_mask(tmp_path / "mask.png", 11, void=11)
    assert void.tolist() == [[0, 1, 2], [2, 255, 255]]
    with pytest.raises(UserError, match=r"mask.png: class id 11 in 1 pixels; there are 11 classes"):
        read_mask(tmp_path / "mask.png", 11)


def grey_of_bits(path: Path, bits: int) -> None:
    """A PNG of one row of two grey pixels, 1 and 0, with `bits` bits each."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = bytes([0, 1 << (8 - bits)])
    head = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_would_be_other_numbers(tmp_path: Path, bits: int):
    path = tmp_path / "mask.png"
    grey_of_bits(path, bits)
    with pytest.raises(UserError, match="a palette, or grey with 8 bits"):
        read_mask(path, 255)


@pytest.mark.parametrize(
    "image, name, said",
    [
        (Image.new("RGB", (3, 2)), "mask.png", "PNG, RGB"),
        (Image.fromarray(IDS.astype(np.uint16)), "mask.png", "PNG, I;16"),
        (Image.fromarray(IDS), "mask.jpg", "JPEG, L"),
    ],
)
def test_what_is_no_mask(tmp_path: Path, image: Image.Image, name: str, said: str):
    path = saved(tmp_path, image, name)
    with pytest.raises(UserError, match=f"{name}: {said}; a mask is a PNG whose pixels are class"):
        read_mask(path, 255)


def test_a_damaged_mask(tmp_path: Path):
    path = saved(tmp_path, Image.fromarray(np.arange(10_000, dtype=np.uint8).reshape(100, 100)))
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match="mask.png: not a readable image"):
        read_mask(path, 255)
    assert images.image_size(path) == (100, 100), "its head is whole"
