"""Recipes in the students' notation: the words of their tables, what changed."""

import pytest

from vision_tutorial.recipe.fields import to_plain
from vision_tutorial.recipe.loading import load, read_back
from vision_tutorial.recipe.notation import Notation, changed, duration, find, scalar


def typed(name: str, *overrides: str) -> dict:
    return read_back(to_plain(load(name, overrides).recipe))


WORDS = [
    ("loss", {"focal": 0.75, "dice": {"weight": 0.25, "smooth": 1.0}}, "0.75 focal + 0.25 dice"),
    ("loss", {"focal": {"weight": 1.0}, "cross_entropy": {"weight": 1.0}}, "focal + CE"),
    ("loss", {"foreign_loss": {"weight": 2, "of": 3}}, "2 foreign_loss"),
    ("loss", None, "–"),
    ("loss", [1], "[1]"),
    ("optimizer", {"adamax": {"lr": 0.0005, "weight_decay": 0.0}}, "adamax(0.0005)"),
    ("model", {"a": 1, "b": 2}, "a=1, b=2"),
]


@pytest.mark.parametrize(("key", "value", "text"), WORDS)
def test_words(key: str, value: object, text: str) -> None:
    assert Notation([]).words(key, read_back({key: value})[key]) == text


def test_a_loss_for_each_head() -> None:
    recipes = [
        {"loss": {"focal": 1.0}, "aux_loss": {"cross_entropy": 1.0}},
        {"loss": {"focal": 1.0}, "aux_loss": {"focal": 1.0}},
        {"loss": {"focal": 0.3, "dice": 0.7}, "aux_loss": None},
        {"loss": {"focal": 1.0}},
    ]
    recipes = [read_back(recipe) for recipe in recipes]
    notation = Notation(recipes)
    cells = [notation.cell(recipe, "loss") for recipe in recipes]
    assert cells == ["focal ‖ CE", "focal ‖ focal", "0.3 focal + 0.7 dice", "focal"]
    assert notation.columns == ["loss"]
    assert Notation(recipes[:2]).columns == ["loss"], "a head alone may differ"
    notation = Notation([{"clip": None}, {"clip": {"norm": 5.0, "value": None}}])
    assert notation.columns == ["clip.norm"], "one lacks the group"
    assert [notation.cell(recipe, "clip.norm") for recipe in notation.recipes] == [None, 5.0]


def test_only_what_differs_is_written() -> None:
    recipes = [typed("r0"), typed("r1"), typed("r3"), typed("r5", "seed=3", "workers=1")]
    notation = Notation(recipes)
    assert notation.columns == ["augment", "mix", "epochs", "optimizer"]
    cells = {key: [notation.cell(recipe, key) for recipe in recipes] for key in notation.columns}
    assert cells["augment"] == [*["…, color_jitter"] * 2, *["…, auto_augment"] * 2]
    assert cells["mix"] == [None, None, "cutmix(alpha=1)", "cutmix(alpha=0.5) + mixup"]
    assert cells["optimizer"][0] == "sgd(0.1, weight_decay=1e-9, momentum=0.4)"
    assert cells["epochs"][0] == 200
    one = Notation(recipes[:1])
    assert one.columns == []
    assert one.cell(recipes[0], "augment") == "random_resized_crop, hflip, color_jitter"
    every = Notation(recipes[:1] * 2, everything=True)
    assert {"seed", "warmup.lr", "wandb.mode", "data.memory", "loss"} <= set(every.columns)
    assert every.cell(recipes[0], "augment").startswith("random_resized_crop(size=32, scale=[0.08,")
    assert [every.cell(recipes[0], key) for key in ("channels_last", "clip")] == ["yes", None]


def test_finding() -> None:
    recipe = typed("r5")
    keys = ["optimizer.momentum", "mix.alpha", "warmup.lr", "epochs", "augment.policy"]
    assert [find(recipe, key) for key in keys] == [0.9, 0.5, 0.01, 250, "original"]
    for key in ("optimizer.nothing", "nothing", "warmup", "epochs.x"):
        assert find(recipe, key) is None


def test_what_the_report_changed() -> None:
    assert changed(typed("r1"), typed("r2")) == "− color_jitter, + auto_augment"
    said = "mix cutmix → cutmix + mixup, cutmix.alpha 1 → 0.5"
    assert changed(typed("r4"), typed("r5")) == said


SGD, ADAMW = {"optimizer": {"sgd": {"lr": 1.0}}}, {"optimizer": {"adamw": {"lr": 0.1}}}


CHANGES = [
    ({"augment": ["a", "b"]}, {"augment": ["b", "a"]}, "augment in another order"),
    ({"augment": ["a"]}, {"augment": ["a", "a"]}, "+ a 2"),
    ({"augment": [{"a": {"p": 1}}, {"a": {"p": 2}}]}, {"augment": ["a"]}, "− a 2, a.p 1 → –"),
    (SGD, ADAMW, "optimizer sgd(1) → adamw(0.1)"),
    ({"clip": None}, {"clip": {"norm": 5.0}}, "clip – → norm=5"),
    ({"warmup": {"lr": 0.0, "epochs": 0}}, {"warmup": {"epochs": 5}}, "warmup.epochs 0 → 5, "),
    ({"seed": 1, "workers": 1, "name": "a"}, {"seed": 2, "workers": 2, "name": "b"}, ""),
    ({}, {"compile": True}, "compile – → yes"),
]


@pytest.mark.parametrize(("before", "after", "said"), CHANGES)
def test_changes(before: dict, after: dict, said: str) -> None:
    found = changed(read_back(before), read_back(after))
    assert found.startswith(said) and bool(found) == bool(said)


def test_scalars_and_durations() -> None:
    values = {1e-9: "1e-9", 1e22: "1e22", True: "yes", (0.08, 1.0): "[0.08, 1]", "a b": "a b"}
    assert {value: scalar(value) for value in values} == values
    times = {0.2: "0s", 59.6: "1m0s", 2985: "49m45s", 3599.7: "1h0m", 90060: "25h1m"}
    assert {seconds: duration(seconds) for seconds in times} == times


def test_strange_values_do_not_stop_it() -> None:
    for value in (None, 1, "a", [], [1, None, {}], {}, {"a": 1}, {"a": {"lr": []}}, [[["x"]]]):
        for key in ("loss", "optimizer", "augment", "mix", "task"):
            recipe = read_back({key: value})
            Notation([recipe, {}]).cell(recipe, key)
            assert isinstance(changed(recipe, read_back({key: "b"})), str)
            assert value is None or changed(recipe, {}) == "" == changed(recipe, recipe)
