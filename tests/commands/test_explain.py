"""The dry run: what it says is what training does; the schema agrees with loading."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from PIL import Image

from vision_tutorial import build
from vision_tutorial.commands.of_recipes import explain
from vision_tutorial.core import registry
from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.fields import Recipe, to_plain
from vision_tutorial.recipe.loading import load
from vision_tutorial.recipe.recipe_info import recipe_info
from vision_tutorial.recipe.schema import schema
from vision_tutorial.recipe.signatures import static_signatures
from vision_tutorial.recipe.yaml_lines import parse_value, read_document

RECIPES = Path(__file__).parents[2] / "recipes"


def run(*words) -> str:
    """What `explain` prints; it must succeed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert explain.main([str(word) for word in words]) == 0
    return out.getvalue()


def told(*words) -> dict:
    return json.loads(run(*words, "--json"))


# -- what is printed -------------------------------------------------------------------------------


def test_a_recipe_is_explained_within_80_columns(tmp_path):
    text = run("r5")
    assert max(map(len, text.splitlines())) <= 80
    (tmp_path / "run").mkdir()  # the resolved recipe that it prints is a recipe, as in a run
    (tmp_path / "run" / "recipe.yaml").write_text(text.partition("\n\n")[0])
    assert load(tmp_path / "run" / "recipe.yaml").recipe == load("r5").recipe
    assert "# " in run(tmp_path / "run")


def test_r4_in_words():
    text = run("r4", "--world", 2)
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
        "import sys; from pathlib import Path; "
        "from vision_tutorial.commands.of_recipes import explain as e; "
        "l = e.load(Path(sys.argv[1])); k = e.recipe_info(l.recipe); e.print_recipe(l); "
        "print(*e.advice(l.recipe, k)); e.schema(e.static_signatures()); "
        "print(sorted({'torch', 'numpy', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, tiny], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_mistakes_are_one_line_and_exit_code_2(tiny, capsys):
    wrong = {"loss=focl": "no loss called", "--world=3": "divide over 3 processes"}
    for words, said in (*(([tiny, word], said) for word, said in wrong.items()), ([], "--schema")):
        assert explain.main([*map(str, words), "--json"]) == 2
        captured = capsys.readouterr()
        assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize("encoding", ["cp949", "utf-8"])
def test_consoles_without_blocks_get_letters(tiny, encoding, monkeypatch):
    raw = io.BytesIO()
    console = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    assert explain.main([str(tiny), "wandb.notes=한글 🙂"]) == 0
    console.flush()
    text = raw.getvalue().decode(encoding)
    assert ("█" in text, "####" in text) == (encoding == "utf-8", encoding != "utf-8")
    assert "한글" in text


def test_many_lrs_are_thinned_but_keep_their_ends():
    texts = [item.replace("\xa0", " ") for item in explain.spans([0.1, 0.1, 0.1, 0.05, 1e-6])]
    assert texts == ["0-2: 0.1", "3: 0.05", "4: 1e-06"]
    few = explain.spans([1 - n / 1000 for n in range(1000)])
    assert len(few) <= explain.MOST_SPANS + 2
    ends = [item.split(":")[0] for item in few[:8] + few[-8:]]
    assert ends == [str(n) for n in (*range(8), *range(992, 1000))]


def test_the_plot_is_the_curve():
    lines = [line.strip() for line in explain.plot([0.0, 0.25, 1.0], width=12, height=2)]
    # four columns for each of three values
    assert lines[:2] == ["1" + " " * 9 + "████", "0     ▄▄▄▄████"] and "epoch 2" in lines[2]
    spike = [1e-3] * 500 + [1.0] + [1e-3] * 500
    assert sum("█" in line for line in explain.plot(spike, width=30, height=3)) == 3
    assert list(explain.plot([0.0, 0.0], 40)) == []


# -- what is told is what happens ------------------------------------------------------------------


def test_numbers_are_those_of_the_build(tiny):
    words = ["warmup={epochs: 2, lr: 0.01, mode: front}", "cooldown={epochs: 3}", "subset=1000"]
    found = told(tiny, *words, "--world", 2)
    recipe = load(tiny, words).recipe
    data = build.data(recipe)
    steps = build.steps_per_epoch(recipe, len(data.train))
    assert found["images"] == len(data.train) == 1000
    assert found["steps_per_epoch"] == steps == 3
    assert (found["epochs"], found["steps"]) == (recipe.total_epochs, 105) == (35, 105)
    assert found["parts"] == build.batch_parts(recipe, 2, torch.cuda.is_available())
    assert found["parts"] * found["micro_batch"] * 2 == found["batch_size"] == 256
    at = build.learning_rates(recipe, steps)
    assert found["lr"] == [at(epoch * steps, ()) for epoch in range(35)]
    network = build.model(recipe, 10)
    assert found["parameters"] == sum(p.numel() for p in network.parameters())
    groups = build.optimizer(recipe, network).param_groups
    assert [g["tensors"] for g in found["parameter_groups"]] == [len(g["params"]) for g in groups]
    assert (found["recipe"], found["base"]) == (to_plain(recipe), None)
    assert found["data_path"].startswith("batched: whole batches at once")
    path = "timm: one image at a time (augment: gaussian_blur (p: 0.5, "
    assert told(tiny, "augment=[{gaussian_blur: {p: 0.5}}]")["data_path"].startswith(path)


def test_what_is_known_without_data_is_true(tiny, data_root):
    here = f"dataset={{cifar100: {{root: {data_root}}}}}"
    masks = ["dataset={shapes: {train: 40, test: 20, masks: true}}", "task=segmentation"]
    for words in ([here, "holdout=0.37", "subset=1234"], masks):
        source = build.data(load(tiny, words).recipe).train
        known = recipe_info(load(tiny, words).recipe)
        assert (known.images, known.classes) == (len(source), len(source.classes))
        assert known.side == source[0][0].width == 32


def test_a_folder_of_images_is_counted_where_it_is(tiny, tmp_path):
    words = [tiny, f"dataset={{image_folder: {{root: {tmp_path}/images}}}}", "batch_size=4"]
    text = run(*words)
    assert "30 epochs; steps unknown, since the data cannot be read" in text
    assert "note        dataset: the data cannot be trained on.\n" in text
    assert "Why: image_folder: no folder" in text
    assert told(*words)["steps"] is None
    for split, count in (("train", 9), ("val", 2)):
        for label in "ab":
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for n in range(count):
                Image.new("RGB", (40, 40)).save(folder / f"{n}.png")
    found = told(*words, "holdout=0")
    assert (found["images"], found["steps_per_epoch"]) == (18, 4)


def test_a_network_that_cannot_take_the_images_is_a_note(tiny):
    said = told(tiny, "model=vit_tiny_patch16_224", "batch_size=128")["advice"]
    assert "lr 0.1 was meant for batch_size 256, not 128" in [item["what"] for item in said]
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
    tiny.write_text(tiny.read_text() + "imports: [mine.py]\nloss: of_explain\n")
    assert explain.main([str(tiny)]) == 2
    captured = capsys.readouterr()
    assert "of_explain: {weight: 1.0, a: 1.0}" in captured.out  # read, not run
    assert "--trust-imports" in captured.err
    assert "of_explain" in run(tiny, "--trust-imports")
    jsonschema.validate(read_document(tiny).values, json.loads(run(tiny, "--schema")))


# -- schema ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator():
    made = schema(static_signatures())
    jsonschema.Draft202012Validator.check_schema(made)
    assert set(made["properties"]) == {*Recipe.model_fields, "extends"}
    assert json.loads(run("--schema")) == json.loads(json.dumps(made))
    return jsonschema.Draft202012Validator(made)


def test_every_recipe_fits_the_schema_as_written_and_resolved(validator):
    for path in RECIPES.glob("*.yaml"):
        assert list(validator.iter_errors(read_document(path).values)) == [], path
        assert list(validator.iter_errors(to_plain(load(path).recipe))) == [], path


# each is refused by loading as well, which the test checks
WRONG = """
modle=resnet18 | model=resnet5 | model={resnet18: {}, resnet34: {}} | model={} | model=null
model={resnet18: {stem: cifr}} | model={resnet18: 3} | dataset=image_folder | optimizer=sgd
augment=hflip | augment=[hflop] | loss={focal: -1} | loss={focal: {weight: x}} | loss={focl: 1}
loss={} | mix={cutmix: {beta: 1}} | epochs=0 | epochs=1.5 | holdout=1 | precision=fp8 | compile=on
warmup={epoch: 3} | warmup=3 | expects={top1: high} | normalize={mean: [0, 0], std: [1, 1, 1]}
"""
RIGHT = """
model=resnet50.a1_in1k | optimizer={lookahead_sgd: {lr: 0.1, momentum: 0.5}} | mix=null | mix=cutmix
mix={cutmix: 1, mixup: {alpha: 0.2, weight: 2}} | loss={focal: {gamma: 2}, bce: null}
balance=calibrate | augment=[] | expects={top1: null} | normalize={mean: [0, 0, 0], std: [1, 1, 1]}
schedule={multistep: {milestones: [1, 2]}} | dataset={shapes: null} | model=smp/FPN
"""
WRONG, RIGHT = (text.strip().replace("\n", " | ").split(" | ") for text in (WRONG, RIGHT))


def test_the_schema_agrees_with_loading(validator, tiny):
    for override in WRONG + RIGHT:
        key, _, text = override.partition("=")
        values = read_document(tiny).values | {key: parse_value(text, "x")}
        try:
            loads = bool(load(tiny, [override]))
        except UserError:
            loads = False
        right = override in RIGHT
        assert (validator.is_valid(values), loads) == (right, right), override
    assert not validator.is_valid({"epochs": 3})  # what is missing may come from a base
    assert validator.is_valid({"epochs": 3, "extends": "r0.yaml"})
