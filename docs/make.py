"""Build the site: `python docs/make.py [FOLDER]`, by default into `site/`; it opens from disk.

What is not written by hand is made here, from what the package declares: a page for each command,
one for every key of a recipe, and one for what a recipe can name.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

import generated
import ziamath
from sphinx.cmd.build import main as sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FONT = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"

# The order of pages; Sphinx says which are in none.
NAVIGATION = {
    "Begin": ["install", "first-run", "recipes", "runs", "data", "python"],
    "Reference": ["commands", "recipe-keys", "components"],
    "Techniques": [
        *("techniques/momentum", "techniques/weight-decay", "techniques/warmup-cosine"),
        *("techniques/colour-jitter", "techniques/auto-augment", "techniques/cutmix"),
        *("techniques/mixup", "techniques/label-smoothing", "techniques/ddp", "techniques/iou"),
        *("techniques/dense-crf", "techniques/pseudo-labels"),
    ],
    "Losses": ["losses/pixel", "losses/region", "losses/blends"],
    "Lessons": ["lessons/stem", "lessons/misreadings", "lessons/own"],
    "Tools": ["segmentation", "compare", "report", "sweep", "reproduce", "rerun"],
    "Class and machines": ["classroom", "cluster"],
    "Results": ["results", "performance", "log"],
}
NAVIGATION["한국어"] = ["ko/index", "ko/commands"] + [f"ko/{p}" for p in NAVIGATION["Techniques"]]


def toctree(pages: list[str], caption: str = "") -> str:
    """Pages, as Sphinx's navigation lists them."""
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])


def gather(folder: Path) -> None:
    """The sources of the site: pages by hand, generated pages, recipes, the font of formulas."""
    for path in DOCS.rglob("*"):
        if path.suffix in (".md", ".svg", ".png", ".ipynb", ".css") or path.name == "conf.py":
            target = folder / path.relative_to(DOCS)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    shutil.copy(FONT, folder / "static")
    for name, text in generated.pages().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    for page in folder.rglob("*.md"):  # in the repository, recipes lie outside of docs/
        text = re.sub(r"\]\(((?:\.\./)*)\.\./recipes/", r"](\1recipes/", page.read_text("utf-8"))
        page.write_text(text, "utf-8")
    with (folder / "index.md").open("a", encoding="utf-8") as index:
        index.writelines(toctree(pages, caption) for caption, pages in NAVIGATION.items())


def main(target: str = "site") -> int:
    """Build into `target`; a warning is an error."""
    with tempfile.TemporaryDirectory() as folder:
        gather(Path(folder))
        words = ["-q", "-W", "--keep-going", "-b", "html", "-d", f"{folder}/.doctrees"]
        code = sphinx([*words, folder, target])
    if code == 0:
        print(f"site: {Path(target, 'index.html')}")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
