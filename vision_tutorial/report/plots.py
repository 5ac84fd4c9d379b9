"""What a run leaves to look at, drawn by matplotlib: curves, a confusion matrix, rows of images."""

import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.atomic import replacing
from ..core.errors import short, visible
from ..recipe.notation import number
from ..runs.reader import Run

NUMBERED = 20  # classes up to which a confusion matrix has numbers, in place of a colour bar
_NAMED = 110  # … and a name at each row
# Fonts with Hangul, of which each system has another one.
_FONTS = ("NanumGothic", "Noto Sans CJK KR", "Noto Sans KR", "Malgun Gothic", "AppleGothic")


def curves(run: Run) -> Any:
    """Losses, headline metric and lr of each epoch; a Figure."""
    figure = _figure(12, 3.4)
    losses, metric, lr = figure.subplots(1, 3)
    _lines(losses, run.rows, ("train/loss", "val/loss"))
    _lines(metric, run.rows, (run.metric or "val/loss",))
    if run.best:
        metric.axvline(run.best.epoch, color="0.7", linestyle=":")
        metric.set_title(f"best {run.best.value:.2f}, epoch {run.best.epoch}", fontsize=10)
    _lines(lr, run.rows, ("lr",))
    epochs = [row["epoch"] for row in run.rows if number(row.get("epoch")) is not None]
    if epochs:
        margin = 0.5 + 0.02 * (max(epochs) - min(epochs))
        for axis in (losses, metric, lr):
            axis.set_xlim(min(epochs) - margin, max(epochs) + margin)
    return figure


def _lines(axis: Any, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    for name in names:
        points = [(row.get("epoch"), number(row.get(name))) for row in rows]
        points = [(x, y) for x, y in points if x is not None and y is not None]
        if points:
            axis.plot(
                *zip(*points, strict=True), marker="." if len(points) < 30 else "", label=name
            )
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=9)


def lr_range(
    lrs: Sequence[float], losses: Sequence[float], smooth: Sequence[float], found: float | None
) -> Any:
    """The loss over the lr of a range test, and the lr that was found; a Figure."""
    figure = _figure(7, 4)
    axis = figure.subplots()
    axis.plot(lrs, losses, color="0.8", label="loss")
    axis.plot(lrs, smooth, label="mean around each step")
    if found is not None:
        axis.axvline(found, color="firebrick", linestyle=":", label=f"falls fastest: {found:.3g}")
    if smooth:
        spread = max(smooth[0], smooth[-1]) - min(smooth)
        axis.set_ylim(min(smooth) - 0.1 * spread, min(smooth) + 1.5 * spread)
    axis.set(xscale="log", xlabel="lr", ylabel="train/loss")
    axis.grid(alpha=0.25)
    axis.legend()
    return figure


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], unit: str) -> Any:
    """A row for each true class: the share of it that was given each class; a Figure."""
    counts = np.asarray(matrix, float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    from matplotlib.colors import PowerNorm

    side = min(14.0, 3 + 0.42 * len(names))
    figure = _figure(side + 1.5, side, "compressed")
    axis = figure.subplots()
    # the root: else what is mistaken for another class in few cases would not be seen
    shown = axis.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    if len(names) <= NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                text = f"{100 * share:.0f}" if share >= 0.005 else "·"
                colour = "white" if share > 0.3 else "black"
                axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    bar = figure.colorbar(shown, ax=axis, fraction=0.045, label=f"% of the class's {unit}")
    marks = (0, 1, 5, 10, 20, 40, 60, 80, 100)
    bar.set_ticks([mark / 100 for mark in marks], labels=map(str, marks))
    axis.set(xlabel="prediction", ylabel="truth")
    ticks = range(len(names)) if len(names) <= _NAMED else range(0, len(names), 5)
    labels = [_text(names[place], 20) for place in ticks]
    size = max(5.0, min(8.0, 600 / len(names)))
    axis.set_xticks(ticks, labels, rotation=90, fontsize=size, parse_math=False)
    axis.set_yticks(ticks, labels, fontsize=size, parse_math=False)
    return figure


def grid(
    rows: Sequence[Sequence[tuple[np.ndarray, str]]],
    title: str,
    legend: Sequence[tuple[str, Sequence[int]]] = (),
    width: float = 1.6,
) -> Any:
    """Rows of images uint8 (H, W, 3), each with a line or two above it; a Figure.

    legend: names of colours, each of three numbers up to 255; it stands below. width: of an image,
    in inches.
    """
    columns = max(map(len, rows))
    high = max(pixels.shape[0] / pixels.shape[1] for row in rows for pixels, _ in row)
    two = any("\n" in text for row in rows for _, text in row)
    below = -(-len(legend) // columns)
    row = 0.97 * width * high + 0.3 + 0.1 * two
    figure = _figure(width * columns, row * len(rows) + 0.4 + 0.22 * below)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for line, images in zip(axes, rows, strict=True):
        for axis, (pixels, text) in zip(line, images, strict=False):
            axis.imshow(pixels, interpolation="nearest" if max(pixels.shape) < 100 else None)
            colour = "firebrick" if text.startswith("✗") else "black"
            words = "\n".join(_text(line, 26) for line in text.split("\n", 1))
            axis.set_title(words, fontsize=7, color=colour, parse_math=False)
    figure.suptitle(title, fontsize=10)
    if legend:
        from matplotlib.patches import Patch

        named = [
            Patch(facecolor=[part / 255 for part in colour], edgecolor="0.5", label=_text(name, 20))
            for name, colour in legend
        ]
        drawn = figure.legend(handles=named, loc="outside lower center", ncols=columns, fontsize=8)
        for text in drawn.get_texts():
            text.set_parse_math(False)
    return figure


def rows_of(images: Sequence[tuple[np.ndarray, str]], columns: int = 8) -> list[Any]:
    """Images in rows of so many."""
    return [images[at : at + columns] for at in range(0, len(images), columns)]


def save(figure: Any, path: Path) -> np.ndarray:
    """Write a figure as PNG, whole or not at all; its pixels uint8 (H, W, 3)."""
    with warnings.catch_warnings(), replacing(path) as temporary:
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for the letter
        figure.savefig(temporary, format="png", dpi=110)
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _figure(width: float, height: float, layout: str = "constrained") -> Any:
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    from matplotlib import font_manager, rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    there = {font.name for font in font_manager.fontManager.ttflist}
    rcParams["font.family"] = ["DejaVu Sans", *(name for name in _FONTS if name in there)]
    made = Figure((max(width, 3.0), max(height, 2.0)), layout=layout)
    FigureCanvasAgg(made)
    return made


def _text(text: str, most: int) -> str:
    return short(visible(text), most)


def share_words(names: Sequence[str], shares: Sequence[float]) -> str:
    """`cat 0.70 + dog 0.30`, the larger share first; one name alone if it has all of it."""
    order = sorted(range(len(shares)), key=lambda place: -shares[place])
    found = [(names[i], shares[i]) for i in order if shares[i] > 0 and not math.isnan(shares[i])]
    if len(found) == 1:
        return found[0][0]
    return " + ".join(f"{name} {share:.2f}" for name, share in found[:2])
