"""Mix, normalise, erase: the end of the data path, against timm's loader arithmetic."""

from functools import partial

import pytest
import torch
from timm.data.random_erasing import RandomErasing
from torchvision.transforms.v2.functional import normalize

from vision_tutorial.data import mix
from vision_tutorial.data.loader import RawBatch
from vision_tutorial.data.pipeline import COLOURS, Preprocessor, erase_per_image
from vision_tutorial.recipe.grammar import Term


def raw(n: int = 6) -> RawBatch:
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    items = torch.stack([torch.full((n,), 2), torch.arange(n)], 1)
    return RawBatch(images.to(torch.uint8), torch.arange(n), items)


def preprocessor(colours: str = "none", channels_last: bool = False, **more) -> Preprocessor:
    device = torch.device("cpu")
    return Preprocessor(
        device=device, colours=COLOURS[colours], channels_last=channels_last, **more
    )


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_normalises_as_torchvision_and_bit_for_bit_as_timms_loader(threads, channels_last) -> None:
    for name, values in COLOURS.items():
        batch = preprocessor(name, channels_last, threads=threads)(raw())
        expected = normalize(raw().images.double() / 255, *map(list, values))
        torch.testing.assert_close(batch.images.double(), expected, atol=2e-6, rtol=0)
        mean, std = (torch.tensor([x * 255 for x in value]).view(1, 3, 1, 1) for value in values)
        assert torch.equal(batch.images, raw().images.float().sub(mean).div(std))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=layout)


def test_erases_by_address_not_by_batch() -> None:
    boxes = [RandomErasing(probability=0.9, mode="pixel", device="cpu")]
    whole = preprocessor(erase=partial(erase_per_image, boxes, 4))
    together = whole(raw()).images
    alone = torch.cat([whole(piece).images for piece in raw().parts(3)])
    order = torch.cat([piece.target for piece in raw().parts(3)])
    assert torch.equal(together[order], alone)
    assert not torch.equal(together, preprocessor()(raw()).images)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_mixing_is_the_same_for_every_split_into_parts(threads, channels_last) -> None:
    mixing = mix.mix([Term("cutmix"), Term("mixup")])
    whole = preprocessor("half", channels_last, mixing=mixing, classes=12, seed=1, threads=threads)
    big = raw(12)
    for step in range(8):
        together, pieces = whole(big, step), list(whole.parts(big, step, 3))
        order = torch.cat([piece.target for piece in big.parts(3)])
        assert torch.equal(together.images[order], torch.cat([p.images for p in pieces]))
        assert torch.equal(together.target[order], torch.cat([p.target for p in pieces]))


def test_versions_of_an_image_stand_behind_each_other() -> None:
    """AugMix's layout, as timm's AugMixDataset and its collate make it: all clean ones first."""
    several = raw(4)
    several.images = torch.stack([several.images, several.images + 1, several.images + 2], 1)
    batch, clean = preprocessor()(several), preprocessor()(raw(4))
    assert batch.images.shape == (12, 3, 8, 8)
    assert torch.equal(batch.images[:4], clean.images)
    last = (batch.images[8:].mul(255).round() - 2).remainder(256)
    assert torch.equal(last, clean.images.mul(255).round())
    assert batch.target.tolist() == [0, 1, 2, 3] * 3
