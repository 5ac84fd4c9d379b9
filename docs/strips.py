"""Images of images: embedded shapes through the augmentation and the refiners of training."""

import math
from pathlib import Path

import numpy as np
import torch
from drawing import COLOURS, GAP, GREY, Block, Line, box, chart, stack, tiles, words
from torch import Tensor

from vision_tutorial.core import registry
from vision_tutorial.core.sources import ArraySource
from vision_tutorial.data.pipeline import train_order
from vision_tutorial.data.preview import Shot, apart, shots
from vision_tutorial.engine import profiling
from vision_tutorial.recipe.fields import Recipe
from vision_tutorial.recipe.loading import load
from vision_tutorial.segmentation.dense_crf import dense_crf
from vision_tutorial.segmentation.metrics import Overlap
from vision_tutorial.segmentation.pseudo_labels import PseudoLabelReport
from vision_tutorial.segmentation.visualisation import overlay

RECIPES = Path(__file__).parent.parent / "recipes"
STAR, RING = 9, 13  # training images that show these shapes


def shapes(*overrides: str) -> tuple[Recipe, ArraySource]:
    """r0 on large images of shapes, with the augmentation that is named."""
    small = "dataset={shapes: {size: 32, train: 40, test: 10}}"
    plain = [small, "augment=[]", "eval_augment=[]", "normalize=half", "channels_last=false"]
    made = load(RECIPES / "r0.yaml", [*plain, *overrides]).recipe
    return made, registry.datasets.build("shapes", **made.dataset.options)("train")


def shown(found: list[Shot]) -> list[tuple[str, np.ndarray]]:
    """Shots with their labels."""
    return [(shot.label, shot.pixels) for shot in found]


def colour_jitter() -> Block:
    """One image under weak and strong jitter."""
    rows = []
    for strength in (0.2, 0.5):
        made, source = shapes(f"augment=[{{color_jitter: {{strength: {strength}}}}}]")
        found = shots(made, source, [STAR], 7, "epoch {}")
        plain = ("as it is", source.images[STAR])
        rows.append(tiles(f"strength {strength}", [plain, *shown(found)], columns=8, side=84))
    return stack(*rows)


def auto_augment() -> Block:
    """The 25 pairs of timm's policy `original`, each done surely to one image."""
    made, source = shapes("augment=[auto_augment]")
    pairs = apart(made.augment[0], source.images[STAR], made.seed)
    labelled = [(shot.label.replace(" + ", " +\n"), shot.pixels) for shot in pairs]
    return tiles("policy original: operations and magnitudes", labelled, columns=5, side=136)


def mixed(name: str, alphas: tuple[float, ...]) -> Block:
    """Two images, and what a mixer makes of them."""
    made, source = shapes()
    start = [("star", source.images[STAR]), ("ring", source.images[RING])]
    rows = [tiles("two images of a batch", start, columns=2, side=120)]
    for alpha in alphas:
        made, source = shapes(f"mix={{{name}: {{alpha: {alpha}}}}}")
        found = shots(made, source, [STAR, RING], 5, "epoch {}")
        several = [(label.replace(" + ", " +\n"), pixels) for label, pixels in shown(found)]
        rows.append(tiles(f"{name}, alpha {alpha}", several, columns=5, side=120))
    return stack(*rows)


def cutmix() -> Block:
    """CutMix of a star and a ring."""
    return mixed("cutmix", (1.0, 0.5))


def mixup() -> Block:
    """Mixup of a star and a ring, and which shares are drawn."""
    shares = np.linspace(0.01, 0.99, 99)
    lines = []
    for alpha in (0.2, 0.5, 1.0):
        size = math.gamma(2 * alpha) / math.gamma(alpha) ** 2
        density = size * (shares * (1 - shares)) ** (alpha - 1)
        lines.append(Line(f"alpha {alpha:g}", shares.tolist(), density.tolist()))
    curve = chart("Beta(alpha, alpha)", "share λ", "how often", lines, y_range=(0, 4), height=150)
    return stack(mixed("mixup", (1.0, 0.5)), curve)


def blurred() -> tuple[np.ndarray, np.ndarray, Tensor]:
    """An image (H, W, 3), its mask (H, W), and probabilities (2, H, W) as coarse as those of a
    network of output stride 8: the true mask in cells of 8 x 8 pixels, enlarged bilinearly."""
    source = registry.datasets.build("shapes", size=96, train=40, test=10, masks=True)("train")
    mask = torch.from_numpy(source.masks[STAR] > 0).double()
    cells = torch.nn.functional.avg_pool2d(mask[None, None], 8)
    p = torch.nn.functional.interpolate(cells, scale_factor=8, mode="bilinear")[0, 0]
    p = (0.05 + 0.9 * p).float()
    return source.images[STAR], mask.byte().numpy(), torch.stack([1 - p, p])


def scores(predicted: np.ndarray, truth: np.ndarray) -> str:
    """IoU and boundary IoU of class 1, in words."""
    meter = Overlap(["ground", "shape"])
    said = torch.from_numpy(predicted).bool()
    target = torch.from_numpy(truth).long().unsqueeze(0)
    meter.update(torch.stack([~said, said]).float().unsqueeze(0), target)
    table = meter.table(meter.state)
    return f"IoU {table['iou'][1]:.0f} %, boundary IoU {table['boundary_iou'][1]:.0f} %"


def refined() -> Block:
    """A coarse answer before and after a dense CRF."""
    image, truth, p = blurred()
    options = {"gaussian_xy": 3.0, "bilateral_weight": 10.0, "bilateral_xy": 80.0}
    finer = dense_crf(image, p, bilateral_rgb=13.0, **options)
    found = [("image", image), ("truth", np.asarray(overlay(image, truth)))]
    for name, probabilities in (("coarse answer", p), ("after the CRF", finer)):
        said = probabilities.argmax(0).byte().numpy()
        label = f"{name}\n" + scores(said, truth).replace(", ", "\n")
        found.append((label, np.asarray(overlay(image, said))))
    return tiles("a star of 96 x 96 pixels", found, columns=4, side=160)


def pseudo_labels() -> Block:
    """Which pixels of an answer are kept at which threshold."""
    image, _, p = blurred()
    found = [("image", image)]
    for threshold in (0.0, 0.7, 0.9):
        report = PseudoLabelReport([""] * len(p), [], pixel_threshold=threshold)
        mask = report.enter("star", p)
        kept = mask != 255
        drawn = np.asarray(overlay(image, mask)).copy()
        drawn[~kept] = 255
        found.append((f"threshold {threshold:g}\nkept {100 * kept.mean():.0f} %", drawn))
    return tiles("white: ignored (255)", found, columns=4, side=160)


def ddp() -> Block:
    """Who takes which image of the first three batches, for 1, 2 and 4 processes."""
    cell, blocks = 26, []
    for world in (1, 2, 4):
        owner = {
            (step, index): rank
            for rank in range(world)
            for step, batch in enumerate(train_order(48, 8, 42, 0, 3, rank, world))
            for _, index in batch
        }
        order = [items[:, 1] for items in train_order(48, 8, 42, 0, 3)]
        parts = [words(0, 11, f"{world} process{'es' if world > 1 else ''}")]
        for step, batch in enumerate(order):
            for place, index in enumerate(batch.tolist()):
                x = step * (8 * cell + GAP) + place * cell
                colour = COLOURS[owner[step, index]]
                parts.append(box(x, 18, cell - 3, cell - 3, colour))
                parts.append(words(x + 11, 34, str(index), "middle", "#ffffff"))
        blocks.append(Block(3 * 8 * cell + 2 * GAP, 46, "\n".join(parts)))
    keys = []
    for rank, colour in enumerate(COLOURS[:4]):
        keys += [box(rank * 90, 0, 14, 14, colour), words(rank * 90 + 20, 11, f"process {rank}")]
    return stack(*blocks, Block(360, 16, "\n".join(keys)))


def stem() -> Block:
    """How large the maps of a ResNet-50 are, by its stem."""
    with torch.device("meta"):
        usual = registry.models.build("resnet50")(100)
        small = registry.models.build("resnet50", stem="cifar")(100)
    rows = [
        maps("ImageNet stem: 7x7, stride 2, max-pool", usual),
        maps("CIFAR stem: 3x3, stride 1, no max-pool", small),
    ]
    small.maxpool = usual.maxpool
    return stack(rows[0], maps("3x3, stride 1, max-pool", small), rows[1])


def maps(name: str, network: torch.nn.Module) -> Block:
    """An image, and the maps that the stem and each stage make of it."""
    _, macs = profiling.cost(network, 32)
    parts, x = [words(0, 11, f"{name}: {macs / 1e9:.2f} billion multiply-adds")], 0.0
    names = ("image", "stem", "stage 1", "stage 2", "stage 3", "stage 4")
    for side, text in zip(sides(network), names, strict=True):
        parts.append(box(x, 20, 3 * side, 3 * side, COLOURS[text == "image"]))
        parts.append(words(x, 132, text))
        parts.append(words(x, 146, f"{side} x {side}", colour=GREY))
        x += 108
    return Block(x, 156, "\n".join(parts))


def sides(network: torch.nn.Module) -> list[int]:
    """Of an image of 32 x 32, the maps behind the stem, and behind each stage."""
    found = [32]
    parts = [network.maxpool, network.layer1, network.layer2, network.layer3, network.layer4]
    hooks = [
        part.register_forward_hook(lambda module, given, made: found.append(made.shape[-1]))
        for part in parts
    ]
    network.eval()(torch.zeros(1, 3, 32, 32, device="meta"))
    for hook in hooks:
        hook.remove()
    return found
