"""Images of numbers: learning rates, losses, metrics, from the code that training uses."""

import math
from pathlib import Path

import numpy as np
import torch
from drawing import Block, Line, beside, chart, tiles
from torch import Tensor

from vision_tutorial import build
from vision_tutorial.core import registry
from vision_tutorial.data import mix
from vision_tutorial.losses import WeightedSum
from vision_tutorial.recipe.fields import Balance, Recipe
from vision_tutorial.recipe.grammar import Term
from vision_tutorial.recipe.loading import load
from vision_tutorial.segmentation.metrics import Overlap
from vision_tutorial.segmentation.visualisation import overlay

RECIPES = Path(__file__).parent.parent / "recipes"
REGIONS = ("dice", "jaccard", "tversky", "lovasz", "cross_entropy")


def recipe(name: str, *overrides: str) -> Recipe:
    """One of the package's recipes, changed."""
    return load(RECIPES / f"{name}.yaml", overrides).recipe


def momentum() -> Block:
    """The way down a long valley, with more and more momentum."""
    lines = []
    for share in (0.0, 0.4, 0.9):
        place = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
        options = {"lr": 0.02, "momentum": share, "nesterov": share > 0}
        optimizer = registry.optimizers.build("sgd", **options)([place])
        far = []
        for _ in range(150):
            far.append(place.detach().norm().item())
            optimizer.zero_grad()
            (0.5 * (place * torch.tensor([1.0, 40.0]) * place).sum()).backward()
            optimizer.step()
        lines.append(Line(f"momentum {share:g}", range(150), far))
    title = "½ (x² + 40 y²), lr 0.02, from (1, 1)"
    return chart(title, "step", "distance to the lowest point", lines, y_range=(0, 1.5))


def weight_decay() -> Block:
    """What is left of a weight that no gradient holds."""
    lines = []
    for name, decay in (("r0", 1e-9), ("r4-tuned", 5e-4), ("r1", 1e-3)):
        made = recipe(name)
        steps = 50_000 // made.batch_size
        rates = build.learning_rates(made, steps)
        weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
        weight.grad = torch.zeros_like(weight)
        optimizer = registry.optimizers.build("sgd", **made.optimizer.options)([weight])
        left = []
        for step in range(12 * steps):
            if step % steps == 0:
                left.append(weight.item())
            optimizer.param_groups[0]["lr"] = rates(step, ())
            optimizer.step()
        lines.append(Line(f"{name}, {decay:g}", range(12), left))
    return chart(
        "with each recipe's own lr, momentum and batches",
        "epoch",
        "share of the weight",
        lines,
        y_range=(0, 1),
    )


def warmup_cosine() -> Block:
    """The lr of r0, r1 and r4, and its first epochs."""
    lines = []
    for name in ("r0", "r1", "r4"):
        made = recipe(name)
        rates, epochs = build.learning_rates(made, 1), made.total_epochs
        lines.append(Line(name, range(epochs), [rates(n, ()) for n in range(epochs)]))
    front = recipe("r1", "warmup={epochs: 5, lr: 0.01, mode: front}")
    rates = build.learning_rates(front, 1)
    first = [
        Line("r1: overlap", range(14), list(lines[1].y[:14])),
        Line("mode: front", range(14), [rates(n, ()) for n in range(14)], dashed=True),
    ]
    near = {"x_range": (3, 13), "y_range": (0.244, 0.251), "width": 240}
    return beside(
        chart("the whole training", "epoch", "lr", lines, y_range=(0, 0.26)),
        chart("near the peak", "epoch", "lr", first, **near),
    )


def label_smoothing() -> Block:
    """The loss as a function of p_y, with 100 classes."""
    p = torch.linspace(0.01, 0.999, 200, dtype=torch.float64)
    logits = spread(p, 100)
    target = torch.zeros(len(p), dtype=torch.int64)
    lines = [
        Line(f"ε = {epsilon:g}", p.tolist(), one_by_one("label_smoothing", logits, target, **o))
        for epsilon in (0.0, 0.1, 0.2)
        for o in [{"epsilon": epsilon}]
    ]
    title = "100 classes; what p_y leaves is shared equally by the others"
    return chart(title, "p_y, probability of the right class", "loss", lines, y_range=(0, 5))


def few_batches() -> Block:
    """The least loss that CutMix leaves possible, over all batches of an epoch and over three."""
    made = recipe("r3")
    stir = mix.Mix(made.mix)
    images, target = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1])
    all_batches, few = [], []
    steps = 50_000 // made.batch_size
    for epoch in range(20):
        floors = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            _, shares = stir(images, target, 100, made.seed, step)
            smoothed = 0.9 * shares[0].double() + 0.001
            floors.append(-(smoothed * smoothed.log()).sum().item())
        all_batches.append(sum(floors) / steps)
        few.append(sum(floors[:: steps // 3][:3]) / 3)
    lines = [
        Line("mean over 3 batches", range(20), few),
        Line("mean over all 97 batches", range(20), all_batches),
    ]
    title = "r3's CutMix and label smoothing, a network that is always right"
    return chart(title, "epoch", "training loss", lines, y_range=(0.9, 1.6))


def pixel_losses() -> Block:
    """Losses of single positions over the probability of the right class."""
    p = torch.linspace(0.01, 0.999, 150, dtype=torch.float64)
    logits, target = spread(p, 10), torch.zeros(len(p), dtype=torch.int64)
    softmax = {
        "cross_entropy": ("cross_entropy", {}),
        "label_smoothing 0.1": ("label_smoothing", {"epsilon": 0.1}),
        "focal, gamma 1": ("focal", {"gamma": 1.0}),
        "focal, gamma 2": ("focal", {"gamma": 2.0}),
        "focal, gamma 5": ("focal", {"gamma": 5.0}),
    }
    first = [
        Line(label, p.tolist(), one_by_one(name, logits, target, **options))
        for label, (name, options) in softmax.items()
    ]
    second = [
        Line(f"{name}, {kind} class", p.tolist(), of_one_class(name, p, there), dashed=not there)
        for name in ("bce", "focal_ovr")
        for kind, there in (("right", True), ("wrong", False))
    ]
    ten, one = "p_y (10 classes)", "probability of one class"
    return beside(
        chart("softmax: classes compete", ten, "loss", first, y_range=(0, 5)),
        chart("sigmoid: one class against the rest", one, "loss", second, y_range=(0, 5)),
    )


def of_one_class(name: str, p: Tensor, there: bool) -> list[float]:
    """A sigmoid loss over the probability p (N,) of a class, beside one that is got right."""
    sure = torch.full_like(p, -40.0 if there else 40.0)  # the other class: absent, or there
    target = torch.tensor([[1.0, 0.0] if there else [0.0, 1.0]], dtype=p.dtype).expand(len(p), 2)
    values = one_by_one(name, torch.stack([torch.logit(p), sure], 1), target)
    return [2 * value for value in values]  # the mean is over two classes


def hard_positions() -> Block:
    """An image of easy positions, more and more of which are hard; and copies that disagree."""
    shares = np.linspace(0, 1, 51)
    lines = []
    for name, options in (("cross_entropy", {}), ("focal", {}), ("ohem", {"min_kept": 100})):
        values = []
        for share in shares:
            hard = int(round(share * 1000))
            p = torch.tensor([0.3] * hard + [0.95] * (1000 - hard), dtype=torch.float64)
            logits = spread(p, 10).T.unsqueeze(0)
            values += one_by_one(name, logits, torch.zeros(1, 1000, dtype=torch.int64), **options)
        lines.append(Line(name, shares.tolist(), values))
    p = torch.linspace(0.05, 0.95, 91, dtype=torch.float64)
    apart = [
        registry.losses.build("jsd")(
            torch.cat([spread(p.new_tensor([0.95]), 10)] + 2 * [spread(q.view(1), 10)]),
            torch.zeros(3, dtype=torch.int64),
        ).item()
        for q in p
    ]
    return beside(
        chart("p_y 0.3 where hard, 0.95 elsewhere", "share that is hard", "loss", lines),
        chart(
            "jsd: the clean image has p_y 0.95",
            "p_y of both copies",
            "loss",
            [Line("jsd, alpha 12", p.tolist(), apart)],
            width=240,
        ),
    )


def spread(p: Tensor, classes: int) -> Tensor:
    """Logits (N, classes) that give class 0 the probability p (N,) and the others equal shares."""
    others = ((1 - p) / (classes - 1)).unsqueeze(1).expand(-1, classes - 1)
    return torch.cat([p.unsqueeze(1), others], 1).log()


def one_by_one(name: str, logits: Tensor, target: Tensor, **options: object) -> list[float]:
    """A loss of the registry for each row of logits (N, C, …) alone."""
    loss = registry.losses.build(name, **options)
    return [loss(logits[i : i + 1], target[i : i + 1]).item() for i in range(len(logits))]


def region_losses() -> Block:
    """A square that is predicted in the wrong place, or too small and too large."""
    truth = square(20, 44)
    shifts, sizes = range(0, 33), range(2, 48, 2)
    moved = [compared(square(20 + n, 44 + n, rows=(20, 44)), truth) for n in shifts if 44 + n <= 64]
    grown = [compared(square(32 - n // 2, 32 + n // 2), truth) for n in sizes]
    areas = [(n / 24) ** 2 for n in sizes]
    first = [Line(name, range(len(moved)), [m[name] for m in moved]) for name in REGIONS]
    second = [Line(name, areas, [g[name] for g in grown]) for name in REGIONS]
    return beside(
        chart("a square of 24 pixels, shifted", "pixels", "loss", first, y_range=(0, 1)),
        chart(
            "too small, too large", "predicted area / true area", "loss", second, y_range=(0, 1.2)
        ),
    )


def square(start: int, stop: int, rows: tuple[int, int] | None = None) -> Tensor:
    """A mask bool (64, 64) of a square from `start` to `stop` in columns, and in rows."""
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[slice(*(rows or (start, stop))), start:stop] = True
    return mask


def compared(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """REGIONS of a prediction that is 95 % sure everywhere."""
    p = torch.where(predicted, 0.95, 0.05).double()
    logits = torch.stack([1 - p, p]).log().unsqueeze(0)
    target = truth.long().unsqueeze(0)
    return {name: one_by_one(name, logits, target)[0] for name in REGIONS}


def balance() -> Block:
    """What focal adds to a blend with dice, while a prediction gets surer."""
    terms = [Term("focal", 0.5), Term("dice", 0.5)]
    target = square(20, 44).long().unsqueeze(0)
    said = 2 * square(22, 46, rows=(20, 44)).float() - 1  # two pixels to the right
    towards = torch.stack([-said, said]).unsqueeze(0)
    raw: dict[str, list[float]] = {"focal": [], "dice": []}
    shares = {}
    for name, how in (
        ("fixed", None),
        ("calibrate: 50", Balance(calibrate=50)),
        ("ema: 0.99", Balance(ema=0.99)),
    ):
        criterion, found = WeightedSum(terms, how), []
        for step in range(120):
            criterion.begin_step()
            sureness = 1.5 * (1 - math.exp(-step / 40))
            total, parts = criterion(sureness * towards, target)
            found.append((100 * parts["focal/weighted"] / total).item())
            if how is None:
                for term, values in raw.items():
                    values.append(parts[term].item())
        shares[name] = found
    first = [Line(name, range(120), values) for name, values in raw.items()]
    second = [Line(name, range(120), values) for name, values in shares.items()]
    return beside(
        chart("raw terms", "step", "loss", first, y_range=(0, 0.6)),
        chart("share of 0.5 focal in the total", "step", "%", second, y_range=(0, 100)),
    )


def iou() -> Block:
    """The same mistake at the rim of small and of large discs."""
    sizes = range(10, 121, 10)
    plain, rim = [], []
    for size in sizes:
        truth, said = disc(size), disc(size - 3)
        meter = Overlap(["ground", "disc"])
        meter.update(torch.stack([~said, said]).float().unsqueeze(0), truth.long().unsqueeze(0))
        table = meter.table(meter.state)
        plain.append(table["iou"][1])
        rim.append(table["boundary_iou"][1])
    lines = [Line("IoU of the disc", sizes, plain), Line("boundary IoU", sizes, rim)]
    grey = torch.where(disc(60), 90, 220).byte()[..., None].expand(-1, -1, 3).numpy()
    looks = [("truth: radius 60", np.ascontiguousarray(grey))]
    looks.append(("said: radius 57", np.asarray(overlay(grey, disc(57).byte().numpy()))))
    return beside(
        chart(
            "a disc in 256 x 256 pixels whose radius is said 3 pixels too small",
            "radius of the disc",
            "%",
            lines,
            y_range=(0, 100),
        ),
        tiles("", looks, columns=1, side=110),
    )


def disc(radius: int) -> Tensor:
    """A mask bool (256, 256)."""
    y, x = torch.meshgrid(torch.arange(256) - 127.5, torch.arange(256) - 127.5, indexing="ij")
    return x.square() + y.square() < radius**2
