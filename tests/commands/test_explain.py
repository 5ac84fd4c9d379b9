"""The dry run: what it says is what training does, and each lint speaks when it should."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from torch.nn import functional as F

from vision_tutorial import build
from vision_tutorial.commands import explain
from vision_tutorial.core import registry
from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.advice import LINTS
from vision_tutorial.recipe.fields import Recipe, to_plain
from vision_tutorial.recipe.loading import load
from vision_tutorial.recipe.recipe_info import RecipeInfo, recipe_info, smoothing_floor
from vision_tutorial.recipe.schema import schema
from vision_tutorial.recipe.signatures import static_signatures
from vision_tutorial.recipe.yaml_lines import parse_value, read_document

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
TINY = """
dataset: shapes
holdout: 0.1
augment: [{random_crop: {size: 32, padding: 4}}, hflip]
model: {test_resnet: {stem: cifar}}
epochs: 30
batch_size: 256
optimizer: {sgd: {lr: 0.1, momentum: 0.9}}
schedule: cosine
normalize: half
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def run(*words) -> str:
    """What `explain` prints; it must succeed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert explain.main([str(word) for word in words]) == 0
    return out.getvalue()


def told(*words) -> dict:
    return json.loads(run(*words, "--json"))


# -- what is printed -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_explained_within_80_columns(name, tmp_path):
    text = run(RECIPES / f"{name}.yaml")
    assert max(map(len, text.splitlines())) <= 80
    again = tmp_path / f"{name}.yaml"  # the resolved recipe that it prints is a recipe
    again.write_text(text.partition("\n\n")[0])
    assert load(again).recipe == load(RECIPES / f"{name}.yaml").recipe


def test_r4_in_words():
    text = run(RECIPES / "r4.yaml", "--world", 2)
    for words in (
        "changes     against r3.yaml:\n            epochs: 200 -> 250\nexpects     top1 82.13, min",
        "250 + 10 of cool-down = 260 epochs x 97 steps = 25,220 steps",
        "(50,000 images of cifar100)",
        "512 = 2 processes x ",
        "lr          0: 0.01  1: 0.058  2: 0.106  3: 0.154  4: 0.202  5: 0.249753",
        "250-259: 1e-06",
        "53,220 in 107 tensors: weight decay 0\n",
        "23,652,032 in  54 tensors: weight decay 0.001\n",
        "network     23.7 M parameters, 1.30 GMAC an image of 32x32",
        "this loss cannot fall below 0.778 nats",
        "the best epoch is chosen on the test split",
    ):
        assert words in text


def test_the_first_part_needs_no_torch(tiny):
    program = (
        "import sys; from vision_tutorial.commands import explain as e; from pathlib import Path; "
        "l = e.load(Path(sys.argv[1])); k = e.recipe_info(l.recipe); "
        "print(*e.opening(l, k)); print(*e.advice(l.recipe, k)); e.schema(e.static_signatures()); "
        "print(sorted({'torch', 'numpy', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, tiny], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "30 epochs x 14 steps = 420 steps" in done.stdout


def test_a_typo_is_one_line_and_exit_code_2(tiny, capsys):
    assert explain.main([str(tiny), "loss=focl"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: command line (loss=focl): loss.focl: no loss called")
    assert captured.err.count("\n") == 1


def test_wrong_words_on_the_command_line(tiny, capsys):
    for words in ([], [str(tiny), "--world", "0"]):
        with pytest.raises(SystemExit, match="2"):
            explain.main(words)
    assert explain.main([str(tiny), "--world", "3"]) == 2
    assert "does not divide over 3 processes" in capsys.readouterr().err


# -- what is told is what happens ------------------------------------------------------------------


def test_numbers_are_those_of_the_build(tiny):
    words = ["warmup={epochs: 2, lr: 0.01, mode: front}", "cooldown={epochs: 3}", "subset=1000"]
    found = told(tiny, *words, "--world", 2)
    recipe = load(tiny, words).recipe
    data = build.data(recipe)
    steps = build.steps_per_epoch(recipe, len(data.train))
    assert found["images"] == len(data.train) == 1000
    assert found["steps_per_epoch"] == steps == 3
    assert found["epochs"] == recipe.total_epochs == 35
    assert found["steps"] == 105
    assert found["parts"] == build.batch_parts(recipe, 2, torch.cuda.is_available())
    assert found["parts"] * found["micro_batch"] * 2 == found["batch_size"] == 256
    at = build.learning_rates(recipe, steps)
    assert found["lr"] == [at(epoch * steps, ()) for epoch in range(35)]
    network = build.model(recipe, 10)
    assert found["parameters"] == sum(p.numel() for p in network.parameters())
    groups = build.optimizer(recipe, network).param_groups
    assert [g["tensors"] for g in found["parameter_groups"]] == [len(g["params"]) for g in groups]
    assert found["recipe"] == to_plain(recipe)
    assert found["base"] is None


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ([], "batched: whole batches at once"),
        (
            ["augment=[{random_crop: {size: 32}}, {gaussian_blur: {p: 0.5}}]"],
            "timm: one image at a time (augment: gaussian_blur (p: 0.5, ",
        ),
        (["loss=jsd", "mix=null"], "timm: one image at a time (loss: jsd needs copies"),
    ],
)
def test_the_data_path_is_told(tiny, words, path):
    assert told(tiny, *words)["data_path"].startswith(path)


def test_images_known_without_data_are_the_true_ones(tiny, data_root):
    words = ["dataset=cifar100", "holdout=0.37", "subset=1234"]
    here = f"dataset={{cifar100: {{root: {data_root}}}}}"
    source = build.data(load(tiny, [here, *words[1:]]).recipe).train
    known = recipe_info(load(tiny, words).recipe)
    assert (known.images, known.classes) == (len(source), len(source.classes))
    assert known.side == source[0][0].width == 32


def test_shapes_to_segment_have_a_class_more(tiny):
    words = ["dataset={shapes: {train: 40, test: 20, masks: true}}", "task=segmentation"]
    recipe = load(tiny, words).recipe
    known, source = recipe_info(recipe), build.data(recipe).train
    assert known.classes == len(source.classes) == 11
    assert known.images == len(source)


def test_data_that_is_not_here_is_one_note_and_no_error(tiny, tmp_path):
    words = [tiny, f"dataset={{image_folder: {{root: {tmp_path}/none}}}}"]
    text = run(*words)
    assert "30 epochs; steps unknown, the data is not here" in text
    assert "note        dataset: the data is not here." in text
    assert told(*words)["steps"] is None


def test_a_folder_of_images_is_counted(tiny, tmp_path):
    from PIL import Image

    for split, count in (("train", 9), ("val", 2)):
        for label in "ab":
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for n in range(count):
                Image.new("RGB", (40, 40)).save(folder / f"{n}.png")
    words = [
        f"dataset={{image_folder: {{root: {tmp_path}/images}}}}",
        "batch_size=4",
        "holdout=0",
    ]
    found = told(tiny, *words)
    assert (found["images"], found["steps_per_epoch"]) == (18, 4)


def test_a_network_that_cannot_take_the_images_is_a_note(tiny):
    said = told(tiny, "model=vit_tiny_patch16_224")["advice"]
    (found,) = [item for item in said if item["key"] == "model"]
    assert found["what"] == "vit_tiny_patch16_224 does not take images of 32 px"
    assert "224" in found["why"]


def test_imports_need_trust(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(registry.losses, "entries", dict(registry.losses.entries))
    (tmp_path / "mine.py").write_text(
        "from vision_tutorial.core.registry import losses\n\n"
        "@losses.register\ndef of_explain(logits, target, *, a: float = 1.0):\n"
        '    """A loss of its own."""\n    return logits.mean() * a\n'
    )
    tiny.write_text(TINY + "imports: [mine.py]\nloss: of_explain\n")
    assert explain.main([str(tiny)]) == 2
    captured = capsys.readouterr()
    assert "of_explain: {weight: 1.0, a: 1.0}" in captured.out  # read, not run
    assert "--trust-imports" in captured.err
    assert "of_explain" in run(tiny, "--trust-imports")
    jsonschema.validate(read_document(tiny).values, json.loads(run(tiny, "--schema")))


def test_a_run_folder_is_explained(tmp_path, tiny):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(TINY)
    assert "# " in run(tmp_path / "run")


# -- numbers and plot ------------------------------------------------------------------------------


def test_many_lrs_are_thinned_but_keep_their_ends():
    plain = [item.replace(explain.TIED, " ") for item in explain.runs([0.1, 0.1, 0.1, 0.05, 1e-6])]
    assert plain == ["0-2: 0.1", "3: 0.05", "4: 1e-06"]
    few = explain.runs([1 - n / 1000 for n in range(1000)])
    assert len(few) <= explain.MOST_RUNS + 2
    assert [item.split(":")[0] for item in few[:8]] == [str(n) for n in range(8)]
    assert [item.split(":")[0] for item in few[-8:]] == [str(n) for n in range(992, 1000)]


def test_the_plot_is_the_curve():
    lines = list(explain.plot([0.0, 0.25, 1.0], width=22, height=2))
    assert lines[0].strip() == "1" + " " * 9 + "████"  # four columns for each of three values
    assert lines[1].strip() == "0     ▄▄▄▄████"
    assert lines[2].split() == ["0", "epoch", "2"]
    spike = [1e-3] * 500 + [1.0] + [1e-3] * 500
    assert sum("█" in line for line in explain.plot(spike, width=40, height=3)) == 3
    assert list(explain.plot([0.0, 0.0], 40)) == []


@pytest.mark.parametrize("encoding", ["cp949", "utf-8"])
def test_consoles_without_blocks_get_letters(tiny, encoding, monkeypatch):
    raw = io.BytesIO()
    console = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    assert explain.main([str(tiny), "wandb.notes=한글 🙂"]) == 0
    console.flush()
    text = raw.getvalue().decode(encoding)
    assert ("█" in text) == (encoding == "utf-8")
    assert ("####" in text) == (encoding != "utf-8")
    assert "한글" in text


# -- lints -----------------------------------------------------------------------------------------

# lint -> overrides that make it speak, and near ones that do not; recipe_info beside the recipe's
SPEAK = {
    "imagenet_stem": (["model=resnet18"], ["model={resnet18: {stem: cifar}}"]),
    "sizes_differ": (
        ["eval_augment=[{resize: {size: 36}}]"],
        ["eval_augment=[{resize: {size: 36}}, {center_crop: {size: 32}}]"],
    ),
    "sizes_open": (
        ["dataset={image_folder: {root: x}}", "eval_augment=[{resize: {size: 32}}]"],
        ["dataset={image_folder: {root: x}}", "eval_augment=[{center_crop: {size: 32}}]"],
    ),
    "jitter_beside_policy": (["augment=[color_jitter, rand_augment]"], ["augment=[color_jitter]"]),
    "constants_of_another_set": (
        ["dataset=cifar10", "normalize=cifar100"],
        ["dataset=cifar10", "normalize=cifar10"],
    ),
    "label_smoothing": (["loss={cross_entropy: {label_smoothing: 0.1}}"], ["loss=cross_entropy"]),
    "chosen_on_test": (["holdout=0"], ["holdout=0.1"]),
    "one_seed": (["seed=1"], []),
    "focal_without_focus": (["loss={focal: {gamma: 0}}"], ["loss={focal: {gamma: 1}}"]),
    "copies_cost": (["loss=jsd"], ["loss=bce"]),
    "one_cross_entropy": (
        ["loss={cross_entropy: 1, focal: {gamma: 0}}"],
        ["loss={cross_entropy: 1, focal: 1}"],
    ),
    "tanimoto_is_jaccard": (["aux_loss=tanimoto"], ["aux_loss={tanimoto: {gamma: 2}}"]),
    "tversky_by_its_name": (["loss={tversky: {alpha: 1, beta: 1}}"], ["loss=tversky"]),
    "nothing_to_balance": (["balance=ema"], ["balance=ema", "loss={bce: 1, focal: 1}"]),
    "more_batch_than_data": (["subset=255"], ["subset=256"]),
    "lr_of_another_batch": (["batch_size=512"], ["batch_size=512", "optimizer.sgd.lr=0.2"]),
    "unusual_lr": (["optimizer.sgd.lr=10"], ["optimizer.sgd.lr=0.5"]),
    "warmup_too_long": (["warmup.epochs=30"], ["warmup.epochs=29"]),
    "warmup_falls": (["warmup={epochs: 1, lr: 1}"], ["warmup={epochs: 1, lr: 0.1}"]),
    "epochs_on_top": (["cooldown.epochs=1"], ["cooldown.epochs=0"]),
    "steps_of_a_schedule": (["epochs=20"], ["epochs=20", "schedule_unit=step"]),
    "average_of_the_start": (
        ["ema={decay: 0.999, warmup: false}"],
        ["ema={decay: 0.9, warmup: false}"],
    ),
    "decay_through_adam": (
        ["optimizer={adam: {lr: 1e-3, weight_decay: 0.1}}"],
        ["optimizer={adamw: {lr: 1e-3, weight_decay: 0.1}}"],
    ),
    "small_norm_batches": ([], []),
    "odd_mixing": (["mix=cutmix"], []),
    "half_precision_without_gpu": (["precision=fp16"], ["precision=bf16"]),
}


def spoken(path, overrides, **more) -> dict:
    """What each lint says of a recipe, by the lint's name."""
    recipe = load(path, overrides).recipe
    reference = load(path).recipe if overrides else None
    known = RecipeInfo(**{**vars(recipe_info(recipe, reference)), **more})
    return {check.__name__.lstrip("_"): list(check(recipe, known)) for check in LINTS}


def test_every_lint_has_a_case():
    assert {check.__name__.lstrip("_") for check in LINTS} == set(SPEAK)


@pytest.mark.parametrize("name", SPEAK)
def test_lints_speak_when_they_should(tiny, name):
    more = {"small_norm_batches": 7, "odd_mixing": 7}.get(name, 128)
    yes = {"micro_batch": more, "batch_norm": True, "gpu": False}
    speaking, silent = SPEAK[name]
    (said, *_) = spoken(tiny, speaking, **yes)[name]
    assert said.key.split(".")[0] in Recipe.model_fields
    assert not any(text.endswith(".") for text in said)  # the printer ends the sentence
    no = {"micro_batch": 128, "batch_norm": True, "gpu": False}
    assert spoken(tiny, silent, **no)[name] == []


def test_a_sound_recipe_gets_no_advice(tiny):
    assert not any(spoken(tiny, [], micro_batch=128, batch_norm=True, gpu=True).values())


def test_what_lints_say(tiny):
    def said(name, *overrides, **more):
        return spoken(tiny, overrides, **more)[name][0]

    assert said("lr_of_another_batch", "batch_size=1024").do.startswith("optimizer.sgd.lr=0.4,")
    assert "to 8 px" in said("imagenet_stem", "model=resnet18").why
    assert "would be alike" in said("copies_cost", "loss=jsd").why
    assert "would be alike" not in said("copies_cost", "loss=jsd", "augment=[aug_mix]").why
    assert said("unusual_lr", "optimizer={adam: {lr: 0.1}}").what == "lr 0.1 is one for SGD"
    front = said("epochs_on_top", "warmup={epochs: 4, mode: front}")
    assert front.what == "30 epochs are 34: 4 of warm-up in front come on top"
    pretrained = said("constants_of_another_set", "model.test_resnet.pretrained=true")
    assert pretrained.do.startswith("normalize=imagenet")
    words = ["loss={label_smoothing: {epsilon: 0.2}}", "dataset={image_folder: {root: x}}"]
    assert "a floor above 0" in said("label_smoothing", *words).what


def test_small_batches_count_only_where_norms_are(tiny):
    assert spoken(tiny, [], micro_batch=7, batch_norm=False)["small_norm_batches"] == []
    assert spoken(tiny, [], micro_batch=8, batch_norm=True)["small_norm_batches"] == []


@pytest.mark.parametrize(("epsilon", "classes"), [(0.1, 100), (0.9, 1000)])
def test_the_floor_is_what_a_perfect_network_gets(epsilon, classes):
    best = torch.full((1, classes), epsilon / classes, dtype=torch.float64)
    best[0, 0] += 1 - epsilon
    target = torch.tensor([0])
    loss = F.cross_entropy(best.log(), target, label_smoothing=epsilon).item()
    assert smoothing_floor(epsilon, classes) == pytest.approx(loss, rel=1e-12)
    assert smoothing_floor(0.0, classes) == 0.0


# -- schema ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator():
    made = schema(static_signatures())
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def test_the_printed_schema_is_the_schema(validator):
    assert json.loads(run("--schema")) == json.loads(json.dumps(validator.schema))


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_fits_the_schema_as_written_and_resolved(validator, name):
    path = RECIPES / f"{name}.yaml"
    assert list(validator.iter_errors(read_document(path).values)) == []
    assert list(validator.iter_errors(to_plain(load(path).recipe))) == []


def test_every_key_and_entry_is_described(validator):
    made = validator.schema
    assert set(made["properties"]) == {*Recipe.model_fields, "extends"}
    for name, on_it in static_signatures().items():
        for entry in on_it.entries.values():
            if name != "refiners":
                assert entry.doc in made["$defs"][f"{name}.{entry.name}"]["description"]


# each is refused by loading as well, which the test checks
WRONG = """
modle=resnet18 | model=resnet5 | model={resnet18: {}, resnet34: {}} | model={} | model=null
model={resnet18: {stem: cifr}} | model={resnet18: {drop_path: x}} | model={resnet18: 3}
dataset={shapes: {sise: 3}} | dataset=image_folder | optimizer=sgd | optimizer={sgd: {momentum: 1}}
augment=hflip | augment=[hflop] | loss={focal: -1} | loss={focal: {weight: x}} | loss={focl: 1}
loss={} | mix={cutmix: {beta: 1}} | epochs=0 | epochs=1.5 | holdout=1 | precision=fp8 | compile=on
balance={calibrate: 0} | balance={ema: 1} | aux_loss=focl | warmup={epoch: 3} | warmup=3
normalize=cifar | normalize={mean: [0, 0, 0]} | normalize={mean: [0, 0], std: [1, 1, 1]}
wandb={tags: ml} | expects={top1: high} | name=..
"""
RIGHT = """
model=resnet50.a1_in1k | optimizer={lookahead_sgd: {lr: 0.1, anything: 1}} | mix=null | mix=cutmix
mix={cutmix: 1, mixup: {alpha: 0.2, weight: 2}} | loss={focal: {gamma: 2}, bce: null} | clip=null
balance=calibrate | balance={ema: 0.9} | aux_loss={focal: 0.75, dice: {weight: 0.25}} | augment=[]
schedule={multistep: {milestones: [1, 2]}} | normalize={mean: [0, 0, 0], std: [1, 1, 1]}
expects={top1: null} | dataset={shapes: null}
"""
WRONG, RIGHT = (text.strip().replace("\n", " | ").split(" | ") for text in (WRONG, RIGHT))


@pytest.mark.parametrize("override", WRONG + RIGHT)
def test_the_schema_agrees_with_loading(validator, tiny, override):
    key, _, text = override.partition("=")
    values = read_document(tiny).values | {key: parse_value(text, "x")}
    valid = validator.is_valid(values)
    try:
        load(tiny, [override])
        loads = True
    except UserError:
        loads = False
    assert (valid, loads) == (override in RIGHT, override in RIGHT)


def test_what_is_missing_may_come_from_a_base(validator):
    assert not validator.is_valid({"epochs": 3})
    assert validator.is_valid({"epochs": 3, "extends": "r0.yaml"})
