"""Recipes: extends, overrides, the three forms, strictness, and every complaint."""

import copy
import dataclasses
import json
import pickle
import re

import pytest
import yaml
from pydantic import ValidationError

from vision_tutorial.core.errors import UserError, unknown
from vision_tutorial.recipe import grammar
from vision_tutorial.recipe.fields import RESUMABLE, Recipe, changes, identity, to_plain, to_yaml
from vision_tutorial.recipe.grammar import Choice, Term
from vision_tutorial.recipe.loading import MAX_BASES, load

BASE = """
dataset: shapes
augment:
  - {random_crop: {size: 16, padding: 2}}
  - hflip
model: {test_resnet: {stem: cifar}}
loss: {cross_entropy: 1, focal: {weight: 0.5, gamma: 3}}
epochs: 3
batch_size: 32
optimizer: {sgd: {lr: 0.1, momentum: 0.9}}
"""


@pytest.fixture
def write(tmp_path):
    """Writes files beside each other; gives the path of one."""

    def write(name: str = "r.yaml", text: str = BASE):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def complaint(path, *overrides) -> str:
    """The one line that loading gives, without the folder."""
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    message = str(caught.value).replace(f"{path.parent}/", "")
    assert "\n" not in message
    return message


# -- reading ---------------------------------------------------------------------------------------


def test_the_three_forms_with_their_defaults(write):
    recipe = load(write()).recipe
    assert recipe.name == "r"
    assert recipe.dataset == Choice(
        "shapes", {"size": 32, "train": 4000, "test": 1000, "seed": 0, "masks": False}
    )
    assert [c.name for c in recipe.augment] == ["random_crop", "hflip"]
    assert recipe.augment[0].options["padding"] == 2
    assert recipe.augment[0].options["mode"] == "constant"  # the entry's default, filled in
    assert recipe.loss == (
        Term("cross_entropy", 1.0, {"label_smoothing": 0.0, "class_weights": None}),
        Term("focal", 0.5, {"gamma": 3.0, "alpha": None}),
    )
    assert recipe.optimizer.options == {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9}
    assert recipe.mix is None
    assert recipe.warmup.mode == "overlap"
    assert grammar.words(recipe.loss) == "1 cross_entropy + 0.5 focal"
    assert grammar.words(recipe.augment) == "random_crop, hflip"
    assert grammar.words(recipe.dataset) == "shapes"
    assert grammar.words((Term("focal"),)) == "focal"
    assert grammar.words(3) == "3"


def test_a_name_alone_is_a_blend_and_a_choice(write):
    recipe = load(write(), ["loss=focal", "dataset={shapes: }"]).recipe
    assert [(t.name, t.weight) for t in recipe.loss] == [("focal", 1.0)]
    assert recipe.dataset.options["size"] == 32


def test_numbers_are_coerced_by_declared_type(write):
    words = ["optimizer.sgd.lr=1e-3", "warmup.lr=1", "loss.focal.gamma=2"]
    recipe = load(write(), words).recipe
    assert recipe.optimizer.options["lr"] == 1e-3
    assert type(recipe.warmup.lr) is type(recipe.loss[1].options["gamma"]) is float


def test_total_epochs(write):
    assert load(write()).recipe.total_epochs == 3
    overlap = load(write(), ["warmup.epochs=2", "cooldown.epochs=4"]).recipe
    assert overlap.total_epochs == 7
    front = load(write(), ["warmup={epochs: 2, mode: front}", "cooldown.epochs=4"]).recipe
    assert front.total_epochs == 9


# -- extends ---------------------------------------------------------------------------------------


def test_a_key_replaces_the_bases_key_whole(write):
    write()
    path = write("child.yaml", "extends: r.yaml\naugment: [vflip]\nloss: {focal: 2}\n")
    loaded = load(path)
    assert [c.name for c in loaded.recipe.augment] == ["vflip"]
    assert [t.name for t in loaded.recipe.loss] == ["focal"]
    assert loaded.recipe.name == "child"
    assert loaded.base.name == "r"
    assert loaded.base_path.name == "r.yaml"
    assert list(changes(loaded.recipe, loaded.base)) == ["augment", "loss"]


def test_chains_reach_across_folders_and_keep_no_name_nor_claim(write):
    write("r.yaml", BASE + "name: ground\nexpects: {top1: 9}\nseed: 1\n")
    write("sub/middle.yaml", "extends: ../r.yaml\nseed: 2\nepochs: 5\n")
    loaded = load(write("sub/top.yaml", "extends: middle.yaml\nepochs: 7\n"))
    assert (loaded.recipe.name, loaded.recipe.expects) == ("top", {})
    assert (loaded.recipe.seed, loaded.recipe.epochs, loaded.base.epochs) == (2, 7, 5)


def test_r4_changes_the_epochs_of_r3_and_nothing_else(repository):
    loaded = load(repository / "recipes" / "r4.yaml")
    assert changes(loaded.recipe, loaded.base) == {"epochs": (200, 250)}


def test_a_base_may_be_a_part_of_a_recipe(write):
    write("part.yaml", "epochs: 3\nbatch_size: 8\n")
    text = "extends: part.yaml\nmodel: resnet18\ndataset: shapes\noptimizer: {sgd: {lr: 1}}\n"
    loaded = load(write("whole.yaml", text))
    assert (loaded.recipe.epochs, loaded.base, loaded.base_path) == (3, None, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nextends: [x]", 'c.yaml:2: extends: given ["x"]; name a file'),
        ("extends: /etc/hosts", 'c.yaml:1: extends: given "/etc/hosts"; name a file'),
        ("extends: c.yaml", 'c.yaml:1: extends: a circle: "c.yaml" -> "c.yaml"'),
        ("\nextends: d.yaml", "c.yaml:2: extends: {}: no recipe called 'd.yaml'"),
        ("extends: nowhere/d.yaml", "nowhere/d.yaml: no such recipe; give the path of a .yaml"),
    ],
)
def test_bad_bases(write, tmp_path, text, said):
    write("sub/x.yaml")
    path = write("c.yaml", text)
    assert said.format(tmp_path) in complaint(path)


def test_circles_are_shown(write):
    write("a.yaml", "extends: b.yaml")
    write("b.yaml", "extends: c.yaml")
    path = write("c.yaml", "extends: a.yaml")
    said = 'b.yaml:1: extends: a circle: "c.yaml" -> "a.yaml" -> "b.yaml" -> "c.yaml".'
    assert complaint(path) == f"{said} A recipe cannot be its own base."


def test_too_many_bases(write):
    write("0.yaml")
    for n in range(1, MAX_BASES + 2):
        path = write(f"{n}.yaml", f"extends: {n - 1}.yaml")
    assert load(path.with_name(f"{MAX_BASES}.yaml")).recipe.epochs == 3
    assert f"more than {MAX_BASES} bases" in complaint(path)


def test_an_error_in_a_base_names_the_base(write):
    write("r.yaml", BASE + "sede: 3\n")
    path = write("c.yaml", "extends: r.yaml\nepochs: 1\n")
    assert complaint(path).startswith("r.yaml:11: sede: no key called 'sede'; did you mean 'seed'?")


def test_a_missing_recipe_names_the_nearest(write):
    path = write("r4.yaml").with_name("r44.yaml")
    assert "no recipe called 'r44.yaml'; did you mean 'r4.yaml'? Known: r4.yaml" in complaint(path)


@pytest.mark.parametrize("name", ["r4", "recipes/r4.yaml", "segmentation/camvid"])
def test_a_recipe_of_the_package_is_known_by_name(tmp_path, monkeypatch, repository, name):
    monkeypatch.chdir(tmp_path)
    own = name.removeprefix("recipes/").removesuffix(".yaml")
    assert load(name).path == repository / "recipes" / f"{own}.yaml"


def test_a_file_that_exists_comes_before_the_packages_recipe(write, tmp_path, monkeypatch):
    write("r4.yaml", BASE + "seed: 7\n")
    monkeypatch.chdir(tmp_path)
    assert load("r4.yaml").recipe.seed == 7
    assert load("r4").recipe.seed == 42


@pytest.mark.parametrize("name", ["recipes/r44.yaml", "../r4", "segmentation/camvit"])
def test_a_name_that_no_recipe_has(tmp_path, monkeypatch, name):
    (tmp_path / "within").mkdir()
    monkeypatch.chdir(tmp_path / "within")
    near = "segmentation/camvid" if "cam" in name else "r4"
    with pytest.raises(UserError, match=f"no such recipe; give the path .*did you mean '{near}'"):
        load(name)


# -- complaints ------------------------------------------------------------------------------------

# what stands in the place of a key of BASE (or is added) -> what is said
COMPLAINTS = {
    "modle: resnet18": "r.yaml:11: modle: no key called 'modle'; did you mean 'model'? Known: mod",
    "model: resnet5": "r.yaml:11: model.resnet5: no model called 'resnet5'; did you mean 'resnet50",
    "model: {resnet18: {stam: 1}, resnet34: }": "model: given 2 names (resnet18, resnet34); choose",
    "model: {}": "r.yaml:11: model: given 0 names (none); choose exactly one model.",
    "model: [resnet18]": 'model: given ["resnet18"]; expected: the model',
    "model: {resnet18: 3}": "r.yaml:11: model.resnet18: given 3; options are written {name: {optio",
    "model: {resnet18: {stem: cifr}}": "model.resnet18.stem: given \"cifr\"; expected: 'imagenet' ",
    "model: {resnet18: {drop_path: true}}": "drop_path: given true; expected: a valid number.",
    "model: {resnet18: {pretrained: 3}}": "given 3; expected: a valid boolean or a valid string.",
    "dataset: {shapes: {sise: 32}}": "shapes.sise: no option of 'shapes' called 'sise'; did you me",
    "augment: hflip": 'augment: given "hflip"; a list of augments is expected, such as [a, b].',
    "augment: [hflip, {vflip: {p: [1]}}]": "r.yaml:11: augment.1.vflip.p: given [1]; expected: a v",
    "augment: [{random_resized_crop: {scale: [0.1, x]}}]": 'scale: given [0.1, "x"]; expected: a v',
    "loss: {}": "loss: given {}; write a loss's name",
    "loss: {focal: -1}": "loss.focal: the weight of 'focal' is -1; a number from 0 up is expected.",
    "loss: {focal: true}": "the weight of 'focal' is true",
    "loss: {focal: 1e12}": "the weight of 'focal' is 1000000000000.0",
    "optimizer: sgd": "optimizer.sgd: 'sgd' needs a value for 'lr'. Its options: (lr, weight_decay",
    "epochs: 1e3": "r.yaml:11: epochs: given 1000.0; expected: a valid integer.",
    "epochs: '3'": 'epochs: given "3"; expected: a valid integer.',
    "epochs: 0": "epochs: given 0; expected: greater than or equal to 1.",
    "compile: 1": "compile: given 1; expected: a valid boolean or",
    "precision: fp8": "given \"fp8\"; expected: 'fp32', 'fp16', 'bf16' or 'auto'.",
    "name: ..": "given \"..\"; expected: letters, digits, '.', '_' and '-'.",
    f"name: {'n' * 65}": "nnn…; expected: String should have at most 64 characters.",
    "warmup: 5": "warmup: given 5; expected: {epochs, lr, mode}.",
    "ema: {dekay: 1}": "ema.dekay: no key called 'dekay'; did you mean 'decay'?",
    "clip: {norm: 1, value: 1}": 'clip: given {"norm": 1, "value": 1}; expected: exactly one of no',
    "normalize: 3": "'half' or 'none' or {mean, std}.",
    "normalize: {mean: [1, 2, 3]}": "r.yaml:11: normalize: the key 'std' is needed and is not give",
    "normalize: {mean: [1, 2], std: [1, 1, 1]}": "normalize.mean: given [1, 2]; expected: more ite",
    "normalize: {mean: [1, 2, x], std: [1, 1, 1]}": 'normalize.mean.2: given "x"; expected: a vali',
    "normalize: {mean: 1, std: [1, 1, 1]}": "normalize.mean: given 1; expected: a list.",
    "expects: 3": "expects: given 3; expected: {name: number, …}.",
    "imports: x.py": 'imports: given "x.py"; a list of .py files is expected.',
    "imports: [../out.py]": 'imports: "../out.py" is no .py file at or below ',
    "imports: [r.yaml]": 'imports: "r.yaml" is no .py file at or below ',
}


def without(key: str) -> str:
    """BASE without one of its keys; what is added then stands on line 11."""
    lines = rf"^{key}:.*\n(  .*\n)*"
    return re.sub(lines, lambda found: "\n" * found[0].count("\n"), BASE, flags=re.MULTILINE)


@pytest.mark.parametrize(("line", "said"), COMPLAINTS.items())
def test_complaints(write, tmp_path, line, said):
    (tmp_path.parent / "out.py").write_text("")
    message = complaint(write(text=without(line.partition(":")[0]) + line + "\n"))
    assert said in message
    assert message.startswith("r.yaml:11: " + line.partition(":")[0])
    assert len(message.replace(str(tmp_path), "")) <= 500


@pytest.mark.parametrize("key", ["dataset", "model", "epochs", "batch_size", "optimizer"])
def test_what_is_needed_is_asked_for(write, key):
    path = write(text=without(key))
    assert f"the key '{key}' is needed and is not given." in complaint(path)


def test_a_value_too_long_is_cut(write):
    message = complaint(write(), "wandb.mode=" + "x" * 5000)
    assert len(message) < 300
    assert "xxx…" in message
    assert len(complaint(write(), "model=" + "y" * 5000)) < 500


def test_unknown_names_the_nearest_and_the_list():
    said = "no loss called 'focl'; did you mean 'focal'? Known: bce, focal"
    assert unknown("loss", "focl", ["focal", "bce"]) == said
    assert unknown("loss", "zzz", ["focal", "bce"]) == "no loss called 'zzz'. Known: bce, focal"
    near = unknown("entry", "entry_77x", [f"entry_{n}" for n in range(1000)])
    assert "did you mean 'entry_77" in near and near.endswith("… (1000 in all)")
    assert len(near) < 300


# -- overrides -------------------------------------------------------------------------------------

OVERRIDES = {
    " epochs = 9 ": lambda r: r.epochs == 9,
    "optimizer={adamw: {lr: 1e-3}}": lambda r: r.optimizer.name == "adamw",
    "dataset.shapes.size=16": lambda r: r.dataset.options["size"] == 16,  # opens a name
    "schedule.cosine.min_lr=1e-6": lambda r: r.schedule.options["min_lr"] == 1e-6,  # from nothing
    "loss.focal=2": lambda r: [t.weight for t in r.loss] == [1, 2],
    "loss.cross_entropy.label_smoothing=0.1": lambda r: (  # opens a weight
        (r.loss[0].weight, r.loss[0].options["label_smoothing"]) == (1, 0.1)
    ),
    "loss.bce=0.1": lambda r: [t.name for t in r.loss] == ["cross_entropy", "focal", "bce"],
    "mix.mixup.alpha=0.2": lambda r: r.mix[0].options["alpha"] == 0.2,
    "augment.hflip.p=0.7": lambda r: r.augment[1].options["p"] == 0.7,  # by name
    "augment.1.hflip.p=0.7": lambda r: r.augment[1].options["p"] == 0.7,  # by place
    "augment.0=vflip": lambda r: r.augment[0].name == "vflip",
    "clip.norm=1": lambda r: r.clip.norm == 1,  # null on the way
    "clip=": lambda r: r.clip is None,
    "model={resnet50.a1_in1k: {stem: cifar}}": lambda r: r.model.options["stem"] == "cifar",
    "optimizer.sgd.x=" + "[" * 13 + "1" + "]" * 13: lambda r: "x" in r.optimizer.options,
    "optimizer={lookahead_sgd: {lr: 1}}": lambda r: r.optimizer.name == "lookahead_sgd",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides(write, override):
    assert OVERRIDES[override](load(write(), [override]).recipe)


def test_overrides_act_in_order(write):
    twice = ["model=resnet50.a1_in1k", "model.resnet50.a1_in1k.stem=cifar"]
    assert load(write(), twice).recipe.model.options["stem"] == "cifar"
    assert load(write(), ["epochs=1", "epochs=2"]).recipe.epochs == 2
    twice = ["augment=[hflip, vflip]", "augment.1.vflip.p=1"]
    assert load(write(), twice).recipe.augment[1].options["p"] == 1


def test_a_term_joins_what_is_there_without_being_written(write):
    text = BASE.replace("loss: {cross_entropy: 1, focal: {weight: 0.5, gamma: 3}}\n", "")
    assert grammar.words(load(write(text=text), ["loss.focal=0.5"]).recipe.loss) == (
        "1 cross_entropy + 0.5 focal"
    )


def test_an_override_does_not_touch_the_base(write):
    write()
    loaded = load(write("c.yaml", "extends: r.yaml\n"), ["augment.hflip.p=0.7", "seed=3"])
    assert set(changes(loaded.recipe, loaded.base)) == {"augment", "seed"}
    assert loaded.base.augment[1].options["p"] == 0.5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs", "command line (epochs): no override; write key=value or key.sub=value."),
        ("a..b=3", "no override; write"),
        ("epoch=3", "(epoch=3): no key called 'epoch'; did you mean 'epochs'?"),
        ("epochs.x=3", "nothing can be set below 3."),
        ("epochs=[", "command line (epochs=[):1: not valid YAML"),
        ("epochs=x", '(epochs=x): epochs: given "x"; expected: a valid integer.'),
        ("optimizer.adam.lr=1", "optimizer is 'sgd' here; write optimizer.sgd.lr=… for an option"),
        ("augment.vflip.p=1", "no item called 'vflip'; did you mean 'hflip'? Known: hflip, random"),
        ("augment.9.hflip.p=1", "no item called '9'"),
        ("augment.hflip.p=x", '(augment.hflip.p=x): augment.1.hflip.p: given "x"; expected: a v'),
        ("augment.0.hflip.p=1", "given 2 names (random_crop, hflip); choose exactly one augment."),
        ("loss.focal.gama=1", "loss.focal.gama: no option of 'focal' called 'gama'; did you mean"),
        ("normalize.mean=[0, 0, 0]", "normalize: the key 'std' is needed and is not given."),
        ("normalize.mean.x=1", ""),
        ("optimizer.sgd.x=" + "[" * 14 + "1" + "]" * 14, "optimizer: nested deeper than 16 lev"),
        ("extends=x.yaml", "no key called 'extends'"),
    ],
)
def test_bad_overrides(write, override, said):
    message = complaint(write(), override)
    assert message.startswith("command line (")
    assert said in message


def test_an_item_there_twice_must_be_said_by_place(write):
    said = "'hflip' is there 2 times; say which: [0, 1]."
    assert said in complaint(write(), "augment=[hflip, hflip]", "augment.hflip.p=1")
    assert load(write(), ["augment=[hflip, hflip]", "augment.1.hflip.p=1"]).recipe


def test_an_override_of_one_option_leaves_the_lines_of_the_others(write):
    path = write(text=BASE.replace("momentum: 0.9", "weight_decay: x"))
    assert complaint(path, "optimizer.sgd.lr=1").startswith(
        "r.yaml:10: optimizer.sgd.weight_decay:"
    )


# -- imports ---------------------------------------------------------------------------------------

PLUGIN = '''
from vision_tutorial.core.registry import losses
raise SystemExit("executed")

@losses.register
def huber(logits, target, *, delta: float = 1.0, sizes: tuple[int, int] = (1, 2)):
    """Looks at outliers less."""
'''


def test_imports_are_read_and_not_run(write):
    write("mine/loss.py", PLUGIN)
    path = write(text=BASE + "imports: [mine/loss.py]\n")
    loaded = load(path, ["loss={huber: {delta: 2, sizes: [3, 4]}}"])
    assert loaded.recipe.loss == (Term("huber", 1.0, {"delta": 2.0, "sizes": (3, 4)}),)
    assert [p.name for p in loaded.imports] == ["loss.py"]
    assert "did you mean 'delta'" in complaint(path, "loss={huber: {detla: 2}}")
    assert "sizes: given [1, 2, 3]; expected: " in complaint(path, "loss.huber.sizes=[1, 2, 3]")


def test_imports_are_found_from_the_file_that_names_them(write, monkeypatch, tmp_path):
    write("ground/loss.py", PLUGIN)
    write("ground/r.yaml", BASE + "imports: [loss.py]\n")
    path = write("top/c.yaml", "extends: ../ground/r.yaml\nloss: huber\n")
    assert load(path).recipe.loss[0].name == "huber"
    monkeypatch.chdir(tmp_path)  # from the command line: from here
    plain = write("plain.yaml")
    assert load(plain, ["imports=[ground/loss.py]", "loss=huber"]).imports
    assert "is no .py file at or below" in complaint(plain, "imports=[loss.py]")


def test_a_link_out_of_the_folder_is_refused(write, tmp_path):
    outside = tmp_path.parent / "outside.py"
    outside.write_text(PLUGIN)
    (tmp_path / "in.py").symlink_to(outside)
    assert "in.py" in complaint(write(), f"imports=[{tmp_path}/in.py]")
    path = write("i.yaml", BASE + "imports: [in.py]\n")
    assert '"in.py" is no .py file at or below' in complaint(path)


# -- frozen, equal, written ------------------------------------------------------------------------


def test_a_recipe_cannot_be_changed(write):
    recipe = load(write()).recipe
    with pytest.raises(ValidationError, match="frozen"):
        recipe.epochs = 4
    with pytest.raises(ValidationError, match="frozen"):
        recipe.warmup.epochs = 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.model.name = "x"
    nested = load(write(), ["model={resnet18: {block_args: {a: [1]}}}"]).recipe.model.options
    assert nested["block_args"]["a"] == (1,)
    for options in (recipe.expects, recipe.loss[0].options, nested["block_args"]):
        for change in (
            lambda o: o.__setitem__("lr", 1),
            lambda o: o.update(lr=1),
            lambda o: o.pop("lr"),
            lambda o: o.__ior__({"lr": 1}),
        ):
            with pytest.raises(TypeError, match="does not change"):
                change(options)


def test_a_recipe_can_be_copied_and_sent_to_another_process(write):
    recipe = load(write(), ["expects.top1=3"]).recipe
    assert copy.deepcopy(recipe) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_the_resolved_recipe_reads_back_as_the_same(write):
    for overrides in (
        [],
        ["mix={cutmix: 1, mixup: {alpha: 0.2}}", "clip.agc=1e-9", "ema.decay=0.5"],
        ["normalize={mean: [1, 2, 3e-7], std: [1e16, 1, 1]}", "expects={top1: 1e-300, x: }"],
        ["optimizer={adamw: {lr: 1e-3, betas: [0.9, 0.95]}}", "seed=9007199254740992"],
        ["wandb={notes: '1e-3', tags: [on, '1', 'null', '', ' x ', '1:30', '0o7', '#', 'é\n']}"],
        [r'wandb={notes: "a\nb\tc: [\u2028\x85", project: "true"}'],
        ["model={resnet18: {pretrained: '1e5', block_args: {a: {b: []}, c: {}}}}"],
    ):
        recipe = load(write(), overrides).recipe
        text = to_yaml(to_plain(recipe))
        assert load(write("again.yaml", text)).recipe == recipe
        # and another reader, of YAML 1.1, sees no other values
        assert yaml.safe_load(text) == to_plain(recipe)
        assert "&" not in text


def test_plain_values_are_json_and_complete(write):
    plain = to_plain(load(write()).recipe)
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == list(Recipe.model_fields)
    assert plain["loss"]["focal"] == {"weight": 0.5, "gamma": 3.0, "alpha": None}
    assert plain["augment"][1] == {"hflip": {"p": 0.5}}


# another value for each key; an identity must change with it unless a resumed run may differ there
OTHER = """
name=x expects.top1=1 imports= task= dataset.shapes.size=16 holdout=0.1 subset=7 augment=[]
eval_augment=[hflip] normalize=half mix=mixup data.path=timm workers=1 model=resnet18 loss=bce
aux_loss=bce aux_weight=1 balance.ema=0.5 epochs=4 batch_size=64 micro_batch=8
optimizer.sgd.lr=0.2 parameter_groups.no_decay_1d=false schedule=cosine schedule_unit=step
warmup.epochs=1 cooldown.epochs=1 clip.norm=1 ema.decay=0.5 seed=1 precision=bf16
deterministic=false channels_last=false compile=true sync_bn=true shards=2 threads=1 eval_every=2
eval_batch_size=10 refine=[dense_crf] early_stopping.patience=3 checkpoint.keep=3 wandb.project=x
""".split()


def test_identity_ignores_what_a_resumed_run_may_change(write):
    keys = [word.partition("=")[0].partition(".")[0] for word in OTHER]
    assert keys == list(Recipe.model_fields)
    path = write()
    first = identity(load(path).recipe)
    for key, word in zip(keys, OTHER, strict=True):
        if not word.endswith("="):
            other = load(path, [word]).recipe
            assert (identity(other) == first) == (key in RESUMABLE), key
    # where pixels lie makes no difference to them
    assert identity(load(path, ["data.memory=host"]).recipe) == first
