"""What timm's and torchvision's operations mean in numbers, against the images that they make."""

import numpy as np
import pytest
from data.oracle import FILL, drawn, expected
from PIL import Image
from timm.data import auto_augment as timm_policies
from torchvision import transforms as tv
from torchvision.transforms.autoaugment import _apply_op

from vision_tutorial.data.augmentation.operation import BatchedOp, Op
from vision_tutorial.data.augmentation.policies import timm_rows, torchvision_rows

SIZE = (32, 27)
BLURS = {"GaussianBlur", "GaussianBlurRand"}
NAMES = sorted(set(timm_policies.NAME_TO_OP) - BLURS)
LEVELS = [0.0, 0.3, 2.5, 4, 6.2, 8, 9.99, 10]


@pytest.fixture(scope="module")
def images():
    return [Image.fromarray(image) for image in drawn(np.random.default_rng(5), 8, *SIZE)]


def carried_out(image, made):
    """One row (codes, args) by Pillow, bilinear where it matters."""
    codes, args = made
    assert codes.shape == (1,) and args.shape[0] == 1
    args = args.copy()
    if codes[0] == Op.AFFINE:
        args[0, 6] = 1
    return expected(image, codes[0], args[0], BatchedOp(codes, args, SIZE, FILL))


class Script:
    """Stands in for Python's `random` inside timm: the sign is what the test says."""

    def __init__(self, minus):
        self.minus = minus

    def random(self):
        return 0.9 if self.minus else 0.1


@pytest.mark.parametrize("minus", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_timm(monkeypatch, name, minus, images):
    monkeypatch.setattr(timm_policies, "random", Script(minus))
    changed = 0
    for level, image in zip(LEVELS, images * 2, strict=False):
        hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BILINEAR}
        op = timm_policies.AugmentOp(name, 1.0, level, hparams | {"translate_const": 250})
        made = timm_rows(name, np.array([float(level)]), np.array([minus]), SIZE)
        if made[0][0] == Op.POSTERIZE and made[1][0, 0] <= 0:
            wanted = Image.new("RGB", image.size)  # Pillow 13 refuses
        else:
            wanted = op(image)
        assert carried_out(image, made).tobytes() == wanted.tobytes(), (level, made)
        changed += wanted.tobytes() != image.tobytes()
    assert changed > len(LEVELS) / 3


SPACES = {
    "cifar10": tv.AutoAugment(tv.AutoAugmentPolicy.CIFAR10)._augmentation_space(10, SIZE),
    "trivial": tv.TrivialAugmentWide()._augmentation_space(31),
}


@pytest.mark.parametrize("space", SPACES)
def test_torchvision(space, images):
    for name, (magnitudes, has_sign) in SPACES[space].items():
        values = magnitudes.tolist() if magnitudes.ndim else [0.0]
        for place, value in enumerate(values):
            image, mode = images[place % len(images)], tv.InterpolationMode.BILINEAR
            codes, args = torchvision_rows(SPACES[space], name, place, SIZE)
            for row, sign in enumerate((1, -1 if has_sign else 1)):
                wanted = _apply_op(image, name, sign * value, mode, list(FILL))
                made = codes[row : row + 1], args[row : row + 1]
                assert carried_out(image, made).tobytes() == wanted.tobytes(), (name, sign * value)
