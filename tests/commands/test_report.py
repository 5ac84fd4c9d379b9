"""The report page: what is on it, that nothing in it runs or is fetched, that it copes."""

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import edit, make_run

from vision_tutorial.commands import report as command
from vision_tutorial.core.atomic import write_json
from vision_tutorial.report import contents, rendering
from vision_tutorial.report.gallery_files import Gallery, GalleryAnswer, Group, Mask, Tile, Writer
from vision_tutorial.runs import reader
from vision_tutorial.tables import labels

SECONDS = ("seconds", "seconds_eval")
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)></script><!--\u2028'


class Elements(HTMLParser):
    """Every element that a browser would see, and the text of the scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.S)
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(*words: object) -> tuple[str, dict[str, Any]]:
    """The page that the command writes, and the data in it."""
    *_, output = words
    assert command.main([str(word) for word in words[:-1]] + ["-o", str(output)]) == 0
    text = Path(output).read_text("utf-8")
    return text, json.loads(Elements(text).scripts[0])


def with_gallery(folder: Path, seed: int = 0, masks: bool = False) -> Gallery:
    """A small gallery in a run folder."""
    more: dict[str, Any] = {}
    writer = Writer(folder)
    rng = np.random.default_rng(seed)
    images = [writer.keep(rng.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(3)]
    if masks:
        more = {"worst": (Mask(images=tuple(images), key="7", iou=50.0),)}
        more |= {"palette": (("sky", "#000000"), ("road", "#800000"))}
    said = (("cat", 0.75), ("dog", 0.25))
    made = Gallery(
        weights="ckpt/step-1",
        split="val",
        images=20,
        classes=("cat", "dog"),
        right=(GalleryAnswer(image=images[0], key="1", truth="cat", said=said),),
        wrong=(GalleryAnswer(image=images[1], key="2", truth="dog", said=said),),
        confusion=((7, 3), (4, 6)),
        microscope=(Group(title="hflip", tiles=(Tile(image=images[2], label="draw 1"),)),),
        **more,
    )
    writer.finish(made)
    return made


def test_runs_with_their_curves_recipes_notes_and_table(tmp_path: Path, capsys: Any) -> None:
    make_run(tmp_path, "r3", values=[10.0, 30.0, 20.0])
    facts = {"versions": {"torch": "2.15.0"}, "command": "x" * 10_000}
    folder = make_run(tmp_path, "r4", values=[10.0, 40.0], **facts)
    note = {"time": "now", "text": "\ud800 half a letter"}
    (folder / "notes.jsonl").write_text(json.dumps(note) + "\n")
    text, data = page(tmp_path, tmp_path / "out.html")
    said = capsys.readouterr().out
    size = len(text.encode()) / 2**20
    assert said == f"{tmp_path / 'out.html'}: 2 runs, {size:.2f} MiB\n"
    r3, r4 = data["runs"]
    assert r3["series"]["val/top1"] == {"x": [1, 2, 3], "y": [10, 30, 20]}
    assert set(r3["series"]) == {"train/loss", "lr", "val/top1", "val/top5", *SECONDS}
    assert r4["notes"] == [["now", "? half a letter"]]
    assert len(r4["environment"].pop("command")) == 2001
    assert dict(r4["facts"])["best val/top1"] == "40 (epoch 2)"
    assert r4["environment"] == {"data": "d1", "versions.torch": "2.15.0"}
    assert r4["recipe"]["epochs"] == "250" and r4["recipe"]["warmup.lr"] == "0.01"
    assert "hflip(p=0.7)" in r4["recipe"]["augment"].split("\n")
    assert r4["base"]["name"] == "r3.yaml"
    assert r4["base"]["recipe"]["epochs"] == "200"
    assert {"loss", "batch_size"}.isdisjoint(r4["base"]["recipe"])
    titles = [column["title"] for column in data["comparison"]["columns"]]
    assert titles[:2] == ["run", "best top1"]
    assert titles.index("epochs") < titles.index("last top1"), "what distinguishes runs comes first"
    row = dict(zip(titles, data["comparison"]["rows"][1]["cells"], strict=True))
    assert data["comparison"]["rows"][1]["runs"] == [1]
    assert row["best top1"] == {"value": 40.0, "text": "40.00"}
    assert row["epochs"]["value"] == 250


def test_seeds_are_one_row_that_names_its_runs(tmp_path: Path) -> None:
    for seed, value in ((1, 60.0), (2, 62.0)):
        make_run(tmp_path, "debug", f"seed={seed}", id=str(seed), values=[value])
    make_run(tmp_path / "other", "r3")
    _, data = page(tmp_path, tmp_path / "out.html")
    row, _ = data["comparison"]["rows"]
    assert row["runs"] == [0, 1]
    best = next(cell for cell in row["cells"] if "±" in cell["text"])
    assert best == {"value": 61.0, "text": "61.00 ± 1.41 (n=2)"}
    make_run(tmp_path / "other", "debug")
    _, data = page(tmp_path, tmp_path / "out.html")
    assert [run["label"] for run in data["runs"]] == ["debug/1 (1)", "debug/2", "debug/1 (2)", "r3"]


def test_a_curve_has_gaps_skips_what_was_not_evaluated_and_is_thinned(tmp_path: Path) -> None:
    folder = make_run(tmp_path, values=[10.0])
    rows = [
        {"epoch": 1, "train/loss": 1.0, "val/top1": 10.0},
        {"epoch": 2, "train/loss": None},
        {"epoch": 3, "train/loss": 2.0, "val/top1": 20.0, "word": "x", "lr": None},
        {"epoch": True, "train/loss": 5.0},
    ]
    lines = [json.dumps(row) for row in rows] + ['{"epoch": 4, "train/loss": NaN}', "{torn"]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    make_run(tmp_path, id="2", values=[float(n) for n in range(5001)])
    one, two = (run["series"] for run in page(tmp_path, tmp_path / "out.html")[1]["runs"])
    assert one == {
        "train/loss": {"x": [1, 2, 3, 4], "y": [1, None, 2, None]},
        "val/top1": {"x": [1, 3], "y": [10, 20]},
    }
    epochs = two["val/top1"]["x"]
    assert len(epochs) == 5001 // 3 and epochs[-1] == 5001 and set(np.diff(epochs)) == {3}


MASKS = {
    "class": ["sky", "road"],
    "pixels": [10, 20],
    "iou": [50.0, None],
    "accuracy": [60.0, 70.5],
    "precision": [61.0, 71.0],
    "boundary_iou": [5.0, 6.0],
    "confusion": [[6, 4], [2, 18]],
}


def described(folder: Path, table: Any) -> dict[str, Any]:
    """What the page knows of a run with this classes.json."""
    write_json(folder / "classes.json", table)
    return contents.contents([reader.read(folder)], [], "en", 2**20)["runs"][0]


def test_the_table_of_classes_and_the_matrix_of_masks(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    found = described(folder, MASKS)
    titles = [column["title"] for column in found["classes"]["columns"]]
    assert titles == ["class", "pixels", "IoU %", "recall %", "precision %", "boundary IoU %"]
    assert found["classes"]["rows"] == [["sky", 10, 50, 60, 61, 5], ["road", 20, None, 70.5, 71, 6]]
    assert found["classes"]["headline"] == 2
    matrix = {"names": ["sky", "road"], "matrix": [[6, 4], [2, 18]], "unit": "pixels"}
    assert found["confusion"] == matrix
    labels = {"class": ["cat", "dog"], "images": [10, 20], "top1": [60.0, 90.0]}
    found = described(folder, labels | {"confusion": MASKS["confusion"]})["confusion"]
    assert found["unit"] == "images", "and there is no gallery"
    for odd in (None, [[1, 2]], [[1, 2], [3, "x"]], [[1, 2], [3, -1]], [1, 2]):
        assert described(folder, MASKS | {"confusion": odd})["confusion"] is None
    for table in ({"class": ["a"]}, {"top1": [1.0]}):
        assert described(folder, table)["classes"] is None
    odd = {"class": [1, ["x"]], "images": ["many", 3], "top1": [{"a": 1}, math.nan]}
    assert described(folder, odd)["classes"]["rows"] == [["1", None, None], ["['x']", 3, None]]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A page on which every text that a run folder can hold is hostile."""
    root = tmp_path_factory.mktemp("hostile")
    folder = make_run(root / "runs", name=HOSTILE, command=HOSTILE, versions={HOSTILE: HOSTILE})
    (folder / "recipe.yaml").write_text(
        (folder / "recipe.yaml").read_text().replace("momentum: 0.9", json.dumps(HOSTILE) + ": 1")
    )
    row = {"epoch": 1, HOSTILE: 1.0, "val/top1": 5.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    edit(folder / "summary.json", metric=HOSTILE, chosen_on=HOSTILE)
    edit(folder / "status.json", status=HOSTILE)
    reader.add_note(folder, HOSTILE)
    write_json(folder / "classes.json", {"class": [HOSTILE] * 2, "top1": [1, 2]})
    (folder / "wandb").mkdir()
    (folder / "wandb" / "url").write_text("javascript:alert(3)")
    with_gallery(folder)
    edit(folder / "gallery" / "gallery.json", classes=[HOSTILE, "dog"], weights=HOSTILE)
    (root / "runs" / "<img src=x onerror=alert(4)>").mkdir()
    return page(root, "--title", HOSTILE, root / "out.html")


def test_no_text_of_a_run_is_markup(hostile: tuple[str, dict[str, Any]]) -> None:
    text, data = hostile
    found = Elements(text)
    assert [script.get("type") for script in found.all("script")] == ["application/json", None]
    assert found.all("img") == [] and found.all("a")
    assert not [name for _, attributes in found.tags for name in attributes if name[:2] == "on"]
    (run,) = data["runs"]
    assert run["label"] == HOSTILE.replace("\u2028", "?") and run["link"] is None
    assert run["notes"][0][1].startswith("<script>")  # as data, to be shown as text
    assert run["confusion"]["names"][0].startswith("<script>")
    assert any("alert(4)" in line for line in data["complaints"])
    assert not set("<>&\u2028") & set(found.scripts[0])


def test_the_policy_allows_this_script_and_no_other(hostile: tuple[str, dict[str, Any]]) -> None:
    text, found = hostile[0], Elements(hostile[0])
    (policy,) = [m["content"] for m in found.all("meta") if "http-equiv" in m]
    digest = base64.b64encode(hashlib.sha256(found.scripts[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    addresses = [v for _, a in found.tags for k, v in a.items() if k in ("src", "href", "action")]
    assert addresses and all(address.startswith("#") for address in addresses)
    assert found.all("link") == [] and "@import" not in text and "url(" not in text
    # the one address in the script is the name of SVG, which nothing fetches
    named = set(re.findall(r"https?://[^\s\"'`]+", found.scripts[1]))
    assert named == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


def test_a_gallery_is_embedded_and_each_image_once(tmp_path: Path) -> None:
    for id in "12":
        with_gallery(make_run(tmp_path, id=id))
    _, data = page(tmp_path, tmp_path / "out.html")
    one, two = (run["gallery"] for run in data["runs"])
    assert one == two and len(data["images"]) == 3
    name = one["wrong"][0]["image"]["name"]
    kept = (tmp_path / "debug" / "1" / "gallery" / name).read_bytes()
    assert data["images"][name] == f"data:image/png;base64,{base64.b64encode(kept).decode()}"
    assert one["wrong"][0]["said"] == [["cat", 0.75], ["dog", 0.25]]
    assert one["about"] == "images of the val split: 20; weights ckpt/step-1"
    matrix = {"names": ["cat", "dog"], "matrix": [[7, 3], [4, 6]], "unit": "images"}
    assert data["runs"][0]["confusion"] == matrix


def test_images_stop_at_the_cap_with_a_line(tmp_path: Path, capsys: Any) -> None:
    for id in "123":
        with_gallery(make_run(tmp_path, id=id), seed=int(id))
    size = len(page(tmp_path / "debug" / "1", tmp_path / "one.html")[1]["images"]) * 1200 / 2**20
    capsys.readouterr()
    _, data = page(tmp_path, "--images", size * 2, tmp_path / "out.html")
    assert [run["gallery"] is None for run in data["runs"]] == [False, False, True]
    line = capsys.readouterr().err.strip()
    assert line == data["complaints"][0] and str(tmp_path / "debug" / "3") in line


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: edit(folder / "gallery.json", palette=[["sky", "url(http://x)"]]),
        lambda folder: edit(folder / "gallery.json", wrong=[{"image": {"name": "../secret.png"}}]),
        lambda folder: [p.unlink() for p in folder.glob("*.png")],
        lambda folder: [p.write_bytes(p.read_bytes() + bytes(2**20)) for p in folder.glob("*.png")],
    ],
)
def test_a_damaged_gallery_is_a_line_and_no_more(tmp_path: Path, damage: Any, capsys: Any) -> None:
    folder = make_run(tmp_path)
    with_gallery(folder)
    damage(folder / "gallery")
    _, data = page(tmp_path, tmp_path / "out.html")
    assert data["runs"][0]["gallery"] is None and data["images"] == {}
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and str(folder) in err


def test_galleries_are_made_where_there_are_none(tmp_path, monkeypatch, capsys):
    folders = [make_run(tmp_path, id=id) for id in "123"]
    with_gallery(folders[0], seed=1)
    before = {path.name for path in (folders[0] / "gallery").glob("*.png")}
    with_gallery(folders[0])
    after = {path.name for path in (folders[0] / "gallery").glob("*.png")}
    assert len(before) == len(after) == 3 and not before & after, "a new one takes the old away"
    started = []

    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess:
        started.append(words)
        if words[-1].endswith("3"):
            return subprocess.CompletedProcess(words, 2, stderr="warning\nerror: no checkpoint\n")
        with_gallery(Path(words[-1]))
        return subprocess.CompletedProcess(words, 0, stderr="")

    monkeypatch.setattr(command.subprocess, "run", run)
    _, data = page(tmp_path, "--galleries", tmp_path / "out.html")
    program = [sys.executable, "-m", "vision_tutorial", "gallery"]
    assert started == [[*program, str(folder)] for folder in folders[1:]]
    assert [run["gallery"] is None for run in data["runs"]] == [False, False, True]
    assert data["complaints"] == [f"no gallery of {folders[2]}: error: no checkpoint"]
    assert data["complaints"][0] in capsys.readouterr().err


def test_damaged_folders_get_a_line_each_and_no_run_is_an_error(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    output = tmp_path / "out.html"
    assert command.main([str(tmp_path), "-o", str(output)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err.splitlines()) == 1 and not output.exists()
    make_run(tmp_path)
    (make_run(tmp_path, id="2") / "summary.json").write_text("{")
    _, data = page(tmp_path, output)
    assert [run["label"] for run in data["runs"]] == ["debug"]
    assert len(data["complaints"]) == 2
    assert capsys.readouterr().err.splitlines() == data["complaints"]


def test_every_word_is_korean_too(tmp_path: Path) -> None:
    english, korean = (labels.words(lang, rendering.__package__) for lang in labels.LANGUAGES)
    script = "".join(rendering.asset(f"{name}.js") for name in rendering.SCRIPTS)
    assert set(re.findall(r"\bwords\.(\w+)", script)) <= english.keys()
    for key, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", korean[key]))
    text, data = page(make_run(tmp_path), "--lang", "ko", tmp_path / "out.html")
    assert '<html lang="ko">' in text and "학습 곡선" in text
    assert dict(data["runs"][0]["facts"])["상태"] == "완료"
