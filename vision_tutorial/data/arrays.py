"""Data sets as folders of NumPy files, mapped into memory; `vision-tutorial pack` makes them."""

from pathlib import Path
from typing import Literal

from ..core import arrays as folder
from ..core.registry import datasets
from ..core.sources import ArraySource, check_split


@datasets.register
def arrays(split: str, *, root: str, verify: bool | Literal["auto"] = "auto") -> ArraySource:
    """A folder that `vision-tutorial pack` made: mapped, so it may be larger than the memory."""
    check_split(split)
    return folder.load(Path(root).expanduser(), split, verify)
