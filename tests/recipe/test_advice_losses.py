"""What is said of losses is so: each replacement that a lint names has the same value."""

import pytest
import torch

from vision_tutorial.losses import WeightedSum
from vision_tutorial.recipe import advice_losses
from vision_tutorial.recipe.advice import LINTS
from vision_tutorial.recipe.loading import load
from vision_tutorial.recipe.recipe_info import RecipeInfo, recipe_info

BASE = """
dataset: {shapes: {train: 640}}
model: {test_resnet: {stem: cifar}}
epochs: 10
batch_size: 64
optimizer: {madgrad: {lr: 1.0e-4}}
schedule_unit: step
holdout: 0.1
normalize: half
"""
OURS = {check.__name__.lstrip("_") for check in LINTS if check.__module__ == advice_losses.__name__}


@pytest.fixture
def said(tmp_path):
    """What the lints on losses say of overrides, by their name."""
    path = tmp_path / "r.yaml"
    path.write_text(BASE)

    def ask(*overrides, **more):
        recipe = load(path, overrides).recipe
        known = RecipeInfo(**{**vars(recipe_info(recipe)), **more})
        spoken = {check.__name__.lstrip("_"): list(check(recipe, known)) for check in LINTS}
        return {name: items for name, items in spoken.items() if items and name in OURS}

    ask.recipe = lambda *overrides: load(path, overrides).recipe
    return ask


@pytest.mark.parametrize(
    ("loss", "name", "what"),
    [
        (
            "{focal: {gamma: 0}, cross_entropy: 1}",
            "one_cross_entropy",
            "1 focal + 1 cross_entropy is one loss: 2 cross_entropy",
        ),
        (
            "{cross_entropy: {weight: 3, label_smoothing: 0.1}, focal: {gamma: 0, weight: 0.5}}",
            "one_cross_entropy",
            "3 cross_entropy (0.1) + 0.5 focal is one loss: "
            "3.5 label_smoothing of epsilon 0.0857143",
        ),
        ("{focal: {gamma: 0}}", "focal_without_focus", "focal loss with gamma 0"),
        (
            "{tversky: {alpha: 0.5, beta: 0.5, smooth: 0.75}}",
            "tversky_by_its_name",
            "tversky with alpha 0.5 and beta 0.5 is dice",
        ),
        (
            "{tversky: {alpha: 1, beta: 1, smooth: 0.75}}",
            "tversky_by_its_name",
            "tversky with alpha 1 and beta 1 is jaccard",
        ),
    ],
)
def test_the_named_loss_has_the_same_value(said, loss, name, what):
    (item,) = said(f"loss={loss}")[name]
    assert item.what == what
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    ids = torch.randint(5, (4, 3), generator=generator)
    instead = item.do.partition(", or")[0]
    assert instead.startswith("loss=")
    given, other = (WeightedSum(said.recipe(words).loss) for words in (f"loss={loss}", instead))
    torch.testing.assert_close(given(logits, ids)[0], other(logits, ids)[0], rtol=1e-6, atol=0)


def test_of_both_heads(said):
    found = said("loss=tanimoto", "aux_loss={tanimoto: 1, focal: {gamma: 0}}")
    assert [item.key for item in found["tanimoto_is_jaccard"]] == ["loss.tanimoto"] + [
        "aux_loss.tanimoto"
    ]
    assert found["focal_without_focus"][0].key == "aux_loss.focal.gamma"


def test_what_a_larger_loss_does_depends_on_the_optimizer(said):
    twice = "loss={focal: {gamma: 0}, cross_entropy: 1}"
    (madgrad,) = said(twice)["one_cross_entropy"]
    assert "2 times the loss is only a step of 1.26 times" in madgrad.why
    (adam,) = said(twice, "optimizer={adamw: {lr: 0.001}}")["one_cross_entropy"]
    assert "Adam's kin divides out" in adam.why
    (even,) = said("loss={label_smoothing: 0.75, cross_entropy: 0.25}")["one_cross_entropy"]
    assert "sum to 1" in even.why


def test_madgrads_step_grows_by_the_cube_root():
    import timm.optim

    moves = []
    for factor in (1.0, 2.0):
        weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = timm.optim.create_optimizer_v2([weight], "madgrad", lr=1e-2, eps=0.0)
        for gradient in ([1.0, -2.0, 3.0], [0.5, 1.0, -1.0]):
            weight.grad = factor * torch.tensor(gradient, dtype=torch.float64)
            optimizer.step()
        moves.append(weight.detach() - 1)
    torch.testing.assert_close(moves[1] / moves[0], torch.full((3,), 2 ** (1 / 3)).double())


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss={cross_entropy: {class_weights: [1, 2]}, label_smoothing: 1}"],
        ["loss={cross_entropy: 1, focal: {gamma: 0, alpha: [1, 2]}}"],
        ["loss={tversky: {alpha: 0.5, beta: 0.5, gamma: 0.75}}"],
        ["loss={tanimoto: {gamma: 0.75}}"],
        ["loss={cross_entropy: 1, label_smoothing: 1}", "balance=ema"],
    ],
)
def test_what_is_not_the_same_is_not_said(said, overrides):
    assert said(*overrides) == {}


def test_balancing_needs_two_terms_and_time(said):
    two = "aux_loss={focal: 0.75, dice: 0.25}"
    assert said("balance=ema")["nothing_to_balance"][0].what == "no weighted sum has two terms"
    assert said("balance=ema", two) == {}
    (late,) = said("balance=calibrate", two)["nothing_to_balance"]  # 9 steps an epoch, 10 epochs
    assert late.what == "the calibration takes 100 steps, the training 90"
    assert late.do == "balance={calibrate: 4}, or ema"
    assert said("balance=calibrate", two, steps_per_epoch=None) == {}
