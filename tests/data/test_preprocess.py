"""Mix, normalise, erase: the end of the data path, against timm's loader arithmetic."""

import pytest
import torch
from data.test_pipeline import made, recipe
from torchvision.transforms.v2.functional import normalize

from vision_tutorial.data.loader import RawBatch
from vision_tutorial.data.pipeline import COLOURS, part


def raw(n: int = 6) -> RawBatch:
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    items = torch.stack([torch.full((n,), 2), torch.arange(n)], 1)
    return RawBatch(images.to(torch.uint8), torch.arange(n) % 10, items)


def pipeline(*more: str):
    return made(recipe("augment=[]", "mix=null", "normalize=none", *more))


PATHS = ("data.path=auto", "data.path=timm")  # compiled, and torch's own


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("last", [False, True])
def test_normalises_as_torchvision_and_bit_for_bit_as_timms_loader(path, last) -> None:
    for name, values in COLOURS.items():
        data = pipeline(path, f"channels_last={last}", f"normalize={name}")
        (batch,) = data.preprocess(raw())
        expected = normalize(raw().images.double() / 255, *map(list, values))
        torch.testing.assert_close(batch.images.double(), expected, atol=2e-6, rtol=0)
        mean, std = (torch.tensor([x * 255 for x in value]).view(1, 3, 1, 1) for value in values)
        assert torch.equal(batch.images, raw().images.float().sub(mean).div(std))
        layout = torch.channels_last if last else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("last", [False, True])
def test_parts_are_mixed_and_erased_as_the_whole_is(path, last) -> None:
    chain = "augment=[{random_erasing: {p: 0.9}}]"
    data = pipeline(path, f"channels_last={last}", "mix={cutmix: 1, mixup: 1}", chain)
    big, rows = raw(12), [part(12, i, 3) for i in range(3)]
    plain = pipeline(path)
    for step in range(4):
        (whole,), pieces = data.preprocess(big, step), data.preprocess(big, step, 3)
        for row, piece in zip(rows, pieces, strict=True):
            assert torch.equal(whole.images[row], piece.images)
            assert torch.equal(whole.target[row], piece.target)
    data.mixing = plain.mixing
    erased, clean = data.preprocess(big)[0].images, plain.preprocess(big)[0].images
    assert 0 < (erased != clean).float().mean() < 0.5


def test_versions_of_an_image_stand_behind_each_other() -> None:
    """AugMix's layout, as timm's AugMixDataset and its collate make it: all clean ones first."""
    versions = [raw(4).images + i for i in range(3)]
    data = pipeline("data.path=timm")
    (batch,) = data.preprocess(raw(4)._replace(images=torch.stack(versions, 1)))
    clean = data.preprocess(raw(4))[0].images
    assert batch.images.shape == (12, 3, 8, 8) and torch.equal(batch.images[:4], clean)
    last = (batch.images[8:].mul(255).round() - 2).remainder(256)
    assert torch.equal(last, clean.mul(255).round())
    assert batch.target.tolist() == [0, 1, 2, 3] * 3 and len(batch) == 4
