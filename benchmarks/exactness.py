"""Every operation of the batched path against Pillow on real images, as a Markdown table.

    python benchmarks/exactness.py [RECIPE …]      (default: recipes/r4.yaml and its kin)

The images are the data set's of the first recipe (CIFAR-100: 10,000 of its test split for each
operation, all 50,000 of its training split for whole chains, as its first epoch would see them).
The oracle is tests/data/oracle.py, which calls Pillow and torchvision, one image at a time.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from data.oracle import ORIGINAL, by_pillow, random_slot  # noqa: E402

from vision_tutorial import build  # noqa: E402, F401  (fills the registries)
from vision_tutorial.core import registry  # noqa: E402
from vision_tutorial.core.sources import base  # noqa: E402
from vision_tutorial.data.augmentation.operation import BatchedOp, Op  # noqa: E402
from vision_tutorial.data.executors import cpu, tensors  # noqa: E402
from vision_tutorial.data.loader import batched_plan  # noqa: E402
from vision_tutorial.recipe.loading import load  # noqa: E402

RECIPES = [ROOT / "recipes" / f"{name}.yaml" for name in ("r0", "r4-tuned", "r4")]


def by_tensors(images: np.ndarray, slots: list[BatchedOp]) -> np.ndarray:
    """The same by tensors.py, some thousand at a time, on a GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for first in range(0, len(images), 2000):
        rows = slice(first, first + 2000)
        some = [
            BatchedOp(s.codes[rows], s.args[rows], s.size, s.fill, s.rows, s.columns) for s in slots
        ]
        batch = torch.tensor(images[rows], device=device).permute(0, 3, 1, 2)
        found.append(tensors.apply(batch, some).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(found)


def compared(title: str, images: np.ndarray, slots: list[BatchedOp]) -> str:
    """A row: images, values that differ, by how much at most, for both executors."""
    wanted = by_pillow(images, slots)
    cells = [title, f"{len(images):,}"]
    for found in (
        cpu.apply(images, np.arange(len(images)), slots, 2),
        by_tensors(images, slots),
    ):
        apart = np.abs(found.astype(int) - wanted)
        cells += [f"{np.count_nonzero(apart):,}", str(apart.max())]
    return f"| {' | '.join(cells)} |"


def rows(recipes: list[Path]) -> Iterator[str]:
    """The table, then the frequencies of timm's original policy."""
    first = load(recipes[0]).recipe
    make = registry.datasets.build(first.dataset.name, **first.dataset.options)
    test, train = (np.asarray(base(make(split)).images) for split in ("test", "train"))
    versions = f"Pillow {PIL.__version__}, torch {torch.__version__}"
    yield f"Images of {first.dataset.name}; {versions}, NumPy {np.__version__}."
    yield ""
    yield "| operation | images | compiled: values that differ | by | tensors: differ | by |"
    yield "|---|---|---|---|---|---|"
    for op in Op:
        if op != Op.NONE:
            rng = np.random.default_rng(op)
            slot = random_slot(op, rng, len(test), *test.shape[1:3])
            yield compared(op.name.lower(), test, [slot])
    items = np.stack([np.zeros(len(train), int), np.arange(len(train))], 1)
    for path in recipes:
        made = batched_plan(load(path).recipe)
        slots = made.ops(items, train.shape[1:3])
        yield compared(f"all of {path.stem}'s chain", train, slots)
        policy = [choice for choice in load(path).recipe.augment if choice.name == "auto_augment"]
        if policy and policy[0].options["policy"] == "original":
            yield ""
            yield chi2(path.stem, slots[-2:])


def chi2(name: str, slots: list[BatchedOp]) -> str:
    """Counts of operations against timm's original policy, whose pairs are the last two slots."""
    count = len(slots[0].codes)
    found = Counter(np.concatenate([slot.codes for slot in slots]).tolist())
    value = sum((found[op] - p * count) ** 2 / (p * count) for op, p in ORIGINAL.items())
    shares = ", ".join(f"{op.name.lower()} {found[op] / count:.4f}" for op in ORIGINAL)
    degrees = len(ORIGINAL)
    return (
        f"Operations an image of {name}'s first epoch: {shares}. Chi-square against timm's "
        f"policy: {value:.1f} with {degrees} degrees of freedom (mean {degrees}, 95 % below 16.9)."
    )


if __name__ == "__main__":
    for line in rows([Path(name) for name in sys.argv[1:]] or RECIPES):
        print(line, flush=True)
