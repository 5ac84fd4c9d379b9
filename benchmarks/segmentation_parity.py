"""Is our mIoU that of a plain loop? torchvision's way to train a segmentation network, written from
its description, and ours train the same network with the same recipe on CamVid, in turn.

    VISION_TUTORIAL_DATA=… python benchmarks/segmentation_parity.py [--seeds 3] [--json FILE] \\
        [key.sub=value …]

The plain loop is that of torchvision's references/segmentation: one image at a time resized by a
random factor, mirrored and cropped by torchvision's v2 transforms; SGD, the poly schedule step by
step, cross-entropy plus half of the auxiliary head's, metrics from one confusion matrix. It reads
the files and counts by itself; only the network is ours. Not as there: the auxiliary head has the
same lr as the rest, and the network begins without pretrained weights. Printed as by
timm_parity.py; exit code 1 if an interval does not contain 0.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from timm_parity import Values, in_turn, ours
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from vision_tutorial import build
from vision_tutorial.core.errors import run_main
from vision_tutorial.core.folders import data_root
from vision_tutorial.recipe.fields import Recipe
from vision_tutorial.recipe.loading import load

RECIPE, CLASSES, VOID, CROP, SCALE = "segmentation/camvid", 11, 255, 160, (0.5, 1.5)
SHORT = [
    f"augment=[{{random_scale: {{scale: {list(SCALE)}}}}}, {{random_crop: {{size: {CROP}, "
    "padding: 0}}, hflip]",
    "loss=cross_entropy",
    "aux_loss=cross_entropy",
    "aux_weight=0.5",
    "optimizer={sgd: {lr: 0.05, momentum: 0.9, nesterov: false, weight_decay: 1.0e-4}}",
    "parameter_groups.no_decay_1d=false",
    "warmup.epochs=0",
    "epochs=6",
    "eval_every=6",
    "precision=fp32",
]
METRICS = {
    "mIoU (%)": "val/miou",
    "pixel accuracy (%)": "val/pixel_accuracy",
    "cross-entropy": "val/cross_entropy",
}


class Folder(Dataset):
    """CamVid's images and masks, changed by `transform`."""

    def __init__(self, split: str, transform: v2.Transform):
        base, self.transform = data_root() / "camvid", transform
        self.images = sorted((base / split).iterdir())
        self.masks = base / f"{split}_masks"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        path = self.images[index]
        (mask_path,) = self.masks.glob(f"{path.stem}.*")
        ids = v2.functional.pil_to_tensor(Image.open(mask_path))[0].long()
        mask = tv_tensors.Mask(torch.where(ids < CLASSES, ids, VOID))
        image, mask = self.transform(tv_tensors.Image(Image.open(path).convert("RGB")), mask)
        return image, mask


def theirs(recipe: Recipe, seed: int) -> Values:
    """Train and evaluate with the plain loop."""
    torch.manual_seed(1000 + seed)
    model = build.model(recipe.model_copy(update={"seed": 1000 + seed}), CLASSES)
    last = [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)]
    last.append(v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    height = 360
    first = [
        v2.RandomResize(int(SCALE[0] * height), int(SCALE[1] * height) + 1, antialias=True),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomCrop(CROP, pad_if_needed=True, fill={tv_tensors.Mask: VOID, "others": 0}),
    ]
    options = {"batch_size": recipe.batch_size, "num_workers": 0}
    train = Folder("train", v2.Compose([*first, *last]))
    loader = DataLoader(train, shuffle=True, drop_last=True, **options)
    sgd = {k: v for k, v in recipe.optimizer.options.items() if k != "nesterov"}
    optimizer = torch.optim.SGD(model.parameters(), **sgd)
    total = recipe.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total, power=0.9)
    for _ in range(recipe.epochs):
        model.train()
        for images, masks in loader:
            main, auxiliary = model(images)
            loss = nn.functional.cross_entropy(main, masks, ignore_index=VOID)
            loss = loss + 0.5 * nn.functional.cross_entropy(auxiliary, masks, ignore_index=VOID)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return measured(model.eval(), DataLoader(Folder("val", v2.Compose(last)), **options))


@torch.inference_mode()
def measured(model: nn.Module, loader: DataLoader) -> Values:
    """Metrics over all pixels that count, from one confusion matrix."""
    confusion, loss = torch.zeros(CLASSES, CLASSES, dtype=torch.long), 0.0
    for images, masks in loader:
        logits = model(images)
        each = nn.functional.cross_entropy(logits, masks, ignore_index=VOID, reduction="none")
        loss += each.sum().item()
        seen, truth = logits.argmax(1)[masks != VOID], masks[masks != VOID]
        confusion += torch.bincount(truth * CLASSES + seen, minlength=CLASSES**2).view_as(confusion)
    right, pixels = confusion.diag().double(), confusion.sum()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diag()
    found = (100 * (right / union).mean(), 100 * right.sum() / pixels, loss / pixels)
    return {name: float(value) for name, value in zip(METRICS, found, strict=True)}


def work(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    words = [RECIPE, *SHORT, *args.overrides]
    recipe = load(words[0], words[1:]).recipe
    with tempfile.TemporaryDirectory() as made:
        sides = {
            "ours": lambda seed: ours(words, seed, Path(made), METRICS),
            "plain loop": lambda seed: theirs(recipe, seed),
        }
        return in_turn(words, sides, args.seeds, METRICS, args.json)


if __name__ == "__main__":
    sys.exit(run_main(lambda: work(sys.argv[1:])))
