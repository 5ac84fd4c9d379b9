"""Looks, windows and ensembles against loops, with a network that is a known function."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vision_tutorial.core.errors import UserError
from vision_tutorial.engine import tta


def dense(seed: int = 0, classes: int = 3) -> nn.Module:
    """Logits of each pixel from its neighbourhood; not symmetric, so that mirroring matters."""
    torch.manual_seed(seed)
    return nn.Conv2d(3, classes, 5, padding=2).eval()


def image(height: int = 12, width: int = 16) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def test_looks_are_turned_back_and_come_to_the_size_of_the_image() -> None:
    network, images = dense(), image()
    small = resized(images, (6, 8))
    views = [
        network(images).softmax(1),
        network(images.flip(-1)).softmax(1).flip(-1),
        resized(network(small), (12, 16)).softmax(1),
        resized(network(small.flip(-1)).flip(-1), (12, 16)).softmax(1),
    ]
    found = tta.prediction_function([network], "hflip,0.5")(images)
    torch.testing.assert_close(found.exp(), sum(views) / 4)


@torch.no_grad()
def test_answers_about_the_whole_image_need_no_turning() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(27, 4))
    images = image()
    found = tta.prediction_function([network], "hflip,0.5")(images).exp()
    small = resized(images, (6, 8))
    views = (images, images.flip(-1), small, small.flip(-1))
    torch.testing.assert_close(found, sum(network(view).softmax(1) for view in views) / 4)


@torch.no_grad()
@pytest.mark.parametrize(("size", "stride"), [(5, 3), (8, None), (40, None)])
def test_windows_average_where_they_overlap(size: int, stride: int | None) -> None:
    network, images = dense(), image()
    total, times = torch.zeros(2, 3, 12, 16), torch.zeros(12, 16)
    step = stride or 2 * size // 3
    for top in sorted({*range(0, max(12 - size, 0), step), max(12 - size, 0)}):
        for left in sorted({*range(0, max(16 - size, 0), step), max(16 - size, 0)}):
            rows, columns = slice(top, top + size), slice(left, left + size)
            total[..., rows, columns] += network(images[..., rows, columns]).softmax(1)
            times[rows, columns] += 1
    assert times.min() >= 1
    found = tta.sliding_window(network, size, stride)(images)
    torch.testing.assert_close(found.exp(), total / times)


@torch.no_grad()
def test_a_soft_ensemble_is_the_mean_of_probabilities() -> None:
    networks, images = [dense(seed) for seed in range(3)], image()
    mean = sum(network(images).softmax(1) for network in networks) / 3
    torch.testing.assert_close(tta.mean_probability(networks)(images).exp(), mean)
    sure = torch.tensor([[200.0, 0.0, 0.0]])
    same = tta.mean_probability([lambda _: sure] * 2)(images)
    torch.testing.assert_close(same, sure.log_softmax(1))


def test_a_hard_ensemble_is_the_majority_and_ties_go_to_the_earliest() -> None:
    generator = torch.Generator().manual_seed(3)
    said = [torch.randn(1, 4, 9, 11, generator=generator) for _ in range(4)]
    found = tta.majority_vote([lambda _, x=x: x for x in said])(image()).argmax(1)[0]
    ballots = torch.stack([x.argmax(1)[0] for x in said])
    for y in range(9):
        for x in range(11):
            votes = ballots[:, y, x].tolist()
            most = max(map(votes.count, votes))
            assert found[y, x] == next(v for v in votes if votes.count(v) == most)


def test_looks_as_they_are_written() -> None:
    assert (
        tta.parse_tta("none") == tta.parse_tta("1.0") == [(1.0, False)]
    )  # as it is, it always counts
    assert tta.parse_tta("hflip,0.5") == [(0.5, False), (0.5, True), (1.0, False), (1.0, True)]
    same = dense()
    assert tta.prediction_function([same]) is same
    for words in ("vflip", "0", "5", "hflip,", "nan"):
        with pytest.raises(UserError, match="--tta"):
            tta.parse_tta(words)
    with pytest.raises(UserError, match="--stride: 6 leaves gaps between windows of 5"):
        tta.sliding_window(same, 5, 6)
