"""One copy of a data set on a machine, however many processes learn from it.

The first process of a machine lays the arrays down in files, the others map them, and then the
files lose their names: the memory lives as long as somebody maps it, and a process that is killed
leaves nothing behind. Sets that lie in files anyway (images, arrays folders) need none of this.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from ..core.arrays import mapped_array, new_array
from ..core.errors import UserError
from ..core.sources import ArraySource, Source


@dataclass(frozen=True)
class Offer:
    """What the first process of a machine tells the others: small, and safe to send."""

    folder: Path
    name: str
    classes: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    known_digest: str | None
    dense: bool
    keys: Sequence[str] | None


class Desk:
    """A private folder where arrays lie while processes take them up; it goes when that is done."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.notice: str | None = None

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_: type | BaseException | TracebackType | None) -> None:
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def lay_down(self, source: Source) -> Offer | None:
        """Write the arrays of a source in memory; None if it is none, or where there is no room."""
        if not isinstance(source, ArraySource) or isinstance(source.images, np.memmap):
            return None
        arrays = {"images": source.images, "targets": source.targets, "masks": source.masks}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="vision-tutorial-"))
            for name, array in arrays.items():
                new_array(self.folder / f"{name}.npy", name, array.shape)[:] = array
        except OSError as error:
            size = sum(array.nbytes for array in arrays.values()) / 2**20
            self.notice = (
                f"each process holds its own copy of the data set ({size:,.0f} MiB): it cannot be "
                f"shared through {tempfile.gettempdir()} ({error.strerror or error}); TMPDIR may "
                "name a folder with room."
            )
            return None
        shapes = {name: array.shape for name, array in arrays.items()}
        facts = (source.known_digest, source.dense, source.keys)
        return Offer(self.folder, source.name, source.classes, shapes, *facts)


def take_up(offer: Offer | None) -> ArraySource | None:
    """The source that was laid down, mapped; None if it cannot be seen from here."""
    if offer is None:
        return None
    try:
        mapped = {
            name: mapped_array(offer.folder / f"{name}.npy", name, shape)
            for name, shape in offer.shapes.items()
        }
    except UserError:  # another machine's, or this process has a temporary folder of its own
        return None
    return ArraySource(
        offer.name,
        mapped["images"],
        np.array(mapped["targets"]),  # few and often asked for
        offer.classes,
        mapped.get("masks"),
        offer.known_digest,
        offer.dense,
        offer.keys,
    )
