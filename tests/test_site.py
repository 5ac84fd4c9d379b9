"""The site: built without a warning, whole, and searched from disk."""

import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import DOCS, PAGES, ROOT, blocks

from vision_tutorial.__main__ import COMMANDS, module
from vision_tutorial.recipe.fields import Frozen, Recipe, plain_defaults, written
from vision_tutorial.recipe.signatures import static_signatures


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning: no page is left out, and links lead somewhere."""
    for name in ("furo", "myst_parser", "ziamath"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, str(DOCS / "make.py"), str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_fetches_nothing(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= len(PAGES) + len(COMMANDS)
    outside = re.compile(r"<(script|link|img|iframe)[^>]*(src|href)=\"?(https?:)?//|url\(.?https?:")
    texts = [*pages, *site.rglob("*.css")]
    assert [path for path in texts if outside.search(path.read_text("utf-8"))] == []
    assert "Search.setIndex(" in (site / "searchindex.js").read_text("utf-8")[:100]  # from disk
    (recipe,) = site.glob("_downloads/*/r1.yaml")
    assert recipe.parent.name in (site / "techniques" / "momentum.html").read_text("utf-8")


def test_the_site_is_searched_from_disk(site: Path) -> None:
    """In Chromium, without a network: English and Korean words, in the dark, on a phone."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=arguments)
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for word, first in {"momentum": "Momentum", "모멘텀": "모멘텀"}.items():
            page.goto(f"{(site / 'search.html').as_uri()}?q={word}")
            assert page.locator("#search-results li a").first.inner_text() == first
        page.goto((site / "techniques" / "warmup-cosine.html").as_uri())
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, re.findall(r"\d+", colour)[:3])) < 150
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        fonts = "[...document.fonts].map(font => font.family + ' ' + font.status).join()"
        assert "STIX Two Math" in page.evaluate(fonts) and "loaded" in page.evaluate(fonts)
        assert asked and all(url.startswith(("file:", "data:")) for url in asked)
        browser.close()


def test_formulas_are_whole(site: Path) -> None:
    """Each is MathML, of which nothing was left as it stood in LaTeX."""
    for page in PAGES:
        formulas = blocks(page.read_text("utf-8"), "math")
        whole = (site / page.relative_to(DOCS)).with_suffix(".html").read_text("utf-8")
        drawn = re.findall(r'<div class="formula">(<math.*?</math>)</div>', whole, re.S)
        assert len(drawn) == len(formulas), page
        for tex, math in zip(formulas, drawn, strict=True):
            text = re.sub(r"<[^>]*>", "", math)
            assert not re.search(r"[\\&](?!#)|\bbegin\b", text), (page, tex)
            assert math.count("<mtr>") == (tex.count(r"\\") + 1) * ("split" in tex), (page, tex)
    assert (site / "_static" / "STIXTwoMath-Regular.ttf").is_file()


def test_generated_pages_say_what_the_package_declares(site: Path) -> None:
    page = (site / "recipe-keys.html").read_text("utf-8")
    heads = re.split(r'<section id="([\w-]+)">', page)[3:]  # behind the page's own
    texts = [html.unescape(re.sub(r"<[^>]*>", "", part)) for part in heads[1::2]]
    assert len(texts) == len(Recipe.model_fields)
    for text, (name, declared) in zip(texts, Recipe.model_fields.items(), strict=True):
        kinds = (declared.annotation, *getattr(declared.annotation, "__args__", ()))
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Frozen)]
        said = declared.description or models[0].__doc__.split(".")[0]
        assert text.strip().startswith(name) and said.replace("`", "") in " ".join(text.split()), (
            name
        )
        value = "must be given" if declared.is_required() else written(plain_defaults()[name])
        assert f"Default: {value}." in text, name
        options = (f"{name}.{option}" for model in models for option in model.model_fields)
        assert all(option in text for option in options), name
    for command in COMMANDS:
        text = (site / "commands" / f"{command}.html").read_text("utf-8")
        for action in module(command).parser()._actions:
            assert all(word in text for word in action.option_strings), (command, action)
    components = (site / "components.html").read_text("utf-8")
    for known in static_signatures().values():
        assert all(f">{name}<" in components for name in known.entries)
