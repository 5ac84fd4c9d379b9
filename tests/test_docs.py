"""The teaching pages: what they show loads, runs, and is drawn by the code that stands here now."""

import base64
import importlib
import io
import json
import os
import re
import shlex
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from forked import Ranks, run_ranks
from PIL import Image

from vision_tutorial import build, checks, train
from vision_tutorial.__main__ import COMMANDS, module
from vision_tutorial.recipe.fields import changes
from vision_tutorial.recipe.loading import Loaded, load
from vision_tutorial.recipe.signatures import static_signatures

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
KOREAN = [page for page in PAGES if page.is_relative_to(DOCS / "ko")]
TEACHING = [page for page in PAGES if page.parent != DOCS or page.name == "index.md"]
TEACHING = [page for page in TEACHING if page not in KOREAN]  # whose blocks are the English ones
NOTEBOOKS = ("week3", "segmentation")
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"][
    "Repository"
]
TECHNIQUES = (
    *("momentum", "weight-decay", "warmup-cosine", "colour-jitter", "auto-augment", "cutmix"),
    *("mixup", "ddp", "label-smoothing", "dense-crf", "pseudo-labels"),
)
OWN = (DOCS / "lessons" / "own.md").read_text("utf-8")
SMALL = ["subset=64", "epochs=1", "warmup={}", "threads=1", "workers=0", "wandb.mode=disabled"]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def named(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


def shown(language: str, pages: list[Path]) -> list[Any]:
    """Each block of these pages, as a test's parameter."""
    return [
        pytest.param(text, id=f"{named(page)}-{n}")
        for page in pages
        for n, text in enumerate(blocks(page.read_text("utf-8"), language))
    ]


# -- what the pages say ----------------------------------------------------------------------------


def test_every_technique_has_its_page() -> None:
    for name in TECHNIQUES:
        text = (DOCS / "techniques" / f"{name}.md").read_text("utf-8")
        heads = re.findall(r"^## (.*)$", text, re.M)
        assert heads == ["Switch it on", "Measured", "Source"], name
        before = text.partition("## ")[0]
        drawn = blocks(before, "math") or name == "auto-augment"  # whose policy is no formula
        assert drawn and f"](../images/{name}.svg)" in before, name
        assert blocks(text, "yaml"), name


def test_every_loss_has_its_section() -> None:
    pages = [(DOCS / "losses" / f"{name}.md").read_text("utf-8") for name in ("pixel", "region")]
    found = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", "\n".join(pages), re.M | re.S)
    assert {name for name, _ in found} == static_signatures()["losses"].entries.keys()
    for name, text in found:
        (recipe,) = blocks(text, "yaml")
        assert re.search(rf"^loss: \W*{name}\b", recipe, re.M), name
        assert "easured" in text and (blocks(text, "math") or name == "tanimoto"), name


def test_numbers_of_others_are_those_of_the_recipes() -> None:
    """What a page says the students measured is what a recipe of theirs expects."""
    recipes = [p for p in (ROOT / "recipes").rglob("*.yaml") if p.parent.name != "sweeps"]
    texts = [path.read_text("utf-8") for path in recipes]
    claims = [claim for text in texts for claim in re.findall(r"^ *expects: (.*)", text, re.M)]
    known = {value for claim in claims for value in yaml.safe_load(claim).values()}
    rows = [
        line
        for page in TEACHING
        for line in page.read_text("utf-8").splitlines()
        if line.startswith(("| the report", "| the contest")) or "‖" in line
    ]
    numbers = [float(n) for row in rows for n in re.findall(r"(?<![\d+−-])\d\d\.\d+\b", row)]
    # seconds of an epoch, from the report's logs; no recipe expects them
    assert {n for n in numbers if n not in known} == {14.1, 14.2}
    assert len(numbers) > 30


def loaded(text: str, folder: Path) -> Loaded:
    """The recipe of a block, saved as the index page says."""
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "mine.yaml").write_text(text, "utf-8")
    return load(folder / "mine.yaml")


@pytest.mark.parametrize("text", shown("yaml", TEACHING))
def test_recipes_load_and_change_something(text: str, tmp_path: Path) -> None:
    assert text.startswith("extends: recipes/")
    for name in re.findall(r"^imports: \[(.*)\]", text, re.M):
        (tmp_path / name).write_text(file_named(name), "utf-8")
    found = loaded(text, tmp_path)
    assert changes(found.recipe, found.base)
    if found.imports:
        return  # trained below
    if "model:" in text:
        checks.check(found.recipe)
    build.learning_rates(found.recipe, 3)(0, [])
    spatial = (8, 8) if found.recipe.task.name == "segmentation" else ()
    logits = torch.zeros(6, 5, *spatial, requires_grad=True)
    for criterion in build.criteria(found.recipe).values():
        total, _ = criterion(logits, torch.ones(6, *spatial, dtype=torch.int64))
        total.backward()
        assert total.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("text", shown("sh", PAGES))
def test_commands_have_such_verbs_and_options(text: str, capsys: Any) -> None:
    for line in text.splitlines():
        words = shlex.split(line.partition(" > ")[0], comments=True)
        if words[:1] != ["vision-tutorial"] or len(words) == 1:
            continue
        command, *rest = words[1:]
        assert command in COMMANDS, line
        parser = module(command).parser()
        try:
            parser.parse_intermixed_args(rest)
        except SystemExit:
            pytest.fail(f"{line}: {capsys.readouterr().err}")
        for word in rest:
            assert not word.startswith("recipes/") or (ROOT / word).is_file(), line


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


def test_links_lead_somewhere() -> None:
    for page in (*PAGES, *ROOT.glob("*.md")):
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(((?!https://)[^)\s]+)\)", text):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_file() and target.is_relative_to(ROOT.resolve()), (page, link)
            assert not anchor or anchor in slugs(target), (page, link)


# -- Korean ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [f"techniques/{p.stem}" for p in sorted(DOCS.glob("techniques/*"))]
)
def test_korean_pages_are_the_english_ones(name: str) -> None:
    """The start page and every technique: headings, numbers, blocks, images and sources agree."""
    for page in ("index", name):
        texts = [(DOCS / part / f"{page}.md").read_text("utf-8") for part in ("", "ko")]
        fence = re.compile(r"^```.*?^```$", re.S | re.M)
        assert fence.findall(texts[0]) == fence.findall(texts[1]), page
        english, korean = (fence.sub("", text) for text in texts)
        for kind in (r"\d+(?:\.\d+)?", r"^#+ ", r"arxiv\.org/abs/[\d.]+", r"images/[\w-]+\.svg"):
            found = [sorted(re.findall(kind, text, re.M)) for text in (english, korean)]
            assert found[0] == found[1], (page, kind)
        assert (
            "[한국어](" in english
            and "[English](" in korean
            and len(re.findall("[가-힣]", korean)) > 200
        )


def test_the_korean_commands_are_those_of_the_parsers() -> None:
    text = (DOCS / "ko" / "commands.md").read_text("utf-8")
    parts = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert list(parts) == list(COMMANDS)
    readme = (ROOT / "README.md").read_text("utf-8")
    for name, part in parts.items():
        (line,) = blocks(part, "sh")
        assert f"| `{line.strip()}` |" in readme, name
        rows = re.findall(r"^\| `(.*?)` \|", part, re.M)
        options = {word for row in rows for word in re.findall(r"(?<!\S)--?[a-z][\w-]*", row)}
        actions = module(name).parser()._actions
        declared = {word for action in actions for word in action.option_strings}
        assert options == declared - {"-h", "--help"}, name


# -- images --------------------------------------------------------------------------------------


sys.path.insert(0, str(DOCS))
artist = importlib.import_module("images")  # docs/images.py
sys.path.remove(str(DOCS))
FILES = sorted(path.stem for path in (DOCS / "images").glob("*.svg"))
EMBEDDED = re.compile(r"data:image/png;base64,([\w+/=]+)")
NUMBER = re.compile(r"-?\d+\.\d")


def test_images_are_drawn_and_shown() -> None:
    assert FILES == sorted(artist.IMAGES)
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert set(re.findall(r"images/([\w-]+)\.svg\)", text)) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_images_are_those_of_the_code(name: str) -> None:
    """Lines to a tenth of a pixel (machines round differently), embedded images to the bit."""
    ours = (DOCS / "images" / f"{name}.svg").read_text("utf-8")
    again = artist.drawn(name)
    assert NUMBER.sub("", EMBEDDED.sub("", ours)) == NUMBER.sub("", EMBEDDED.sub("", again))
    places = [np.array(NUMBER.findall(EMBEDDED.sub("", t)), float) for t in (ours, again)]
    assert np.abs(places[0] - places[1]).max() < 0.11
    for one, other in zip(EMBEDDED.findall(ours), EMBEDDED.findall(again), strict=True):
        assert np.array_equal(pixels(one), pixels(other))


def pixels(data: str) -> np.ndarray:
    """Of an image in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


# -- your own --------------------------------------------------------------------------------------


def file_named(name: str) -> str:
    """The Python block that own.md tells to save under this name."""
    return re.search(rf"[Ss]ave as `{name}`:\n\n```python\n(.*?)^```", OWN, re.S | re.M)[1]


@pytest.mark.parametrize("name", ["my_losses.py", "my_models.py", "my_data.py"])
def test_what_own_md_shows_trains(name: str, tmp_path: Path, capfd: Any) -> None:
    (text,) = (text for text in blocks(OWN, "yaml") if name in text)
    (tmp_path / name).write_text(file_named(name), "utf-8")
    loaded(text, tmp_path)
    words = [str(tmp_path / "mine.yaml"), *SMALL, "--runs", str(tmp_path / "runs")]
    code = Ranks(1, lambda rank: train.main([*words, "--trust-imports"])).join()
    assert code == [0], capfd.readouterr().err
    assert list(tmp_path.glob("runs/mine/*/summary.json"))


# -- notebooks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run(name: str, tmp_path: Path) -> None:
    """From the first cell to the last, in a forked process and an empty folder."""
    cells = code_of(name)
    assert not any(c["outputs"] or c["execution_count"] for c in cells), "saved with outputs"
    sources = []
    for cell in cells:  # fewer images and epochs, the same lines
        source = re.sub(r'"train": 1[02]00', '"train": 96', "".join(cell["source"]))
        source = re.sub(r'"test": (300|60)', '"test": 40', source)
        sources.append(re.sub(r'"epochs": [34]', '"epochs": 2', source))
    ((drawn, shown),) = run_ranks(1, lambda rank: run_cells(sources, tmp_path), timeout=300)
    assert drawn + shown.count("Image") >= 3 and shown.count("Comparison") == 1
    assert len(list(tmp_path.glob("runs/*/*/summary.json"))) == 2


def code_of(name: str) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    book = json.loads((DOCS / f"{name}.ipynb").read_text("utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def run_cells(sources: list[str], folder: Path) -> tuple[int, list[str]]:
    """Run cells as a notebook does; how many figures they draw, and the kinds of their results."""
    plt = pytest.importorskip("matplotlib.pyplot")
    interactive = pytest.importorskip("IPython.core.interactiveshell")
    os.chdir(folder)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    figures: list[None] = []
    plt.switch_backend("agg")
    plt.show = lambda: figures.append(None)
    shell = interactive.InteractiveShell.instance()
    shown = [shell.run_cell(source) for source in sources]
    for cell in shown:
        cell.raise_error()
    return len(figures), [type(cell.result).__name__ for cell in shown]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_colab_keeps_its_own_torch(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """The first cell, where the package is not there yet: what it writes, and what it installs."""
    interactive = pytest.importorskip("IPython.core.interactiveshell")
    shell, asked = interactive.InteractiveShell(), []
    monkeypatch.setattr(shell, "run_line_magic", lambda *words, **more: asked.append(words))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    shell.run_cell("".join(code_of(name)[0]["source"])).raise_error()
    assert [words[0] for words in asked] == ["pip"]
    line = shell.var_expand(asked[0][1])
    assert line == f"install -q -c kept.txt git+{ADDRESS}"
    kept = (tmp_path / "kept.txt").read_text().split()
    assert f"torch=={version('torch')}" in kept and len(kept) == 3


def test_the_address_is_the_same_everywhere() -> None:
    """It stands in pyproject.toml, and as that does in READMEs, pages and notebooks."""
    files = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *DOCS.glob("*.ipynb")]
    texts = {path: path.read_text("utf-8") for path in files}
    found = {
        p: re.findall(r"github(?:\.com)?/([\w-]+/vision_tutorial)", t) for p, t in texts.items()
    }
    assert {name for names in found.values() for name in names} == {ADDRESS.partition(".com/")[2]}
    for readme in ("README.md", "README.ko.md", "docs/index.md", "docs/ko/index.md"):
        for name in NOTEBOOKS:
            link = f"https://colab.research.google.com/github/{ADDRESS.partition('.com/')[2]}"
            assert f"({link}/blob/main/docs/{name}.ipynb)" in texts[ROOT / readme], readme
