"""Recipes: extends, overrides, the three forms, strictness, and one mistake of each kind."""

import copy
import pickle
import re

import pytest
import yaml

from vision_tutorial.core.errors import UserError
from vision_tutorial.recipe.fields import (
    RESUMABLE,
    Recipe,
    changes,
    identities,
    identity,
    to_plain,
    to_yaml,
)
from vision_tutorial.recipe.grammar import Choice, Term
from vision_tutorial.recipe.loading import MAX_BASES, load, package_recipes
from vision_tutorial.recipe.recipe_info import batch_parts

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
    assert message.isprintable() and len(message) <= 500
    return message


# -- reading ---------------------------------------------------------------------------------------


def test_the_three_forms_with_their_defaults(write):
    recipe = load(write(), ["warmup.lr=1"]).recipe
    assert recipe.name == "r"
    shapes = {"size": 32, "train": 4000, "test": 1000, "seed": 0, "masks": False}
    assert recipe.dataset == Choice("shapes", shapes)
    assert [c.name for c in recipe.augment] == ["random_crop", "hflip"]
    assert recipe.augment[0].options["padding"] == 2
    assert recipe.augment[0].options["mode"] == "constant"  # the entry's default, filled in
    assert recipe.loss == (
        Term("cross_entropy", 1.0, {"label_smoothing": 0.0, "class_weights": None}),
        Term("focal", 0.5, {"gamma": 3.0, "alpha": None}),
    )
    assert recipe.optimizer.options == {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9}
    assert (recipe.mix, recipe.warmup.mode) == (None, "overlap")
    # numbers have the declared type
    assert type(recipe.warmup.lr) is type(recipe.loss[1].options["gamma"]) is float


# -- extends ---------------------------------------------------------------------------------------


def test_a_key_replaces_the_bases_key_whole(write):
    write()
    loaded = load(write("child.yaml", "extends: r.yaml\naugment: [vflip]\nloss: {focal: 2}\n"))
    assert [c.name for c in loaded.recipe.augment] == ["vflip"]
    assert [t.name for t in loaded.recipe.loss] == ["focal"]
    assert (loaded.recipe.name, loaded.base.name, loaded.base_path.name) == ("child", "r", "r.yaml")
    assert list(changes(loaded.recipe, loaded.base)) == ["augment", "loss"]


def test_chains_reach_across_folders_and_keep_no_name_nor_claim(write):
    write("r.yaml", BASE + "name: ground\nexpects: {top1: 9}\nseed: 1\n")
    write("sub/middle.yaml", "extends: ../r.yaml\nseed: 2\nepochs: 5\n")
    loaded = load(write("sub/top.yaml", "extends: middle.yaml\nepochs: 7\n"))
    assert (loaded.recipe.name, loaded.recipe.expects) == ("top", {})
    assert (loaded.recipe.seed, loaded.recipe.epochs, loaded.base.epochs) == (2, 7, 5)
    write("part.yaml", "epochs: 3\nbatch_size: 8\n")  # a base may be a part of a recipe
    text = "extends: part.yaml\nmodel: resnet18\ndataset: shapes\noptimizer: {sgd: {lr: 1}}\n"
    loaded = load(write("whole.yaml", text))
    assert (loaded.recipe.epochs, loaded.base, loaded.base_path) == (3, None, None)


def test_bad_bases_and_as_many_as_allowed(write):
    for base, said in (
        ("/etc/hosts", 'given "/etc/hosts"; name a file'),
        ("c.yaml", f"a circle, or more than {MAX_BASES} bases: c.yaml"),
        ("d.yaml", "d.yaml: no such recipe; give the path of a .yam"),
    ):
        text = f"\nextends: {base}"
        assert complaint(write("c.yaml", text)).startswith(f"c.yaml:2: extends: {said}")
    write("0.yaml")
    for n in range(1, MAX_BASES + 2):
        path = write(f"{n}.yaml", f"extends: {n - 1}.yaml")
    assert load(path.with_name(f"{MAX_BASES}.yaml")).recipe.epochs == 3
    assert f"more than {MAX_BASES} bases" in complaint(path)
    write("0.yaml", BASE + "sede: 3\n")
    said = "0.yaml:11: sede: no key called 'sede'; did you mean 'seed'?"
    assert complaint(path.with_name("1.yaml")).startswith(said)


def test_a_recipe_of_the_package_is_known_by_name(write, tmp_path, monkeypatch, repository):
    monkeypatch.chdir(tmp_path)
    for name in ("r4", "recipes/r4.yaml", "segmentation/camvid"):
        own = name.removeprefix("recipes/").removesuffix(".yaml")
        assert load(name).path == repository / "recipes" / f"{own}.yaml"
    write("r4.yaml", BASE + "seed: 7\n")
    assert (load("r4.yaml").recipe.seed, load("r4").recipe.seed) == (7, 42)  # a file comes first
    said = complaint(tmp_path / "r44.yaml")
    assert "no recipe called 'r44.yaml'; did you mean 'r4.yaml'? Known: r4.yaml" in said
    base = load(write("own.yaml", "extends: segmentation/camvid\n")).base
    assert base.task.name == "segmentation"
    for name, near in (("../r4", "r4"), ("segmentation/camvit", "segmentation/camvid")):
        with pytest.raises(UserError, match=f"no such recipe; give .*did you mean '{near}'"):
            load(name)


# -- complaints ------------------------------------------------------------------------------------

# what stands in the place of a key of BASE (or is added) -> what is said
COMPLAINTS = {
    "modle: resnet18": "modle: no key called 'modle'; did you mean 'model'? Known: mod",
    "model: resnet5": "model.resnet5: no model called 'resnet5'; did you mean 'resnet50",
    "model: {resnet18: 3}": "model.resnet18: given 3; options are written {name: {optio",
    "model: {resnet18: {stem: cifr}}": "model.resnet18.stem: given \"cifr\"; expected: 'imagenet' ",
    "model: {resnet18: {pretrained: 3}}": "given 3; expected: a valid boolean or a valid string.",
    "dataset: {shapes: {sise: 3}}": "shapes.sise: no option of 'shapes' called 'sise'; did you me",
    "augment: hflip": 'augment: given "hflip"; expected: a list of augments, such as [a, b].',
    "augment: [{random_resized_crop: {scale: [0.1, x]}}]": 'crop.scale.1: given "x"; expected: a v',
    "loss: {}": "loss: given {}; expected: a loss's name, {name: weight, …} or ",
    "loss: {focal: -1}": "loss.focal.weight: given -1; expected: greater than or equal to 0.",
    "optimizer: sgd": "optimizer.sgd: 'sgd' needs a value for 'lr'.",
    "epochs: 1e3": "epochs: given 1000.0; expected: a valid integer.",
    "name: ..": "name: given \"..\"; expected: 1 to 64 letters, digits, '.', '_' and '-'.",
    "warmup: 5": "warmup: given 5; expected: {epochs, lr, mode}.",
    "clip: {norm: 1, value: 1}": 'clip: given {"norm": 1, "value": 1}; expected: exactly one of no',
    "normalize: {mean: [1, 2, 3]}": "normalize: 'normalize' needs a value for 'std'.",
    "normalize: {mean: [1, 2], std: [1, 1, 1]}": "normalize.mean: given [1, 2]; expected: more ite",
    "expects: 3": "expects: given 3; expected: {name: value, …}.",
    "imports: x.py": 'imports: given "x.py"; a list of .py files is expected.',
    "imports: [../out.py]": 'imports: "../out.py" is no .py file at or below ',
}


def without(key: str) -> str:
    """BASE without one of its keys; what is added then stands on line 11."""
    lines = rf"^{key}:.*\n(  .*\n)*"
    return re.sub(lines, lambda found: "\n" * found[0].count("\n"), BASE, flags=re.MULTILINE)


@pytest.mark.parametrize(("line", "said"), COMPLAINTS.items())
def test_complaints(write, tmp_path, line, said):
    (tmp_path.parent / "out.py").write_text("")
    key = line.partition(":")[0]
    message = complaint(write(text=without(key) + line + "\n"))
    assert said in message
    assert message.startswith(f"r.yaml:11: {key}")


def test_what_is_needed_is_asked_for(write):
    for key in ("dataset", "epochs"):  # of a registry, and a plain one
        assert f"the recipe needs a value for '{key}'." in complaint(write(text=without(key)))


# -- overrides -------------------------------------------------------------------------------------

OVERRIDES = {
    " epochs = 9 ": lambda r: r.epochs == 9,
    "dataset.shapes.size=16": lambda r: r.dataset.options["size"] == 16,  # opens a name
    "schedule.cosine.min_lr=1e-6": lambda r: r.schedule.options["min_lr"] == 1e-6,  # from nothing
    "loss=focal": lambda r: [(t.name, t.weight) for t in r.loss] == [("focal", 1.0)],
    "loss.cross_entropy.label_smoothing=0.1": lambda r: (  # opens a weight
        (r.loss[0].weight, r.loss[0].options["label_smoothing"]) == (1, 0.1)
    ),
    "loss.bce=0.1": lambda r: [t.name for t in r.loss] == ["cross_entropy", "focal", "bce"],
    "augment.hflip.p=0.7": lambda r: r.augment[1].options["p"] == 0.7,  # by name
    "augment.1.hflip.p=0.7": lambda r: r.augment[1].options["p"] == 0.7,  # by place
    "augment.0=vflip": lambda r: [c.name for c in r.augment] == ["vflip", "hflip"],
    "clip.norm=1": lambda r: r.clip.norm == 1,  # null on the way
    "model.test_resnet.x=" + "[" * 13 + "1" + "]" * 13: lambda r: "x" in r.model.options,
}


def test_overrides(write):
    for override, holds in OVERRIDES.items():
        assert holds(load(write(), [override]).recipe), override
    # they act in order
    twice = ["model=resnet50.a1_in1k", "model.resnet50.a1_in1k.stem=cifar"]
    assert load(write(), twice).recipe.model.options["stem"] == "cifar"
    twice = ["augment=[hflip, hflip]", "augment.1.hflip.p=1"]
    assert load(write(), twice).recipe.augment[1].options["p"] == 1
    # a term joins what is there without being written
    loss = load(write(text=without("loss")), ["loss.focal=0.5"]).recipe.loss
    assert [(t.name, t.weight) for t in loss] == [("cross_entropy", 1), ("focal", 0.5)]


def test_an_override_touches_neither_the_base_nor_the_lines_of_other_options(write):
    write()
    loaded = load(write("c.yaml", "extends: r.yaml\n"), ["augment.hflip.p=0.7", "seed=3"])
    assert set(changes(loaded.recipe, loaded.base)) == {"augment", "seed"}
    assert loaded.base.augment[1].options["p"] == 0.5
    path = write(text=BASE.replace("momentum: 0.9", "weight_decay: x"))
    said = complaint(path, "optimizer.sgd.lr=1")
    assert said.startswith("r.yaml:10: optimizer.sgd.weight_decay:")
    said = complaint(write(), "optimizer={sgd: {lr: x}}")  # not the file's line
    assert said.startswith("command line (optimizer=")


BAD_OVERRIDES = {
    "epochs": "command line (epochs): no override; write epochs=…, without spaces.",
    "sede": "command line (sede): no override; write key=value or key.sub=value, without",
    "data=cifar10": "a data set is named so: dataset=cifar10.",
    "dataset=a/b": "is named so: dataset='{image_folder: {root: a/b}}'.",
    "optimizer.lr=1": "is 'sgd' here; write optimizer.sgd.lr=… for an option of it.",
    "epoch=3": "(epoch=3): no key called 'epoch'; write epochs=3.",
    "epochs.x=3": "nothing can be set below 3.",
    "epochs=[": "command line (epochs=[):1: not valid YAML",
    "optimizer.adam.lr=1": "optimizer is 'sgd' here; write optimizer.sgd.lr=… for an opt",
    "augment.vflip.p=1": "no item called 'vflip'; did you mean 'hflip'? Known: hflip, ran",
    "augment=[hflip, hflip] augment.hflip.p=1": "is there 2 times; say which: [0, 1].",
    "augment.hflip.p=x": '(augment.hflip.p=x): augment.1.hflip.p: given "x"; expected: a v',
    "optimizer.sgd.x=" + "[" * 14 + "1" + "]" * 14: "optimizer: nested deeper than 16 lev",
}


@pytest.mark.parametrize(("overrides", "said"), BAD_OVERRIDES.items())
def test_bad_overrides(write, overrides, said):
    message = complaint(write(), *re.split(" (?=augment)", overrides))
    assert message.startswith("command line (") and said in message


# -- imports ---------------------------------------------------------------------------------------

PLUGIN = '''
from vision_tutorial.core.registry import losses
raise SystemExit("executed")

@losses.register
def huber(logits, target, *, delta: float = 1.0, sizes: tuple[int, int] = (1, 2)):
    """Looks at outliers less."""
'''


def test_imports_are_read_and_not_run(write, monkeypatch, tmp_path):
    write("ground/loss.py", PLUGIN)
    write("ground/r.yaml", BASE + "imports: [loss.py]\n")
    path = write("top/c.yaml", "extends: ../ground/r.yaml\n")
    loaded = load(path, ["loss={huber: {delta: 2, sizes: [3, 4]}}"])
    assert loaded.recipe.loss == (Term("huber", 1.0, {"delta": 2.0, "sizes": (3, 4)}),)
    assert [p.name for p in loaded.imports] == ["loss.py"]
    assert "sizes: given [1, 2, 3]; expected: " in complaint(path, "loss.huber.sizes=[1, 2, 3]")
    monkeypatch.chdir(tmp_path)  # from the command line: from here
    plain = write("plain.yaml")
    assert load(plain, ["imports=[ground/loss.py]", "loss=huber"]).imports
    assert "is no .py file at or below" in complaint(plain, "imports=[loss.py]")
    (tmp_path / "ground" / "in.py").symlink_to(plain)
    path = write("ground/i.yaml", BASE + "imports: [in.py]\n")
    assert '"in.py" is no .py file at or below' in complaint(path)


# -- frozen, equal, written ------------------------------------------------------------------------


def test_a_recipe_cannot_be_changed(write):
    recipe = load(write(), ["model={resnet18: {block_args: {a: [1]}}}"]).recipe
    for owner, name in ((recipe.warmup, "epochs"), (recipe.model, "name")):
        with pytest.raises((ValueError, AttributeError), match="frozen|cannot assign"):
            setattr(owner, name, 4)
    nested = recipe.model.options["block_args"]
    assert nested["a"] == (1,)
    for options in (recipe.expects, recipe.loss[0].options, nested):
        for change in (lambda o: o.__setitem__("lr", 1), lambda o: o.update(lr=1)):
            with pytest.raises(TypeError, match="does not change"):
                change(options)
    assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe


STRANGE = [
    *("mix={cutmix: 1, mixup: {alpha: 0.2}}", "clip.agc=1e-9", "seed=9007199254740992"),
    *("normalize={mean: [1, 2, 3e-7], std: [1e16, 1, 1]}", "expects={top1: 1e-300, x: }"),
    "wandb={notes: '1e-3', tags: [on, '1', 'null', ' x ', '1:30', '0o7', '#', 'é\n']}",
    "model={resnet18: {pretrained: '1e5', block_args: {a: {b: []}, c: {}}}}",
]


def test_the_resolved_recipe_reads_back_as_the_same(write):
    recipe = load(write(), STRANGE).recipe
    plain, text = to_plain(recipe), to_yaml(to_plain(recipe))
    assert load(write("again.yaml", text)).recipe == recipe
    # and another reader, of YAML 1.1, sees no other values
    assert yaml.safe_load(text) == plain
    assert "&" not in text
    assert list(plain) == list(Recipe.model_fields)


# another value for each key; an identity must change with it unless a resumed run may differ there
OTHER = """
name=x expects.top1=1 imports= task= dataset.shapes.size=16 holdout=0.1 subset=7 augment=[]
eval_augment=[hflip] normalize=half mix=mixup data.path=timm workers=1 model=resnet18 loss=bce
aux_loss=bce aux_weight=1 balance.ema=0.5 epochs=4 batch_size=64 micro_batch=8
optimizer.sgd.lr=0.2 parameter_groups.no_decay_1d=false schedule=cosine schedule_unit=step
warmup.epochs=1 cooldown.epochs=1 clip.norm=1 ema.decay=0.5 seed=1 precision=bf16
deterministic=false channels_last=false compile=true sync_bn=true ddp.static_graph=true shards=2
threads=1 eval_every=2 eval_batch_size=10 refine=[dense_crf] early_stopping.patience=3
checkpoint.keep=3 artifacts=false loggers=[tensorboard] wandb.project=x
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


OLDER = {
    "coco": "70d6679d8efa1d7d",
    "mask_folder": "6253b44c28f80888",
    "image_folder": "f3ddcb626a760409",
}


def test_the_identity_of_a_recipe_is_that_of_older_runs():
    for name, old in (("r4", "5c2ac9001e577ce1"), ("segmentation/camvid", "d2aad326700c3dfa")):
        # r4's was 250 in their time
        more = ["eval_batch_size=250"] if name == "r4" else []
        assert old in identities(to_plain(load(name, more).recipe))
    for kind, known in OLDER.items():  # options that came later change it where they are used
        for links in (False, True):
            words = f"dataset={{{kind}: {{root: x, follow_links: {links}}}}}"
            found = identities(to_plain(load("segmentation/camvid", [words]).recipe))
            assert (known in found) != links


@pytest.mark.parametrize(
    "batch, micro, world, mixed, parts",
    [
        (512, None, 1, True, 4),  # 128 at a time on a CPU
        (512, 100, 4, True, 2),
        (36, 5, 2, True, 9),  # two by two: the largest even size up to 5 that divides 18
        (15, 4, 1, True, 1),  # odd, alone: whole
        (15, 4, 1, False, 5),
        (30, 4, 2, True, "choose a multiple of 4"),
    ],
)
def test_the_global_batch_is_dealt(batch, micro, world, mixed, parts):
    size = "null" if micro is None else micro
    words = [f"batch_size={batch}", f"micro_batch={size}", *([] if mixed else ["mix=null"])]
    recipe = load("recipes/debug.yaml", words).recipe
    if isinstance(parts, str):
        with pytest.raises(UserError, match=parts):
            batch_parts(recipe, world, on_gpu=False)
    else:
        assert batch_parts(recipe, world, on_gpu=False) == parts
        assert batch_parts(recipe, world, on_gpu=True) in (1, parts)


def test_the_claim_is_of_the_recipe_without_overrides() -> None:
    same = ["seed=3", "threads=1", "workers=0", "loggers=[]", "wandb.mode=disabled", "epochs=10"]
    kinds = (([], True), (same, True), (["epochs=1"], False), (["eval_every=2"], False))
    for words, kept in kinds:
        assert bool(load("quickstart", words).recipe.expects) is kept
    own = load("quickstart", ["epochs=1", "expects={top1: 5}"]).recipe
    assert own.expects == {"top1": 5}


def test_no_two_recipes_of_the_package_share_a_run_folder() -> None:
    names = [load(name).recipe.name for name in package_recipes()]
    assert len(set(names)) == len(names) > 15
