"""SVG by hand: line charts, rows of images, boxes. The same text on every machine, no library."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's
GREY, INK = "#8a8a8a", "#222222"
LETTER = 6.4  # pixels that a letter takes, about
GAP = 12  # pixels between things


@dataclass(frozen=True)
class Block:
    """A piece of an image, in pixels from its upper left corner."""

    width: float
    height: float
    body: str


@dataclass(frozen=True)
class Line:
    """A curve of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def number(value: float) -> str:
    """A coordinate; one digit behind the point hides in what machines differ."""
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text


def words(x: float, y: float, text: str, anchor: str = "start", colour: str = INK) -> str:
    """A line of text; y is its base line."""
    place = f'x="{number(x)}" y="{number(y)}" text-anchor="{anchor}" fill="{colour}"'
    return f"<text {place}>{escape(text)}</text>"


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none") -> str:
    """A rectangle."""
    place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    return f'<rect {place} fill="{fill}" stroke="{stroke}"/>'


def moved(block: Block, x: float, y: float) -> str:
    """The block at a place."""
    return f'<g transform="translate({number(x)} {number(y)})">\n{block.body}\n</g>'


def beside(*blocks: Block) -> Block:
    """Blocks from left to right."""
    places = [sum(b.width + GAP for b in blocks[:i]) for i in range(len(blocks))]
    body = "\n".join(moved(block, x, 0) for block, x in zip(blocks, places, strict=True))
    return Block(places[-1] + blocks[-1].width, max(b.height for b in blocks), body)


def stack(*blocks: Block) -> Block:
    """Blocks from top to bottom."""
    places = [sum(b.height + GAP for b in blocks[:i]) for i in range(len(blocks))]
    body = "\n".join(moved(block, 0, y) for block, y in zip(blocks, places, strict=True))
    return Block(max(b.width for b in blocks), places[-1] + blocks[-1].height, body)


def svg(block: Block, about: str) -> str:
    """The whole image as a file's text; `about` is what a screen reader says."""
    width, height = math.ceil(block.width + 2 * GAP), math.ceil(block.height + 2 * GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">\n'
        f"<title>{escape(about)}</title>\n"
        f"{box(0, 0, width, height, '#ffffff')}\n{moved(block, GAP, GAP)}\n</svg>\n"
    )


# -- charts ----------------------------------------------------------------------------------------


def chart(
    title: str,
    x_name: str,
    y_name: str,
    lines: Sequence[Line],
    *,
    width: float = 400,
    height: float = 220,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Block:
    """Curves over one pair of axes, with a legend above. width, height: of the field of curves."""
    x_low, x_high = x_range or span([v for line in lines for v in line.x])
    y_low, y_high = y_range or span([v for line in lines for v in line.y])
    left, keys = 44, legend([(line.name, line.dashed) for line in lines], width)
    top = 18 + keys.height

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + (x - x_low) / (x_high - x_low) * width
        return across, top + (y_high - min(max(y, y_low), y_high)) / (y_high - y_low) * height

    parts = [words(left, 11, title), moved(keys, left, 16)]
    for value in ticks(y_low, y_high):
        y = at(x_low, value)[1]
        parts.append(f'<path d="M{number(left)} {number(y)}h{number(width)}" stroke="#e4e4e4"/>')
        parts.append(words(left - 5, y + 4, f"{value:g}", "end", GREY))
    for value in ticks(x_low, x_high):
        parts.append(words(at(value, 0)[0], top + height + 15, f"{value:g}", "middle", GREY))
    parts.append(box(left, top, width, height, "none", GREY))
    for place, line in enumerate(lines):
        points = " ".join(
            ",".join(map(number, at(x, y)))
            for x, y in zip(line.x, line.y, strict=True)
            if x_low <= x <= x_high
        )
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        style = f'fill="none" stroke="{COLOURS[place % len(COLOURS)]}" stroke-width="2"{dash}'
        parts.append(f'<polyline points="{points}" {style}/>')
    parts.append(words(left + width / 2, top + height + 31, x_name, "middle"))
    turned = f'transform="translate(10 {number(top + height / 2)}) rotate(-90)"'
    parts.append(f"<g {turned}>{words(0, 0, y_name, 'middle')}</g>")
    return Block(left + width + 8, top + height + 36, "\n".join(parts))


def legend(names: Sequence[tuple[str, bool]], width: float) -> Block:
    """What the curves are called, in as many rows as it takes."""
    parts, x, y = [], 0.0, 12.0
    for place, (name, dashed) in enumerate(names):
        wide = 28 + LETTER * len(name)
        if x and x + wide > width:
            x, y = 0.0, y + 16
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        stroke = f'stroke="{COLOURS[place % len(COLOURS)]}" stroke-width="2"{dash}'
        parts.append(f'<path d="M{number(x)} {number(y - 4)}h18" {stroke}/>')
        parts.append(words(x + 22, y, name))
        x += wide + 10
    return Block(width, y + 8, "\n".join(parts))


def span(values: Sequence[float]) -> tuple[float, float]:
    """The least and the most, apart if they are equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from low to high."""
    rough = (high - low) / 5
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * n for n in (1, 2, 2.5, 5, 10) if size * n >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


# -- images --------------------------------------------------------------------------------------


def tiles(
    title: str, images: Sequence[tuple[str, np.ndarray]], *, columns: int, side: int = 96
) -> Block:
    """Images uint8 (H, W, 3) in rows, each `side` pixels wide, with its lines of text below."""
    lines = max(len(label.splitlines()) for label, _ in images)
    top, high = (20 if title else 0), side + 15 * lines + GAP
    parts = [words(0, 11, title)] if title else []
    for place, (label, pixels) in enumerate(images):
        x, y = place % columns * (side + GAP), top + place // columns * high
        parts.append(embedded(pixels, x, y, side))
        for row, text in enumerate(label.splitlines()):
            parts.append(words(x, y + side + 13 + 15 * row, text))
    rows, across = -(-len(images) // columns), min(columns, len(images))
    width = max(across * (side + GAP) - GAP, LETTER * len(title))
    return Block(width, top + rows * high - GAP, "\n".join(parts))


def embedded(pixels: np.ndarray, x: float, y: float, side: float) -> str:
    """An image inside the SVG, its pixels as squares."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    place = f'x="{number(x)}" y="{number(y)}" width="{number(side)}" height="{number(side)}"'
    look = 'style="image-rendering:pixelated"'
    return f'<image {place} {look} href="data:image/png;base64,{data}"/>'
