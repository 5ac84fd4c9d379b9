"""Mix, normalise, erase: the end of the data path, against timm's loader arithmetic."""

from functools import partial

import pytest
import torch
from timm.data.random_erasing import RandomErasing
from torchvision.transforms.v2.functional import normalize as oracle

from vision_tutorial.data.loader import RawBatch
from vision_tutorial.data.pipeline import COLOURS, Preprocessor, erase_per_image

CPU = torch.device("cpu")
PLAIN = {"device": CPU, "colours": COLOURS["none"], "channels_last": False}


def raw(n: int = 6) -> RawBatch:
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    items = torch.stack([torch.full((n,), 2), torch.arange(n)], 1)
    return RawBatch(images.to(torch.uint8), torch.arange(n), items)


@pytest.mark.parametrize("name", COLOURS)
def test_normalises_as_torchvision_does(name: str) -> None:
    batch = Preprocessor(device=CPU, colours=COLOURS[name], channels_last=False)(raw())
    expected = oracle(raw().images.double() / 255, *map(list, COLOURS[name]))
    torch.testing.assert_close(batch.images.double(), expected, atol=2e-6, rtol=0)


def test_normalises_bit_for_bit_as_timms_prefetch_loader() -> None:
    mean, std = COLOURS["imagenet"]
    batch = Preprocessor(device=CPU, colours=(mean, std), channels_last=True)(raw())
    scaled = [torch.tensor([x * 255 for x in values]).view(1, 3, 1, 1) for values in (mean, std)]
    assert torch.equal(batch.images, raw().images.float().sub(scaled[0]).div(scaled[1]))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_erases_by_address_not_by_batch() -> None:
    erase = partial(
        erase_per_image, [RandomErasing(probability=0.9, mode="pixel", device="cpu")], 4
    )
    whole = Preprocessor(**PLAIN, erase=erase)
    together = whole(raw()).images
    alone = torch.cat([whole(piece).images for piece in raw().parts(3)])
    order = torch.cat([piece.target for piece in raw().parts(3)])
    assert torch.equal(together[order], alone)
    assert not torch.equal(
        together,
        Preprocessor(**PLAIN)(raw()).images,
    )


def test_mixing_is_the_same_for_every_split_into_parts() -> None:
    from vision_tutorial.data import mix
    from vision_tutorial.recipe.grammar import Term

    mixing = mix.mix([Term("cutmix"), Term("mixup")])
    finish = Preprocessor(**PLAIN, mixing=mixing, classes=12, seed=1)
    big = raw(12)
    for step in range(8):
        whole = finish(big, step)
        pieces = list(finish.parts(big, step, 3))
        order = torch.cat([piece.target for piece in big.parts(3)])
        assert torch.equal(whole.images[order], torch.cat([p.images for p in pieces]))
        assert torch.equal(whole.target[order], torch.cat([p.target for p in pieces]))


def test_versions_of_a_image_stand_behind_each_other() -> None:
    """AugMix's layout, as timm's AugMixDataset and its collate make it: all clean ones first."""
    several = raw(4)
    several.images = torch.stack([several.images, several.images + 1, several.images + 2], 1)
    batch = Preprocessor(**PLAIN)(several)
    clean = Preprocessor(**PLAIN)(raw(4))
    assert batch.images.shape == (12, 3, 8, 8)
    assert torch.equal(batch.images[:4], clean.images)
    last = (batch.images[8:].mul(255).round() - 2).remainder(256)
    assert torch.equal(last, clean.images.mul(255).round())
    assert batch.target.tolist() == [0, 1, 2, 3] * 3
