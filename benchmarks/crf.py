"""The dense CRF beside pydensecrf2's, in turn in one process: seconds, memory, agreement.

    python benchmarks/crf.py [IMAGE] [--size 512] [--classes 12] [--rounds 9] [--threads 1]

pydensecrf2 comes as source: `uv pip install --no-deps pydensecrf2==1.1` builds it (a C++ compiler,
about a minute; Python 3.11 or 3.12). Without IMAGE, one is drawn. The probabilities are coarse
random fields with noise on every pixel. pydensecrf2 knows one thread; `--threads` are ours.
"""

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from vision_tutorial.benchmarking.child import in_child, peak_memory
from vision_tutorial.benchmarking.timed_pairs import in_turn, spread
from vision_tutorial.segmentation.dense_crf import dense_crf

Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]


def ours(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """dense_crf with its defaults."""
    return dense_crf(image, torch.from_numpy(probabilities)).numpy()


def theirs(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """pydensecrf2 with the same settings."""
    from pydensecrf.densecrf import DenseCRF2D

    classes, height, width = probabilities.shape
    model = DenseCRF2D(width, height, classes)
    unary = -np.log(probabilities.clip(1e-5, 1)).reshape(classes, -1)
    model.setUnaryEnergy(np.ascontiguousarray(unary))
    model.addPairwiseGaussian(sxy=1, compat=3)
    model.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    return np.array(model.inference(10)).reshape(probabilities.shape)


def example(path: str | None, size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 (size, size, 3) and probabilities float32 (classes, size, size)."""
    rng = np.random.default_rng(0)
    if path:
        image = np.array(Image.open(path).convert("RGB").resize((size, size)))
    else:
        patches = rng.integers(0, 200, (size // 64, size // 64, 3)).repeat(64, 0).repeat(64, 1)
        shade = np.linspace(0, 40, size)[:, None, None]
        noisy = patches + shade + rng.normal(0, 4, patches.shape)
        image = noisy.clip(0, 255).astype(np.uint8)
    fields = torch.from_numpy(rng.normal(0, 2, (1, classes, size // 32, size // 32)))
    scores = F.interpolate(fields, (size, size), mode="bilinear")[0]
    scores += torch.from_numpy(rng.normal(0, 0.3, scores.shape))
    return image, scores.softmax(0).float().numpy()


def seconds(refine: Refine, *given: np.ndarray) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    refine(*given)
    return time.perf_counter() - began


def memory(refine: Refine, path: str | None, size: int, classes: int) -> int:
    """Bytes that the process grows by at most, after a small call that loads what is needed."""
    given = example(path, size, classes)
    refine(*example(None, 64, classes))
    before = peak_memory()
    refine(*given)
    return peak_memory() - before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("image", nargs="?")
    for name, default in (("size", 512), ("classes", 12), ("rounds", 9), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asked = options.image, options.size, options.classes
    sides = {"ours": ours, "pydensecrf2": theirs}
    # First, since OpenMP's threads of this process would not live in a fork.
    peaks = [in_child(memory, side, *asked) for side in sides.values()]
    given = example(*asked)
    calls = [lambda side=side: seconds(side, *given) for side in sides.values()]
    times = in_turn(calls, options.rounds, lambda line: None)
    size = "x".join(map(str, given[1].shape[::-1]))
    print(f"{size}, 10 iterations; {platform.machine()}, our threads: {options.threads}; ", end="")
    print(f"torch {torch.__version__}, n = {options.rounds}\n")
    print("| | seconds: median (quartiles) | memory beyond the start, MB |\n|---|---|---|")
    for name, values, peak in zip(sides, times, peaks, strict=True):
        s = spread(values)
        middle = f"{s['median']:.3f} ({s['lower']:.3f} … {s['upper']:.3f})"
        print(f"| {name} | {middle} | {peak / 1e6:.0f} |")
    ratio = spread([a / b for a, b in zip(*times, strict=True)])
    same = (ours(*given).argmax(0) == theirs(*given).argmax(0)).mean()
    quartiles = f"{ratio['lower']:.2f} … {ratio['upper']:.2f}"
    print(f"\nours / pydensecrf2, pair by pair: {ratio['median']:.2f} ({quartiles}); ", end="")
    print(f"same class: {100 * same:.4f} % of the pixels")


if __name__ == "__main__":
    main()
