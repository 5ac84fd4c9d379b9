"""Lints on losses: names that mean the same, sums that are one loss, weights with nothing to do."""

import math
from collections.abc import Iterator

from .advice import Advice, lint
from .fields import Recipe
from .grammar import Term
from .recipe_info import RecipeInfo

HEADS = ("loss", "aux_loss")


def _terms(recipe: Recipe) -> Iterator[tuple[str, Term]]:
    for key in HEADS:
        for term in getattr(recipe, key) or ():
            yield key, term


@lint
def _focal_without_focus(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    for key, term in _terms(recipe):
        if term.name == "focal" and _smoothing(term) is not None:
            yield Advice(
                f"{key}.focal.gamma",
                "focal loss with gamma 0",
                "it is cross-entropy to the last digit",
                f"{key}=cross_entropy, or gamma 2 as in the paper",
            )


@lint
def _one_cross_entropy(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    for key in HEADS:
        alike = [(t, s) for t in getattr(recipe, key) or () if (s := _smoothing(t)) is not None]
        weight = sum(term.weight for term, _ in alike)
        if len(alike) < 2 or not weight or recipe.balancing:
            continue
        epsilon = sum(term.weight * share for term, share in alike) / weight
        summed = " + ".join(
            f"{term.weight:g} {term.name}" + (f" ({share:g})" if share else "")
            for term, share in alike
        )
        name = f"label_smoothing of epsilon {epsilon:.6g}" if epsilon else "cross_entropy"
        yield Advice(
            key,
            f"{summed} is one loss: {weight:.6g} {name}",
            "each is the cross-entropy against shares of the classes, and shares add up; "
            + _scaled(recipe, weight),
            f"{key}={{label_smoothing: {{weight: {weight:.6g}, epsilon: {epsilon:.6g}}}}}"
            if epsilon
            else f"{key}={{cross_entropy: {weight:.6g}}}, or gamma 2 if focal was meant",
        )


@lint
def _tanimoto_is_jaccard(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    for key, term in _terms(recipe):
        if term.name == "tanimoto" and term.options["gamma"] == 1:
            yield Advice(
                f"{key}.tanimoto",
                "tanimoto is jaccard",
                "Tversky's index with alpha and beta 1 is intersection over union",
                f"compare it with other losses, not with {key}=jaccard",
            )


@lint
def _tversky_by_its_name(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    for key, term in _terms(recipe):
        options = term.options
        if term.name != "tversky" or options["gamma"] != 1:
            continue
        alpha, beta, smooth = options["alpha"], options["beta"], options["smooth"]
        same = {(0.5, 0.5): ("dice", 2 * smooth), (1.0, 1.0): ("jaccard", smooth)}
        if (alpha, beta) in same:
            name, smooth = same[alpha, beta]
            yield Advice(
                f"{key}.tversky",
                f"tversky with alpha {alpha:g} and beta {beta:g} is {name}",
                "both kinds of mistakes weigh the same, and as much as they do there",
                f"{key}={{{name}: {{smooth: {smooth:g}}}}}, or a beta above alpha, to miss less",
            )


@lint
def _nothing_to_balance(recipe: Recipe, info: RecipeInfo) -> Iterator[Advice]:
    balance = recipe.balancing
    if balance and all(len(getattr(recipe, key) or ()) < 2 for key in HEADS):
        yield Advice(
            "balance",
            "no weighted sum has two terms",
            "a weight alone has nothing to be balanced with",
            "balance=fixed, or a second term",
        )
    elif balance and balance.calibrate and info.steps and info.steps <= balance.calibrate:
        yield Advice(
            "balance",
            f"the calibration takes {balance.calibrate:,} steps, the training {info.steps:,}",
            "the weights stay as they are given until it is over",
            f"balance={{calibrate: {max(info.steps // 20, 1)}}}, or ema",
        )


def _smoothing(term: Term) -> float | None:
    options = term.options
    if term.name == "label_smoothing":
        return options["epsilon"]
    if term.name == "cross_entropy" and options["class_weights"] is None:
        return options["label_smoothing"]
    if term.name == "focal" and options["gamma"] == 0 and options["alpha"] is None:
        return 0.0
    return None


def _scaled(recipe: Recipe, weight: float) -> str:
    name = recipe.optimizer.name
    if math.isclose(weight, 1):
        return "the weights sum to 1, so the size of the step is as with one"
    if name.startswith("madgrad"):
        return (
            f"madgrad divides by a cube root, so {weight:g} times the loss is only a step of "
            f"{weight ** (1 / 3):.3g} times the size (weight decay aside)"
        )
    return f"{weight:g} times a loss is {weight:g} times its gradient, which Adam's kin divides out"
