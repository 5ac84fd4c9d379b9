"""A table as data, and what it looks like: terminal, Markdown, CSV, LaTeX, HTML, JSON.

Every text in it is untrusted. No rendering lets it act: control letters are taken out, and what a
format would read as markup or as a formula is escaped.
"""

import csv
import datetime
import html
import io
import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from ..recipe.notation import duration, scalar
from ..runs.seed_statistics import Sample

_Value = None | bool | int | float | str | Sample
_UNLIMITED = 100_000  # letters in a line that no terminal will break
WIDEST, GAP = 36, 3  # a column on a terminal, and the room between two


@dataclass(frozen=True)
class Column:
    """One column. kind: how numbers are written (`duration`: seconds); digits: after the dot."""

    key: str
    title: str
    kind: Literal["text", "number", "signed", "duration"] = "text"
    digits: int = 2


@dataclass(frozen=True)
class Table:
    """Rows under columns; notes stand below. rows: a value for each column. heads: so many columns
    say what a row is, and come again where the table is too wide for one block."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[_Value, ...], ...]
    notes: tuple[str, ...] = ()
    heads: int = 1

    def texts(self) -> list[list[str]]:
        """Every cell as a person reads it, in one line without control letters."""
        return [
            [_shown(value, column) for value, column in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]

    def transposed(self) -> "Table":
        """The columns as rows, of texts; the first column becomes the heads."""
        first, *others = self.columns
        texts = self.texts()
        heads = [Column(f"run {n}", row[0]) for n, row in enumerate(texts, start=1)]
        rows = [(c.title, *(row[n] for row in texts)) for n, c in enumerate(others, start=1)]
        columns = (Column(first.key, first.title), *heads)
        return replace(self, columns=columns, rows=tuple(rows), heads=1)


def _shown(value: _Value, column: Column) -> str:
    if isinstance(value, Sample):
        mean = _shown(value.mean, column)
        if value.spread is None or column.kind == "duration":
            return mean
        return f"{mean} ± {value.spread:.{column.digits}f} (n={value.n})"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return clean(scalar(value))
    if column.kind == "duration":
        return duration(value)
    if column.kind == "text" or isinstance(value, int):
        return scalar(value)
    return f"{value:{'+' * (column.kind == 'signed')}.{column.digits}f}".replace("-", "−")


def clean(text: str) -> str:
    """Text on one line, without letters that steer: control, formatting, direction, surrogates."""
    kept = (" " if letter.isspace() else letter for letter in text)
    kept = (x for x in kept if unicodedata.category(x) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
    return " ".join("".join(kept).split())


def terminal(table: Table, file: TextIO, width: int | None = None, widest: int = WIDEST) -> None:
    """Print it, at most `width` letters wide; None: as wide as the terminal, if `file` is one.

    widest: a column; what is longer goes on in the next line.
    A table that is too wide comes in blocks of columns, each with the heads.
    """
    if width is None and file.isatty():
        width = shutil.get_terminal_size().columns
    console = Console(file=file, width=width or _UNLIMITED, highlight=False, force_jupyter=False)
    columns = list(zip((clean(c.title) for c in table.columns), *table.texts(), strict=True))
    for number, block in enumerate(_blocks(columns, width, table.heads, widest)):
        grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for n in block:
            side = "left" if table.columns[n].kind == "text" else "right"
            most = widest if width else None
            grid.add_column(Text(columns[n][0]), justify=side, overflow="fold", max_width=most)
        for row in range(len(table.rows)):
            grid.add_row(*(Text(columns[n][row + 1]) for n in block))
        console.print(*[""] * (number > 0), grid)
    if table.notes:
        console.print()
    for note in table.notes:
        console.print(Text(clean(note)))


def _blocks(
    columns: list[tuple[str, ...]], width: int | None, heads: int, widest: int
) -> list[list[int]]:
    widths = [min(widest, max(map(cell_len, column))) for column in columns]
    blocks = [[*range(heads)]]
    for n in range(heads, len(columns)):
        used = sum(widths[m] + GAP for m in blocks[-1])
        if width and used + widths[n] > width and len(blocks[-1]) > heads:
            blocks.append([*range(heads)])
        blocks[-1].append(n)
    return blocks


def plain_text(table: Table) -> str:
    """As on a terminal without colour and without an end."""
    out = io.StringIO()
    terminal(table, out)
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))


def markdown(table: Table) -> str:
    """GitHub's pipe table."""
    rows = [map(_markdown, row) for row in ([c.title for c in table.columns], *table.texts())]
    rows.insert(1, ("---" if c.kind == "text" else "---:" for c in table.columns))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    for note in table.notes:
        lines += ["", _markdown(note)]
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", clean(text))
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word it is a letter
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain_columns(table: Table) -> Iterator[tuple[str, list[_Value]]]:
    """For machines, title and values: of a Sample the mean, with its spread and n beside it."""
    for n, column in enumerate(table.columns):
        values = [row[n] for row in table.rows]
        samples = [value if isinstance(value, Sample) else None for value in values]
        seconds = " (s)" * (column.kind == "duration")
        yield column.title + seconds, [v.mean if isinstance(v, Sample) else v for v in values]
        if any(sample and sample.n > 1 for sample in samples):
            yield f"{column.title} ±", [sample and sample.spread for sample in samples]
            yield f"{column.title} n", [sample and sample.n for sample in samples]


def _csv_text(table: Table) -> str:
    out = io.StringIO()
    titles, columns = zip(*_plain_columns(table), strict=True)
    rows = [titles, *zip(*columns, strict=True)]
    cells = ((inert(clean(x)) if isinstance(x, str) else x for x in row) for row in rows)
    csv.writer(out, lineterminator="\n").writerows(cells)
    return out.getvalue()


_FORMULA = re.compile(r"(?![-+]?\d+(\.\d*)?(e[-+]?\d+)?\Z)[=+\-@−＝＋－＠\t\r]", re.IGNORECASE)


def inert(value: _Value) -> _Value:
    """A cell of a CSV; a text that a spreadsheet would run gets a ' before, a number stays one."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _latex(table: Table) -> str:
    """A tabular with booktabs' rules; needs UTF-8, and kotex where it holds Korean."""
    kinds = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    rows = [[column.title for column in table.columns], *table.texts()]
    head, *body = (" & ".join(map(_latex_text, row)) + r" \\" for row in rows)
    lines = [f"% {_latex_text(line)}" for line in table.notes]
    lines += [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_LATEX = {letter: rf"\{letter}" for letter in "{}$&#_%"}
_LATEX |= {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_LATEX |= {letter: f"{{{letter}}}" for letter in "[]*"}  # they would belong to the \\ before
_LATEX |= {"±": r"$\pm$", "‖": r"$\parallel$", "→": r"$\to$", "Δ": r"$\Delta$", "≤": r"$\leq$"}
_LATEX |= {"–": "--", "−": "$-$", "…": r"\dots{}", "·": r"$\cdot$", "√": r"$\surd$"}
_LATEX |= {"₁": "$_1$", "₂": "$_2$", "²": "$^2$"}


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in clean(text))


_PAGE = """<!doctype html>
<html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; overflow-wrap: anywhere }}
h2 {{ font-size: 1.1rem; margin: 2em 0 .5em }} p {{ margin: .3em 0; opacity: .75 }}
.scroll {{ overflow-x: auto }} table {{ border-collapse: collapse; width: max-content }}
th, td {{ padding: .3em .7em; border-bottom: 1px solid #8888; text-align: left; max-width: 24em }}
td {{ vertical-align: top; overflow-wrap: break-word }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
@media (max-width: 40rem) {{ body {{ margin: .7rem }} th, td {{ padding: .3em .4em }}
td {{ max-width: 9em }} }}
</style></head>
<body>
{body}
</body></html>
"""


def html_table(table: Table) -> str:
    """The table and its notes as a piece of HTML."""

    def cells(tag: str, texts: Iterable[str]) -> str:
        pairs = zip(kinds, texts, strict=True)
        return "".join(f"<{tag}{kind}>{_html(text)}</{tag}>" for kind, text in pairs)

    kinds = ["" if column.kind == "text" else ' class="number"' for column in table.columns]
    lines = [
        '<div class="scroll"><table>',
        f"<thead><tr>{cells('th', (c.title for c in table.columns))}</tr></thead>",
    ]
    lines += ["<tbody>", *(f"<tr>{cells('td', row)}</tr>" for row in table.texts()), "</tbody>"]
    lines += ["</table></div>", *(f"<p>{_html(note)}</p>" for note in table.notes)]
    return "\n".join(lines)


def _html_page(table: Table) -> str:
    return _PAGE.format(title="vision_tutorial", body=html_table(table))


def _html(text: str) -> str:
    return html.escape(clean(text))


def _json_text(table: Table) -> str:
    """{"columns": [{key, title}], "rows": [{key: value}], "notes": […]}; a Sample as an object."""
    columns = [{"key": column.key, "title": clean(column.title)} for column in table.columns]
    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, map(_json, row), strict=True)) for row in table.rows]
    notes = [clean(note) for note in table.notes]
    whole = {"title": "", "columns": columns, "rows": rows, "notes": notes}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def _json(value: _Value) -> object:
    if isinstance(value, Sample):
        return {"mean": value.mean, "spread": value.spread, "n": value.n, "values": value.values}
    return clean(value) if isinstance(value, str) else value


def uniform(table: Table) -> tuple[list[str], list[list[_Value]]]:
    """Titles and plain rows, as wandb takes them: a column is all numbers or all texts."""
    titles, columns = zip(*_plain_columns(table), strict=True)
    for values in columns:
        if any(isinstance(value, str) for value in values):
            values[:] = [v if v is None else clean(scalar(v)) for v in values]
    return list(titles), [list(row) for row in zip(*columns, strict=True)]


FORMATS: dict[str, Callable[[Table], str]] = {
    "terminal": plain_text,
    "markdown": markdown,
    "csv": _csv_text,
    "latex": _latex,
    "html": _html_page,
    "json": _json_text,
}


def several(
    tables: Mapping[str, Table], form: str, title: str = "", notes: Sequence[str] = ()
) -> str:
    """Tables under their names, in one text of a format. title, notes: of a page."""
    if form == "html":
        now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
        parts = [f"<h1>{_html(title)}</h1><p>{now}</p>"]
        parts += [f"<h2>{_html(name)}</h2>\n{html_table(one)}" for name, one in tables.items()]
        parts += [f"<p>{_html(note)}</p>" for note in notes]
        return _PAGE.format(title=_html(title), body="\n".join(parts))
    if form == "json":
        return json.dumps(
            {clean(n): json.loads(_json_text(t)) for n, t in tables.items()}, indent=2
        )
    head = {"markdown": "## {}\n\n"}.get(form, "{}\n")
    parts = (head.format(clean(name)) + FORMATS[form](one) for name, one in tables.items())
    return "\n".join(parts)


SUFFIXES = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".html": "html", ".json": "json"}
