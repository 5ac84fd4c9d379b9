"""Class ids <-> class maps, against loops over single positions."""

import pytest
import torch

from vision_tutorial.core.task import (
    IGNORE,
    VOID,
    from_masks,
    is_map,
    mix,
    to_ids,
    to_map,
    to_masks,
    valid,
)

SHAPES = [(6,), (4, 3), (3, 2, 5), (2, 3, 2, 2)]


def ids_of(shape, classes=4, ignored=True):
    draw = torch.Generator().manual_seed(len(shape))
    ids = torch.randint(classes, shape, generator=draw)
    if ignored:
        ids[torch.rand(shape, generator=draw) < 0.3] = IGNORE
    return ids


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back(shape):
    ids = ids_of(shape)
    made = to_map(ids, 4)
    assert made.shape == (shape[0], 4, *shape[1:])
    assert made.dtype == torch.float32
    assert is_map(made)
    assert not is_map(ids)
    assert torch.equal(to_ids(made), ids)
    assert to_ids(ids) is ids and to_map(made, 4) is made
    assert torch.equal(valid(made), ids != IGNORE)
    assert torch.equal(valid(ids), ids != IGNORE)
    for position in torch.cartesian_prod(*[torch.arange(n) for n in shape]).view(-1, len(shape)):
        first, *rest = position.tolist()
        cell = made[(first, slice(None), *rest)].tolist()
        label = ids[(first, *rest)].item()
        assert cell == [float(label == c) for c in range(4)]


def test_255_is_a_class_like_any_other():
    ids = torch.tensor([255, IGNORE])
    assert to_map(ids, 1000)[0].argmax() == 255
    assert valid(ids).tolist() == [True, False]


def test_ids_of_a_map_are_its_largest_share():
    shares = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 0.0], [0.4, 0.2, 0.4]])
    assert to_ids(shares).tolist() == [1, IGNORE, 0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_mix_is_the_weighted_sum_of_distributions(shape, share):
    one, other = ids_of(shape), ids_of(shape).flip(0)
    mixed = mix(one, other, share, 4)
    expected = share * to_map(one, 4) + (1 - share) * to_map(other, 4)
    assert torch.equal(mixed, expected)
    assert torch.equal(mix(to_map(one, 4), other, share, 4), expected)


def test_a_share_may_differ_by_pixel():
    one, other = ids_of((2, 3, 2), ignored=False), ids_of((2, 3, 2), ignored=False).flip(0)
    by_pixel = torch.rand(2, 1, 3, 2)
    mixed = mix(one, other, by_pixel, 4)
    for b, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2)).tolist():
        expected = torch.zeros(4)
        expected[one[b, y, x]] += by_pixel[b, 0, y, x]
        expected[other[b, y, x]] += 1 - by_pixel[b, 0, y, x]
        assert torch.allclose(mixed[b, :, y, x], expected)


def test_masks_come_back_as_they_were():
    masks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    ids = from_masks(masks)
    assert ids[masks == VOID].tolist() == [IGNORE]
    assert torch.equal(to_masks(ids), masks) and to_masks(ids).dtype == torch.uint8
