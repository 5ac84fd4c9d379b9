"""Renderings: numbers and units, Korean columns, and text that would like to be more than text."""

import csv
import html
import io
import json
import re

import pytest
from rich.cells import cell_len

from vision_tutorial.runs.seed_statistics import Sample
from vision_tutorial.tables import table
from vision_tutorial.tables.table import FORMATS, Column, Table, clean

COLUMNS = (
    Column("run", "run"),
    Column("best", "best top1", "number"),
    Column("delta", "Δ", "signed"),
    Column("seconds", "time", "duration"),
    Column("epochs", "epochs"),
)
PLAIN = Table(
    COLUMNS,
    (
        ("r3", Sample((80.5, 81.0, 81.3)), None, Sample((2985.0,)), 200),
        ("r4", Sample((82.13,)), 1.196, 3660.0, 250),
        ("r5", None, -0.85, None, None),
    ),
    ("a note",),
)
HOSTILE = [
    "=1+1",
    "@SUM(A1)",
    "＝1",
    "\t=1",
    "a\r\nb\x1b[31mred\x9b2J\x00",
    "\u202eevil\u2066\u200b",
]
HOSTILE += [
    "<script>alert(1)</script>",
    "\"' onmouseover='x'",
    "a | b",
    "![x](javascript:alert(1))",
]
HOSTILE += ["`code` *bold* _it_ ~~no~~ $x$", "[red]text[/]", "[1em]*", "한글 이름", "\ud800"]
HOSTILE += [r"\input{/etc/passwd} & % # _ ^ ~ { } $"]


def held(values: list[str]) -> Table:
    """The values as run names, heads and notes."""
    rows = tuple((value, value) for value in values)
    return Table((Column("a", "a"), Column("b", values[0])), rows, tuple(values))


def test_markdown_and_transposed() -> None:
    assert PLAIN.texts()[1:] == [
        ["r4", "82.13", "+1.20", "1h1m", "250"],
        ["r5", "–", "−0.85", "–", "–"],
    ]
    assert table.markdown(PLAIN).splitlines()[:3] == [
        "| run | best top1 | Δ | time | epochs |",
        "| --- | ---: | ---: | ---: | --- |",
        "| r3 | 80.93 ± 0.40 (n=3) | – | 49m45s | 200 |",
    ]
    turned = PLAIN.transposed()
    assert [column.title for column in turned.columns] == ["run", "r3", "r4", "r5"]
    assert turned.rows[0] == ("best top1", "80.93 ± 0.40 (n=3)", "82.13", "–")
    assert len(turned.rows) == 4 and turned.notes == PLAIN.notes


def test_csv_is_for_machines() -> None:
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](PLAIN))))
    best = Sample((80.5, 81.0, 81.3))
    assert list(rows[0]) == [
        *["run", "best top1", "best top1 ±", "best top1 n", "Δ", "time (s)", "epochs"]
    ]
    assert list(rows[0].values()) == [
        "r3",
        f"{best.mean}",
        f"{best.spread}",
        *["3", "", "2985.0", "200"],
    ]
    assert (rows[1]["best top1 ±"], rows[1]["best top1 n"], rows[2]["Δ"]) == ("", "1", "-0.85")


def test_json_keeps_the_values() -> None:
    whole = json.loads(FORMATS["json"](PLAIN))
    best = whole["rows"][0]["best"]
    assert best["mean"] == pytest.approx(80.93, abs=0.01) and best["n"] == 3
    assert best["spread"] == pytest.approx(0.404, abs=0.001) and best["values"] == [80.5, 81, 81.3]
    last = {"run": "r5", "best": None, "delta": -0.85, "seconds": None, "epochs": None}
    assert whole["rows"][2] == last
    assert whole["columns"][3] == {"key": "seconds", "title": "time"}
    mixed = Table((Column("a", "a"), Column("b", "b")), ((1, None), ("x", 2.0), (None, 3)))
    assert table.uniform(mixed) == (["a", "b"], [["1", None], ["x", 2.0], [None, 3]]), "for wandb"


def test_latex() -> None:
    lines = FORMATS["latex"](PLAIN).splitlines()
    assert lines[:3] == ["% a note", r"\begin{tabular}{lrrrl}", r"\toprule"]
    assert lines[5] == r"r3 & 80.93 $\pm$ 0.40 (n=3) & -- & 49m45s & 200 \\"
    assert lines[7] == r"r5 & -- & $-$0.85 & -- & -- \\"


def printed(shown: Table, width: int | None = None) -> list[str]:
    out = io.StringIO()
    table.terminal(shown, out, width)
    return out.getvalue().splitlines()


def test_korean_stands_in_columns() -> None:
    shown = Table(
        (Column("a", "실험"), Column("b", "최고 top1", "number"), Column("c", "메모")),
        (("기본", 70.72, "x"), ("abc", 8.0, "학습이 불안정"), ("긴 이름의 실험", 82.13, "y")),
    )
    lines = printed(shown)
    assert len({cell_len(line) for line in lines}) == 1
    for words in ("x학y", ("2 ", "0 ", "3 ")):  # starts of texts, ends of numbers
        places = [cell_len(x[: x.index(word)]) for x, word in zip(lines[2:], words, strict=True)]
        assert len(set(places)) == 1


def test_a_wide_table_comes_in_blocks() -> None:
    columns = tuple(Column(f"c{n}", f"column {n}") for n in range(12))
    rows = tuple((f"run {r}", *(f"value {n}" for n in range(11))) for r in range(3))
    lines = printed(Table(columns, rows), 60)
    assert all(cell_len(line) <= 60 for line in lines)
    assert sum(line.startswith("column 0") for line in lines) > 1
    assert sum(line.startswith("run 1") for line in lines) > 1
    for n in range(11):
        assert sum(f"column {n} " in f"{line} " for line in lines) >= 1
    assert len(printed(Table(columns, rows))) == 5, "where nobody measures, lines are long"
    lines = printed(Table((Column("a", "a"), Column("b", "b")), (("x" * 50, "y" * 50),)), 60)
    assert "".join(lines).count("x") == 50 and "".join(lines).count("y") == 50


@pytest.mark.parametrize("form", FORMATS)
def test_no_format_lets_a_letter_steer(form: str) -> None:
    text = FORMATS[form](held(HOSTILE))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e\u2066\ud800]", text)
    assert "한글 이름" in text
    if form == "terminal":
        assert "a b[31mred2J" in text and "[red]text[/]" in text


def test_html_runs_nothing() -> None:
    text = FORMATS["html"](held(HOSTILE))
    tags = set(re.findall(r"<([a-z!]+)", text))
    shown = re.sub(r"<[^>]*>", "", text)
    allowed = "html head meta title style body div table thead tbody tr th td p !doctype"
    assert tags <= set(allowed.split())
    assert not re.findall(r"<[^>]*\bon\w+=", text)
    for value in HOSTILE:
        assert clean(value) in html.unescape(shown)


def test_csv_holds_no_formula() -> None:
    rows = list(csv.reader(io.StringIO(FORMATS["csv"](held(HOSTILE)))))
    assert len(rows) == 1 + len(HOSTILE) and all(len(row) == 2 for row in rows)
    assert not [cell for row in rows for cell in row if cell.startswith(tuple("=+-@＝＋－＠\t"))]
    assert rows[1][0] == "'=1+1"
    assert FORMATS["csv"](Table((Column("a", "a", "number"),), ((-1.5,),))) == "a\n-1.5\n"


def test_markdown_is_a_table_whatever_it_holds() -> None:
    lines = table.markdown(held(HOSTILE)).splitlines()
    rows = lines[: 2 + len(HOSTILE)]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in rows)
    body = "\n".join(lines)
    assert "<script" not in body and "](" not in re.sub(r"\\.", "", body)
    assert re.search(r"(?<![\\`])`", re.sub(r"\\.", "", body)) is None
    assert table.markdown(Table((Column("weight_decay", "weight_decay"),), ())).startswith(
        "| weight_decay |"
    )


def test_latex_commands_are_text() -> None:
    text = FORMATS["latex"](held(HOSTILE))
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + len(HOSTILE)
    assert r"\textbackslash{}input\{/etc/passwd\}" in text
    for line in body:
        assert not line.startswith(("[", "*")), "the \\\\ before would take it"
        bare = re.sub(r"\\[{}$&#_%]|\$\\?[a-zA-Z-]+\$|\\text\w+\{\}", "", line[:-2])
        assert not re.search(r"[\\^~#%]", bare) and bare.count("&") == 1


def test_a_text_in_a_notebook_is_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Jupyter rich would show it, and leave nothing to return."""
    made = Table((Column("run", "run"),), (("first",),))
    before = table.plain_text(made)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *given: pytest.fail("shown"))
    assert table.plain_text(made) == before and "first" in before
