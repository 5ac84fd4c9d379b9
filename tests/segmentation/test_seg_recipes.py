"""Every row of the students' tables: what it resolves to, that it builds, and takes one step.

The step is taken with the recipe's own losses, optimizer, schedule and augmentation, on few drawn
images and on a narrow network of the same kind.
"""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from vision_tutorial import build, checks
from vision_tutorial.core.errors import UserError
from vision_tutorial.data.executors import cpu
from vision_tutorial.engine import Distributed
from vision_tutorial.engine.step import set_lr, take_step
from vision_tutorial.recipe.fields import LATER, Recipe, changes, to_plain
from vision_tutorial.recipe.grammar import Choice, Options
from vision_tutorial.recipe.loading import load
from vision_tutorial.segmentation.models import fcn
from vision_tutorial.segmentation.models.backbones import Encoder

FOLDER = Path("recipes/segmentation")
ROWS = json.loads((Path(__file__).parent / "rows.json").read_text())  # row -> hash of its recipe
NARROW = {"aspp_channels": 8, "decoder_channels": 8, "auxiliary_channels": 8, "hidden": 8}
BACKBONES = {"vgg": "vgg11", "efficientnet": "test_efficientnet", "": "test_resnet"}
SEEN: set[str] = set()  # what other rows have built, and which steps they took


def small(recipe: Recipe) -> Recipe:
    """The recipe on four drawn images, with a narrow network of its kind."""
    name, options = recipe.model.name, {**recipe.model.options, "pretrained": False}
    side = 224 if name == "deconvnet" else 64
    options |= {key: value for key, value in NARROW.items() if key in options}
    options.pop("multi_grid", None)  # for three blocks a stage
    if "backbone" in options:
        backbone = options["backbone"]
        options["backbone"] = next(tiny for kind, tiny in BACKBONES.items() if kind in backbone)

    def sized(entries: tuple[Choice, ...]) -> tuple[Choice, ...]:
        resize = Choice("resize", Options({"size": (side, side), "interpolation": "bilinear"}))
        return tuple(resize if entry.name == "resize" else entry for entry in entries)

    images = Options({"masks": True, "size": 64, "train": 4, "test": 2, "seed": 0})
    return recipe.model_copy(
        update={
            "model": Choice(name, Options(options)),
            "dataset": Choice("shapes", images),
            "augment": sized(recipe.augment),
            "eval_augment": sized(recipe.eval_augment),
            "batch_size": 1 if name == "deconvnet" else 2,  # time
            "workers": 0,
            "threads": 1,
            "precision": "fp32",
        }
    )


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_the_recipe_it_always_was_and_takes_a_step(row, monkeypatch):
    recipe = load(FOLDER / row).recipe
    values = to_plain(recipe)
    for options in (values, *values["dataset"].values()):  # without those that came later
        for name in LATER.keys() & options.keys():
            assert options.pop(name) == LATER[name]
    del values["wandb"]["entity"], values["wandb"]["name"]  # they came later, too
    text = json.dumps(values)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == ROWS[row]
    if str(recipe.model) not in SEEN:
        network = checks.check(recipe, 11)  # in its full size, without memory
        assert all(parameter.is_meta for parameter in network.parameters())
        SEEN.add(str(recipe.model))
    monkeypatch.setattr(fcn, "Encoder", lambda name, **o: Encoder("vgg11_bn", **o))
    monkeypatch.setattr(cpu, "has_numba", lambda: False)  # numba compiles for half a minute
    recipe = small(recipe)
    parts = (recipe.model, recipe.loss, recipe.aux_loss, recipe.optimizer.name, recipe.augment)
    key = str((*parts, recipe.schedule, recipe.warmup, recipe.mix, recipe.balance))
    if key in SEEN:
        return  # another row takes the same step, but for a number such as lr
    SEEN.add(key)
    distributed = Distributed("fp32", 1)
    both = build.data(recipe)
    training = build.training_state(recipe, both.train, distributed)
    plan = build.plan(recipe, both, training, distributed)
    before = [p.detach().clone() for p in training.parameters]
    training.model.train()
    batches = next(iter(plan.batches(0, 1, training.accumulation_steps)))
    set_lr(training.optimizer, plan.lr(1, []))  # a warm-up may begin at 0
    result = take_step(training, batches, 0, False).read()
    assert not result.skipped and result.losses["loss"] >= 0
    moved = sum(not torch.equal(a, b) for a, b in zip(before, training.parameters, strict=True))
    assert moved > 0.5 * len(before)  # timm's last norm of a block begins at 0: none before it


def test_every_variant_is_a_row_of_the_docs():
    """Rows of A: 9 optimizers (one is `a`, which is also CE ‖ CE), 5 other losses, 5 mixes."""
    assert [sum(row.startswith(table) for row in ROWS) for table in "abcd"] == [19, 30, 9, 8]
    listed = re.findall(r"\[`([abcd]\.yaml[^`]*)`\]", Path("docs/segmentation.md").read_text())
    assert sorted(listed) == sorted(ROWS)
    for table in "abcd":
        with pytest.raises(UserError) as caught:
            load(FOLDER / f"{table}.yaml:none")
        known = str(caught.value).partition("Known: ")[2].split(", ")
        variants = {f"{table}.yaml:{name}" for name in known} | {"a.yaml"}
        assert variants >= {row for row in ROWS if row.startswith(table)}


# -- variants --------------------------------------------------------------------------------------


def test_a_row_changes_what_its_experiment_changed():
    loaded = load(FOLDER / "a.yaml:focal-0.7-dice")
    assert set(changes(loaded.recipe, loaded.base)) == {"loss", "aux_loss"}
    assert dict(loaded.recipe.expects) == {"miou": 58.45, "lb": None}
    assert loaded.recipe.name == "a-focal-0.7-dice" and loaded.base_path.name == "a.yaml"
    loaded = load(FOLDER / "b.yaml:0503-b6", ["model.deeplabv3.rates=[1, 2]"])
    options = loaded.recipe.model.options
    assert loaded.base_path.name == "b.yaml:0503"
    assert options["rates"] == (1, 2)  # an override comes after the variant's own keys
    assert options["backbone"] == "tf_efficientnet_b6.ns_jft_in1k"


VARIANTS = """dataset: {shapes: {masks: true}}
task: segmentation
model: unet
epochs: 1
batch_size: 8
optimizer: {sgd: {lr: 0.1}}
variants:
  two:
    epochs: 2
    model.unet.dropout: 0.25
  typo:
    model.unet.dropuot: 0.25
  wrong: 3
  circle: {extends: own.yaml:circle}
  nested: {variants: {}}
"""


def test_variants_of_an_own_file(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(VARIANTS)
    recipe = load(f"{path}:two").recipe
    assert load(path).recipe.name == "own"
    assert (recipe.name, recipe.epochs, recipe.model.options["dropout"]) == ("own-two", 2, 0.25)
    for name, said in {
        "typo": "own.yaml:12: ",
        "wrong": "own.yaml:13: variants.wrong: given 3",
        "circle": "own.yaml:14: extends: a circle",
        "nested": "own.yaml:15: variants: no key called 'variants'",
        "tow": "no variant called 'tow'; did you mean 'two'? Known: circle, nested",
    }.items():
        with pytest.raises(UserError, match=re.escape(said)):
            load(f"{path}:{name}")
