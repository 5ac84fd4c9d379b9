"""What timm's and torchvision's named operations mean in numbers, for many images at once.

Levels and magnitudes become the arguments of `operations.Op`, by the formulas that timm and
torchvision apply to one image. The policies' tables themselves are read from those libraries.
"""

import math
from collections.abc import Callable

import numpy as np
from torchvision.transforms import functional as tv

from .operation import Op, Rows, rows

PLAIN = {"AutoContrast": Op.AUTOCONTRAST, "Equalize": Op.EQUALIZE, "Invert": Op.INVERT}
ENHANCING = {
    "Color": Op.COLOR,
    "Contrast": Op.CONTRAST,
    "Brightness": Op.BRIGHTNESS,
    "Sharpness": Op.SHARPNESS,
}
FULL = 10.0  # timm's levels go from 0 to this


def timm_operation(
    name: str, level: np.ndarray, minus: np.ndarray, size: tuple[int, int]
) -> Rows | None:
    """timm's operation at `level` (n,), 0 to its maximum; `minus` (n,): whether negated.

    The filter's place in affine rows is left at 0. None for a name that has no batched form.
    """
    n, part = len(level), level / FULL
    sign = np.where(minus, -1.0, 1.0)
    base = name.removesuffix("Increasing").removesuffix("Original")
    if name in PLAIN:
        return rows(n, PLAIN[name])
    if base in ENHANCING:
        grows = name != base
        factor = np.maximum(0.1, 1.0 + sign * (part * 0.9)) if grows else part * 1.8 + 0.1
        return rows(n, ENHANCING[base], factor)
    if name in TIMM_TABLES:
        code, argument = TIMM_TABLES[name]
        return rows(n, code, argument(part))
    if name in TIMM_AFFINE:
        return rows(n, Op.AFFINE, *TIMM_AFFINE[name](part, sign, *size))
    return None


TIMM_TABLES: dict[str, tuple[int, Callable]] = {
    "Posterize": (Op.POSTERIZE, lambda part: np.trunc(part * 4)),
    "PosterizeIncreasing": (Op.POSTERIZE, lambda part: 4 - np.trunc(part * 4)),
    "PosterizeOriginal": (Op.POSTERIZE, lambda part: np.trunc(part * 4) + 4),
    "Solarize": (Op.SOLARIZE, lambda part: np.minimum(256, np.trunc(part * 256))),
    "SolarizeIncreasing": (Op.SOLARIZE, lambda part: 256 - np.minimum(256, np.trunc(part * 256))),
    "SolarizeAdd": (Op.SOLARIZE_ADD, lambda part: np.minimum(128, np.trunc(part * 110))),
    "Desaturate": (
        Op.COLOR,
        lambda part: np.clip(1.0 - np.clip(0.5 + 0.5 * part, 0.5, 1.0), 0.0, 1.0),
    ),
}
TIMM_AFFINE: dict[str, Callable] = {
    "Rotate": lambda part, sign, h, w: rotation(sign * (part * 30.0), h, w),
    "ShearX": lambda part, sign, h, w: (1, sign * (part * 0.3), 0, 0, 1, 0),
    "ShearY": lambda part, sign, h, w: (1, 0, 0, sign * (part * 0.3), 1, 0),
    "TranslateXRel": lambda part, sign, h, w: (1, 0, sign * (part * 0.45) * w, 0, 1, 0),
    "TranslateYRel": lambda part, sign, h, w: (1, 0, 0, 0, 1, sign * (part * 0.45) * h),
    "TranslateX": lambda part, sign, h, w: (1, 0, sign * (part * 250.0), 0, 1, 0),
    "TranslateY": lambda part, sign, h, w: (1, 0, 0, 0, 1, sign * (part * 250.0)),
}


def rotation(degrees: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Pillow's `rotate` about the middle, counter-clockwise: a, b, c, d, e, f, each (n,)."""
    # Python's cosine and its rounding to 15 digits, as in Pillow; NumPy's differ in the last bit.
    different, which = np.unique(degrees % 360.0, return_inverse=True)
    angles = [-math.radians(angle) for angle in different.tolist()]
    cosine = np.array([round(math.cos(angle), 15) for angle in angles])[which]
    sine = np.array([round(math.sin(angle), 15) for angle in angles])[which]
    minus = -sine
    x, y = width / 2, height / 2
    across = cosine * -x + sine * -y + 0.0 + x
    down = minus * -x + cosine * -y + 0.0 + y
    return cosine, sine, across, minus, cosine, down


def torchvision_operation(name: str, magnitude: float, size: tuple[int, int]) -> Rows:
    """One row of torchvision's operation; `magnitude` has its sign."""
    if name == "Identity":
        return rows(1, Op.NONE)
    if name in PLAIN:
        return rows(1, PLAIN[name])
    if name in ENHANCING:
        return rows(1, ENHANCING[name], 1.0 + magnitude)
    if name == "Posterize":
        return rows(1, Op.POSTERIZE, int(magnitude))
    if name == "Solarize":
        return rows(1, Op.SOLARIZE, magnitude)
    if name == "Rotate":
        return rows(1, Op.AFFINE, *rotation(np.array([magnitude]), *size))
    return rows(1, Op.AFFINE, *torchvision_matrix(name, magnitude, size))


def torchvision_matrix(name: str, magnitude: float, size: tuple[int, int]) -> list[float]:
    """The matrix of ShearX, ShearY, TranslateX, TranslateY, as torchvision gives it to Pillow."""
    lean = math.degrees(math.atan(magnitude))
    middle = [size[1] * 0.5, size[0] * 0.5]
    centre, move, shear = {
        "ShearX": ([0, 0], [0, 0], [lean, 0.0]),
        "ShearY": ([0, 0], [0, 0], [0.0, lean]),
        "TranslateX": (middle, [int(magnitude), 0], [0.0, 0.0]),
        "TranslateY": (middle, [0, int(magnitude)], [0.0, 0.0]),
    }[name]
    return tv._get_inverse_affine_matrix(centre, 0.0, move, 1.0, shear)
