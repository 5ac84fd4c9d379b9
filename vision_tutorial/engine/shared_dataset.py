"""One copy of a data set on a machine, however many processes train on it.

The first process of a machine writes the arrays to files, the others map them, and then the files
are deleted: the memory lives as long as a process maps it, and a process that is killed leaves
nothing behind. Sets that lie in files anyway (images, arrays folders) need none of this.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.sources import ArraySource, Source

ARRAYS = ("images", "targets", "masks")
FACTS = ("name", "classes", "known_digest", "dense", "keys")


@dataclass
class SharedDataset:
    """What the first process of a machine sends to the others: small, without the arrays."""

    folder: Path | None = None  # None: nothing is shared
    facts: dict[str, Any] = field(default_factory=dict)
    notice: str | None = None

    def publish(self, source: Source | None) -> "SharedDataset":
        """Write the arrays of a source in memory, if it is one and there is room."""
        if not isinstance(source, ArraySource) or isinstance(source.images, np.memmap):
            return self
        arrays = {name: getattr(source, name) for name in ARRAYS}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="vision-tutorial-"))
            for name, array in arrays.items():
                np.save(self.folder / f"{name}.npy", array)
        except OSError as error:
            size = sum(array.nbytes for array in arrays.values()) / 2**20
            self.notice = (
                f"each process holds its own copy of the data set ({size:,.0f} MiB): it cannot be "
                f"shared through {tempfile.gettempdir()} ({error.strerror or error}); TMPDIR may "
                "name a folder with room."
            )
            return self
        self.facts = {name: getattr(source, name) for name in FACTS}
        return self

    def attach(self) -> ArraySource | None:
        """The source that was published, mapped; None if there is none or it is out of reach."""
        if not self.facts:
            return None
        paths = {name: self.folder / f"{name}.npy" for name in ARRAYS}
        try:
            mapped = {n: np.load(p, mmap_mode="r") for n, p in paths.items() if p.exists()}
            targets = np.array(mapped.pop("targets"))  # few and often asked for
            return ArraySource(targets=targets, **mapped, **self.facts)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # another machine's, or this process has a temporary folder of its own


@contextmanager
def sharing() -> Iterator[SharedDataset]:
    """A data set to publish, whose files are deleted at the end."""
    shared = SharedDataset()
    try:
        yield shared
    finally:
        if shared.folder:
            shutil.rmtree(shared.folder, ignore_errors=True)
