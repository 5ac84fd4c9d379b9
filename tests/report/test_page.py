"""The report page in a real browser: Chromium, headless, from disk.

Skipped without Playwright (`pip install playwright`, the extra `browser`) or without a Chromium
(`apt-get install chromium`).
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands.test_report import HOSTILE, MASKS, with_gallery
from run_folders import make_run

from vision_tutorial.commands import report
from vision_tutorial.core.atomic import write_json
from vision_tutorial.runs import reader

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FOCAL_RUN, HOSTILE_RUN, MASKED_RUN = "3", "4", "5"  # places on the page; 0, 1, 2 are seeds
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield made
        made.close()


class Watched:
    """A page, and all that a person would not want it to do."""

    def __init__(self, page: Any):
        self.page, self.said, self.asked, self.dialogs = page, [], [], []
        self.refused: list[str] = []  # by the policy, before anything left
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("requestfailed", lambda request: self.refused.append(request.failure))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))


@contextmanager
def opened(browser: Any, file: Path, width: int = 1280, **options: Any) -> Iterator[Watched]:
    """The file, opened; at the end, nothing but it and images in it may have been asked for."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    context.route("**/*", let_files_through)
    watched = Watched(context.new_page())
    try:
        watched.page.goto(file.as_uri())
        yield watched
        asked = [url for url in watched.asked if not url.startswith("data:image/")]
        assert asked[0] == file.as_uri() and watched.dialogs == []
        assert watched.refused == ["csp"] * len(asked[1:])
    finally:
        context.close()


def let_files_through(route: Any) -> None:
    if route.request.url.startswith(("file:", "data:")):
        route.continue_()
    else:
        route.abort()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page over six runs: three seeds, another recipe, one with masks, a hostile one."""
    root = tmp_path_factory.mktemp("page")
    for seed in (1, 2, 10):
        folder = make_run(root / "runs", "debug", f"seed={seed}", id=str(seed), values=[seed, 70.0])
        write_json(folder / "classes.json", classes(seed))
        with_gallery(folder, seed=seed)
    focal = make_run(
        root / "runs", "debug", "loss=focal", id="f", values=[5.0, 20, 30], name="focal"
    )
    write_json(focal / "classes.json", classes(30))
    masked = make_run(root / "runs", id="m", metric="val/miou", values=[40.0, 50.0], name="masked")
    write_json(masked / "classes.json", MASKS)
    with_gallery(masked, seed=5, masks=True)
    hostile = make_run(root / "runs", id="h", values=[1.0, 2.0], name=HOSTILE)
    reader.add_note(hostile, HOSTILE)
    (root / "runs" / "empty").mkdir()
    return written(root, root / "out.html", "--title", HOSTILE)


@pytest.fixture
def watched(browser: Any, file: Path) -> Iterator[Watched]:
    with opened(browser, file) as found:
        yield found


@pytest.fixture
def page(watched: Watched) -> Any:
    return watched.page


def classes(value: float) -> dict[str, list]:
    return {"class": ["cat", "dog"], "images": [10, 10], "top1": [value, 50.0]}


def written(root: Path, output: Path, *words: str) -> Path:
    assert report.main([str(root), "-o", str(output), *words]) == 0
    return output


def texts(page: Any, selector: str) -> list[str]:
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


def test_it_opens_without_a_word_in_the_console(watched: Watched) -> None:
    for run in range(6):
        watched.page.select_option("#focus", str(run))
    assert "empty" in watched.page.locator("#complaints li").inner_text()
    watched.page.select_option("#focus", "0")
    sizes = watched.page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert sizes == [16, 16, 16]
    nameless = watched.page.evaluate(
        """() => ["button", "select", "input", "[tabindex]", "canvas", "img"]
          .flatMap((kind) => [...document.querySelectorAll(kind)])
          .filter((made) => !(made.ariaLabel || made.alt || made.textContent.trim()
            || (made.labels && made.labels[0]?.textContent.trim())))
          .map((made) => made.outerHTML.slice(0, 100))"""
    )
    assert nameless == [], "everything is reached by keys and has a name"
    assert (watched.said, watched.refused) == ([], [])


def test_nothing_hostile_runs_and_all_of_it_is_shown(watched: Watched) -> None:
    page = watched.page
    page.select_option("#focus", HOSTILE_RUN)
    assert page.locator("script").count() == 2
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("#facts dd", has_text="alert(1)").count() >= 1  # the note
    assert page.locator("#legend button", has_text="<script>alert(1)").count() == 1
    assert page.title().startswith("<script>alert(1)</script>")
    assert watched.said == []


def test_the_policy_bites(watched: Watched) -> None:
    ran = watched.page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
          const markup = "<img src=x onerror='window.ran = true'>";
          document.body.insertAdjacentHTML("beforeend", markup);
          const image = new Image();
          image.src = "http://127.0.0.1:9/x.png";
          return fetch("http://127.0.0.1:9/").then(() => "fetched", () => window.ran ?? "no");
        }"""
    )
    assert ran == "no"
    assert watched.refused == ["csp", "csp"]
    assert sum("Content Security Policy" in line for line in watched.said) >= 4


def curves(page: Any, run: int) -> int:
    return page.locator(f"path.curve[data-run='{run}']").count()


def test_a_run_is_toggled_in_every_chart(page: Any) -> None:
    assert texts(page, "#charts h3") == ["loss", "val/top1", "val/miou", "lr"]
    before, button = curves(page, 0), page.locator("#legend button").first
    assert before == 4  # train/loss, top-1, lr, and any other metric
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert curves(page, 0) == 0 and curves(page, 1) == before
    assert button.get_attribute("aria-pressed") == "false"
    page.get_by_role("button", name="none", exact=True).click()
    assert page.locator("path.curve").count() == 0
    assert page.get_by_text("Nothing to draw.").count() == 5
    page.get_by_role("button", name="all", exact=True).click()
    assert curves(page, 0) == before


def test_the_cursor_reads_by_mouse_and_by_keys(page: Any) -> None:
    plot = page.locator(".chart").nth(1).locator(".plot")
    plot.hover(position={"x": 60, "y": 50})
    assert plot.locator(".readout strong").inner_text() == "epoch 1"
    plot.focus()
    page.keyboard.press("End")
    assert plot.get_attribute("aria-valuetext") == "epoch 3: focal: 30"
    page.keyboard.press("ArrowLeft")
    said = plot.get_attribute("aria-valuetext")
    assert said.startswith("epoch 2: debug/1: 70") and "focal: 20" in said
    page.keyboard.press("Escape")
    assert plot.locator(".readout").count() == 0
    any_metric = page.locator(".chart").last  # a percentage has no use for a log scale
    any_metric.locator("select").select_option("val/top1")
    curve = any_metric.locator(f"path.curve[data-run='{FOCAL_RUN}']")
    before = curve.get_attribute("d")
    any_metric.get_by_label("log scale").check()
    assert curve.get_attribute("d") != before
    chart = page.locator(".chart").nth(1)
    chart.locator("summary").click()  # the numbers as a table
    assert texts(chart, "thead button")[:4] == ["epoch", "debug/1", "debug/2", "debug/10"]
    assert texts(chart, "tbody tr:nth-child(3) td")[:5] == ["3", "–", "–", "–", "30"]


def test_the_comparison_sorts_both_ways(page: Any) -> None:
    title = page.locator("#comparison thead th", has_text="best")
    place = texts(page, "#comparison thead th").index(title.inner_text().strip()) + 1
    cells = f"#comparison tbody td:nth-child({place})"
    title.locator("button").click()
    falling = [float(text.split()[0]) for text in texts(page, cells)]
    assert falling == sorted(falling, reverse=True) and len(set(falling)) == 3
    assert title.get_attribute("aria-sort") == "descending"
    title.locator("button").click()
    assert [float(text.split()[0]) for text in texts(page, cells)] == falling[::-1]
    assert title.get_attribute("aria-sort") == "ascending"


def test_a_name_in_the_table_leads_to_its_run(page: Any) -> None:
    page.locator("#classes select").select_option(FOCAL_RUN)  # beside the first run
    row = texts(page, "#classes tbody tr:first-child td")
    assert row == ["cat", "10", "1.00", "30.00", "-29.00"]
    page.locator("#comparison").get_by_role("button", name="focal", exact=True).click()
    assert page.locator("#focus").input_value() == FOCAL_RUN
    assert page.evaluate("document.activeElement.id") == "focus"
    assert "30 (epoch 3)" in texts(page, "#facts dd")
    assert "vision-tutorial gallery" in page.locator("#images").inner_text()
    assert page.locator("#preview").inner_text() == ""


def test_the_confusion_matrix_and_its_worst_pairs(page: Any) -> None:
    rows = [texts(page, f"#confusion tbody tr:nth-child({n}) td") for n in (1, 2)]
    assert rows == [["dog", "cat", "4", "40.0"], ["cat", "dog", "3", "30.0"]]
    canvas = page.locator("#confusion canvas")
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] - 10, "y": box["height"] - 60})
    assert page.get_by_text("cat → dog: 3 (30 % of its class)").is_visible()
    assert texts(page, "#images figcaption strong") == ["✗ truth: dog", "✓ truth: cat"]
    assert page.locator("#images img").first.get_attribute("alt") == "dog, image 2"
    page.select_option("#focus", MASKED_RUN)  # has its own columns and unit
    assert texts(page, "#classes thead th")[:3] == ["class", "pixels", "IoU %"]
    assert texts(page, "#confusion tbody tr:first-child td") == ["sky", "road", "4", "40.0"]
    assert texts(page, "#confusion .scale span") == ["0", "5", "25", "50", "100"]
    assert texts(page, "#images .triple span") == ["image", "truth", "prediction"]


def test_one_run_is_one(browser: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    with opened(browser, written(tmp_path / "runs", tmp_path / "out.html")) as watched:
        assert watched.page.locator("#made").inner_text().startswith("1 run · made ")


def test_recipes_side_by_side(page: Any) -> None:
    assert texts(page, "#facts-of-machines tbody td") == ["data", "d1", "all"]
    assert texts(page, "#difference tbody td") == ["seed", "1", "2"]
    page.select_option("#other-recipe", FOCAL_RUN)
    keys = ["name", "expects.top1", "expects.minutes", "loss", "seed"]
    assert texts(page, "#difference tbody td:first-child") == keys
    page.get_by_label("all keys").check()
    assert page.locator("#difference tbody tr").count() > 30


@pytest.mark.parametrize("width", [320, 768, 1920])
def test_the_page_never_scrolls_sideways(browser: Any, file: Path, width: int) -> None:
    with opened(browser, file, width) as watched:
        for run in ("0", FOCAL_RUN, HOSTILE_RUN, MASKED_RUN):
            watched.page.select_option("#focus", run)
            wide = watched.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_system_s_until_it_is_chosen(
    browser: Any, file: Path, scheme: str
) -> None:
    with opened(browser, file, color_scheme=scheme) as watched:
        page, other = watched.page, {"light": "dark", "dark": "light"}[scheme]
        assert (luminance(page, "paper") < 0.5) == (scheme == "dark")
        colours_stand_out_as_wcag_wants(page)
        button = page.locator("#theme")
        assert button.inner_text() == other
        button.click()
        assert (luminance(page, "paper") < 0.5) == (other == "dark")
        assert button.inner_text() == scheme


def colours_stand_out_as_wcag_wants(page: Any) -> None:
    pairs = [(text, "paper", 4.5) for text in ("ink", "quiet", "accent", "good", "bad")]
    pairs += [("ink", "raised", 4.5), ("quiet", "raised", 4.5), ("ink", "bar", 4.5)]
    for one, other, least in pairs + [(f"line-{n}", "paper", 3) for n in range(6)]:
        low, high = sorted(luminance(page, name) + 0.05 for name in (one, other))
        assert high / low >= least, (one, other)


def luminance(page: Any, name: str) -> float:
    """WCAG's relative luminance of a colour of the page."""
    rgb = page.evaluate(
        """(colour) => {
          const made = document.body.appendChild(document.createElement("i"));
          made.style.color = colour;
          const found = getComputedStyle(made).color.match(/\\d+/g).slice(0, 3).map(Number);
          made.remove();
          return found;
        }""",
        f"var(--{name})",
    )
    linear = [c / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 * 255 for c in rgb]
    return sum(w * c / 255 for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
