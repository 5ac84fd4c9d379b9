"""Images and masks as they lie in files: ids kept as they are, every other kind of file refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_tutorial.core import images
from vision_tutorial.core.errors import UserError
from vision_tutorial.core.images import image_size, read_image, read_mask

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
    mask = read_mask(path, 12)
    assert mask.dtype == np.uint8 and mask.flags.writeable
    assert mask.tolist() == IDS.tolist()
    assert read_mask(path, 11, void=11).tolist() == [[0, 1, 2], [2, 255, 255]]
    with pytest.raises(UserError, match=r"mask.png: class id 11 in 1 places; there are 11 classes"):
        read_mask(path, 11)


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_would_be_other_numbers(tmp_path: Path, bits: int):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    head = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)  # two pixels, 1 and 0
    body = zlib.compress(bytes([0, 1 << (8 - bits)]))
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(UserError, match="a palette, or grey with 8 bits"):
        read_mask(tmp_path / "mask.png", 255)


def test_what_is_no_mask(tmp_path: Path):
    for image, name, said in (
        (Image.new("RGB", (3, 2)), "mask.png", "PNG, RGB"),
        (Image.fromarray(IDS.astype(np.uint16)), "mask.png", "PNG, I;16"),
        (Image.fromarray(IDS), "mask.jpg", "JPEG, L"),
    ):
        image.save(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: {said}; a mask is a PNG whose pixels are"):
            read_mask(tmp_path / name, 255)


def test_damaged_and_huge_images_are_refused_by_name(tmp_path: Path, monkeypatch):
    half, huge = tmp_path / "half.jpg", tmp_path / "huge.png"
    Image.effect_noise((64, 64), 90).save(half)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    with Image.open(half) as image:
        image.verify()  # which is why `verify` is not what read_image uses
    with pytest.raises(UserError, match=r"half\.jpg: not a readable image .*Replace or remove"):
        read_image(half)
    assert image_size(half) == (64, 64), "its head is whole"
    Image.new("RGB", (50, 21)).save(huge)
    monkeypatch.setattr(images, "MAX_PIXELS", 1050)
    assert read_image(huge).size == (50, 21)
    monkeypatch.setattr(images, "MAX_PIXELS", 1049)
    with pytest.raises(UserError, match=r"huge\.png: .*50x21 pixels; at most 1,049 are read"):
        read_image(huge)
