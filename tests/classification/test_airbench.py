"""The speed-runs' network: its size is the paper's, its whitening is checked on real images."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vision_tutorial.classification.airbench import airbench
from vision_tutorial.classification.datasets import cifar100
from vision_tutorial.core.errors import UserError
from vision_tutorial.engine.profiling import cost


def test_it_is_as_large_as_the_papers() -> None:
    model = airbench(10)
    parameters, macs = cost(model, 32)
    assert parameters == pytest.approx(1.97e6, rel=0.005)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    # 31, 15, 7 pixels behind the convolutions' pools, by hand
    places = [(24 * 64, 961), (64 * 64, 225), (64 * 256, 225), (256 * 256, 49 + 49 + 9)]
    by_hand = 12 * 24 * 961 + sum(9 * weights * size for weights, size in places) + 2560
    assert macs == by_hand


def test_patches_are_whitened(data_root: Path) -> None:
    images = torch.from_numpy(cifar100("train").images[:5000]).permute(0, 3, 1, 2)
    mean, std = torch.tensor([[0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]])
    images = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        seen = airbench(100).features[0](images).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(seen[:12], -seen[12:])
    together = seen[:12] @ seen[:12].T / seen.shape[1]
    variances = together.diag()
    assert (variances[:11] - 1).abs().max() < 0.25  # the last is hardly there, and kept low
    share = together / (variances[:, None] * variances).sqrt() - torch.eye(12)
    assert share.abs().max() < 0.32


def test_convolutions_begin_as_the_identity() -> None:
    first = next(m for m in airbench(10).features[1:] if isinstance(m, nn.Conv2d))
    images = torch.randn(2, 24, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(first(images)[:, :24], images)


def test_what_learns() -> None:
    model = airbench(10, channels=[8, 8], depth=1)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == {"features.0.weight"}


def test_channels_are_checked() -> None:
    with pytest.raises(UserError, match=r"airbench: channels is \[8, 0\]; a number in \[1, inf\)"):
        airbench(10, channels=[8, 0])
    with pytest.raises(UserError, match="airbench: depth is 0"):
        airbench(10, depth=0)
